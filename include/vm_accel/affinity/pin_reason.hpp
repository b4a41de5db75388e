/// The sentence that says why a vCPU is where it is.
///
/// Each says what is true of the CPU and of the one before it; VMMs find it in
/// vcpu_assignment::reason.
#pragma once

#include <vm_accel/affinity/vcpu_request.hpp>
#include <vm_accel/core/fixed_text.hpp>
#include <vm_accel/topology/cpu_topology.hpp>

#include <string_view>

namespace vm_accel::inline v0::vcpu_planning {

/// What is known about one pick, besides the CPU.
struct pick {
    const logical_cpu* before = nullptr; ///< the CPU of the vCPU before; null for the first
    bool last_full = true;               ///< no CPU is free where that one is (node or package)
    bool core_was_used = false;          ///< another guest core is on a thread of this core
    bool opens_socket = false;           ///< the first vCPU of a guest socket that has a home
    bool at_home = false;                ///< its guest socket has a home
    bool apart = false;                  ///< not on the core of its guest core's first thread
    bool faster_left = false;            ///< a faster CPU was free
    bool faster_cores_left = false;      ///< on a core that nobody uses
    unsigned device_node = no_index;     ///< the node (index) to be near, if any
};

[[nodiscard]] inline fixed_text<200> explain(const cpu_topology& topology,
                                             const vcpu_request& request, const logical_cpu& cpu,
                                             const pick& how) {
    const logical_cpu* const before = how.before;
    const bool in_turn = request.policy == vcpu_policy::spread;
    const bool isolated_first = request.isolated == isolated_use::first;
    const auto next = [&](std::string_view what) {
        fixed_text<80> said{"a core of the next "};
        said.append(what);
        return said.append(in_turn         ? " in turn"
                           : how.last_full ? ", the last being full"
                                           : ", the last having no whole core free");
    };
    fixed_text<200> text{name_of(request.policy)};
    text.append(": ");
    if (before != nullptr && before->core == cpu.core) {
        text.append("thread ").append_number(cpu.smt_index).append(" of the same core");
    } else if (how.apart) {
        text.append("apart from its guest core's other threads, no core having room for all");
    } else if (how.opens_socket && before != nullptr) {
        text.append("a guest socket begins, with room for all of it");
    } else if (before == nullptr) {
        text.append(cpu.kind == cpu_kind::performance && cpu.faster_kinds == 0
                        ? "the first performance core"
                        : "the first CPU in this order");
    } else if (isolated_first && before->isolated && !cpu.isolated) {
        text.append("not isolated, the isolated CPUs being used up");
    } else if (slowness_of(cpu) > slowness_of(*before)) {
        text.append(cpu.kind == cpu_kind::efficiency ? "an efficiency core" : "a slower core");
        text.append(!how.faster_left         ? ", the faster CPUs being used up"
                    : !how.faster_cores_left ? ", every faster core being in use"
                                             : "");
    } else if (how.core_was_used) {
        text.append("thread ").append_number(cpu.smt_index);
        text.append(" of a core whose other thread is taken");
        if (request.policy != vcpu_policy::compact) {
            text.append(isolated_first && cpu.isolated ? ", no isolated core"
                        : request.policy == vcpu_policy::performance_first &&
                                cpu.kind == cpu_kind::performance && cpu.faster_kinds == 0
                            ? ", no faster core"
                            : ", no core");
            text.append(how.at_home ? " of the guest socket's being free" : " being free");
        }
    } else if (cpu.package != before->package) {
        text.append(next("package").view());
    } else if (cpu.node != before->node) {
        text.append(next("node").view());
    } else {
        text.append(in_turn ? "another core of the same node" : "the next core of the same node");
    }
    if (cpu.node != no_index) {
        text.append(", node ").append_number(topology.nodes[cpu.node].os_index);
        if (how.device_node == cpu.node) {
            text.append(", where the device is");
        } else if (how.device_node != no_index) {
            text.append(", at distance ")
                .append_number(topology.distance(how.device_node, cpu.node));
        }
    }
    if (cpu.isolated) text.append(", isolated");
    return text;
}

} // namespace vm_accel::inline v0::vcpu_planning
