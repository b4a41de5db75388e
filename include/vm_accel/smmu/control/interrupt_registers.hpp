/// Which interrupts are enabled, and what messages they send (IHI 0070, 6.3.17,
/// 6.3.21 to 6.3.23, 6.3.30 to 6.3.36).
#pragma once

#include <vm_accel/guest/interrupt_sink.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/smmu/vocabulary/interrupt_message.hpp>
#include <vm_accel/spec/registers.hpp>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace vm_accel::inline v0 {

/// IRQ_CTRL and the three sets of IRQ_CFG0 to 2: of GERROR, the event queue and
/// the page request queue. A set is locked by its own enable bit. Without
/// IDR0.MSI the settings are stored and unused.
///
/// Threads: writes and messages under the control lock; what is enabled, from
/// any thread.
template <smmu_features F>
class interrupt_registers {
public:
    /// Offsets in page 0.
    [[nodiscard]] static constexpr bool has(std::uint32_t at) noexcept {
        namespace reg = spec::reg;
        return at == reg::IRQ_CTRL || at == reg::IRQ_CTRLACK ||
               (reg::GERROR_IRQ_CFG0 <= at && at <= reg::GERROR_IRQ_CFG2) ||
               (reg::EVENTQ_IRQ_CFG0 <= at && at <= reg::EVENTQ_IRQ_CFG2) ||
               (reg::PRIQ_IRQ_CFG0 <= at && at <= reg::PRIQ_IRQ_CFG2);
    }

    void reset() noexcept {
        control_.store(0, std::memory_order_relaxed);
        settings_ = {};
        last_only_.store(false, std::memory_order_relaxed);
    }

    [[nodiscard]] std::uint64_t read(std::uint32_t at) const noexcept {
        if (at <= spec::reg::IRQ_CTRLACK) return control_.load(std::memory_order_acquire);
        const settings& s = settings_[index_of(line_of(at))];
        switch (at - first_of(line_of(at))) {
        case 0:
            return s.cfg0;
        case 8:
            return s.cfg1;
        default:
            return s.cfg2;
        }
    }
    void write(std::uint32_t at, std::uint64_t value) noexcept {
        const auto low = static_cast<std::uint32_t>(value);
        if (at <= spec::reg::IRQ_CTRLACK) {
            control_.store(low & (F.pri ? 0x7U : 0x5U), std::memory_order_release);
            return;
        }
        const wired_interrupt line = line_of(at);
        const bool priq = line == wired_interrupt::priq;
        if (enabled(line) || (priq && !F.pri)) return;
        settings& s = settings_[index_of(line)];
        switch (at - first_of(line)) {
        case 0:
            s.cfg0 = value & spec::IRQ_CFG0::ADDR::mask;
            break;
        case 8:
            s.cfg1 = low;
            break;
        default:
            s.cfg2 = low & (priq ? 0x8000'003fU : 0x3fU);
            if (priq) last_only_.store(spec::IRQ_CFG2::LO::of(low) != 0, std::memory_order_relaxed);
            break;
        }
    }

    /// By line; CMD_SYNC's and others' have no enable bit here.
    [[nodiscard]] bool enabled(wired_interrupt line) const noexcept {
        const std::uint64_t control = control_.load(std::memory_order_acquire);
        switch (line) {
        case wired_interrupt::eventq:
            return spec::IRQ_CTRL::EVENTQ_IRQEN::of(control) != 0;
        case wired_interrupt::priq:
            return spec::IRQ_CTRL::PRIQ_IRQEN::of(control) != 0;
        case wired_interrupt::gerror:
            return spec::IRQ_CTRL::GERROR_IRQEN::of(control) != 0;
        default:
            return true;
        }
    }
    /// PRIQ_IRQ_CFG2.LO: an interrupt for the last request of a group only.
    [[nodiscard]] bool last_only() const noexcept {
        return last_only_.load(std::memory_order_relaxed);
    }
    /// The message that a line is configured to send; none without IDR0.MSI.
    [[nodiscard]] interrupt_message message_of(wired_interrupt line) const noexcept {
        if (!F.msi) return {};
        if (line != wired_interrupt::gerror && line != wired_interrupt::eventq &&
            line != wired_interrupt::priq) {
            return {};
        }
        const settings& s = settings_[index_of(line)];
        return {s.cfg0, s.cfg1};
    }

    /// See saved_state.hpp.
    template <class Visit>
    void visit_state(Visit& visit) noexcept {
        visit(control_, 0x7);
        for (settings& s : settings_) {
            visit(s.cfg0, spec::IRQ_CFG0::ADDR::mask);
            visit(s.cfg1, 0xffff'ffff);
            visit(s.cfg2, 0x8000'003f);
        }
        if (!visit.is_loading()) return;
        const std::uint32_t priq = settings_[index_of(wired_interrupt::priq)].cfg2;
        last_only_.store(spec::IRQ_CFG2::LO::of(priq) != 0, std::memory_order_relaxed);
    }

private:
    struct settings {
        std::uint64_t cfg0 = 0;
        std::uint32_t cfg1 = 0;
        std::uint32_t cfg2 = 0;
    };

    [[nodiscard]] static constexpr wired_interrupt line_of(std::uint32_t at) noexcept {
        return at >= spec::reg::PRIQ_IRQ_CFG0     ? wired_interrupt::priq
               : at >= spec::reg::EVENTQ_IRQ_CFG0 ? wired_interrupt::eventq
                                                  : wired_interrupt::gerror;
    }
    [[nodiscard]] static constexpr std::uint32_t first_of(wired_interrupt line) noexcept {
        return line == wired_interrupt::priq     ? spec::reg::PRIQ_IRQ_CFG0
               : line == wired_interrupt::eventq ? spec::reg::EVENTQ_IRQ_CFG0
                                                 : spec::reg::GERROR_IRQ_CFG0;
    }
    [[nodiscard]] static constexpr std::size_t index_of(wired_interrupt line) noexcept {
        return line == wired_interrupt::gerror ? 0 : line == wired_interrupt::eventq ? 1 : 2;
    }

    std::atomic<std::uint32_t> control_{0};
    std::atomic<bool> last_only_{false};
    std::array<settings, 3> settings_{};
};

} // namespace vm_accel::inline v0
