/// What the guest finds at addresses that are not RAM.
#pragma once

#include "machine_map.hpp"

#include <vm_accel/core/field.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace linux_vmm {

/// Routes a vCPU's access to a device by address. The devices outlive the bus;
/// `pci` and `injector` may be null. `Smmu` needs mmio_read and mmio_write.
/// Threads: all vCPU threads at once.
template <class Uart, class Smmu, class Disk, class Pci, class Injector>
struct guest_bus {
    Uart& uart;
    Smmu& smmu;
    Disk& disk;
    Pci* pci;
    Injector* injector;

    void mmio_read(pa address, std::span<std::byte> out) noexcept {
        const auto size = static_cast<unsigned>(out.size());
        const std::uint64_t value = vm_accel::little_endian(read(address, size));
        std::memcpy(out.data(), &value, out.size() < sizeof value ? out.size() : sizeof value);
    }

    void mmio_write(pa address, std::span<const std::byte> in) noexcept {
        std::uint64_t value = 0;
        if (in.size() > sizeof value) return;
        std::memcpy(&value, in.data(), in.size());
        write(address, static_cast<unsigned>(in.size()), vm_accel::little_endian(value));
    }

private:
    static constexpr bool has_counters = requires(Smmu& s) { s.performance_monitor(); };

    [[nodiscard]] static bool is_at(const pa_range& device, pa address, unsigned size) noexcept {
        return device.contains(address, size);
    }

    [[nodiscard]] std::uint64_t read(pa address, unsigned size) noexcept {
        if (is_at(machine_map::smmu, address, size)) {
            return smmu.mmio_read(raw(address) - raw(machine_map::smmu.base), size);
        }
        if constexpr (has_counters) {
            if (is_at(machine_map::smmu_counters, address, size)) {
                return smmu.performance_monitor().mmio_read(
                    raw(address) - raw(machine_map::smmu_counters.base), size);
            }
        }
        if (is_at(machine_map::disk, address, size)) {
            return disk.read(raw(address) - raw(machine_map::disk.base), size);
        }
        if (pci != nullptr && is_at(machine_map::pci_memory, address, size)) {
            return pci->read(address, size);
        }
        if (pci != nullptr && is_at(machine_map::pci_configuration, address, size)) {
            return pci->read_configuration(raw(address) - raw(machine_map::pci_configuration.base),
                                           size);
        }
        if (is_at(machine_map::uart, address, size)) {
            return uart.read(raw(address) - raw(machine_map::uart.base));
        }
        if (injector != nullptr && address == machine_map::injector.base && size == 4) {
            return injector->read();
        }
        return ~std::uint64_t{0};
    }

    void write(pa address, unsigned size, std::uint64_t value) noexcept {
        if constexpr (has_counters) {
            if (is_at(machine_map::smmu_counters, address, size)) {
                smmu.performance_monitor().mmio_write(
                    raw(address) - raw(machine_map::smmu_counters.base), size, value);
                return;
            }
        }
        if (is_at(machine_map::smmu, address, size)) {
            smmu.mmio_write(raw(address) - raw(machine_map::smmu.base), size, value);
        } else if (is_at(machine_map::disk, address, size)) {
            disk.write(raw(address) - raw(machine_map::disk.base), size, value);
        } else if (pci != nullptr && is_at(machine_map::pci_memory, address, size)) {
            pci->write(address, size, value);
        } else if (pci != nullptr && is_at(machine_map::pci_configuration, address, size)) {
            pci->write_configuration(raw(address) - raw(machine_map::pci_configuration.base), size,
                                     value);
        } else if (is_at(machine_map::uart, address, size)) {
            uart.write(raw(address) - raw(machine_map::uart.base),
                       static_cast<std::uint32_t>(value));
        } else if (injector != nullptr && address == machine_map::injector.base && size == 4) {
            injector->write(static_cast<std::uint32_t>(value));
        }
    }
};

} // namespace linux_vmm
