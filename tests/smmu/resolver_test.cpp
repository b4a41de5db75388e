// From an access to its configuration: which CD, through which stage 2, with
// which overrides, under which identity.
#include "table_builder.hpp"

#include <vm_accel/smmu/translation/stream_resolver.hpp>

#include <catch2/catch.hpp>

#include <cstdint>
#include <functional>
#include <optional>

using namespace vm_accel;
using spec::event_id;
using tables::sparse_memory;

namespace {

using S = spec::ste;
using C = spec::cd;

constexpr std::uint64_t stream_table = 0x10'0000;
constexpr std::uint64_t cd_area = 0x20'0000;    ///< of PAs, or of IPAs under stage 2
constexpr std::uint64_t leaf_table = 0x30'0000; ///< second level of CDs
constexpr std::uint64_t far_leaf_table = 0x40'0000;
constexpr std::uint64_t stage2_table = 0x50'0000; ///< two tables at level 1
constexpr std::uint64_t offset = 0x1000'0000;     ///< from an IPA to its PA
constexpr std::uint64_t vms = 0x60'0000;
constexpr std::uint64_t hole = 0xff'0000'0000; ///< what is no memory

/// One stream in sparse memory.
struct guest_image {
    sparse_memory memory;
    S ste;
    bool nested = false;

    explicit guest_image(std::uint64_t config) : nested((config & 0b10) != 0) {
        set<S::V>(ste, 1);
        set<S::Config>(ste, config);
        set<S::S1ContextPtr>(ste, cd_area >> 6);
        set<S::S2T0SZ>(ste, 24);
        set<S::S2SL0>(ste, 1);
        set<S::S2PS>(ste, 2);
        set<S::S2AA64>(ste, 1);
        set<S::S2R>(ste, 1);
        set<S::S2TTB>(ste, stage2_table >> 4);
        set<S::S2VMID>(ste, 7);
        // 1 GiB, IPA n to PA n + offset: a block of level 1 does not reach, so 2 MiB blocks.
        memory.words[stage2_table] = (stage2_table + 0x2000) | 3;
        for (std::uint64_t i = 0; i < 8; ++i)
            map2(i << 21, offset + (i << 21));
        memory.hole = 0xffff'0000'0000;
    }
    /// A 2 MiB block of stage 2, readable and writable, write-back.
    void map2(std::uint64_t ipa, std::uint64_t pa, std::uint64_t flags = 0x4fd) {
        memory.words[stage2_table + 0x2000 + (ipa >> 21) * 8] = pa | flags;
    }
    /// Where an address of stage 1's is in memory.
    std::uint64_t physical(std::uint64_t address) const {
        return nested ? address + offset : address;
    }
    template <class Structure>
    void store(std::uint64_t at, const Structure& s) {
        for (std::size_t i = 0; i < s.word.size(); ++i)
            memory.words[at + 8 * i] = s.word[i].value();
    }
    /// A CD that can be told by its ASID.
    static C context(std::uint16_t space) {
        C c;
        set<C::V>(c, 1);
        set<C::AA64>(c, 1);
        set<C::A>(c, 1);
        set<C::R>(c, 1);
        set<C::IPS>(c, 2);
        set<C::T0SZ>(c, 25);
        set<C::EPD1>(c, 1);
        set<C::ASID>(c, space);
        set<C::TTB0>(c, 0x70'0000 >> 4);
        return c;
    }
    void put_cd(std::uint64_t at, std::uint16_t space) { store(physical(at), context(space)); }
    void put_level1(std::uint64_t index, std::uint64_t leaf, bool valid = true) {
        memory.words[physical(cd_area) + index * 8] = leaf | (valid ? 1 : 0);
    }

    template <smmu_features F = full_features>
    std::optional<resolve_fault> resolve(stream_configuration& out,
                                         std::optional<substream_id> substream = {},
                                         bool host_extensions = false) {
        store(stream_table, ste);
        const stream_table_registers registers{
            .enabled = true, .base = stream_table, .host_extensions = host_extensions};
        return resolve_stream<F>(memory, registers,
                                 {.stream = stream_id{0},
                                  .substream = substream,
                                  .window = {pa{0}, 1ULL << 40},
                                  .incoming = {0xff, 0}},
                                 out);
    }
};

using ssid = std::optional<substream_id>;
constexpr ssid none{};
constexpr ssid number(std::uint32_t n) { return substream_id{n}; }

} // namespace

TEST_CASE("which CD an access finds", "[smmu][config][substream]") {
    struct row {
        const char* what;
        std::uint64_t max, format, dss;
        ssid substream;
        std::optional<event_id> event;
        int space; ///< ASID of the CD that is found; 0 = stage 1 is bypassed
    };
    using enum event_id;
    // CDs 0, 1, 5, 63, 64, 1023, 1024 and 2047 of the tables below have their index + 1 as ASID.
    const auto r = GENERATE(
        row{"one CD", 0, 0, 0, none, {}, 1}, row{"one CD, two-level ignored", 0, 1, 0, none, {}, 1},
        row{"one CD, S1DSS ignored", 0, 0, 1, none, {}, 1},
        row{"one CD, SubstreamID 0", 0, 0, 2, number(0), C_BAD_SUBSTREAMID, 0},
        row{"linear, 0", 11, 0, 0, number(0), {}, 1}, row{"linear, 5", 11, 0, 0, number(5), {}, 6},
        row{"linear, last", 11, 0, 0, number(2047), {}, 2048},
        row{"linear, one past", 11, 0, 0, number(2048), C_BAD_SUBSTREAMID, 0},
        row{"linear, far past", 1, 0, 0, number(0xf'ffff), C_BAD_SUBSTREAMID, 0},
        row{"reserved format is linear", 11, 3, 0, number(5), {}, 6},
        row{"64-CD leaves, 5", 11, 1, 0, number(5), {}, 6},
        row{"64-CD leaves, last of the first", 11, 1, 0, number(63), {}, 64},
        row{"64-CD leaves, first of the second", 11, 1, 0, number(64), {}, 65},
        row{"64-CD leaves, last", 11, 1, 0, number(2047), {}, 2048},
        row{"64-CD leaves, past", 11, 1, 0, number(2048), C_BAD_SUBSTREAMID, 0},
        row{"64-CD leaves, leaf absent", 11, 1, 0, number(128), C_BAD_SUBSTREAMID, 0},
        row{"64-CD leaves, fewer CDs than a leaf", 3, 1, 0, number(5), {}, 6},
        row{"1024-CD leaves, 5", 11, 2, 0, number(5), {}, 6},
        row{"1024-CD leaves, last of the first", 11, 2, 0, number(1023), {}, 1024},
        row{"1024-CD leaves, first of the second", 11, 2, 0, number(1024), {}, 1025},
        row{"1024-CD leaves, leaf absent", 12, 2, 0, number(2048), C_BAD_SUBSTREAMID, 0},
        row{"S1DSS terminates", 11, 0, 0, none, F_STREAM_DISABLED, 0},
        row{"S1DSS reserved terminates", 11, 0, 3, none, F_STREAM_DISABLED, 0},
        row{"S1DSS bypasses", 11, 0, 1, none, {}, 0},
        row{"S1DSS bypasses, SubstreamID 5 does not", 11, 0, 1, number(5), {}, 6},
        row{"S1DSS bypasses, SubstreamID 0 does not", 11, 0, 1, number(0), {}, 1},
        row{"S1DSS uses CD 0", 11, 0, 2, none, {}, 1},
        row{"S1DSS uses CD 0, two levels", 11, 2, 2, none, {}, 1},
        row{"S1DSS uses CD 0: SubstreamID 0 is taken", 11, 0, 2, number(0), F_STREAM_DISABLED, 0},
        row{"S1DSS uses CD 0: SubstreamID 5 is not", 11, 0, 2, number(5), {}, 6});
    const bool nested = GENERATE(false, true);
    CAPTURE(r.what, nested);
    guest_image g{nested ? 0b111U : 0b101U};
    set<S::S1CDMax>(g.ste, r.max);
    set<S::S1Fmt>(g.ste, r.format);
    set<S::S1DSS>(g.ste, r.dss);
    const bool two_levels = r.max != 0 && (r.format == 1 || r.format == 2);
    if (!two_levels) {
        for (const std::uint32_t i : {0U, 1U, 5U, 2047U})
            g.put_cd(cd_area + i * 64, static_cast<std::uint16_t>(i + 1));
    } else if (r.format == 1) {
        g.put_level1(0, leaf_table);
        g.put_level1(1, leaf_table + 0x1000);
        g.put_level1(2, leaf_table, false);
        g.put_level1(31, far_leaf_table);
        for (const std::uint32_t i : {0U, 5U, 63U, 64U})
            g.put_cd(leaf_table + i * 64, static_cast<std::uint16_t>(i + 1));
        g.put_cd(far_leaf_table + 63 * 64, 2048);
    } else {
        g.put_level1(0, leaf_table);
        g.put_level1(1, far_leaf_table);
        g.put_level1(2, leaf_table, false);
        for (const std::uint32_t i : {0U, 5U, 1023U})
            g.put_cd(leaf_table + i * 64, static_cast<std::uint16_t>(i + 1));
        g.put_cd(far_leaf_table, 1025);
    }
    stream_configuration out;
    const auto failed = g.resolve(out, r.substream);
    REQUIRE(failed.has_value() == r.event.has_value());
    if (failed) {
        CHECK(failed->event == *r.event);
        CHECK(failed->record);
        return;
    }
    CHECK(raw(out.identity.tag.space) == r.space);
    CHECK(out.regimes.stage1_enabled == (r.space != 0));
    CHECK(out.regimes.stage2_enabled == nested);
    const auto world = r.space != 0 ? stream_world::ns_el1
                       : nested     ? stream_world::stage2
                                    : stream_world::bypass;
    CHECK(out.identity.tag.world == world);
    CHECK(out.is_substream == r.substream.has_value());
    CHECK(out.serves({.has_substream = r.substream.has_value(),
                      .substream = r.substream.value_or(substream_id{})}));
    CHECK_FALSE(out.serves({.has_substream = !r.substream, .substream = substream_id{5}}));
    CHECK_FALSE(out.serves({.has_substream = true, .substream = substream_id{6}}));
}

TEST_CASE("an access with a SubstreamID needs stage 1 and SubstreamIDs",
          "[smmu][config][substream]") {
    stream_configuration out;
    const std::uint64_t config = GENERATE(0b100U, 0b110U);
    guest_image g{config};
    CHECK_FALSE(g.resolve(out));
    CHECK(g.resolve(out, number(0)).value().event == event_id::C_BAD_SUBSTREAMID);
    guest_image stage1{0b101U};
    stage1.put_cd(cd_area, 1);
    set<S::S1CDMax>(stage1.ste, 4); // ignored
    set<S::S1DSS>(stage1.ste, 0);
    CHECK_FALSE(stage1.resolve<stage1_features>(out));
    CHECK(stage1.resolve<stage1_features>(out, number(1)).value().event ==
          event_id::C_BAD_SUBSTREAMID);
    // Streams that abort do so in silence.
    guest_image blocked{0b000U};
    CHECK_FALSE(blocked.resolve(out, number(1)));
    CHECK(out.mode == stream_mode::abort);
}

TEST_CASE("CD tables are aligned to their size", "[smmu][config][substream]") {
    struct row {
        const char* what;
        std::uint64_t max, format, stray; ///< bits of S1ContextPtr that do not count
    };
    const auto r = GENERATE(row{"linear, 2^11", 11, 0, 0x1'ffc0}, row{"one CD", 0, 0, 0},
                            row{"64-CD leaves, 32 entries", 11, 1, 0xc0},
                            row{"64-CD leaves, 8 entries", 9, 1, 0},
                            row{"1024-CD leaves, 2^20", 20, 2, 0x1fc0});
    CAPTURE(r.what);
    guest_image g{0b101};
    set<S::S1CDMax>(g.ste, r.max);
    set<S::S1Fmt>(g.ste, r.format);
    set<S::S1DSS>(g.ste, 2);
    g.ste.word[0] = le64{g.ste.word[0].value() | r.stray};
    g.put_cd(cd_area, 9);
    if (r.format != 0) {
        // A level-2 table's low address bits do not count either.
        g.put_level1(0, leaf_table | (r.format == 2 ? 0xf000U : 0U));
        g.put_cd(leaf_table, 9);
    }
    stream_configuration out;
    CHECK_FALSE(g.resolve(out));
    CHECK(raw(out.identity.tag.space) == 9);
}

TEST_CASE("what cannot be fetched", "[smmu][config][nested]") {
    using enum event_id;
    struct row {
        const char* what;
        std::function<void(guest_image&)> change;
        event_id event;
        std::uint64_t fetch_address;
        std::uint64_t ipa; ///< 0 = not a stage-2 fault
    };
    const auto fresh = [](bool nested) {
        guest_image g{nested ? 0b111U : 0b101U};
        g.memory.hole = hole;
        set<S::S1CDMax>(g.ste, 11);
        set<S::S1Fmt>(g.ste, 2);
        g.put_level1(0, leaf_table);
        g.put_cd(leaf_table + 5 * 64, 6);
        return g;
    };
    const auto nested_row = GENERATE_COPY(
        row{"level-1 CD at an unmapped IPA", [](auto& g) { g.map2(cd_area, 0, 0); }, F_TRANSLATION,
            0, cd_area},
        row{"CD at an unmapped IPA", [](auto& g) { g.put_level1(0, 0x200'0000); }, F_TRANSLATION, 0,
            0x200'0000 + 5 * 64},
        row{"CD beyond S2T0SZ", [](auto& g) { g.put_level1(0, 1ULL << 45); }, F_TRANSLATION, 0,
            (1ULL << 45) + 5 * 64},
        row{"CD page without access flag", [](auto& g) { g.map2(cd_area, offset, 0x0fd); },
            F_ACCESS, 0, cd_area},
        row{"CD page beyond S2PS", [](auto& g) { g.map2(cd_area, 1ULL << 41); }, F_ADDR_SIZE, 0,
            cd_area},
        row{"CD page that may not be read", [](auto& g) { g.map2(cd_area, offset, 0x4bd); },
            F_PERMISSION, 0, cd_area},
        row{"CD page of a device, S2PTW",
            [](auto& g) {
                set<S::S2PTW>(g.ste, 1);
                g.map2(cd_area, offset, 0x4c1);
            },
            F_PERMISSION, 0, cd_area},
        row{"stage-2 table outside memory",
            [](auto& g) { g.memory.words[stage2_table] = hole | 3; }, F_WALK_EABT,
            hole + (cd_area >> 21) * 8, cd_area},
        row{"level-1 CD page outside memory",
            [](auto& g) { g.map2(cd_area & ~0x1f'ffffULL, hole); }, F_CD_FETCH, hole, 0},
        row{"L2Ptr beyond 52 bits", [](auto& g) { g.put_level1(0, 1ULL << 52); }, C_BAD_SUBSTREAMID,
            0, 0},
        row{"CD not valid", [](auto& g) { g.store(g.physical(leaf_table + 5 * 64), C{}); },
            C_BAD_CD, 0, 0});
    CAPTURE(nested_row.what);
    const bool record = GENERATE(true, false);
    const bool stall = GENERATE(false, true);
    guest_image g = fresh(true);
    stream_configuration out;
    REQUIRE_FALSE(g.resolve(out, number(5)));
    nested_row.change(g);
    set<S::S2R>(g.ste, record ? 1 : 0);
    set<S::S2S>(g.ste, stall ? 1 : 0);
    const auto failed = g.resolve(out, number(5));
    REQUIRE(failed);
    CHECK(failed->event == nested_row.event);
    CHECK(failed->fetch_address == nested_row.fetch_address);
    const bool translation = nested_row.event == F_TRANSLATION || nested_row.event == F_ACCESS ||
                             nested_row.event == F_ADDR_SIZE || nested_row.event == F_PERMISSION;
    CHECK(failed->stage2 == (nested_row.ipa != 0));
    if (failed->stage2) {
        CHECK(failed->ipa == nested_row.ipa);
        CHECK(failed->cls == spec::fault_class::CD);
    }
    CHECK(failed->record == (!translation || record || stall));
    CHECK(failed->may_stall == (translation && stall));
}

TEST_CASE("CDs of one stage are where the STE says", "[smmu][config]") {
    guest_image g{0b101};
    g.memory.hole = 0x8000'0000;
    stream_configuration out;
    SECTION("a CD that is no memory") {
        set<S::S1ContextPtr>(g.ste, 0x8000'0000 >> 6);
        const auto failed = g.resolve(out);
        REQUIRE(failed);
        CHECK(failed->event == event_id::F_CD_FETCH);
        CHECK(failed->fetch_address == 0x8000'0000);
    }
    SECTION("a level-1 CD that is no memory") {
        set<S::S1CDMax>(g.ste, 20);
        set<S::S1Fmt>(g.ste, 2);
        set<S::S1ContextPtr>(g.ste, 0x8000'0000 >> 6);
        const auto failed = g.resolve(out, number(1025));
        REQUIRE(failed);
        CHECK(failed->event == event_id::F_CD_FETCH);
        CHECK(failed->fetch_address == 0x8000'0008);
    }
}

TEST_CASE("fetching a CD sets the access flag of its page", "[smmu][config][nested]") {
    guest_image g{0b111};
    set<S::S2HA>(g.ste, 1);
    g.map2(cd_area, offset + cd_area, 0x0fd);
    g.put_cd(cd_area, 4);
    stream_configuration out;
    CHECK_FALSE(g.resolve(out));
    CHECK(g.memory.words[stage2_table + 0x2000 + (cd_area >> 21) * 8] ==
          ((offset + cd_area) | 0x4fd));
}

TEST_CASE("the StreamWorld and the tags of a stream", "[smmu][config][strw]") {
    struct row {
        const char* what;
        std::uint64_t config, strw;
        bool e2h;
        stream_world world;
        int vm, space;
        bool one_privilege;
    };
    using enum stream_world;
    const auto r = GENERATE(row{"EL1", 0b101, 0, true, ns_el1, 7, 3, false},
                            row{"EL1 and stage 2", 0b111, 0, true, ns_el1, 7, 3, false},
                            row{"stage 2, STRW ignored", 0b111, 2, true, ns_el1, 7, 3, false},
                            row{"EL2", 0b101, 2, false, ns_el2, 0, 0, true},
                            row{"EL2-E2H", 0b101, 2, true, ns_el2_e2h, 0, 3, false},
                            row{"stage 2 only", 0b110, 2, true, stage2, 7, 0, false},
                            row{"bypass", 0b100, 2, true, stream_world::bypass, 0, 0, false});
    CAPTURE(r.what);
    guest_image g{r.config};
    set<S::STRW>(g.ste, r.strw);
    C c = g.context(3);
    set<C::EPD0>(c, 1); // ignored by EL2
    set<C::EPD1>(c, 0);
    set<C::TG1>(c, 2);
    set<C::T1SZ>(c, 25);
    set<C::PAN>(c, 1);
    set<C::E0PD0>(c, 1);
    g.store(g.physical(cd_area), c);
    stream_configuration out;
    REQUIRE_FALSE(g.resolve(out, none, r.e2h));
    CHECK(out.identity.tag.world == r.world);
    CHECK(raw(out.identity.tag.vm) == r.vm);
    CHECK(raw(out.identity.tag.space) == r.space);
    if ((r.config & 1) == 0) return;
    const stage1_regime& regime = out.regimes.stage1;
    CHECK(regime.one_privilege == r.one_privilege);
    CHECK(regime.privileged_access_never == !r.one_privilege);
    CHECK(regime.half[0].enabled == r.one_privilege);
    CHECK(regime.half[1].enabled == !r.one_privilege);
    CHECK_FALSE(regime.half[0].user_forbidden);
}

TEST_CASE("every field of a CD reaches the regime", "[smmu][config]") {
    guest_image g{0b101};
    C c = g.context(3);
    set<C::R>(c, 0);
    set<C::A>(c, 0);
    set<C::S>(c, 1);
    set<C::EPD1>(c, 0);
    set<C::T0SZ>(c, 12);
    set<C::TG0>(c, 2);
    set<C::SH0>(c, 2);
    set<C::T1SZ>(c, 20);
    set<C::TG1>(c, 3);
    set<C::SH1>(c, 1);
    set<C::IPS>(c, 6);
    set<C::ENDI>(c, 1);
    set<C::DS>(c, 1);
    set<C::HA>(c, 1);
    set<C::HD>(c, 1);
    set<C::AFFD>(c, 1);
    set<C::WXN>(c, 1);
    set<C::PAN>(c, 1);
    set<C::EPAN>(c, 1);
    set<C::TBI1>(c, 1);
    set<C::HAD0>(c, 1);
    set<C::E0PD1>(c, 1);
    set<C::MAIR>(c, 0x0123'4567'89ab'cdef);
    set<C::TTB0>(c, 0xf'1234'5678'9a80 >> 4);
    set<C::TTB1>(c, 0xf'2234'5678'0000 >> 4);
    g.store(cd_area, c);
    stream_configuration out;
    REQUIRE_FALSE(g.resolve(out));
    const stage1_regime& r = out.regimes.stage1;
    CHECK((out.record_stage1_faults && out.stall_stage1_faults && out.quiet_stage1_faults));
    CHECK((r.half[0].enabled && r.half[0].input_bits == 52 && r.half[0].granule_bits == 14));
    CHECK((r.half[1].enabled && r.half[1].input_bits == 44 && r.half[1].granule_bits == 16));
    CHECK(r.half[0].shareability == 2);
    CHECK(r.half[1].shareability == 0);
    CHECK((!r.half[0].ignore_top_byte && r.half[1].ignore_top_byte));
    CHECK((r.half[0].flat_permissions && !r.half[1].flat_permissions));
    CHECK((!r.half[0].user_forbidden && r.half[1].user_forbidden));
    CHECK(r.half[0].table == 0xf'1234'5678'9a80);
    CHECK(r.half[1].table == 0xf'2234'5678'0000);
    CHECK(r.memory_types == 0x0123'4567'89ab'cdef);
    CHECK(r.output_bits == 52);
    CHECK((r.wide_format && r.big_endian && r.updates_access_flag && r.updates_dirty_state));
    CHECK((r.write_execute_never && r.privileged_access_never && r.enhanced_pan));
    CHECK_FALSE(r.access_flag_ignored); // nothing with HA
    set<C::HA>(c, 0);
    g.store(cd_area, c);
    REQUIRE_FALSE(g.resolve(out));
    CHECK((out.regimes.stage1.access_flag_ignored && !out.regimes.stage1.updates_dirty_state));
}

TEST_CASE("every field of stage 2 reaches the regime", "[smmu][config]") {
    guest_image g{0b111};
    g.put_cd(cd_area, 3);
    set<S::S2TG>(g.ste, 0);
    set<S::S2SH0>(g.ste, 2);
    set<S::S2HA>(g.ste, 1);
    set<S::S2HD>(g.ste, 1);
    set<S::S2AFFD>(g.ste, 1);
    set<S::S2PTW>(g.ste, 1);
    set<S::S2R>(g.ste, 0);
    set<S::S2S>(g.ste, 1);
    stream_configuration out;
    REQUIRE_FALSE(g.resolve(out));
    const stage2_regime& r = out.regimes.stage2;
    CHECK((r.table == stage2_table && r.input_bits == 40 && r.granule_bits == 12));
    CHECK((r.start_level == 1 && r.output_bits == 40 && r.shareability == 2));
    CHECK((r.updates_access_flag && r.updates_dirty_state && !r.access_flag_ignored));
    CHECK((r.protected_tables && !r.wide_format && !r.big_endian));
    CHECK((out.record_stage2_faults && out.stall_stage2_faults));
    guest_image wide{0b110};
    set<S::S2T0SZ>(wide.ste, 12);
    set<S::S2SL0>(wide.ste, 0);
    set<S::S2SL0_2>(wide.ste, 1);
    set<S::S2DS>(wide.ste, 1);
    set<S::S2PS>(wide.ste, 6);
    set<S::S2ENDI>(wide.ste, 1);
    set<S::S2R>(wide.ste, 0);
    set<S::S2PTW>(wide.ste, 1); // of nested streams only
    set<S::S2TTB>(wide.ste, 0xf'1234'5678'9a80 >> 4);
    REQUIRE_FALSE(wide.resolve(out));
    const stage2_regime& w = out.regimes.stage2;
    CHECK((w.start_level == -1 && w.input_bits == 52 && w.output_bits == 52));
    CHECK((w.wide_format && w.big_endian && !w.protected_tables));
    CHECK(w.table == 0xf'1234'5678'9a80);
    CHECK((!out.record_stage2_faults && !out.stall_stage2_faults && out.record_stage1_faults));
}

TEST_CASE("whatever changes a translation changes the identity", "[smmu][config][context]") {
    // Each row changes one thing; `shared` = TLB entries from before may be used.
    struct row {
        const char* what;
        std::function<void(guest_image&, C&)> change;
        bool shared;
    };
    const auto r = GENERATE(
        row{"nothing", [](auto&, C&) {}, true},
        row{"MAIR", [](auto&, C& c) { set<C::MAIR>(c, 4); }, false},
        row{"TTB0", [](auto&, C& c) { set<C::TTB0>(c, 1 << 10); }, false},
        row{"T0SZ", [](auto&, C& c) { set<C::T0SZ>(c, 26); }, false},
        row{"IPS", [](auto&, C& c) { set<C::IPS>(c, 1); }, false},
        row{"WXN", [](auto&, C& c) { set<C::WXN>(c, 1); }, false},
        row{"PAN", [](auto&, C& c) { set<C::PAN>(c, 1); }, false},
        row{"EPAN", [](auto&, C& c) { set<C::EPAN>(c, 1); }, false},
        row{"HAD0", [](auto&, C& c) { set<C::HAD0>(c, 1); }, false},
        row{"E0PD0", [](auto&, C& c) { set<C::E0PD0>(c, 1); }, false},
        row{"E0PD1", [](auto&, C& c) { set<C::E0PD1>(c, 1); }, false},
        row{"DS", [](auto&, C& c) { set<C::DS>(c, 1); }, false},
        row{"ENDI", [](auto&, C& c) { set<C::ENDI>(c, 1); }, false},
        row{"HA", [](auto&, C& c) { set<C::HA>(c, 1); }, false},
        row{"HA and HD",
            [](auto&, C& c) {
                set<C::HA>(c, 1);
                set<C::HD>(c, 1);
            },
            false},
        row{"AFFD", [](auto&, C& c) { set<C::AFFD>(c, 1); }, false},
        row{"TBI0", [](auto&, C& c) { set<C::TBI0>(c, 1); }, false},
        row{"SH0", [](auto&, C& c) { set<C::SH0>(c, 3); }, false},
        row{"ASID", [](auto&, C& c) { set<C::ASID>(c, 4); }, false},
        row{"S2VMID", [](auto& g, C&) { set<S::S2VMID>(g.ste, 8); }, false},
        row{"S2T0SZ", [](auto& g, C&) { set<S::S2T0SZ>(g.ste, 25); }, false},
        row{"S2PS", [](auto& g, C&) { set<S::S2PS>(g.ste, 3); }, false},
        row{"S2PTW", [](auto& g, C&) { set<S::S2PTW>(g.ste, 1); }, false},
        row{"S2FWB", [](auto& g, C&) { set<S::S2FWB>(g.ste, 1); }, false},
        row{"S2AFFD", [](auto& g, C&) { set<S::S2AFFD>(g.ste, 1); }, false},
        row{"S2HA", [](auto& g, C&) { set<S::S2HA>(g.ste, 1); }, false},
        row{"S2SH0", [](auto& g, C&) { set<S::S2SH0>(g.ste, 3); }, false},
        row{"S2DS", [](auto& g, C&) { set<S::S2DS>(g.ste, 1); }, false},
        row{"stage 2 off",
            [](auto& g, C&) {
                set<S::Config>(g.ste, 0b101);
                g.nested = false;
            },
            false},
        row{"A, R, S",
            [](auto&, C& c) {
                set<C::A>(c, 0);
                set<C::R>(c, 0);
                set<C::S>(c, 1);
            },
            true},
        row{"ASET, cacheability of walks",
            [](auto&, C& c) {
                set<C::ASET>(c, 1);
                set<C::IR0>(c, 1);
                set<C::OR1>(c, 1);
            },
            true},
        row{"S2R, S2S",
            [](auto& g, C&) {
                set<S::S2R>(g.ste, 0);
                set<S::S2S>(g.ste, 1);
            },
            true},
        row{"PRIVCFG: a matter of permissions", [](auto& g, C&) { set<S::PRIVCFG>(g.ste, 3); },
            true},
        row{"MTCFG: stage 1 has its own", [](auto& g, C&) { set<S::MTCFG>(g.ste, 1); }, true},
        row{"PARTID", [](auto& g, C&) { set<S::PARTID>(g.ste, 3); }, true});
    CAPTURE(r.what);
    guest_image before{0b111};
    before.put_cd(cd_area, 3);
    stream_configuration a;
    REQUIRE_FALSE(before.resolve(a));
    guest_image after{0b111};
    C c = after.context(3);
    r.change(after, c);
    after.store(after.physical(cd_area), c);
    stream_configuration b;
    REQUIRE_FALSE(after.resolve(b));
    CHECK((a.identity == b.identity) == r.shared);
    // Without stage 1, what comes in goes out: then overrides count.
    guest_image s2{0b110};
    stream_configuration x;
    stream_configuration y;
    REQUIRE_FALSE(s2.resolve(x));
    set<S::MTCFG>(s2.ste, 1);
    REQUIRE_FALSE(s2.resolve(y));
    CHECK(x.identity != y.identity);
}

TEST_CASE("overrides of memory type and shareability", "[smmu][config][attributes]") {
    struct row {
        const char* what;
        memory_attributes incoming;
        attribute_overrides by;
        memory_attributes result;
    };
    constexpr memory_attributes wb{0xff, 0};
    constexpr memory_attributes device{0x04, 2};
    const auto r = GENERATE_COPY(
        row{"nothing", wb, {}, wb}, row{"nothing, a device", device, {}, device},
        row{"inner shareable", wb, {false, 0, 3, 0}, {0xff, 3}},
        row{"outer shareable", wb, {false, 0, 2, 0}, {0xff, 2}},
        row{"non-shareable", {0xff, 3}, {false, 0, 0, 0}, {0xff, 0}},
        row{"a device stays outer shareable", device, {false, 0, 0, 0}, {0x04, 2}},
        row{"Device-nGnRnE", wb, {true, 0b0000, 1, 0}, {0x00, 2}},
        row{"Device-nGnRE", wb, {true, 0b0001, 3, 0}, {0x04, 2}},
        row{"Device-nGRE", wb, {true, 0b0010, 1, 0}, {0x08, 2}},
        row{"Device-GRE", wb, {true, 0b0011, 1, 0}, {0x0c, 2}},
        row{"reserved is Device-nGnRnE", wb, {true, 0b0100, 1, 0}, {0x00, 2}},
        row{"reserved is Device-nGnRnE", wb, {true, 0b1000, 1, 0}, {0x00, 2}},
        row{"reserved is Device-nGnRnE", wb, {true, 0b1100, 1, 0}, {0x00, 2}},
        row{"non-cacheable", wb, {true, 0b0101, 3, 0}, {0x44, 2}},
        row{"outer non-cacheable, inner write-back", wb, {true, 0b0111, 3, 0}, {0x4f, 3}},
        row{"write-through", wb, {true, 0b1010, 3, 0}, {0xbb, 3}},
        row{"write-back, hints as they come", {0xa9, 3}, {true, 0b1111, 1, 0}, {0xed, 3}},
        row{"from a device: default hints", device, {true, 0b1111, 3, 0}, {0xff, 3}},
        row{"no allocation", wb, {false, 0, 1, 0b1000}, {0xcc, 0}},
        row{"read allocation, transient", wb, {false, 0, 1, 0b1101}, {0x66, 0}},
        row{"write allocation", wb, {false, 0, 1, 0b1010}, {0xdd, 0}},
        row{"nothing allocated is not transient", wb, {false, 0, 1, 0b1001}, {0xcc, 0}},
        row{"no hints for a device", device, {false, 0, 1, 0b1111}, {0x04, 2}},
        row{"no hints for what is not cached", {0x44, 2}, {false, 0, 1, 0b1111}, {0x44, 2}},
        row{"hints where it is cached", {0x4f, 2}, {false, 0, 1, 0b1001}, {0x4c, 2}},
        row{"ALLOCCFG without its top bit", wb, {false, 0, 1, 0b0111}, wb});
    CAPTURE(r.what);
    CHECK(overridden(r.incoming, r.by) == r.result);
}

TEST_CASE("the STE's overrides reach what is not translated by stage 1",
          "[smmu][config][attributes]") {
    constexpr auto no_overrides = [] {
        smmu_features f = full_features;
        f.type_overrides = f.permission_overrides = false;
        return f;
    }();
    const std::uint64_t config = GENERATE(0b100U, 0b110U);
    guest_image g{config};
    set<S::MTCFG>(g.ste, 1);
    set<S::MemAttr>(g.ste, 0b1010);
    set<S::SHCFG>(g.ste, 3);
    set<S::PRIVCFG>(g.ste, 3);
    set<S::INSTCFG>(g.ste, 2);
    stream_configuration out;
    REQUIRE_FALSE(g.resolve(out));
    CHECK(out.incoming == memory_attributes{0xbb, 3});
    const transaction seen = out.overridden({.instruction = true});
    CHECK((seen.privileged && !seen.instruction));
    REQUIRE_FALSE(g.resolve<no_overrides>(out));
    CHECK(out.incoming == memory_attributes{0xff, 0});
    CHECK(out.overridden({.instruction = true}).instruction);
}

TEST_CASE("PRIVCFG and INSTCFG", "[smmu][config][attributes]") {
    struct row {
        std::uint64_t configured;
        bool incoming, result;
    };
    const auto r = GENERATE(row{0, false, false}, row{0, true, true}, row{1, false, false},
                            row{1, true, true}, row{2, false, false}, row{2, true, false},
                            row{3, false, true}, row{3, true, true});
    CAPTURE(r.configured, r.incoming);
    guest_image g{0b100};
    stream_configuration out;
    set<S::PRIVCFG>(g.ste, r.configured);
    REQUIRE_FALSE(g.resolve(out));
    CHECK(out.overridden({.privileged = r.incoming}).privileged == r.result);
    CHECK_FALSE(out.overridden({.privileged = r.incoming}).instruction);
    set<S::PRIVCFG>(g.ste, 0);
    set<S::INSTCFG>(g.ste, r.configured);
    REQUIRE_FALSE(g.resolve(out));
    CHECK(out.overridden({.instruction = r.incoming}).instruction == r.result);
    CHECK_FALSE(out.overridden({.instruction = r.incoming}).privileged);
}

TEST_CASE("GBPA's attributes while SMMUEN = 0", "[smmu][config][attributes]") {
    guest_image g{0b100};
    stream_configuration out;
    stream_table_registers registers;
    const resolve_request request{.window = {pa{0}, 4096}, .incoming = {0xff, 3}};
    // The value after reset: shareability as it comes.
    REQUIRE_FALSE(resolve_stream<full_features>(g.memory, registers, request, out));
    CHECK(out.incoming == memory_attributes{0xff, 3});
    const context_identity plain = out.identity;
    registers.bypass = 0x1011; // MTCFG, MemAttr = Device-nGnRE
    REQUIRE_FALSE(resolve_stream<full_features>(g.memory, registers, request, out));
    CHECK(out.incoming == memory_attributes{0x04, 2});
    CHECK(out.identity != plain);
    CHECK_FALSE(out.record_stage1_faults);
    REQUIRE_FALSE(resolve_stream<stage1_features>(g.memory, registers, request, out));
    CHECK(out.incoming == memory_attributes{0xff, 3});
    registers.bypass_aborts = true;
    REQUIRE_FALSE(resolve_stream<full_features>(g.memory, registers, request, out));
    CHECK(out.mode == stream_mode::abort);
}

TEST_CASE("MPAM: whose partition an access counts for", "[smmu][config][mpam]") {
    struct row {
        const char* what;
        std::uint64_t config;
        bool s1mpam;
        std::uint64_t dss;
        int partition, group;
    };
    const auto r = GENERATE(row{"bypass", 0b100, true, 2, 0x111, 0x11},
                            row{"stage 2", 0b110, true, 2, 0x111, 0x11},
                            row{"stage 1, the STE's", 0b101, false, 2, 0x111, 0x11},
                            row{"stage 1, the CD's", 0b101, true, 2, 0x226, 0x22},
                            row{"nested, the STE's", 0b111, false, 2, 0x111, 0x11},
                            row{"nested, the CD's, mapped", 0b111, true, 2, 0x333, 0x22},
                            row{"nested, stage 1 bypassed", 0b111, true, 1, 0x111, 0x11});
    CAPTURE(r.what);
    guest_image g{r.config};
    C c = g.context(1);
    set<C::PARTID>(c, 0x226);
    set<C::PMG>(c, 0x22);
    g.store(g.physical(cd_area), c);
    set<S::PARTID>(g.ste, 0x111);
    set<S::PMG>(g.ste, 0x11);
    set<S::S1MPAM>(g.ste, r.s1mpam ? 1 : 0);
    set<S::VMSPtr>(g.ste, vms >> 12);
    set<S::S1CDMax>(g.ste, 1);
    set<S::S1DSS>(g.ste, r.dss);
    g.memory.words[vms + 8] = 0x0000'0333'0000'0000; // entry 6
    stream_configuration out;
    REQUIRE_FALSE(g.resolve(out));
    CHECK(out.partition == r.partition);
    CHECK(out.partition_group == r.group);
    // A VMS that is no memory matters only where it is needed.
    g.memory.hole = vms;
    const auto failed = g.resolve(out);
    REQUIRE(failed.has_value() == (r.partition == 0x333));
    if (failed) {
        CHECK(failed->event == event_id::F_VMS_FETCH);
        CHECK(failed->fetch_address == vms + 8);
    }
}

TEST_CASE("EATS, as far as it counts", "[smmu][config][ats]") {
    const std::uint64_t eats = GENERATE(0U, 1U, 2U, 3U);
    guest_image g{0b111};
    g.put_cd(cd_area, 1);
    set<S::EATS>(g.ste, eats);
    stream_configuration out;
    REQUIRE_FALSE(g.resolve(out));
    CHECK(out.ats == (eats == 3 ? 0 : eats));
    guest_image none_at_all{0b100};
    set<S::EATS>(none_at_all.ste, eats);
    REQUIRE_FALSE(none_at_all.resolve(out));
    CHECK(out.ats == 0);
}
