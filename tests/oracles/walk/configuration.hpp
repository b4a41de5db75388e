/// What a random tree of tables is walked under: the fields of an arm64 processor's translation
/// registers, which an STE and a CD have too. It knows nothing of the library.
#pragma once

#include "guest.h"

#include <algorithm>
#include <array>
#include <cstdint>

namespace oracle {

using u64 = std::uint64_t;

enum class regime : std::uint8_t { el1, el2, el2_host };

/// log2 of the bytes of a page; 0 is the reserved encoding of TG0 or TG1.
constexpr std::array<unsigned, 4> granules{12, 14, 16, 0};

struct half {
    unsigned tsz = 16;
    unsigned granule = 12;
    unsigned shareability = 3; ///< of memory, with DS
    bool epd = false;
    bool tbi = false;
    bool hpd = false;
    bool e0pd = false;
    u64 table = 0;

    [[nodiscard]] unsigned input_bits() const noexcept { return 64 - tsz; }
};

struct configuration {
    regime world = regime::el1;
    bool stage1 = true;
    bool stage2 = false;
    std::array<half, 2> halves{};
    unsigned ips = 5;
    bool ha = false;
    bool hd = false;
    bool ds = false;
    bool big_endian = false;
    bool epan = false;
    bool wxn = false;
    u64 mair = 0;
    bool incoming_normal = false; ///< stage 1 off: HCR.DC, so write-back and not Device

    unsigned s2tsz = 24;
    unsigned s2granule = 12;
    unsigned s2sl0 = 1;
    bool s2sl2 = false;
    unsigned s2shareability = 3;
    unsigned s2ps = 5;
    bool s2ha = false;
    bool s2hd = false;
    bool s2ds = false;
    bool s2big_endian = false;
    bool s2ptw = false;
    bool s2fwb = false;
    u64 s2table = 0;

    [[nodiscard]] bool updates() const noexcept { return (stage1 && ha) || (stage2 && s2ha); }
};

/// PS and IPS in bits; 7 is reserved and the emulator takes it for 52.
[[nodiscard]] constexpr unsigned size_bits(unsigned ps) noexcept {
    constexpr std::array<unsigned, 8> sizes{32, 36, 40, 42, 44, 48, 52, 52};
    return sizes[ps & 7];
}
/// Output bits of one granule: above 48 only in the formats that have room for them.
[[nodiscard]] constexpr unsigned output_bits(unsigned ps, unsigned granule, bool ds) noexcept {
    return granule == 16 || ds ? size_bits(ps) : std::min(size_bits(ps), 48U);
}
/// Whether descriptors have address bits [51:48].
[[nodiscard]] constexpr bool high_address_bits(unsigned granule, bool ds) noexcept {
    return granule == 16 || ds;
}
/// Whether TTBR holds bits [51:48] of the table's address in [5:2].
[[nodiscard]] constexpr bool wide_base(unsigned ps, unsigned granule, bool ds) noexcept {
    return output_bits(ps, granule, ds) > 48;
}

[[nodiscard]] constexpr unsigned stride(unsigned granule) noexcept { return granule - 3; }
/// log2 of what a descriptor at `level` covers.
[[nodiscard]] constexpr unsigned covered(unsigned granule, int level) noexcept {
    return granule + static_cast<unsigned>(3 - level) * stride(granule);
}
[[nodiscard]] constexpr int stage1_start(unsigned granule, unsigned input_bits) noexcept {
    const unsigned levels = (input_bits - granule + stride(granule) - 1) / stride(granule);
    return 4 - static_cast<int>(levels);
}
/// Stage 2's first level as SL0 and SL2 encode it; 9 is reserved.
[[nodiscard]] constexpr int stage2_start(const configuration& c) noexcept {
    if (c.s2granule == 12) {
        if (c.s2ds && c.s2sl2) return c.s2sl0 == 0 ? -1 : 9;
        constexpr std::array<int, 4> level{2, 1, 0, 3};
        return level[c.s2sl0 & 3];
    }
    if (c.s2granule == 14) return c.s2sl0 == 3 && !c.s2ds ? 9 : 3 - static_cast<int>(c.s2sl0);
    return c.s2sl0 == 3 ? 9 : 3 - static_cast<int>(c.s2sl0);
}
/// Whether a leaf may be at `level`.
[[nodiscard]] constexpr bool leaf_allowed(unsigned granule, int level, bool ds) noexcept {
    if (level >= 2) return true;
    if (granule == 12) return level == 1 || (level == 0 && ds);
    if (granule == 14) return level == 1 && ds;
    return level == 1;
}

/// TTBR's view of a table's address.
[[nodiscard]] constexpr u64 base_register(u64 table, bool wide) noexcept {
    constexpr u64 low48 = (u64{1} << 48) - 1;
    return wide ? (table & low48 & ~u64{0x3f}) | (table >> 48 & 0xf) << 2 : table & low48;
}

[[nodiscard]] constexpr u64 tg0(unsigned granule) noexcept {
    return granule == 12 ? 0 : granule == 16 ? 1 : granule == 14 ? 2 : 3;
}
[[nodiscard]] constexpr u64 tg1(unsigned granule) noexcept {
    return granule == 14 ? 1 : granule == 12 ? 2 : granule == 16 ? 3 : 0;
}
[[nodiscard]] constexpr u64 at_bit(bool value, unsigned bit) noexcept {
    return u64{value ? 1U : 0U} << bit;
}

/// The processor's registers for a configuration.
[[nodiscard]] inline oracle_tree registers_of(const configuration& c) noexcept {
    oracle_tree r{};
    const half& low = c.halves[0];
    const half& high = c.halves[1];
    constexpr u64 walks = 0x5; // inner and outer write-back
    r.el2 = c.world != regime::el1;
    r.sctlr = 0x30d0'0800 | at_bit(c.stage1, 0) | 1U << 2 | at_bit(c.wxn, 19) |
              at_bit(c.big_endian, 25) | at_bit(c.epan, 57);
    r.sctlr_el2 = 0x30c5'0830 | at_bit(c.s2big_endian, 25);
    if (c.world == regime::el2) {
        r.tcr = low.tsz | walks << 8 | u64{low.shareability} << 12 | tg0(low.granule) << 14 |
                u64{c.ips} << 16 | at_bit(low.tbi, 20) | at_bit(c.ha, 21) | at_bit(c.hd, 22) |
                1U << 23 | at_bit(low.hpd, 24) | u64{1} << 31 | at_bit(c.ds, 32);
    } else {
        r.tcr = low.tsz | at_bit(low.epd, 7) | walks << 8 | u64{low.shareability} << 12 |
                tg0(low.granule) << 14 | u64{high.tsz} << 16 | at_bit(high.epd, 23) | walks << 24 |
                u64{high.shareability} << 28 | tg1(high.granule) << 30 | u64{c.ips} << 32 |
                u64{1} << 36 | at_bit(low.tbi, 37) | at_bit(high.tbi, 38) | at_bit(c.ha, 39) |
                at_bit(c.hd, 40) | at_bit(low.hpd, 41) | at_bit(high.hpd, 42) |
                at_bit(low.e0pd, 55) | at_bit(high.e0pd, 56) | at_bit(c.ds, 59);
    }
    r.ttbr0 = base_register(low.table, wide_base(c.ips, low.granule, c.ds));
    r.ttbr1 = base_register(high.table, wide_base(c.ips, high.granule, c.ds));
    r.mair = c.mair;
    r.hcr = u64{1} << 31 | at_bit(c.stage2, 0) | at_bit(c.s2ptw, 2) |
            at_bit(c.incoming_normal, 12) | at_bit(c.world == regime::el2_host, 34) |
            at_bit(c.s2fwb, 46);
    r.vtcr = c.s2tsz | u64{c.s2sl0} << 6 | walks << 8 | u64{c.s2shareability} << 12 |
             tg0(c.s2granule) << 14 | u64{c.s2ps} << 16 | at_bit(c.s2ha, 21) | at_bit(c.s2hd, 22) |
             u64{1} << 31 | at_bit(c.s2ds, 32) | at_bit(c.s2sl2, 33);
    r.vttbr = base_register(c.s2table, wide_base(c.s2ps, c.s2granule, c.s2ds));
    return r;
}

/// What an AT instruction asks for.
struct question {
    bool write = false;
    bool privileged = true;
    bool pan = false;
};
[[nodiscard]] constexpr question question_of(std::uint32_t at) noexcept {
    switch (at) {
    case AT_S1E1R:
    case AT_S12E1R:
    case AT_S1E2R:
        return {};
    case AT_S1E1W:
    case AT_S12E1W:
    case AT_S1E2W:
        return {.write = true};
    case AT_S1E0R:
    case AT_S12E0R:
        return {.privileged = false};
    case AT_S1E0W:
    case AT_S12E0W:
        return {.write = true, .privileged = false};
    case AT_S1E1RP:
        return {.pan = true};
    case AT_S1E1WP:
        return {.write = true, .pan = true};
    default:
        return {};
    }
}

} // namespace oracle
