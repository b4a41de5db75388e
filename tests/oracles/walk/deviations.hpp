/// Where the emulator's own walker (QEMU 10.0) is known to differ from the architecture. Each is
/// modelled as narrowly as it can be, and counted.
///
/// One more is kept out of what is generated (tree.hpp, choose_stage1_tables): with a 52-bit base
/// and a first table of less than 64 bytes, TTBR[5:4] are used as address bits [51:50] and [5:4]
/// both. Under DS with a PS below 52 it takes TTBR for the 48-bit form; bases are aligned to 64
/// bytes then, so that both forms mean the same.
#pragma once

#include "library_walk.hpp"

#include <array>

namespace oracle {

enum class deviation : std::uint8_t {
    high_output_bits, ///< 52-bit format under a smaller PS: bits [51:48] are ignored, not checked
    block_bits,       ///< a block's address bits below its size are checked against PS
    device_normal,    ///< Device combined with Normal: the Normal type's low half takes part
    transient,        ///< stage 2's write-through makes a transient type non-transient
    protected_table,  ///< HCR.PTW faults report level 0, and come after the access flag is set
    shareability,     ///< stage 1 alone: the reserved SH encoding 1 is reported as it is
    forced_device,    ///< FWB: stage 2's Device subtype replaces a stricter one of stage 1
    reserved_type,    ///< FWB: a reserved MemAttr gives Device-nGnRnE
    forced_shared, ///< FWB: forced write-back shows whether stage 1's SH was made outer: a choice
    count
};
inline constexpr std::array deviation_names{"output bits [51:48] ignored under a PS below 52",
                                            "reserved address bits of a block checked",
                                            "Device with Normal gives the wrong Device",
                                            "transient lost under write-through of stage 2",
                                            "HCR.PTW faults at level 0",
                                            "reserved SH reported as it is",
                                            "FWB: a Device subtype not combined",
                                            "FWB: reserved MemAttr taken for Device",
                                            "FWB: SH of forced Device as it is"};

static_assert(deviation_names.size() == static_cast<std::size_t>(deviation::count));

/// Memory type of stage 2's MemAttr[3:0], without FWB.
[[nodiscard]] constexpr unsigned stage2_type(unsigned attributes) noexcept {
    constexpr std::array<unsigned, 4> half{0, 4, 0xb, 0xf};
    if (attributes >> 2 == 0) return (attributes & 3) << 2;
    return half[attributes >> 2] << 4 | half[attributes & 3];
}

/// What the emulator makes of a Device and a Normal type: the least of their low halves, where
/// only the Device type's should count (DDI 0487, combining stage 1 and 2 memory types).
[[nodiscard]] constexpr bool device_normal_applies(unsigned stage1, unsigned stage2,
                                                   unsigned expected, unsigned got) noexcept {
    const bool device1 = (stage1 & 0xf0) == 0;
    const bool device2 = (stage2 & 0xf0) == 0;
    if (device1 == device2) return false;
    if (expected != (device1 ? stage1 : stage2)) return false;
    const unsigned low1 = stage1 & 0xf;
    const unsigned low2 = stage2 & 0xf;
    for (const unsigned low : {0U, 4U, 8U})
        if (low1 == low || low2 == low) return got == low;
    return got == 0xc;
}

/// Stage 2 gives no allocation hints, "transient" included (DDI 0487, S2CombineS1AttrHints): in a
/// nibble that write-through of stage 2 changed, the emulator gives 0b10RW for 0b00RW.
[[nodiscard]] constexpr bool transient_applies(unsigned stage2, unsigned expected,
                                               unsigned got) noexcept {
    for (unsigned shift = 0; shift < 8; shift += 4) {
        const unsigned e = expected >> shift & 0xf;
        const unsigned g = got >> shift & 0xf;
        const bool through = (stage2 >> shift & 0xc) == 8;
        if (e != g && !(through && e < 4 && e != 0 && g == (e | 8))) return false;
    }
    return (expected & 0xf0) != 0;
}

/// The same with FWB, as a class only: what stage 2 leaves to stage 1 counts as Normal.
[[nodiscard]] constexpr unsigned forced_type(unsigned attributes) noexcept {
    if ((attributes & 4) == 0) return (attributes & 3) << 2;
    return attributes == 5 ? 0x44 : 0xff;
}

/// With FWB Device subtypes are combined like without it (DDI 0487, D8.6.6, RGSDKZ; the emulator
/// takes stage 2's).
[[nodiscard]] constexpr bool forced_device_applies(unsigned stage1, unsigned attributes,
                                                   unsigned expected, unsigned got) noexcept {
    return (stage1 & 0xf0) == 0 && attributes < 4 && expected == stage1 && got == attributes << 2;
}
/// Whether Device and non-cacheable memory of stage 1 is outer shareable before stage 2 sees it is
/// the implementation's choice (DDI 0487, D8.6): the library says yes, the emulator no. Only memory
/// that stage 2 then forces to write-back shows it.
[[nodiscard]] constexpr bool forced_shared_applies(unsigned stage1, unsigned attributes,
                                                   unsigned expected) noexcept {
    return attributes == 6 && ((stage1 & 0xf0) == 0 || stage1 == 0x44) && expected == 2;
}
[[nodiscard]] constexpr bool is_reserved_forced(unsigned attributes) noexcept {
    return attributes == 4 || attributes >= 8;
}

} // namespace oracle
