#include "two_units.hpp"

const void* other_unit::address_of_version() { return &vm_accel::library_version; }

vm_accel::result<vm_accel::pa> other_unit::first_page(const vm_accel::region_map& memory) {
    const auto run = memory.find(vm_accel::pa{0x1000});
    if (!run) return vm_accel::fail(vm_accel::errc::not_found, "no page at 0x1000");
    return run->base;
}

std::uint64_t other_unit::read_idr0(device& d) { return d.mmio_read(0, 4); }
