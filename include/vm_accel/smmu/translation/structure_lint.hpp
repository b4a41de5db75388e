/// Strict mode for STEs and CDs: table addresses with bits that are not used.
#pragma once

#include <vm_accel/smmu/caches/configuration_cache.hpp>
#include <vm_accel/smmu/translation/stream_table.hpp>
#include <vm_accel/smmu/translation/table_format.hpp>
#include <vm_accel/smmu/translation/walk.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/smmu/vocabulary/lint.hpp>
#include <vm_accel/spec/ste.hpp>

#include <cstdint>

namespace vm_accel::inline v0 {

/// Looks at the structures of a stream whose configuration has been decoded.
/// For threads that may read tables.
template <smmu_features F, table_access Tables, class Report>
void check_alignment(Tables& tables, const stream_table_registers& registers, stream_id stream,
                     const stream_configuration& decoded, Report& report) noexcept {
    const auto tell = [&](std::uint64_t given, std::uint64_t used, std::uint64_t where) {
        if (given == used) return;
        report.report({.rule = lint_rule::unaligned_table,
                       .stream = stream,
                       .where = where,
                       .what = given,
                       .instead = used});
    };
    if (!registers.enabled || decoded.mode != stream_mode::translate) return;
    const auto entry =
        fetch_ste(tables, registers, F.stream_bits, F.two_level_stream_table, stream);
    if (entry.event) return;
    using E = spec::ste;
    if (decoded.regimes.stage1_enabled) {
        // The CD table is aligned to its size, or its level-1 table is.
        const std::uint64_t count_log2 = F.substream_bits == 0 ? 0 : get<E::S1CDMax>(entry.value);
        const std::uint64_t format = get<E::S1Fmt>(entry.value);
        const std::uint64_t leaf_log2 = format == 1 ? 6 : 10;
        const bool linear = format == 0 || count_log2 == 0;
        std::uint64_t bytes = linear ? std::uint64_t{64} << count_log2
                              : count_log2 > leaf_log2
                                  ? std::uint64_t{8} << (count_log2 - leaf_log2)
                                  : 64;
        if (bytes < 64) bytes = 64;
        const std::uint64_t pointer = get_address<E::S1ContextPtr>(entry.value);
        tell(pointer, pointer & ~(bytes - 1), pointer);
        for (const stage1_half& half : decoded.regimes.stage1.half) {
            if (!half.enabled) continue;
            const table_format<F> form{half.granule_bits, half.input_bits,
                                       decoded.regimes.stage1.output_bits,
                                       decoded.regimes.stage1.wide_format};
            tell(half.table, form.first_table(half.table, form.first_level()), pointer);
        }
    }
    if constexpr (F.stage2) {
        if (decoded.regimes.stage2_enabled) {
            const stage2_regime& s2 = decoded.regimes.stage2;
            const table_format<F> form{s2.granule_bits, s2.input_bits, s2.output_bits,
                                       s2.wide_format};
            tell(s2.table, form.first_table(s2.table, s2.start_level), s2.table);
        }
    }
}

/// Whether two decoded configurations give the same translations.
[[nodiscard]] inline bool is_same_configuration(const stream_configuration& a,
                                                const stream_configuration& b) noexcept {
    return a.mode == b.mode && (a.mode != stream_mode::abort || a.why == b.why) &&
           a.identity == b.identity && a.attributes_kept == b.attributes_kept &&
           a.attributes_forced == b.attributes_forced &&
           a.record_stage1_faults == b.record_stage1_faults &&
           a.record_stage2_faults == b.record_stage2_faults &&
           a.stall_stage1_faults == b.stall_stage1_faults &&
           a.stall_stage2_faults == b.stall_stage2_faults &&
           a.quiet_stage1_faults == b.quiet_stage1_faults;
}

} // namespace vm_accel::inline v0
