/// Memory where there is most of it: all nodes end up with equally much left.
#pragma once

#include <vm_accel/numa/strategy.hpp>

#include <algorithm>
#include <cstddef>
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
        nodes_by_room near{inventory};
        nodes_by_room without_cpus{inventory};
        for (unsigned i = 0; i < topology.nodes.size() && i < inventory.free_bytes.size(); ++i) {
            if (inventory.free_bytes[i] != 0)
                (topology.nodes[i].cpus.empty() ? without_cpus : near).add(i);
        }
        if (near.empty() && without_cpus.empty()) return numa_planning::no_memory_node();
        memory_plan plan;
        const numa_planning::chunk_allowance chunks{inventory, requests};
        for (unsigned r = 0; r < requests.size(); ++r) {
            std::uint64_t left = requests[r].bytes;
            const std::size_t most = chunks.of(requests[r]);
            if (requests[r].node != any_node) {
                left = near.give_to(plan, r, requests[r].node, left);
                left = without_cpus.give_to(plan, r, requests[r].node, left);
            }
            left =
                near.spread(plan, r, left, most, "its share, all nodes keeping equally much free");
            left = without_cpus.spread(plan, r, left, most, "no node with CPUs has room left");
            if (left == 0) continue;
            const unsigned node = near.empty() ? without_cpus.fullest() : near.fullest();
            numa_planning::append(
                plan, {r, node, left, os::bind_mode::prefer,
                       numa_planning::about(topology, node, "no node has room for the rest")});
        }
        return plan;
    }

private:
    struct entry {
        unsigned node = 0;
        std::uint64_t room = 0;

        /// Heap order: the most room on top, of equals the lower index.
        friend bool operator<(const entry& a, const entry& b) noexcept {
            return a.room != b.room ? a.room < b.room : a.node > b.node;
        }
    };

    /// Some of the nodes, the one with the most room at hand: a heap. Entries may tell
    /// of more room than is left; they are put right when they come to the top.
    class nodes_by_room {
    public:
        explicit nodes_by_room(const memory_inventory& inventory)
            : inventory_(inventory),
              granule_(std::max<std::uint64_t>(inventory.granule, 1)),
              room_(inventory.topology->nodes.size(), 0),
              share_(inventory.topology->nodes.size(), 0) {}

        void add(unsigned node) {
            room_[node] = std::min(inventory_.free_bytes[node], most_room);
            push({node, room_[node]});
        }
        [[nodiscard]] bool empty() const noexcept { return heap_.empty(); }
        [[nodiscard]] unsigned fullest() { return top().node; }

        /// Gives what fits to one node, if it is among these; returns what is left.
        [[nodiscard]] std::uint64_t give_to(memory_plan& plan, unsigned request, unsigned node,
                                            std::uint64_t bytes) {
            if (node >= room_.size() || room_[node] == 0) return bytes;
            const std::uint64_t part = numa_planning::fitting(bytes, room_[node], granule_);
            room_[node] -= part;
            emit(plan, request, node, part, "asked for");
            return bytes - part;
        }

        /// Lowers up to `most` nodes with most room to a common level until `bytes` are
        /// given, in whole granules and then the rest; goes on with others where that
        /// was not enough. Returns what did not fit.
        [[nodiscard]] std::uint64_t spread(memory_plan& plan, unsigned request, std::uint64_t bytes,
                                           std::size_t most, std::string_view why) {
            if (bytes == 0 || heap_.empty()) return bytes;
            std::uint64_t left = bytes - bytes % granule_;
            while (left != 0 && top().room >= granule_)
                left = lower_to_level(left, most);
            for (const unsigned node : receivers_) {
                emit(plan, request, node, share_[node], why);
                share_[node] = 0;
            }
            receivers_.clear();
            // The rest goes last, so that all before it is whole.
            std::uint64_t tail = bytes % granule_;
            if (left == 0 && tail != 0 && top().room >= tail) {
                entry fullest = pop();
                room_[fullest.node] -= tail;
                push({fullest.node, room_[fullest.node]});
                emit(plan, request, fullest.node, tail, why);
                tail = 0;
            }
            return left + tail;
        }

    private:
        /// More than any node has, and small enough for 1,024 of them to be added up.
        static constexpr std::uint64_t most_room = std::uint64_t{1} << 53;

        /// Gives whole granules above the level at which `bytes` are given, or all that
        /// `most` nodes have; returns what is left. No more nodes are looked at than
        /// there are granules to give.
        [[nodiscard]] std::uint64_t lower_to_level(std::uint64_t bytes, std::size_t most) {
            std::uint64_t above = 0; // what lowering those in hand to the last one's room gives
            in_hand_.assign(1, pop());
            while (!heap_.empty() &&
                   in_hand_.size() < std::min<std::uint64_t>(bytes / granule_, most)) {
                const std::uint64_t step = (in_hand_.back().room - top().room) * in_hand_.size();
                if (above + step >= bytes) break;
                above += step;
                in_hand_.push_back(pop());
            }
            const std::uint64_t below = (bytes - above) / in_hand_.size();
            const std::uint64_t last = in_hand_.back().room;
            const std::uint64_t level = last > below ? last - below : 0;
            for (entry& e : in_hand_) {
                const std::uint64_t part =
                    std::min(bytes, numa_planning::round_down(e.room - level, granule_));
                take(e, part);
                bytes -= part;
                push(e);
            }
            // What rounding left over: granule by granule, to these alone if they are
            // as many as may be.
            std::uint64_t few = std::min(bytes, in_hand_.size() * granule_);
            bytes -= few;
            const bool others = in_hand_.size() < most;
            for (; others && few != 0 && top().room >= granule_; few -= granule_) {
                entry fullest = pop();
                take(fullest, granule_);
                push(fullest);
            }
            for (auto e = in_hand_.begin(); !others && few != 0 && e != in_hand_.end(); ++e) {
                if (room_[e->node] < granule_) continue;
                take(*e, granule_); // its entry in the heap is put right later
                few -= granule_;
            }
            return bytes + few;
        }

        void take(entry& from, std::uint64_t bytes) {
            if (bytes == 0) return;
            from.room -= bytes;
            room_[from.node] = from.room;
            if (share_[from.node] == 0) receivers_.push_back(from.node);
            share_[from.node] += bytes;
        }

        void emit(memory_plan& plan, unsigned request, unsigned node, std::uint64_t bytes,
                  std::string_view why) const {
            numa_planning::append(plan, {request, node, bytes, os::bind_mode::bind,
                                         numa_planning::about(*inventory_.topology, node, why)});
        }

        void push(const entry& e) {
            heap_.push_back(e);
            std::push_heap(heap_.begin(), heap_.end());
        }
        [[nodiscard]] entry pop() {
            const entry most = top();
            std::pop_heap(heap_.begin(), heap_.end());
            heap_.pop_back();
            return most;
        }
        /// The first entry, after those that told of too much room were put right.
        [[nodiscard]] const entry& top() {
            while (heap_.front().room != room_[heap_.front().node]) {
                std::pop_heap(heap_.begin(), heap_.end());
                heap_.back().room = room_[heap_.back().node];
                std::push_heap(heap_.begin(), heap_.end());
            }
            return heap_.front();
        }

        const memory_inventory& inventory_;
        std::uint64_t granule_;
        std::vector<std::uint64_t> room_; ///< by node
        std::vector<entry> heap_{};
        std::vector<entry> in_hand_{};
        std::vector<std::uint64_t> share_;  ///< of the request at hand, by node
        std::vector<unsigned> receivers_{}; ///< the nodes with a share, in order
    };
};

static_assert(numa_strategy<load_balanced>);

} // namespace vm_accel::inline v0
