/// What an SMMU counts.
#pragma once

#include <vm_accel/core/counter.hpp>

#include <cstdint>

namespace vm_accel::inline v0 {

/// One port's share, on cache lines of its own: counting is a plain add.
struct alignas(64) port_counters {
    counter hits;       ///< translations found in the TLB
    counter misses;     ///< translations that walked
    counter unresolved; ///< accesses refused before a look-up: no configuration
    counter faults;     ///< accesses refused, for whatever reason
    counter messages;   ///< message signalled interrupts that the device wrote
};

/// A moment's totals. Read while others count, they may be a moment apart.
struct smmu_statistics {
    std::uint64_t translations = 0;   ///< accesses asked for, page by page
    std::uint64_t hits = 0;           ///< of them, found in the TLB
    std::uint64_t misses = 0;         ///< of them, walked
    std::uint64_t faults = 0;         ///< of them, refused
    std::uint64_t events = 0;         ///< event records written to the guest
    std::uint64_t events_dropped = 0; ///< records lost: queue full, off or not memory
    std::uint64_t commands = 0;       ///< commands consumed
    std::uint64_t syncs = 0;          ///< of them, CMD_SYNC
    std::uint64_t interrupts = 0;     ///< wired interrupts pulsed
    std::uint64_t msi_messages = 0;   ///< messages of devices delivered to a doorbell

    /// Share of look-ups that hit, 0 to 1; 0 before the first.
    [[nodiscard]] constexpr double hit_rate() const noexcept {
        const std::uint64_t looked_up = hits + misses;
        return looked_up == 0 ? 0.0 : static_cast<double>(hits) / static_cast<double>(looked_up);
    }
};

} // namespace vm_accel::inline v0
