/// An object_pool as a std::pmr::memory_resource.
///
/// An adapter at the edge, for code that already speaks pmr: the standard fixes
/// virtual calls here. No other header of the library includes this one.
#pragma once

#include <vm_accel/numa/object_pool.hpp>
#include <vm_accel/os/exhaustion.hpp>

#include <cstddef>
#include <memory_resource>

namespace vm_accel::inline v0::inline VM_ACCEL_EXHAUSTION_MODE {

/// The pool must outlive it. Two adapters are equal only if they are one: to look
/// further would take run-time type information. Exhaustion is as in standard_allocator: bad_alloc,
/// or the end of a program without exceptions. Threads: as the pool.
template <class Pool = object_pool<>>
class pmr_adapter final : public std::pmr::memory_resource {
public:
    explicit pmr_adapter(Pool& pool) noexcept : pool_(&pool) {}

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        void* const memory = pool_->allocate(bytes, alignment);
        if (memory == nullptr) os::report_exhaustion();
        return memory;
    }
    void do_deallocate(void* memory, std::size_t bytes, std::size_t alignment) override {
        pool_->deallocate(memory, bytes, alignment);
    }
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }

    Pool* pool_;
};

} // namespace vm_accel::inline v0::inline VM_ACCEL_EXHAUSTION_MODE
