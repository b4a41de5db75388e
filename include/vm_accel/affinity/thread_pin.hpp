/// What became of the threads of a VMM: vCPUs and others, where each was to be, where it is.
#pragma once

#include <vm_accel/affinity/scheduling.hpp>
#include <vm_accel/core/fixed_text.hpp>
#include <vm_accel/core/result.hpp>
#include <vm_accel/os/cpu_set.hpp>
#include <vm_accel/os/thread_scheduling.hpp>

#include <optional>
#include <string_view>
#include <vector>

namespace vm_accel::inline v0 {

struct thread_pin {
    os::thread_id thread{};         ///< 0 where the platform cannot pin
    os::cpu_set actual{};           ///< as the system reports it; empty if it was not read
    std::optional<error> failure{}; ///< why the thread is not where it was to be
    scheduling_outcome scheduling{};

    /// Where it was to be; `scheduling` tells about the rest.
    [[nodiscard]] bool as_requested() const noexcept { return !failure.has_value(); }
};

/// What became of one vCPU.
struct vcpu_pin : thread_pin {
    unsigned vcpu = 0;
    unsigned requested_cpu = 0;
    bool by_own_plan = false; ///< pinned by a plan that configure() did not make
};

/// What became of a thread that runs no vCPU.
struct vmm_thread_pin : thread_pin {
    fixed_text<32> name{};
    os::cpu_set requested{};
    fixed_text<160> reason{}; ///< why on these CPUs
};

/// "CPU 3, SCHED_FIFO 10", or what went wrong.
[[nodiscard]] inline fixed_text<200> describe(const thread_pin& pin) noexcept {
    fixed_text<200> text;
    if (pin.failure) {
        text.append(pin.failure->cause.view());
    } else {
        text.append(pin.actual.count() == 1 ? "CPU " : "CPUs ");
        append_list(text, pin.actual);
    }
    return append_scheduling(text, pin.scheduling);
}

namespace thread_placing {

/// Pins a thread, called `who`, and reads back into `actual`. Errors: those of the platform,
/// mismatch.
template <pinning_platform Platform>
[[nodiscard]] result<> confine(Platform& platform, os::thread_id thread, const os::cpu_set& wanted,
                               std::string_view who, os::cpu_set& actual) noexcept {
    if (const result<> done = platform.pin(thread, wanted); !done) return done;
    const result<os::cpu_set> read = platform.pinned(thread);
    if (!read) return fail(read);
    actual = *read;
    if (actual == wanted) return {};
    fixed_text<160> cause{who};
    cause.append(wanted.count() == 1 ? " was to be on CPU " : " was to be on CPUs ");
    append_list(append_list(cause, wanted).append(", the system says "), actual);
    return fail(errc::mismatch, cause,
                "see whether the process's cpuset has changed, and plan again");
}

} // namespace thread_placing

/// One thread that was not, or no longer, where it is to be.
struct thread_move {
    fixed_text<32> who{};     ///< "vCPU 3", or the name of a thread of the VMM
    os::cpu_set before{};     ///< where the system let it run
    os::cpu_set wanted{};     ///< where it is to be now; empty if it has ended
    os::cpu_set after{};      ///< read back; as before if nothing was done
    fixed_text<200> reason{}; ///< what happened to its old place, why the new one
    std::optional<error> failure{};

    [[nodiscard]] bool has_ended() const noexcept { return wanted.empty(); }
};

/// What changed around the threads since the last look.
struct cpuset_changes {
    os::cpu_set allowed_before{};
    os::cpu_set allowed{};
    bool planned_anew = false; ///< the CPUs of the process changed
    std::vector<thread_move> moves{};

    [[nodiscard]] bool none() const noexcept { return !planned_anew && moves.empty(); }
    /// Whether every thread is now where it is to be.
    [[nodiscard]] bool in_place() const noexcept {
        for (const thread_move& move : moves)
            if (!(move.after == move.wanted) && !move.has_ended()) return false;
        return true;
    }
};

/// Prints what changed, a line each; nothing if nothing did.
template <class Stream>
    requires requires(Stream& out, std::string_view text) { out << text; }
Stream& operator<<(Stream& out, const cpuset_changes& changes) {
    fixed_text<400> line;
    if (changes.planned_anew) {
        append_list(line.append("  allowed were CPUs "), changes.allowed_before);
        append_list(line.append(", are CPUs "), changes.allowed).append("\n");
        out << line.view();
    }
    for (const thread_move& move : changes.moves) {
        line.clear();
        line.append("  ").append(move.who.view()).append(": ");
        if (move.has_ended()) {
            line.append("its thread has ended");
        } else {
            append_list(line.append("from CPUs "), move.before);
            append_list(line.append(" to "), move.wanted);
            if (!(move.after == move.wanted)) append_list(line.append(", is on "), move.after);
            line.append(" (").append(move.reason.view()).append(")");
        }
        if (move.failure) line.append(": ").append(move.failure->cause.view());
        out << line.append("\n").view();
    }
    return out;
}

} // namespace vm_accel::inline v0
