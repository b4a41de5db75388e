"""Defects that scripts/differential --mutants plants: name, file under include/vm_accel, the line as
it is, the line with the defect."""

COMMANDS = "smmu/control/command_decoder.hpp"
GEOMETRY = "smmu/caches/set_geometry.hpp"
SCOPE = "smmu/vocabulary/invalidation.hpp"
TRANSLATOR = "smmu/translation/translator.hpp"
RESOLVER = "smmu/translation/stream_resolver.hpp"
CONTEXT = "smmu/translation/context_descriptor.hpp"
FETCH = "smmu/translation/context_fetch.hpp"
STREAMS = "smmu/translation/stream_table.hpp"
STAGE1 = "smmu/translation/stage1_walk.hpp"
STAGE2 = "smmu/translation/stage2_walk.hpp"
FORMAT = "smmu/translation/table_format.hpp"
ALLOWED = "smmu/translation/leaf_permissions.hpp"
SHAPES = "smmu/translation/table_shapes.hpp"

MUTANTS = [
    # Caches and commands.
    ("TLBI by address looks at 4 KiB entries only", GEOMETRY,
     "for (std::uint64_t rest = sizes; rest != 0;",
     "for (std::uint64_t rest = sizes & 0x1000; rest != 0;"),
    ("contexts share their entries, whatever was invalidated", "smmu/caches/context_table.hpp",
     "return std::uint64_t{index_} << 32 | (generation & mask_);",
     "return generation & 0;"),
    ("TLBI by address misses pages that begin before it", SCOPE,
     "first <= base + (size - 1) &&", "first <= base &&"),
    ("TLBI_NH_VAA does nothing", COMMANDS,
     "if (any_space) scope.what = scope_type::kind::any_space;",
     "if (any_space) return command_action{};"),
    ("a TLBI range is one granule short", COMMANDS,
     "const std::uint64_t count = get<T::NUM>(c) + 1;",
     "const std::uint64_t count = get<T::NUM>(c) + (get<T::NUM>(c) == 0 ? 1 : 0);"),
    ("TLBI_NH_ALL is for VMID 0", COMMANDS,
     "return command_action::of(scope_type::all_of(stream_world::ns_el1, vm));",
     "return command_action::of(scope_type::all_of(stream_world::ns_el1, vmid{0}));"),
    ("TLBI_S12_VMALL leaves stage 2", COMMANDS,
     "return command_action::of(scope_type::all_of(stream_world::stage2, vm),",
     "return command_action::of(scope_type::all_of(stream_world::ns_el1, vm),"),
    ("TLBI_S2_IPA takes a VA", COMMANDS,
     "scope_type scope = scope_type::addresses({stream_world::stage2, vm, {}}, range->first,",
     "scope_type scope = scope_type::addresses({stream_world::ns_el1, vm, {}}, range->first,"),
    ("CMD_CFGI_STE does nothing", COMMANDS,
     "return secure ? command_action::illegal() : command_action::of_streams(sid, sid);",
     "return secure ? command_action::illegal() : command_action{};"),
    ("CMD_CFGI_STE_RANGE is one bit short", COMMANDS,
     "const std::uint64_t mask = (std::uint64_t{2} << range) - 1;",
     "const std::uint64_t mask = (std::uint64_t{1} << range) - 1;"),
    ("SSec is not looked at", COMMANDS,
     "F.state == security_state::non_secure && get<spec::command::SSec>(c) != 0;", "false;"),
    ("streams of one ASID share entries across VMIDs", RESOLVER,
     "out.identity.tag = {plan.world, plan.vm, asid{0}};",
     "out.identity.tag = {plan.world, vmid{0}, asid{0}};"),
    # Configurations.
    ("the Span of a level-1 descriptor is ignored", STREAMS,
     "if (span == 0 || span > split + 1 || index >> (span - 1) != 0) {",
     "if (span == 0 || span > split + 1) {"),
    ("LOG2SIZE is ignored", STREAMS,
     "if (sid >> log2size != 0) {", "if (sid >> 16 != 0) {"),
    ("GBPA.ABORT is ignored", RESOLVER,
     "if (by.bypass_aborts) return refused_stream(silent_abort::gbpa_abort);", ""),
    ("EPD is ignored", CONTEXT, "if (fields.disabled) return true;", ""),
    ("AA64 = 0 is legal", CONTEXT, "if (get<C::AA64>(context) == 0) return bad;", ""),
    ("T0SZ has no upper limit", SHAPES,
     "return tsz >= least && tsz <= largest_tsz<F>(granule_bits);\n}\n\n/// Whether STE.S2T0SZ",
     "return tsz >= least;\n}\n\n/// Whether STE.S2T0SZ"),
    ("CD.R is always 1", CONTEXT,
     "out.record_stage1_faults = stall || get<C::R>(context) != 0;",
     "out.record_stage1_faults = true;"),
    ("CD.R decides for stage 2 too", TRANSLATOR,
     "walk.stage2 ? configuration.record_stage2_faults : configuration.record_stage1_faults;",
     "configuration.record_stage1_faults;"),
    ("a CD is read at its IPA", FETCH, "if (plan_.stage2) {", "if (false) {"),
    ("a failed CD fetch is C_BAD_CD", FETCH,
     "return resolve_fault{.event = spec::event_id::F_CD_FETCH, .fetch_address = at};",
     "return resolve_fault{.event = spec::event_id::C_BAD_CD};"),
    # Walks.
    ("the upper half walks TTB0", STAGE1,
     "const stage1_half& half = regime.half[upper ? 1 : 0];",
     "const stage1_half& half = regime.half[0];"),
    ("addresses that are not canonical are folded", STAGE1,
     "if ((request.address ^ sign) >> half.input_bits != 0) return", "if (false) return"),
    ("table attributes count in spite of HAD", STAGE1,
     "if (!half.flat_permissions) here |= *descriptor & known_table::limits;", "here |= *descriptor & known_table::limits;"),
    ("APTable forbids no writes", ALLOWED, "return (spec::stage1_table::APTable::of(bits) & 2) != 0;",
     "return false;"),
    ("stage-1 tables are read at their IPA", STAGE1,
     "if (regimes_.stage2_enabled) return look_up(at, permissions::privileged_read);", ""),
    ("a descriptor that cannot be read is F_TRANSLATION", STAGE1,
     "return walk_result::fault(F_WALK_EABT, bare_address<F.state>(place.physical()), level);",
     "return walk_result::fault(F_TRANSLATION, 0, level);"),
    ("the access flag of stage 2 is ignored", STAGE2,
     "if (flags.access_fault()) return fault(F_ACCESS);", ""),
    ("a stage-2 fault is recorded as stage 1's", STAGE2, "r.stage2 = true;", ""),
    ("a stage-2 fault on a table has CLASS IN", STAGE2,
     "r.cls = request.for_table ? spec::fault_class::TT : spec::fault_class::IN;",
     "r.cls = spec::fault_class::IN;"),
    ("IPAs beyond S2T0SZ are cut", STAGE2,
     "if (request.ipa >> format.input_bits() != 0 || ", "if ("),
    ("S2AP forbids no writes", ALLOWED,
     "if ((ap & 2) != 0) bits |= write_accesses;", "bits |= write_accesses;"),
    ("outputs beyond the output size pass", FORMAT,
     "if (!fits(address)) return {descriptor_role::too_large, 0};", ""),
    ("reserved descriptors of the last level are pages", FORMAT,
     "if (last && !leaf) return {};", "if (last && !leaf) return {descriptor_role::leaf, "
     "spec::address_in(descriptor, covered(level), form())};"),
]
