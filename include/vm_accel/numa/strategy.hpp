/// What a NUMA strategy is: a pure planner from memory requests to nodes.
///
/// A strategy sees the topology and how much each node can give, and answers
/// with chunks: so many bytes on that node, for this reason. It calls no system
/// function, holds no state and gives the same answer to the same question.
#pragma once

#include <vm_accel/core/fixed_text.hpp>
#include <vm_accel/core/result.hpp>
#include <vm_accel/os/memory_platform.hpp>
#include <vm_accel/topology/cpu_topology.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string_view>
#include <vector>

namespace vm_accel::inline v0 {

/// No node in particular: the strategy chooses.
inline constexpr unsigned any_node = no_index;

/// What there is to plan with.
struct memory_inventory {
    const cpu_topology* topology = nullptr;
    std::vector<std::uint64_t> free_bytes{}; ///< by node index; 0 takes a node out of planning
    std::uint64_t granule = 2u << 20;        ///< chunks end on multiples of it within a request
    /// About how many chunks a plan may have: each is a mapping, of which Linux gives a
    /// process 65,530 (vm.max_map_count). Strategies that spread a request spread it
    /// over fewer nodes instead; where nodes are full there may be more.
    std::size_t most_chunks = 8192;
};

/// One piece of guest RAM, or one guest node.
struct memory_request {
    std::uint64_t bytes = 0;
    unsigned node = any_node; ///< index of the host node wanted
    unsigned local = 0;       ///< index of the node whose CPUs will use it, a hint with any_node
};

/// Part of a request on one node. The chunks of a request follow one another in
/// the order of its addresses and add up to its bytes.
struct memory_chunk {
    unsigned request = 0; ///< index into the requests
    unsigned node = 0;    ///< index of the host node
    std::uint64_t bytes = 0;
    /// `bind` where the node has the room; `prefer` beyond that, so that the
    /// kernel may use another node instead of running out of memory.
    os::bind_mode mode = os::bind_mode::bind;
    fixed_text<120> reason{};

    friend bool operator==(const memory_chunk&, const memory_chunk&) = default;
};

using memory_plan = std::vector<memory_chunk>;

/// Decides which node each byte goes to.
/// plan() covers every request exactly, in order, uses only nodes with free_bytes
/// above 0, and binds no more to a node than its free_bytes. A request for more
/// than all nodes have is planned too: the excess gets the mode `prefer`.
/// Errors: unavailable, when no node has memory.
/// Threads: const, so any.
template <class S>
concept numa_strategy =
    std::default_initializable<S> && requires(const S strategy, const memory_inventory& inventory,
                                              std::span<const memory_request> requests) {
        { S::name } -> std::convertible_to<std::string_view>;
        { strategy.plan(inventory, requests) } noexcept -> std::same_as<result<memory_plan>>;
    };

namespace numa_planning {

[[nodiscard]] inline tl::unexpected<error> no_memory_node() noexcept {
    return fail(errc::unavailable, "planning memory: no node has memory that may be used",
                "allow the process a node with memory (cpuset.mems)");
}

[[nodiscard]] constexpr std::uint64_t round_down(std::uint64_t bytes,
                                                 std::uint64_t granule) noexcept {
    return granule == 0 ? bytes : bytes - bytes % granule;
}

/// `bytes` as it can be taken from a node with `room` left: all of it if it
/// fits, else whole granules.
[[nodiscard]] constexpr std::uint64_t fitting(std::uint64_t bytes, std::uint64_t room,
                                              std::uint64_t granule) noexcept {
    return bytes <= room ? bytes : round_down(room, granule);
}

/// "node N (reason)" as the operating system numbers nodes.
[[nodiscard]] inline fixed_text<120> about(const cpu_topology& topology, unsigned node,
                                           std::string_view why) noexcept {
    fixed_text<120> text{"node "};
    return text.append_number(topology.nodes[node].os_index).append(": ").append(why);
}

/// How many chunks each request may become: one, and of the rest as its size demands.
class chunk_allowance {
public:
    chunk_allowance(const memory_inventory& inventory,
                    std::span<const memory_request> requests) noexcept
        : spare_(inventory.most_chunks > requests.size()
                     ? static_cast<double>(inventory.most_chunks - requests.size())
                     : 0.0) {
        for (const memory_request& request : requests)
            total_ += static_cast<double>(request.bytes);
    }
    [[nodiscard]] std::size_t of(const memory_request& request) const noexcept {
        if (request.bytes == 0) return 1;
        return 1 + static_cast<std::size_t>(spare_ * (static_cast<double>(request.bytes) / total_));
    }

private:
    double spare_;
    double total_ = 0;
};

/// Appends a chunk, or enlarges the last one where it only continues it.
inline void append(memory_plan& plan, const memory_chunk& chunk) {
    if (chunk.bytes == 0) return;
    if (!plan.empty()) {
        memory_chunk& last = plan.back();
        if (last.request == chunk.request && last.node == chunk.node && last.mode == chunk.mode) {
            last.bytes += chunk.bytes;
            return;
        }
    }
    plan.push_back(chunk);
}

} // namespace numa_planning

} // namespace vm_accel::inline v0
