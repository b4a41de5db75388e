/// `native_platform`: the platform of the system this program is compiled for.
#pragma once

#include <vm_accel/affinity/linux_platform.hpp>
#include <vm_accel/affinity/macos_platform.hpp>
#include <vm_accel/affinity/platform.hpp>
#include <vm_accel/affinity/windows_platform.hpp>

#include <type_traits>

namespace vm_accel::inline v0 {

/// Where the system is none of the three, it is linux_platform, whose answers are then
/// `unsupported`. A program for iOS names ios_platform, which says why.
using native_platform =
    std::conditional_t<windows_platform::can_pin_threads, windows_platform,
                       std::conditional_t<macos_platform::present, macos_platform, linux_platform>>;

static_assert(affinity_platform<native_platform>);

} // namespace vm_accel::inline v0
