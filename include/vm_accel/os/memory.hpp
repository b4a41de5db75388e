/// `native_memory`: the memory calls of the platform this program is compiled for.
#pragma once

#include <vm_accel/os/memory_platform.hpp>

#if defined(__linux__)
#include <vm_accel/os/linux_memory.hpp>
#elif defined(_WIN32)
#include <vm_accel/os/windows_memory.hpp>
#elif defined(__APPLE__)
#include <vm_accel/os/macos_memory.hpp>
#endif

namespace vm_accel::inline v0::os {

#if defined(__linux__)
using native_memory = linux_memory;
#elif defined(_WIN32)
using native_memory = windows_memory;
#elif defined(__APPLE__)
using native_memory = macos_memory;
#else
using native_memory = unsupported_memory;
#endif

static_assert(memory_platform<native_memory> && memory_platform<unsupported_memory>);

} // namespace vm_accel::inline v0::os
