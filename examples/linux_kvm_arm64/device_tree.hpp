/// The flattened device tree that tells Linux what machine it runs on.
#pragma once

#include "machine_map.hpp"

#include <vm_accel/core/result.hpp>

#include <libfdt.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace linux_vmm {

/// What differs from one guest to the next.
struct machine_description {
    struct memory {
        pa_range range{};
        std::uint32_t node = 0;
    };
    std::vector<std::uint32_t> vcpu_nodes; ///< NUMA node of each vCPU, in order
    std::vector<memory> memories;
    /// From, to, distance, for each pair of guest nodes; empty: one node, no map.
    std::vector<std::uint32_t> distance_cells;
    std::string command_line;
    pa initrd{};
    std::uint64_t initrd_bytes = 0;
    bool pci = false; ///< a PCI host bridge
    // What the SMMU has, and the guest's driver learns from the tree alone.
    bool messages = false;            ///< the SMMU's interrupts may be messages
    bool ats = false;                 ///< the host bridge forwards ATS requests
    bool stalls = false;              ///< the disk can wait for its faults
    std::uint32_t substream_bits = 0; ///< of the disk
    bool counters = false;            ///< a performance monitor beside the SMMU

    /// Whether there is a service that takes messages.
    [[nodiscard]] bool has_its() const noexcept { return pci || messages; }
};

/// The affinity fields that KVM gives to vCPU `index` in MPIDR_EL1.
[[nodiscard]] constexpr std::uint32_t mpidr_of(std::uint32_t index) noexcept {
    return (index & 0xf) | ((index >> 4) & 0xff) << 8 | ((index >> 12) & 0xff) << 16;
}

/// Writes a tree from top to bottom. The first failure sticks.
class tree_writer {
public:
    tree_writer() : blob_(128 * 1024) {
        check(fdt_create(blob_.data(), static_cast<int>(blob_.size())));
        check(fdt_finish_reservemap(blob_.data()));
    }

    /// Writes a node; `body` writes its properties and then its children.
    template <class Body>
    void node(const std::string& name, Body body) {
        check(fdt_begin_node(blob_.data(), name.c_str()));
        body();
        check(fdt_end_node(blob_.data()));
    }
    void flag(const char* name) { check(fdt_property(blob_.data(), name, nullptr, 0)); }
    void text(const char* name, std::string_view value) { texts(name, {value}); }
    void texts(const char* name, std::initializer_list<std::string_view> values) {
        std::string list;
        for (const std::string_view value : values)
            list.append(value).push_back('\0');
        check(fdt_property(blob_.data(), name, list.data(), static_cast<int>(list.size())));
    }
    void cells(const char* name, const std::vector<std::uint32_t>& values) {
        std::vector<fdt32_t> big;
        for (const std::uint32_t value : values)
            big.push_back(cpu_to_fdt32(value));
        check(fdt_property(blob_.data(), name, big.data(),
                           static_cast<int>(big.size() * sizeof(fdt32_t))));
    }
    void cell(const char* name, std::uint32_t value) { cells(name, {value}); }
    /// `reg` with two cells of address and two of size per range.
    void reg(std::initializer_list<pa_range> ranges) {
        std::vector<std::uint32_t> values;
        for (const pa_range& r : ranges) {
            for (const std::uint64_t wide : {std::uint64_t{raw(r.base)}, r.size}) {
                values.push_back(static_cast<std::uint32_t>(wide >> 32));
                values.push_back(static_cast<std::uint32_t>(wide));
            }
        }
        cells("reg", values);
    }
    void wide(const char* name, std::uint64_t value) {
        cells(name, {static_cast<std::uint32_t>(value >> 32), static_cast<std::uint32_t>(value)});
    }

    [[nodiscard]] vm_accel::result<std::vector<std::byte>> finish() {
        check(fdt_finish(blob_.data()));
        if (failure_ != 0) {
            return vm_accel::fail(
                vm_accel::errc::exhausted,
                vm_accel::fixed_text<160>{"device tree: "}.append(fdt_strerror(failure_)),
                "use fewer vCPUs or a shorter command line");
        }
        blob_.resize(fdt_totalsize(blob_.data()));
        return std::move(blob_);
    }

private:
    void check(int outcome) {
        if (failure_ == 0 && outcome != 0) failure_ = outcome;
    }

    std::vector<std::byte> blob_;
    int failure_ = 0;
};

namespace device_tree {

inline constexpr std::uint32_t gic_phandle = 1, clock_phandle = 2, smmu_phandle = 3,
                               its_phandle = 4;
/// First cell of an interrupt specifier, and its trigger type in the third.
inline constexpr std::uint32_t spi = 0, ppi = 1, edge_rising = 1, level_high = 4;

[[nodiscard]] inline std::string at(const char* name, pa address) {
    return std::string{
        vm_accel::fixed_text<64>{name}.append("@").append_number(raw(address), 16).view()}
        .replace(std::string_view{name}.size() + 1, 2, "");
}

inline void cpus(tree_writer& tree, const machine_description& machine) {
    tree.node("cpus", [&] {
        tree.cell("#address-cells", 1);
        tree.cell("#size-cells", 0);
        for (std::uint32_t i = 0; i < machine.vcpu_nodes.size(); ++i) {
            tree.node(at("cpu", pa{mpidr_of(i)}), [&] {
                tree.text("device_type", "cpu");
                tree.text("compatible", "arm,arm-v8");
                tree.cell("reg", mpidr_of(i));
                tree.text("enable-method", "psci");
                tree.cell("numa-node-id", machine.vcpu_nodes[i]);
            });
        }
    });
    tree.node("psci", [&] {
        tree.texts("compatible", {"arm,psci-1.0", "arm,psci-0.2"});
        tree.text("method", "hvc");
    });
    tree.node("timer", [&] {
        tree.text("compatible", "arm,armv8-timer");
        tree.flag("always-on");
        // Secure physical, non-secure physical, virtual, hypervisor physical.
        tree.cells("interrupts", {ppi, 13, level_high, ppi, 14, level_high, ppi, 11, level_high,
                                  ppi, 10, level_high});
    });
}

inline void memory(tree_writer& tree, const machine_description& machine) {
    for (const auto& m : machine.memories) {
        tree.node(at("memory", m.range.base), [&] {
            tree.text("device_type", "memory");
            tree.reg({m.range});
            tree.cell("numa-node-id", m.node);
        });
    }
    if (machine.distance_cells.empty()) return;
    tree.node("distance-map", [&] {
        tree.text("compatible", "numa-distance-map-v1");
        tree.cells("distance-matrix", machine.distance_cells);
    });
}

inline void interrupt_controller(tree_writer& tree, std::uint64_t vcpus, bool messages) {
    using namespace machine_map;
    tree.node(at("intc", gic_distributor.base), [&] {
        tree.text("compatible", "arm,gic-v3");
        tree.flag("interrupt-controller");
        tree.cell("#interrupt-cells", 3);
        tree.cell("#address-cells", 2);
        tree.cell("#size-cells", 2);
        tree.reg({gic_distributor, {gic_redistributors, vcpus * gic_redistributor_bytes}});
        tree.cell("phandle", gic_phandle);
        if (!messages) return;
        tree.flag("ranges");
        tree.node(at("its", gic_its.base), [&] {
            tree.text("compatible", "arm,gic-v3-its");
            tree.flag("msi-controller");
            tree.cell("#msi-cells", 1);
            tree.reg({gic_its});
            tree.cell("phandle", its_phandle);
        });
    });
}

inline void uart(tree_writer& tree) {
    tree.node("apb-pclk", [&] {
        tree.text("compatible", "fixed-clock");
        tree.cell("#clock-cells", 0);
        tree.cell("clock-frequency", 24'000'000);
        tree.text("clock-output-names", "clk24mhz");
        tree.cell("phandle", clock_phandle);
    });
    tree.node(at("pl011", machine_map::uart.base), [&] {
        tree.texts("compatible", {"arm,pl011", "arm,primecell"});
        tree.reg({machine_map::uart});
        tree.cells("interrupts", {spi, machine_map::uart_spi, level_high});
        tree.cells("clocks", {clock_phandle, clock_phandle});
        tree.texts("clock-names", {"uartclk", "apb_pclk"});
    });
}

inline void smmu_and_disk(tree_writer& tree, const machine_description& machine) {
    using namespace machine_map;
    tree.node(at("iommu", smmu.base), [&] {
        tree.text("compatible", "arm,smmu-v3");
        tree.reg({smmu});
        std::vector<std::uint32_t> lines;
        using enum vm_accel::wired_interrupt;
        for (const auto line : {eventq, priq, cmdq_sync, gerror}) {
            lines.insert(lines.end(),
                         {spi, smmu_first_spi + static_cast<std::uint32_t>(line), edge_rising});
        }
        tree.cells("interrupts", lines);
        tree.texts("interrupt-names",
                   {name_of(eventq), name_of(priq), name_of(cmdq_sync), name_of(gerror)});
        if (machine.messages) tree.cells("msi-parent", {its_phandle, smmu_device});
        tree.cell("#iommu-cells", 1);
        tree.flag("dma-coherent");
        tree.cell("phandle", smmu_phandle);
    });
    tree.node(at("virtio_mmio", disk.base), [&] {
        tree.text("compatible", "virtio,mmio");
        tree.reg({disk});
        tree.cells("interrupts", {spi, disk_spi, level_high});
        tree.cells("iommus", {smmu_phandle, disk_stream});
        if (machine.stalls) tree.flag("dma-can-stall");
        if (machine.substream_bits != 0) tree.cell("pasid-num-bits", machine.substream_bits);
        tree.flag("dma-coherent");
    });
    if (machine.counters) {
        tree.node(at("pmu", smmu_counters.base), [&] {
            tree.text("compatible", "arm,smmu-v3-pmcg");
            tree.reg({smmu_counters});
            if (machine.messages) tree.cells("msi-parent", {its_phandle, smmu_device});
            const auto line = static_cast<std::uint32_t>(vm_accel::wired_interrupt::performance);
            tree.cells("interrupts", {spi, smmu_first_spi + line, edge_rising});
        });
    }
    tree.node(at("injector", injector.base), [&] {
        tree.text("compatible", "vm-accel,injector");
        tree.reg({injector});
    });
}

/// One bus behind the SMMU. The guest places the BARs.
inline void pci_host(tree_writer& tree, const machine_description& machine) {
    using namespace machine_map;
    const auto high = [](std::uint64_t value) { return static_cast<std::uint32_t>(value >> 32); };
    const auto low = [](std::uint64_t value) { return static_cast<std::uint32_t>(value); };
    tree.node(at("pcie", pci_configuration.base), [&] {
        tree.text("compatible", "pci-host-ecam-generic");
        tree.text("device_type", "pci");
        tree.cell("#address-cells", 3);
        tree.cell("#size-cells", 2);
        tree.cells("bus-range", {0, 0});
        tree.reg({pci_configuration});
        // 32-bit memory space, one to one.
        constexpr std::uint32_t memory_space = 0x0200'0000;
        const std::uint64_t base = raw(pci_memory.base);
        tree.cells("ranges", {memory_space, high(base), low(base), high(base), low(base),
                              high(pci_memory.size), low(pci_memory.size)});
        // Requester ID, provider, its first number, how many.
        tree.cells("iommu-map", {0, smmu_phandle, pci_first_stream, pci_requesters});
        if (machine.ats) tree.flag("ats-supported");
        tree.cells("msi-map", {0, its_phandle, pci_first_stream, pci_requesters});
        tree.flag("dma-coherent");
    });
}

} // namespace device_tree

/// The whole tree. Error: exhausted.
[[nodiscard]] inline vm_accel::result<std::vector<std::byte>>
build_device_tree(const machine_description& machine) {
    using namespace device_tree;
    tree_writer tree;
    tree.node("", [&] {
        tree.text("compatible", "linux,dummy-virt");
        tree.text("model", "vm-accel");
        tree.cell("#address-cells", 2);
        tree.cell("#size-cells", 2);
        tree.cell("interrupt-parent", gic_phandle);
        tree.node("chosen", [&] {
            tree.text("bootargs", machine.command_line);
            tree.text("stdout-path", "/" + at("pl011", machine_map::uart.base));
            if (machine.initrd_bytes != 0) {
                tree.wide("linux,initrd-start", raw(machine.initrd));
                tree.wide("linux,initrd-end", raw(machine.initrd) + machine.initrd_bytes);
            }
        });
        cpus(tree, machine);
        memory(tree, machine);
        interrupt_controller(tree, machine.vcpu_nodes.size(), machine.has_its());
        uart(tree);
        smmu_and_disk(tree, machine);
        if (machine.pci) pci_host(tree, machine);
    });
    return tree.finish();
}

} // namespace linux_vmm
