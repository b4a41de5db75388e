/// A VMM in small: an SMMU that the guest has not enabled, and a device behind it.
#include <vm_accel/guest/region_map.hpp>
#include <vm_accel/smmu/caches/set_associative.hpp>
#include <vm_accel/smmu/host/bitmap_streams.hpp>
#include <vm_accel/smmu/smmu.hpp>

#include <array>
#include <cstddef>
#include <memory>

namespace {
alignas(4096) std::byte ram[2 * 4096];
}

int main() {
    using namespace vm_accel;
    using device = smmu<set_associative<64, 4>, bitmap_streams<64>>;

    region_map memory;
    counting_sink sink;
    const auto iommu = std::make_unique<device>(memory, sink);
    if (!memory.add(pa{0x1000}, ram, sizeof(ram)) || !iommu->init()) return 1;
    if (!iommu->attach_device("disk", {pa{0x1000}, sizeof(ram)})) return 2;
    auto port = iommu->make_port("disk");
    if (!port) return 3;

    std::array<std::byte, 4> bytes{};
    ram[4] = std::byte{0x5a};
    if (!port->read(iova{0x1004}, bytes) || bytes[0] != std::byte{0x5a}) return 4;
    if (port->read(iova{0x3000}, bytes)) return 5; // outside its window
    return 0;
}
