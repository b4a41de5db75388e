/// Interrupts become messages, or pulses on wires (IHI 0070, 3.18).
#pragma once

#include <vm_accel/core/field.hpp>
#include <vm_accel/guest/guest_memory.hpp>
#include <vm_accel/guest/interrupt_sink.hpp>
#include <vm_accel/smmu/control/effects.hpp>
#include <vm_accel/smmu/control/register_file.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>

#include <atomic>
#include <cstdint>
#include <span>

namespace vm_accel::inline v0 {

/// The GERROR bit that says that a line's message did not arrive.
[[nodiscard]] constexpr std::uint64_t message_abort_of(wired_interrupt line) noexcept {
    switch (line) {
    case wired_interrupt::eventq:
        return spec::GERROR::MSI_EVENTQ_ABT_ERR::mask;
    case wired_interrupt::priq:
        return spec::GERROR::MSI_PRIQ_ABT_ERR::mask;
    case wired_interrupt::cmdq_sync:
        return spec::GERROR::MSI_CMDQ_ABT_ERR::mask;
    case wired_interrupt::gerror:
        return spec::GERROR::MSI_GERROR_ABT_ERR::mask;
    case wired_interrupt::performance:
        break; // not an SMMU register's business: PMCG_IRQ_STATUS
    }
    return 0;
}

/// Writes a message into memory; where there is none, it is for a doorbell.
template <guest_memory Memory>
void send_message(wired_interrupt line, const interrupt_message& message, Memory& memory,
                  effects& out) noexcept {
    const le32 data{message.data};
    if (memory.write(pa{message.address}, std::as_bytes(std::span{&data, 1}))) {
        ++out.messages_written;
    } else {
        out.set_message(line, message);
    }
}

/// Finds out where interrupts go. A line with a message address sends messages,
/// any other pulses its wire; with F.wires_beside_messages all do.
///
/// Memory is written here, under the control lock, because memory goes away
/// under it only. Doorbells belong to someone else: their messages travel on as
/// effects, to be delivered once the lock is free.
///
/// Threads: ask from any thread; route under the control lock.
template <smmu_features F>
class interrupt_router {
public:
    /// Leaves interrupts to the next route(): for threads without the lock.
    void ask(const effects& raised) noexcept {
        const unsigned lines = lines_of(raised);
        if (lines != 0) asked_.fetch_or(lines, std::memory_order_seq_cst);
    }

    /// Whether somebody asked since.
    [[nodiscard]] bool is_asked() const noexcept {
        return asked_.load(std::memory_order_relaxed) != 0;
    }

    /// Decides about everything raised in `out` and asked for. An interrupt
    /// that has been disabled since is forgotten.
    template <guest_memory Memory>
    void route(register_file<F>& registers, Memory& memory, effects& out) noexcept {
        out.routed = true;
        if constexpr (F.msi) {
            if (is_asked() || lines_of(out) != 0) route_lines(registers, memory, out);
        }
    }

private:
    template <guest_memory Memory>
    [[gnu::noinline]] void route_lines(register_file<F>& registers, Memory& memory,
                                       effects& out) noexcept {
        unsigned lines = lines_of(out);
        if (asked_.load(std::memory_order_relaxed) != 0) {
            lines |= asked_.exchange(0, std::memory_order_seq_cst);
        }
        out.raise_eventq = out.raise_priq = out.raise_gerror = false;
        for (const wired_interrupt line :
             {wired_interrupt::eventq, wired_interrupt::priq, wired_interrupt::gerror}) {
            if ((lines & bit(line)) == 0 || !registers.interrupts().enabled(line)) continue;
            const interrupt_message message = registers.interrupts().message_of(line);
            if (message) send_message(line, message, memory, out);
            if (!message || F.wires_beside_messages) {
                out.raise_eventq = out.raise_eventq || line == wired_interrupt::eventq;
                out.raise_priq = out.raise_priq || line == wired_interrupt::priq;
                out.raise_gerror = out.raise_gerror || line == wired_interrupt::gerror;
            }
        }
    }
    [[nodiscard]] static constexpr unsigned bit(wired_interrupt line) noexcept {
        return 1U << static_cast<unsigned>(line);
    }
    /// Of the lines that registers configure; CMD_SYNC names its own message.
    [[nodiscard]] static constexpr unsigned lines_of(const effects& raised) noexcept {
        return (raised.raise_eventq ? bit(wired_interrupt::eventq) : 0) |
               (raised.raise_priq ? bit(wired_interrupt::priq) : 0) |
               (raised.raise_gerror ? bit(wired_interrupt::gerror) : 0);
    }

    std::atomic<unsigned> asked_{0};
};

} // namespace vm_accel::inline v0
