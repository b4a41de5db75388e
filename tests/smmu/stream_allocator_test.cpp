/// The contract of stream_allocator, over every model of it.
#include <vm_accel/smmu/host/bitmap_streams.hpp>
#include <vm_accel/smmu/host/lockfree_streams.hpp>

#include <catch2/catch.hpp>

#include <cstdint>
#include <memory>
#include <set>
#include <tuple>

using namespace vm_accel;

namespace {

using models = std::tuple<bitmap_streams<1>, bitmap_streams<64>, bitmap_streams<100>,
                          bitmap_streams<65536>, lockfree_streams<1>, lockfree_streams<64>,
                          lockfree_streams<100>, lockfree_streams<65534>>;

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
