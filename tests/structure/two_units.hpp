/// What one translation unit offers the other.
#pragma once

#include <vm_accel/vm_accel.hpp>

namespace other_unit {

using device = vm_accel::smmu<vm_accel::set_associative<64, 4>, vm_accel::bitmap_streams<64>>;

const void* address_of_version();
vm_accel::result<vm_accel::pa> first_page(const vm_accel::region_map& memory);
std::uint64_t read_idr0(device& d);

} // namespace other_unit
