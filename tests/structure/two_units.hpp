/// What one translation unit offers the other.
#pragma once

#include <vm_accel/vm_accel.hpp>

namespace other_unit {

const void* address_of_version();
vm_accel::result<vm_accel::pa> first_page(const vm_accel::region_map& memory);

} // namespace other_unit
