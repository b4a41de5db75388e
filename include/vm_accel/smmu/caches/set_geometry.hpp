/// Where a set-associative cache keeps what: sets, home ways, and the sets that
/// an invalidation by address has to look at.
#pragma once

#include <vm_accel/smmu/caches/tlb_policy.hpp>

#include <algorithm>
#include <array>
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
        const std::uint64_t page = set_salt(index & set_salts) << set_shift ^
                                   (index >> salt_bits & home_ways) << way_shift;
        return size_log2 < 64 ? page << size_log2 : 0;
    }

    /// Which salts were ever used.
    class used_salts {
    public:
        /// Before a fill looks whether it has been overtaken by an invalidation.
        void note(std::uint64_t context, bool global) noexcept {
            const std::uint64_t index = context_index(context);
            add(sets_, index & set_salts);
            add(ways_, index >> salt_bits & home_ways);
            if (global) add(global_sets_, index & set_salts);
        }
        /// Those of sets, where entries are that the scope covers: bit n = contexts
        /// whose indexes end in n. After the invalidation is visible to fills.
        [[nodiscard]] std::uint64_t of_sets(const invalidation_scope& scope) const noexcept {
            const std::uint64_t used = sets_.load(std::memory_order_seq_cst);
            if (scope.contexts == nullptr) return used;
            return used & (folded(scope.contexts->load(std::memory_order_seq_cst)) |
                           global_sets_.load(std::memory_order_seq_cst));
        }
        /// Those of home ways. After the invalidation is visible to fills.
        [[nodiscard]] std::uint64_t of_ways() const noexcept {
            return ways_.load(std::memory_order_seq_cst);
        }

    private:
        static void add(std::atomic<std::uint64_t>& set, std::uint64_t number) noexcept {
            const std::uint64_t bit = std::uint64_t{1} << number;
            if ((set.load(std::memory_order_seq_cst) & bit) == 0)
                set.fetch_or(bit, std::memory_order_seq_cst);
        }
        /// Indexes modulo 64, modulo the number of salts.
        [[nodiscard]] static constexpr std::uint64_t folded(std::uint64_t bits) noexcept {
            for (unsigned width = 32; width > set_salts; width /= 2)
                bits |= bits >> width;
            return bits;
        }

        std::atomic<std::uint64_t> sets_{0};
        std::atomic<std::uint64_t> ways_{0};
        std::atomic<std::uint64_t> global_sets_{0}; ///< of entries that are of every ASID
    };

    /// Where one page lies: for each salt of sets one such set, and there under a key
    /// that differs from `key` in the salt of home ways alone.
    struct page_place {
        std::size_t set = 0;
        std::uint64_t key = 0;
        unsigned way_position = 0;

        /// Whether an entry there with that key is of that page, `salts` being the salts
        /// of home ways that were used.
        [[nodiscard]] constexpr bool holds(std::uint64_t found,
                                           std::uint64_t salts) const noexcept {
            const std::uint64_t rest = std::rotr(found ^ key, static_cast<int>(way_position));
            return rest <= home_ways && (salts >> rest & 1) != 0;
        }
    };
    [[nodiscard]] static constexpr page_place place_of(std::uint64_t address, unsigned size_log2,
                                                       int salt) noexcept {
        const std::uint64_t page = address >> size_log2 ^ set_salt(static_cast<std::uint64_t>(salt))
                                                              << set_shift;
        return {set_of(page), page << size_log2 ^ size_log2, way_shift + size_log2};
    }

    /// The number of the page that a context's entry of that size has under this key.
    [[nodiscard]] static constexpr std::uint64_t page_in(std::uint64_t key, std::uint64_t context,
                                                         unsigned size_log2) noexcept {
        return (key ^ salt(context, size_log2)) >> size_log2;
    }
    /// Those of the sizes whose pages around `first` reach as far as `last`.
    [[nodiscard]] static constexpr std::uint64_t one_page(std::uint64_t first, std::uint64_t last,
                                                          std::uint64_t sizes) noexcept {
        const auto width = static_cast<unsigned>(std::bit_width(first ^ last));
        return width < 64 ? sizes >> width << width : 0;
    }
    template <class Visit>
    static void visit_all(Visit&& visit) noexcept {
        for (std::size_t set = 0; set < Sets; ++set)
            visit(set);
    }
    /// Calls visit(set) for the sets that can hold pages of [first, last] of these
    /// sizes (bit n = 2^n bytes) and salts; for each set once if they are many.
    template <class Visit>
    static void visit_sets(std::uint64_t first, std::uint64_t last, std::uint64_t sizes,
                           std::uint64_t salts, Visit&& visit) noexcept {
        if (salts == 0) return; // a size may be noted already: that fill comes too late
        if (rows_in(first, last, sizes) * static_cast<unsigned>(std::popcount(salts)) >= Sets) {
            visit_all(visit);
            return;
        }
        for (std::uint64_t rest = sizes; rest != 0; rest &= rest - 1) {
            const auto size_log2 = static_cast<unsigned>(std::countr_zero(rest));
            const std::uint64_t final = row_of(last, size_log2);
            for (std::uint64_t row = row_of(first, size_log2);; ++row) {
                for (std::uint64_t some = salts; some != 0; some &= some - 1) {
                    const auto one = static_cast<std::uint64_t>(std::countr_zero(some));
                    visit(static_cast<std::size_t>((row ^ set_salt(one)) & (Sets - 1)));
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
    /// Salts by number, with the bits in reverse order: of few contexts each then has a large
    /// part of the sets before it meets another.
    static constexpr auto far_apart = [] {
        std::array<std::uint8_t, set_salts + 1> of{};
        for (unsigned n = 0; n <= set_salts; ++n) {
            for (unsigned bit = 0; bit < salt_bits; ++bit)
                of[n] = static_cast<std::uint8_t>(of[n] * 2U | (n >> bit & 1));
        }
        return of;
    }();
    [[nodiscard]] static constexpr std::uint64_t set_salt(std::uint64_t number) noexcept {
        return std::uint64_t{far_apart[number]} << salt_shift;
    }

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
