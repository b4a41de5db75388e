/// Where the threads of a VMM run that run no vCPU: I/O, the emulator, a control socket.
#pragma once

#include <vm_accel/affinity/cpu_order.hpp>
#include <vm_accel/affinity/vcpu_plan.hpp>
#include <vm_accel/affinity/vcpu_request.hpp>
#include <vm_accel/core/fixed_text.hpp>
#include <vm_accel/os/cpu_set.hpp>
#include <vm_accel/topology/cpu_topology.hpp>

namespace vm_accel::inline v0 {

struct vmm_thread_cpus {
    os::cpu_set cpus{}; ///< by the operating system's numbers; never empty for a made plan
    fixed_text<160> reason{};
};

/// The CPUs that a plan left for I/O; else those that no vCPU has and that the request lets the
/// VM use; else, every such CPU being a vCPU's, all of them. The scheduler chooses among them.
/// Pure; `plan` must be of that topology and request.
[[nodiscard]] inline vmm_thread_cpus cpus_for_vmm_threads(const cpu_topology& topology,
                                                          const vcpu_request& request,
                                                          const vcpu_plan& plan) noexcept {
    vmm_thread_cpus out;
    if (!plan.io_cpus.empty()) {
        for (const unsigned cpu : plan.io_cpus)
            out.cpus.insert(cpu);
        out.reason = "the CPUs that the plan left for I/O";
        return out;
    }
    os::cpu_set usable, taken;
    for (const unsigned index : vcpu_planning::find_usable(topology, request).cpus)
        usable.insert(topology.cpus[index].os_index);
    for (const vcpu_assignment& to : plan.assignments)
        taken.insert(to.cpu);
    out.cpus = usable - taken;
    out.reason = "the CPUs that no vCPU has, none being left for I/O";
    if (!out.cpus.empty()) return out;
    out.cpus = usable;
    out.reason = "shared with vCPUs, which have every CPU";
    return out;
}

} // namespace vm_accel::inline v0
