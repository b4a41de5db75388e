/// A Performance Monitor Counter Group as facts (IHI 0070, chapter 10).
///
/// One 4 KiB page, or two: with CFGR.RELOC_CTRS the registers of the second
/// table of 10.5.1 (counters, shadows, overflow status, capture) are at the same
/// offsets of page 1 and no longer in page 0. All registers are little-endian.
#pragma once

#include <vm_accel/core/field.hpp>

#include <cstdint>

namespace vm_accel::inline v0::spec::pmcg {

/// Bytes of each page.
inline constexpr std::uint64_t page_size = 0x1000;
/// Most counters of one group.
inline constexpr unsigned max_counters = 64;

/// Offsets within a page (10.5.1). Arrays have one element per counter.
inline constexpr std::uint32_t EVCNTR0 = 0x0;    ///< stride 8: counters wider than 32 bits
inline constexpr std::uint32_t EVTYPER0 = 0x400; ///< stride 4
inline constexpr std::uint32_t SVR0 = 0x600;     ///< stride 8
inline constexpr std::uint32_t SMR0 = 0xa00;     ///< stride 4
inline constexpr std::uint32_t CNTENSET0 = 0xc00;
inline constexpr std::uint32_t CNTENCLR0 = 0xc20;
inline constexpr std::uint32_t INTENSET0 = 0xc40;
inline constexpr std::uint32_t INTENCLR0 = 0xc60;
inline constexpr std::uint32_t OVSCLR0 = 0xc80;
inline constexpr std::uint32_t OVSSET0 = 0xcc0;
inline constexpr std::uint32_t CAPR = 0xd88;
inline constexpr std::uint32_t SCR = 0xdf8;
inline constexpr std::uint32_t CFGR = 0xe00;
inline constexpr std::uint32_t CR = 0xe04;
inline constexpr std::uint32_t IIDR = 0xe08;
inline constexpr std::uint32_t CEID0 = 0xe20;
inline constexpr std::uint32_t CEID1 = 0xe28;
inline constexpr std::uint32_t IRQ_CTRL = 0xe50;
inline constexpr std::uint32_t IRQ_CTRLACK = 0xe54;
inline constexpr std::uint32_t IRQ_CFG0 = 0xe58;
inline constexpr std::uint32_t IRQ_CFG1 = 0xe60;
inline constexpr std::uint32_t IRQ_CFG2 = 0xe64;
inline constexpr std::uint32_t IRQ_STATUS = 0xe68;
inline constexpr std::uint32_t AIDR = 0xe70;

/// What a counter counts, and for whom (10.5.2.2).
struct EVTYPER {
    using EVENT = field<0, 15, 0>;
    using FILTER_SID_SPAN = field<0, 29, 29>; ///< SMR holds a span of StreamIDs
    using FILTER_SEC_SID = field<0, 30, 30>;
    using OVFCAP = field<0, 31, 31>; ///< an overflow captures all counters
};

/// What the group can do (10.5.2.13).
struct CFGR_fields {
    using NCTR = field<0, 5, 0>;  ///< counters, minus one
    using SIZE = field<0, 13, 8>; ///< bits of a counter, minus one
    using RELOC_CTRS = field<0, 20, 20>;
    using MSI = field<0, 21, 21>;
    using CAPTURE = field<0, 22, 22>;
    using SID_FILTER_TYPE = field<0, 23, 23>; ///< one filter for all counters
};

/// Bit 0 of CR, CAPR, IRQ_CTRL and IRQ_STATUS.
struct CR_fields {
    using E = field<0, 0, 0>;
};
struct IRQ_CTRL_fields {
    using IRQEN = field<0, 0, 0>;
};
struct IRQ_STATUS_fields {
    using IRQ_ABT = field<0, 0, 0>;
};

/// Architected events (10.3).
enum class event : std::uint16_t {
    cycles = 0,                  ///< never filtered by StreamID
    transactions = 1,            ///< and translation requests
    tlb_misses = 2,              ///< of them, those that walked tables
    configuration_misses = 3,    ///< of them, those that fetched an STE or CD
    walk_accesses = 4,           ///< accesses to translation tables
    configuration_accesses = 5,  ///< accesses to stream and CD tables
    ats_requests = 6,            ///< ATS translation requests
    translated_transactions = 7, ///< ATS translated transactions that passed
};
inline constexpr unsigned event_count = 8;

// Golden words: what Linux's driver takes apart.
static_assert((CFGR_fields::NCTR::in_place(7) | CFGR_fields::SIZE::in_place(63)) == 0x3f07);
static_assert(CFGR_fields::SID_FILTER_TYPE::mask == 1U << 23 && CFGR_fields::MSI::mask == 1U << 21);

} // namespace vm_accel::inline v0::spec::pmcg
