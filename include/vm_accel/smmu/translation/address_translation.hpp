/// Address translation operations: what software asks through GATOS (IHI 0070,
/// chapter 9).
///
/// An operation looks at memory as it is: no cache is asked or filled, nothing
/// is recorded, nothing stalls, and the VMM's window does not matter, because no
/// device reaches anything by it.
#pragma once

#include <vm_accel/smmu/translation/page_walker.hpp>
#include <vm_accel/smmu/translation/stream_resolver.hpp>
#include <vm_accel/smmu/translation/walk.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/spec/events.hpp>
#include <vm_accel/spec/register_fields.hpp>

#include <cstdint>
#include <optional>

namespace vm_accel::inline v0 {

/// Codes of GATOS_PAR.FAULTCODE besides the numbers of events (9.1.5).
namespace atos_fault {
inline constexpr std::uint8_t INV_REQ = 0xff;      ///< the request makes no sense here
inline constexpr std::uint8_t INV_STAGE = 0xfe;    ///< the stream has no such stage
inline constexpr std::uint8_t INTERNAL_ERR = 0xfd; ///< ended for another reason
} // namespace atos_fault

/// Which activity failed: GATOS_PAR.REASON.
enum class atos_reason : std::uint8_t { stage1_or_none, stage2_on_cd, stage2_on_table, stage2 };

/// GATOS_PAR of an operation that failed (6.3.40). `ipa` goes into FADDR.
[[nodiscard]] constexpr std::uint64_t failed_par(std::uint8_t code,
                                                 atos_reason reason = atos_reason::stage1_or_none,
                                                 std::uint64_t ipa = 0) noexcept {
    using P = spec::GATOS_PAR;
    constexpr std::uint64_t page = 0x00ff'ffff'ffff'f000;
    return P::FAULT::in_place(1) | P::REASON::in_place(static_cast<std::uint64_t>(reason)) |
           P::FAULTCODE::in_place(code) | (ipa & page);
}

/// GATOS_PAR of an operation that succeeded: the address of the whole page or
/// block, whose size is where the lowest bit of the address field is.
[[nodiscard]] constexpr std::uint64_t successful_par(std::uint64_t output, unsigned size_log2,
                                                     memory_attributes attributes) noexcept {
    using P = spec::GATOS_PAR;
    std::uint64_t address = output >> size_log2 << size_log2;
    if (size_log2 > 12) address |= P::Size::mask | std::uint64_t{1} << (size_log2 - 1);
    return address | P::SH::in_place(attributes.shareability) | P::ATTR::in_place(attributes.type);
}

/// One request: GATOS_SID and GATOS_ADDR, taken apart.
struct address_translation_request {
    enum class kind : std::uint8_t { reserved, stage1, stage2, both };
    stream_id stream{};
    std::optional<substream_id> substream{};
    kind what = kind::reserved;
    std::uint64_t address = 0;
    unsigned needed = 0;            ///< the bit of `permissions`; STE overrides do not count
    bool updates_inhibited = false; ///< HTTUI

    [[nodiscard]] static constexpr address_translation_request from(std::uint64_t sid,
                                                                    std::uint64_t addr) noexcept {
        using S = spec::GATOS_SID;
        using A = spec::GATOS_ADDR;
        address_translation_request r;
        r.stream = stream_id{static_cast<std::uint32_t>(S::STREAMID::of(sid))};
        if (S::SSID_VALID::of(sid) != 0) {
            r.substream = substream_id{static_cast<std::uint32_t>(S::SUBSTREAMID::of(sid))};
        }
        r.what = static_cast<kind>(A::TYPE::of(addr));
        r.address = addr & A::ADDR::mask;
        r.needed = permissions::needed(A::RnW::of(addr) != 0 ? access::read : access::write,
                                       A::PnU::of(addr) != 0, A::InD::of(addr) != 0);
        r.updates_inhibited = A::HTTUI::of(addr) != 0;
        return r;
    }
};

/// Runs operations. `Structures` is the way to stream and CD tables, `Tables` that
/// to translation tables; both must leave flags alone when the request inhibits
/// updates (guest_tables). Bounded like any walk; never throws.
template <smmu_features F, table_access Structures, table_access Tables>
class address_translation {
    using request = address_translation_request;

public:
    address_translation(Structures& structures, Tables& tables,
                        const stream_table_registers& registers) noexcept
        : structures_(structures), tables_(tables), registers_(registers) {}

    /// The result, as GATOS_PAR holds it.
    [[nodiscard]] std::uint64_t run(const request& asked) noexcept {
        const bool stage1 =
            asked.what == request::kind::stage1 || asked.what == request::kind::both;
        const bool stage2 =
            asked.what == request::kind::stage2 || asked.what == request::kind::both;
        if (asked.what == request::kind::reserved || (stage1 && !F.stage1) ||
            (stage2 && !F.stage2) || (!stage1 && asked.substream)) {
            return failed_par(atos_fault::INV_REQ);
        }
        if (!registers_.enabled) return failed_par(atos_fault::INTERNAL_ERR);
        const auto ste = fetch_ste(structures_, registers_, F.stream_bits, F.two_level_stream_table,
                                   asked.stream);
        if (ste.event) return failed_par(code(*ste.event));
        const std::optional<stream_plan> plan =
            plan_stream<F>(ste.value, registers_.host_extensions);
        if (!plan) return failed_par(code(spec::event_id::C_BAD_STE));
        if (plan->aborts || (stage1 && !plan->stage1) || (stage2 && !plan->stage2)) {
            return failed_par(atos_fault::INV_STAGE);
        }
        if (!stage1) return through_stage2(*plan, asked);

        stream_configuration configuration;
        const resolve_request who{.stream = asked.stream, .substream = asked.substream};
        if (const auto failed =
                resolve_plan<F>(structures_, *plan, ste.value, who, configuration)) {
            return refused(*failed, stage2);
        }
        const walk_request walk{configuration.canonical(asked.address), asked.needed, plain};
        if (stage2) return answer(walk_tables<F>(configuration.regimes, walk, tables_), walk, true);
        if (!configuration.regimes.stage1_enabled) { // S1DSS: stage 1 is bypassed
            walk_result passed = pass_stage1<F>(walk);
            passed.size_log2 = smallest_page;
            return answer(passed, walk, false);
        }
        return answer(walk_stage1<F>(configuration.regimes, walk, tables_), walk, false);
    }

private:
    /// Takes no part when it is combined with a stage's own attributes.
    static constexpr memory_attributes plain{0xff, 0};
    static constexpr std::uint8_t smallest_page = F.granule_4k ? 12 : F.granule_16k ? 14 : 16;

    [[nodiscard]] static constexpr std::uint8_t code(spec::event_id event) noexcept {
        return static_cast<std::uint8_t>(event);
    }

    [[nodiscard]] std::uint64_t through_stage2(const stream_plan& plan,
                                               const request& asked) noexcept {
        if constexpr (F.stage2) {
            const walk_request walk{asked.address, asked.needed, plain};
            const walk_result input = pass_stage1<F>(walk); // too wide an address?
            if (input.event) return failed_par(code(*input.event));
            const walk_result r = walk_stage2<F>(
                plan.stage2_tables,
                {.ipa = asked.address, .needed = asked.needed, .incoming = plain}, tables_);
            if (r.event) return failed_par(code(*r.event), atos_reason::stage2);
            return answer(r, walk, true);
        } else {
            return failed_par(atos_fault::INV_REQ);
        }
    }

    /// No CD: stage 2 is visible to those only who asked for it (9.1.4).
    [[nodiscard]] static std::uint64_t refused(const resolve_fault& why, bool both) noexcept {
        if (!why.stage2) return failed_par(code(why.event));
        if (!both) return failed_par(code(spec::event_id::F_CD_FETCH));
        return stage2_fault(why.event, why.cls, why.ipa);
    }
    [[nodiscard]] static std::uint64_t answer(const walk_result& r, const walk_request& asked,
                                              bool both) noexcept {
        if (!r.event) {
            return successful_par(r.output_base + (asked.address - r.input_base), r.size_log2,
                                  r.attributes);
        }
        if (!r.stage2) return failed_par(code(*r.event));
        if (!both) return failed_par(code(spec::event_id::F_WALK_EABT));
        return stage2_fault(*r.event, r.cls, r.ipa);
    }
    [[nodiscard]] static std::uint64_t stage2_fault(spec::event_id event, spec::fault_class cls,
                                                    std::uint64_t ipa) noexcept {
        const atos_reason reason = cls == spec::fault_class::CD   ? atos_reason::stage2_on_cd
                                   : cls == spec::fault_class::TT ? atos_reason::stage2_on_table
                                                                  : atos_reason::stage2;
        return failed_par(code(event), reason, event == spec::event_id::F_WALK_EABT ? 0 : ipa);
    }

    Structures& structures_;
    Tables& tables_;
    const stream_table_registers& registers_;
};

} // namespace vm_accel::inline v0
