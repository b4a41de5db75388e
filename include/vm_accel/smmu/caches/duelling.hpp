/// A replacement policy that finds out what streams would throw out.
#pragma once

#include <vm_accel/smmu/caches/replacement.hpp>
#include <vm_accel/smmu/caches/set_associative.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace vm_accel::inline v0 {

/// Two ways to fill a full set compete, and most sets follow the better one.
///
/// Both are clock. With the first the hand moves on after a fill, so that each
/// new entry stays for a round: right where pages are used again soon. With the
/// second the hand stays, so that a new entry that nobody hits is the next to
/// go (but for one fill in 32): a stream, or a cycle longer than the TLB, then
/// passes through one way of each set and leaves the others alone. Of each 32
/// sets one always works the first way and one the second; a counter of their
/// evictions says which of the two misses more (set duelling, as in Qureshi and
/// others, ISCA 2007).
///
/// Costs what clock costs: hits write once per round, an eviction in one set of
/// 16 also writes the counter. Needs 2 sets; with 32 and more it is at its best.
struct duelling_clock {
    /// Evictions of the first way's sets, less those of the second's.
    struct shared {
        std::atomic<std::uint32_t> score{balance};
    };

    static void touch(std::atomic<std::uint32_t>& state, unsigned way) noexcept {
        clock::touch(state, way);
    }
    [[nodiscard]] static std::uint32_t touched(std::uint32_t state) noexcept {
        return clock::touched(state);
    }
    [[nodiscard]] static unsigned victim(std::atomic<std::uint32_t>& state,
                                         unsigned ways) noexcept {
        return choose(state, ways, true);
    }
    [[nodiscard]] static unsigned victim(std::atomic<std::uint32_t>& state, unsigned ways,
                                         shared& cache, std::size_t set) noexcept {
        // Folded, so that no stride of a power of two reaches one side alone.
        const std::size_t role = (set ^ set >> 5 ^ set >> 10) % 32;
        const std::uint32_t score = cache.score.load(std::memory_order_relaxed);
        if (role == 0) {
            if (score != most) cache.score.store(score + 1, std::memory_order_relaxed);
            return choose(state, ways, true);
        }
        if (role == 1) {
            if (score != 0) cache.score.store(score - 1, std::memory_order_relaxed);
            return choose(state, ways, false);
        }
        return choose(state, ways, score <= balance);
    }

private:
    static constexpr std::uint32_t balance = 64;
    static constexpr std::uint32_t most = 127; ///< low, so that a change is soon noticed
    static constexpr std::uint32_t one_fill = 1U << 20;
    static constexpr std::uint32_t fills = 31U << 20; ///< bits [24:20] count fills

    [[nodiscard]] static unsigned choose(std::atomic<std::uint32_t>& state, unsigned ways,
                                         bool moves_on) noexcept {
        std::uint32_t word = state.load(std::memory_order_relaxed);
        unsigned hand = (word >> 16 & 15U) % ways;
        while ((word >> hand & 1U) != 0) {
            word &= ~(1U << hand);
            hand = (hand + 1) % ways;
        }
        const std::uint32_t count = (word + one_fill) & fills;
        const unsigned next = moves_on || count == 0 ? (hand + 1) % ways : hand;
        state.store((word & 0xffffU) | next << 16 | count, std::memory_order_relaxed);
        return hand;
    }
};

/// A set-associative TLB that streams do not empty.
template <std::size_t Sets, std::size_t Ways>
    requires(Sets >= 2)
using set_duelling = set_associative<Sets, Ways, duelling_clock>;

static_assert(learning_replacement<duelling_clock>);

} // namespace vm_accel::inline v0
