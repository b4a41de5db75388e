/// Decoding of STEs: which are legal, and what they mean (IHI 0070, 5.2, 5.5).
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/smmu/translation/incoming_attributes.hpp>
#include <vm_accel/smmu/translation/table_shapes.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/smmu/vocabulary/invalidation.hpp>
#include <vm_accel/smmu/vocabulary/regimes.hpp>
#include <vm_accel/spec/ste.hpp>

#include <cstdint>
#include <optional>

namespace vm_accel::inline v0 {

/// Where a stream's CDs are. A stream without SubstreamIDs has one.
struct cd_table {
    std::uint64_t base = 0;      ///< S1ContextPtr; an intermediate address under stage 2
    std::uint8_t count_log2 = 0; ///< S1CDMax
    spec::s1_format format = spec::s1_format::linear;
};

/// MPAM: how accesses are to be attributed (17.2).
struct partition_plan {
    std::uint16_t partition = 0; ///< STE.PARTID
    std::uint8_t group = 0;      ///< STE.PMG
    bool from_cd = false;        ///< STE.S1MPAM: the CD says
    std::uint64_t structure = 0; ///< VMSPtr: where the CD's partition is mapped, under stage 2
};

/// What an STE asks for, once it is known to be legal.
struct stream_plan {
    bool aborts = true; ///< Config 0b0xx; nothing else is meaningful
    bool stage1 = false;
    bool stage2 = false;
    stream_world world = stream_world::bypass; ///< of what passes all enabled stages
    vmid vm{};
    // Stage 1:
    cd_table contexts{};
    spec::s1_default_substream without_substream = spec::s1_default_substream::terminate;
    bool stalls_forbidden = false; ///< S1STALLD
    bool non_secure = false;       ///< NSCFG of a secure stream: where stage 1 is off
    // Stage 2:
    stage2_regime stage2_tables{};
    bool record_stage2_faults = true;
    bool stall_stage2_faults = false;
    // Either:
    attribute_overrides attributes{};
    std::uint8_t access_kept = 0b110; ///< see stream_configuration::attributes_kept
    std::uint8_t access_forced = 0;
    std::uint8_t ats = 0; ///< effective EATS, but for CR0.ATSCHK: 0 none, 1 full, 2 split stage
    partition_plan partition{};
};

/// Decodes the S2 fields; false = illegal (5.2.2).
template <smmu_features F>
[[nodiscard]] constexpr bool decode_stage2(const spec::ste& entry, stream_plan& plan) noexcept {
    using E = spec::ste;
    // Tables are those of VMSAv8-64 only (TTF, D128).
    if (get<E::S2AA64>(entry) == 0) return false;
    const bool stall = get<E::S2S>(entry) != 0;
    if (stall && !F.stalls) return false;
    const bool updates_asked = get<E::S2HA>(entry) != 0;
    const bool dirty_asked = get<E::S2HD>(entry) != 0;
    if ((updates_asked && F.httu == 0) || (dirty_asked && F.httu < 2)) return false;
    const bool big_endian = get<E::S2ENDI>(entry) != 0;
    if (big_endian && !F.mixed_endian) return false;

    const std::optional<std::uint8_t> granule = granule_of<F>(get<E::S2TG>(entry), false);
    if (!granule) return false;
    const bool wide = F.ds && *granule != 16 && get<E::S2DS>(entry) != 0;
    const std::uint8_t output_bits = output_bits_of<F>(get<E::S2PS>(entry));
    const std::uint64_t table = table_base(entry.word[3].value());
    const std::uint64_t tsz = get<E::S2T0SZ>(entry);
    if (!is_legal_table(table, output_bits, *granule, wide) ||
        !is_legal_stage2_tsz<F>(tsz, *granule, wide)) {
        return false;
    }
    const auto input_bits = static_cast<std::uint8_t>(64 - tsz);
    const std::optional<std::int8_t> start = stage2_start_level<F>(
        get<E::S2SL0>(entry), get<E::S2SL0_2>(entry) != 0, *granule, wide, input_bits);
    if (!start) return false;

    const std::uint64_t shareability = get<E::S2SH0>(entry);
    plan.stage2_tables = {.table = table,
                          .input_bits = input_bits,
                          .granule_bits = *granule,
                          .start_level = *start,
                          .output_bits = output_bits,
                          .shareability = shareability == 1
                                              ? std::uint8_t{0}
                                              : static_cast<std::uint8_t>(shareability),
                          .wide_format = wide,
                          .big_endian = big_endian,
                          .access_flag_ignored = !updates_asked && get<E::S2AFFD>(entry) != 0,
                          .updates_access_flag = updates_asked,
                          .updates_dirty_state = updates_asked && dirty_asked,
                          .protected_tables = plan.stage1 && get<E::S2PTW>(entry) != 0,
                          .decides_types = F.fwb && get<E::S2FWB>(entry) != 0};
    // A stall is always recorded.
    plan.record_stage2_faults = stall || get<E::S2R>(entry) != 0;
    plan.stall_stage2_faults = stall;
    return true;
}

/// Decodes the S1 fields; false = illegal (5.2.2).
template <smmu_features F>
[[nodiscard]] constexpr bool decode_stage1(const spec::ste& entry, stream_plan& plan) noexcept {
    using E = spec::ste;
    plan.stalls_forbidden = get<E::S1STALLD>(entry) != 0;
    if (plan.stalls_forbidden && !F.stalls) return false;
    plan.contexts.base = get_address<E::S1ContextPtr>(entry);
    if (plan.contexts.base >> F.output_bits != 0) return false;
    // Without SubstreamIDs S1CDMax, S1Fmt and S1DSS are ignored.
    if constexpr (F.substream_bits != 0) {
        const std::uint64_t count_log2 = get<E::S1CDMax>(entry);
        if (count_log2 > F.substream_bits) return false;
        plan.contexts.count_log2 = static_cast<std::uint8_t>(count_log2);
        auto format = static_cast<spec::s1_format>(get<E::S1Fmt>(entry));
        if (get<E::S1Fmt>(entry) == 3) format = spec::s1_format::linear;
        if (count_log2 != 0 && format != spec::s1_format::linear && !F.two_level_cd_table) {
            return false;
        }
        plan.contexts.format = format;
        plan.without_substream = static_cast<spec::s1_default_substream>(get<E::S1DSS>(entry));
    }
    return true;
}

/// EATS; false = illegal (5.2, EATS). The checks look at S2S even where the
/// rest of stage 2 is ignored.
template <smmu_features F>
[[nodiscard]] constexpr bool decode_ats(const spec::ste& entry, stream_plan& plan) noexcept {
    using E = spec::ste;
    if constexpr (F.ats) {
        const std::uint64_t asked = get<E::EATS>(entry);
        const bool stall = get<E::S2S>(entry) != 0;
        if (asked == 1 && plan.stage2 && stall) return false;
        if (asked == 2 && (!plan.stage1 || !plan.stage2 || stall)) return false;
        plan.ats = asked == 3 ? std::uint8_t{0} : static_cast<std::uint8_t>(asked);
    }
    return true;
}

/// The overrides, where they are offered (IDR1.ATTR_TYPES_OVR, ATTR_PERMS_OVR).
template <smmu_features F>
constexpr void decode_overrides(const spec::ste& entry, stream_plan& plan) noexcept {
    using E = spec::ste;
    if constexpr (F.type_overrides) {
        plan.attributes = {get<E::MTCFG>(entry) != 0,
                           static_cast<std::uint8_t>(get<E::MemAttr>(entry)),
                           static_cast<std::uint8_t>(get<E::SHCFG>(entry)),
                           static_cast<std::uint8_t>(get<E::ALLOCCFG>(entry))};
    }
    if constexpr (F.permission_overrides) {
        // 0b10 clears the attribute, 0b11 sets it, 0b0x leaves it.
        const auto apply = [&](std::uint64_t configured, unsigned bit) {
            if ((configured & 0b10) == 0) return;
            plan.access_kept = static_cast<std::uint8_t>(plan.access_kept & ~bit);
            if ((configured & 0b01) != 0) {
                plan.access_forced = static_cast<std::uint8_t>(plan.access_forced | bit);
            }
        };
        apply(get<E::PRIVCFG>(entry), 0b010);
        apply(get<E::INSTCFG>(entry), 0b100);
    }
}

/// Checks an STE against the features; nullopt = illegal, C_BAD_STE.
/// `host_extensions` is CR2.E2H.
///
/// Config 0b0xx aborts whatever the other fields say. Fields of a stage that
/// is off are not looked at; CONT is a hint that this model does not need.
template <smmu_features F>
[[nodiscard]] constexpr std::optional<stream_plan>
plan_stream(const spec::ste& entry, bool host_extensions = false) noexcept {
    using E = spec::ste;
    if (get<E::V>(entry) == 0) return std::nullopt;
    const std::uint64_t config = get<E::Config>(entry);
    stream_plan plan;
    if ((config & 0b100) == 0) return plan;
    plan.aborts = false;
    plan.stage1 = (config & 0b001) != 0;
    plan.stage2 = (config & 0b010) != 0;
    if ((plan.stage1 && !F.stage1) || (plan.stage2 && !F.stage2)) return std::nullopt;
    decode_overrides<F>(entry, plan);
    if constexpr (F.state == security_state::secure) {
        plan.non_secure = F.permission_overrides && get<E::NSCFG>(entry) == 3;
    }
    if constexpr (F.mpam) {
        plan.partition.partition = static_cast<std::uint16_t>(get<E::PARTID>(entry));
        plan.partition.group = static_cast<std::uint8_t>(get<E::PMG>(entry));
    }
    if (!plan.stage1 && !plan.stage2) return plan;

    if (!decode_ats<F>(entry, plan)) return std::nullopt;
    plan.world = plan.stage1 ? stream_world::ns_el1 : stream_world::stage2;
    if constexpr (F.state == security_state::secure) {
        // EL1 or EL3; there is no secure EL2 (S_IDR1.SEL2).
        const std::uint64_t asked = get<E::STRW>(entry);
        if ((asked & 0b10) != 0) return std::nullopt;
        if (asked == 1) plan.world = stream_world::ns_el2; // EL3
    }
    // STRW counts for stage 1 alone.
    if (F.hyp && F.state == security_state::non_secure && plan.stage1 && !plan.stage2) {
        const std::uint64_t asked = get<E::STRW>(entry);
        if ((asked & 0b01) != 0) return std::nullopt;
        if (asked != 0) {
            plan.world = host_extensions ? stream_world::ns_el2_e2h : stream_world::ns_el2;
        }
    }
    if (plan.stage1 && !decode_stage1<F>(entry, plan)) return std::nullopt;
    if (plan.stage2 && !decode_stage2<F>(entry, plan)) return std::nullopt;
    // EL1 streams have a VMID where there is stage 2, even if they do not use it.
    const bool has_vmid = plan.world == stream_world::ns_el1 || plan.world == stream_world::stage2;
    if (F.stage2 && has_vmid) {
        const std::uint64_t vm = get<E::S2VMID>(entry);
        if (!F.vmid16 && vm > 0xff) return std::nullopt;
        plan.vm = vmid{static_cast<std::uint16_t>(vm)};
    }
    if constexpr (F.mpam) {
        plan.partition.from_cd = plan.stage1 && get<E::S1MPAM>(entry) != 0;
        plan.partition.structure = get_address<E::VMSPtr>(entry);
        if (plan.partition.from_cd && plan.stage2 &&
            plan.partition.structure >> F.output_bits != 0) {
            return std::nullopt;
        }
    }
    return plan;
}

/// The words of an STE that decide what stage 2 gives, but for the VMID; in the
/// VMID's place is S2FWB.
[[nodiscard]] constexpr std::array<std::uint64_t, 2>
deciding_words(const spec::ste& entry) noexcept {
    using E = spec::ste;
    constexpr std::uint64_t of_word2 =
        E::S2T0SZ::mask | E::S2SL0::mask | E::S2SH0::mask | E::S2TG::mask | E::S2PS::mask |
        E::S2ENDI::mask | E::S2AFFD::mask | E::S2PTW::mask | E::S2HD::mask | E::S2HA::mask;
    constexpr std::uint64_t of_word3 = E::S2TTB::mask | E::S2DS::mask | E::S2SL0_2::mask;
    return {(entry.word[2].value() & of_word2) | get<E::S2FWB>(entry),
            entry.word[3].value() & of_word3};
}

} // namespace vm_accel::inline v0
