/// Which way of a full set gives way.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>

namespace vm_accel::inline v0 {

/// One 32-bit word of state per set, 0 at first. touch() is called on each hit,
/// by any number of threads at once; a lost update only makes the choice poorer.
/// victim() gives a way below `ways`, which is filled next; seldom two threads
/// call it for one set at once. Optional, and asked for by replacement_of:
/// - `filled(state, way)`: that way was filled;
/// - `touched(state)`: see remembers_touches;
/// - `can_choose_among(ways)`: whether the state can hold so many ways;
/// - `shared`, a type: see learning_replacement;
/// - `in_list`, a list_order: fully_associative can use it too.
template <class R>
concept replacement_policy = requires(std::atomic<std::uint32_t>& state, unsigned way) {
    { R::touch(state, way) } noexcept -> std::same_as<void>;
    { R::victim(state, way) } noexcept -> std::same_as<unsigned>;
};

/// A policy that one touch() of a way is enough for, until the next victim() of the
/// set or until the way is filled: touched(state), bit n for way n, says for which
/// ways more would change nothing. Caches then need not look at its state on each hit.
template <class R>
concept remembers_touches = replacement_policy<R> && requires(std::uint32_t state) {
    { R::touched(state) } noexcept -> std::same_as<std::uint32_t>;
};

/// A policy that learns: all sets of a cache share one `shared`, and victim() is
/// told it and the set's number. Threads: any number use `shared` at once.
template <class R>
concept learning_replacement =
    replacement_policy<R> && requires(std::atomic<std::uint32_t>& state, unsigned ways,
                                      typename R::shared& shared, std::size_t set) {
        requires std::default_initializable<typename R::shared>;
        { R::victim(state, ways, shared, set) } noexcept -> std::same_as<unsigned>;
    };

/// Whether R can choose one of so many ways.
template <replacement_policy R>
[[nodiscard]] constexpr bool can_choose_among(unsigned ways) noexcept {
    if constexpr (requires { R::can_choose_among(ways); }) return R::can_choose_among(ways);
    return true;
}

/// A policy as one cache uses it: with what it shares between sets, if anything.
template <replacement_policy R>
class replacement_of {
public:
    [[gnu::always_inline]] static void touch(std::atomic<std::uint32_t>& state,
                                             unsigned way) noexcept {
        R::touch(state, way);
    }
    static void filled(std::atomic<std::uint32_t>& state, unsigned way) noexcept {
        if constexpr (requires { R::filled(state, way); }) R::filled(state, way);
    }
    [[nodiscard, gnu::always_inline]] unsigned victim(std::atomic<std::uint32_t>& state,
                                                      unsigned ways, std::size_t set) noexcept {
        if constexpr (learning_replacement<R>) {
            return R::victim(state, ways, shared_, set);
        } else {
            return R::victim(state, ways);
        }
    }

private:
    struct nothing {};
    template <class T>
    struct shared_by {
        using type = nothing;
    };
    template <learning_replacement T>
    struct shared_by<T> {
        using type = typename T::shared;
    };
    [[no_unique_address]] typename shared_by<R>::type shared_{};
};

/// What a policy makes of a list of entries: for fully_associative, which evicts
/// the first, or any if there is no order.
enum class list_order : std::uint8_t {
    none,          ///< any entry is evicted
    as_filled,     ///< hits change nothing
    as_used,       ///< a hit makes the entry the last
    second_chance, ///< an entry that was hit is passed over once
};

/// Second chance: a hit sets the way's bit, the hand clears bits until it finds
/// one that is clear. A hit writes once per round of the hand. Bits [15:0] are
/// the ways, [31:16] the hand.
struct clock {
    static constexpr list_order in_list = list_order::second_chance;

    [[gnu::always_inline]] static void touch(std::atomic<std::uint32_t>& state,
                                             unsigned way) noexcept {
        const std::uint32_t old = state.load(std::memory_order_relaxed);
        if ((old >> way & 1U) == 0) state.store(old | 1U << way, std::memory_order_relaxed);
    }
    [[nodiscard]] static std::uint32_t touched(std::uint32_t state) noexcept {
        return state & 0xffff;
    }
    [[nodiscard, gnu::always_inline]] static unsigned victim(std::atomic<std::uint32_t>& state,
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

/// First in, first out: hits change nothing and write nothing. In sets, the
/// ways take turns, which is the same once the set has been full.
struct fifo {
    static constexpr list_order in_list = list_order::as_filled;

    static void touch(std::atomic<std::uint32_t>&, unsigned) noexcept {}
    [[nodiscard]] static std::uint32_t touched(std::uint32_t) noexcept { return 0xffff; }
    [[nodiscard]] static unsigned victim(std::atomic<std::uint32_t>& state,
                                         unsigned ways) noexcept {
        const unsigned next = state.load(std::memory_order_relaxed) % ways;
        state.store(next + 1, std::memory_order_relaxed);
        return next;
    }
};

/// A policy that keeps its order in bits, and has the bits that a use of a way changes: `Order`
/// has tables of those that are then set, and of those that are then clear.
template <class Order>
struct order_of_use {
    [[gnu::always_inline]] static void touch(std::atomic<std::uint32_t>& state,
                                             unsigned way) noexcept {
        const std::uint32_t old = state.load(std::memory_order_relaxed);
        const std::uint32_t now = (old & ~Order::cleared[way]) | Order::set[way];
        if (now != old) state.store(now, std::memory_order_relaxed);
    }
    static void filled(std::atomic<std::uint32_t>& state, unsigned way) noexcept {
        touch(state, way);
    }

private:
    friend Order;
    constexpr order_of_use() noexcept = default;
};

/// Least recently used, exactly, of up to 8 ways: one bit for each pair of ways
/// says which was used later.
///
/// A hit of any way but the last used one writes the set's word. Look-ups stay
/// lock-free, but threads that hit in one set take its cache line from each
/// other; and where two hits meet, one of them may count as older than it is.
struct lru : order_of_use<lru> {
    static constexpr list_order in_list = list_order::as_used;

    [[nodiscard]] static constexpr bool can_choose_among(unsigned ways) noexcept {
        return ways <= most;
    }
    [[nodiscard]] static unsigned victim(std::atomic<std::uint32_t>& state,
                                         unsigned ways) noexcept {
        const std::uint32_t word = state.load(std::memory_order_relaxed);
        unsigned oldest = 0;
        for (unsigned way = 1; way < ways; ++way) {
            if ((word >> pair(oldest, way) & 1U) != 0) oldest = way;
        }
        touch(state, oldest);
        return oldest;
    }

private:
    friend order_of_use<lru>;
    static constexpr unsigned most = 8;

    /// The bit for two ways, a < b: set = a was used later.
    [[nodiscard]] static constexpr unsigned pair(unsigned a, unsigned b) noexcept {
        return b * (b - 1) / 2 + a;
    }
    /// The pairs that a way is in: those that are set when it was used last, and
    /// those that are clear.
    [[nodiscard]] static constexpr std::array<std::uint32_t, most> pairs(bool first) noexcept {
        std::array<std::uint32_t, most> out{};
        for (unsigned b = 1; b < most; ++b) {
            for (unsigned a = 0; a < b; ++a)
                out[first ? a : b] |= std::uint32_t{1} << pair(a, b);
        }
        return out;
    }
    static const std::array<std::uint32_t, most> set, cleared;
};
inline constexpr std::array<std::uint32_t, lru::most> lru::set = lru::pairs(true);
inline constexpr std::array<std::uint32_t, lru::most> lru::cleared = lru::pairs(false);

/// A tree of bits over a power of two of ways, up to 16: each bit says in which
/// half the older ways are. Nearly the least recently used; hits write about as
/// often as with lru.
///
/// Node 2^d + (way mod 2^d) decides bit d of the way, whatever the number of
/// ways: with fewer of them the last levels have no say.
struct tree_plru : order_of_use<tree_plru> {
    [[nodiscard]] static constexpr bool can_choose_among(unsigned ways) noexcept {
        return std::has_single_bit(ways);
    }
    [[nodiscard]] static unsigned victim(std::atomic<std::uint32_t>& state,
                                         unsigned ways) noexcept {
        const std::uint32_t word = state.load(std::memory_order_relaxed);
        unsigned way = 0;
        for (unsigned half = 1; half < ways; half <<= 1) {
            if ((word >> (half + way) & 1U) != 0) way |= half;
        }
        touch(state, way);
        return way;
    }

private:
    friend order_of_use<tree_plru>;
    static constexpr unsigned most = 16;

    /// Of the nodes above each way, those that point away from it when it was used
    /// last with a one, or those that do so with a zero.
    [[nodiscard]] static constexpr std::array<std::uint32_t, most> nodes(bool ones) noexcept {
        std::array<std::uint32_t, most> out{};
        for (unsigned way = 0; way < most; ++way) {
            for (unsigned half = 1; half < most; half <<= 1) {
                if (((way & half) == 0) == ones) out[way] |= 1U << (half + (way & (half - 1)));
            }
        }
        return out;
    }
    static const std::array<std::uint32_t, most> set, cleared;
};
inline constexpr std::array<std::uint32_t, tree_plru::most> tree_plru::set = tree_plru::nodes(true);
inline constexpr std::array<std::uint32_t, tree_plru::most> tree_plru::cleared =
    tree_plru::nodes(false);

/// Any way, by a sequence that is the same in each run. Hits write nothing; no
/// order of accesses makes it miss always, as a cycle makes lru and fifo.
struct random {
    static constexpr list_order in_list = list_order::none;

    static void touch(std::atomic<std::uint32_t>&, unsigned) noexcept {}
    [[nodiscard]] static std::uint32_t touched(std::uint32_t) noexcept { return 0xffff; }
    [[nodiscard]] static unsigned victim(std::atomic<std::uint32_t>& state,
                                         unsigned ways) noexcept {
        // Numerical Recipes' generator; its upper bits are the good ones.
        const std::uint32_t word = state.load(std::memory_order_relaxed) * 1664525U + 1013904223U;
        state.store(word, std::memory_order_relaxed);
        return static_cast<unsigned>(std::uint64_t{word} * ways >> 32);
    }
};

static_assert(replacement_policy<clock> && replacement_policy<fifo> && replacement_policy<lru> &&
              replacement_policy<tree_plru> && replacement_policy<random>);

} // namespace vm_accel::inline v0
