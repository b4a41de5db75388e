/// A set-associative TLB with lock-free look-ups.
#pragma once

#include <vm_accel/smmu/caches/filled_sizes.hpp>
#include <vm_accel/smmu/caches/prepared_key.hpp>
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
/// What a look-up reads of an entry is half a cache line; shared_state says how
/// readers, fillers and invalidations go about it without waiting for each other.
template <std::size_t Sets, std::size_t Ways, replacement_policy Replacement = clock>
class set_associative {
    static_assert(can_choose_among<Replacement>(Ways),
                  "this replacement policy cannot choose among so many ways");

public:
    static constexpr bool lock_free_lookup = true;
    static constexpr std::size_t capacity = Sets * Ways;

    /// See quick_tlb_policy.
    using prepared = prepared_key<set_geometry<Sets, Ways>>;
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
        if (static_cast<std::uint32_t>(state) != by.tag()) [[unlikely]]
            return {};
        if (e.key.load(std::memory_order_relaxed) != key) [[unlikely]]
            return {};
        const std::uint64_t distance = e.distance.load(std::memory_order_relaxed);
        const std::uint64_t word = e.output.load(std::memory_order_relaxed);
        if (!e.state.is_still(state)) [[unlikely]]
            return {};
        if ((static_cast<std::uint8_t>(word) & asked) != 0) [[unlikely]]
            return {};
        if constexpr (!marks_touched)
            Replacement::touch(recency_[sets::set_of(by.page(key))], sets::way_of(by.page(key)));
        return {true, reinterpret_cast<std::byte*>(address + distance), word & entry::address_bits,
                memory_attributes::unpacked(word >> entry::attributes_shift)};
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
        const std::size_t home = home_of(key, by);
        std::size_t index = same_page(home, key, by);
        if (index == nowhere) index = choose_way(home, by);
        put(ticket, index, by, key, distance(filled.base, filled.host), filled.output,
            like(filled));
    }

    /// See refilling_tlb.
    using likeness = entry_likeness;
    [[nodiscard]] static constexpr likeness like(const tlb_entry& entry) noexcept {
        return entry_likeness::of(entry);
    }
    struct room {
        std::size_t home = nowhere; ///< of the page; nowhere = an entry of it is there
        std::size_t same = nowhere; ///< an outdated entry of it
        std::uint64_t key = 0;
        [[nodiscard]] constexpr bool is_there() const noexcept { return home != nowhere; }
    };
    [[nodiscard, gnu::always_inline]] room room_for(const prepared& by,
                                                    std::uint64_t first) const noexcept {
        const std::uint64_t key = by.key(first);
        const std::size_t home = home_of(key, by);
        room there;
        there.home = home;
        there.key = key;
        if (any_with(home & ~(stride - 1), key, each_way{})) [[unlikely]] {
            there.same = same_page(home, key, by);
            if (there.same != nowhere &&
                !by.is_outdated(entries_[there.same].state.load(std::memory_order_relaxed)))
                there.home = nowhere;
        }
        return there;
    }
    [[gnu::always_inline]] void fill_again(fill_ticket ticket, const room& there,
                                           const prepared& by, std::uint64_t first, std::byte* host,
                                           std::uint64_t output, const likeness& as) noexcept {
        std::size_t index = there.same;
        if (index == nowhere) [[likely]]
            index = choose_way(there.home, by);
        put(ticket, index, by, there.key, distance(first, host), output, as);
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
                remove_if_covered(i, scope, entries_[i].state.load(), false);
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
                const std::uint64_t state = entries_[i].state.load();
                const std::uint64_t key = entries_[i].key.load(std::memory_order_relaxed);
                const auto context = translation_contexts::unpacked(std::uint32_t(state & tags));
                const bool inside = at.holds(key, ways) &&
                                    sets::page_in(key, context, size_log2) == address >> size_log2;
                if (inside || entry::is_busy(state)) remove_if_covered(i, scope, state, inside);
            }
        }
    }

    using entry = shared_entry;
    static constexpr std::uint64_t tags = shared_state::tags;
    static constexpr unsigned entry_log2 = prepared::entry_log2;
    static_assert(sizeof(entry) == 1U << entry_log2);
    static constexpr unsigned not_memory = entry::not_memory;
    static constexpr unsigned untouched = entry::untouched;
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
        if (!a.state.take(was_a)) return;
        if (!b.state.take(was_b)) return a.state.give(was_a, was_a & tags);
        const bool valid = epoch_.load(std::memory_order_seq_cst) == epoch;
        const bool used = is_touched(home);
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
        a.state.give(was_a, (valid ? was_b : was_a) & tags);
        b.state.give(was_b, valid ? used ? was_a & tags : 0 : was_b & tags);
    }

    [[nodiscard]] static constexpr std::size_t home_of(std::uint64_t key,
                                                       const prepared& by) noexcept {
        if constexpr (sets::rows)
            return (key >> by.shift() & (capacity - 1) << entry_log2) >> entry_log2;
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
        return static_cast<std::uint32_t>(state) == by.tag() &&
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
            unsigned matches = ways_with(first, key, each_way{});
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
        if (!entries_[at.index].state.is_still(at.state)) return std::nullopt;
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

    /// The entry of a page of a context, whatever its generation: it can never be hit again,
    /// or is the same translation as one that is about to be filled.
    [[nodiscard]] std::size_t same_page(std::size_t home, std::uint64_t key,
                                        const prepared& by) const noexcept {
        const std::size_t first = home & ~(stride - 1);
        for (unsigned same = ways_with(first, key, each_way{}); same != 0; same &= same - 1) {
            const std::size_t at = first + static_cast<unsigned>(std::countr_zero(same));
            if (by.is_of_context(entries_[at].state.load(std::memory_order_relaxed))) return at;
        }
        return nowhere;
    }
    /// Empty, or of an earlier generation of the context: never hit again.
    [[nodiscard, gnu::always_inline]] bool is_free(std::size_t index,
                                                   const prepared& by) const noexcept {
        const std::uint64_t state = entries_[index].state.load(std::memory_order_relaxed);
        return shared_state::is_empty(state) || by.is_outdated(state);
    }
    [[nodiscard, gnu::always_inline]] bool has_key(std::size_t index,
                                                   std::uint64_t key) const noexcept {
        return entries_[index].key.load(std::memory_order_relaxed) == key;
    }
    using each_way = std::make_index_sequence<Ways>;
    // Bit n: of way n of the set that begins there. Without a branch.
    template <std::size_t... Way>
    [[nodiscard, gnu::always_inline]] unsigned
    ways_with(std::size_t first, std::uint64_t key, std::index_sequence<Way...>) const noexcept {
        return ((unsigned{has_key(first + Way, key)} << Way) | ...);
    }
    /// With branches, for most often none of these is.
    template <std::size_t... Way>
    [[nodiscard, gnu::always_inline]] bool any_with(std::size_t first, std::uint64_t key,
                                                    std::index_sequence<Way...>) const noexcept {
        return (has_key(first + Way, key) || ...);
    }
    template <std::size_t... Way>
    [[nodiscard, gnu::always_inline]] bool next_free(std::size_t& at, const prepared& by,
                                                     std::index_sequence<Way...>) const noexcept {
        const std::size_t first = at;
        return ((at = first + Way, is_free(at, by)) || ...);
    }
    /// Where the next entry of a set goes: home, elsewhere, or in another's place.
    [[nodiscard, gnu::always_inline]] std::size_t choose_way(std::size_t home,
                                                             const prepared& by) noexcept {
        if (is_free(home, by)) return home;
        const std::size_t first = home & ~(stride - 1);
        std::size_t at = first;
        if (next_free(at, by, each_way{})) return at;
        return first + victim(home / stride);
    }
    [[nodiscard, gnu::always_inline]] unsigned victim(std::size_t set) noexcept {
        [[maybe_unused]] const std::uint32_t before = recency_[set].load(std::memory_order_relaxed);
        const unsigned way = replacement_.victim(recency_[set], Ways, set);
        if constexpr (marks_touched) {
            const std::uint32_t after = recency_[set].load(std::memory_order_relaxed);
            const auto forgotten = Replacement::touched(before) & ~Replacement::touched(after);
            if (forgotten != 0) mark_untouched(set, forgotten);
        }
        return way;
    }
    /// The policy has forgotten hits of these ways: it is to be told of the next.
    void mark_untouched(std::size_t set, std::uint32_t ways) noexcept {
        for (; ways != 0; ways &= ways - 1) {
            entries_[set * stride + static_cast<unsigned>(std::countr_zero(ways))].output.fetch_or(
                untouched, std::memory_order_relaxed);
        }
    }
    [[nodiscard]] bool is_touched(std::size_t index) const noexcept
        requires(marks_touched)
    {
        const std::uint32_t set = recency_[index / stride].load(std::memory_order_relaxed);
        return (Replacement::touched(set) >> index % stride & 1U) != 0;
    }
    [[nodiscard]] static std::uint64_t distance(std::uint64_t first, std::byte* host) noexcept {
        return reinterpret_cast<std::uintptr_t>(host) - first;
    }
    /// Fills an entry, unless it is busy or the ticket is too old.
    [[gnu::always_inline]] void put(fill_ticket ticket, std::size_t index, const prepared& by,
                                    std::uint64_t key, std::uint64_t distance, std::uint64_t output,
                                    const likeness& as) noexcept {
        constexpr auto order = std::memory_order_release; // see shared_state
        entry& e = entries_[index];
        std::uint64_t before = 0;
        if (!e.state.take(before)) [[unlikely]]
            return;
        const bool valid = epoch_.load(std::memory_order_seq_cst) == ticket.epoch;
        if (valid) [[likely]] {
            replacement_.filled(recency_[index / stride], static_cast<unsigned>(index % stride));
            std::uint64_t word = (output & entry::address_bits) | as.output;
            if constexpr (marks_touched) {
                if (!is_touched(index)) word |= untouched;
            }
            e.key.store(key, order);
            e.distance.store(distance, order);
            e.output.store(word, order);
            owners_[index].store(as.owner, order);
        }
        e.state.give(before, valid ? by.tag() : before & tags);
    }
    /// Torn unless the state is still the same afterwards.
    [[nodiscard]] tlb_entry held_in(std::size_t index, std::uint64_t state) const noexcept {
        return prepared::held_in(entries_[index], state,
                                 owners_[index].load(std::memory_order_relaxed));
    }

    /// Empties an entry that the scope covers, or may come to cover. Never waits.
    /// `inside`: in that state its page is known to be.
    void remove_if_covered(std::size_t index, const invalidation_scope& scope, std::uint64_t state,
                           bool inside) noexcept {
        entries_[index].state.remove(state, [&](std::uint64_t now) noexcept {
            return tlb_entry::may_be_in(scope, owners_[index].load(std::memory_order_relaxed)) &&
                   ((inside && now == state) || held_in(index, now).covered_by(scope));
        });
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

static_assert(refilling_tlb<set_associative<16, 4>>);

} // namespace vm_accel::inline v0
