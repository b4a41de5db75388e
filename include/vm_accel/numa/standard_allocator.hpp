/// An object_pool as an allocator for standard containers.
#pragma once

#include <vm_accel/numa/object_pool.hpp>
#include <vm_accel/os/exhaustion.hpp>

#include <cstddef>
#include <limits>

namespace vm_accel::inline v0::inline VM_ACCEL_EXHAUSTION_MODE {

/// Gives containers memory from a pool, which must outlive them. An exhausted
/// pool means std::bad_alloc; in programs without exceptions it ends the program
/// (std::abort), as standard containers cannot report it otherwise.
template <class T, class Pool = object_pool<>>
class standard_allocator {
public:
    using value_type = T;

    explicit standard_allocator(Pool& pool) noexcept : pool_(&pool) {}
    template <class U>
    standard_allocator(const standard_allocator<U, Pool>& other) noexcept : pool_(&other.pool()) {}

    [[nodiscard]] T* allocate(std::size_t count) {
        void* memory = nullptr;
        if (count <= std::numeric_limits<std::size_t>::max() / sizeof(T))
            memory = pool_->allocate(count * sizeof(T), alignof(T));
        if (memory == nullptr) os::report_exhaustion();
        return static_cast<T*>(memory);
    }
    void deallocate(T* memory, std::size_t count) noexcept {
        pool_->deallocate(memory, count * sizeof(T), alignof(T));
    }

    [[nodiscard]] Pool& pool() const noexcept { return *pool_; }

    template <class U>
    friend bool operator==(const standard_allocator& a,
                           const standard_allocator<U, Pool>& b) noexcept {
        return &a.pool() == &b.pool();
    }

private:
    Pool* pool_;
};

} // namespace vm_accel::inline v0::inline VM_ACCEL_EXHAUSTION_MODE
