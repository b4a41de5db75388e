/// Two translation units that include everything link into one program and share its types.
#include "two_units.hpp"

#include <cstddef>
#include <iostream>

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
    std::cout << "two translation units agree\n";
    return 0;
}
