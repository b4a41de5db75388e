#include "simulated_memory.hpp"

#include <vm_accel/numa/object_pool.hpp>
#include <vm_accel/numa/pmr_adapter.hpp>
#include <vm_accel/numa/standard_allocator.hpp>

#include <catch2/catch.hpp>

#include <algorithm>
#include <bit>
#include <cstring>
#include <deque>
#include <initializer_list>
#include <map>
#include <memory_resource>
#include <new>
#include <string>
#include <vector>

using namespace vm_accel_test;

namespace {

using simulated_pool = object_pool<no_lock, simulated_memory>;
constexpr std::uint64_t MiB = 1u << 20;

std::size_t calls(const simulated_machine& machine, std::string_view what) {
    return static_cast<std::size_t>(std::count(machine.log.begin(), machine.log.end(), what));
}

} // namespace

TEST_CASE("objects are aligned, disjoint and writable to their last byte") {
    object_pool<> pool;
    REQUIRE(pool.open());
    struct object {
        unsigned char* address;
        std::size_t bytes, alignment;
    };
    std::vector<object> objects;
    std::size_t n = 0;
    for (const std::size_t bytes : std::initializer_list<std::size_t>{
             0, 1, 8, 16, 17, 24, 64, 65, 100, 1000, 4096, 5000, 65536, 65537, 300000}) {
        for (const std::size_t alignment :
             std::initializer_list<std::size_t>{1, 8, 16, 64, 4096, 65536}) {
            for (unsigned i = 0; i < 3; ++i) {
                auto* const p = static_cast<unsigned char*>(pool.allocate(bytes, alignment));
                REQUIRE(p != nullptr);
                CHECK(std::bit_cast<std::uintptr_t>(p) % alignment == 0);
                std::memset(p, static_cast<int>(++n & 0xff), bytes);
                objects.push_back({p, bytes, alignment});
            }
        }
    }
    CHECK(pool.usage().live_objects == objects.size());
    n = 0;
    for (const object& o : objects) {
        ++n;
        const auto same = static_cast<unsigned char>(n & 0xff);
        CHECK(std::all_of(o.address, o.address + o.bytes,
                          [&](unsigned char c) { return c == same; }));
    }
    for (const object& o : objects)
        pool.deallocate(o.address, o.bytes, o.alignment);
    CHECK(pool.usage().live_objects == 0);
    CHECK(pool.usage().mapped_bytes == pool.usage().slabs * object_pool<>::slab_bytes);
}

TEST_CASE("small objects come without a system call each, freed ones come again") {
    simulated_memory memory;
    simulated_pool pool{memory};
    REQUIRE(pool.open({.node = 2}));
    std::vector<void*> objects;
    for (unsigned i = 0; i < 30000; ++i) // of 64 bytes: 1.8 MiB
        objects.push_back(pool.allocate(64));
    CHECK(calls(*memory.machine, "map") == 1);
    CHECK(calls(*memory.machine, "prefer 2") == 1);
    std::sort(objects.begin(), objects.end());
    CHECK(std::adjacent_find(objects.begin(), objects.end()) == objects.end());
    for (void* const object : objects)
        pool.deallocate(object, 64);
    std::vector<void*> again;
    for (unsigned i = 0; i < 30000; ++i)
        again.push_back(pool.allocate(50));
    std::sort(again.begin(), again.end());
    CHECK(again == objects);
    CHECK(calls(*memory.machine, "map") == 1);
    CHECK(pool.usage().slabs == 1);
}

TEST_CASE("an exhausted pool answers nullptr, and goes on when something is freed") {
    simulated_memory memory;
    simulated_pool pool{memory};
    REQUIRE(pool.open({.capacity_bytes = 4 * MiB}));
    std::vector<void*> objects;
    while (void* const object = pool.allocate(4096))
        objects.push_back(object);
    CHECK(objects.size() == 1024);
    CHECK(pool.usage().mapped_bytes == 4 * MiB);
    CHECK(pool.allocate(4096) == nullptr);
    CHECK(pool.allocate(16) == nullptr);
    CHECK(pool.allocate(MiB) == nullptr);
    pool.deallocate(objects.back(), 4096);
    CHECK(pool.allocate(4096) == objects.back());
    CHECK(pool.allocate(~std::size_t{0}) == nullptr);
    pool.deallocate(nullptr, 16);
    CHECK(pool.usage().live_objects == 1024);
    pool.close();
    CHECK(memory.machine->live_bytes() == 0);
    CHECK(pool.allocate(16) == nullptr); // closed
}

TEST_CASE("large objects are mapped alone, on the node, and given back at once") {
    simulated_memory memory;
    simulated_pool pool{memory};
    REQUIRE(pool.open({.node = 1, .capacity_bytes = 8 * MiB}));
    void* const large = pool.allocate(100000);
    REQUIRE(large != nullptr);
    CHECK(memory.machine->live_bytes() == 2 * MiB + 102400);
    CHECK(calls(*memory.machine, "prefer 1") == 2);
    CHECK(pool.usage().mapped_bytes == 2 * MiB + 102400);
    pool.deallocate(large, 100000);
    CHECK(memory.machine->live_bytes() == 2 * MiB);
    CHECK(pool.usage().mapped_bytes == 2 * MiB);
    CHECK(pool.usage().live_objects == 0);
}

TEST_CASE("wrong use and refusals of a pool") {
    simulated_memory memory;
    simulated_pool pool{memory};
    CHECK(pool.allocate(16) == nullptr); // not open
    CHECK(pool.open({.capacity_bytes = MiB}).error() == errc::invalid_argument);
    memory.machine->refuse_map = refusal(errc::exhausted, "no memory");
    CHECK(pool.open().error() == errc::exhausted);
    memory.machine->refuse_map.reset();
    memory.machine->refuse_prefer = refusal(errc::permission_denied, "mbind: refused");
    REQUIRE(pool.open({.node = 3}));
    CHECK(pool.binding().state == grant_state::refused);
    CHECK(pool.binding().cause == "mbind: refused");
    CHECK(pool.open().error() == errc::already_initialized);
    CHECK(pool.allocate(16) != nullptr);
    pool.close();
    memory.machine->refuse_prefer.reset();
    REQUIRE(pool.open({.node = 3}));
    CHECK(pool.binding().state == grant_state::preferred);
    pool.close();
    REQUIRE(pool.open());
    CHECK(pool.binding().state == grant_state::not_requested);
}

TEST_CASE("standard containers on a pool") {
    object_pool<no_lock> pool;
    REQUIRE(pool.open());
    {
        using allocator = standard_allocator<int, object_pool<no_lock>>;
        std::vector<int, allocator> numbers{allocator{pool}};
        std::deque<std::string, standard_allocator<std::string, object_pool<no_lock>>> texts{
            standard_allocator<std::string, object_pool<no_lock>>{pool}};
        for (int i = 0; i < 50000; ++i) {
            numbers.push_back(i);
            texts.push_back(std::to_string(i));
        }
        CHECK(numbers[49999] == 49999);
        CHECK(texts[12345] == "12345");
        CHECK(pool.usage().live_objects != 0);
        object_pool<no_lock> other;
        CHECK(allocator{pool} == standard_allocator<long, object_pool<no_lock>>{pool});
        CHECK_FALSE(allocator{pool} == allocator{other});
    }
    CHECK(pool.usage().live_objects == 0);
}

TEST_CASE("pmr containers on a pool, through the adapter") {
    object_pool<no_lock> pool;
    REQUIRE(pool.open());
    pmr_adapter<object_pool<no_lock>> resource{pool};
    pmr_adapter<object_pool<no_lock>> same_pool{pool};
    CHECK(resource.is_equal(resource));
    CHECK_FALSE(resource.is_equal(same_pool)); // equality is identity
    {
        std::pmr::map<int, int> squares{&resource};
        for (int i = 0; i < 1000; ++i)
            squares[i] = i * i;
        CHECK(pool.usage().live_objects == 1000);
    }
    CHECK(pool.usage().live_objects == 0);
}

#if defined(__cpp_exceptions)
TEST_CASE("exhaustion of a standard allocator is bad_alloc") {
    object_pool<no_lock> pool;
    REQUIRE(pool.open({.capacity_bytes = 2 * MiB}));
    standard_allocator<int, object_pool<no_lock>> allocator{pool};
    CHECK_THROWS_AS(allocator.allocate(MiB), std::bad_alloc);
    CHECK_THROWS_AS(allocator.allocate(~std::size_t{0} / 2), std::bad_alloc);
    pmr_adapter<object_pool<no_lock>> resource{pool};
    CHECK_THROWS_AS(resource.allocate(4 * MiB), std::bad_alloc);
    CHECK(pool.usage().live_objects == 0);
}
#endif
