// The walk cache: what it keeps, what takes it away, and that nobody notices it
// but by the time that walks take. The device has no TLB here: every access
// walks, from what is known.
#include "guest_driver.hpp"

#include <catch2/catch.hpp>

#include <array>
#include <cstdint>
#include <optional>
#include <string>

using namespace vm_accel;

namespace {

using u64 = std::uint64_t;
using S = spec::ste;
using scope = invalidation_scope;

constexpr u64 page = 0x1000;

// ---- the cache by itself --------------------------------------------------------------------

using small = walk_cache<16, 16>;

constexpr translation_tag tag_of(stream_world world, std::uint16_t vm, std::uint16_t space) {
    return {world, vmid{vm}, asid{space}};
}
constexpr walk_owner owner_of(const translation_tag& tag, u64 context) {
    return walk_owner::of(context, tag);
}

constexpr translation_tag first_tag = tag_of(stream_world::ns_el1, 3, 5);
constexpr translation_tag stage2_tag = tag_of(stream_world::stage2, 3, 0);
constexpr walk_owner first = owner_of(first_tag, u64{7} << 32 | 1);
constexpr walk_owner second = owner_of(stage2_tag, u64{8} << 32 | 1);

} // namespace

TEST_CASE("a word is found by its owner, prefix and size", "[smmu][walk_cache]") {
    small cache;
    const walk_ticket now = cache.begin();
    cache.keep_table(now, first, 0x4060'1000, 21, 0x1234'5000);
    cache.keep_page(now, second, 0x8000'1000, 12, 0x1234'5fff);
    CHECK(cache.find_table(first, 0x4060'1000, 21) == 0x1234'5000);
    CHECK(cache.find_table(first, 0x407f'ffff, 21) == 0x1234'5000);
    CHECK_FALSE(cache.find_table(first, 0x4080'0000, 21));
    CHECK_FALSE(cache.find_table(first, 0x405f'ffff, 21));
    CHECK_FALSE(cache.find_table(first, 0x4060'1000, 30));
    CHECK_FALSE(cache.find_table(first, 0x4060'1000, 12));
    CHECK_FALSE(cache.find_table(owner_of(first_tag, u64{7} << 32 | 2), 0x4060'1000, 21));
    CHECK_FALSE(cache.find_page(first, 0x4060'1000, 21));
    CHECK(cache.find_page(second, 0x8000'1fff, 12) == 0x1234'5fff);
    CHECK_FALSE(cache.find_page(second, 0x8000'2000, 12));
    CHECK_FALSE(cache.find_table(second, 0x8000'1000, 12));
    // The newer word takes the place.
    cache.keep_table(now, first, 0x4060'1000, 21, 0);
    CHECK(cache.find_table(first, 0x4060'1000, 21) == 0U);
}

TEST_CASE("invalidations by address find what they cover", "[smmu][walk_cache]") {
    struct row {
        const char* what;
        scope s;
        bool keeps_table;
        bool keeps_page;
    };
    const auto addresses = [](translation_tag tag, u64 from, u64 to, bool leaf) {
        return scope::addresses(tag, from, to, leaf);
    };
    const auto any = [&](translation_tag tag, u64 from, u64 to, bool leaf) {
        scope s = scope::addresses(tag, from, to, leaf);
        s.what = scope::kind::any_space;
        return s;
    };
    const auto r = GENERATE_COPY(
        row{"VA in the table's reach", addresses(first_tag, 0x4070'0000, 0x4070'0fff, false), false,
            true},
        row{"its leaves only", addresses(first_tag, 0x4070'0000, 0x4070'0fff, true), true, true},
        row{"VAA", any(tag_of(stream_world::ns_el1, 3, 0), 0x4060'0000, 0x4060'0fff, false), false,
            true},
        row{"below", addresses(first_tag, 0x4000'0000, 0x405f'ffff, false), true, true},
        row{"above", addresses(first_tag, 0x4080'0000, 0x40ff'ffff, false), true, true},
        row{"a range that ends inside", addresses(first_tag, 0, 0x4060'0000, false), false, true},
        row{"a range over everything", addresses(first_tag, 0, ~u64{0}, false), false, true},
        row{"S2_IPA", any(stage2_tag, 0x8000'1000, 0x8000'1fff, false), true, false},
        row{"S2_IPA, leaves only", any(stage2_tag, 0x8000'1000, 0x8000'1fff, true), true, false},
        row{"S2_IPA beside it", any(stage2_tag, 0x8000'2000, 0x8000'2fff, true), true, true},
        row{"everything", scope::all(), false, false});
    CAPTURE(r.what);
    walk_cache<> cache;
    const walk_ticket now = cache.begin();
    cache.keep_table(now, first, 0x4060'1000, 21, 0x1000);
    cache.keep_page(now, second, 0x8000'1000, 12, 0x2000);
    cache.invalidate(r.s);
    CHECK(cache.find_table(first, 0x4060'1000, 21).has_value() == r.keeps_table);
    CHECK(cache.find_page(second, 0x8000'1000, 12).has_value() == r.keeps_page);
    // A walk that began before comes too late, for what the invalidation may cover.
    cache.keep_table(now, first, 0x4060'1000, 21, 0x3000);
    cache.keep_page(now, second, 0x8000'1000, 12, 0x4000);
    if (!r.keeps_table) CHECK_FALSE(cache.find_table(first, 0x4060'1000, 21));
    if (!r.keeps_page) CHECK_FALSE(cache.find_page(second, 0x8000'1000, 12));
    const walk_ticket later = cache.begin();
    cache.keep_table(later, first, 0x4060'1000, 21, 0x3000);
    cache.keep_page(later, second, 0x8000'1000, 12, 0x4000);
    CHECK(cache.find_table(first, 0x4060'1000, 21) == 0x3000U);
    CHECK(cache.find_page(second, 0x8000'1000, 12) == 0x4000U);
}

TEST_CASE("every world, VMID and ASID is found where it was kept", "[smmu][walk_cache]") {
    for (const stream_world world : {stream_world::ns_el1, stream_world::ns_el2,
                                     stream_world::ns_el2_e2h, stream_world::stage2}) {
        for (const std::uint16_t vm : {std::uint16_t{0}, std::uint16_t{1}, std::uint16_t{0xffff}}) {
            for (const std::uint16_t space :
                 {std::uint16_t{0}, std::uint16_t{1}, std::uint16_t{0xffff}}) {
                if (space != 0 && world == stream_world::stage2) continue;
                walk_cache<> cache;
                const translation_tag tag = tag_of(world, vm, space);
                const walk_owner owner = owner_of(tag, 1);
                cache.keep_table(cache.begin(), owner, u64{0x1ff} << 39, 39, 0x1000);
                cache.invalidate(scope::addresses(tag, u64{0x1ff} << 39, u64{0x1ff} << 39, false));
                CHECK_FALSE(cache.find_table(owner, u64{0x1ff} << 39, 39));
            }
        }
    }
}

// ---- the whole device -----------------------------------------------------------------------

namespace {

struct everything : default_smmu_options {
    static constexpr smmu_features features = full_features;
};

/// One stream behind stage 1, or behind both; its driver makes mistakes on purpose.
/// Stage 2 maps RAM one to one, the first 2 MiB by pages.
struct bench {
    static constexpr std::uint32_t sid = 0x10;
    static constexpr vmid vm{7};
    static constexpr asid space{1};
    using machine = guest::machine<no_tlb, everything>;

    explicit bench(bool both) : nested(both) {
        m.start();
        root = m.take_pages();
        cd = m.take_pages();
        m.store(cd, m.plain_cd(root, raw(space)));
        tables = m.take_pages();
        blocks = m.take_pages();
        pages = m.take_pages();
        m.store64(tables + 8, blocks | 3);
        m.store64(blocks, pages | 3);
        for (u64 i = 1; i < guest::ram_bytes >> 21; ++i)
            m.store64(blocks + 8 * i, (guest::ram + (i << 21)) | stage2_flags | 1);
        for (u64 i = 0; i < 512; ++i)
            m.store64(stage2_slot(guest::ram + i * page),
                      (guest::ram + i * page) | stage2_flags | 3);
        m.store(m.ste_address(sid), ste());
        m.command(spec::cmd_cfgi_ste(stream_id{sid}, true));
        m.sync();
        REQUIRE(m.iommu().attach_device("disk", m.all_of_ram, stream_id{sid}));
        port.emplace(m.iommu().make_port("disk").value());
    }
    S ste() const {
        S e = machine::plain_ste(
            nested ? spec::ste_config::s1_s2_translate : spec::ste_config::s1_translate, cd);
        set<S::S2VMID>(e, raw(vm));
        set<S::S2T0SZ>(e, 25);
        set<S::S2SL0>(e, 1);
        set<S::S2PS>(e, 5);
        set<S::S2AA64>(e, 1);
        set<S::S2HA>(e, 1);
        set<S::S2HD>(e, 1);
        set<S::S2TTB>(e, tables >> 4);
        return e;
    }
    u64 stage2_slot(u64 ipa) const { return pages + ((ipa - guest::ram) >> 12) * 8; }
    u64 slot(u64 address, int level) { return m.descriptor_slot(root, address, level); }
    void command(const spec::command& c) {
        m.command(c);
        m.sync();
    }
    /// Where an access goes, or 0 if it is refused.
    u64 reach(u64 address, vm_accel::access kind = vm_accel::access::read,
              access_attributes with = {}) {
        auto guard = port->open();
        const outcome o = guard.translate(iova{address}, 1, kind, with);
        return o.is_fault() ? 0 : raw(o.address());
    }

    static constexpr u64 stage2_flags = 0x7c | 0x80 | 0x300 | 0x400; // cacheable, writable, AF

    bool nested;
    machine m;
    u64 root = 0, cd = 0, tables = 0, blocks = 0, pages = 0;
    std::optional<machine::device::port> port;
};

constexpr u64 at = 0x12'3456'7000;

} // namespace

TEST_CASE("a walk goes on from the lowest table that is known", "[smmu][walk_cache]") {
    const bool nested = GENERATE(false, true);
    bench b{nested};
    const u64 first_page = b.m.take_pages(2);
    b.m.map(b.root, at, first_page);
    b.m.map(b.root, at + page, first_page + page);
    const u64 other = at + (u64{1} << 21);
    b.m.map(b.root, other, first_page);
    const u64 far = at + (u64{1} << 30);
    b.m.map(b.root, far, first_page);
    CHECK(b.reach(at) == first_page);
    // What nobody reads can be anything: a driver must not do this.
    b.m.store64(b.slot(at, 0), 0);
    CHECK(b.reach(at + page) == first_page + page);
    CHECK(b.reach(other) == 0);
    CHECK(b.reach(far) == 0);
    // No access has been through a known table of level 2 that is wrong for it.
    CHECK(b.reach(at + (u64{1} << 22)) == 0);
    // Diagnosis looks at memory, and leaves nothing.
    CHECK_FALSE(b.m.iommu().translate_dma_addr("disk", iova{at}, 1, vm_accel::access::read));
    b.command(b.nested ? spec::tlbi_nh_all(bench::vm) : spec::tlbi_nsnh_all());
    CHECK(b.reach(at) == 0);
}

TEST_CASE("a table that was replaced is forgotten as the command says", "[smmu][walk_cache]") {
    struct row {
        const char* what;
        spec::command command;
        bool forgets;
    };
    const bool nested = GENERATE(false, true);
    const int level = GENERATE(0, 1, 2);
    const vmid vm = bench::vm;
    const auto r = GENERATE_COPY(
        row{"NH_VA", spec::tlbi_nh_va(vm, bench::space, iova{at}, false), true},
        row{"NH_VA of a neighbour", spec::tlbi_nh_va(vm, bench::space, iova{at + page}, false),
            true},
        row{"NH_VAA", spec::tlbi_nh_vaa(vm, iova{at}, false), true},
        row{"NH_VA, leaf", spec::tlbi_nh_va(vm, bench::space, iova{at}, true), false},
        row{"NH_VA of another ASID", spec::tlbi_nh_va(vm, asid{2}, iova{at}, false), false},
        row{"NH_VA of another VMID", spec::tlbi_nh_va(vmid{8}, bench::space, iova{at}, false),
            false},
        row{"NH_ASID", spec::tlbi_nh_asid(vm, bench::space), true},
        row{"NH_ASID of another", spec::tlbi_nh_asid(vm, asid{2}), false},
        row{"NH_ALL", spec::tlbi_nh_all(vm), true},
        row{"NH_ALL of another VMID", spec::tlbi_nh_all(vmid{8}), false},
        row{"S12_VMALL", spec::tlbi_s12_vmall(vm), true},
        row{"NSNH_ALL", spec::tlbi_nsnh_all(), true});
    CAPTURE(nested, level, r.what);
    bench b{nested};
    const u64 old_page = b.m.take_pages();
    const u64 new_page = b.m.take_pages();
    b.m.map(b.root, at, old_page);
    CHECK(b.reach(at) == old_page);
    b.m.store64(b.slot(at, level), 0);
    b.m.map(b.root, at, new_page);
    b.command(r.command);
    CHECK(b.reach(at) == (r.forgets ? new_page : old_page));
}

TEST_CASE("what tables impose is known with them", "[smmu][walk_cache]") {
    using T = spec::stage1_table;
    struct row {
        const char* what;
        u64 bits;
        vm_accel::access kind;
        access_attributes with;
    };
    access_attributes privileged_fetch;
    privileged_fetch.privileged = privileged_fetch.instruction = true;
    access_attributes fetch;
    fetch.instruction = true;
    const auto r = GENERATE_COPY(
        row{"APTable: no writes", T::APTable::in_place(2), vm_accel::access::write, {}},
        row{"APTable: no users", T::APTable::in_place(1), vm_accel::access::read, {}},
        row{"UXNTable", T::XNTable::mask, vm_accel::access::read, fetch},
        row{"PXNTable", T::PXNTable::mask, vm_accel::access::read, privileged_fetch});
    const int level = GENERATE(0, 1, 2);
    const bool nested = GENERATE(false, true);
    CAPTURE(r.what, level, nested);
    bench b{nested};
    const u64 target = b.m.take_pages();
    guest::page_flags flags;
    flags.user_execute_never = false;
    flags.privileged_execute_never = false;
    flags.user = !r.with.privileged;
    b.m.map(b.root, at, target, 3, flags);
    b.m.map(b.root, at + (u64{1} << 21), target, 3, flags);
    b.m.store64(b.slot(at, level), b.m.load64(b.slot(at, level)) | r.bits);
    access_attributes allowed;
    allowed.privileged = true;
    REQUIRE(b.reach(at, vm_accel::access::read, allowed) == target);
    CHECK(b.reach(at, r.kind, r.with) == 0);
    // Another table of level 3 is under the other limits only.
    CHECK((b.reach(at + (u64{1} << 21), r.kind, r.with) == 0) == (level < 2));
}

TEST_CASE("faults are never known", "[smmu][walk_cache]") {
    const bool nested = GENERATE(false, true);
    const int level = GENERATE(0, 1, 2, 3);
    CAPTURE(nested, level);
    bench b{nested};
    const u64 target = b.m.take_pages();
    b.m.map(b.root, at, target);
    const u64 good = b.m.load64(b.slot(at, level));
    b.m.store64(b.m.descriptor_slot(b.root, at, level), 0);
    CHECK(b.reach(at) == 0);
    b.m.store64(b.m.descriptor_slot(b.root, at, level), good);
    CHECK(b.reach(at) == target);
}

TEST_CASE("two VMIDs with one ASID and one address do not meet", "[smmu][walk_cache]") {
    bench b{true};
    const u64 target = b.m.take_pages();
    const u64 theirs = b.m.take_pages();
    b.m.map(b.root, at, target);
    const u64 root = b.m.take_pages();
    const u64 cd = b.m.take_pages();
    b.m.map(root, at, theirs);
    b.m.store(cd, b.m.plain_cd(root, raw(bench::space)));
    S e = b.ste();
    set<S::S2VMID>(e, 8);
    set<S::S1ContextPtr>(e, cd >> S::S1ContextPtr::low);
    b.m.store(b.m.ste_address(0x11), e);
    REQUIRE(b.m.iommu().attach_device("other", b.m.all_of_ram, stream_id{0x11}));
    auto other = b.m.iommu().make_port("other").value();
    for (int i = 0; i < 2; ++i) {
        CHECK(b.reach(at) == target);
        auto guard = other.open();
        CHECK(raw(guard.translate(iova{at}, 1, vm_accel::access::read).address()) == theirs);
    }
}

TEST_CASE("what stage 2 gave is forgotten by IPA and by VMID", "[smmu][walk_cache]") {
    struct row {
        const char* what;
        spec::command command;
        bool forgets;
    };
    // The page of the data, or of a table on the way to it: both by 4 KiB pages.
    const int moved = GENERATE(0, 1, 2, 3, 4);
    CAPTURE(moved);
    bench b{true};
    const u64 target = b.m.take_pages();
    b.m.map(b.root, at, target);
    const u64 ipa =
        moved == 4 ? target : b.slot(at, moved) & ~(page - 1); // of what moves to another page
    const u64 copy = b.m.take_pages();
    const u64 decoy = b.m.take_pages();
    for (u64 i = 0; i < page; i += 8)
        b.m.store64(copy + i, b.m.load64(ipa + i));
    const vmid vm = bench::vm;
    const auto r =
        GENERATE_COPY(row{"S2_IPA", spec::tlbi_s2_ipa(vm, vm_accel::ipa{ipa}, false), true},
                      row{"S2_IPA, leaf", spec::tlbi_s2_ipa(vm, vm_accel::ipa{ipa}, true), true},
                      row{"S12_VMALL", spec::tlbi_s12_vmall(vm), true},
                      row{"NSNH_ALL", spec::tlbi_nsnh_all(), true},
                      row{"another VMID", spec::tlbi_s12_vmall(vmid{8}), false},
                      row{"stage 1 alone", spec::tlbi_nh_asid(vm, asid{2}), false});
    CAPTURE(r.what);
    REQUIRE(b.reach(at) == target);
    b.m.store64(b.stage2_slot(ipa), copy | bench::stage2_flags | 3);
    if (moved < 4) {
        // The table's new page leads elsewhere.
        const u64 in_copy = copy + (b.slot(at, moved) & (page - 1));
        b.m.store64(in_copy, moved == 3 ? (b.m.load64(in_copy) & (page - 1)) | decoy : 0);
    }
    b.command(r.command);
    const u64 fresh = moved == 4 ? copy : moved == 3 ? decoy : 0;
    CHECK(b.reach(at) == (r.forgets ? fresh : target));
}

TEST_CASE("known pages of stage 2 hide no update of flags", "[smmu][walk_cache]") {
    using L = spec::stage2_leaf;
    bench b{true};
    const u64 target = b.m.take_pages();
    b.m.map(b.root, at, target);
    const u64 leaf = b.stage2_slot(target);
    const u64 clean = (b.m.load64(leaf) & ~(L::AF::mask | L::S2AP::in_place(2))) | L::DBM::mask;
    SECTION("a page is read, then written") {
        b.m.store64(leaf, clean);
        CHECK(b.reach(at) == target);
        CHECK(b.m.load64(leaf) == (clean | L::AF::mask));
        CHECK(b.reach(at, vm_accel::access::write) == target);
        CHECK(b.m.load64(leaf) == (clean | L::AF::mask | L::S2AP::in_place(2)));
    }
    SECTION("a block is read, then written") {
        const u64 in_block = guest::ram + (u64{2} << 21) + 0x5000;
        const u64 block_slot = b.blocks + u64{2} * 8;
        const u64 clean_block = (b.m.load64(block_slot) & ~L::S2AP::in_place(2)) | L::DBM::mask;
        b.m.store64(block_slot, clean_block);
        b.m.map(b.root, at + page, in_block);
        CHECK(b.reach(at + page) == in_block);
        CHECK(b.m.load64(block_slot) == clean_block);
        CHECK(b.reach(at + page, vm_accel::access::write) == in_block);
        CHECK(b.m.load64(block_slot) == (clean_block | L::S2AP::in_place(2)));
    }
    SECTION("a prefetch leaves flags, and knows nothing of the page") {
        b.m.store64(leaf, clean);
        spec::command c = spec::make_command(spec::opcode::CMD_PREFETCH_ADDR);
        set<spec::CMD_PREFETCH::StreamID>(c, bench::sid);
        c.word[1] = le64{at};
        b.command(c);
        CHECK(b.m.load64(leaf) == clean);
        CHECK(b.reach(at) == target);
        CHECK(b.m.load64(leaf) == (clean | L::AF::mask));
    }
    SECTION("the flag of a table's page is set again after it was cleared") {
        const u64 table_leaf = b.stage2_slot(b.slot(at, 2));
        CHECK(b.reach(at) == target);
        b.m.store64(table_leaf, b.m.load64(table_leaf) & ~L::AF::mask);
        b.command(spec::tlbi_s2_ipa(bench::vm, vm_accel::ipa{b.slot(at, 2) & ~(page - 1)}, true));
        CHECK(b.reach(at) == target);
        CHECK((b.m.load64(table_leaf) & L::AF::mask) != 0);
    }
    SECTION("a table's page that is clean is marked before a flag in it is set") {
        spec::cd c = bench::machine::plain_cd(b.root, raw(bench::space));
        set<spec::cd::HA>(c, 1);
        b.m.store(b.cd, c);
        b.command(spec::cmd_cfgi_cd(stream_id{bench::sid}, substream_id{0}, true));
        const u64 table_leaf = b.stage2_slot(b.slot(at, 3));
        const u64 clean_table = (b.m.load64(table_leaf) & ~L::S2AP::in_place(2)) | L::DBM::mask;
        b.m.store64(table_leaf, clean_table);
        b.m.map(b.root, at + page, target);
        CHECK(b.reach(at) == target);
        CHECK(b.m.load64(table_leaf) == clean_table);
        b.m.store64(b.slot(at + page, 3), b.m.load64(b.slot(at + page, 3)) & ~L::AF::mask);
        CHECK(b.reach(at + page) == target);
        CHECK(b.m.load64(table_leaf) == (clean_table | L::S2AP::in_place(2)));
    }
}

TEST_CASE("stage-1 tables in Device memory fault in spite of what is known", "[smmu][walk_cache]") {
    bench b{true};
    const u64 target = b.m.take_pages();
    b.m.map(b.root, at, target);
    // The same page is a table, and data by another way.
    const u64 table = b.slot(at, 3) & ~(page - 1);
    const u64 far = at + (u64{1} << 30);
    b.m.map(b.root, far, table);
    const u64 leaf = b.stage2_slot(table);
    b.m.store64(leaf, b.m.load64(leaf) & ~spec::stage2_leaf::MemAttr::mask);
    S e = b.ste();
    set<S::S2PTW>(e, 1);
    b.m.store(b.m.ste_address(bench::sid), e);
    b.command(spec::cmd_cfgi_ste(stream_id{bench::sid}, true));
    CHECK(b.reach(far) == table);
    CHECK(b.reach(at) == 0);
}

TEST_CASE("the VMM forgets a stream with all that was known for it", "[smmu][walk_cache]") {
    const bool nested = GENERATE(false, true);
    bench b{nested};
    const u64 target = b.m.take_pages();
    b.m.map(b.root, at, target);
    CHECK(b.reach(at) == target);
    b.m.store64(b.slot(at, 1), 0);
    CHECK(b.reach(at) == target);
    REQUIRE(b.m.iommu().invalidate_tlb(stream_id{bench::sid}));
    CHECK(b.reach(at) == 0);
}
