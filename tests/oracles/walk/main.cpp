/// Random translation tables, walked by an emulated processor's AT instructions and by the library.
///
///   walk_oracle_host --seed S --cases N --guest ELF --ram PREFIX [--only CASE] [--jobs N]
///                    [--stop-after N] -- QEMU...
#include "comparison.hpp"
#include "coverage.hpp"
#include "machine.hpp"

#include <atomic>
#include <charconv>
#include <chrono>
#include <cinttypes>
#include <mutex>
#include <string_view>
#include <thread>

namespace oracle {
namespace {

constexpr unsigned batch_cases = 40'000;
constexpr unsigned most_walks = 3;

enum dimension_index : std::size_t {
    d_answer,
    d_illegal,
    d_stages,
    d_at,
    d_granule0,
    d_granule1,
    d_t0sz,
    d_t1sz,
    d_ips,
    d_ds,
    d_tbi,
    d_epd,
    d_hpd,
    d_e0pd,
    d_pan,
    d_endian,
    d_update1,
    d_start1,
    d_leaf1,
    d_leaf1_ap,
    d_type1,
    d_granule2,
    d_t2sz,
    d_s2ps,
    d_s2ds,
    d_start2,
    d_tables2,
    d_leaf2,
    d_s2ap,
    d_type2,
    d_update2,
    d_ptw,
    d_incoming,
    d_canonical,
    d_flips,
    d_base,
    d_level,
    d_run,
    d_count
};

std::vector<std::string> numbers() { return {}; }

const std::vector<dimension> dimensions{
    {"answer",
     {"translated", "S1 translation", "S1 address size", "S1 access flag", "S1 permission",
      "S2 translation", "S2 address size", "S2 access flag", "S2 permission",
      "S2 translation on table", "S2 address size on table", "S2 access flag on table",
      "S2 permission on table", "external abort", "C_BAD_STE", "C_BAD_CD", "other"}},
    {"illegal because",
     {"-", "TG reserved", "TxSZ too small", "TxSZ too large", "TTB beyond IPS", "S2TG reserved",
      "S2SL0 reserved", "S2SL0 starts above the input size", "S2SL0 needs more than 16 tables",
      "S2TTB beyond S2PS"}},
    {"stages", {"1", "2", "1+2", "1 (EL2)", "1 (EL2 with E2H)"}},
    {"instruction",
     {"S1E1R", "S1E1W", "S1E0R", "S1E0W", "S1E1RP", "S1E1WP", "S12E1R", "S12E1W", "S12E0R",
      "S12E0W", "S1E2R", "S1E2W"}},
    {"granule, lower half", {"4K", "16K", "64K", "reserved"}},
    {"granule, upper half", {"4K", "16K", "64K", "reserved"}},
    {"T0SZ", numbers()},
    {"T1SZ", numbers()},
    {"IPS", numbers()},
    {"52-bit form, stage 1", {"48 bits", "64K", "DS"}},
    {"TBI", {"no", "yes"}},
    {"EPD of the half", {"no", "yes"}},
    {"HPD of the half", {"no", "yes"}},
    {"E0PD of the half", {"no", "yes"}},
    {"PAN", {"no", "PAN", "PAN and EPAN"}},
    {"tables' byte order, 1 and 2", {"little little", "big little", "little big", "big big"}},
    {"HA, HD", {"none", "HA", "HD alone", "HA HD"}},
    {"start level, stage 1", {"-1", "0", "1", "2", "3"}},
    {"leaf level, stage 1", {"none", "-1", "0", "1", "2", "3"}},
    {"AP of the leaf", {"privileged RW", "RW", "privileged RO", "RO"}},
    {"memory type, stage 1", {"Device", "Non-cacheable", "Normal"}},
    {"granule, stage 2", {"4K", "16K", "64K", "reserved"}},
    {"S2T0SZ", numbers()},
    {"S2PS", numbers()},
    {"52-bit form, stage 2", {"48 bits", "64K", "DS"}},
    {"start level, stage 2", {"-1", "0", "1", "2", "3", "reserved"}},
    {"concatenated tables, log2", {"0", "1", "2", "3", "4", "too many"}},
    {"leaf level, stage 2", {"none", "-1", "0", "1", "2", "3"}},
    {"S2AP of the leaf", {"none", "R", "W", "RW"}},
    {"memory type, stage 2", {"Device", "Non-cacheable", "Normal"}},
    {"S2HA, S2HD", {"none", "HA", "HD alone", "HA HD"}},
    {"S2PTW", {"no", "yes"}},
    {"stage 1 off, access is", {"Device", "write-back"}},
    {"address not canonical", {"no", "yes"}},
    {"bits turned over", {"0", "1", "2", "3"}},
    {"first table", {"aligned", "low bits set", "misplaced"}},
    {"level of the fault", {"-1", "0", "1", "2", "3"}},
    {"contiguous leaves", {"none", "hint alone", "whole run"}},
};

using statistics = coverage<d_count>;

struct options {
    u64 seed = 1;
    u64 cases = 100'000;
    u64 only = ~u64{0};
    u64 stop_after = 20;
    unsigned jobs = 2;
    std::string guest, ram;
    std::vector<std::string> emulator;
};

struct tree_record {
    configuration config;
    tree_facts facts;
    u64 ap = 0, type1 = 0, s2ap = 0, type2 = 0; // of the last leaf of either stage; 9 = none
    std::uint32_t first_walk = 0, walks = 0;
};

struct walk_record {
    question asks;
    answer library;
    claimed_range claimed{};
    std::uint32_t first_write = 0, writes = 0;
};

struct totals {
    u64 cases = 0, compared = 0, different = 0, dropped = 0, claims = 0, translated = 0;
    std::array<u64, static_cast<std::size_t>(deviation::count)> deviations{};
    statistics seen;

    void add(const totals& o) {
        cases += o.cases;
        compared += o.compared;
        different += o.different;
        dropped += o.dropped;
        claims += o.claims;
        translated += o.translated;
        for (std::size_t i = 0; i < deviations.size(); ++i)
            deviations[i] += o.deviations[i];
        seen.add(o.seen);
    }
};

std::string describe(const answer& a) {
    std::array<char, 160> text{};
    const char* name = answer_names[static_cast<std::size_t>(a.kind)];
    if (a.kind == answer_kind::translated) {
        std::snprintf(text.data(), text.size(), "%s to 0x%" PRIx64 ", type 0x%02x, SH %u", name,
                      a.address, a.type, a.shareability);
    } else {
        std::snprintf(text.data(), text.size(), "%s, stage %d%s, level %d", name, a.stage2 ? 2 : 1,
                      a.table_walk ? " on a table of stage 1" : "", a.level);
    }
    return text.data();
}

/// One worker: makes, runs and compares batches.
class worker {
public:
    worker(const options& o, unsigned number)
        : options_(o),
          machine_(o.emulator, o.ram + std::to_string(number), o.guest),
          tables_(machine_.at(ORACLE_RAM)),
          library_(tables_) {}

    totals run(u64 batch, u64 first_case, unsigned cases) {
        sum_ = {};
        first_case_ = first_case;
        make(batch, cases);
        walk_with_library();
        store();
        machine_.run();
        const auto* header = reinterpret_cast<oracle_batch*>(machine_.at(ORACLE_BATCH));
        if (header->walks_done != walks_.size()) {
            std::fprintf(stderr, "walk_oracle: the machine did %" PRIu64 " of %zu walks\n",
                         header->walks_done, walks_.size());
            std::exit(2);
        }
        compare();
        tables_.clear();
        return sum_;
    }

private:
    void make(u64 batch, unsigned cases) {
        trees_.clear();
        walks_.clear();
        records_.clear();
        for (unsigned tree = 0; walks_.size() < cases; ++tree) {
            random_source random(options_.seed * 0x1'0000'0001 ^ batch << 40 ^ u64{tree} << 12);
            (void)random.word();
            tables_.begin_tree(tree);
            tree_builder builder(tables_, random);
            const auto left = static_cast<unsigned>(cases - walks_.size());
            builder.build(std::min(left, most_walks));
            tree_record r;
            r.config = builder.config;
            r.facts = builder.facts;
            r.ap = r.type1 = r.s2ap = r.type2 = 9;
            for (const descriptor_slot& s : builder.slots) {
                if (!s.leaf) continue;
                if (s.stage == owner::stage1) {
                    r.ap = s.value >> 6 & 3;
                    r.type1 = type_class(
                        static_cast<unsigned>(r.config.mair >> 8 * (s.value >> 2 & 7) & 0xff));
                } else {
                    r.s2ap = s.value >> 6 & 3;
                    r.type2 = type_class(stage2_type(s.value >> 2 & 0xf));
                }
            }
            r.first_walk = static_cast<std::uint32_t>(walks_.size());
            r.walks = static_cast<std::uint32_t>(builder.walks.size());
            for (const asked& a : builder.walks) {
                walks_.push_back({a.address, 0, a.at, 0});
                question asks = question_of(a.at);
                // NS-EL2 has one privilege level, whatever an access says.
                if (r.config.world == regime::el2) asks.privileged = (a.address >> 4 & 1) != 0;
                records_.push_back({asks, {}, {}, 0, 0});
            }
            trees_.push_back(r);
        }
    }
    static u64 type_class(unsigned type) noexcept {
        return (type & 0xf0) == 0 ? 0 : type == 0x44 ? 1 : 2;
    }

    void walk_with_library() {
        writes_.clear();
        for (tree_record& t : trees_) {
            bool drop = false;
            for (std::uint32_t i = t.first_walk; i < t.first_walk + t.walks; ++i) {
                walk_record& r = records_[i];
                r.first_write = static_cast<std::uint32_t>(writes_.size());
                r.library = ask(t.config, r.asks, walks_[i].address, trace_);
                writes_.insert(writes_.end(), trace_.writes.begin(), trace_.writes.end());
                r.writes = static_cast<std::uint32_t>(trace_.writes.size());
                if (r.library.kind == answer_kind::translated) r.claimed = trace_.claimed;
                drop = drop || r.library.kind == answer_kind::elsewhere ||
                       reads_foreign(tree_number(t));
            }
            // Reading the emulated machine's devices, or its program, could do anything; and the
            // modelled deviations do not follow from one tree to another.
            if (!drop) continue;
            for (std::uint32_t i = t.first_walk; i < t.first_walk + t.walks; ++i) {
                undo(records_[i]);
                records_[i].writes = 0;
                records_[i].library.kind = answer_kind::elsewhere;
            }
        }
    }
    /// Whether the last walk read a descriptor of another tree.
    [[nodiscard]] bool reads_foreign(std::uint32_t tree) const noexcept {
        for (const auto& [at, value] : trace_.reads) {
            if (tables_.owner_of(at) != owner::nobody && !tables_.belongs_to(at, tree)) return true;
        }
        return false;
    }
    answer ask(const configuration& config, const question& asks, u64 address, walk_trace& trace,
               const hidden_bits& hidden = {}) {
        trace.reads.clear();
        trace.writes.clear();
        answer a;
        a.kind = library_.prepare(config, asks.pan);
        if (a.kind != answer_kind::translated) return a;
        return library_.walk(address, asks, trace, hidden);
    }
    void undo(const walk_trace& trace) {
        for (std::size_t i = trace.writes.size(); i > 0; --i)
            tables_.ours(trace.writes[i - 1].at) = trace.writes[i - 1].before;
    }
    void undo(const walk_record& r) {
        for (std::uint32_t i = r.writes; i > 0; --i) {
            const walk_trace::write& w = writes_[r.first_write + i - 1];
            tables_.ours(w.at) = w.before;
        }
    }

    static bool left_out(const answer& library) noexcept {
        return library.kind == answer_kind::elsewhere || refused(library);
    }
    static bool refused(const answer& library) noexcept {
        return library.kind == answer_kind::refused_ste || library.kind == answer_kind::refused_cd;
    }

    void store() {
        const u64 trees_at = (ORACLE_BATCH + sizeof(oracle_batch) + 4095) & ~u64{4095};
        const u64 walks_at = trees_at + trees_.size() * sizeof(oracle_tree);
        auto* out = reinterpret_cast<oracle_tree*>(machine_.at(trees_at));
        for (const tree_record& t : trees_) {
            oracle_tree registers = registers_of(t.config);
            registers.walks = t.walks;
            // What the machine does with an illegal configuration is nobody's business either.
            registers.skip = t.walks != 0 && left_out(records_[t.first_walk].library) ? 1 : 0;
            *out++ = registers;
        }
        std::memcpy(machine_.at(walks_at), walks_.data(), walks_.size() * sizeof(oracle_walk));
        if (walks_at + walks_.size() * sizeof(oracle_walk) > ORACLE_TABLES) std::abort();
        auto* header = reinterpret_cast<oracle_batch*>(machine_.at(ORACLE_BATCH));
        *header = {trees_.size(), trees_at, walks_at, 0};
        walks_at_ = walks_at;
    }

    void compare() {
        const auto* answers = reinterpret_cast<const oracle_walk*>(machine_.at(walks_at_));
        for (const tree_record& t : trees_) {
            for (std::uint32_t i = t.first_walk; i < t.first_walk + t.walks; ++i)
                compare_one(t, i, answers[i]);
        }
        for (const u64 at : tables_.differences()) {
            ++sum_.different;
            report_word(at);
        }
    }
    void compare_one(const tree_record& t, std::uint32_t i, const oracle_walk& got) {
        ++sum_.cases;
        walk_record& r = records_[i];
        if (r.library.kind == answer_kind::elsewhere) {
            ++sum_.dropped;
            return;
        }
        const answer machine = answer_of(got);
        const broken_rule rule = illegal(t.config);
        count(t, i, r.library, rule);
        if (only(i)) print_case(t, i, got, machine, "asked for");
        if (rule != nullptr || refused(r.library)) {
            if (rule == nullptr) {
                different(t, i, got, machine, "the library refuses a legal configuration");
            } else if (!refused(r.library)) {
                different(t, i, got, machine, rule);
            }
            return;
        }
        ++sum_.compared;
        if (machine.kind == answer_kind::translated) ++sum_.translated;
        const std::optional<bool> agrees = without_high_bits(t, i, machine);
        if (!(agrees ? *agrees
                     : same(machine, r.library) || explained(t, i, machine, r.library, false))) {
            different(t, i, got, machine, "answers differ");
        } else if (!claims_hold(t, i, machine)) {
            different(t, i, got, machine, "an earlier walk of this tree claimed another address");
        }
    }
    /// What the library's earlier walks of the tree said about their neighbourhood, which is what a
    /// TLB entry holds, against what the machine says of this address.
    bool claims_hold(const tree_record& t, std::uint32_t i, const answer& machine) {
        if (machine.kind != answer_kind::translated) return true;
        for (std::uint32_t n = t.first_walk; n < i; ++n) {
            const claimed_range& c = records_[n].claimed;
            const u64 offset = records_[i].claimed.asked - c.input_base;
            if (c.size_log2 == 0 || records_[i].claimed.size_log2 == 0 ||
                offset >> c.size_log2 != 0) {
                continue;
            }
            ++sum_.claims;
            if (((c.output_base + offset) & ~u64{0xfff}) != machine.address) return false;
        }
        return true;
    }

    // ---- known deviations ----------------------------------------------------------------------
    /// Walks again as the emulator does, which takes no notice of some bits of descriptors. Nullopt
    /// = that makes no difference to this walk; otherwise whether it is all the difference.
    std::optional<bool> without_high_bits(const tree_record& t, std::uint32_t i,
                                          const answer& machine) {
        const configuration& c = t.config;
        const walk_record& r = records_[i];
        if (r.library.kind != answer_kind::address_size) return std::nullopt;
        const auto ask_without = [&](const hidden_bits& hidden) {
            return ask(c, r.asks, walks_[i].address, trace_, hidden);
        };
        undo(r);
        hidden_bits hidden;
        answer again = ask_without(hidden);
        while (again.kind == answer_kind::address_size && !trace_.reads.empty()) {
            u64 bits = again.stage2 ? ignored_bits(c.s2ps, c.s2granule, c.s2ds)
                                    : ignored_bits(c.ips, half_of(c, i).granule, c.ds);
            if (again.stage2 ? c.s2big_endian : c.big_endian) bits = __builtin_bswap64(bits);
            const std::size_t last = trace_.reads.size() - 1;
            if ((trace_.reads[last].second & bits) == 0) break;
            if (!hidden.empty() && hidden.back().first == last) break;
            hidden.emplace_back(last, bits);
            undo(trace_);
            again = ask_without(hidden);
        }
        if (hidden.empty()) return std::nullopt;
        // Without the bits a walk can lead to where nobody knows what is.
        if (again.kind == answer_kind::elsewhere || reads_foreign(tree_number(t)) ||
            same(machine, again) || explained(t, i, machine, again, true)) {
            return known(deviation::high_output_bits);
        }
        undo(trace_);
        (void)ask_without({});
        return false;
    }
    /// Whether a deviation that does not change the walk is all the difference. `walked` says that
    /// the trace is this walk's.
    bool explained(const tree_record& t, std::uint32_t i, const answer& machine,
                   const answer& library, bool walked) {
        const configuration& c = t.config;
        const auto walk_again = [&] {
            if (walked) return;
            undo(records_[i]);
            (void)ask(c, records_[i].asks, walks_[i].address, trace_);
        };
        if (only_level_of_protected_table(c, machine, library)) {
            walk_again();
            if (c.s2ha && !trace_.reads.empty()) {
                constexpr u64 accessed = u64{1} << 10;
                tables_.ours(trace_.reads.back().first) |=
                    c.s2big_endian ? __builtin_bswap64(accessed) : accessed;
            }
            return known(deviation::protected_table);
        }
        answer other = machine;
        other.shareability = 0;
        if (!c.stage2 && machine.shareability == 1 && same(other, library)) {
            return known(deviation::shareability);
        }
        if (machine.kind == answer_kind::address_size && low_address_bits(c, i, machine, walked)) {
            return known(deviation::block_bits);
        }
        other = machine;
        other.type = library.type;
        if (c.stage2 && same(other, library)) {
            walk_again();
            const auto [stage1, stage2] = leaf_types(c);
            if (device_normal_applies(stage1, stage2, library.type, machine.type)) {
                return known(deviation::device_normal);
            }
            if (transient_applies(stage2, library.type, machine.type)) {
                return known(deviation::transient);
            }
        }
        return false;
    }
    /// Whether the walk met a block whose address bits below the block's size are beyond the output
    /// size; what the library did from there on is then taken back.
    bool low_address_bits(const configuration& c, std::uint32_t i, const answer& machine,
                          bool walked) {
        const unsigned granule = machine.stage2 ? c.s2granule : half_of(c, i).granule;
        const bool ds = machine.stage2 ? c.s2ds : c.ds;
        const unsigned bits = output_bits(machine.stage2 ? c.s2ps : c.ips, granule, ds);
        if (machine.level >= 3 || bits >= covered(granule, machine.level)) return false;
        const u64 inside = (u64{1} << covered(granule, machine.level)) - (u64{1} << bits);
        if (!walked) {
            undo(records_[i]);
            (void)ask(c, records_[i].asks, walks_[i].address, trace_);
        }
        const owner stage = machine.stage2 ? owner::stage2 : owner::stage1;
        for (std::size_t n = 0; n < trace_.reads.size(); ++n) {
            auto [at, value] = trace_.reads[n];
            if (machine.stage2 ? c.s2big_endian : c.big_endian) value = __builtin_bswap64(value);
            if (tables_.owner_of(at) != stage || (value & 3) != 1 || (value & inside) == 0)
                continue;
            for (std::size_t w = trace_.writes.size(); w > 0; --w) {
                const walk_trace::write& done = trace_.writes[w - 1];
                const auto is_this = [&](const auto& read) { return read.first == done.at; };
                const auto before = trace_.reads.begin() + static_cast<std::ptrdiff_t>(n);
                if (std::none_of(trace_.reads.begin(), before, is_this)) {
                    tables_.ours(done.at) = done.before;
                }
            }
            return true;
        }
        return false;
    }
    static bool only_level_of_protected_table(const configuration& c, const answer& machine,
                                              const answer& library) noexcept {
        if (!c.s2ptw || library.kind != answer_kind::permission || !library.stage2 ||
            !library.table_walk || machine.level != 0) {
            return false;
        }
        answer other = machine;
        other.level = library.level;
        return same(other, library);
    }
    /// Descriptor bits that the emulator ignores where it should check them.
    static u64 ignored_bits(unsigned ps, unsigned granule, bool ds) noexcept {
        if (size_bits(ps) >= 52) return 0;
        return granule == 16 ? 0xf000 : ds ? 0x300 : 0;
    }
    [[nodiscard]] const half& half_of(const configuration& c, std::uint32_t i) const noexcept {
        return c.halves[c.world != regime::el2 && (walks_[i].address >> 55 & 1) != 0 ? 1 : 0];
    }
    /// Memory types that the leaves of the last walk give, stage 1's first.
    [[nodiscard]] std::pair<unsigned, unsigned> leaf_types(const configuration& c) const {
        unsigned stage1 = c.incoming_normal ? 0xff : 0;
        unsigned stage2 = 0;
        u64 run = 0; // of the leaf that was read last, if it says that it is in one
        for (auto [at, value] : trace_.reads) {
            constexpr u64 largest_run = 128 * 8;
            if (run != 0 && at / largest_run == run / largest_run) continue;
            const bool first = tables_.owner_of(at) == owner::stage1;
            if (first ? c.big_endian : c.s2big_endian) value = __builtin_bswap64(value);
            run = (value >> 52 & 1) != 0 ? at : 0;
            if (first) {
                stage1 = static_cast<unsigned>(c.mair >> 8 * (value >> 2 & 7) & 0xff);
            } else {
                stage2 = stage2_type(static_cast<unsigned>(value >> 2 & 0xf));
            }
        }
        return {stage1, stage2};
    }
    [[nodiscard]] std::uint32_t tree_number(const tree_record& t) const noexcept {
        return static_cast<std::uint32_t>(&t - trees_.data());
    }
    bool known(deviation d) noexcept {
        ++sum_.deviations[static_cast<std::size_t>(d)];
        return true;
    }

    // ---- statistics ----------------------------------------------------------------------------
    void count(const tree_record& t, std::uint32_t i, const answer& a, broken_rule rule) {
        const configuration& c = t.config;
        statistics& s = sum_.seen;
        const auto kind = static_cast<unsigned>(a.kind);
        std::size_t bucket = 16;
        if (a.kind == answer_kind::translated)
            bucket = 0;
        else if (kind <= 4)
            bucket = kind + (a.stage2 ? (a.table_walk ? 8U : 4U) : 0U);
        else if (a.kind == answer_kind::external_abort)
            bucket = 13;
        else if (a.kind == answer_kind::refused_ste)
            bucket = 14;
        else if (a.kind == answer_kind::refused_cd)
            bucket = 15;
        s.count(d_answer, bucket);
        if (kind >= 1 && kind <= 4) s.count(d_level, static_cast<std::size_t>(a.level + 1));
        if (rule != nullptr) {
            const auto& names = dimensions[d_illegal].values;
            for (std::size_t n = 0; n < names.size(); ++n)
                if (names[n] == rule) s.count(d_illegal, n);
        }
        const std::size_t stages = c.world == regime::el2        ? 3
                                   : c.world == regime::el2_host ? 4
                                   : !c.stage1                   ? 1
                                   : c.stage2                    ? 2
                                                                 : 0;
        s.count(d_stages, stages);
        s.count(d_at, walks_[i].at);
        s.count(d_flips, t.facts.flips);
        s.count(d_run, t.facts.run);
        s.count(d_canonical, t.facts.not_canonical ? 1 : 0);
        s.count(d_base, t.facts.outside_memory ? 2 : t.facts.misaligned_table ? 1 : 0);
        s.count(d_endian, (c.big_endian ? 1U : 0U) + (c.s2big_endian ? 2U : 0U));
        const auto granule = [](unsigned g) {
            return g == 12 ? 0U : g == 14 ? 1U : g == 16 ? 2U : 3U;
        };
        const auto form = [](unsigned g, bool ds) { return g == 16 ? 1U : ds ? 2U : 0U; };
        if (c.stage1) {
            const half& h = half_of(c, i);
            const bool upper = &h == &c.halves[1];
            s.count(upper ? d_granule1 : d_granule0, granule(h.granule));
            s.count(upper ? d_t1sz : d_t0sz, h.tsz);
            s.count(d_ips, c.ips);
            s.count(d_ds, form(h.granule, c.ds));
            s.count(d_tbi, h.tbi ? 1 : 0);
            s.count(d_epd, h.epd ? 1 : 0);
            s.count(d_hpd, h.hpd ? 1 : 0);
            s.count(d_e0pd, h.e0pd ? 1 : 0);
            s.count(d_pan, !records_[i].asks.pan ? 0 : c.epan ? 2 : 1);
            s.count(d_update1, (c.ha ? 1U : 0U) + (c.hd ? 2U : 0U));
            if (rule == nullptr && h.granule != 0 && !h.epd) {
                s.count(d_start1,
                        static_cast<std::size_t>(stage1_start(h.granule, h.input_bits()) + 1));
            }
            s.count(d_leaf1, static_cast<std::size_t>(t.facts.stage1_leaf + 2));
            if (t.ap < 4) s.count(d_leaf1_ap, t.ap);
            if (t.type1 < 3) s.count(d_type1, t.type1);
        }
        if (c.stage2) {
            s.count(d_granule2, granule(c.s2granule));
            s.count(d_t2sz, c.s2tsz);
            s.count(d_s2ps, c.s2ps);
            s.count(d_s2ds, form(c.s2granule, c.s2ds));
            const int start = c.s2granule == 0 ? 9 : stage2_start(c);
            s.count(d_start2, start == 9 ? 5 : static_cast<std::size_t>(start + 1));
            if (rule == nullptr) {
                const unsigned bits = 64 - c.s2tsz - covered(c.s2granule, start);
                const unsigned one = stride(c.s2granule);
                s.count(d_tables2, bits <= one ? 0 : bits - one);
            }
            s.count(d_leaf2, static_cast<std::size_t>(t.facts.stage2_leaf + 2));
            if (t.s2ap < 4) s.count(d_s2ap, t.s2ap);
            if (t.type2 < 3) s.count(d_type2, t.type2);
            s.count(d_update2, (c.s2ha ? 1U : 0U) + (c.s2hd ? 2U : 0U));
            s.count(d_ptw, c.s2ptw ? 1 : 0);
            if (!c.stage1) s.count(d_incoming, c.incoming_normal ? 1 : 0);
        }
    }

    // ---- what a person needs to see ------------------------------------------------------------
    [[nodiscard]] bool only(std::uint32_t i) const noexcept {
        return first_case_ + i == options_.only;
    }
    void different(const tree_record& t, std::uint32_t i, const oracle_walk& got,
                   const answer& machine, const char* why) {
        ++sum_.different;
        if (reported_ < options_.stop_after) print_case(t, i, got, machine, why);
        ++reported_;
    }
    void print_case(const tree_record& t, std::uint32_t i, const oracle_walk& got,
                    const answer& machine, const char* why) {
        static std::mutex one_at_a_time;
        const std::scoped_lock lock(one_at_a_time);
        const configuration& c = t.config;
        const walk_record& r = records_[i];
        const oracle_tree regs = registers_of(c);
        std::printf("CASE seed %" PRIu64 " case %" PRIu64 ": %s\n", options_.seed, first_case_ + i,
                    why);
        std::printf("  %s 0x%016" PRIx64 "\n", dimensions[d_at].values[got.at].c_str(),
                    got.address);
        std::printf("  SCTLR 0x%" PRIx64 " TCR 0x%" PRIx64 " TTBR0 0x%" PRIx64 " TTBR1 0x%" PRIx64
                    " MAIR 0x%" PRIx64 "\n  HCR 0x%" PRIx64 " VTCR 0x%" PRIx64 " VTTBR 0x%" PRIx64
                    " SCTLR_EL2 0x%" PRIx64 "\n",
                    regs.sctlr, regs.tcr, regs.ttbr0, regs.ttbr1, regs.mair, regs.hcr, regs.vtcr,
                    regs.vttbr, regs.sctlr_el2);
        if (c.stage1) {
            const half& h = half_of(c, i);
            std::printf(
                "  stage 1: %s half, granule %u, T%uSZ %u, IPS %u, DS %d, EPD %d TBI %d HPD %d "
                "E0PD %d, HA %d HD %d, big-endian %d, EPAN %d, start level %d\n",
                &h == &c.halves[1] ? "upper" : "lower", h.granule, &h == &c.halves[1] ? 1U : 0U,
                h.tsz, c.ips, c.ds, h.epd, h.tbi, h.hpd, h.e0pd, c.ha, c.hd, c.big_endian, c.epan,
                h.granule == 0 ? 9 : stage1_start(h.granule, h.input_bits()));
        }
        if (c.stage2) {
            std::printf(
                "  stage 2: granule %u, S2T0SZ %u, S2SL0 %u.%d, S2PS %u, S2DS %d, HA %d HD %d, "
                "big-endian %d, PTW %d, start level %d\n",
                c.s2granule, c.s2tsz, c.s2sl0, c.s2sl2, c.s2ps, c.s2ds, c.s2ha, c.s2hd,
                c.s2big_endian, c.s2ptw, stage2_start(c));
        }
        std::printf("  machine: PAR 0x%016" PRIx64 " ESR 0x%x: %s\n", got.par, got.esr,
                    describe(machine).c_str());
        std::printf("  library: %s\n", describe(r.library).c_str());
        undo(r);
        walk_trace trace;
        (void)ask(c, r.asks, got.address, trace);
        for (const auto& [at, value] : trace.reads) {
            const char* whose = !tables::contains(at)                   ? "outside"
                                : tables_.owner_of(at) == owner::stage1 ? "stage 1"
                                : tables_.owner_of(at) == owner::stage2 ? "stage 2"
                                                                        : "nobody's";
            std::printf("    read  0x%012" PRIx64 " = 0x%016" PRIx64 " (%s)\n", at, value, whose);
        }
        for (const walk_trace::write& w : trace.writes) {
            std::printf("    wrote 0x%012" PRIx64 ": 0x%016" PRIx64 " -> 0x%016" PRIx64 "\n", w.at,
                        w.before, tables_.ours(w.at));
        }
        std::fflush(stdout);
    }
    /// A descriptor that the two sides left different: which tree's it is.
    void report_word(u64 at) {
        if (reported_++ >= options_.stop_after) return;
        std::printf("DESCRIPTOR seed %" PRIu64 " at 0x%" PRIx64 ": machine 0x%016" PRIx64
                    ", library 0x%016" PRIx64 "\n",
                    options_.seed, at, tables_.machine(at), tables_.ours(at));
        const auto* answers = reinterpret_cast<const oracle_walk*>(machine_.at(walks_at_));
        for (const tree_record& t : trees_) {
            for (std::uint32_t i = t.first_walk; i < t.first_walk + t.walks; ++i) {
                if (records_[i].library.kind == answer_kind::elsewhere) continue;
                if (!tables_.belongs_to(at, tree_number(t))) continue;
                print_case(t, i, answers[i], answer_of(answers[i]), "descriptors differ");
            }
        }
    }

    const options& options_;
    machine machine_;
    tables tables_;
    library_walker library_;
    std::vector<tree_record> trees_;
    std::vector<oracle_walk> walks_;
    std::vector<walk_record> records_;
    std::vector<walk_trace::write> writes_;
    walk_trace trace_;
    totals sum_;
    u64 first_case_ = 0;
    u64 walks_at_ = 0;
    u64 reported_ = 0;
};

bool number(std::string_view text, u64& out) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
    return error == std::errc{} && end == text.data() + text.size();
}

int usage() {
    std::fprintf(stderr, "usage: walk_oracle_host --seed S --cases N --guest ELF --ram PREFIX "
                         "[--only CASE] [--jobs N] [--stop-after N] -- QEMU...\n");
    return 2;
}

int run(int argc, char** argv) {
    options o;
    u64 jobs = o.jobs;
    for (int i = 1; i < argc; ++i) {
        const std::string_view word = argv[i];
        if (word == "--") {
            o.emulator.assign(argv + i + 1, argv + argc);
            break;
        }
        if (++i == argc) return usage();
        const std::string_view value = argv[i];
        bool good = true;
        if (word == "--seed")
            good = number(value, o.seed);
        else if (word == "--cases")
            good = number(value, o.cases);
        else if (word == "--only")
            good = number(value, o.only);
        else if (word == "--jobs")
            good = number(value, jobs);
        else if (word == "--stop-after")
            good = number(value, o.stop_after);
        else if (word == "--guest")
            o.guest = value;
        else if (word == "--ram")
            o.ram = value;
        else
            good = false;
        if (!good) return usage();
    }
    if (o.guest.empty() || o.ram.empty() || o.emulator.empty() || jobs < 1 || jobs > 16)
        return usage();
    o.jobs = static_cast<unsigned>(jobs);

    const u64 batches = (o.cases + batch_cases - 1) / batch_cases;
    std::atomic<u64> next{o.only == ~u64{0} ? 0 : o.only / batch_cases};
    const u64 end = o.only == ~u64{0} ? batches : next + 1;
    totals all;
    std::mutex adding;
    const auto started = std::chrono::steady_clock::now();
    std::vector<std::thread> threads;
    for (unsigned n = 0; n < o.jobs; ++n) {
        threads.emplace_back([&, n] {
            worker w(o, n);
            for (u64 batch; (batch = next++) < end;) {
                const u64 first = batch * batch_cases;
                const auto count =
                    static_cast<unsigned>(std::min<u64>(batch_cases, o.cases - first));
                const totals part = w.run(batch, first, count);
                const std::scoped_lock lock(adding);
                all.add(part);
                const double seconds =
                    std::chrono::duration<double>(std::chrono::steady_clock::now() - started)
                        .count();
                std::printf("-- %" PRIu64 " of %" PRIu64 " cases, %.1f s, %" PRIu64 " different\n",
                            all.cases, o.cases, seconds, all.different);
                std::fflush(stdout);
            }
        });
    }
    for (std::thread& t : threads)
        t.join();
    std::printf("coverage:\n");
    all.seen.print(dimensions);
    std::printf("known deviations of the emulator applied:\n");
    for (std::size_t i = 0; i < all.deviations.size(); ++i)
        std::printf("  %-52s %" PRIu64 "\n", deviation_names[i], all.deviations[i]);
    std::printf("compared %" PRIu64 ", not compared: %" PRIu64 " illegal configurations (refused), "
                "%" PRIu64 " that would read what is no table\n",
                all.compared, all.cases - all.compared - all.dropped, all.dropped);
    const auto share = [&](u64 part) {
        return all.cases == 0 ? 0.0
                              : 100.0 * static_cast<double>(part) / static_cast<double>(all.cases);
    };
    std::printf("translated %.1f %%, faulted %.1f %%, illegal %.1f %%, left out %.1f %%; %" PRIu64
                " times an earlier walk had spoken for the address too\n",
                share(all.translated), share(all.compared - all.translated),
                share(all.cases - all.compared - all.dropped), share(all.dropped), all.claims);
    std::printf("cases %" PRIu64 ", different %" PRIu64 "\n", all.cases, all.different);
    return all.different == 0 ? 0 : 1;
}

} // namespace
} // namespace oracle

int main(int argc, char** argv) { return oracle::run(argc, argv); }
