/// Where a page's entry goes in a cache of sets.
#pragma once

#include <vm_accel/smmu/caches/tlb_policy.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>

namespace vm_accel::inline v0 {

/// `Sets` sets of `Ways` ways. The page's number alone says which set; the home
/// way depends on the context too, so that devices that use the same pages do
/// not want the same place. Pages in a row share a set where each can have a home
/// of its own there.
template <std::size_t Sets, std::size_t Ways>
struct set_geometry {
    static constexpr std::size_t stride = std::bit_ceil(Ways); ///< entries from set to set
    static constexpr std::uint64_t home_ways = std::bit_floor(Ways) - 1;
    static constexpr bool rows = std::has_single_bit(Ways);
    static constexpr unsigned set_shift = rows ? std::countr_one(home_ways) : 0;
    static constexpr unsigned way_shift = rows ? 0 : std::countr_zero(Sets);

    /// Pages of one row are in one set.
    [[nodiscard]] static constexpr std::uint64_t row_of(std::uint64_t address,
                                                        unsigned size_log2) noexcept {
        return address >> size_log2 >> set_shift;
    }
    [[nodiscard]] static constexpr std::size_t set_of(std::uint64_t page) noexcept {
        return page >> set_shift & (Sets - 1);
    }
    [[nodiscard]] static constexpr unsigned way_of(std::uint64_t page) noexcept {
        return static_cast<unsigned>(page >> way_shift & home_ways);
    }
    /// To be exclusive-ored with an address: the context's part of the home way.
    [[nodiscard]] static constexpr std::uint64_t home_salt(std::uint64_t context,
                                                           unsigned size_log2) noexcept {
        const unsigned shift = size_log2 + way_shift;
        return shift < 64 ? (context_index(context) & home_ways) << shift : 0;
    }
    /// How many sets the pages of [first, last] are in, cut off at Sets.
    [[nodiscard]] static std::uint64_t visits(std::uint64_t first, std::uint64_t last,
                                              std::uint64_t sizes) noexcept {
        std::uint64_t total = 0;
        for (; sizes != 0 && total < Sets; sizes &= sizes - 1) {
            const auto size_log2 = static_cast<unsigned>(std::countr_zero(sizes));
            const std::uint64_t more = row_of(last, size_log2) - row_of(first, size_log2);
            total = more >= Sets ? Sets : total + more + 1;
        }
        return total;
    }
};

} // namespace vm_accel::inline v0
