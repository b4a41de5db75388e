/// Guest memory made of recorded pages, however many and wherever they are.
#pragma once

#include "recording.hpp"

#include <vm_accel/core/field.hpp>
#include <vm_accel/guest/copy.hpp>
#include <vm_accel/guest/guest_memory.hpp>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace replay {

/// A model of guest_memory. Pages that touch form one region. Behind the
/// recorded pages there are `spare` zeroed ones, for tables that a replay adds.
/// Its shape never changes, so look-ups need no lock.
class page_memory {
public:
    page_memory(const page_set& pages, std::size_t spare) {
        storage_.resize((pages.size() + spare) * (page_bytes / 8));
        std::size_t used = 0;
        for (const auto& [address, bytes] : pages) {
            std::byte* const host = this->host(used++);
            std::copy(bytes.begin(), bytes.end(), host);
            add(address, host, page_bytes);
        }
        spare_bytes_ = spare * page_bytes;
        spare_ = free_range(spare_bytes_);
        if (spare != 0) add(spare_, host(used), spare_bytes_);
    }

    /// Where the spare pages are.
    [[nodiscard]] pa spare() const noexcept { return pa{spare_}; }

    [[nodiscard]] std::optional<host_run> find(pa address) const noexcept {
        const auto after = std::upper_bound(
            runs_.begin(), runs_.end(), raw(address),
            [](std::uint64_t a, const host_run& run) { return a < raw(run.base); });
        if (after == runs_.begin()) return std::nullopt;
        const host_run& run = *(after - 1);
        if (raw(address) - raw(run.base) >= run.bytes) return std::nullopt;
        return run;
    }
    [[nodiscard]] bool read(pa address, std::span<std::byte> out) const noexcept {
        std::byte* const host = whole(address, out.size());
        if (host == nullptr) return false;
        copy_from_guest(out.data(), host, out.size());
        return true;
    }
    [[nodiscard]] bool write(pa address, std::span<const std::byte> in) noexcept {
        std::byte* const host = whole(address, in.size());
        if (host == nullptr) return false;
        copy_to_guest(host, in.data(), in.size());
        return true;
    }
    [[nodiscard]] std::optional<std::uint64_t> load64(pa address) const noexcept {
        std::uint64_t* const word = aligned_word(address);
        if (word == nullptr) return std::nullopt;
        return little_endian(std::atomic_ref{*word}.load(std::memory_order_acquire));
    }
    /// False where there is no memory.
    bool store64(pa address, std::uint64_t value) noexcept {
        std::uint64_t* const word = aligned_word(address);
        if (word == nullptr) return false;
        std::atomic_ref{*word}.store(little_endian(value), std::memory_order_release);
        return true;
    }
    [[nodiscard]] std::optional<std::uint64_t>
    compare_exchange64(pa address, std::uint64_t expected, std::uint64_t desired) noexcept {
        std::uint64_t* const word = aligned_word(address);
        if (word == nullptr) return std::nullopt;
        std::uint64_t found = little_endian(expected);
        std::atomic_ref{*word}.compare_exchange_strong(found, little_endian(desired));
        return little_endian(found);
    }
    void note_write(pa, std::uint64_t) noexcept {}

private:
    [[nodiscard]] std::byte* host(std::size_t page) noexcept {
        return reinterpret_cast<std::byte*>(storage_.data()) + page * page_bytes;
    }
    /// Pages come in order of address, so that those that touch also touch here.
    void add(std::uint64_t address, std::byte* host, std::uint64_t bytes) {
        if (!runs_.empty() && raw(runs_.back().base) + runs_.back().bytes == address &&
            runs_.back().host + runs_.back().bytes == host) {
            runs_.back().bytes += bytes;
            return;
        }
        const auto after = std::find_if(runs_.begin(), runs_.end(),
                                        [&](const host_run& r) { return raw(r.base) > address; });
        runs_.insert(after, {host, pa{address}, bytes});
    }
    /// The lowest run of addresses that keeps 2 MiB away from all recorded pages.
    [[nodiscard]] std::uint64_t free_range(std::uint64_t bytes) const noexcept {
        constexpr std::uint64_t distance = std::uint64_t{1} << 21;
        std::uint64_t candidate = distance;
        for (const host_run& run : runs_) {
            if (candidate + bytes + distance <= raw(run.base)) break;
            candidate = std::max(candidate, raw(run.base) + run.bytes + distance);
            candidate = (candidate + distance - 1) & ~(distance - 1);
        }
        return candidate;
    }
    [[nodiscard]] std::byte* whole(pa address, std::size_t bytes) const noexcept {
        const std::optional<host_run> run = find(address);
        if (!run || bytes > run->bytes - (raw(address) - raw(run->base))) return nullptr;
        return run->host + (raw(address) - raw(run->base));
    }
    [[nodiscard]] std::uint64_t* aligned_word(pa address) const noexcept {
        if (raw(address) % 8 != 0) return nullptr;
        return reinterpret_cast<std::uint64_t*>(whole(address, 8));
    }

    std::vector<std::uint64_t> storage_;
    std::vector<host_run> runs_; ///< in order of address
    std::uint64_t spare_ = 0;
    std::uint64_t spare_bytes_ = 0;
};

static_assert(guest_memory<page_memory>);

} // namespace replay
