/// From a topology and a number of vCPUs to a CPU for each, with the reason.
///
/// Pure: no system call, no state, the same answer for the same question. The
/// policy decides an order of the CPUs; vCPUs take them one after another and
/// start again when there are more vCPUs than CPUs.
#pragma once

#include <vm_accel/core/fixed_text.hpp>
#include <vm_accel/core/result.hpp>
#include <vm_accel/topology/cpu_topology.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace vm_accel::inline v0 {

enum class vcpu_policy : std::uint8_t {
    compact,      ///< near each other: threads of a core, cores of a node, then the next node
    spread,       ///< far from each other: packages in turn, nodes in turn, cores in turn
    one_per_core, ///< near each other, but no core twice while another is free
};

[[nodiscard]] constexpr std::string_view name_of(vcpu_policy policy) noexcept {
    switch (policy) {
    case vcpu_policy::compact:
        return "compact";
    case vcpu_policy::spread:
        return "spread";
    case vcpu_policy::one_per_core:
        return "one per core";
    }
    return "unknown";
}

struct vcpu_request {
    unsigned vcpus = 0;
    vcpu_policy policy = vcpu_policy::compact;
    unsigned io_cpus = 0; ///< CPUs to leave for the VMM's I/O threads
};

/// Where one vCPU goes. All numbers are the operating system's.
struct vcpu_assignment {
    unsigned vcpu = 0;
    unsigned cpu = 0;
    unsigned core = 0;
    unsigned package = 0;
    unsigned node = no_index; ///< no_index if the CPU's node is not known
    bool shared = false;      ///< another vCPU of this plan has the same CPU
    fixed_text<120> reason{};

    friend bool operator==(const vcpu_assignment&, const vcpu_assignment&) = default;
};

struct vcpu_plan {
    vcpu_policy policy = vcpu_policy::compact;
    std::vector<vcpu_assignment> assignments{}; ///< by vCPU
    std::vector<unsigned> io_cpus{};            ///< the CPUs left for I/O, ascending
    unsigned cpus_available = 0;                ///< for vCPUs, so without io_cpus
    bool described = false;                     ///< planned on a description, not this system

    friend bool operator==(const vcpu_plan&, const vcpu_plan&) = default;

    [[nodiscard]] bool overcommitted() const noexcept {
        return assignments.size() > cpus_available;
    }
};

namespace vcpu_planning {

/// What CPUs are sorted by; the smaller comes first.
using sort_key = std::array<unsigned, 6>;

/// Where an object stands among its siblings.
struct ranks {
    std::vector<unsigned> node_in_package; ///< by node index
    std::vector<unsigned> core_in_node;    ///< by core index
};

[[nodiscard]] inline ranks rank_siblings(const cpu_topology& topology) {
    ranks out;
    std::vector<unsigned> cores_seen(topology.nodes.size() + 1, 0);
    std::vector<unsigned> nodes_seen(topology.packages.size() + 1, 0);
    out.node_in_package.assign(topology.nodes.size() + 1, no_index);
    for (const cpu_core& core : topology.cores) {
        const std::size_t node = std::min<std::size_t>(core.node, topology.nodes.size());
        const std::size_t package = std::min<std::size_t>(core.package, topology.packages.size());
        out.core_in_node.push_back(cores_seen[node]++);
        if (out.node_in_package[node] == no_index)
            out.node_in_package[node] = nodes_seen[package]++;
    }
    return out;
}

[[nodiscard]] inline sort_key key_of(const cpu_topology& topology, const ranks& rank,
                                     unsigned index, vcpu_policy policy) noexcept {
    const logical_cpu& cpu = topology.cpus[index];
    const unsigned slow = cpu.kind == cpu_kind::efficiency ? 1 : 0;
    const std::size_t node = std::min<std::size_t>(cpu.node, topology.nodes.size());
    switch (policy) {
    case vcpu_policy::compact:
        return {slow, cpu.package, cpu.node, cpu.core, cpu.smt_index, index};
    case vcpu_policy::one_per_core:
        return {cpu.smt_index, slow, cpu.package, cpu.node, cpu.core, index};
    case vcpu_policy::spread:
        return {cpu.smt_index, slow, rank.core_in_node[cpu.core], rank.node_in_package[node],
                cpu.package,   index};
    }
    return {index};
}

[[nodiscard]] inline std::vector<unsigned> order_of(const cpu_topology& topology,
                                                    vcpu_policy policy) {
    const ranks rank = rank_siblings(topology);
    std::vector<std::pair<sort_key, unsigned>> keyed;
    for (unsigned i = 0; i < topology.cpus.size(); ++i)
        keyed.emplace_back(key_of(topology, rank, i, policy), i);
    std::sort(keyed.begin(), keyed.end());
    std::vector<unsigned> order;
    for (const auto& [key, index] : keyed)
        order.push_back(index);
    return order;
}

/// Says why this CPU comes after the one that the vCPU before has.
[[nodiscard]] inline fixed_text<120> explain(const cpu_topology& topology, vcpu_policy policy,
                                             const logical_cpu& cpu, const logical_cpu* before) {
    fixed_text<120> text{name_of(policy)};
    text.append(": ");
    if (before == nullptr) {
        text.append(cpu.kind == cpu_kind::performance ? "the first performance core"
                                                      : "the first CPU in this order");
    } else if (before->core == cpu.core) {
        text.append("thread ").append_number(cpu.smt_index).append(" of the same core");
    } else if (cpu.kind == cpu_kind::efficiency && before->kind != cpu_kind::efficiency) {
        text.append("an efficiency core, the faster CPUs being used up");
    } else if (cpu.smt_index != 0 && policy != vcpu_policy::compact) {
        text.append("thread ").append_number(cpu.smt_index);
        text.append(" of a core whose other thread is taken, no core being free");
    } else if (cpu.package != before->package) {
        text.append(policy == vcpu_policy::spread
                        ? "a core of the next package in turn"
                        : "a core of the next package, the last being full");
    } else if (cpu.node != before->node) {
        text.append(policy == vcpu_policy::spread ? "a core of the next node in turn"
                                                  : "a core of the next node, the last being full");
    } else {
        text.append("the next core of the same node");
    }
    if (cpu.node != no_index)
        text.append(", node ").append_number(topology.nodes[cpu.node].os_index);
    return text;
}

} // namespace vcpu_planning

/// Plans a CPU for each vCPU. CPUs for I/O are taken first, from the far end of
/// the compact order, so efficiency cores and last threads serve I/O. More vCPUs
/// than CPUs is planned: the plan is then overcommitted() and each vCPU on a CPU
/// that others have says so. Errors: invalid_argument (no vCPU asked for),
/// not_initialized (a topology without CPUs), out_of_range (I/O takes every CPU).
[[nodiscard]] inline result<vcpu_plan> plan_vcpus(const cpu_topology& topology,
                                                  const vcpu_request& request) noexcept {
    using namespace vcpu_planning;
    if (request.vcpus == 0)
        return fail(errc::invalid_argument, "planning vCPUs: none asked for", "ask for at least 1");
    if (topology.empty())
        return fail(errc::not_initialized, "planning vCPUs: the topology has no CPU",
                    "load a topology first");
    if (request.io_cpus >= topology.cpus.size())
        return fail(errc::out_of_range,
                    fixed_text<160>{"planning vCPUs: "}
                        .append_number(request.io_cpus)
                        .append(" CPUs for I/O leave none of ")
                        .append_number(topology.cpus.size()),
                    "leave fewer CPUs for I/O");
    vcpu_plan plan;
    plan.policy = request.policy;
    plan.described = !topology.is_this_system();
    plan.cpus_available = static_cast<unsigned>(topology.cpus.size()) - request.io_cpus;

    const std::vector<unsigned> compact = order_of(topology, vcpu_policy::compact);
    std::vector<bool> for_io(topology.cpus.size(), false);
    for (unsigned i = 0; i < request.io_cpus; ++i) {
        const unsigned index = compact[compact.size() - 1 - i];
        for_io[index] = true;
        plan.io_cpus.push_back(topology.cpus[index].os_index);
    }
    std::sort(plan.io_cpus.begin(), plan.io_cpus.end());

    std::vector<unsigned> order = order_of(topology, request.policy);
    std::erase_if(order, [&](unsigned index) { return for_io[index]; });
    for (unsigned vcpu = 0; vcpu < request.vcpus; ++vcpu) {
        const std::size_t at = vcpu % order.size();
        const logical_cpu& cpu = topology.cpus[order[at]];
        vcpu_assignment to;
        to.vcpu = vcpu;
        to.cpu = cpu.os_index;
        to.core = topology.cores[cpu.core].os_index;
        to.package = topology.packages[cpu.package].os_index;
        if (cpu.node != no_index) to.node = topology.nodes[cpu.node].os_index;
        to.shared = request.vcpus > order.size() &&
                    (vcpu >= order.size() || vcpu + order.size() < request.vcpus);
        if (vcpu >= order.size()) {
            to.reason.append("shares CPU ").append_number(cpu.os_index).append(" with vCPU ");
            to.reason.append_number(at).append(": ").append_number(request.vcpus);
            to.reason.append(" vCPUs on ").append_number(order.size()).append(" CPUs");
        } else {
            to.reason = explain(topology, request.policy, cpu,
                                at == 0 ? nullptr : &topology.cpus[order[at - 1]]);
            if (to.shared) to.reason.append("; shared with later vCPUs");
        }
        plan.assignments.push_back(to);
    }
    return plan;
}

/// Prints one line for each vCPU, and one for what is special about the plan.
template <class Stream>
    requires requires(Stream& out, std::string_view text) { out << text; }
Stream& operator<<(Stream& out, const vcpu_plan& plan) {
    fixed_text<200> line;
    for (const vcpu_assignment& to : plan.assignments) {
        line.clear();
        line.append("  vCPU ").append_number(to.vcpu).append(" -> CPU ").append_number(to.cpu);
        line.append(" (").append(to.reason.view()).append(")\n");
        out << line.view();
    }
    line.clear();
    if (!plan.io_cpus.empty()) line.append("  left for I/O: CPUs");
    for (const unsigned cpu : plan.io_cpus)
        line.append(" ").append_number(cpu);
    if (!plan.io_cpus.empty()) line.append("\n");
    if (plan.overcommitted()) {
        line.append("  more vCPUs (").append_number(plan.assignments.size());
        line.append(") than CPUs (").append_number(plan.cpus_available).append(")\n");
    }
    return out << line.view(), out;
}

} // namespace vm_accel::inline v0
