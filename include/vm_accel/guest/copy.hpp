/// Copies between host objects and memory that a guest writes at will.
///
/// Guest memory is shared with processors that follow no C++ rule. An aligned
/// copy of 2, 4 or 8 bytes is one access, as a device's is on a bus: a ring index
/// is never seen half old and half new. (A memcpy whose size is not known while
/// compiling gives no such promise; on arm64 it copies 2 bytes one by one.) Other
/// copies are memcpy; under ThreadSanitizer they are relaxed atomic accesses, so
/// that what it reports are races of ours.
///
/// Out of line: where GCC 12 inlines them for a small object, it warns of the
/// branches for larger ones.
#pragma once

#include <vm_accel/core/atomic_view.hpp>

#include <atomic>
#include <bit>
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

namespace guest_access {

/// Whether a Word at that host address of guest memory can be one access.
template <class Word>
[[nodiscard]] inline bool is_aligned(const std::byte* guest) noexcept {
    return std::bit_cast<std::uintptr_t>(guest) % sizeof(Word) == 0;
}
template <class Word>
inline void load(std::byte* to, const std::byte* from) noexcept {
    // atomic_view wants a mutable object; it is only read.
    const auto* const object = reinterpret_cast<const Word*>(from);
    const Word word = atomic_view<Word>{*const_cast<Word*>(object)}.load(std::memory_order_relaxed);
    std::memcpy(to, &word, sizeof word);
}
template <class Word>
inline void store(std::byte* to, const std::byte* from) noexcept {
    Word word;
    std::memcpy(&word, from, sizeof word);
    atomic_view<Word>{*reinterpret_cast<Word*>(to)}.store(word, std::memory_order_relaxed);
}

} // namespace guest_access

/// Copies out of guest memory.
[[gnu::noinline]] inline void copy_from_guest(std::byte* to, const std::byte* from,
                                              std::size_t bytes) noexcept {
    using namespace guest_access;
    if (bytes == 8 && is_aligned<std::uint64_t>(from)) return load<std::uint64_t>(to, from);
    if (bytes == 4 && is_aligned<std::uint32_t>(from)) return load<std::uint32_t>(to, from);
    if (bytes == 2 && is_aligned<std::uint16_t>(from)) return load<std::uint16_t>(to, from);
#if VM_ACCEL_THREAD_SANITIZER
    for (std::size_t i = 0; i < bytes; ++i)
        load<std::uint8_t>(to + i, from + i);
#else
    std::memcpy(to, from, bytes);
#endif
}

/// Copies into guest memory.
[[gnu::noinline]] inline void copy_to_guest(std::byte* to, const std::byte* from,
                                            std::size_t bytes) noexcept {
    using namespace guest_access;
    if (bytes == 8 && is_aligned<std::uint64_t>(to)) return store<std::uint64_t>(to, from);
    if (bytes == 4 && is_aligned<std::uint32_t>(to)) return store<std::uint32_t>(to, from);
    if (bytes == 2 && is_aligned<std::uint16_t>(to)) return store<std::uint16_t>(to, from);
#if VM_ACCEL_THREAD_SANITIZER
    for (std::size_t i = 0; i < bytes; ++i)
        store<std::uint8_t>(to + i, from + i);
#else
    std::memcpy(to, from, bytes);
#endif
}

} // namespace vm_accel::inline v0
