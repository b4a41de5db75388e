/// The calls of Hypervisor.framework that the `hvf` backend makes.
///
/// On a system that is not macOS, load() says so and nothing else is called.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/hvf_abi.hpp>
#include <vm_accel/os/hvf_functions.hpp>

#include <array>
#include <cstddef>
#include <cstdint>

#if VM_ACCEL_HAS_HVF
#include <mach/mach_time.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#endif

namespace vm_accel::inline v0::os {

/// Where a GICv3 of the framework (macOS 15) lies, in guest physical addresses.
struct hvf_gic_place {
    std::uint64_t distributor = 0;
    std::uint64_t redistributors = 0;
    std::uint64_t messages = 0;      ///< the frame that message interrupts are written to; 0 = none
    std::uint32_t first_message = 0; ///< INTID of the first message interrupt
    std::uint32_t message_count = 0;
};

/// What the framework wants of a hvf_gic_place.
struct hvf_gic_sizes {
    std::uint64_t distributor_bytes = 0;
    std::uint64_t redistributors_bytes = 0; ///< of all vCPUs that a VM can have
    std::uint64_t distributor_alignment = 0;
    std::uint64_t redistributors_alignment = 0;
    std::uint32_t first_spi = 0; ///< INTID
    std::uint32_t spi_count = 0;
};

/// One leaf of CPUID.
struct cpuid_leaf {
    std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

/// Looks for the framework's functions as `basic_hvf` wants them. Copies share what
/// the first load() found. Threads: any; the vCPU calls only on the thread that
/// created the vCPU, but exit_vcpu().
class hvf_calls {
public:
    using status = hvf_abi::status;
    static constexpr hvf_architecture architecture = hvf_functions::native_architecture;
    static constexpr bool present = VM_ACCEL_HAS_HVF != 0;

    /// Errors: unsupported (not macOS), not_found (no framework, or one that lacks a
    /// function).
    [[nodiscard]] static result<hvf_calls> load() noexcept {
        const result<const functions*>& found = shared_functions();
        if (!found) return fail(found);
        hvf_calls calls;
        calls.f_ = *found;
        return calls;
    }

    // --- machine ------------------------------------------------------------

    [[nodiscard]] unsigned maximum_vcpus() const noexcept;
    /// Bits of guest physical addresses: by default, and at most. 0 = not told.
    [[nodiscard]] unsigned default_address_bits() const noexcept;
    [[nodiscard]] unsigned maximum_address_bits() const noexcept;
    /// One for each process. `address_bits` 0 = the default.
    [[nodiscard]] status create_vm(unsigned address_bits) const noexcept;
    [[nodiscard]] status destroy_vm() const noexcept { return call(f_->vm_destroy); }
    [[nodiscard]] status map(void* host, std::uint64_t guest, std::size_t bytes,
                             std::uint64_t flags) const noexcept {
        return call(f_->vm_map, host, guest, bytes, flags);
    }
    [[nodiscard]] status unmap(std::uint64_t guest, std::size_t bytes) const noexcept {
        return call(f_->vm_unmap, guest, bytes);
    }
    [[nodiscard]] status protect(std::uint64_t guest, std::size_t bytes,
                                 std::uint64_t flags) const noexcept {
        return call(f_->vm_protect, guest, bytes, flags);
    }

    // --- vCPUs, both architectures ------------------------------------------

    [[nodiscard]] status destroy_vcpu(std::uint64_t vcpu) const noexcept {
        return call(f_->vcpu_destroy, narrow(vcpu));
    }
    /// Enters the guest until an exit.
    [[nodiscard]] status run_vcpu(std::uint64_t vcpu) const noexcept;
    /// Brings the vCPU back out. Any thread.
    [[nodiscard]] status exit_vcpu(std::uint64_t vcpu) const noexcept {
        auto one = narrow(vcpu);
        return call(f_->vcpus_exit, &one, 1u);
    }
    [[nodiscard]] status get_register(std::uint64_t vcpu, std::uint32_t number,
                                      std::uint64_t& value) const noexcept {
        return call(f_->get_register, narrow(vcpu), number, &value);
    }
    [[nodiscard]] status set_register(std::uint64_t vcpu, std::uint32_t number,
                                      std::uint64_t value) const noexcept {
        return call(f_->set_register, narrow(vcpu), number, value);
    }

    // --- arm64 --------------------------------------------------------------

    [[nodiscard]] status create_vcpu(std::uint64_t& vcpu,
                                     const hvf_abi::arm64_exit_information*& exit) const noexcept;
    [[nodiscard]] status get_system_register(std::uint64_t vcpu, std::uint16_t number,
                                             std::uint64_t& value) const noexcept {
        return call(f_->get_system_register, vcpu, number, &value);
    }
    [[nodiscard]] status set_system_register(std::uint64_t vcpu, std::uint16_t number,
                                             std::uint64_t value) const noexcept {
        return call(f_->set_system_register, vcpu, number, value);
    }
    [[nodiscard]] status set_pending_irq(std::uint64_t vcpu, bool pending) const noexcept {
        return call(f_->set_pending_interrupt, vcpu, hvf_abi::arm64_irq, pending);
    }
    [[nodiscard]] status mask_timer(std::uint64_t vcpu, bool masked) const noexcept {
        return call(f_->set_timer_mask, vcpu, masked);
    }
    /// Whether this macOS (15 or later) has a GICv3.
    [[nodiscard]] bool has_gic() const noexcept {
        return f_ != nullptr && f_->gic_create != nullptr && f_->gic_set_spi != nullptr;
    }
    [[nodiscard]] status gic_sizes(hvf_gic_sizes& sizes) const noexcept;
    [[nodiscard]] status create_gic(const hvf_gic_place& place) const noexcept;
    [[nodiscard]] status set_spi(std::uint32_t intid, bool level) const noexcept {
        return call(f_->gic_set_spi, intid, level);
    }
    [[nodiscard]] status send_message(std::uint64_t address, std::uint32_t intid) const noexcept {
        return call(f_->gic_send_message, address, intid);
    }

    // --- x86-64 -------------------------------------------------------------

    [[nodiscard]] status create_vcpu(std::uint64_t& vcpu) const noexcept;
    [[nodiscard]] status read_vmcs(std::uint64_t vcpu, std::uint32_t field,
                                   std::uint64_t& value) const noexcept {
        return call(f_->read_vmcs, narrow(vcpu), field, &value);
    }
    [[nodiscard]] status write_vmcs(std::uint64_t vcpu, std::uint32_t field,
                                    std::uint64_t value) const noexcept {
        return call(f_->write_vmcs, narrow(vcpu), field, value);
    }
    [[nodiscard]] status vmx_capability(hvf_abi::vmx_capability which,
                                        std::uint64_t& value) const noexcept {
        return call(f_->vmx_capability, static_cast<std::uint32_t>(which), &value);
    }
    /// What the host's own CPUID says.
    [[nodiscard]] cpuid_leaf host_cpuid(std::uint32_t leaf, std::uint32_t subleaf) const noexcept;

private:
    using functions = hvf_functions::functions;
    using returned = hvf_functions::returned;
    using vcpu_number = hvf_functions::vcpu_number;

    [[nodiscard]] static const result<const functions*>& shared_functions() noexcept {
        static functions found;
        static const result<const functions*> outcome = hvf_functions::find(found);
        return outcome;
    }
    [[nodiscard]] static constexpr vcpu_number narrow(std::uint64_t vcpu) noexcept {
        return static_cast<vcpu_number>(vcpu);
    }
    template <class... Parameters, class... Arguments>
    [[nodiscard]] static status call(returned (*function)(Parameters...),
                                     Arguments... arguments) noexcept {
        if (function == nullptr) return status::unsupported;
        return status{static_cast<std::uint32_t>(function(arguments...))};
    }

    const functions* f_ = nullptr;
};

inline unsigned hvf_calls::maximum_vcpus() const noexcept {
    if constexpr (architecture == hvf_architecture::arm64) {
        std::uint32_t count = 0;
        return call(f_->max_vcpus, &count) == status::success ? count : 1;
    } else {
        std::uint64_t count = 0;
        const status told = call(f_->capability, hvf_abi::x86_capability_vcpus, &count);
        return told == status::success ? static_cast<unsigned>(count) : 1;
    }
}

inline unsigned hvf_calls::default_address_bits() const noexcept {
    std::uint32_t bits = 0;
    return call(f_->vm_config_default_bits, &bits) == status::success ? bits : 0;
}

inline unsigned hvf_calls::maximum_address_bits() const noexcept {
    std::uint32_t bits = 0;
    return call(f_->vm_config_max_bits, &bits) == status::success ? bits : 0;
}

inline hvf_abi::status hvf_calls::create_vm(unsigned address_bits) const noexcept {
    if constexpr (architecture == hvf_architecture::x86_64) {
        return call(f_->vm_create_x86, std::uint64_t{0});
    }
    void* configuration = nullptr;
    if (address_bits != 0) {
        if (f_->vm_config_create == nullptr) return status::unsupported;
        configuration = f_->vm_config_create();
        const status chosen = call(f_->vm_config_set_bits, configuration, address_bits);
        if (chosen != status::success) {
            if (f_->release != nullptr) f_->release(configuration);
            return chosen;
        }
    }
    const status made = call(f_->vm_create, configuration);
    if (configuration != nullptr && f_->release != nullptr) f_->release(configuration);
    return made;
}

inline hvf_abi::status
hvf_calls::create_vcpu(std::uint64_t& vcpu,
                       const hvf_abi::arm64_exit_information*& exit) const noexcept {
    vcpu_number number = 0;
    const status made = call(f_->vcpu_create, &number, &exit, nullptr);
    vcpu = number;
    return made;
}

inline hvf_abi::status hvf_calls::create_vcpu(std::uint64_t& vcpu) const noexcept {
    vcpu_number number = 0;
    const status made = call(f_->vcpu_create_x86, &number, std::uint64_t{0});
    vcpu = number;
    return made;
}

inline hvf_abi::status hvf_calls::run_vcpu(std::uint64_t vcpu) const noexcept {
#if VM_ACCEL_HAS_HVF && defined(__x86_64__)
    // hv_vcpu_interrupt() is not documented to reach a vCPU that is just about to
    // enter the guest. A stay of bounded length (1 ms: on Intel machines the time is in
    // nanoseconds) finds such a request soon after; hv_vcpu_run() itself comes back at
    // each interrupt of the host.
    if (f_->vcpu_run_until != nullptr) {
        return call(f_->vcpu_run_until, narrow(vcpu), ::mach_absolute_time() + 1'000'000);
    }
#endif
    return call(f_->vcpu_run, narrow(vcpu));
}

inline hvf_abi::status hvf_calls::gic_sizes(hvf_gic_sizes& sizes) const noexcept {
    std::array<std::size_t, 4> values{};
    for (std::size_t i = 0; i < values.size(); ++i) {
        if (const status told = call(f_->gic_size[i], &values[i]); told != status::success) {
            return told;
        }
    }
    sizes.distributor_bytes = values[0];
    sizes.redistributors_bytes = values[1];
    sizes.distributor_alignment = values[2];
    sizes.redistributors_alignment = values[3];
    return call(f_->gic_spi_range, &sizes.first_spi, &sizes.spi_count);
}

inline hvf_abi::status hvf_calls::create_gic(const hvf_gic_place& place) const noexcept {
    if (!has_gic() || f_->gic_config_create == nullptr) return status::unsupported;
    void* const configuration = f_->gic_config_create();
    status done = call(f_->gic_set_distributor, configuration, place.distributor);
    if (done == status::success)
        done = call(f_->gic_set_redistributors, configuration, place.redistributors);
    if (done == status::success && place.messages != 0) {
        done = call(f_->gic_set_messages, configuration, place.messages);
        if (done == status::success)
            done = call(f_->gic_set_message_range, configuration, place.first_message,
                        place.message_count);
    }
    if (done == status::success) done = call(f_->gic_create, configuration);
    if (f_->release != nullptr) f_->release(configuration);
    return done;
}

inline cpuid_leaf hvf_calls::host_cpuid([[maybe_unused]] std::uint32_t leaf,
                                        [[maybe_unused]] std::uint32_t subleaf) const noexcept {
    cpuid_leaf told;
#if VM_ACCEL_HAS_HVF && defined(__x86_64__)
    __cpuid_count(leaf, subleaf, told.eax, told.ebx, told.ecx, told.edx);
#endif
    return told;
}

} // namespace vm_accel::inline v0::os
