/// Which guest addresses are RAM in the VM of Hypervisor.framework.
///
/// The framework knows mappings by address alone; the table here names overlaps,
/// removes a region by its base, and finds the host's bytes of a guest address.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/result.hpp>
#include <vm_accel/hypervisor/hvf_errors.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <shared_mutex>
#include <span>

namespace vm_accel::inline v0 {

/// Part of a hvf VM. Calls are safe from any thread.
class hvf_memory {
public:
    static constexpr std::size_t capacity = 128;

    /// See basic_hvf_vm::add_memory.
    template <class Calls>
    [[nodiscard]] result<> add(const Calls& calls, pa base, std::byte* host, std::uint64_t bytes,
                               std::uint64_t rights) noexcept {
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
        region* free_region = nullptr;
        for (region& r : regions_) {
            if (r.range.empty()) {
                if (free_region == nullptr) free_region = &r;
            } else if (r.range.overlaps(range)) {
                return fail(errc::already_exists,
                            named(base)
                                .append(": overlaps the region at ")
                                .append_number(raw(r.range.base), 16),
                            "remove the other region first, or choose another base");
            }
        }
        if (free_region == nullptr) {
            return fail(errc::exhausted, named(base).append(": every slot is in use"),
                        "merge regions that touch");
        }
        const auto mapped = calls.map(host, raw(base), bytes, rights);
        if (mapped != os::hvf_abi::status::success) {
            return hvf_failure(mapped, named(base).view(),
                               "align base, host pointer and size to the host's pages (Apple "
                               "silicon: 16384), below the guest's address bits");
        }
        *free_region = {range, host};
        return {};
    }

    /// See basic_hvf_vm::remove_memory. Error: not_found.
    template <class Calls>
    [[nodiscard]] result<> remove(const Calls& calls, pa base) noexcept {
        const std::lock_guard lock{mutex_};
        for (region& r : regions_) {
            if (r.range.empty() || r.range.base != base) continue;
            const auto unmapped = calls.unmap(raw(base), r.range.size);
            if (unmapped != os::hvf_abi::status::success) {
                return hvf_failure(unmapped, named(base).view(), "see that the VM is still there");
            }
            r = {};
            return {};
        }
        return fail(errc::not_found, named(base).append(": no region starts here"),
                    "pass the base that was given to add_memory()");
    }

    /// See basic_hvf_vm::protect_memory. Error: not_found.
    template <class Calls>
    [[nodiscard]] result<> protect(const Calls& calls, pa base, std::uint64_t rights) noexcept {
        const std::lock_guard lock{mutex_};
        for (const region& r : regions_) {
            if (r.range.empty() || r.range.base != base) continue;
            const auto done = calls.protect(raw(base), r.range.size, rights);
            if (done == os::hvf_abi::status::success) return {};
            return hvf_failure(done, named(base).view(), "see that the VM is still there");
        }
        return fail(errc::not_found, named(base).append(": no region starts here"),
                    "pass the base that was given to add_memory()");
    }

    [[nodiscard]] bool contains(pa address) noexcept {
        const std::shared_lock lock{mutex_};
        return find(address, 1) != nullptr;
    }
    /// Copies out of guest memory; false if not all of it is in one region.
    [[nodiscard]] bool read(pa address, std::span<std::byte> out) noexcept {
        const std::shared_lock lock{mutex_};
        const region* const r = find(address, out.size());
        if (r == nullptr) return false;
        std::memcpy(out.data(), r->host + (raw(address) - raw(r->range.base)), out.size());
        return true;
    }

private:
    struct region {
        pa_range range{};
        std::byte* host = nullptr;
    };

    [[nodiscard]] static fixed_text<160> named(pa base) noexcept {
        return fixed_text<160>{"guest memory at "}.append_number(raw(base), 16);
    }
    [[nodiscard]] const region* find(pa address, std::uint64_t bytes) const noexcept {
        for (const region& r : regions_)
            if (!r.range.empty() && r.range.contains(address, bytes)) return &r;
        return nullptr;
    }

    std::array<region, capacity> regions_{};
    std::shared_mutex mutex_{};
};

} // namespace vm_accel::inline v0
