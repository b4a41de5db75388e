/// Where a vCPU of the Windows Hypervisor Platform starts: real mode and 64-bit mode.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/hypervisor/whpx_vcpu.hpp>
#include <vm_accel/os/whpx_abi.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace vm_accel::inline v0::whpx_x86_64 {

using os::whpx_abi::reg;
using os::whpx_abi::segment;

/// Registers and segments that are set at once, so that the platform never sees a half
/// of a processor mode.
class start_values {
public:
    void set(reg which, std::uint64_t value) noexcept { add(which, {value, 0}); }
    void set(reg which, const segment& value) noexcept {
        add(which, os::whpx_abi::value_of(value));
    }
    template <class Calls>
    [[nodiscard]] result<> give(basic_whpx_vcpu<Calls>& vcpu) const noexcept {
        return vcpu.set_registers(std::span{names_}.first(count_),
                                  std::span{values_}.first(count_));
    }

private:
    void add(reg which, const os::whpx_abi::register_value& value) noexcept {
        names_[count_] = which;
        values_[count_++] = value;
    }

    std::array<reg, 16> names_{};
    std::array<os::whpx_abi::register_value, 16> values_{};
    std::size_t count_ = 0;
};

/// Starts in real mode at SEGMENT:OFFSET, other segments 0, interrupts off.
template <class Calls>
[[nodiscard]] result<> enter_real_mode(basic_whpx_vcpu<Calls>& vcpu, std::uint16_t code_segment,
                                       std::uint16_t offset) noexcept {
    start_values start;
    start.set(reg::cs, segment{std::uint64_t{code_segment} << 4, 0xffff, code_segment, 0x9b});
    for (const reg which : {reg::ds, reg::es, reg::fs, reg::gs, reg::ss})
        start.set(which, segment{0, 0xffff, 0, 0x93});
    start.set(reg::efer, 0);
    start.set(reg::cr0, 0x10); // ET
    start.set(reg::rip, offset);
    start.set(reg::rflags, 2); // bit 1 always reads as one
    return start.give(vcpu);
}

/// Starts in 64-bit mode at `entry` with flat segments, interrupts off and SSE usable.
/// `page_table` is a PML4 that the VMM has written; `stack` is the value of RSP,
/// `argument` that of RDI.
template <class Calls>
[[nodiscard]] result<> enter_long_mode(basic_whpx_vcpu<Calls>& vcpu, pa page_table,
                                       std::uint64_t entry, std::uint64_t stack,
                                       std::uint64_t argument = 0) noexcept {
    start_values start;
    // Present, granular; code: execute, read, accessed, long; data: read, write, accessed.
    start.set(reg::cs, segment{0, 0xffff'ffff, 0x8, 0xa09b});
    for (const reg which : {reg::ds, reg::es, reg::fs, reg::gs, reg::ss})
        start.set(which, segment{0, 0xffff'ffff, 0x10, 0xc093});
    start.set(reg::cr3, raw(page_table));
    start.set(reg::cr4, 0x620);       // PAE, OSFXSR, OSXMMEXCPT
    start.set(reg::cr0, 0x8000'0033); // PG, NE, ET, MP, PE
    start.set(reg::efer, 0x500);      // LMA, LME
    start.set(reg::rip, entry);
    start.set(reg::rsp, stack);
    start.set(reg::rdi, argument);
    start.set(reg::rflags, 2);
    return start.give(vcpu);
}

} // namespace vm_accel::inline v0::whpx_x86_64
