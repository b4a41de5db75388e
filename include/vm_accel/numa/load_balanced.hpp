/// Memory where there is most of it: all nodes end up with equally much left.
#pragma once

#include <vm_accel/numa/strategy.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace vm_accel::inline v0 {

/// Models numa_strategy. Each granule goes to the node with the most room left,
/// as if they were placed one by one; the granules of a request that land on one
/// node are put together. A request that names a node stays there as far as it
/// fits. Nodes without CPUs (slow or special memory) serve only when no other
/// has room. Ties go to the lower index.
struct load_balanced {
    static constexpr std::string_view name = "load_balanced";

    [[nodiscard]] result<memory_plan>
    plan(const memory_inventory& inventory,
         std::span<const memory_request> requests) const noexcept {
        const cpu_topology& topology = *inventory.topology;
        std::vector<entry> near;
        std::vector<entry> without_cpus;
        for (unsigned i = 0; i < topology.nodes.size() && i < inventory.free_bytes.size(); ++i) {
            if (inventory.free_bytes[i] == 0) continue;
            (topology.nodes[i].cpus.empty() ? without_cpus : near)
                .push_back({i, std::min(inventory.free_bytes[i], most_room)});
        }
        if (near.empty() && without_cpus.empty()) return numa_planning::no_memory_node();
        memory_plan plan;
        for (unsigned r = 0; r < requests.size(); ++r) {
            std::uint64_t left = requests[r].bytes;
            if (requests[r].node != any_node) {
                left = give(plan, r, find(near, requests[r].node), left, topology, inventory);
                left =
                    give(plan, r, find(without_cpus, requests[r].node), left, topology, inventory);
            }
            left = spread(plan, r, near, left, inventory,
                          "its share, all nodes keeping equally much free");
            left =
                spread(plan, r, without_cpus, left, inventory, "no node with CPUs has room left");
            if (left == 0) continue;
            const entry& any = near.empty() ? without_cpus.front() : near.front();
            numa_planning::append(
                plan, {r, any.node, left, os::bind_mode::prefer,
                       numa_planning::about(topology, any.node, "no node has room for the rest")});
        }
        return plan;
    }

private:
    /// More than any node has, and small enough for 1,024 of them to be added up.
    static constexpr std::uint64_t most_room = std::uint64_t{1} << 53;

    struct entry {
        unsigned node = 0;
        std::uint64_t room = 0;
    };

    [[nodiscard]] static entry* find(std::vector<entry>& entries, unsigned node) noexcept {
        for (entry& e : entries)
            if (e.node == node) return &e;
        return nullptr;
    }

    /// Gives what fits to the node that was asked for; returns what is left.
    [[nodiscard]] static std::uint64_t give(memory_plan& plan, unsigned request, entry* to,
                                            std::uint64_t bytes, const cpu_topology& topology,
                                            const memory_inventory& inventory) {
        if (to == nullptr) return bytes;
        const std::uint64_t part = numa_planning::fitting(bytes, to->room, inventory.granule);
        numa_planning::append(plan, {request, to->node, part, os::bind_mode::bind,
                                     numa_planning::about(topology, to->node, "asked for")});
        to->room -= part;
        return bytes - part;
    }

    /// Lowers the fullest entries to a common level until `bytes` are given, in
    /// whole granules and then the rest; returns what did not fit.
    [[nodiscard]] static std::uint64_t spread(memory_plan& plan, unsigned request,
                                              std::vector<entry>& entries, std::uint64_t bytes,
                                              const memory_inventory& inventory,
                                              std::string_view why) {
        if (bytes == 0 || entries.empty()) return bytes;
        std::sort(entries.begin(), entries.end(), [](const entry& a, const entry& b) {
            return a.room != b.room ? a.room > b.room : a.node < b.node;
        });
        const std::uint64_t granule = std::max<std::uint64_t>(inventory.granule, 1);
        const auto give_to = [&](entry& to, std::uint64_t part) {
            numa_planning::append(plan, {request, to.node, part, os::bind_mode::bind,
                                         numa_planning::about(*inventory.topology, to.node, why)});
            to.room -= part;
        };
        std::uint64_t tail = bytes % granule; // goes last, so that all before it is whole
        bytes -= tail;
        // The level: the first k entries, lowered to it, give `bytes`.
        std::size_t k = 0;
        std::uint64_t above = 0; // what lowering the first k to entry k's room gives
        while (k + 1 < entries.size() &&
               above + (entries[k].room - entries[k + 1].room) * (k + 1) < bytes) {
            above += (entries[k].room - entries[k + 1].room) * (k + 1);
            ++k;
        }
        const std::uint64_t below = (bytes - above) / (k + 1);
        const std::uint64_t level = entries[k].room > below ? entries[k].room - below : 0;
        std::vector<std::uint64_t> share(entries.size(), 0);
        std::uint64_t left = bytes;
        for (std::size_t i = 0; i <= k; ++i) {
            share[i] = std::min(left, numa_planning::round_down(entries[i].room - level, granule));
            left -= share[i];
        }
        // What rounding left over: a granule each, those with most room left first.
        std::vector<std::size_t> order;
        for (std::size_t i = 0; left != 0 && i < entries.size(); ++i)
            order.push_back(i);
        std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
            const std::uint64_t room_a = entries[a].room - share[a];
            const std::uint64_t room_b = entries[b].room - share[b];
            return room_a != room_b ? room_a > room_b : a < b;
        });
        for (bool progress = true; left != 0 && progress;) {
            progress = false;
            for (const std::size_t i : order) {
                if (left == 0 || entries[i].room - share[i] < granule) continue;
                share[i] += granule;
                left -= granule;
                progress = true;
            }
        }
        for (std::size_t i = 0; i < entries.size(); ++i)
            give_to(entries[i], share[i]);
        entry& most =
            *std::max_element(entries.begin(), entries.end(), [](const entry& a, const entry& b) {
                return a.room != b.room ? a.room < b.room : a.node > b.node;
            });
        if (left == 0 && tail != 0 && most.room >= tail) {
            give_to(most, tail);
            tail = 0;
        }
        return left + tail;
    }
};

static_assert(numa_strategy<load_balanced>);

} // namespace vm_accel::inline v0
