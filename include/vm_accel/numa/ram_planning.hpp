/// From a request for guest RAM to a strategy's question, and from its answer to
/// chunks of a region. Nothing here changes the system.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/numa/guest_ram_request.hpp>
#include <vm_accel/numa/ram_region.hpp>
#include <vm_accel/numa/strategy.hpp>
#include <vm_accel/os/memory_platform.hpp>
#include <vm_accel/topology/cpu_topology.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

namespace vm_accel::inline v0::ram_planning {

/// Whether node numbers of this topology mean anything to this platform.
template <os::memory_platform Memory>
[[nodiscard]] bool means_this_system(const cpu_topology& topology) noexcept {
    return !Memory::is_this_system || topology.is_this_system();
}

/// What the nodes in use can give now. Where the platform does not tell, the size
/// of the node counts.
template <os::memory_platform Memory>
[[nodiscard]] memory_inventory take_stock(const Memory& memory, const cpu_topology& topology,
                                          std::span<const unsigned> nodes, std::uint64_t granule) {
    memory_inventory inventory;
    inventory.topology = &topology;
    inventory.granule = granule;
    inventory.free_bytes.assign(topology.nodes.size(), 0);
    for (const unsigned node : nodes) {
        inventory.free_bytes[node] = topology.nodes[node].memory_bytes;
        if (!means_this_system<Memory>(topology)) continue;
        const result<std::uint64_t> told = memory.free_bytes(topology.nodes[node].os_index);
        if (told) inventory.free_bytes[node] = *told;
    }
    return inventory;
}

/// The request in the strategy's terms: one entry for each guest node. `local` is
/// where RAM without a split is local to. Errors: out_of_range, for a host node
/// that is not in use; while placement is off none is.
[[nodiscard]] inline result<std::vector<memory_request>>
questions_of(const guest_ram_request& request, std::uint64_t total, const cpu_topology& topology,
             std::span<const unsigned> nodes, unsigned local) noexcept {
    std::vector<memory_request> questions;
    if (request.split.empty()) {
        questions.push_back({total, any_node, local});
        return questions;
    }
    for (std::size_t i = 0; i < request.split.size(); ++i) {
        const guest_node_request& part = request.split[i];
        memory_request question{part.bytes, any_node, nodes.empty() ? 0 : nodes[i % nodes.size()]};
        if (part.node != any_node && nodes.empty())
            return fail(errc::out_of_range,
                        fixed_text<160>{"guest RAM: guest node "}
                            .append_number(i)
                            .append(" is to lie on node ")
                            .append_number(part.node)
                            .append(", but NUMA placement is off"),
                        "enable() nodes, or leave every guest node to any_node");
        if (part.node != any_node) {
            question.node = topology.find_node(part.node);
            if (std::find(nodes.begin(), nodes.end(), question.node) == nodes.end())
                return fail(errc::out_of_range,
                            fixed_text<160>{"guest RAM: guest node "}
                                .append_number(i)
                                .append(" is to lie on node ")
                                .append_number(part.node)
                                .append(", which is not in use or has no memory"),
                            "choose one of nodes_in_use(), or enable() more");
        }
        questions.push_back(question);
    }
    return questions;
}

/// The plan while placement is off: every guest node in one piece, anywhere.
[[nodiscard]] inline memory_plan unplaced(std::span<const memory_request> questions) {
    memory_plan plan;
    for (unsigned r = 0; r < questions.size(); ++r)
        plan.push_back({r, any_node, questions[r].bytes, os::bind_mode::none,
                        fixed_text<120>{"any node: NUMA placement is off"}});
    return plan;
}

/// The plan's chunks, one after another, with the operating system's node numbers.
[[nodiscard]] inline std::vector<ram_chunk> lay_out(const memory_plan& plan,
                                                    const cpu_topology& topology) {
    std::vector<ram_chunk> chunks;
    std::uint64_t offset = 0;
    for (const memory_chunk& planned : plan) {
        ram_chunk chunk;
        chunk.offset = offset;
        chunk.bytes = planned.bytes;
        chunk.guest_node = planned.request;
        chunk.node = planned.node == any_node ? any_node : topology.nodes[planned.node].os_index;
        chunk.mode = planned.mode;
        chunk.reason = planned.reason;
        chunks.push_back(chunk);
        offset += planned.bytes;
    }
    return chunks;
}

/// The CPUs of a node; for a node without CPUs those of the nearest that has some.
[[nodiscard]] inline os::cpu_set cpus_near(const cpu_topology& topology, unsigned node) noexcept {
    unsigned nearest = no_index;
    for (unsigned i = 0; i < topology.nodes.size() && node < topology.nodes.size(); ++i) {
        if (topology.nodes[i].cpus.empty()) continue;
        if (i == node) return topology.cpu_set_of_node(i);
        if (nearest == no_index || topology.distance(node, i) < topology.distance(node, nearest))
            nearest = i;
    }
    return topology.cpu_set_of_node(nearest);
}

} // namespace vm_accel::inline v0::ram_planning
