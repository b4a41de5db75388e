// Reads the tree back with libfdt, as the guest's kernel would.
#include "../../examples/linux_kvm_arm64/device_tree.hpp"

#include <catch2/catch.hpp>

#include <map>
#include <string>
#include <vector>

using namespace linux_vmm;

namespace {

/// A finished tree and questions to it.
struct parsed_tree {
    std::vector<std::byte> blob;

    explicit parsed_tree(const machine_description& machine) {
        auto built = build_device_tree(machine);
        REQUIRE(built);
        blob = std::move(*built);
        REQUIRE(fdt_check_header(blob.data()) == 0);
        REQUIRE(fdt_totalsize(blob.data()) == blob.size());
    }
    [[nodiscard]] int node(const std::string& path) const {
        const int offset = fdt_path_offset(blob.data(), path.c_str());
        INFO(path);
        REQUIRE(offset >= 0);
        return offset;
    }
    [[nodiscard]] std::vector<std::uint32_t> cells(const std::string& path,
                                                   const char* name) const {
        int bytes = 0;
        const void* found = fdt_getprop(blob.data(), node(path), name, &bytes);
        INFO(path << " " << name);
        REQUIRE(found != nullptr);
        std::vector<std::uint32_t> values;
        for (int i = 0; i < bytes / 4; ++i)
            values.push_back(fdt32_ld(static_cast<const fdt32_t*>(found) + i));
        return values;
    }
    [[nodiscard]] std::string text(const std::string& path, const char* name) const {
        int bytes = 0;
        const void* found = fdt_getprop(blob.data(), node(path), name, &bytes);
        REQUIRE(found != nullptr);
        return {static_cast<const char*>(found), static_cast<std::size_t>(bytes)};
    }
    [[nodiscard]] bool has(const std::string& path, const char* name) const {
        return fdt_getprop(blob.data(), node(path), name, nullptr) != nullptr;
    }
};

machine_description two_nodes() {
    machine_description machine;
    machine.vcpu_nodes = {0, 1, 1};
    machine.memories = {{{pa{0x4000'0000}, 0x800'0000}, 0}, {{pa{0x4800'0000}, 0x1'0000'0000}, 1}};
    machine.distance_cells = {0, 0, 10, 0, 1, 20, 1, 0, 21, 1, 1, 10};
    machine.command_line = "console=ttyAMA0";
    machine.initrd = pa{0x4400'0000};
    machine.initrd_bytes = 77;
    return machine;
}

using list = std::vector<std::uint32_t>;

} // namespace

TEST_CASE("device tree: processors start by PSCI and know their node") {
    const parsed_tree tree{two_nodes()};
    for (const auto& [name, node] : std::map<std::string, std::uint32_t>{
             {"/cpus/cpu@0", 0}, {"/cpus/cpu@1", 1}, {"/cpus/cpu@2", 1}}) {
        CHECK(tree.text(name, "enable-method") == std::string{"psci\0", 5});
        CHECK(tree.cells(name, "numa-node-id") == list{node});
    }
    CHECK(tree.text("/psci", "method") == std::string{"hvc\0", 4});
    CHECK(fdt_path_offset(tree.blob.data(), "/cpus/cpu@3") < 0);
    // The virtual timer's interrupt is PPI 11.
    CHECK(tree.cells("/timer", "interrupts").at(7) == 11);
}

TEST_CASE("device tree: vCPU 16 and above have more than one affinity level") {
    CHECK(mpidr_of(15) == 0xf);
    CHECK(mpidr_of(16) == 0x100);
    CHECK(mpidr_of(63) == 0x30f);
    CHECK(mpidr_of(4096) == 0x1'0000);
    machine_description machine = two_nodes();
    machine.vcpu_nodes.assign(20, 0);
    const parsed_tree tree{machine};
    CHECK(tree.cells("/cpus/cpu@103", "reg") == list{0x103});
}

TEST_CASE("device tree: memory and distances") {
    const parsed_tree tree{two_nodes()};
    CHECK(tree.cells("/memory@40000000", "reg") == list{0, 0x4000'0000, 0, 0x800'0000});
    CHECK(tree.cells("/memory@48000000", "reg") == list{0, 0x4800'0000, 1, 0});
    CHECK(tree.cells("/memory@48000000", "numa-node-id") == list{1});
    CHECK(tree.cells("/distance-map", "distance-matrix") ==
          list{0, 0, 10, 0, 1, 20, 1, 0, 21, 1, 1, 10});
    machine_description one = two_nodes();
    one.distance_cells.clear();
    const parsed_tree flat{one};
    CHECK(fdt_path_offset(flat.blob.data(), "/distance-map") < 0);
}

TEST_CASE("device tree: the disk is behind the SMMU, and both are coherent") {
    const parsed_tree tree{two_nodes()};
    const std::string smmu = "/iommu@9050000", disk = "/virtio_mmio@a000000";
    const list handle = tree.cells(smmu, "phandle");
    CHECK(tree.cells(smmu, "#iommu-cells") == list{1});
    CHECK(tree.cells(smmu, "reg") == list{0, 0x905'0000, 0, 0x2'0000});
    CHECK(tree.cells(disk, "iommus") == list{handle.at(0), machine_map::disk_stream});
    CHECK(tree.has(smmu, "dma-coherent"));
    CHECK(tree.has(disk, "dma-coherent"));
    // Linux finds the interrupts by name; each is an edge.
    CHECK(tree.text(smmu, "interrupt-names") ==
          std::string{"eventq\0priq\0cmdq-sync\0gerror\0", 29});
    CHECK(tree.cells(smmu, "interrupts") == list{0, 74, 1, 0, 75, 1, 0, 76, 1, 0, 77, 1});
}

TEST_CASE("device tree: a PCI function has a StreamID and a DeviceID") {
    machine_description machine = two_nodes();
    const parsed_tree without{machine};
    CHECK(fdt_path_offset(without.blob.data(), "/pcie@3f000000") < 0);
    CHECK(fdt_path_offset(without.blob.data(), "/intc@8000000/its@8080000") < 0);

    machine.pci = true;
    const parsed_tree tree{machine};
    const std::string host = "/pcie@3f000000", its = "/intc@8000000/its@8080000";
    const std::uint32_t smmu_handle = tree.cells("/iommu@9050000", "phandle").at(0);
    const std::uint32_t its_handle = tree.cells(its, "phandle").at(0);
    CHECK(tree.text(host, "compatible") == std::string{"pci-host-ecam-generic\0", 22});
    CHECK(tree.cells(host, "reg") == list{0, 0x3f00'0000, 0, 0x10'0000});
    CHECK(tree.cells(host, "bus-range") == list{0, 0}); // as much as 1 MiB holds
    CHECK(tree.cells(host, "ranges") ==
          list{0x0200'0000, 0, 0x1000'0000, 0, 0x1000'0000, 0, 0x1000'0000});
    CHECK(tree.cells(host, "iommu-map") == list{0, smmu_handle, 0x100, 0x100});
    CHECK(tree.cells(host, "msi-map") == list{0, its_handle, 0x100, 0x100});
    CHECK(tree.has(host, "dma-coherent"));
    CHECK(tree.text(its, "compatible") == std::string{"arm,gic-v3-its\0", 15});
    CHECK(tree.has(its, "msi-controller"));
    CHECK(tree.cells(its, "#msi-cells") == list{1});
    CHECK(tree.cells(its, "reg") == list{0, 0x808'0000, 0, 0x2'0000});
    CHECK(tree.has("/intc@8000000", "ranges"));
}

TEST_CASE("device tree: what only the full SMMU has") {
    machine_description machine = two_nodes();
    machine.messages = machine.ats = machine.stalls = machine.counters = machine.pci = true;
    machine.substream_bits = 6;
    const parsed_tree tree{machine}, plain{two_nodes()};
    const std::string smmu = "/iommu@9050000", disk = "/virtio_mmio@a000000";
    const std::string counters = "/pmu@9070000";
    const std::uint32_t its = tree.cells("/intc@8000000/its@8080000", "phandle").at(0);
    CHECK(tree.cells(smmu, "msi-parent") == list{its, machine_map::smmu_device});
    CHECK(tree.has("/pcie@3f000000", "ats-supported"));
    CHECK(tree.has(disk, "dma-can-stall"));
    CHECK(tree.cells(disk, "pasid-num-bits") == list{6});
    CHECK(tree.text(counters, "compatible") == std::string{"arm,smmu-v3-pmcg\0", 17});
    CHECK(tree.cells(counters, "reg") == list{0, 0x907'0000, 0, 0x1000});
    CHECK(tree.cells(counters, "interrupts") == list{0, 78, 1});
    CHECK(tree.cells(counters, "msi-parent") == list{its, machine_map::smmu_device});
    CHECK_FALSE(plain.has(smmu, "msi-parent"));
    CHECK_FALSE(plain.has(disk, "dma-can-stall"));
    CHECK_FALSE(plain.has(disk, "pasid-num-bits"));
    CHECK(fdt_path_offset(plain.blob.data(), counters.c_str()) < 0);
    // Messages need their service even where there is no PCI bus.
    machine.pci = false;
    const parsed_tree no_pci{machine};
    CHECK(fdt_path_offset(no_pci.blob.data(), "/intc@8000000/its@8080000") >= 0);
}

TEST_CASE("device tree: console, boot arguments and initial file system") {
    const parsed_tree tree{two_nodes()};
    CHECK(tree.text("/chosen", "bootargs") == std::string{"console=ttyAMA0\0", 16});
    CHECK(tree.cells("/chosen", "linux,initrd-start") == list{0, 0x4400'0000});
    CHECK(tree.cells("/chosen", "linux,initrd-end") == list{0, 0x4400'004d});
    const std::string console = tree.text("/chosen", "stdout-path");
    const std::string path = console.c_str();
    CHECK(tree.cells(path, "reg") == list{0, 0x900'0000, 0, 0x1000});
    CHECK(tree.cells(path, "clocks").at(0) == tree.cells("/apb-pclk", "phandle").at(0));
    CHECK(tree.cells("/", "interrupt-parent") == tree.cells("/intc@8000000", "phandle"));
    CHECK(tree.cells("/intc@8000000", "reg") ==
          list{0, 0x800'0000, 0, 0x1'0000, 0, 0x80a'0000, 0, 3 * 0x2'0000});
}

TEST_CASE("device tree: what does not fit is an error") {
    machine_description machine = two_nodes();
    machine.command_line.assign(200'000, 'x');
    const auto built = build_device_tree(machine);
    REQUIRE_FALSE(built);
    CHECK(built.error() == vm_accel::errc::exhausted);
}
