/// Adding to a word that one thread writes and others read.
#pragma once

#include <atomic>
#include <cstdint>

namespace vm_accel::inline v0::os {

/// Adds to a word that no other thread writes: a relaxed load, an addition and a
/// relaxed store. Where the processor can add to memory it is one instruction
/// without a lock, which GCC does not make of the three. Readers see the word
/// before or after, never torn.
inline void add_as_owner(std::atomic<std::uint64_t>& word, std::uint64_t number) noexcept {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__SANITIZE_THREAD__)
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define VM_ACCEL_ADDS_BY_LOAD_AND_STORE 1
#endif
#endif
#else
#define VM_ACCEL_ADDS_BY_LOAD_AND_STORE 1
#endif
#if defined(VM_ACCEL_ADDS_BY_LOAD_AND_STORE)
    word.store(word.load(std::memory_order_relaxed) + number, std::memory_order_relaxed);
#else
    asm volatile("addq %1, %0" : "+m"(word) : "er"(number) : "cc");
#endif
}

/// The same with release order. Processors that add in one instruction keep it anyway.
inline void release_add_as_owner(std::atomic<std::uint64_t>& word, std::uint64_t number) noexcept {
#if defined(VM_ACCEL_ADDS_BY_LOAD_AND_STORE)
    word.store(word.load(std::memory_order_relaxed) + number, std::memory_order_release);
#else
    std::atomic_signal_fence(std::memory_order_release);
    add_as_owner(word, number);
#endif
}

/// A statistic: as vm_accel::counter, for what is counted on the hottest path.
/// Written by one thread, read by any. Reads may be a moment late, never torn.
class owned_counter {
public:
    void add(std::uint64_t number = 1) noexcept { add_as_owner(value_, number); }
    [[nodiscard]] std::uint64_t read() const noexcept {
        return value_.load(std::memory_order_relaxed);
    }
    void reset() noexcept { value_.store(0, std::memory_order_relaxed); }

private:
    std::atomic<std::uint64_t> value_{0};
};

} // namespace vm_accel::inline v0::os
