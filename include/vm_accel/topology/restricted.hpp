/// A machine without some of its CPUs, as a process in a cpuset sees it.
#pragma once

#include <vm_accel/os/cpu_set.hpp>
#include <vm_accel/topology/cpu_topology.hpp>

#include <utility>
#include <vector>

namespace vm_accel::inline v0 {

/// The same machine with only those of its CPUs. Cores and caches that lose all of theirs go;
/// packages and nodes stay, a node being then one of memory alone, and so do the distances.
/// Threads of a core are counted anew. Pure.
[[nodiscard]] inline cpu_topology restricted_to(const cpu_topology& topology,
                                                const os::cpu_set& cpus) noexcept {
    cpu_topology out = topology;
    std::vector<unsigned> cpu_now(topology.cpus.size(), no_index);
    std::vector<unsigned> core_now(topology.cores.size(), no_index);
    out.cpus.clear();
    out.cores.clear();
    for (unsigned i = 0; i < topology.cpus.size(); ++i) {
        logical_cpu cpu = topology.cpus[i];
        if (!cpus.contains(cpu.os_index)) continue;
        unsigned& core = core_now[cpu.core];
        if (core == no_index) {
            core = static_cast<unsigned>(out.cores.size());
            out.cores.push_back(topology.cores[cpu.core]);
            out.cores.back().cpus.clear();
        }
        cpu_now[i] = static_cast<unsigned>(out.cpus.size());
        cpu.core = core;
        cpu.smt_index = static_cast<unsigned>(out.cores[core].cpus.size());
        out.cores[core].cpus.push_back(cpu_now[i]);
        out.cpus.push_back(cpu);
    }
    const auto renumber = [&](std::vector<unsigned>& members) {
        std::vector<unsigned> left;
        for (const unsigned cpu : members)
            if (cpu_now[cpu] != no_index) left.push_back(cpu_now[cpu]);
        members = std::move(left);
    };
    for (cpu_package& package : out.packages)
        renumber(package.cpus);
    for (numa_node& node : out.nodes)
        renumber(node.cpus);
    for (cpu_cache& cache : out.caches)
        renumber(cache.cpus);
    std::erase_if(out.caches, [](const cpu_cache& cache) { return cache.cpus.empty(); });
    return out;
}

} // namespace vm_accel::inline v0
