/// The architecture's layouts, checked against words that Linux and a running
/// model exchanged, and the register table's check against tables that are
/// wrong.
#include <vm_accel/spec/cd.hpp>
#include <vm_accel/spec/commands.hpp>
#include <vm_accel/spec/descriptors.hpp>
#include <vm_accel/spec/events.hpp>
#include <vm_accel/spec/registers.hpp>
#include <vm_accel/spec/ste.hpp>

#include <array>
#include <type_traits>

namespace {

using namespace vm_accel;
using namespace vm_accel::spec;

// Structures are plain bytes of the architecture's size.
static_assert(sizeof(ste) == 64 && sizeof(cd) == 64 && sizeof(command) == 16 &&
              sizeof(event_record) == 32);
static_assert(std::is_trivially_copyable_v<ste> && std::is_trivially_copyable_v<cd> &&
              std::is_trivially_copyable_v<command> && std::is_trivially_copyable_v<event_record>);

// No two fields of one structure share a bit, save where the architecture has
// alternatives (given as one of them).
template <class... Fields>
constexpr bool are_disjoint() {
    std::array<std::uint64_t, 8> seen{};
    bool disjoint = true;
    const auto add = [&](unsigned word, std::uint64_t mask) {
        disjoint = disjoint && (seen[word] & mask) == 0;
        seen[word] |= mask;
    };
    (add(Fields::word, Fields::mask), ...);
    return disjoint;
}
static_assert(!are_disjoint<field<0, 3, 1>, field<0, 1, 0>>());
static_assert(are_disjoint<field<0, 3, 1>, field<1, 3, 1>>());

static_assert(are_disjoint<ste::V, ste::Config, ste::S1Fmt, ste::S1ContextPtr, ste::S1CDMax>());
static_assert(are_disjoint<ste::S1DSS, ste::S1CIR, ste::S1COR, ste::S1CSH, ste::S2HWU59,
                           ste::S2HWU60, ste::S2HWU61, ste::S2HWU62, ste::DRE, ste::CONT, ste::DCP,
                           ste::PPAR, ste::MEV, ste::S1PIE, ste::S2FWB, ste::S1MPAM, ste::S1STALLD,
                           ste::EATS, ste::STRW, ste::MemAttr, ste::MTCFG, ste::ALLOCCFG,
                           ste::SHCFG, ste::NSCFG, ste::PRIVCFG, ste::INSTCFG>());
static_assert(
    are_disjoint<ste::S2VMID, ste::S2T0SZ, ste::S2SL0, ste::S2IR0, ste::S2OR0, ste::S2SH0,
                 ste::S2TG, ste::S2PS, ste::S2AA64, ste::S2ENDI, ste::S2AFFD, ste::S2PTW, ste::S2HD,
                 ste::S2HA, ste::S2S, ste::S2R, ste::S2HAFT, ste::S2PIE, ste::S2POE,
                 ste::DPT_VMATCH, ste::S2NSW, ste::S2NSA, ste::S2SL0_2, ste::S2DS, ste::S2TTB,
                 ste::S2SKL, ste::PARTID, ste::S_S2T0SZ, ste::S_S2SL0, ste::S_S2TG, ste::MECID,
                 ste::PMG, ste::MPAM_NS, ste::AssuredOnly, ste::TL0, ste::TL1, ste::VMSPtr,
                 ste::S2SW, ste::S2SA, ste::S_S2SL0_2, ste::S_S2TTB, ste::S_S2SKL>());
static_assert(are_disjoint<cd::T0SZ, cd::TG0, cd::IR0, cd::OR0, cd::SH0, cd::EPD0, cd::ENDI,
                           cd::T1SZ, cd::TG1, cd::IR1, cd::OR1, cd::SH1, cd::EPD1, cd::V, cd::IPS,
                           cd::AFFD, cd::WXN, cd::UWXN, cd::TBI0, cd::TBI1, cd::PAN, cd::AA64,
                           cd::HD, cd::HA, cd::S, cd::R, cd::A, cd::ASET, cd::ASID>());
// Word 0 of a CD has no reserved bit.
static_assert((cd::T0SZ::mask | cd::TG0::mask | cd::IR0::mask | cd::OR0::mask | cd::SH0::mask |
               cd::EPD0::mask | cd::ENDI::mask | cd::T1SZ::mask | cd::TG1::mask | cd::IR1::mask |
               cd::OR1::mask | cd::SH1::mask | cd::EPD1::mask | cd::V::mask | cd::IPS::mask |
               cd::AFFD::mask | cd::WXN::mask | cd::UWXN::mask | cd::TBI0::mask | cd::TBI1::mask |
               cd::PAN::mask | cd::AA64::mask | cd::HD::mask | cd::HA::mask | cd::S::mask |
               cd::R::mask | cd::A::mask | cd::ASET::mask | cd::ASID::mask) == ~std::uint64_t{0});
static_assert(are_disjoint<cd::NSCFG0, cd::HAD0, cd::E0PD0, cd::HAFT, cd::TTB0, cd::PnCH, cd::EPAN,
                           cd::HWU059, cd::HWU060, cd::HWU061, cd::HWU062, cd::NSCFG1, cd::HAD1,
                           cd::E0PD1, cd::AIE, cd::TTB1, cd::DS, cd::PIE, cd::HWU159, cd::HWU160,
                           cd::HWU161, cd::HWU162, cd::MAIR, cd::AMAIR, cd::PARTID, cd::PMG>());
static_assert(
    are_disjoint<event_record::Type, event_record::SSV, event_record::SSID, event_record::StreamID,
                 event_record::STAG, event_record::GPCF, event_record::STALL, event_record::PnU,
                 event_record::InD, event_record::RnW, event_record::NSIPA, event_record::S2,
                 event_record::CLASS, event_record::TTRnW, event_record::InputAddr,
                 event_record::IPA>());

// IDR0 to IDR5 of a model that Linux drove: stage 1 only, two-level tables,
// 16-bit StreamIDs, 2^19 entries in both queues, 44-bit output, range
// invalidation, no stall.
static_assert(IDR0::S1P::of(0x0d40'101a) == 1 && IDR0::S2P::of(0x0d40'101a) == 0);
static_assert(IDR0::TTF::of(0x0d40'101a) == 2 && IDR0::COHACC::of(0x0d40'101a) == 1);
static_assert(IDR0::ASID16::of(0x0d40'101a) == 1 && IDR0::MSI::of(0x0d40'101a) == 0);
static_assert(IDR0::TTENDIAN::of(0x0d40'101a) == 2 && IDR0::STALL_MODEL::of(0x0d40'101a) == 1);
static_assert(IDR0::TERM_MODEL::of(0x0d40'101a) == 1 && IDR0::ST_LEVEL::of(0x0d40'101a) == 1);
static_assert(IDR1::SIDSIZE::of(0x0273'0010) == 16 && IDR1::SSIDSIZE::of(0x0273'0010) == 0);
static_assert(IDR1::EVENTQS::of(0x0273'0010) == 19 && IDR1::CMDQS::of(0x0273'0010) == 19);
static_assert(IDR3::HAD::of(0x1404) == 1 && IDR3::RIL::of(0x1404) == 1 &&
              IDR3::BBML::of(0x1404) == 2);
static_assert(output_address_bits(IDR5::OAS::of(0x74)) == 44 && IDR5::GRAN4K::of(0x74) == 1 &&
              IDR5::GRAN16K::of(0x74) == 1 && IDR5::GRAN64K::of(0x74) == 1);

// Registers as Linux wrote them in that session.
static_assert(STRTAB_BASE::RA::of(0x4000'0000'4857'e000) == 1 &&
              (0x4000'0000'4857'e000 & STRTAB_BASE::ADDR::mask) == 0x4857'e000);
static_assert(STRTAB_BASE_CFG::FMT::of(0x1'0210) == STRTAB_BASE_CFG::FMT_2lvl &&
              STRTAB_BASE_CFG::SPLIT::of(0x1'0210) == 8 &&
              STRTAB_BASE_CFG::LOG2SIZE::of(0x1'0210) == 16);
static_assert(CMDQ_BASE::LOG2SIZE::of(0x4000'0000'5bb0'0010) == 16 &&
              (0x4000'0000'5bb0'0010 & CMDQ_BASE::ADDR::mask) == 0x5bb0'0000);
static_assert(EVENTQ_BASE::LOG2SIZE::of(0x4000'0000'5bc0'000f) == 15);
static_assert(CR1::TABLE_SH::of(0xd75) == 3 && CR1::QUEUE_IC::of(0xd75) == 1);
static_assert(IRQ_CTRL::EVENTQ_IRQEN::of(5) == 1 && IRQ_CTRL::GERROR_IRQEN::of(5) == 1 &&
              IRQ_CTRL::PRIQ_IRQEN::of(5) == 0);
static_assert(CMDQ_CONS::ERR::in_place(CERROR_ILL) == 0x0100'0000);

// The session's CD, and a page of it.
static_assert(cd::IPS::of(0x0001'e204'c000'3510) == 4 && cd::ASID::of(0x0001'e204'c000'3510) == 1);
static_assert(stage1_leaf::AF::of(0x4313'6f47) == 1 && stage1_leaf::nG::of(0x4313'6f47) == 1 &&
              access_permission::read_only::of(0x4313'6f47) == 0 &&
              (0x4313'6f47 & output_address_mask(granule::size_4k, 3)) == 0x4313'6000);
// An MSI doorbell of it: device memory, never executable.
static_assert(stage1_leaf::UXN::of(0x0060'0000'0809'0e4b) == 1 &&
              stage1_leaf::PXN::of(0x0060'0000'0809'0e4b) == 1 &&
              stage1_leaf::AttrIndx::of(0x0060'0000'0809'0e4b) == 2);

// The rows, and that the check rejects what it must.
static_assert(registers.size() == 63);
static_assert(find_register(reg::IDR0)->name == "IDR0" &&
              find_register(reg::PRIQ_CONS)->name == "PRIQ_CONS");
static_assert(find_register(reg::EVENTQ_PROD)->offset == 0x100a8 && find_register(0xa8) == nullptr);
static_assert(find_register(reg::STRTAB_BASE + 7)->width == 8 && find_register(0x8c) == nullptr);
static_assert(find_register(mmio_size) == nullptr && find_register(~std::uint64_t{0}) == nullptr);
constexpr auto ro = register_access::read_only;
static_assert(!is_register_map(std::array<register_row, 2>{{{4, 4, ro, "A"}, {0, 4, ro, "B"}}}));
static_assert(!is_register_map(std::array<register_row, 2>{{{0, 8, ro, "A"}, {4, 4, ro, "B"}}}));
static_assert(!is_register_map(std::array<register_row, 1>{{{4, 8, ro, "misaligned"}}}));
static_assert(!is_register_map(std::array<register_row, 1>{{{4, 2, ro, "narrow"}}}));
static_assert(!is_register_map(std::array<register_row, 1>{{{mmio_size, 4, ro, "outside"}}}));
static_assert(!is_register_map(std::array<register_row, 1>{{{4, 4, ro, ""}}}));

// Commands that the session's queue held.
static_assert(has_words(cmd_cfgi_ste(stream_id{8}, true), 0x8'0000'0003, 1));
static_assert(has_words(cmd_prefetch_config(stream_id{0x10}), 0x10'0000'0001, 0));
static_assert(has_words(tlbi_nh_va(vmid{0}, asid{2}, iova{0xfffa'0000}, true,
                                   {.num = 0, .scale = 4, .tg = 1, .ttl = 3}),
                        0x0002'0000'0040'0012, 0xfffa'0701));
static_assert(opcode_of(cmd_cfgi_all()) == opcode::CMD_CFGI_STE_RANGE);

// Fault events as the session's model would have written them.
static_assert(static_cast<unsigned>(event_id::F_TRANSLATION) == 0x10 &&
              static_cast<unsigned>(event_id::F_PERMISSION) == 0x13 &&
              static_cast<unsigned>(event_id::F_TLB_CONFLICT) == 0x20 &&
              static_cast<unsigned>(event_id::C_BAD_CD) == 0x0a);
static_assert(name_of(event_id::C_BAD_STREAMID) == "C_BAD_STREAMID" &&
              name_of(event_id{0xff}) == "unknown");

} // namespace
