/// Why an access was refused, with everything an event record can say about it.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/smmu/vocabulary/access.hpp>
#include <vm_accel/spec/events.hpp>

#include <cstdint>

namespace vm_accel::inline v0 {

/// Causes that are no architectural event: the device's access is aborted and
/// counted, and the guest's driver is told nothing.
enum class silent_abort : std::uint8_t {
    none,           ///< this is an architectural fault, see `event`
    ste_abort,      ///< STE.Config = 0b0xx
    gbpa_abort,     ///< SMMUEN = 0 and GBPA.ABORT = 1
    outside_window, ///< the output lies outside the VMM's window for the device
    detached,       ///< the device is no longer attached
    bad_access,     ///< empty access, or one that wraps the address space
};

/// A refused access. `event` is meaningful when `silent` is none.
struct translation_fault {
    spec::event_id event{};
    silent_abort silent = silent_abort::none;
    spec::fault_class cls = spec::fault_class::IN;
    bool stage2 = false;
    bool record = true;          ///< whether an event record is to be written (CD.R and friends)
    bool may_stall = false;      ///< CD.S or STE.S2S: the access may wait for CMD_RESUME
    bool quiet = false;          ///< CD.A = 0: the device sees zeros, and its writes vanish
    bool table_write = false;    ///< class TT: the table access was an update of flags
    bool stalled = false;        ///< recorded with STALL = 1 and `stall_tag`
    std::uint16_t stall_tag = 0; ///< STAG
    stream_id stream{};
    substream_id substream{};
    bool substream_valid = false;
    transaction access_made{};
    std::uint64_t fetch_address = 0; ///< of the structure whose fetch failed
    std::uint64_t ipa = 0;           ///< of a stage-2 fault
    std::uint8_t reason = 0;

    [[nodiscard]] constexpr bool has_event() const noexcept {
        return silent == silent_abort::none && record;
    }
};

} // namespace vm_accel::inline v0
