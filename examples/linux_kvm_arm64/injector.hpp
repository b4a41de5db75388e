/// DMA that must fail, on demand of the guest.
///
/// The guest writes a number to a register; a thread of the VMM then acts as a
/// device gone wrong, which may have to wait for the guest's driver, and tries to read and to write
/// guest memory in a way that the guest's own SMMU tables forbid. An attempt counts as refused only
/// when the port said so, no byte arrived in the buffer of the read, and the bytes of the write are
/// nowhere in guest RAM afterwards.
#pragma once

#include "dma.hpp"

#include <vm_accel/core/address.hpp>
#include <vm_accel/guest/region_map.hpp>
#include <vm_accel/smmu/vocabulary/access_attributes.hpp>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace linux_vmm {

using vm_accel::pa;

/// One write to the register and what came of it.
struct injection {
    std::string_view name;      ///< "unmapped", "no-table", "aborting"
    std::uint32_t stream = 0;   ///< StreamID it came from
    unsigned reads = 0;         ///< attempts
    unsigned reads_refused = 0; ///< of these: refused, and the buffer untouched
    unsigned writes = 0;
    unsigned writes_refused = 0; ///< of these: refused, and the bytes nowhere in RAM

    [[nodiscard]] bool refused() const noexcept {
        return reads != 0 && writes != 0 && reads == reads_refused && writes == writes_refused;
    }
};

/// What a write tries to leave: one word, over and over.
using dma_marker = std::array<std::uint64_t, 32>;

/// Whether `word` is in guest RAM: at any 8-byte step in the page at `target`, at
/// 64-byte steps everywhere else, which finds every run of 64 bytes and more.
[[nodiscard]] inline bool is_in_ram(const vm_accel::region_map& ram, std::uint64_t word,
                                    pa target) noexcept {
    bool found = false;
    ram.for_each([&](const vm_accel::host_run& run) {
        const std::span words{reinterpret_cast<std::uint64_t*>(run.host),
                              static_cast<std::size_t>(run.bytes / 8)};
        const auto look = [&](std::size_t first, std::size_t end, std::size_t step) noexcept {
            for (std::size_t i = first; i < end && !found; i += step) {
                found = std::atomic_ref<std::uint64_t>{words[i]}.load(std::memory_order_relaxed) ==
                        word;
            }
        };
        const pa page{raw(target) & ~std::uint64_t{0xfff}};
        if (vm_accel::pa_range{run.base, run.bytes}.contains(page, 0x1000)) {
            const auto first = static_cast<std::size_t>((raw(page) - raw(run.base)) / 8);
            look(first, first + 0x1000 / 8, 1);
        }
        look(0, words.size(), 8);
    });
    return found;
}

/// A device gone wrong.
template <dma_copier Port>
struct dma_source {
    std::string_view name;
    std::uint32_t stream = 0;
    Port port;
    /// It says that the SMMU has told it these addresses: a device that has kept
    /// a translation which was taken back.
    bool translated = false;
};

/// `Print`: void(const injection&) noexcept. `Notify`: void() noexcept, wakes the
/// thread that calls work().
/// Threads: vCPU threads read and write; one other thread works.
template <dma_copier Port, class Print, class Notify>
class injector {
public:
    /// `sources` in the order of the register values, from 1 on. `target` is a
    /// RAM address, so that a DMA that is not translated would hit RAM.
    injector(std::vector<dma_source<Port>> sources, const vm_accel::region_map& ram, pa target,
             Print print, Notify notify)
        : sources_(std::move(sources)),
          ram_(ram),
          target_(raw(target)),
          print_(print),
          notify_(notify) {
        for (dma_source<Port>& s : sources_)
            port_in_use<Port>::rest(s.port);
    }

    /// 0 before the first injection, 1 if the last one was refused, 2 if not, 3
    /// while one is under way.
    [[nodiscard]] std::uint32_t read() const noexcept { return state_; }

    /// Starts injection `number`, unless one is under way; other numbers are ignored.
    void write(std::uint32_t number) noexcept {
        if (number == 0 || number > sources_.size()) return;
        std::uint32_t before = state_;
        while (before != under_way) {
            if (!state_.compare_exchange_weak(before, under_way)) continue;
            asked_ = number;
            notify_();
            return;
        }
    }

    /// Carries out what was asked for.
    void work() noexcept {
        const std::uint32_t number = asked_.exchange(0);
        if (number == 0) return;
        dma_source<Port>& from = sources_[number - 1];
        const port_in_use awake{from.port};
        injection now{from.name, from.stream};
        try_read(from, now, iova{target_});
        try_write(from, now, iova{target_});
        // Far above all RAM, too, from the stream that has tables.
        if (number == 1) try_write(from, now, iova{std::uint64_t{0x12'3456'7000}});
        if (done_.size() < most) done_.push_back(now);
        print_(now);
        state_ = now.refused() ? 1 : 2;
    }

    /// Read after the thread that works has ended.
    [[nodiscard]] const std::vector<injection>& done() const noexcept { return done_; }

private:
    static constexpr std::size_t most = 1000; ///< injections that are remembered
    static constexpr std::uint32_t under_way = 3;

    template <class Byte>
    [[nodiscard]] static bool copy(dma_source<Port>& from, iova address,
                                   std::span<Byte> bytes) noexcept {
        const auto pass = [&](auto... how) noexcept {
            if constexpr (std::is_const_v<Byte>) {
                return from.port.write(address, bytes, how...);
            } else {
                return from.port.read(address, bytes, how...);
            }
        };
        constexpr vm_accel::access_attributes translated{.translated = true};
        if constexpr (requires { from.port.read(address, std::span<std::byte>{}, translated); }) {
            if (from.translated) return pass(translated);
        }
        return pass();
    }

    void try_read(dma_source<Port>& from, injection& now, iova address) noexcept {
        std::array<std::byte, 64> buffer;
        buffer.fill(std::byte{0xa5});
        const std::array<std::byte, 64> before = buffer;
        const bool done = copy(from, address, std::span<std::byte>{buffer});
        ++now.reads;
        if (!done && buffer == before) ++now.reads_refused;
    }

    void try_write(dma_source<Port>& from, injection& now, iova address) noexcept {
        dma_marker marker;
        marker.fill(random_());
        const bool done =
            copy(from, address, std::span<const std::byte>{std::as_bytes(std::span{marker})});
        ++now.writes;
        if (!done && !is_in_ram(ram_, marker[0], pa{raw(address)})) ++now.writes_refused;
    }

    std::vector<dma_source<Port>> sources_;
    const vm_accel::region_map& ram_;
    const std::uint64_t target_;
    Print print_;
    Notify notify_;
    std::atomic<std::uint32_t> state_{0}, asked_{0};
    std::mt19937_64 random_{std::random_device{}()};
    std::vector<injection> done_;
};

} // namespace linux_vmm
