// How Linux's driver moves an STE or CD from one state to another: word by
// word, with a CFGI and a SYNC between the steps. Whatever the SMMU finds in
// memory at any moment must behave as the old entry or as the new one (or, in a
// transition that cannot be hitless, as an invalid one), never as a third.
#include "guest_driver.hpp"

#include <vm_accel/smmu/translation/page_walker.hpp>
#include <vm_accel/smmu/translation/stream_resolver.hpp>

#include <catch2/catch.hpp>

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <thread>
#include <vector>

using namespace vm_accel;

namespace {

using S = spec::ste;
using C = spec::cd;

struct everything : default_smmu_options {
    static constexpr smmu_features features = full_features;
};
using machine = guest::machine<set_associative<64, 4>, everything>;
constexpr smmu_features F = full_features;
constexpr std::uint32_t sid = 0x10;

template <class Entry>
using words_of = std::array<std::uint64_t, 8>;

/// Which bits of an entry the driver knows the hardware to look at
/// (arm-smmu-v3, arm_smmu_get_ste_used and arm_smmu_get_cd_used in v6.12).
words_of<S> used_bits(const S& entry) {
    words_of<S> used{};
    used[0] = S::V::mask;
    if (get<S::V>(entry) == 0) return used;
    const std::uint64_t config = get<S::Config>(entry);
    used[0] |= S::Config::mask;
    const bool stage1 = (config & 1) != 0;
    const bool stage2 = (config & 2) != 0;
    if (stage1) {
        used[0] |= S::S1Fmt::mask | S::S1ContextPtr::mask | S::S1CDMax::mask;
        used[1] |= S::S1DSS::mask | S::S1CIR::mask | S::S1COR::mask | S::S1CSH::mask |
                   S::S1STALLD::mask | S::STRW::mask | S::EATS::mask;
        used[2] |= S::S2VMID::mask;
        if (get<S::S1DSS>(entry) == 1) used[1] |= S::SHCFG::mask;
    }
    if (stage2) {
        constexpr std::uint64_t vtcr = 0x0007'ffff'0000'0000;
        used[1] |= S::EATS::mask | S::SHCFG::mask;
        used[2] |= S::S2VMID::mask | vtcr | S::S2AA64::mask | S::S2ENDI::mask | S::S2PTW::mask |
                   S::S2S::mask | S::S2R::mask;
        used[3] |= S::S2TTB::mask;
    }
    if (config == 4) used[1] |= S::SHCFG::mask;
    return used;
}
words_of<C> used_bits(const C& entry) {
    words_of<C> used{};
    used[0] = C::V::mask;
    if (get<C::V>(entry) == 0) return used;
    used.fill(~std::uint64_t{0});
    if (get<C::EPD0>(entry) != 0) {
        used[0] &= ~(C::T0SZ::mask | C::TG0::mask | C::IR0::mask | C::OR0::mask | C::SH0::mask);
        used[1] &= ~C::TTB0::mask;
    }
    return used;
}

/// One step of a transition: words to be stored one after the other, then a
/// CFGI and a SYNC, unless nothing changed.
struct step {
    words_of<S> image;
    unsigned first, count;
};
struct transition {
    std::vector<step> steps;
    bool hitless = true; ///< else there is a moment at which the entry is invalid
};

/// The order in which the driver stores the words of an entry (arm_smmu_write_entry).
template <class Entry>
transition plan(const Entry& from, const Entry& to) {
    const auto used_now = used_bits(from);
    const auto used_then = used_bits(to);
    words_of<Entry> target{};
    words_of<Entry> staged{}; // what is unused now has its new value
    std::vector<unsigned> critical;
    for (unsigned i = 0; i < 8; ++i) {
        target[i] = to.word[i].value();
        staged[i] = (from.word[i].value() & used_now[i]) | (target[i] & ~used_now[i]);
        if ((staged[i] & used_then[i]) != target[i]) critical.push_back(i);
    }
    transition t;
    if (critical.empty()) {
        t.steps = {{target, 0, 8}};
    } else if (critical.size() == 1) {
        staged[critical[0]] = from.word[critical[0]].value();
        t.steps = {{staged, 0, 8}, {target, critical[0], 1}, {target, 0, 8}};
    } else {
        words_of<Entry> invalid = staged;
        invalid[0] = 0;
        t.steps = {{invalid, 0, 1}, {target, 1, 7}, {target, 0, 1}};
        t.hitless = false;
    }
    return t;
}

/// One kind of access that a device makes.
struct probe {
    const char* what;
    std::uint64_t address;
    std::optional<substream_id> substream;
};

/// What an access comes to.
struct behaviour {
    std::optional<std::uint64_t> output;
    std::optional<spec::event_id> event; ///< neither = refused in silence
    bool stage2 = false;
    bool recorded = false;
    bool stalls = false;
    memory_attributes attributes{};
    friend bool operator==(const behaviour&, const behaviour&) = default;
};

std::string text(const behaviour& b) {
    if (b.output) return "goes to " + std::to_string(*b.output);
    if (!b.event) return "is refused in silence";
    return std::string{spec::name_of(*b.event)} + (b.stage2 ? " of stage 2" : "") +
           (b.stalls ? ", stalls" : "") + (b.recorded ? ", recorded" : "");
}

/// Fixed addresses. Every one of them is in RAM, so that bypass works too.
constexpr std::uint64_t mapped = guest::ram + 0x20'0000;
constexpr std::uint64_t unmapped = guest::ram + 0x40'0000;
const std::vector<probe> probes{{"mapped", mapped, {}},
                                {"unmapped", unmapped, {}},
                                {"mapped, SubstreamID 0", mapped, substream_id{0}},
                                {"mapped, SubstreamID 1", mapped, substream_id{1}},
                                {"unmapped, SubstreamID 1", unmapped, substream_id{1}},
                                {"mapped, SubstreamID 5", mapped, substream_id{5}}};

/// A guest with everything that entries may point to.
struct world {
    machine m;
    machine::device::port device = attached(m);
    std::uint64_t ste = 0;
    std::uint64_t single_cd = 0; ///< one CD
    std::uint64_t cd_table = 0;  ///< eight CDs
    std::uint64_t cd_tree = 0;   ///< 2^11 CDs in two levels, of which one leaf is there
    std::uint64_t roots[4]{};    ///< stage 1: `mapped` goes to a page of each one's own
    std::uint64_t pages[4]{};    ///< those pages
    std::uint64_t stage2_root = 0;
    std::uint64_t stage2_page = 0; ///< where stage 2 sends `mapped`

    static machine::device::port attached(machine& m) {
        m.start();
        REQUIRE(m.iommu().attach_device("device", m.all_of_ram, stream_id{sid}));
        return m.iommu().make_port("device").value();
    }
    world() {
        ste = m.ste_address(sid);
        single_cd = m.take_pages();
        cd_table = m.take_pages();
        for (unsigned i = 0; i < 4; ++i) {
            roots[i] = m.take_pages();
            pages[i] = page_with_pattern();
            m.map(roots[i], mapped, pages[i]);
        }
        make_stage2();
        for (const std::uint64_t at : {mapped, unmapped})
            m.store64(at, at);
        put_cd(single_cd, context(0, 1));
        put_cd(cd_table, context(0, 1));
        put_cd(cd_table + 64, context(1, 2));
        cd_tree = m.take_pages();
        const std::uint64_t leaf = (m.take_pages(32) + 0xffff) & ~std::uint64_t{0xffff};
        m.store64(cd_tree, leaf | 1);
        put_cd(leaf, context(0, 1));
        put_cd(leaf + 64, context(1, 2));
    }
    std::uint64_t page_with_pattern() {
        const std::uint64_t page = m.take_pages();
        m.store64(page, page);
        return page;
    }
    /// 40 bits from level 1. RAM is mapped one to one but for three pages: one
    /// that goes elsewhere, and two that are missing.
    void make_stage2() {
        stage2_root = (m.take_pages(3) + 0x1000) & ~std::uint64_t{0x1fff};
        const std::uint64_t level2 = m.take_pages();
        m.store64(stage2_root + 8, level2 | 3);
        for (std::uint64_t i = 0; i < guest::ram_bytes >> 21; ++i) {
            const std::uint64_t at = guest::ram + (i << 21);
            std::uint64_t entry = at | 0x4fd;
            if (at == (mapped & ~0x1f'ffffULL)) {
                const std::uint64_t level3 = m.take_pages();
                for (std::uint64_t j = 0; j < 512; ++j)
                    m.store64(level3 + j * 8, (at + (j << 12)) | 0x4ff);
                stage2_page = page_with_pattern();
                m.store64(level3 + (mapped >> 12 & 511) * 8, stage2_page | 0x4ff);
                entry = level3 | 3;
            } else if (at == (unmapped & ~0x1f'ffffULL)) {
                entry = 0;
            }
            m.store64(level2 + i * 8, entry);
        }
    }
    void put_cd(std::uint64_t at, const C& c) { m.store(at, c); }

    /// As arm_smmu_make_s1_cd builds it.
    C context(unsigned root, std::uint16_t space, bool stall = false) const {
        C c = m.plain_cd(roots[root], space);
        set<C::IR0>(c, 1);
        set<C::OR0>(c, 1);
        set<C::SH0>(c, 3);
        set<C::T1SZ>(c, 0);
        set<C::TG1>(c, 0);
        set<C::S>(c, stall ? 1 : 0);
        return c;
    }

    stream_table_registers registers() const {
        return {.enabled = true,
                .record_bad_stream_id = true,
                .base = guest::level1_table,
                .shape = 0x1'0210};
    }
    /// What memory says at this moment, to an SMMU that has cached nothing.
    behaviour now(const probe& p) {
        guest_tables tables{m.memory, false};
        stream_configuration c;
        behaviour b;
        const auto failed = resolve_stream<F>(
            tables, registers(),
            {.stream = stream_id{sid}, .substream = p.substream, .window = m.all_of_ram}, c);
        if (failed) {
            b.event = failed->event;
            b.stage2 = failed->stage2;
            b.recorded = failed->record;
            b.stalls = failed->may_stall;
            return b;
        }
        if (c.mode == stream_mode::abort) return b;
        if (c.mode == stream_mode::bypass) {
            b.output = p.address;
            b.attributes = c.incoming;
            return b;
        }
        const walk_result w =
            walk_tables<F>(c.regimes, {p.address, permissions::user_read, c.incoming}, tables);
        if (w.event) {
            b.event = w.event;
            b.stage2 = w.stage2;
            b.recorded = w.stage2 ? c.record_stage2_faults : c.record_stage1_faults;
            b.stalls = w.stage2 ? c.stall_stage2_faults : c.stall_stage1_faults;
            return b;
        }
        b.output = w.output_base + (p.address - w.input_base);
        b.attributes = w.attributes;
        return b;
    }
    std::vector<behaviour> now() {
        std::vector<behaviour> all;
        for (const probe& p : probes)
            all.push_back(now(p));
        return all;
    }
    /// What the device meets, which the SMMU may have cached: the first eight
    /// bytes that it reads, or nothing.
    std::optional<std::uint64_t> read(const probe& p) {
        std::uint64_t value = 0;
        access_attributes with;
        with.has_substream = p.substream.has_value();
        with.substream = p.substream.value_or(substream_id{});
        if (!device.read(iova{p.address}, std::as_writable_bytes(std::span{&value, 1}), with)) {
            return std::nullopt;
        }
        return value;
    }
    void forget_events() {
        while (m.event()) {}
    }
};

/// Drives a transition, and looks at it after every store and every SYNC.
template <class Entry>
void check_transition(world& w, std::uint64_t at, const Entry& from, const Entry& to,
                      const spec::command& cfgi) {
    const auto is_one_of = [](const behaviour& seen, const behaviour& a, const behaviour& b,
                              bool hitless) {
        if (seen == a || seen == b) return true;
        // An entry that is not valid: refused, and recorded as such.
        return !hitless &&
               (seen.event == spec::event_id::C_BAD_STE || seen.event == spec::event_id::C_BAD_CD);
    };
    w.m.store(at, to);
    const std::vector<behaviour> after = w.now();
    w.m.store(at, from);
    w.m.command(cfgi);
    w.m.sync();
    const std::vector<behaviour> before = w.now();
    const auto may_stall = [&](std::size_t i) { return before[i].stalls || after[i].stalls; };
    const auto device_agrees = [&](std::size_t i, bool settled) {
        // A stalled read would wait for an answer that nobody gives here.
        if (may_stall(i)) return true;
        const std::optional<std::uint64_t> data = w.read(probes[i]);
        const behaviour current = w.now(probes[i]);
        if (settled) return data == current.output;
        return data == before[i].output || data == after[i].output || data == current.output;
    };
    for (std::size_t i = 0; i < probes.size(); ++i)
        REQUIRE(device_agrees(i, true)); // and cached from here on

    const transition t = plan(from, to);
    for (const step& s : t.steps) {
        bool changed = false;
        for (unsigned i = s.first; i < s.first + s.count; ++i) {
            if (w.m.load64(at + 8 * i) == s.image[i]) continue;
            w.m.store64(at + 8 * i, s.image[i]);
            changed = true;
            const std::vector<behaviour> seen = w.now();
            bool all_old = true;
            bool all_new = true;
            for (std::size_t p = 0; p < probes.size(); ++p) {
                CAPTURE(i, probes[p].what, text(before[p]), text(after[p]), text(seen[p]));
                CHECK(is_one_of(seen[p], before[p], after[p], t.hitless));
                CHECK(device_agrees(p, false));
                all_old = all_old && seen[p] == before[p];
                all_new = all_new && seen[p] == after[p];
            }
            if (t.hitless) CHECK((all_old || all_new));
        }
        if (!changed) continue;
        w.m.command(cfgi);
        w.m.sync();
        REQUIRE(w.m.commands_done());
        for (std::size_t p = 0; p < probes.size(); ++p) {
            CAPTURE(probes[p].what);
            CHECK(device_agrees(p, true));
        }
        w.forget_events();
    }
    for (unsigned i = 0; i < 8; ++i)
        CHECK(w.m.load64(at + 8 * i) == to.word[i].value());
    CHECK(w.now() == after);
}

struct named_ste {
    const char* what;
    S entry;
};
/// The STEs that the driver makes.
std::vector<named_ste> driver_stes(const world& w) {
    using enum spec::ste_config;
    const auto make = [](spec::ste_config config) {
        S s;
        set<S::V>(s, 1);
        set<S::Config>(s, static_cast<std::uint64_t>(config));
        return s;
    };
    const auto table = [&](std::uint64_t at, std::uint64_t max, std::uint64_t dss, bool stalls,
                           bool ats = false) {
        S s = make(s1_translate);
        set<S::S1ContextPtr>(s, at >> 6);
        set<S::S1CDMax>(s, max);
        set<S::S1DSS>(s, dss);
        set<S::S1CIR>(s, 1);
        set<S::S1COR>(s, 1);
        set<S::S1CSH>(s, 3);
        set<S::S1STALLD>(s, stalls ? 0 : 1);
        set<S::EATS>(s, ats ? 1 : 0);
        if (dss == 1) set<S::SHCFG>(s, 1);
        return s;
    };
    const auto stage2_fields = [&](S s, std::uint16_t vm, bool stalls, bool ats = false) {
        set<S::EATS>(s, ats ? 1 : 0);
        set<S::SHCFG>(s, 1);
        set<S::S2VMID>(s, vm);
        set<S::S2T0SZ>(s, 24);
        set<S::S2SL0>(s, 1);
        set<S::S2IR0>(s, 1);
        set<S::S2OR0>(s, 1);
        set<S::S2SH0>(s, 3);
        set<S::S2PS>(s, 4);
        set<S::S2AA64>(s, 1);
        set<S::S2PTW>(s, 1);
        set<S::S2R>(s, 1);
        set<S::S2S>(s, stalls ? 1 : 0);
        set<S::S2TTB>(s, w.stage2_root >> 4);
        return s;
    };
    S passing = make(spec::ste_config::bypass);
    set<S::SHCFG>(passing, 1);
    S tree = table(w.cd_tree, 11, 2, false);
    set<S::S1Fmt>(tree, 2);
    S el2 = table(w.single_cd, 0, 2, false);
    set<S::STRW>(el2, 2);
    return {{"invalid", S{}},
            {"abort", make(spec::ste_config::abort)},
            {"bypass", passing},
            {"one CD", table(w.single_cd, 0, 2, false)},
            {"one CD, may stall", table(w.single_cd, 0, 2, true)},
            {"one CD, ATS", table(w.single_cd, 0, 2, false, true)},
            {"one CD, EL2", el2},
            {"CD table", table(w.cd_table, 3, 2, false)},
            {"CD table, may stall", table(w.cd_table, 3, 2, true)},
            {"CD table, S1DSS bypasses", table(w.cd_table, 3, 1, false)},
            {"CD table, S1DSS terminates", table(w.cd_table, 3, 0, false)},
            {"stage 2", stage2_fields(make(s2_translate), 0, false)},
            {"stage 2, VMID 5", stage2_fields(make(s2_translate), 5, false)},
            {"stage 2, stalls", stage2_fields(make(s2_translate), 0, true)},
            {"stage 2, ATS", stage2_fields(make(s2_translate), 0, false, true)},
            {"nested", stage2_fields(
                           [&] {
                               S s = table(w.cd_table, 3, 2, false);
                               set<S::Config>(s, 7);
                               return s;
                           }(),
                           5, false)},
            {"CD tables in two levels", tree}};
}

} // namespace

TEST_CASE("what each of the driver's STEs does", "[smmu][hitless]") {
    // So that the transitions below lead from one thing to another.
    world w;
    const auto name = [&](const behaviour& b, const probe& p) -> std::string {
        if (!b.output) return b.event ? std::string{spec::name_of(*b.event)} : "nothing";
        return *b.output == w.pages[0]      ? "A"
               : *b.output == w.pages[1]    ? "B"
               : *b.output == w.stage2_page ? "S"
               : *b.output == p.address     ? "itself"
                                            : "elsewhere";
    };
    using row = std::array<std::string, 6>; // in the order of `probes`
    const std::string lost = "F_TRANSLATION";
    const std::string off = "F_STREAM_DISABLED";
    const std::string no_substreams = "C_BAD_SUBSTREAMID";
    const row one_cd{"A", lost, no_substreams, no_substreams, no_substreams, no_substreams};
    const row table{"A", lost, off, "B", lost, "C_BAD_CD"};
    const row stage2{"S", lost, no_substreams, no_substreams, no_substreams, no_substreams};
    row all_bad;
    all_bad.fill("C_BAD_STE");
    row silence;
    silence.fill("nothing");
    const std::vector<row> expected{
        all_bad,
        silence,
        {"itself", "itself", no_substreams, no_substreams, no_substreams, no_substreams},
        one_cd,
        one_cd,
        one_cd,
        one_cd,
        table,
        table,
        {"itself", "itself", "A", "B", lost, "C_BAD_CD"},
        {off, off, "A", "B", lost, "C_BAD_CD"},
        stage2,
        stage2,
        stage2,
        stage2,
        table,
        table};
    const std::vector<named_ste> all = driver_stes(w);
    REQUIRE(all.size() == expected.size());
    for (std::size_t i = 0; i < all.size(); ++i) {
        w.m.store(w.ste, all[i].entry);
        for (std::size_t p = 0; p < probes.size(); ++p) {
            CAPTURE(all[i].what, probes[p].what);
            CHECK(name(w.now(probes[p]), probes[p]) == expected[i][p]);
        }
    }
}

TEST_CASE("the driver's changes of an STE: old or new, never a third", "[smmu][hitless]") {
    world w;
    const std::vector<named_ste> all = driver_stes(w);
    // CDs that may stall are legal only where STEs do not forbid it.
    unsigned hitless = 0;
    unsigned transitions = 0;
    for (const named_ste& from : all) {
        for (const named_ste& to : all) {
            if (&from == &to) continue;
            CAPTURE(from.what, to.what);
            check_transition(w, w.ste, from.entry, to.entry,
                             spec::cmd_cfgi_ste(stream_id{sid}, true));
            ++transitions;
            if (plan(from.entry, to.entry).hitless) ++hitless;
        }
    }
    CHECK(transitions == 272);
    // As many as the driver can make hitless: a test that broke all would prove little.
    CHECK(hitless == 166);
}

TEST_CASE("transitions that the driver relies upon are hitless", "[smmu][hitless]") {
    world w;
    const std::vector<named_ste> all = driver_stes(w);
    const auto ste = [&](const std::string& what) {
        for (const named_ste& n : all) {
            if (n.what == what) return n.entry;
        }
        FAIL("no such STE: " << what);
        return S{};
    };
    const std::vector<std::pair<const char*, const char*>> rows{
        {"bypass", "abort"},
        {"abort", "bypass"},
        {"bypass", "one CD"},
        {"one CD", "bypass"},
        {"abort", "one CD"},
        {"one CD", "abort"},
        {"CD table", "CD table, S1DSS bypasses"},
        {"CD table, S1DSS bypasses", "CD table"},
        {"CD table", "CD table, S1DSS terminates"},
        {"bypass", "stage 2"},
        {"stage 2", "bypass"},
        {"abort", "stage 2, stalls"},
        {"one CD", "stage 2"},
        {"stage 2", "one CD"},
        {"one CD, may stall", "stage 2, stalls"},
        {"stage 2, stalls", "one CD, may stall"},
        {"bypass", "nested"}};
    for (const auto& [from, to] : rows) {
        CAPTURE(from, to);
        CHECK(plan(ste(from), ste(to)).hitless);
    }
}

TEST_CASE("the driver's changes of a CD: old or new, never a third", "[smmu][hitless]") {
    world w;
    struct named_cd {
        const char* what;
        C entry;
    };
    C released = w.context(1, 3); // an address space whose process has gone
    set<C::EPD0>(released, 1);
    C released_bare = released;
    for (auto clear : {0, 1}) {
        if (clear == 0) {
            set<C::T0SZ>(released_bare, 0);
            set<C::IR0>(released_bare, 0);
            set<C::OR0>(released_bare, 0);
            set<C::SH0>(released_bare, 0);
        } else {
            set<C::TTB0>(released_bare, 0);
        }
    }
    C dirty = w.context(1, 3);
    set<C::HA>(dirty, 1);
    set<C::HD>(dirty, 1);
    C other_types = w.context(1, 3);
    set<C::MAIR>(other_types, 0x44);
    const std::vector<named_cd> all{{"invalid", C{}},
                                    {"domain A", w.context(0, 1)},
                                    {"domain B", w.context(1, 3)},
                                    {"domain B, stalls", w.context(1, 3, true)},
                                    {"domain B, updates flags", dirty},
                                    {"domain B, other memory types", other_types},
                                    {"domain B, another ASID", w.context(1, 4)},
                                    {"A's ASID, other tables", w.context(2, 1)},
                                    {"released", released},
                                    {"released, with nothing else", released_bare}};
    struct place {
        const char* what;
        const char* ste;
        std::uint32_t index;
    };
    const auto r = GENERATE(place{"the only CD", "one CD, may stall", 0},
                            place{"CD 0 of a table", "CD table, may stall", 0},
                            place{"CD 1 of a table", "CD table, may stall", 1},
                            place{"a nested CD", "nested", 1});
    CAPTURE(r.what);
    for (const named_ste& n : driver_stes(w)) {
        if (std::string{n.what} != r.ste) continue;
        S entry = n.entry;
        set<S::S1STALLD>(entry, 0);
        w.m.store(w.ste, entry);
    }
    w.m.command(spec::cmd_cfgi_ste(stream_id{sid}, true));
    w.m.sync();
    const std::uint64_t table = std::string{r.ste}.starts_with("one") ? w.single_cd : w.cd_table;
    const std::uint64_t at = table + r.index * 64;
    const auto cfgi = spec::cmd_cfgi_cd(stream_id{sid}, substream_id{r.index}, true);
    unsigned hitless = 0;
    for (const named_cd& from : all) {
        for (const named_cd& to : all) {
            if (&from == &to) continue;
            CAPTURE(from.what, to.what);
            check_transition(w, at, from.entry, to.entry, cfgi);
            if (plan(from.entry, to.entry).hitless) ++hitless;
        }
    }
    CHECK(hitless == 52);
}

TEST_CASE("a second level of CDs appears while devices use the first", "[smmu][hitless]") {
    world w;
    for (const named_ste& n : driver_stes(w)) {
        if (std::string{n.what} == "CD tables in two levels") w.m.store(w.ste, n.entry);
    }
    w.m.command(spec::cmd_cfgi_ste(stream_id{sid}, true));
    w.m.sync();
    const probe of_new_leaf{"SubstreamID 1024", mapped, substream_id{1024}};
    CHECK(w.read(probes[0]) == w.pages[0]);
    CHECK_FALSE(w.read(of_new_leaf));
    CHECK(w.now(of_new_leaf).event == spec::event_id::C_BAD_SUBSTREAMID);
    // The driver makes the leaf, points to it, and says so; then it writes a CD.
    const std::uint64_t leaf = (w.m.take_pages(32) + 0xffff) & ~std::uint64_t{0xffff};
    w.m.store64(w.cd_tree + 8, leaf | 1);
    CHECK(w.now(of_new_leaf).event == spec::event_id::C_BAD_CD);
    CHECK(w.read(probes[0]) == w.pages[0]);
    w.m.command(spec::cmd_cfgi_cd(stream_id{sid}, substream_id{1024}, false));
    w.m.sync();
    CHECK_FALSE(w.read(of_new_leaf));
    w.put_cd(leaf, w.context(2, 5));
    w.m.command(spec::cmd_cfgi_cd(stream_id{sid}, substream_id{1024}, true));
    w.m.sync();
    CHECK(w.read(of_new_leaf) == w.pages[2]);
    CHECK(w.read(probes[0]) == w.pages[0]);
    CHECK(w.read(probes[3]) == w.pages[1]);
}

TEST_CASE("a device that never pauses sees old or new data", "[smmu][hitless]") {
    world w;
    const std::vector<named_ste> all = driver_stes(w);
    const S& passing = all[2].entry;
    const S& one_cd = all[3].entry;
    const S& stage2 = all[11].entry;
    REQUIRE(std::string{all[11].what} == "stage 2");
    const auto cfgi = spec::cmd_cfgi_ste(stream_id{sid}, true);
    const std::array<const S*, 4> round{&passing, &one_cd, &stage2, &one_cd};
    std::vector<std::uint64_t> legal;
    for (const S* s : round) {
        w.m.store(w.ste, *s);
        legal.push_back(w.now(probes[0]).output.value());
    }
    w.m.store(w.ste, *round[3]);
    w.m.command(cfgi);
    w.m.sync();
    std::atomic<bool> stop{false};
    std::atomic<std::uint64_t> reads{0};
    std::atomic<std::uint64_t> wrong{0};
    std::thread device{[&] {
        while (!stop.load(std::memory_order_relaxed)) {
            const std::optional<std::uint64_t> data = w.read(probes[0]);
            bool known = false;
            for (const std::uint64_t l : legal)
                known = known || data == l;
            if (!known) wrong.fetch_add(1);
            reads.fetch_add(1);
        }
    }};
    const S* from = round[3];
    for (unsigned n = 0; n < 400; ++n) {
        const S* to = round[n % 4];
        const transition t = plan(*from, *to);
        REQUIRE(t.hitless);
        for (const step& s : t.steps) {
            for (unsigned i = s.first; i < s.first + s.count; ++i)
                w.m.store64(w.ste + 8 * i, s.image[i]);
            w.m.command(cfgi);
            w.m.sync();
            while (!w.m.commands_done())
                std::this_thread::yield();
        }
        from = to;
    }
    while (reads.load() == 0)
        std::this_thread::yield();
    stop.store(true);
    device.join();
    CHECK(wrong.load() == 0);
}
