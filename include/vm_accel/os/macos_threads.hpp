/// Threads on Apple's systems: where they run, and hints where they should.
///
/// macOS binds no thread to a CPU: on Apple silicon there is no call for it, on Intel
/// only a tag that asks for threads to share a cache. Quality of service decides
/// between performance and efficiency cores (macos_scheduling.hpp). On other systems
/// every answer is `unsupported`.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/cpu_set.hpp>
#include <vm_accel/os/thread_id.hpp>
#include <vm_accel/os/thread_platform.hpp>

#if defined(__APPLE__)

#include <vm_accel/os/descriptor.hpp>
#include <vm_accel/os/sysctl.hpp>

#include <pthread.h>

#include <cstddef>
#include <cstdint>
#include <mach/mach.h>
#include <mach/thread_policy.h>
#include <string_view>

namespace vm_accel::inline v0::os {

/// Models thread_platform. Stateless; any thread may call anything.
struct macos_threads {
    static constexpr std::string_view name = "macos";
    static constexpr bool can_pin_threads = false;

    [[nodiscard]] thread_id current_thread() const noexcept {
        std::uint64_t number = 0;
        static_cast<void>(::pthread_threadid_np(nullptr, &number));
        return thread_id{number};
    }
    /// Always `unsupported`.
    [[nodiscard]] result<> pin_current_thread(const cpu_set&) const noexcept { return refuse(); }
    /// Always `unsupported`.
    [[nodiscard]] result<cpu_set> current_pin() const noexcept { return refuse(); }
    /// Every CPU that runs.
    [[nodiscard]] result<cpu_set> allowed_cpus() const noexcept {
        const std::uint64_t count = native_sysctl{}.number("hw.logicalcpu").value_or(0);
        if (count == 0 || count > cpu_set::capacity)
            return fail(errc::unavailable, "sysctl hw.logicalcpu makes no sense here",
                        "see what `sysctl hw` says");
        cpu_set set;
        for (unsigned cpu = 0; cpu < count; ++cpu)
            static_cast<void>(set.insert(cpu));
        return set;
    }
    [[nodiscard]] result<unsigned> current_cpu() const noexcept {
        std::size_t cpu = 0;
        const int refused = ::pthread_cpu_number_np(&cpu);
        if (refused == 0) return static_cast<unsigned>(cpu);
        return fail_with(refused, "pthread_cpu_number_np", "run macOS 11 or later");
    }

    /// Threads of this process with the same tag are to share a level 2 cache, where
    /// that can be done; 0 is no tag. A hint: nothing tells what came of it. Error:
    /// unsupported (Apple silicon has no tags).
    [[nodiscard]] result<> set_affinity_tag(int tag) const noexcept {
        ::thread_affinity_policy_data_t policy{tag};
        const ::kern_return_t done = ::thread_policy_set(
            this_port(), THREAD_AFFINITY_POLICY, reinterpret_cast<::thread_policy_t>(&policy),
            THREAD_AFFINITY_POLICY_COUNT);
        if (done == KERN_SUCCESS) return {};
        return no_tags(done);
    }
    [[nodiscard]] result<int> affinity_tag() const noexcept {
        ::thread_affinity_policy_data_t policy{0};
        ::mach_msg_type_number_t count = THREAD_AFFINITY_POLICY_COUNT;
        ::boolean_t by_default = FALSE;
        const ::kern_return_t done =
            ::thread_policy_get(this_port(), THREAD_AFFINITY_POLICY,
                                reinterpret_cast<::thread_policy_t>(&policy), &count, &by_default);
        if (done == KERN_SUCCESS) return by_default != FALSE ? 0 : policy.affinity_tag;
        return no_tags(done);
    }

    /// The calling thread as the kernel's calls name it. Not to be released.
    [[nodiscard]] static ::mach_port_t this_port() noexcept {
        return ::pthread_mach_thread_np(::pthread_self());
    }

private:
    [[nodiscard]] static tl::unexpected<error> refuse() noexcept {
        return fail(errc::unsupported, "threads: macOS binds no thread to a CPU",
                    "ask for a priority instead: quality of service chooses between performance "
                    "and efficiency cores");
    }
    [[nodiscard]] static tl::unexpected<error> no_tags(::kern_return_t refused) noexcept {
        if (refused == KERN_NOT_SUPPORTED)
            return fail(errc::unsupported, "affinity tags: Apple silicon has none",
                        "ask for a priority instead", refused);
        return fail(errc::system_failure,
                    fixed_text<160>{"affinity tag: kernel error "}.append_number(
                        static_cast<unsigned>(refused)),
                    "leave placement to the scheduler", refused);
    }
};

} // namespace vm_accel::inline v0::os

#else

namespace vm_accel::inline v0::os {

struct macos_threads : unsupported_threads {
    static constexpr std::string_view name = "macos";

    [[nodiscard]] thread_id current_thread() const noexcept { return thread_id{0}; }
    [[nodiscard]] result<> set_affinity_tag(int) const noexcept { return not_here(); }
    [[nodiscard]] result<int> affinity_tag() const noexcept { return not_here(); }

private:
    [[nodiscard]] static tl::unexpected<error> not_here() noexcept {
        return fail(errc::unsupported, "affinity tags: this system is not macOS",
                    "use the platform of this system");
    }
};

} // namespace vm_accel::inline v0::os

#endif
