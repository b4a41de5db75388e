/// The backend for the Windows Hypervisor Platform, whole: `whpx`, `whpx_vm`, `whpx_vcpu`.
///
///     auto backend = vm_accel::whpx::open();
///     if (!backend) return report(backend.error()); // its cause and its cure; so below
///     auto vm = backend->create_vm({.processors = 2});
///     auto added = vm->add_memory(pa{0}, ram, bytes);
///     auto vcpu = vm->create_vcpu(0);
///     auto ready = whpx_x86_64::enter_real_mode(*vcpu, 0, 0x1000);
///     auto exit = vcpu->run(bus);                   // MMIO and ports go to the bus
///
/// A vCPU is a thread of the VMM: where it runs and how urgently is set with
/// `windows_platform`, on the thread that calls run().
#pragma once

#include <vm_accel/hypervisor/whpx_system.hpp>
#include <vm_accel/hypervisor/whpx_vcpu.hpp>
#include <vm_accel/hypervisor/whpx_vm.hpp>
#include <vm_accel/hypervisor/whpx_x86_64.hpp>
