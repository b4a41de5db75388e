/// Bandwidths as hwloc's memory attributes: what was measured once is kept in hwloc's own
/// XML, and known at the next start without measuring.
///
/// Empty where the library is used without hwloc.
#pragma once

#include <vm_accel/os/topology_source.hpp>

#if VM_ACCEL_HAS_HWLOC

#include <vm_accel/core/result.hpp>
#include <vm_accel/topology/cpu_topology.hpp>
#include <vm_accel/topology/hwloc_load.hpp>

#include <hwloc.h>

#include <cerrno>
#include <cstddef>
#include <string>
#include <string_view>

namespace vm_accel::inline v0 {

/// This machine in hwloc's XML, with numa_node::bandwidth of every node of `measured` as
/// attribute "Bandwidth", for accesses by the CPUs near the node. lstopo and other users
/// of hwloc read it too. Errors: those of load_topology(); system_failure (hwloc refuses a
/// value, or cannot export).
[[nodiscard]] inline result<std::string> record_bandwidths(const cpu_topology& measured) noexcept {
    const topology_reading::hwloc_handle handle;
    if (handle.get() == nullptr) return topology_reading::no_memory();
    const result<cpu_topology> loaded =
        topology_reading::read(handle.get(), "this machine", {.honour_binding = false});
    if (!loaded) return fail(loaded);
    for (const numa_node& node : measured.nodes) {
        const hwloc_obj_t object = hwloc_get_numanode_obj_by_os_index(handle.get(), node.os_index);
        if (node.bandwidth == 0 || object == nullptr) continue;
        const bool has_cpus = object->cpuset != nullptr && hwloc_bitmap_iszero(object->cpuset) == 0;
        hwloc_location by{};
        by.type = HWLOC_LOCATION_TYPE_CPUSET;
        by.location.cpuset = has_cpus ? object->cpuset : hwloc_get_root_obj(handle.get())->cpuset;
        if (hwloc_memattr_set_value(handle.get(), HWLOC_MEMATTR_ID_BANDWIDTH, object, &by, 0,
                                    node.bandwidth) != 0)
            return fail(
                errc::system_failure,
                fixed_text<160>{"hwloc takes no bandwidth for node "}.append_number(node.os_index),
                "use an hwloc with memory attributes (2.3)", errno);
    }
    char* text = nullptr;
    int bytes = 0;
    if (hwloc_topology_export_xmlbuffer(handle.get(), &text, &bytes, 0) != 0)
        return fail(errc::system_failure, "hwloc cannot export this machine", "free memory", errno);
    std::string xml{text, bytes > 0 ? static_cast<std::size_t>(bytes - 1) : 0};
    hwloc_free_xmlbuffer(handle.get(), text);
    return xml;
}

/// Notes the bandwidths of such an XML in a topology; nodes that it does not know keep
/// theirs. Errors: those of topology_from_xml(); mismatch (a node is not there, or has
/// less or more memory by an eighth: another machine). The topology is then unchanged.
[[nodiscard]] inline result<> recall_bandwidths(cpu_topology& topology,
                                                std::string_view xml) noexcept {
    const result<cpu_topology> recorded = topology_from_xml(xml);
    if (!recorded) return fail(recorded);
    cpu_topology known = topology;
    for (numa_node& node : known.nodes) {
        const unsigned at = recorded->find_node(node.os_index);
        const std::uint64_t bytes = at == no_index ? 0 : recorded->nodes[at].memory_bytes;
        const std::uint64_t off =
            bytes > node.memory_bytes ? bytes - node.memory_bytes : node.memory_bytes - bytes;
        if (at == no_index || off > node.memory_bytes / 8)
            return fail(errc::mismatch,
                        fixed_text<160>{"bandwidths: node "}
                            .append_number(node.os_index)
                            .append(" is not as it was when they were recorded"),
                        "measure_bandwidths() again");
        if (recorded->nodes[at].bandwidth != 0) node.bandwidth = recorded->nodes[at].bandwidth;
    }
    topology = known;
    return {};
}

} // namespace vm_accel::inline v0

#endif
