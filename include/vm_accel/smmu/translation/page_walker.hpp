/// Table walks of both stages: what an access gives, by the tables in memory.
///
/// The walk is a function of regimes, a request and a way to reach memory. It
/// holds nothing, and is bounded whatever the tables say.
#pragma once

#include <vm_accel/smmu/translation/stage1_walk.hpp>
#include <vm_accel/smmu/translation/stage2_walk.hpp>
#include <vm_accel/smmu/translation/walk.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/smmu/vocabulary/regimes.hpp>
#include <vm_accel/spec/events.hpp>

#include <algorithm>
#include <cstdint>

namespace vm_accel::inline v0 {

/// Stage 1 switched off: the output is the input, if it is small enough to be
/// an address at all (IHI 0070, 3.4).
template <smmu_features F>
[[nodiscard]] constexpr walk_result pass_stage1(const walk_request& request) noexcept {
    if (request.address >> F.output_bits != 0) {
        return walk_result::fault(spec::event_id::F_ADDR_SIZE);
    }
    walk_result r;
    r.size_log2 = r.page_size_log2 = F.output_bits;
    r.allowed = permissions::all();
    r.global = true;
    r.attributes = request.incoming;
    return r;
}

/// The same for a stream that may be secure.
template <smmu_features F>
[[nodiscard]] constexpr walk_result pass_stage1([[maybe_unused]] const translation_regimes& regimes,
                                                const walk_request& request) noexcept {
    walk_result r = pass_stage1<F>(request);
    if constexpr (F.state == security_state::secure) {
        if (r.event) return r;
        const bool non_secure = regimes.untranslated_non_secure;
        r.allowed = allowed_in_space(regimes, non_secure, r.allowed);
        if (!r.allowed.allow(request.needed)) {
            return walk_result::fault(spec::event_id::F_PERMISSION);
        }
        if (non_secure) r.output_base |= non_secure_space_bit;
    }
    return r;
}

/// What both stages give together: the smaller page, what both allow.
[[nodiscard]] constexpr walk_result combined(const walk_result& stage1, const walk_result& stage2,
                                             std::uint64_t address) noexcept {
    walk_result r;
    r.size_log2 = std::min(stage1.size_log2, stage2.size_log2);
    r.input_base = address >> r.size_log2 << r.size_log2;
    const std::uint64_t ipa = stage1.output_base + (r.input_base - stage1.input_base);
    r.output_base = stage2.output_base + (ipa - stage2.input_base);
    r.page_size_log2 = stage1.page_size_log2;
    r.allowed = permissions{stage1.allowed.bits() & stage2.allowed.bits()};
    r.global = stage1.global;
    r.attributes = stage2.attributes;
    return r;
}

/// Walks both stages for an access and checks its permission.
///
/// Stage 1's own faults come before stage 2 sees the output. A fetch that fails
/// is F_WALK_EABT with the physical address. Never throws; at most 5 x 6 + 5
/// fetches, besides contiguous runs and flags that others change.
template <smmu_features F, table_access Tables, class Known = nothing_known>
[[nodiscard, gnu::always_inline]] inline walk_result
walk_tables(const translation_regimes& regimes, const walk_request& request, Tables& tables,
            Known&& known = {}) noexcept {
    const walk_result stage1 = regimes.stage1_enabled
                                   ? walk_stage1<F>(regimes, request, tables, known)
                                   : pass_stage1<F>(regimes, request);
    if constexpr (F.stage2) {
        if (regimes.stage2_enabled && !stage1.event) {
            const walk_result stage2 =
                walk_stage2<F>(regimes.stage2,
                               {.ipa = stage1.output_base + (request.address - stage1.input_base),
                                .needed = request.needed,
                                .incoming = stage1.attributes},
                               tables, known);
            if (stage2.event || !regimes.stage1_enabled) return stage2;
            return combined(stage1, stage2, request.address);
        }
    }
    return stage1;
}

} // namespace vm_accel::inline v0
