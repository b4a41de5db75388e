/// Wakes the I/O thread.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/descriptor.hpp>

#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdint>

namespace linux_vmm {

/// An eventfd: rings that come before the thread looks count as one.
/// Threads: any may ring, one waits.
class doorbell {
public:
    [[nodiscard]] static vm_accel::result<doorbell> create() noexcept {
        doorbell bell;
        bell.event_ = vm_accel::os::descriptor{::eventfd(0, EFD_CLOEXEC)};
        if (!bell.event_) {
            return vm_accel::os::fail_with(errno, "eventfd", "raise the open file limit");
        }
        return bell;
    }

    void ring() const noexcept {
        const std::uint64_t one = 1;
        // It can only fail when the counter is full, and then the thread is awake.
        [[maybe_unused]] const ssize_t n = ::write(event_.get(), &one, sizeof one);
    }
    void wait() const noexcept {
        std::uint64_t rings = 0;
        [[maybe_unused]] const ssize_t n = ::read(event_.get(), &rings, sizeof rings);
    }

private:
    vm_accel::os::descriptor event_;
};

} // namespace linux_vmm
