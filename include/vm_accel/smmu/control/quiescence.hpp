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
#include <vm_accel/os/owned_word.hpp>
#include <vm_accel/os/thread_mark.hpp>
#include <vm_accel/smmu/caches/change_epoch.hpp>
#include <vm_accel/smmu/vocabulary/statistics.hpp>

#include <atomic>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <thread>

namespace vm_accel::inline v0 {

/// Meaning: an add_with_barrier(), to a word that only its caller writes, and a sync_side_barrier()
/// after a store by another, guarantee that at least one of them then sees the other's store.
/// prepare() is called once, before any other. Either says false when it cannot: from then on
/// readers make fences of their own where it matters, and sync_side_barrier() is not called again.
template <class Q>
concept quiescence_policy = std::default_initializable<Q> &&
                            requires(Q& policy, const Q& view, std::atomic<std::uint64_t>& word) {
                                { policy.prepare() } noexcept -> std::same_as<bool>;
                                {
                                    view.add_with_barrier(word, std::uint64_t{})
                                } noexcept -> std::same_as<void>;
                                { policy.sync_side_barrier() } noexcept -> std::same_as<bool>;
                                { Q::concurrent } -> std::convertible_to<bool>;
                            };

/// The reader pays: a sequentially consistent fence per guard (about 8 ns).
struct fence_quiescence {
    static constexpr bool concurrent = true;
    bool prepare() noexcept { return true; }
    void add_with_barrier(std::atomic<std::uint64_t>& word, std::uint64_t number) const noexcept {
#if VM_ACCEL_THREAD_SANITIZER
        // ThreadSanitizer does not model fences; a read-modify-write it does.
        (void)word.fetch_add(number, std::memory_order_seq_cst);
#else
        os::release_add_as_owner(word, number);
        std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
    }
    bool sync_side_barrier() noexcept {
        std::atomic_thread_fence(std::memory_order_seq_cst);
        return true;
    }
};

/// The control side pays: one membarrier(2) per batch; a reader's store is
/// plain. Where the kernel refuses, readers make fences.
///
/// A seccomp filter that is installed after init() should allow membarrier(2).
/// If it does not, this is found out once: guards that are being opened at that
/// moment have no fence yet, and get a millisecond to become visible.
struct membarrier_quiescence {
    static constexpr bool concurrent = true;
    bool prepare() noexcept {
#if VM_ACCEL_THREAD_SANITIZER
        return true; // the sanitizer cannot see a membarrier: fences, as below
#else
        return os::process_barrier::register_process() && os::process_barrier::run();
#endif
    }
    void add_with_barrier(std::atomic<std::uint64_t>& word, std::uint64_t number) const noexcept {
#if VM_ACCEL_THREAD_SANITIZER
        fence_quiescence{}.add_with_barrier(word, number);
#else
        os::release_add_as_owner(word, number);
        std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
    }
    bool sync_side_barrier() noexcept {
#if VM_ACCEL_THREAD_SANITIZER
        return fence_quiescence{}.sync_side_barrier();
#else
        return os::process_barrier::run();
#endif
    }
};

/// For a VMM that calls the SMMU from one thread only.
struct single_threaded {
    static constexpr bool concurrent = false;
    bool prepare() noexcept { return true; }
    void add_with_barrier(std::atomic<std::uint64_t>& word, std::uint64_t number) const noexcept {
        os::add_as_owner(word, number);
    }
    bool sync_side_barrier() noexcept { return true; }
};

static_assert(quiescence_policy<membarrier_quiescence>);
static_assert(quiescence_policy<fence_quiescence>);
static_assert(quiescence_policy<single_threaded>);

/// One port's guard state, and what it counts: a hit then needs one pointer.
struct alignas(64) guard_slot {
    /// Written by the owner alone. Bits [15:0]: how many guards are open, for they
    /// nest; above them: how often the last one has closed while somebody waited.
    std::atomic<std::uint64_t> word{0};
    /// Names the thread whose guard is open (see os::this_thread_mark).
    std::atomic<const void*> owner{nullptr};
    /// Why a guard that closes has more to do: how many grace periods want to be
    /// told (only they change that, so that a guard that closes takes nothing from
    /// the next one), and the bits below.
    std::atomic<std::uint32_t> attention{0};
    std::atomic<bool> parked{false};
    std::atomic<bool> taken{false};
    port_counters counters; ///< the port's share of statistics: lines of its own

    static constexpr std::uint64_t open_guards = 0xffff;
    static constexpr std::uint64_t one_close = open_guards + 1;
    static constexpr std::uint32_t wants_fence = 1U << 30; ///< readers make their own fences
    static constexpr std::uint32_t has_effects = 1U << 31; ///< the port has something to act on
    static constexpr std::uint32_t periods = wants_fence - 1;

    [[nodiscard]] bool is_open() const noexcept {
        return (word.load(std::memory_order_relaxed) & open_guards) != 0;
    }
    /// The owner's: its guard has something to do when it closes.
    void note_effects() noexcept { attention.fetch_or(has_effects, std::memory_order_relaxed); }
    void effects_taken() noexcept { attention.fetch_and(~has_effects, std::memory_order_relaxed); }
};

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
    std::unique_ptr<std::uint64_t[]> seen_; ///< words of open guards waited for, 0 = not this one
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
    /// `epoch`: what a guard may look at before settle().
    explicit quiescence_domain(change_epoch& epoch) noexcept : epoch_(epoch) {}

    [[nodiscard]] bool allocate(std::size_t slots) noexcept {
        slots_.reset(new (std::nothrow) guard_slot[slots]);
        if (!slots_) return false;
        size_ = slots;
        if (!policy_.prepare()) degrade();
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
    /// The one with that index, taken or not; below capacity().
    [[nodiscard]] const guard_slot& slot(std::size_t index) const noexcept { return slots_[index]; }
    void release(guard_slot& slot) noexcept {
        slot.effects_taken();
        slot.parked.store(false, std::memory_order_relaxed);
        slot.taken.store(false, std::memory_order_release);
    }

    /// Opens a guard. Before anything of caches, tables or queues is read,
    /// settle(); a change epoch that allows copies says that there is nothing to
    /// settle.
    void open(guard_slot& slot) const noexcept {
        slot.owner.store(os::this_thread_mark(), std::memory_order_relaxed);
        policy_.add_with_barrier(slot.word, 1);
    }
    /// The fence that guards need when the policy cannot do its part.
    void settle() const noexcept {
        if (degraded_.load(std::memory_order_relaxed)) [[unlikely]]
            std::atomic_thread_fence(std::memory_order_seq_cst);
    }
    /// Closes a guard, of several in any order. True = call has_closed().
    [[nodiscard]] bool close(guard_slot& slot) const noexcept {
        policy_.add_with_barrier(slot.word, ~std::uint64_t{0});
        return slot.attention.load(std::memory_order_relaxed) != 0;
    }
    /// True = it was the outermost guard and someone waits for it: the caller
    /// must then let the control side look again.
    [[nodiscard]] bool has_closed(guard_slot& slot) const noexcept {
        if (slot.is_open()) return false;
        settle();
        if ((slot.attention.load(std::memory_order_relaxed) & guard_slot::periods) == 0)
            return false;
        policy_.add_with_barrier(slot.word, guard_slot::one_close);
        return true;
    }

    /// The owner promises not to open a guard until unpark(). Synchronisation
    /// with parked ports costs nothing. Ignored while a guard is open.
    void park(guard_slot& slot) const noexcept {
        if (slot.is_open()) return;
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
        grace.waiting_ = 0;
        grace.active_ = ask(grace);
        if (!grace.active_) return;
        barrier();
        for (std::size_t i = 0; i < used_; ++i) {
            if (grace.seen_[i] == 0) continue;
            const std::uint64_t word = slots_[i].word.load(std::memory_order_acquire);
            const bool open = (word & guard_slot::open_guards) != 0;
            grace.seen_[i] = open ? word : 0;
            grace.waiting_ += open ? 1U : 0U;
            if (!open) add(slots_[i].attention, ~std::uint32_t{0});
        }
    }

    /// Whether all of them have closed. Ends the grace period when they have.
    [[nodiscard]] bool finished(grace_period& grace) noexcept {
        if (!grace.active_) return true;
        for (std::size_t i = 0; i < used_ && grace.waiting_ != 0; ++i) {
            if (grace.seen_[i] == 0) continue;
            // A guard that is waited for counts when it closes: another one that
            // is open now has another count.
            const std::uint64_t word = slots_[i].word.load(std::memory_order_acquire);
            if ((word & guard_slot::open_guards) == 0 ||
                (word ^ grace.seen_[i]) >= guard_slot::one_close) {
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
            const std::uint64_t word = slots_[i].word.load(std::memory_order_acquire);
            if ((word & guard_slot::open_guards) != 0 &&
                slots_[i].owner.load(std::memory_order_relaxed) == os::this_thread_mark()) {
                return true;
            }
        }
        return false;
    }

    /// Whether guards make fences because the policy cannot do its part.
    [[nodiscard]] bool is_degraded() const noexcept {
        return degraded_.load(std::memory_order_relaxed);
    }
    [[nodiscard]] std::size_t capacity() const noexcept { return size_; }

private:
    /// Waits for that slot no longer.
    void forget(grace_period& grace, std::size_t i) noexcept {
        if (grace.seen_[i] == 0) return;
        grace.seen_[i] = 0;
        --grace.waiting_;
        add(slots_[i].attention, ~std::uint32_t{0});
    }
    void barrier() noexcept {
        if (!is_degraded()) {
            if (policy_.sync_side_barrier()) return;
            degrade();
            std::this_thread::sleep_for(std::chrono::milliseconds{1});
        }
        std::atomic_thread_fence(std::memory_order_seq_cst);
    }
    /// From now on guards that open find that the epoch allows no copies, and
    /// settle(); those that close have something to do, and settle() then.
    void degrade() noexcept {
        degraded_.store(true, std::memory_order_seq_cst);
        epoch_.end();
        for (std::size_t i = 0; i < size_; ++i)
            slots_[i].attention.fetch_or(guard_slot::wants_fence, std::memory_order_seq_cst);
    }
    static void add(std::atomic<std::uint32_t>& word, std::uint32_t number) noexcept {
        if constexpr (Policy::concurrent) {
            word.fetch_add(number, std::memory_order_seq_cst);
        } else {
            word.store(word.load(std::memory_order_relaxed) + number, std::memory_order_relaxed);
        }
    }
    /// Asks to be told by ports that may have a guard open, before anybody looks: a guard
    /// that closes in between tells, and one that opens in between still knows that it is
    /// to tell. Parked ports have none open, and see all of this when they unpark; free
    /// ones, when they are claimed. False = nobody was asked.
    [[nodiscard]] bool ask(grace_period& grace) noexcept {
        if constexpr (Policy::concurrent) std::atomic_thread_fence(std::memory_order_seq_cst);
        bool any = false;
        for (std::size_t i = 0; i < used_; ++i) {
            guard_slot& slot = slots_[i];
            const bool asked = slot.taken.load(std::memory_order_relaxed) &&
                               (!slot.parked.load(std::memory_order_seq_cst) || slot.is_open());
            grace.seen_[i] = asked ? 1 : 0;
            if (asked) add(slot.attention, 1);
            any = any || asked;
        }
        return any;
    }

    [[no_unique_address]] Policy policy_{};
    change_epoch& epoch_;
    std::atomic<bool> degraded_{false};
    std::unique_ptr<guard_slot[]> slots_;
    std::size_t size_ = 0;
    std::size_t used_ = 0;
};

} // namespace vm_accel::inline v0
