/// A TLB entry that many read without a lock while one writes.
#pragma once

#include <atomic>
#include <cstdint>

namespace vm_accel::inline v0 {

/// What look-ups read of an entry: half a cache line. The state has a version in
/// its upper half and the context's tag in the lower, or one of the marks below.
/// Who fills the entry takes it, which takes the tag away; writes the rest; and
/// gives it back with a tag and the next version.
struct alignas(32) shared_entry {
    std::atomic<std::uint64_t> state{0};
    std::atomic<std::uint64_t> key{0};      ///< which page; see set_associative::prepared
    std::atomic<std::uint64_t> distance{0}; ///< from an input address to its host address
    std::atomic<std::uint64_t> output{0};   ///< attributes, output, refusals

    static constexpr std::uint64_t tags = 0xffff'ffff;
    static constexpr std::uint64_t next_version = tags + 1;
    // Instead of a tag, besides 0 for no entry: being filled, and for nothing.
    static constexpr std::uint64_t filling = 1;
    static constexpr std::uint64_t filling_in_vain = 2;

    [[nodiscard]] static constexpr bool is_empty(std::uint64_t state) noexcept {
        return (state & tags) == 0;
    }
    [[nodiscard]] static constexpr bool is_busy(std::uint64_t state) noexcept {
        return (state & tags) == filling || (state & tags) == filling_in_vain;
    }
    /// Makes the entry busy. False = it is, by another thread.
    [[nodiscard]] bool take(std::uint64_t& before) noexcept {
        before = state.load(std::memory_order_relaxed);
        return !is_busy(before) && state.compare_exchange_strong(before, (before & ~tags) | filling,
                                                                 std::memory_order_seq_cst);
    }
    /// Ends that. An invalidation may have asked for an empty entry meanwhile.
    void give(std::uint64_t before, std::uint64_t tag) noexcept {
        std::uint64_t expected = (before & ~tags) | filling;
        const std::uint64_t next = (before & ~tags) + next_version;
        if (!state.compare_exchange_strong(expected, next | tag, std::memory_order_seq_cst))
            state.store(next, std::memory_order_seq_cst);
    }
};
static_assert(sizeof(shared_entry) == 32);

} // namespace vm_accel::inline v0
