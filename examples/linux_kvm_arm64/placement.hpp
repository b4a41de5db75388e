/// The report's lines about threads: where each is, why, and what it was given besides.
#pragma once

#include "vcpu_threads.hpp"

#include <vm_accel/affinity/thread_pin.hpp>
#include <vm_accel/affinity/vcpu_plan.hpp>
#include <vm_accel/numa/access_tracking.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace linux_vmm {

/// What was asked for a thread besides its place, and what came of it; all empty if nothing was.
struct thread_wishes {
    std::string requested, given, refused;
};

/// One thread of the VMM.
struct placed_thread {
    std::string thread;
    std::string planned;            ///< CPUs, as "0-1,3"
    std::string cpus;               ///< the same, read back from the kernel; empty: not pinned
    std::string reason;             ///< of the plan, or why it is not pinned
    std::optional<unsigned> node{}; ///< of the guest; of a vCPU
    thread_wishes wishes{};
    vm_accel::local_access_rate accesses{}; ///< of a vCPU, to the memory of its guest node
};

[[nodiscard]] inline std::string list_of(const vm_accel::os::cpu_set& cpus) {
    vm_accel::fixed_text<160> text;
    return std::string{append_list(text, cpus).view()};
}

[[nodiscard]] inline thread_wishes describe(const vm_accel::scheduling_outcome& got) {
    thread_wishes out;
    const auto add = [](std::string& to, std::string_view what) {
        to += to.empty() ? "" : "; ";
        to += what;
    };
    const auto refused = [&](const std::optional<vm_accel::error>& why) {
        if (why) add(out.refused, why->cause.view());
    };
    if (got.requested.priority) {
        vm_accel::fixed_text<64> text;
        add(out.requested, append_priority(text, *got.requested.priority).view());
        if (got.priority.given) add(out.given, got.priority.given->text.view());
        refused(got.priority.failure);
    }
    if (got.requested.sharing != vm_accel::core_sharing::anyone) {
        add(out.requested, name_of(got.requested.sharing));
        if (got.sharing.as_requested()) add(out.given, name_of(got.requested.sharing));
        refused(got.sharing.failure);
    }
    return out;
}

/// The thread as it is planned, and then what became of it.
[[nodiscard]] inline placed_thread describe(std::string name, const vm_accel::os::cpu_set& planned,
                                            std::string_view reason,
                                            const vm_accel::thread_pin* pin) {
    placed_thread out{std::move(name), list_of(planned), {}, std::string{reason}, {}, {}, {}};
    if (pin == nullptr) return out;
    out.wishes = describe(pin->scheduling);
    if (pin->failure) {
        out.reason = pin->failure->cause.view();
    } else {
        out.cpus = list_of(pin->actual);
    }
    return out;
}

/// `guest_nodes`: by vCPU.
[[nodiscard]] inline std::vector<placed_thread>
describe_vcpus(const vm_accel::vcpu_plan& plan, const std::vector<vm_accel::vcpu_pin>& pins,
               const std::vector<std::uint32_t>& guest_nodes) {
    std::vector<placed_thread> out;
    for (const vm_accel::vcpu_assignment& planned : plan.assignments) {
        const vm_accel::vcpu_pin* found = nullptr;
        for (const vm_accel::vcpu_pin& pin : pins)
            if (pin.vcpu == planned.vcpu) found = &pin;
        out.push_back(describe(thread_name(planned.vcpu), vm_accel::os::cpu_set::of(planned.cpu),
                               planned.reason.view(), found));
        out.back().node = guest_nodes[planned.vcpu];
    }
    return out;
}

[[nodiscard]] inline std::vector<placed_thread>
describe_threads(const std::vector<vm_accel::vmm_thread_pin>& pins) {
    std::vector<placed_thread> out;
    for (const vm_accel::vmm_thread_pin& pin : pins)
        out.push_back(
            describe(std::string{pin.name.view()}, pin.requested, pin.reason.view(), &pin));
    return out;
}

} // namespace linux_vmm
