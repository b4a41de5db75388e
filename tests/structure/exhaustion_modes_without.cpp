// Compiled with -fno-exceptions and first in the order of linking: if both halves
// had functions of one name, these would be taken for both.
#include "exhaustion_modes.hpp"

#include <vm_accel/numa/pmr_adapter.hpp>
#include <vm_accel/numa/standard_allocator.hpp>

const void* reporter_without_exceptions() {
    return reinterpret_cast<const void*>(&vm_accel::os::report_exhaustion);
}

bool allocates_without_exceptions() {
    vm_accel::object_pool<> pool;
    if (!pool.open({.capacity_bytes = 2u << 20})) return false;
    vm_accel::standard_allocator<int> allocator{pool};
    int* const made = allocator.allocate(1);
    allocator.deallocate(made, 1);
    vm_accel::pmr_adapter<> resource{pool};
    void* const more = resource.allocate(64);
    resource.deallocate(more, 64);
    return made != nullptr && more != nullptr;
}

void exhausts_without_exceptions() {
    vm_accel::object_pool<> pool;
    if (!pool.open({.capacity_bytes = 2u << 20})) return;
    vm_accel::standard_allocator<int> allocator{pool};
    static_cast<void>(allocator.allocate(4u << 20));
}
