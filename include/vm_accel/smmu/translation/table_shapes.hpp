/// Which sizes of translation tables an implementation accepts. What lies
/// outside makes a CD or STE illegal before any walk (IHI 0070, 3.4, 5.2, 5.4).
#pragma once

#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/spec/descriptors.hpp>
#include <vm_accel/spec/registers.hpp>

#include <cstdint>
#include <optional>

namespace vm_accel::inline v0 {

/// log2 of a granule's bytes; nullopt for reserved encodings and granules not offered.
template <smmu_features F>
[[nodiscard]] constexpr std::optional<std::uint8_t> granule_of(std::uint64_t encoded,
                                                               bool upper_half) noexcept {
    // TG0 and S2TG count 4K, 64K, 16K from 0; TG1 counts 16K, 4K, 64K from 1.
    constexpr std::uint8_t lower[4] = {12, 16, 14, 0};
    constexpr std::uint8_t upper[4] = {0, 14, 12, 16};
    const std::uint8_t bits = upper_half ? upper[encoded & 3] : lower[encoded & 3];
    const bool implemented = (bits == 12 && F.granule_4k) || (bits == 14 && F.granule_16k) ||
                             (bits == 16 && F.granule_64k);
    if (!implemented) return std::nullopt;
    return bits;
}

/// The largest legal TxSZ and S2T0SZ: the smallest input space.
template <smmu_features F>
[[nodiscard]] constexpr std::uint64_t largest_tsz(unsigned granule_bits) noexcept {
    if (!F.stt) return 39;
    return granule_bits == 16 ? 47 : 48;
}

/// Whether CD.TxSZ is in range (5.4, T0SZ). `wide`: the effective CD.DS.
template <smmu_features F>
[[nodiscard]] constexpr bool is_legal_stage1_tsz(std::uint64_t tsz, unsigned granule_bits,
                                                 bool wide) noexcept {
    const std::uint64_t least = F.vax52 && (granule_bits == 16 || wide) ? 12 : 16;
    return tsz >= least && tsz <= largest_tsz<F>(granule_bits);
}

/// Whether STE.S2T0SZ is in range (5.2). Without AArch32 tables the largest
/// intermediate address is as wide as the output (3.4, IAS).
template <smmu_features F>
[[nodiscard]] constexpr bool is_legal_stage2_tsz(std::uint64_t tsz, unsigned granule_bits,
                                                 bool wide) noexcept {
    const std::uint64_t widest = granule_bits == 16 || wide ? 12 : 16;
    const std::uint64_t least = widest < 64 - F.output_bits ? 64 - F.output_bits : widest;
    return tsz >= least && tsz <= largest_tsz<F>(granule_bits);
}

/// The effective output size for an encoding of CD.IPS or STE.S2PS: at most
/// OAS, which also stands for reserved encodings.
template <smmu_features F>
[[nodiscard]] constexpr std::uint8_t output_bits_of(std::uint64_t encoded) noexcept {
    const unsigned asked = spec::output_address_bits(encoded);
    return static_cast<std::uint8_t>(asked == 0 || asked > F.output_bits ? F.output_bits : asked);
}

/// Whether a first-level table may be at this address (5.2, S2TTB; 5.4, TTB0):
/// inside the output size, and inside 48 bits unless descriptors hold more.
[[nodiscard]] constexpr bool is_legal_table(std::uint64_t table, unsigned output_bits,
                                            unsigned granule_bits, bool wide) noexcept {
    const unsigned held = granule_bits == 16 || wide ? 52 : 48;
    return table >> (output_bits < held ? output_bits : held) == 0;
}

/// Bits [51:4] of a table's address as a CD or STE has it; the bits above are
/// RES0. Bits below the table's own size are zero to the walk (table_format).
[[nodiscard]] constexpr std::uint64_t table_base(std::uint64_t field) noexcept {
    return field & 0x000f'ffff'ffff'fff0;
}

/// The level at which a stage-2 walk starts (DDI 0487, VTCR_EL2.SL0 and SL2);
/// nullopt = reserved, or inconsistent with the input size: the first table,
/// concatenated or not, is one of at least two descriptors and of at most 16
/// tables.
template <smmu_features F>
[[nodiscard]] constexpr std::optional<std::int8_t>
stage2_start_level(std::uint64_t sl0, bool sl0_2, unsigned granule_bits, bool wide,
                   unsigned input_bits) noexcept {
    int level = 0;
    switch (granule_bits) {
    case 12:
        if (wide && sl0_2) {
            if (sl0 != 0) return std::nullopt;
            level = -1;
        } else if (sl0 == 3) {
            if (!F.stt) return std::nullopt;
            level = 3;
        } else {
            if (sl0 == 2 && F.output_bits < 44) return std::nullopt;
            level = 2 - static_cast<int>(sl0);
        }
        break;
    case 14:
        if (sl0 == 3 && !wide) return std::nullopt;
        if (sl0 == 2 && F.output_bits < 42) return std::nullopt;
        level = 3 - static_cast<int>(sl0);
        break;
    default:
        if (sl0 == 3 || (sl0 == 2 && F.output_bits < 44)) return std::nullopt;
        level = 3 - static_cast<int>(sl0);
        break;
    }
    const auto granule = spec::granule{static_cast<std::uint8_t>(granule_bits)};
    const unsigned below = spec::covered_bits(granule, level);
    constexpr unsigned concatenation = 4; // log2 of the most tables side by side
    if (input_bits <= below || input_bits > below + spec::bits_per_level(granule) + concatenation) {
        return std::nullopt;
    }
    return static_cast<std::int8_t>(level);
}

} // namespace vm_accel::inline v0
