/// ID register values that follow from the features, and from nothing else.
#pragma once

#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/spec/register_fields.hpp>

#include <cstdint>

namespace vm_accel::inline v0 {

/// IDR0 to IDR5 and AIDR of a device with features F (IHI 0070, 6.3.1 to 6.3.6).
template <smmu_features F>
struct id_registers {
    [[nodiscard]] static constexpr std::uint64_t when(bool on, std::uint64_t mask) noexcept {
        return on ? mask : 0;
    }

    static constexpr std::uint32_t IDR0 = static_cast<std::uint32_t>(
        when(F.stage1, spec::IDR0::S1P::mask) | when(F.stage2, spec::IDR0::S2P::mask) |
        spec::IDR0::TTF::in_place(0b10) | when(F.coherent, spec::IDR0::COHACC::mask) |
        when(F.hyp, spec::IDR0::Hyp::mask) | when(F.asid16, spec::IDR0::ASID16::mask) |
        when(F.vmid16, spec::IDR0::VMID16::mask) | spec::IDR0::TTENDIAN::in_place(0b10) |
        spec::IDR0::STALL_MODEL::in_place(0b01) | spec::IDR0::TERM_MODEL::mask |
        spec::IDR0::ST_LEVEL::in_place(F.two_level_stream_table ? 1 : 0));

    static constexpr std::uint32_t IDR1 =
        static_cast<std::uint32_t>(spec::IDR1::SIDSIZE::in_place(F.stream_bits) |
                                   spec::IDR1::SSIDSIZE::in_place(F.substream_bits) |
                                   spec::IDR1::EVENTQS::in_place(F.event_queue_log2) |
                                   spec::IDR1::CMDQS::in_place(F.command_queue_log2));

    static constexpr std::uint32_t IDR3 =
        static_cast<std::uint32_t>(when(F.hierarchical_attribute_disable, spec::IDR3::HAD::mask) |
                                   when(F.range_invalidation, spec::IDR3::RIL::mask));

    [[nodiscard]] static constexpr std::uint64_t oas() noexcept {
        std::uint64_t encoding = 0;
        while (spec::output_address_bits(encoding) < F.output_bits)
            ++encoding;
        return encoding;
    }
    static constexpr std::uint32_t IDR5 = static_cast<std::uint32_t>(
        spec::IDR5::OAS::in_place(oas()) | when(F.granule_4k, spec::IDR5::GRAN4K::mask) |
        when(F.granule_16k, spec::IDR5::GRAN16K::mask) |
        when(F.granule_64k, spec::IDR5::GRAN64K::mask));

    /// SMMUv3.2: the release that has range invalidation.
    static constexpr std::uint32_t AIDR = static_cast<std::uint32_t>(
        spec::AIDR::ArchMinorRev::in_place(F.range_invalidation ? 2 : 1));
};

static_assert(id_registers<stage1_features>::IDR0 == 0x0d40'101a);
static_assert(id_registers<stage1_features>::IDR1 == 0x0273'0010);
static_assert(id_registers<stage1_features>::IDR5 == 0x14);

} // namespace vm_accel::inline v0
