/// Which guest addresses are RAM in one VM: the table that a backend keeps.
///
/// Hypervisors know mappings by address or by slot number alone; with the table an overlap
/// can be named, a region removed by its base, and the host's bytes of a guest address
/// found.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/fixed_text.hpp>
#include <vm_accel/core/result.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace vm_accel::inline v0 {

/// One region; an empty range is a free slot.
struct memory_slot {
    pa_range range{};
    std::byte* host = nullptr;
    bool tracks_dirty = false; ///< the hypervisor notes which pages the guest writes
};

/// Threads: none of its own; the backend locks.
/// Each call looks at all slots: at most `capacity`.
class memory_slots {
public:
    /// Regions at most, however many slots the hypervisor would give.
    static constexpr std::size_t capacity = 128;
    static constexpr std::uint64_t page_bytes = 4096;

    explicit memory_slots(std::size_t usable = capacity) noexcept
        : usable_(std::min(usable, capacity)) {}

    /// The free slot with the lowest number for a region that may be added; the caller
    /// fills it once the hypervisor has mapped the region. Errors: invalid_argument,
    /// already_exists (it overlaps another one), exhausted.
    [[nodiscard]] result<memory_slot*> room_for(pa base, const std::byte* host,
                                                std::uint64_t bytes) noexcept {
        const pa_range range{base, bytes};
        const auto host_address = reinterpret_cast<std::uintptr_t>(host);
        if (host == nullptr || bytes == 0 || !range.is_valid() ||
            ((raw(base) | bytes | host_address) & (page_bytes - 1)) != 0) {
            return fail(errc::invalid_argument,
                        named(base).append(": empty, without host memory, misaligned or past the "
                                           "top"),
                        "align base, host pointer and size to 4096, and keep them in range");
        }
        memory_slot* room = nullptr;
        for (memory_slot& slot : used()) {
            if (slot.range.empty()) {
                if (room == nullptr) room = &slot;
            } else if (slot.range.overlaps(range)) {
                return fail(errc::already_exists,
                            named(base)
                                .append(": overlaps the region at ")
                                .append_number(raw(slot.range.base), 16),
                            "remove the other region first, or choose another base");
            }
        }
        if (room == nullptr) {
            return fail(errc::exhausted, named(base).append(": every slot is in use"),
                        "merge regions that touch");
        }
        return room;
    }

    /// The region that starts at `base`. Error: not_found.
    [[nodiscard]] result<memory_slot*> at(pa base) noexcept {
        for (memory_slot& slot : used())
            if (!slot.range.empty() && slot.range.base == base) return &slot;
        return fail(errc::not_found, named(base).append(": no region starts here"),
                    "pass the base that was given to add_memory()");
    }

    /// The region that has all of [address, address + bytes); null = none.
    [[nodiscard]] const memory_slot* find(pa address, std::uint64_t bytes) const noexcept {
        for (const memory_slot& slot : slots_)
            if (!slot.range.empty() && slot.range.contains(address, bytes)) return &slot;
        return nullptr;
    }
    /// Copies out of guest memory; false if not all of it is in one region.
    [[nodiscard]] bool read(pa address, std::span<std::byte> out) const noexcept {
        const memory_slot* const slot = find(address, out.size());
        if (slot == nullptr) return false;
        std::memcpy(out.data(), slot->host + (raw(address) - raw(slot->range.base)), out.size());
        return true;
    }

    /// Of one of these slots: 0 to capacity - 1.
    [[nodiscard]] std::uint32_t number_of(const memory_slot& slot) const noexcept {
        return static_cast<std::uint32_t>(&slot - slots_.data());
    }
    /// How errors call a region.
    [[nodiscard]] static fixed_text<160> named(pa base) noexcept {
        return fixed_text<160>{"guest memory at "}.append_number(raw(base), 16);
    }

private:
    [[nodiscard]] std::span<memory_slot> used() noexcept {
        return std::span{slots_}.first(usable_);
    }

    std::size_t usable_;
    std::array<memory_slot, capacity> slots_{};
};

} // namespace vm_accel::inline v0
