/// A descriptor that becomes readable when somebody wants attention: eventfd(2).
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/descriptor.hpp>

#include <cstdint>

#if defined(__linux__)
#include <sys/eventfd.h>
#include <unistd.h>
#endif

namespace vm_accel::inline v0::os {

/// Threads: open() once, before others know the object; then everything from any
/// thread. A wakeup that is not open does nothing.
class wakeup {
public:
    /// Opened again, it keeps the descriptor that others may be waiting on.
    /// Errors: exhausted (descriptors), unsupported (no eventfd on this system).
    [[nodiscard]] result<> open() noexcept {
#if defined(__linux__)
        if (fd_) return {};
        const int fd = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        if (fd < 0) return fail_with(errno, "eventfd", "close descriptors, or raise ulimit -n");
        fd_ = descriptor{fd};
        return {};
#else
        return fail(errc::unsupported, "eventfd: Linux only", "call poll() from a timer");
#endif
    }
    /// To wait on; -1 before open().
    [[nodiscard]] int fd() const noexcept {
#if defined(__unix__) || defined(__APPLE__)
        return fd_.get();
#else
        return -1;
#endif
    }
    void signal() noexcept {
#if defined(__linux__)
        const std::uint64_t one = 1;
        // The counter cannot overflow in practice, and a full one is readable anyway.
        if (fd_ && ::write(fd_.get(), &one, sizeof one) < 0) return;
#endif
    }
    /// Makes the descriptor unreadable again.
    void clear() noexcept {
#if defined(__linux__)
        std::uint64_t count = 0;
        if (fd_ && ::read(fd_.get(), &count, sizeof count) < 0) return;
#endif
    }

private:
#if defined(__unix__) || defined(__APPLE__)
    descriptor fd_;
#endif
};

} // namespace vm_accel::inline v0::os
