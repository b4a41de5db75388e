/// A set-associative TLB with lock-free look-ups.
#pragma once

#include <vm_accel/smmu/caches/filled_sizes.hpp>
#include <vm_accel/smmu/caches/replacement.hpp>
#include <vm_accel/smmu/caches/tlb_policy.hpp>

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>

namespace vm_accel::inline v0 {

/// `Sets` x `Ways` entries. The set is chosen by the input address alone, so
/// that entries of every context for an address are found by looking at one set
/// per page size. Neighbouring pages share a set, and each has a home way of its
/// own there, where it is looked for first. Entries go elsewhere when their home
/// is taken, and are then found by comparing all ways.
///
/// What a look-up reads of an entry is half a cache line. Its first word, the
/// state, has a version in the upper half and the context's tag in the lower.
/// A filler takes the tag away, writes the rest, and puts the new tag in with
/// the next version; a reader looks for its tag, reads, and looks whether the
/// state is still the same: then nobody wrote in between, for the version comes
/// again only after 2^32 fills of the one entry. A reader never waits. A filler
/// that finds the entry being filled drops its fill. An invalidation that finds
/// it so asks the filler to leave the entry empty, and goes on: until the filler
/// is done nobody can hit there.
template <std::size_t Sets, std::size_t Ways, replacement_policy Replacement = clock>
class set_associative {
    static_assert(std::has_single_bit(Sets), "Sets must be a power of two");
    static_assert(Ways >= 1 && Ways <= 16, "Ways must be 1 to 16");
    static_assert(can_choose_among<Replacement>(Ways),
                  "this replacement policy cannot choose among so many ways");

public:
    static constexpr bool lock_free_lookup = true;
    static constexpr std::size_t capacity = Sets * Ways;

    /// See quick_tlb_policy.
    class prepared {
    public:
        constexpr prepared() noexcept = default;

    private:
        friend set_associative;
        constexpr prepared(std::uint64_t context, unsigned size_log2) noexcept
            : salt_(home_salt(context, size_log2) ^ size_log2),
              tag_(translation_contexts::packed(context)),
              shift_(size_log2 - entry_log2) {}
        /// What an entry has as key: its first address, with the page size in the
        /// bits that are zero there, and the context's part of the home way.
        [[nodiscard]] constexpr std::uint64_t key(std::uint64_t first) const noexcept {
            return first ^ salt_;
        }
        [[nodiscard]] constexpr std::uint64_t key_around(std::uint64_t address) const noexcept {
            return key(address >> shift_ >> entry_log2 << entry_log2 << shift_);
        }
        [[nodiscard]] constexpr std::uint64_t page(std::uint64_t key) const noexcept {
            return key >> shift_ >> entry_log2;
        }

        std::uint64_t salt_ = 0;
        std::uint32_t tag_ = 0;   ///< as in a state
        std::uint32_t shift_ = 0; ///< log2 of the page size, less that of an entry's
    };
    [[nodiscard]] static constexpr prepared prepare(std::uint64_t context,
                                                    unsigned size_log2) noexcept {
        return {context, size_log2};
    }
    /// What a quick look-up is to ask for, so that the entry allows this.
    [[nodiscard]] static constexpr std::uint8_t asks_for(unsigned needed) noexcept {
        return static_cast<std::uint8_t>(needed | not_memory | untouched);
    }

    /// Looks into the home way only. Inlined: the usual hit is little more than
    /// three comparisons and an addition.
    [[nodiscard, gnu::always_inline]] quick_hit look_quickly(const prepared& by,
                                                             std::uint64_t address,
                                                             std::uint64_t first,
                                                             const std::uint8_t& asked) noexcept {
        const std::uint64_t key = by.key(first);
        const entry& e = entries_[home_of(key, by)];
        const std::uint64_t state = e.state.load(std::memory_order_acquire);
        if (static_cast<std::uint32_t>(state) != by.tag_) [[unlikely]]
            return {};
        if (e.key.load(std::memory_order_relaxed) != key) [[unlikely]]
            return {};
        const std::uint64_t distance = e.distance.load(std::memory_order_relaxed);
        const std::uint64_t word = e.output.load(std::memory_order_relaxed);
        std::atomic_thread_fence(std::memory_order_acquire);
        if (e.state.load(std::memory_order_relaxed) != state) [[unlikely]]
            return {};
        if ((static_cast<std::uint8_t>(word) & asked) != 0) [[unlikely]]
            return {};
        if constexpr (!marks_touched)
            Replacement::touch(recency_[set_of(by.page(key))], way_of(by.page(key)));
        return {true, reinterpret_cast<std::byte*>(address + distance), word & address_bits,
                memory_attributes::unpacked(word >> attributes_shift)};
    }

    [[nodiscard, gnu::always_inline]] std::optional<tlb_hit> lookup(const tlb_key& key) noexcept {
        place at = home(key);
        if (at.index == nowhere) [[unlikely]]
            at = search(key.address, key.context, key.page_sizes);
        const std::optional<tlb_entry> held = hit(at);
        if (!held) return std::nullopt;
        return tlb_hit{held->host, held->output, held->allowed, held->size_log2, held->attributes};
    }
    /// The whole entry that lookup() finds: see two_level.
    [[nodiscard]] std::optional<tlb_entry> find(const tlb_key& key) noexcept {
        return hit(search(key.address, key.context, key.page_sizes));
    }

    [[nodiscard]] fill_ticket begin_fill(const tlb_key&) const noexcept {
        return {epoch_.load(std::memory_order_seq_cst)};
    }

    void fill(fill_ticket ticket, const tlb_entry& filled) noexcept {
        sizes_.note(filled); // before the epoch is looked at
        const prepared by = prepare(filled.context, filled.size_log2);
        const std::uint64_t key = by.key(filled.base);
        const std::size_t set = set_of(by.page(key));
        const unsigned way = choose_way(set, key, by);
        entry& e = entries_[set * stride + way];
        std::uint64_t before = e.state.load(std::memory_order_relaxed);
        const std::uint64_t version = before & ~tags;
        if (is_busy(before) || !e.state.compare_exchange_strong(before, filling | version,
                                                                std::memory_order_seq_cst)) {
            return;
        }
        if (epoch_.load(std::memory_order_seq_cst) == ticket.epoch) {
            write(set, way, key, filled);
            before = (version + next_version) | by.tag_;
        }
        // An invalidation may have asked for an empty entry meanwhile.
        std::uint64_t expected = filling | version;
        if (!e.state.compare_exchange_strong(expected, before, std::memory_order_seq_cst)) {
            e.state.store(version + next_version, std::memory_order_seq_cst);
        }
    }

    void invalidate(const invalidation_scope& scope) noexcept {
        epoch_.fetch_add(1, std::memory_order_seq_cst);
        const std::uint64_t sizes = sizes_.sizes();
        const auto [first, final] = sizes_.of(scope);
        if (!scope.by_address() || visits(first, final, sizes) >= Sets) {
            for (std::size_t set = 0; set < Sets; ++set)
                remove_covered(set, scope);
            return;
        }
        for (std::uint64_t rest = sizes; rest != 0; rest &= rest - 1) {
            const auto size_log2 = static_cast<unsigned>(std::countr_zero(rest));
            const std::uint64_t last = row_of(final, size_log2);
            for (std::uint64_t row = row_of(first, size_log2);; ++row) {
                remove_covered(row & (Sets - 1), scope);
                if (row == last) break;
            }
        }
    }

private:
    /// An entry: what look-ups read of it.
    struct alignas(32) entry {
        std::atomic<std::uint64_t> state{0};    ///< version, tag
        std::atomic<std::uint64_t> key{0};      ///< see prepared
        std::atomic<std::uint64_t> distance{0}; ///< from an input address to its host address
        std::atomic<std::uint64_t> output{0};   ///< attributes, output, refusals
    };

    // Of a state. In the lower half, tags are above these: no entry, being
    // filled, being filled for nothing.
    static constexpr std::uint64_t tags = 0xffff'ffff;
    static constexpr std::uint64_t next_version = tags + 1;
    static constexpr std::uint64_t filling = 1;
    static constexpr std::uint64_t filling_in_vain = 2;
    static constexpr unsigned entry_log2 = 5;
    static_assert(sizeof(entry) == 1U << entry_log2);
    // Of an output word. A set bit among the lowest is a reason to look closer:
    // an access that is not allowed, or one of these.
    static constexpr unsigned attributes_shift = 52;
    static constexpr std::uint64_t address_bits = 0x000f'ffff'ffff'f000;
    static constexpr unsigned not_memory = 1U << 6;
    static constexpr unsigned untouched = 1U << 7; ///< the replacement policy is to be told
    /// Whether hits need not tell the policy again and again.
    static constexpr bool marks_touched = remembers_touches<Replacement>;

    static constexpr std::size_t stride = std::bit_ceil(Ways); ///< entries from set to set
    static constexpr std::uint64_t home_ways = std::bit_floor(Ways) - 1;
    // Pages in a row share a set where each can have a home of its own.
    static constexpr bool rows = std::has_single_bit(Ways);
    static constexpr unsigned set_shift = rows ? std::countr_one(home_ways) : 0;
    static constexpr unsigned way_shift = rows ? 0 : std::countr_zero(Sets);
    static constexpr std::size_t nowhere = ~std::size_t{0};

    [[nodiscard]] static constexpr bool is_empty(std::uint64_t state) noexcept {
        return (state & tags) == 0;
    }
    [[nodiscard]] static constexpr bool is_busy(std::uint64_t state) noexcept {
        return (state & tags) == filling || (state & tags) == filling_in_vain;
    }

    /// Pages of one row are in one set.
    [[nodiscard]] static constexpr std::uint64_t row_of(std::uint64_t address,
                                                        unsigned size_log2) noexcept {
        return address >> size_log2 >> set_shift;
    }
    [[nodiscard]] static constexpr std::size_t set_of(std::uint64_t page) noexcept {
        return page >> set_shift & (Sets - 1);
    }
    [[nodiscard]] static constexpr unsigned way_of(std::uint64_t page) noexcept {
        return static_cast<unsigned>(page >> way_shift & home_ways);
    }
    [[nodiscard]] static constexpr std::size_t home_of(std::uint64_t key,
                                                       const prepared& by) noexcept {
        if constexpr (rows) return (key >> by.shift_ & (capacity - 1) << entry_log2) >> entry_log2;
        return set_of(by.page(key)) * stride + way_of(by.page(key));
    }
    /// Contexts that use the same pages have different home ways.
    [[nodiscard]] static constexpr std::uint64_t home_salt(std::uint64_t context,
                                                           unsigned size_log2) noexcept {
        const unsigned shift = size_log2 + way_shift;
        return shift < 64 ? (context_index(context) & home_ways) << shift : 0;
    }

    /// An entry that was found, and its state at the time.
    struct place {
        std::size_t index = nowhere;
        std::uint64_t state = 0;
    };
    [[nodiscard]] bool is_at(std::size_t index, std::uint64_t state, std::uint64_t key,
                             const prepared& by) const noexcept {
        return static_cast<std::uint32_t>(state) == by.tag_ &&
               entries_[index].key.load(std::memory_order_relaxed) == key;
    }
    /// Looks into the home ways.
    [[nodiscard, gnu::always_inline]] place home(const tlb_key& wanted) const noexcept {
        for (std::uint64_t sizes = wanted.page_sizes; sizes != 0; sizes &= sizes - 1) {
            const prepared by =
                prepare(wanted.context, static_cast<unsigned>(std::countr_zero(sizes)));
            const std::uint64_t key = by.key_around(wanted.address);
            const std::size_t index = home_of(key, by);
            const std::uint64_t state = entries_[index].state.load(std::memory_order_acquire);
            if (is_at(index, state, key, by)) [[likely]]
                return {index, state};
        }
        return {};
    }
    /// Looks into every way: keys first and without a branch, for which way it
    /// will be cannot be predicted.
    [[nodiscard, gnu::noinline]] place search(std::uint64_t address, std::uint64_t context,
                                              std::uint64_t sizes) const noexcept {
        for (; sizes != 0; sizes &= sizes - 1) {
            const prepared by = prepare(context, static_cast<unsigned>(std::countr_zero(sizes)));
            const std::uint64_t key = by.key_around(address);
            const std::size_t first = set_of(by.page(key)) * stride;
            unsigned matches = 0;
            for (unsigned w = 0; w < Ways; ++w) {
                const bool same = entries_[first + w].key.load(std::memory_order_relaxed) == key;
                matches |= unsigned{same} << w;
            }
            for (; matches != 0; matches &= matches - 1) {
                const std::size_t index = first + static_cast<unsigned>(std::countr_zero(matches));
                const std::uint64_t state = entries_[index].state.load(std::memory_order_acquire);
                if (is_at(index, state, key, by)) return {index, state};
            }
        }
        return {};
    }
    /// What is there, if it is one entry that is still there.
    [[nodiscard, gnu::always_inline]] std::optional<tlb_entry> hit(const place& at) noexcept {
        if (at.index == nowhere) return std::nullopt;
        const tlb_entry held = held_in(at.index, at.state);
        std::atomic_thread_fence(std::memory_order_acquire);
        if (entries_[at.index].state.load(std::memory_order_relaxed) != at.state)
            return std::nullopt;
        touch(at.index);
        return held;
    }
    void touch(std::size_t index) noexcept {
        const auto way = static_cast<unsigned>(index % stride);
        Replacement::touch(recency_[index / stride], way);
        if constexpr (marks_touched) {
            std::atomic<std::uint64_t>& word = entries_[index].output;
            if ((word.load(std::memory_order_relaxed) & untouched) != 0)
                word.fetch_and(~std::uint64_t{untouched}, std::memory_order_relaxed);
        }
    }

    /// How many sets the pages of [first, last] are in, cut off at Sets.
    [[nodiscard]] static std::uint64_t visits(std::uint64_t first, std::uint64_t last,
                                              std::uint64_t sizes) noexcept {
        std::uint64_t total = 0;
        for (; sizes != 0 && total < Sets; sizes &= sizes - 1) {
            const auto size_log2 = static_cast<unsigned>(std::countr_zero(sizes));
            const std::uint64_t more = row_of(last, size_log2) - row_of(first, size_log2);
            total = more >= Sets ? Sets : total + more + 1;
        }
        return total;
    }

    [[nodiscard]] unsigned choose_way(std::size_t set, std::uint64_t key,
                                      const prepared& by) noexcept {
        const entry* const ways = &entries_[set * stride];
        // The same page of the same context, whatever its generation: the older
        // entry can never be hit again, or is the same translation.
        constexpr unsigned index_shift = translation_contexts::generation_bits;
        const auto is_same = [&](unsigned w) noexcept {
            return ways[w].key.load(std::memory_order_relaxed) == key &&
                   static_cast<std::uint32_t>(ways[w].state.load(std::memory_order_relaxed) ^
                                              by.tag_) >>
                           index_shift ==
                       0;
        };
        const auto is_free = [&](unsigned w) noexcept {
            return is_empty(ways[w].state.load(std::memory_order_relaxed));
        };
        const unsigned home = way_of(by.page(key));
        if (is_same(home)) return home;
        unsigned free = is_free(home) ? home : unsigned{Ways};
        for (unsigned w = 0; w < Ways; ++w) {
            if (is_same(w)) return w;
            if (free == Ways && is_free(w)) free = w;
        }
        if (free != Ways) return free;
        const unsigned way = replacement_.victim(recency_[set], Ways, set);
        mark_untouched(set);
        return way;
    }
    /// The policy has forgotten hits, perhaps: it is to be told of the next ones.
    void mark_untouched(std::size_t set) noexcept {
        if constexpr (marks_touched) {
            for (unsigned w = 0; w < Ways; ++w) {
                std::atomic<std::uint64_t>& word = entries_[set * stride + w].output;
                if (!Replacement::is_touched(recency_[set], w) &&
                    (word.load(std::memory_order_relaxed) & untouched) == 0)
                    word.fetch_or(untouched, std::memory_order_relaxed);
            }
        }
    }

    /// Fills an entry that is busy.
    void write(std::size_t set, unsigned way, std::uint64_t key, const tlb_entry& filled) noexcept {
        constexpr auto order = std::memory_order_release; // never before the entry is busy
        entry& e = entries_[set * stride + way];
        replacement_.filled(recency_[set], way);
        std::uint64_t reasons = ~filled.allowed.bits() & permissions::all().bits();
        if (filled.host == nullptr) reasons |= not_memory;
        if constexpr (marks_touched) {
            if (!Replacement::is_touched(recency_[set], way)) reasons |= untouched;
        }
        e.key.store(key, order);
        e.distance.store(reinterpret_cast<std::uintptr_t>(filled.host) - filled.base, order);
        e.output.store(std::uint64_t{filled.attributes.packed()} << attributes_shift |
                           (filled.output & address_bits) | reasons,
                       order);
        owners_[set * stride + way].store(filled.owner_bits(), order);
    }
    /// What an entry with this state holds. Torn unless the state is still the
    /// same afterwards.
    [[nodiscard]] tlb_entry held_in(std::size_t index, std::uint64_t state) const noexcept {
        constexpr auto order = std::memory_order_relaxed;
        const std::uint64_t key = entries_[index].key.load(order);
        const std::uint64_t output = entries_[index].output.load(order);
        tlb_entry held;
        held.set_owner(owners_[index].load(order));
        held.context = translation_contexts::unpacked(static_cast<std::uint32_t>(state));
        held.size_log2 = static_cast<std::uint8_t>(key & 0x3f);
        held.base = (key ^ home_salt(held.context, held.size_log2)) >> held.size_log2
                                                                           << held.size_log2;
        if ((output & not_memory) == 0) {
            held.host =
                reinterpret_cast<std::byte*>(held.base + entries_[index].distance.load(order));
        }
        held.output = output & address_bits;
        held.allowed = permissions{~static_cast<unsigned>(output)};
        held.attributes = memory_attributes::unpacked(output >> attributes_shift);
        return held;
    }

    void remove_covered(std::size_t set, const invalidation_scope& scope) noexcept {
        for (unsigned w = 0; w < Ways; ++w)
            remove_if_covered(set * stride + w, scope);
    }
    /// Empties an entry that the scope covers, or may come to cover. Never waits.
    void remove_if_covered(std::size_t index, const invalidation_scope& scope) noexcept {
        std::atomic<std::uint64_t>& word = entries_[index].state;
        std::uint64_t state = word.load(std::memory_order_seq_cst);
        while (!is_empty(state) && (state & tags) != filling_in_vain) {
            std::uint64_t then = state & ~tags;
            if (is_busy(state)) {
                then |= filling_in_vain; // its filler leaves it empty
            } else if (!held_in(index, state).covered_by(scope)) {
                std::atomic_thread_fence(std::memory_order_acquire);
                const std::uint64_t now = word.load(std::memory_order_seq_cst);
                if (now == state) return;
                state = now;
                continue;
            }
            if (word.compare_exchange_strong(state, then, std::memory_order_seq_cst)) return;
        }
    }

    alignas(64) std::array<entry, Sets * stride> entries_{};
    std::array<std::atomic<std::uint64_t>, Sets * stride> owners_{}; ///< what invalidations match
    std::array<std::atomic<std::uint32_t>, Sets> recency_{};
    [[no_unique_address]] replacement_of<Replacement> replacement_{};
    alignas(64) std::atomic<std::uint64_t> epoch_{0};
    filled_sizes sizes_;
};

static_assert(quick_tlb_policy<set_associative<16, 4>>);

} // namespace vm_accel::inline v0
