/// The memory of one partition of the Windows Hypervisor Platform: which guest addresses are
/// RAM.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/result.hpp>
#include <vm_accel/hypervisor/memory_slots.hpp>
#include <vm_accel/hypervisor/whpx_errors.hpp>
#include <vm_accel/os/whpx_abi.hpp>

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>

namespace vm_accel::inline v0 {

/// How a region is mapped; see basic_whpx_vm::add_memory.
struct whpx_mapping {
    bool writable = true; ///< false: the guest's writes arrive at the bus
    bool executable = true;
    bool track_dirty = false; ///< for take_dirty()
};

/// Part of a whpx VM. Calls are safe from any thread.
class whpx_memory {
public:
    static constexpr std::uint64_t page_bytes = memory_slots::page_bytes;

    template <class Calls>
    [[nodiscard]] result<> add(const Calls& calls, os::whpx_abi::partition partition, pa base,
                               std::byte* host, std::uint64_t bytes,
                               const whpx_mapping& how) noexcept {
        const std::lock_guard lock{mutex_};
        const auto slot = slots_.room_for(base, host, bytes);
        if (!slot) return fail(slot);
        using namespace os::whpx_abi;
        const std::uint32_t flags = map_read | (how.writable ? map_write : 0) |
                                    (how.executable ? map_execute : 0) |
                                    (how.track_dirty ? map_track_dirty : 0);
        const status mapped = calls.map(partition, host, raw(base), bytes, flags);
        if (failed(mapped)) {
            return whpx_failure(mapped, memory_slots::named(base).view(),
                                "keep it below the guest's address bits, and the host bytes "
                                "committed");
        }
        **slot = {{base, bytes}, host, how.track_dirty};
        return {};
    }

    /// Error: not_found.
    template <class Calls>
    [[nodiscard]] result<> remove(const Calls& calls, os::whpx_abi::partition partition,
                                  pa base) noexcept {
        const std::lock_guard lock{mutex_};
        const auto slot = slots_.at(base);
        if (!slot) return fail(slot);
        const auto unmapped = calls.unmap(partition, raw(base), (*slot)->range.size);
        if (os::whpx_abi::failed(unmapped)) return vm_gone(unmapped, base);
        **slot = {};
        return {};
    }

    /// Errors: not_found, invalid_argument (not tracked, or the bitmap is too small).
    template <class Calls>
    [[nodiscard]] result<> take_dirty(const Calls& calls, os::whpx_abi::partition partition,
                                      pa base, std::span<std::uint64_t> bitmap) noexcept {
        const std::lock_guard lock{mutex_};
        const auto slot = slots_.at(base);
        if (!slot) return fail(slot);
        const std::uint64_t bytes = (*slot)->range.size;
        const std::uint64_t words = (bytes / page_bytes + 63) / 64;
        if (!(*slot)->tracks_dirty || bitmap.size() < words) {
            return fail(errc::invalid_argument,
                        memory_slots::named(base).append(
                            ": its writes are not tracked, or the bitmap is small"),
                        "add it with track_dirty, and give a bit for each 4096 bytes");
        }
        const auto taken = calls.take_dirty(partition, raw(base), bytes,
                                            bitmap.first(static_cast<std::size_t>(words)));
        if (os::whpx_abi::failed(taken)) return vm_gone(taken, base);
        return {};
    }

    /// Whether the guest may read there: a load never arrives at the bus.
    [[nodiscard]] bool contains(pa address) noexcept {
        const std::lock_guard lock{mutex_};
        return slots_.find(address, 1) != nullptr;
    }
    /// Copies out of guest memory; false if not all of it is in one region.
    [[nodiscard]] bool read(pa address, std::span<std::byte> out) noexcept {
        const std::lock_guard lock{mutex_};
        return slots_.read(address, out);
    }

private:
    [[nodiscard]] static tl::unexpected<error> vm_gone(os::whpx_abi::status why, pa base) noexcept {
        return whpx_failure(why, memory_slots::named(base).view(),
                            "see that the VM is still there");
    }

    memory_slots slots_{};
    std::mutex mutex_{};
};

} // namespace vm_accel::inline v0
