/// A thread whose start can fail as a value, joined by its owner.
///
/// std::thread reports a refused start (a limit on processes, no memory) only by
/// an exception; set-up code must be able to go on without the thread.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/descriptor.hpp>

#include <pthread.h>

#include <utility>

namespace vm_accel::inline v0::os {

/// Runs one piece of work. Movable; the destructor waits for the work's end.
class worker_thread {
public:
    worker_thread() noexcept = default;
    worker_thread(worker_thread&& other) noexcept
        : handle_(other.handle_), running_(std::exchange(other.running_, false)) {}
    worker_thread& operator=(worker_thread&& other) noexcept {
        if (this != &other) {
            join();
            handle_ = other.handle_;
            running_ = std::exchange(other.running_, false);
        }
        return *this;
    }
    ~worker_thread() { join(); }

    /// Calls `work()` on a new thread. `work` must stay until join() has returned
    /// and must not throw. Errors: busy (this object has a thread), exhausted (the
    /// system will not start another).
    template <class Work>
    [[nodiscard]] result<> start(Work& work) noexcept {
        static_assert(noexcept(work()), "work on a worker_thread must be noexcept");
        if (running_)
            return fail(errc::busy, "starting a thread: this object already runs one",
                        "join() it first");
        const int reason = ::pthread_create(&handle_, nullptr, &run<Work>, &work);
        if (reason != 0) {
            fixed_text<160> cause{"starting a thread: error "};
            cause.append_number(static_cast<unsigned>(reason));
            return fail(errc::exhausted, cause,
                        "raise the limit on processes (ulimit -u, pids cgroup)", reason);
        }
        running_ = true;
        return {};
    }

    /// Waits for the work's end; returns at once without a thread.
    void join() noexcept {
        if (std::exchange(running_, false)) static_cast<void>(::pthread_join(handle_, nullptr));
    }

private:
    template <class Work>
    static void* run(void* work) noexcept {
        (*static_cast<Work*>(work))();
        return nullptr;
    }

    ::pthread_t handle_{};
    bool running_ = false;
};

} // namespace vm_accel::inline v0::os
