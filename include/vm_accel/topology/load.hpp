/// This machine's topology, read the way that suits the operating system: through
/// hwloc on Linux, from the system's own records on Windows and macOS.
#pragma once

#include <vm_accel/os/topology_source.hpp>
#include <vm_accel/topology/cpu_topology.hpp>
#include <vm_accel/topology/loading.hpp>

#if VM_ACCEL_HAS_HWLOC
#include <vm_accel/topology/hwloc_load.hpp>
#else
#include <vm_accel/topology/macos_load.hpp>
#include <vm_accel/topology/unread.hpp>
#include <vm_accel/topology/windows_load.hpp>
#endif

namespace vm_accel::inline v0 {

/// This machine, restricted to the CPUs and nodes that the process may use. The
/// variables HWLOC_SYNTHETIC and HWLOC_XMLFILE replace the machine by a description;
/// `is_this_system()` is then false. Takes a few milliseconds. Any thread.
/// Errors: unavailable, exhausted; permission_denied or unsupported where the process
/// may not ask what it is bound to.
[[nodiscard]] inline result<cpu_topology> load_topology(topology_options options = {}) noexcept {
    return topology_reading::read_this_machine(options);
}

/// What load_topology() gave when it first worked; never null, valid until the
/// program ends. Later changes of the process's cpuset do not show. Any thread.
/// Errors: as load_topology(); the next call tries again.
[[nodiscard]] inline result<const cpu_topology*> shared_topology() noexcept {
    static topology_reading::kept_topology kept;
    return kept.get([] { return load_topology(); });
}

/// What parts of the library ask for this machine's topology by default.
struct host_topology {
    [[nodiscard]] result<cpu_topology> load() const noexcept {
        const result<const cpu_topology*> shared = shared_topology();
        if (!shared) return fail(shared);
        return **shared;
    }
};

} // namespace vm_accel::inline v0
