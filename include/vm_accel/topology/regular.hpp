/// Machines that are the same all over, described by a few numbers.
///
/// What the fixed platform and dry runs plan for when nobody gives them a
/// recorded machine. No library and no system call is involved.
#pragma once

#include <vm_accel/topology/cpu_topology.hpp>

#include <cstdint>

namespace vm_accel::inline v0 {

struct regular_machine {
    unsigned packages = 1;
    unsigned nodes_per_package = 1;
    unsigned cores_per_node = 4;
    unsigned threads_per_core = 2;
    std::uint64_t bytes_per_node = std::uint64_t{4} << 30;
};

/// The topology of such a machine. CPUs are numbered core by core, L1 and L2
/// belong to a core, L3 to a node; distances are 10 within a node, 12 within a
/// package and 21 beyond. Empty if one of the counts is 0 or there would be more
/// than cpu_set::capacity CPUs.
[[nodiscard]] inline cpu_topology make_topology(const regular_machine& machine) noexcept {
    cpu_topology topology;
    const std::uint64_t node_count = std::uint64_t{machine.packages} * machine.nodes_per_package;
    const std::uint64_t core_count = node_count * machine.cores_per_node;
    constexpr std::uint64_t limit = os::cpu_set::capacity;
    if (node_count == 0 || node_count > limit || core_count == 0 || core_count > limit ||
        machine.threads_per_core == 0 || core_count * machine.threads_per_core > limit)
        return topology;
    for (unsigned p = 0; p < machine.packages; ++p) {
        topology.packages.push_back({p, {}});
        for (unsigned n = 0; n < machine.nodes_per_package; ++n) {
            const auto node = static_cast<unsigned>(topology.nodes.size());
            topology.nodes.push_back({node, machine.bytes_per_node, {}});
            for (unsigned c = 0; c < machine.cores_per_node; ++c) {
                const auto core = static_cast<unsigned>(topology.cores.size());
                topology.cores.push_back({core, p, node, cpu_kind::unknown, {}});
                for (unsigned t = 0; t < machine.threads_per_core; ++t) {
                    const auto cpu = static_cast<unsigned>(topology.cpus.size());
                    topology.cpus.push_back({cpu, core, p, node, t, cpu_kind::unknown});
                    topology.cores[core].cpus.push_back(cpu);
                    topology.nodes[node].cpus.push_back(cpu);
                    topology.packages[p].cpus.push_back(cpu);
                }
            }
        }
    }
    for (const cpu_core& core : topology.cores)
        topology.caches.push_back({1, 32u << 10, 64, core.cpus});
    for (const cpu_core& core : topology.cores)
        topology.caches.push_back({2, 1u << 20, 64, core.cpus});
    for (const numa_node& node : topology.nodes)
        topology.caches.push_back({3, 32u << 20, 64, node.cpus});
    for (unsigned from = 0; from < node_count; ++from)
        for (unsigned to = 0; to < node_count; ++to)
            topology.distances.push_back(
                from == to                                                           ? 10
                : from / machine.nodes_per_package == to / machine.nodes_per_package ? 12
                                                                                     : 21);
    return topology;
}

} // namespace vm_accel::inline v0
