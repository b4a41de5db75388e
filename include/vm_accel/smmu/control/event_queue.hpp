/// The event queue: faults on their way to the guest's driver (IHI 0070, 7.2).
#pragma once

#include <vm_accel/guest/guest_memory.hpp>
#include <vm_accel/smmu/control/effects.hpp>
#include <vm_accel/smmu/control/event_record.hpp>
#include <vm_accel/smmu/control/queue_index.hpp>
#include <vm_accel/smmu/control/register_file.hpp>
#include <vm_accel/spec/events.hpp>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

namespace vm_accel::inline v0 {

/// Threads: push from any device thread, inside its guard. Nobody waits: a
/// record is staged, and whoever finds no one writing writes what is staged.
///
/// The record of a stalled access is never dropped: what cannot be written is
/// handed back by its STAG, and the access starts again once there is room
/// (7.2.1, 7.4).
template <smmu_features F, std::size_t Staged = 64>
class event_queue {
    static_assert((Staged & (Staged - 1)) == 0);

public:
    event_queue() noexcept {
        for (std::size_t i = 0; i < Staged; ++i) {
            cells_[i].turn.store(i, std::memory_order_relaxed);
        }
    }

    /// Takes a record. False = staging is full: lose() it, as in an overflow.
    [[nodiscard]] bool push(const spec::event_record& record) noexcept {
        std::size_t at = tail_.load(std::memory_order_relaxed);
        for (;;) {
            cell& c = cells_[at % Staged];
            const std::size_t turn = c.turn.load(std::memory_order_acquire);
            if (turn == at) {
                if (tail_.compare_exchange_weak(at, at + 1, std::memory_order_relaxed)) {
                    c.record = record;
                    c.turn.store(at + 1, std::memory_order_seq_cst);
                    return true;
                }
            } else if (turn < at) {
                return false;
            } else {
                at = tail_.load(std::memory_order_relaxed);
            }
        }
    }

    /// A record is lost, as in an overflow.
    void lose() noexcept { lost_.fetch_add(1, std::memory_order_seq_cst); }

    /// Writes what is staged to the guest's queue, unless another thread is at
    /// it: that one then takes these records too. Takes at most as many as fit
    /// into staging; effects::drain_events = there are more, come again with a
    /// guard opened afresh. `hold(tag)` is called for records of stalled accesses
    /// that could not be written.
    template <guest_memory Memory, class Hold>
    [[nodiscard]] effects drain(register_file<F>& registers, Memory& memory, Hold&& hold) noexcept {
        effects out;
        std::size_t left = Staged;
        while (has_work() && !writing_.exchange(true, std::memory_order_seq_cst)) {
            spec::event_record record;
            for (; left != 0 && pop(record); --left)
                out |= write(registers, memory, record, hold);
            if (const std::uint64_t lost = lost_.exchange(0, std::memory_order_seq_cst)) {
                out |= overflow(registers, lost);
            }
            writing_.store(false, std::memory_order_seq_cst);
            if (left == 0) {
                out.drain_events = has_work();
                break;
            }
        }
        return out;
    }

    /// Whether every record that was pushed has been written, or discarded.
    [[nodiscard]] bool is_settled() const noexcept {
        return !has_work() && !writing_.load(std::memory_order_seq_cst);
    }

    /// Whether the queue takes records now: on, not full, no abort unacknowledged
    /// (7.2.1).
    [[nodiscard]] static bool is_writable(register_file<F>& registers) noexcept {
        return is_on(registers) && !place(registers).shape.is_full(
                                       registers.event_prod().load(std::memory_order_seq_cst),
                                       registers.event_cons().load(std::memory_order_seq_cst));
    }

    [[nodiscard]] std::uint64_t written() const noexcept {
        return written_.load(std::memory_order_relaxed);
    }
    [[nodiscard]] std::uint64_t dropped() const noexcept {
        return dropped_.load(std::memory_order_relaxed);
    }

private:
    struct cell {
        std::atomic<std::size_t> turn{0};
        spec::event_record record{};
    };

    [[nodiscard]] bool has_work() const noexcept {
        const std::size_t head = head_.load(std::memory_order_seq_cst);
        return cells_[head % Staged].turn.load(std::memory_order_seq_cst) == head + 1 ||
               lost_.load(std::memory_order_seq_cst) != 0;
    }

    [[nodiscard]] bool pop(spec::event_record& record) noexcept {
        const std::size_t head = head_.load(std::memory_order_relaxed);
        cell& c = cells_[head % Staged];
        if (c.turn.load(std::memory_order_seq_cst) != head + 1) return false;
        record = c.record;
        c.turn.store(head + Staged, std::memory_order_release);
        head_.store(head + 1, std::memory_order_seq_cst);
        return true;
    }

    [[nodiscard]] static bool is_on(const register_file<F>& registers) noexcept {
        return registers.events_enabled() &&
               !registers.error_active(spec::GERROR::EVENTQ_ABT_ERR::mask);
    }
    /// Events that are recorded while SMMUEN = 0 too (7.3.2, 7.3.6, 7.3.8).
    [[nodiscard]] static bool needs_no_smmu(const spec::event_record& record) noexcept {
        using enum spec::event_id;
        const auto event = static_cast<spec::event_id>(get<spec::event_record::Type>(record));
        return event == F_UUT || event == F_BAD_ATS_TREQ || event == F_TRANSL_FORBIDDEN;
    }
    [[nodiscard]] static queue_place place(const register_file<F>& registers) noexcept {
        return queue_place::of(registers.event_queue_base(), F.event_queue_log2,
                               sizeof(spec::event_record));
    }

    template <guest_memory Memory, class Hold>
    [[nodiscard]] effects write(register_file<F>& registers, Memory& memory,
                                const spec::event_record& record, Hold& hold) noexcept {
        const bool stalled = F.stalls && get<spec::event_record::STALL>(record) != 0;
        const auto keep = [&] {
            hold(static_cast<std::uint16_t>(get<spec::event_record::STAG>(record)));
        };
        if (!is_on(registers) || !(registers.smmu_enabled() || needs_no_smmu(record))) {
            // Not an overflow: an event queue that is off discards.
            if (stalled) {
                keep();
            } else {
                dropped_.fetch_add(1, std::memory_order_relaxed);
            }
            return {};
        }
        const queue_place queue = place(registers);
        const std::uint32_t prod = registers.event_prod().load(std::memory_order_acquire);
        const std::uint32_t cons = registers.event_cons().load(std::memory_order_acquire);
        if (queue.shape.is_full(prod, cons)) {
            if (!stalled) return overflow(registers, 1);
            keep();
            return {};
        }

        const std::uint64_t at =
            queue.base + std::uint64_t{queue.shape.entry(prod)} * sizeof(record);
        if (!memory.write(pa{at}, std::as_bytes(std::span{record.word}))) {
            effects out;
            out.raise_gerror = registers.raise_error(spec::GERROR::EVENTQ_ABT_ERR::mask) &&
                               registers.gerror_interrupt_enabled();
            if (stalled) {
                keep();
            } else {
                dropped_.fetch_add(1, std::memory_order_relaxed);
            }
            return out;
        }
        // The record is in memory before the index says so.
        registers.event_prod().store(queue.shape.next(prod) | (prod & overflow_flag),
                                     std::memory_order_release);
        written_.fetch_add(1, std::memory_order_relaxed);
        effects out;
        out.raise_eventq = registers.eventq_interrupt_enabled();
        return out;
    }

    /// OVFLG is toggled once per overflow: only if the last one was acknowledged.
    [[nodiscard]] effects overflow(register_file<F>& registers, std::uint64_t records) noexcept {
        dropped_.fetch_add(records, std::memory_order_relaxed);
        const std::uint32_t prod = registers.event_prod().load(std::memory_order_relaxed);
        const std::uint32_t cons = registers.event_cons().load(std::memory_order_acquire);
        effects out;
        if (((prod ^ cons) & overflow_flag) == 0 && registers.events_enabled()) {
            registers.event_prod().store(prod ^ overflow_flag, std::memory_order_release);
            out.raise_eventq = registers.eventq_interrupt_enabled();
        }
        return out;
    }

    static constexpr auto overflow_flag =
        static_cast<std::uint32_t>(spec::EVENTQ_PROD::OVFLG::mask);

    std::array<cell, Staged> cells_{};
    alignas(64) std::atomic<std::size_t> tail_{0};
    alignas(64) std::atomic<std::size_t> head_{0};
    std::atomic<bool> writing_{false};
    std::atomic<std::uint64_t> lost_{0}; ///< records that found staging full
    std::atomic<std::uint64_t> written_{0};
    std::atomic<std::uint64_t> dropped_{0};
};

} // namespace vm_accel::inline v0
