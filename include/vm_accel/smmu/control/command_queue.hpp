/// Command queues: fetching, errors, and where consumption stands (IHI 0070,
/// 3.5.2, 3.5.6, 7.1).
#pragma once

#include <vm_accel/guest/guest_memory.hpp>
#include <vm_accel/smmu/control/effects.hpp>
#include <vm_accel/smmu/control/queue_index.hpp>
#include <vm_accel/smmu/control/register_file.hpp>
#include <vm_accel/spec/commands.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace vm_accel::inline v0 {

/// What fetch() found.
enum class command_fetch : std::uint8_t {
    none,    ///< the queue is empty, off, or stopped by an error
    command, ///< a command, not yet consumed
    failed,  ///< the command could not be read: report CERROR_ABT
};

/// One queue for the time of one call: number 0 is the Command queue, the others
/// are the enhanced ones. What cannot change meanwhile is looked up once, and
/// commands are read some at a time.
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
          runs_(registers.commands_run(number)) {}

    /// Copies the command at CONS. It stays there until consume(), which must
    /// come before the next fetch(). `most`: how many the caller may still take.
    template <guest_memory Memory>
    [[nodiscard]] command_fetch fetch(const Memory& memory, unsigned most,
                                      spec::command& out) noexcept {
        if (next_ == end_) {
            if (!runs_) return command_fetch::none;
            const std::uint32_t cons = own_.cons.load(std::memory_order_relaxed);
            const std::uint32_t prod = own_.prod.load(std::memory_order_acquire);
            if (place_.shape.is_empty(prod, cons)) return command_fetch::none;
            if (!read(memory, cons, std::min(place_.shape.filled(prod, cons), most))) {
                return command_fetch::failed;
            }
        }
        std::memcpy(&out.word, &ahead_[sizeof out * next_++], sizeof out);
        return command_fetch::command;
    }

    /// Moves CONS past the command. Its other fields keep their values.
    void consume() noexcept {
        const std::uint32_t cons = own_.cons.load(std::memory_order_relaxed);
        const auto others = cons & ~static_cast<std::uint32_t>(spec::CMDQ_CONS::RD::mask);
        own_.cons.store(place_.shape.next(cons) | others, std::memory_order_release);
    }

    /// Stops consumption with a CERROR code, CONS on the command that failed.
    [[nodiscard]] effects stop(std::uint64_t cerror) noexcept {
        const bool raised = registers_.stop_commands(number_, cerror);
        effects out;
        out.raise_gerror = raised && registers_.gerror_interrupt_enabled();
        return out;
    }

private:
    static constexpr std::uint32_t most_ahead = 8;

    /// Reads the command at CONS and, where that is possible, those after it.
    template <guest_memory Memory>
    [[nodiscard]] bool read(const Memory& memory, std::uint32_t cons,
                            std::uint32_t wanted) noexcept {
        const std::uint32_t entry = place_.shape.entry(cons);
        const pa at{place_.base + std::uint64_t{entry} * sizeof(spec::command)};
        const auto copy = [&](std::uint32_t count) noexcept {
            next_ = 0;
            end_ = count;
            return memory.read(at, std::span{ahead_}.first(count * sizeof(spec::command)));
        };
        if constexpr (!requires { Memory::counts_accesses; }) {
            const std::uint32_t to_end = (std::uint32_t{1} << place_.shape.log2size) - entry;
            const std::uint32_t count = std::min({wanted, to_end, most_ahead});
            if (count > 1 && copy(count)) return true;
        }
        if (copy(1)) return true;
        next_ = end_ = 0;
        return false;
    }

    register_file<F>& registers_;
    command_registers& own_;
    queue_place place_;
    unsigned number_;
    bool runs_;
    std::uint32_t next_ = 0; ///< of `ahead_`
    std::uint32_t end_ = 0;
    std::array<std::byte, most_ahead * sizeof(spec::command)> ahead_; ///< as far as read
};

} // namespace vm_accel::inline v0
