/// Fields of the SMMUv3 registers (IHI 0070, 6.3), one struct per register.
///
/// Every field is bits of one word: `IDR1::SIDSIZE::of(value)`.
#pragma once

#include <vm_accel/core/field.hpp>

#include <cstdint>

namespace vm_accel::inline v0::spec {

/// What the implementation can do (6.3.1).
struct IDR0 {
    using S2P = field<0, 0, 0>; ///< stage 2
    using S1P = field<0, 1, 1>; ///< stage 1
    using TTF = field<0, 3, 2>; ///< table formats: bit 0 AArch32, bit 1 AArch64
    using COHACC = field<0, 4, 4>;
    using BTM = field<0, 5, 5>;
    using HTTU = field<0, 7, 6>; ///< 1 access flag, 2 access flag and dirty state
    using DORMHINT = field<0, 8, 8>;
    using Hyp = field<0, 9, 9>;
    using ATS = field<0, 10, 10>;
    using NS1ATS = field<0, 11, 11>;
    using ASID16 = field<0, 12, 12>;
    using MSI = field<0, 13, 13>;
    using SEV = field<0, 14, 14>;
    using ATOS = field<0, 15, 15>;
    using PRI = field<0, 16, 16>;
    using VMW = field<0, 17, 17>;
    using VMID16 = field<0, 18, 18>;
    using CD2L = field<0, 19, 19>;
    using VATOS = field<0, 20, 20>;
    using TTENDIAN = field<0, 22, 21>; ///< 0 both, 2 little-endian only, 3 big-endian only
    using ATSRECERR = field<0, 23, 23>;
    using STALL_MODEL = field<0, 25, 24>; ///< 0 stall and terminate, 1 terminate, 2 stall forced
    using TERM_MODEL = field<0, 26, 26>;
    using ST_LEVEL = field<0, 28, 27>; ///< 0 linear stream table only, 1 also two-level
    using RME_IMPL = field<0, 30, 30>;
};

/// Sizes, as log2 of entries or as bits (6.3.2).
struct IDR1 {
    using SIDSIZE = field<0, 5, 0>;
    using SSIDSIZE = field<0, 10, 6>;
    using PRIQS = field<0, 15, 11>;
    using EVENTQS = field<0, 20, 16>;
    using CMDQS = field<0, 25, 21>;
    using ATTR_PERMS_OVR = field<0, 26, 26>;
    using ATTR_TYPES_OVR = field<0, 27, 27>;
    using REL = field<0, 28, 28>;
    using QUEUES_PRESET = field<0, 29, 29>;
    using TABLES_PRESET = field<0, 30, 30>;
    using ECMDQ = field<0, 31, 31>;
};

/// The secure interface's (6.3.52, 6.3.53, 6.3.55); S_IDR0 has STALL_MODEL and MSI
/// where IDR0 has them.
struct S_IDR1 {
    using S_SIDSIZE = field<0, 5, 0>;
    using SEL2 = field<0, 29, 29>;
    using SECURE_IMPL = field<0, 31, 31>;
};
struct S_IDR3 {
    using SAMS = field<0, 6, 6>; ///< 1: ATC_INV and PRI_RESP are illegal in the secure queue
};
/// Invalidates everything of all states (6.3.62).
struct S_INIT {
    using INV_ALL = field<0, 0, 0>;
};

/// Where the VATOS page is (6.3.3).
struct IDR2 {
    using BA_VATOS = field<0, 9, 0>;
};

/// Further features (6.3.4).
struct IDR3 {
    using HAD = field<0, 2, 2>;
    using PBHA = field<0, 3, 3>;
    using XNX = field<0, 4, 4>;
    using PPS = field<0, 5, 5>;
    using MPAM = field<0, 7, 7>;
    using FWB = field<0, 8, 8>;
    using STT = field<0, 9, 9>;
    using RIL = field<0, 10, 10>;
    using BBML = field<0, 12, 11>;
    using E0PD = field<0, 13, 13>;
    using PTWNNC = field<0, 14, 14>;
    using DPT = field<0, 15, 15>;
    using PASIDTT = field<0, 16, 16>;
    using EPAN = field<0, 17, 17>;
};

/// Address sizes and granules (6.3.6).
struct IDR5 {
    using OAS = field<0, 2, 0>; ///< see output_address_bits()
    using GRAN4K = field<0, 4, 4>;
    using GRAN16K = field<0, 5, 5>;
    using GRAN64K = field<0, 6, 6>;
    using DS = field<0, 7, 7>;
    using D128 = field<0, 8, 8>;
    using VAX = field<0, 11, 10>; ///< 0: 48-bit VA per half, 1: 52-bit
    using STALL_MAX = field<0, 31, 16>;
};

/// Output address bits of an OAS, IPS or S2PS encoding; 0 for the reserved one.
[[nodiscard]] constexpr unsigned output_address_bits(std::uint64_t encoding) noexcept {
    constexpr unsigned bits[8] = {32, 36, 40, 42, 44, 48, 52, 0};
    return bits[encoding & 7];
}

/// Enhanced command queues (6.3.45).
struct IDR6 {
    using CMDQ_CONTROL_PAGE_LOG2NUMQ = field<0, 19, 16>;
    using CMDQ_CONTROL_PAGE_LOG2NUMP = field<0, 27, 24>;
};

/// Who made it (6.3.7).
struct IIDR {
    using Implementer = field<0, 11, 0>;
    using Revision = field<0, 15, 12>;
    using Variant = field<0, 19, 16>;
    using ProductID = field<0, 31, 20>;
};

/// Version of the architecture (6.3.8).
struct AIDR {
    using ArchMinorRev = field<0, 3, 0>; ///< 1 = SMMUv3.1
    using ArchMajorRev = field<0, 7, 4>; ///< 0 = SMMUv3
};

/// Enables (6.3.9); CR0ACK has the same layout.
struct CR0 {
    using SMMUEN = field<0, 0, 0>;
    using PRIQEN = field<0, 1, 1>;
    using EVENTQEN = field<0, 2, 2>;
    using CMDQEN = field<0, 3, 3>;
    using ATSCHK = field<0, 4, 4>;
    using SIF = field<0, 5, 5>; ///< S_CR0 (6.3.57): secure fetches of instructions only
    using VMW = field<0, 8, 6>;
    using DPT_WALK_EN = field<0, 10, 10>;
};
using CR0ACK = CR0;

/// Memory attributes of the SMMU's own accesses (6.3.11).
struct CR1 {
    using QUEUE_IC = field<0, 1, 0>;
    using QUEUE_OC = field<0, 3, 2>;
    using QUEUE_SH = field<0, 5, 4>;
    using TABLE_IC = field<0, 7, 6>;
    using TABLE_OC = field<0, 9, 8>;
    using TABLE_SH = field<0, 11, 10>;
};

/// Further controls (6.3.12).
struct CR2 {
    using E2H = field<0, 0, 0>;
    using RECINVSID = field<0, 1, 1>; ///< record C_BAD_STREAMID
    using PTM = field<0, 2, 2>;       ///< ignore broadcast TLB maintenance
    using REC_CFG_ATS = field<0, 3, 3>;
};

/// 6.3.13
struct STATUSR {
    using DORMANT = field<0, 0, 0>;
};

/// What happens to transactions while SMMUEN is 0 (6.3.14; of the secure
/// interface: 6.3.63).
struct GBPA {
    using MemAttr = field<0, 3, 0>;
    using MTCFG = field<0, 4, 4>;
    using ALLOCCFG = field<0, 11, 8>;
    using SHCFG = field<0, 13, 12>;
    using NSCFG = field<0, 15, 14>; ///< S_GBPA: 3 non-secure
    using PRIVCFG = field<0, 17, 16>;
    using INSTCFG = field<0, 19, 18>;
    using ABORT = field<0, 20, 20>;
    using UPDATE = field<0, 31, 31>;
};

/// Interrupt enables (6.3.16); IRQ_CTRLACK has the same layout.
struct IRQ_CTRL {
    using GERROR_IRQEN = field<0, 0, 0>;
    using PRIQ_IRQEN = field<0, 1, 1>;
    using EVENTQ_IRQEN = field<0, 2, 2>;
};
using IRQ_CTRLACK = IRQ_CTRL;

/// Global errors (6.3.19). An error is active while its bit differs between
/// GERROR (toggled by the SMMU) and GERRORN (toggled by software).
struct GERROR {
    using CMDQ_ERR = field<0, 0, 0>;
    using EVENTQ_ABT_ERR = field<0, 2, 2>;
    using PRIQ_ABT_ERR = field<0, 3, 3>;
    using MSI_CMDQ_ABT_ERR = field<0, 4, 4>;
    using MSI_EVENTQ_ABT_ERR = field<0, 5, 5>;
    using MSI_PRIQ_ABT_ERR = field<0, 6, 6>;
    using MSI_GERROR_ABT_ERR = field<0, 7, 7>;
    using SFM_ERR = field<0, 8, 8>;
    using CMDQP_ERR = field<0, 9, 9>;
    using DPT_ERR = field<0, 10, 10>;
};
using GERRORN = GERROR;

/// Address, payload and attributes of an MSI; the same in GERROR_IRQ_CFG0-2,
/// EVENTQ_IRQ_CFG0-2 and PRIQ_IRQ_CFG0-2 (6.3.21 to 6.3.23, 6.3.30 to 6.3.36).
struct IRQ_CFG0 {
    using ADDR = field<0, 55, 2>; ///< address bits [55:2]; 0 = no MSI
};
struct IRQ_CFG1 {
    using DATA = field<0, 31, 0>;
};
struct IRQ_CFG2 {
    using MemAttr = field<0, 3, 0>;
    using SH = field<0, 5, 4>;
    using LO = field<0, 31, 31>; ///< PRIQ_IRQ_CFG2 only
};

/// Stream table base (6.3.24).
struct STRTAB_BASE {
    using ADDR = field<0, 55, 6>; ///< address bits [55:6]
    using RA = field<0, 62, 62>;
};

/// Shape of the stream table (6.3.25).
struct STRTAB_BASE_CFG {
    using LOG2SIZE = field<0, 5, 0>; ///< log2 of the StreamIDs covered
    using SPLIT = field<0, 10, 6>;   ///< StreamID bits that index level 2: 6, 8 or 10
    using FMT = field<0, 17, 16>;
    static constexpr std::uint64_t FMT_linear = 0;
    static constexpr std::uint64_t FMT_2lvl = 1;
};

/// Queue bases share a layout (6.3.26, 6.3.29, 6.3.33).
struct CMDQ_BASE {
    using LOG2SIZE = field<0, 4, 0>; ///< log2 of entries
    using ADDR = field<0, 55, 5>;    ///< address bits [55:5]
    using RA = field<0, 62, 62>;
};
struct EVENTQ_BASE {
    using LOG2SIZE = field<0, 4, 0>;
    using ADDR = field<0, 55, 5>;
    using WA = field<0, 62, 62>;
};
using PRIQ_BASE = EVENTQ_BASE;

/// Queue indices: the index is bits [LOG2SIZE-1:0], the wrap bit is bit
/// LOG2SIZE, so at most 19 + 1 bits are in use (6.3.27, 6.3.28).
struct CMDQ_PROD {
    using WR = field<0, 19, 0>;
};
struct CMDQ_CONS {
    using RD = field<0, 19, 0>;
    using ERR = field<0, 30, 24>; ///< a CERROR code, valid while GERROR.CMDQ_ERR is active
};
struct EVENTQ_PROD {
    using WR = field<0, 19, 0>;
    using OVFLG = field<0, 31, 31>; ///< differs from OVACKFLG: records were lost
};
struct EVENTQ_CONS {
    using RD = field<0, 19, 0>;
    using OVACKFLG = field<0, 31, 31>;
};
using PRIQ_PROD = EVENTQ_PROD;
using PRIQ_CONS = EVENTQ_CONS;

/// Address translation on request of software (6.3.37 to 6.3.40).
struct GATOS_CTRL {
    using RUN = field<0, 0, 0>;
};
struct GATOS_SID {
    using STREAMID = field<0, 31, 0>;
    using SUBSTREAMID = field<0, 51, 32>;
    using SSID_VALID = field<0, 52, 52>;
};
struct GATOS_ADDR {
    using HTTUI = field<0, 6, 6>;
    using InD = field<0, 7, 7>;
    using RnW = field<0, 8, 8>;
    using PnU = field<0, 9, 9>;
    using TYPE = field<0, 11, 10>;
    using ADDR = field<0, 63, 12>;
};
struct GATOS_PAR {
    using FAULT = field<0, 0, 0>;
    using REASON = field<0, 2, 1>;     ///< FAULT == 1
    using FAULTCODE = field<0, 11, 4>; ///< FAULT == 1
    using SH = field<0, 9, 8>;         ///< FAULT == 0
    using Size = field<0, 11, 11>;     ///< FAULT == 0
    using ADDR = field<0, 51, 12>;
    using ATTR = field<0, 63, 56>; ///< FAULT == 0
};

/// Largest PARTID and PMG (6.3.41).
struct MPAMIDR {
    using PARTID_MAX = field<0, 15, 0>;
    using PMG_MAX = field<0, 23, 16>;
};
/// PARTID and PMG of the SMMU's own accesses (6.3.42), and of transactions
/// while SMMUEN is 0 (6.3.43). They change like GBPA: with Update set.
struct GMPAM {
    using PARTID = field<0, 15, 0>;
    using PMG = field<0, 23, 16>;
    using UPDATE = field<0, 31, 31>;
};
using GBPMPAM = GMPAM;

/// Where a page of enhanced command queues is, from the start of page 0
/// (6.3.49); CFG.EN and STATUS.ENACK read as 1 (6.3.50, 6.3.51).
struct CMDQ_CONTROL_PAGE_BASE {
    using PRESET = field<0, 0, 0>; ///< 1: the queues' controls are registers
    using CMDQGS = field<0, 2, 1>; ///< 1: the page is 64 KiB
    using ADDR = field<0, 55, 16>;
};
struct CMDQ_CONTROL_PAGE_CFG {
    using EN = field<0, 0, 0>;
};
struct CMDQ_CONTROL_PAGE_STATUS {
    using ENACK = field<0, 0, 0>;
};
/// Indices of an enhanced command queue (6.3.108, 6.3.109). An error is active
/// while ERR and ERRACK differ.
struct ECMDQ_PROD {
    using WR = field<0, 19, 0>;
    using ERRACK = field<0, 23, 23>;
    using EN = field<0, 31, 31>;
};
struct ECMDQ_CONS {
    using RD = field<0, 19, 0>;
    using ERR = field<0, 23, 23>;
    using ERR_REASON = field<0, 26, 24>; ///< a CERROR code
    using ENACK = field<0, 31, 31>;
};

// Golden words: what Linux writes when it brings an SMMU up.
static_assert((CR0::CMDQEN::mask | CR0::EVENTQEN::mask | CR0::SMMUEN::mask) == 0xd);
static_assert((CR2::PTM::mask | CR2::RECINVSID::mask) == 0x6);
static_assert((GBPA::UPDATE::mask | GBPA::ABORT::mask) == 0x8010'0000);
static_assert((STRTAB_BASE_CFG::FMT::in_place(STRTAB_BASE_CFG::FMT_2lvl) |
               STRTAB_BASE_CFG::SPLIT::in_place(8) | STRTAB_BASE_CFG::LOG2SIZE::in_place(16)) ==
              0x1'0210);

} // namespace vm_accel::inline v0::spec
