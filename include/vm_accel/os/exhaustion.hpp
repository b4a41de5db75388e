/// What standard containers are told when there is no memory: the one place of
/// the library where a program is left by an exception.
#pragma once

#include <cstdlib>
#include <new>

namespace vm_accel::inline v0::os {

/// Throws std::bad_alloc; ends a program that has no exceptions (std::abort).
/// For allocators that the standard gives no other way to fail.
[[noreturn]] inline void report_exhaustion() {
#if defined(__cpp_exceptions)
    throw std::bad_alloc{};
#else
    std::abort();
#endif
}

} // namespace vm_accel::inline v0::os
