/// Two translation units that include everything link into one program and share its types.
#include "two_units.hpp"

#include <cstddef>
#include <iostream>
#include <memory>

namespace {
alignas(4096) std::byte ram[4096];
}

int main() {
    vm_accel::region_map memory;
    if (!memory.add(vm_accel::pa{0x1000}, ram, sizeof(ram))) return 1;
    if (other_unit::first_page(memory) != vm_accel::pa{0x1000}) return 2;
    if (!memory.remove(vm_accel::pa{0x1000})) return 3;
    const auto gone = other_unit::first_page(memory);
    if (gone || !(gone.error() == vm_accel::errc::not_found)) return 4;
    // An inline variable is one object in the whole program.
    if (other_unit::address_of_version() != &vm_accel::library_version) return 5;
    // A device made here answers there.
    vm_accel::counting_sink sink;
    const auto device = std::make_unique<other_unit::device>(memory, sink);
    if (!device->init()) return 6;
    if (device->mmio_read(0, 4) == 0) return 7;
    if (other_unit::read_idr0(*device) != device->mmio_read(0, 4)) return 8;
    std::cout << "two translation units agree\n";
    return 0;
}
