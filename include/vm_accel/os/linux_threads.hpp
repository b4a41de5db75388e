/// Placement of threads on Linux: sched_setaffinity(2) and its reading back.
/// On other systems every answer is `unsupported`.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/cpu_set.hpp>
#include <vm_accel/os/thread_platform.hpp>
#include <vm_accel/os/thread_scheduling.hpp>

#if defined(__linux__)

#include <vm_accel/os/descriptor.hpp>
#include <vm_accel/os/worker_thread.hpp>

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <string_view>

namespace vm_accel::inline v0::os {

/// Models thread_platform. Stateless; any thread may call anything.
struct linux_threads {
    static constexpr std::string_view name = "linux";
    static constexpr bool can_pin_threads = true;

    /// Confines the calling thread to `set`. Linux silently drops CPUs that the
    /// cpuset excludes, so read back with current_pin().
    [[nodiscard]] result<> pin_current_thread(const cpu_set& set) const noexcept {
        return confine(0, set);
    }
    /// The same for another thread of this process. Errors: also not_found (it has ended).
    [[nodiscard]] result<> pin_thread(thread_id thread, const cpu_set& set) const noexcept {
        if (!is_ours(thread)) return has_ended(thread);
        return confine(static_cast<::pid_t>(thread), set);
    }

    [[nodiscard]] result<cpu_set> current_pin() const noexcept { return affinity_of(0); }
    /// Errors: also not_found (the thread has ended).
    [[nodiscard]] result<cpu_set> pin_of(thread_id thread) const noexcept {
        if (!is_ours(thread)) return has_ended(thread);
        return affinity_of(static_cast<::pid_t>(thread));
    }
    [[nodiscard]] thread_id current_thread() const noexcept {
        return static_cast<thread_id>(::syscall(SYS_gettid));
    }

    /// The CPUs of the process's main thread: what a cgroup or taskset left to it.
    /// A program that pins its main thread sees that pin here.
    [[nodiscard]] result<cpu_set> allowed_cpus() const noexcept { return affinity_of(::getpid()); }

    /// What the cpuset leaves to this process at this moment, whatever its threads are pinned
    /// to: the online CPUs of the cgroup, isolated ones included. A short-lived thread asks for
    /// every CPU and looks at what it got; that needs neither /proc nor /sys, and is the same
    /// with either kind of cgroup. It takes what starting a thread takes.
    /// Errors: exhausted, and those of pin_current_thread().
    [[nodiscard]] result<cpu_set> cpuset_cpus() const noexcept {
        result<cpu_set> found;
        auto widen = [&]() noexcept {
            cpu_set every;
            every.words().fill(~cpu_set::word{0});
            const result<> done = confine(0, every);
            found = done ? affinity_of(0) : result<cpu_set>{fail(done)};
        };
        worker_thread asker;
        if (const result<> started = asker.start(widen); !started) return fail(started);
        asker.join();
        return found;
    }

    [[nodiscard]] result<unsigned> current_cpu() const noexcept {
        unsigned cpu = 0;
        if (::syscall(SYS_getcpu, &cpu, nullptr, nullptr) == 0) return cpu;
        return fail_with(errno, "getcpu", "allow getcpu in the container's seccomp profile");
    }

private:
    /// A thread's number may belong to another process once the thread has ended.
    [[nodiscard]] static bool is_ours(thread_id thread) noexcept {
        return thread != thread_id{} &&
               (::syscall(SYS_tgkill, ::getpid(), static_cast<::pid_t>(thread), 0) == 0 ||
                errno != ESRCH);
    }
    [[nodiscard]] static tl::unexpected<error> has_ended(thread_id thread) noexcept {
        fixed_text<160> cause{"thread "};
        cause.append_number(static_cast<std::uint64_t>(thread));
        return fail(errc::not_found, cause.append(" of this process has ended"),
                    "ask about threads that run", ESRCH);
    }

    [[nodiscard]] static result<> confine(::pid_t thread, const cpu_set& set) noexcept {
        if (set.empty())
            return fail(errc::invalid_argument, "pinning a thread: the set of CPUs is empty",
                        fixed_text<160>{"give a CPU; their numbers are 0 to "}.append_number(
                            cpu_set::capacity - 1));
        if (::syscall(SYS_sched_setaffinity, thread, sizeof(cpu_set), set.words().data()) == 0)
            return {};
        const int reason = errno;
        fixed_text<160> what{"pinning to CPUs "};
        append_list(what, set);
        return fail_with(reason, what,
                         reason == EINVAL
                             ? "choose CPUs that are online and in the process's cpuset"
                             : "allow sched_setaffinity in the container's seccomp profile");
    }

    [[nodiscard]] static result<cpu_set> affinity_of(::pid_t thread) noexcept {
        cpu_set set;
        // Returns the bytes written; EINVAL would mean a kernel for more than 8192 CPUs.
        if (::syscall(SYS_sched_getaffinity, thread, sizeof(cpu_set), set.words().data()) >= 0)
            return set;
        return fail_with(errno, "sched_getaffinity",
                         "allow sched_getaffinity in the container's seccomp profile");
    }
};

static_assert(sizeof(cpu_set) == cpu_set::capacity / 8);

} // namespace vm_accel::inline v0::os

#else

namespace vm_accel::inline v0::os {

struct linux_threads : unsupported_threads {
    static constexpr std::string_view name = "linux";

    [[nodiscard]] result<> pin_thread(thread_id /*thread*/, const cpu_set& set) const noexcept {
        return pin_current_thread(set);
    }
    [[nodiscard]] result<cpu_set> pin_of(thread_id /*thread*/) const noexcept {
        return current_pin();
    }
    [[nodiscard]] thread_id current_thread() const noexcept { return {}; }
    [[nodiscard]] result<cpu_set> cpuset_cpus() const noexcept { return allowed_cpus(); }
};

} // namespace vm_accel::inline v0::os

#endif
