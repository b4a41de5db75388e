/// The translation cache of a PCI Express device (address translation services):
/// what the SMMU has told it of its DMA addresses, until that is taken back.
#pragma once

#include "dma.hpp"

#include <vm_accel/smmu/vocabulary/access_attributes.hpp>
#include <vm_accel/smmu/vocabulary/ats.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <type_traits>
#include <utility>

namespace linux_vmm {

/// A port that can also ask for translations, and use them.
template <class P>
concept ats_requester =
    dma_copier<P> &&
    requires(P& port, iova address, std::span<std::byte> out, std::span<const std::byte> in,
             const vm_accel::ats_request& asked, vm_accel::access_attributes how) {
        { port.ats_translate(asked) } noexcept -> std::same_as<vm_accel::ats_completion>;
        { port.read(address, out, how) } noexcept -> std::same_as<bool>;
        { port.write(address, in, how) } noexcept -> std::same_as<bool>;
    };

/// What a device did with ATS.
struct ats_statistics {
    std::uint64_t requests = 0;     ///< translations asked for
    std::uint64_t not_granted = 0;  ///< of them: no answer that serves the access
    std::uint64_t translated = 0;   ///< accesses with a translation
    std::uint64_t refused = 0;      ///< of them: by the SMMU
    std::uint64_t untranslated = 0; ///< accesses while ATS was on, without one
    std::uint64_t invalidations = 0;
    std::uint64_t forgotten = 0; ///< translations that these took back
};

/// A few translations of accesses without a PASID. Off at first.
///
/// Whoever uses a translation holds the one lock meanwhile, and whoever takes
/// one back holds it too: when forget() or enable(false) returns, no access with
/// what it covered is under way, and none follows. The lock is free but for
/// that: nobody else uses it, and nothing inside it waits for the guest.
///
/// Threads: one makes accesses; any others forget and enable.
class ats_cache {
public:
    static constexpr std::size_t capacity = 32;

    /// Off: untranslated accesses only, and nothing is kept.
    void enable(bool on) noexcept {
        const std::lock_guard lock{mutex_};
        enabled_.store(on, std::memory_order_relaxed);
        if (!on) entries_ = {};
    }
    [[nodiscard]] bool is_enabled() const noexcept {
        return enabled_.load(std::memory_order_relaxed);
    }

    /// Takes back what an invalidation covers. Then it may be acknowledged.
    void forget(const vm_accel::atc_invalidation& asked) noexcept {
        const std::lock_guard lock{mutex_};
        ++statistics_.invalidations;
        if (asked.has_substream && !asked.global) return; // of a PASID: there is none here
        for (entry& e : entries_) {
            if (!e.used || e.first > asked.last || e.last < asked.first) continue;
            e.used = false;
            ++statistics_.forgotten;
        }
    }

    /// What is left of an access, and how it goes on.
    enum class next : std::uint8_t { done, refused, untranslated };

    /// Makes accesses with translations, asked for as needed, as far as there are
    /// any: what is left is left in `address` and `bytes` (of std::byte: a read).
    template <ats_requester Port, class Byte>
    [[nodiscard]] next access(Port& port, iova& address, std::span<Byte>& bytes) noexcept {
        constexpr bool writes = std::is_const_v<Byte>;
        const std::lock_guard lock{mutex_};
        while (!bytes.empty()) {
            entry* const e = is_enabled() ? find(port, raw(address), writes) : nullptr;
            if (e == nullptr) {
                if (is_enabled()) ++statistics_.untranslated;
                return next::untranslated;
            }
            const auto part = bytes.first(static_cast<std::size_t>(
                std::min<std::uint64_t>(bytes.size() - 1, e->last - raw(address)) + 1));
            ++statistics_.translated;
            constexpr vm_accel::access_attributes translated{.translated = true};
            const iova output{e->output + (raw(address) - e->first)};
            bool passed = false;
            if constexpr (writes) {
                passed = port.write(output, part, translated);
            } else {
                passed = port.read(output, part, translated);
            }
            if (!passed) {
                ++statistics_.refused;
                e->used = false;
                return next::refused;
            }
            address = offset_by(address, part.size());
            bytes = bytes.subspan(part.size());
        }
        return next::done;
    }

    [[nodiscard]] ats_statistics statistics() const noexcept {
        const std::lock_guard lock{mutex_};
        return statistics_;
    }

private:
    struct entry {
        bool used = false, read = false, write = false;
        std::uint64_t first = 0, last = 0; ///< addresses of the device
        std::uint64_t output = 0;          ///< what `first` is
    };

    template <class Port>
    [[nodiscard]] entry* find(Port& port, std::uint64_t address, bool writes) noexcept {
        for (entry& e : entries_) {
            if (e.used && e.first <= address && address <= e.last && (writes ? e.write : e.read)) {
                return &e;
            }
        }
        ++statistics_.requests;
        const vm_accel::ats_completion answer =
            port.ats_translate({.address = iova{address}, .write = writes});
        if (answer.status != vm_accel::ats_status::success || answer.untranslated_only ||
            !(writes ? answer.write : answer.read)) {
            ++statistics_.not_granted;
            return nullptr;
        }
        const std::uint64_t inside =
            answer.size_log2 >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << answer.size_log2) - 1;
        entry made{true,
                   answer.read,
                   answer.write,
                   address & ~inside,
                   address | inside,
                   answer.address - (address & inside)};
        // The new answer replaces what was known of these addresses.
        for (entry& e : entries_)
            e.used = e.used && (e.first > made.last || e.last < made.first);
        entry* place = std::find_if(entries_.begin(), entries_.end(),
                                    [](const entry& e) noexcept { return !e.used; });
        if (place == entries_.end()) place = &entries_[oldest_++ % capacity];
        *place = made;
        return place;
    }

    mutable std::mutex mutex_;
    std::atomic<bool> enabled_{false}; ///< written under the lock
    std::array<entry, capacity> entries_{};
    std::size_t oldest_ = 0;
    ats_statistics statistics_;
};

/// A port whose accesses take the way through a translation cache while that is
/// enabled, where the port can ask for translations at all.
template <dma_copier Port>
class ats_port {
public:
    /// `cache` outlives the port.
    ats_port(Port port, ats_cache& cache) noexcept : port_(std::move(port)), cache_(&cache) {}

    [[nodiscard]] bool read(iova address, std::span<std::byte> out) noexcept {
        return copy(address, out);
    }
    [[nodiscard]] bool write(iova address, std::span<const std::byte> in) noexcept {
        return copy(address, in);
    }
    /// For what is no data: messages are registers behind the SMMU, and nothing
    /// that a device is given a translation of.
    [[nodiscard]] Port& untranslated() noexcept { return port_; }

    void park() noexcept
        requires requires(Port& port) { port.park(); }
    {
        port_.park();
    }
    void unpark() noexcept
        requires requires(Port& port) { port.unpark(); }
    {
        port_.unpark();
    }

private:
    /// An untranslated access may wait for the guest's driver: no lock is held.
    template <class Byte>
    [[nodiscard]] bool copy(iova address, std::span<Byte> bytes) noexcept {
        if constexpr (ats_requester<Port>) {
            while (cache_->is_enabled() && !bytes.empty()) {
                switch (cache_->access(port_, address, bytes)) {
                case ats_cache::next::done:
                    return true;
                case ats_cache::next::refused:
                    return false;
                case ats_cache::next::untranslated:
                    break;
                }
                // One page: the next may have a translation.
                const auto part = bytes.first(std::min<std::size_t>(
                    bytes.size(), static_cast<std::size_t>(0x1000 - (raw(address) & 0xfff))));
                if (!plain(address, part)) return false;
                address = offset_by(address, part.size());
                bytes = bytes.subspan(part.size());
            }
            if (bytes.empty()) return true;
        }
        return plain(address, bytes);
    }
    [[nodiscard]] bool plain(iova address, std::span<std::byte> out) noexcept {
        return port_.read(address, out);
    }
    [[nodiscard]] bool plain(iova address, std::span<const std::byte> in) noexcept {
        return port_.write(address, in);
    }

    Port port_;
    ats_cache* cache_;
};

} // namespace linux_vmm
