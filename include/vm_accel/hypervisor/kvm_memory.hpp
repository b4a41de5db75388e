/// The memory of one KVM machine: which guest addresses are RAM.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/result.hpp>
#include <vm_accel/hypervisor/memory_slots.hpp>
#include <vm_accel/os/descriptor.hpp>
#include <vm_accel/os/kvm_abi.hpp>
#include <vm_accel/os/kvm_calls.hpp>

#include <cstddef>
#include <cstdint>
#include <mutex>

namespace vm_accel::inline v0 {

/// Part of kvm_vm. Calls are safe from any thread; moved only before it is shared.
class kvm_memory {
public:
    explicit kvm_memory(unsigned kernel_slots) noexcept : slots_(kernel_slots) {}
    kvm_memory(kvm_memory&& other) noexcept : slots_(other.slots_) {}
    kvm_memory& operator=(kvm_memory&& other) noexcept {
        slots_ = other.slots_;
        return *this;
    }

    /// See kvm_vm::add_memory. Errors: invalid_argument, already_exists, exhausted.
    [[nodiscard]] result<> add(const os::descriptor& vm, pa base, std::byte* host,
                               std::uint64_t bytes, bool read_only) noexcept {
        const std::lock_guard lock{mutex_};
        const auto slot = slots_.room_for(base, host, bytes);
        if (!slot) return fail(slot);
        const std::uint32_t flags = read_only ? os::kvm_abi::memory_read_only : 0;
        if (const int refused = set(vm, **slot, flags, base, bytes, host); refused != 0) {
            return os::fail_with(
                refused, memory_slots::named(base).view(),
                "keep it below the guest's address bits, and the host bytes mapped");
        }
        **slot = {{base, bytes}, host};
        return {};
    }

    /// See kvm_vm::remove_memory. Error: not_found.
    [[nodiscard]] result<> remove(const os::descriptor& vm, pa base) noexcept {
        const std::lock_guard lock{mutex_};
        const auto slot = slots_.at(base);
        if (!slot) return fail(slot);
        if (const int refused = set(vm, **slot, 0, base, 0, nullptr); refused != 0) {
            return os::fail_with(refused, memory_slots::named(base).view(), "see the kernel's log");
        }
        **slot = {};
        return {};
    }

private:
    /// Gives errno, 0 if it worked.
    [[nodiscard]] int set(const os::descriptor& vm, const memory_slot& slot, std::uint32_t flags,
                          pa base, std::uint64_t bytes, const std::byte* host) const noexcept {
        os::kvm_abi::memory_region region{slots_.number_of(slot), flags, raw(base), bytes,
                                          reinterpret_cast<std::uintptr_t>(host)};
        return os::device_request_with(vm, os::kvm_abi::set_memory_region, region).os_error;
    }

    memory_slots slots_;
    std::mutex mutex_;
};

} // namespace vm_accel::inline v0
