/// This machine's topology on Apple's systems. Empty on others (os/topology_source.hpp).
#pragma once

#include <vm_accel/os/topology_source.hpp>

#if VM_ACCEL_HAS_SYSCTL_TOPOLOGY

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/sysctl.hpp>
#include <vm_accel/topology/cpu_topology.hpp>
#include <vm_accel/topology/loading.hpp>
#include <vm_accel/topology/sysctl_topology.hpp>

namespace vm_accel::inline v0::topology_reading {

/// This machine: see load_topology(). macOS binds no process to CPUs, so there is no
/// binding to honour.
[[nodiscard]] inline result<cpu_topology> read_this_machine(topology_options) noexcept {
    result<cpu_topology> found = topology_from_sysctl(os::native_sysctl{});
    if (found) found->source = topology_source::this_system;
    return found;
}

} // namespace vm_accel::inline v0::topology_reading

#endif
