#include "machines.hpp"

#include <vm_accel/affinity/planner.hpp>
#include <vm_accel/topology/regular.hpp>

#include <catch2/catch.hpp>

#include <algorithm>
#include <set>
#include <sstream>
#include <string>
#include <vector>

using namespace vm_accel;
using namespace affinity_machines;

TEST_CASE("each policy gives the CPUs that its name promises") {
    constexpr auto compact = vcpu_policy::compact;
    constexpr auto spread = vcpu_policy::spread;
    constexpr auto one_per_core = vcpu_policy::one_per_core;
    struct row {
        const char* machine;
        vcpu_request request;
        std::vector<unsigned> cpus;
        std::vector<unsigned> io;
    };
    const row r = GENERATE_COPY(values<row>({
        // Two packages of two nodes with two cores of two threads: CPUs 0-3, 4-7, 8-11, 12-15.
        {"four_nodes", {4, compact, 0}, {0, 1, 2, 3}, {}},
        {"four_nodes", {6, compact, 0}, {0, 1, 2, 3, 4, 5}, {}},
        {"four_nodes", {4, one_per_core, 0}, {0, 2, 4, 6}, {}},
        {"four_nodes", {9, one_per_core, 0}, {0, 2, 4, 6, 8, 10, 12, 14, 1}, {}},
        {"four_nodes", {4, spread, 0}, {0, 8, 4, 12}, {}},
        {"four_nodes", {9, spread, 0}, {0, 8, 4, 12, 2, 10, 6, 14, 1}, {}},
        {"four_nodes", {2, compact, 2}, {0, 1}, {14, 15}},
        {"four_nodes", {3, spread, 4}, {0, 8, 4}, {12, 13, 14, 15}},
        // Four performance cores of two threads (0-7), four efficiency cores (8, 10, 12, 14).
        {"hybrid", {3, compact, 0}, {0, 1, 2}, {}},
        {"hybrid", {10, compact, 0}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 10}, {}},
        {"hybrid", {6, one_per_core, 0}, {0, 2, 4, 6, 8, 10}, {}},
        {"hybrid", {9, one_per_core, 0}, {0, 2, 4, 6, 8, 10, 12, 14, 1}, {}},
        {"hybrid", {9, one_per_core, 3}, {0, 2, 4, 6, 8, 1, 3, 5, 7}, {10, 12, 14}},
        // A node without memory still has CPUs to run on; node 4 has none.
        {"odd_nodes", {6, compact, 0}, {0, 1, 2, 3, 4, 5}, {}},
        {"odd_nodes", {4, spread, 0}, {0, 8, 4, 12}, {}},
        {"package:1 core:1 pu:1", {1, spread, 0}, {0}, {}},
        {"package:1 core:2 pu:1", {5, compact, 0}, {0, 1, 0, 1, 0}, {}},
        {"package:1 core:4 pu:2", {3, one_per_core, 6}, {0, 1, 0}, {2, 3, 4, 5, 6, 7}},
    }));
    INFO(r.machine << ", " << r.request.vcpus << " vCPUs, " << name_of(r.request.policy) << ", "
                   << r.request.io_cpus << " for I/O");
    const auto plan = plan_vcpus(machine(r.machine), r.request);
    REQUIRE(plan);
    CHECK(cpus_of(*plan) == r.cpus);
    CHECK(plan->io_cpus == r.io);
}

TEST_CASE("whatever the machine, policy and count, a plan keeps its promises") {
    const std::string name = GENERATE("hybrid", "four_nodes", "odd_nodes", "package:1 core:3 pu:1",
                                      "package:4 numa:1 core:8 pu:4", "numa:2 core:5 pu:2");
    const auto policy =
        GENERATE(vcpu_policy::compact, vcpu_policy::spread, vcpu_policy::one_per_core);
    const cpu_topology t = machine(name);
    const auto size = static_cast<unsigned>(t.cpus.size());
    for (const unsigned io : {0u, 1u, size / 2, size - 1}) {
        for (const unsigned vcpus : {1u, 2u, size - 1, size, size + 1, 3 * size + 2}) {
            INFO(name << ", " << name_of(policy) << ", " << vcpus << " vCPUs, " << io
                      << " for I/O");
            const auto plan = plan_vcpus(t, {vcpus, policy, io});
            REQUIRE(plan);
            CHECK(*plan == *plan_vcpus(t, {vcpus, policy, io})); // deterministic
            REQUIRE(plan->assignments.size() == vcpus);
            REQUIRE(plan->io_cpus.size() == io);
            CHECK(plan->cpus_available == size - io);
            CHECK(plan->overcommitted() == (vcpus > size - io));
            CHECK(plan->described);
            std::vector<unsigned> uses(t.cpus.size(), 0);
            for (unsigned v = 0; v < vcpus; ++v) {
                const vcpu_assignment& to = plan->assignments[v];
                CHECK(to.vcpu == v);
                const unsigned index = t.find_cpu(to.cpu);
                REQUIRE(index != no_index);
                ++uses[index];
                CHECK(to.node == t.nodes[t.cpus[index].node].os_index);
                CHECK(to.package == t.packages[t.cpus[index].package].os_index);
                CHECK_FALSE(to.reason.empty());
                CHECK(std::find(plan->io_cpus.begin(), plan->io_cpus.end(), to.cpu) ==
                      plan->io_cpus.end());
            }
            for (const vcpu_assignment& to : plan->assignments)
                CHECK(to.shared == (uses[t.find_cpu(to.cpu)] > 1));
            // Nobody has one CPU more than another has, beyond the remainder.
            const unsigned most = *std::max_element(uses.begin(), uses.end());
            CHECK(most == (vcpus + size - io - 1) / (size - io));
            if (policy == vcpu_policy::compact) continue;
            // No core twice while another is free.
            std::set<unsigned> cores, usable;
            for (const vcpu_assignment& to : plan->assignments)
                cores.insert(t.cpus[t.find_cpu(to.cpu)].core);
            for (const logical_cpu& cpu : t.cpus)
                if (std::find(plan->io_cpus.begin(), plan->io_cpus.end(), cpu.os_index) ==
                    plan->io_cpus.end())
                    usable.insert(cpu.core);
            CHECK(cores.size() == std::min<std::size_t>(vcpus, usable.size()));
        }
    }
}

TEST_CASE("spread uses as many nodes as there are vCPUs for") {
    const auto t = machine("package:2 numa:2 core:4 pu:2");
    for (const unsigned vcpus : {1u, 2u, 3u, 4u}) {
        std::set<unsigned> nodes;
        const auto plan = plan_vcpus(t, {vcpus, vcpu_policy::spread});
        REQUIRE(plan);
        for (const vcpu_assignment& to : plan->assignments)
            nodes.insert(to.node);
        CHECK(nodes.size() == vcpus);
    }
}

TEST_CASE("performance cores come first wherever the machine numbers them") {
    cpu_topology t = machine("hybrid");
    for (logical_cpu& cpu : t.cpus)
        cpu.kind = cpu.os_index < 8 ? cpu_kind::efficiency : cpu_kind::performance;
    const auto policy =
        GENERATE(vcpu_policy::compact, vcpu_policy::spread, vcpu_policy::one_per_core);
    const auto plan = plan_vcpus(t, {5, policy, 2});
    REQUIRE(plan);
    CHECK(cpus_of(*plan) == std::vector<unsigned>{8, 10, 12, 14, 0});
    CHECK(plan->io_cpus == std::vector<unsigned>{6, 7});
    CHECK_THAT(std::string{plan->assignments[4].reason.view()},
               Catch::Contains("an efficiency core"));
}

TEST_CASE("reasons say what is true of the CPU") {
    struct row {
        const char* machine;
        vcpu_request request;
        unsigned vcpu;
        const char* reason;
    };
    const row r = GENERATE(values<row>({
        {"four_nodes", {3, vcpu_policy::compact}, 0, "the first CPU in this order, node 0"},
        {"four_nodes", {3, vcpu_policy::compact}, 1, "thread 1 of the same core"},
        {"four_nodes", {3, vcpu_policy::compact}, 2, "the next core of the same node"},
        {"four_nodes", {9, vcpu_policy::compact}, 4, "next node, the last being full, node 1"},
        {"four_nodes", {9, vcpu_policy::compact}, 8, "next package, the last being full, node 2"},
        {"four_nodes", {9, vcpu_policy::spread}, 1, "next package in turn, node 2"},
        {"four_nodes", {9, vcpu_policy::one_per_core}, 8, "no core being free, node 0"},
        {"hybrid", {1, vcpu_policy::compact}, 0, "the first performance core"},
        {"hybrid",
         {9, vcpu_policy::compact},
         8,
         "an efficiency core, the faster CPUs being used up"},
        {"package:1 core:2 pu:1",
         {5, vcpu_policy::compact},
         4,
         "shares CPU 0 with vCPU 0: 5 vCPUs on 2 CPUs"},
        {"package:1 core:2 pu:1", {3, vcpu_policy::compact}, 0, "shared with later vCPUs"},
    }));
    const auto plan = plan_vcpus(machine(r.machine), r.request);
    REQUIRE(plan);
    CHECK_THAT(std::string{plan->assignments[r.vcpu].reason.view()}, Catch::Contains(r.reason));
}

TEST_CASE("questions that have no answer are errors with a cure") {
    const cpu_topology four = make_topology({1, 1, 4, 1, 0});
    struct row {
        cpu_topology topology;
        vcpu_request request;
        errc code;
    };
    const row r = GENERATE_COPY(values<row>({
        {four, {0}, errc::invalid_argument},
        {four, {1, vcpu_policy::compact, 4}, errc::out_of_range},
        {four, {1, vcpu_policy::compact, ~0u}, errc::out_of_range},
        {cpu_topology{}, {1}, errc::not_initialized},
    }));
    const auto plan = plan_vcpus(r.topology, r.request);
    REQUIRE_FALSE(plan);
    CHECK(plan.error() == r.code);
    CHECK_FALSE(plan.error().cure.empty());
}

TEST_CASE("a plan prints every vCPU, and what is special about it") {
    std::ostringstream out;
    out << plan_vcpus(make_topology({1, 1, 2, 2, 0}), {4, vcpu_policy::compact, 1}).value();
    CHECK_THAT(out.str(), Catch::Contains("vCPU 0 -> CPU 0"));
    CHECK_THAT(out.str(), Catch::Contains("vCPU 3 -> CPU 0"));
    CHECK_THAT(out.str(), Catch::Contains("left for I/O: CPUs 3"));
    CHECK_THAT(out.str(), Catch::Contains("more vCPUs (4) than CPUs (3)"));
}
