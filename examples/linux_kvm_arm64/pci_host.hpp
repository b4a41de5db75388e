/// A generic host bridge (device tree: pci-host-ecam-generic): one bus, whose
/// configuration space is a window of 4 KiB per function, and a window for BARs.
#pragma once

#include "machine_map.hpp"
#include "pci_configuration.hpp"

#include <cstdint>

namespace linux_vmm {

/// One function at machine_map::pci_disk; nothing else answers. `Function` has
/// read_configuration, write_configuration, window(), read and write.
/// Threads: all vCPU threads at once.
template <class Function>
class pci_host {
public:
    explicit pci_host(Function& function) noexcept : function_(function) {}

    /// `offset` into machine_map::pci_configuration.
    [[nodiscard]] std::uint64_t read_configuration(std::uint64_t offset, unsigned size) noexcept {
        if (!is_here(offset)) return ~std::uint64_t{0};
        return function_.read_configuration(offset % pci_function_bytes, size);
    }
    void write_configuration(std::uint64_t offset, unsigned size, std::uint64_t value) noexcept {
        if (is_here(offset))
            function_.write_configuration(offset % pci_function_bytes, size, value);
    }

    /// `address` in machine_map::pci_memory.
    [[nodiscard]] std::uint64_t read(pa address, unsigned size) noexcept {
        const pa_range window = function_.window();
        if (!window.contains(address, size)) return ~std::uint64_t{0};
        return function_.read(raw(address) - raw(window.base), size);
    }
    void write(pa address, unsigned size, std::uint64_t value) noexcept {
        const pa_range window = function_.window();
        if (!window.contains(address, size)) return;
        function_.write(raw(address) - raw(window.base), size, value);
    }

private:
    [[nodiscard]] static bool is_here(std::uint64_t offset) noexcept {
        return offset / pci_function_bytes == machine_map::pci_disk;
    }

    Function& function_;
};

} // namespace linux_vmm
