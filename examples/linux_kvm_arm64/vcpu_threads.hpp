/// The threads that are the guest's processors: pinned, named, run and stopped
/// together.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/hypervisor/hypervisor.hpp>

#include <pthread.h>

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace linux_vmm {

/// Why the guest no longer runs.
struct guest_end {
    bool timed_out = false;
    bool suspended = false;
    vm_accel::vcpu_exit exit{};
    std::optional<vm_accel::error> failure{}; ///< of KVM itself

    [[nodiscard]] bool powered_off() const noexcept {
        return !timed_out && !suspended && !failure &&
               exit.reason == vm_accel::exit_reason::shutdown;
    }
    [[nodiscard]] std::string text() const {
        if (timed_out) return "stopped: out of time";
        if (suspended) return "suspended";
        if (failure) return std::string{failure->cause.view()};
        if (powered_off()) return "powered off";
        return std::string{name_of(exit.reason)} + ", code " + std::to_string(exit.code) +
               ", address " + std::to_string(exit.address);
    }
};

/// The name of a vCPU's thread, as the kernel shows it.
[[nodiscard]] inline std::string thread_name(std::size_t vcpu) {
    return "vcpu" + std::to_string(vcpu);
}

/// Runs vCPUs until one of them ends the guest, or the time is over.
template <vm_accel::virtual_cpu Vcpu>
class vcpu_threads {
public:
    explicit vcpu_threads(std::vector<Vcpu>& vcpus) : vcpus_(vcpus) {}

    /// `pin(index)` is called on each vCPU's thread before the guest is entered.
    /// `seconds` 0: no limit. Returns when all threads have ended.
    template <class Bus, class Pin>
    [[nodiscard]] guest_end run(Bus& bus, Pin pin, unsigned seconds) {
        std::vector<std::thread> threads;
        for (std::size_t i = 0; i < vcpus_.size(); ++i) {
            threads.emplace_back([this, &bus, &pin, i] {
                ::pthread_setname_np(::pthread_self(), thread_name(i).c_str());
                pin(static_cast<unsigned>(i));
                run_one(vcpus_[i], bus);
            });
        }
        wait(seconds);
        for (std::thread& t : threads)
            t.join();
        return *end_;
    }
    /// Brings all vCPUs out of the guest, each between two instructions. Any thread.
    void suspend() { end({.suspended = true}); }

private:
    template <class Bus>
    void run_one(Vcpu& vcpu, Bus& bus) {
        for (;;) {
            const vm_accel::result<vm_accel::vcpu_exit> exit = vcpu.run(bus);
            if (!exit) return end({.failure = exit.error()});
            if (exit->reason != vm_accel::exit_reason::interrupted) {
                return end({.exit = *exit});
            }
            const std::lock_guard lock{mutex_};
            if (end_) return;
        }
    }

    void wait(unsigned seconds) {
        std::unique_lock lock{mutex_};
        const auto ended = [this] { return end_.has_value(); };
        if (seconds == 0) {
            ended_.wait(lock, ended);
        } else if (!ended_.wait_for(lock, std::chrono::seconds{seconds}, ended)) {
            lock.unlock();
            end({.timed_out = true});
        }
    }

    /// The first end counts; the other vCPUs are asked to come out.
    void end(const guest_end& how) {
        {
            const std::lock_guard lock{mutex_};
            if (end_) return;
            end_ = how;
        }
        for (Vcpu& vcpu : vcpus_)
            vcpu.request_exit();
        ended_.notify_all();
    }

    std::vector<Vcpu>& vcpus_;
    std::mutex mutex_;
    std::condition_variable ended_;
    std::optional<guest_end> end_;
};

} // namespace linux_vmm
