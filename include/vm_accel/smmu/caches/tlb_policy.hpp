/// What a TLB is to the SMMU: keys, entries, tickets, and the concept.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/smmu/vocabulary/access.hpp>
#include <vm_accel/smmu/vocabulary/invalidation.hpp>
#include <vm_accel/smmu/vocabulary/memory_attributes.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>

namespace vm_accel::inline v0 {

/// How the tag of a context is made: its index, below `most`, in the upper half,
/// and its generation, of at most `generation_bits`, in the lower.
struct translation_contexts {
    static constexpr std::size_t most = 4095;
    static constexpr unsigned generation_bits = 20;
    static constexpr std::uint64_t generations = (std::uint64_t{1} << generation_bits) - 1;

    /// A tag in 32 bits, never below 2^generation_bits; and back.
    [[nodiscard]] static constexpr std::uint32_t packed(std::uint64_t tag) noexcept {
        return static_cast<std::uint32_t>(((tag >> 32) + 1) << generation_bits |
                                          (tag & generations));
    }
    [[nodiscard]] static constexpr std::uint64_t unpacked(std::uint32_t tag) noexcept {
        return (std::uint64_t{tag >> generation_bits} - 1) << 32 | (tag & generations);
    }
};
/// The index of a tag's context, the same in every generation.
[[nodiscard]] constexpr std::uint32_t context_index(std::uint64_t tag) noexcept {
    return static_cast<std::uint32_t>(tag >> 32);
}

/// What a look-up is for. `context` is the tag that context_table gives: two
/// translations with different tags never hit each other's entries.
struct tlb_key {
    std::uint64_t address = 0;    ///< input address, canonical
    std::uint64_t context = 0;    ///< index and generation of the context
    std::uint64_t page_sizes = 0; ///< bit n: the context has entries of 2^n bytes
};

/// What a hit needs: where the entry's first byte lies and what is allowed.
struct tlb_hit {
    std::byte* host = nullptr; ///< null when the output is not RAM
    std::uint64_t output = 0;  ///< physical address of the entry's first byte
    permissions allowed{};
    std::uint8_t size_log2 = 12;
    memory_attributes attributes{};
};

/// One finished translation of 2^size_log2 bytes.
///
/// A guest page that crosses a window or region edge is cached in smaller
/// pieces; `guest_size_log2` is then the page they came from, and an
/// invalidation of any byte of that page removes every piece.
struct tlb_entry {
    std::uint64_t base = 0; ///< first input address, a multiple of the size
    std::uint64_t context = 0;
    std::byte* host = nullptr;
    std::uint64_t output = 0;
    translation_tag tag{};
    permissions allowed{};
    std::uint8_t size_log2 = 12;
    std::uint8_t guest_size_log2 = 12;
    bool global = false;
    memory_attributes attributes{};

    /// First input address of the guest's page.
    [[nodiscard]] constexpr std::uint64_t guest_base() const noexcept {
        return guest_size_log2 >= 64 ? 0 : base >> guest_size_log2 << guest_size_log2;
    }
    /// What invalidations ask for besides addresses, in one word; and back.
    [[nodiscard]] constexpr std::uint64_t owner_bits() const noexcept {
        return std::uint64_t{raw(tag.space)} | std::uint64_t{raw(tag.vm)} << 16 |
               static_cast<std::uint64_t>(tag.world) << 32 | std::uint64_t{guest_size_log2} << 40 |
               std::uint64_t{global} << 48;
    }
    constexpr void set_owner(std::uint64_t bits) noexcept {
        tag = {static_cast<stream_world>(bits >> 32 & 0xff),
               vmid{static_cast<std::uint16_t>(bits >> 16)},
               asid{static_cast<std::uint16_t>(bits)}};
        guest_size_log2 = static_cast<std::uint8_t>(bits >> 40 & 0x7f);
        global = (bits >> 48 & 1) != 0;
    }
    /// False = an entry with these owner_bits() is not covered, whatever its address.
    [[nodiscard]] static constexpr bool may_be_in(const invalidation_scope& scope,
                                                  std::uint64_t bits) noexcept {
        if (!scope.by_address()) return true;
        tlb_entry wanted;
        wanted.tag = scope.tag;
        const std::uint64_t differs = bits ^ wanted.owner_bits();
        if ((differs & 0xff'ffff'0000) != 0) return false; // world, VMID
        const bool is_global = (bits >> 48 & 1) != 0;
        return scope.what == invalidation_scope::kind::any_space || (differs & 0xffff) == 0 ||
               is_global;
    }
    [[nodiscard]] constexpr bool covered_by(const invalidation_scope& scope) const noexcept {
        const std::uint64_t size = guest_size_log2 >= 64 ? 0 : std::uint64_t{1} << guest_size_log2;
        return scope.covers(tag, global, context_index(context), guest_base(), size);
    }
};

/// Taken before a walk reads its first descriptor.
struct fill_ticket {
    std::uint64_t epoch = 0;
};

/// Caches finished translations; never walks tables.
/// begin_fill() comes before the walk's first read; fill() is dropped if an
/// invalidation that covers the entry began in between (a policy may also drop
/// more: fills are never owed).
/// After invalidate(s) returns, lookup() finds nothing inside s.
/// A full TLB evicts one entry; it never flushes.
/// Threads: any device thread may look up and fill; one thread invalidates at a
/// time. lock_free_lookup says whether lookup() ever waits for another thread.
template <class T>
concept tlb_policy =
    std::default_initializable<T> && requires(T tlb, const T& view, tlb_key key, tlb_entry entry,
                                              fill_ticket ticket, invalidation_scope scope) {
        { tlb.lookup(key) } noexcept -> std::same_as<std::optional<tlb_hit>>;
        { tlb.begin_fill(key) } noexcept -> std::same_as<fill_ticket>;
        { tlb.fill(ticket, entry) } noexcept -> std::same_as<void>;
        { tlb.invalidate(scope) } noexcept -> std::same_as<void>;
        { T::lock_free_lookup } -> std::convertible_to<bool>;
        { T::capacity } -> std::convertible_to<std::size_t>;
    };

/// What a quick look-up gives.
struct quick_hit {
    bool found = false;
    std::byte* host = nullptr; ///< of the address itself
    std::uint64_t output = 0;  ///< physical address of the entry's first byte
    memory_attributes attributes{};
};

/// A TLB that can be asked for one context and page size again and again, by what
/// it has made of them beforehand. look_quickly() finds only what lookup() would
/// find too, and only memory; not found means ask lookup(). It is given the address
/// and the first of its page, and asks_for() of the permission that the access
/// needs (by reference: it is read last).
template <class T>
concept quick_tlb_policy =
    tlb_policy<T> && requires(T tlb, const typename T::prepared& by, std::uint64_t word,
                              unsigned number, const std::uint8_t& asked) {
        requires std::default_initializable<typename T::prepared>;
        requires std::copyable<typename T::prepared>;
        { T::prepare(word, number) } noexcept -> std::same_as<typename T::prepared>;
        { T::asks_for(number) } noexcept -> std::same_as<std::uint8_t>;
        { tlb.look_quickly(by, word, word, asked) } noexcept -> std::same_as<quick_hit>;
    };

/// A quick TLB that can be filled as quickly: with entries that are like one that was
/// filled before, in all but page, output and host address (all of which are of the
/// same size), by what was prepared for the context's tag and this size.
/// - like(entry): what such entries share; `entry` has been filled;
/// - room_for(by, first): where that page would go. Not there = it may be found, ask
///   lookup(); else lookup() finds no entry of this size;
/// - fill_again(ticket, room, by, first, host, output, as): as fill(). What fill() notes
///   of an entry for invalidations has been noted of the other one.
template <class T>
concept refilling_tlb =
    quick_tlb_policy<T> &&
    requires(T tlb, const T& view, const typename T::prepared& by, const tlb_entry& entry,
             const typename T::likeness& as, const typename T::room& room, fill_ticket ticket,
             std::uint64_t word, std::byte* host) {
        requires std::default_initializable<typename T::likeness>;
        requires std::copyable<typename T::likeness>;
        { T::like(entry) } noexcept -> std::same_as<typename T::likeness>;
        { view.room_for(by, word) } noexcept -> std::same_as<typename T::room>;
        { room.is_there() } noexcept -> std::same_as<bool>;
        { tlb.fill_again(ticket, room, by, word, host, word, as) } noexcept -> std::same_as<void>;
    };

} // namespace vm_accel::inline v0
