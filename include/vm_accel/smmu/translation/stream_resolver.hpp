/// From registers, STE and CD to a decoded configuration.
#pragma once

#include <vm_accel/guest/guest_memory.hpp>
#include <vm_accel/smmu/caches/configuration_cache.hpp>
#include <vm_accel/smmu/translation/context_descriptor.hpp>
#include <vm_accel/smmu/translation/stream_table.hpp>
#include <vm_accel/smmu/vocabulary/fault.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>

#include <optional>

namespace vm_accel::inline v0 {

/// Why a stream has no configuration.
struct resolve_fault {
    spec::event_id event{};
    std::uint64_t fetch_address = 0;
    bool record = true;
    // Of a stage-2 fault on the way to a CD:
    bool stage2 = false;
    spec::fault_class cls = spec::fault_class::CD;
    std::uint64_t ipa = 0;
    bool may_stall = false;
};

/// A stream that passes untranslated within its window. `record`: whether an
/// address beyond the output size is an event; it is not while SMMUEN = 0.
[[nodiscard]] constexpr stream_configuration untranslated(stream_world world, pa_range window,
                                                          bool record) noexcept {
    stream_configuration c;
    c.record_stage1_faults = record;
    c.mode = stream_mode::bypass;
    c.window = window;
    c.identity = {.tag = {world, vmid{0}, asid{0}}, .window = window, .parameters = {}};
    return c;
}

[[nodiscard]] constexpr stream_configuration refused_stream(silent_abort why) noexcept {
    stream_configuration c;
    c.mode = stream_mode::abort;
    c.why = why;
    return c;
}

/// Reads and decodes what the guest has configured for a stream. On a fault
/// `out` is unspecified. With SMMUEN = 0, GBPA decides (IHI 0070, 6.3.15).
template <smmu_features F, guest_memory Memory>
[[nodiscard]] std::optional<resolve_fault>
resolve_stream(const Memory& memory, const stream_table_registers& registers, stream_id stream,
               pa_range window, stream_configuration& out) noexcept {
    if (!registers.enabled) {
        out = registers.bypass_aborts ? refused_stream(silent_abort::gbpa_abort)
                                      : untranslated(stream_world::bypass, window, false);
        return std::nullopt;
    }
    const auto ste = fetch_ste(memory, registers, F.stream_bits, F.two_level_stream_table, stream);
    if (ste.event) {
        const bool record =
            *ste.event != spec::event_id::C_BAD_STREAMID || registers.record_bad_stream_id;
        return resolve_fault{
            .event = *ste.event, .fetch_address = ste.fetch_address, .record = record};
    }
    const std::optional<stream_plan> plan = plan_stream<F>(ste.value);
    if (!plan) return resolve_fault{.event = spec::event_id::C_BAD_STE};
    switch (plan->what) {
    case stream_plan::kind::abort:
        out = refused_stream(silent_abort::ste_abort);
        break;
    case stream_plan::kind::bypass:
        out = untranslated(stream_world::bypass, window, true);
        break;
    case stream_plan::kind::stage1: {
        spec::cd context;
        if (!fetch_structure(memory, plan->context_pointer, context)) {
            return resolve_fault{.event = spec::event_id::F_CD_FETCH,
                                 .fetch_address = plan->context_pointer};
        }
        out = {};
        out.window = window;
        out.identity.window = window;
        if (const auto bad = decode_cd<F>(context, out)) return resolve_fault{.event = *bad};
        break;
    }
    }
    return std::nullopt;
}

} // namespace vm_accel::inline v0
