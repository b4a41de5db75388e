/// Takes CPUs in a policy's order: for a vCPU, for the threads of a guest core,
/// for a guest socket. Every CPU is used once before any is used twice.
///
/// The planner's second half; VMMs call plan_vcpus() instead.
#pragma once

#include <vm_accel/topology/cpu_topology.hpp>

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

namespace vm_accel::inline v0::vcpu_planning {

/// Where the vCPUs of a guest socket are to stay: a node, a package, or anywhere.
struct home {
    unsigned node = no_index;
    unsigned package = no_index;

    friend bool operator==(const home&, const home&) = default;
    [[nodiscard]] bool is_anywhere() const noexcept {
        return node == no_index && package == no_index;
    }
    [[nodiscard]] bool contains(const logical_cpu& cpu) const noexcept {
        return (node == no_index || cpu.node == node) &&
               (package == no_index || cpu.package == package);
    }
};

class cpu_picker {
public:
    /// `order`: at least one CPU (index), none twice. Both arguments must outlive the picker.
    cpu_picker(const cpu_topology& topology, const std::vector<unsigned>& order)
        : topology_(topology), order_(order) {
        free_.assign(topology.cpus.size(), false);
        start_round();
    }

    /// One CPU for each of `count` vCPUs that belong together: threads of one core
    /// at home if one has as many free (`whole`: rather of a core that nobody uses
    /// yet), else any CPUs, those at home first. `taking(index)` hears of each CPU
    /// while it is still free.
    template <class Taking>
    void take(unsigned count, const home& at, bool whole, Taking taking) {
        if (left_ == 0) start_round();
        if (whole && take_of_a_core(count, at, true, taking)) return;
        if (count > 1 && take_of_a_core(count, at, false, taking)) return;
        for (; count != 0; --count)
            take_one(at, taking);
    }

    /// A home for `groups` times `size` vCPUs: of the nodes, else the packages, with a core for
    /// every group, the one whose first free CPU comes first. `whole`: rather one with a core that
    /// nobody uses for every group. Anywhere if there is none.
    [[nodiscard]] home find_home(unsigned groups, unsigned size, bool whole) {
        if (left_ == 0) start_round();
        for (const bool by_core : {true, false}) {
            if (by_core && !whole) continue;
            for (const bool nodes : {true, false}) {
                const home found = find_home(groups, size, by_core, nodes);
                if (!found.is_anywhere()) return found;
            }
        }
        return {};
    }

    [[nodiscard]] bool has_free(const home& at) const noexcept {
        return std::any_of(order_.begin(), order_.end(),
                           [&](unsigned i) { return free_[i] && at.contains(topology_.cpus[i]); });
    }
    /// Whether a vCPU has a CPU of this core since every CPU was free.
    [[nodiscard]] bool is_used(unsigned core) const noexcept { return used_[core]; }
    /// Whether a faster CPU than this is free (`on_unused_core`: on a core that nobody uses).
    [[nodiscard]] bool has_faster(const logical_cpu& than, bool on_unused_core) const noexcept {
        return std::any_of(order_.begin(), order_.end(), [&](unsigned i) {
            const logical_cpu& cpu = topology_.cpus[i];
            return free_[i] && slowness_of(cpu) < slowness_of(than) &&
                   !(on_unused_core && is_used(cpu.core));
        });
    }

private:
    void start_round() {
        for (const unsigned i : order_)
            free_[i] = true;
        used_.assign(topology_.cores.size(), false);
        left_ = order_.size();
        first_ = 0;
    }

    void mark(unsigned i) {
        free_[i] = false;
        used_[topology_.cpus[i].core] = true;
        --left_;
    }

    [[nodiscard]] unsigned free_threads(unsigned core) const {
        unsigned count = 0;
        for (const unsigned i : topology_.cores[core].cpus)
            count += free_[i] ? 1u : 0u;
        return count;
    }

    template <class Taking>
    bool take_of_a_core(unsigned count, const home& at, bool whole, Taking& taking) {
        skip_taken();
        for (std::size_t k = first_; k < order_.size(); ++k) {
            const logical_cpu& cpu = topology_.cpus[order_[k]];
            if (!free_[order_[k]] || !at.contains(cpu) || (whole && is_used(cpu.core)) ||
                free_threads(cpu.core) < count)
                continue;
            for (const unsigned i : topology_.cores[cpu.core].cpus) {
                if (!free_[i] || count == 0) continue;
                taking(i);
                mark(i);
                --count;
            }
            return true;
        }
        return false;
    }

    template <class Taking>
    void take_one(const home& at, Taking& taking) {
        if (left_ == 0) start_round();
        skip_taken();
        std::size_t k = first_;
        while (k < order_.size() && !(free_[order_[k]] && at.contains(topology_.cpus[order_[k]])))
            ++k;
        if (k == order_.size()) k = first_;
        taking(order_[k]);
        mark(order_[k]);
    }

    void skip_taken() {
        while (!free_[order_[first_]])
            ++first_;
    }

    [[nodiscard]] home find_home(unsigned groups, unsigned size, bool by_core, bool nodes) const {
        // How many groups each candidate can take, in the order of their first CPU.
        std::vector<std::pair<home, std::size_t>> room;
        std::vector<bool> counted(topology_.cores.size(), false);
        for (const unsigned i : order_) {
            const logical_cpu& cpu = topology_.cpus[i];
            if (!free_[i] || counted[cpu.core] || (nodes && cpu.node == no_index)) continue;
            counted[cpu.core] = true;
            const unsigned fit = free_threads(cpu.core) / size;
            const home here = nodes ? home{cpu.node, no_index} : home{no_index, cpu.package};
            auto at = std::find_if(room.begin(), room.end(),
                                   [&](const auto& known) { return known.first == here; });
            if (at == room.end()) at = room.insert(room.end(), {here, 0});
            if (!by_core) {
                at->second += fit;
            } else if (fit != 0 && !is_used(cpu.core)) {
                ++at->second;
            }
        }
        for (const auto& [where, fit] : room)
            if (fit >= groups) return where;
        return {};
    }

    const cpu_topology& topology_;
    const std::vector<unsigned>& order_;
    std::vector<bool> free_{};
    std::vector<bool> used_{}; ///< by core, in this round
    std::size_t left_ = 0;     ///< free CPUs
    std::size_t first_ = 0;    ///< of order_; all before are taken
};

} // namespace vm_accel::inline v0::vcpu_planning
