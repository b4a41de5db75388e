/// What a block or page allows (DDI 0487, D8.4).
#pragma once

#include <vm_accel/smmu/vocabulary/access.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/smmu/vocabulary/regimes.hpp>
#include <vm_accel/spec/descriptors.hpp>

#include <cstdint>

namespace vm_accel::inline v0 {

inline constexpr unsigned user_accesses =
    permissions::user_read | permissions::user_write | permissions::user_execute;
inline constexpr unsigned privileged_accesses =
    permissions::privileged_read | permissions::privileged_write | permissions::privileged_execute;
inline constexpr unsigned read_accesses = permissions::user_read | permissions::privileged_read;
inline constexpr unsigned execute_accesses =
    permissions::user_execute | permissions::privileged_execute;
inline constexpr unsigned write_accesses = permissions::user_write | permissions::privileged_write;

/// Attributes that stage-1 table descriptors impose on what lies below them:
/// those of all of them, one over the other, in the bits of a table descriptor.
struct table_limits {
    std::uint64_t bits = 0;

    [[nodiscard]] constexpr bool no_user() const noexcept {
        return (spec::stage1_table::APTable::of(bits) & 1) != 0;
    }
    [[nodiscard]] constexpr bool no_write() const noexcept {
        return (spec::stage1_table::APTable::of(bits) & 2) != 0;
    }
    [[nodiscard]] constexpr bool no_user_execute() const noexcept {
        return spec::stage1_table::XNTable::of(bits) != 0;
    }
    [[nodiscard]] constexpr bool no_privileged_execute() const noexcept {
        return spec::stage1_table::PXNTable::of(bits) != 0;
    }
};

/// A stage-1 leaf of a regime with one privilege level (NS-EL2 without E2H):
/// AP[1] and PXN mean nothing, the same holds for all accesses.
[[nodiscard]] constexpr permissions one_privilege_permissions(const stage1_regime& regime,
                                                              std::uint64_t descriptor,
                                                              const table_limits& limits) noexcept {
    const bool write =
        spec::access_permission::read_only::of(descriptor) == 0 && !limits.no_write();
    const bool never = spec::stage1_leaf::UXN::of(descriptor) != 0 || limits.no_user_execute() ||
                       (regime.write_execute_never && write);
    constexpr unsigned execute = permissions::user_execute | permissions::privileged_execute;
    return permissions{read_accesses | (write ? write_accesses : 0) | (never ? 0 : execute)};
}

/// A stage-1 leaf. PAN limits privileged data accesses alone, so what may be
/// executed is decided without it.
template <smmu_features F>
[[nodiscard, gnu::always_inline]] constexpr permissions
leaf_permissions(const stage1_regime& regime, std::uint64_t descriptor,
                 const table_limits& limits) noexcept {
    using L = spec::stage1_leaf;
    using P = permissions;
    if constexpr (F.hyp) {
        if (regime.one_privilege) return one_privilege_permissions(regime, descriptor, limits);
    }
    const bool user =
        spec::access_permission::unprivileged::of(descriptor) != 0 && !limits.no_user();
    const bool write =
        spec::access_permission::read_only::of(descriptor) == 0 && !limits.no_write();
    const bool user_execute = L::UXN::of(descriptor) == 0 && !limits.no_user_execute();
    const bool wxn = regime.write_execute_never;

    bool never = regime.privileged_access_never && user;
    if constexpr (F.epan) {
        never = never || (regime.privileged_access_never && regime.enhanced_pan && user_execute);
    }
    unsigned bits = 0;
    if (user) bits |= P::user_read;
    if (user && write) bits |= P::user_write;
    if (!never) bits |= P::privileged_read;
    if (!never && write) bits |= P::privileged_write;
    // Execution does not ask for read permission: AP without unprivileged
    // access and UXN clear is execute-only.
    if (user_execute && !(wxn && user && write)) bits |= P::user_execute;
    // Memory that unprivileged software can write is never executed with
    // privilege: with AArch64 tables UWXN always holds.
    const bool privileged_execute = L::PXN::of(descriptor) == 0 && !limits.no_privileged_execute();
    if (privileged_execute && !(user && write) && !(wxn && write)) bits |= P::privileged_execute;
    return permissions{bits};
}

/// A stage-2 leaf. Execution does not ask for read permission.
template <smmu_features F>
[[nodiscard]] constexpr permissions stage2_permissions(std::uint64_t descriptor) noexcept {
    using L = spec::stage2_leaf;
    using P = permissions;
    const std::uint64_t ap = L::S2AP::of(descriptor);
    unsigned bits = 0;
    if ((ap & 1) != 0) bits |= read_accesses;
    if ((ap & 2) != 0) bits |= write_accesses;
    const std::uint64_t never = L::S2XN::of(descriptor);
    if constexpr (F.xnx) {
        if (never == 0 || never == 1) bits |= P::user_execute;
        if (never == 0 || never == 3) bits |= P::privileged_execute;
    } else {
        if ((never & 2) == 0) bits |= P::user_execute | P::privileged_execute;
    }
    return permissions{bits};
}

} // namespace vm_accel::inline v0
