/// Stalled accesses: those that wait for the guest's driver (IHI 0070, 3.12.2).
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/smmu/vocabulary/outcome.hpp>

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>

namespace vm_accel::inline v0 {

/// At most F.stall_max accesses, each with a STAG.
///
/// A STAG is the number of a place and a count of how often that place was
/// used: a CMD_RESUME that comes late does not meet the next access there.
///
/// An access beyond the bound gets a ticket without a STAG. No event tells of
/// it, as when an interconnect accepts no more, and it starts again as soon as
/// a place is free. Likewise one whose record the event queue does not take:
/// it starts again, and is recorded, once the queue takes records (7.2.1).
///
/// Threads: begin, decision and wait from device threads; the rest from the
/// control side or any thread. Only wait() waits. A decided access keeps its
/// place until the device has learnt of it, or release() is called for its port
/// (release_restored() where it came with a saved state).
template <smmu_features F>
class stall_table {
    static constexpr std::size_t places = F.stall_max;
    static constexpr unsigned index_bits = places > 1 ? std::bit_width(places - 1) : 1;
    static_assert(places >= 1 && index_bits <= 16);

public:
    /// Takes a place for an access of `stream` through the port with that
    /// number; gives a ticket with a STAG, or one that is held back.
    [[nodiscard]] stall_ticket begin(stream_id stream, std::size_t port) noexcept {
        const std::uint32_t turn = turn_.load(std::memory_order_seq_cst);
        for (std::size_t i = 0; i < places; ++i) {
            place& p = places_[i];
            std::uint32_t state = p.state.load(std::memory_order_relaxed);
            if (phase_of(state) != phase::free) continue;
            if (!p.state.compare_exchange_strong(state, with(state, phase::taken),
                                                 std::memory_order_acquire)) {
                continue;
            }
            p.stream.store(raw(stream), std::memory_order_relaxed);
            p.port.store(port, std::memory_order_relaxed);
            p.state.store(with(state, phase::waiting), std::memory_order_seq_cst);
            return {.tag = tag_of(i, state)};
        }
        return {.held_back = true, .turn = turn};
    }

    // What the control side decides.

    /// CMD_RESUME. Without effect unless this very access waits (4.7.1).
    void resume(stream_id stream, std::uint16_t tag, stall_decision decision) noexcept {
        place* const p = find(tag);
        if (p == nullptr) return;
        std::uint32_t state = p->state.load(std::memory_order_acquire);
        if (!is_tagged(state, tag) || phase_of(state) != phase::waiting) return;
        if (p->stream.load(std::memory_order_relaxed) != raw(stream)) return;
        decide(*p, state, decided_as(decision));
    }
    /// CMD_STALL_TERM, and a device that goes away: everything of the stream is
    /// aborted.
    void abort(stream_id stream) noexcept {
        abort_if([&](const place& p) {
            return p.stream.load(std::memory_order_relaxed) == raw(stream);
        });
    }
    /// SMMUEN = 0, or a reset.
    void abort_all() noexcept {
        abort_if([](const place&) { return true; });
    }

    // What the event queue has to do with it.

    /// The record of an access could not be written: it is held until
    /// retry_held(). Afterwards the caller looks whether the queue has become
    /// writable meanwhile.
    void hold(std::uint16_t tag) noexcept {
        place* const p = find(tag);
        if (p == nullptr) return;
        std::uint32_t state = p->state.load(std::memory_order_acquire);
        if (!is_tagged(state, tag) || phase_of(state) != phase::waiting) return;
        (void)p->state.compare_exchange_strong(state, with(state, phase::held),
                                               std::memory_order_seq_cst);
        any_held_.store(true, std::memory_order_seq_cst);
    }
    /// The event queue takes records again: what is held starts again.
    void retry_held() noexcept {
        if (!any_held_.exchange(false, std::memory_order_seq_cst)) return;
        for (place& p : places_) {
            std::uint32_t state = p.state.load(std::memory_order_seq_cst);
            if (phase_of(state) == phase::held) decide(p, state, phase::retry);
        }
    }

    // What the device learns.

    /// Once it is not pending, the ticket is used up: another question about it
    /// gives `aborted`.
    [[nodiscard]] stall_decision decision(stall_ticket ticket) noexcept {
        if (ticket.held_back) {
            return turn_.load(std::memory_order_seq_cst) == ticket.turn ? stall_decision::pending
                                                                        : stall_decision::retry;
        }
        place* const p = find(ticket.tag);
        if (p == nullptr) return stall_decision::aborted;
        const std::uint32_t state = p->state.load(std::memory_order_acquire);
        if (!is_tagged(state, ticket.tag)) return stall_decision::aborted;
        switch (phase_of(state)) {
        case phase::taken:
        case phase::waiting:
        case phase::held:
            return stall_decision::pending;
        case phase::retry:
            free(*p, state);
            return stall_decision::retry;
        case phase::terminated:
            free(*p, state);
            return stall_decision::terminated;
        case phase::aborted:
            free(*p, state);
            break;
        case phase::free:
            break;
        }
        return stall_decision::aborted;
    }
    /// The same, waiting while it is pending.
    [[nodiscard]] stall_decision wait(stall_ticket ticket) noexcept {
        for (;;) {
            const stall_decision now = decision(ticket);
            if (now != stall_decision::pending) return now;
            if (ticket.held_back) {
                turn_.wait(ticket.turn, std::memory_order_seq_cst);
                continue;
            }
            std::atomic<std::uint32_t>& state = find(ticket.tag)->state;
            const std::uint32_t seen = state.load(std::memory_order_seq_cst);
            const phase at = phase_of(seen);
            if (is_tagged(seen, ticket.tag) && at != phase::retry && at != phase::terminated &&
                at != phase::aborted) {
                state.wait(seen, std::memory_order_seq_cst);
            }
        }
    }
    /// A port is gone: so are its accesses, decided or not.
    void release(std::size_t port) noexcept {
        for (place& p : places_) {
            std::uint32_t state = p.state.load(std::memory_order_acquire);
            while (phase_of(state) != phase::free &&
                   p.port.load(std::memory_order_relaxed) == port) {
                if (free(p, state)) break;
                state = p.state.load(std::memory_order_acquire);
            }
        }
    }

    /// The same for restored accesses of a stream, when its device is gone or has
    /// no port left that could ask.
    void release_restored(stream_id stream) noexcept {
        for (place& p : places_) {
            std::uint32_t state = p.state.load(std::memory_order_acquire);
            while (phase_of(state) != phase::free &&
                   p.port.load(std::memory_order_relaxed) == no_port &&
                   p.stream.load(std::memory_order_relaxed) == raw(stream)) {
                if (free(p, state)) break;
                state = p.state.load(std::memory_order_acquire);
            }
        }
    }

    /// See saved_state.hpp. A ticket stays good after a restore, for whoever
    /// knows it; restored accesses are the device's, whatever port asks.
    template <class Visit>
    void visit_state(Visit& visit) noexcept {
        const std::uint32_t before = turn_.load(std::memory_order_seq_cst);
        visit(turn_, 0xffff'ffff);
        visit(any_held_, 1);
        for (place& p : places_) {
            const auto state = static_cast<std::uint32_t>(visit(p.state, 0xffff'ffff));
            visit.require((state & phase_mask) <= static_cast<std::uint32_t>(phase::aborted) &&
                          phase_of(state) != phase::taken);
            visit(p.stream, (std::uint64_t{1} << F.stream_bits) - 1);
            if (visit.is_loading()) p.port.store(no_port, std::memory_order_relaxed);
        }
        if (!visit.is_loading()) return;
        // What was held back tries again, there and here: the turn is nobody's.
        if (static_cast<std::int32_t>(before - turn_.load(std::memory_order_seq_cst)) > 0) {
            turn_.store(before, std::memory_order_seq_cst);
        }
        next_turn();
    }

    /// How many accesses wait for a decision.
    [[nodiscard]] std::size_t waiting() const noexcept {
        std::size_t count = 0;
        for (const place& p : places_) {
            const phase at = phase_of(p.state.load(std::memory_order_relaxed));
            if (at == phase::waiting || at == phase::held) ++count;
        }
        return count;
    }

private:
    /// free -> taken -> waiting -> (held ->) one of the decisions -> free
    enum class phase : std::uint32_t { free, taken, waiting, held, retry, terminated, aborted };

    struct place {
        std::atomic<std::uint32_t> state{0}; ///< use count << 3, phase
        std::atomic<std::uint32_t> stream{0};
        std::atomic<std::size_t> port{0};
    };

    static constexpr std::uint32_t phase_mask = 7;
    static constexpr std::size_t no_port = ~std::size_t{0}; ///< restored

    [[nodiscard]] static constexpr phase phase_of(std::uint32_t state) noexcept {
        return phase{state & phase_mask};
    }
    [[nodiscard]] static constexpr std::uint32_t with(std::uint32_t state, phase to) noexcept {
        return (state & ~phase_mask) | static_cast<std::uint32_t>(to);
    }
    [[nodiscard]] static constexpr std::uint16_t tag_of(std::size_t index,
                                                        std::uint32_t state) noexcept {
        return static_cast<std::uint16_t>(index | std::size_t{state >> 3} << index_bits);
    }
    [[nodiscard]] static constexpr bool is_tagged(std::uint32_t state, std::uint16_t tag) noexcept {
        return tag_of(0, state) == (tag & ~((1U << index_bits) - 1));
    }
    [[nodiscard]] static constexpr phase decided_as(stall_decision decision) noexcept {
        return decision == stall_decision::retry        ? phase::retry
               : decision == stall_decision::terminated ? phase::terminated
                                                        : phase::aborted;
    }
    [[nodiscard]] place* find(std::uint16_t tag) noexcept {
        const std::size_t index = tag & ((std::size_t{1} << index_bits) - 1);
        return index < places ? &places_[index] : nullptr;
    }

    /// False = it has gone on meanwhile.
    bool decide(place& p, std::uint32_t state, phase to) noexcept {
        if (!p.state.compare_exchange_strong(state, with(state, to), std::memory_order_seq_cst)) {
            return false;
        }
        p.state.notify_all();
        return true;
    }
    template <class Matches>
    void abort_if(Matches&& matches) noexcept {
        // The caller first made it impossible for more to stall, then looks here; an
        // access first takes its place, then looks whether it may.
        std::atomic_thread_fence(std::memory_order_seq_cst);
        for (place& p : places_) {
            std::uint32_t state = p.state.load(std::memory_order_seq_cst);
            while ((phase_of(state) == phase::waiting || phase_of(state) == phase::held) &&
                   matches(p) && !decide(p, state, phase::aborted)) {
                state = p.state.load(std::memory_order_seq_cst);
            }
        }
        next_turn(); // what is held back finds out for itself
    }
    bool free(place& p, std::uint32_t state) noexcept {
        const std::uint32_t fresh = with(state + phase_mask + 1, phase::free);
        if (!p.state.compare_exchange_strong(state, fresh, std::memory_order_seq_cst)) return false;
        p.state.notify_all(); // another thread may wait for an access whose port is gone
        next_turn();
        return true;
    }
    void next_turn() noexcept {
        turn_.fetch_add(1, std::memory_order_seq_cst);
        turn_.notify_all();
    }

    std::array<place, places> places_{};
    std::atomic<std::uint32_t> turn_{0}; ///< counts the chances of what is held back
    std::atomic<bool> any_held_{false};
};

/// Stands where a stall_table would when nothing ever stalls.
struct no_stalls {};

template <smmu_features F, bool Stalls = F.stalls>
struct stalls_for {
    using type = no_stalls;
};
template <smmu_features F>
struct stalls_for<F, true> {
    using type = stall_table<F>;
};
template <smmu_features F>
using stalls_of = typename stalls_for<F>::type;

} // namespace vm_accel::inline v0
