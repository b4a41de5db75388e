/// VMSAv8-64 translation table descriptors (DDI 0487, D8.3), as facts.
///
/// A descriptor is one 64-bit word. Bits [1:0] say what it is, and that
/// depends on the level: 0b11 is a table above the last level and a page at
/// the last one, 0b01 a block above the last level and invalid at it.
#pragma once

#include <vm_accel/core/field.hpp>

#include <cstdint>

namespace vm_accel::inline v0::spec {

/// Translation granules, by log2 of their bytes.
enum class granule : std::uint8_t { size_4k = 12, size_16k = 14, size_64k = 16 };

/// The level of the leaf pages; the root level is lower.
inline constexpr unsigned last_level = 3;

/// log2 of the bytes of a page or table.
[[nodiscard]] constexpr unsigned page_bits(granule g) noexcept { return static_cast<unsigned>(g); }
/// Input address bits that one level resolves: log2 of descriptors per table.
[[nodiscard]] constexpr unsigned bits_per_level(granule g) noexcept { return page_bits(g) - 3; }
/// log2 of the bytes that one descriptor at `level` covers. Level -1 to 3.
[[nodiscard]] constexpr unsigned covered_bits(granule g, int level) noexcept {
    return page_bits(g) +
           static_cast<unsigned>(static_cast<int>(last_level) - level) * bits_per_level(g);
}
static_assert(covered_bits(granule::size_4k, 2) == 21 && covered_bits(granule::size_4k, 0) == 39);
static_assert(covered_bits(granule::size_16k, 2) == 25 && covered_bits(granule::size_64k, 2) == 29);

/// How descriptors hold addresses (DDI 0487, D8.3).
enum class address_form : std::uint8_t {
    narrow,    ///< bits [47:n]: addresses of at most 48 bits
    large_64k, ///< 64 KiB granules, 52 bits: bits [51:48] are in [15:12]
    ds,        ///< 4 and 16 KiB granules, 52 bits: [49:48] in place, [51:50] in [9:8]
};

/// Whether blocks exist at a level.
[[nodiscard]] constexpr bool has_blocks(granule g, int level,
                                        address_form form = address_form::narrow) noexcept {
    const int wide = form == address_form::narrow ? 0 : 1;
    return level == 2 || (g == granule::size_4k ? level == 1 || (level == 0 && wide == 1)
                                                : level == 1 && wide == 1);
}
static_assert(has_blocks(granule::size_4k, 0, address_form::ds) &&
              has_blocks(granule::size_16k, 1, address_form::ds) &&
              has_blocks(granule::size_64k, 1, address_form::large_64k) &&
              !has_blocks(granule::size_4k, 0) && !has_blocks(granule::size_16k, 1) &&
              !has_blocks(granule::size_64k, 1) && !has_blocks(granule::size_4k, 3));

/// log2 of the descriptors that one contiguous group has; 0 = the bit means
/// nothing at this level.
[[nodiscard]] constexpr unsigned contiguous_bits(granule g, int level) noexcept {
    switch (g) {
    case granule::size_4k:
        return level >= 1 ? 4 : 0;
    case granule::size_16k:
        return level == 3 ? 7 : level == 2 ? 5 : 0;
    case granule::size_64k:
        return level >= 2 ? 5 : 0;
    }
    return 0;
}

/// Bits [1:0] of a descriptor.
struct descriptor_kind {
    using Valid = field<0, 0, 0>;
    using Table = field<0, 1, 1>; ///< 1 table (or page at the last level), 0 block
    static constexpr std::uint64_t block = 0b01;
    static constexpr std::uint64_t table = 0b11;
    static constexpr std::uint64_t page = 0b11;
};

/// Attributes of a stage-1 block or page.
struct stage1_leaf {
    using AttrIndx = field<0, 4, 2>; ///< byte of MAIR
    using NS = field<0, 5, 5>;
    using AP = field<0, 7, 6>; ///< AP[2:1]: bit 1 read-only, bit 0 unprivileged access
    using SH = field<0, 9, 8>;
    using AF = field<0, 10, 10>;
    using nG = field<0, 11, 11>; ///< 1: belongs to the ASID, 0: global
    using nT = field<0, 16, 16>;
    using DBM = field<0, 51, 51>;
    using Contiguous = field<0, 52, 52>;
    using PXN = field<0, 53, 53>;
    using UXN = field<0, 54, 54>;
    using PBHA = field<0, 62, 59>;
};
/// AP[2:1] bit by bit.
struct access_permission {
    using unprivileged = field<0, 6, 6>; ///< AP[1]
    using read_only = field<0, 7, 7>;    ///< AP[2]
};

/// Attributes that a stage-1 table descriptor imposes on all below it.
struct stage1_table {
    using PXNTable = field<0, 59, 59>;
    using XNTable = field<0, 60, 60>; ///< UXNTable
    using APTable = field<0, 62, 61>; ///< bit 1: no writes, bit 0: no unprivileged access
    using NSTable = field<0, 63, 63>;
};

/// Attributes of a stage-2 block or page.
struct stage2_leaf {
    using MemAttr = field<0, 5, 2>;
    using S2AP = field<0, 7, 6>; ///< bit 0 read, bit 1 write
    using SH = field<0, 9, 8>;
    using AF = field<0, 10, 10>;
    using FnXS = field<0, 11, 11>;
    using nT = field<0, 16, 16>;
    using DBM = field<0, 51, 51>;
    using Contiguous = field<0, 52, 52>;
    using S2XN = field<0, 54, 53>; ///< without XNX only bit 54 counts
    using PBHA = field<0, 62, 59>;
};

/// Bits [47:n] that hold a table address, n = page_bits(g), in the narrow form.
[[nodiscard]] constexpr std::uint64_t table_address_mask(granule g) noexcept {
    return ((std::uint64_t{1} << 48) - 1) & ~((std::uint64_t{1} << page_bits(g)) - 1);
}
/// Bits [47:n] of a block or page at `level` that hold the output address, in
/// the narrow form.
[[nodiscard]] constexpr std::uint64_t output_address_mask(granule g, int level) noexcept {
    return ((std::uint64_t{1} << 48) - 1) & ~((std::uint64_t{1} << covered_bits(g, level)) - 1);
}
static_assert(table_address_mask(granule::size_4k) == 0x0000'ffff'ffff'f000);
static_assert(output_address_mask(granule::size_4k, 2) == 0x0000'ffff'ffe0'0000);
static_assert(output_address_mask(granule::size_64k, 3) == 0x0000'ffff'ffff'0000);

/// The address in a descriptor; the lowest `aligned` bits are zero: page_bits()
/// of a table, covered_bits() of a block or page.
[[nodiscard]] constexpr std::uint64_t address_in(std::uint64_t descriptor, unsigned aligned,
                                                 address_form form) noexcept {
    constexpr std::uint64_t low48 = (std::uint64_t{1} << 48) - 1;
    constexpr std::uint64_t low50 = (std::uint64_t{1} << 50) - 1;
    const std::uint64_t above = ~((std::uint64_t{1} << aligned) - 1);
    switch (form) {
    case address_form::narrow:
        break;
    case address_form::large_64k:
        return (descriptor & low48 & above) | field<0, 15, 12>::of(descriptor) << 48;
    case address_form::ds:
        return (descriptor & low50 & above) | field<0, 9, 8>::of(descriptor) << 50;
    }
    return descriptor & low48 & above;
}
static_assert(address_in(0x8001'ffff'ffff'ffff, 12, address_form::narrow) == 0xffff'ffff'f000);
static_assert(address_in(0x1'f003, 16, address_form::large_64k) == 0x000f'0000'0001'0000);
static_assert(address_in(0x0003'0000'0000'1303, 12, address_form::ds) == 0x000f'0000'0000'1000);

// Golden word: a 4 KiB page that Linux maps for a coherent device: read and
// write, tagged with the ASID, write-back, access flag set.
static_assert((descriptor_kind::page | stage1_leaf::AP::in_place(0b01) |
               stage1_leaf::SH::in_place(3) | stage1_leaf::AF::mask | stage1_leaf::nG::mask |
               stage1_leaf::AttrIndx::in_place(1) | 0x4860'9000) == 0x4860'9f47);

} // namespace vm_accel::inline v0::spec
