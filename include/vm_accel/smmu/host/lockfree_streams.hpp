/// StreamIDs from a lock-free queue: the one that was free longest comes first.
///
/// A StreamID just released is the last to be given again, so that a mistake
/// in a guest's clean-up does not hit the next device at once. This header
/// costs more than a second of compile time (Boost.Lockfree): include it only
/// where the policy is chosen.
#pragma once

#include <vm_accel/smmu/host/stream_allocator.hpp>

#include <boost/lockfree/queue.hpp>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>

namespace vm_accel::inline v0 {

/// The StreamIDs 0 to N - 1 in a Boost.Lockfree queue of fixed capacity.
/// N is at most 65,534, the most that queue can hold.
/// Cost: about 20 bytes per StreamID; allocate() takes constant time, but for
/// StreamIDs that were reserved since they were queued: those it skips.
template <std::size_t N>
class lockfree_streams {
    static_assert(N >= 1 && N <= 65534, "boost::lockfree::queue holds at most 65,534 elements");

public:
    static constexpr std::size_t capacity = N;

    lockfree_streams() {
        for (std::uint32_t id = 0; id < N; ++id) {
            state_[id].store(queued, std::memory_order_relaxed);
            enqueue(id);
        }
    }
    lockfree_streams(const lockfree_streams&) = delete;
    lockfree_streams& operator=(const lockfree_streams&) = delete;

    [[nodiscard]] result<stream_id> allocate() noexcept {
        std::uint32_t id = 0;
        while (queue_.pop(id)) {
            // The queue's entry is gone whatever comes of it.
            if (state_[id].exchange(held, std::memory_order_acq_rel) == queued) {
                return stream_id{id};
            }
        }
        return stream_error::all_held(capacity);
    }

    [[nodiscard]] result<> reserve(stream_id id) noexcept {
        if (raw(id) >= capacity) return stream_error::too_large(id, capacity);
        std::uint8_t expected = queued;
        if (!state_[raw(id)].compare_exchange_strong(expected, held_and_queued,
                                                     std::memory_order_acq_rel)) {
            return stream_error::already_held(id);
        }
        return {};
    }

    [[nodiscard]] result<> release(stream_id id) noexcept {
        if (raw(id) >= capacity) return stream_error::too_large(id, capacity);
        std::uint8_t before = state_[raw(id)].load(std::memory_order_relaxed);
        do {
            if (before == queued) return stream_error::not_held(id);
        } while (!state_[raw(id)].compare_exchange_weak(before, queued, std::memory_order_acq_rel));
        if (before == held) enqueue(raw(id));
        return {};
    }

    [[nodiscard]] bool is_held(stream_id id) const noexcept {
        return raw(id) < capacity && state_[raw(id)].load(std::memory_order_acquire) != queued;
    }

private:
    // A StreamID has at most one entry in the queue. A free one has its entry;
    // reserve() leaves it there, and the next to pop it finds it held.
    static constexpr std::uint8_t queued = 0;          ///< free
    static constexpr std::uint8_t held = 1;            ///< held, no entry
    static constexpr std::uint8_t held_and_queued = 2; ///< held, an old entry is still there

    /// There are never more entries than nodes: at most one per StreamID, and
    /// a pop under way has taken the StreamID whose node it has not freed yet.
    void enqueue(std::uint32_t id) noexcept {
        while (!queue_.bounded_push(id))
            std::this_thread::yield();
    }

    boost::lockfree::queue<std::uint32_t, boost::lockfree::capacity<N>> queue_;
    std::array<std::atomic<std::uint8_t>, N> state_{};
};

static_assert(stream_allocator<lockfree_streams<1>> && stream_allocator<lockfree_streams<65534>>);

} // namespace vm_accel::inline v0
