/// A thread beside the vCPUs: it serves a device, or the work that the SMMU puts
/// off because one register write may only do so much.
#pragma once

#include <vm_accel/os/wakeup.hpp>

#include <poll.h>
#include <pthread.h>

#include <atomic>
#include <thread>
#include <utility>

namespace linux_vmm {

struct stays_anywhere {
    void operator()(const char* /*name*/) const noexcept {}
};

/// Runs from construction to destruction, and calls `work` whenever `bell` rings
/// or `other_fd` is readable (-1: none). `Work`: void() noexcept. `Place`, void(name) noexcept,
/// is called first, on the thread.
template <class Work, class Place = stays_anywhere>
class io_thread {
public:
    /// `name`: at most 15 characters, as the kernel shows it.
    io_thread(const char* name, vm_accel::os::wakeup& bell, int other_fd, Work work,
              Place place = {})
        : bell_(bell), other_fd_(other_fd), work_(std::move(work)), thread_([this, name, place] {
              ::pthread_setname_np(::pthread_self(), name);
              place(name);
              run();
          }) {}
    io_thread(const io_thread&) = delete;
    io_thread& operator=(const io_thread&) = delete;
    ~io_thread() {
        stopping_ = true;
        bell_.signal();
        thread_.join();
    }

private:
    void run() noexcept {
        pollfd awaited[] = {{bell_.fd(), POLLIN, 0}, {other_fd_, POLLIN, 0}};
        for (;;) {
            ::poll(awaited, 2, -1);
            if (stopping_) return; // the guest has ended: its rings are no longer ours
            bell_.clear();
            work_();
        }
    }

    vm_accel::os::wakeup& bell_;
    const int other_fd_;
    Work work_;
    std::atomic<bool> stopping_{false};
    std::thread thread_; ///< last: it uses the others
};

} // namespace linux_vmm
