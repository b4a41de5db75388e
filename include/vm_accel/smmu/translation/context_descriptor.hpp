/// Decoding of STEs and CDs: which are legal, and what they mean
/// (IHI 0070, 5.2, 5.4, 5.5).
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/smmu/caches/configuration_cache.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/spec/cd.hpp>
#include <vm_accel/spec/events.hpp>
#include <vm_accel/spec/registers.hpp>
#include <vm_accel/spec/ste.hpp>

#include <cstdint>
#include <optional>

namespace vm_accel::inline v0 {

/// What an STE asks for, once it is known to be legal.
struct stream_plan {
    enum class kind : std::uint8_t { abort, bypass, stage1 };
    kind what = kind::abort;
    std::uint64_t context_pointer = 0; ///< address of the CD, kind::stage1
};

/// Checks an STE against the features; nullopt = illegal, C_BAD_STE.
///
/// Config 0b0xx aborts whatever the other fields say. A stage that is not
/// implemented is illegal.
template <smmu_features F>
[[nodiscard]] constexpr std::optional<stream_plan> plan_stream(const spec::ste& entry) noexcept {
    using E = spec::ste;
    if (get<E::V>(entry) == 0) return std::nullopt;
    const std::uint64_t config = get<E::Config>(entry);
    if ((config & 0b100) == 0) return stream_plan{};
    const bool stage1 = (config & 0b001) != 0;
    const bool stage2 = (config & 0b010) != 0;
    if (stage2 || (stage1 && !F.stage1)) return std::nullopt;
    if (!stage1) return stream_plan{.what = stream_plan::kind::bypass};
    // Without SubstreamIDs S1CDMax is ignored, without Hyp so is STRW (5.2).
    return stream_plan{.what = stream_plan::kind::stage1,
                       .context_pointer = get_address<E::S1ContextPtr>(entry)};
}

/// log2 of a granule's bytes; nullopt for reserved encodings and granules not offered.
template <smmu_features F>
[[nodiscard]] constexpr std::optional<std::uint8_t> granule_of(std::uint64_t encoded,
                                                               bool upper_half) noexcept {
    // TG0 counts 4K, 64K, 16K from 0; TG1 counts 16K, 4K, 64K from 1.
    constexpr std::uint8_t lower[4] = {12, 16, 14, 0};
    constexpr std::uint8_t upper[4] = {0, 14, 12, 16};
    const std::uint8_t bits = upper_half ? upper[encoded & 3] : lower[encoded & 3];
    const bool implemented = (bits == 12 && F.granule_4k) || (bits == 14 && F.granule_16k) ||
                             (bits == 16 && F.granule_64k);
    if (!implemented) return std::nullopt;
    return bits;
}

/// Decodes a CD into the configuration; nullopt on success, else the event.
///
/// A half whose EPD is set is not checked any further: nothing of it is used.
template <smmu_features F>
[[nodiscard]] constexpr std::optional<spec::event_id>
decode_cd(const spec::cd& context, stream_configuration& out) noexcept {
    using C = spec::cd;
    constexpr auto bad = spec::event_id::C_BAD_CD;
    if (get<C::V>(context) == 0) return bad;
    // AArch32 tables, big-endian tables, hardware updates and stalls are not
    // advertised (TTF, TTENDIAN, HTTU, STALL_MODEL); nor is CD.A = 0 (TERM_MODEL).
    if (get<C::AA64>(context) == 0 || get<C::ENDI>(context) != 0 || get<C::HA>(context) != 0 ||
        get<C::HD>(context) != 0 || get<C::S>(context) != 0 || get<C::A>(context) == 0) {
        return bad;
    }
    if (!F.asid16 && get<C::ASID>(context) > 0xff) return bad;

    const unsigned asked = spec::output_address_bits(get<C::IPS>(context));
    const unsigned output_bits = asked == 0 || asked > F.output_bits ? F.output_bits : asked;

    stage1_regime& regime = out.regimes.stage1;
    regime = {};
    regime.output_bits = static_cast<std::uint8_t>(output_bits);
    regime.access_flag_ignored = get<C::AFFD>(context) != 0;
    regime.write_execute_never = get<C::WXN>(context) != 0;
    regime.privileged_access_never = get<C::PAN>(context) != 0;

    const auto decode_half = [&](bool upper, std::uint64_t epd, std::uint64_t tsz,
                                 std::uint64_t granule, std::uint64_t table, std::uint64_t tbi,
                                 std::uint64_t had) {
        stage1_half& half = regime.half[upper ? 1 : 0];
        half.ignore_top_byte = tbi != 0;
        if (epd != 0) return true;
        const auto granule_bits = granule_of<F>(granule, upper);
        if (!granule_bits || tsz < 16 || tsz > 39 || (table >> output_bits) != 0) return false;
        half.table = table;
        half.input_bits = static_cast<std::uint8_t>(64 - tsz);
        half.granule_bits = *granule_bits;
        half.enabled = true;
        half.flat_permissions = F.hierarchical_attribute_disable && had != 0;
        return true;
    };
    const bool lower_ok =
        decode_half(false, get<C::EPD0>(context), get<C::T0SZ>(context), get<C::TG0>(context),
                    get_address<C::TTB0>(context), get<C::TBI0>(context), get<C::HAD0>(context));
    const bool upper_ok =
        decode_half(true, get<C::EPD1>(context), get<C::T1SZ>(context), get<C::TG1>(context),
                    get_address<C::TTB1>(context), get<C::TBI1>(context), get<C::HAD1>(context));
    if (!lower_ok || !upper_ok) return bad;

    out.mode = stream_mode::translate;
    out.regimes.stage1_enabled = true;
    out.record_stage1_faults = get<C::R>(context) != 0;
    out.identity.tag = {stream_world::ns_el1, vmid{0},
                        asid{static_cast<std::uint16_t>(get<C::ASID>(context))}};
    // Everything of the CD that decides a translation; MAIR and the walk
    // attributes (IR, OR, SH) do not. R decides events, not translations.
    constexpr std::uint64_t without = C::ASID::mask | C::IR0::mask | C::OR0::mask | C::SH0::mask |
                                      C::IR1::mask | C::OR1::mask | C::SH1::mask | C::R::mask |
                                      C::ASET::mask;
    out.identity.parameters = {context.word[0].value() & ~without,
                               context.word[1].value() & (C::TTB0::mask | C::HAD0::mask),
                               context.word[2].value() & (C::TTB1::mask | C::HAD1::mask),
                               0,
                               0,
                               0,
                               0,
                               0};
    return std::nullopt;
}

} // namespace vm_accel::inline v0
