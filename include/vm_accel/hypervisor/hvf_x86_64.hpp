/// x86-64 under Hypervisor.framework: registers, a processor's start, and what its exits
/// mean (Intel SDM volume 3, chapters 25 to 28).
///
/// The framework gives the VMCS almost bare. Set up here: exits on HLT and on every I/O
/// port, real mode under unrestricted guest, and no exits on exceptions. CPUID shows the
/// host without virtualisation; other model-specific registers than EFER raise #GP.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/field.hpp>
#include <vm_accel/hypervisor/hvf_machine.hpp>
#include <vm_accel/hypervisor/hypervisor.hpp>
#include <vm_accel/hypervisor/x86_mmio_instruction.hpp>
#include <vm_accel/os/hvf_calls.hpp>

#include <array>
#include <cstring>

namespace vm_accel::inline v0::hvf_x86_64 {

namespace vmcs = os::hvf_abi::vmcs;

[[nodiscard]] constexpr hvf_register general(os::hvf_abi::x86_register number) noexcept {
    return {hvf_register::bank::general, number};
}
/// A field of the VMCS.
[[nodiscard]] constexpr hvf_register field_of_vmcs(std::uint32_t encoding) noexcept {
    return {hvf_register::bank::system, encoding};
}
/// A general register by its number in instructions: 0 = RAX, 1 = RCX, 4 = RSP, 8 = R8.
[[nodiscard]] constexpr hvf_register numbered(unsigned number) noexcept {
    constexpr std::array<std::uint32_t, 8> order{2, 3, 4, 5, 8, 9, 6, 7};
    return {hvf_register::bank::general, number < 8 ? order[number] : number + 2};
}

inline constexpr std::uint64_t cr0_ne = 1u << 5;
inline constexpr std::uint64_t cr4_vmxe = 1u << 13;
/// Access rights of a segment: present, S, type; in 64-bit mode L, else DB and G.
inline constexpr std::uint64_t code_64 = 0xa09b;
inline constexpr std::uint64_t code_16 = 0x9b;
inline constexpr std::uint64_t data_32 = 0xc093;
inline constexpr std::uint64_t data_16 = 0x93;
inline constexpr std::uint64_t task_state = 0x8b;
inline constexpr std::uint64_t unusable = 0x1'0000;

namespace starting {

struct value {
    hvf_register which{};
    std::uint64_t is = 0;
};

template <class Vcpu, std::size_t Count>
[[nodiscard]] result<> set_all(Vcpu& vcpu, const std::array<value, Count>& values) noexcept {
    for (const value& v : values)
        if (const result<> done = vcpu.set_register(v.which, v.is); !done) return done;
    return {};
}

/// Segment `i` in the order ES, CS, SS, DS, FS, GS, LDTR, TR.
template <class Vcpu>
[[nodiscard]] result<> set_segment(Vcpu& vcpu, std::uint32_t i, std::uint64_t selector,
                                   std::uint64_t base, std::uint64_t limit,
                                   std::uint64_t access) noexcept {
    return set_all(vcpu,
                   std::array<value, 4>{{{field_of_vmcs(vmcs::guest_es + 2 * i), selector},
                                         {field_of_vmcs(vmcs::guest_es_base + 2 * i), base},
                                         {field_of_vmcs(vmcs::guest_es_limit + 2 * i), limit},
                                         {field_of_vmcs(vmcs::guest_es_access + 2 * i), access}}});
}

} // namespace starting

/// Starts in real mode at SEGMENT:OFFSET, other segments 0, interrupts off. Before the
/// vCPU's first run(), or on its thread; so also enter_long_mode().
template <class Vcpu>
[[nodiscard]] result<> enter_real_mode(Vcpu& vcpu, std::uint16_t code_segment,
                                       std::uint16_t offset) noexcept {
    using namespace starting;
    for (std::uint32_t i = 0; i < 8; ++i) {
        const bool is_code = i == 1;
        const std::uint64_t selector = is_code ? code_segment : 0;
        const std::uint64_t access = i == 6    ? unusable
                                     : i == 7  ? task_state
                                     : is_code ? code_16
                                               : data_16;
        if (const result<> done = set_segment(vcpu, i, selector, selector << 4, 0xffff, access);
            !done)
            return done;
    }
    return set_all(vcpu, std::array<value, 8>{{{field_of_vmcs(vmcs::guest_gdtr_limit), 0xffff},
                                               {field_of_vmcs(vmcs::guest_idtr_limit), 0xffff},
                                               {field_of_vmcs(vmcs::guest_cr0), 0x30}, // ET, NE
                                               {field_of_vmcs(vmcs::cr0_shadow), 0x10},
                                               {field_of_vmcs(vmcs::guest_cr4), cr4_vmxe},
                                               {field_of_vmcs(vmcs::guest_efer), 0},
                                               {general(os::hvf_abi::x86_rip), offset},
                                               {general(os::hvf_abi::x86_rflags), 2}}});
}

/// Starts in 64-bit mode at `entry` with flat segments, interrupts off and SSE usable.
/// `page_table` is a PML4 that the VMM has written; `stack` is the value of RSP,
/// `argument` that of RDI.
template <class Vcpu>
[[nodiscard]] result<> enter_long_mode(Vcpu& vcpu, pa page_table, std::uint64_t entry,
                                       std::uint64_t stack, std::uint64_t argument = 0) noexcept {
    using namespace starting;
    for (std::uint32_t i = 0; i < 8; ++i) {
        const std::uint64_t access = i == 6   ? unusable
                                     : i == 7 ? task_state
                                     : i == 1 ? code_64
                                              : data_32;
        const std::uint64_t selector = i == 1 ? 0x8 : i < 6 ? 0x10 : 0;
        const std::uint64_t limit = i < 6 ? 0xffff'ffff : 0xffff;
        if (const result<> done = set_segment(vcpu, i, selector, 0, limit, access); !done)
            return done;
    }
    return set_all(vcpu, std::array<value, 10>{
                             {{field_of_vmcs(vmcs::guest_cr3), raw(page_table)},
                              {field_of_vmcs(vmcs::guest_cr4), 0x620 | cr4_vmxe}, // PAE, SSE
                              {field_of_vmcs(vmcs::cr4_shadow), 0x620},
                              {field_of_vmcs(vmcs::guest_cr0), 0x8000'0033}, // PG, NE, ET, MP, PE
                              {field_of_vmcs(vmcs::cr0_shadow), 0x8000'0033},
                              {field_of_vmcs(vmcs::guest_efer), 0x500}, // LMA, LME
                              {general(os::hvf_abi::x86_rip), entry},
                              {general(os::hvf_abi::x86_rsp), stack},
                              {general(os::hvf_abi::x86_rdi), argument},
                              {general(os::hvf_abi::x86_rflags), 2}}});
}

/// The bits of a VMX control that a capability register lets be, with those it demands.
[[nodiscard]] constexpr std::uint64_t allowed(std::uint64_t capability,
                                              std::uint64_t wanted) noexcept {
    return (wanted | (capability & 0xffff'ffff)) & capability >> 32;
}

/// What the guest's CPUID shows: the host's, without virtualisation and what needs a
/// local APIC, and with the bit that says "in a virtual machine".
[[nodiscard]] constexpr os::cpuid_leaf shown(std::uint32_t leaf, os::cpuid_leaf host) noexcept {
    if (leaf == 1) {
        host.ecx &= ~(1u << 5 | 1u << 21 | 1u << 24 | 1u << 3); // VMX, x2APIC, deadline, MONITOR
        host.ecx |= 1u << 31;
    }
    if (leaf == 0x8000'0001) host.ecx &= ~(1u << 2); // SVM
    if (leaf >= 0x4000'0000 && leaf < 0x4000'0100) host = {};
    return host;
}

} // namespace vm_accel::inline v0::hvf_x86_64
