/// Memory in the ratio of the nodes' bandwidths: each memory controller holds as
/// much of the guest as it can deliver.
#pragma once

#include <vm_accel/numa/strategy.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace vm_accel::inline v0 {

/// Models numa_strategy. Every node with room, with CPUs or without, gets granules
/// in the ratio of numa_node::bandwidth; a node that is full leaves its share to the
/// others, in their ratio. Rounding is carried from request to request, so many
/// small requests keep the ratio too. A request that names a node stays there as
/// far as it fits. A request is laid out in up to `Stripes` rounds over all nodes, so
/// that a part of it is spread as well; each chunk costs the kernel one mapping.
///
/// Where the topology knows no bandwidth all nodes count the same; where it knows
/// some, the others count as the slowest of these. A table measured or known
/// otherwise goes into the topology that the allocator is given: see bandwidth_probe.hpp.
template <unsigned Stripes>
struct basic_bandwidth_optimized {
    static_assert(Stripes != 0);
    static constexpr std::string_view name = "bandwidth_optimized";

    [[nodiscard]] result<memory_plan>
    plan(const memory_inventory& inventory,
         std::span<const memory_request> requests) const noexcept {
        sharing nodes{inventory};
        if (nodes.empty()) return numa_planning::no_memory_node();
        memory_plan plan;
        const numa_planning::chunk_allowance chunks{inventory, requests};
        for (unsigned r = 0; r < requests.size(); ++r) {
            std::uint64_t left = requests[r].bytes;
            if (requests[r].node != any_node) left = nodes.give_to(plan, r, requests[r].node, left);
            left = nodes.spread(plan, r, left, chunks.of(requests[r]));
            if (left == 0) continue;
            const unsigned node = nodes.fastest();
            numa_planning::append(plan, {r, node, left, os::bind_mode::prefer,
                                         numa_planning::about(*inventory.topology, node,
                                                              "no node has room for the rest")});
        }
        return plan;
    }

private:
    struct sharer {
        unsigned node = 0;
        std::uint64_t weight = 0; ///< 1 to most_weight
        std::uint64_t room = 0;   ///< bytes
        std::uint64_t given = 0;  ///< granules, not counting requests that named the node
        bool measured = false;
    };

    /// The nodes with room at the start, and how far each has been given its share.
    class sharing {
    public:
        explicit sharing(const memory_inventory& inventory)
            : topology_(*inventory.topology),
              granule_(std::max<std::uint64_t>(inventory.granule, 1)),
              at_(topology_.nodes.size(), no_index),
              share_(topology_.nodes.size(), 0) {
            std::uint64_t slowest = 0;
            std::uint64_t fastest = 0;
            for (unsigned i = 0; i < topology_.nodes.size() && i < inventory.free_bytes.size();
                 ++i) {
                if (inventory.free_bytes[i] == 0) continue;
                const std::uint64_t bandwidth = topology_.nodes[i].bandwidth;
                all_.push_back({i, bandwidth, std::min(inventory.free_bytes[i], most_room), 0,
                                bandwidth != 0});
                if (bandwidth == 0) continue;
                fastest = std::max(fastest, bandwidth);
                slowest = slowest == 0 ? bandwidth : std::min(slowest, bandwidth);
            }
            any_measured_ = slowest != 0;
            const std::uint64_t unit = fastest / most_weight + 1;
            for (unsigned i = 0; i < all_.size(); ++i) {
                sharer& s = all_[i];
                at_[s.node] = i;
                const std::uint64_t bandwidth = s.measured ? s.weight : slowest;
                s.weight = std::max<std::uint64_t>(bandwidth / unit, 1);
                push(i);
            }
            fastest_ = all_.empty() ? 0
                                    : std::max_element(all_.begin(), all_.end(),
                                                       [](const sharer& a, const sharer& b) {
                                                           return a.weight < b.weight;
                                                       })
                                          ->node;
        }

        [[nodiscard]] bool empty() const noexcept { return all_.empty(); }
        [[nodiscard]] unsigned fastest() const noexcept { return fastest_; }

        /// Gives what fits to one node, if it is among these; returns what is left.
        [[nodiscard]] std::uint64_t give_to(memory_plan& plan, unsigned request, unsigned node,
                                            std::uint64_t bytes) {
            if (node >= at_.size() || at_[node] == no_index) return bytes;
            sharer& s = all_[at_[node]];
            const std::uint64_t part = numa_planning::fitting(bytes, s.room, granule_);
            s.room -= part;
            emit(plan, request, node, part, numa_planning::about(topology_, node, "asked for"));
            return bytes - part;
        }

        /// Gives whole granules in the nodes' ratio and then the rest, in about `most`
        /// chunks; returns what did not fit.
        [[nodiscard]] std::uint64_t spread(memory_plan& plan, unsigned request, std::uint64_t bytes,
                                           std::size_t most) {
            std::uint64_t granules = bytes / granule_;
            const std::uint64_t tail = bytes % granule_;
            const std::uint64_t sharers = std::max<std::size_t>(due_.size(), 1);
            const std::uint64_t rounds = std::clamp<std::uint64_t>(
                std::min(granules, std::uint64_t{most}) / sharers, 1, Stripes);
            for (std::uint64_t round = rounds; round != 0 && granules != 0; --round) {
                const std::uint64_t wanted = (granules + round - 1) / round;
                const std::uint64_t missed = one_round(wanted, most);
                granules -= wanted - missed;
                for (const unsigned at : receivers_) {
                    emit(plan, request, all_[at].node, share_[at] * granule_, reason(all_[at]));
                    share_[at] = 0;
                }
                receivers_.clear();
                if (missed != 0) break;
            }
            if (granules != 0 || tail == 0) return granules * granule_ + tail;
            return give_tail(plan, request, tail);
        }

    private:
        /// Small enough for room times weight, and for the sum of 1,024 rooms.
        static constexpr std::uint64_t most_room = std::uint64_t{1} << 48;
        static constexpr std::uint64_t most_weight = (1u << 15) - 1;

        /// Whether `a` is due its next granule after `b`: on top of the heap is the
        /// node that has been given least for its weight, of equals the lower index.
        [[nodiscard]] bool is_later(unsigned a, unsigned b) const noexcept {
            const std::uint64_t of_a = (all_[a].given + 1) * all_[b].weight;
            const std::uint64_t of_b = (all_[b].given + 1) * all_[a].weight;
            return of_a != of_b ? of_a > of_b : a > b;
        }
        void make_heap() {
            std::make_heap(due_.begin(), due_.end(),
                           [this](unsigned a, unsigned b) { return is_later(a, b); });
        }

        /// Gives so many granules; returns those for which no node has room.
        [[nodiscard]] std::uint64_t one_round(std::uint64_t granules, std::size_t most) {
            // Many at once, in the ratio, to all nodes or to those that are due first.
            while (granules >= std::min(most, due_.size()) && !due_.empty()) {
                in_hand_.clear();
                if (most >= due_.size()) {
                    in_hand_.swap(due_);
                    std::erase_if(in_hand_, [&](unsigned at) { return is_full(at); });
                }
                while (!due_.empty() && in_hand_.size() < most)
                    if (const unsigned at = pop(); at != no_index) in_hand_.push_back(at);
                if (in_hand_.empty()) break;
                const bool any_full = in_bulk(granules);
                const bool all = due_.empty();
                if (!any_full && !all) { // what rounding left over goes to the same ones
                    due_.swap(in_hand_);
                    make_heap();
                    one_by_one(granules);
                    due_.swap(in_hand_);
                }
                put_back(all);
                if (!any_full) break;
            }
            one_by_one(granules);
            return granules;
        }

        /// To the node that is due next, one by one.
        void one_by_one(std::uint64_t& granules) {
            while (granules != 0 && !due_.empty()) {
                const unsigned at = pop();
                if (at == no_index) break;
                take(at, 1);
                push(at);
                --granules;
            }
        }

        /// Brings every node in hand to its part of all that these were given and
        /// `granules` more, rounded down, as far as it has room. Returns whether one got full.
        [[nodiscard]] bool in_bulk(std::uint64_t& granules) {
            std::uint64_t sum = granules;
            std::uint64_t weights = 0;
            for (const unsigned at : in_hand_) {
                sum += all_[at].given;
                weights += all_[at].weight;
            }
            bool any_full = false;
            for (const unsigned at : in_hand_) {
                const sharer& s = all_[at];
                const std::uint64_t part =
                    sum / weights * s.weight + sum % weights * s.weight / weights;
                const std::uint64_t more =
                    std::min({part - std::min(part, s.given), s.room / granule_, granules});
                take(at, more);
                granules -= more;
                any_full = any_full || is_full(at);
            }
            return any_full;
        }

        void put_back(bool all) {
            if (!all) {
                for (const unsigned at : in_hand_)
                    push(at);
                return;
            }
            due_.swap(in_hand_);
            std::erase_if(due_, [&](unsigned at) { return is_full(at); });
            make_heap();
        }

        void take(unsigned at, std::uint64_t granules) {
            if (granules == 0) return;
            all_[at].room -= granules * granule_;
            all_[at].given += granules;
            if (share_[at] == 0) receivers_.push_back(at);
            share_[at] += granules;
        }

        /// Less than a granule; it counts as one, so that small requests take turns.
        [[nodiscard]] std::uint64_t give_tail(memory_plan& plan, unsigned request,
                                              std::uint64_t tail) {
            if (const unsigned at = pop(); at != no_index) {
                all_[at].room -= tail;
                ++all_[at].given;
                push(at);
                emit(plan, request, all_[at].node, tail, reason(all_[at]));
                return 0;
            }
            if (tail >= too_long_) return tail;
            for (sharer& s : all_) {
                if (s.room < tail) continue;
                s.room -= tail;
                emit(plan, request, s.node, tail, reason(s));
                return 0;
            }
            too_long_ = tail;
            return tail;
        }

        [[nodiscard]] fixed_text<120> reason(const sharer& s) const noexcept {
            if (!any_measured_)
                return numa_planning::about(topology_, s.node,
                                            "equal share, no bandwidth is known");
            if (!s.measured)
                return numa_planning::about(topology_, s.node,
                                            "bandwidth unknown, counted as the slowest");
            fixed_text<120> text = numa_planning::about(topology_, s.node, "share by its ");
            return text.append_number(topology_.nodes[s.node].bandwidth).append(" MiB/s");
        }

        static void emit(memory_plan& plan, unsigned request, unsigned node, std::uint64_t bytes,
                         const fixed_text<120>& why) {
            numa_planning::append(plan, {request, node, bytes, os::bind_mode::bind, why});
        }

        [[nodiscard]] bool is_full(unsigned at) const noexcept { return all_[at].room < granule_; }

        /// A node without room for a granule is not due any more.
        void push(unsigned at) {
            if (is_full(at)) return;
            due_.push_back(at);
            std::push_heap(due_.begin(), due_.end(),
                           [this](unsigned a, unsigned b) { return is_later(a, b); });
        }
        /// The one that is due next; no_index if all are full. Some may have got full by
        /// requests that named them.
        [[nodiscard]] unsigned pop() {
            while (!due_.empty()) {
                std::pop_heap(due_.begin(), due_.end(),
                              [this](unsigned a, unsigned b) { return is_later(a, b); });
                const unsigned top = due_.back();
                due_.pop_back();
                if (!is_full(top)) return top;
            }
            return no_index;
        }

        const cpu_topology& topology_;
        std::uint64_t granule_;
        bool any_measured_ = false;
        unsigned fastest_ = 0;                       ///< the node
        std::uint64_t too_long_ = ~std::uint64_t{0}; ///< a tail for which no node had room
        std::vector<sharer> all_{};
        std::vector<unsigned> at_;          ///< by node: index into all_
        std::vector<unsigned> due_{};       ///< heap of indices into all_: room for a granule
        std::vector<unsigned> in_hand_{};   ///< taken out of due_
        std::vector<std::uint64_t> share_;  ///< granules of the round at hand, by index into all_
        std::vector<unsigned> receivers_{}; ///< indices with a share, in order
    };
};

/// Eight rounds: fine enough for a part of the guest to have most of the bandwidth,
/// few enough for the kernel's limit of mappings.
using bandwidth_optimized = basic_bandwidth_optimized<8>;

static_assert(numa_strategy<bandwidth_optimized>);

} // namespace vm_accel::inline v0
