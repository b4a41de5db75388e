/// The command queue: fetching, errors, and where consumption stands
/// (IHI 0070, 3.5.2, 7.1).
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

/// Threads: all under the control lock.
template <smmu_features F>
class command_queue {
public:
    /// Copies the command at CONS. It stays there until consume().
    template <guest_memory Memory>
    [[nodiscard]] command_fetch fetch(register_file<F>& registers, const Memory& memory,
                                      spec::command& out) const noexcept {
        if (!registers.commands_enabled() || registers.error_active(spec::GERROR::CMDQ_ERR::mask)) {
            return command_fetch::none;
        }
        const queue_place queue = place(registers);
        const std::uint32_t cons = registers.command_cons().load(std::memory_order_relaxed);
        const std::uint32_t prod = registers.command_prod().load(std::memory_order_acquire);
        if (queue.shape.is_empty(prod, cons)) return command_fetch::none;
        const std::uint64_t at =
            queue.base + std::uint64_t{queue.shape.entry(cons)} * sizeof(spec::command);
        const bool read = memory.read(pa{at}, std::as_writable_bytes(std::span{out.word}));
        return read ? command_fetch::command : command_fetch::failed;
    }

    /// Moves CONS past the command. Its ERR field keeps its value.
    void consume(register_file<F>& registers) const noexcept {
        const queue_place queue = place(registers);
        const std::uint32_t cons = registers.command_cons().load(std::memory_order_relaxed);
        const auto error = cons & static_cast<std::uint32_t>(spec::CMDQ_CONS::ERR::mask);
        registers.command_cons().store(queue.shape.next(cons) | error, std::memory_order_release);
    }

    /// Stops consumption with a CERROR code, CONS on the command that failed.
    [[nodiscard]] effects stop(register_file<F>& registers, std::uint64_t cerror) const noexcept {
        const std::uint32_t cons = registers.command_cons().load(std::memory_order_relaxed);
        const auto others = cons & ~static_cast<std::uint32_t>(spec::CMDQ_CONS::ERR::mask);
        registers.command_cons().store(
            others | static_cast<std::uint32_t>(spec::CMDQ_CONS::ERR::in_place(cerror)),
            std::memory_order_release);
        effects out;
        out.raise_gerror = registers.raise_error(spec::GERROR::CMDQ_ERR::mask) &&
                           registers.gerror_interrupt_enabled();
        return out;
    }

private:
    [[nodiscard]] static queue_place place(register_file<F>& registers) noexcept {
        return queue_place::of(registers.command_queue_base(), F.command_queue_log2,
                               sizeof(spec::command));
    }
};

} // namespace vm_accel::inline v0
