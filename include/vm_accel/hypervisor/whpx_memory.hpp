/// Which guest addresses are RAM in one partition of the Windows Hypervisor Platform.
///
/// The platform knows mappings by address alone; the table here names overlaps, removes
/// a region by its base, and finds the host's bytes of a guest address.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/result.hpp>
#include <vm_accel/hypervisor/whpx_errors.hpp>
#include <vm_accel/os/whpx_abi.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
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
    static constexpr std::size_t capacity = 128;
    static constexpr std::uint64_t page_bytes = 4096;

    template <class Calls>
    [[nodiscard]] result<> add(const Calls& calls, os::whpx_abi::partition partition, pa base,
                               std::byte* host, std::uint64_t bytes,
                               const whpx_mapping& how) noexcept {
        const pa_range range{base, bytes};
        const auto host_address = reinterpret_cast<std::uintptr_t>(host);
        if (host == nullptr || bytes == 0 || !range.is_valid() ||
            ((raw(base) | bytes | host_address) & (page_bytes - 1)) != 0) {
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
        using namespace os::whpx_abi;
        const std::uint32_t flags = map_read | (how.writable ? map_write : 0) |
                                    (how.executable ? map_execute : 0) |
                                    (how.track_dirty ? map_track_dirty : 0);
        const status mapped = calls.map(partition, host, raw(base), bytes, flags);
        if (failed(mapped)) {
            return whpx_failure(mapped, named(base).view(),
                                "keep it below the guest's address bits, and the host bytes "
                                "committed");
        }
        *free_region = {range, host, how};
        return {};
    }

    /// Error: not_found.
    template <class Calls>
    [[nodiscard]] result<> remove(const Calls& calls, os::whpx_abi::partition partition,
                                  pa base) noexcept {
        const std::lock_guard lock{mutex_};
        region* const r = starting_at(base);
        if (r == nullptr) return nothing_at(base);
        const auto unmapped = calls.unmap(partition, raw(base), r->range.size);
        if (os::whpx_abi::failed(unmapped))
            return whpx_failure(unmapped, named(base).view(), "see that the VM is still there");
        *r = {};
        return {};
    }

    /// Errors: not_found, invalid_argument (not tracked, or the bitmap is too small).
    template <class Calls>
    [[nodiscard]] result<> take_dirty(const Calls& calls, os::whpx_abi::partition partition,
                                      pa base, std::span<std::uint64_t> bitmap) noexcept {
        const std::lock_guard lock{mutex_};
        const region* const r = starting_at(base);
        if (r == nullptr) return nothing_at(base);
        const std::uint64_t words = (r->range.size / page_bytes + 63) / 64;
        if (!r->how.track_dirty || bitmap.size() < words) {
            return fail(errc::invalid_argument,
                        named(base).append(": its writes are not tracked, or the bitmap is small"),
                        "add it with track_dirty, and give a bit for each 4096 bytes");
        }
        const auto taken = calls.take_dirty(partition, raw(base), r->range.size,
                                            bitmap.first(static_cast<std::size_t>(words)));
        if (!os::whpx_abi::failed(taken)) return {};
        return whpx_failure(taken, named(base).view(), "see that the VM is still there");
    }

    /// Whether the guest may read there: a load never arrives at the bus.
    [[nodiscard]] bool contains(pa address) noexcept {
        const std::lock_guard lock{mutex_};
        return find(address, 1) != nullptr;
    }
    /// Copies out of guest memory; false if not all of it is in one region.
    [[nodiscard]] bool read(pa address, std::span<std::byte> out) noexcept {
        const std::lock_guard lock{mutex_};
        const region* const r = find(address, out.size());
        if (r == nullptr) return false;
        std::memcpy(out.data(), r->host + (raw(address) - raw(r->range.base)), out.size());
        return true;
    }

private:
    struct region {
        pa_range range{};
        std::byte* host = nullptr;
        whpx_mapping how{};
    };

    [[nodiscard]] static fixed_text<160> named(pa base) noexcept {
        return fixed_text<160>{"guest memory at "}.append_number(raw(base), 16);
    }
    [[nodiscard]] static tl::unexpected<error> nothing_at(pa base) noexcept {
        return fail(errc::not_found, named(base).append(": no region starts here"),
                    "pass the base that was given to add_memory()");
    }
    [[nodiscard]] region* starting_at(pa base) noexcept {
        for (region& r : regions_)
            if (!r.range.empty() && r.range.base == base) return &r;
        return nullptr;
    }
    [[nodiscard]] const region* find(pa address, std::uint64_t bytes) const noexcept {
        for (const region& r : regions_)
            if (!r.range.empty() && r.range.contains(address, bytes)) return &r;
        return nullptr;
    }

    std::array<region, capacity> regions_{};
    std::mutex mutex_{};
};

} // namespace vm_accel::inline v0
