/// Guest memory as a set of regions, each backed by host memory.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/atomic_view.hpp>
#include <vm_accel/core/field.hpp>
#include <vm_accel/core/result.hpp>
#include <vm_accel/core/roles.hpp>
#include <vm_accel/guest/copy.hpp>
#include <vm_accel/guest/guest_memory.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <mutex>
#include <string_view>

namespace vm_accel::inline v0 {

/// Does not track writes. See `dirty_bitmap` for one that does.
struct no_dirty_tracking {
    void note_write(pa, std::uint64_t) noexcept {}
};

/// Guest physical memory in at most `Capacity` regions.
///
/// Look-ups take no lock and may run on any thread while regions are added or
/// removed: a look-up sees each region whole or not at all. Removing a region
/// only makes it invisible to later look-ups; host pointers found before may
/// still be in use, so take regions away with `smmu::remove_memory`, which
/// waits for them, and unmap afterwards.
template <class DirtyTracking = no_dirty_tracking, std::size_t Capacity = 64>
class basic_region_map {
public:
    using role = roles::guest_memory;
    static constexpr std::string_view name = "region_map";
    static constexpr std::size_t capacity = Capacity;

    basic_region_map() = default;
    basic_region_map(const basic_region_map&) = delete;
    basic_region_map& operator=(const basic_region_map&) = delete;

    /// Makes [base, base + bytes) RAM, backed by `host`. `base`, `host` and
    /// `bytes` must be multiples of 4096, and the range free. The bytes must
    /// outlive the region. Errors: invalid_argument, already_exists, exhausted.
    [[nodiscard]] result<> add(pa base, std::byte* host, std::uint64_t bytes) noexcept {
        const pa_range range{base, bytes};
        if (host == nullptr || bytes == 0 || !range.is_valid()) {
            return fail(
                errc::invalid_argument,
                fixed_text<160>{"guest region at "}
                    .append_number(raw(base), 16)
                    .append(": no host memory, empty, or past the end of the address space"),
                "give a host pointer and a size above 0 that does not wrap");
        }
        if (((raw(base) | bytes | std::bit_cast<std::uintptr_t>(host)) & 0xfff) != 0) {
            return fail(errc::invalid_argument,
                        fixed_text<160>{"guest region at "}
                            .append_number(raw(base), 16)
                            .append(": base, host pointer or size is not a multiple of 4096"),
                        "align all three to 4096 bytes");
        }
        const std::lock_guard lock{writer_};
        slot* free_slot = nullptr;
        for (slot& s : slots_) {
            const std::uint64_t size = s.bytes.load(std::memory_order_relaxed);
            if (size == 0) {
                if (free_slot == nullptr) free_slot = &s;
            } else if (range.overlaps({pa{s.base.load(std::memory_order_relaxed)}, size})) {
                return fail(errc::already_exists,
                            fixed_text<160>{"guest region at "}
                                .append_number(raw(base), 16)
                                .append(": overlaps the region at ")
                                .append_number(s.base.load(std::memory_order_relaxed), 16),
                            "remove the other region first, or choose another base");
            }
        }
        if (free_slot == nullptr) {
            return fail(errc::exhausted, "guest memory: every region slot is in use",
                        "merge regions, or instantiate basic_region_map with a larger Capacity");
        }
        publish(*free_slot, raw(base), host, bytes);
        const auto used = static_cast<std::size_t>(free_slot - slots_.data()) + 1;
        if (used > used_.load(std::memory_order_relaxed)) {
            used_.store(used, std::memory_order_release);
        }
        return {};
    }

    /// Takes the region that starts at `base` out of sight. Error: not_found.
    [[nodiscard]] result<> remove(pa base) noexcept {
        const std::lock_guard lock{writer_};
        for (slot& s : slots_) {
            if (s.bytes.load(std::memory_order_relaxed) != 0 &&
                s.base.load(std::memory_order_relaxed) == raw(base)) {
                publish(s, 0, nullptr, 0);
                return {};
            }
        }
        return fail(
            errc::not_found,
            fixed_text<160>{"guest memory: no region starts at "}.append_number(raw(base), 16),
            "pass the base that was given to add()");
    }

    /// The region that holds `address`.
    [[nodiscard, gnu::always_inline]] std::optional<host_run> find(pa address) const noexcept {
        const host_run run = region_of(address);
        if (run.bytes == 0) [[unlikely]]
            return std::nullopt;
        return run;
    }

    [[nodiscard]] bool read(pa address, std::span<std::byte> out) const noexcept {
        return copy(address, out.size(), [&](std::byte* host, std::size_t done, std::size_t n) {
            copy_from_guest(out.data() + done, host, n);
        });
    }

    [[nodiscard]] bool write(pa address, std::span<const std::byte> in) noexcept {
        const bool done =
            copy(address, in.size(), [&](std::byte* host, std::size_t at, std::size_t n) {
                copy_to_guest(host, in.data() + at, n);
            });
        if (done) tracking_.note_write(address, in.size());
        return done;
    }

    [[nodiscard, gnu::always_inline]] std::optional<std::uint64_t>
    load64(pa address) const noexcept {
        std::uint64_t* const word = aligned_word(address);
        if (word == nullptr) return std::nullopt;
        return little_endian(atomic_view<std::uint64_t>{*word}.load(std::memory_order_acquire));
    }

    [[nodiscard]] std::optional<std::uint64_t>
    compare_exchange64(pa address, std::uint64_t expected, std::uint64_t desired) noexcept {
        std::uint64_t* const word = aligned_word(address);
        if (word == nullptr) return std::nullopt;
        std::uint64_t found = little_endian(expected);
        if (atomic_view<std::uint64_t>{*word}.compare_exchange_strong(found, little_endian(desired),
                                                                      std::memory_order_acq_rel)) {
            tracking_.note_write(address, 8);
        }
        return little_endian(found);
    }

    void note_write(pa address, std::uint64_t bytes) noexcept {
        tracking_.note_write(address, bytes);
    }

    [[nodiscard]] DirtyTracking& tracking() noexcept { return tracking_; }

    /// Calls f(host_run) for each region, in no particular order.
    template <class F>
    void for_each(F&& f) const {
        const std::size_t used = used_.load(std::memory_order_acquire);
        for (std::size_t i = 0; i < used; ++i) {
            if (const auto run = read_slot(slots_[i])) f(*run);
        }
    }

    /// Facts for a diagnostic report: `out.fact(name, value)` for each.
    template <class Report>
    void report(Report& out) const {
        std::uint64_t regions = 0;
        std::uint64_t bytes = 0;
        for_each([&](const host_run& run) {
            ++regions;
            bytes += run.bytes;
        });
        out.fact("regions", regions);
        out.fact("bytes", bytes);
    }

private:
    /// One region behind a sequence counter: odd while it is being replaced.
    struct slot {
        std::atomic<std::uint64_t> sequence{0};
        std::atomic<std::uint64_t> base{0};
        std::atomic<std::uint64_t> bytes{0};
        std::atomic<std::byte*> host{nullptr};
    };

    static void publish(slot& s, std::uint64_t base, std::byte* host,
                        std::uint64_t bytes) noexcept {
        const std::uint64_t sequence = s.sequence.load(std::memory_order_relaxed);
        s.sequence.store(sequence + 1, std::memory_order_relaxed);
        s.base.store(base, std::memory_order_release);
        s.bytes.store(bytes, std::memory_order_release);
        s.host.store(host, std::memory_order_release);
        s.sequence.store(sequence + 2, std::memory_order_release);
    }

    /// The region that holds `address`; one of no bytes if none does. A region
    /// that comes or goes meanwhile may be passed over: what is read of a slot
    /// has to be consistent only if it is used.
    [[nodiscard, gnu::always_inline]] host_run region_of(pa address) const noexcept {
        const std::size_t used = used_.load(std::memory_order_acquire);
        for (std::size_t i = 0; i < used; ++i) {
            const slot& s = slots_[i];
            for (;;) {
                const std::uint64_t before = s.sequence.load(std::memory_order_acquire);
                const std::uint64_t base = s.base.load(std::memory_order_acquire);
                const std::uint64_t bytes = s.bytes.load(std::memory_order_acquire);
                if (raw(address) - base >= bytes) break;
                std::byte* const host = s.host.load(std::memory_order_acquire);
                if ((before & 1) == 0 && s.sequence.load(std::memory_order_relaxed) == before)
                    [[likely]] {
                    return {host, pa{base}, bytes};
                }
            }
        }
        return {};
    }

    /// A consistent copy of a slot; nullopt when it is empty. The acquire loads
    /// keep the second look at the sequence behind the data; the release stores
    /// keep the odd sequence before it.
    [[nodiscard]] static std::optional<host_run> read_slot(const slot& s) noexcept {
        for (;;) {
            const std::uint64_t before = s.sequence.load(std::memory_order_acquire);
            const std::uint64_t base = s.base.load(std::memory_order_acquire);
            const std::uint64_t bytes = s.bytes.load(std::memory_order_acquire);
            std::byte* const host = s.host.load(std::memory_order_acquire);
            if ((before & 1) == 0 && s.sequence.load(std::memory_order_relaxed) == before) {
                if (bytes == 0) return std::nullopt;
                return host_run{host, pa{base}, bytes};
            }
        }
    }

    [[nodiscard, gnu::always_inline]] std::uint64_t* aligned_word(pa address) const noexcept {
        const host_run run = region_of(address);
        if (run.bytes == 0 || (raw(address) & 7) != 0) [[unlikely]]
            return nullptr;
        return reinterpret_cast<std::uint64_t*>(run.host + (raw(address) - raw(run.base)));
    }

    /// Calls f(host, offset, n) for each piece once the whole range is known to
    /// be RAM. A range may span regions that touch.
    template <class F>
    [[nodiscard]] bool copy(pa address, std::size_t bytes, F f) const noexcept {
        if (bytes == 0) return true;
        if (!pa_range{address, bytes}.is_valid()) return false;
        const host_run first = region_of(address);
        if (first.bytes == 0) return false;
        const std::uint64_t offset = raw(address) - raw(first.base);
        if (bytes <= first.bytes - offset) {
            f(first.host + offset, 0, bytes);
            return true;
        }
        // Across regions: remember each piece, so that all-or-nothing holds
        // even if a region goes away between the check and the copy.
        std::array<std::span<std::byte>, Capacity> pieces;
        std::size_t count = 0;
        for (std::size_t done = 0; done < bytes;) {
            const pa at = offset_by(address, done);
            const std::optional<host_run> run = find(at);
            if (!run || count == Capacity) return false;
            const std::uint64_t skip = raw(at) - raw(run->base);
            const std::uint64_t n =
                run->bytes - skip < bytes - done ? run->bytes - skip : bytes - done;
            pieces[count++] = {run->host + skip, static_cast<std::size_t>(n)};
            done += static_cast<std::size_t>(n);
        }
        // The pieces add up to `bytes`; said again where compilers look for it.
        std::size_t done = 0;
        for (std::size_t i = 0; i < count && done < bytes; ++i) {
            const std::size_t n = std::min(pieces[i].size(), bytes - done);
            f(pieces[i].data(), done, n);
            done += n;
        }
        return true;
    }

    std::array<slot, Capacity> slots_{};
    std::atomic<std::size_t> used_{0};
    std::mutex writer_;
    [[no_unique_address]] DirtyTracking tracking_{};
};

using region_map = basic_region_map<>;

static_assert(guest_memory<region_map>);

} // namespace vm_accel::inline v0
