/// Registers and commands at work: what the guest's driver drives.
#pragma once

#include <vm_accel/guest/guest_memory.hpp>
#include <vm_accel/smmu/caches/configuration_cache.hpp>
#include <vm_accel/smmu/caches/tlb_policy.hpp>
#include <vm_accel/smmu/control/command_decoder.hpp>
#include <vm_accel/smmu/control/command_queue.hpp>
#include <vm_accel/smmu/control/effects.hpp>
#include <vm_accel/smmu/control/quiescence.hpp>
#include <vm_accel/smmu/control/register_file.hpp>

#include <cstddef>
#include <cstdint>

namespace vm_accel::inline v0 {

/// Executes register writes and commands.
///
/// Threads: every call is made under the SMMU's control lock. None waits: a
/// CMD_SYNC or a CR0 change that must wait for device threads stays pending,
/// and service() looks again. `Streams` is a callable (first, last) that
/// empties the configuration slots of those StreamIDs.
template <smmu_features F, tlb_policy Tlb, quiescence_policy Quiescence>
class control_plane {
public:
    control_plane(Tlb& tlb, configuration_cache& configurations, register_file<F>& registers,
                  quiescence_domain<Quiescence>& guards) noexcept
        : tlb_(tlb), configurations_(configurations), registers_(registers), guards_(guards) {}

    /// False = out of memory.
    [[nodiscard]] bool allocate() noexcept {
        return sync_grace_.allocate(guards_.capacity()) &&
               acknowledge_grace_.allocate(guards_.capacity());
    }

    /// Registers whose value may depend on work that can go on now.
    [[nodiscard]] static constexpr bool read_depends_on_work(std::uint64_t offset) noexcept {
        const std::uint64_t at = offset & (spec::mmio_page_size - 1);
        return at == spec::reg::CMDQ_CONS || at == spec::reg::CR0ACK || at == spec::reg::GBPA;
    }

    template <guest_memory Memory, class Streams>
    [[nodiscard]] effects write(std::uint64_t offset, unsigned size, std::uint64_t value,
                                const Memory& memory, Streams&& streams, unsigned budget) noexcept {
        if (resetting_) return {};
        const register_effect effect = registers_.write(offset, size, value);
        if (effect.streams_changed) streams(0U, ~0U);
        if (effect.enables_changed && !registers_.commands_enabled()) {
            sync_waits_ = false; // it stays at CONS, and starts over when the queue is on again
        }
        if (effect.enables_changed || effect.bypass_changed) {
            acknowledge_owed_ = true;
            start(acknowledge_grace_);
        }
        return service(memory, streams, budget);
    }

    /// Completes what has become complete, then executes at most `budget`
    /// commands. effects::wake_poll = more are waiting.
    template <guest_memory Memory, class Streams>
    [[nodiscard]] effects service(const Memory& memory, Streams&& streams,
                                  unsigned budget) noexcept {
        effects out;
        if (finished(acknowledge_grace_) && acknowledge_owed_) {
            acknowledge_owed_ = false;
            registers_.acknowledge();
        }
        if (configurations_.sweep_wanted()) {
            configurations_.sweep([this] { tlb_.invalidate(invalidation_scope::all()); });
        }
        const bool synced = finished(sync_grace_);
        if (sync_waits_) {
            if (!synced) return out;
            sync_waits_ = false;
            out |= complete_sync();
        }
        for (unsigned done = 0; done < budget; ++done) {
            spec::command command;
            switch (queue_.fetch(registers_, memory, command)) {
            case command_fetch::none:
                return out;
            case command_fetch::failed:
                out |= queue_.stop(registers_, spec::CERROR_ABT);
                return out;
            case command_fetch::command:
                break;
            }
            const command_action action = decode_command<F>(command);
            switch (action.what) {
            case command_action::kind::illegal:
                out |= queue_.stop(registers_, spec::CERROR_ILL);
                return out;
            case command_action::kind::sync:
                sync_interrupt_ = action.interrupt;
                if (invalidated_) {
                    start(sync_grace_);
                    if (!finished(sync_grace_)) {
                        sync_waits_ = true;
                        return out;
                    }
                }
                out |= complete_sync();
                continue;
            case command_action::kind::streams:
                streams(action.first_stream, action.last_stream);
                invalidated_ = true;
                break;
            case command_action::kind::invalidate:
                invalidate(action.scope);
                break;
            case command_action::kind::nothing:
                break;
            }
            consume();
        }
        out.wake_poll = true;
        return out;
    }

    /// Makes translations inside the scope unreachable. Constant time but for
    /// scopes by address; the rare sweep is paid by one call in 2^31.
    void invalidate(const invalidation_scope& scope) noexcept {
        if (scope.by_address()) {
            tlb_.invalidate(scope);
        } else if (configurations_.invalidate(scope)) {
            tlb_.invalidate(invalidation_scope::all());
        }
        invalidated_ = true;
    }

    /// A reset in two steps, with a wait for the guards between them: first
    /// everything is disabled, and a waiting CMD_SYNC forgotten; then nobody
    /// uses the registers any more, and they get their reset values. Register
    /// writes in between are ignored.
    template <class Streams>
    void begin_reset(Streams&& streams) noexcept {
        resetting_ = true;
        registers_.disable();
        streams(0U, ~0U);
        sync_waits_ = false;
        acknowledge_owed_ = false;
        invalidate(invalidation_scope::all());
    }
    void finish_reset() noexcept {
        registers_.reset();
        resetting_ = false;
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

    [[nodiscard]] bool sync_pending() const noexcept { return sync_waits_; }
    [[nodiscard]] std::uint64_t commands() const noexcept { return commands_; }
    [[nodiscard]] std::uint64_t syncs() const noexcept { return syncs_; }

private:
    void consume() noexcept {
        queue_.consume(registers_);
        ++commands_;
    }

    [[nodiscard]] effects complete_sync() noexcept {
        invalidated_ = false;
        consume();
        ++syncs_;
        effects out;
        out.raise_cmdq_sync = sync_interrupt_;
        return out;
    }

    Tlb& tlb_;
    configuration_cache& configurations_;
    register_file<F>& registers_;
    quiescence_domain<Quiescence>& guards_;
    command_queue<F> queue_;
    grace_period sync_grace_;
    grace_period acknowledge_grace_;
    bool sync_waits_ = false;
    bool sync_interrupt_ = false;
    bool invalidated_ = false; ///< since the last CMD_SYNC
    bool acknowledge_owed_ = false;
    bool resetting_ = false;
    std::uint64_t commands_ = 0;
    std::uint64_t syncs_ = 0;
};

} // namespace vm_accel::inline v0
