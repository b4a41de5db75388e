/// What a device's access has before translation: the incoming memory type and
/// shareability, with the overrides of an STE or of GBPA (IHI 0070, 13.1, 5.2).
#pragma once

#include <vm_accel/smmu/vocabulary/memory_attributes.hpp>

#include <cstdint>

namespace vm_accel::inline v0 {

/// MTCFG, MemAttr, SHCFG and ALLOCCFG, of an STE or of GBPA.
struct attribute_overrides {
    bool replaces_type = false;        ///< MTCFG
    std::uint8_t type = 0;             ///< MemAttr, in the encoding of stage-2 descriptors
    std::uint8_t shareability = 1;     ///< SHCFG: 1 incoming, else the shareability itself
    std::uint8_t allocation_hints = 0; ///< ALLOCCFG: 0b1RWT replaces the hints
};

/// Half of a MAIR byte: the inner or the outer cacheability of Normal memory.
struct cacheability {
    enum class kind : std::uint8_t { none, write_through, write_back };
    kind what = kind::write_back;
    // Hints, which non-cacheable memory does not have.
    bool read_allocate = true;
    bool write_allocate = true;
    bool transient = false;

    /// `nibble` is not zero: that is Device memory.
    [[nodiscard]] static constexpr cacheability from(unsigned nibble) noexcept {
        if ((nibble & 0xf) == 0b0100) return {.what = kind::none};
        return {.what = (nibble & 0b0100) != 0 ? kind::write_back : kind::write_through,
                .read_allocate = (nibble & 0b0010) != 0,
                .write_allocate = (nibble & 0b0001) != 0,
                .transient = (nibble & 0b1000) == 0};
    }
    /// What allocates nowhere is not transient.
    [[nodiscard]] constexpr std::uint8_t nibble() const noexcept {
        if (what == kind::none) return 0b0100;
        const bool lasting = !transient || (!read_allocate && !write_allocate);
        return static_cast<std::uint8_t>(
            (lasting ? 0b1000U : 0U) | (what == kind::write_back ? 0b0100U : 0U) |
            (read_allocate ? 0b0010U : 0U) | (write_allocate ? 0b0001U : 0U));
    }
};

/// A MAIR byte in which every hint of one kind of cacheability is as the
/// access had it, or to allocate where it had none (13.1.3).
[[nodiscard]] constexpr std::uint8_t with_type(std::uint8_t incoming, unsigned type) noexcept {
    const unsigned outer = type >> 2 & 3;
    const unsigned inner = type & 3;
    // Of Normal memory 0b00 is reserved and behaves as Device-nGnRnE.
    if (outer == 0) return static_cast<std::uint8_t>(inner << 2);
    if (inner == 0) return 0;
    const bool was_device = (incoming & 0xf0) == 0;
    const auto replaced = [&](unsigned nibble, unsigned to) {
        cacheability c = was_device ? cacheability{} : cacheability::from(nibble);
        c.what = to == 1   ? cacheability::kind::none
                 : to == 2 ? cacheability::kind::write_through
                           : cacheability::kind::write_back;
        return c.nibble();
    };
    return static_cast<std::uint8_t>(replaced(incoming >> 4U, outer) << 4 |
                                     replaced(incoming & 0xfU, inner));
}

/// The attributes with which an access goes to the first enabled stage, or to
/// memory. Device and non-cacheable memory is outer shareable, always (13.1.7).
[[nodiscard]] constexpr memory_attributes overridden(memory_attributes incoming,
                                                     attribute_overrides by) noexcept {
    memory_attributes result = incoming;
    if (by.replaces_type) result.type = with_type(incoming.type, by.type);
    if (by.shareability != 1) result.shareability = by.shareability & 3;
    if ((by.allocation_hints & 0b1000) != 0 && !result.is_device()) {
        const auto hinted = [&](unsigned nibble) {
            cacheability c = cacheability::from(nibble);
            c.read_allocate = (by.allocation_hints & 0b0100) != 0;
            c.write_allocate = (by.allocation_hints & 0b0010) != 0;
            c.transient = (by.allocation_hints & 0b0001) != 0;
            return c.nibble();
        };
        result.type =
            static_cast<std::uint8_t>(hinted(result.type >> 4U) << 4 | hinted(result.type & 0xfU));
    }
    if (result.is_device() || result.type == 0x44) result.shareability = 2;
    return result;
}

} // namespace vm_accel::inline v0
