/// What a walk has found, for walks that would find the same elsewhere.
#pragma once

#include <vm_accel/guest/guest_memory.hpp>
#include <vm_accel/smmu/caches/change_epoch.hpp>
#include <vm_accel/smmu/caches/configuration_cache.hpp>
#include <vm_accel/smmu/caches/tlb_policy.hpp>
#include <vm_accel/smmu/caches/walk_cache.hpp>
#include <vm_accel/smmu/vocabulary/access.hpp>
#include <vm_accel/smmu/vocabulary/memory_attributes.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace vm_accel::inline v0 {

/// A leaf of stage 1 that a walk has ended at. A leaf whose descriptor has the same
/// bits, but for the output address, below tables that impose the same, and on pages
/// of stage 2 that say the same, gives the same in all but its output address. Most
/// leaves of an address space are so. Of one configuration, at one change epoch.
struct familiar_leaf {
    walk_owner stage1{};            ///< in whose name tables are looked up
    walk_owner stage2{};            ///< and pages of stage 2
    std::uint64_t limits = 0;       ///< what the tables impose: bits of the word of the last one
    std::uint64_t address_bits = 0; ///< of the descriptor, with any value
    std::uint64_t descriptor = 0;   ///< its other bits
    std::uint64_t output = 0;       ///< bits of the output address that are not in address_bits
    std::uint64_t last_index = 0;   ///< of a leaf in its table
    std::uint64_t in_leaf = 0;      ///< bits of an address that say where in the leaf,
    std::uint64_t in_entry = 0;     ///< and in the TLB's entry, less with small pages of stage 2
    std::uint8_t reach_log2 = 0;    ///< of the table that has the leaf
    std::int8_t level = 0;          ///< of the leaf
    std::uint8_t size_log2 = 0;     ///< of the leaf; 0 = nothing has been found yet
    bool upper = false;             ///< in the half of the input addresses with bit 63 set
    bool nested = false;
    memory_attributes attributes{}; ///< in the end
    // With stage 2: log2 of the bytes, and what the pages give besides an address.
    std::uint8_t table_page_log2 = 0;
    std::uint8_t output_page_log2 = 0;
    std::uint16_t table_page = 0;
    std::uint16_t output_page = 0;

    /// Of the word of a page of stage 2, what is kept here of it.
    static constexpr std::uint64_t page_bits = 0xfff;
};

/// What a port's misses have learned, so that the next one needs little but the
/// table, the descriptor and a place in the TLB. Good while the change epoch is what
/// it was, as a stream_view is, and under the same conditions; or renewed. A TLB that
/// cannot be refilled has nothing to learn.
///
/// Threads: one at a time, the port's.
template <tlb_policy Tlb>
struct miss_memory {
    [[nodiscard]] static constexpr bool wants(std::uint64_t, const stream_configuration&) noexcept {
        return false;
    }
    static constexpr void learn(std::uint64_t, const stream_configuration&, const familiar_leaf&,
                                const tlb_entry&, const host_run&) noexcept {}
};
template <refilling_tlb Tlb>
class miss_memory<Tlb> {
public:
    /// Physical memory that the window and one region have in common.
    struct memory_run {
        std::uint64_t first = ~std::uint64_t{0}; ///< its first address
        std::uint64_t last = 0; ///< from there to the last entry that fits, in bytes
        std::byte* host = nullptr;

        [[nodiscard]] constexpr bool has(std::uint64_t base) const noexcept {
            return base - first <= last && host != nullptr;
        }
    };
    struct lesson {
        const stream_configuration* configuration = nullptr;
        familiar_leaf leaf{};
        typename Tlb::prepared by{}; ///< for the context's tag and the entry's size
        typename Tlb::likeness as{};
        memory_run reachable{};   ///< for entries of that size
        std::uint64_t serial = 0; ///< of the configuration
        std::uint8_t allowed = 0; ///< bit n: accesses of number_of() n

        [[nodiscard]] constexpr bool allows(const transaction& asked) const noexcept {
            return (allowed >> number_of(asked) & 1) != 0;
        }
        /// Whether an entry with this output, in this region, would be whole.
        [[nodiscard]] bool reaches(std::uint64_t base, const host_run& run) noexcept {
            const pa_range window = configuration->window;
            const std::uint64_t first = std::max(raw(run.base), raw(window.base));
            const std::uint64_t end =
                std::min(raw(run.base) + (run.bytes - 1), raw(window.base) + (window.size - 1));
            if (base < first || base > end || end - base < leaf.in_entry) return false;
            reachable = {first, end - first - leaf.in_entry, run.host + (first - raw(run.base))};
            return true;
        }
    };

    /// Inside an open guard, with what change_epoch::now() gives then. Null = nothing.
    [[nodiscard]] lesson* at(std::uint64_t epoch) noexcept {
        return epoch == learned_ ? &lesson_ : nullptr;
    }
    /// Makes a lesson good again after a change of the epoch, if it is of the
    /// configuration that is now in the slot. False = it is not.
    [[nodiscard]] bool renew(std::uint64_t epoch, const configuration_slot& slot) noexcept {
        const stream_configuration* const now = slot.get();
        if (now == nullptr || now->serial != lesson_.serial ||
            !change_epoch::allows_copies(epoch)) {
            return false;
        }
        // In this order: see context_table::invalidate().
        take_tag(now->context->tag());
        if (lesson_.leaf.nested)
            lesson_.leaf.stage2.tag = translation_contexts::packed(now->stage2_context->tag());
        lesson_.reachable = {}; // memory may have gone
        learned_ = epoch;
        return true;
    }
    /// Whether the walk of a miss is to say what it finds: the first one of a
    /// configuration, and the second in one epoch that was not like the lesson. Not
    /// where no context was left for stage 2, of which then nothing is known.
    [[nodiscard]] bool wants(std::uint64_t epoch, const stream_configuration& of) noexcept {
        if (of.regimes.stage2_enabled && of.stage2_context == nullptr) return false;
        const bool again = epoch == seen_;
        seen_ = epoch;
        return (again || of.serial != lesson_.serial) && change_epoch::allows_copies(epoch);
    }
    /// Takes a lesson from a walk that ended at `leaf`, the entry that the TLB has been
    /// filled with, and the region that this is in. `epoch` was now() before the
    /// configuration, which is a published one, and the tags were read.
    void learn(std::uint64_t epoch, const stream_configuration& configuration,
               const familiar_leaf& leaf, const tlb_entry& entry, const host_run& run) noexcept {
        learned_ = epoch;
        lesson_ = {};
        lesson_.configuration = &configuration;
        lesson_.serial = configuration.serial;
        lesson_.leaf = leaf;
        lesson_.leaf.in_entry = (std::uint64_t{1} << entry.size_log2) - 1;
        lesson_.leaf.attributes = entry.attributes;
        lesson_.as = Tlb::like(entry);
        take_tag(entry.context);
        for (unsigned n = 0; n < 8; ++n) {
            if (entry.allowed.allow(configuration.needed(kind_of(n))))
                lesson_.allowed = static_cast<std::uint8_t>(lesson_.allowed | 1U << n);
        }
        (void)lesson_.reaches(entry.output, run);
    }

private:
    void take_tag(std::uint64_t tag) noexcept {
        familiar_leaf& leaf = lesson_.leaf;
        lesson_.by = Tlb::prepare(tag, static_cast<unsigned>(std::countr_one(leaf.in_entry)));
        leaf.stage1.tag = translation_contexts::packed(tag);
    }

    std::uint64_t learned_ = change_epoch::never;
    std::uint64_t seen_ = change_epoch::never;
    lesson lesson_{};
};

} // namespace vm_accel::inline v0
