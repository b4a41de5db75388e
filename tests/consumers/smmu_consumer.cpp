#include <vm_accel/core/version.hpp>
#include <vm_accel/guest/region_map.hpp>

#include <cstddef>

namespace {
alignas(4096) std::byte ram[4096];
}

int main() {
    vm_accel::region_map memory;
    return memory.add(vm_accel::pa{0}, ram, sizeof(ram)) ? 0 : 1;
}
