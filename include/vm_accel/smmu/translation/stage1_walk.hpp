/// VMSAv8-64 stage-1 table walks (DDI 0487, D8.2 to D8.6).
#pragma once

#include <vm_accel/core/security_state.hpp>
#include <vm_accel/smmu/translation/contiguous_run.hpp>
#include <vm_accel/smmu/translation/flag_update.hpp>
#include <vm_accel/smmu/translation/leaf_permissions.hpp>
#include <vm_accel/smmu/translation/memory_types.hpp>
#include <vm_accel/smmu/translation/stage2_walk.hpp>
#include <vm_accel/smmu/translation/table_format.hpp>
#include <vm_accel/smmu/translation/table_words.hpp>
#include <vm_accel/smmu/translation/walk.hpp>
#include <vm_accel/smmu/translation/walk_memory.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/smmu/vocabulary/regimes.hpp>

#include <cstdint>
#include <optional>
#include <type_traits>

namespace vm_accel::inline v0 {

/// Where stage 1's descriptors are: at physical addresses, or in stage 2's
/// input space, where each of them is an access of its own that may fault.
template <smmu_features F, table_access Tables, class Known>
class stage1_descriptors {
public:
    stage1_descriptors(const translation_regimes& regimes, Tables& tables, Known& known) noexcept
        : regimes_(regimes), tables_(tables), known_(known) {}

    /// Finds the descriptor at `at`. False = refused, and refusal() says why.
    [[nodiscard, gnu::always_inline]] bool find(std::uint64_t at) noexcept {
        physical_ = at;
        if constexpr (F.stage2) {
            if (regimes_.stage2_enabled) return look_up(at, permissions::privileged_read);
        }
        return true;
    }
    /// Asks for leave to update the flags of the descriptor found last, which
    /// is a write to stage 2. False = refused.
    [[nodiscard]] bool may_update([[maybe_unused]] std::uint64_t at) noexcept {
        if constexpr (F.stage2) {
            const bool writable = page_.allowed().allow(permissions::privileged_write);
            if (regimes_.stage2_enabled && !writable) {
                if (look_up(at, permissions::privileged_write)) return true;
                refusal_.table_write = true;
                return false;
            }
        }
        return true;
    }
    [[nodiscard]] const walk_result& refusal() const noexcept { return refusal_; }
    /// Makes the page known that has the descriptor found last, at `at`: it has a
    /// leaf, and probably more of them.
    void keep_page(std::uint64_t at) noexcept {
        if (!was_known_) known_.keep_page(at, page_);
    }
    /// Of the descriptor found last.
    [[nodiscard]] std::uint64_t physical() const noexcept { return physical_; }
    /// And what is to be said of the page that has it.
    void describe(familiar_leaf& leaf) const noexcept {
        leaf.nested = F.stage2 && regimes_.stage2_enabled;
        leaf.table_page_log2 = page_.size_log2;
        leaf.table_page = static_cast<std::uint16_t>(page_.word & familiar_leaf::page_bits);
    }

private:
    [[nodiscard, gnu::always_inline]] bool look_up(std::uint64_t at, unsigned needed) noexcept {
        const stage2_request request{.ipa = at, .needed = needed, .for_table = true};
        const auto known = answer_known(regimes_.stage2, request, known_);
        was_known_ = known.has_value();
        if (was_known_) {
            page_ = *known;
        } else if (!read_stage2<F>(regimes_.stage2, request, tables_, known_, page_, refusal_)) {
            return false;
        }
        physical_ = page_.output() + (at & ((std::uint64_t{1} << page_.size_log2) - 1));
        return true;
    }

    const translation_regimes& regimes_;
    Tables& tables_;
    Known& known_;
    std::uint64_t physical_ = 0;
    known_page page_{};
    bool was_known_ = true;
    walk_result refusal_{};
};

/// What is left of a page's permissions if it is in the non-secure space of a
/// secure stream (S_CR0.SIF, 6.3.57).
[[nodiscard]] constexpr permissions allowed_in_space(const translation_regimes& regimes,
                                                     bool non_secure,
                                                     permissions allowed) noexcept {
    if (!non_secure || !regimes.fetches_secure_only) return allowed;
    return permissions{allowed.bits() & ~execute_accesses};
}

/// Walks stage 1 and checks the access; the output is a physical address, or
/// an IPA.
///
/// Faults come in the architecture's order: translation, address size, access
/// flag, permission; a fault of stage 2 on a descriptor comes when that
/// descriptor is read. At most five fetches, and one more for each time that
/// the leaf changes under an update of its flags (walk_retries). A known table
/// spares those above it.
template <smmu_features F, table_access Tables, class Known = nothing_known>
[[nodiscard, gnu::always_inline]] inline walk_result
walk_stage1(const translation_regimes& regimes, const walk_request& request, Tables& tables,
            Known&& known = {}) noexcept {
    using enum spec::event_id;
    constexpr bool secure = F.state == security_state::secure;
    const stage1_regime& regime = regimes.stage1;
    const bool upper = (request.address >> 63) != 0;
    const stage1_half& half = regime.half[upper ? 1 : 0];
    if (!half.enabled) return walk_result::fault(F_TRANSLATION);
    const std::uint64_t sign = upper ? ~std::uint64_t{0} : 0;
    if ((request.address ^ sign) >> half.input_bits != 0) return walk_result::fault(F_TRANSLATION);
    bool user_forbidden = false;
    if constexpr (F.e0pd) {
        user_forbidden = half.user_forbidden && !regime.one_privilege;
        if (user_forbidden && (request.needed & user_accesses) != 0) {
            return walk_result::fault(F_TRANSLATION);
        }
    }

    const table_format<F> format{half.granule_bits, half.input_bits, regime.output_bits,
                                 regime.wide_format};
    const std::uint64_t input = request.address & ((std::uint64_t{1} << half.input_bits) - 1);
    stage1_descriptors<F, Tables, std::remove_reference_t<Known>> place{regimes, tables, known};
    table_words<F, Tables> words{tables, regime.big_endian};
    std::uint64_t here = 0; // the table reached last, and the limits: see known_table
    int level = lowest_known(
        format, [&](unsigned size_log2) { return known.table1(request.address, size_log2); }, here);
    std::uint64_t at = 0;
    if (level != no_known_table) {
        at = (here & known_table::address) + format.index(input, level) * 8;
    } else {
        level = format.first_level();
        if (level > static_cast<int>(spec::last_level)) return walk_result::fault(F_TRANSLATION);
        if (!format.fits(half.table)) return walk_result::fault(F_ADDR_SIZE);
        at = format.first_table(half.table, level) + (input >> format.covered(level)) * 8;
        if constexpr (secure) at |= half.non_secure ? non_secure_space_bit : 0;
    }
    const int start = level;
    for (unsigned retries = 0;;) {
        if (!place.find(at)) return place.refusal();
        const std::optional<std::uint64_t> descriptor = words.load(place.physical());
        if (!descriptor) {
            return walk_result::fault(F_WALK_EABT, bare_address<F.state>(place.physical()), level);
        }
        const decoded_descriptor decoded = format.decode(*descriptor, level);
        if (decoded.role == descriptor_role::invalid)
            return walk_result::fault(F_TRANSLATION, 0, level);
        if (decoded.role == descriptor_role::too_large)
            return walk_result::fault(F_ADDR_SIZE, 0, level);
        if (decoded.role == descriptor_role::table) {
            std::uint64_t next = decoded.address;
            // Below a non-secure table everything is non-secure.
            if constexpr (secure) {
                next |= at & non_secure_space_bit;
                if (spec::stage1_table::NSTable::of(*descriptor) != 0) next |= non_secure_space_bit;
            }
            here = (here & known_table::limits) | next;
            if (!half.flat_permissions) here |= *descriptor & known_table::limits;
            ++level;
            at = next + format.index(input, level) * 8;
            continue;
        }

        const leaf_flags<F> flags{regime, *descriptor, true};
        if (flags.access_fault()) return walk_result::fault(F_ACCESS, 0, level);
        permissions allowed = leaf_permissions<F>(regime, flags.effective(), table_limits{here});
        if (user_forbidden) allowed = permissions{allowed.bits() & ~user_accesses};
        bool non_secure = false;
        if constexpr (secure) {
            non_secure =
                (at & non_secure_space_bit) != 0 || spec::stage1_leaf::NS::of(*descriptor) != 0;
            allowed = allowed_in_space(regimes, non_secure, allowed);
        }
        if (!allowed.allow(request.needed)) return walk_result::fault(F_PERMISSION, 0, level);
        const std::uint64_t after = flags.after(request.needed);
        if (after != *descriptor) {
            if (!place.may_update(at)) return place.refusal();
            const replaced done = words.replace(place.physical(), *descriptor, after);
            if (done == replaced::lost || retries == walk_retries) {
                return walk_result::fault(F_WALK_EABT, bare_address<F.state>(place.physical()),
                                          level);
            }
            if (done == replaced::overtaken) {
                ++retries;
                continue;
            }
        }

        if (!owes_update(tables)) {
            if (level > start && level >= highest_known)
                known.keep_table1(request.address, format.covered(level - 1), here);
            place.keep_page(at);
        }
        const unsigned size =
            contiguous_size(format, words, place.physical(), level, after, decoded.address, input);
        // Not of a descriptor that this access has changed, or that speaks for its run.
        if (familiar_leaf* const leaf = known.described();
            leaf != nullptr && !secure && after == *descriptor && size == format.covered(level) &&
            spec::stage1_leaf::Contiguous::of(after) == 0 && !regime.big_endian) {
            place.describe(*leaf);
            leaf->limits = here & known_table::limits;
            leaf->address_bits = format.address_bits(size);
            leaf->descriptor = *descriptor & ~leaf->address_bits;
            leaf->output = decoded.address & ~leaf->address_bits;
            leaf->reach_log2 = static_cast<std::uint8_t>(format.covered(level - 1));
            leaf->size_log2 = static_cast<std::uint8_t>(size);
            leaf->level = static_cast<std::int8_t>(level);
            leaf->last_index = (std::uint64_t{1} << (leaf->reach_log2 - size)) - 1;
            leaf->in_leaf = (std::uint64_t{1} << size) - 1;
            leaf->upper = upper;
        }
        walk_result r;
        r.size_log2 = r.page_size_log2 = static_cast<std::uint8_t>(size);
        r.input_base = request.address >> size << size;
        r.output_base = decoded.address >> size << size;
        r.allowed = flags.lasting(allowed, request.needed);
        // Without ASIDs nothing belongs to one.
        r.global = regime.one_privilege || spec::stage1_leaf::nG::of(*descriptor) == 0;
        if constexpr (secure) {
            if (non_secure) r.output_base |= non_secure_space_bit;
            // What non-secure tables say is of one ASID, whatever they say.
            if ((at & non_secure_space_bit) != 0) r.global = regime.one_privilege;
        }
        const unsigned shareability =
            format.form() == spec::address_form::ds
                ? half.shareability
                : static_cast<unsigned>(spec::stage1_leaf::SH::of(*descriptor));
        r.attributes = stage1_attributes(regime.memory_types, *descriptor, shareability);
        return r;
    }
}

} // namespace vm_accel::inline v0
