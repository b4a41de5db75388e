/// From a topology and a number of vCPUs to a CPU for each, with the reason.
///
/// Pure: no system call, no state, the same answer for the same question. Some
/// CPUs are left out (excluded, reserved, for I/O); the policy decides an order of
/// the others; guest cores and sockets take them one after another and start again
/// when there are more vCPUs than CPUs.
#pragma once

#include <vm_accel/affinity/cpu_order.hpp>
#include <vm_accel/affinity/cpu_picker.hpp>
#include <vm_accel/affinity/pin_reason.hpp>
#include <vm_accel/affinity/vcpu_plan.hpp>
#include <vm_accel/affinity/vcpu_request.hpp>
#include <vm_accel/core/fixed_text.hpp>
#include <vm_accel/core/result.hpp>
#include <vm_accel/topology/cpu_topology.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace vm_accel::inline v0 {

/// No hypervisor has more vCPUs in one machine.
inline constexpr unsigned max_planned_vcpus = 65536;

namespace vcpu_planning {

/// The guest's shape with every 0 replaced.
[[nodiscard]] inline guest_topology complete(const cpu_topology& topology,
                                             const vcpu_request& request,
                                             const std::vector<unsigned>& usable) {
    guest_topology guest = request.guest;
    // How many there must be, when there are so many of the others.
    const auto needed = [&](unsigned some, unsigned others) {
        const std::uint64_t product = std::uint64_t{some} * others;
        return static_cast<unsigned>((request.vcpus + product - 1) / product);
    };
    if (guest.sockets == 0)
        guest.sockets =
            guest.cores != 0 && guest.threads != 0 ? needed(guest.cores, guest.threads) : 1;
    if (guest.threads == 0 && guest.cores != 0) guest.threads = needed(guest.sockets, guest.cores);
    if (guest.threads == 0 && request.policy == vcpu_policy::siblings_together) {
        std::vector<unsigned> threads(topology.cores.size(), 0);
        for (const unsigned i : usable)
            guest.threads = std::max(guest.threads, ++threads[topology.cpus[i].core]);
    }
    if (guest.threads == 0) guest.threads = 1;
    if (guest.cores == 0) guest.cores = needed(guest.sockets, guest.threads);
    return guest;
}

/// What is wrong with a question, as far as the numbers tell.
[[nodiscard]] inline result<> check(const cpu_topology& topology,
                                    const vcpu_request& request) noexcept {
    if (request.vcpus == 0)
        return fail(errc::invalid_argument, "planning vCPUs: none asked for", "ask for at least 1");
    const guest_topology& guest = request.guest;
    if (std::max({request.vcpus, guest.sockets, guest.cores, guest.threads}) > max_planned_vcpus)
        return fail(errc::out_of_range,
                    fixed_text<160>{"planning vCPUs: more than "}.append_number(max_planned_vcpus),
                    "ask for fewer vCPUs, sockets, cores or threads");
    const std::uint64_t shown = std::uint64_t{guest.sockets} * guest.cores * guest.threads;
    if (shown != 0 && shown < request.vcpus)
        return fail(errc::invalid_argument,
                    fixed_text<160>{"planning vCPUs: the guest's sockets, cores and threads are "}
                        .append_number(shown)
                        .append(", the vCPUs ")
                        .append_number(request.vcpus),
                    "give the guest more cores, or 0 for as many as it takes");
    if (topology.empty())
        return fail(errc::not_initialized, "planning vCPUs: the topology has no CPU",
                    "load a topology first");
    return {};
}

inline void note_left_out(const usable_cpus& usable, const vcpu_request& request,
                          unsigned device_node, vcpu_plan& plan) {
    fixed_text<160> text;
    if (!usable.excluded.empty()) {
        text.append("excluded by the request: CPUs ");
        plan.notes.push_back(append_list(text, usable.excluded));
    }
    text.clear();
    if (!usable.gone.empty()) {
        text.append("offline or no longer in the process's cpuset: CPUs ");
        plan.notes.push_back(append_list(text, usable.gone));
    }
    text.clear();
    if (!usable.left_alone.empty()) {
        text.append("isolated, so left alone: CPUs ");
        plan.notes.push_back(append_list(text, usable.left_alone));
    }
    if (usable.only_isolated)
        plan.notes.emplace_back(
            "every CPU that may be used is isolated, so isolated CPUs are used");
    text.clear();
    if (request.near_node != no_index && device_node == no_index) {
        text.append("node ").append_number(request.near_node);
        plan.notes.push_back(text.append(" is not one that this process may use: none is near"));
    }
}

inline void note_kinds(const cpu_topology& topology, const std::vector<unsigned>& order,
                       vcpu_plan& plan) {
    if (plan.policy != vcpu_policy::performance_first) return;
    const bool told = std::any_of(order.begin(), order.end(), [&](unsigned i) {
        return topology.cpus[i].kind != cpu_kind::unknown;
    });
    if (!told)
        plan.notes.emplace_back("the machine does not tell faster cores from others: one per core");
}

/// Says what of the guest's shape does not lie on the host's.
inline void note_shape(unsigned apart, unsigned without_home, vcpu_plan& plan) {
    fixed_text<160> text;
    if (apart != 0) {
        text.append_number(apart).append(apart == 1 ? " guest core has" : " guest cores have");
        plan.notes.push_back(text.append(" threads on different host cores"));
    }
    text.clear();
    if (without_home != 0) {
        text.append_number(without_home);
        text.append(without_home == 1 ? " guest socket fits" : " guest sockets fit");
        plan.notes.push_back(text.append(" no single node or package"));
    }
}

/// Gives CPUs to vCPUs, guest core by guest core, and says why.
class assigner {
public:
    /// The arguments must outlive it. `order`: at least one CPU.
    assigner(const cpu_topology& topology, const vcpu_request& request, unsigned device_node,
             const std::vector<unsigned>& order, vcpu_plan& plan)
        : topology_(topology),
          request_(request),
          device_node_(device_node),
          cpu_count_(order.size()),
          plan_(plan),
          picker_(topology, order),
          first_user_(topology.cpus.size(), no_index) {}

    void assign_all() {
        const guest_topology& guest = plan_.guest;
        const std::uint64_t of_a_socket = std::uint64_t{guest.cores} * guest.threads;
        plan_.assignments.reserve(request_.vcpus);
        while (next_ < request_.vcpus) {
            if (guest.sockets > 1 && next_ % of_a_socket == 0)
                open_socket(static_cast<unsigned>(
                    std::min<std::uint64_t>(of_a_socket, request_.vcpus - next_)));
            assign_core(std::min(guest.threads, request_.vcpus - next_));
        }
        note_shape(apart_, without_home_, plan_);
    }

private:
    /// How many vCPUs of a guest core are to be on one host core.
    [[nodiscard]] unsigned together(unsigned threads) const noexcept {
        return request_.policy == vcpu_policy::one_per_core ? 1 : threads;
    }

    void open_socket(unsigned vcpus) {
        const unsigned size = together(std::min(plan_.guest.threads, vcpus));
        const bool whole = request_.policy == vcpu_policy::siblings_together ||
                           request_.policy == vcpu_policy::one_per_core;
        home_ = picker_.find_home((vcpus + size - 1) / size, size, whole);
        without_home_ += home_.is_anywhere() ? 1u : 0u;
        socket_opens_ = !home_.is_anywhere();
    }

    void assign_core(unsigned threads) {
        const bool whole = request_.policy == vcpu_policy::siblings_together;
        const logical_cpu* first = nullptr;
        bool apart = false;
        for (unsigned left = threads; left != 0; left -= together(threads)) {
            picker_.take(together(threads), home_, whole, [&](unsigned index) {
                const logical_cpu& cpu = topology_.cpus[index];
                if (first == nullptr) first = &cpu;
                apart = apart || cpu.core != first->core;
                assign(index, apart && together(threads) > 1 && cpu.core != first->core);
            });
        }
        apart_ += apart ? 1u : 0u;
    }

    void assign(unsigned index, bool apart) {
        const logical_cpu& cpu = topology_.cpus[index];
        vcpu_assignment to;
        to.vcpu = next_++;
        to.cpu = cpu.os_index;
        to.core = topology_.cores[cpu.core].os_index;
        to.package = topology_.packages[cpu.package].os_index;
        if (cpu.node != no_index) to.node = topology_.nodes[cpu.node].os_index;
        if (const unsigned other = first_user_[index]; other != no_index) {
            to.shared = true;
            to.reason.append("shares CPU ").append_number(cpu.os_index).append(" with vCPU ");
            to.reason.append_number(other).append(": ").append_number(request_.vcpus);
            to.reason.append(" vCPUs on ").append_number(cpu_count_).append(" CPUs");
            if (!plan_.assignments[other].shared)
                plan_.assignments[other].reason.append("; shared with later vCPUs");
            plan_.assignments[other].shared = true;
        } else {
            first_user_[index] = to.vcpu;
            to.reason = explain(topology_, request_, cpu, look(cpu, apart));
        }
        plan_.assignments.push_back(to);
        before_ = &cpu;
        socket_opens_ = false;
    }

    [[nodiscard]] pick look(const logical_cpu& cpu, bool apart) const {
        pick how;
        how.before = before_;
        how.core_was_used = picker_.is_used(cpu.core);
        how.opens_socket = socket_opens_;
        how.at_home = !home_.is_anywhere();
        how.apart = apart;
        how.device_node = device_node_;
        if (before_ == nullptr) return how;
        if (slowness_of(cpu) > slowness_of(*before_)) {
            how.faster_left = picker_.has_faster(cpu, false);
            how.faster_cores_left = picker_.has_faster(cpu, true);
        }
        if (cpu.package != before_->package) {
            how.last_full = !picker_.has_free({no_index, before_->package});
        } else if (cpu.node != before_->node) {
            how.last_full = !picker_.has_free({before_->node, no_index});
        }
        return how;
    }

    const cpu_topology& topology_;
    const vcpu_request& request_;
    unsigned device_node_;
    std::size_t cpu_count_;
    vcpu_plan& plan_;
    cpu_picker picker_;
    std::vector<unsigned> first_user_; ///< vCPU by CPU index
    const logical_cpu* before_ = nullptr;
    home home_{};
    bool socket_opens_ = false;
    unsigned next_ = 0;         ///< vCPU
    unsigned apart_ = 0;        ///< guest cores on several host cores
    unsigned without_home_ = 0; ///< guest sockets
};

} // namespace vcpu_planning

/// Plans a CPU for each vCPU. What the topology lacks is never used: offline CPUs
/// and those outside the process's cpuset and binding are not in it. CPUs for I/O
/// are taken first, so that vCPUs are never on them. More vCPUs than CPUs is planned:
/// the plan is then overcommitted() and each vCPU on a CPU that others have says so.
/// Errors: invalid_argument (no vCPU asked for, or more than the guest's topology
/// has), not_initialized (a topology without CPUs), unavailable (the request excludes every
/// CPU), out_of_range (I/O takes every CPU, or a number beyond max_planned_vcpus).
[[nodiscard]] inline result<vcpu_plan> plan_vcpus(const cpu_topology& topology,
                                                  const vcpu_request& request) noexcept {
    using namespace vcpu_planning;
    if (const result<> sound = check(topology, request); !sound) return fail(sound);
    usable_cpus usable = find_usable(topology, request);
    if (usable.cpus.empty())
        return fail(errc::unavailable,
                    usable.gone.empty() ? "planning vCPUs: the request excludes every CPU"
                                        : "planning vCPUs: every CPU is excluded or gone",
                    "exclude fewer, or allow the process more");
    const unsigned device_node =
        request.near_node == no_index ? no_index : topology.find_node(request.near_node);
    vcpu_plan plan;
    plan.policy = request.policy;
    plan.described = !topology.is_this_system();
    note_left_out(usable, request, device_node, plan);

    const std::size_t before_io = usable.cpus.size();
    for (const unsigned index : take_for_io(topology, request, device_node, usable.cpus))
        plan.io_cpus.push_back(topology.cpus[index].os_index);
    std::sort(plan.io_cpus.begin(), plan.io_cpus.end());
    if (usable.cpus.empty())
        return fail(
            errc::out_of_range,
            fixed_text<160>{"planning vCPUs: what I/O is to have leaves no CPU of "}.append_number(
                before_io),
            "leave fewer CPUs for I/O");
    plan.cpus_available = static_cast<unsigned>(usable.cpus.size());
    plan.guest = complete(topology, request, usable.cpus);

    const ranks rank = rank_siblings(topology, usable.cpus);
    std::vector<unsigned> order = std::move(usable.cpus);
    sort_by(order, [&](unsigned index) {
        return key_of(topology, rank, index, request.policy, device_node, request.isolated);
    });
    note_kinds(topology, order, plan);
    assigner{topology, request, device_node, order, plan}.assign_all();
    return plan;
}

} // namespace vm_accel::inline v0
