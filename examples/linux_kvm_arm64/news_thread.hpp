/// A thread that answers what the SMMU tells a PCI Express device to forget.
#pragma once

#include "dma.hpp"

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <utility>

namespace linux_vmm {

/// Runs from construction to destruction, and calls `work(port)` whenever the
/// SMMU has news for the port's device. Does nothing where a port has no news,
/// as without ATS. `Work`: void(Port&) noexcept.
template <class Port, class Work>
class news_thread {
    static constexpr bool has_news = requires(Port& port) { port.wake(); };

public:
    /// `name`: at most 15 characters, as the kernel shows it. `port` is the
    /// thread's own.
    news_thread(const char* name, Port& port, Work work) : port_(port), work_(std::move(work)) {
        port_in_use<Port>::rest(port_);
        if constexpr (has_news) {
            thread_ = std::thread{[this, name] {
                ::pthread_setname_np(::pthread_self(), name);
                run();
            }};
        }
    }
    news_thread(const news_thread&) = delete;
    news_thread& operator=(const news_thread&) = delete;
    ~news_thread() {
        if constexpr (has_news) {
            stopping_ = true;
            port_.wake();
            thread_.join();
        }
    }

private:
    void run() noexcept {
        for (;;) {
            const std::uint32_t seen = port_.news();
            work_(port_);
            if (stopping_) return;
            port_.wait_for_news(seen);
        }
    }

    Port& port_;
    Work work_;
    std::atomic<bool> stopping_{false};
    std::thread thread_; ///< last: it uses the others
};

} // namespace linux_vmm
