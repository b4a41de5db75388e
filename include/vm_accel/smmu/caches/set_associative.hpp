/// A set-associative TLB with lock-free look-ups.
#pragma once

#include <vm_accel/smmu/caches/replacement.hpp>
#include <vm_accel/smmu/caches/tlb_policy.hpp>

#include <array>
#include <atomic>
#include <bit>
#include <utility>

namespace vm_accel::inline v0 {

/// `Sets` x `Ways` entries. The set is chosen by the input address alone, so
/// that entries of every context for an address are found by looking at one set
/// per page size. Inside the set an entry has a home way, which is looked at
/// first: a look-up that hits there compares one address. Entries go elsewhere
/// when their home is taken, and are then found by comparing all ways.
///
/// Each set is guarded by a sequence word: a count, a bit that says "being
/// written" and a bit that says "clear it when done". A reader that sees it
/// busy, or changed, takes a miss; it never waits and never uses a torn entry. A
/// filler that finds the set busy drops its fill. An invalidation that finds it
/// busy asks the filler to clear the set, and goes on: until the filler is done
/// nobody can hit there.
template <std::size_t Sets, std::size_t Ways, replacement_policy Replacement = clock>
class set_associative {
    static_assert(std::has_single_bit(Sets), "Sets must be a power of two");
    static_assert(Ways >= 1 && Ways <= 16, "Ways must be 1 to 16");
    static_assert(can_choose_among<Replacement>(Ways),
                  "this replacement policy cannot choose among so many ways");

public:
    static constexpr bool lock_free_lookup = true;
    static constexpr std::size_t capacity = Sets * Ways;

    /// Inlined, so that key and hit stay in registers; what is not in its home
    /// way is looked for out of line.
    [[nodiscard, gnu::always_inline]] std::optional<tlb_hit> lookup(const tlb_key& key) noexcept {
        place at = home(key);
        if (at.way == Ways) [[unlikely]] {
            at = search(key.address, key.context, key.page_sizes);
            if (at.way == Ways) return std::nullopt;
        }
        set& s = sets_[at.index];
        const std::uint64_t output = s.way[at.way].output.load(std::memory_order_relaxed);
        tlb_hit hit;
        hit.host = s.way[at.way].host.load(std::memory_order_relaxed);
        hit.output = output & address_bits;
        hit.allowed = permissions{static_cast<unsigned>(output & 0x3f)};
        hit.size_log2 = static_cast<std::uint8_t>(at.size_log2);
        hit.attributes = memory_attributes::unpacked(output >> 52);
        std::atomic_thread_fence(std::memory_order_acquire);
        if (s.sequence.load(std::memory_order_relaxed) != at.before || (at.before & busy) != 0) {
            return std::nullopt;
        }
        Replacement::touch(s.recency, at.way);
        return hit;
    }
    /// The whole entry that lookup() finds: see two_level.
    [[nodiscard]] std::optional<tlb_entry> find(const tlb_key& key) noexcept {
        const auto& [address, context, page_sizes] = key;
        const place at = search(address, context, page_sizes);
        if (at.way == Ways) return std::nullopt;
        set& s = sets_[at.index];
        const tlb_entry entry = entry_in(s, at.way);
        std::atomic_thread_fence(std::memory_order_acquire);
        if (s.sequence.load(std::memory_order_relaxed) != at.before || (at.before & busy) != 0) {
            return std::nullopt;
        }
        Replacement::touch(s.recency, at.way);
        return entry;
    }

    [[nodiscard]] fill_ticket begin_fill(const tlb_key&) const noexcept {
        return {epoch_.load(std::memory_order_seq_cst)};
    }

    void fill(fill_ticket ticket, const tlb_entry& entry) noexcept {
        // The size must be visible before the epoch is looked at: an
        // invalidation bumps the epoch first and reads the sizes second.
        note_size(entry);
        set& s = set_of(entry.base, entry.size_log2);
        std::uint64_t sequence = s.sequence.load(std::memory_order_relaxed);
        if ((sequence & busy) != 0 || !s.sequence.compare_exchange_strong(
                                          sequence, sequence | busy, std::memory_order_seq_cst)) {
            return;
        }
        if (epoch_.load(std::memory_order_seq_cst) == ticket.epoch) {
            const unsigned way = choose_way(s, entry);
            write(s, way, entry);
            replacement_.filled(s.recency, way);
        }
        unlock(s, sequence | busy);
    }

    void invalidate(const invalidation_scope& scope) noexcept {
        epoch_.fetch_add(1, std::memory_order_seq_cst);
        const std::uint64_t sizes = sizes_.load(std::memory_order_seq_cst);
        // Pieces of a guest's page may lie anywhere in that page.
        const std::uint64_t cut_pages = cut_pages_.load(std::memory_order_seq_cst);
        const std::uint64_t slack =
            cut_pages == 0 ? 0 : (std::uint64_t{1} << (std::bit_width(cut_pages) - 1)) - 1;
        const std::uint64_t first = scope.first & ~slack;
        const std::uint64_t final = scope.last | slack;
        if (!scope.by_address() || visits(first, final, sizes) >= Sets) {
            for (set& s : sets_)
                remove_covered(s, scope);
            return;
        }
        for (std::uint64_t rest = sizes; rest != 0; rest &= rest - 1) {
            const auto size_log2 = static_cast<unsigned>(std::countr_zero(rest));
            const std::uint64_t last = final >> size_log2;
            for (std::uint64_t page = first >> size_log2;; ++page) {
                remove_covered(set_of(page << size_log2, size_log2), scope);
                if (page == last) break;
            }
        }
    }

private:
    static constexpr std::uint64_t low_bits = 0xfff;
    static constexpr std::uint64_t address_bits = 0x000f'ffff'ffff'f000; ///< of an output
    // Of a set's sequence word; the count is above them.
    static constexpr std::uint64_t busy = 1;
    static constexpr std::uint64_t clear_wanted = 2;
    static constexpr std::uint64_t one_more = 4;

    /// What a look-up reads of a way whose address matches: never across a cache line.
    struct alignas(32) way_data {
        std::atomic<std::uint64_t> context{0};
        std::atomic<std::byte*> host{nullptr};
        std::atomic<std::uint64_t> output{0}; ///< attributes, output, permissions
        std::atomic<std::uint64_t> tag{0};    ///< what invalidations match
    };
    struct alignas(64) set {
        std::atomic<std::uint64_t> sequence{0};
        std::atomic<std::uint32_t> recency{0};
        std::array<std::atomic<std::uint64_t>, Ways> address{}; ///< base, size and a valid bit
        std::array<way_data, Ways> way{};
    };

    [[nodiscard]] static constexpr std::uint64_t address_word(std::uint64_t address,
                                                              unsigned size_log2) noexcept {
        return (address >> size_log2 << size_log2) | size_log2 << 1 | 1U;
    }
    /// Where an entry is, and the set's sequence word at the time.
    /// Small enough to be returned in registers.
    struct place {
        std::uint64_t before = 0;
        std::uint32_t index = 0; ///< of the set
        std::uint16_t size_log2 = 0;
        std::uint16_t way = Ways; ///< Ways = nowhere
    };

    [[nodiscard]] static constexpr std::uint64_t tag_word(const tlb_entry& entry) noexcept {
        return std::uint64_t{raw(entry.tag.space)} | std::uint64_t{raw(entry.tag.vm)} << 16 |
               static_cast<std::uint64_t>(entry.tag.world) << 32 |
               std::uint64_t{entry.guest_size_log2} << 40 | std::uint64_t{entry.global} << 48;
    }

    /// The way where an entry is looked for first, and goes if it is empty then.
    /// Neighbouring pages differ in their set or in this, and so do devices
    /// that use the same addresses.
    [[nodiscard]] static unsigned home_way(std::uint64_t address, unsigned size_log2,
                                           std::uint64_t context) noexcept {
        const std::uint64_t page = address >> size_log2;
        return static_cast<unsigned>((page >> std::countr_zero(Sets)) ^ context >> 32) &
               (std::bit_floor(unsigned{Ways}) - 1);
    }
    /// Bit w: way w holds that address.
    template <std::size_t... W>
    [[nodiscard]] static unsigned ways_with(const set& s, std::uint64_t wanted,
                                            std::index_sequence<W...>) noexcept {
        return ((unsigned{s.address[W].load(std::memory_order_relaxed) == wanted} << W) | ...);
    }

    /// Looks into the home ways.
    [[nodiscard, gnu::always_inline]] place home(const tlb_key& key) const noexcept {
        for (std::uint64_t sizes = key.page_sizes; sizes != 0; sizes &= sizes - 1) {
            const auto size_log2 = static_cast<unsigned>(std::countr_zero(sizes));
            const std::size_t index = set_index(key.address, size_log2);
            const set& s = sets_[index];
            const std::uint64_t before = s.sequence.load(std::memory_order_acquire);
            const unsigned w = home_way(key.address, size_log2, key.context);
            if (s.address[w].load(std::memory_order_relaxed) ==
                    address_word(key.address, size_log2) &&
                s.way[w].context.load(std::memory_order_relaxed) == key.context) [[likely]] {
                return {before, static_cast<std::uint32_t>(index),
                        static_cast<std::uint16_t>(size_log2), static_cast<std::uint16_t>(w)};
            }
        }
        return {};
    }
    /// Looks into every way. Addresses first and without a branch, for which
    /// way it will be cannot be predicted; then the contexts of those that match.
    [[nodiscard, gnu::noinline]] place search(std::uint64_t address, std::uint64_t context,
                                              std::uint64_t sizes) const noexcept {
        for (; sizes != 0; sizes &= sizes - 1) {
            const auto size_log2 = static_cast<unsigned>(std::countr_zero(sizes));
            const std::size_t index = set_index(address, size_log2);
            const set& s = sets_[index];
            const std::uint64_t before = s.sequence.load(std::memory_order_acquire);
            unsigned matches =
                ways_with(s, address_word(address, size_log2), std::make_index_sequence<Ways>{});
            for (; matches != 0; matches &= matches - 1) {
                const auto w = static_cast<unsigned>(std::countr_zero(matches));
                if (s.way[w].context.load(std::memory_order_relaxed) == context) {
                    return {before, static_cast<std::uint32_t>(index),
                            static_cast<std::uint16_t>(size_log2), static_cast<std::uint16_t>(w)};
                }
            }
        }
        return {};
    }
    [[nodiscard]] static std::size_t set_index(std::uint64_t address, unsigned size_log2) noexcept {
        const std::uint64_t page = address >> size_log2;
        return (page ^ page >> std::countr_zero(Sets)) & (Sets - 1);
    }
    [[nodiscard]] set& set_of(std::uint64_t address, unsigned size_log2) noexcept {
        return sets_[set_index(address, size_log2)];
    }

    /// How many sets the pages of [first, last] are in, cut off at Sets.
    [[nodiscard]] static std::uint64_t visits(std::uint64_t first, std::uint64_t last,
                                              std::uint64_t sizes) noexcept {
        std::uint64_t total = 0;
        for (; sizes != 0 && total < Sets; sizes &= sizes - 1) {
            const auto size_log2 = static_cast<unsigned>(std::countr_zero(sizes));
            const std::uint64_t more = (last >> size_log2) - (first >> size_log2);
            total = more >= Sets ? Sets : total + more + 1;
        }
        return total;
    }

    void note_size(const tlb_entry& entry) noexcept {
        const std::uint64_t bit = std::uint64_t{1} << entry.size_log2;
        if ((sizes_.load(std::memory_order_seq_cst) & bit) == 0) {
            sizes_.fetch_or(bit, std::memory_order_seq_cst);
        }
        if (entry.guest_size_log2 == entry.size_log2) return;
        const std::uint64_t cut = std::uint64_t{1} << entry.guest_size_log2;
        if ((cut_pages_.load(std::memory_order_seq_cst) & cut) == 0) {
            cut_pages_.fetch_or(cut, std::memory_order_seq_cst);
        }
    }

    [[nodiscard]] unsigned choose_way(set& s, const tlb_entry& entry) noexcept {
        const std::uint64_t word = address_word(entry.base, entry.size_log2);
        unsigned empty = Ways;
        for (unsigned w = 0; w < Ways; ++w) {
            const std::uint64_t held = s.address[w].load(std::memory_order_relaxed);
            if (held == 0) empty = empty == Ways ? w : empty;
            // The same page of the same context, whatever its generation: the
            // older entry can never be hit again, or is the same translation.
            if (held == word &&
                (s.way[w].context.load(std::memory_order_relaxed) ^ entry.context) >> 32 == 0) {
                return w;
            }
        }
        const unsigned home = home_way(entry.base, entry.size_log2, entry.context);
        if (s.address[home].load(std::memory_order_relaxed) == 0) return home;
        if (empty != Ways) return empty;
        return replacement_.victim(s.recency, Ways, static_cast<std::size_t>(&s - sets_.data()));
    }

    static void write(set& s, unsigned w, const tlb_entry& entry) noexcept {
        constexpr auto order = std::memory_order_release; // never before the odd sequence
        s.address[w].store(address_word(entry.base, entry.size_log2), order);
        s.way[w].context.store(entry.context, order);
        s.way[w].host.store(entry.host, order);
        s.way[w].output.store(std::uint64_t{entry.attributes.packed()} << 52 |
                                  (entry.output & address_bits) | entry.allowed.bits(),
                              order);
        s.way[w].tag.store(tag_word(entry), order);
    }

    /// What a way holds. Torn unless the set is locked, or its sequence is looked
    /// at before and after.
    [[nodiscard]] static tlb_entry entry_in(const set& s, std::size_t w) noexcept {
        constexpr auto order = std::memory_order_relaxed;
        const std::uint64_t word = s.address[w].load(order);
        const std::uint64_t output = s.way[w].output.load(order);
        const std::uint64_t tag = s.way[w].tag.load(order);
        tlb_entry entry;
        entry.base = word & ~low_bits;
        entry.context = s.way[w].context.load(order);
        entry.host = s.way[w].host.load(order);
        entry.output = output & address_bits;
        entry.tag.space = asid{static_cast<std::uint16_t>(tag)};
        entry.tag.vm = vmid{static_cast<std::uint16_t>(tag >> 16)};
        entry.tag.world = static_cast<stream_world>(tag >> 32 & 0xff);
        entry.allowed = permissions{static_cast<unsigned>(output & 0x3f)};
        entry.size_log2 = static_cast<std::uint8_t>(word >> 1 & 0x3f);
        entry.guest_size_log2 = static_cast<std::uint8_t>(tag >> 40 & 0x7f);
        entry.global = (tag >> 48 & 1) != 0;
        entry.attributes = memory_attributes::unpacked(output >> 52);
        return entry;
    }
    [[nodiscard]] static bool covered(const set& s, std::size_t w,
                                      const invalidation_scope& scope) noexcept {
        return s.address[w].load(std::memory_order_relaxed) != 0 &&
               entry_in(s, w).covered_by(scope);
    }

    /// Ends a fill; clears the set first if an invalidation asked for that.
    static void unlock(set& s, std::uint64_t held) noexcept {
        std::uint64_t sequence = held;
        if (s.sequence.compare_exchange_strong(sequence, (held & ~busy) + one_more,
                                               std::memory_order_seq_cst)) {
            return;
        }
        for (auto& word : s.address)
            word.store(0, std::memory_order_release);
        s.sequence.store((held & ~busy) + one_more, std::memory_order_seq_cst);
    }

    /// Clears the entries of one set that the scope covers. Never waits.
    static void remove_covered(set& s, const invalidation_scope& scope) noexcept {
        std::uint64_t sequence = s.sequence.load(std::memory_order_seq_cst);
        for (;;) {
            if ((sequence & busy) != 0) {
                if ((sequence & clear_wanted) != 0 ||
                    s.sequence.compare_exchange_strong(sequence, sequence | clear_wanted,
                                                       std::memory_order_seq_cst)) {
                    return; // the filler clears it
                }
                continue;
            }
            bool any = false;
            for (std::size_t w = 0; w < Ways; ++w)
                any = any || covered(s, w, scope);
            if (!any) {
                std::atomic_thread_fence(std::memory_order_acquire);
                const std::uint64_t now = s.sequence.load(std::memory_order_seq_cst);
                if (now == sequence) return;
                sequence = now;
            } else if (s.sequence.compare_exchange_strong(sequence, sequence | busy,
                                                          std::memory_order_seq_cst)) {
                break;
            }
        }
        for (std::size_t w = 0; w < Ways; ++w) {
            if (covered(s, w, scope)) s.address[w].store(0, std::memory_order_release);
        }
        s.sequence.store(sequence + one_more, std::memory_order_seq_cst);
    }

    std::array<set, Sets> sets_{};
    [[no_unique_address]] replacement_of<Replacement> replacement_{};
    alignas(64) std::atomic<std::uint64_t> epoch_{0};
    std::atomic<std::uint64_t> sizes_{0};     ///< page sizes ever filled
    std::atomic<std::uint64_t> cut_pages_{0}; ///< sizes of guest pages ever cached in pieces
};

static_assert(tlb_policy<set_associative<16, 4>>);

} // namespace vm_accel::inline v0
