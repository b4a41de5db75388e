/// What a VMM asks for a thread besides its place, and what the system gave.
///
/// Every wish is tried, refused or not, and each has its own answer: a host that refuses real
/// time may still grant core groups. A caller for whom a refusal is a failure looks at
/// scheduling_outcome::refusal().
#pragma once

#include <vm_accel/affinity/platform.hpp>
#include <vm_accel/core/fixed_text.hpp>
#include <vm_accel/core/result.hpp>
#include <vm_accel/os/thread_scheduling.hpp>

#include <cstdint>
#include <optional>
#include <string_view>

namespace vm_accel::inline v0 {

/// Which threads may run on the other threads of a core while this one runs. What leaks
/// between the threads of a core then leaks to nobody else.
enum class core_sharing : std::uint8_t {
    anyone,  ///< as the system does without being asked
    this_vm, ///< threads of this `affinity` that asked for the same
    nobody,  ///< none: vCPUs on the threads of one core then run in turn
};

[[nodiscard]] constexpr std::string_view name_of(core_sharing sharing) noexcept {
    switch (sharing) {
    case core_sharing::anyone:
        return "cores shared with anyone";
    case core_sharing::this_vm:
        return "cores shared within this VM";
    case core_sharing::nobody:
        return "cores shared with nobody";
    }
    return "unknown";
}

/// What is not asked for stays as the thread has it.
struct scheduling_request {
    std::optional<os::thread_priority> priority{};
    std::optional<os::utilization_clamp> utilization{};
    core_sharing sharing = core_sharing::anyone;

    friend bool operator==(const scheduling_request&, const scheduling_request&) = default;
};

/// What came of one wish: what was given, or why nothing was. Neither if it was not asked for.
template <class Given>
struct wish_outcome {
    std::optional<Given> given{};
    /// Why it is not as requested; besides `given` where the system gave something else.
    std::optional<error> failure{};

    [[nodiscard]] bool as_requested() const noexcept { return !failure.has_value(); }
};

struct scheduling_outcome {
    scheduling_request requested{};
    wish_outcome<os::given_priority> priority{};
    wish_outcome<os::utilization_clamp> utilization{};
    wish_outcome<os::core_group> sharing{};

    [[nodiscard]] bool as_requested() const noexcept {
        return priority.as_requested() && utilization.as_requested() && sharing.as_requested();
    }
    /// The first wish that was not granted.
    [[nodiscard]] result<> refusal() const noexcept {
        for (const std::optional<error>* failure :
             {&priority.failure, &utilization.failure, &sharing.failure})
            if (*failure) return tl::unexpected<error>{**failure};
        return {};
    }
};

/// Appends ", SCHED_FIFO 10, cores shared within this VM" and, for what was refused,
/// ", no fifo 10: CAUSE". Nothing for what was not asked for.
template <class Text>
Text& append_scheduling(Text& out, const scheduling_outcome& got) noexcept {
    if (got.requested.priority) {
        if (got.priority.given) out.append(", ").append(got.priority.given->text.view());
        if (got.priority.failure)
            append_priority(out.append(", not "), *got.requested.priority)
                .append(": ")
                .append(got.priority.failure->cause.view());
    }
    if (got.requested.utilization) {
        if (got.utilization.given) {
            out.append(", utilization ").append_number(got.utilization.given->least);
            out.append(" to ").append_number(got.utilization.given->most);
        }
        if (got.utilization.failure) out.append(", ").append(got.utilization.failure->cause.view());
    }
    if (got.requested.sharing != core_sharing::anyone) {
        if (got.sharing.as_requested()) out.append(", ").append(name_of(got.requested.sharing));
        if (got.sharing.failure) out.append(", ").append(got.sharing.failure->cause.view());
    }
    return out;
}

namespace thread_placing {

[[nodiscard]] inline tl::unexpected<error> not_here(std::string_view platform,
                                                    std::string_view what) noexcept {
    return fail(errc::unsupported, fixed_text<160>{platform}.append(": ").append(what),
                "leave it to the system's scheduler");
}

template <class Given>
void keep(wish_outcome<Given>& outcome, const result<Given>& done) noexcept {
    if (done) {
        outcome.given = *done;
    } else {
        outcome.failure = done.error();
    }
}

template <affinity_platform Platform>
void ask_priority(Platform& platform, const os::thread_priority& wanted,
                  wish_outcome<os::given_priority>& out) noexcept {
    if constexpr (Platform::can_set_priority) {
        keep(out, platform.set_priority(wanted));
        if (!out.given || out.given->as_requested) return;
        fixed_text<160> cause{"thread priority "};
        append_priority(cause, wanted).append(" was asked for, the system gave ");
        out.failure = fail(errc::mismatch, cause.append(out.given->text.view()),
                           "ask for a priority that this platform has")
                          .value();
    } else {
        out.failure = not_here(Platform::name, "thread priorities cannot be set here").value();
    }
}

template <affinity_platform Platform>
void ask_utilization(Platform& platform, const os::utilization_clamp& wanted,
                     wish_outcome<os::utilization_clamp>& out) noexcept {
    if constexpr (Platform::can_clamp_utilization) {
        keep(out, platform.clamp_utilization(wanted));
        if (!out.given || *out.given == wanted) return;
        fixed_text<160> cause{"utilization clamp: the system gave "};
        cause.append_number(out.given->least).append(" to ").append_number(out.given->most);
        out.failure = fail(errc::mismatch, cause, "see the limits of the process's cgroup").value();
    } else {
        out.failure = not_here(Platform::name, "utilization cannot be clamped here").value();
    }
}

/// `next_member()` names a thread of the VM's group, one after another; none at the end.
template <affinity_platform Platform, class NextMember>
void ask_sharing(Platform& platform, core_sharing wanted, NextMember next_member,
                 wish_outcome<os::core_group>& out) noexcept {
    if constexpr (Platform::can_group_cores) {
        for (os::thread_id member = next_member();
             wanted == core_sharing::this_vm && member != os::thread_id{}; member = next_member()) {
            const result<os::core_group> joined = platform.join_core_group(member);
            if (!joined && joined.error() == errc::not_found) continue; // it has ended
            return keep(out, joined);
        }
        keep(out, platform.start_core_group());
    } else {
        static_cast<void>(platform);
        static_cast<void>(wanted);
        static_cast<void>(next_member);
        out.failure = not_here(Platform::name, "a core cannot be kept to some threads").value();
    }
}

/// Asks for all that a request has for the calling thread.
template <affinity_platform Platform, class NextMember>
[[nodiscard]] scheduling_outcome schedule_current_thread(Platform& platform,
                                                         const scheduling_request& request,
                                                         NextMember next_member) noexcept {
    scheduling_outcome out;
    out.requested = request;
    if (request.priority) ask_priority(platform, *request.priority, out.priority);
    if (request.utilization) ask_utilization(platform, *request.utilization, out.utilization);
    if (request.sharing != core_sharing::anyone)
        ask_sharing(platform, request.sharing, next_member, out.sharing);
    return out;
}

} // namespace thread_placing

} // namespace vm_accel::inline v0
