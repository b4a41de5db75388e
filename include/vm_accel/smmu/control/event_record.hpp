/// What an event record says about a fault (IHI 0070, 7.3).
#pragma once

#include <vm_accel/smmu/vocabulary/fault.hpp>
#include <vm_accel/spec/events.hpp>

#include <cstdint>

namespace vm_accel::inline v0 {

/// The record for a fault, with the syndrome fields that its event has and
/// zeros elsewhere (7.3.2 to 7.3.20).
///
/// NSIPA and GPCF stay 0: they belong to secure streams and to granule
/// protection. So do the permissions that F_BAD_ATS_TREQ was asked for: no two
/// public sources agree on where they are.
[[nodiscard]] constexpr spec::event_record make_event_record(const translation_fault& f) noexcept {
    using R = spec::event_record;
    using enum spec::event_id;
    const transaction& made = f.access_made;
    const bool read = made.kind == access::read;
    R record;
    set<R::Type>(record, static_cast<std::uint64_t>(f.event));
    set<R::StreamID>(record, raw(f.stream));

    const auto substream = [&] {
        if (!f.substream_valid) return;
        set<R::SSV>(record, 1);
        set<R::SSID>(record, raw(f.substream));
    };
    const auto attributes = [&] {
        set<R::PnU>(record, made.privileged ? 1 : 0);
        // A write is of data, whatever the device says.
        set<R::InD>(record, made.instruction && read ? 1 : 0);
        set<R::RnW>(record, read ? 1 : 0);
    };
    const auto stage_and_class = [&] {
        set<R::S2>(record, f.stage2 ? 1 : 0);
        set<R::CLASS>(record, static_cast<std::uint64_t>(f.cls));
    };
    const auto fetch = [&] {
        set<R::Reason>(record, f.reason);
        set<R::FetchAddr>(record, f.fetch_address >> R::FetchAddr::low);
    };
    const auto input = [&] { set<R::InputAddr>(record, raw(made.address)); };

    switch (f.event) {
    case F_TRANSLATION:
    case F_ADDR_SIZE:
    case F_ACCESS:
    case F_PERMISSION:
        substream();
        attributes();
        stage_and_class();
        input();
        if (f.stage2) set<R::IPA>(record, f.ipa >> R::IPA::low);
        if (f.stalled) {
            set<R::STALL>(record, 1);
            set<R::STAG>(record, f.stall_tag);
        }
        // Of a table access, which direction was refused.
        if (f.event == F_PERMISSION && f.cls == spec::fault_class::TT) {
            set<R::TTRnW>(record, f.table_write ? 0 : 1);
        }
        break;
    case F_WALK_EABT:
        substream();
        attributes();
        stage_and_class();
        input();
        fetch();
        break;
    case F_STE_FETCH:
    case F_CD_FETCH:
    case F_VMS_FETCH:
        substream();
        fetch();
        break;
    case F_UUT:
        substream();
        attributes();
        input();
        set<R::Reason>(record, f.reason);
        break;
    case F_TLB_CONFLICT:
        substream();
        attributes();
        input();
        set<R::Reason>(record, f.reason);
        set<R::S2>(record, f.stage2 ? 1 : 0);
        if (f.stage2) set<R::IPA>(record, f.ipa >> R::IPA::low);
        break;
    case F_CFG_CONFLICT:
        substream();
        set<R::Reason>(record, f.reason);
        break;
    case F_BAD_ATS_TREQ:
        substream();
        input();
        break;
    case F_TRANSL_FORBIDDEN: // neither a SubstreamID nor the other attributes
        set<R::RnW>(record, read ? 1 : 0);
        input();
        break;
    case E_PAGE_REQUEST: {
        substream();
        const bool execute = made.instruction && read;
        const std::uint64_t wanted = execute ? R::uX::mask : read ? R::uR::mask : R::uW::mask;
        record.word[1] = le64{made.privileged ? wanted << (R::pX::low - R::uX::low) : wanted};
        const std::uint64_t first = raw(made.address) >> 12;
        const std::uint64_t pages = ((raw(made.address) + (made.length - 1)) >> 12) - first + 1;
        set<R::Span>(record, pages > 0xff ? 0xff : pages);
        set<R::InputAddr>(record, first << 12);
        break;
    }
    case C_BAD_SUBSTREAMID: // the SubstreamID is always meant, and has no flag
        set<R::SSID>(record, f.substream_valid ? raw(f.substream) : 0);
        break;
    case F_STREAM_DISABLED:
        break;
    case C_BAD_STREAMID:
    case C_BAD_STE:
    case C_BAD_CD:
        substream();
        break;
    }
    return record;
}

} // namespace vm_accel::inline v0
