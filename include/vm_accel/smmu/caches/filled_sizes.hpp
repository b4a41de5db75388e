/// Which sizes of pages a TLB has ever been filled with.
#pragma once

#include <vm_accel/smmu/caches/tlb_policy.hpp>
#include <vm_accel/smmu/vocabulary/invalidation.hpp>

#include <atomic>
#include <bit>
#include <cstdint>

namespace vm_accel::inline v0 {

/// So that an invalidation by address looks only where entries can be.
///
/// A filler notes a size before it looks whether its ticket is still good; an
/// invalidation makes tickets bad before it reads the sizes. So either it sees
/// the size, or the fill is dropped. Threads: any number at once.
class filled_sizes {
public:
    void note(const tlb_entry& filled) noexcept {
        add(sizes_, filled.size_log2);
        if (filled.guest_size_log2 != filled.size_log2) add(cut_pages_, filled.guest_size_log2);
    }
    /// Bit n: entries of 2^n bytes.
    [[nodiscard]] std::uint64_t sizes() const noexcept {
        return sizes_.load(std::memory_order_seq_cst);
    }

    struct reach {
        std::uint64_t first = 0, last = 0;
    };
    /// Where entries are that a scope covers: pieces of a guest's page may lie
    /// anywhere in that page.
    [[nodiscard]] reach of(const invalidation_scope& scope) const noexcept {
        const std::uint64_t cut = cut_pages_.load(std::memory_order_seq_cst);
        const std::uint64_t slack =
            cut == 0 ? 0 : (std::uint64_t{1} << (std::bit_width(cut) - 1)) - 1;
        return {scope.first & ~slack, scope.last | slack};
    }

private:
    static void add(std::atomic<std::uint64_t>& set, unsigned size_log2) noexcept {
        const std::uint64_t bit = std::uint64_t{1} << size_log2;
        if ((set.load(std::memory_order_seq_cst) & bit) == 0)
            set.fetch_or(bit, std::memory_order_seq_cst);
    }

    std::atomic<std::uint64_t> sizes_{0};
    std::atomic<std::uint64_t> cut_pages_{0}; ///< sizes of guest pages cached in pieces
};

} // namespace vm_accel::inline v0
