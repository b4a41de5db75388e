/// The contiguous hint: neighbours that may share one TLB entry (DDI 0487, D8.6).
#pragma once

#include <vm_accel/smmu/translation/table_format.hpp>
#include <vm_accel/smmu/translation/table_words.hpp>
#include <vm_accel/spec/descriptors.hpp>

#include <cstdint>

namespace vm_accel::inline v0 {

/// log2 of the bytes around `input` that `descriptor`, found at `at` and with the
/// hint, speaks for: its own, or its whole run's. `output` is its output address.
///
/// The run counts only if every descriptor of it says the same, so that a hint
/// that is wrong, or flags that differ (AF, dirty state), change nothing. The
/// run lies in one table: it is read from beside `at`.
template <smmu_features F, table_access Tables>
[[nodiscard, gnu::noinline]] unsigned
whole_run_size(const table_format<F>& format, table_words<F, Tables>& words, std::uint64_t at,
               int level, std::uint64_t descriptor, std::uint64_t output,
               std::uint64_t input) noexcept {
    const unsigned size = format.covered(level);
    const unsigned more = spec::contiguous_bits(format.granule(), level);
    if (more == 0 || size + more > format.input_bits()) return size;
    const std::uint64_t count = std::uint64_t{1} << more;
    const std::uint64_t inside = (count - 1) << size;
    if (((output ^ input) & inside) != 0 || !format.fits(output | inside)) return size;
    const std::uint64_t first = descriptor & ~inside;
    const std::uint64_t first_at = at & ~(count * 8 - 1);
    for (std::uint64_t i = 0; i < count; ++i) {
        if (words.load(first_at + i * 8) != (first | i << size)) return size;
    }
    return size + more;
}

/// The same of any descriptor.
template <smmu_features F, table_access Tables>
[[nodiscard, gnu::always_inline]] inline unsigned
contiguous_size(const table_format<F>& format, table_words<F, Tables>& words, std::uint64_t at,
                int level, std::uint64_t descriptor, std::uint64_t output,
                std::uint64_t input) noexcept {
    if (spec::stage1_leaf::Contiguous::of(descriptor) == 0) [[likely]]
        return format.covered(level);
    return whole_run_size(format, words, at, level, descriptor, output, input);
}

} // namespace vm_accel::inline v0
