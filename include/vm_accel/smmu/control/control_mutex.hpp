/// The lock of the control side.
#pragma once

#include <atomic>
#include <cstdint>

namespace vm_accel::inline v0 {

/// A mutex whose every operation is sequentially consistent: of a thread that
/// unlocks and then loads a flag (seq_cst), and one that stores the flag (seq_cst)
/// and then fails at try_lock(), the first sees the flag. So whoever finds the
/// lock taken can leave its work to the holder, with no fence on either side.
///
/// Uncontended it costs one read-modify-write to lock and one to unlock, and is
/// inlined. Threads that wait sleep. With Concurrent = false, for a VMM that calls
/// from one thread, it costs nothing; try_lock() then fails inside itself too.
template <bool Concurrent>
class control_mutex {
public:
    control_mutex() noexcept = default;
    control_mutex(const control_mutex&) = delete;
    control_mutex& operator=(const control_mutex&) = delete;

    void lock() noexcept {
        if constexpr (!Concurrent) {
            taken_ = true;
        } else if (!try_lock()) [[unlikely]] {
            wait();
        }
    }
    [[nodiscard]] bool try_lock() noexcept {
        if constexpr (!Concurrent) {
            const bool was_taken = taken_;
            taken_ = true;
            return !was_taken;
        } else {
            std::uint32_t expected = free;
            return state_.compare_exchange_strong(expected, held, std::memory_order_seq_cst);
        }
    }
    void unlock() noexcept {
        if constexpr (!Concurrent) {
            taken_ = false;
        } else if (state_.exchange(free, std::memory_order_seq_cst) == wanted) [[unlikely]] {
            wake();
        }
    }

private:
    static constexpr std::uint32_t free = 0;
    static constexpr std::uint32_t held = 1;
    static constexpr std::uint32_t wanted = 2; ///< held, and somebody may sleep

    [[gnu::noinline]] void wait() noexcept {
        // Who has slept does not know whether others do: it holds the lock as wanted.
        while (state_.exchange(wanted, std::memory_order_seq_cst) != free)
            state_.wait(wanted, std::memory_order_relaxed);
    }
    [[gnu::noinline]] void wake() noexcept { state_.notify_one(); }

    std::atomic<std::uint32_t> state_{free};
    bool taken_ = false; ///< not Concurrent
};

} // namespace vm_accel::inline v0
