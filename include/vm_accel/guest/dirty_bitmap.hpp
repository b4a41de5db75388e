/// Which pages of guest memory devices and the SMMU have written, for migration.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/result.hpp>

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>

namespace vm_accel::inline v0 {

/// One bit per 4 KiB page of one range of physical addresses. Writes outside the
/// range are not recorded. Use as `basic_region_map<dirty_bitmap>`.
///
/// Threads: note_write from any thread at any time; harvest from one thread at a
/// time; cover first, before any of them. For the last harvest of a migration,
/// call `smmu::quiesce()` first: a page is marked after it was written, before
/// the guard of the write closes.
class dirty_bitmap {
public:
    static constexpr std::uint64_t page_bytes = 4096;

    /// Records writes to `range` from now on, all of it clean. Errors:
    /// invalid_argument (empty, past the end), exhausted (host memory).
    [[nodiscard]] result<> cover(pa_range range) noexcept {
        if (range.empty() || !range.is_valid()) {
            return fail(errc::invalid_argument, "dirty bitmap: the range is empty or wraps",
                        "give a size above 0 that ends within 64 bits");
        }
        const std::uint64_t first = raw(range.base) / page_bytes;
        const std::uint64_t last = (raw(range.base) + (range.size - 1)) / page_bytes;
        const std::uint64_t words = (last - first) / 64 + 1;
        std::unique_ptr<std::atomic<std::uint64_t>[]> fresh{
            new (std::nothrow) std::atomic<std::uint64_t>[static_cast<std::size_t>(words)]()};
        if (!fresh) {
            return fail(errc::exhausted, "dirty bitmap: out of host memory",
                        "cover less memory, or free some");
        }
        words_ = std::move(fresh);
        first_ = first;
        last_ = last;
        return {};
    }

    /// Marks the pages of [address, address + bytes).
    void note_write(pa address, std::uint64_t bytes) noexcept {
        if (!words_ || bytes == 0) return;
        std::uint64_t page = raw(address) / page_bytes;
        std::uint64_t end = (raw(address) + (bytes - 1)) / page_bytes;
        if (page < first_) page = first_;
        if (end > last_) end = last_;
        // The data before the look at the bit: a harvester that clears the bit
        // either copies this data afterwards, or sees the bit set again.
        barrier();
        for (; page <= end; ++page) {
            const std::uint64_t n = page - first_;
            std::atomic<std::uint64_t>& word = words_[static_cast<std::size_t>(n / 64)];
            const std::uint64_t bit = std::uint64_t{1} << n % 64;
            // Most pages are dirty already.
            if ((word.load(std::memory_order_seq_cst) & bit) == 0) {
                word.fetch_or(bit, std::memory_order_seq_cst);
            }
        }
    }

    /// Calls f(pa) with each dirty page's address and makes it clean; gives how
    /// many there were. A page written meanwhile is reported now or next time.
    template <class F>
    std::uint64_t harvest(F&& f) {
        if (!words_) return 0;
        std::uint64_t found = 0;
        for (std::uint64_t w = 0; w <= (last_ - first_) / 64; ++w) {
            std::uint64_t bits =
                words_[static_cast<std::size_t>(w)].exchange(0, std::memory_order_seq_cst);
            if (bits == 0) continue;
            barrier(); // clear before the caller copies
            for (; bits != 0; bits &= bits - 1, ++found) {
                const auto n = w * 64 + static_cast<std::uint64_t>(std::countr_zero(bits));
                f(pa{(first_ + n) * page_bytes});
            }
        }
        return found;
    }

private:
    static void barrier() noexcept { std::atomic_thread_fence(std::memory_order_seq_cst); }

    std::unique_ptr<std::atomic<std::uint64_t>[]> words_;
    std::uint64_t first_ = 0; ///< page numbers
    std::uint64_t last_ = 0;
};

} // namespace vm_accel::inline v0
