/// The planner on the machines that people have: guest topologies, nearness to a
/// device, CPUs that are not to be used, and what must be true of every plan.
#include "machines.hpp"

#include <vm_accel/affinity/planner.hpp>
#include <vm_accel/topology/regular.hpp>

#include <catch2/catch.hpp>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <vector>

using namespace vm_accel;
using namespace affinity_machines;

namespace {

// Two packages of eight caches with four cores each; Linux numbers second threads last.
constexpr const char* epyc = "package:2 numa:1 l3:8 core:4 pu:2(indexes=2*64:64*1)";
constexpr const char* ampere = "package:1 numa:1 core:80 pu:1";
constexpr const char* ampere_pair = "package:2 numa:1 core:80 pu:1"; // more than 128 CPUs
constexpr const char* xeon = "xeon_snc";        // 2 packages, 2 nodes each, 4 cores of 2 threads
constexpr const char* apple = "apple_clusters"; // 4 efficiency cores 0-3, 4 performance cores
constexpr const char* hybrid = "hybrid"; // 4 performance cores of 2 threads 0-7; 8, 10, 12, 14
constexpr const char* restricted = "restricted"; // CPU 3 is offline, a cgroup excludes 6 and 7

constexpr auto compact = vcpu_policy::compact;
constexpr auto spread = vcpu_policy::spread;
constexpr auto one_per_core = vcpu_policy::one_per_core;
constexpr auto siblings = vcpu_policy::siblings_together;
constexpr auto fast_first = vcpu_policy::performance_first;

constexpr const char* odd_nodes = "odd_nodes"; // nodes of 4 CPUs, and one of none

std::vector<unsigned> first_cpus(unsigned count, unsigned from = 0) {
    std::vector<unsigned> cpus(count);
    std::iota(cpus.begin(), cpus.end(), from);
    return cpus;
}

void isolate(cpu_topology& t, const os::cpu_set& cpus) {
    for (logical_cpu& cpu : t.cpus)
        cpu.isolated = cpus.contains(cpu.os_index);
}

} // namespace

TEST_CASE("vCPUs lie where policy, guest topology and device want them") {
    struct row {
        const char* machine;
        vcpu_request request;
        std::vector<unsigned> cpus;
        std::vector<unsigned> io;
    };
    const row r = GENERATE_COPY(values<row>({
        {epyc, {5, compact}, {0, 64, 1, 65, 2}, {}},
        {epyc, {3, one_per_core}, {0, 1, 2}, {}},
        // Packages in turn, then caches in turn.
        {epyc, {5, spread}, {0, 32, 4, 36, 8}, {}},
        {epyc, {5, siblings}, {0, 64, 1, 65, 2}, {}},
        {epyc, {2, siblings, 0, {0, 0, 1}}, {0, 1}, {}},
        {epyc, {8, spread, 0, {4, 1, 2}}, {0, 64, 32, 96, 4, 68, 36, 100}, {}},
        {epyc, {4, spread, 0, {2, 2, 1}}, {0, 4, 32, 36}, {}},
        {epyc, {2, compact, 0, {}, no_index, 2}, {0, 64}, {62, 63, 126, 127}},
        {epyc, {2, compact, 1, {}, no_index, 1}, {0, 64}, {63, 126, 127}},
        {epyc, {2, compact, 0, {}, 1}, {32, 96}, {}},
        // Nodes 0 and 1 have CPUs 0-7 and 16-23, nodes 2 and 3 the others.
        {xeon, {8, spread}, {0, 8, 4, 12, 1, 9, 5, 13}, {}},
        {xeon, {10, compact, 0, {2, 5, 1}}, {0, 16, 1, 17, 2, 4, 20, 5, 21, 6}, {}},
        {xeon, {6, one_per_core, 0, {2, 3, 1}}, {0, 1, 2, 4, 5, 6}, {}},
        // Ten vCPUs of a socket fit no node, but a package.
        {xeon,
         {20, one_per_core, 0, {2, 10, 1}},
         {0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25},
         {}},
        // The device's node, the other node of its package, the other package.
        {xeon,
         {18, compact, 0, {}, 3},
         {12, 28, 13, 29, 14, 30, 15, 31, 8, 24, 9, 25, 10, 26, 11, 27, 0, 16},
         {}},
        {xeon, {3, compact, 0, {}, 3, 2}, {12, 28, 13}, {14, 15, 30, 31}},
        {xeon, {3, spread, 0, {}, 2}, {8, 9, 10}, {}},
        {xeon, {8, siblings, 0, {2, 2, 2}, 2}, {8, 24, 9, 25, 10, 26, 11, 27}, {}},
        // Where distances are not told, the device's package comes first.
        {"package:2 numa:2 core:1 pu:1", {3, compact, 0, {}, 2}, {2, 3, 0}, {}},
        {ampere, {4, compact}, {0, 1, 2, 3}, {}},
        {ampere, {4, siblings}, {0, 1, 2, 3}, {}},
        {ampere, {4, siblings, 0, {1, 2, 2}}, {0, 1, 2, 3}, {}},
        {ampere, {2, spread, 0, {}, no_index, 3}, {0, 1}, {77, 78, 79}},
        {ampere_pair, {4, spread}, {0, 80, 1, 81}, {}},
        {ampere_pair, {2, compact, 0, {}, 1}, {80, 81}, {}},
        {ampere_pair, {4, one_per_core, 0, {2, 2, 1}, no_index, 1}, {0, 1, 2, 3}, {159}},
        {ampere_pair, {160, compact, 0, {2, 80, 1}}, first_cpus(160), {}},
        {ampere_pair, {3, compact, 159}, {0, 0, 0}, first_cpus(159, 1)},
        // Node 1 has no memory and its CPUs are used; node 4 is memory alone, behind node 0.
        {odd_nodes, {5, compact}, {0, 1, 2, 3, 4}, {}},
        {odd_nodes, {3, spread, 0, {}, 1}, {4, 6, 0}, {}},
        {odd_nodes, {3, compact, 0, {}, 4}, {0, 1, 2}, {}},
        {hybrid, {10, fast_first}, {0, 2, 4, 6, 1, 3, 5, 7, 8, 10}, {}},
        {hybrid, {4, fast_first, 0, {1, 2, 2}}, {0, 1, 2, 3}, {}},
        {hybrid, {10, siblings}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 10}, {}},
        {hybrid, {6, siblings, 0, {1, 6, 1}}, {0, 2, 4, 6, 8, 10}, {}},
        {hybrid, {10, siblings, 0, {1, 10, 1}}, {0, 2, 4, 6, 8, 10, 12, 14, 1, 3}, {}},
        {apple, {6, fast_first}, {4, 5, 6, 7, 0, 1}, {}},
        {apple, {5, compact, 0, {}, no_index, 2}, {4, 5, 6, 7, 0}, {2, 3}},
        {restricted, {5, compact}, {0, 1, 2, 4, 5}, {}},
        // Whole cores first; CPU 2 has lost its sibling.
        {restricted, {5, siblings}, {0, 1, 4, 5, 2}, {}},
        {restricted, {4, one_per_core}, {0, 2, 4, 1}, {}},
        {restricted, {7, compact}, {0, 1, 2, 4, 5, 0, 1}, {}},
    }));
    INFO(r.machine << ", " << r.request.vcpus << " vCPUs, " << name_of(r.request.policy));
    const auto plan = plan_vcpus(machine(r.machine), r.request);
    REQUIRE(plan);
    CHECK(cpus_of(*plan) == r.cpus);
    CHECK(plan->io_cpus == r.io);
}

TEST_CASE("three kinds of core are taken from the fastest to the slowest") {
    cpu_topology t =
        make_topology({1, 1, 6, 1, 0}); // slow, middle, fast: 0 and 3, 1 and 4, 2 and 5
    for (logical_cpu& cpu : t.cpus) {
        cpu.kind = cpu.os_index % 3 == 0 ? cpu_kind::efficiency : cpu_kind::performance;
        cpu.faster_kinds = cpu.os_index % 3 == 1 ? 1 : 0;
    }
    const auto policy = GENERATE(compact, one_per_core, spread, siblings, fast_first);
    const auto plan = plan_vcpus(t, {5, policy, 1});
    REQUIRE(plan);
    CHECK(cpus_of(*plan) == std::vector<unsigned>{2, 5, 1, 4, 0});
    CHECK(plan->io_cpus == std::vector<unsigned>{3});
    CHECK_THAT(text_of(*plan),
               Catch::Contains("vCPU 0 -> CPU 2 (") && Catch::Contains("first performance core") &&
                   Catch::Contains(": a slower core, the faster CPUs being used up") &&
                   Catch::Contains(": an efficiency core, the faster CPUs being used up"));
}

TEST_CASE("a guest topology is completed as the numbers need it") {
    struct row {
        const char* machine;
        vcpu_request request;
        guest_topology guest;
    };
    const row r = GENERATE(values<row>({
        {epyc, {6, compact}, {1, 6, 1}},
        {epyc, {6, siblings}, {1, 3, 2}},
        {epyc, {7, siblings}, {1, 4, 2}},
        {ampere, {6, siblings}, {1, 6, 1}},
        {epyc, {7, compact, 0, {2, 0, 0}}, {2, 4, 1}},
        {epyc, {8, compact, 0, {0, 2, 2}}, {2, 2, 2}},
        {epyc, {8, compact, 0, {0, 4, 0}}, {1, 4, 2}},
        {epyc, {8, compact, 0, {2, 4, 2}}, {2, 4, 2}}, // room for more, to be added later
    }));
    const auto plan = plan_vcpus(machine(r.machine), r.request);
    REQUIRE(plan);
    CHECK(plan->guest == r.guest);
}

TEST_CASE("isolated CPUs are left alone, or are what the vCPUs get first") {
    cpu_topology t = make_topology({1, 1, 4, 2, 0});
    struct row {
        isolated_use use;
        vcpu_request request;
        os::cpu_set isolated;
        std::vector<unsigned> cpus;
        std::vector<unsigned> io;
        const char* said;
    };
    const os::cpu_set upper = set_of({4, 5, 6, 7});
    const os::cpu_set all = t.cpu_set();
    const row r = GENERATE_COPY(values<row>({
        {isolated_use::leave, {6, compact}, upper, {0, 1, 2, 3, 0, 1}, {}, "left alone: CPUs 4-7"},
        {isolated_use::leave, {2, compact, 1}, upper, {0, 1}, {3}, "left alone: CPUs 4-7"},
        {isolated_use::leave, {2, compact}, all, {0, 1}, {}, "every CPU that may be used is isol"},
        {isolated_use::first, {6, compact}, upper, {4, 5, 6, 7, 0, 1}, {}, "CPUs being used up"},
        {isolated_use::first, {1, compact, 5}, upper, {4}, {0, 1, 2, 3, 7}, "isolated"},
        {isolated_use::first, {4, one_per_core}, upper, {4, 6, 5, 7}, {}, "no isolated core being"},
        {isolated_use::like_any, {6, spread}, upper, {0, 2, 4, 6, 1, 3}, {}, "CPU 4 (spread"},
        {isolated_use::leave, {2, compact}, {}, {0, 1}, {}, "CPU 0"},
    }));
    isolate(t, r.isolated);
    vcpu_request request = r.request;
    request.isolated = r.use;
    const auto plan = plan_vcpus(t, request);
    REQUIRE(plan);
    CHECK(cpus_of(*plan) == r.cpus);
    CHECK(plan->io_cpus == r.io);
    CHECK_THAT(text_of(*plan), Catch::Contains(r.said));
    CHECK(plan->notes.empty() == (r.use != isolated_use::leave || r.isolated.empty()));
}

TEST_CASE("excluded CPUs are not used, and a core that lost a thread is a core still") {
    const cpu_topology t = make_topology({1, 1, 4, 2, 0});
    struct row {
        vcpu_policy policy;
        guest_topology guest;
        std::vector<unsigned> cpus;
    };
    const row r = GENERATE(values<row>({
        {compact, {}, {1, 2, 3, 4}},
        {one_per_core, {}, {1, 2, 4, 6}},
        {spread, {}, {1, 2, 4, 6}},
        {siblings, {}, {2, 3, 4, 5}},
        {compact, {1, 2, 2}, {2, 3, 4, 5}},
    }));
    vcpu_request request{4, r.policy, 0, r.guest};
    request.excluded = set_of({0, 99});
    const auto plan = plan_vcpus(t, request);
    REQUIRE(plan);
    CHECK(cpus_of(*plan) == r.cpus);
    CHECK(plan->cpus_available == 7);
    REQUIRE(plan->notes.size() == 1);
    CHECK(plan->notes[0] == "excluded by the request: CPUs 0");
}

TEST_CASE("reasons and notes say what could be had and what not") {
    struct row {
        const char* machine;
        vcpu_request request;
        const char* said;
    };
    const row r = GENERATE(values<row>({
        {xeon,
         {9, compact, 0, {}, 3},
         "vCPU 0 -> CPU 12 (compact: the first CPU in this order, "
         "node 3, where the device is)"},
        {xeon,
         {9, compact, 0, {}, 3},
         "a core of the next node, the last being full, node 2, at distance 12"},
        {xeon,
         {17, compact, 0, {}, 3},
         "a core of the next package, the last being full, node 0, at distance 21"},
        {xeon, {2, compact, 0, {}, 9}, "node 9 is not one that this process may use: none is near"},
        {xeon, {5, one_per_core}, "the next node, the last having no whole core free, node 1"},
        {xeon, {6, compact, 0, {2, 3, 1}}, "vCPU 3 -> CPU 17 (compact: thread 1 of the same core"},
        {xeon,
         {10, compact, 0, {2, 5, 1}},
         "vCPU 5 -> CPU 4 (compact: a guest socket begins, with room for all of it, node 1)"},
        {xeon, {34, compact, 0, {2, 17, 1}}, "2 guest sockets fit no single node or package"},
        {xeon,
         {9, one_per_core, 0, {1, 9, 1}, no_index, 8},
         "1 of a core whose other thread is taken, no core being free"},
        {xeon,
         {10, siblings, 0, {2, 5, 1}, no_index, 8},
         "no core of the guest socket's being free, node 1"},
        {ampere,
         {4, compact, 0, {1, 2, 2}},
         "apart from its guest core's other threads, no core having room for all"},
        {ampere, {4, compact, 0, {1, 2, 2}}, "2 guest cores have threads on different host cores"},
        {xeon, {2, one_per_core, 0, {1, 1, 2}}, "1 guest core has threads on different host cores"},
        {ampere, {4, fast_first}, "does not tell faster cores from others: one per core"},
        {hybrid, {5, fast_first}, "thread 1 of a core whose other thread is taken, no faster core"},
        {hybrid, {5, one_per_core}, "an efficiency core, every faster core being in use"},
        {apple, {5, compact}, "an efficiency core, the faster CPUs being used up"},
        {epyc, {2, spread}, "vCPU 1 -> CPU 32 (spread: a core of the next package in turn"},
        {restricted, {6, compact}, "shares CPU 0 with vCPU 0: 6 vCPUs on 5 CPUs"},
        {restricted, {6, compact}, "more vCPUs (6) than CPUs (5)"},
    }));
    const auto plan = plan_vcpus(machine(r.machine), r.request);
    REQUIRE(plan);
    CHECK_THAT(text_of(*plan), Catch::Contains(r.said));
}

TEST_CASE("nothing is noted where everything could be had") {
    const auto request = GENERATE(values<vcpu_request>({
        {8, compact, 2, {2, 2, 2}, 1, 1},
        {8, siblings},
        {4, spread, 0, {2, 1, 2}, no_index},
    }));
    const auto plan = plan_vcpus(machine(xeon), request);
    REQUIRE(plan);
    CHECK(plan->notes.empty());
}

TEST_CASE("every plan keeps what the planner promises") {
    const std::string name =
        GENERATE(as<std::string>{}, epyc, xeon, ampere, hybrid, apple, restricted, "four_nodes",
                 "odd_nodes", "package:2 numa:1 core:2 pu:4");
    const auto policy = GENERATE(compact, spread, one_per_core, siblings, fast_first);
    const auto guest = GENERATE(values<guest_topology>({{}, {2, 0, 1}, {1, 0, 2}, {3, 0, 2}}));
    cpu_topology t = machine(name);
    isolate(t, set_of({5, 6}));
    const auto size = static_cast<unsigned>(t.cpus.size());
    for (const unsigned vcpus : {1u, 3u, 4u, size / 2, size + 1, 2 * size + 3}) {
        for (const unsigned io : {0u, 1u}) {
            vcpu_request request{vcpus, policy, io, guest, io == 0 ? no_index : 0, io};
            request.isolated = vcpus % 2 == 0 ? isolated_use::leave : isolated_use::first;
            request.excluded = set_of({2});
            INFO(name << ", " << name_of(policy) << ", " << vcpus << " vCPUs, guest "
                      << guest.sockets << " " << guest.cores << " " << guest.threads << ", io "
                      << io);
            const auto plan = plan_vcpus(t, request);
            REQUIRE(plan);
            CHECK(*plan == *plan_vcpus(t, request));
            REQUIRE(plan->assignments.size() == vcpus);

            // Only CPUs that exist and may be used, and none that I/O has.
            std::map<unsigned, unsigned> uses;
            std::map<unsigned, unsigned> cores_with_room; // by core: usable CPUs
            const os::cpu_set io_cpus = [&] {
                os::cpu_set set;
                for (const unsigned cpu : plan->io_cpus)
                    set.insert(cpu);
                return set;
            }();
            const auto usable = [&](const logical_cpu& cpu) {
                return !request.excluded.contains(cpu.os_index) &&
                       !io_cpus.contains(cpu.os_index) &&
                       !(cpu.isolated && request.isolated == isolated_use::leave);
            };
            bool all_usable = true;
            for (const vcpu_assignment& to : plan->assignments) {
                const unsigned index = t.find_cpu(to.cpu);
                all_usable = all_usable && index != no_index && usable(t.cpus[index]);
                ++uses[to.cpu];
            }
            REQUIRE(all_usable);
            unsigned available = 0;
            for (const logical_cpu& cpu : t.cpus) {
                available += usable(cpu) ? 1u : 0u;
                if (usable(cpu)) ++cores_with_room[cpu.core];
            }
            CHECK(plan->cpus_available == available);
            CHECK(plan->overcommitted() == (vcpus > available));

            // The load is even, sharing is said, and every reason is a whole sentence.
            unsigned most = 0;
            bool said = true;
            for (const vcpu_assignment& to : plan->assignments) {
                most = std::max(most, uses[to.cpu]);
                said = said && to.shared == (uses[to.cpu] > 1) && !to.reason.empty() &&
                       !to.reason.view().ends_with("...");
            }
            CHECK(most == (vcpus + available - 1) / available);
            CHECK(said);

            // Siblings stay together where there are cores for all of them.
            const unsigned threads = plan->guest.threads;
            const unsigned guest_cores = (vcpus + threads - 1) / threads;
            unsigned room = 0;
            for (const auto& [core, cpus] : cores_with_room)
                room += cpus / threads;
            unsigned apart = 0;
            std::set<unsigned> host_cores;
            for (unsigned v = 0; v < vcpus; ++v) {
                const unsigned core = t.cpus[t.find_cpu(plan->assignments[v].cpu)].core;
                host_cores.insert(core);
                if (v % threads != 0)
                    apart += core != t.cpus[t.find_cpu(plan->assignments[v - 1].cpu)].core ? 1 : 0;
            }
            if (policy != one_per_core && guest_cores <= room && guest.sockets < 2)
                CHECK(apart == 0);
            if (policy == one_per_core && guest.sockets < 2 &&
                request.isolated == isolated_use::leave)
                CHECK(host_cores.size() == std::min<std::size_t>(vcpus, cores_with_room.size()));
        }
    }
}

TEST_CASE("the vCPUs of a guest socket share a node where nodes have room") {
    const auto policy = GENERATE(compact, spread, one_per_core, siblings, fast_first);
    const auto guest = GENERATE(values<guest_topology>({{2, 4, 1}, {4, 2, 2}, {3, 2, 2}}));
    const cpu_topology t = machine(xeon);
    const unsigned of_a_socket = guest.cores * guest.threads;
    const auto plan = plan_vcpus(t, {guest.sockets * of_a_socket, policy, 0, guest});
    REQUIRE(plan);
    std::set<unsigned> homes;
    for (const vcpu_assignment& to : plan->assignments) {
        CHECK(to.node == plan->assignments[to.vcpu - to.vcpu % of_a_socket].node);
        homes.insert(to.node);
    }
    if (policy == spread) CHECK(homes.size() == guest.sockets);
}

TEST_CASE("requests that no plan can meet are errors with a cure") {
    const cpu_topology four = make_topology({1, 1, 4, 1, 0});
    vcpu_request nothing_left{1};
    nothing_left.excluded = four.cpu_set();
    struct row {
        vcpu_request request;
        errc code;
    };
    const row r = GENERATE_COPY(values<row>({
        {{9, compact, 0, {2, 2, 2}}, errc::invalid_argument},
        {{max_planned_vcpus + 1}, errc::out_of_range},
        {{1, compact, 0, {~0u, ~0u, ~0u}}, errc::out_of_range},
        {{1, compact, 0, {}, no_index, 4}, errc::out_of_range},
        {{1, compact, 1, {}, no_index, 3}, errc::out_of_range},
        {nothing_left, errc::unavailable},
    }));
    const auto plan = plan_vcpus(four, r.request);
    REQUIRE_FALSE(plan);
    CHECK(plan.error() == r.code);
    CHECK_FALSE(plan.error().cure.empty());
}

TEST_CASE("very many vCPUs are planned") {
    const auto plan = plan_vcpus(make_topology({8, 4, 32, 2, 0}),
                                 {max_planned_vcpus, siblings, 0, {8, 0, 2}, no_index, 64});
    REQUIRE(plan);
    CHECK(plan->assignments.size() == max_planned_vcpus);
    CHECK(plan->cpus_available == 2048 - 128);
}
