/// What a part of the SMMU asks its owner to do next.
#pragma once

#include <vm_accel/guest/interrupt_sink.hpp>
#include <vm_accel/smmu/vocabulary/interrupt_message.hpp>

#include <array>
#include <cstddef>
#include <cstdint>

namespace vm_accel::inline v0 {

/// Effects are values: parts return them, smmu.hpp acts on them once no lock
/// is held and no guard is open.
struct effects {
    bool raise_eventq = false;          ///< the event queue interrupt
    bool raise_priq = false;            ///< the page request queue interrupt
    bool raise_gerror = false;          ///< the global error interrupt
    bool raise_cmdq_sync = false;       ///< pulse the CMD_SYNC interrupt
    bool routed = false;                ///< what is raised goes by wire, and `messages` is the rest
    bool drain_commands = false;        ///< commands wait, or a CMD_SYNC may complete now
    bool drain_events = false;          ///< event records wait, to be written inside a new guard
    bool wake_poll = false;             ///< more work is left than one call may do
    bool has_messages = false;          ///< there is one at least
    std::uint32_t messages_written = 0; ///< into memory: delivered already

    /// The lines that messages stand for, here: those of registers, and CMD_SYNC's.
    static constexpr std::size_t lines = 4;

    /// A message to something that is not memory.
    [[nodiscard]] constexpr interrupt_message message(wired_interrupt line) const noexcept {
        const auto i = static_cast<std::size_t>(line);
        return {addresses_[i], data_[i]};
    }
    constexpr void set_message(wired_interrupt line, const interrupt_message& message) noexcept {
        const auto i = static_cast<std::size_t>(line);
        addresses_[i] = message.address;
        data_[i] = message.data;
        has_messages = has_messages || message;
    }

    constexpr effects& operator|=(const effects& other) noexcept {
        raise_eventq = raise_eventq || other.raise_eventq;
        raise_priq = raise_priq || other.raise_priq;
        raise_gerror = raise_gerror || other.raise_gerror;
        raise_cmdq_sync = raise_cmdq_sync || other.raise_cmdq_sync;
        routed = routed && other.routed;
        drain_commands = drain_commands || other.drain_commands;
        drain_events = drain_events || other.drain_events;
        wake_poll = wake_poll || other.wake_poll;
        messages_written += other.messages_written;
        if (other.has_messages) [[unlikely]] {
            for (std::size_t i = 0; i < lines; ++i) {
                const auto line = static_cast<wired_interrupt>(i);
                if (other.message(line)) set_message(line, other.message(line));
            }
        }
        return *this;
    }

private:
    std::array<std::uint32_t, lines> data_{};
    std::array<std::uint64_t, lines> addresses_{};
};

// Every call makes one: an empty one takes a few stores as long as it is small.
static_assert(sizeof(effects) == 64);
static_assert(static_cast<std::size_t>(wired_interrupt::performance) == effects::lines);

} // namespace vm_accel::inline v0
