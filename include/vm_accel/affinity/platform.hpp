/// What `affinity` needs of a platform.
///
/// A platform is one struct. It claims features by constants, and claiming a
/// feature obliges it: `can_pin_threads` without the calls that pin does not
/// satisfy the concept.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/cpu_set.hpp>
#include <vm_accel/topology/cpu_topology.hpp>

#include <concepts>
#include <string_view>

namespace vm_accel::inline v0 {

/// Can say what processors there are.
/// load() gives the topology that plans are made on; it may be slow.
/// `can_pin_threads` tells whether the pinning calls below exist.
/// Threads: load() may be called by any thread.
template <class P>
concept topology_platform = std::default_initializable<P> && requires(P platform) {
    { P::name } -> std::convertible_to<std::string_view>;
    { P::can_pin_threads } -> std::convertible_to<bool>;
    { platform.load() } noexcept -> std::same_as<result<cpu_topology>>;
};

/// Can confine the calling thread to CPUs and say where it is confined to.
/// After pin(s) succeeds, pinned() on the same thread is what the system really
/// set; it may differ from s, and it is the caller who compares. `pins_are_real`
/// tells whether threads really move: plans for described machines are then refused.
/// Threads: any, each about itself.
template <class P>
concept pinning_platform = requires(P platform, const os::cpu_set& cpus) {
    { P::pins_are_real } -> std::convertible_to<bool>;
    { platform.pin(cpus) } noexcept -> std::same_as<result<>>;
    { platform.pinned() } noexcept -> std::same_as<result<os::cpu_set>>;
};

template <class P>
concept affinity_platform =
    topology_platform<P> && (!static_cast<bool>(P::can_pin_threads) || pinning_platform<P>);

} // namespace vm_accel::inline v0
