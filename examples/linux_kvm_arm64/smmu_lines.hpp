/// Interrupts of the SMMU, and of devices behind it, delivered to the guest's GIC.
#pragma once

#include "machine_map.hpp"

#include <vm_accel/core/counter.hpp>
#include <vm_accel/guest/interrupt_sink.hpp>
#include <vm_accel/hypervisor/kvm.hpp>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>

namespace linux_vmm {

/// Models interrupt_sink: each wired line is an edge on an SPI, given through an
/// irqfd, so that neither the SMMU nor a device thread waits for the hypervisor.
/// The one doorbell is that of the GIC's translation service, which knows a
/// device by a DeviceID that equals its StreamID, and the SMMU by one of its own.
class smmu_lines {
public:
    /// Opens the lines of `vm`, whose GIC is finished, before any device thread
    /// runs. Before that, and if it fails, edges and messages are counted and lost. Errors: those
    /// of kvm_vm::irqfd.
    [[nodiscard]] vm_accel::result<> open(vm_accel::kvm_vm& vm) noexcept {
        for (unsigned i = 0; i < lines_.size(); ++i) {
            auto line = vm.irqfd(machine_map::smmu_first_spi + i);
            if (!line) return vm_accel::fail(line);
            lines_[i] = std::move(*line);
        }
        vm_ = &vm;
        return {};
    }

    /// Before the machine is saved, when no thread of it runs any more: all edges so far are in
    /// the GIC; later ones are lost.
    [[nodiscard]] vm_accel::result<> close() noexcept {
        for (unsigned i = 0; i < lines_.size(); ++i) {
            if (!lines_[i]) continue;
            const vm_accel::result<> ended =
                vm_->end_irqfd(machine_map::smmu_first_spi + i, std::move(lines_[i]));
            if (!ended) return ended;
        }
        return {};
    }

    void pulse(vm_accel::wired_interrupt which) noexcept {
        const auto i = static_cast<std::size_t>(which);
        pulses_[i].fetch_add(1, std::memory_order_relaxed);
        if (lines_[i]) vm_accel::os::signal_event(lines_[i]);
    }
    [[nodiscard]] bool is_doorbell(pa address) noexcept { return address == doorbell; }
    [[nodiscard]] bool signal_msi(vm_accel::stream_id requester, pa address,
                                  std::uint32_t data) noexcept {
        const bool delivered = vm_ != nullptr && address == doorbell &&
                               vm_->signal_msi(address, data, raw(requester)).value_or(false);
        const bool own = raw(requester) == machine_map::smmu_device;
        (!delivered ? refused_ : own ? own_ : delivered_).fetch_add(1, std::memory_order_relaxed);
        return delivered;
    }

    [[nodiscard]] std::uint64_t pulses(vm_accel::wired_interrupt which) const noexcept {
        return pulses_[static_cast<std::size_t>(which)].load(std::memory_order_relaxed);
    }

    /// Messages that the translation service turned into interrupts: of devices,
    /// of the SMMU itself; and those that it did not.
    [[nodiscard]] std::uint64_t messages_delivered() const noexcept { return delivered_.load(); }
    [[nodiscard]] std::uint64_t own_messages() const noexcept { return own_.load(); }
    [[nodiscard]] std::uint64_t messages_refused() const noexcept { return refused_.load(); }

private:
    static constexpr pa doorbell = vm_accel::arm64::its_doorbell(machine_map::gic_its.base);

    vm_accel::kvm_vm* vm_ = nullptr;
    std::atomic<std::uint64_t> delivered_{0}, own_{0}, refused_{0};
    std::array<vm_accel::os::descriptor, vm_accel::wired_interrupt_count> lines_{};
    std::array<std::atomic<std::uint64_t>, vm_accel::wired_interrupt_count> pulses_{};
};

static_assert(vm_accel::interrupt_sink<smmu_lines>);

} // namespace linux_vmm
