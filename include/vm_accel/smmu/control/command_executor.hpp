/// What commands and registers need of the rest of the SMMU.
#pragma once

#include <vm_accel/smmu/control/command_decoder.hpp>
#include <vm_accel/smmu/control/effects.hpp>

#include <concepts>
#include <cstdint>

namespace vm_accel::inline v0 {

/// How far the ATC invalidations that have been sent are.
enum class atc_progress : std::uint8_t {
    done,    ///< every one has been answered, or none was sent
    pending, ///< a device has not answered yet
    failed,  ///< one timed out: told once, and forgotten
};

/// The control plane calls these under the control lock; none may wait, and
/// none may call back into the control plane.
/// - forget_streams: the decoded configurations of StreamIDs [first, last] are
///   out of date; forget_context: those made from one CD of one stream;
///   forget_partitions: those that a VMID's VMS had a part in.
/// - prefetch: kind::prefetch. Raises no event, marks nothing dirty.
/// - invalidate_atc, answer_pages, resume, terminate_stalls: the command of that
///   name, not called while SMMUEN = 0 for the first two (they are ignored).
/// - atc: asked before a CMD_SYNC completes that follows an ATC invalidation.
///   When a device answers, service() must be called.
/// - settle_events: whether the events of refused accesses are in their queue;
///   else a thread with an open guard is writing them. A CMD_SYNC waits (4.7.3).
/// - smmu_disabled: SMMUEN went to 0, or the SMMU is being reset: whatever is
///   stalled is aborted, outstanding page requests are forgotten.
/// - run_atos: GATOS_CTRL.RUN went to 1.
template <class E>
concept command_executor =
    requires(E& executor, const command_action& action, std::uint32_t id, effects& out) {
        { executor.forget_streams(id, id) } noexcept -> std::same_as<void>;
        { executor.forget_context(action) } noexcept -> std::same_as<void>;
        { executor.forget_partitions(action) } noexcept -> std::same_as<void>;
        { executor.prefetch(action) } noexcept -> std::same_as<void>;
        { executor.invalidate_atc(action) } noexcept -> std::same_as<effects>;
        { executor.answer_pages(action) } noexcept -> std::same_as<effects>;
        { executor.resume(action) } noexcept -> std::same_as<effects>;
        { executor.terminate_stalls(action) } noexcept -> std::same_as<effects>;
        { executor.atc() } noexcept -> std::same_as<atc_progress>;
        { executor.settle_events(out) } noexcept -> std::same_as<bool>;
        { executor.smmu_disabled() } noexcept -> std::same_as<void>;
        { executor.run_atos() } noexcept -> std::same_as<void>;
    };

} // namespace vm_accel::inline v0
