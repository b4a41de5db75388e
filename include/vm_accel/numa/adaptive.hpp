/// Memory that follows the vCPUs: near them at first, and moved after them later.
#pragma once

#include <vm_accel/numa/local_first.hpp>
#include <vm_accel/numa/migration.hpp>
#include <vm_accel/numa/strategy.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string_view>
#include <vector>

namespace vm_accel::inline v0 {

/// Models numa_strategy, as local_first does, and migration_planner.
///
/// A region's users are vCPUs, each of which runs on some nodes for some of the time;
/// what one of their accesses costs is the mean distance from there to where the
/// memory lies. A round moves what saves most of it for a byte moved. It looks at the
/// eight best nodes with room for each region; where these get full, the next
/// round goes on. Two full nodes that hold each other's memory stay as they are.
struct adaptive {
    static constexpr std::string_view name = "adaptive";

    [[nodiscard]] result<memory_plan>
    plan(const memory_inventory& inventory,
         std::span<const memory_request> requests) const noexcept {
        return local_first{}.plan(inventory, requests);
    }

    [[nodiscard]] result<migration_plan>
    migrate(const memory_inventory& inventory, const migration_sample& sample,
            const migration_limits& limits = {}) const noexcept {
        const std::size_t nodes = inventory.topology->nodes.size();
        if (const result<> sound = check(nodes, sample); !sound) return fail(sound);
        return round{inventory, sample, limits}.decide();
    }

private:
    static constexpr unsigned most_targets = 8;

    struct target {
        unsigned node = 0;
        float estimate = 0; ///< of the cost, good enough to choose the best few
        double cost = 0;
    };

    struct origin {
        unsigned node = 0;
        double share = 0; ///< of all accesses
    };

    /// The users of a region: where they are, and the nodes that suit them best.
    struct users {
        std::vector<origin> origins{};
        double total = 0;                        ///< accesses, or time
        std::array<target, most_targets> best{}; ///< ascending by cost
        unsigned targets = 0;
    };

    /// What lies of one region on one node, and the best move left for it.
    struct part {
        unsigned region = 0;
        unsigned from = 0;
        unsigned users = 0; ///< index
        unsigned next = 0;  ///< index of the target
        std::uint64_t bytes = 0;
        double cost = 0;    ///< mean distance of an access now
        double heat = 0;    ///< accesses for each byte
        double density = 0; ///< gain for each byte

        /// Heap order: the most gain for a byte on top, of equals the first region.
        friend bool operator<(const part& a, const part& b) noexcept {
            if (a.density != b.density) return a.density < b.density;
            return a.region != b.region ? a.region > b.region : a.from > b.from;
        }
    };

    [[nodiscard]] static result<> check(std::size_t nodes, const migration_sample& sample) {
        const auto there = [&](const std::vector<share_of_node>& shares) {
            return std::all_of(shares.begin(), shares.end(),
                               [&](const share_of_node& s) { return s.node < nodes; });
        };
        const auto refuse = [](std::string_view what, std::size_t index, std::string_view why) {
            return fail(
                errc::invalid_argument,
                fixed_text<160>{"migration: "}.append(what).append_number(index).append(why),
                "sample by the indices of the topology and of the vCPUs given");
        };
        for (std::size_t v = 0; v < sample.vcpus.size(); ++v)
            if (!there(sample.vcpus[v].on_nodes))
                return refuse("vCPU ", v, " ran on a node that is not there");
        for (std::size_t r = 0; r < sample.regions.size(); ++r) {
            const region_sample& region = sample.regions[r];
            if (!there(region.on_nodes))
                return refuse("region ", r, " lies on a node that is not there");
            if (!std::all_of(region.accesses.begin(), region.accesses.end(),
                             [&](const vcpu_accesses& a) { return a.vcpu < sample.vcpus.size(); }))
                return refuse("region ", r, " was accessed by a vCPU that is not there");
        }
        return {};
    }

    /// One decision: its samples, and what is left of room and budget.
    class round {
    public:
        round(const memory_inventory& inventory, const migration_sample& sample,
              const migration_limits& limits)
            : topology_(*inventory.topology),
              granule_(std::max<std::uint64_t>(inventory.granule, 1)),
              sample_(sample),
              limits_(limits),
              room_(inventory.free_bytes) {
            room_.resize(topology_.nodes.size(), 0);
            without_room_.assign((room_.size() + block - 1) / block * block, no_room);
            for (std::size_t i = 0; i < room_.size(); ++i)
                if (room_[i] != 0) without_room_[i] = 0;
            by_node_.resize(room_.size(), 0);
            users_.reserve(sample.regions.size());
            parts_.reserve(sample.regions.size());
        }

        [[nodiscard]] migration_plan decide() {
            for (unsigned r = 0; r < sample_.regions.size(); ++r) {
                if (sample_.regions[r].rounds_in_place >= limits_.settle_rounds) consider(r);
            }
            std::make_heap(parts_.begin(), parts_.end());
            migration_plan moves;
            std::uint64_t budget = limits_.budget;
            while (!parts_.empty() && budget != 0) {
                std::pop_heap(parts_.begin(), parts_.end());
                part top = parts_.back();
                parts_.pop_back();
                const unsigned to = users_[top.users].best[top.next].node;
                const std::uint64_t fits = numa_planning::fitting(top.bytes, room_[to], granule_);
                const std::uint64_t bytes = numa_planning::fitting(fits, budget, granule_);
                if (bytes != 0)
                    moves.push_back({top.region, top.from, to, bytes,
                                     top.density * static_cast<double>(bytes)});
                room_[to] -= bytes;
                budget -= bytes;
                top.bytes -= bytes;
                // What the node has no room for may go to the next best; what the
                // budget does not allow waits.
                if (bytes != fits || top.bytes == 0) continue;
                do {
                    ++top.next;
                } while (is_full_for(top));
                if (!pays(top)) continue;
                parts_.push_back(top);
                std::push_heap(parts_.begin(), parts_.end());
            }
            return moves;
        }

    private:
        void consider(unsigned r) {
            const region_sample& region = sample_.regions[r];
            std::uint64_t bytes = 0;
            for (const share_of_node& on : region.on_nodes)
                bytes += on.share;
            if (bytes == 0) return;
            const unsigned index = users_of(region);
            const users& who = users_[index];
            if (who.targets == 0) return;
            const double heat = region.accesses.empty() ? 1.0 / static_cast<double>(granule_)
                                                        : who.total / static_cast<double>(bytes);
            for (const share_of_node& on : region.on_nodes) {
                part here{r, on.node, index, 0, on.share, cost(who, on.node), heat, 0};
                if (on.share != 0 && pays(here)) parts_.push_back(here);
            }
        }

        /// Whether the part's next target has no room for any of it.
        [[nodiscard]] bool is_full_for(const part& p) const noexcept {
            const users& who = users_[p.users];
            return p.next < who.targets &&
                   numa_planning::fitting(p.bytes, room_[who.best[p.next].node], granule_) == 0;
        }

        /// Whether the part's next target is worth a move; notes what it gains.
        [[nodiscard]] bool pays(part& p) const noexcept {
            const users& who = users_[p.users];
            if (p.next >= who.targets) return false;
            const double after = who.best[p.next].cost;
            const double margin = 1.0 + static_cast<double>(limits_.hysteresis_percent) / 100.0;
            p.density = p.heat * (p.cost - after);
            return after * margin < p.cost;
        }

        /// Regions without counted accesses share the users of their guest node.
        [[nodiscard]] unsigned users_of(const region_sample& region) {
            const auto next = static_cast<unsigned>(users_.size());
            if (region.accesses.empty()) {
                const auto [known, added] = of_guest_node_.try_emplace(region.guest_node, next);
                if (!added) return known->second;
            }
            if (region.accesses.empty()) {
                for (const vcpu_residency& vcpu : sample_.vcpus) {
                    if (region.guest_node != any_node && vcpu.guest_node != any_node &&
                        region.guest_node != vcpu.guest_node)
                        continue;
                    for (const share_of_node& on : vcpu.on_nodes)
                        add(on.node, static_cast<double>(on.share));
                }
            }
            for (const vcpu_accesses& by : region.accesses) {
                const vcpu_residency& vcpu = sample_.vcpus[by.vcpu];
                double time = 0;
                for (const share_of_node& on : vcpu.on_nodes)
                    time += static_cast<double>(on.share);
                for (const share_of_node& on : vcpu.on_nodes)
                    if (on.share != 0)
                        add(on.node, static_cast<double>(by.accesses) *
                                         (static_cast<double>(on.share) / time));
            }
            users_.push_back({});
            find_targets(users_.back());
            return next;
        }

        void add(unsigned node, double amount) {
            if (amount <= 0) return;
            if (by_node_[node] == 0) touched_.push_back(node);
            by_node_[node] += amount;
        }

        /// Takes what was added, and finds the nodes with room that are nearest to it.
        void find_targets(users& who) {
            for (const unsigned node : touched_)
                who.total += by_node_[node];
            for (const unsigned node : touched_) {
                who.origins.push_back({node, by_node_[node] / who.total});
                by_node_[node] = 0;
            }
            touched_.clear();
            if (who.origins.empty()) return;
            for (unsigned first = 0; first < room_.size(); first += block)
                look_at(who, first);
            // Both sides of every comparison are computed in the same way: two nodes that
            // cost the same never look better than each other.
            for (unsigned i = 0; i < who.targets; ++i)
                who.best[i].cost = cost(who, who.best[i].node);
            std::sort(who.best.begin(), who.best.begin() + who.targets,
                      [](const target& a, const target& b) {
                          return a.cost != b.cost ? a.cost < b.cost : a.node < b.node;
                      });
        }

        /// Mean distance of an access when the memory lies on `node`.
        [[nodiscard]] double cost(const users& who, unsigned node) const noexcept {
            double mean = 0;
            for (const origin& o : who.origins)
                mean += o.share * topology_.distance(o.node, node);
            return mean;
        }

        static constexpr unsigned block = 16; ///< nodes looked at together
        static constexpr float no_room = 1e30f;
        using estimates = std::array<float, block>;

        /// Enters those of a block's nodes that are among the best so far.
        void look_at(users& who, unsigned first) const noexcept {
            const estimates costs = estimate(who, first);
            const float limit = who.targets < most_targets ? no_room : who.best.back().estimate;
            int below = 0;
            for (unsigned i = 0; i < block; ++i)
                below += costs[i] < limit ? 1 : 0;
            for (unsigned i = 0; below != 0 && i < block; ++i) {
                if (!(costs[i] < no_room)) continue;
                if (who.targets == most_targets && !(costs[i] < who.best.back().estimate)) continue;
                unsigned at = who.targets < most_targets ? who.targets++ : most_targets - 1;
                for (; at != 0 && who.best[at - 1].estimate > costs[i]; --at)
                    who.best[at] = who.best[at - 1];
                who.best[at] = {first + i, costs[i], 0};
            }
        }

        /// cost() for a block of nodes at once, and no_room where there is none.
        [[nodiscard]] estimates estimate(const users& who, unsigned first) const noexcept {
            estimates costs{};
            std::copy_n(without_room_.begin() + first, block, costs.begin());
            const std::size_t nodes = room_.size();
            if (topology_.distances.size() != nodes * nodes || nodes - first < block) {
                for (unsigned i = 0; i < block && first + i < nodes; ++i)
                    for (const origin& o : who.origins)
                        costs[i] += static_cast<float>(o.share) *
                                    static_cast<float>(topology_.distance(o.node, first + i));
                return costs;
            }
            for (const origin& o : who.origins) {
                const std::uint32_t* const row =
                    topology_.distances.data() + o.node * nodes + first;
                const auto share = static_cast<float>(o.share);
                // Signed numbers are converted many at once.
                for (unsigned i = 0; i < block; ++i)
                    costs[i] += share * static_cast<float>(static_cast<std::int32_t>(row[i]));
            }
            return costs;
        }

        const cpu_topology& topology_;
        std::uint64_t granule_;
        const migration_sample& sample_;
        const migration_limits& limits_;
        std::vector<std::uint64_t> room_;
        std::vector<float> without_room_{}; ///< by node: 0 or no_room, in whole blocks
        std::vector<users> users_{};
        std::map<unsigned, unsigned> of_guest_node_{}; ///< index into users_
        std::vector<part> parts_{};                    ///< heap
        std::vector<double> by_node_{};                ///< what users add up, all 0 between
        std::vector<unsigned> touched_{};
    };
};

static_assert(numa_strategy<adaptive> && migration_planner<adaptive>);

} // namespace vm_accel::inline v0
