/// What an SMMU counts.
#pragma once

#include <vm_accel/core/counter.hpp>
#include <vm_accel/os/owned_word.hpp>

#include <array>
#include <cstddef>
#include <cstdint>

namespace vm_accel::inline v0 {

/// One port's share, on cache lines of its own: counting is a plain add.
struct alignas(64) port_counters {
    os::owned_counter hits;   ///< translations found in the TLB
    os::owned_counter misses; ///< translations that walked
    counter unresolved;       ///< accesses refused before a look-up: no configuration
    counter faults;           ///< accesses refused, for whatever reason
    counter messages;         ///< message signalled interrupts that the device wrote
    // Counted where an access leaves the fast path:
    counter configuration_misses;    ///< accesses that found no configuration cached
    counter configuration_accesses;  ///< reads of stream and CD tables, of up to 64 bytes
    os::owned_counter walk_accesses; ///< reads and updates of translation tables
    counter ats_requests;            ///< ATS translation requests
    counter translated_transactions; ///< ATS translated transactions that passed
    counter ats_walks;               ///< of those two kinds, the ones that walked tables
};

/// What a look-up without caches of its own has cost.
struct look_up_cost {
    bool configuration_missed = false; ///< stream and CD tables were read
    bool walked = false;
    std::uint64_t configuration_accesses = 0;
    std::uint64_t walk_accesses = 0;

    /// Of an ATS translation request, or an ATS translated transaction.
    void add_to(port_counters& c) const noexcept {
        if (configuration_missed) c.configuration_misses.add();
        if (walked) c.ats_walks.add();
        c.configuration_accesses.add(configuration_accesses);
        c.walk_accesses.add(walk_accesses);
    }
};

/// Sums of what performance monitors count, by number of the architected event
/// (IHI 0070, 10.3). Element 0, cycles, is not a sum and stays 0.
struct event_totals {
    std::array<std::uint64_t, 8> of{};

    [[nodiscard]] static event_totals from(const port_counters& c) noexcept {
        const std::uint64_t requests = c.ats_requests.read();
        const std::uint64_t translated = c.translated_transactions.read();
        return {{0, c.hits.read() + c.misses.read() + c.unresolved.read() + requests + translated,
                 c.misses.read() + c.ats_walks.read(), c.configuration_misses.read(),
                 c.walk_accesses.read(), c.configuration_accesses.read(), requests, translated}};
    }
    /// Accesses to tables for whatever reason: here, one that is no transaction.
    constexpr event_totals& operator+=(const look_up_cost& cost) noexcept {
        of[4] += cost.walk_accesses;
        of[5] += cost.configuration_accesses;
        return *this;
    }
    constexpr event_totals& operator+=(const event_totals& other) noexcept {
        for (std::size_t i = 0; i < of.size(); ++i)
            of[i] += other.of[i];
        return *this;
    }
    constexpr event_totals& operator-=(const event_totals& other) noexcept {
        for (std::size_t i = 0; i < of.size(); ++i)
            of[i] -= other.of[i];
        return *this;
    }
};

/// StreamIDs that agree with `value` in the bits of `mask`.
struct stream_filter {
    std::uint32_t mask = 0;
    std::uint32_t value = 0;

    [[nodiscard]] constexpr bool matches(std::uint32_t stream) const noexcept {
        return ((stream ^ value) & mask) == 0;
    }
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
