/// Event records: what the SMMU tells the driver (IHI 0070, chapter 7.3).
///
/// A record is 32 bytes. Which syndrome fields are valid depends on the
/// event; a field that an event does not have is written as 0.
#pragma once

#include <vm_accel/core/field.hpp>

#include <array>
#include <cstdint>
#include <string_view>

namespace vm_accel::inline v0::spec {

/// Event numbers (7.3). F_ is a fault of a transaction, C_ of configuration,
/// E_ an event.
enum class event_id : std::uint8_t {
    F_UUT = 0x01,              ///< unsupported upstream transaction
    C_BAD_STREAMID = 0x02,     ///< StreamID out of range, or no level-2 table
    F_STE_FETCH = 0x03,        ///< external abort on the way to the STE
    C_BAD_STE = 0x04,          ///< STE invalid or illegal
    F_BAD_ATS_TREQ = 0x05,     ///< ATS request not allowed
    F_STREAM_DISABLED = 0x06,  ///< S1DSS terminates, or substream 0 used with it
    F_TRANSL_FORBIDDEN = 0x07, ///< translated transaction not allowed
    C_BAD_SUBSTREAMID = 0x08,  ///< SubstreamID out of range, or no level-2 table
    F_CD_FETCH = 0x09,         ///< external abort on the way to the CD
    C_BAD_CD = 0x0a,           ///< CD invalid or illegal
    F_WALK_EABT = 0x0b,        ///< external abort on a table walk
    F_TRANSLATION = 0x10,
    F_ADDR_SIZE = 0x11,
    F_ACCESS = 0x12,
    F_PERMISSION = 0x13,
    F_TLB_CONFLICT = 0x20,
    F_CFG_CONFLICT = 0x21,
    E_PAGE_REQUEST = 0x24,
    F_VMS_FETCH = 0x25,
};

[[nodiscard]] constexpr std::string_view name_of(event_id id) noexcept {
    switch (id) {
        using enum event_id;
    case F_UUT:
        return "F_UUT";
    case C_BAD_STREAMID:
        return "C_BAD_STREAMID";
    case F_STE_FETCH:
        return "F_STE_FETCH";
    case C_BAD_STE:
        return "C_BAD_STE";
    case F_BAD_ATS_TREQ:
        return "F_BAD_ATS_TREQ";
    case F_STREAM_DISABLED:
        return "F_STREAM_DISABLED";
    case F_TRANSL_FORBIDDEN:
        return "F_TRANSL_FORBIDDEN";
    case C_BAD_SUBSTREAMID:
        return "C_BAD_SUBSTREAMID";
    case F_CD_FETCH:
        return "F_CD_FETCH";
    case C_BAD_CD:
        return "C_BAD_CD";
    case F_WALK_EABT:
        return "F_WALK_EABT";
    case F_TRANSLATION:
        return "F_TRANSLATION";
    case F_ADDR_SIZE:
        return "F_ADDR_SIZE";
    case F_ACCESS:
        return "F_ACCESS";
    case F_PERMISSION:
        return "F_PERMISSION";
    case F_TLB_CONFLICT:
        return "F_TLB_CONFLICT";
    case F_CFG_CONFLICT:
        return "F_CFG_CONFLICT";
    case E_PAGE_REQUEST:
        return "E_PAGE_REQUEST";
    case F_VMS_FETCH:
        return "F_VMS_FETCH";
    }
    return "unknown";
}

/// CLASS: what was being accessed when a stage faulted.
enum class fault_class : std::uint8_t {
    CD = 0, ///< a context descriptor fetch (stage 2)
    TT = 1, ///< a stage-1 table fetch (stage 2)
    IN = 2, ///< the input address itself
};

/// An event record (7.3.1 and the sections of each event).
struct event_record {
    using Type = field<0, 7, 0>;  ///< event_id
    using SSV = field<0, 11, 11>; ///< SSID is valid
    using SSID = field<0, 31, 12>;
    using StreamID = field<0, 63, 32>;

    using STAG = field<1, 15, 0>;   ///< names the stalled transaction to CMD_RESUME
    using Reason = field<1, 15, 0>; ///< F_UUT, F_*_FETCH, F_WALK_EABT, conflicts: in STAG's place
    using GPCF = field<1, 16, 16>;  ///< *_FETCH, F_WALK_EABT: granule protection
    using STALL = field<1, 31, 31>; ///< 1: stalled, waiting for CMD_RESUME
    using PnU = field<1, 33, 33>;   ///< 1 privileged
    using InD = field<1, 34, 34>;   ///< 1 instruction
    using RnW = field<1, 35, 35>;   ///< 1 read
    using NSIPA = field<1, 36, 36>; ///< secure stage 2: IPA space; else 0 (bit not cross-checked)
    using S2 = field<1, 39, 39>;    ///< 1 the fault is of stage 2
    using CLASS = field<1, 41, 40>; ///< fault_class
    using TTRnW = field<1, 44, 44>; ///< CLASS TT: the table access was a read

    // E_PAGE_REQUEST only: what a device is about to do, in a span of pages.
    using uX = field<1, 33, 33>;
    using uW = field<1, 34, 34>;
    using uR = field<1, 35, 35>;
    using pX = field<1, 37, 37>;
    using pW = field<1, 38, 38>;
    using pR = field<1, 39, 39>;
    using Span = field<1, 51, 44>; ///< bytes / 4096

    using InputAddr = field<2, 63, 0>;
    using IPA = field<3, 55, 12>;      ///< S2 == 1: bits [55:12]
    using FetchAddr = field<3, 55, 3>; ///< *_FETCH, F_WALK_EABT: bits [55:3]

    std::array<le64, 4> word{};
};
static_assert(sizeof(event_record) == 32);

// Golden words: a write by stream 8 to an unmapped address, with and without stall.
static_assert([] {
    event_record record;
    set<event_record::Type>(record, static_cast<std::uint64_t>(event_id::F_TRANSLATION));
    set<event_record::StreamID>(record, 8);
    set<event_record::CLASS>(record, static_cast<std::uint64_t>(fault_class::IN));
    set<event_record::InputAddr>(record, 0xdead'b000);
    const bool write = record.word[0].value() == 0x0000'0008'0000'0010 &&
                       record.word[1].value() == 0x0000'0200'0000'0000 &&
                       record.word[2].value() == 0xdead'b000 && record.word[3].value() == 0;
    set<event_record::RnW>(record, 1);
    set<event_record::STALL>(record, 1);
    set<event_record::STAG>(record, 0x1234);
    return write && record.word[1].value() == 0x0000'0208'8000'1234;
}());

} // namespace vm_accel::inline v0::spec
