/// Where a set-associative cache keeps what: sets, home ways, and the sets that
/// an invalidation by address has to look at.
#pragma once

#include <vm_accel/smmu/caches/tlb_policy.hpp>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace vm_accel::inline v0 {

/// Pages in a row share a set where each can have a home way of its own.
/// Contexts that use the same pages, as devices of one driver do, have them in
/// different sets, or in other ways of the same.
template <std::size_t Sets, std::size_t Ways>
struct set_geometry {
    static_assert(std::has_single_bit(Sets), "Sets must be a power of two");
    static_assert(Ways >= 1 && Ways <= 16, "Ways must be 1 to 16");

    static constexpr std::size_t stride = std::bit_ceil(Ways); ///< entries from set to set
    static constexpr bool rows = std::has_single_bit(Ways);

    /// The number of a page's row; rows one after the other are in such sets.
    [[nodiscard]] static constexpr std::uint64_t row_of(std::uint64_t address,
                                                        unsigned size_log2) noexcept {
        return address >> size_log2 >> set_shift;
    }
    /// `page`: a salted address by page size.
    [[nodiscard]] static constexpr std::size_t set_of(std::uint64_t page) noexcept {
        return page >> set_shift & (Sets - 1);
    }
    [[nodiscard]] static constexpr unsigned way_of(std::uint64_t page) noexcept {
        return static_cast<unsigned>(page >> way_shift & home_ways);
    }
    /// What an address of a context is salted with, by exclusive or, before its
    /// set and home way are looked up.
    [[nodiscard]] static constexpr std::uint64_t salt(std::uint64_t context,
                                                      unsigned size_log2) noexcept {
        const std::uint64_t index = context_index(context);
        const std::uint64_t page = (index & set_salts) << salt_shift << set_shift ^
                                   (index >> salt_bits & home_ways) << way_shift;
        return size_log2 < 64 ? page << size_log2 : 0;
    }

    /// Which of the salts that change the set were ever used.
    class used_salts {
    public:
        /// Before a fill looks whether it has been overtaken by an invalidation.
        void note(std::uint64_t context) noexcept {
            const std::uint64_t bit = std::uint64_t{1} << (context_index(context) & set_salts);
            if ((bits_.load(std::memory_order_seq_cst) & bit) == 0)
                bits_.fetch_or(bit, std::memory_order_seq_cst);
        }
        /// Bit n: contexts whose indexes end in n. For visit_sets, after the
        /// invalidation is visible to fills.
        [[nodiscard]] std::uint64_t bits() const noexcept {
            return bits_.load(std::memory_order_seq_cst);
        }

    private:
        std::atomic<std::uint64_t> bits_{0};
    };

    /// Calls visit(set) for the sets that can hold pages of [first, last] of these
    /// sizes (bit n = 2^n bytes) and salts; for each set once if they are many.
    template <class Visit>
    static void visit_sets(std::uint64_t first, std::uint64_t last, std::uint64_t sizes,
                           std::uint64_t salts, Visit&& visit) noexcept {
        if (salts == 0) return; // a size may be noted already: that fill comes too late
        if (rows_in(first, last, sizes) * static_cast<unsigned>(std::popcount(salts)) >= Sets) {
            for (std::size_t set = 0; set < Sets; ++set)
                visit(set);
            return;
        }
        for (std::uint64_t rest = sizes; rest != 0; rest &= rest - 1) {
            const auto size_log2 = static_cast<unsigned>(std::countr_zero(rest));
            const std::uint64_t final = row_of(last, size_log2);
            for (std::uint64_t row = row_of(first, size_log2);; ++row) {
                for (std::uint64_t some = salts; some != 0; some &= some - 1) {
                    const auto one = static_cast<std::uint64_t>(std::countr_zero(some));
                    visit(static_cast<std::size_t>((row ^ one << salt_shift) & (Sets - 1)));
                }
                if (row == final) break;
            }
        }
    }

private:
    static constexpr std::uint64_t home_ways = std::bit_floor(Ways) - 1;
    static constexpr unsigned set_shift = rows ? std::countr_one(home_ways) : 0;
    static constexpr unsigned way_shift = rows ? 0 : std::countr_zero(Sets);
    // A salt changes the highest bits of the set.
    static constexpr unsigned salt_bits = std::min(6, std::countr_zero(Sets));
    static constexpr unsigned salt_shift = std::countr_zero(Sets) - salt_bits;
    static constexpr std::uint64_t set_salts = (std::uint64_t{1} << salt_bits) - 1;

    /// How many rows have pages of [first, last], cut off at Sets.
    [[nodiscard]] static constexpr std::uint64_t rows_in(std::uint64_t first, std::uint64_t last,
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
