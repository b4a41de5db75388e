/// Where things are in the guest's machine: one table that the device tree, the
/// bus and the interrupt wiring all read.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/guest/interrupt_sink.hpp>

#include <cstdint>

namespace linux_vmm {

using vm_accel::pa;
using vm_accel::pa_range;

namespace machine_map {

inline constexpr pa_range gic_distributor{pa{0x0800'0000}, 0x1'0000};
/// The interrupt translation service: where devices write their messages.
inline constexpr pa_range gic_its{pa{0x0808'0000}, 0x2'0000};
/// One redistributor is two 64 KiB frames.
inline constexpr pa gic_redistributors{0x080a'0000};
inline constexpr std::uint64_t gic_redistributor_bytes = 0x2'0000;
inline constexpr unsigned max_vcpus = 64;

inline constexpr pa_range uart{pa{0x0900'0000}, 0x1000};
inline constexpr pa_range smmu{pa{0x0905'0000}, 0x2'0000};
inline constexpr pa_range smmu_counters{pa{0x0907'0000}, 0x1000};
inline constexpr pa_range disk{pa{0x0a00'0000}, 0x1000};
inline constexpr pa_range injector{pa{0x0b00'0000}, 0x1000};

/// The PCI host bridge: where BARs are placed, and one bus of configuration space.
inline constexpr pa_range pci_memory{pa{0x1000'0000}, 0x1000'0000};
inline constexpr pa_range pci_configuration{pa{0x3f00'0000}, 0x10'0000};

inline constexpr pa ram_base{0x4000'0000};

/// Shared peripheral interrupts, numbered from 0 as in device trees.
inline constexpr unsigned uart_spi = 1;
inline constexpr unsigned disk_spi = 16;
/// In the order of `wired_interrupt`.
inline constexpr unsigned smmu_first_spi = 74;

/// What the translation service knows the SMMU's own messages by, and those of
/// its performance monitor; no StreamID.
inline constexpr std::uint32_t smmu_device = 0x1;
/// What the device tree's `iommus` property gives to the disk.
inline constexpr std::uint32_t disk_stream = 0x10;
/// Requester ID of the disk on the PCI bus: device 1, function 0.
inline constexpr std::uint32_t pci_disk = 1u << 3;
/// A PCI function's StreamID, and its DeviceID for the translation service, are
/// its requester ID plus this.
inline constexpr std::uint32_t pci_first_stream = 0x100;
inline constexpr std::uint32_t pci_requesters = 0x100;
inline constexpr std::uint32_t pci_disk_stream = pci_first_stream + pci_disk;
/// Shares the level-2 stream table of the disk: Linux allocates these tables
/// per 256 StreamIDs, and fills them with entries that abort (Config = 0b000).
inline constexpr std::uint32_t aborting_stream = 0x11;
/// In a group of 256 StreamIDs without any device: no level-2 table there.
inline constexpr std::uint32_t tableless_stream = 0x1010;

static_assert(raw(gic_its.base) + gic_its.size <= raw(gic_redistributors));
static_assert(raw(gic_redistributors) + max_vcpus * gic_redistributor_bytes <= raw(uart.base));

} // namespace machine_map
} // namespace linux_vmm
