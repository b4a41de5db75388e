/// Memory types that descriptors give, and how two stages combine
/// (DDI 0487, D8.6).
#pragma once

#include <vm_accel/smmu/vocabulary/memory_attributes.hpp>
#include <vm_accel/spec/descriptors.hpp>

#include <cstdint>

namespace vm_accel::inline v0 {

/// Device memory and Normal non-cacheable memory are outer shareable, whatever
/// the tables say; the reserved encoding 1 counts as non-shareable.
[[nodiscard]] constexpr memory_attributes effective_attributes(std::uint8_t type,
                                                               unsigned shareability) noexcept {
    constexpr std::uint8_t outer = 2;
    constexpr std::uint8_t non_cacheable = 0x44;
    memory_attributes a{type, static_cast<std::uint8_t>(shareability == 1 ? 0 : shareability & 3)};
    if (a.is_device() || type == non_cacheable) a.shareability = outer;
    return a;
}

/// A stage-1 leaf's: its byte of MAIR. With the DS form descriptors have no
/// SH, and the regime's counts.
[[nodiscard]] constexpr memory_attributes stage1_attributes(std::uint64_t memory_types,
                                                            std::uint64_t descriptor,
                                                            unsigned shareability) noexcept {
    const std::uint64_t index = spec::stage1_leaf::AttrIndx::of(descriptor);
    return effective_attributes(static_cast<std::uint8_t>(memory_types >> (8 * index)),
                                shareability);
}

/// Whether a stage-2 leaf's MemAttr is a Device type. With S2FWB its bit 3 says
/// nothing. `decides` is stage2_regime::decides_types.
[[nodiscard]] constexpr bool is_stage2_device(std::uint64_t descriptor, bool decides) noexcept {
    const std::uint64_t type = spec::stage2_leaf::MemAttr::of(descriptor);
    return (type & (decides ? 0b0100U : 0b1100U)) == 0;
}

/// One nibble of Normal memory, in MAIR's encoding: the less cacheable of both
/// stages, with stage 1's allocation hints. `stage2` is two bits of MemAttr.
[[nodiscard]] constexpr unsigned combined_cacheability(unsigned stage1, unsigned stage2) noexcept {
    constexpr unsigned non_cacheable = 0b0100;
    constexpr unsigned write_back = 0b0100; // set in a cacheable nibble: write-back
    if (stage1 == non_cacheable || stage2 == 1) return non_cacheable;
    return stage2 == 2 ? stage1 & ~write_back : stage1;
}

/// One nibble of Normal memory, forced to write-back: stage 1's allocation hints
/// stay; where it had none, read-allocate and write-allocate.
[[nodiscard]] constexpr unsigned forced_write_back(unsigned stage1) noexcept {
    constexpr unsigned non_cacheable = 0b0100;
    constexpr unsigned write_back = 0b0100; // set in a cacheable nibble: write-back
    return stage1 == non_cacheable || stage1 == 0 ? 0b1111 : stage1 | write_back;
}

/// The type that a Normal MemAttr gives with S2FWB (DDI 0487, D8.6.6): 0b111 is
/// stage 1's, 0b110 write-back, and 0b101 non-cacheable unless stage 1 has Device
/// memory; so is the reserved 0b100.
[[nodiscard]] constexpr std::uint8_t decided_type(std::uint8_t stage1, unsigned stage2) noexcept {
    const bool device = (stage1 & 0xf0) == 0;
    constexpr std::uint8_t tagged = 0xf0; // write-back as it is
    switch (stage2 & 0b11) {
    case 0b11:
        return stage1;
    case 0b10:
        if (device) return 0xff;
        if (stage1 == tagged) return tagged;
        return static_cast<std::uint8_t>(forced_write_back(stage1 >> 4U) << 4 |
                                         forced_write_back(stage1 & 0xfU));
    default:
        return device ? stage1 : 0x44;
    }
}

/// What a stage-2 leaf makes of an access that has `incoming`: stage 1's
/// attributes, or the device's when stage 1 is off. `shareability` is SH, or
/// the regime's with the DS form; `decides` is stage2_regime::decides_types.
[[nodiscard]] constexpr memory_attributes combined_attributes(memory_attributes incoming,
                                                              std::uint64_t descriptor,
                                                              unsigned shareability,
                                                              bool decides) noexcept {
    const auto stage2 = static_cast<unsigned>(spec::stage2_leaf::MemAttr::of(descriptor));
    const unsigned a = incoming.shareability;
    const unsigned b = shareability;
    const unsigned both = a == 2 || b == 2 ? 2 : a == 3 || b == 3 ? 3 : 0;
    if (is_stage2_device(descriptor, decides)) {
        // Device subtypes grow from nGnRnE: the lower one is the stricter one.
        const unsigned asked = incoming.is_device() ? incoming.type >> 2 & 3U : 3U;
        const unsigned subtype = asked < (stage2 & 3) ? asked : stage2 & 3;
        return effective_attributes(static_cast<std::uint8_t>(subtype << 2), both);
    }
    if (decides) return effective_attributes(decided_type(incoming.type, stage2), both);
    if (incoming.is_device()) return effective_attributes(incoming.type, both);
    // Tagged memory combines as write-back memory, and stays tagged as such.
    constexpr std::uint8_t tagged = 0xf0;
    constexpr std::uint8_t write_back = 0xff;
    const std::uint8_t type = incoming.type == tagged ? write_back : incoming.type;
    const unsigned outer = combined_cacheability(type >> 4U, stage2 >> 2);
    const unsigned inner = combined_cacheability(type & 0xfU, stage2 & 3);
    auto combined = static_cast<std::uint8_t>(outer << 4 | inner);
    if (incoming.type == tagged && combined == write_back) combined = tagged;
    return effective_attributes(combined, both);
}

} // namespace vm_accel::inline v0
