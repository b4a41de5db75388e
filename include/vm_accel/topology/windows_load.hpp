/// This machine's topology on Windows. Empty on other systems (os/topology_source.hpp).
///
/// Read from GetLogicalProcessorInformationEx() itself rather than through hwloc:
/// one call tells all, groups of 64 CPUs included, and no library has to be built.
#pragma once

#include <vm_accel/os/topology_source.hpp>

#if VM_ACCEL_HAS_WINDOWS_TOPOLOGY

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/memory.hpp>
#include <vm_accel/os/physical_memory.hpp>
#include <vm_accel/os/threads.hpp>
#include <vm_accel/os/windows_processors.hpp>
#include <vm_accel/topology/cpu_topology.hpp>
#include <vm_accel/topology/loading.hpp>
#include <vm_accel/topology/windows_records.hpp>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace vm_accel::inline v0::topology_reading {

/// Windows tells how much of a node is free, not how much it has. A single node has
/// the machine's memory; of several, each counts what was free when this was read.
inline void read_node_sizes(cpu_topology& out) noexcept {
    for (numa_node& node : out.nodes) {
        const result<std::uint64_t> room = os::native_memory{}.free_bytes(node.os_index);
        if (room) node.memory_bytes = *room;
    }
    if (out.nodes.size() == 1 || out.memory_node_count() == 0)
        out.nodes.front().memory_bytes = os::physical_memory_bytes();
}

/// This machine: see load_topology().
[[nodiscard]] inline result<cpu_topology> read_this_machine(topology_options options) noexcept {
    const result<std::vector<std::byte>> records =
        os::processor_records(os::windows_abi::relation::all);
    if (!records) return fail(records);
    // Before Windows Server 2022 a node is within one group, and this request unknown.
    const result<std::vector<std::byte>> nodes =
        os::processor_records(os::windows_abi::relation::numa_node_ex);
    std::optional<os::cpu_set> allowed;
    if (options.honour_binding) {
        const result<os::cpu_set> set = os::native_threads{}.allowed_cpus();
        if (!set) return fail(set);
        allowed = *set;
    }
    result<cpu_topology> topology = topology_from_windows_records(
        *records, nodes ? std::span<const std::byte>{*nodes} : std::span<const std::byte>{},
        allowed);
    if (!topology) return topology;
    topology->source = topology_source::this_system;
    read_node_sizes(*topology);
    return topology;
}

} // namespace vm_accel::inline v0::topology_reading

#endif
