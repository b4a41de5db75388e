/// The memory of the VM of Hypervisor.framework: which guest addresses are RAM.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/result.hpp>
#include <vm_accel/hypervisor/hvf_errors.hpp>
#include <vm_accel/hypervisor/memory_slots.hpp>

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <shared_mutex>
#include <span>

namespace vm_accel::inline v0 {

/// Part of a hvf VM. Calls are safe from any thread.
class hvf_memory {
public:
    /// See basic_hvf_vm::add_memory.
    template <class Calls>
    [[nodiscard]] result<> add(const Calls& calls, pa base, std::byte* host, std::uint64_t bytes,
                               std::uint64_t rights) noexcept {
        const std::lock_guard lock{mutex_};
        const auto slot = slots_.room_for(base, host, bytes);
        if (!slot) return fail(slot);
        const auto mapped = calls.map(host, raw(base), bytes, rights);
        if (mapped != os::hvf_abi::status::success) {
            return hvf_failure(mapped, memory_slots::named(base).view(),
                               "align base, host pointer and size to the host's pages (Apple "
                               "silicon: 16384), below the guest's address bits");
        }
        **slot = {{base, bytes}, host};
        return {};
    }

    /// See basic_hvf_vm::remove_memory. Error: not_found.
    template <class Calls>
    [[nodiscard]] result<> remove(const Calls& calls, pa base) noexcept {
        const std::lock_guard lock{mutex_};
        const auto slot = slots_.at(base);
        if (!slot) return fail(slot);
        const auto unmapped = calls.unmap(raw(base), (*slot)->range.size);
        if (unmapped != os::hvf_abi::status::success) return vm_gone(unmapped, base);
        **slot = {};
        return {};
    }

    /// See basic_hvf_vm::protect_memory. Error: not_found.
    template <class Calls>
    [[nodiscard]] result<> protect(const Calls& calls, pa base, std::uint64_t rights) noexcept {
        const std::lock_guard lock{mutex_};
        const auto slot = slots_.at(base);
        if (!slot) return fail(slot);
        const auto done = calls.protect(raw(base), (*slot)->range.size, rights);
        if (done != os::hvf_abi::status::success) return vm_gone(done, base);
        return {};
    }

    [[nodiscard]] bool contains(pa address) noexcept {
        const std::shared_lock lock{mutex_};
        return slots_.find(address, 1) != nullptr;
    }
    /// Copies out of guest memory; false if not all of it is in one region.
    [[nodiscard]] bool read(pa address, std::span<std::byte> out) noexcept {
        const std::shared_lock lock{mutex_};
        return slots_.read(address, out);
    }

private:
    [[nodiscard]] static tl::unexpected<error> vm_gone(os::hvf_abi::status why, pa base) noexcept {
        return hvf_failure(why, memory_slots::named(base).view(), "see that the VM is still there");
    }

    memory_slots slots_{};
    std::shared_mutex mutex_{};
};

} // namespace vm_accel::inline v0
