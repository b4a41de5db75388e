/// Command queues: fetching, errors, and where consumption stands (IHI 0070,
/// 3.5.2, 3.5.6, 7.1).
#pragma once

#include <vm_accel/guest/guest_memory.hpp>
#include <vm_accel/smmu/control/effects.hpp>
#include <vm_accel/smmu/control/queue_index.hpp>
#include <vm_accel/smmu/control/register_file.hpp>
#include <vm_accel/spec/commands.hpp>

#include <atomic>
#include <cstdint>
#include <span>

namespace vm_accel::inline v0 {

/// What fetch() found.
enum class command_fetch : std::uint8_t {
    none,    ///< the queue is empty, off, or stopped by an error
    command, ///< a command, not yet consumed
    failed,  ///< the command could not be read: report CERROR_ABT
};

/// One queue: number 0 is the Command queue, the others are the enhanced ones.
///
/// Threads: all under the control lock.
template <smmu_features F>
class command_queue {
public:
    command_queue() noexcept = default;
    explicit command_queue(unsigned number) noexcept : number_(number) {}

    /// Copies the command at CONS. It stays there until consume().
    template <guest_memory Memory>
    [[nodiscard]] command_fetch fetch(register_file<F>& registers, const Memory& memory,
                                      spec::command& out) const noexcept {
        if (!registers.commands_run(number_)) return command_fetch::none;
        const command_registers& own = registers.commands(number_);
        const queue_place queue = place(own);
        const std::uint32_t cons = own.cons.load(std::memory_order_relaxed);
        const std::uint32_t prod = own.prod.load(std::memory_order_acquire);
        if (queue.shape.is_empty(prod, cons)) return command_fetch::none;
        const std::uint64_t at =
            queue.base + std::uint64_t{queue.shape.entry(cons)} * sizeof(spec::command);
        const bool read = memory.read(pa{at}, std::as_writable_bytes(std::span{out.word}));
        return read ? command_fetch::command : command_fetch::failed;
    }

    /// Moves CONS past the command. Its other fields keep their values.
    void consume(register_file<F>& registers) const noexcept {
        command_registers& own = registers.commands(number_);
        const std::uint32_t cons = own.cons.load(std::memory_order_relaxed);
        const auto others = cons & ~static_cast<std::uint32_t>(spec::CMDQ_CONS::RD::mask);
        own.cons.store(place(own).shape.next(cons) | others, std::memory_order_release);
    }

    /// Stops consumption with a CERROR code, CONS on the command that failed.
    [[nodiscard]] effects stop(register_file<F>& registers, std::uint64_t cerror) const noexcept {
        const bool raised = registers.stop_commands(number_, cerror);
        effects out;
        out.raise_gerror = raised && registers.gerror_interrupt_enabled();
        return out;
    }

private:
    [[nodiscard]] static queue_place place(const command_registers& own) noexcept {
        return queue_place::of(own.base.load(std::memory_order_relaxed), F.command_queue_log2,
                               sizeof(spec::command));
    }

    unsigned number_ = 0;
};

} // namespace vm_accel::inline v0
