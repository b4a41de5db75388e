/// Stream table: what the SMMU is to do with each stream (IHI 0070, 5.1, 5.2).
#pragma once

#include <vm_accel/core/field.hpp>

#include <array>
#include <cstdint>

namespace vm_accel::inline v0::spec {

/// STE.Config. With bit 2 clear the stream aborts without an event.
enum class ste_config : std::uint8_t {
    abort = 0b000,
    bypass = 0b100,
    s1_translate = 0b101,
    s2_translate = 0b110,
    s1_s2_translate = 0b111,
};

/// STE.S1Fmt: the shape of the CD table when S1CDMax is not 0.
enum class s1_format : std::uint8_t {
    linear = 0b00,
    two_level_4k = 0b01,  ///< level-2 tables of 64 CDs
    two_level_64k = 0b10, ///< level-2 tables of 1024 CDs
};

/// STE.S1DSS: transactions without a SubstreamID when S1CDMax is not 0.
enum class s1_default_substream : std::uint8_t {
    terminate = 0b00,
    bypass = 0b01,
    substream0 = 0b10,
};

/// STE.STRW of a non-secure stream: the translation regime.
enum class stream_world : std::uint8_t {
    nsel1 = 0b00,
    el2 = 0b10, ///< EL2-E2H when CR2.E2H is 1
};

/// Stream Table Entry (5.2): 64 bytes, 64-byte aligned.
struct ste {
    using V = field<0, 0, 0>;
    using Config = field<0, 3, 1>; ///< ste_config
    using S1Fmt = field<0, 5, 4>;
    using S1ContextPtr = field<0, 55, 6>; ///< address bits [55:6]
    using S1CDMax = field<0, 63, 59>;     ///< log2 of the number of CDs

    using S1DSS = field<1, 1, 0>;
    using S1CIR = field<1, 3, 2>;
    using S1COR = field<1, 5, 4>;
    using S1CSH = field<1, 7, 6>;
    using S2HWU59 = field<1, 8, 8>;
    using S2HWU60 = field<1, 9, 9>;
    using S2HWU61 = field<1, 10, 10>;
    using S2HWU62 = field<1, 11, 11>;
    using DRE = field<1, 12, 12>;
    using CONT = field<1, 16, 13>; ///< log2 of the run of streams that share this STE
    using DCP = field<1, 17, 17>;
    using PPAR = field<1, 18, 18>;
    using MEV = field<1, 19, 19>;
    using S1PIE = field<1, 24, 24>;
    using S2FWB = field<1, 25, 25>;
    using S1MPAM = field<1, 26, 26>;
    using S1STALLD = field<1, 27, 27>;
    using EATS = field<1, 29, 28>; ///< 0 abort, 1 full ATS, 2 split stage
    using STRW = field<1, 31, 30>; ///< stream_world
    using MemAttr = field<1, 35, 32>;
    using MTCFG = field<1, 36, 36>;
    using ALLOCCFG = field<1, 40, 37>;
    using SHCFG = field<1, 45, 44>;
    using NSCFG = field<1, 47, 46>;
    using PRIVCFG = field<1, 49, 48>; ///< 0 incoming, 2 unprivileged, 3 privileged
    using INSTCFG = field<1, 51, 50>; ///< 0 incoming, 2 data, 3 instruction

    using S2VMID = field<2, 15, 0>;
    using S2T0SZ = field<2, 37, 32>;
    using S2SL0 = field<2, 39, 38>;
    using S2IR0 = field<2, 41, 40>;
    using S2OR0 = field<2, 43, 42>;
    using S2SH0 = field<2, 45, 44>;
    using S2TG = field<2, 47, 46>; ///< 0 4 KiB, 1 64 KiB, 2 16 KiB
    using S2PS = field<2, 50, 48>; ///< see output_address_bits()
    using S2AA64 = field<2, 51, 51>;
    using S2ENDI = field<2, 52, 52>;
    using S2AFFD = field<2, 53, 53>;
    using S2PTW = field<2, 54, 54>;
    using S2HD = field<2, 55, 55>;
    using S2HA = field<2, 56, 56>;
    using S2S = field<2, 57, 57>;
    using S2R = field<2, 58, 58>;

    using S2HAFT = field<2, 59, 59>;
    using S2PIE = field<2, 60, 60>;
    using S2POE = field<2, 61, 61>;
    using DPT_VMATCH = field<2, 63, 62>;

    using S2NSW = field<3, 0, 0>;
    using S2NSA = field<3, 1, 1>;
    using S2SL0_2 = field<3, 2, 2>; ///< third bit of S2SL0 when S2DS is 1
    using S2DS = field<3, 3, 3>;
    using S2TTB = field<3, 55, 4>; ///< address bits [55:4]
    using S2SKL = field<3, 62, 61>;

    using PARTID = field<4, 31, 16>;
    using S_S2T0SZ = field<4, 37, 32>;
    using S_S2SL0 = field<4, 39, 38>;
    using S_S2TG = field<4, 47, 46>;
    using MECID = field<4, 63, 48>;

    using PMG = field<5, 7, 0>;
    using MPAM_NS = field<5, 8, 8>;
    using AssuredOnly = field<5, 9, 9>;
    using TL0 = field<5, 10, 10>;
    using TL1 = field<5, 11, 11>;
    using VMSPtr = field<5, 55, 12>; ///< address bits [55:12]

    using S2SW = field<6, 0, 0>;
    using S2SA = field<6, 1, 1>;
    using S_S2SL0_2 = field<6, 2, 2>;
    using S_S2TTB = field<6, 55, 4>; ///< address bits [55:4]
    using S_S2SKL = field<6, 62, 61>;

    std::array<le64, 8> word{};
};
static_assert(sizeof(ste) == 64);

/// Level-1 Stream Table Descriptor (5.1): one per level-2 table.
struct l1_stream_table_descriptor {
    using Span = field<0, 4, 0>;   ///< 0 = no table; n = 2^(n-1) STEs
    using L2Ptr = field<0, 55, 6>; ///< address bits [55:6]

    std::array<le64, 1> word{};
};
static_assert(sizeof(l1_stream_table_descriptor) == 8);

// Golden words: what Linux writes for a stage-1 domain with one CD. Table
// accesses are write-back and inner shareable; transactions without a
// SubstreamID use substream 0.
static_assert([] {
    ste entry;
    set<ste::V>(entry, 1);
    set<ste::Config>(entry, static_cast<std::uint64_t>(ste_config::s1_translate));
    set<ste::S1ContextPtr>(entry, 0x5016'f000 >> ste::S1ContextPtr::low);
    set<ste::S1DSS>(entry, static_cast<std::uint64_t>(s1_default_substream::substream0));
    set<ste::S1CIR>(entry, 1);
    set<ste::S1COR>(entry, 1);
    set<ste::S1CSH>(entry, 3);
    return entry.word[0].value() == 0x5016'f00b && entry.word[1].value() == 0xd6;
}());
// Linux's level-1 descriptor of a full level-2 table of 2^8 STEs.
static_assert((l1_stream_table_descriptor::Span::in_place(9) |
               (0x5ba6'0000 & l1_stream_table_descriptor::L2Ptr::mask)) == 0x5ba6'0009);
// A stream that is blocked (V, abort) passes incoming shareability: word 1.
static_assert(ste::SHCFG::in_place(1) == 0x1000'0000'0000);
// Bypass with incoming shareability, and abort.
static_assert((ste::V::mask |
               ste::Config::in_place(static_cast<std::uint64_t>(ste_config::bypass))) == 0x9);
static_assert((ste::V::mask |
               ste::Config::in_place(static_cast<std::uint64_t>(ste_config::abort))) == 0x1);

} // namespace vm_accel::inline v0::spec
