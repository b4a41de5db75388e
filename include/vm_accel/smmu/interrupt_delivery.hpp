/// How interrupts leave the SMMU: pulses of wired lines, and messages.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/guest/interrupt_sink.hpp>
#include <vm_accel/smmu/control/effects.hpp>
#include <vm_accel/smmu/control/message.hpp>
#include <vm_accel/smmu/vocabulary/interrupt_message.hpp>

#include <atomic>
#include <cstddef>

namespace vm_accel::inline v0 {

/// Made for one delivery, with no lock held and no guard of ours open.
template <class Assembly>
class interrupt_delivery {
public:
    explicit interrupt_delivery(Assembly& parts) noexcept : parts_(parts) {}

    /// True = the control side has to look: where an interrupt goes is decided
    /// under its lock.
    [[nodiscard]] bool operator()(const effects& out) noexcept {
        pulse(out.raise_cmdq_sync, wired_interrupt::cmdq_sync);
        if (Assembly::F.msi && !out.routed) {
            parts_.control.ask_for(out);
            return out.raise_eventq || out.raise_priq || out.raise_gerror;
        }
        pulse(out.raise_eventq, wired_interrupt::eventq);
        pulse(out.raise_priq, wired_interrupt::priq);
        pulse(out.raise_gerror, wired_interrupt::gerror);
        if constexpr (Assembly::F.msi) return send_messages(out);
        return false;
    }

private:
    void pulse(bool wanted, wired_interrupt line) noexcept {
        if (!wanted || parts_.injection.drops(line)) return;
        parts_.interrupts.fetch_add(1, std::memory_order_relaxed);
        parts_.sink->pulse(line);
    }
    /// To doorbells. One that nobody takes is an error, which has an interrupt
    /// of its own; true = it is to be looked at.
    [[nodiscard]] bool send_messages(const effects& out) noexcept {
        if (out.messages_written != 0)
            parts_.interrupts.fetch_add(out.messages_written, std::memory_order_relaxed);
        if (!out.has_messages) [[likely]]
            return false;
        effects failed;
        for (std::size_t i = 0; i < effects::lines; ++i) {
            const auto line = static_cast<wired_interrupt>(i);
            const interrupt_message message = out.message(line);
            if (!message || parts_.injection.drops(line)) continue;
            parts_.interrupts.fetch_add(1, std::memory_order_relaxed);
            if (!parts_.sink->signal_msi(Assembly::message_requester, pa{message.address},
                                         message.data)) {
                failed.raise_gerror =
                    parts_.registers.raise_error(message_abort_of(line)) || failed.raise_gerror;
            }
        }
        parts_.control.ask_for(failed);
        return failed.raise_gerror;
    }

    Assembly& parts_;
};

} // namespace vm_accel::inline v0
