/// A thread's scheduling on Linux: sched_setattr(2), utilization clamps and core scheduling,
/// each read back. On other systems every answer is `unsupported`.
///
/// Sources: sched(7), sched_setattr(2), the kernel's admin-guide/hw-vuln/core-scheduling and
/// scheduler/sched-util-clamp.
#pragma once

#include <vm_accel/os/thread_scheduling.hpp>

#if defined(__linux__)

#include <vm_accel/os/descriptor.hpp>

#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

namespace vm_accel::inline v0::os {

/// Stateless; every call is about the calling thread, any thread may make it.
struct linux_scheduling {
    /// What priority_class::high is here. It needs RLIMIT_NICE or CAP_SYS_NICE.
    static constexpr int high_nice = -10;

    /// Sets and reads back. A real-time thread that never blocks takes its CPU from all
    /// others, within sched_rt_runtime_us; threads that it starts inherit its priority.
    /// Errors: invalid_argument (the request is not sound), permission_denied, unsupported.
    [[nodiscard]] result<given_priority>
    set_priority(const thread_priority& wanted) const noexcept {
        if (!wanted.is_sound()) return unsound(wanted);
        attributes to{};
        to.size = attributes::first_size; // every kernel that has the call knows this much
        to.policy = wanted.kind == priority_class::fifo          ? sched_fifo
                    : wanted.kind == priority_class::round_robin ? sched_rr
                                                                 : sched_other;
        to.nice = wanted.kind == priority_class::high ? high_nice : wanted.nice;
        to.priority = wanted.level;
        if (::syscall(SYS_sched_setattr, 0, &to, 0) != 0) return priority_refused(errno, wanted);
        result<given_priority> given = priority();
        if (given)
            given->as_requested = given->nearest == nearest(to.policy, to.nice, wanted.level);
        return given;
    }

    [[nodiscard]] result<given_priority> priority() const noexcept {
        const result<attributes> now = read();
        if (!now) return fail(now);
        given_priority given;
        given.nearest = nearest(now->policy, now->nice, now->priority);
        switch (now->policy) {
        case sched_fifo:
            given.text.append("SCHED_FIFO ").append_number(now->priority);
            break;
        case sched_rr:
            given.text.append("SCHED_RR ").append_number(now->priority);
            break;
        case sched_other:
            given.text.append("SCHED_OTHER, nice ").append(now->nice < 0 ? "-" : "");
            given.text.append_number(static_cast<unsigned>(now->nice < 0 ? -now->nice : now->nice));
            break;
        default: // batch, idle and deadline are not given by set_priority
            given.text.append("policy ").append_number(now->policy);
            break;
        }
        return given;
    }

    /// Sets and reads back. Errors: invalid_argument, unsupported (kernels before 5.3 or
    /// without CONFIG_UCLAMP_TASK), permission_denied.
    [[nodiscard]] result<utilization_clamp>
    clamp_utilization(const utilization_clamp& wanted) const noexcept {
        if (!wanted.is_sound()) return unsound(wanted);
        attributes to{};
        to.flags = keep_all | clamp_both;
        to.least = wanted.least;
        to.most = wanted.most;
        if (::syscall(SYS_sched_setattr, 0, &to, 0) != 0) {
            const int reason = errno;
            // A kernel that does not know the fields says E2BIG, one built without them EOPNOTSUPP.
            if (reason == E2BIG || reason == EOPNOTSUPP || reason == EINVAL || reason == ENOSYS)
                return fail(errc::unsupported, "utilization clamp: this kernel has none",
                            "use a kernel of 5.3 or later with CONFIG_UCLAMP_TASK", reason);
            return fail_with(reason, "utilization clamp",
                             "give CAP_SYS_NICE, and allow sched_setattr in the seccomp profile");
        }
        const result<attributes> now = read();
        if (!now) return fail(now);
        return utilization_clamp{now->least, now->most};
    }

    /// A new group with the calling thread as its only member, which is read back.
    /// Errors: unsupported (kernels before 5.14 or without CONFIG_SCHED_CORE), unavailable
    /// (no core has a second thread that is online), permission_denied.
    [[nodiscard]] result<core_group> start_core_group() const noexcept {
        return core_call(core_create, 0UL);
    }
    /// Into the group of another thread of this process. Errors: also not_found (no such thread).
    [[nodiscard]] result<core_group> join_core_group(thread_id member) const noexcept {
        return core_call(core_share_from, static_cast<unsigned long>(member));
    }
    [[nodiscard]] result<core_group> current_core_group() const noexcept {
        std::uint64_t cookie = 0;
        if (::prctl(prctl_sched_core, core_get, 0UL, scope_thread, &cookie) != 0)
            return core_refused(errno);
        return static_cast<core_group>(cookie);
    }

private:
    /// struct sched_attr of the kernel, as of 5.3; the C library's headers may have none.
    struct attributes {
        static constexpr std::uint32_t first_size = 48;
        std::uint32_t size = sizeof(attributes);
        std::uint32_t policy = 0;
        std::uint64_t flags = 0;
        std::int32_t nice = 0;
        std::uint32_t priority = 0;
        std::uint64_t runtime = 0;
        std::uint64_t deadline = 0;
        std::uint64_t period = 0;
        std::uint32_t least = 0;
        std::uint32_t most = 1024;
    };
    static_assert(sizeof(attributes) == 56);

    static constexpr std::uint32_t sched_other = 0, sched_fifo = 1, sched_rr = 2;
    static constexpr std::uint64_t keep_all = 0x18;   // SCHED_FLAG_KEEP_POLICY and _PARAMS
    static constexpr std::uint64_t clamp_both = 0x60; // SCHED_FLAG_UTIL_CLAMP_MIN and _MAX
    static constexpr int prctl_sched_core = 62;
    // prctl takes its further arguments as unsigned longs.
    static constexpr unsigned long core_get = 0, core_create = 1, core_share_from = 3;
    static constexpr unsigned long scope_thread = 0;

    [[nodiscard]] static thread_priority nearest(std::uint32_t policy, std::int32_t nice,
                                                 std::uint32_t level) noexcept {
        if (policy == sched_fifo) return thread_priority::fifo(level);
        if (policy == sched_rr) return thread_priority::round_robin(level);
        return nice == high_nice ? thread_priority::high() : thread_priority::normal(nice);
    }

    [[nodiscard]] static result<attributes> read() noexcept {
        attributes now{};
        if (::syscall(SYS_sched_getattr, 0, &now, sizeof now, 0) == 0) return now;
        return fail_with(errno, "sched_getattr",
                         "allow sched_getattr in the container's seccomp profile");
    }

    [[nodiscard]] static tl::unexpected<error>
    priority_refused(int reason, const thread_priority& wanted) noexcept {
        fixed_text<160> what{"thread priority "};
        append_priority(what, wanted);
        if (reason != EPERM && reason != EACCES)
            return fail_with(reason, what,
                             "allow sched_setattr in the container's seccomp profile");
        ::rlimit limit{};
        const bool real_time = wanted.is_real_time();
        const int nice = wanted.kind == priority_class::high ? high_nice : wanted.nice;
        const std::uint64_t needed =
            real_time ? wanted.level : static_cast<std::uint64_t>(20 - nice);
        const bool limited = ::getrlimit(real_time ? RLIMIT_RTPRIO : RLIMIT_NICE, &limit) == 0 &&
                             limit.rlim_cur < needed;
        const result<attributes> now = read();
        const bool less = !real_time && now && now->policy == sched_other && now->nice <= nice;
        if (!limited || less) // nobody needs a permission for that, so something else refuses
            return fail_with(reason, what,
                             real_time ? "give the cgroup a cpu.rt_runtime_us, or allow "
                                         "sched_setattr in the container's seccomp profile"
                                       : "allow sched_setattr in the container's seccomp profile");
        fixed_text<160> cure{real_time ? "raise RLIMIT_RTPRIO to " : "raise RLIMIT_NICE to "};
        cure.append_number(needed).append(real_time ? " (ulimit -r)" : " (ulimit -e)");
        cure.append(", or give CAP_SYS_NICE");
        return fail_with(reason, what, cure);
    }

    [[nodiscard]] result<core_group> core_call(unsigned long command,
                                               unsigned long thread) const noexcept {
        if (::prctl(prctl_sched_core, command, thread, scope_thread, 0UL) != 0)
            return core_refused(errno);
        return current_core_group();
    }

    [[nodiscard]] static tl::unexpected<error> core_refused(int reason) noexcept {
        switch (reason) {
        case EINVAL:
        case ENOSYS:
            return fail(errc::unsupported, "core scheduling: this kernel has none",
                        "use a kernel of 5.14 or later with CONFIG_SCHED_CORE", reason);
        case ENODEV:
            return fail(errc::unavailable,
                        "core scheduling: no core has a second thread, so none is shared",
                        "nothing is needed; or switch SMT on (/sys/devices/system/cpu/smt)",
                        reason);
        case ESRCH:
            return fail(errc::not_found, "core scheduling: the thread to join has ended",
                        "start a group", reason);
        default:
            return fail_with(reason, "core scheduling",
                             "allow ptrace of this process, and prctl in the seccomp profile");
        }
    }
};

} // namespace vm_accel::inline v0::os

#else

namespace vm_accel::inline v0::os {
struct linux_scheduling : unsupported_scheduling {};
} // namespace vm_accel::inline v0::os

#endif
