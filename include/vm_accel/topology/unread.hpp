/// The answers of load.hpp where the library cannot read a topology: the reason, and
/// what to do instead.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/topology_source.hpp>
#include <vm_accel/topology/cpu_topology.hpp>
#include <vm_accel/topology/loading.hpp>

#include <string_view>

#if !VM_ACCEL_HAS_HWLOC

namespace vm_accel::inline v0 {

namespace topology_reading {

[[nodiscard]] inline tl::unexpected<error> needs_hwloc(std::string_view what) noexcept {
    return fail(errc::unsupported,
                fixed_text<160>{what}.append(": this program was built without hwloc"),
                "use make_topology(), or fill a cpu_topology yourself");
}

#if !VM_ACCEL_READS_SYSTEM_TOPOLOGY
/// Nobody here can tell.
[[nodiscard]] inline result<cpu_topology> read_this_machine(topology_options) noexcept {
    return needs_hwloc("this machine");
}
#endif

} // namespace topology_reading

/// See hwloc_load.hpp. Error: unsupported.
[[nodiscard]] inline result<cpu_topology> topology_from_synthetic(std::string_view) noexcept {
    return topology_reading::needs_hwloc("synthetic topology");
}
[[nodiscard]] inline result<cpu_topology> topology_from_xml(std::string_view) noexcept {
    return topology_reading::needs_hwloc("topology XML");
}
[[nodiscard]] inline result<cpu_topology> topology_from_xml_file(const char*) noexcept {
    return topology_reading::needs_hwloc("topology XML");
}

} // namespace vm_accel::inline v0

#endif
