/// Decoding of CDs: which are legal, and what they mean (IHI 0070, 5.4, 5.5).
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/smmu/caches/configuration_cache.hpp>
#include <vm_accel/smmu/translation/table_shapes.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/smmu/vocabulary/invalidation.hpp>
#include <vm_accel/spec/cd.hpp>
#include <vm_accel/spec/events.hpp>

#include <cstdint>
#include <optional>

namespace vm_accel::inline v0 {

/// What the STE says about the CDs that it leads to.
struct context_use {
    stream_world world = stream_world::ns_el1;
    bool stalls_forbidden = false; ///< S1STALLD
};

/// One of a CD's two halves, as its fields are.
struct cd_half {
    bool disabled = false; ///< EPD
    std::uint64_t tsz = 0;
    std::uint64_t granule = 0;
    std::uint64_t table = 0;
    std::uint64_t shareability = 0;
    bool ignore_top_byte = false;
    bool flat_permissions = false;
    bool user_forbidden = false;

    [[nodiscard]] static constexpr cd_half lower(const spec::cd& c) noexcept {
        using C = spec::cd;
        return {get<C::EPD0>(c) != 0, get<C::T0SZ>(c),      get<C::TG0>(c),
                c.word[1].value(),    get<C::SH0>(c),       get<C::TBI0>(c) != 0,
                get<C::HAD0>(c) != 0, get<C::E0PD0>(c) != 0};
    }
    [[nodiscard]] static constexpr cd_half upper(const spec::cd& c) noexcept {
        using C = spec::cd;
        return {get<C::EPD1>(c) != 0, get<C::T1SZ>(c),      get<C::TG1>(c),
                c.word[2].value(),    get<C::SH1>(c),       get<C::TBI1>(c) != 0,
                get<C::HAD1>(c) != 0, get<C::E0PD1>(c) != 0};
    }
};

/// Decodes one half; false = illegal. Nothing of a disabled half is checked
/// (5.4.1.1), and its addresses fault.
template <smmu_features F>
[[nodiscard]] constexpr bool decode_half(const cd_half& fields, bool upper, bool wide_asked,
                                         unsigned output_bits, stage1_half& half) noexcept {
    half = {};
    half.ignore_top_byte = fields.ignore_top_byte;
    if (fields.disabled) return true;
    const std::optional<std::uint8_t> granule = granule_of<F>(fields.granule, upper);
    if (!granule) return false;
    const bool wide = wide_asked && *granule != 16;
    const std::uint64_t table = table_base(fields.table);
    if (!is_legal_stage1_tsz<F>(fields.tsz, *granule, wide) ||
        !is_legal_table(table, output_bits, *granule, wide)) {
        return false;
    }
    half.table = table;
    half.input_bits = static_cast<std::uint8_t>(64 - fields.tsz);
    half.granule_bits = *granule;
    // The encoding 0b01 is reserved and means what 0b00 does.
    half.shareability =
        fields.shareability == 1 ? std::uint8_t{0} : static_cast<std::uint8_t>(fields.shareability);
    half.enabled = true;
    half.flat_permissions = F.hierarchical_attribute_disable && fields.flat_permissions;
    half.user_forbidden = F.e0pd && fields.user_forbidden;
    return true;
}

/// How faults of stage 1 are to be handled (5.5); false = illegal.
template <smmu_features F>
[[nodiscard]] constexpr bool decode_fault_handling(const spec::cd& context, const context_use& use,
                                                   stream_configuration& out) noexcept {
    using C = spec::cd;
    const bool stall = get<C::S>(context) != 0;
    const bool abort = get<C::A>(context) != 0;
    if (stall && (!F.stalls || use.stalls_forbidden)) return false;
    if (!abort && !F.quiet_termination) return false;
    // A stall is always recorded.
    out.record_stage1_faults = stall || get<C::R>(context) != 0;
    out.stall_stage1_faults = stall;
    out.quiet_stage1_faults = !abort;
    return true;
}

/// The words of a CD that decide what a translation gives, without those that
/// the tag holds, that configure faults (A, R, S), or that the model has no use
/// for (cacheability of walks).
[[nodiscard]] constexpr std::array<std::uint64_t, 4>
deciding_words(const spec::cd& context) noexcept {
    using C = spec::cd;
    constexpr std::uint64_t without = C::ASID::mask | C::ASET::mask | C::IR0::mask | C::OR0::mask |
                                      C::IR1::mask | C::OR1::mask | C::A::mask | C::R::mask |
                                      C::S::mask;
    constexpr std::uint64_t of_lower =
        C::TTB0::mask | C::HAD0::mask | C::E0PD0::mask | C::EPAN::mask;
    constexpr std::uint64_t of_upper = C::TTB1::mask | C::HAD1::mask | C::E0PD1::mask | C::DS::mask;
    return {context.word[0].value() & ~without, context.word[1].value() & of_lower,
            context.word[2].value() & of_upper, context.word[3].value()};
}

/// Decodes a CD into the configuration; nullopt on success, else the event.
/// Sets what stage 1 decides, and nothing of stage 2.
template <smmu_features F>
[[nodiscard]] constexpr std::optional<spec::event_id>
decode_cd(const spec::cd& context, const context_use& use, stream_configuration& out) noexcept {
    using C = spec::cd;
    constexpr auto bad = spec::event_id::C_BAD_CD;
    if (get<C::V>(context) == 0) return bad;
    // Tables are those of VMSAv8-64 only (TTF, D128).
    if (get<C::AA64>(context) == 0) return bad;
    if (!decode_fault_handling<F>(context, use, out)) return bad;

    // NS-EL2 without E2H, and EL3, have one half, one privilege and no ASIDs.
    const bool one_half = use.world == stream_world::ns_el2;
    cd_half lower = cd_half::lower(context);
    cd_half upper = cd_half::upper(context);
    if (one_half) {
        lower.disabled = false;
        lower.user_forbidden = false;
        upper = {.disabled = true};
    }
    const bool updates_asked = get<C::HA>(context) != 0;
    const bool dirty_asked = get<C::HD>(context) != 0;
    if ((updates_asked && F.httu == 0) || (dirty_asked && F.httu < 2)) return bad;
    const bool big_endian = get<C::ENDI>(context) != 0;
    if (big_endian && !F.mixed_endian && !(lower.disabled && upper.disabled)) return bad;
    if (!F.asid16 && !one_half && get<C::ASID>(context) > 0xff) return bad;

    stage1_regime& regime = out.regimes.stage1;
    regime.output_bits = output_bits_of<F>(get<C::IPS>(context));
    regime.wide_format = F.ds && get<C::DS>(context) != 0;
    regime.memory_types = context.word[3].value();
    regime.big_endian = big_endian;
    regime.updates_access_flag = updates_asked;
    // HD without HA is reserved, and means neither (5.4, HA).
    regime.updates_dirty_state = updates_asked && dirty_asked;
    regime.access_flag_ignored = !updates_asked && get<C::AFFD>(context) != 0;
    regime.write_execute_never = get<C::WXN>(context) != 0;
    // UWXN has no effect on these tables: what users can write is never
    // executed with privilege anyway.
    regime.privileged_access_never = !one_half && get<C::PAN>(context) != 0;
    regime.enhanced_pan = F.epan && regime.privileged_access_never && get<C::EPAN>(context) != 0;
    regime.one_privilege = one_half;
    if (!decode_half<F>(lower, false, regime.wide_format, regime.output_bits, regime.half[0]) ||
        !decode_half<F>(upper, true, regime.wide_format, regime.output_bits, regime.half[1])) {
        return bad;
    }

    out.mode = stream_mode::translate;
    out.regimes.stage1_enabled = true;
    out.ignored_top_bytes = static_cast<std::uint8_t>((regime.half[0].ignore_top_byte ? 1U : 0U) |
                                                      (regime.half[1].ignore_top_byte ? 2U : 0U));
    out.identity.tag.space =
        asid{one_half ? std::uint16_t{0} : static_cast<std::uint16_t>(get<C::ASID>(context))};
    const std::array<std::uint64_t, 4> words = deciding_words(context);
    for (std::size_t i = 0; i < words.size(); ++i)
        out.identity.parameters[i] = words[i];
    if constexpr (F.state == security_state::secure) {
        regime.half[0].non_secure = get<C::NSCFG0>(context) != 0;
        regime.half[1].non_secure = get<C::NSCFG1>(context) != 0;
        out.identity.parameters[1] |= C::NSCFG0::mask & context.word[1].value();
        out.identity.parameters[2] |= C::NSCFG1::mask & context.word[2].value();
    }
    return std::nullopt;
}

} // namespace vm_accel::inline v0
