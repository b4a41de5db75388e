/// The name of a thread, as its operating system numbers it.
#pragma once

#include <cstdint>

namespace vm_accel::inline v0::os {

/// A thread of this process: gettid() on Linux, GetCurrentThreadId() on Windows,
/// pthread_threadid_np() on macOS. 0 is none.
enum class thread_id : std::uint64_t {};

} // namespace vm_accel::inline v0::os
