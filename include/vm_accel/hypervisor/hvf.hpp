/// The backend for Apple's Hypervisor.framework, whole: `hvf`, `hvf_vm`, `hvf_vcpu`, and
/// what is particular to arm64 (`hvf_arm64::`) and x86-64 (`hvf_x86_64::`).
///
///     auto backend = vm_accel::hvf::open();
///     if (!backend) return report(backend.error()); // its cause and its cure; so below
///     auto vm = backend->create_vm();
///     auto added = vm->add_memory(pa{0x8000'0000}, ram, bytes);
///     auto vcpu = vm->create_vcpu(0);
///     auto set = hvf_arm64::set_boot_registers(*vcpu, pa{0x8000'0000}, pa{0});
///     auto exit = vcpu->run(bus); // creates the vCPU: it belongs to this thread now
///
/// The program needs the entitlement com.apple.security.hypervisor. A GIC of the
/// framework's takes macOS 15; before, interrupts go to vCPUs by set_line().
#pragma once

#include <vm_accel/hypervisor/hvf_arm64.hpp>
#include <vm_accel/hypervisor/hvf_errors.hpp>
#include <vm_accel/hypervisor/hvf_machine.hpp>
#include <vm_accel/hypervisor/hvf_memory.hpp>
#include <vm_accel/hypervisor/hvf_system.hpp>
#include <vm_accel/hypervisor/hvf_vcpu.hpp>
#include <vm_accel/hypervisor/hvf_vm.hpp>
#include <vm_accel/hypervisor/hvf_x86_64.hpp>
#include <vm_accel/hypervisor/hvf_x86_64_exits.hpp>
#include <vm_accel/hypervisor/psci.hpp>
#include <vm_accel/hypervisor/x86_mmio_instruction.hpp>
