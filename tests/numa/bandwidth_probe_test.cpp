/// Measuring bandwidths: what is asked of the platform, and what becomes of refusals.
#include "simulated_memory.hpp"

#include <vm_accel/numa/bandwidth_probe.hpp>
#include <vm_accel/topology/load.hpp>
#include <vm_accel/topology/regular.hpp>

#include <catch2/catch.hpp>

#include <iostream>
#include <string>

using namespace vm_accel;
using namespace vm_accel_test;

namespace {
constexpr bandwidth_probe_options quick{1u << 16, 1, 16};
}

TEST_CASE("bandwidths: each node with memory is read by threads on the CPUs near it") {
    cpu_topology topology = make_topology({1, 3, 2, 1, 1u << 30});
    topology.nodes[1].memory_bytes = 0;
    const std::uint64_t told = std::uint64_t{1} << 50;
    topology.nodes[2].bandwidth = told; // one known figure is not compared with measured ones
    simulated_memory memory;
    const simulated_threads threads{memory.machine};
    REQUIRE(measure_bandwidths(topology, memory, threads, quick));
    CHECK(topology.nodes[0].bandwidth != 0);
    CHECK(topology.nodes[1].bandwidth == 0);
    CHECK(topology.nodes[2].bandwidth != 0);
    CHECK(topology.nodes[2].bandwidth != told);
    const simulated_machine& machine = *memory.machine;
    REQUIRE(machine.bindings.size() == 2);
    CHECK(machine.bindings[0].node == 0);
    CHECK(machine.bindings[1].node == 2);
    CHECK(machine.bindings[1].bytes == 2 * quick.bytes_per_thread); // two CPUs, two threads
    REQUIRE(machine.pins.size() == 4);
    CHECK(machine.pins[0] == topology.cpu_set_of_node(0));
    CHECK(machine.pins[3] == topology.cpu_set_of_node(2));
    CHECK(machine.populated.size() == 4);
    CHECK(machine.live_bytes() == 0);
}

TEST_CASE("bandwidths: a topology that knows all of them is left alone") {
    cpu_topology topology = make_topology({1, 2, 2, 1, 1u << 30});
    topology.nodes[0].bandwidth = 100;
    topology.nodes[1].bandwidth = 200;
    const simulated_memory memory;
    REQUIRE(measure_bandwidths(topology, memory, simulated_threads{memory.machine}, quick));
    CHECK(topology.nodes[1].bandwidth == 200);
    CHECK(memory.machine->log.empty());
}

TEST_CASE("bandwidths: little free memory makes the probe smaller, none refuses it") {
    cpu_topology topology = make_topology({1, 1, 2, 1, 1u << 30});
    const simulated_memory memory;
    memory.machine->tells_free = true;
    memory.machine->free[0] = 8 * 4096 * 3;
    REQUIRE(measure_bandwidths(topology, memory, simulated_threads{memory.machine}, quick));
    CHECK(memory.machine->bindings.back().bytes == 2 * 4096 * 3);
    memory.machine->free[0] = 8 * 4096 - 1;
    topology.nodes[0].bandwidth = 0;
    const auto refused =
        measure_bandwidths(topology, memory, simulated_threads{memory.machine}, quick);
    REQUIRE_FALSE(refused);
    CHECK(refused.error() == errc::exhausted);
}

TEST_CASE("bandwidths: what is refused leaves the topology as it was, and nothing mapped") {
    cpu_topology topology = make_topology({1, 2, 2, 1, 1u << 30});
    const cpu_topology before = topology;
    const simulated_memory memory;
    simulated_machine& machine = *memory.machine;
    const error cause = refusal(errc::permission_denied, "a test says no");
    const unsigned which = GENERATE(0u, 1u, 2u, 3u);
    if (which == 0) machine.refuse_map = cause;
    if (which == 1) machine.refuse_bind = cause;
    if (which == 2) machine.refuse_populate = cause;
    if (which == 3) machine.refuse_pin = cause;
    const auto refused =
        measure_bandwidths(topology, memory, simulated_threads{memory.machine}, quick);
    REQUIRE_FALSE(refused);
    CHECK(refused.error() == errc::permission_denied);
    CHECK(topology == before);
    CHECK(machine.live_bytes() == 0);
}

TEST_CASE("bandwidths: a described topology is not measured on this machine") {
    cpu_topology topology = make_topology({1, 2, 2, 1, 1u << 30});
    const auto refused = measure_bandwidths(topology);
    REQUIRE_FALSE(refused);
    CHECK(refused.error() == errc::unsupported);
}

TEST_CASE("bandwidths of this machine", "[kernel]") {
    auto topology = load_topology();
    REQUIRE(topology);
    const auto done =
        measure_bandwidths(*topology, os::native_memory{}, os::native_threads{}, {1u << 20, 1, 4});
    if (!done) {
        std::cout << "SKIP: " << done.error().cause.view() << '\n';
        return;
    }
    for (const numa_node& node : topology->nodes)
        CHECK((node.bandwidth != 0) == (node.memory_bytes != 0));
}
