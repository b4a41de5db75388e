/// Memory near the CPUs that use it: the wanted node first, then by distance.
#pragma once

#include <vm_accel/numa/strategy.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace vm_accel::inline v0 {

/// Models numa_strategy. A request goes to its own node, or the local one where
/// it names none; what does not fit there goes to the next nearest with room.
struct local_first {
    static constexpr std::string_view name = "local_first";

    [[nodiscard]] result<memory_plan>
    plan(const memory_inventory& inventory,
         std::span<const memory_request> requests) const noexcept {
        const cpu_topology& topology = *inventory.topology;
        std::vector<std::uint64_t> room = inventory.free_bytes;
        room.resize(topology.nodes.size(), 0);
        std::vector<bool> usable;
        for (const std::uint64_t bytes : room)
            usable.push_back(bytes != 0);
        memory_plan plan;
        for (unsigned r = 0; r < requests.size(); ++r) {
            const unsigned wanted = std::min<unsigned>(
                requests[r].node == any_node ? requests[r].local : requests[r].node,
                static_cast<unsigned>(topology.nodes.size() - (topology.nodes.empty() ? 0 : 1)));
            std::uint64_t left = requests[r].bytes;
            unsigned nearest = no_index;
            // The common case needs no sorting.
            if (wanted < room.size() && left <= room[wanted]) {
                take(plan, r, wanted, left, os::bind_mode::bind, reason(topology, wanted, wanted));
                room[wanted] -= left;
                continue;
            }
            for (const unsigned node : by_distance(topology, wanted)) {
                if (!usable[node]) continue;
                if (nearest == no_index) nearest = node;
                const std::uint64_t part =
                    numa_planning::fitting(left, room[node], inventory.granule);
                take(plan, r, node, part, os::bind_mode::bind, reason(topology, wanted, node));
                room[node] -= part;
                left -= part;
                if (left == 0) break;
            }
            if (nearest == no_index) return numa_planning::no_memory_node();
            take(plan, r, nearest, left, os::bind_mode::prefer,
                 numa_planning::about(topology, nearest, "nearest; no node has room for the rest"));
        }
        return plan;
    }

private:
    static void take(memory_plan& plan, unsigned request, unsigned node, std::uint64_t bytes,
                     os::bind_mode mode, const fixed_text<120>& why) {
        numa_planning::append(plan, {request, node, bytes, mode, why});
    }

    [[nodiscard]] static std::vector<unsigned> by_distance(const cpu_topology& topology,
                                                           unsigned from) {
        std::vector<unsigned> order;
        for (unsigned i = 0; i < topology.nodes.size(); ++i)
            order.push_back(i);
        std::sort(order.begin(), order.end(), [&](unsigned a, unsigned b) {
            if ((a == from) != (b == from)) return a == from;
            const std::uint32_t to_a = topology.distance(from, a);
            const std::uint32_t to_b = topology.distance(from, b);
            return to_a != to_b ? to_a < to_b : a < b;
        });
        return order;
    }

    [[nodiscard]] static fixed_text<120> reason(const cpu_topology& topology, unsigned wanted,
                                                unsigned node) noexcept {
        if (node == wanted) return numa_planning::about(topology, node, "local");
        fixed_text<120> text = numa_planning::about(topology, node, "nearest with room, distance ");
        text.append_number(topology.distance(wanted, node)).append(" from node ");
        text.append_number(topology.nodes[wanted].os_index);
        if (topology.nodes[wanted].memory_bytes == 0) text.append(", which has no memory");
        return text;
    }
};

static_assert(numa_strategy<local_first>);

} // namespace vm_accel::inline v0
