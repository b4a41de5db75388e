/// The memory slots of one KVM machine: which guest addresses are RAM.
///
/// The table is kept here as well as in the kernel, so that an overlap can be
/// named and a region removed by its base alone.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/result.hpp>
#include <vm_accel/os/descriptor.hpp>
#include <vm_accel/os/kvm_abi.hpp>
#include <vm_accel/os/kvm_calls.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>

namespace vm_accel::inline v0 {

/// Part of kvm_vm. Calls are safe from any thread; moved only before it is shared.
class kvm_memory {
public:
    /// Regions at most, however many slots the kernel would give.
    static constexpr std::size_t capacity = 128;

    explicit kvm_memory(unsigned kernel_slots) noexcept
        : usable_(std::min<std::size_t>(kernel_slots, capacity)) {}
    kvm_memory(kvm_memory&& other) noexcept : usable_(other.usable_), slots_(other.slots_) {}
    kvm_memory& operator=(kvm_memory&& other) noexcept {
        usable_ = other.usable_;
        slots_ = other.slots_;
        return *this;
    }

    /// See kvm_vm::add_memory. Errors: invalid_argument, already_exists, exhausted.
    [[nodiscard]] result<> add(const os::descriptor& vm, pa base, std::byte* host,
                               std::uint64_t bytes, bool read_only) noexcept {
        const pa_range range{base, bytes};
        const auto host_address = reinterpret_cast<std::uintptr_t>(host);
        if (host == nullptr || bytes == 0 || !range.is_valid() ||
            ((raw(base) | bytes | host_address) & 0xfff) != 0) {
            return fail(errc::invalid_argument,
                        named(base).append(": empty, without host memory, misaligned or past the "
                                           "top"),
                        "align base, host pointer and size to 4096, and keep them in range");
        }
        const std::lock_guard lock{mutex_};
        std::size_t free_slot = usable_;
        for (std::size_t i = usable_; i-- > 0;) {
            if (slots_[i].empty()) {
                free_slot = i;
            } else if (slots_[i].overlaps(range)) {
                return fail(errc::already_exists,
                            named(base)
                                .append(": overlaps the region at ")
                                .append_number(raw(slots_[i].base), 16),
                            "remove the other region first, or choose another base");
            }
        }
        if (free_slot == usable_) {
            return fail(errc::exhausted, named(base).append(": every slot is in use"),
                        "merge regions that touch");
        }
        const std::uint32_t flags = read_only ? os::kvm_abi::memory_read_only : 0;
        if (const int refused = set(vm, free_slot, flags, base, bytes, host_address);
            refused != 0) {
            return os::fail_with(
                refused, named(base).view(),
                "keep it below the guest's address bits, and the host bytes mapped");
        }
        slots_[free_slot] = range;
        return {};
    }

    /// See kvm_vm::remove_memory. Error: not_found.
    [[nodiscard]] result<> remove(const os::descriptor& vm, pa base) noexcept {
        const std::lock_guard lock{mutex_};
        for (std::size_t i = 0; i < usable_; ++i) {
            if (slots_[i].empty() || slots_[i].base != base) continue;
            if (const int refused = set(vm, i, 0, base, 0, 0); refused != 0) {
                return os::fail_with(refused, named(base).view(), "see the kernel's log");
            }
            slots_[i] = {};
            return {};
        }
        return fail(errc::not_found, named(base).append(": no region starts here"),
                    "pass the base that was given to add_memory()");
    }

private:
    [[nodiscard]] static fixed_text<160> named(pa base) noexcept {
        return fixed_text<160>{"guest memory at "}.append_number(raw(base), 16);
    }
    /// Gives errno, 0 if it worked.
    [[nodiscard]] static int set(const os::descriptor& vm, std::size_t slot, std::uint32_t flags,
                                 pa base, std::uint64_t bytes, std::uint64_t host) noexcept {
        os::kvm_abi::memory_region region{static_cast<std::uint32_t>(slot), flags, raw(base), bytes,
                                          host};
        return os::device_request_with(vm, os::kvm_abi::set_memory_region, region).os_error;
    }

    std::size_t usable_;
    std::array<pa_range, capacity> slots_{};
    std::mutex mutex_;
};

} // namespace vm_accel::inline v0
