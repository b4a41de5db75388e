/// `native_placement`: following memory on the platform this program is compiled for.
#pragma once

#include <vm_accel/os/placement_platform.hpp>

#if defined(__linux__)
#include <vm_accel/os/linux_placement.hpp>
#endif

namespace vm_accel::inline v0::os {

#if defined(__linux__)
using native_placement = linux_placement;
#else
using native_placement = unsupported_placement;
#endif

static_assert(placement_platform<native_placement> && placement_platform<unsupported_placement>);

} // namespace vm_accel::inline v0::os
