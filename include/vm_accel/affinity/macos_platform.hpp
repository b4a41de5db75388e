/// macOS as a platform for `affinity`: topology from sysctl, priorities by quality of
/// service.
///
/// Threads are not pinned: macOS has no call for it, on Apple silicon not even a hint.
/// Which kind of core a thread gets follows from its priority: `high` and a negative
/// nice mean performance cores while there is room, a nice of 10 and more means
/// efficiency cores. So plan with priorities; a plan's CPUs are advice to the reader.
/// Compiles on every system; elsewhere it claims nothing, and load() says why.
#pragma once

#include <vm_accel/affinity/platform.hpp>
#include <vm_accel/os/macos_scheduling.hpp>
#include <vm_accel/os/macos_threads.hpp>
#include <vm_accel/topology/load.hpp>
#include <vm_accel/topology/sysctl_topology.hpp>

#include <string_view>

namespace vm_accel::inline v0 {

/// Models affinity_platform. Stateless; load()'s topology is loaded once per process.
struct macos_platform : claims_nothing {
    static constexpr std::string_view name = "macos";
    static constexpr bool present = os::macos_scheduling::present;
    static constexpr bool can_set_priority = present;
    static constexpr std::string_view why_no_pins =
        "macOS binds no thread to a CPU; a priority chooses the kind of core";

    /// Error: unsupported on another system.
    [[nodiscard]] result<cpu_topology> load() noexcept {
        if constexpr (!present) return elsewhere();
        return host_topology{}.load();
    }

    /// What is asked for becomes a class of quality of service, or a time constraint;
    /// see os::macos_scheduling.
    [[nodiscard]] result<os::given_priority>
    set_priority(const os::thread_priority& wanted) noexcept {
        return os::macos_scheduling{}.set_priority(wanted);
    }
    [[nodiscard]] result<os::given_priority> priority() noexcept {
        return os::macos_scheduling{}.priority();
    }

    // --- what macOS has besides ---------------------------------------------

    [[nodiscard]] os::thread_id current_thread() noexcept {
        return os::macos_threads{}.current_thread();
    }
    /// Always `unsupported`, with the reason.
    [[nodiscard]] result<> pin(os::thread_id, const os::cpu_set& cpus) noexcept {
        if constexpr (!present) return elsewhere();
        return os::macos_threads{}.pin_current_thread(cpus);
    }
    /// How many cores there are of each kind.
    [[nodiscard]] result<core_counts> core_kinds() noexcept {
        const result<cpu_topology> machine = load();
        if (!machine) return fail(machine);
        return count_cores(*machine);
    }
    /// Intel: threads with the same tag (not 0) are to share a cache. A hint; error
    /// unsupported on Apple silicon.
    [[nodiscard]] result<> set_affinity_tag(int tag) noexcept {
        return os::macos_threads{}.set_affinity_tag(tag);
    }
    [[nodiscard]] result<int> affinity_tag() noexcept { return os::macos_threads{}.affinity_tag(); }

private:
    [[nodiscard]] static tl::unexpected<error> elsewhere() noexcept {
        return fail(errc::unsupported, "macos platform: this system is not macOS",
                    "use the platform of this system, or fixed_platform for a dry run");
    }
};

static_assert(affinity_platform<macos_platform>);

} // namespace vm_accel::inline v0
