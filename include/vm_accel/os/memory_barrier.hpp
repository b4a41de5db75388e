/// A barrier on every thread of the process at once: membarrier(2) on Linux,
/// FlushProcessWriteBuffers() on Windows.
///
/// It lets the frequent side of a protocol run without fences: the rare side
/// makes all running threads pass one.
#pragma once

#include <atomic>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(_WIN32)
#include <vm_accel/os/windows_calls.hpp>
#endif

namespace vm_accel::inline v0::os {

/// Expedited private membarrier, or Windows's equal, which interrupts every processor that
/// runs a thread of this process and cannot fail. register_process() must have succeeded in this
/// process before run() is used.
struct process_barrier {
    /// False where the kernel has no such call, or a seccomp filter refuses it.
    [[nodiscard]] static bool register_process() noexcept {
#if defined(__linux__) && defined(__NR_membarrier)
        return ::syscall(__NR_membarrier, register_private_expedited, 0, 0) == 0;
#elif defined(_WIN32)
        return true;
#else
        return false;
#endif
    }

    /// Every thread of this process executes a full barrier before this returns.
    /// False = it did not happen.
    [[nodiscard]] static bool run() noexcept {
#if defined(__linux__) && defined(__NR_membarrier)
        std::atomic_thread_fence(std::memory_order_seq_cst);
        return ::syscall(__NR_membarrier, private_expedited, 0, 0) == 0;
#elif defined(_WIN32)
        std::atomic_thread_fence(std::memory_order_seq_cst);
        ::FlushProcessWriteBuffers();
        return true;
#else
        return false;
#endif
    }

private:
    static constexpr int private_expedited = 1 << 3;
    static constexpr int register_private_expedited = 1 << 4;
};

} // namespace vm_accel::inline v0::os
