/// Copies between host objects and memory that a guest writes at will.
///
/// Guest memory is shared with processors that follow no C++ rule. Ordinary
/// builds use memcpy; builds under ThreadSanitizer copy with relaxed atomic
/// accesses, so that what it reports are races of ours.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SANITIZE_THREAD__)
#define VM_ACCEL_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define VM_ACCEL_THREAD_SANITIZER 1
#endif
#endif
#if !defined(VM_ACCEL_THREAD_SANITIZER)
#define VM_ACCEL_THREAD_SANITIZER 0
#endif

namespace vm_accel::inline v0 {

/// Copies out of guest memory.
inline void copy_from_guest(std::byte* to, const std::byte* from, std::size_t bytes) noexcept {
#if VM_ACCEL_THREAD_SANITIZER
    for (std::size_t i = 0; i < bytes; ++i) {
        to[i] = std::atomic_ref<std::byte>{*const_cast<std::byte*>(from + i)}.load(
            std::memory_order_relaxed);
    }
#else
    std::memcpy(to, from, bytes);
#endif
}

/// Copies into guest memory.
inline void copy_to_guest(std::byte* to, const std::byte* from, std::size_t bytes) noexcept {
#if VM_ACCEL_THREAD_SANITIZER
    for (std::size_t i = 0; i < bytes; ++i) {
        std::atomic_ref<std::byte>{to[i]}.store(from[i], std::memory_order_relaxed);
    }
#else
    std::memcpy(to, from, bytes);
#endif
}

} // namespace vm_accel::inline v0
