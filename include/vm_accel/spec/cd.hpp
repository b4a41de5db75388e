/// Context descriptors: stage-1 translation of one address space (IHI 0070, 5.3, 5.4).
#pragma once

#include <vm_accel/core/field.hpp>

#include <array>
#include <cstdint>

namespace vm_accel::inline v0::spec {

/// Granule encodings. TG0 (and STE.S2TG) and TG1 number them differently.
enum class tg0_granule : std::uint8_t { size_4k = 0, size_64k = 1, size_16k = 2 };
enum class tg1_granule : std::uint8_t { size_16k = 1, size_4k = 2, size_64k = 3 };

/// Context Descriptor (5.4): 64 bytes, 64-byte aligned.
struct cd {
    using T0SZ = field<0, 5, 0>; ///< lower half: 64 - T0SZ input address bits
    using TG0 = field<0, 7, 6>;  ///< tg0_granule
    using IR0 = field<0, 9, 8>;
    using OR0 = field<0, 11, 10>;
    using SH0 = field<0, 13, 12>;
    using EPD0 = field<0, 14, 14>; ///< 1: no walks through TTB0
    using ENDI = field<0, 15, 15>; ///< 1: big-endian tables
    using T1SZ = field<0, 21, 16>; ///< upper half
    using TG1 = field<0, 23, 22>;  ///< tg1_granule
    using IR1 = field<0, 25, 24>;
    using OR1 = field<0, 27, 26>;
    using SH1 = field<0, 29, 28>;
    using EPD1 = field<0, 30, 30>;
    using V = field<0, 31, 31>;
    using IPS = field<0, 34, 32>; ///< see output_address_bits()
    using AFFD = field<0, 35, 35>;
    using WXN = field<0, 36, 36>;
    using UWXN = field<0, 37, 37>;
    using TBI0 = field<0, 38, 38>; ///< ignore the top byte in the lower half
    using TBI1 = field<0, 39, 39>;
    using PAN = field<0, 40, 40>;
    using AA64 = field<0, 41, 41>;
    using HD = field<0, 42, 42>;
    using HA = field<0, 43, 43>;
    using S = field<0, 44, 44>;
    using R = field<0, 45, 45>;
    using A = field<0, 46, 46>;
    using ASET = field<0, 47, 47>;
    using ASID = field<0, 63, 48>;

    using NSCFG0 = field<1, 0, 0>;
    using HAD0 = field<1, 1, 1>;
    using E0PD0 = field<1, 2, 2>;
    using HAFT = field<1, 3, 3>;
    using TTB0 = field<1, 55, 4>; ///< address bits [55:4]; [51:4] with VMSAv8-64
    using PnCH = field<1, 58, 58>;
    using EPAN = field<1, 59, 59>;
    using HWU059 = field<1, 60, 60>;
    using HWU060 = field<1, 61, 61>;
    using HWU061 = field<1, 62, 62>;
    using HWU062 = field<1, 63, 63>;

    using NSCFG1 = field<2, 0, 0>;
    using HAD1 = field<2, 1, 1>;
    using E0PD1 = field<2, 2, 2>;
    using AIE = field<2, 3, 3>;
    using TTB1 = field<2, 55, 4>; ///< like TTB0
    using DS = field<2, 58, 58>;  ///< 52-bit addresses with 4 and 16 KiB granules
    using PIE = field<2, 59, 59>;
    using HWU159 = field<2, 60, 60>;
    using HWU160 = field<2, 61, 61>;
    using HWU161 = field<2, 62, 62>;
    using HWU162 = field<2, 63, 63>;

    using MAIR = field<3, 63, 0>;
    using AMAIR = field<4, 63, 0>;

    using PARTID = field<5, 47, 32>;
    using PMG = field<5, 55, 48>;

    std::array<le64, 8> word{};
};
static_assert(sizeof(cd) == 64);

/// Level-1 Context Descriptor (5.3): one per level-2 table of CDs.
struct l1_cd_descriptor {
    using V = field<0, 0, 0>;
    using L2Ptr = field<0, 55, 12>; ///< address bits [55:12]

    std::array<le64, 1> word{};
};
static_assert(sizeof(l1_cd_descriptor) == 8);

// Golden words: what Linux writes for a 48-bit DMA domain with 4 KiB pages,
// 44-bit output, ASID 1, walks write-back and inner shareable, EPD1 set.
static_assert([] {
    cd context;
    set<cd::T0SZ>(context, 16);
    set<cd::TG0>(context, static_cast<std::uint64_t>(tg0_granule::size_4k));
    set<cd::IR0>(context, 1);
    set<cd::OR0>(context, 1);
    set<cd::SH0>(context, 3);
    set<cd::EPD1>(context, 1);
    set<cd::V>(context, 1);
    set<cd::IPS>(context, 4);
    set<cd::AA64>(context, 1);
    set<cd::R>(context, 1);
    set<cd::A>(context, 1);
    set<cd::ASET>(context, 1);
    set<cd::ASID>(context, 1);
    set<cd::TTB0>(context, 0x500b'1000 >> cd::TTB0::low);
    return context.word[0].value() == 0x0001'e204'c000'3510 &&
           context.word[1].value() == 0x500b'1000;
}());

} // namespace vm_accel::inline v0::spec
