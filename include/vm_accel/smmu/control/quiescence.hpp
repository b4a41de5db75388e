/// Knowing that nobody uses an old translation any more.
///
/// Device threads translate and touch memory inside guards. After an
/// invalidation, every guard that was open at that moment must have closed
/// before the invalidation counts as done (CMD_SYNC means done).
///
/// Opening a guard is a store and then reads of caches; the control side
/// changes caches and then reads the stores. Each needs a full barrier between
/// its two steps. The policies differ in who pays for it.
#pragma once

#include <vm_accel/guest/copy.hpp>
#include <vm_accel/os/memory_barrier.hpp>

#include <atomic>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <thread>

namespace vm_accel::inline v0 {

/// Meaning: a read_side_barrier() after a store by one thread, and a
/// sync_side_barrier() after a store by another, guarantee that at least one of
/// them then sees the other's store. prepare() is called once, before any other.
template <class Q>
concept quiescence_policy = std::default_initializable<Q> &&
                            requires(Q& policy, const Q& view, std::atomic<std::uint64_t>& word) {
                                { policy.prepare() } noexcept -> std::same_as<void>;
                                {
                                    view.store_with_barrier(word, std::uint64_t{})
                                } noexcept -> std::same_as<void>;
                                { policy.sync_side_barrier() } noexcept -> std::same_as<void>;
                                { view.is_degraded() } noexcept -> std::same_as<bool>;
                                { Q::concurrent } -> std::convertible_to<bool>;
                            };

/// The reader pays: a sequentially consistent fence per guard (about 8 ns).
struct fence_quiescence {
    static constexpr bool concurrent = true;
    void prepare() noexcept {}
    void store_with_barrier(std::atomic<std::uint64_t>& word, std::uint64_t value) const noexcept {
#if VM_ACCEL_THREAD_SANITIZER
        // ThreadSanitizer does not model fences; a read-modify-write it does.
        (void)word.exchange(value, std::memory_order_seq_cst);
#else
        word.store(value, std::memory_order_release);
        std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
    }
    void sync_side_barrier() noexcept { std::atomic_thread_fence(std::memory_order_seq_cst); }
    [[nodiscard]] bool is_degraded() const noexcept { return false; }
};

/// The control side pays: one membarrier(2) per batch; a reader's store is
/// plain. Falls back to fences where the kernel refuses (is_degraded()).
///
/// A seccomp filter that is installed after init() should allow membarrier(2).
/// If it does not, this falls back too, once: guards that are being opened at
/// that moment have no fence yet, and get a millisecond to become visible.
class membarrier_quiescence {
public:
    static constexpr bool concurrent = true;
    void prepare() noexcept {
        const bool usable = VM_ACCEL_THREAD_SANITIZER == 0 &&
                            os::process_barrier::register_process() && os::process_barrier::run();
        fences_.store(!usable, std::memory_order_relaxed);
    }
    void store_with_barrier(std::atomic<std::uint64_t>& word, std::uint64_t value) const noexcept {
        if (fences_.load(std::memory_order_relaxed)) [[unlikely]] {
            fence_quiescence{}.store_with_barrier(word, value);
            return;
        }
        word.store(value, std::memory_order_release);
        std::atomic_signal_fence(std::memory_order_seq_cst);
    }
    void sync_side_barrier() noexcept {
        if (!fences_.load(std::memory_order_relaxed)) {
            if (os::process_barrier::run()) return;
            fences_.store(true, std::memory_order_seq_cst);
            std::this_thread::sleep_for(std::chrono::milliseconds{1});
        }
        std::atomic_thread_fence(std::memory_order_seq_cst);
    }
    [[nodiscard]] bool is_degraded() const noexcept {
        return fences_.load(std::memory_order_relaxed);
    }

private:
    std::atomic<bool> fences_{false};
};

/// For a VMM that calls the SMMU from one thread only.
struct single_threaded {
    static constexpr bool concurrent = false;
    void prepare() noexcept {}
    void store_with_barrier(std::atomic<std::uint64_t>& word, std::uint64_t value) const noexcept {
        word.store(value, std::memory_order_relaxed);
    }
    void sync_side_barrier() noexcept {}
    [[nodiscard]] bool is_degraded() const noexcept { return false; }
};

static_assert(quiescence_policy<membarrier_quiescence>);
static_assert(quiescence_policy<fence_quiescence>);
static_assert(quiescence_policy<single_threaded>);

/// One port's guard state. The owner thread writes it, the control side reads it.
struct alignas(64) guard_slot {
    /// Odd while a guard is open; each opening and closing adds one.
    std::atomic<std::uint64_t> sequence{0};
    /// Names the thread whose guard is open (see this_thread_mark).
    std::atomic<const void*> owner{nullptr};
    std::atomic<bool> parked{false};
    std::atomic<bool> taken{false};
    /// How many grace periods want to be told when the guard closes. Only they
    /// change it, so that a guard that closes takes nothing from the next one.
    std::atomic<std::uint32_t> awaited{0};
    std::uint32_t depth = 0; ///< owner only: guards nest
};

/// An address that differs between any two live threads.
[[nodiscard]] inline const void* this_thread_mark() noexcept {
    thread_local char mark;
    return &mark;
}

/// Guards that were open at one moment and have not closed since.
class grace_period {
public:
    /// `slots`: how many ports there can be. False = out of memory.
    [[nodiscard]] bool allocate(std::size_t slots) noexcept {
        seen_.reset(new (std::nothrow) std::uint64_t[slots]());
        return seen_ != nullptr;
    }
    [[nodiscard]] bool is_active() const noexcept { return active_; }

    bool carries_retired = false; ///< see configuration_cache::grace_started

private:
    template <quiescence_policy>
    friend class quiescence_domain;
    std::unique_ptr<std::uint64_t[]> seen_; ///< odd sequences waited for, 0 = not this one
    std::size_t waiting_ = 0;
    bool active_ = false;
};

/// All guard slots of one SMMU.
///
/// Threads: open and close by the slot's owner; start, finished, claim and
/// release under the control lock. Nothing here waits.
template <quiescence_policy Policy>
class quiescence_domain {
public:
    [[nodiscard]] bool allocate(std::size_t slots) noexcept {
        slots_.reset(new (std::nothrow) guard_slot[slots]);
        if (!slots_) return false;
        size_ = slots;
        policy_.prepare();
        return true;
    }

    /// A free slot, or null.
    [[nodiscard]] guard_slot* claim() noexcept {
        for (std::size_t i = 0; i < size_; ++i) {
            if (!slots_[i].taken.load(std::memory_order_relaxed)) {
                slots_[i].taken.store(true, std::memory_order_relaxed);
                slots_[i].parked.store(false, std::memory_order_seq_cst);
                if (i >= used_) used_ = i + 1;
                return &slots_[i];
            }
        }
        return nullptr;
    }
    [[nodiscard]] std::size_t index_of(const guard_slot& slot) const noexcept {
        return static_cast<std::size_t>(&slot - slots_.get());
    }
    void release(guard_slot& slot) noexcept {
        slot.parked.store(false, std::memory_order_relaxed);
        slot.taken.store(false, std::memory_order_release);
    }

    /// Opens a guard. Everything read from caches and tables comes after it.
    void open(guard_slot& slot) const noexcept {
        if (slot.depth++ != 0) return;
        slot.owner.store(this_thread_mark(), std::memory_order_relaxed);
        policy_.store_with_barrier(slot.sequence,
                                   slot.sequence.load(std::memory_order_relaxed) + 1);
    }
    /// Closes a guard. True = it was the outermost and someone waits for it:
    /// the caller must then let the control side look again.
    [[nodiscard]] bool close(guard_slot& slot) const noexcept {
        if (--slot.depth != 0) return false;
        policy_.store_with_barrier(slot.sequence,
                                   slot.sequence.load(std::memory_order_relaxed) + 1);
        return slot.awaited.load(std::memory_order_relaxed) != 0;
    }

    /// The owner promises not to open a guard until unpark(). Synchronisation
    /// with parked ports costs nothing. Ignored while a guard is open.
    void park(guard_slot& slot) const noexcept {
        if (slot.depth != 0) return;
        slot.parked.store(true, std::memory_order_seq_cst);
    }
    void unpark(guard_slot& slot) const noexcept {
        slot.parked.exchange(false, std::memory_order_seq_cst);
        std::atomic_thread_fence(std::memory_order_seq_cst);
    }

    /// Starts waiting for every guard that is open now. What the caller changed
    /// before is seen by every guard that opens later.
    void start(grace_period& grace) noexcept {
        for (std::size_t i = 0; i < used_ && grace.waiting_ != 0; ++i)
            forget(grace, i);
        grace.active_ = true;
        // First ask to be told, then look: a guard that closes in between tells,
        // and one that opens in between still knows that it is to tell.
        for (std::size_t i = 0; i < used_; ++i)
            slots_[i].awaited.fetch_add(1, std::memory_order_seq_cst);
        if (!all_parked()) policy_.sync_side_barrier();
        grace.waiting_ = 0;
        for (std::size_t i = 0; i < used_; ++i) {
            const std::uint64_t sequence = slots_[i].sequence.load(std::memory_order_acquire);
            const bool open = (sequence & 1) != 0;
            grace.seen_[i] = open ? sequence : 0;
            grace.waiting_ += open ? 1U : 0U;
            if (!open) slots_[i].awaited.fetch_sub(1, std::memory_order_relaxed);
        }
    }

    /// Whether all of them have closed. Ends the grace period when they have.
    [[nodiscard]] bool finished(grace_period& grace) noexcept {
        if (!grace.active_) return true;
        for (std::size_t i = 0; i < used_ && grace.waiting_ != 0; ++i) {
            if (grace.seen_[i] != 0 &&
                slots_[i].sequence.load(std::memory_order_acquire) != grace.seen_[i]) {
                forget(grace, i);
            }
        }
        if (grace.waiting_ != 0) return false;
        grace.active_ = false;
        return true;
    }

    /// Whether the calling thread itself has a guard open: waiting would never end.
    [[nodiscard]] bool held_by_this_thread() const noexcept {
        for (std::size_t i = 0; i < used_; ++i) {
            if ((slots_[i].sequence.load(std::memory_order_acquire) & 1) != 0 &&
                slots_[i].owner.load(std::memory_order_relaxed) == this_thread_mark()) {
                return true;
            }
        }
        return false;
    }

    [[nodiscard]] bool is_degraded() const noexcept { return policy_.is_degraded(); }
    [[nodiscard]] std::size_t capacity() const noexcept { return size_; }

private:
    /// Waits for that slot no longer.
    void forget(grace_period& grace, std::size_t i) noexcept {
        if (grace.seen_[i] == 0) return;
        grace.seen_[i] = 0;
        --grace.waiting_;
        slots_[i].awaited.fetch_sub(1, std::memory_order_relaxed);
    }
    [[nodiscard]] bool all_parked() const noexcept {
        std::atomic_thread_fence(std::memory_order_seq_cst);
        for (std::size_t i = 0; i < used_; ++i) {
            if (slots_[i].taken.load(std::memory_order_relaxed) &&
                !slots_[i].parked.load(std::memory_order_seq_cst)) {
                return false;
            }
        }
        return true;
    }

    // Read by every guard: on a line that the control side leaves alone.
    alignas(64) Policy policy_{};
    std::unique_ptr<guard_slot[]> slots_;
    std::size_t size_ = 0;
    std::size_t used_ = 0;
};

} // namespace vm_accel::inline v0
