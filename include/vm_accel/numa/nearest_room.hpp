/// Which node near another one still has room: what planners by distance ask.
#pragma once

#include <vm_accel/topology/cpu_topology.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace vm_accel::inline v0::numa_planning {

/// The nodes' room while a plan is made. A search looks at every node once, many at
/// a time: 1,024 nodes take a fraction of a microsecond.
class nearest_room {
public:
    nearest_room(const cpu_topology& topology, std::span<const std::uint64_t> free_bytes,
                 std::uint64_t granule)
        : topology_(topology),
          granule_(std::max<std::uint64_t>(granule, 1)),
          unit_(std::max<std::uint64_t>(granule_ / 512, 1)),
          room_(free_bytes.begin(), free_bytes.end()) {
        room_.resize(topology.nodes.size(), 0);
        units_.assign((room_.size() + block - 1) / block * block, -1);
        for (std::size_t i = 0; i < room_.size(); ++i)
            units_[i] = in_units(room_[i]);
        told_ = topology.distances.size() == room_.size() * room_.size();
    }

    [[nodiscard]] std::uint64_t of(unsigned node) const noexcept {
        return node < room_.size() ? room_[node] : 0;
    }
    void take(unsigned node, std::uint64_t bytes) noexcept {
        room_[node] -= bytes;
        units_[node] = in_units(room_[node]);
    }

    /// The node nearest to `from`, itself first and of equals the lowest index, that has
    /// room for `bytes`, or for a granule if they are more; no_index if none has.
    [[nodiscard]] unsigned find(unsigned from, std::uint64_t bytes) noexcept {
        const std::uint64_t need = std::max<std::uint64_t>(std::min(bytes, granule_), 1);
        if (need >= too_much_) return no_index;
        if (of(from) >= need) return from;
        unsigned best = nearest(from, static_cast<std::int32_t>((need + unit_ - 1) / unit_));
        // Room that whole units do not count: less than a unit, at most.
        for (unsigned i = 0; best == no_index && i < room_.size(); ++i)
            if (room_[i] >= need) best = i;
        const auto order = [&](unsigned i) {
            return (std::uint64_t{topology_.distance(from, i)} << 32) + i;
        };
        for (unsigned i = 0; best != no_index && need % unit_ != 0 && i < room_.size(); ++i)
            if (room_[i] >= need && order(i) < order(best)) best = i;
        if (best == no_index) too_much_ = need;
        return best;
    }

private:
    static constexpr unsigned block = 16; ///< nodes looked at together
    static constexpr std::int32_t never = std::numeric_limits<std::int32_t>::max();
    using distances = std::array<std::int32_t, block>;

    [[nodiscard]] std::int32_t in_units(std::uint64_t bytes) const noexcept {
        return static_cast<std::int32_t>(
            std::min<std::uint64_t>(bytes / unit_, std::numeric_limits<std::int32_t>::max()));
    }

    /// No distance means anything beyond 31 bits; signed numbers are compared many at once.
    [[nodiscard]] static std::int32_t clamped(std::uint32_t distance) noexcept {
        return static_cast<std::int32_t>(distance & 0x7fff'ffff);
    }

    [[nodiscard]] unsigned nearest(unsigned from, std::int32_t need) const noexcept {
        std::int32_t least = never;
        unsigned found = no_index;
        for (unsigned first = 0; first < units_.size(); first += block) {
            const distances there = distances_to(from, first, need);
            std::int32_t best = never;
            for (unsigned i = 0; i < block; ++i)
                best = there[i] < best ? there[i] : best;
            if (best >= least) continue;
            least = best;
            unsigned i = 0;
            while (there[i] != best)
                ++i;
            found = first + i;
        }
        return found;
    }

    /// Distances to a block of nodes; `never` to those without the room.
    [[nodiscard]] distances distances_to(unsigned from, unsigned first,
                                         std::int32_t need) const noexcept {
        distances out{};
        const std::size_t nodes = room_.size();
        const std::int32_t* const units = units_.data() + first;
        if (!told_ || nodes - first < block || from >= nodes) {
            for (unsigned i = 0; i < block; ++i)
                out[i] = units[i] < need ? never : clamped(topology_.distance(from, first + i));
            return out;
        }
        const std::uint32_t* const row = topology_.distances.data() + from * nodes + first;
        for (unsigned i = 0; i < block; ++i) {
            out[i] = units[i] < need ? never : clamped(row[i]);
        }
        return out;
    }

    const cpu_topology& topology_;
    std::uint64_t granule_;
    std::uint64_t unit_;                         ///< bytes; a granule is some 512 of them
    std::uint64_t too_much_ = ~std::uint64_t{0}; ///< no node has room for so much, or ever will
    std::vector<std::uint64_t> room_;
    std::vector<std::int32_t> units_{}; ///< the same in units, in whole blocks; -1 beyond
    bool told_ = false;                 ///< the topology has distances
};

} // namespace vm_accel::inline v0::numa_planning
