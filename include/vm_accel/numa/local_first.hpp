/// Memory near the CPUs that use it: the wanted node first, then by distance.
#pragma once

#include <vm_accel/numa/nearest_room.hpp>
#include <vm_accel/numa/strategy.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>

namespace vm_accel::inline v0 {

/// Models numa_strategy. A request goes to its own node, or the local one where
/// it names none; what does not fit there goes to the next nearest with room.
struct local_first {
    static constexpr std::string_view name = "local_first";

    [[nodiscard]] result<memory_plan>
    plan(const memory_inventory& inventory,
         std::span<const memory_request> requests) const noexcept {
        const cpu_topology& topology = *inventory.topology;
        const auto last = static_cast<unsigned>(topology.nodes.size());
        numa_planning::nearest_room room{topology, inventory.free_bytes, inventory.granule};
        numa_planning::nearest_room usable = room;
        memory_plan plan;
        plan.reserve(requests.size());
        for (unsigned r = 0; r < requests.size(); ++r) {
            const memory_request& request = requests[r];
            const unsigned wanted =
                std::min(request.node == any_node ? request.local : request.node,
                         last - (last == 0 ? 0 : 1));
            std::uint64_t left = request.bytes;
            while (left != 0) {
                const unsigned node = room.find(wanted, left);
                if (node == no_index) break;
                const std::uint64_t part =
                    numa_planning::fitting(left, room.of(node), inventory.granule);
                numa_planning::append(
                    plan, {r, node, part, os::bind_mode::bind, reason(topology, wanted, node)});
                room.take(node, part);
                left -= part;
            }
            if (left == 0) continue;
            const unsigned node = usable.find(wanted, 1);
            if (node == no_index) return numa_planning::no_memory_node();
            numa_planning::append(
                plan,
                {r, node, left, os::bind_mode::prefer,
                 numa_planning::about(topology, node, "nearest; no node has room for the rest")});
        }
        return plan;
    }

private:
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
