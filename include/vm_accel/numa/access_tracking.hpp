/// How much of what vCPUs access lies on their own node, and where the rest lies.
///
/// Two sources, and every figure says which it is of: the estimate by placement (a
/// vCPU accesses all memory of its guest node alike, from where it ran), and the
/// processor's own counters.
#pragma once

#include <vm_accel/numa/migration.hpp>
#include <vm_accel/os/placement_platform.hpp>
#include <vm_accel/topology/cpu_topology.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace vm_accel::inline v0 {

enum class access_source : std::uint8_t {
    none,               ///< nothing is known
    placement_estimate, ///< where vCPUs ran, and where sampled pages lay
    hardware_counter,   ///< loads counted by the processor
};

[[nodiscard]] constexpr std::string_view name_of(access_source source) noexcept {
    switch (source) {
    case access_source::none:
        return "unknown";
    case access_source::placement_estimate:
        return "placement estimate";
    case access_source::hardware_counter:
        return "hardware counter";
    }
    return "unknown";
}

/// The part of some accesses that memory of the same node answers.
struct local_access_rate {
    double rate = 0; ///< 0 to 1; means nothing without a source
    access_source source = access_source::none;

    friend bool operator==(const local_access_rate&, const local_access_rate&) = default;
};

/// "98.4 % (placement estimate)", or "unknown"
template <class Stream>
    requires requires(Stream& out, std::string_view text) { out << text; }
Stream& operator<<(Stream& out, const local_access_rate& local) {
    fixed_text<64> text;
    if (local.source != access_source::none) {
        const auto tenths = static_cast<std::uint64_t>(local.rate * 1000 + 0.5);
        text.append_number(tenths / 10).append(".").append_number(tenths % 10).append(" % (");
        text.append(name_of(local.source)).append(")");
    } else {
        text.append(name_of(local.source));
    }
    out << text.view();
    return out;
}

/// What the accesses of one round were.
struct access_tracking {
    std::vector<local_access_rate> vcpus{};   ///< as the sampled vCPUs
    std::vector<local_access_rate> regions{}; ///< as the sampled regions; always estimates
    local_access_rate all{};                  ///< hardware_counter if all of it was counted
    std::size_t nodes = 0;
    /// The part of all accesses that goes from one node's CPUs to one node's memory, row
    /// by row; adds up to 1, or is 0 where nothing is known.
    std::vector<double> matrix{};
    double mean_distance = 0; ///< of an access, by the topology's distances; 10 is local

    /// From the CPUs of one node to the memory of another, by index.
    [[nodiscard]] double share(unsigned from, unsigned to) const noexcept {
        return from < nodes && to < nodes ? matrix[from * nodes + to] : 0;
    }
};

namespace access_estimation {

/// Memory by node, of one guest node or of all.
using spread = std::vector<double>;

[[nodiscard]] inline double sum_of(const std::vector<share_of_node>& shares) noexcept {
    double total = 0;
    for (const share_of_node& on : shares)
        total += static_cast<double>(on.share);
    return total;
}

/// The part of `on` that lies where `to` lies, both taken as parts of their sums.
[[nodiscard]] inline double overlap(const std::vector<share_of_node>& on, const spread& to) {
    double total = 0;
    for (const double bytes : to)
        total += bytes;
    const double time = sum_of(on);
    double local = 0;
    if (total <= 0 || time <= 0) return 0;
    for (const share_of_node& ran : on)
        local += static_cast<double>(ran.share) / time * to[ran.node] / total;
    return local;
}

} // namespace access_estimation

/// `counted`, if any: one entry for each vCPU, empty where its accesses were not counted;
/// how much of a vCPU's accesses is remote is then taken from it, and to which nodes from
/// the estimate. Indices of nodes must be the topology's. Linear in nodes times (vCPUs and
/// guest nodes), and in regions.
[[nodiscard]] inline access_tracking
track_accesses(const cpu_topology& topology, const migration_sample& sample,
               std::span<const std::optional<os::counted_accesses>> counted = {}) {
    namespace est = access_estimation;
    access_tracking out;
    out.nodes = topology.nodes.size();
    out.matrix.assign(out.nodes * out.nodes, 0);
    // Memory by guest node; that of any_node is everybody's.
    std::map<unsigned, est::spread> memory;
    est::spread everything(out.nodes, 0);
    est::spread& common = memory.try_emplace(any_node, out.nodes, 0.0).first->second;
    for (const region_sample& region : sample.regions) {
        est::spread& mine = memory.try_emplace(region.guest_node, out.nodes, 0.0).first->second;
        for (const share_of_node& on : region.on_nodes) {
            mine[on.node] += static_cast<double>(on.share);
            everything[on.node] += static_cast<double>(on.share);
        }
    }
    const auto memory_of = [&](unsigned guest_node) {
        if (guest_node == any_node) return everything;
        est::spread used = common;
        if (const auto own = memory.find(guest_node); own != memory.end())
            for (std::size_t n = 0; n < out.nodes; ++n)
                used[n] += own->second[n];
        return used;
    };

    double weight = 0;
    double local = 0;
    bool all_counted = true;
    std::map<unsigned, est::spread> time; ///< of vCPUs, by guest node
    for (std::size_t v = 0; v < sample.vcpus.size(); ++v) {
        const vcpu_residency& vcpu = sample.vcpus[v];
        local_access_rate& rate = out.vcpus.emplace_back();
        est::spread& ran = time.try_emplace(vcpu.guest_node, out.nodes, 0.0).first->second;
        for (const share_of_node& on : vcpu.on_nodes)
            ran[on.node] += static_cast<double>(on.share);
        const est::spread used = memory_of(vcpu.guest_node);
        double total = 0;
        for (const double bytes : used)
            total += bytes;
        const double own = est::sum_of(vcpu.on_nodes);
        if (total <= 0 || own <= 0) continue;
        const double estimate = est::overlap(vcpu.on_nodes, used);
        rate = {estimate, access_source::placement_estimate};
        const double amount = own; // accesses, in the unit of the others
        if (v < counted.size() && counted[v] && counted[v]->local + counted[v]->remote != 0) {
            const auto loads = static_cast<double>(counted[v]->local);
            rate = {loads / (loads + static_cast<double>(counted[v]->remote)),
                    access_source::hardware_counter};
        } else {
            all_counted = false;
        }
        weight += amount;
        local += amount * rate.rate;
        for (const share_of_node& on : vcpu.on_nodes) {
            const double from_here = amount * static_cast<double>(on.share) / own;
            const double here = used[on.node] / total;
            const bool by_counter = rate.source == access_source::hardware_counter;
            for (std::size_t to = 0; to < out.nodes; ++to) {
                double part = used[to] / total;
                if (by_counter && to == on.node) part = here < 1 ? rate.rate : 1;
                if (by_counter && to != on.node)
                    part = here < 1 ? (1 - rate.rate) * part / (1 - here) : 0;
                out.matrix[on.node * out.nodes + to] += from_here * part;
            }
        }
    }
    if (weight > 0) {
        out.all = {local / weight, all_counted ? access_source::hardware_counter
                                               : access_source::placement_estimate};
        for (std::size_t i = 0; i < out.matrix.size(); ++i) {
            out.matrix[i] /= weight;
            out.mean_distance +=
                out.matrix[i] * topology.distance(static_cast<unsigned>(i / out.nodes),
                                                  static_cast<unsigned>(i % out.nodes));
        }
    }

    est::spread all_time(out.nodes, 0);
    for (const auto& [guest_node, ran] : time)
        for (std::size_t n = 0; n < out.nodes; ++n)
            all_time[n] += ran[n];
    for (const region_sample& region : sample.regions) {
        local_access_rate& rate = out.regions.emplace_back();
        est::spread users = all_time;
        if (region.guest_node != any_node) {
            std::fill(users.begin(), users.end(), 0.0);
            for (const unsigned group : {region.guest_node, any_node})
                if (const auto ran = time.find(group); ran != time.end())
                    for (std::size_t n = 0; n < out.nodes; ++n)
                        users[n] += ran->second[n];
        }
        double used = 0;
        for (const double by : users)
            used += by;
        if (used <= 0 || est::sum_of(region.on_nodes) <= 0) continue;
        rate = {est::overlap(region.on_nodes, users), access_source::placement_estimate};
    }
    return out;
}

} // namespace vm_accel::inline v0
