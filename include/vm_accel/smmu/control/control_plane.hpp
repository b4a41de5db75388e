/// Registers and commands at work: what the guest's driver drives.
#pragma once

#include <vm_accel/guest/guest_memory.hpp>
#include <vm_accel/smmu/caches/configuration_cache.hpp>
#include <vm_accel/smmu/caches/tlb_policy.hpp>
#include <vm_accel/smmu/caches/walk_cache.hpp>
#include <vm_accel/smmu/control/command_decoder.hpp>
#include <vm_accel/smmu/control/command_executor.hpp>
#include <vm_accel/smmu/control/command_queue.hpp>
#include <vm_accel/smmu/control/effects.hpp>
#include <vm_accel/smmu/control/message.hpp>
#include <vm_accel/smmu/control/quiescence.hpp>
#include <vm_accel/smmu/control/register_file.hpp>

#include <array>
#include <cstddef>
#include <cstdint>

namespace vm_accel::inline v0 {

/// Executes register writes and commands.
///
/// Threads: every call is made under the SMMU's control lock, but ask_for(). None
/// waits: a CMD_SYNC or a CR0 change that must wait for device threads stays
/// pending, and service() looks again.
template <smmu_features F, tlb_policy Tlb, walk_cache_policy Walks, quiescence_policy Quiescence>
class control_plane {
public:
    control_plane(Tlb& tlb, Walks& walks, configuration_cache& configurations,
                  register_file<F>& registers, quiescence_domain<Quiescence>& guards) noexcept
        : tlb_(tlb),
          walks_(walks),
          configurations_(configurations),
          registers_(registers),
          guards_(guards) {
        for (unsigned n = 0; n < queues_.size(); ++n)
            queues_[n].number = n;
    }

    /// False = out of memory.
    [[nodiscard]] bool allocate() noexcept {
        for (consumer& c : queues_) {
            if (!c.grace.allocate(guards_.capacity())) return false;
        }
        return acknowledge_grace_.allocate(guards_.capacity());
    }

    /// Registers whose value may depend on work that can go on now.
    [[nodiscard]] static constexpr bool read_depends_on_work(std::uint64_t offset) noexcept {
        if (offset >= spec::mmio_size) return (offset & 0xf) == 0xc; // ECMDQ_CONS
        const std::uint64_t at = offset & (spec::mmio_page_size - 1);
        return at == spec::reg::CMDQ_CONS || at == spec::reg::CR0ACK || at == spec::reg::GBPA;
    }

    /// CMDQ_PROD: of all that is written often, what changes commands alone.
    [[nodiscard]] static constexpr bool is_command_index(std::uint64_t offset) noexcept {
        return offset == spec::reg::CMDQ_PROD;
    }
    /// Whether service() has anything to do, guards that close aside.
    [[nodiscard]] bool has_work() const noexcept {
        return more_ || acknowledge_owed_ || sync_pending() || configurations_.sweep_wanted() ||
               router_.is_asked();
    }

    /// A register write, and what it leads to. `out` is empty before.
    template <guest_memory Memory, command_executor Executor>
    void write(std::uint64_t offset, unsigned size, std::uint64_t value, Memory& memory,
               Executor&& executor, unsigned budget, effects& out) noexcept {
        if (resetting_) return;
        // What was raised before the write goes where it was to go then.
        router_.route(registers_, memory, out);
        if (is_command_index(offset) && size == 4) {
            registers_.write_command_index(value);
        } else {
            write_register(offset, size, value, executor);
        }
        service(memory, executor, budget, out);
    }

    /// Completes what has become complete, then executes at most `budget`
    /// commands. effects::wake_poll = more are waiting.
    template <guest_memory Memory, command_executor Executor>
    void service(Memory& memory, Executor&& executor, unsigned budget, effects& out) noexcept {
        if (finished(acknowledge_grace_) && acknowledge_owed_) {
            acknowledge_owed_ = false;
            registers_.acknowledge();
        }
        if (configurations_.sweep_wanted()) {
            configurations_.sweep([this] { remove(invalidation_scope::all()); });
        }
        // Each queue in its turn, a different one first each time.
        for (std::size_t i = 0, at = turn_; i < queues_.size(); ++i) {
            if (queues_.size() == 1 || !is_idle(queues_[at])) {
                consume_from(queues_[at], memory, executor, budget, out);
            }
            if (++at == queues_.size()) at = 0;
        }
        if (++turn_ == queues_.size()) turn_ = 0;
        router_.route(registers_, memory, out);
        more_ = out.wake_poll;
    }

    /// Makes translations inside the scope unreachable. Constant time but for
    /// scopes by address; the rare sweep is paid by one call in 2^31.
    void invalidate(invalidation_scope scope) noexcept {
        forget(scope);
        queues_[0].invalidated = true;
    }

    /// A command of the secure queue that is for this state. False = illegal.
    template <command_executor Executor>
    [[nodiscard]] bool execute_for_secure(const spec::command& command, Executor&& executor,
                                          effects& out) noexcept {
        command_action action = decode_command<F>(command, registers_.el2_host());
        if (action.what == command_action::kind::illegal) return false;
        consumer from; // the secure queue's CMD_SYNC waits, not one of ours
        execute(from, action, executor, out);
        return true;
    }

    /// Leaves interrupts to the next service(). From any thread, without the lock.
    void ask_for(const effects& raised) noexcept { router_.ask(raised); }

    /// A reset in two steps, with a wait for the guards between them: first
    /// everything is disabled, and waiting CMD_SYNCs forgotten; then nobody uses
    /// the registers any more, and they get their reset values. Register writes
    /// in between are ignored, and what devices were configured with in between
    /// is forgotten.
    template <command_executor Executor>
    void begin_reset(Executor&& executor) noexcept {
        resetting_ = true;
        registers_.disable();
        executor.forget_streams(0U, ~0U);
        executor.smmu_disabled();
        for (consumer& c : queues_)
            c.waits = c.sent_to_atc = false;
        acknowledge_owed_ = false;
        invalidate(invalidation_scope::all());
    }
    template <command_executor Executor>
    void finish_reset(Executor&& executor) noexcept {
        registers_.reset();
        executor.forget_streams(0U, ~0U);
        resetting_ = false;
    }

    /// See saved_state.hpp. A CMD_SYNC that waits is not kept: CONS stands on it,
    /// and it is executed again.
    template <class Visit>
    void visit_state(Visit& visit) noexcept {
        for (consumer& c : queues_)
            visit(c.sent_to_atc, 1);
    }
    /// The registers have been restored: what they owe is done again, and no
    /// configuration is from before.
    template <command_executor Executor>
    void restored(Executor&& executor) noexcept {
        executor.forget_streams(0U, ~0U);
        acknowledge_owed_ = true;
        start(acknowledge_grace_);
    }

    /// Starts waiting for every guard that is open now.
    void start(grace_period& grace) noexcept {
        if (!grace.carries_retired) grace.carries_retired = configurations_.grace_started();
        guards_.start(grace);
    }
    /// Whether they have closed; then what they may have used is free again.
    [[nodiscard]] bool finished(grace_period& grace) noexcept {
        if (!guards_.finished(grace)) return false;
        if (grace.carries_retired) {
            grace.carries_retired = false;
            configurations_.grace_ended();
        }
        return true;
    }

    [[nodiscard]] bool sync_pending() const noexcept {
        for (const consumer& c : queues_) {
            if (c.waits) return true;
        }
        return false;
    }
    /// Whether invalidations were executed that no CMD_SYNC has followed.
    [[nodiscard]] bool owes_sync() const noexcept { return owes_sync_; }
    [[nodiscard]] std::uint64_t commands() const noexcept { return commands_; }
    [[nodiscard]] std::uint64_t syncs() const noexcept { return syncs_; }

private:
    /// A queue, and the CMD_SYNC at its head.
    struct consumer {
        unsigned number = 0; ///< see command_queue
        grace_period grace{};
        bool waits = false;       ///< a CMD_SYNC waits for guards or for devices
        bool invalidated = false; ///< since the last CMD_SYNC
        bool sent_to_atc = false; ///< likewise
        bool interrupt = false;   ///< the waiting CMD_SYNC's
        interrupt_message message{};
    };

    /// Any register but the one that is written all the time.
    template <class Executor>
    [[gnu::noinline]] void write_register(std::uint64_t offset, unsigned size, std::uint64_t value,
                                          Executor& executor) noexcept {
        const register_effect effect = registers_.write(offset, size, value);
        if (effect.streams_changed) executor.forget_streams(0U, ~0U);
        if (effect.smmu_disabled) executor.smmu_disabled();
        if (effect.atos_started) executor.run_atos();
        // A CMD_SYNC stays at CONS, and starts over when its queue is on again.
        if (effect.enables_changed && !registers_.commands_enabled()) queues_[0].waits = false;
        if (effect.queue_disabled != 0) queues_[effect.queue_disabled].waits = false;
        if (effect.enables_changed || effect.bypass_changed) {
            acknowledge_owed_ = true;
            start(acknowledge_grace_);
        }
    }

    /// Whether a queue has nothing at all; some that have nothing are not idle.
    [[nodiscard]] bool is_idle(const consumer& c) const noexcept {
        if (c.waits || c.grace.is_active() || c.grace.carries_retired) return false;
        return registers_.commands(c.number).are_the_same() || !registers_.commands_run(c.number);
    }

    /// Takes from `budget` what it executes.
    template <guest_memory Memory, class Executor>
    void consume_from(consumer& from, Memory& memory, Executor& executor, unsigned& budget,
                      effects& out) noexcept {
        const bool passed = finished(from.grace);
        command_queue<F> queue{registers_, from.number};
        if (from.waits) {
            if (!passed || leaves_message(out)) return;
            if (!complete_sync(from, queue, memory, executor, out)) return;
        }
        for (; budget != 0; --budget) {
            if (queue.has_none()) return;
            spec::command command;
            if (!queue.fetch(memory, command)) {
                out |= queue.stop(spec::CERROR_ABT);
                return;
            }
            command_action action = decode_command<F>(command, registers_.el2_host());
            if (action.what == command_action::kind::illegal) {
                out |= queue.stop(spec::CERROR_ILL);
                return;
            }
            if constexpr (F.state == security_state::secure) {
                if (action.what == command_action::kind::other_state) {
                    if (!executor.pass_on(command)) {
                        out |= queue.stop(spec::CERROR_ILL);
                        return;
                    }
                    from.sent_to_atc = true; // and to the other state: somebody else is to answer
                    consume(queue);
                    continue;
                }
            }
            if (action.what == command_action::kind::sync) {
                if (leaves_message(out)) return;
                if (!execute_sync(from, queue, action, memory, executor, out)) return;
                continue;
            }
            execute(from, action, executor, out);
            consume(queue);
        }
        out.wake_poll = true;
    }

    /// One CMD_SYNC message at a time, of whatever queue: the next one waits until
    /// this is delivered.
    [[nodiscard]] static bool leaves_message(effects& out) noexcept {
        if (!out.message(wired_interrupt::cmdq_sync)) return false;
        out.wake_poll = true;
        return true;
    }

    template <class Executor>
    void execute(consumer& from, command_action& action, Executor& executor,
                 effects& out) noexcept {
        const bool enabled = registers_.smmu_enabled();
        switch (action.what) {
        case command_action::kind::streams:
            executor.forget_streams(action.first_stream, action.last_stream);
            from.invalidated = true;
            break;
        case command_action::kind::context:
            executor.forget_context(action);
            from.invalidated = true;
            break;
        case command_action::kind::partitions:
            executor.forget_partitions(action);
            from.invalidated = true;
            break;
        case command_action::kind::invalidate:
            forget(action.scope);
            if (action.also) forget(*action.also);
            from.invalidated = true;
            break;
        case command_action::kind::prefetch:
            if (enabled) executor.prefetch(action);
            break;
        case command_action::kind::invalidate_atc:
            if (!enabled) break;
            out |= executor.invalidate_atc(action);
            from.sent_to_atc = true;
            break;
        case command_action::kind::answer_pages:
            if (enabled) out |= executor.answer_pages(action);
            break;
        case command_action::kind::resume:
            out |= executor.resume(action);
            break;
        case command_action::kind::terminate_stalls:
            out |= executor.terminate_stalls(action);
            break;
        case command_action::kind::illegal:
        case command_action::kind::sync:
        case command_action::kind::other_state:
            break;
        }
        using enum command_action::kind;
        owes_sync_ = owes_sync_ || action.what == streams || action.what == context ||
                     action.what == command_action::kind::invalidate;
    }

    /// Starts what the CMD_SYNC waits for. True = it is complete already.
    template <guest_memory Memory, class Executor>
    [[nodiscard]] bool execute_sync(consumer& from, command_queue<F>& queue,
                                    const command_action& action, Memory& memory,
                                    Executor& executor, effects& out) noexcept {
        from.interrupt = action.interrupt;
        from.message = action.message;
        if (!executor.settle_events(out) || from.invalidated) {
            start(from.grace);
            if (!finished(from.grace)) {
                from.waits = true;
                return false;
            }
        }
        return complete_sync(from, queue, memory, executor, out);
    }

    /// Completes a CMD_SYNC whose grace period has passed, unless devices have
    /// still to answer, or one did not. CONS moves before the message is written.
    template <guest_memory Memory, class Executor>
    [[nodiscard]] bool complete_sync(consumer& from, command_queue<F>& queue, Memory& memory,
                                     Executor& executor, effects& out) noexcept {
        const atc_progress progress = from.sent_to_atc ? executor.atc() : atc_progress::done;
        from.waits = progress == atc_progress::pending;
        if (from.waits) {
            // Nobody tells of the other state's guards: look again.
            out.wake_poll = out.wake_poll || F.state == security_state::secure;
            return false;
        }
        from.sent_to_atc = false;
        if (progress == atc_progress::failed) {
            out |= queue.stop(spec::CERROR_ATC_INV_SYNC);
            return false;
        }
        from.invalidated = owes_sync_ = false;
        consume(queue);
        ++syncs_;
        if (!from.interrupt) return true;
        if (!from.message || F.wires_beside_messages) out.raise_cmdq_sync = true;
        if (from.message) send_message(wired_interrupt::cmdq_sync, from.message, memory, out);
        return true;
    }

    /// Fills in scope.contexts: a copy would have to wait for what has just been stored.
    [[gnu::always_inline]] void forget(invalidation_scope& scope) noexcept {
        if (scope.by_address()) {
            scope.contexts = &configurations_.contexts_of(scope);
            remove(scope);
        } else if (configurations_.invalidate(scope)) {
            remove(invalidation_scope::all());
        }
    }
    [[gnu::always_inline]] void remove(const invalidation_scope& scope) noexcept {
        walks_.invalidate(scope);
        tlb_.invalidate(scope);
    }
    void consume(command_queue<F>& queue) noexcept {
        queue.consume();
        ++commands_;
    }

    Tlb& tlb_;
    Walks& walks_;
    configuration_cache& configurations_;
    register_file<F>& registers_;
    quiescence_domain<Quiescence>& guards_;
    std::array<consumer, register_file<F>::command_queues> queues_{};
    interrupt_router<F> router_;
    grace_period acknowledge_grace_;
    std::uint64_t syncs_ = 0; // not beside commands_: both together are slower to count
    std::size_t turn_ = 0;
    bool more_ = false; ///< the last service() left commands, or what its caller had
    bool acknowledge_owed_ = false;
    bool resetting_ = false;
    bool owes_sync_ = false;
    std::uint64_t commands_ = 0;
};

} // namespace vm_accel::inline v0
