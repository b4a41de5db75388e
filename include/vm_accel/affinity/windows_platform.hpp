/// Windows as a platform for `affinity`: topology from its own records, threads by
/// group affinity and CPU sets, priorities in its seven steps.
///
/// CPUs are numbered 64 to a processor group: CPU 70 is number 6 of group 1. Compiles
/// on every system; elsewhere it claims nothing, and load() says why.
#pragma once

#include <vm_accel/affinity/platform.hpp>
#include <vm_accel/os/windows_scheduling.hpp>
#include <vm_accel/os/windows_threads.hpp>
#include <vm_accel/topology/load.hpp>

#include <string_view>

namespace vm_accel::inline v0 {

/// Models affinity_platform. Stateless; load()'s topology is loaded once per process.
/// Windows has no bounds of utilization (economy() is the nearest it has), and keeps
/// cores to one VM in its hypervisor, not by thread.
struct windows_platform {
    static constexpr std::string_view name = "windows";
    static constexpr bool can_pin_threads = os::windows_threads::can_pin_threads;
    static constexpr bool can_follow_cpuset = can_pin_threads;
    static constexpr bool can_set_priority = can_pin_threads;
    static constexpr bool can_clamp_utilization = false;
    static constexpr bool can_group_cores = false;
    static constexpr bool pins_are_real = true;

    /// Error: unsupported on another system.
    [[nodiscard]] result<cpu_topology> load() noexcept {
        if constexpr (!can_pin_threads) return elsewhere();
        return host_topology{}.load();
    }
    [[nodiscard]] result<cpu_topology> reload() noexcept {
        if constexpr (!can_pin_threads) return elsewhere();
        return load_topology({.honour_binding = false});
    }

    [[nodiscard]] os::thread_id current_thread() noexcept {
        return os::windows_threads{}.current_thread();
    }
    /// A set within one processor group binds. One that spans groups needs Windows 10,
    /// and is refused where the system does not confirm it.
    [[nodiscard]] result<> pin(os::thread_id thread, const os::cpu_set& cpus) noexcept {
        return os::windows_threads{}.pin_thread(thread, cpus);
    }
    [[nodiscard]] result<os::cpu_set> pinned(os::thread_id thread) noexcept {
        return os::windows_threads{}.pin_of(thread);
    }
    /// What the process's affinity mask and its processor groups leave to it.
    [[nodiscard]] result<os::cpu_set> allowed_cpus() noexcept {
        return os::windows_threads{}.allowed_cpus();
    }

    [[nodiscard]] result<os::given_priority>
    set_priority(const os::thread_priority& wanted) noexcept {
        return os::windows_scheduling{}.set_priority(wanted);
    }
    [[nodiscard]] result<os::given_priority> priority() noexcept {
        return os::windows_scheduling{}.priority();
    }
    /// EcoQoS for the calling thread: see windows_scheduling::prefer_economy().
    [[nodiscard]] result<> economy(bool economic) noexcept {
        return os::windows_scheduling{}.prefer_economy(economic);
    }

private:
    [[nodiscard]] static tl::unexpected<error> elsewhere() noexcept {
        return fail(errc::unsupported, "windows platform: this program is for another system",
                    "use the platform of this system, or fixed_platform");
    }
};

static_assert(affinity_platform<windows_platform>);

} // namespace vm_accel::inline v0
