/// An object_pool on every node, and the one that is near the thread that asks.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/numa/object_pool.hpp>
#include <vm_accel/numa/strategy.hpp>
#include <vm_accel/os/memory.hpp>
#include <vm_accel/os/threads.hpp>
#include <vm_accel/topology/cpu_topology.hpp>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

namespace vm_accel::inline v0 {

/// Objects go back to the pool that they came from: keep it beside them, as
/// standard_allocator does. Pools of a described topology are not bound to nodes.
/// Threads: open() and close() alone; the rest by any, the pools as their Lock allows.
template <class Lock = spin_lock, os::memory_platform Memory = os::native_memory,
          os::thread_platform Threads = os::native_threads>
class node_pools {
public:
    using pool_type = object_pool<Lock, Memory>;

    node_pools() = default;
    explicit node_pools(Memory memory, Threads threads = {}) noexcept
        : memory_(std::move(memory)), threads_(std::move(threads)) {}
    node_pools(const node_pools&) = delete;
    node_pools& operator=(const node_pools&) = delete;

    /// Opens a pool for each node that has memory. Errors: already_initialized;
    /// unavailable (no node has memory); those of object_pool::open. No pool is left
    /// open after an error.
    [[nodiscard]] result<> open(const cpu_topology& topology,
                                std::uint64_t capacity_bytes_each = 1u << 30) noexcept {
        if (!pools_.empty())
            return fail(errc::already_initialized, "node pools: open() was called before",
                        "close() them first");
        if (topology.memory_node_count() == 0) return numa_planning::no_memory_node();
        const bool real = !Memory::is_this_system || topology.is_this_system();
        std::vector<std::size_t> of_index(topology.nodes.size(), 0);
        for (std::size_t i = 0; i < topology.nodes.size(); ++i) {
            if (topology.nodes[i].memory_bytes == 0) continue;
            of_index[i] = pools_.size();
            pool_type& pool = pools_.emplace_back(memory_);
            const unsigned node = real ? topology.nodes[i].os_index : any_node;
            if (const result<> opened = pool.open({node, capacity_bytes_each}); !opened) {
                close();
                return fail(opened);
            }
        }
        for (unsigned i = 0; i < topology.nodes.size(); ++i) {
            const std::size_t pool = of_index[nearest_with_memory(topology, i)];
            note(by_node_, topology.nodes[i].os_index, pool);
            for (const unsigned cpu : topology.nodes[i].cpus)
                note(by_cpu_, topology.cpus[cpu].os_index, pool);
        }
        return {};
    }

    /// Closes all pools. Every object must have been freed before.
    void close() noexcept {
        pools_.clear();
        by_node_.clear();
        by_cpu_.clear();
    }

    [[nodiscard]] std::size_t size() const noexcept { return pools_.size(); }

    /// The pool of a node by the operating system's number, of the nearest for a node
    /// without memory; nullptr for no such node, and before open().
    [[nodiscard]] pool_type* of_node(unsigned node) noexcept {
        if (node >= by_node_.size() || by_node_[node] == nowhere) return nullptr;
        return &pools_[by_node_[node]];
    }

    /// The pool near the CPU that the caller runs on just now; the first where that is
    /// not known; nullptr before open(). Costs a look at the CPU's number (vDSO on Linux):
    /// a thread that stays where it is asks once.
    [[nodiscard]] pool_type* here() noexcept {
        if (pools_.empty()) return nullptr;
        const result<unsigned> cpu = threads_.current_cpu();
        if (!cpu || *cpu >= by_cpu_.size() || by_cpu_[*cpu] == nowhere) return &pools_.front();
        return &pools_[by_cpu_[*cpu]];
    }

private:
    static constexpr std::size_t nowhere = ~std::size_t{0};

    static void note(std::vector<std::size_t>& table, unsigned number, std::size_t pool) {
        if (number >= table.size()) table.resize(std::size_t{number} + 1, nowhere);
        table[number] = pool;
    }
    [[nodiscard]] static unsigned nearest_with_memory(const cpu_topology& topology,
                                                      unsigned from) noexcept {
        unsigned nearest = no_index;
        for (unsigned to = 0; to < topology.nodes.size(); ++to) {
            if (topology.nodes[to].memory_bytes == 0) continue;
            if (to == from) return to;
            if (nearest == no_index ||
                topology.distance(from, to) < topology.distance(from, nearest))
                nearest = to;
        }
        return nearest;
    }

    [[no_unique_address]] Memory memory_{};
    [[no_unique_address]] Threads threads_{};
    std::deque<pool_type> pools_{};
    std::vector<std::size_t> by_node_{}; ///< index of the pool, by the system's number of the node
    std::vector<std::size_t> by_cpu_{};  ///< the same by that of the CPU
};

} // namespace vm_accel::inline v0
