/// Which way of a full set gives way.
#pragma once

#include <atomic>
#include <bit>
#include <concepts>
#include <cstdint>

namespace vm_accel::inline v0 {

/// One 32-bit word of state per set. touch() is called on each hit, by any
/// number of threads at once; a lost update only makes the choice poorer.
/// victim() is called with the set locked, and gives a way below `ways`.
template <class R>
concept replacement_policy = requires(std::atomic<std::uint32_t>& state, unsigned way) {
    { R::touch(state, way) } noexcept -> std::same_as<void>;
    { R::victim(state, way) } noexcept -> std::same_as<unsigned>;
};

/// Second chance: a hit sets the way's bit, the hand clears bits until it finds
/// one that is clear. Bits [15:0] are the ways, [31:16] the hand.
struct clock {
    static void touch(std::atomic<std::uint32_t>& state, unsigned way) noexcept {
        const std::uint32_t old = state.load(std::memory_order_relaxed);
        if ((old >> way & 1U) == 0) state.store(old | 1U << way, std::memory_order_relaxed);
    }
    [[nodiscard]] static unsigned victim(std::atomic<std::uint32_t>& state,
                                         unsigned ways) noexcept {
        std::uint32_t word = state.load(std::memory_order_relaxed);
        unsigned hand = (word >> 16) % ways;
        while ((word >> hand & 1U) != 0) {
            word &= ~(1U << hand);
            hand = (hand + 1) % ways;
        }
        state.store((word & 0xffffU) | ((hand + 1) % ways) << 16, std::memory_order_relaxed);
        return hand;
    }
};

/// First in, first out: hits change nothing.
struct fifo {
    static void touch(std::atomic<std::uint32_t>&, unsigned) noexcept {}
    [[nodiscard]] static unsigned victim(std::atomic<std::uint32_t>& state,
                                         unsigned ways) noexcept {
        const unsigned next = state.load(std::memory_order_relaxed) % ways;
        state.store(next + 1, std::memory_order_relaxed);
        return next;
    }
};

static_assert(replacement_policy<clock>);
static_assert(replacement_policy<fifo>);

} // namespace vm_accel::inline v0
