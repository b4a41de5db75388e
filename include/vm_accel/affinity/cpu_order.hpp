/// Which CPUs a plan may use, and the order in which a policy takes them.
///
/// The planner's first half; VMMs call plan_vcpus() instead.
#pragma once

#include <vm_accel/affinity/vcpu_request.hpp>
#include <vm_accel/topology/cpu_topology.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>
#include <vector>

namespace vm_accel::inline v0::vcpu_planning {

/// What CPUs are sorted by; the smaller comes first.
using sort_key = std::array<unsigned, 9>;

/// Orders CPUs (indices) by a key of each.
template <class Key>
void sort_by(std::vector<unsigned>& cpus, Key key) {
    std::vector<std::pair<sort_key, unsigned>> keyed;
    keyed.reserve(cpus.size());
    for (const unsigned cpu : cpus)
        keyed.emplace_back(key(cpu), cpu);
    std::sort(keyed.begin(), keyed.end());
    for (std::size_t i = 0; i < cpus.size(); ++i)
        cpus[i] = keyed[i].second;
}

/// The CPUs that are there, that the request does not exclude and nobody has reserved.
struct usable_cpus {
    std::vector<unsigned> cpus{}; ///< indices, ascending
    os::cpu_set excluded{};       ///< of the topology, by the request; numbers of the system
    os::cpu_set gone{};           ///< of the topology, no longer there
    os::cpu_set left_alone{};     ///< isolated ones that are not used
    bool only_isolated = false;   ///< there are no others, so they are used though not asked for
};

[[nodiscard]] inline usable_cpus find_usable(const cpu_topology& topology,
                                             const vcpu_request& request) {
    usable_cpus out;
    std::vector<unsigned> isolated;
    for (unsigned i = 0; i < topology.cpus.size(); ++i) {
        const logical_cpu& cpu = topology.cpus[i];
        if (request.gone.contains(cpu.os_index)) {
            out.gone.insert(cpu.os_index);
        } else if (request.excluded.contains(cpu.os_index)) {
            out.excluded.insert(cpu.os_index);
        } else if (cpu.isolated && request.isolated == isolated_use::leave) {
            isolated.push_back(i);
        } else {
            out.cpus.push_back(i);
        }
    }
    out.only_isolated = out.cpus.empty() && !isolated.empty();
    if (out.only_isolated) {
        out.cpus = std::move(isolated);
    } else {
        for (const unsigned i : isolated)
            out.left_alone.insert(topology.cpus[i].os_index);
    }
    return out;
}

/// Where an object stands among its siblings, counting only CPUs that are used.
struct ranks {
    std::vector<unsigned> thread_in_core;  ///< by CPU index
    std::vector<unsigned> core_in_cache;   ///< by core index
    std::vector<unsigned> cache_in_node;   ///< by core index
    std::vector<unsigned> node_in_package; ///< by node index; last: CPUs of no known node
};

/// For each core a number that it shares with those behind the same last cache.
/// Cores without a cache that others share count as one group.
[[nodiscard]] inline std::vector<unsigned> last_caches(const cpu_topology& topology) {
    std::vector<unsigned> cache_of(topology.cores.size(), no_index);
    std::vector<unsigned> level(topology.cores.size(), 0);
    for (unsigned c = 0; c < topology.caches.size(); ++c) {
        const cpu_cache& cache = topology.caches[c];
        const auto core_of = [&](unsigned cpu) { return topology.cpus[cpu].core; };
        if (cache.cpus.empty() || core_of(cache.cpus.front()) == core_of(cache.cpus.back()))
            continue;
        for (const unsigned cpu : cache.cpus) {
            if (cache.level < level[core_of(cpu)]) continue;
            level[core_of(cpu)] = cache.level;
            cache_of[core_of(cpu)] = c;
        }
    }
    return cache_of;
}

[[nodiscard]] inline ranks rank_siblings(const cpu_topology& topology,
                                         const std::vector<unsigned>& usable) {
    ranks out;
    const std::size_t nodes = topology.nodes.size();
    const std::vector<unsigned> cache_of = last_caches(topology);
    std::vector<unsigned> threads_seen(topology.cores.size(), 0);
    std::vector<unsigned> nodes_seen(topology.packages.size(), 0);
    /// The caches of one node in the order of their first core, with the cores so far.
    std::vector<std::vector<std::pair<unsigned, unsigned>>> caches_seen(nodes + 1);
    out.thread_in_core.assign(topology.cpus.size(), 0);
    out.core_in_cache.assign(topology.cores.size(), 0);
    out.cache_in_node.assign(topology.cores.size(), 0);
    out.node_in_package.assign(nodes + 1, no_index);
    for (const unsigned i : usable) {
        const logical_cpu& cpu = topology.cpus[i];
        const std::size_t node = std::min<std::size_t>(cpu.node, nodes);
        out.thread_in_core[i] = threads_seen[cpu.core]++;
        if (out.node_in_package[node] == no_index)
            out.node_in_package[node] = nodes_seen[cpu.package]++;
        if (out.thread_in_core[i] != 0) continue;
        auto& caches = caches_seen[node];
        auto at = std::find_if(caches.begin(), caches.end(),
                               [&](const auto& seen) { return seen.first == cache_of[cpu.core]; });
        if (at == caches.end()) at = caches.insert(caches.end(), {cache_of[cpu.core], 0});
        out.cache_in_node[cpu.core] = static_cast<unsigned>(at - caches.begin());
        out.core_in_cache[cpu.core] = at->second++;
    }
    return out;
}

/// How far a CPU is from the node that the request wants to be near: smaller is
/// nearer, and among equals the node's package comes first. 0 if none is wanted.
[[nodiscard]] inline unsigned farness(const cpu_topology& topology, unsigned device_node,
                                      const logical_cpu& cpu) noexcept {
    if (device_node == no_index) return 0;
    if (cpu.node == no_index) return no_index;
    if (cpu.node == device_node) return 0;
    const std::vector<unsigned>& there = topology.nodes[device_node].cpus;
    const bool beyond = there.empty() || topology.cpus[there.front()].package != cpu.package;
    return topology.distance(device_node, cpu.node) * 2 + (beyond ? 1 : 0);
}

[[nodiscard]] inline sort_key key_of(const cpu_topology& topology, const ranks& rank,
                                     unsigned index, vcpu_policy policy, unsigned device_node,
                                     isolated_use isolated) noexcept {
    const logical_cpu& cpu = topology.cpus[index];
    const unsigned late = isolated == isolated_use::first && !cpu.isolated ? 1 : 0;
    const unsigned slow = slowness_of(cpu);
    const unsigned away = farness(topology, device_node, cpu);
    const unsigned thread = rank.thread_in_core[index];
    const std::size_t node = std::min<std::size_t>(cpu.node, topology.nodes.size());
    switch (policy) {
    case vcpu_policy::compact:
    case vcpu_policy::siblings_together:
        return {late, slow, away, cpu.package, cpu.node, cpu.core, thread, index};
    case vcpu_policy::one_per_core:
        return {late, thread, slow, away, cpu.package, cpu.node, cpu.core, index};
    case vcpu_policy::performance_first:
        return {late, slow, thread, away, cpu.package, cpu.node, cpu.core, index};
    case vcpu_policy::spread:
        return {late,
                thread,
                slow,
                away,
                rank.core_in_cache[cpu.core],
                rank.cache_in_node[cpu.core],
                rank.node_in_package[node],
                cpu.package,
                index};
    }
    return {index};
}

/// Takes the CPUs for I/O out of `usable` and returns them. Among the nearest to
/// the wanted node it is the far end of the compact order, so efficiency cores
/// and last threads serve I/O. Takes fewer if there are too few.
[[nodiscard]] inline std::vector<unsigned> take_for_io(const cpu_topology& topology,
                                                       const vcpu_request& request,
                                                       unsigned device_node,
                                                       std::vector<unsigned>& usable) {
    const ranks rank = rank_siblings(topology, usable);
    std::vector<unsigned> order = usable;
    sort_by(order, [&](unsigned i) {
        const logical_cpu& cpu = topology.cpus[i];
        const sort_key compact =
            key_of(topology, rank, i, vcpu_policy::compact, no_index, isolated_use::like_any);
        sort_key key{request.isolated == isolated_use::first && cpu.isolated ? 1u : 0u,
                     farness(topology, device_node, cpu)};
        for (std::size_t k = 0; k + 2 < key.size(); ++k)
            key[k + 2] = ~compact[k];
        return key;
    });
    std::vector<unsigned> taken;
    const auto take = [&](unsigned cpu) {
        taken.push_back(cpu);
        std::erase(usable, cpu);
    };
    unsigned cores = 0;
    for (std::size_t i = 0; i < order.size() && cores < request.io_cores; ++i) {
        const unsigned core = topology.cpus[order[i]].core;
        if (std::find(taken.begin(), taken.end(), order[i]) != taken.end()) continue;
        for (const unsigned cpu : topology.cores[core].cpus)
            if (std::find(order.begin(), order.end(), cpu) != order.end()) take(cpu);
        ++cores;
    }
    std::erase_if(order, [&](unsigned cpu) {
        return std::find(taken.begin(), taken.end(), cpu) != taken.end();
    });
    for (std::size_t i = 0; i < order.size() && i < request.io_cpus; ++i)
        take(order[i]);
    return taken;
}

} // namespace vm_accel::inline v0::vcpu_planning
