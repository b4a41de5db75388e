/// ID register values that follow from the features, and from nothing else.
#pragma once

#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/spec/registers.hpp>

#include <cstdint>
#include <optional>

namespace vm_accel::inline v0 {

/// What a device with features F says of itself (IHI 0070, 6.3.1 to 6.3.8,
/// 6.3.41, 6.3.45). Never advertised, because no hypervisor can do it: BTM (it
/// does not see what CPUs broadcast) and SEV. Not implemented: VMW, VATOS, RME,
/// AArch32 tables, preset tables and queues, PBHA, DPT, 128-bit descriptors.
template <smmu_features F>
struct id_registers {
    [[nodiscard]] static constexpr std::uint64_t when(bool on, std::uint64_t mask) noexcept {
        return on ? mask : 0;
    }

    // Mixed-endian is encoded as 0, little-endian only as 2; stalls and
    // terminations as 0, terminations only as 1.
    static constexpr std::uint32_t IDR0 = static_cast<std::uint32_t>(
        when(F.stage2, spec::IDR0::S2P::mask) | when(F.stage1, spec::IDR0::S1P::mask) |
        spec::IDR0::TTF::in_place(0b10) | when(F.coherent, spec::IDR0::COHACC::mask) |
        spec::IDR0::HTTU::in_place(F.httu) |
        when(F.hyp && F.stage1 && F.stage2, spec::IDR0::Hyp::mask) |
        when(F.ats, spec::IDR0::ATS::mask) | when(F.asid16, spec::IDR0::ASID16::mask) |
        when(F.msi, spec::IDR0::MSI::mask) | when(F.atos, spec::IDR0::ATOS::mask) |
        when(F.pri, spec::IDR0::PRI::mask) | when(F.vmid16, spec::IDR0::VMID16::mask) |
        when(F.two_level_cd_table, spec::IDR0::CD2L::mask) |
        spec::IDR0::TTENDIAN::in_place(F.mixed_endian ? 0b00 : 0b10) |
        when(F.ats, spec::IDR0::ATSRECERR::mask) |
        spec::IDR0::STALL_MODEL::in_place(F.stalls ? 0b00 : 0b01) |
        when(!F.quiet_termination, spec::IDR0::TERM_MODEL::mask) |
        spec::IDR0::ST_LEVEL::in_place(F.two_level_stream_table ? 1 : 0));

    static constexpr std::uint32_t IDR1 = static_cast<std::uint32_t>(
        spec::IDR1::SIDSIZE::in_place(F.stream_bits) |
        spec::IDR1::SSIDSIZE::in_place(F.substream_bits) |
        spec::IDR1::PRIQS::in_place(F.pri ? F.page_request_queue_log2 : 0) |
        spec::IDR1::EVENTQS::in_place(F.event_queue_log2) |
        spec::IDR1::CMDQS::in_place(F.command_queue_log2) |
        when(F.permission_overrides, spec::IDR1::ATTR_PERMS_OVR::mask) |
        when(F.type_overrides, spec::IDR1::ATTR_TYPES_OVR::mask) |
        when(F.ecmdq_log2 != 0, spec::IDR1::ECMDQ::mask));

    static constexpr std::uint32_t IDR2 = 0; ///< no VATOS page

    /// The minor release of which everything is there that a release obliges to
    /// (2.3 to 2.5): 3.1 has XNX and HAD, 3.2 FWB, range invalidation, BBM level 1,
    /// and EL2 where there are both stages, 3.3 E0PD and PTWNNC. What a later
    /// release brings may be there as well, as in other models of this device.
    [[nodiscard]] static constexpr unsigned release() noexcept {
        const bool of1 = (!F.stage1 || F.hierarchical_attribute_disable) && (!F.stage2 || F.xnx);
        const bool of2 = of1 && F.fwb && F.range_invalidation && F.bbml >= 1 &&
                         (F.hyp || !F.stage1 || !F.stage2);
        const bool of3 = of2 && F.e0pd;
        return of3 ? 3 : of2 ? 2 : of1 ? 1 : 0;
    }

    // PPS is 0: STE.PPAR counts in answers to an overflow (8.1). PTWNNC: nobody can
    // tell table walks to Device memory from non-cacheable ones here, so that the
    // release decides.
    static constexpr std::uint32_t IDR3 = static_cast<std::uint32_t>(
        when(F.hierarchical_attribute_disable, spec::IDR3::HAD::mask) |
        when(F.xnx, spec::IDR3::XNX::mask) | when(F.mpam, spec::IDR3::MPAM::mask) |
        when(F.stt, spec::IDR3::STT::mask) | when(F.range_invalidation, spec::IDR3::RIL::mask) |
        spec::IDR3::BBML::in_place(F.bbml) | when(F.e0pd, spec::IDR3::E0PD::mask) |
        when(F.fwb, spec::IDR3::FWB::mask) | when(F.epan, spec::IDR3::EPAN::mask) |
        when(release() >= 3 && F.stage2, spec::IDR3::PTWNNC::mask));

    static constexpr std::uint32_t IDR4 = 0; ///< implementation defined: nothing

    [[nodiscard]] static constexpr std::uint64_t oas() noexcept {
        std::uint64_t encoding = 0;
        while (spec::output_address_bits(encoding) < F.output_bits)
            ++encoding;
        return encoding;
    }
    // DS implies VAX: 52-bit addresses are 52-bit input addresses too.
    static constexpr std::uint32_t IDR5 = static_cast<std::uint32_t>(
        spec::IDR5::OAS::in_place(oas()) | when(F.granule_4k, spec::IDR5::GRAN4K::mask) |
        when(F.granule_16k, spec::IDR5::GRAN16K::mask) |
        when(F.granule_64k, spec::IDR5::GRAN64K::mask) | when(F.ds, spec::IDR5::DS::mask) |
        spec::IDR5::VAX::in_place(F.vax52 || F.ds ? 1 : 0) |
        spec::IDR5::STALL_MAX::in_place(F.stalls ? F.stall_max : 0));

    /// One page of 2^ecmdq_log2 queues.
    static constexpr std::uint32_t IDR6 =
        static_cast<std::uint32_t>(spec::IDR6::CMDQ_CONTROL_PAGE_LOG2NUMQ::in_place(F.ecmdq_log2) |
                                   spec::IDR6::CMDQ_CONTROL_PAGE_LOG2NUMP::in_place(0));

    /// No one's product: the implementer's code is 0.
    static constexpr std::uint32_t IIDR = 0;

    static constexpr std::uint32_t AIDR =
        static_cast<std::uint32_t>(spec::AIDR::ArchMinorRev::in_place(release()));

    /// Largest PARTID and PMG that can be configured.
    static constexpr std::uint32_t MPAMIDR =
        static_cast<std::uint32_t>(when(F.mpam, spec::MPAMIDR::PARTID_MAX::in_place(0xff) |
                                                    spec::MPAMIDR::PMG_MAX::in_place(0xff)));

    /// Where the page of enhanced command queues is: after page 1, in registers.
    static constexpr std::uint64_t CMDQ_CONTROL_PAGE_BASE =
        when(F.ecmdq_log2 != 0, spec::mmio_size | spec::CMDQ_CONTROL_PAGE_BASE::PRESET::mask |
                                    spec::CMDQ_CONTROL_PAGE_BASE::CMDQGS::in_place(1));

    /// The secure interface's, whose offsets are counted from where it begins. It
    /// has no second stage, no stalls and nothing to do with ATS (6.3.52 to 6.3.56).
    [[nodiscard]] static constexpr std::optional<std::uint64_t>
    secure_at(std::uint32_t offset) noexcept {
        namespace reg = spec::reg;
        switch (offset) {
        case reg::IDR0:
            return spec::IDR0::STALL_MODEL::in_place(0b01) | when(F.msi, spec::IDR0::MSI::mask);
        case reg::IDR1:
            return spec::S_IDR1::SECURE_IMPL::mask |
                   spec::S_IDR1::S_SIDSIZE::in_place(F.stream_bits);
        case reg::IDR3:
            return spec::S_IDR3::SAMS::mask;
        case reg::IDR2:
        case reg::IDR4:
        case reg::IDR5:
        case reg::IDR6:
        case reg::IIDR:
        case reg::AIDR:
        case reg::MPAMIDR:
            return 0;
        default:
            return std::nullopt;
        }
    }

    /// The one at that offset in page 0; nullopt = another register. PIDR and
    /// CIDR are not among them: who made it is nobody.
    [[nodiscard]] static constexpr std::optional<std::uint64_t> at(std::uint32_t offset) noexcept {
        namespace reg = spec::reg;
        if constexpr (F.state == security_state::secure) return secure_at(offset);
        switch (offset) {
        case reg::IDR0:
            return IDR0;
        case reg::IDR1:
            return IDR1;
        case reg::IDR2:
            return IDR2;
        case reg::IDR3:
            return IDR3;
        case reg::IDR4:
            return IDR4;
        case reg::IDR5:
            return IDR5;
        case reg::IDR6:
            return IDR6;
        case reg::IIDR:
            return IIDR;
        case reg::AIDR:
            return AIDR;
        case reg::MPAMIDR:
            return MPAMIDR;
        case reg::CMDQ_CONTROL_PAGE_BASE0:
            return CMDQ_CONTROL_PAGE_BASE;
        case reg::CMDQ_CONTROL_PAGE_CFG0:    // EN
        case reg::CMDQ_CONTROL_PAGE_STATUS0: // ENACK
            return F.ecmdq_log2 != 0 ? 1 : 0;
        default:
            return std::nullopt;
        }
    }
};

static_assert(id_registers<stage1_features>::IDR0 == 0x0d40'101a);
static_assert(id_registers<stage1_features>::IDR1 == 0x0273'0010);
static_assert(id_registers<stage1_features>::IDR3 == 0x404);
static_assert(id_registers<stage1_features>::IDR5 == 0x14);

static_assert(id_registers<full_features>::IDR0 == 0x088d'b69b);
static_assert(id_registers<full_features>::IDR1 == 0x8e73'9d20);
static_assert(id_registers<full_features>::IDR3 == 0x0002'7794);
static_assert(id_registers<full_features>::IDR5 == 0x0040'04f6);
static_assert(id_registers<full_features>::IDR6 == 0x0002'0000);

} // namespace vm_accel::inline v0
