/// VMSAv8-64 stage-1 table walks (DDI 0487, D8.2 to D8.4).
///
/// The walker is a function of a regime, an address and a way to fetch
/// descriptors. Under stage 2 the fetch translates the table's address first;
/// the walker does not know.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/smmu/translation/walk.hpp>
#include <vm_accel/smmu/vocabulary/access.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/smmu/vocabulary/regimes.hpp>
#include <vm_accel/spec/descriptors.hpp>
#include <vm_accel/spec/events.hpp>

#include <cstdint>
#include <optional>

namespace vm_accel::inline v0 {

/// Attributes that table descriptors impose on what lies below them.
struct table_limits {
    bool no_user = false;
    bool no_write = false;
    bool no_user_execute = false;
    bool no_privileged_execute = false;

    constexpr void add(std::uint64_t descriptor) noexcept {
        using T = spec::stage1_table;
        const std::uint64_t ap = T::APTable::of(descriptor);
        no_user = no_user || (ap & 1) != 0;
        no_write = no_write || (ap & 2) != 0;
        no_user_execute = no_user_execute || T::XNTable::of(descriptor) != 0;
        no_privileged_execute = no_privileged_execute || T::PXNTable::of(descriptor) != 0;
    }
};

/// What a stage-1 leaf of the EL1&0 regime allows (DDI 0487, D8.4).
[[nodiscard]] constexpr permissions leaf_permissions(const stage1_regime& regime,
                                                     std::uint64_t descriptor,
                                                     const table_limits& limits) noexcept {
    using L = spec::stage1_leaf;
    using P = permissions;
    const bool user = spec::access_permission::unprivileged::of(descriptor) != 0 && !limits.no_user;
    const bool write = spec::access_permission::read_only::of(descriptor) == 0 && !limits.no_write;
    const bool wxn = regime.write_execute_never;

    unsigned bits = 0;
    if (user) bits |= P::user_read;
    if (user && write) bits |= P::user_write;
    if (!(regime.privileged_access_never && user)) {
        bits |= P::privileged_read;
        if (write) bits |= P::privileged_write;
    }
    // Execution does not ask for read permission: AP without unprivileged
    // access and UXN clear is execute-only.
    const bool user_execute = L::UXN::of(descriptor) == 0 && !limits.no_user_execute;
    if (user_execute && !(wxn && user && write)) bits |= P::user_execute;
    // Memory that unprivileged software can write is never executed with privilege.
    const bool privileged_execute = L::PXN::of(descriptor) == 0 && !limits.no_privileged_execute;
    if (privileged_execute && !(user && write) && !(wxn && write)) bits |= P::privileged_execute;
    return permissions{bits};
}

/// Walks stage 1 for a canonical address. `fetch(address)` gives the
/// descriptor at a physical address, or nullopt when that is not memory.
///
/// Faults come in the architecture's order: translation, address size, then
/// access flag; permissions are for the caller to check. At most four fetches.
template <class Fetch>
[[nodiscard]] walk_result walk_stage1(const stage1_regime& regime, std::uint64_t address,
                                      Fetch&& fetch) noexcept {
    using enum spec::event_id;
    const bool upper = (address >> 63) != 0;
    const stage1_half& half = regime.half[upper ? 1 : 0];
    if (!half.enabled) return walk_result::fault(F_TRANSLATION);
    const std::uint64_t sign = upper ? ~std::uint64_t{0} : 0;
    if ((address ^ sign) >> half.input_bits != 0) return walk_result::fault(F_TRANSLATION);

    const auto granule = spec::granule{half.granule_bits};
    const unsigned page_bits = spec::page_bits(granule);
    const unsigned stride = spec::bits_per_level(granule);
    const std::uint64_t input = address & ((std::uint64_t{1} << half.input_bits) - 1);
    const auto levels = (half.input_bits - page_bits + stride - 1) / stride;
    int level = static_cast<int>(spec::last_level + 1 - levels);

    // The first table may be smaller than a page; its base is aligned to its
    // own size, and lower bits of TTB are taken as zero.
    const unsigned first_bits = half.input_bits - spec::covered_bits(granule, level);
    std::uint64_t table = half.table & ~((std::uint64_t{8} << first_bits) - 1);
    std::uint64_t index = input >> spec::covered_bits(granule, level);
    table_limits limits;

    for (;; ++level) {
        const std::uint64_t at = table + index * 8;
        const std::optional<std::uint64_t> descriptor = fetch(at);
        if (!descriptor) return walk_result::fault(F_WALK_EABT, at);
        const std::uint64_t kind = *descriptor & 0b11;
        const bool last = level == static_cast<int>(spec::last_level);
        const bool leaf =
            last ? kind == spec::descriptor_kind::page : kind == spec::descriptor_kind::block;
        if ((kind & 1) == 0 || (last && !leaf) ||
            (leaf && !last && !spec::has_blocks(granule, level))) {
            return walk_result::fault(F_TRANSLATION);
        }
        if (leaf) {
            const unsigned size = spec::covered_bits(granule, level);
            walk_result r;
            r.output_base = *descriptor & spec::output_address_mask(granule, level);
            if (r.output_base >> regime.output_bits != 0) return walk_result::fault(F_ADDR_SIZE);
            if (spec::stage1_leaf::AF::of(*descriptor) == 0 && !regime.access_flag_ignored) {
                return walk_result::fault(F_ACCESS);
            }
            r.input_base = address >> size << size;
            r.size_log2 = static_cast<std::uint8_t>(size);
            r.allowed = leaf_permissions(regime, *descriptor, limits);
            r.global = spec::stage1_leaf::nG::of(*descriptor) == 0;
            return r;
        }
        table = *descriptor & spec::table_address_mask(granule);
        if (table >> regime.output_bits != 0) return walk_result::fault(F_ADDR_SIZE);
        if (!half.flat_permissions) limits.add(*descriptor);
        index =
            input >> spec::covered_bits(granule, level + 1) & ((std::uint64_t{1} << stride) - 1);
    }
}

/// Walks both stages for an access and checks its permission. Never throws, at
/// most 4 x 5 + 4 fetches; a fetch that fails is F_WALK_EABT.
template <smmu_features F, table_access Tables>
[[nodiscard]] walk_result walk_tables(const translation_regimes& regimes,
                                      const walk_request& request, Tables& tables) noexcept {
    walk_result leaf = walk_stage1(regimes.stage1, request.address,
                                   [&](std::uint64_t at) noexcept { return tables.load(at); });
    if (!leaf.event && !leaf.allowed.allow(request.needed)) {
        leaf.event = spec::event_id::F_PERMISSION;
    }
    return leaf;
}

} // namespace vm_accel::inline v0
