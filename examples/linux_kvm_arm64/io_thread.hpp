/// The thread beside the vCPUs: it serves the disk, and the work that the SMMU
/// puts off because one register write may only do so much.
#pragma once

#include <vm_accel/os/wakeup.hpp>

#include <poll.h>
#include <pthread.h>

#include <atomic>
#include <thread>

namespace linux_vmm {

/// Runs from construction to destruction. `bell` rings when the disk is notified.
template <class Smmu, class Disk>
class io_thread {
public:
    io_thread(Smmu& smmu, Disk& disk, vm_accel::os::wakeup& bell)
        : bell_(bell), thread_([this, &smmu, &disk] { run(smmu, disk); }) {}
    io_thread(const io_thread&) = delete;
    io_thread& operator=(const io_thread&) = delete;
    ~io_thread() {
        stopping_ = true;
        bell_.signal();
        thread_.join();
    }

private:
    void run(Smmu& smmu, Disk& disk) noexcept {
        ::pthread_setname_np(::pthread_self(), "disk-io");
        pollfd awaited[] = {{bell_.fd(), POLLIN, 0}, {smmu.deferred_work_fd(), POLLIN, 0}};
        while (!stopping_) {
            ::poll(awaited, 2, -1);
            bell_.clear();
            while (smmu.poll()) {}
            disk.serve();
        }
    }

    vm_accel::os::wakeup& bell_;
    std::atomic<bool> stopping_{false};
    std::thread thread_;
};

} // namespace linux_vmm
