/// The planner's answer: a CPU for each vCPU with the reason, as plain data.
#pragma once

#include <vm_accel/affinity/vcpu_request.hpp>
#include <vm_accel/core/fixed_text.hpp>

#include <string_view>
#include <vector>

namespace vm_accel::inline v0 {

/// Where one vCPU goes. All numbers are the operating system's.
struct vcpu_assignment {
    unsigned vcpu = 0;
    unsigned cpu = 0;
    unsigned core = 0;
    unsigned package = 0;
    unsigned node = no_index; ///< no_index if the CPU's node is not known
    bool shared = false;      ///< another vCPU of this plan has the same CPU
    fixed_text<200> reason{};

    friend bool operator==(const vcpu_assignment&, const vcpu_assignment&) = default;
};

struct vcpu_plan {
    vcpu_policy policy = vcpu_policy::compact;
    std::vector<vcpu_assignment> assignments{}; ///< by vCPU
    std::vector<unsigned> io_cpus{};            ///< the CPUs left for I/O, ascending
    unsigned cpus_available = 0;                ///< for vCPUs, so without io_cpus
    bool described = false;                     ///< planned on a description, not this system
    guest_topology guest{};                     ///< as planned for: no number is 0
    /// What of the request could not be had or was not used, a sentence each.
    std::vector<fixed_text<160>> notes{};

    friend bool operator==(const vcpu_plan&, const vcpu_plan&) = default;

    [[nodiscard]] bool overcommitted() const noexcept {
        return assignments.size() > cpus_available;
    }
};

/// Prints one line for each vCPU, and one for what is special about the plan.
template <class Stream>
    requires requires(Stream& out, std::string_view text) { out << text; }
Stream& operator<<(Stream& out, const vcpu_plan& plan) {
    fixed_text<256> line;
    for (const vcpu_assignment& to : plan.assignments) {
        line.clear();
        line.append("  vCPU ").append_number(to.vcpu).append(" -> CPU ").append_number(to.cpu);
        line.append(" (").append(to.reason.view()).append(")\n");
        out << line.view();
    }
    if (!plan.io_cpus.empty()) out << std::string_view{"  left for I/O: CPUs"};
    for (const unsigned cpu : plan.io_cpus) {
        line.clear();
        out << line.append(" ").append_number(cpu).view();
    }
    if (!plan.io_cpus.empty()) out << std::string_view{"\n"};
    for (const fixed_text<160>& note : plan.notes) {
        line.clear();
        out << line.append("  ").append(note.view()).append("\n").view();
    }
    line.clear();
    if (plan.overcommitted()) {
        line.append("  more vCPUs (").append_number(plan.assignments.size());
        line.append(") than CPUs (").append_number(plan.cpus_available).append(")\n");
    }
    return out << line.view(), out;
}

} // namespace vm_accel::inline v0
