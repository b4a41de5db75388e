/// From registers, STE and CD to a decoded configuration.
#pragma once

#include <vm_accel/smmu/caches/configuration_cache.hpp>
#include <vm_accel/smmu/translation/context_descriptor.hpp>
#include <vm_accel/smmu/translation/context_fetch.hpp>
#include <vm_accel/smmu/translation/incoming_attributes.hpp>
#include <vm_accel/smmu/translation/stream_entry.hpp>
#include <vm_accel/smmu/translation/stream_table.hpp>
#include <vm_accel/smmu/vocabulary/fault.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/spec/register_fields.hpp>

#include <array>
#include <cstdint>
#include <optional>

namespace vm_accel::inline v0 {

/// Whose configuration is wanted.
struct resolve_request {
    stream_id stream{};
    optional_substream substream{};
    pa_range window{};
    memory_attributes incoming{}; ///< of the device's accesses, before overrides
};

/// A stream that passes untranslated within its window. `record`: whether an
/// address beyond the output size is an event; it is not while SMMUEN = 0.
[[nodiscard]] constexpr stream_configuration untranslated(stream_world world, pa_range window,
                                                          memory_attributes incoming,
                                                          bool record) noexcept {
    stream_configuration c;
    c.record_stage1_faults = record;
    c.mode = stream_mode::bypass;
    c.window = window;
    c.incoming = incoming;
    c.identity = {.tag = {world, vmid{0}, asid{0}}, .window = window, .parameters = {}};
    c.identity.parameters[7] = incoming.packed();
    return c;
}

[[nodiscard]] constexpr stream_configuration refused_stream(silent_abort why) noexcept {
    stream_configuration c;
    c.mode = stream_mode::abort;
    c.why = why;
    return c;
}

/// Of secure streams: where they go untranslated, and what S_CR0.SIF forbids.
constexpr void choose_space(stream_configuration& c, bool non_secure, bool sif) noexcept {
    c.regimes.untranslated_non_secure = non_secure;
    c.regimes.fetches_secure_only = sif;
    c.identity.parameters[6] |= (non_secure ? 4U : 0U) | (sif ? 8U : 0U);
}

/// What all accesses do while SMMUEN = 0 (6.3.15).
template <smmu_features F>
[[nodiscard]] constexpr stream_configuration
globally_bypassed(const stream_table_registers& by, pa_range window,
                  memory_attributes incoming) noexcept {
    if (by.bypass_aborts) return refused_stream(silent_abort::gbpa_abort);
    attribute_overrides overrides;
    if constexpr (F.type_overrides) {
        using G = spec::GBPA;
        overrides = {G::MTCFG::of(by.bypass) != 0,
                     static_cast<std::uint8_t>(G::MemAttr::of(by.bypass)),
                     static_cast<std::uint8_t>(G::SHCFG::of(by.bypass)),
                     static_cast<std::uint8_t>(G::ALLOCCFG::of(by.bypass))};
    }
    stream_configuration c =
        untranslated(stream_world::bypass, window, overridden(incoming, overrides), false);
    if constexpr (F.state == security_state::secure) {
        const bool non_secure = F.permission_overrides && spec::GBPA::NSCFG::of(by.bypass) == 3;
        choose_space(c, non_secure, by.fetches_secure_only);
    }
    return c;
}

/// Decodes what a legal STE says about an access; on a fault `out` is unspecified.
template <smmu_features F, table_access Tables>
[[nodiscard]] std::optional<resolve_fault>
resolve_plan(Tables& tables, const stream_plan& plan, const spec::ste& entry,
             const resolve_request& request, stream_configuration& out) noexcept {
    // A stream without stage 1 is like one with a single CD: it takes no SubstreamID.
    const context_choice choice = choose_context(plan, request.substream);
    if (choice.event) return resolve_fault{.event = *choice.event};
    const bool stage1 = plan.stage1 && !choice.bypasses_stage1;

    out = untranslated(stream_world::bypass, request.window,
                       overridden(request.incoming, plan.attributes), true);
    out.attributes_kept = plan.access_kept;
    out.attributes_forced = plan.access_forced;
    out.ats = plan.ats;
    if constexpr (F.stage2) {
        if (plan.stage2) {
            out.mode = stream_mode::translate;
            out.regimes.stage2 = plan.stage2_tables;
            out.regimes.stage2_enabled = true;
            out.record_stage2_faults = plan.record_stage2_faults;
            out.stall_stage2_faults = plan.stall_stage2_faults;
            out.identity.tag = {stream_world::stage2, plan.vm, asid{0}};
            const std::array<std::uint64_t, 2> words = deciding_words(entry);
            out.identity.parameters[4] = words[0];
            out.identity.parameters[5] = words[1];
        }
    }
    spec::cd context;
    if constexpr (F.stage1) {
        if (stage1) {
            if (const auto failed =
                    context_reader<F, Tables>{tables, plan}.fetch(choice.index, context)) {
                return failed;
            }
            out.identity.tag = {plan.world, plan.vm, asid{0}};
            const context_use use{plan.world, plan.stalls_forbidden};
            if (const auto bad = decode_cd<F>(context, use, out)) {
                return resolve_fault{.event = *bad};
            }
            // Attributes come from the tables (13.4.2), not from the device.
            out.identity.parameters[7] = 0;
        }
    }
    out.identity.parameters[6] =
        (out.regimes.stage1_enabled ? 1U : 0U) | (out.regimes.stage2_enabled ? 2U : 0U);
    if constexpr (F.mpam) {
        const partition_choice mpam = choose_partition(tables, plan, stage1 ? &context : nullptr);
        if (mpam.failed) return mpam.failed;
        out.partition = mpam.partition;
        out.partition_group = mpam.group;
    }
    return std::nullopt;
}

/// Reads and decodes what the guest has configured for a stream. On a fault
/// `out` is unspecified, but for the overrides of the access's attributes.
template <smmu_features F, table_access Tables>
[[nodiscard]] std::optional<resolve_fault>
resolve_stream(Tables& tables, const stream_table_registers& registers,
               const resolve_request& request, stream_configuration& out) noexcept {
    std::optional<resolve_fault> failed;
    out = {};
    if (!registers.enabled) {
        out = globally_bypassed<F>(registers, request.window, request.incoming);
    } else {
        const auto ste =
            fetch_ste(tables, registers, F.stream_bits, F.two_level_stream_table, request.stream);
        if (ste.event) {
            const bool record =
                *ste.event != spec::event_id::C_BAD_STREAMID || registers.record_bad_stream_id;
            return resolve_fault{
                .event = *ste.event, .fetch_address = ste.fetch_address, .record = record};
        }
        const std::optional<stream_plan> plan =
            plan_stream<F>(ste.value, registers.host_extensions);
        if (!plan) return resolve_fault{.event = spec::event_id::C_BAD_STE};
        if (plan->aborts) {
            out = refused_stream(silent_abort::ste_abort);
        } else {
            failed = resolve_plan<F>(tables, *plan, ste.value, request, out);
            if constexpr (F.state == security_state::secure) {
                choose_space(out, plan->non_secure, registers.fetches_secure_only);
            }
        }
    }
    out.is_substream = request.substream.is_present();
    out.substream = request.substream.number();
    return failed;
}

} // namespace vm_accel::inline v0
