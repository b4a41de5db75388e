/// Threads for tests of pins: what they change of themselves ends with them.
#pragma once

#include <vm_accel/os/worker_thread.hpp>

#include <catch2/catch.hpp>

#include <atomic>
#include <functional>
#include <thread>
#include <utility>

namespace affinity_threads {

/// Runs on a thread of its own, so that this one stays where it is.
template <class Work>
void on_a_thread(Work work) {
    auto body = [&]() noexcept { work(); };
    vm_accel::os::worker_thread worker;
    REQUIRE(worker.start(body));
    worker.join();
}

/// A thread that does its work, of which the constructor awaits the end, and then stays until
/// it is let go.
class staying_thread {
public:
    explicit staying_thread(std::function<void()> work) : work_(std::move(work)) {
        REQUIRE(worker_.start(body_));
        while (!done_)
            std::this_thread::yield();
    }
    staying_thread(const staying_thread&) = delete;
    staying_thread& operator=(const staying_thread&) = delete;
    ~staying_thread() { let_go(); }

    void let_go() {
        go_ = true;
        worker_.join();
    }

private:
    struct body {
        staying_thread& of;
        void operator()() noexcept {
            of.work_();
            of.done_ = true;
            while (!of.go_)
                std::this_thread::yield();
        }
    };

    std::function<void()> work_;
    std::atomic<bool> done_{false}, go_{false};
    body body_{*this};
    vm_accel::os::worker_thread worker_{}; // last: joined before the rest goes
};

} // namespace affinity_threads
