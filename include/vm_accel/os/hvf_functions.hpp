/// The functions of Hypervisor.framework, looked up while the program runs: it starts
/// on systems without the framework, and is built where no header of Apple's is.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/dynamic_library.hpp>
#include <vm_accel/os/hvf_abi.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#if defined(__APPLE__)
#include <TargetConditionals.h>
#if TARGET_OS_OSX
#define VM_ACCEL_HAS_HVF 1
#endif
#endif
#if !defined(VM_ACCEL_HAS_HVF)
#define VM_ACCEL_HAS_HVF 0
#endif

namespace vm_accel::inline v0::os {

enum class hvf_architecture : std::uint8_t { x86_64, arm64 };

namespace hvf_functions {

#if defined(__aarch64__)
inline constexpr hvf_architecture native_architecture = hvf_architecture::arm64;
#else
inline constexpr hvf_architecture native_architecture = hvf_architecture::x86_64;
#endif

/// hv_vcpu_t on arm64, hv_vcpuid_t on x86-64.
#if defined(__aarch64__)
using vcpu_number = std::uint64_t;
#else
using vcpu_number = std::uint32_t;
#endif
using returned = std::int32_t; ///< hv_return_t

/// Null where this macOS or architecture lacks one.
struct functions {
    dynamic_library framework;
    returned (*vm_create)(void*) = nullptr;             ///< arm64: a configuration
    returned (*vm_create_x86)(std::uint64_t) = nullptr; ///< the same symbol: options
    returned (*vm_destroy)() = nullptr;
    returned (*vm_map)(void*, std::uint64_t, std::size_t, std::uint64_t) = nullptr;
    returned (*vm_unmap)(std::uint64_t, std::size_t) = nullptr;
    returned (*vm_protect)(std::uint64_t, std::size_t, std::uint64_t) = nullptr;
    returned (*vcpu_create)(vcpu_number*, const hvf_abi::arm64_exit_information**, void*) = nullptr;
    returned (*vcpu_create_x86)(vcpu_number*, std::uint64_t) = nullptr;
    returned (*vcpu_destroy)(vcpu_number) = nullptr;
    returned (*vcpu_run)(vcpu_number) = nullptr;
    returned (*vcpu_run_until)(vcpu_number, std::uint64_t) = nullptr;
    returned (*vcpus_exit)(vcpu_number*, unsigned) = nullptr;
    returned (*get_register)(vcpu_number, std::uint32_t, std::uint64_t*) = nullptr;
    returned (*set_register)(vcpu_number, std::uint32_t, std::uint64_t) = nullptr;
    // arm64
    returned (*get_system_register)(std::uint64_t, std::uint16_t, std::uint64_t*) = nullptr;
    returned (*set_system_register)(std::uint64_t, std::uint16_t, std::uint64_t) = nullptr;
    returned (*set_pending_interrupt)(std::uint64_t, std::uint32_t, bool) = nullptr;
    returned (*set_timer_mask)(std::uint64_t, bool) = nullptr;
    returned (*max_vcpus)(std::uint32_t*) = nullptr;
    void* (*vm_config_create)() = nullptr;
    returned (*vm_config_set_bits)(void*, std::uint32_t) = nullptr;
    returned (*vm_config_max_bits)(std::uint32_t*) = nullptr;
    returned (*vm_config_default_bits)(std::uint32_t*) = nullptr;
    void (*release)(void*) = nullptr;
    void* (*gic_config_create)() = nullptr;
    returned (*gic_set_distributor)(void*, std::uint64_t) = nullptr;
    returned (*gic_set_redistributors)(void*, std::uint64_t) = nullptr;
    returned (*gic_set_messages)(void*, std::uint64_t) = nullptr;
    returned (*gic_set_message_range)(void*, std::uint32_t, std::uint32_t) = nullptr;
    returned (*gic_create)(void*) = nullptr;
    returned (*gic_set_spi)(std::uint32_t, bool) = nullptr;
    returned (*gic_send_message)(std::uint64_t, std::uint32_t) = nullptr;
    std::array<returned (*)(std::size_t*), 4> gic_size{}; ///< in hvf_gic_sizes' order
    returned (*gic_spi_range)(std::uint32_t*, std::uint32_t*) = nullptr;
    // x86-64
    returned (*capability)(std::uint64_t, std::uint64_t*) = nullptr;
    returned (*read_vmcs)(vcpu_number, std::uint32_t, std::uint64_t*) = nullptr;
    returned (*write_vmcs)(vcpu_number, std::uint32_t, std::uint64_t) = nullptr;
    returned (*vmx_capability)(std::uint32_t, std::uint64_t*) = nullptr;
};

/// Fills `f`, which stays where it is. Errors: see hvf_calls::load().
[[nodiscard]] inline result<const functions*> find(functions& f) noexcept {
    if constexpr (VM_ACCEL_HAS_HVF == 0) {
        return fail(errc::unsupported, "hvf: Hypervisor.framework exists on macOS only",
                    "use another hypervisor backend, such as kvm on Linux or whpx on Windows");
    }
    result<dynamic_library> opened =
        dynamic_library::open("/System/Library/Frameworks/Hypervisor.framework/Hypervisor");
    if (!opened) {
        return fail(errc::not_found, "hvf: this system has no Hypervisor.framework",
                    "run on macOS 10.10 or later, on a Mac with virtualisation");
    }
    f.framework = std::move(*opened);
    const char* missing = nullptr;
    const auto want = [&](auto*& function, const char* name) {
        function = f.framework.template find<std::remove_reference_t<decltype(*function)>>(name);
        if (function == nullptr && missing == nullptr) missing = name;
    };
    const auto may = [&](auto*& function, const char* name) {
        function = f.framework.template find<std::remove_reference_t<decltype(*function)>>(name);
    };
    want(f.vm_destroy, "hv_vm_destroy");
    want(f.vm_map, "hv_vm_map");
    want(f.vm_unmap, "hv_vm_unmap");
    want(f.vm_protect, "hv_vm_protect");
    want(f.vcpu_destroy, "hv_vcpu_destroy");
    want(f.vcpu_run, "hv_vcpu_run");
    if constexpr (native_architecture == hvf_architecture::arm64) {
        want(f.vm_create, "hv_vm_create");
        want(f.vcpu_create, "hv_vcpu_create");
        want(f.vcpus_exit, "hv_vcpus_exit");
        want(f.get_register, "hv_vcpu_get_reg");
        want(f.set_register, "hv_vcpu_set_reg");
        want(f.get_system_register, "hv_vcpu_get_sys_reg");
        want(f.set_system_register, "hv_vcpu_set_sys_reg");
        want(f.set_pending_interrupt, "hv_vcpu_set_pending_interrupt");
        want(f.set_timer_mask, "hv_vcpu_set_vtimer_mask");
        may(f.max_vcpus, "hv_vm_get_max_vcpu_count");
        may(f.vm_config_create, "hv_vm_config_create");
        may(f.vm_config_set_bits, "hv_vm_config_set_ipa_size");
        may(f.vm_config_max_bits, "hv_vm_config_get_max_ipa_size");
        may(f.vm_config_default_bits, "hv_vm_config_get_default_ipa_size");
        may(f.release, "os_release");
        may(f.gic_config_create, "hv_gic_config_create");
        may(f.gic_set_distributor, "hv_gic_config_set_distributor_base");
        may(f.gic_set_redistributors, "hv_gic_config_set_redistributor_base");
        may(f.gic_set_messages, "hv_gic_config_set_msi_region_base");
        may(f.gic_set_message_range, "hv_gic_config_set_msi_interrupt_range");
        may(f.gic_create, "hv_gic_create");
        may(f.gic_set_spi, "hv_gic_set_spi");
        may(f.gic_send_message, "hv_gic_send_msi");
        may(f.gic_size[0], "hv_gic_get_distributor_size");
        may(f.gic_size[1], "hv_gic_get_redistributor_region_size");
        may(f.gic_size[2], "hv_gic_get_distributor_base_alignment");
        may(f.gic_size[3], "hv_gic_get_redistributor_base_alignment");
        may(f.gic_spi_range, "hv_gic_get_spi_interrupt_range");
    } else {
        want(f.vm_create_x86, "hv_vm_create");
        want(f.vcpu_create_x86, "hv_vcpu_create");
        want(f.vcpus_exit, "hv_vcpu_interrupt");
        want(f.get_register, "hv_vcpu_read_register");
        want(f.set_register, "hv_vcpu_write_register");
        want(f.capability, "hv_capability");
        want(f.read_vmcs, "hv_vmx_vcpu_read_vmcs");
        want(f.write_vmcs, "hv_vmx_vcpu_write_vmcs");
        want(f.vmx_capability, "hv_vmx_read_capability");
        may(f.vcpu_run_until, "hv_vcpu_run_until");
    }
    if (missing != nullptr) {
        return fail(errc::not_found,
                    fixed_text<160>{"hvf: Hypervisor.framework has no "}.append(missing),
                    "update macOS: arm64 needs version 11, x86-64 version 10.10");
    }
    return &f;
}

} // namespace hvf_functions

} // namespace vm_accel::inline v0::os
