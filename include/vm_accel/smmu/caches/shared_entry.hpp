/// Entries that many read without a lock while one writes.
#pragma once

#include <vm_accel/smmu/caches/tlb_policy.hpp>

#include <atomic>
#include <cstdint>

namespace vm_accel::inline v0 {

/// The first word of such an entry: a version in its upper half and a tag in the
/// lower, which says whose the entry is; or one of the marks below instead of a tag.
///
/// Who fills the entry takes it, which takes the tag away; writes the rest; and
/// gives it back with a tag and the next version. A reader looks for its tag,
/// reads, and looks whether the state is still the same: then nobody wrote in
/// between, for the version comes again only after 2^32 fills of the one entry.
/// A reader never waits. A filler that finds the entry being filled drops its
/// fill. An invalidation that finds it so asks the filler to leave the entry
/// empty, and goes on: until the filler is done nobody can hit there.
///
/// The words that are written between take() and give() are stored with release
/// order: never before the entry is taken.
class shared_state {
public:
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

    [[nodiscard]] std::uint64_t
    load(std::memory_order order = std::memory_order_seq_cst) const noexcept {
        return word_.load(order);
    }
    /// Whether all that was read since the state was seen is of one fill.
    [[nodiscard]] bool is_still(std::uint64_t seen) const noexcept {
        std::atomic_thread_fence(std::memory_order_acquire);
        return word_.load(std::memory_order_relaxed) == seen;
    }

    /// Makes the entry busy. False = it is, by another thread.
    [[nodiscard, gnu::always_inline]] bool take(std::uint64_t& before) noexcept {
        before = word_.load(std::memory_order_relaxed);
        return !is_busy(before) && word_.compare_exchange_strong(before, (before & ~tags) | filling,
                                                                 std::memory_order_seq_cst);
    }
    /// Ends that. An invalidation may have asked for an empty entry meanwhile.
    [[gnu::always_inline]] void give(std::uint64_t before, std::uint64_t tag) noexcept {
        std::uint64_t expected = (before & ~tags) | filling;
        const std::uint64_t next = (before & ~tags) + next_version;
        if (!word_.compare_exchange_strong(expected, next | tag, std::memory_order_seq_cst))
            [[unlikely]]
            word_.store(next, std::memory_order_seq_cst);
    }
    /// Empties the entry if it is covered, or may come to be. Never waits. `state` is what
    /// it was a moment ago.
    /// `covered(state)` says it of what the entry holds, of which it may read parts
    /// of two fills: then it is asked again. Before, fills have been made to notice
    /// that they are too late.
    template <class Covered>
    void remove(std::uint64_t state, Covered&& covered) noexcept {
        while (!is_empty(state) && (state & tags) != filling_in_vain) {
            std::uint64_t then = state & ~tags;
            if (is_busy(state)) {
                then |= filling_in_vain; // its filler leaves it empty
            } else if (!covered(state)) {
                std::atomic_thread_fence(std::memory_order_acquire);
                const std::uint64_t now = word_.load(std::memory_order_seq_cst);
                if (now == state) return;
                state = now;
                continue;
            }
            if (word_.compare_exchange_strong(state, then, std::memory_order_seq_cst)) return;
        }
    }

private:
    std::atomic<std::uint64_t> word_{0};
};

/// What look-ups read of a TLB's entry: half a cache line.
struct alignas(32) shared_entry {
    shared_state state;                     ///< whose: the context's tag
    std::atomic<std::uint64_t> key{0};      ///< which page; see set_associative::prepared
    std::atomic<std::uint64_t> distance{0}; ///< from an input address to its host address
    std::atomic<std::uint64_t> output{0};   ///< attributes, output, refusals

    [[nodiscard]] static constexpr bool is_busy(std::uint64_t state) noexcept {
        return shared_state::is_busy(state);
    }
    // Of an output word. A set bit among the lowest is a reason to look closer:
    // an access that is not allowed, or one of these.
    static constexpr unsigned attributes_shift = 52;
    static constexpr std::uint64_t address_bits = 0x000f'ffff'ffff'f000;
    static constexpr unsigned not_memory = 1U << 6;
    static constexpr unsigned untouched = 1U << 7; ///< the replacement policy is to be told
};
static_assert(sizeof(shared_entry) == 32);

/// What entries share that differ in page and output alone.
struct entry_likeness {
    std::uint64_t output = 0; ///< of an output word, all but the address
    std::uint64_t owner = 0;  ///< tlb_entry::owner_bits()

    [[nodiscard]] static constexpr entry_likeness of(const tlb_entry& entry) noexcept {
        std::uint64_t reasons = ~entry.allowed.bits() & permissions::all().bits();
        if (entry.host == nullptr) reasons |= shared_entry::not_memory;
        return {std::uint64_t{entry.attributes.packed()} << shared_entry::attributes_shift |
                    reasons,
                entry.owner_bits()};
    }
};

} // namespace vm_accel::inline v0
