/// The configuration space of one PCI Express function with one memory BAR.
///
/// Two arrays of 4 KiB: what reads give, and which bits writes can change. All
/// else about a register is up to who asks afterwards.
#pragma once

#include <vm_accel/core/address.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>

namespace linux_vmm {

using vm_accel::pa;
using vm_accel::pa_range;

/// Offsets and bits of a type 0 header (PCI 3.0, 6.1).
namespace pci_header {
inline constexpr std::uint16_t vendor = 0x00, device = 0x02, command = 0x04, status = 0x06,
                               revision = 0x08, class_code = 0x09, bar0 = 0x10,
                               subsystem_vendor = 0x2c, subsystem = 0x2e, capabilities = 0x34,
                               first_free = 0x40;
inline constexpr std::uint16_t memory_space = 1u << 1, bus_master = 1u << 2,
                               interrupt_disable = 1u << 10;
inline constexpr std::uint16_t has_capabilities = 1u << 4;
} // namespace pci_header

inline constexpr std::uint64_t pci_function_bytes = 0x1000;

struct pci_identity {
    std::uint16_t vendor = 0, device = 0, subsystem_vendor = 0, subsystem = 0;
    std::uint8_t revision = 0;
    std::uint32_t class_code = 0; ///< 24 bits
};

/// Threads: put() and allow() while it is built; then any.
class pci_configuration {
public:
    /// `bar_bytes`: size of the 32-bit memory BAR 0, a power of two from 4096 on.
    pci_configuration(const pci_identity& who, std::uint32_t bar_bytes) noexcept
        : bar_bytes_(bar_bytes) {
        using namespace pci_header;
        put(vendor, who.vendor, 2);
        put(device, who.device, 2);
        put(revision, who.revision, 1);
        put(class_code, who.class_code, 3);
        put(subsystem_vendor, who.subsystem_vendor, 2);
        put(subsystem, who.subsystem, 2);
        allow(command, memory_space | bus_master | interrupt_disable, 2);
        allow(bar0, ~(bar_bytes - 1), 4); // writing ones shows the size
    }

    /// Adds `bytes` of a capability after the last one; returns its offset.
    std::uint16_t add_capability(std::uint8_t id, std::uint16_t bytes) noexcept {
        const std::uint16_t at = next_;
        put(pci_header::status, pci_header::has_capabilities, 2);
        put(link_, at, 1);
        put(at, id, 1);
        link_ = static_cast<std::uint16_t>(at + 1);
        next_ = static_cast<std::uint16_t>((at + bytes + 3) & ~3);
        return at;
    }
    /// The same in the extended space, from 0x100 on.
    std::uint16_t add_extended_capability(std::uint16_t id, std::uint8_t version,
                                          std::uint16_t bytes) noexcept {
        const std::uint16_t at = next_extended_;
        if (link_extended_ != 0) {
            const std::uint64_t before = value_of(link_extended_, 4) & 0x000f'ffff;
            put(link_extended_, before | std::uint64_t{at} << 20, 4);
        }
        put(at, std::uint32_t{version} << 16 | id, 4);
        link_extended_ = at;
        next_extended_ = static_cast<std::uint16_t>((at + bytes + 3) & ~3);
        return at;
    }
    /// Sets what reads give.
    void put(std::uint16_t at, std::uint64_t value, unsigned size) noexcept {
        for (unsigned i = 0; i < size; ++i)
            value_[at + i] = static_cast<std::uint8_t>(value >> (8 * i));
    }
    /// Lets writes change the bits of `mask`.
    void allow(std::uint16_t at, std::uint64_t mask, unsigned size) noexcept {
        for (unsigned i = 0; i < size; ++i)
            writable_[at + i] = static_cast<std::uint8_t>(mask >> (8 * i));
    }

    /// Accesses outside the function's 4 KiB read as 0.
    [[nodiscard]] std::uint64_t read(std::uint64_t at, unsigned size) noexcept {
        const std::lock_guard lock{mutex_};
        return is_inside(at, size) ? value_of(static_cast<std::uint16_t>(at), size) : 0;
    }
    void write(std::uint64_t at, unsigned size, std::uint64_t value) noexcept {
        const std::lock_guard lock{mutex_};
        if (!is_inside(at, size)) return;
        for (unsigned i = 0; i < size; ++i) {
            const auto byte = static_cast<std::uint8_t>(value >> (8 * i));
            std::uint8_t& now = value_[at + i];
            const std::uint8_t open = writable_[at + i];
            now = static_cast<std::uint8_t>((now & ~open) | (byte & open));
        }
    }

    /// For a machine at rest.
    template <class State>
    void move_state(State& state) {
        const std::lock_guard lock{mutex_};
        state(value_);
    }

    /// Where BAR 0 answers; empty while memory accesses are off.
    [[nodiscard]] pa_range window() noexcept {
        const std::lock_guard lock{mutex_};
        if ((value_of(pci_header::command, 2) & pci_header::memory_space) == 0) return {};
        return {pa{value_of(pci_header::bar0, 4)}, bar_bytes_};
    }
    /// Whether the function may do DMA and send messages.
    [[nodiscard]] bool is_bus_master() noexcept {
        return (read(pci_header::command, 2) & pci_header::bus_master) != 0;
    }

private:
    [[nodiscard]] static bool is_inside(std::uint64_t at, unsigned size) noexcept {
        return size <= 8 && at < pci_function_bytes && size <= pci_function_bytes - at;
    }
    [[nodiscard]] std::uint64_t value_of(std::uint16_t at, unsigned size) const noexcept {
        std::uint64_t value = 0;
        for (unsigned i = 0; i < size; ++i)
            value |= std::uint64_t{value_[at + i]} << (8 * i);
        return value;
    }

    std::mutex mutex_;
    std::array<std::uint8_t, pci_function_bytes> value_{};
    std::array<std::uint8_t, pci_function_bytes> writable_{};
    const std::uint32_t bar_bytes_;
    std::uint16_t link_ = pci_header::capabilities, next_ = pci_header::first_free;
    std::uint16_t link_extended_ = 0, next_extended_ = 0x100;
};

} // namespace linux_vmm
