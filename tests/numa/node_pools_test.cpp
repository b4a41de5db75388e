/// A pool on every node: which one a thread is given, on a simulated machine and on
/// the real kernel's nodes.
#include "simulated_memory.hpp"

#include <vm_accel/numa/node_pools.hpp>
#include <vm_accel/numa/standard_allocator.hpp>
#include <vm_accel/topology/load.hpp>
#include <vm_accel/topology/regular.hpp>

#include <catch2/catch.hpp>

#include <bit>
#include <cstring>
#include <iostream>
#include <memory>
#include <vector>

using namespace vm_accel_test;

namespace {

constexpr std::uint64_t MiB = 1u << 20;

/// Threads that run where a test says.
struct told_threads : simulated_threads {
    std::shared_ptr<result<unsigned>> cpu = std::make_shared<result<unsigned>>(0u);
    result<unsigned> current_cpu() const noexcept { return *cpu; }
};
using simulated_pools = node_pools<no_lock, simulated_memory, told_threads>;

/// Nodes 0, 1 in one package, 2, 3 in another; node 2 has no memory; two CPUs each.
cpu_topology machine() {
    cpu_topology t = make_topology({2, 2, 2, 1, 64 * MiB});
    t.nodes[2].memory_bytes = 0;
    return t;
}

} // namespace

TEST_CASE("node pools: one for each node with memory, bound to it") {
    simulated_memory memory;
    told_threads threads;
    simulated_pools pools{memory, threads};
    CHECK(pools.here() == nullptr);
    CHECK(pools.of_node(0) == nullptr);
    REQUIRE(pools.open(machine()));
    CHECK(pools.size() == 3);
    for (const unsigned node : {0u, 1u, 3u}) {
        REQUIRE(pools.of_node(node) != nullptr);
        CHECK(pools.of_node(node)->node() == node);
        CHECK(pools.of_node(node)->binding().state == grant_state::preferred);
    }
    CHECK(pools.of_node(2) == pools.of_node(3)); // the nearest with memory
    CHECK(pools.of_node(4) == nullptr);
    CHECK(pools.open(machine()).error() == errc::already_initialized);

    for (unsigned cpu = 0; cpu < 8; ++cpu) {
        *threads.cpu = cpu;
        CHECK(pools.here() == pools.of_node(cpu / 2));
    }
    *threads.cpu = 99u; // not of this topology
    CHECK(pools.here() == pools.of_node(0));
    *threads.cpu = fail(errc::unsupported, "not told");
    CHECK(pools.here() == pools.of_node(0));

    std::vector<int, standard_allocator<int, simulated_pools::pool_type>> numbers{
        standard_allocator<int, simulated_pools::pool_type>{*pools.of_node(1)}};
    numbers.assign(1000, 7);
    CHECK(pools.of_node(1)->usage().live_objects == 1);
    numbers = {};
    numbers.shrink_to_fit();
    CHECK(pools.of_node(1)->usage().live_objects == 0);
    pools.close();
    CHECK(memory.machine->live_bytes() == 0);
    CHECK(pools.here() == nullptr);
    CHECK(pools.of_node(0) == nullptr);
}

TEST_CASE("node pools: what fails leaves none open") {
    simulated_memory memory;
    simulated_pools pools{memory, {}};
    CHECK(pools.open(make_topology({1, 1, 1, 1, 0})).error() == errc::unavailable);
    CHECK(pools.open(machine(), MiB).error() == errc::invalid_argument);
    memory.machine->refuse_map = refusal(errc::exhausted, "no memory");
    CHECK(pools.open(machine()).error() == errc::exhausted);
    CHECK(pools.size() == 0);
    memory.machine->refuse_map.reset();
    REQUIRE(pools.open(machine()));
}

TEST_CASE("node pools: objects lie on the nodes of this machine", "[kernel][numa]") {
    const result<const cpu_topology*> topology = shared_topology();
    REQUIRE(topology);
    node_pools<> pools;
    REQUIRE(pools.open(**topology));
    REQUIRE(pools.here() != nullptr);
    for (const numa_node& node : (*topology)->nodes) {
        if (node.memory_bytes == 0) continue;
        auto& pool = *pools.of_node(node.os_index);
        auto* const object = static_cast<std::byte*>(pool.allocate(100));
        REQUIRE(object != nullptr);
        std::memset(object, 1, 100);
        int on = os::page_unknown;
        auto* const page = object - std::bit_cast<std::uintptr_t>(object) % 4096;
        const result<> told = os::native_memory{}.page_nodes(page, 4096, {&on, 1});
        if (!told || pool.binding().is_denied()) {
            std::cout << "SKIP: " << (told ? pool.binding().cause : told.error().cause).view()
                      << '\n';
            pool.deallocate(object, 100);
            return;
        }
        CHECK(on == static_cast<int>(node.os_index));
        pool.deallocate(object, 100);
    }
}
