/// Where the SMMU's interrupts go.
#pragma once

#include <vm_accel/core/address.hpp>

#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace vm_accel::inline v0 {

/// The SMMU's wired interrupts, named as in device trees (interrupt-names), and
/// that of its performance monitor, which is a node of its own there.
enum class wired_interrupt : std::uint8_t { eventq, priq, cmdq_sync, gerror, performance };

inline constexpr std::size_t wired_interrupt_count = 5;

[[nodiscard]] constexpr std::string_view name_of(wired_interrupt line) noexcept {
    switch (line) {
    case wired_interrupt::eventq:
        return "eventq";
    case wired_interrupt::priq:
        return "priq";
    case wired_interrupt::cmdq_sync:
        return "cmdq-sync";
    case wired_interrupt::gerror:
        return "gerror";
    case wired_interrupt::performance:
        return "performance";
    }
    return "unknown";
}

/// Meaning:
/// - pulse: one edge on a wired line (SPIs of an SMMU are edge triggered).
/// - is_doorbell: whether a 32-bit write to that physical address is a message
///   signalled interrupt (a GICv3 ITS translation register, a GICv2m frame).
/// - signal_msi: such a write, by the device `requester`; false = refused.
/// Threads: from any thread; must not block, must not call back into the SMMU.
/// pulse and signal_msi are called with no lock of the SMMU held, after the
/// port's guard has closed. is_doorbell is called in the middle of translations:
/// it must be a look-up in data that does not change.
template <class S>
concept interrupt_sink =
    requires(S& sink, wired_interrupt line, stream_id requester, pa address, std::uint32_t data) {
        { sink.pulse(line) } noexcept -> std::same_as<void>;
        { sink.is_doorbell(address) } noexcept -> std::same_as<bool>;
        { sink.signal_msi(requester, address, data) } noexcept -> std::same_as<bool>;
    };

/// Counts what it gets and delivers nothing: for tests, and for polling guests.
class counting_sink {
public:
    void pulse(wired_interrupt line) noexcept {
        pulses_[static_cast<std::size_t>(line)].fetch_add(1, std::memory_order_relaxed);
    }
    [[nodiscard]] bool is_doorbell(pa) noexcept { return false; }
    [[nodiscard]] bool signal_msi(stream_id, pa, std::uint32_t) noexcept { return false; }

    [[nodiscard]] std::uint64_t pulses(wired_interrupt line) const noexcept {
        return pulses_[static_cast<std::size_t>(line)].load(std::memory_order_relaxed);
    }

private:
    std::atomic<std::uint64_t> pulses_[wired_interrupt_count]{};
};

static_assert(interrupt_sink<counting_sink>);

} // namespace vm_accel::inline v0
