/// The least that is a stream allocator: nothing here but what the concept
/// asks for. A template that compiles with it uses nothing more.
#pragma once

#include <vm_accel/smmu/host/stream_allocator.hpp>

struct stream_allocator_archetype {
    static constexpr std::size_t capacity = 1;

    stream_allocator_archetype() = default;
    stream_allocator_archetype(const stream_allocator_archetype&) = delete;
    stream_allocator_archetype& operator=(const stream_allocator_archetype&) = delete;

    vm_accel::result<vm_accel::stream_id> allocate() noexcept {
        return vm_accel::stream_error::all_held(capacity);
    }
    vm_accel::result<> reserve(vm_accel::stream_id id) noexcept {
        return vm_accel::stream_error::already_held(id);
    }
    vm_accel::result<> release(vm_accel::stream_id id) noexcept {
        return vm_accel::stream_error::not_held(id);
    }
    bool is_held(vm_accel::stream_id) const noexcept { return false; }
};
