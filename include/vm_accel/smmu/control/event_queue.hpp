/// The event queue: faults on their way to the guest's driver (IHI 0070, 7.2).
#pragma once

#include <vm_accel/guest/guest_memory.hpp>
#include <vm_accel/smmu/control/effects.hpp>
#include <vm_accel/smmu/control/queue_index.hpp>
#include <vm_accel/smmu/control/register_file.hpp>
#include <vm_accel/smmu/vocabulary/fault.hpp>
#include <vm_accel/spec/events.hpp>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

namespace vm_accel::inline v0 {

/// The record for a fault, with the syndrome fields that its event has
/// (IHI 0070, 7.3.2 to 7.3.21).
[[nodiscard]] constexpr spec::event_record make_event_record(const translation_fault& f) noexcept {
    using R = spec::event_record;
    using enum spec::event_id;
    R record;
    set<R::Type>(record, static_cast<std::uint64_t>(f.event));
    set<R::StreamID>(record, raw(f.stream));
    set<R::SSV>(record, f.substream_valid ? 1 : 0);
    set<R::SSID>(record, f.substream_valid ? raw(f.substream) : 0);
    const auto attributes = [&] {
        set<R::PnU>(record, f.access_made.privileged ? 1 : 0);
        // A write is of data, whatever the device says.
        set<R::InD>(record,
                    f.access_made.instruction && f.access_made.kind == access::read ? 1 : 0);
        set<R::RnW>(record, f.access_made.kind == access::read ? 1 : 0);
    };
    switch (f.event) {
    case F_TRANSLATION:
    case F_ADDR_SIZE:
    case F_ACCESS:
    case F_PERMISSION:
        attributes();
        set<R::S2>(record, f.stage2 ? 1 : 0);
        set<R::CLASS>(record, static_cast<std::uint64_t>(f.cls));
        set<R::InputAddr>(record, raw(f.access_made.address));
        if (f.stage2) set<R::IPA>(record, f.ipa >> R::IPA::low);
        break;
    case F_WALK_EABT:
        attributes();
        set<R::Reason>(record, f.reason);
        set<R::S2>(record, f.stage2 ? 1 : 0);
        set<R::CLASS>(record, static_cast<std::uint64_t>(f.cls));
        set<R::InputAddr>(record, raw(f.access_made.address));
        set<R::FetchAddr>(record, f.fetch_address >> R::FetchAddr::low);
        break;
    case F_STE_FETCH:
    case F_CD_FETCH:
    case F_VMS_FETCH:
        set<R::Reason>(record, f.reason);
        set<R::FetchAddr>(record, f.fetch_address >> R::FetchAddr::low);
        break;
    case F_UUT:
    case F_TRANSL_FORBIDDEN:
    case F_BAD_ATS_TREQ:
    case F_TLB_CONFLICT:
        attributes();
        set<R::Reason>(record, f.reason);
        set<R::InputAddr>(record, raw(f.access_made.address));
        break;
    default:
        break; // C_BAD_*, F_STREAM_DISABLED: identifiers only
    }
    return record;
}

/// Threads: push from any device thread, inside its guard. Nobody waits: a
/// record is staged, and whoever finds no one writing writes what is staged.
template <smmu_features F, std::size_t Staged = 64>
class event_queue {
    static_assert((Staged & (Staged - 1)) == 0);

public:
    event_queue() noexcept {
        for (std::size_t i = 0; i < Staged; ++i) {
            cells_[i].turn.store(i, std::memory_order_relaxed);
        }
    }

    /// Takes a record; when staging is full the record is lost, as in an overflow.
    void push(const spec::event_record& record) noexcept {
        std::size_t at = tail_.load(std::memory_order_relaxed);
        for (;;) {
            cell& c = cells_[at % Staged];
            const std::size_t turn = c.turn.load(std::memory_order_acquire);
            if (turn == at) {
                if (tail_.compare_exchange_weak(at, at + 1, std::memory_order_relaxed)) {
                    c.record = record;
                    c.turn.store(at + 1, std::memory_order_seq_cst);
                    return;
                }
            } else if (turn < at) {
                lost_.fetch_add(1, std::memory_order_seq_cst);
                return;
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
    /// guard opened afresh.
    template <guest_memory Memory>
    [[nodiscard]] effects drain(register_file<F>& registers, Memory& memory) noexcept {
        effects out;
        std::size_t left = Staged;
        while (has_work() && !writing_.exchange(true, std::memory_order_seq_cst)) {
            spec::event_record record;
            for (; left != 0 && pop(record); --left)
                out |= write(registers, memory, record);
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

    template <guest_memory Memory>
    [[nodiscard]] effects write(register_file<F>& registers, Memory& memory,
                                const spec::event_record& record) noexcept {
        if (!registers.smmu_enabled() || !registers.events_enabled()) {
            // Not an overflow: with the queue off, events are discarded.
            dropped_.fetch_add(1, std::memory_order_relaxed);
            return {};
        }
        const queue_place queue = queue_place::of(registers.event_queue_base(), F.event_queue_log2,
                                                  sizeof(spec::event_record));
        const std::uint32_t prod = registers.event_prod().load(std::memory_order_acquire);
        const std::uint32_t cons = registers.event_cons().load(std::memory_order_acquire);
        if (queue.shape.is_full(prod, cons)) return overflow(registers, 1);

        const std::uint64_t at =
            queue.base + std::uint64_t{queue.shape.entry(prod)} * sizeof(record);
        if (!memory.write(pa{at}, std::as_bytes(std::span{record.word}))) {
            dropped_.fetch_add(1, std::memory_order_relaxed);
            effects out;
            out.raise_gerror = registers.raise_error(spec::GERROR::EVENTQ_ABT_ERR::mask) &&
                               registers.gerror_interrupt_enabled();
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
