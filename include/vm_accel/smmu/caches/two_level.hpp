/// A small TLB in front of a large one.
#pragma once

#include <vm_accel/smmu/caches/prefetching_tlb.hpp>
#include <vm_accel/smmu/caches/tlb_policy.hpp>

#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>

namespace vm_accel::inline v0 {

/// A TLB that gives whole entries too, for a level above it: find() finds what
/// lookup() does, under the same promises.
template <class T>
concept far_tlb = tlb_policy<T> && requires(T tlb, const tlb_key& key) {
    { tlb.find(key) } noexcept -> std::same_as<std::optional<tlb_entry>>;
};

/// What two_level prepares for quick look-ups: what Near does, if it has any.
template <tlb_policy Near>
struct prepared_as {};
template <quick_tlb_policy Near>
struct prepared_as<Near> {
    using prepared = typename Near::prepared;

    [[nodiscard]] static constexpr prepared prepare(std::uint64_t context,
                                                    unsigned size_log2) noexcept {
        return Near::prepare(context, size_log2);
    }
    [[nodiscard]] static constexpr std::uint8_t asks_for(unsigned needed) noexcept {
        return Near::asks_for(needed);
    }
};

/// Near is looked at first; what is found in Far is copied into Near. Both are
/// filled after a walk, so Far has all that Near has, until it evicts it. Far does
/// not see hits in Near: what is used most may be evicted there, and then stays in
/// Near alone.
///
/// For a Near that stays in the processor's first cache (direct_mapped of some
/// dozens of sets) and a Far that is too large for that, or has a lock. A hit in
/// Near costs what Near costs; one in Far costs both look-ups and a fill of Near:
/// it writes, and makes threads that hit in Far take cache lines from each other. An
/// invalidation costs the sum.
template <tlb_policy Near, far_tlb Far>
    requires(!prefetching_tlb<Near> && !prefetching_tlb<Far>)
class two_level : public prepared_as<Near> {
public:
    static constexpr bool lock_free_lookup = Near::lock_free_lookup && Far::lock_free_lookup;
    static constexpr std::size_t capacity = Far::capacity;

    [[nodiscard, gnu::always_inline]] std::optional<tlb_hit> lookup(const tlb_key& key) noexcept {
        if (const std::optional<tlb_hit> hit = near_.lookup(key)) [[likely]]
            return hit;
        return fetch(key.address, key.context, key.page_sizes);
    }
    [[nodiscard]] std::optional<tlb_entry> find(const tlb_key& key) noexcept {
        return far_.find(key);
    }

    /// See quick_tlb_policy: what is near is found quickly.
    [[nodiscard, gnu::always_inline]] quick_hit look_quickly(const auto& by, std::uint64_t address,
                                                             std::uint64_t first,
                                                             const std::uint8_t& asked) noexcept
        requires quick_tlb_policy<Near>
    {
        return near_.look_quickly(by, address, first, asked);
    }

    [[nodiscard]] fill_ticket begin_fill(const tlb_key&) const noexcept {
        return {epoch_.load(std::memory_order_seq_cst)};
    }
    /// The levels' own tickets come first, and then a look at whether the
    /// caller's is still good: an invalidation that begins later is one that
    /// they drop their fills for.
    void fill(fill_ticket ticket, const tlb_entry& entry) noexcept {
        const tlb_key key{entry.base, entry.context, 0};
        const fill_ticket to_far = far_.begin_fill(key);
        const fill_ticket to_near = near_.begin_fill(key);
        if (epoch_.load(std::memory_order_seq_cst) != ticket.epoch) return;
        far_.fill(to_far, entry);
        near_.fill(to_near, entry);
    }

    /// Far first: what is on its way from Far to Near then meets the
    /// invalidation of Near.
    void invalidate(const invalidation_scope& scope) noexcept {
        epoch_.fetch_add(1, std::memory_order_seq_cst);
        far_.invalidate(scope);
        near_.invalidate(scope);
    }

private:
    [[nodiscard, gnu::noinline]] std::optional<tlb_hit>
    fetch(std::uint64_t address, std::uint64_t context, std::uint64_t page_sizes) noexcept {
        const tlb_key key{address, context, page_sizes};
        const fill_ticket ticket = near_.begin_fill(key);
        const std::optional<tlb_entry> found = far_.find(key);
        if (!found) return std::nullopt;
        near_.fill(ticket, *found);
        return tlb_hit{found->host, found->output, found->allowed, found->size_log2,
                       found->attributes};
    }

    Near near_{};
    Far far_{};
    alignas(64) std::atomic<std::uint64_t> epoch_{0};
};

} // namespace vm_accel::inline v0
