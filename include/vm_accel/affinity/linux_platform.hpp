/// The running system as a platform for `affinity`: topology from hwloc, threads
/// through the kernel. Its answers on systems other than Linux are `unsupported`.
#pragma once

#include <vm_accel/affinity/platform.hpp>
#include <vm_accel/os/linux_scheduling.hpp>
#include <vm_accel/os/linux_threads.hpp>
#include <vm_accel/topology/load.hpp>

#include <string_view>

namespace vm_accel::inline v0 {

/// Models affinity_platform with every claim. Stateless; load()'s topology is loaded once per
/// process. What a kernel lacks, or a sandbox refuses, is an error of the call.
struct linux_platform {
    static constexpr std::string_view name = "linux";
    static constexpr bool can_pin_threads = os::linux_threads::can_pin_threads;
    static constexpr bool can_follow_cpuset = can_pin_threads;
    static constexpr bool can_set_priority = can_pin_threads;
    static constexpr bool can_clamp_utilization = can_pin_threads;
    static constexpr bool can_group_cores = can_pin_threads;
    static constexpr bool pins_are_real = true;

    [[nodiscard]] result<cpu_topology> load() noexcept { return host_topology{}.load(); }
    [[nodiscard]] result<cpu_topology> reload() noexcept {
        return load_topology({.honour_binding = false});
    }

    [[nodiscard]] os::thread_id current_thread() noexcept {
        return os::linux_threads{}.current_thread();
    }
    [[nodiscard]] result<> pin(os::thread_id thread, const os::cpu_set& cpus) noexcept {
        return os::linux_threads{}.pin_thread(thread, cpus);
    }
    [[nodiscard]] result<os::cpu_set> pinned(os::thread_id thread) noexcept {
        return os::linux_threads{}.pin_of(thread);
    }
    [[nodiscard]] result<os::cpu_set> allowed_cpus() noexcept {
        return os::linux_threads{}.cpuset_cpus();
    }

    [[nodiscard]] result<os::given_priority>
    set_priority(const os::thread_priority& wanted) noexcept {
        return os::linux_scheduling{}.set_priority(wanted);
    }
    [[nodiscard]] result<os::given_priority> priority() noexcept {
        return os::linux_scheduling{}.priority();
    }
    [[nodiscard]] result<os::utilization_clamp>
    clamp_utilization(const os::utilization_clamp& wanted) noexcept {
        return os::linux_scheduling{}.clamp_utilization(wanted);
    }
    [[nodiscard]] result<os::core_group> start_core_group() noexcept {
        return os::linux_scheduling{}.start_core_group();
    }
    [[nodiscard]] result<os::core_group> join_core_group(os::thread_id member) noexcept {
        return os::linux_scheduling{}.join_core_group(member);
    }
    [[nodiscard]] result<os::core_group> current_core_group() noexcept {
        return os::linux_scheduling{}.current_core_group();
    }
};

static_assert(affinity_platform<linux_platform>);

} // namespace vm_accel::inline v0
