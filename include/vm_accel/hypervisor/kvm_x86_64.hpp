/// What is x86-64 alone about KVM: registers, processor modes, CPUID.
#pragma once

#include <vm_accel/hypervisor/kvm_vcpu.hpp>

#include <array>

namespace vm_accel::inline v0::x86_64 {

using registers = os::kvm_abi::x86_registers;
using special_registers = os::kvm_abi::x86_special_registers;
using segment = os::kvm_abi::x86_segment;

/// What CPUID shows a vCPU: `header.count` entries are valid.
struct cpuid_table {
    os::kvm_abi::x86_cpuid_header header{};
    std::array<os::kvm_abi::x86_cpuid_entry, 256> entries{};
};
static_assert(offsetof(cpuid_table, entries) == sizeof(os::kvm_abi::x86_cpuid_header));

/// The general registers. Not while the vCPU runs.
[[nodiscard]] inline result<registers> get_registers(kvm_vcpu& vcpu) noexcept {
    registers values;
    const result<> done = vcpu.ask(os::kvm_abi::get_x86_registers, values, "KVM_GET_REGS");
    if (!done) return fail(done);
    return values;
}
[[nodiscard]] inline result<> set_registers(kvm_vcpu& vcpu, registers values) noexcept {
    return vcpu.ask(os::kvm_abi::set_x86_registers, values, "KVM_SET_REGS");
}

/// Segments, control registers, tables. Not while the vCPU runs.
[[nodiscard]] inline result<special_registers> get_special_registers(kvm_vcpu& vcpu) noexcept {
    special_registers values;
    const result<> done = vcpu.ask(os::kvm_abi::get_x86_special_registers, values, "KVM_GET_SREGS");
    if (!done) return fail(done);
    return values;
}
[[nodiscard]] inline result<> set_special_registers(kvm_vcpu& vcpu,
                                                    special_registers values) noexcept {
    return vcpu.ask(os::kvm_abi::set_x86_special_registers, values, "KVM_SET_SREGS");
}

/// What CPUID answers; usually kvm::supported_cpuid(). Before the vCPU runs.
[[nodiscard]] inline result<> set_cpuid(kvm_vcpu& vcpu, const cpuid_table& table) noexcept {
    cpuid_table copy = table;
    return vcpu.ask(os::kvm_abi::set_x86_cpuid, copy, "KVM_SET_CPUID2");
}

/// Starts in real mode at SEGMENT:OFFSET, other segments 0, interrupts off.
[[nodiscard]] inline result<> enter_real_mode(kvm_vcpu& vcpu, std::uint16_t code_segment,
                                              std::uint16_t offset) noexcept {
    result<special_registers> special = get_special_registers(vcpu);
    if (!special) return fail(special);
    const auto place = [](segment& s, std::uint16_t selector) {
        s.selector = selector;
        s.base = std::uint64_t{selector} << 4;
    };
    place(special->cs, code_segment);
    for (segment* s : {&special->ds, &special->es, &special->fs, &special->gs, &special->ss})
        place(*s, 0);
    if (const result<> done = set_special_registers(vcpu, *special); !done) return done;
    registers general{};
    general.rip = offset;
    general.rflags = 2; // bit 1 always reads as one
    return set_registers(vcpu, general);
}

/// Starts in 64-bit mode at `entry` with flat segments, interrupts off and SSE
/// usable. `page_table` is a PML4 that the VMM has written; `stack` is the value
/// of RSP, `argument` that of RDI.
[[nodiscard]] inline result<> enter_long_mode(kvm_vcpu& vcpu, pa page_table, std::uint64_t entry,
                                              std::uint64_t stack,
                                              std::uint64_t argument = 0) noexcept {
    result<special_registers> special = get_special_registers(vcpu);
    if (!special) return fail(special);
    segment code{};
    code.limit = 0xffff'ffff;
    code.selector = 0x8;
    code.type = 11; // execute, read, accessed
    code.present = 1;
    code.s = 1;
    code.l = 1;
    code.g = 1;
    segment data = code;
    data.selector = 0x10;
    data.type = 3; // read, write, accessed
    data.l = 0;
    data.db = 1;
    special->cs = code;
    for (segment* s : {&special->ds, &special->es, &special->fs, &special->gs, &special->ss})
        *s = data;
    special->cr3 = raw(page_table);
    special->cr4 = 0x620;       // PAE, OSFXSR, OSXMMEXCPT
    special->cr0 = 0x8000'0033; // PG, NE, ET, MP, PE
    special->efer = 0x500;      // LMA, LME
    if (const result<> done = set_special_registers(vcpu, *special); !done) return done;
    registers general{};
    general.rip = entry;
    general.rsp = stack;
    general.rdi = argument;
    general.rflags = 2;
    return set_registers(vcpu, general);
}

} // namespace vm_accel::inline v0::x86_64
