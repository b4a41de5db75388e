/// Telling threads apart at the cost of one load.
#pragma once

namespace vm_accel::inline v0::os {

/// An address that differs between any two live threads.
[[nodiscard]] inline const void* this_thread_mark() noexcept {
#if defined(__linux__) && defined(__has_builtin)
#if __has_builtin(__builtin_thread_pointer) && (defined(__x86_64__) || defined(__aarch64__))
#define VM_ACCEL_THREAD_POINTER 1
#endif
#endif
#if defined(VM_ACCEL_THREAD_POINTER)
    return __builtin_thread_pointer();
#else
    thread_local char mark;
    return &mark;
#endif
}

} // namespace vm_accel::inline v0::os
