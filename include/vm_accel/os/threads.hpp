/// `native_threads`: the thread calls of the platform this program is compiled for.
#pragma once

#include <vm_accel/os/thread_platform.hpp>

#if defined(__linux__)
#include <vm_accel/os/linux_threads.hpp>
#elif defined(_WIN32)
#include <vm_accel/os/windows_threads.hpp>
#elif defined(__APPLE__)
#include <vm_accel/os/macos_threads.hpp>
#endif

namespace vm_accel::inline v0::os {

#if defined(__linux__)
using native_threads = linux_threads;
#elif defined(_WIN32)
using native_threads = windows_threads;
#elif defined(__APPLE__)
using native_threads = macos_threads;
#else
using native_threads = unsupported_threads;
#endif

static_assert(thread_platform<native_threads> && thread_platform<unsupported_threads>);

} // namespace vm_accel::inline v0::os
