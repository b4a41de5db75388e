/// A set-associative TLB with lock-free look-ups.
#pragma once

#include <vm_accel/smmu/caches/filled_sizes.hpp>
#include <vm_accel/smmu/caches/replacement.hpp>
#include <vm_accel/smmu/caches/set_geometry.hpp>
#include <vm_accel/smmu/caches/shared_entry.hpp>
#include <vm_accel/smmu/caches/tlb_policy.hpp>

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>

namespace vm_accel::inline v0 {

/// `Sets` x `Ways` entries. The set is chosen by the input address and six bits of the
/// context's index, for devices often use the same addresses: an invalidation by address looks
/// at one set per page size and per combination of these bits that its contexts have.
/// Neighbouring pages share a set, and each has a home way of its own there, where it is looked
/// for first. Entries go elsewhere when their home is taken, and all ways are compared then.
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
            : salt_(sets::salt(context, size_log2) ^ size_log2),
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
            Replacement::touch(recency_[sets::set_of(by.page(key))], sets::way_of(by.page(key)));
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
        salts_.note(filled.context, filled.global);
        const prepared by = prepare(filled.context, filled.size_log2);
        const std::uint64_t key = by.key(filled.base);
        const std::size_t set = sets::set_of(by.page(key));
        const unsigned way = choose_way(set, key, by);
        entry& e = entries_[set * stride + way];
        std::uint64_t before = 0;
        if (!e.take(before)) return;
        const bool valid = epoch_.load(std::memory_order_seq_cst) == ticket.epoch;
        if (valid) write(set, way, key, filled);
        e.give(before, valid ? by.tag_ : before & tags);
    }

    void invalidate(const invalidation_scope& scope) noexcept {
        invalidating_.store(true, std::memory_order_relaxed);
        epoch_.fetch_add(1, std::memory_order_seq_cst);
        remove_all(scope);
        invalidating_.store(false, std::memory_order_release);
    }

private:
    void remove_all(const invalidation_scope& scope) noexcept {
        const auto look = [&](std::size_t set) noexcept {
            for (std::size_t i = set * stride; i < set * stride + Ways; ++i)
                remove_if_covered(i, scope, entries_[i].state.load(std::memory_order_seq_cst),
                                  false);
        };
        if (!scope.by_address()) return sets::visit_all(look);
        const std::uint64_t sizes = sizes_.sizes();
        const auto [first, final] = sizes_.of(scope);
        const std::uint64_t salts = salts_.of_sets(scope);
        const std::uint64_t large = sets::one_page(first, final, sizes); // most often all
        if (sizes != large) sets::visit_sets(first, final, sizes ^ large, salts, look);
        for (std::uint64_t rest = large; rest != 0; rest &= rest - 1)
            remove_page(first, static_cast<unsigned>(std::countr_zero(rest)), salts, scope);
    }
    /// Looks closer only at entries of that page, and at those that are being filled. One
    /// that changes after its state was read gets something newer, or stays what it was.
    void remove_page(std::uint64_t address, unsigned size_log2, std::uint64_t salts,
                     const invalidation_scope& scope) noexcept {
        const std::uint64_t ways = salts_.of_ways();
        for (; salts != 0; salts &= salts - 1) {
            const auto at = sets::place_of(address, size_log2, std::countr_zero(salts));
            for (std::size_t i = at.set * stride; i < at.set * stride + Ways; ++i) {
                const std::uint64_t state = entries_[i].state.load(std::memory_order_seq_cst);
                const std::uint64_t key = entries_[i].key.load(std::memory_order_relaxed);
                const auto context = translation_contexts::unpacked(std::uint32_t(state & tags));
                const bool inside = at.holds(key, ways) &&
                                    sets::page_in(key, context, size_log2) == address >> size_log2;
                if (inside || entry::is_busy(state)) remove_if_covered(i, scope, state, inside);
            }
        }
    }

    using entry = shared_entry;
    static constexpr std::uint64_t tags = entry::tags;
    static constexpr unsigned entry_log2 = 5;
    static_assert(sizeof(entry) == 1U << entry_log2);
    // Of an output word. A set bit among the lowest, a permission or one of these, is a reason
    // to look closer.
    static constexpr unsigned attributes_shift = 52;
    static constexpr std::uint64_t address_bits = 0x000f'ffff'ffff'f000;
    static constexpr unsigned not_memory = 1U << 6;
    static constexpr unsigned untouched = 1U << 7; ///< the replacement policy is to be told
    /// Whether hits need not tell the policy again and again.
    static constexpr bool marks_touched = remembers_touches<Replacement>;

    using sets = set_geometry<Sets, Ways>;
    static constexpr std::size_t stride = sets::stride;
    static constexpr std::size_t nowhere = ~std::size_t{0};

    /// Brings an entry home, and what was there to its place, if anybody has used that; if
    /// not it goes. Not while an invalidation may have passed one of the two and not the
    /// other; one that begins later finds both busy, or where they are then.
    void bring_home(std::size_t home, std::size_t from) noexcept
        requires(marks_touched)
    {
        const std::uint64_t epoch = epoch_.load(std::memory_order_seq_cst);
        if (invalidating_.load(std::memory_order_acquire)) return;
        entry& a = entries_[home];
        entry& b = entries_[from];
        std::uint64_t was_a = 0, was_b = 0;
        if (!a.take(was_a)) return;
        if (!b.take(was_b)) return a.give(was_a, was_a & tags);
        const bool valid = epoch_.load(std::memory_order_seq_cst) == epoch;
        const bool used =
            Replacement::is_touched(recency_[home / stride], static_cast<unsigned>(home % stride));
        if (valid) {
            const auto swap = [](std::atomic<std::uint64_t>& x, std::atomic<std::uint64_t>& y) {
                const std::uint64_t kept = x.load(std::memory_order_relaxed);
                x.store(y.load(std::memory_order_relaxed), std::memory_order_release);
                y.store(kept, std::memory_order_release);
            };
            swap(a.key, b.key);
            swap(a.distance, b.distance);
            swap(a.output, b.output);
            swap(owners_[home], owners_[from]);
            touch(home);
        }
        a.give(was_a, (valid ? was_b : was_a) & tags);
        b.give(was_b, valid ? used ? was_a & tags : 0 : was_b & tags);
    }

    [[nodiscard]] static constexpr std::size_t home_of(std::uint64_t key,
                                                       const prepared& by) noexcept {
        if constexpr (sets::rows)
            return (key >> by.shift_ & (capacity - 1) << entry_log2) >> entry_log2;
        return sets::set_of(by.page(key)) * stride + sets::way_of(by.page(key));
    }
    /// An entry that was found, and its state at the time.
    struct place {
        std::size_t index = nowhere;
        std::uint64_t state = 0;
        std::size_t home = index;
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
                return {index, state, index};
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
            const std::size_t first = sets::set_of(by.page(key)) * stride;
            unsigned matches = 0;
            for (unsigned w = 0; w < Ways; ++w) {
                const bool same = entries_[first + w].key.load(std::memory_order_relaxed) == key;
                matches |= unsigned{same} << w;
            }
            for (; matches != 0; matches &= matches - 1) {
                const std::size_t index = first + static_cast<unsigned>(std::countr_zero(matches));
                const std::uint64_t state = entries_[index].state.load(std::memory_order_acquire);
                if (is_at(index, state, key, by)) return {index, state, home_of(key, by)};
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
        // Not each time: where two want one home, they would change places forever. And
        // not where the order of hits is kept by way.
        if constexpr (marks_touched) {
            if (at.index != at.home && (at_large_.fetch_add(1, std::memory_order_relaxed) & 7) == 7)
                bring_home(at.home, at.index);
        }
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
        // Empty, or of an earlier generation of the context: never hit again.
        const auto is_free = [&](unsigned w) noexcept {
            const std::uint64_t state = ways[w].state.load(std::memory_order_relaxed);
            const auto tag = static_cast<std::uint32_t>(state);
            return entry::is_empty(state) ||
                   (tag != by.tag_ && (tag ^ by.tag_) >> index_shift == 0);
        };
        const unsigned home = sets::way_of(by.page(key));
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
    /// What an entry with this state holds. Torn unless it is still the same afterwards.
    [[nodiscard]] tlb_entry held_in(std::size_t index, std::uint64_t state) const noexcept {
        constexpr auto order = std::memory_order_relaxed;
        const std::uint64_t key = entries_[index].key.load(order);
        const std::uint64_t output = entries_[index].output.load(order);
        tlb_entry held;
        held.set_owner(owners_[index].load(order));
        held.context = translation_contexts::unpacked(static_cast<std::uint32_t>(state));
        held.size_log2 = static_cast<std::uint8_t>(key & 0x3f);
        held.base = sets::page_in(key, held.context, held.size_log2) << held.size_log2;
        if ((output & not_memory) == 0) {
            held.host =
                reinterpret_cast<std::byte*>(held.base + entries_[index].distance.load(order));
        }
        held.output = output & address_bits;
        held.allowed = permissions{~static_cast<unsigned>(output)};
        held.attributes = memory_attributes::unpacked(output >> attributes_shift);
        return held;
    }

    /// Empties an entry that the scope covers, or may come to cover. Never waits.
    /// `inside`: in that state its page is known to be.
    void remove_if_covered(std::size_t index, const invalidation_scope& scope, std::uint64_t state,
                           bool inside) noexcept {
        constexpr auto order = std::memory_order_relaxed;
        std::atomic<std::uint64_t>& word = entries_[index].state;
        for (; (state & tags) != 0 && (state & tags) != entry::filling_in_vain; inside = false) {
            std::uint64_t then = state & ~tags;
            if (entry::is_busy(state)) {
                then |= entry::filling_in_vain; // its filler leaves it empty
            } else if (!tlb_entry::may_be_in(scope, owners_[index].load(order)) ||
                       !(inside || held_in(index, state).covered_by(scope))) {
                std::atomic_thread_fence(std::memory_order_acquire);
                const std::uint64_t was = std::exchange(state, word.load());
                if (state == was) return;
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
    typename sets::used_salts salts_;
    std::atomic<bool> invalidating_{false};
    alignas(64) std::atomic<std::uint32_t> at_large_{0}; ///< hits of entries that are not at home
};

static_assert(quick_tlb_policy<set_associative<16, 4>>);

} // namespace vm_accel::inline v0
