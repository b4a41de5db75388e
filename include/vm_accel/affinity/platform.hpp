/// What `affinity` needs of a platform.
///
/// A platform is one struct. It claims features by constants, and claiming a
/// feature obliges it: `can_pin_threads` without the calls that pin does not
/// satisfy the concept. A feature that is not claimed is reported as unsupported
/// by the platform, with no call of its own.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/cpu_set.hpp>
#include <vm_accel/os/thread_scheduling.hpp>
#include <vm_accel/topology/cpu_topology.hpp>

#include <concepts>
#include <string_view>

namespace vm_accel::inline v0 {

/// Can say what processors there are.
/// load() gives the topology that plans are made on; it may be slow. The constants tell which
/// of the concepts below the platform models.
/// Threads: load() may be called by any thread.
template <class P>
concept topology_platform = std::default_initializable<P> && requires(P platform) {
    { P::name } -> std::convertible_to<std::string_view>;
    { P::can_pin_threads } -> std::convertible_to<bool>;
    { P::can_follow_cpuset } -> std::convertible_to<bool>;
    { P::can_set_priority } -> std::convertible_to<bool>;
    { P::can_clamp_utilization } -> std::convertible_to<bool>;
    { P::can_group_cores } -> std::convertible_to<bool>;
    { platform.load() } noexcept -> std::same_as<result<cpu_topology>>;
};

/// Can confine a thread of this process to CPUs and say where it is confined to.
/// After pin(thread, s) succeeds, pinned(thread) is what the system really set; it may differ
/// from s, and it is the caller who compares. current_thread() names the calling thread, and no
/// other thread has that name while it runs. `pins_are_real` tells whether threads really
/// move: plans for described machines are then refused.
/// Threads: any, about any thread of the process. Errors: not_found for one that has ended.
template <class P>
concept pinning_platform = requires(P platform, os::thread_id thread, const os::cpu_set& cpus) {
    { P::pins_are_real } -> std::convertible_to<bool>;
    { platform.current_thread() } noexcept -> std::same_as<os::thread_id>;
    { platform.pin(thread, cpus) } noexcept -> std::same_as<result<>>;
    { platform.pinned(thread) } noexcept -> std::same_as<result<os::cpu_set>>;
};

/// Can say which CPUs the process may use at this moment.
/// allowed_cpus() is what an administrator and the hardware leave to the process (cgroup, CPUs
/// that went offline), whatever its threads are pinned to. reload() is load() of this moment,
/// without what threads are pinned to: its CPUs may be more than those allowed.
/// Threads: any.
template <class P>
concept following_platform = pinning_platform<P> && requires(P platform) {
    { platform.allowed_cpus() } noexcept -> std::same_as<result<os::cpu_set>>;
    { platform.reload() } noexcept -> std::same_as<result<cpu_topology>>;
};

/// Can set how urgently the calling thread runs.
/// set_priority() gives what the system then says, in its own words and in those of requests,
/// and whether that is what was asked for. priority() only asks.
/// Errors: invalid_argument for a request that is not sound, permission_denied with what would
/// permit it. A refused request changes nothing.
template <class P>
concept priority_platform = requires(P platform, const os::thread_priority& wanted) {
    { platform.set_priority(wanted) } noexcept -> std::same_as<result<os::given_priority>>;
    { platform.priority() } noexcept -> std::same_as<result<os::given_priority>>;
};

/// Can bound how busy the system thinks the calling thread; gives what the system then says.
/// Errors: as set_priority(); unsupported where this system, unlike others of its platform,
/// cannot.
template <class P>
concept clamping_platform = requires(P platform, const os::utilization_clamp& wanted) {
    { platform.clamp_utilization(wanted) } noexcept -> std::same_as<result<os::utilization_clamp>>;
};

/// Can keep the threads of a core to one group of threads.
/// start_core_group() makes a group that differs from all others, with the calling thread in it;
/// join_core_group(t) puts the calling thread into the group of thread t. Both give what the
/// system then says, as current_core_group() does: 0 for a thread in no group.
/// Errors: unsupported and unavailable (no core has two threads), not_found (t has ended).
template <class P>
concept core_grouping_platform = pinning_platform<P> && requires(P platform, os::thread_id member) {
    { platform.start_core_group() } noexcept -> std::same_as<result<os::core_group>>;
    { platform.join_core_group(member) } noexcept -> std::same_as<result<os::core_group>>;
    { platform.current_core_group() } noexcept -> std::same_as<result<os::core_group>>;
};

template <class P>
concept affinity_platform =
    topology_platform<P> && (!static_cast<bool>(P::can_pin_threads) || pinning_platform<P>) &&
    (!static_cast<bool>(P::can_follow_cpuset) || following_platform<P>) &&
    (!static_cast<bool>(P::can_set_priority) || priority_platform<P>) &&
    (!static_cast<bool>(P::can_clamp_utilization) || clamping_platform<P>) &&
    (!static_cast<bool>(P::can_group_cores) || core_grouping_platform<P>);

/// What a platform has that claims nothing, for those that can do only some of it: derive,
/// and replace the constants of what can be done.
struct claims_nothing {
    static constexpr bool can_pin_threads = false;
    static constexpr bool can_follow_cpuset = false;
    static constexpr bool can_set_priority = false;
    static constexpr bool can_clamp_utilization = false;
    static constexpr bool can_group_cores = false;
};

} // namespace vm_accel::inline v0
