/// One virtual machine of KVM: memory slots, processors, interrupts.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/hypervisor/hypervisor.hpp>
#include <vm_accel/hypervisor/kvm_arm64.hpp>
#include <vm_accel/hypervisor/kvm_arm64_gic.hpp>
#include <vm_accel/hypervisor/kvm_memory.hpp>
#include <vm_accel/hypervisor/kvm_vcpu.hpp>
#include <vm_accel/hypervisor/unfinished_vcpus.hpp>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>

namespace vm_accel::inline v0 {

struct kvm_vm_options {
    /// arm64: bits of guest physical addresses, 32 to 52; 0 = 40, or what the
    /// host has if that is less. x86: ignored.
    unsigned address_bits = 0;
    /// The signal that brings vCPU threads out of the guest; 0 = SIGRTMIN + 4.
    /// The process must not use it for anything else.
    int kick_signal = 0;
};

/// Made by kvm::create_vm. Outlives its vCPUs. create_gic_v3(), finish_gic() and
/// create_irqchip() are set-up: by one thread, before the VM is shared. All other
/// calls are safe from any thread, also while vCPUs run; moved only before it is
/// shared.
class kvm_vm {
public:
    using vcpu = kvm_vcpu;

    [[nodiscard]] const hypervisor_capabilities& capabilities() const noexcept {
        return capabilities_;
    }

    // --- memory -----------------------------------------------------------

    /// Makes [base, base + bytes) RAM, backed by `host`; all three multiples of
    /// 4096. The bytes must outlive the slot.
    [[nodiscard]] result<> add_memory(pa base, std::byte* host, std::uint64_t bytes) noexcept {
        return memory_.add(vm_, base, host, bytes, false);
    }
    /// The same, but what the guest writes there goes to the bus (ROM, flash).
    [[nodiscard]] result<> add_read_only_memory(pa base, std::byte* host,
                                                std::uint64_t bytes) noexcept {
        return memory_.add(vm_, base, host, bytes, true);
    }
    /// Once it has returned no vCPU uses those bytes. Error: not_found.
    [[nodiscard]] result<> remove_memory(pa base) noexcept { return memory_.remove(vm_, base); }

    // --- processors -------------------------------------------------------

    /// A vCPU ready for its registers. arm64: initialised for the host's own
    /// processor type with PSCI 0.2, index 0 powered on, the others off until
    /// the guest's CPU_ON; on x86-64, reset state. Each index once; after an
    /// error the same index can be tried again.
    [[nodiscard]] result<kvm_vcpu> create_vcpu(unsigned index) noexcept {
        return create_vcpu(index, arm64::vcpu_options{index != 0, true});
    }
    /// The same with a chosen arm64 start; x86-64 ignores the options.
    [[nodiscard]] result<kvm_vcpu> create_vcpu(unsigned index,
                                               arm64::vcpu_options options) noexcept {
        const fixed_text<160> name = fixed_text<160>{"vCPU "}.append_number(index);
        if (index >= capabilities_.maximum_vcpus) {
            return fail(errc::out_of_range,
                        fixed_text<160>{name}
                            .append(": this host allows ")
                            .append_number(capabilities_.maximum_vcpus),
                        "use an index below that");
        }
        os::descriptor descriptor = unfinished_.take(index);
        if (!descriptor) {
            const os::call_result made = os::device_request(vm_, os::kvm_abi::create_vcpu, index);
            if (!made.ok()) {
                return os::fail_with(made.os_error, name.view(),
                                     "create each index once, before finish_gic()");
            }
            descriptor = os::descriptor{static_cast<int>(made.value)};
        }
        os::shared_mapping page;
        if (const int refused = page.map(descriptor, vcpu_map_bytes_); refused != 0) {
            unfinished_.keep(index, std::move(descriptor));
            return os::fail_with(refused, name.view(), "free memory or raise the mapping limit");
        }
        kvm_vcpu created{std::move(descriptor), std::move(page), index, kick_signal_};
        if constexpr (os::kvm_platform::architecture == os::kvm_architecture::arm64) {
            if (const result<> done = start_arm64(created, options); !done) {
                unfinished_.keep(index, std::move(created.vcpu_));
                return fail(done);
            }
        }
        return created;
    }

    // --- interrupts: arm64 ------------------------------------------------

    /// An in-kernel GICv3. Before or after the vCPUs, once; finish_gic() must
    /// follow when all of them exist. After an error it can be called again, and
    /// goes on where it failed: with another layout, as far as the kernel has not
    /// accepted the first. Errors: invalid_argument, unsupported (the host has no
    /// GICv3), already_exists, out_of_range (beyond the guest's address bits).
    [[nodiscard]] result<> create_gic_v3(pa distributor, pa redistributors,
                                         unsigned vcpus) noexcept {
        return create_gic_v3({distributor, redistributors, vcpus, 256});
    }
    [[nodiscard]] result<> create_gic_v3(const arm64::gic_v3_layout& layout) noexcept {
        if (interrupts_ != 0) {
            return fail(errc::already_exists, "interrupt controller: this VM has one",
                        "create it once");
        }
        if (const result<> made = gic_.create(vm_, layout); !made) return made;
        interrupts_ = layout.interrupts;
        return {};
    }

    /// Completes the GIC: all vCPUs exist from here on. Before the first run()
    /// and before irqfd(). Errors: not_found without a GIC, busy.
    [[nodiscard]] result<> finish_gic() noexcept { return gic_.finish(); }

    /// An in-kernel interrupt translation service, which turns messages into
    /// interrupts. `base`: a multiple of 64 KiB; it takes arm64::its_bytes. After
    /// create_gic_v3(), before the first run(). After an error it can be called
    /// again. Errors: not_found without a GIC, invalid_argument, already_exists,
    /// unsupported, out_of_range.
    [[nodiscard]] result<> create_its(pa base) noexcept { return gic_.create_its(vm_, base); }

    /// One attribute of the GIC, or of its translation service, got or set by
    /// `number`; for arm64::save_gic() and restore_gic(). No vCPU runs meanwhile.
    [[nodiscard]] result<> gic_request(bool its, std::uint32_t number,
                                       os::kvm_abi::device_attribute& attribute) noexcept {
        return gic_.request(its, number, attribute);
    }

    /// Delivers a message signalled interrupt: a write of `data` to
    /// arm64::its_doorbell() by the device that the service knows as `device`.
    /// True: delivered; false: the guest has the interrupt blocked or unmapped.
    /// Any thread, also while vCPUs run; never waits for a vCPU.
    /// Errors: not_found (no service in this VM), invalid_argument (none at that
    /// address), busy (the guest has not enabled it).
    [[nodiscard]] result<bool> signal_msi(pa doorbell, std::uint32_t data,
                                          std::uint32_t device) noexcept {
        return arm64::signal_msi(vm_, doorbell, data, device);
    }

    /// Shared peripheral interrupt `spi`, counted from 0 as in a device tree
    /// (INTID = spi + 32). For level interrupts: the line stays as set.
    [[nodiscard]] result<> set_spi(unsigned spi, bool level) noexcept {
        const unsigned intid = spi + arm64::first_spi;
        if (spi >= 1020 - arm64::first_spi || intid >= interrupts_) {
            return fail(errc::out_of_range, at("GIC: no SPI ", spi, 10),
                        "use an SPI below gic_v3_layout::interrupts - 32, after create_gic_v3()");
        }
        return drive(os::kvm_abi::arm_irq_of_spi(intid), level);
    }
    /// One rising edge, for edge-triggered interrupts.
    [[nodiscard]] result<> pulse_spi(unsigned spi) noexcept {
        if (const result<> raised = set_spi(spi, true); !raised) return raised;
        return set_spi(spi, false);
    }

    // --- interrupts: x86-64 -----------------------------------------------

    /// In-kernel PICs, I/O APIC and local APICs. Before any vCPU. Without it
    /// HLT ends run() with `halted`.
    [[nodiscard]] result<> create_irqchip() noexcept {
        const os::call_result made = os::device_request(vm_, os::kvm_abi::create_irqchip);
        if (made.ok()) {
            interrupts_ = 24;
            return {};
        }
        return os::fail_with(made.os_error, "in-kernel interrupt controller",
                             "call it once, on x86-64, before the first vCPU");
    }

    // --- interrupts: both -------------------------------------------------

    /// Interrupt input `line`: an SPI number on arm64, a GSI (0 to 23) on x86-64.
    [[nodiscard]] result<> set_line(unsigned line, bool level) noexcept {
        if constexpr (os::kvm_platform::architecture == os::kvm_architecture::arm64) {
            return set_spi(line, level);
        } else {
            if (line >= interrupts_) {
                return fail(errc::out_of_range, at("no interrupt line ", line, 10),
                            "call create_irqchip() before the vCPUs, and use lines below 24");
            }
            return drive(line, level);
        }
    }
    [[nodiscard]] result<> pulse_line(unsigned line) noexcept {
        if (const result<> raised = set_line(line, true); !raised) return raised;
        return set_line(line, false);
    }

    /// A descriptor that gives one edge on `gsi` for each os::signal_event(): no
    /// exit, no lock, from any thread. `gsi` is an SPI number on arm64 (after
    /// finish_gic()), a GSI on x86-64. The edge follows a moment after the signal.
    /// Closing the descriptor ends it.
    [[nodiscard]] result<os::descriptor> irqfd(unsigned gsi) noexcept {
        const os::call_result made = os::make_event();
        if (!made.ok()) {
            return os::fail_with(made.os_error, "eventfd", "close descriptors or raise the limit");
        }
        os::descriptor event{static_cast<int>(made.value)};
        os::kvm_abi::irqfd request;
        request.fd = static_cast<std::uint32_t>(event.get());
        request.gsi = gsi;
        const os::call_result called =
            os::device_request_with(vm_, os::kvm_abi::set_irqfd, request);
        if (!called.ok()) {
            return os::fail_with(called.os_error, at("irqfd for interrupt ", gsi, 10).view(),
                                 "create the interrupt controller first (arm64: finish_gic(); "
                                 "x86-64: create_irqchip())");
        }
        return event;
    }
    /// Ends irqfd(gsi): every edge signalled through `event` before has reached the
    /// interrupt controller when this returns. For a machine that is to be saved.
    [[nodiscard]] result<> end_irqfd(unsigned gsi, os::descriptor event) noexcept {
        os::kvm_abi::irqfd request;
        request.fd = static_cast<std::uint32_t>(event.get());
        request.gsi = gsi;
        request.flags = os::kvm_abi::irqfd_detach;
        const os::call_result called =
            os::device_request_with(vm_, os::kvm_abi::set_irqfd, request);
        if (called.ok()) return {};
        return os::fail_with(called.os_error, at("irqfd for interrupt ", gsi, 10).view(),
                             "give what irqfd() returned for this interrupt");
    }

private:
    friend class kvm;

    kvm_vm(os::descriptor vm, const hypervisor_capabilities& capabilities,
           std::size_t vcpu_map_bytes, int kick_signal) noexcept
        : vm_(std::move(vm)),
          capabilities_(capabilities),
          vcpu_map_bytes_(vcpu_map_bytes),
          kick_signal_(kick_signal),
          memory_(capabilities.memory_slots) {}

    [[nodiscard]] static fixed_text<160> at(std::string_view what, std::uint64_t number,
                                            unsigned number_base = 16) noexcept {
        return fixed_text<160>{what}.append_number(number, number_base);
    }
    [[nodiscard]] result<> start_arm64(kvm_vcpu& created, arm64::vcpu_options options) noexcept;
    [[nodiscard]] result<> drive(std::uint32_t irq, bool level) noexcept {
        os::kvm_abi::irq_level line{irq, level ? 1u : 0u};
        const os::call_result called =
            os::device_request_with(vm_, os::kvm_abi::set_irq_line, line);
        if (called.ok()) return {};
        return os::fail_with(called.os_error, at("interrupt line ", irq).view(),
                             "create the interrupt controller first (arm64: create_gic_v3() and "
                             "finish_gic(); x86-64: create_irqchip())");
    }

    os::descriptor vm_;
    arm64::kernel_gic gic_;
    unfinished_vcpus unfinished_;
    hypervisor_capabilities capabilities_;
    std::size_t vcpu_map_bytes_ = 0;
    int kick_signal_ = 0;
    unsigned interrupts_ = 0; ///< inputs of the interrupt controller; 0 = none
    kvm_memory memory_;
};

inline result<> kvm_vm::start_arm64(kvm_vcpu& created, arm64::vcpu_options options) noexcept {
    os::kvm_abi::arm_vcpu_init start;
    const os::call_result called =
        os::device_request_with(vm_, os::kvm_abi::arm_preferred_target, start);
    if (!called.ok()) {
        return os::fail_with(called.os_error, "processor type of this host",
                             "update the kernel: it does not know this processor");
    }
    if (options.psci) start.features[0] |= os::kvm_abi::arm_feature_psci_0_2;
    if (options.powered_off) start.features[0] |= os::kvm_abi::arm_feature_power_off;
    return created.ask(os::kvm_abi::arm_init_vcpu, start, "KVM_ARM_VCPU_INIT");
}

static_assert(virtual_machine<kvm_vm>);

} // namespace vm_accel::inline v0
