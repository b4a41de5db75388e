/// What standard containers are told when there is no memory: the one place of
/// the library where a program is left by an exception.
///
/// A program may have been compiled in parts, some with exceptions and some
/// without. What depends on that lies in an inline namespace named after it, and
/// so does every class that uses it: the linker never takes one for the other.
#pragma once

#include <cstdlib>
#include <new>

#if defined(__cpp_exceptions)
#define VM_ACCEL_EXHAUSTION_MODE exhaustion_throws
#else
#define VM_ACCEL_EXHAUSTION_MODE exhaustion_aborts
#endif

namespace vm_accel::inline v0::os::inline VM_ACCEL_EXHAUSTION_MODE {

/// Throws std::bad_alloc; ends a program that has no exceptions (std::abort).
/// For allocators that the standard gives no other way to fail.
[[noreturn]] inline void report_exhaustion() {
#if defined(__cpp_exceptions)
    throw std::bad_alloc{};
#else
    std::abort();
#endif
}

} // namespace vm_accel::inline v0::os::inline VM_ACCEL_EXHAUSTION_MODE
