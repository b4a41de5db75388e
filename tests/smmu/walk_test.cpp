// Stage-1 walks: geometry of every granule and address form, faults in their
// order, permissions, attributes, the contiguous hint.
#include "table_builder.hpp"

#include <catch2/catch.hpp>

#include <array>
#include <cstdint>

using namespace tables;

namespace {

constexpr auto F_TRANSLATION = spec::event_id::F_TRANSLATION;
constexpr auto F_ADDR_SIZE = spec::event_id::F_ADDR_SIZE;
constexpr auto F_ACCESS = spec::event_id::F_ACCESS;
constexpr auto F_PERMISSION = spec::event_id::F_PERMISSION;
constexpr auto F_WALK_EABT = spec::event_id::F_WALK_EABT;

constexpr u64 tables_at = 0x8'0000'0000;

tree stage1_tree(sparse_memory& m, format f, unsigned input_bits) {
    return {m,          f,
            input_bits, first_level(f.granule_bits, input_bits),
            tables_at,  tables_at + 0x10'0000};
}

/// A plain 4 KiB tree with one page at 0x1000.
struct plain {
    sparse_memory memory;
    tree t = stage1_tree(memory, {}, 48);
    translation_regimes regimes = stage1_of(t, 48);
    u64 at = 0; ///< of the leaf's descriptor

    void page(u64 more, u64 table_bits = 0) {
        at = t.map(0x1000, leaf(t.form, 0x4000'0000, 3, more), 3, table_bits);
    }
    walk_result walk(unsigned needed = user_read) {
        return tables::walk(memory, regimes, 0x1234, needed);
    }
};

} // namespace

TEST_CASE("each granule and form has its levels, blocks and sizes", "[smmu][walk]") {
    struct row {
        format form;
        unsigned smallest, largest; ///< input sizes
        int highest_block;
    };
    const auto r = GENERATE(row{{12, false}, 16, 48, 1}, row{{12, true}, 16, 52, 0},
                            row{{14, false}, 16, 48, 2}, row{{14, true}, 16, 52, 1},
                            row{{16, false}, 17, 52, 1});
    const bool upper = GENERATE(false, true);
    CAPTURE(r.form.granule_bits, r.form.ds, upper);
    unsigned leaves = 0;
    for (unsigned input_bits = r.smallest; input_bits <= r.largest; ++input_bits) {
        const int start = first_level(r.form.granule_bits, input_bits);
        for (int level = start; level <= 3; ++level) {
            CAPTURE(input_bits, level);
            sparse_memory m;
            tree t = stage1_tree(m, r.form, input_bits);
            const unsigned size = r.form.covered(level);
            const u64 mask = (u64{1} << input_bits) - 1;
            const u64 input = 0x000a'5c3e'91d7'6b48 & mask;
            const u64 address = upper ? input | ~mask : input;
            const u64 output = u64{0x000b'6666'9999'c123} >> size << size;
            const u64 narrowed =
                r.form.ds || r.form.granule_bits == 16 ? output : output & 0xffff'ffff'ffff;
            t.map(input, leaf(r.form, narrowed, level), level);
            const translation_regimes regimes = stage1_of(t, 52, upper);
            const walk_result got = walk(m, regimes, address);
            if (level < r.highest_block) {
                CHECK(got.event == F_TRANSLATION);
                continue;
            }
            ++leaves;
            REQUIRE_FALSE(got.event);
            CHECK(got.size_log2 == size);
            CHECK(got.page_size_log2 == size);
            CHECK(got.input_base == address >> size << size);
            CHECK(got.output_base == narrowed);
            CHECK(m.loads == static_cast<unsigned>(level - start) + 1);
            // One bit more than the input size, and the other half.
            CHECK(walk(m, regimes, address ^ u64{1} << input_bits).event == F_TRANSLATION);
            CHECK(walk(m, regimes, ~address).event == F_TRANSLATION);
        }
    }
    CHECK(leaves > 20);
}

TEST_CASE("an input smaller than a page has no tables", "[smmu][walk]") {
    sparse_memory m;
    tree t{m, {16, false}, 16, 3, tables_at, tables_at};
    CHECK(walk(m, stage1_of(t), 0).event == F_TRANSLATION);
    CHECK(m.loads == 0);
}

TEST_CASE("features decide which forms there are", "[smmu][walk]") {
    // 64 KiB pages with 48-bit addresses: bits [15:12] mean nothing, level 1 has no blocks.
    static constexpr smmu_features small{.granule_64k = true, .output_bits = 48};
    sparse_memory m;
    const format f{16, false};
    tree t = stage1_tree(m, f, 48);
    t.map(0x1'0000, leaf(f, 0x4000'0000, 3) | 0xf000, 3);
    t.map(u64{1} << 44, leaf(f, 0, 1), 1);
    const translation_regimes r = stage1_of(t, 48);
    CHECK(walk<small>(m, r, 0x1'0000).output_base == 0x4000'0000);
    CHECK(walk<small>(m, r, u64{1} << 44).event == F_TRANSLATION);
    // The same bits are an address where 52-bit addresses exist.
    CHECK(walk(m, r, 0x1'0000).event == F_ADDR_SIZE);
    CHECK(walk(m, stage1_of(t, 52), 0x1'0000).output_base == 0x000f'0000'4000'0000);
    CHECK_FALSE(walk(m, r, u64{1} << 44).event);
}

TEST_CASE("addresses beyond the output size", "[smmu][walk]") {
    struct row {
        const char* what;
        format form;
        unsigned output_bits;
        u64 table, page;
        bool fault;
    };
    const auto r = GENERATE(
        row{"page fits exactly", {12, false}, 36, 0, 0xf'ffff'f000, false},
        row{"page one bit too large", {12, false}, 36, 0, 0x10'0000'0000, true},
        row{"table too large", {12, false}, 36, 0x10'0000'0000, 0x1000, true},
        row{"narrow form with IPS 52: 48 bits are all",
            {12, false},
            52,
            0,
            0xffff'ffff'f000,
            false},
        row{"DS page, bits [49:48]", {12, true}, 48, 0, 0x1'0000'0000'0000, true},
        row{"DS page, bits [51:50]", {12, true}, 48, 0, 0x4'0000'0000'0000, true},
        row{"DS page, all 52 bits", {12, true}, 52, 0, 0xf'ffff'ffff'f000, false},
        row{"DS table, all 52 bits", {14, true}, 52, 0xf'ffff'fff0'0000, 0x4000, false},
        row{"DS table, too large", {14, true}, 48, 0x8'0000'0000'0000, 0x4000, true},
        row{"64 KiB page, all 52 bits", {16, false}, 52, 0, 0xf'ffff'ffff'0000, false},
        row{"64 KiB page, IPS 48", {16, false}, 48, 0, 0x1'0000'0000'0000, true},
        row{"64 KiB table, all 52 bits", {16, false}, 52, 0xf'ffff'ff00'0000, 0x1'0000, false},
        row{"64 KiB table, IPS 44", {16, false}, 44, 0x1'0000'0000'0000, 0x1'0000, true});
    CAPTURE(r.what);
    sparse_memory m;
    tree t = stage1_tree(m, r.form, 42);
    if (r.table != 0) t.next = r.table;
    t.map(0x30000, leaf(r.form, r.page, 3), 3);
    const walk_result got = walk(m, stage1_of(t, r.output_bits), 0x30000);
    if (r.fault) {
        CHECK(got.event == F_ADDR_SIZE);
        CHECK_FALSE(got.stage2);
    } else {
        REQUIRE_FALSE(got.event);
        CHECK(got.output_base == r.page);
    }
}

TEST_CASE("the first table's base", "[smmu][walk]") {
    struct row {
        const char* what;
        format form;
        unsigned input_bits, output_bits;
        u64 noise; ///< set in the base, taken as zero
    };
    const auto r = GENERATE(row{"a whole page", {12, false}, 48, 48, 0xff0},
                            row{"8 descriptors", {12, false}, 42, 48, 0x30},
                            row{"2 descriptors", {12, false}, 40, 48, 0},
                            row{"2 descriptors, IPS 52 but no form for it", {12, false}, 40, 52, 0},
                            row{"2 descriptors, DS", {12, true}, 40, 48, 0x30},
                            row{"2 descriptors of 64 KiB, 52 bits", {16, false}, 43, 52, 0x30},
                            row{"4 descriptors of 16 KiB", {14, false}, 38, 48, 0x10},
                            row{"1024 descriptors of 64 KiB", {16, false}, 52, 52, 0x1ff0});
    CAPTURE(r.what);
    sparse_memory m;
    tree t = stage1_tree(m, r.form, r.input_bits);
    const u64 last = ((u64{1} << r.input_bits) - 1) & ~u64{0xffff};
    t.map(last, leaf(r.form, 0x5000'0000, 3), 3);
    translation_regimes regimes = stage1_of(t, r.output_bits);
    regimes.stage1.half[0].table |= r.noise;
    CHECK(walk(m, regimes, last).output_base == 0x5000'0000);
    // Aligned to 16 bytes alone, so the next place is another table's.
    if (r.noise == 0) {
        regimes.stage1.half[0].table |= 0x10;
        CHECK(walk(m, regimes, last).event == F_TRANSLATION);
    }
    regimes.stage1.half[0].table = u64{1} << 44;
    regimes.stage1.output_bits = 44;
    CHECK(walk(m, regimes, last).event == F_ADDR_SIZE);
}

TEST_CASE("what is not a descriptor, and what is not memory", "[smmu][walk]") {
    plain p;
    p.page(AF | AP1);
    const u64 good = p.memory.words[p.at];
    REQUIRE_FALSE(p.walk().event);
    SECTION("bit 0 clear") {
        p.memory.words[p.at] = good & ~u64{1};
        CHECK(p.walk().event == F_TRANSLATION);
    }
    SECTION("a block's kind at the last level") {
        p.memory.words[p.at] = good & ~u64{2};
        CHECK(p.walk().event == F_TRANSLATION);
    }
    SECTION("a hole where a table should be") {
        p.memory.hole = p.at & ~u64{0xffff};
        const walk_result r = p.walk();
        CHECK(r.event == F_WALK_EABT);
        CHECK(r.fetch_address == p.at);
        CHECK_FALSE(r.stage2);
    }
    SECTION("nT, PBHA and software's bits mean nothing") {
        p.memory.words[p.at] = good | u64{0xf} << 55 | u64{0xf} << 59 | u64{1} << 63;
        CHECK(p.walk().output_base == 0x4000'0000);
        p.t.map(0x4000'0000, leaf(p.t.form, 0x4000'0000, 2) | u64{1} << 16, 2);
        CHECK(walk(p.memory, p.regimes, 0x4000'0000).output_base == 0x4000'0000);
    }
    SECTION("a half that is switched off") {
        p.regimes.stage1.half[0].enabled = false;
        CHECK(p.walk().event == F_TRANSLATION);
    }
    SECTION("tables that point at themselves end") {
        for (u64 i = 0; i < 512; ++i)
            p.memory.words[tables_at + i * 8] = tables_at | 3;
        CHECK_FALSE(p.walk(privileged_read).event == F_TRANSLATION); // the last level is a page
        CHECK(p.memory.loads < 20);
    }
}

TEST_CASE("faults of one stage come in order", "[smmu][walk]") {
    // Each row adds what the next one lacks: the first of several reasons counts.
    plain p;
    p.regimes.stage1.output_bits = 36;
    const u64 far = u64{1} << 40;
    p.page(0);
    p.memory.words[p.at] = far | 2;
    CHECK(p.walk(user_write).event == F_TRANSLATION);
    p.memory.words[p.at] = far | AP2 | 3;
    CHECK(p.walk(user_write).event == F_ADDR_SIZE);
    p.memory.words[p.at] = AP2 | 3;
    CHECK(p.walk(user_write).event == F_ACCESS);
    p.memory.words[p.at] = AF | AP2 | 3;
    CHECK(p.walk(user_write).event == F_PERMISSION);
    p.memory.words[p.at] = AF | AP1 | 3;
    CHECK_FALSE(p.walk(user_write).event);
    p.memory.words[p.at] = AP1 | 3;
    p.regimes.stage1.access_flag_ignored = true;
    CHECK_FALSE(p.walk(user_write).event);
    CHECK(p.memory.exchanges == 0);
}

TEST_CASE("what a page allows", "[smmu][walk]") {
    constexpr u64 APTable0 = u64{1} << 61, APTable1 = u64{1} << 62;
    constexpr u64 XNTable = u64{1} << 60, PXNTable = u64{1} << 59;
    constexpr unsigned ur = user_read, uw = user_write, ux = user_execute;
    constexpr unsigned pr = privileged_read, pw = privileged_write, px = privileged_execute;
    struct row {
        const char* what;
        u64 page, table;
        unsigned allowed;
        bool wxn = false, pan = false, epan = false, flat = false, one = false;
    };
    const auto r = GENERATE(
        row{"privileged only", 0, 0, pr | pw | px | ux}, row{"all", AP1, 0, ur | uw | pr | pw | ux},
        row{"privileged, read-only", AP2, 0, pr | px | ux},
        row{"read-only", AP1 | AP2, 0, ur | pr | ux | px}, row{"UXN", UXN, 0, pr | pw | px},
        row{"PXN", PXN | AP2 | AP1, 0, ur | pr | ux},
        row{"both XN", PXN | UXN | AP1, 0, ur | uw | pr | pw},
        row{"WXN, writable by all", AP1, 0, ur | uw | pr | pw, true},
        row{"WXN, privileged only: others may execute", 0, 0, pr | pw | ux, true},
        row{"WXN, read-only", AP1 | AP2, 0, ur | pr | ux | px, true},
        row{"PAN, user page", AP1, 0, ur | uw | ux, false, true},
        row{"PAN, privileged page", UXN, 0, pr | pw | px, false, true},
        row{"PAN, user read-only: privileged execution stays", AP1 | AP2, 0, ur | ux | px, false,
            true},
        row{"PAN, execute-only", AP2, 0, pr | px | ux, false, true},
        row{"EPAN, execute-only", AP2, 0, px | ux, false, true, true},
        row{"EPAN without PAN", AP2, 0, pr | px | ux, false, false, true},
        row{"EPAN and XNTable: nothing to execute", AP2, XNTable, pr | px, false, true, true},
        row{"EPAN and WXN", 0, 0, ux, true, true, true},
        row{"APTable[0]", AP1, APTable0, pr | pw | px | ux},
        row{"APTable[1]", AP1, APTable1, ur | pr | ux | px},
        row{"APTable[1:0]", AP1, APTable0 | APTable1, pr | ux | px},
        row{"XNTable", AP1 | AP2, XNTable, ur | pr | px},
        row{"PXNTable", AP1 | AP2, PXNTable, ur | pr | ux},
        row{"HAD: table attributes are ignored", AP1 | AP2,
            APTable0 | APTable1 | XNTable | PXNTable, ur | pr | ux | px, false, false, false, true},
        row{"EL2: AP[1] and PXN mean nothing", PXN, 0, 0x3f, false, false, false, false, true},
        row{"EL2: APTable[0] and PXNTable mean nothing", 0, APTable0 | PXNTable, 0x3f, false, false,
            false, false, true},
        row{"EL2: read-only", AP2, 0, ur | pr | ux | px, false, false, false, false, true},
        row{"EL2: APTable[1]", 0, APTable1, ur | pr | ux | px, false, false, false, false, true},
        row{"EL2: XN", UXN, 0, ur | uw | pr | pw, false, false, false, false, true},
        row{"EL2: XNTable", 0, XNTable, ur | uw | pr | pw, false, false, false, false, true},
        row{"EL2: WXN", 0, 0, ur | uw | pr | pw, true, false, false, false, true},
        row{"EL2: PAN means nothing", AP1, 0, 0x3f, false, true, true, false, true});
    CAPTURE(r.what);
    plain p;
    p.page(AF | r.page, r.table);
    p.regimes.stage1.write_execute_never = r.wxn;
    p.regimes.stage1.privileged_access_never = r.pan;
    p.regimes.stage1.enhanced_pan = r.epan;
    p.regimes.stage1.one_privilege = r.one;
    p.regimes.stage1.half[0].flat_permissions = r.flat;
    for (unsigned needed = 1; needed <= 0x20; needed <<= 1) {
        CAPTURE(needed);
        const walk_result got = p.walk(needed);
        if ((r.allowed & needed) != 0) {
            REQUIRE_FALSE(got.event);
            CHECK(got.allowed.bits() == r.allowed);
        } else {
            CHECK(got.event == F_PERMISSION);
            CHECK_FALSE(got.stage2);
        }
    }
}

TEST_CASE("table attributes of every level add up", "[smmu][walk]") {
    plain p;
    p.page(AF | AP1);
    // The tables on the way: level 0, 1 and 2.
    const std::array<u64, 3> at{tables_at, tables_at + 0x10'0000, tables_at + 0x11'0000};
    const std::array<u64, 3> limit{u64{1} << 61, u64{1} << 60, u64{1} << 59};
    for (std::size_t i = 0; i < 3; ++i)
        p.memory.words[at[i]] |= limit[i];
    CHECK(p.walk(privileged_read).allowed.bits() == (privileged_read | privileged_write));
}

TEST_CASE("E0PD: unprivileged accesses see no tables at all", "[smmu][walk]") {
    plain p;
    p.page(AF | AP1 | AP2);
    p.regimes.stage1.half[0].user_forbidden = true;
    for (const unsigned needed : {user_read, user_write, user_execute})
        CHECK(p.walk(needed).event == F_TRANSLATION);
    CHECK(p.memory.loads == 0);
    // What is cached for others must not let them pass.
    CHECK(p.walk(privileged_read).allowed.bits() == (privileged_read | privileged_execute));
    p.regimes.stage1.half[0].user_forbidden = false;
    p.regimes.stage1.half[1].user_forbidden = true;
    CHECK_FALSE(p.walk(user_read).event);
}

TEST_CASE("global and not", "[smmu][walk]") {
    plain p;
    p.page(AF | AP1 | nG);
    CHECK_FALSE(p.walk().global);
    p.regimes.stage1.one_privilege = true; // no ASIDs there
    CHECK(p.walk().global);
    p.regimes.stage1.one_privilege = false;
    p.page(AF | AP1);
    CHECK(p.walk().global);
}

TEST_CASE("big-endian tables", "[smmu][walk]") {
    sparse_memory m;
    tree t = stage1_tree(m, {12, false, true}, 48);
    t.map(0x1000, leaf(t.form, 0x4000'0000, 3), 3);
    translation_regimes r = stage1_of(t, 48);
    CHECK(walk(m, r, 0x1000).output_base == 0x4000'0000);
    r.stage1.big_endian = false;
    CHECK(walk(m, r, 0x1000).event == F_TRANSLATION);
}

TEST_CASE("memory types and shareability of stage 1", "[smmu][walk]") {
    struct row {
        const char* what;
        u64 index, sh;
        memory_attributes expected;
    };
    //           Device-nGnRE at 0, write-back at 1, non-cacheable at 2, write-through at 7
    constexpr u64 mair = 0xbb00'0000'0044'ff04;
    const auto r = GENERATE_COPY(row{"write-back, inner", 1, 3, {0xff, 3}},
                                 row{"write-back, outer", 1, 2, {0xff, 2}},
                                 row{"write-back, not shared", 1, 0, {0xff, 0}},
                                 row{"write-back, reserved SH", 1, 1, {0xff, 0}},
                                 row{"Device is outer shareable", 0, 0, {0x04, 2}},
                                 row{"non-cacheable is outer shareable", 2, 3, {0x44, 2}},
                                 row{"the last byte", 7, 3, {0xbb, 3}});
    CAPTURE(r.what);
    plain p;
    p.regimes.stage1.memory_types = mair;
    p.page(AF | AP1 | r.index << 2 | r.sh << 8);
    CHECK(p.walk().attributes == r.expected);
    // With DS the descriptor has no SH: those bits are an address.
    sparse_memory m;
    tree t = stage1_tree(m, {12, true}, 48);
    t.map(0x1000, leaf(t.form, r.sh << 50 | 0x4000'0000, 3, AF | AP1 | r.index << 2), 3);
    translation_regimes ds = stage1_of(t);
    ds.stage1.memory_types = mair;
    ds.stage1.half[0].shareability = 2;
    CHECK(walk(m, ds, 0x1000).output_base == (r.sh << 50 | 0x4000'0000));
    CHECK(walk(m, ds, 0x1000).attributes == memory_attributes{r.expected.type, 2});
}

TEST_CASE("a contiguous run is one page, if it really is one", "[smmu][walk]") {
    struct row {
        format form;
        int level;
        unsigned more; ///< log2 of descriptors, 0 = the hint means nothing
    };
    const auto r = GENERATE(row{{12, false}, 3, 4}, row{{12, false}, 2, 4}, row{{12, false}, 1, 4},
                            row{{12, true}, 0, 0}, row{{14, false}, 3, 7}, row{{14, false}, 2, 5},
                            row{{14, true}, 1, 0}, row{{16, false}, 3, 5}, row{{16, false}, 2, 5},
                            row{{16, false}, 1, 0});
    CAPTURE(r.form.granule_bits, r.form.ds, r.level);
    sparse_memory m;
    tree t = stage1_tree(m, r.form, 48);
    const unsigned size = r.form.covered(r.level);
    const unsigned run = size + r.more;
    const u64 input = u64{1} << (run < 47 ? run : 46); // the second run
    const u64 output = r.level < 2 ? 0 : u64{7} << 36; // aligned to the run
    const u64 count = u64{1} << r.more;
    std::array<u64, 128> at{};
    for (u64 i = 0; i < count; ++i) {
        at[i] = t.map(input + (i << size),
                      leaf(r.form, output + (i << size), r.level, AF | AP1 | contiguous), r.level);
    }
    const translation_regimes regimes = stage1_of(t);
    const u64 inside = input + ((count - 1) << size);
    const walk_result got = walk(m, regimes, inside);
    REQUIRE_FALSE(got.event);
    CHECK(got.size_log2 == run);
    CHECK(output_of(got, inside) == output + ((count - 1) << size));
    CHECK(got.page_size_log2 == run);
    if (r.more == 0) return;
    // One of the run differs in one bit: every page is its own.
    const u64 good = m.words[at[3]];
    for (const u64 bit : {AF, AP2, contiguous, u64{1} << 47, u64{1}}) {
        m.words[at[3]] = good ^ bit;
        CHECK(walk(m, regimes, inside).size_log2 == size);
    }
    m.words[at[3]] = good;
    // All of them one page further on: the run is not aligned.
    for (u64 i = 0; i < count; ++i)
        m.words[at[i]] += u64{1} << size;
    CHECK(walk(m, regimes, inside).size_log2 == size);
    CHECK(walk(m, regimes, inside).output_base == output + (count << size));
}

TEST_CASE("a run does not reach beyond the output size", "[smmu][walk]") {
    sparse_memory m;
    tree t{m, {12, false}, 48, 0, 0x100'0000, 0x110'0000};
    for (u64 i = 0; i < 16; ++i) // 16 GiB, of which 4 are addresses
        t.map(i << 30, leaf(t.form, i << 30, 1, AF | AP1 | contiguous), 1);
    CHECK(walk(m, stage1_of(t, 36), 0x4000'0000).size_log2 == 34);
    CHECK(walk(m, stage1_of(t, 32), 0x4000'0000).size_log2 == 30);
    CHECK(walk(m, stage1_of(t, 32), u64{7} << 30).event == F_ADDR_SIZE);
}

TEST_CASE("a run is never larger than the input", "[smmu][walk]") {
    sparse_memory m;
    tree t = stage1_tree(m, {12, false}, 15); // 8 pages, and a run would be 16
    for (u64 i = 0; i < 8; ++i)
        t.map(i << 12, leaf(t.form, i << 12, 3, AF | AP1 | contiguous), 3);
    CHECK(walk(m, stage1_of(t), 0x3000).size_log2 == 12);
}

TEST_CASE("no stage at all", "[smmu][walk]") {
    sparse_memory m;
    const memory_attributes incoming{0x04, 2};
    const walk_result got = walk(m, {}, 0x1234'5678, user_write, incoming);
    CHECK(output_of(got, 0x1234'5678) == 0x1234'5678);
    CHECK(got.allowed == permissions::all());
    CHECK(got.attributes == incoming);
    CHECK(walk(m, {}, u64{1} << 52).event == F_ADDR_SIZE);
    CHECK(walk<stage1_features>(m, {}, u64{1} << 44).event == F_ADDR_SIZE);
    CHECK(m.loads == 0);
}
