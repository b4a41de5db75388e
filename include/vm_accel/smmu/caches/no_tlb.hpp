/// The policy that caches nothing: every access walks the guest's tables.
#pragma once

#include <vm_accel/smmu/caches/tlb_policy.hpp>

namespace vm_accel::inline v0 {

/// For measurements, and for guests whose invalidations are in doubt.
struct no_tlb {
    static constexpr bool lock_free_lookup = true;
    static constexpr std::size_t capacity = 0;

    [[nodiscard]] std::optional<tlb_hit> lookup(const tlb_key&) const noexcept {
        return std::nullopt;
    }
    [[nodiscard]] fill_ticket begin_fill(const tlb_key&) const noexcept { return {}; }
    void fill(fill_ticket, const tlb_entry&) const noexcept {}
    void invalidate(const invalidation_scope&) const noexcept {}
};

static_assert(tlb_policy<no_tlb>);

} // namespace vm_accel::inline v0
