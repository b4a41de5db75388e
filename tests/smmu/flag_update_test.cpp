// Hardware updates of access flag and dirty state, at both stages, and what
// happens when the descriptor changes at that very moment.
#include "table_builder.hpp"

#include <vm_accel/guest/region_map.hpp>

#include <catch2/catch.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

using namespace tables;

namespace {

constexpr auto F_TRANSLATION = spec::event_id::F_TRANSLATION;
constexpr auto F_ACCESS = spec::event_id::F_ACCESS;
constexpr auto F_PERMISSION = spec::event_id::F_PERMISSION;
constexpr auto F_WALK_EABT = spec::event_id::F_WALK_EABT;
constexpr u64 S2R = u64{1} << 6, S2W = u64{1} << 7;
constexpr u64 normal = u64{0xf} << 2; ///< MemAttr

/// Stage 1 with one page, under a stage 2 that maps all one to one: one block
/// for the data, one page for each table.
struct bench {
    static constexpr u64 root = 0x100'0000;
    static constexpr u64 data = 0x4000'0000; // IPA and output
    sparse_memory memory;
    tree s1{memory, {}, 48, 0, root, root + 0x10'0000};
    tree s2{memory, {}, 40, 1, 0x8'0000'0000, 0x8'0100'0000};
    translation_regimes regimes = stage1_of(s1, 48);
    u64 at = 0;       ///< stage 1's leaf
    u64 table_at = 0; ///< stage 2's leaf for the page with that leaf
    u64 data_at = 0;  ///< stage 2's leaf for the data

    explicit bench(bool two_stages = false) {
        regimes.stage1.updates_access_flag = true;
        regimes.stage1.updates_dirty_state = true;
        page(AF | AP1);
        if (!two_stages) return;
        add_stage2(regimes, s2, 48);
        for (u64 table = root; table < root + 0x20'0000; table += 0x1000) {
            const u64 d = s2.map(table, leaf(s2.form, table, 3, AF | S2R | S2W | normal), 3);
            if (table == (at & ~u64{0xfff})) table_at = d;
        }
        data_at = s2.map(data, leaf(s2.form, data, 2, AF | S2R | S2W | normal), 2);
    }
    void page(u64 more) { at = s1.map(0x1000, leaf(s1.form, data, 3, more), 3); }
    u64 word() { return memory.words[at]; }
    template <smmu_features F = full_features>
    walk_result walk(unsigned needed) {
        return tables::walk<F>(memory, regimes, 0x1234, needed);
    }
};

constexpr unsigned writes = user_write | privileged_write;

} // namespace

TEST_CASE("stage 1: what an access makes of the flags", "[smmu][walk][httu]") {
    struct row {
        const char* what;
        u64 page;
        unsigned needed;
        bool ha, hd;
        u64 set, cleared; ///< in the descriptor
        spec::event_id event;
        bool writable; ///< later writes may pass
    };
    constexpr auto none = spec::event_id{};
    const auto r = GENERATE(
        row{"AF set already", AF | AP1, user_read, true, true, 0, 0, none, true},
        row{"AF clear, HA", AP1, user_read, true, false, AF, 0, none, true},
        row{"AF clear, no HA", AP1, user_read, false, false, 0, 0, F_ACCESS, false},
        row{"HD without HA is nothing", AP1 | AP2 | DBM | AF, user_write, false, true, 0, 0,
            F_PERMISSION, false},
        row{"clean page, write", AF | AP1 | AP2 | DBM, user_write, true, true, 0, AP2, none, true},
        row{"clean page, privileged write", AF | AP2 | DBM, privileged_write, true, true, 0, AP2,
            none, true},
        row{"clean page, read: later writes come back", AF | AP1 | AP2 | DBM, user_read, true, true,
            0, 0, none, false},
        row{"clean page, execution", AF | AP2 | DBM, user_execute, true, true, 0, 0, none, false},
        row{"clean and never accessed, write: both at once", AP1 | AP2 | DBM, user_write, true,
            true, AF, AP2, none, true},
        row{"clean and never accessed, read", AP1 | AP2 | DBM, user_read, true, true, AF, 0, none,
            false},
        row{"dirty already", AF | AP1 | DBM, user_write, true, true, 0, 0, none, true},
        row{"HD off: DBM is nothing", AF | AP1 | AP2 | DBM, user_write, true, false, 0, 0,
            F_PERMISSION, false},
        row{"read-only, no DBM", AF | AP1 | AP2, user_write, true, true, 0, 0, F_PERMISSION, false},
        row{"refused for another reason: nothing is set", AP2 | DBM, user_write, true, true, 0, 0,
            F_PERMISSION, false},
        row{"refused read: nothing is set", 0, user_read, true, true, 0, 0, F_PERMISSION, false},
        row{"clean counts as writable: no privileged execution", AF | AP1 | AP2 | DBM,
            privileged_execute, true, true, 0, 0, F_PERMISSION, false});
    CAPTURE(r.what);
    bench b;
    b.regimes.stage1.updates_access_flag = r.ha;
    b.regimes.stage1.updates_dirty_state = r.hd;
    b.page(r.page);
    const u64 before = b.word();
    const walk_result got = b.walk(r.needed);
    CHECK(b.word() == ((before | r.set) & ~r.cleared));
    CHECK(b.memory.exchanges == (r.set != 0 || r.cleared != 0 ? 1 : 0));
    if (r.event != none) {
        CHECK(got.event == r.event);
        return;
    }
    REQUIRE_FALSE(got.event);
    CHECK(((got.allowed.bits() & writes) != 0) == r.writable);
    CHECK(got.output_base == bench::data);
    // The next one finds everything set.
    CHECK_FALSE(b.walk(r.needed).event);
    CHECK(b.memory.exchanges <= 1);
}

TEST_CASE("HA comes before AFFD", "[smmu][walk][httu]") {
    bench b;
    b.regimes.stage1.access_flag_ignored = true;
    b.page(AP1);
    CHECK_FALSE(b.walk(user_read).event);
    CHECK((b.word() & AF) != 0);
}

TEST_CASE("features without HTTU write nothing", "[smmu][walk][httu]") {
    bench b;
    b.page(AP1);
    CHECK(b.walk<stage1_features>(user_read).event == F_ACCESS);
    static constexpr smmu_features access_flag_only{.httu = 1};
    b.page(AF | AP1 | AP2 | DBM);
    CHECK(b.walk<access_flag_only>(user_write).event == F_PERMISSION);
    b.page(AP1);
    CHECK_FALSE(b.walk<access_flag_only>(user_read).event);
    CHECK(b.memory.exchanges == 1);
}

TEST_CASE("table limits refuse a write before anything is marked", "[smmu][walk][httu]") {
    bench b;
    b.page(AF | AP1 | AP2 | DBM);
    b.memory.words[bench::root] |= u64{1} << 62; // APTable[1]
    CHECK(b.walk(user_write).event == F_PERMISSION);
    CHECK(b.memory.exchanges == 0);
    b.regimes.stage1.half[0].flat_permissions = true;
    CHECK_FALSE(b.walk(user_write).event);
    CHECK((b.word() & AP2) == 0);
}

TEST_CASE("WXN and a clean page", "[smmu][walk][httu]") {
    bench b;
    b.regimes.stage1.write_execute_never = true;
    b.page(AF | AP2 | DBM);
    CHECK(b.walk(privileged_execute).event == F_PERMISSION);
}

TEST_CASE("big-endian flags", "[smmu][walk][httu]") {
    sparse_memory m;
    tree t{m, {12, false, true}, 48, 0, 0x100'0000, 0x110'0000};
    const u64 at = t.map(0x1000, leaf(t.form, 0x4000'0000, 3, AP1 | AP2 | DBM), 3);
    translation_regimes r = stage1_of(t, 48);
    r.stage1.updates_access_flag = r.stage1.updates_dirty_state = true;
    CHECK_FALSE(walk(m, r, 0x1000, user_write).event);
    CHECK(m.words[at] == swapped(leaf(t.form, 0x4000'0000, 3, AF | AP1 | DBM)));
}

TEST_CASE("stage 2: what an access makes of the flags", "[smmu][walk][httu]") {
    struct row {
        const char* what;
        u64 page;
        unsigned needed;
        u64 set;
        bool fault, writable;
    };
    const auto r = GENERATE(
        row{"AF clear", S2R | S2W, user_read, AF, false, true},
        row{"clean, write", AF | S2R | DBM, user_write, S2W, false, true},
        row{"clean, read", AF | S2R | DBM, user_read, 0, false, false},
        row{"clean and never accessed, write", S2R | DBM, user_write, AF | S2W, false, true},
        row{"clean and write-only", AF | DBM, user_write, S2W, false, true},
        row{"refused: nothing is set", DBM, user_read, 0, true, false},
        row{"read-only", S2R, user_write, 0, true, false});
    CAPTURE(r.what);
    sparse_memory m;
    tree t{m, {}, 40, 1, 0x8'0000'0000, 0x8'0100'0000};
    const u64 at = t.map(0x1000, leaf(t.form, 0x4000'0000, 3, r.page | normal), 3);
    translation_regimes regimes;
    add_stage2(regimes, t);
    regimes.stage2.updates_access_flag = regimes.stage2.updates_dirty_state = true;
    const u64 before = m.words[at];
    const walk_result got = walk(m, regimes, 0x1234, r.needed);
    CHECK(m.words[at] == (before | r.set));
    if (r.fault) {
        CHECK(got.event == F_PERMISSION);
        return;
    }
    REQUIRE_FALSE(got.event);
    CHECK(((got.allowed.bits() & writes) != 0) == r.writable);
}

TEST_CASE("stage 1's flags are written through stage 2", "[smmu][walk][httu]") {
    bench b{true};
    b.page(AP1);
    u64& table_page = b.memory.words[b.table_at];
    SECTION("writable: set") {
        CHECK_FALSE(b.walk(user_read).event);
        CHECK((b.word() & AF) != 0);
    }
    SECTION("read-only at stage 2: a write to a table that is refused") {
        table_page &= ~S2W;
        const walk_result r = b.walk(user_read);
        CHECK(r.event == F_PERMISSION);
        CHECK(r.stage2);
        CHECK(r.cls == spec::fault_class::TT);
        CHECK(r.table_write);
        CHECK(r.ipa == b.at);
        CHECK((b.word() & AF) == 0);
        // With nothing to update, reading is enough.
        b.page(AF | AP1);
        CHECK_FALSE(b.walk(user_read).event);
    }
    SECTION("clean at stage 2: the table's page becomes dirty, and only by an update") {
        b.regimes.stage2.updates_access_flag = b.regimes.stage2.updates_dirty_state = true;
        table_page = (table_page & ~S2W) | DBM;
        b.page(AF | AP1);
        CHECK_FALSE(b.walk(user_read).event);
        CHECK((table_page & S2W) == 0);
        b.page(AP1);
        CHECK_FALSE(b.walk(user_read).event);
        CHECK((table_page & S2W) != 0);
        CHECK((b.word() & AF) != 0);
    }
    SECTION("never accessed at stage 2: reading a table sets its page's flag") {
        b.regimes.stage2.updates_access_flag = true;
        table_page &= ~AF;
        b.page(AF | AP1);
        CHECK_FALSE(b.walk(user_read).event);
        CHECK((table_page & AF) != 0);
    }
}

TEST_CASE("a page clean at either stage is not written without a mark", "[smmu][walk][httu]") {
    bench b{true};
    b.regimes.stage2.updates_access_flag = b.regimes.stage2.updates_dirty_state = true;
    u64& data_page = b.memory.words[b.data_at];
    data_page = (data_page & ~S2W) | DBM;
    CHECK((b.walk(user_read).allowed.bits() & writes) == 0);
    CHECK((data_page & S2W) == 0);
    CHECK((b.walk(user_write).allowed.bits() & writes) == writes);
    CHECK((data_page & S2W) != 0);
    // Refused by stage 1: stage 2 has not seen it.
    data_page &= ~S2W;
    b.page(AF | AP1 | AP2);
    CHECK(b.walk(user_write).event == F_PERMISSION);
    CHECK((data_page & S2W) == 0);
}

TEST_CASE("a descriptor that changes at the update is decoded again", "[smmu][walk][httu]") {
    const bool two_stages = GENERATE(false, true);
    bench b{two_stages};
    b.page(AP1 | AP2 | DBM);
    u64 instead = 0;
    b.memory.before_exchange = [&](u64 where) {
        if (where == b.at && instead != 0) b.memory.words[b.at] = std::exchange(instead, 0);
    };
    SECTION("to another page") {
        instead = leaf(b.s1.form, bench::data + 0x5000, 3, AF | AP1);
        const walk_result r = b.walk(user_write);
        CHECK(r.output_base == bench::data + 0x5000);
        CHECK(b.word() == leaf(b.s1.form, bench::data + 0x5000, 3, AF | AP1));
    }
    SECTION("to another page that needs an update too") {
        instead = leaf(b.s1.form, bench::data + 0x5000, 3, AP1);
        CHECK(b.walk(user_write).output_base == bench::data + 0x5000);
        CHECK(b.word() == leaf(b.s1.form, bench::data + 0x5000, 3, AF | AP1));
        CHECK(b.memory.exchanges == 2);
    }
    SECTION("to nothing: no descriptor appears out of it") {
        instead = 2;
        CHECK(b.walk(user_write).event == F_TRANSLATION);
        CHECK(b.word() == 2);
    }
    SECTION("to read-only without DBM") {
        instead = leaf(b.s1.form, bench::data, 3, AF | AP1 | AP2);
        CHECK(b.walk(user_write).event == F_PERMISSION);
        CHECK(b.word() == leaf(b.s1.form, bench::data, 3, AF | AP1 | AP2));
    }
    SECTION("by another device's update") {
        instead = leaf(b.s1.form, bench::data, 3, AF | AP1 | DBM);
        CHECK_FALSE(b.walk(user_write).event);
        CHECK(b.memory.exchanges == 1);
    }
}

TEST_CASE("a descriptor that never rests does not hold the walk for ever", "[smmu][walk][httu]") {
    bench b;
    b.page(AP1);
    b.memory.before_exchange = [&](u64) { b.memory.words[b.at] ^= nG; };
    const walk_result r = b.walk(user_read);
    CHECK(r.event == F_WALK_EABT);
    CHECK(r.fetch_address == b.at);
    CHECK(b.memory.exchanges == walk_retries + 1);
    CHECK((b.word() & AF) == 0);
}

TEST_CASE("memory that goes away at the update", "[smmu][walk][httu]") {
    bench b;
    b.page(AP1);
    b.memory.before_exchange = [&](u64 where) { b.memory.hole = where & ~u64{0xffff}; };
    CHECK(b.walk(user_read).event == F_WALK_EABT);
}

TEST_CASE("updates switched off leave no trace", "[smmu][walk][httu]") {
    region_map memory;
    alignas(4096) static std::array<std::byte, 0x4000> pages{};
    pages = {};
    REQUIRE(memory.add(pa{0x1000}, pages.data(), pages.size()));
    const u64 clean = 0x4000'0000 | AP1 | AP2 | DBM | 3;
    REQUIRE(memory.compare_exchange64(pa{0x1008}, 0, clean) == 0);
    translation_regimes r;
    r.stage1_enabled = true;
    r.stage1.output_bits = 48;
    r.stage1.updates_access_flag = r.stage1.updates_dirty_state = true;
    r.stage1.half[0] = {.table = 0x1000, .input_bits = 21, .granule_bits = 12, .enabled = true};
    const bool updates = GENERATE(false, true);
    guest_tables reach{memory, updates};
    const walk_result got = walk_tables<full_features>(r, {0x1000, user_write, {}}, reach);
    CHECK_FALSE(got.event);
    CHECK(memory.load64(pa{0x1008}) == (updates ? (clean | AF) & ~AP2 : clean));
}
