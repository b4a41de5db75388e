/// An object in memory, read and written as an atomic one: what std::atomic_ref is
/// for, by the compiler's own operations.
///
/// The library does without std::atomic_ref because libc++ has it only from version
/// 19 on (Apple's from Xcode 16.3 on).
#pragma once

#include <atomic>
#include <type_traits>

namespace vm_accel::inline v0 {

/// The object is aligned to its size and outlives the view; while views of it are
/// used by several threads, nothing else touches it. Orders mean what they mean for
/// std::atomic. Any thread; never takes a lock.
template <class T>
class atomic_view {
    static_assert(std::is_integral_v<T> && __atomic_always_lock_free(sizeof(T), nullptr));

public:
    explicit atomic_view(T& object) noexcept : object_(&object) {}

    [[nodiscard, gnu::always_inline]] T
    load(std::memory_order order = std::memory_order_seq_cst) const noexcept {
        return __atomic_load_n(object_, builtin(order));
    }
    [[gnu::always_inline]] void
    store(T value, std::memory_order order = std::memory_order_seq_cst) const noexcept {
        __atomic_store_n(object_, value, builtin(order));
    }
    [[gnu::always_inline]] T
    fetch_or(T bits, std::memory_order order = std::memory_order_seq_cst) const noexcept {
        return __atomic_fetch_or(object_, bits, builtin(order));
    }
    /// A failed exchange is a load alone: it is ordered as the load of `order` is.
    [[gnu::always_inline]] bool
    compare_exchange_strong(T& expected, T desired,
                            std::memory_order order = std::memory_order_seq_cst) const noexcept {
        return __atomic_compare_exchange_n(object_, &expected, desired, false, builtin(order),
                                           builtin(of_failure(order)));
    }

private:
    [[nodiscard, gnu::always_inline]] static constexpr int
    builtin(std::memory_order order) noexcept {
        switch (order) {
        case std::memory_order_relaxed:
            return __ATOMIC_RELAXED;
        case std::memory_order_acquire:
            return __ATOMIC_ACQUIRE;
        case std::memory_order_release:
            return __ATOMIC_RELEASE;
        case std::memory_order_acq_rel:
            return __ATOMIC_ACQ_REL;
        default:
            return __ATOMIC_SEQ_CST;
        }
    }
    [[nodiscard, gnu::always_inline]] static constexpr std::memory_order
    of_failure(std::memory_order order) noexcept {
        if (order == std::memory_order_acq_rel) return std::memory_order_acquire;
        return order == std::memory_order_release ? std::memory_order_relaxed : order;
    }

    T* object_;
};

} // namespace vm_accel::inline v0
