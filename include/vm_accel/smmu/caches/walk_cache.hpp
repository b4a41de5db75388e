/// What walks remember, so that later walks read less.
///
/// Two kinds of entries. A *table* is where the walk of every input address with
/// the same first bits goes on, with what the tables above have imposed. A *page*
/// is what stage 2 gives for an IPA. Both are one word, whose bits are the
/// walker's business. Faults are never kept.
///
/// Entries are tagged as a TLB's are, with a context and its generations: what
/// ages a TLB's entries (all, a VMID, an ASID, a stream) ages these, and none of
/// them has to be found. Tables are never global: they belong to their ASID
/// (DDI 0487, D8.14, TLBI VA).
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/smmu/caches/shared_entry.hpp>
#include <vm_accel/smmu/caches/tlb_policy.hpp>
#include <vm_accel/smmu/vocabulary/invalidation.hpp>

#include <array>
#include <atomic>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>

namespace vm_accel::inline v0 {

/// Taken before a walk reads its first descriptor, and before its owners.
struct walk_ticket {
    std::uint64_t tables = 0;
    std::uint64_t pages = 0;
};

/// In whose name entries are looked up and kept.
struct walk_owner {
    std::uint32_t tag = 0;  ///< of a context, as in the state of an entry
    std::uint64_t home = 0; ///< of whom an invalidation by address knows: home_of()

    /// `context`: translation_context::tag().
    [[nodiscard]] static constexpr walk_owner of(std::uint64_t context,
                                                 const translation_tag& tag) noexcept {
        return {translation_contexts::packed(context), home_of(tag)};
    }
    /// Where entries of a world, VMID and ASID lie.
    [[nodiscard]] static constexpr std::uint64_t home_of(const translation_tag& tag) noexcept {
        return (static_cast<std::uint64_t>(tag.world) << 32 | std::uint64_t{raw(tag.vm)} << 16 |
                raw(tag.space)) *
                   0x9e37'79b9'7f4a'7c15 >>
               32;
    }
};

/// Words by prefix of an address, in a direct-mapped array. Look-ups take no
/// lock, and never use a torn entry.
///
/// See shared_state for how they go about it. What lies side by side is kept side
/// by side: prefixes in a row have places in a row, so that no two of them share one
/// before there are more of them than places.
template <std::size_t Entries>
class prefix_words {
    static_assert(std::has_single_bit(Entries) && Entries >= 2, "Entries must be a power of two");

public:
    /// The word kept for the 2^size_log2 bytes around `address`.
    [[nodiscard, gnu::always_inline]] std::optional<std::uint64_t>
    find(const walk_owner& owner, std::uint64_t address, unsigned size_log2) const noexcept {
        const entry& e = entries_[index_of(owner.home, address, size_log2)];
        const std::uint64_t state = e.state.load(std::memory_order_acquire);
        if (static_cast<std::uint32_t>(state) != owner.tag) [[unlikely]]
            return std::nullopt;
        if (e.name.load(std::memory_order_relaxed) != name_of(address, size_log2)) [[unlikely]]
            return std::nullopt;
        const std::uint64_t word = e.word.load(std::memory_order_relaxed);
        if (!e.state.is_still(state)) [[unlikely]]
            return std::nullopt;
        return word;
    }

    [[nodiscard]] std::uint64_t begin() const noexcept {
        return epoch_.load(std::memory_order_seq_cst);
    }
    /// Dropped if an invalidation by address began since `epoch` was taken; one
    /// of another kind has made the owner's context unreachable.
    void keep(std::uint64_t epoch, const walk_owner& owner, std::uint64_t address,
              unsigned size_log2, std::uint64_t word) noexcept {
        const std::uint64_t bit = std::uint64_t{1} << size_log2;
        // Before the epoch is looked at: an invalidation does it the other way round.
        if ((sizes_.load(std::memory_order_relaxed) & bit) == 0) {
            sizes_.fetch_or(bit, std::memory_order_seq_cst);
        }
        entry& e = entries_[index_of(owner.home, address, size_log2)];
        std::uint64_t before = 0;
        if (!e.state.take(before)) return;
        const bool valid = (epoch & 1) == 0 && epoch_.load(std::memory_order_seq_cst) == epoch;
        if (valid) {
            e.name.store(name_of(address, size_log2), std::memory_order_release);
            e.word.store(word, std::memory_order_release);
        }
        e.state.give(before, valid ? owner.tag : before & shared_state::tags);
    }

    /// Removes what the scope covers: entries whose addresses meet it, or all.
    /// May remove more. One pass, over the entries that can hold it. A walk that begins
    /// meanwhile may start from a table that is still to be removed: it keeps nothing.
    void invalidate(const invalidation_scope& scope) noexcept {
        epoch_.fetch_add(1, std::memory_order_seq_cst);
        remove_all(scope);
        epoch_.fetch_add(1, std::memory_order_seq_cst);
    }

private:
    void remove_all(const invalidation_scope& scope) noexcept {
        const std::uint64_t sizes = sizes_.load(std::memory_order_seq_cst);
        const std::uint64_t first = scope.by_address() ? scope.first : 0;
        const std::uint64_t last = scope.by_address() ? scope.last : ~std::uint64_t{0};
        // Without an ASID they can be anywhere, but in worlds that have none.
        const bool has_home =
            scope.what == invalidation_scope::kind::address ||
            (scope.what == invalidation_scope::kind::any_space &&
             (scope.tag.world == stream_world::stage2 || scope.tag.world == stream_world::ns_el2));
        if (!has_home || visits(first, last, sizes) >= Entries) {
            for (entry& e : entries_)
                remove(e, [&](std::uint64_t name) { return meets(name, first, last); });
            return;
        }
        const std::uint64_t home = walk_owner::home_of(scope.tag);
        for (std::uint64_t rest = sizes; rest != 0; rest &= rest - 1) {
            const auto size_log2 = static_cast<unsigned>(std::countr_zero(rest));
            for (std::uint64_t prefix = first >> size_log2;; ++prefix) {
                const std::uint64_t wanted = name_of(prefix << size_log2, size_log2);
                remove(entries_[index_of(home, wanted, size_log2)],
                       [&](std::uint64_t name) { return name == wanted; });
                if (prefix == last >> size_log2) break;
            }
        }
    }

    struct alignas(32) entry {
        shared_state state;                 ///< whose: walk_owner::tag
        std::atomic<std::uint64_t> name{0}; ///< prefix and size
        std::atomic<std::uint64_t> word{0};
    };

    /// Sizes are 4 KiB or more, so that there is room below the prefix.
    [[nodiscard]] static constexpr std::uint64_t name_of(std::uint64_t address,
                                                         unsigned size_log2) noexcept {
        return (address >> size_log2 << size_log2) | size_log2;
    }
    [[nodiscard]] static constexpr std::size_t index_of(std::uint64_t home, std::uint64_t address,
                                                        unsigned size_log2) noexcept {
        const std::uint64_t prefix = address >> size_log2;
        // Sizes apart, and the upper bits folded in, for strides of a power of two.
        return static_cast<std::size_t>(prefix + (prefix >> std::countr_zero(Entries)) + home +
                                        std::uint64_t{size_log2} * 0x9e3'7795) &
               (Entries - 1);
    }
    [[nodiscard]] static constexpr bool meets(std::uint64_t name, std::uint64_t first,
                                              std::uint64_t last) noexcept {
        const std::uint64_t base = name & ~std::uint64_t{0xfff};
        const std::uint64_t end = base | ((std::uint64_t{1} << (name & 0x3f)) - 1);
        return first <= end && base <= last;
    }
    /// How many entries the prefixes of [first, last] are in, cut off at Entries.
    [[nodiscard]] static constexpr std::uint64_t visits(std::uint64_t first, std::uint64_t last,
                                                        std::uint64_t sizes) noexcept {
        std::uint64_t total = 0;
        for (; sizes != 0 && total < Entries; sizes &= sizes - 1) {
            const auto size_log2 = static_cast<unsigned>(std::countr_zero(sizes));
            const std::uint64_t more = (last >> size_log2) - (first >> size_log2);
            total = more >= Entries ? Entries : total + more + 1;
        }
        return total;
    }

    template <class Covered>
    static void remove(entry& e, Covered covered) noexcept {
        e.state.remove(e.state.load(std::memory_order_seq_cst), [&](std::uint64_t) noexcept {
            return covered(e.name.load(std::memory_order_relaxed));
        });
    }

    std::array<entry, Entries> entries_{};
    alignas(64) std::atomic<std::uint64_t> epoch_{0}; ///< odd while an invalidation is at work
    std::atomic<std::uint64_t> sizes_{0};             ///< sizes ever kept
};

/// Keeps `Tables` tables of both stages, and `Pages` pages of stage 2.
///
/// Threads: begin, find and keep from any device thread, without a lock; one
/// thread invalidates at a time.
template <std::size_t Tables = 1024, std::size_t Pages = 2048>
class walk_cache {
public:
    static constexpr bool enabled = true;

    [[nodiscard]] walk_ticket begin() const noexcept { return {tables_.begin(), pages_.begin()}; }

    [[nodiscard, gnu::always_inline]] std::optional<std::uint64_t>
    find_table(const walk_owner& owner, std::uint64_t input, unsigned size_log2) const noexcept {
        return tables_.find(owner, input, size_log2);
    }
    void keep_table(const walk_ticket& ticket, const walk_owner& owner, std::uint64_t input,
                    unsigned size_log2, std::uint64_t word) noexcept {
        tables_.keep(ticket.tables, owner, input, size_log2, word);
    }
    [[nodiscard, gnu::always_inline]] std::optional<std::uint64_t>
    find_page(const walk_owner& owner, std::uint64_t ipa, unsigned size_log2) const noexcept {
        return pages_.find(owner, ipa, size_log2);
    }
    void keep_page(const walk_ticket& ticket, const walk_owner& owner, std::uint64_t ipa,
                   unsigned size_log2, std::uint64_t word) noexcept {
        pages_.keep(ticket.pages, owner, ipa, size_log2, word);
    }

    /// For scopes by address, and for everything: the other kinds are done by
    /// ageing contexts. An invalidation of leaves alone keeps the tables.
    void invalidate(const invalidation_scope& scope) noexcept {
        if (!scope.by_address() || !scope.leaf_only) tables_.invalidate(scope);
        if (!scope.by_address() || scope.tag.world == stream_world::stage2) {
            pages_.invalidate(scope);
        }
    }

private:
    prefix_words<Tables> tables_;
    prefix_words<Pages> pages_;
};

/// Remembers nothing: every walk starts at the root.
struct no_walk_cache {
    static constexpr bool enabled = false;

    [[nodiscard]] static constexpr walk_ticket begin() noexcept { return {}; }
    [[nodiscard]] static constexpr std::optional<std::uint64_t>
    find_table(const walk_owner&, std::uint64_t, unsigned) noexcept {
        return std::nullopt;
    }
    static constexpr void keep_table(const walk_ticket&, const walk_owner&, std::uint64_t, unsigned,
                                     std::uint64_t) noexcept {}
    [[nodiscard]] static constexpr std::optional<std::uint64_t>
    find_page(const walk_owner&, std::uint64_t, unsigned) noexcept {
        return std::nullopt;
    }
    static constexpr void keep_page(const walk_ticket&, const walk_owner&, std::uint64_t, unsigned,
                                    std::uint64_t) noexcept {}
    static constexpr void invalidate(const invalidation_scope&) noexcept {}
};

/// begin() comes before the walk's first read; what is kept is dropped if an
/// invalidation that covers it began since (more may be dropped). After
/// invalidate(s) returns, nothing inside s is found; with s.leaf_only tables may be.
template <class W>
concept walk_cache_policy =
    std::default_initializable<W> &&
    requires(W cache, const walk_ticket ticket, const walk_owner owner, std::uint64_t at,
             unsigned size_log2, const invalidation_scope scope) {
        { W::enabled } -> std::convertible_to<bool>;
        { cache.begin() } noexcept -> std::same_as<walk_ticket>;
        {
            cache.find_table(owner, at, size_log2)
        } noexcept -> std::same_as<std::optional<std::uint64_t>>;
        {
            cache.find_page(owner, at, size_log2)
        } noexcept -> std::same_as<std::optional<std::uint64_t>>;
        { cache.keep_table(ticket, owner, at, size_log2, at) } noexcept -> std::same_as<void>;
        { cache.keep_page(ticket, owner, at, size_log2, at) } noexcept -> std::same_as<void>;
        { cache.invalidate(scope) } noexcept -> std::same_as<void>;
    };

static_assert(walk_cache_policy<walk_cache<>>);
static_assert(walk_cache_policy<no_walk_cache>);

} // namespace vm_accel::inline v0
