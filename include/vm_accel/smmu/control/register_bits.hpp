/// Which bits of registers are kept, by what is implemented.
#pragma once

#include <vm_accel/core/security_state.hpp>
#include <vm_accel/smmu/control/id_registers.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/spec/register_fields.hpp>

#include <cstdint>

namespace vm_accel::inline v0 {

template <smmu_features F>
struct register_bits {
    static constexpr bool secure = F.state == security_state::secure;

    static constexpr auto cr0 = static_cast<std::uint32_t>(
        spec::CR0::SMMUEN::mask | spec::CR0::EVENTQEN::mask | spec::CR0::CMDQEN::mask |
        (F.pri ? spec::CR0::PRIQEN::mask : 0) | (F.ats ? spec::CR0::ATSCHK::mask : 0) |
        (secure ? spec::CR0::SIF::mask : 0));
    /// PTM is stored, although there is no broadcast maintenance to ignore; not by
    /// the secure interface, which has it with BTM only.
    static constexpr auto cr2 = static_cast<std::uint32_t>(
        spec::CR2::RECINVSID::mask | (secure ? 0 : spec::CR2::PTM::mask) |
        (id_registers<F>::IDR0 & spec::IDR0::Hyp::mask ? spec::CR2::E2H::mask : 0) |
        (F.ats ? spec::CR2::REC_CFG_ATS::mask : 0));
    static constexpr auto gbpa =
        static_cast<std::uint32_t>(0x801f'3f1f | (secure ? spec::GBPA::NSCFG::mask : 0));
    /// What of CR0 decoded configurations depend on.
    static constexpr auto streams = static_cast<std::uint32_t>(
        spec::CR0::SMMUEN::mask | spec::CR0::ATSCHK::mask | (secure ? spec::CR0::SIF::mask : 0));
    static constexpr std::uint64_t stream_table =
        spec::STRTAB_BASE::ADDR::mask | spec::STRTAB_BASE::RA::mask;
};

} // namespace vm_accel::inline v0
