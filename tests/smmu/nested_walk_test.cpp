// Stage-2 walks, and both stages together.
#include "table_builder.hpp"

#include <catch2/catch.hpp>

#include <cstdint>

using namespace tables;

namespace {

constexpr auto F_TRANSLATION = spec::event_id::F_TRANSLATION;
constexpr auto F_ADDR_SIZE = spec::event_id::F_ADDR_SIZE;
constexpr auto F_ACCESS = spec::event_id::F_ACCESS;
constexpr auto F_PERMISSION = spec::event_id::F_PERMISSION;
constexpr auto F_WALK_EABT = spec::event_id::F_WALK_EABT;
constexpr auto IN = spec::fault_class::IN;
constexpr auto TT = spec::fault_class::TT;

constexpr u64 S2R = u64{1} << 6, S2W = u64{1} << 7;
constexpr u64 write_back = u64{0xf} << 2; ///< MemAttr
constexpr u64 plain_leaf = AF | S2R | S2W | write_back | u64{3} << 8;
constexpr u64 stage2_at = 0x8'0000'0000;

tree stage2_tree(sparse_memory& m, format f, unsigned input_bits, int start) {
    return {m, f, input_bits, start, stage2_at, stage2_at + 0x100'0000};
}
/// Stage 2 alone, 4 KiB pages, 40 bits from level 1 (two tables in a row).
struct stage2_only {
    sparse_memory memory;
    tree t = stage2_tree(memory, {}, 40, 1);
    translation_regimes regimes;
    u64 at = 0;

    stage2_only() { add_stage2(regimes, t, 48); }
    void page(u64 more) { at = t.map(0x1000, leaf(t.form, 0x4000'0000, 3, more), 3); }
    walk_result walk(unsigned needed = user_read, memory_attributes incoming = {}) {
        return tables::walk(memory, regimes, 0x1234, needed, incoming);
    }
};

/// Both stages. Stage-1 tables are at IPA 0x10'0000 and up; stage 2 adds
/// `displaced` to tables with 64 KiB pages of its own.
struct nested {
    static constexpr u64 displaced = 0x7'0000'0000;
    static constexpr u64 root = 0x100'0000; // IPA
    sparse_memory memory;
    tree s1{memory, {}, 48, 0, root, root + 0x10'0000, displaced};
    tree s2 = stage2_tree(memory, {16, false}, 40, 2);
    translation_regimes regimes = stage1_of(s1, 48);
    u64 leaf_at = 0; ///< stage 1's leaf: IPA of its descriptor

    nested() {
        add_stage2(regimes, s2, 52);
        for (u64 ipa = root; ipa < root + 0x20'0000; ipa += 0x1'0000)
            stage2_page(ipa, ipa + displaced);
        stage1_page(0x4000'0000);
        stage2_page(0x4000'0000, 0x9'0000'0000);
    }
    void stage1_page(u64 ipa, u64 more = AF | AP1) {
        leaf_at = s1.map(0x1000, leaf(s1.form, ipa, 3, more), 3);
    }
    void stage2_page(u64 ipa, u64 output, u64 more = plain_leaf) {
        s2.map(ipa, leaf(s2.form, output, 3, more), 3);
    }
    walk_result walk(unsigned needed = user_read) {
        return tables::walk(memory, regimes, 0x1234, needed);
    }
};

} // namespace

TEST_CASE("stage 2 of each granule, size and start level", "[smmu][walk]") {
    struct row {
        format form;
        int highest_block;
    };
    const auto r = GENERATE(row{{12, false}, 1}, row{{12, true}, 0}, row{{14, false}, 2},
                            row{{14, true}, 1}, row{{16, false}, 1});
    CAPTURE(r.form.granule_bits, r.form.ds);
    unsigned concatenated = 0;
    for (unsigned input_bits = 16; input_bits <= (r.form.ds || r.form.granule_bits == 16 ? 52 : 48);
         ++input_bits) {
        for (int start = r.form.ds && r.form.granule_bits == 12 ? -1 : 0; start <= 3; ++start) {
            const unsigned stride = r.form.granule_bits - 3;
            const unsigned below = r.form.covered(start);
            if (input_bits <= below || input_bits > below + stride + 4) continue;
            if (input_bits > below + stride) ++concatenated;
            for (int level = start; level <= 3; ++level) {
                CAPTURE(input_bits, start, level);
                sparse_memory m;
                tree t = stage2_tree(m, r.form, input_bits, start);
                // The highest address: the last of the concatenated tables.
                const u64 ipa = ((u64{1} << input_bits) - 1) ^ 0x248;
                const unsigned size = r.form.covered(level);
                const u64 output = u64{0x0000'6666'9999'c123} >> size << size;
                t.map(ipa, leaf(r.form, output, level, plain_leaf & ~(r.form.ds ? u64{0x300} : 0)),
                      level);
                translation_regimes regimes;
                add_stage2(regimes, t);
                const walk_result got = walk(m, regimes, ipa);
                if (level < r.highest_block) {
                    CHECK(got.event == F_TRANSLATION);
                    CHECK(got.stage2);
                    continue;
                }
                REQUIRE_FALSE(got.event);
                CHECK(got.size_log2 == size);
                CHECK(got.output_base == output);
                CHECK(got.global);
                if (input_bits == 52) continue; // no larger IPA
                const unsigned loads = m.loads; // nothing is read beyond the first tables
                const walk_result beyond = walk(m, regimes, ipa | u64{1} << input_bits);
                CHECK(m.loads == loads);
                CHECK(beyond.event == F_TRANSLATION);
                CHECK(beyond.stage2);
                CHECK(beyond.cls == IN);
                CHECK(beyond.ipa == (ipa | u64{1} << input_bits));
            }
        }
    }
    CHECK(concatenated > 5);
}

TEST_CASE("a start level that does not fit the input is refused", "[smmu][walk]") {
    const auto [input_bits, start] =
        GENERATE(table<unsigned, int>({{48, 2}, {44, 2}, {38, 0}, {21, 1}}));
    sparse_memory m;
    tree t{m, {}, input_bits, start, stage2_at, stage2_at};
    translation_regimes regimes;
    add_stage2(regimes, t);
    CHECK(walk(m, regimes, 0x1000).event == F_TRANSLATION);
    CHECK(m.loads == 0);
}

TEST_CASE("stage 2: the first tables' base", "[smmu][walk]") {
    stage2_only s;
    s.page(plain_leaf);
    s.regimes.stage2.table |= 0x1ff0; // two tables: aligned to 8 KiB
    CHECK_FALSE(s.walk().event);
    s.regimes.stage2.table |= 0x2000;
    CHECK(s.walk().event == F_TRANSLATION);
    s.regimes.stage2.table = u64{1} << 48;
    const walk_result r = s.walk();
    CHECK(r.event == F_ADDR_SIZE);
    CHECK(r.stage2);
}

TEST_CASE("input to stage 2 alone", "[smmu][walk]") {
    stage2_only s;
    // Beyond the output size nothing is an address: a fault of stage 1 (IHI 0070, 3.4).
    const walk_result large = walk(s.memory, s.regimes, u64{1} << 52);
    CHECK(large.event == F_ADDR_SIZE);
    CHECK_FALSE(large.stage2);
    const walk_result beyond = walk(s.memory, s.regimes, u64{1} << 40);
    CHECK(beyond.event == F_TRANSLATION);
    CHECK(beyond.stage2);
}

TEST_CASE("what a stage-2 page allows", "[smmu][walk]") {
    static constexpr smmu_features without_xnx = [] {
        smmu_features f = full_features;
        f.xnx = false;
        return f;
    }();
    constexpr unsigned r_ = user_read | privileged_read, w_ = user_write | privileged_write;
    constexpr unsigned ux = user_execute, px = privileged_execute;
    struct row {
        const char* what;
        u64 ap;
        unsigned xn;
        unsigned allowed, without;
    };
    const auto r = GENERATE(row{"all", S2R | S2W, 0, r_ | w_ | ux | px, r_ | w_ | ux | px},
                            row{"none: execution does not ask for read", 0, 0, ux | px, ux | px},
                            row{"read", S2R, 2, r_, r_}, row{"write", S2W, 2, w_, w_},
                            row{"privileged execution never", S2R, 1, r_ | ux, r_ | ux | px},
                            row{"unprivileged execution never", S2R, 3, r_ | px, r_});
    CAPTURE(r.what);
    stage2_only s;
    s.page(AF | r.ap | u64{r.xn} << 53 | write_back);
    for (unsigned needed = 1; needed <= 0x20; needed <<= 1) {
        CAPTURE(needed);
        const walk_result got = s.walk(needed);
        CHECK(got.event.has_value() == ((r.allowed & needed) == 0));
        if (got.event) {
            CHECK(got.event == F_PERMISSION);
            CHECK(got.stage2);
            CHECK(got.ipa == 0x1234);
        } else {
            CHECK(got.allowed.bits() == r.allowed);
        }
        CHECK(walk<without_xnx>(s.memory, s.regimes, 0x1234, needed).event.has_value() ==
              ((r.without & needed) == 0));
    }
}

TEST_CASE("faults of stage 2 come in order", "[smmu][walk]") {
    stage2_only s;
    s.regimes.stage2.output_bits = 36;
    const u64 far = u64{1} << 40;
    s.page(0);
    const auto with = [&](u64 word) {
        s.memory.words[s.at] = word;
        const walk_result r = s.walk(user_write);
        CHECK((r.stage2 || !r.event));
        return r.event;
    };
    CHECK(with(far | 2) == F_TRANSLATION);
    CHECK(with(far | 3) == F_ADDR_SIZE);
    CHECK(with(3) == F_ACCESS);
    CHECK(with(AF | S2R | 3) == F_PERMISSION);
    CHECK_FALSE(with(AF | S2W | 3));
    s.regimes.stage2.access_flag_ignored = true;
    CHECK_FALSE(with(S2W | 3));
    s.memory.hole = s.at & ~u64{0xffff};
    const walk_result r = s.walk();
    CHECK(r.event == F_WALK_EABT);
    CHECK(r.stage2);
    CHECK(r.fetch_address == s.at);
    CHECK(r.ipa == 0x1234);
}

TEST_CASE("both stages: output, permissions and the smaller page", "[smmu][walk]") {
    nested n;
    SECTION("stage 1's page is smaller") {
        n.stage1_page(0x4000'3000);
        const walk_result r = n.walk();
        CHECK(output_of(r, 0x1234) == 0x9'0000'3234);
        CHECK(r.size_log2 == 12);
        CHECK(r.page_size_log2 == 12);
        CHECK(r.input_base == 0x1000);
        // 4 stage-1 descriptors, each behind 2 of stage 2, and the output's own 2.
        CHECK(n.memory.loads == 4 * 3 + 2);
    }
    SECTION("stage 1's page is larger: a piece of it, and invalidation knows the page") {
        n.s1.map(0x20'0000, leaf(n.s1.form, 0x4000'0000, 2), 2);
        n.stage2_page(0x4003'0000, 0xa'0000'0000);
        const u64 address = 0x20'0000 + 0x3'4568;
        const walk_result r = walk(n.memory, n.regimes, address);
        CHECK(output_of(r, address) == 0xa'0000'4568);
        CHECK(r.size_log2 == 16);
        CHECK(r.page_size_log2 == 21);
        CHECK(r.input_base == 0x20'0000 + 0x3'0000);
        CHECK(r.output_base == 0xa'0000'0000);
    }
    SECTION("what both allow, and stage 1's nG") {
        n.stage1_page(0x4000'0000, AF | AP1 | nG | UXN);
        n.stage2_page(0x4000'0000, 0x9'0000'0000, AF | S2R | write_back | u64{1} << 53);
        const walk_result r = n.walk();
        CHECK(r.allowed.bits() == (user_read | privileged_read));
        CHECK_FALSE(r.global);
    }
    SECTION("upper half") {
        n.regimes.stage1.half[1] = n.regimes.stage1.half[0];
        n.regimes.stage1.half[0].enabled = false;
        const u64 address = 0xffff'0000'0000'1234;
        const walk_result r = walk(n.memory, n.regimes, address);
        CHECK(output_of(r, address) == 0x9'0000'0234);
        CHECK(r.input_base == 0xffff'0000'0000'1000);
    }
}

TEST_CASE("both stages: who refuses", "[smmu][walk]") {
    nested n;
    const u64 ipa = 0x4000'0234;
    SECTION("stage 1's permission comes before stage 2 sees the output") {
        n.stage1_page(0x5000'0000, AF | AP1 | AP2); // stage 2 has nothing there
        CHECK(n.walk(user_write).event == F_PERMISSION);
        CHECK_FALSE(n.walk(user_write).stage2);
        const walk_result r = n.walk(user_read);
        CHECK(r.event == F_TRANSLATION);
        CHECK(r.stage2);
        CHECK(r.cls == IN);
        CHECK(r.ipa == 0x5000'0234);
    }
    SECTION("stage 2's permission on the output") {
        n.stage2_page(0x4000'0000, 0x9'0000'0000, plain_leaf & ~S2W);
        const walk_result r = n.walk(user_write);
        CHECK(r.event == F_PERMISSION);
        CHECK(r.stage2);
        CHECK(r.cls == IN);
        CHECK(r.ipa == ipa);
    }
    SECTION("an IPA that stage 2 does not reach") {
        n.stage1_page(u64{1} << 40);
        const walk_result r = n.walk();
        CHECK(r.event == F_TRANSLATION);
        CHECK(r.stage2);
    }
    SECTION("an IPA beyond stage 1's output size") {
        n.regimes.stage1.output_bits = 36;
        n.stage1_page(u64{1} << 36);
        CHECK(n.walk().event == F_ADDR_SIZE);
        CHECK_FALSE(n.walk().stage2);
    }
    SECTION("a stage-1 table that stage 2 does not map, at each level") {
        for (int level = 0; level < 4; ++level) {
            const u64 table =
                level == 0 ? nested::root : nested::root + 0x10'0000 + u64(level - 1) * 0x1'0000;
            nested fresh;
            fresh.stage2_page(table, 0, 0);
            fresh.s2.map(table, 0, 3);
            const walk_result r = fresh.walk();
            CAPTURE(level);
            CHECK(r.event == F_TRANSLATION);
            CHECK(r.stage2);
            CHECK(r.cls == TT);
            CHECK_FALSE(r.table_write);
            CHECK(r.ipa == (level == 3 ? fresh.leaf_at : table));
        }
    }
    SECTION("a stage-1 table that may not be read, or was never accessed") {
        n.stage2_page(n.leaf_at & ~u64{0xffff}, nested::displaced, AF | S2W | write_back);
        CHECK(n.walk().event == F_PERMISSION);
        CHECK(n.walk().cls == TT);
        n.stage2_page(n.leaf_at & ~u64{0xffff}, nested::displaced, S2R | write_back);
        CHECK(n.walk().event == F_ACCESS);
        CHECK(n.walk().cls == TT);
        CHECK(n.walk().ipa == n.leaf_at);
    }
    SECTION("execute-never of stage 2 does not matter to tables") {
        n.stage2_page(n.leaf_at & ~u64{0xffff}, (n.leaf_at & ~u64{0xffff}) + nested::displaced,
                      plain_leaf | u64{2} << 53);
        CHECK_FALSE(n.walk().event);
    }
    SECTION("a hole behind stage 1's table: the physical address, and it is stage 1's") {
        n.memory.hole = (n.leaf_at & ~u64{0xffff}) + nested::displaced;
        const walk_result r = n.walk();
        CHECK(r.event == F_WALK_EABT);
        CHECK(r.fetch_address == n.leaf_at + nested::displaced);
        CHECK_FALSE(r.stage2);
    }
    SECTION("a hole where stage 2's table is") {
        n.memory.hole = stage2_at;
        const walk_result r = n.walk();
        CHECK(r.event == F_WALK_EABT);
        CHECK(r.stage2);
        CHECK(r.cls == TT);
        CHECK(r.ipa == nested::root);
    }
}

TEST_CASE("S2PTW: stage-1 tables in Device memory", "[smmu][walk]") {
    const bool protect = GENERATE(false, true);
    const unsigned type = GENERATE(0U, 3U, 5U, 15U); // two Device types, two Normal ones
    nested n;
    n.regimes.stage2.protected_tables = protect;
    const u64 page = n.leaf_at & ~u64{0xffff};
    n.stage2_page(page, page + nested::displaced, AF | S2R | u64{type} << 2);
    const walk_result r = n.walk();
    if (protect && type < 4) {
        CHECK(r.event == F_PERMISSION);
        CHECK(r.stage2);
        CHECK(r.cls == TT);
        CHECK(r.ipa == n.leaf_at);
    } else {
        CHECK_FALSE(r.event);
    }
    // The output may be Device memory.
    n.stage2_page(page, page + nested::displaced);
    n.stage2_page(0x4000'0000, 0x9'0000'0000, AF | S2R);
    CHECK(n.walk().attributes == memory_attributes{0x00, 2});
}

TEST_CASE("S2PTW with S2FWB: MemAttr[2] tells Device memory", "[smmu][walk]") {
    const unsigned type = GENERATE(0U, 3U, 5U, 6U, 7U, 8U, 11U);
    nested n;
    n.regimes.stage2.protected_tables = n.regimes.stage2.decides_types = true;
    const u64 page = n.leaf_at & ~u64{0xffff};
    n.stage2_page(page, page + nested::displaced, AF | S2R | u64{type} << 2);
    const walk_result r = n.walk();
    CHECK(r.event.has_value() == ((type & 4) == 0));
    if (r.event) CHECK((r.event == F_PERMISSION && r.stage2 && r.cls == TT));
}

namespace {

struct types_row {
    const char* what;
    memory_attributes incoming;
    unsigned type, sh; ///< stage 2's MemAttr and SH
    memory_attributes expected;
};

} // namespace

TEST_CASE("S2FWB: stage 2 decides about memory types", "[smmu][walk]") {
    const auto r = GENERATE(
        types_row{"stage 1's write-back", {0xff, 3}, 7, 3, {0xff, 3}},
        types_row{"stage 1's write-through", {0xbb, 0}, 7, 0, {0xbb, 0}},
        types_row{"stage 1's mixture, as it is", {0x4f, 3}, 7, 3, {0x4f, 3}},
        types_row{"stage 1's non-cacheable", {0x44, 2}, 7, 3, {0x44, 2}},
        types_row{"stage 1's Device", {0x08, 2}, 7, 3, {0x08, 2}},
        types_row{"stage 1's tagged", {0xf0, 3}, 7, 3, {0xf0, 3}},
        types_row{"forced: write-back keeps its hints", {0xde, 3}, 6, 3, {0xde, 3}},
        types_row{"forced: write-through", {0xba, 3}, 6, 3, {0xfe, 3}},
        types_row{"forced: transient stays transient", {0x31, 3}, 6, 3, {0x75, 3}},
        types_row{
            "forced: non-cacheable, and not outer shareable for it", {0x44, 0}, 6, 3, {0xff, 3}},
        types_row{"forced: non-cacheable outside only", {0x4e, 3}, 6, 3, {0xfe, 3}},
        types_row{"forced: Device", {0x04, 0}, 6, 3, {0xff, 3}},
        types_row{"forced: tagged", {0xf0, 3}, 6, 3, {0xf0, 3}},
        types_row{"non-cacheable for write-back", {0xff, 3}, 5, 3, {0x44, 2}},
        types_row{"non-cacheable for tagged", {0xf0, 3}, 5, 3, {0x44, 2}},
        types_row{"not for Device", {0x0c, 2}, 5, 3, {0x0c, 2}},
        types_row{"reserved: like non-cacheable", {0xff, 3}, 4, 3, {0x44, 2}},
        types_row{"Device for Normal", {0xff, 3}, 1, 3, {0x04, 2}},
        types_row{"Device: the stricter of both, stage 1's", {0x04, 2}, 2, 3, {0x04, 2}},
        types_row{"Device: the stricter of both, stage 2's", {0x0c, 2}, 1, 3, {0x04, 2}},
        types_row{"bit 3 says nothing", {0xbb, 3}, 0xe, 3, {0xff, 3}},
        types_row{"bit 3 says nothing about Device", {0xff, 3}, 0xa, 3, {0x08, 2}},
        types_row{"the larger shareability", {0xff, 3}, 6, 2, {0xff, 2}},
        types_row{"stage 1's counts when it is larger", {0xff, 2}, 6, 0, {0xff, 2}});
    CAPTURE(r.what);
    stage2_only s;
    s.regimes.stage2.decides_types = true;
    s.page(AF | S2R | u64{r.type} << 2 | u64{r.sh} << 8);
    CHECK(s.walk(user_read, r.incoming).attributes == r.expected);
}

TEST_CASE("memory types of both stages", "[smmu][walk]") {
    const auto r = GENERATE(
        types_row{"write-back of both", {0xff, 3}, 0xf, 3, {0xff, 3}},
        types_row{"stage 1's hints stay", {0xef, 0}, 0xf, 0, {0xef, 0}},
        types_row{"outer shareable wins", {0xff, 3}, 0xf, 2, {0xff, 2}},
        types_row{"inner over none", {0xff, 0}, 0xf, 3, {0xff, 3}},
        types_row{"reserved SH is none", {0xff, 0}, 0xf, 1, {0xff, 0}},
        types_row{"stage 2 write-through", {0xff, 3}, 0xa, 3, {0xbb, 3}},
        types_row{"stage 2 write-through inside only", {0xff, 3}, 0xe, 3, {0xfb, 3}},
        types_row{
            "transient write-back becomes transient write-through", {0x77, 3}, 0xa, 3, {0x33, 3}},
        types_row{"stage 1 write-through", {0xbb, 3}, 0xf, 3, {0xbb, 3}},
        types_row{"stage 2 non-cacheable", {0xff, 3}, 0x5, 3, {0x44, 2}},
        types_row{"non-cacheable inside only", {0xff, 3}, 0xd, 3, {0xf4, 3}},
        types_row{"stage 1 non-cacheable", {0x44, 2}, 0xf, 0, {0x44, 2}},
        types_row{"stage 2 Device", {0xff, 3}, 0x1, 3, {0x04, 2}},
        types_row{"stage 1 Device", {0x0c, 2}, 0xf, 3, {0x0c, 2}},
        types_row{"Device GRE and non-cacheable", {0x0c, 2}, 0x5, 3, {0x0c, 2}},
        types_row{"Device: the stricter of both, stage 1's", {0x04, 2}, 0x2, 3, {0x04, 2}},
        types_row{"Device: the stricter of both, stage 2's", {0x0c, 2}, 0x2, 3, {0x08, 2}},
        types_row{"Device-nGnRnE", {0x0c, 2}, 0x0, 0, {0x00, 2}},
        types_row{"tagged", {0xf0, 3}, 0xf, 3, {0xf0, 3}},
        types_row{"tagged, and stage 2 write-through", {0xf0, 3}, 0xa, 3, {0xbb, 3}});
    CAPTURE(r.what);
    stage2_only s;
    s.page(AF | S2R | u64{r.type} << 2 | u64{r.sh} << 8);
    CHECK(s.walk(user_read, r.incoming).attributes == r.expected);
    nested n;
    n.regimes.stage1.memory_types = u64{r.incoming.type} << 16;
    n.stage1_page(0x4000'0000, AF | AP1 | u64{2} << 2 | u64{r.incoming.shareability} << 8);
    n.stage2_page(0x4000'0000, 0x9'0000'0000, AF | S2R | u64{r.type} << 2 | u64{r.sh} << 8);
    CHECK(n.walk().attributes == r.expected);
}

TEST_CASE("S2SH0 counts with the DS form", "[smmu][walk]") {
    sparse_memory m;
    tree t = stage2_tree(m, {12, true}, 40, 1);
    t.map(0x1000, leaf(t.form, 0xc'0000'4000'0000, 3, AF | S2R | write_back), 3);
    translation_regimes regimes;
    add_stage2(regimes, t);
    regimes.stage2.shareability = 0;
    const walk_result r = walk(m, regimes, 0x1000, user_read, {0xff, 0});
    CHECK(r.output_base == 0xc'0000'4000'0000);
    CHECK(r.attributes == memory_attributes{0xff, 0});
}

TEST_CASE("stage 2 big-endian, stage 1 not", "[smmu][walk]") {
    sparse_memory m;
    tree s1{m, {}, 48, 0, 0x100'0000, 0x110'0000, 0};
    tree s2 = stage2_tree(m, {12, false, true}, 40, 1);
    s2.map(0, leaf(s2.form, 0, 1, plain_leaf), 1); // 1 GiB, one to one
    s1.map(0x1000, leaf(s1.form, 0x7000, 3), 3);
    translation_regimes regimes = stage1_of(s1, 48);
    add_stage2(regimes, s2, 48);
    CHECK(walk(m, regimes, 0x1000).output_base == 0x7000);
}

TEST_CASE("contiguous runs under two stages", "[smmu][walk]") {
    nested n;
    for (u64 i = 0; i < 16; ++i)
        n.s1.map(0x1'0000 + i * 0x1000,
                 leaf(n.s1.form, 0x4000'0000 + i * 0x1000, 3, AF | AP1 | contiguous), 3);
    const walk_result r = walk(n.memory, n.regimes, 0x1'5678);
    CHECK(r.size_log2 == 16);
    CHECK(r.page_size_log2 == 16);
    CHECK(output_of(r, 0x1'5678) == 0x9'0000'5678);
    // 32 pages of stage 2 in a row, for the output.
    for (u64 i = 0; i < 32; ++i)
        n.stage2_page(0x4000'0000 + i * 0x1'0000, 0xc'0000'0000 + i * 0x1'0000,
                      plain_leaf | contiguous);
    n.s1.map(0x20'0000, leaf(n.s1.form, 0x4000'0000, 2), 2);
    const walk_result large = walk(n.memory, n.regimes, 0x2f'5678);
    CHECK(large.size_log2 == 21);
    CHECK(output_of(large, 0x2f'5678) == 0xc'000f'5678);
}

TEST_CASE("tables of both stages that go in circles end", "[smmu][walk]") {
    sparse_memory m;
    for (u64 i = 0; i < 512; ++i)
        m.words[i * 8] = AF | S2R | 3; // every descriptor: table 0, or page 0
    tree s1{m, {12, true}, 52, -1, 0, 0};
    tree s2{m, {12, true}, 52, -1, 0, 0};
    translation_regimes regimes = stage1_of(s1, 52);
    add_stage2(regimes, s2, 52);
    CHECK_FALSE(walk(m, regimes, 0x1234).event);
    CHECK(m.loads == 5 * 6 + 5);
}
