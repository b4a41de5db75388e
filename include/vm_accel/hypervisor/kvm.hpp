/// The KVM backend, whole: `kvm`, `kvm_vm`, `kvm_vcpu`, and what is particular
/// to arm64 (`arm64::`) and x86-64 (`x86_64::`).
///
///     auto backend = vm_accel::kvm::open();
///     if (!backend) return report(backend.error()); // its cause and its cure; so below
///     auto vm = backend->create_vm();
///     auto added = vm->add_memory(pa{0}, ram, bytes);
///     auto vcpu = vm->create_vcpu(0);               // arm64: PSCI, as the host
///     auto exit = vcpu->run(bus);                   // MMIO goes to the bus
#pragma once

#include <vm_accel/hypervisor/kvm_arm64.hpp>
#include <vm_accel/hypervisor/kvm_arm64_gic.hpp>
#include <vm_accel/hypervisor/kvm_memory.hpp>
#include <vm_accel/hypervisor/kvm_system.hpp>
#include <vm_accel/hypervisor/kvm_vcpu.hpp>
#include <vm_accel/hypervisor/kvm_vm.hpp>
#include <vm_accel/hypervisor/kvm_x86_64.hpp>
