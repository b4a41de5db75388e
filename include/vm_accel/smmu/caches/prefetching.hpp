/// A TLB that prefetches, and what it can prefetch.
#pragma once

#include <vm_accel/smmu/caches/prefetching_tlb.hpp>
#include <vm_accel/smmu/caches/tlb_policy.hpp>

#include <array>
#include <atomic>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>

namespace vm_accel::inline v0 {

/// Decides what to prefetch after a miss. Threads: any number at once; what
/// they mix up may make a wish useless, never wrong.
template <class S>
concept stride_policy =
    std::default_initializable<S> && requires(S stride, const tlb_key& missed, unsigned size_log2) {
        { stride.after(missed, size_log2) } noexcept -> std::same_as<prefetch_wish>;
    };

/// The pages after the one that missed. A stream then misses once in Count + 1
/// pages; scattered accesses pay Count walks for nothing with each miss, and
/// these push other entries out.
template <unsigned Count = 4>
struct next_page {
    static_assert(Count >= 1 && Count <= prefetch_wish::most_prefetches);

    [[nodiscard]] static prefetch_wish after(const tlb_key& missed, unsigned size_log2) noexcept {
        const std::uint64_t size = std::uint64_t{1} << size_log2;
        return {(missed.address & ~(size - 1)) + size, size, Count};
    }
};

/// Waits until a context has missed twice at the same distance, up or down, and
/// then prefetches at that distance, for as long as misses come where the
/// prefetched pages end. Scattered accesses cost nothing but a few stores.
///
/// One stream per context is followed, in a table of Contexts places that
/// contexts share when there are more: several interleaved streams of one
/// context look like scattered accesses.
template <unsigned Count = 4, std::size_t Contexts = 64>
class constant_stride {
    static_assert(Count >= 1 && Count <= prefetch_wish::most_prefetches);
    static_assert(std::has_single_bit(Contexts), "Contexts must be a power of two");

public:
    [[nodiscard]] prefetch_wish after(const tlb_key& missed, unsigned size_log2) noexcept {
        constexpr auto order = std::memory_order_relaxed;
        const std::uint64_t context = missed.context >> 32;
        const std::uint64_t page = missed.address >> size_log2 << size_log2;
        stream& s = streams_[context % Contexts];
        if (s.context.load(order) != context) {
            s.context.store(context, order);
            s.last.store(page, order);
            s.stride.store(0, order);
            return {};
        }
        const std::uint64_t before = s.stride.load(order);
        const std::uint64_t distance = page - s.last.load(order);
        s.last.store(page, order);
        // Where prefetched pages lie in between, the next miss is that far away.
        const bool goes_on = distance == before || distance == before * (Count + 1);
        if (before == 0 || !goes_on) {
            s.stride.store(distance, order);
            return {};
        }
        return {page + before, before, Count};
    }

private:
    struct stream {
        std::atomic<std::uint64_t> context{~std::uint64_t{0}};
        std::atomic<std::uint64_t> last{0};   ///< page that missed last
        std::atomic<std::uint64_t> stride{0}; ///< distance of the last two; 0 = unknown
    };
    std::array<stream, Contexts> streams_{};
};

/// A TLB and a wish: for devices that stream, where a miss costs more than the
/// walks that it saves. Look-ups cost what Tlb's cost; see prefetching_tlb for
/// what a miss costs. It must be the outermost policy: others pass no wishes on.
template <tlb_policy Tlb, stride_policy Stride = next_page<>>
    requires(!prefetching_tlb<Tlb>)
class prefetching : public Tlb {
public:
    [[nodiscard]] prefetch_wish next_wanted(const tlb_key& missed, unsigned size_log2) noexcept {
        return stride_.after(missed, size_log2);
    }

private:
    [[no_unique_address]] Stride stride_{};
};

static_assert(stride_policy<next_page<>> && stride_policy<constant_stride<>>);

} // namespace vm_accel::inline v0
