/// Command queues: fetching, errors, and where consumption stands (IHI 0070,
/// 3.5.2, 3.5.6, 7.1).
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/field.hpp>
#include <vm_accel/guest/guest_memory.hpp>
#include <vm_accel/smmu/control/effects.hpp>
#include <vm_accel/smmu/control/queue_index.hpp>
#include <vm_accel/smmu/control/register_file.hpp>
#include <vm_accel/spec/commands.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace vm_accel::inline v0 {

/// One queue for the time of one call: number 0 is the Command queue, the others
/// are the enhanced ones. What cannot change meanwhile is looked up once: PROD is
/// written under the control lock, CONS by commands alone.
///
/// Threads: all under the control lock.
template <smmu_features F>
class command_queue {
public:
    command_queue(register_file<F>& registers, unsigned number) noexcept
        : registers_(registers),
          own_(registers.commands(number)),
          place_(queue_place::of(own_.base.load(std::memory_order_relaxed), F.command_queue_log2,
                                 sizeof(spec::command))),
          number_(number),
          prod_(own_.prod.load(std::memory_order_acquire)),
          cons_(own_.cons.load(std::memory_order_relaxed)),
          runs_(registers.commands_run(number)) {}

    /// Whether there is nothing to fetch: the queue is empty, off, or stopped by an error.
    [[nodiscard]] bool has_none() const noexcept {
        return !runs_ || place_.shape.is_empty(prod_, cons_);
    }
    /// Copies the command at CONS, which must be there. It stays there until
    /// consume(). False = it could not be read: report CERROR_ABT.
    template <guest_memory Memory>
    [[nodiscard]] bool fetch(const Memory& memory, spec::command& out) const noexcept {
        const pa at{place_.base + std::uint64_t{place_.shape.entry(cons_)} * sizeof out};
        if constexpr (requires { Memory::counts_accesses; }) {
            return memory.read(at, std::as_writable_bytes(std::span{out.word}));
        }
        // Word by word: what is copied in one piece is slow to look at in others.
        const std::optional<std::uint64_t> low = memory.load64(at);
        const std::optional<std::uint64_t> high = memory.load64(offset_by(at, 8));
        if (!low || !high) [[unlikely]]
            return false;
        out.word = {le64{*low}, le64{*high}};
        return true;
    }

    /// Moves CONS past the command. Its other fields keep their values.
    void consume() noexcept {
        constexpr auto index = static_cast<std::uint32_t>(spec::CMDQ_CONS::RD::mask);
        cons_ = place_.shape.next(cons_) | (cons_ & ~index);
        own_.cons.store(cons_, std::memory_order_release);
    }

    /// Stops consumption with a CERROR code, CONS on the command that failed.
    [[nodiscard]] effects stop(std::uint64_t cerror) noexcept {
        const bool raised = registers_.stop_commands(number_, cerror);
        effects out;
        out.raise_gerror = raised && registers_.gerror_interrupt_enabled();
        return out;
    }

private:
    register_file<F>& registers_;
    command_registers& own_;
    queue_place place_;
    unsigned number_;
    std::uint32_t prod_;
    std::uint32_t cons_;
    bool runs_;
};

} // namespace vm_accel::inline v0
