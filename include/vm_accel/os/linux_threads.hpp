/// Placement of threads on Linux: sched_setaffinity(2) and its reading back.
/// On other systems this header is empty.
#pragma once

#if defined(__linux__)

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/cpu_set.hpp>
#include <vm_accel/os/descriptor.hpp>

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <string_view>

namespace vm_accel::inline v0::os {

/// Models thread_platform. Stateless; any thread may call anything.
struct linux_threads {
    static constexpr std::string_view name = "linux";
    static constexpr bool can_pin_threads = true;

    /// Confines the calling thread to `set`. Linux silently drops CPUs that the
    /// cpuset excludes, so read back with current_pin().
    [[nodiscard]] result<> pin_current_thread(const cpu_set& set) const noexcept {
        if (set.empty())
            return fail(errc::invalid_argument, "pinning a thread: the set of CPUs is empty",
                        fixed_text<160>{"give a CPU; their numbers are 0 to "}.append_number(
                            cpu_set::capacity - 1));
        if (::syscall(SYS_sched_setaffinity, 0, sizeof(cpu_set), set.words().data()) == 0)
            return {};
        const int reason = errno;
        fixed_text<160> what{"pinning to CPUs "};
        append_list(what, set);
        return fail_with(reason, what,
                         reason == EINVAL
                             ? "choose CPUs that are online and in the process's cpuset"
                             : "allow sched_setaffinity in the container's seccomp profile");
    }

    [[nodiscard]] result<cpu_set> current_pin() const noexcept { return affinity_of(0); }

    /// The CPUs of the process's main thread: what a cgroup or taskset left to it.
    /// A program that pins its main thread sees that pin here.
    [[nodiscard]] result<cpu_set> allowed_cpus() const noexcept { return affinity_of(::getpid()); }

    [[nodiscard]] result<unsigned> current_cpu() const noexcept {
        unsigned cpu = 0;
        if (::syscall(SYS_getcpu, &cpu, nullptr, nullptr) == 0) return cpu;
        return fail_with(errno, "getcpu", "allow getcpu in the container's seccomp profile");
    }

private:
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

#endif
