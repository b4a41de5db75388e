// One suite for every TLB policy.
#include "smmu/tlb_every_policy.hpp"

#include <catch2/catch.hpp>

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <tuple>
#include <utility>

using namespace vm_accel;
using namespace tlb_tests;

namespace {

void finds_exactly(any_tlb& tlb) {
    if (tlb.capacity == 0) {
        tlb.put(entry_at(0x1000));
        CHECK_FALSE(tlb.lookup({0x1000, context_a, all_sizes}));
        return;
    }
    const auto [base, size] =
        GENERATE(table<std::uint64_t, std::uint8_t>({{0x1000, 12},
                                                     {0xffff'ffff'ffff'f000, 12},
                                                     {0x4020'0000, 21},
                                                     {0xffff'ffff'c000'0000, 30},
                                                     {0, 30}}));
    const std::uint64_t bytes = std::uint64_t{1} << size;
    tlb.put(entry_at(base, size));
    for (const std::uint64_t offset : {std::uint64_t{0}, bytes / 2, bytes - 1}) {
        const auto hit = tlb.lookup({base + offset, context_a, all_sizes});
        REQUIRE(hit);
        CHECK(hit->host == host_of(0x7000'0000'0000 + base));
        CHECK(hit->output == 0x4000'0000 + base);
        CHECK(hit->size_log2 == size);
        CHECK(hit->allowed.bits() == (permissions::user_read | permissions::privileged_write));
    }
    CHECK_FALSE(tlb.lookup({base - 1, context_a, all_sizes}));
    CHECK_FALSE(tlb.lookup({base + bytes, context_a, all_sizes}));
    CHECK_FALSE(tlb.lookup({base, context_b, all_sizes}));
    CHECK_FALSE(tlb.lookup({base, context_a + 1, all_sizes})); // another generation
    CHECK_FALSE(tlb.lookup({base, context_a, all_sizes & ~bytes}));
}

void invalidates_exactly(any_tlb& tlb) {
    using kind = invalidation_scope::kind;
    struct row {
        const char* what;
        invalidation_scope scope;
        bool page, other_space, global, block;
    };
    const translation_tag other{stream_world::ns_el1, vmid{3}, asid{6}};
    const auto by = [](kind what, translation_tag tag, std::uint64_t first, std::uint64_t last) {
        invalidation_scope s;
        s.what = what;
        s.tag = tag;
        s.first = first;
        s.last = last;
        return s;
    };
    // What is left of: a page, the same page of another ASID, a global page of
    // that ASID, and a block, all in VMID 3.
    const auto r = GENERATE_COPY(
        row{"everything", invalidation_scope::all(), false, false, false, false},
        row{"the world", invalidation_scope::all_of(stream_world::ns_el1), false, false, false,
            false},
        row{"another world", invalidation_scope::all_of(stream_world::ns_el2), true, true, true,
            true},
        row{"the VMID", invalidation_scope::all_of(stream_world::ns_el1, vmid{3}), false, false,
            false, false},
        row{"another VMID", invalidation_scope::all_of(stream_world::ns_el1, vmid{4}), true, true,
            true, true},
        row{"the ASID", invalidation_scope::all_of(tag_a), false, true, true, false},
        row{"an address", by(kind::address, tag_a, 0x3000, 0x3fff), false, true, true, true},
        row{"an address of another ASID, global too", by(kind::address, other, 0x5000, 0x5fff),
            true, true, false, true},
        row{"a global page by any ASID", by(kind::address, tag_a, 0x5000, 0x5fff), true, true,
            false, true},
        row{"an address of any ASID", by(kind::any_space, tag_a, 0x3000, 0x3fff), false, false,
            true, true},
        row{"an address inside the block", by(kind::address, tag_a, 0x4030'3000, 0x4030'3fff), true,
            true, true, false},
        row{"the last byte of the block", by(kind::address, tag_a, 0x403f'f000, 0x403f'ffff), true,
            true, true, false},
        row{"just below the block", by(kind::address, tag_a, 0x401f'f000, 0x401f'ffff), true, true,
            true, true},
        row{"just above the block", by(kind::address, tag_a, 0x4040'0000, 0x4040'0fff), true, true,
            true, true},
        row{"a range that is no power of two", by(kind::address, tag_a, 0x1000, 0x3fff), false,
            true, true, true},
        row{"a range that stops short", by(kind::address, tag_a, 0x1000, 0x2fff), true, true, true,
            true},
        row{"the whole input space", by(kind::any_space, tag_a, 0, ~0ULL), false, false, false,
            false},
        row{"an address of another VMID",
            by(kind::any_space, {stream_world::ns_el1, vmid{9}, asid{5}}, 0, ~0ULL), true, true,
            true, true},
        row{"the context", {.what = kind::context, .context_index = 1}, false, true, true, false});
    CAPTURE(r.what);
    const tlb_entry page = entry_at(0x3000);
    const tlb_entry other_space = entry_at(0x3000, 12, context_b, other);
    tlb_entry global = entry_at(0x5000, 12, context_b, other);
    global.global = true;
    const tlb_entry block = entry_at(0x4020'0000, 21);
    // One at a time, so that the small policies can hold it.
    const auto left = [&](const tlb_entry& e) {
        tlb.put(e);
        const bool there = tlb.lookup({e.base, e.context, all_sizes}).has_value();
        CHECK(there == (tlb.capacity != 0));
        tlb.invalidate(r.scope);
        return tlb.lookup({e.base, e.context, all_sizes}).has_value();
    };
    const bool caches = tlb.capacity != 0;
    CHECK(left(page) == (r.page && caches));
    CHECK(left(other_space) == (r.other_space && caches));
    CHECK(left(global) == (r.global && caches));
    CHECK(left(block) == (r.block && caches));
}

void removes_pieces(any_tlb& tlb) {
    // Of a 2 MiB block that crosses a window's edge.
    struct row {
        std::uint64_t first, last;
        bool stays;
    };
    const auto r = GENERATE(row{0x403f'f000, 0x403f'ffff, false}, // behind the piece
                            row{0x4020'0000, 0x4020'0fff, false}, // before it
                            row{0x4020'5000, 0x4020'5fff, false},
                            row{0x401f'f000, 0x401f'ffff, true}, // the block before
                            row{0x4040'0000, 0x4040'0fff, true});
    tlb_entry piece = entry_at(0x4020'5000);
    piece.guest_size_log2 = 21;
    tlb.put(piece);
    CHECK(tlb.lookup({0x4020'5000, context_a, all_sizes}).has_value() == (tlb.capacity != 0));
    tlb.invalidate(invalidation_scope::addresses(tag_a, r.first, r.last, true));
    CHECK(tlb.lookup({0x4020'5000, context_a, all_sizes}).has_value() ==
          (r.stays && tlb.capacity != 0));
}

void drops_late_fills(any_tlb& tlb) {
    const auto scope = GENERATE(invalidation_scope::all(),
                                invalidation_scope::addresses(tag_a, 0x3000, 0x3fff, true),
                                invalidation_scope::all_of(tag_a));
    const tlb_entry e = entry_at(0x3000);
    const fill_ticket early = tlb.begin_fill({e.base, e.context, 0});
    tlb.invalidate(scope);
    tlb.fill(early, e);
    CHECK_FALSE(tlb.lookup({e.base, e.context, all_sizes}));
    // A fill that began afterwards is good.
    tlb.put(e);
    CHECK(tlb.lookup({e.base, e.context, all_sizes}).has_value() == (tlb.capacity != 0));
}

void evicts_one(any_tlb& tlb) {
    const std::size_t capacity = tlb.capacity;
    const auto count = [&](std::uint64_t pages) {
        std::size_t found = 0;
        for (std::uint64_t p = 0; p < pages; ++p) {
            found += tlb.lookup({p << 12, context_a, 1ULL << 12}).has_value() ? 1 : 0;
        }
        return found;
    };
    for (std::uint64_t p = 0; p < capacity; ++p)
        tlb.put(entry_at(p << 12));
    CHECK(count(capacity) == capacity);
    const auto is_full = [&](std::size_t found) {
        return found >= capacity && found <= capacity + tlb.beyond;
    };
    for (std::uint64_t extra = 0; extra < 3; ++extra) {
        tlb.put(entry_at((capacity + extra) << 12));
        CHECK(is_full(count(capacity + extra + 1)));
        const bool there =
            tlb.lookup({(capacity + extra) << 12, context_a, 1ULL << 12}).has_value();
        CHECK(there == (capacity != 0));
    }
}

void replaces(any_tlb& tlb) {
    tlb.put(entry_at(0x3000));
    tlb_entry again = entry_at(0x3000);
    again.output = 0x9999'9000;
    tlb.put(again);
    const auto hit = tlb.lookup({0x3000, context_a, all_sizes});
    CHECK(hit.has_value() == (tlb.capacity != 0));
    if (hit) CHECK(hit->output == 0x9999'9000);
}

} // namespace

TEMPLATE_LIST_TEST_CASE("TLB: what was filled is found, exactly", "[tlb]", every_policy) {
    finds_exactly(*std::make_unique<tlb_model<TestType>>());
}

TEMPLATE_LIST_TEST_CASE("TLB: an invalidation removes what its scope covers", "[tlb]",
                        every_policy) {
    invalidates_exactly(*std::make_unique<tlb_model<TestType>>());
}

TEMPLATE_LIST_TEST_CASE("TLB: pieces of a page go with the whole page", "[tlb]", every_policy) {
    removes_pieces(*std::make_unique<tlb_model<TestType>>());
}

TEMPLATE_LIST_TEST_CASE("TLB: a fill that an invalidation overtook is dropped", "[tlb]",
                        every_policy) {
    drops_late_fills(*std::make_unique<tlb_model<TestType>>());
}

TEMPLATE_LIST_TEST_CASE("TLB: full means evict one", "[tlb]", every_policy) {
    evicts_one(*std::make_unique<tlb_model<TestType>>());
}

TEMPLATE_LIST_TEST_CASE("TLB: refilling a page replaces its entry", "[tlb]", every_policy) {
    replaces(*std::make_unique<tlb_model<TestType>>());
}

TEMPLATE_TEST_CASE("TLB: prepared look-ups find what was found before, exactly", "[tlb]",
                   (set_associative<16, 4>), (set_associative<16, 4, lru>),
                   (set_associative<4, 7, ::vm_accel::random>), (set_duelling<32, 4>),
                   direct_mapped<16>, (prefetching<set_associative<16, 4>>),
                   (two_level<direct_mapped<16>, fully_associative<4>>),
                   (partitioned<set_associative<16, 4>, 3>)) {
    const auto tlb = std::make_unique<TestType>();
    constexpr unsigned read = permissions::user_read;
    constexpr std::uint64_t page = 0xffff'ffff'ffff'5000;
    const auto finds = [&](std::uint64_t address, unsigned needed,
                           std::uint64_t context = context_a, unsigned size_log2 = 12) {
        return tlb->look_quickly(TestType::prepare(context, size_log2), address,
                                 address >> size_log2 << size_log2, TestType::asks_for(needed));
    };
    tlb_entry e = entry_at(page);
    e.attributes = {0x44, 2};
    SECTION("memory") {
        tlb->fill(tlb->begin_fill({page, context_a, 0}), e);
        REQUIRE(tlb->lookup({page, context_a, all_sizes})); // tells the replacement policy
        for (const std::uint64_t offset : {0U, 0x123U, 0xfffU}) {
            const quick_hit hit = finds(page + offset, read);
            REQUIRE(hit.found);
            CHECK(hit.host == e.host + offset);
            CHECK(hit.output == e.output);
            CHECK(hit.attributes == e.attributes);
        }
        CHECK(finds(page, permissions::privileged_write).found);
        CHECK_FALSE(finds(page, permissions::user_write).found);
        CHECK_FALSE(finds(page, permissions::user_execute).found);
        CHECK_FALSE(finds(page, read, context_b).found);
        CHECK_FALSE(finds(page, read, context_a + 1).found); // another generation
        CHECK_FALSE(finds(page, read, context_a, 21).found);
        CHECK_FALSE(finds(page + 0x1000, read).found);
        CHECK_FALSE(finds(page - 1, read).found);
        // Same low bits, as with a top byte that is ignored.
        CHECK_FALSE(finds(page & 0x00ff'ffff'ffff'ffff, read).found);
        tlb->invalidate(invalidation_scope::addresses(tag_a, page, page, true));
        CHECK_FALSE(finds(page, read).found);
    }
    SECTION("what is not memory") {
        e.host = nullptr;
        tlb->fill(tlb->begin_fill({page, context_a, 0}), e);
        REQUIRE(tlb->lookup({page, context_a, all_sizes}));
        CHECK_FALSE(finds(page, read).found);
    }
}

TEST_CASE("clock keeps what was hit by prepared look-ups", "[tlb]") {
    using tlb_type = set_associative<1, 4, ::vm_accel::clock>;
    tlb_type tlb;
    const auto put = [&](std::uint64_t page) {
        tlb.fill(tlb.begin_fill({page << 12, context_a, 0}), entry_at(page << 12));
    };
    // As a port does: quickly first.
    const auto finds = [&](std::uint64_t page) {
        return tlb.look_quickly(tlb_type::prepare(context_a, 12), page << 12, page << 12,
                                tlb_type::asks_for(permissions::user_read))
                   .found ||
               tlb.lookup({page << 12, context_a, all_sizes});
    };
    for (std::uint64_t page = 0; page < 4; ++page)
        put(page);
    for (std::uint64_t round = 0; round < 16; ++round) {
        REQUIRE(finds(0));
        put(round + 4);
        CHECK(finds(0));
    }
}

namespace {

/// Takes turns, with something happening in the middle of each fill.
struct interposed : fifo {
    static inline std::function<void()> meanwhile;
    static void filled(std::atomic<std::uint32_t>&, unsigned) noexcept {
        if (meanwhile) std::exchange(meanwhile, nullptr)();
    }
};

} // namespace

TEST_CASE("an entry that is being filled is none, and is left empty if it is invalidated",
          "[tlb]") {
    using tlb_type = set_associative<1, 1, interposed>;
    tlb_type tlb;
    const auto finds = [&](std::uint64_t page) {
        return tlb.lookup({page, context_a, all_sizes}).has_value() ||
               tlb.look_quickly(tlb_type::prepare(context_a, 12), page, page, tlb_type::asks_for(0))
                   .found;
    };
    const auto put = [&](std::uint64_t page) {
        tlb.fill(tlb.begin_fill({page, context_a, 0}), entry_at(page));
    };
    put(0x1000);
    REQUIRE(finds(0x1000));
    bool called = false;
    SECTION("looked up") {
        interposed::meanwhile = [&] {
            called = !finds(0x1000) && !finds(0x2000);
            put(0x3000); // dropped
        };
        put(0x2000);
        CHECK_FALSE(finds(0x1000));
        CHECK(finds(0x2000));
        CHECK_FALSE(finds(0x3000));
    }
    SECTION("invalidated") {
        const auto scope = GENERATE(invalidation_scope::all(),
                                    invalidation_scope::addresses(tag_a, 0x2000, 0x2fff, true),
                                    invalidation_scope::addresses(tag_a, 0x1000, 0x1fff, true));
        interposed::meanwhile = [&] {
            tlb.invalidate(scope);
            tlb.invalidate(scope);
            called = !finds(0x1000) && !finds(0x2000);
        };
        put(0x2000);
        CHECK_FALSE(finds(0x1000));
        CHECK_FALSE(finds(0x2000));
        put(0x2000);
        CHECK(finds(0x2000));
    }
    CHECK(called);
}

TEST_CASE("an entry that had to go elsewhere comes home, and is found quickly then", "[tlb]") {
    using tlb_type = set_associative<1, 4, ::vm_accel::clock>;
    tlb_type tlb;
    const auto found = [&](std::uint64_t page) {
        const bool quickly =
            tlb.look_quickly(tlb_type::prepare(context_a, 12), page << 12, page << 12,
                             tlb_type::asks_for(permissions::user_read))
                .found;
        const auto hit = tlb.lookup({(page << 12) + 8, context_a, all_sizes});
        REQUIRE(hit);
        CHECK(hit->host == entry_at(page << 12).host);
        return quickly;
    };
    // Both have one home.
    for (const std::uint64_t page : {4U, 8U})
        tlb.fill(tlb.begin_fill({page << 12, context_a, 0}), entry_at(page << 12));
    CHECK_FALSE(found(4));
    CHECK(found(4));
    CHECK_FALSE(found(8));
    for (int i = 0; i < 16; ++i)
        (void)found(8);
    CHECK(found(8));
    CHECK_FALSE(found(4));
    tlb.invalidate(invalidation_scope::addresses(tag_a, 0x8000, 0x8fff, true));
    CHECK_FALSE(tlb.lookup({0x8000, context_a, all_sizes}));
    CHECK(tlb.lookup({0x4000, context_a, all_sizes}));
}
