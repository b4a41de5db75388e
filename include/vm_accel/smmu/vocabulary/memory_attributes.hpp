/// Memory type and shareability that a translation gives an access.
#pragma once

#include <cstdint>

namespace vm_accel::inline v0 {

/// Memory type in the encoding of a MAIR byte (DDI 0487, MAIR_EL1.Attr): 0x00
/// Device-nGnRnE, 0x04 Device-nGnRE, 0x44 Normal non-cacheable, 0xff Normal
/// write-back. Shareability in the encoding of a descriptor's SH field: 0
/// non-shareable, 2 outer, 3 inner. Software models of memory are coherent, so
/// nothing here depends on it: it is reported, for what is behind the SMMU.
struct memory_attributes {
    std::uint8_t type = 0xff;
    std::uint8_t shareability = 3;

    [[nodiscard]] constexpr bool is_device() const noexcept { return (type & 0xf0) == 0; }
    /// Ten bits: how TLB entries keep it.
    [[nodiscard]] constexpr std::uint16_t packed() const noexcept {
        return static_cast<std::uint16_t>(type | (shareability & 3) << 8);
    }
    [[nodiscard]] static constexpr memory_attributes unpacked(std::uint64_t bits) noexcept {
        return {static_cast<std::uint8_t>(bits), static_cast<std::uint8_t>(bits >> 8 & 3)};
    }
    friend constexpr bool operator==(const memory_attributes&, const memory_attributes&) = default;
};

} // namespace vm_accel::inline v0
