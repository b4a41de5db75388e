/// What a part of the SMMU asks its owner to do next.
#pragma once

#include <cstdint>

namespace vm_accel::inline v0 {

/// Effects are values: parts return them, smmu.hpp acts on them once no lock
/// is held and no guard is open.
struct effects {
    bool raise_eventq = false;    ///< pulse the event queue interrupt
    bool raise_gerror = false;    ///< pulse the global error interrupt
    bool raise_cmdq_sync = false; ///< pulse the CMD_SYNC interrupt
    bool drain_commands = false;  ///< commands wait, or a CMD_SYNC may complete now
    bool drain_events = false;    ///< event records wait, to be written inside a new guard
    bool wake_poll = false;       ///< more work is left than one call may do

    constexpr effects& operator|=(const effects& other) noexcept {
        raise_eventq = raise_eventq || other.raise_eventq;
        raise_gerror = raise_gerror || other.raise_gerror;
        raise_cmdq_sync = raise_cmdq_sync || other.raise_cmdq_sync;
        drain_commands = drain_commands || other.drain_commands;
        drain_events = drain_events || other.drain_events;
        wake_poll = wake_poll || other.wake_poll;
        return *this;
    }
};

} // namespace vm_accel::inline v0
