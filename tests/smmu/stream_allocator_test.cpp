/// The contract of stream_allocator, over every model of it.
#include <vm_accel/smmu/host/bitmap_streams.hpp>
#include <vm_accel/smmu/host/lockfree_streams.hpp>
#include <vm_accel/smmu/host/pci_streams.hpp>
#include <vm_accel/smmu/host/range_streams.hpp>

#include <catch2/catch.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <set>
#include <tuple>
#include <utility>

using namespace vm_accel;

namespace {

using models = std::tuple<bitmap_streams<1>, bitmap_streams<64>, bitmap_streams<100>,
                          bitmap_streams<65536>, lockfree_streams<1>, lockfree_streams<64>,
                          lockfree_streams<100>, lockfree_streams<65534>, range_streams<1>,
                          range_streams<100>, range_streams<65536, best_fit>,
                          pci_streams<pci_layout{.base = 36, .buses = 1}>, pci_streams<>>;

} // namespace

TEMPLATE_LIST_TEST_CASE("every StreamID is allocated once, and then there are none", "", models) {
    const auto streams = std::make_unique<TestType>();
    std::set<std::uint32_t> seen;
    for (std::size_t i = 0; i < TestType::capacity; ++i) {
        const result<stream_id> id = streams->allocate();
        if (!id || raw(*id) >= TestType::capacity || !seen.insert(raw(*id)).second) {
            FAIL("allocation " << i << " failed, repeated or left the range");
        }
    }
    CHECK(seen.size() == TestType::capacity);
    const result<stream_id> none = streams->allocate();
    REQUIRE_FALSE(none);
    CHECK(none.error() == errc::exhausted);
    CHECK_FALSE(none.error().cure.empty());
}

TEMPLATE_LIST_TEST_CASE("a released StreamID can be had again, by either way", "", models) {
    const auto streams = std::make_unique<TestType>();
    while (streams->allocate()) {}
    const stream_id last{TestType::capacity - 1};
    REQUIRE(streams->release(last));
    CHECK_FALSE(streams->is_held(last));
    CHECK(streams->allocate().value() == last);
    CHECK(streams->is_held(last));
    CHECK(streams->allocate().error() == errc::exhausted);
    REQUIRE(streams->release(last));
    CHECK(streams->reserve(last));
    CHECK(streams->allocate().error() == errc::exhausted);
}

TEMPLATE_LIST_TEST_CASE("a reserved StreamID is never allocated", "", models) {
    const auto streams = std::make_unique<TestType>();
    const stream_id taken{TestType::capacity / 2};
    REQUIRE(streams->reserve(taken));
    CHECK(streams->is_held(taken));
    CHECK(streams->reserve(taken).error() == errc::already_exists);
    std::size_t others = 0;
    for (result<stream_id> id = streams->allocate(); id; id = streams->allocate()) {
        if (*id == taken) FAIL("the reserved StreamID was given away");
        ++others;
    }
    CHECK(others == TestType::capacity - 1);
}

TEMPLATE_LIST_TEST_CASE("an allocated StreamID cannot be reserved", "", models) {
    const auto streams = std::make_unique<TestType>();
    const stream_id id = streams->allocate().value();
    CHECK(streams->reserve(id).error() == errc::already_exists);
    REQUIRE(streams->release(id));
    CHECK(streams->reserve(id));
}

TEMPLATE_LIST_TEST_CASE("reserving and releasing again and again loses and doubles nothing", "",
                        models) {
    const auto streams = std::make_unique<TestType>();
    const stream_id id{0};
    for (int i = 0; i < 1000; ++i) {
        REQUIRE(streams->reserve(id));
        REQUIRE(streams->release(id));
    }
    std::set<std::uint32_t> seen;
    for (result<stream_id> next = streams->allocate(); next; next = streams->allocate()) {
        if (!seen.insert(raw(*next)).second) FAIL("StreamID " << raw(*next) << " was given twice");
    }
    CHECK(seen.size() == TestType::capacity);
}

TEMPLATE_LIST_TEST_CASE("wrong use is an error and changes nothing", "", models) {
    const auto streams = std::make_unique<TestType>();
    const stream_id beyond{static_cast<std::uint32_t>(TestType::capacity)};
    const stream_id far_beyond{0xffff'ffff};
    for (const stream_id id : {beyond, far_beyond}) {
        CHECK(streams->reserve(id).error() == errc::out_of_range);
        CHECK(streams->release(id).error() == errc::out_of_range);
        CHECK_FALSE(streams->is_held(id));
    }
    CHECK(streams->release(stream_id{0}).error() == errc::not_found);
    REQUIRE(streams->reserve(stream_id{0}));
    REQUIRE(streams->release(stream_id{0}));
    CHECK(streams->release(stream_id{0}).error() == errc::not_found);
    std::size_t count = 0;
    while (streams->allocate())
        ++count;
    CHECK(count == TestType::capacity);
}

TEST_CASE("bitmap_streams gives the lowest free StreamID") {
    bitmap_streams<200> streams;
    REQUIRE(streams.reserve(stream_id{1}));
    CHECK(streams.allocate().value() == stream_id{0});
    CHECK(streams.allocate().value() == stream_id{2});
    while (streams.allocate()) {}
    REQUIRE(streams.release(stream_id{150}));
    REQUIRE(streams.release(stream_id{63}));
    REQUIRE(streams.release(stream_id{64}));
    CHECK(streams.allocate().value() == stream_id{63});
    CHECK(streams.allocate().value() == stream_id{64});
    CHECK(streams.allocate().value() == stream_id{150});
}

TEST_CASE("lockfree_streams gives the one that was free longest") {
    lockfree_streams<4> streams;
    CHECK(streams.allocate().value() == stream_id{0});
    CHECK(streams.allocate().value() == stream_id{1});
    REQUIRE(streams.release(stream_id{1}));
    REQUIRE(streams.release(stream_id{0}));
    CHECK(streams.allocate().value() == stream_id{2});
    CHECK(streams.allocate().value() == stream_id{3});
    CHECK(streams.allocate().value() == stream_id{1});
    CHECK(streams.allocate().value() == stream_id{0});
}

// --- ranges -----------------------------------------------------------------

namespace {

stream_range range_of(std::uint32_t first, std::uint64_t count) {
    return {stream_id{first}, count};
}

using fits = std::tuple<range_streams<64, first_fit>, range_streams<64, best_fit>>;

} // namespace

TEMPLATE_LIST_TEST_CASE("a range is whole, its own and aligned", "", fits) {
    TestType streams;
    REQUIRE(streams.reserve(stream_id{3}));
    const stream_range a = streams.allocate_range(5).value();
    CHECK(a == range_of(4, 5)); // three below the reserved one are too few
    CHECK(streams.allocate_range(8, 8).value() == range_of(16, 8));
    CHECK(streams.allocate_range(3).value() == range_of(0, 3));
    for (std::uint32_t id = 0; id < 9; ++id)
        CHECK(streams.is_held(stream_id{id}));
    CHECK_FALSE(streams.is_held(stream_id{9}));
    CHECK(streams.allocate_range(41).error() == errc::exhausted);
    CHECK(streams.allocate_range(40).value() == range_of(24, 40));
    CHECK(streams.largest_free() == 7);
    CHECK(streams.allocate_range(0).error() == errc::invalid_argument);
    CHECK(streams.allocate_range(2, 3).error() == errc::invalid_argument);
    CHECK(streams.allocate_range(65).error() == errc::exhausted);
}

TEMPLATE_LIST_TEST_CASE("what is given back joins its neighbours", "", fits) {
    struct piece {
        std::uint32_t first;
        std::uint64_t count;
    };
    const auto [a, b, c] = GENERATE(table<piece, piece, piece>({
        {{0, 16}, {16, 16}, {32, 32}}, // the last one joins from above
        {{32, 32}, {16, 16}, {0, 16}}, // from below
        {{0, 16}, {32, 32}, {16, 16}}, // both
        {{1, 1}, {3, 1}, {2, 1}},      // in the middle of what stays held
    }));
    TestType streams;
    REQUIRE(streams.reserve_range(range_of(0, 64)));
    CHECK(streams.largest_free() == 0);
    for (const piece& p : {a, b, c})
        REQUIRE(streams.release_range(range_of(p.first, p.count)));
    CHECK(streams.largest_free() == a.count + b.count + c.count);
}

TEMPLATE_LIST_TEST_CASE("a range is taken and given back whole or not at all", "", fits) {
    TestType streams;
    REQUIRE(streams.reserve_range(range_of(8, 4)));
    CHECK(streams.reserve_range(range_of(6, 3)).error() == errc::already_exists);
    CHECK(streams.reserve_range(range_of(11, 2)).error() == errc::already_exists);
    CHECK(streams.reserve_range(range_of(4, 16)).error() == errc::already_exists);
    CHECK(streams.reserve_range(range_of(62, 3)).error() == errc::out_of_range);
    CHECK(streams.reserve_range(range_of(1, ~std::uint64_t{0})).error() == errc::out_of_range);
    CHECK(streams.release_range(range_of(7, 2)).error() == errc::not_found);
    CHECK(streams.release_range(range_of(11, 2)).error() == errc::not_found);
    CHECK(streams.release_range(range_of(8, 0)).error() == errc::invalid_argument);
    for (std::uint32_t id = 0; id < 64; ++id)
        CHECK(streams.is_held(stream_id{id}) == (id >= 8 && id < 12));
    REQUIRE(streams.release(stream_id{9})); // part of it
    CHECK(streams.release_range(range_of(8, 4)).error() == errc::not_found);
    CHECK(streams.is_held(stream_id{8}));
}

TEST_CASE("first fit takes the lowest room, best fit the smallest") {
    range_streams<64, first_fit> lowest;
    range_streams<64, best_fit> smallest;
    const auto holes = [](auto& streams) { // free: [8, 16), [24, 28), [40, 64)
        REQUIRE(streams.reserve_range(range_of(0, 8)));
        REQUIRE(streams.reserve_range(range_of(16, 8)));
        REQUIRE(streams.reserve_range(range_of(28, 12)));
        return raw(streams.allocate_range(4).value().first);
    };
    CHECK(holes(lowest) == 8);
    CHECK(holes(smallest) == 24);
}

TEMPLATE_LIST_TEST_CASE("random ranges are what a plain array says", "", fits) {
    TestType streams;
    std::array<bool, 64> held{};
    std::uint32_t random = 99;
    const auto next = [&](std::uint32_t below) {
        random = random * 1664525 + 1013904223;
        return (random >> 16) % below;
    };
    for (int round = 0; round < 20'000; ++round) {
        const std::uint32_t first = next(64);
        const std::uint32_t count = 1 + next(64 - first < 9 ? 64 - first : 9);
        std::uint32_t held_here = 0;
        for (std::uint32_t i = first; i < first + count; ++i)
            held_here += held[i] ? 1 : 0;
        bool now = true;
        switch (next(3)) {
        case 0:
            if (streams.reserve_range(range_of(first, count)).has_value() != (held_here == 0))
                FAIL("reserve in round " << round);
            if (held_here != 0) continue;
            break;
        case 1:
            if (streams.release_range(range_of(first, count)).has_value() != (held_here == count))
                FAIL("release in round " << round);
            if (held_here != count) continue;
            now = false;
            break;
        default: {
            const auto given = streams.allocate_range(count);
            std::uint32_t row = 0;
            std::uint32_t most = 0;
            for (const bool h : held)
                most = std::max(most, row = h ? 0 : row + 1);
            if (given.has_value() != (most >= count)) FAIL("allocate in round " << round);
            if (!given) continue;
            for (std::uint32_t i = 0; i < count; ++i) {
                if (std::exchange(held[raw(given->first) + i], true))
                    FAIL("a held one was given in round " << round);
            }
            continue;
        }
        }
        for (std::uint32_t i = first; i < first + count; ++i)
            held[i] = now;
    }
    std::uint64_t row = 0;
    std::uint64_t most = 0;
    for (std::uint32_t i = 0; i < 64; ++i) {
        CHECK(streams.is_held(stream_id{i}) == held[i]);
        most = std::max(most, row = held[i] ? 0 : row + 1);
    }
    CHECK(streams.largest_free() == most); // nothing was left unjoined
}

// --- PCI --------------------------------------------------------------------

namespace {
using two_bridges = pci_streams<pci_layout{.base = 0x100, .segments = 2, .buses = 4}>;
} // namespace

TEST_CASE("a function's StreamID follows from its place, and back") {
    const auto [at, stream] = GENERATE(table<pci_address, std::uint32_t>({
        {{0, 0, 0, 0}, 0x100},
        {{0, 0, 3, 1}, 0x119},
        {{0, 3, 31, 7}, 0x4ff},
        {{1, 0, 0, 0}, 0x500},
        {{1, 2, 1, 0}, 0x708},
    }));
    CHECK(two_bridges::stream_of(at).value() == stream_id{stream});
    CHECK(two_bridges::address_of(stream_id{stream}) == at);
}

TEST_CASE("places that a layout does not have") {
    for (const pci_address& at : {pci_address{2, 0, 0, 0}, pci_address{0, 4, 0, 0},
                                  pci_address{0, 0, 32, 0}, pci_address{0, 0, 0, 8}})
        CHECK(two_bridges::stream_of(at).error() == errc::out_of_range);
    CHECK_FALSE(two_bridges::address_of(stream_id{0xff}));
    CHECK_FALSE(two_bridges::address_of(stream_id{0x900}));
    CHECK(two_bridges::capacity == 0x900);
}

TEST_CASE("what the guest's firmware is told about requester IDs") {
    CHECK(two_bridges::mapping(0).device_tree_cells(7) ==
          std::array<std::uint32_t, 4>{0, 7, 0x100, 0x400});
    CHECK(two_bridges::mapping(1).iort_words(0x30) ==
          std::array<std::uint32_t, 5>{0, 0x3ff, 0x500, 0x30, 0});
    // Each function is where the mapping says.
    const pci_address at{1, 3, 30, 6};
    const pci_id_mapping line = two_bridges::mapping(at.segment);
    CHECK(two_bridges::stream_of(at).value() ==
          stream_id{line.first_stream + at.requester_id() - line.first_requester});
}

TEST_CASE("functions of one device are neighbours, and devices do not mix") {
    two_bridges streams;
    REQUIRE(streams.reserve(two_bridges::stream_of({0, 1, 1, 3}).value()));
    CHECK(streams.allocate_functions(0, 1, 2).value() == pci_address{0, 1, 0, 0});
    CHECK(streams.allocate_functions(0, 1, 3).value() == pci_address{0, 1, 2, 0});
    CHECK(streams.allocate_functions(0, 1, 8).value() == pci_address{0, 1, 3, 0});
    CHECK(streams.allocate_functions(0, 1, 9).value() == pci_address{0, 1, 4, 0}); // ARI
    CHECK(streams.allocate_functions(0, 1, 1).value() == pci_address{0, 1, 6, 0});
    CHECK(streams.allocate_functions(1, 1, 256).value() == pci_address{1, 1, 0, 0});
    CHECK(streams.allocate_functions(1, 1, 1).error() == errc::exhausted);
    CHECK(streams.allocate_functions(1, 4, 1).error() == errc::out_of_range);
    CHECK(streams.allocate_functions(1, 0, 257).error() == errc::invalid_argument);
    CHECK(streams.allocate_functions(1, 0, 0).error() == errc::invalid_argument);
    CHECK(streams.is_held(two_bridges::stream_of({0, 1, 0, 1}).value()));
    CHECK_FALSE(streams.is_held(two_bridges::stream_of({0, 1, 0, 2}).value()));
    for (std::uint8_t f = 0; f < 8; ++f)
        CHECK(streams.is_held(two_bridges::stream_of({0, 1, 3, f}).value()));
}

TEST_CASE("functions are taken and given back whole or not at all") {
    two_bridges streams;
    const pci_address card{0, 2, 4, 0};
    REQUIRE(streams.reserve_functions({0, 2, 4, 2}, 2));
    CHECK(streams.reserve_functions(card, 4).error() == errc::already_exists);
    CHECK(streams.release_functions(card, 4).error() == errc::not_found);
    for (std::uint8_t f = 0; f < 4; ++f)
        CHECK(streams.is_held(two_bridges::stream_of({0, 2, 4, f}).value()) == (f >= 2));
    REQUIRE(streams.reserve_functions(card, 2));
    REQUIRE(streams.release_functions(card, 4));
    CHECK(streams.reserve_functions({0, 2, 31, 4}, 5).error() == errc::invalid_argument);
    CHECK(streams.reserve_functions(card, 0).error() == errc::invalid_argument);
}
