/// The guest's own NUMA nodes, as its firmware or device tree tells it: which memory
/// and which vCPUs belong together, and how far apart they are.
///
/// It is read off guest RAM that was placed, so that the guest sees what the host has.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/result.hpp>
#include <vm_accel/numa/ram_region.hpp>
#include <vm_accel/numa/strategy.hpp>
#include <vm_accel/topology/cpu_topology.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace vm_accel::inline v0 {

/// Distances as ACPI's SLIT and device trees have them.
inline constexpr std::uint32_t local_distance = 10;
inline constexpr std::uint32_t unknown_distance = 20;
inline constexpr std::uint32_t largest_distance = 254; ///< 255 means "no way there"

/// Where a part of a region lies in the guest. One for most machines; two where
/// devices have a hole below 4 GiB.
struct ram_window {
    pa base{};                ///< in the guest
    std::uint64_t offset = 0; ///< in the region
    std::uint64_t bytes = 0;
};

struct guest_node {
    /// Host node with most of its memory, by the operating system's number; any_node
    /// where placement is off.
    unsigned host_node = any_node;
    std::vector<pa_range> memory{}; ///< ascending; neighbours are put together
    std::vector<unsigned> vcpus{};  ///< ascending; may be none

    friend bool operator==(const guest_node&, const guest_node&) = default;
};

struct guest_nodes {
    std::vector<guest_node> nodes{};
    /// nodes.size() squared, row by row: 10 from a node to itself, 11 to 254 to others.
    std::vector<std::uint32_t> distances{};

    friend bool operator==(const guest_nodes&, const guest_nodes&) = default;

    [[nodiscard]] std::uint32_t distance(std::size_t from, std::size_t to) const noexcept {
        return distances[from * nodes.size() + to];
    }
    /// Node of a vCPU, any_node if it has none.
    [[nodiscard]] unsigned node_of(unsigned vcpu) const noexcept {
        for (unsigned node = 0; node < nodes.size(); ++node)
            if (std::binary_search(nodes[node].vcpus.begin(), nodes[node].vcpus.end(), vcpu))
                return node;
        return any_node;
    }
};

/// How much of each guest node's memory was meant for which host node.
class guest_node_hosts {
public:
    guest_node_hosts(std::span<const ram_chunk> chunks, const cpu_topology& host) : host_(host) {
        for (const ram_chunk& chunk : chunks) {
            if (chunk.guest_node >= nodes_.size()) nodes_.resize(chunk.guest_node + 1);
            const unsigned node = chunk.node == any_node ? no_index : host.find_node(chunk.node);
            std::vector<part>& parts = nodes_[chunk.guest_node];
            const auto known = std::find_if(parts.begin(), parts.end(),
                                            [&](const part& p) { return p.host == node; });
            if (known != parts.end()) {
                known->bytes += chunk.bytes;
            } else {
                parts.push_back({node, chunk.bytes});
            }
        }
    }

    [[nodiscard]] std::size_t size() const noexcept { return nodes_.size(); }
    /// The host node with most of it, by index; no_index if that is not known.
    [[nodiscard]] unsigned main_host(std::size_t guest) const noexcept {
        const auto most =
            std::max_element(nodes_[guest].begin(), nodes_[guest].end(),
                             [](const part& a, const part& b) { return a.bytes < b.bytes; });
        return most == nodes_[guest].end() ? no_index : most->host;
    }
    /// Mean distance between the bytes of two guest nodes, within what tables can say.
    [[nodiscard]] std::uint32_t between(std::size_t from, std::size_t to) const noexcept {
        if (from == to) return local_distance;
        double sum = 0;
        double weight = 0;
        for (const part& a : nodes_[from])
            sum += sum_from(a.host, to, weight, static_cast<double>(a.bytes));
        const double mean = weight > 0 ? sum / weight + 0.5 : unknown_distance;
        // The same host node twice is no reason to call two guest nodes one.
        return std::clamp(static_cast<std::uint32_t>(std::min(mean, 1e6)), local_distance + 1,
                          largest_distance);
    }
    /// Mean distance of a guest node's bytes from a host node by index.
    [[nodiscard]] double from_host(unsigned host, std::size_t guest) const noexcept {
        double weight = 0;
        const double sum = sum_from(host, guest, weight, 1);
        return weight > 0 ? sum / weight : unknown_distance;
    }

private:
    struct part {
        unsigned host;
        std::uint64_t bytes;
    };
    /// Distance times bytes, added up, times `factor`; adds bytes times `factor` to `weight`.
    [[nodiscard]] double sum_from(unsigned host, std::size_t guest, double& weight,
                                  double factor) const noexcept {
        double sum = 0;
        for (const part& p : nodes_[guest]) {
            const bool known = host != no_index && p.host != no_index;
            const std::uint32_t distance = known ? host_.distance(host, p.host) : unknown_distance;
            sum += factor * static_cast<double>(p.bytes) * distance;
            weight += factor * static_cast<double>(p.bytes);
        }
        return sum;
    }

    const cpu_topology& host_;
    std::vector<std::vector<part>> nodes_{};
};

/// The guest node for each vCPU, given the host node it will run on by the operating
/// system's number (any_node if that is not known): the one whose memory is nearest.
/// Where several are as near, the vCPUs of a host node are shared out in blocks, so
/// that neighbours stay together. Without memory: all 0.
[[nodiscard]] inline std::vector<unsigned> nearest_guest_nodes(std::span<const ram_chunk> chunks,
                                                               std::span<const unsigned> host_nodes,
                                                               const cpu_topology& host) noexcept {
    const guest_node_hosts guests{chunks, host};
    std::vector<unsigned> chosen(host_nodes.size(), 0);
    for (std::size_t first = 0; first < host_nodes.size() && guests.size() != 0; ++first) {
        const auto before = host_nodes.begin() + static_cast<std::ptrdiff_t>(first);
        if (std::find(host_nodes.begin(), before, host_nodes[first]) != before) continue;
        const unsigned at =
            host_nodes[first] == any_node ? no_index : host.find_node(host_nodes[first]);
        std::vector<unsigned> nearest;
        double least = 0;
        for (unsigned guest = 0; guest < guests.size(); ++guest) {
            const double distance = guests.from_host(at, guest);
            if (!nearest.empty() && distance > least) continue;
            if (distance < least) nearest.clear();
            nearest.push_back(guest);
            least = distance;
        }
        const auto sharers = static_cast<std::size_t>(
            std::count(host_nodes.begin(), host_nodes.end(), host_nodes[first]));
        std::size_t nth = 0;
        for (std::size_t v = first; v < host_nodes.size(); ++v)
            if (host_nodes[v] == host_nodes[first])
                chosen[v] = nearest[nth++ * nearest.size() / sharers];
    }
    return chosen;
}

/// What the guest is to be told. `windows` say where the region's bytes lie in the
/// guest; `vcpu_nodes` is the guest node of each vCPU, as nearest_guest_nodes() or the
/// VMM has it. Errors: invalid_argument (a window beyond the region, windows that
/// overlap in the guest or do not cover the region, no memory), out_of_range (a vCPU
/// on a guest node without memory).
[[nodiscard]] inline result<guest_nodes> describe_guest(std::span<const ram_chunk> chunks,
                                                        std::span<const ram_window> windows,
                                                        std::span<const unsigned> vcpu_nodes,
                                                        const cpu_topology& host) noexcept {
    const guest_node_hosts guests{chunks, host};
    const std::uint64_t bytes = chunks.empty() ? 0 : chunks.back().offset + chunks.back().bytes;
    std::uint64_t covered = 0;
    for (std::size_t i = 0; i < windows.size(); ++i) {
        const ram_window& w = windows[i];
        const pa_range range{w.base, w.bytes};
        bool bad = !range.is_valid() || w.offset > bytes || w.bytes > bytes - w.offset;
        for (const ram_window& other : windows.first(i))
            bad = bad || range.overlaps({other.base, other.bytes}) ||
                  pa_range{pa{w.offset}, w.bytes}.overlaps({pa{other.offset}, other.bytes});
        if (bad)
            return fail(errc::invalid_argument,
                        fixed_text<160>{"guest nodes: the window at "}
                            .append_number(raw(w.base), 16)
                            .append(" overlaps another, or lies beyond the RAM"),
                        "give each part of the region one place of its own in the guest");
        covered += w.bytes;
    }
    if (bytes == 0 || covered != bytes)
        return fail(errc::invalid_argument,
                    fixed_text<160>{"guest nodes: the windows show "}
                        .append_number(covered)
                        .append(" of ")
                        .append_number(bytes)
                        .append(" bytes of RAM"),
                    "cover the region, which must have memory");
    guest_nodes out;
    out.nodes.resize(guests.size());
    for (unsigned guest = 0; guest < guests.size(); ++guest) {
        const unsigned at = guests.main_host(guest);
        if (at != no_index) out.nodes[guest].host_node = host.nodes[at].os_index;
        for (unsigned to = 0; to < guests.size(); ++to)
            out.distances.push_back(guests.between(guest, to));
    }
    for (const ram_chunk& chunk : chunks) {
        for (const ram_window& w : windows) {
            const std::uint64_t from = std::max(chunk.offset, w.offset);
            const std::uint64_t to = std::min(chunk.offset + chunk.bytes, w.offset + w.bytes);
            if (from < to)
                out.nodes[chunk.guest_node].memory.push_back(
                    {offset_by(w.base, from - w.offset), to - from});
        }
    }
    for (guest_node& node : out.nodes) {
        std::sort(node.memory.begin(), node.memory.end(),
                  [](const pa_range& a, const pa_range& b) { return a.base < b.base; });
        std::vector<pa_range> joined;
        for (const pa_range& range : node.memory) {
            if (!joined.empty() && offset_by(joined.back().base, joined.back().size) == range.base)
                joined.back().size += range.size;
            else
                joined.push_back(range);
        }
        node.memory = std::move(joined);
    }
    for (unsigned v = 0; v < vcpu_nodes.size(); ++v) {
        if (vcpu_nodes[v] >= out.nodes.size())
            return fail(errc::out_of_range,
                        fixed_text<160>{"guest nodes: vCPU "}
                            .append_number(v)
                            .append(" is to belong to node ")
                            .append_number(vcpu_nodes[v])
                            .append(", which has no memory"),
                        "choose a guest node of the split");
        out.nodes[vcpu_nodes[v]].vcpus.push_back(v);
    }
    return out;
}

/// The cells of a device tree's `distance-matrix` (numa-distance-map-v1): from, to,
/// distance, for every pair. A device tree's `numa-node-id` is the node's index.
[[nodiscard]] inline std::vector<std::uint32_t> distance_cells(const guest_nodes& guest) {
    std::vector<std::uint32_t> cells;
    for (std::uint32_t from = 0; from < guest.nodes.size(); ++from)
        for (std::uint32_t to = 0; to < guest.nodes.size(); ++to)
            cells.insert(cells.end(), {from, to, guest.distance(from, to)});
    return cells;
}

} // namespace vm_accel::inline v0
