/// VMSAv8-64 stage-2 table walks (DDI 0487, D8.2 to D8.6).
#pragma once

#include <vm_accel/smmu/translation/contiguous_run.hpp>
#include <vm_accel/smmu/translation/flag_update.hpp>
#include <vm_accel/smmu/translation/leaf_permissions.hpp>
#include <vm_accel/smmu/translation/memory_types.hpp>
#include <vm_accel/smmu/translation/table_format.hpp>
#include <vm_accel/smmu/translation/table_words.hpp>
#include <vm_accel/smmu/translation/walk.hpp>
#include <vm_accel/smmu/translation/walk_memory.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/smmu/vocabulary/regimes.hpp>

#include <cstdint>
#include <optional>

namespace vm_accel::inline v0 {

/// One look-up at stage 2.
struct stage2_request {
    std::uint64_t ipa = 0;
    unsigned needed = 0;          ///< the bit of `permissions` that the access needs
    bool for_table = false;       ///< the access is stage 1's, to a descriptor
    memory_attributes incoming{}; ///< what the access has before stage 2
};

/// What a page of stage 2 gives an access.
[[nodiscard]] constexpr walk_result
stage2_result(const stage2_request& request, const known_page& page, bool decides_types) noexcept {
    walk_result r;
    r.size_log2 = r.page_size_log2 = page.size_log2;
    r.input_base = request.ipa >> page.size_log2 << page.size_log2;
    r.output_base = page.output();
    r.allowed = page.allowed();
    r.global = true;
    r.attributes = combined_attributes(request.incoming, page.descriptor(), page.shareability(),
                                       decides_types);
    return r;
}

/// What is known of the page, if it answers the request: not for accesses that
/// it does not allow, for the tables know why, and whether a flag is to be set first.
template <class Known>
[[nodiscard, gnu::always_inline]] inline std::optional<known_page>
answer_known(const stage2_regime& regime, const stage2_request& request, Known& known) noexcept {
    const std::optional<known_page> page = known.page(request.ipa);
    if (!page || !page->allowed().allow(request.needed)) return std::nullopt;
    if (request.for_table && regime.protected_tables &&
        is_stage2_device(page->descriptor(), regime.decides_types)) {
        return std::nullopt;
    }
    return page;
}

/// Walks stage 2, and looks at its leaf whatever is known of the page. False =
/// refused: every fault says so in `stage2`, with the IPA and the class.
///
/// Faults come in the architecture's order: translation, address size, access
/// flag, permission. At most five fetches, and one more for each time that the
/// leaf changes under an update of its flags (walk_retries).
template <smmu_features F, table_access Tables, class Known>
[[nodiscard]] bool read_stage2(const stage2_regime& regime, const stage2_request& request,
                               Tables& tables, Known& known, known_page& page,
                               walk_result& refusal) noexcept {
    using enum spec::event_id;
    int reached = 0; // the level of the last descriptor that was read
    const auto fault = [&](spec::event_id id, std::uint64_t at = 0) noexcept {
        walk_result r = walk_result::fault(id, at, reached);
        r.stage2 = true;
        r.ipa = request.ipa;
        r.cls = request.for_table ? spec::fault_class::TT : spec::fault_class::IN;
        refusal = r;
        return false;
    };
    const table_format<F> format{regime.granule_bits, regime.input_bits, regime.output_bits,
                                 regime.wide_format};
    int level = regime.start_level; // NOLINT(bugprone-signed-char-misuse): -1 to 3
    // A start level that the input does not reach, or reaches with more than 16
    // tables, is an illegal STE; it must not lead the walk astray.
    if (request.ipa >> format.input_bits() != 0 || format.input_bits() < format.covered(level) ||
        format.first_bits(level) > spec::bits_per_level(format.granule()) + 4) {
        return fault(F_TRANSLATION);
    }
    if (!format.fits(regime.table)) return fault(F_ADDR_SIZE);

    table_words<F, Tables> words{tables, regime.big_endian};
    std::uint64_t table = 0;
    const int lowest = lowest_known(
        format, [&](unsigned size_log2) { return known.table2(request.ipa, size_log2); }, table);
    std::uint64_t at = 0;
    if (lowest > level) {
        level = lowest;
        at = table + format.index(request.ipa, level) * 8;
    } else {
        at = format.first_table(regime.table, level) + (request.ipa >> format.covered(level)) * 8;
    }
    const int start = level;
    for (unsigned retries = 0;;) {
        const std::optional<std::uint64_t> descriptor = words.load(at);
        if (!descriptor) return fault(F_WALK_EABT, at);
        reached = level;
        const decoded_descriptor decoded = format.decode(*descriptor, level);
        if (decoded.role == descriptor_role::invalid) return fault(F_TRANSLATION);
        if (decoded.role == descriptor_role::too_large) return fault(F_ADDR_SIZE);
        if (decoded.role == descriptor_role::table) {
            ++level;
            table = decoded.address;
            at = table + format.index(request.ipa, level) * 8;
            continue;
        }

        const leaf_flags<F> flags{regime, *descriptor, false};
        if (flags.access_fault()) return fault(F_ACCESS);
        const permissions allowed = stage2_permissions<F>(flags.effective());
        const bool protected_table = request.for_table && regime.protected_tables &&
                                     is_stage2_device(*descriptor, regime.decides_types);
        if (!allowed.allow(request.needed) || protected_table) return fault(F_PERMISSION);
        const std::uint64_t after = flags.after(request.needed);
        if (after != *descriptor) {
            const replaced done = words.replace(at, *descriptor, after);
            if (done == replaced::lost || retries == walk_retries) return fault(F_WALK_EABT, at);
            if (done == replaced::overtaken) {
                ++retries;
                continue;
            }
        }

        const unsigned own = format.covered(level);
        const unsigned size = request.for_table ? own
                                                : contiguous_size(format, words, at, level, after,
                                                                  decoded.address, request.ipa);
        const unsigned shareability =
            format.form() == spec::address_form::ds
                ? regime.shareability
                : static_cast<unsigned>(spec::stage2_leaf::SH::of(*descriptor));
        page = known_page::of(decoded.address >> size << size, *descriptor, shareability,
                              flags.lasting(allowed, request.needed), size);
        if (level > start && level >= highest_known && !owes_update(tables)) {
            known.keep_table2(request.ipa, format.covered(level - 1), table);
        }
        return true;
    }
}

/// Walks stage 2, unless the page is known.
template <smmu_features F, table_access Tables, class Known = nothing_known>
[[nodiscard]] walk_result walk_stage2(const stage2_regime& regime, const stage2_request& request,
                                      Tables& tables, Known&& known = {}) noexcept {
    known_page page;
    if (const std::optional<known_page> there = answer_known(regime, request, known)) {
        page = *there;
    } else {
        walk_result refusal;
        if (!read_stage2<F>(regime, request, tables, known, page, refusal)) return refusal;
        if (!owes_update(tables)) known.keep_page(request.ipa, page);
    }
    if (familiar_leaf* const leaf = known.described()) {
        leaf->output_page_log2 = page.size_log2;
        leaf->output_page = static_cast<std::uint16_t>(page.word & familiar_leaf::page_bits);
    }
    return stage2_result(request, page, regime.decides_types);
}

} // namespace vm_accel::inline v0
