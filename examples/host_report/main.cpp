/// What this host offers a VMM: its topology, a plan for some vCPUs with the
/// reason for each, what threads are given besides, and where the kernel puts guest RAM.
///
///     host_report [VCPUS] [POLICY] [MACHINE]
///
/// POLICY is compact, spread, one-per-core, siblings-together or performance-first.
/// MACHINE is a synthetic description such as "package:2 numa:2 core:4 pu:2": the
/// plan is then made for that machine, and no RAM is allocated.
#include <vm_accel/affinity/affinity.hpp>
#include <vm_accel/affinity/fixed_platform.hpp>
#include <vm_accel/affinity/native_platform.hpp>
#include <vm_accel/numa/local_first.hpp>
#include <vm_accel/numa/numa_allocator.hpp>
#include <vm_accel/topology/load.hpp>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <iostream>
#include <optional>
#include <string>
#include <string_view>
#include <thread>

using namespace vm_accel;

namespace {

int give_up(const error& e) {
    std::cerr << "host_report: " << e << '\n';
    return 1;
}

/// The policy of that name, written with hyphens.
std::optional<vcpu_policy> policy_called(std::string_view name) {
    for (const vcpu_policy policy :
         {vcpu_policy::compact, vcpu_policy::spread, vcpu_policy::one_per_core,
          vcpu_policy::siblings_together, vcpu_policy::performance_first}) {
        std::string spelled{name_of(policy)};
        std::replace(spelled.begin(), spelled.end(), ' ', '-');
        if (spelled == name) return policy;
    }
    return std::nullopt;
}

/// Topology and plan: the same for a real machine and for a described one.
template <affinity_platform Platform>
int show_plan(affinity<Platform>& vcpus, unsigned count, vcpu_policy policy) {
    if (const result<> done = vcpus.init(); !done) return give_up(done.error());
    std::cout << "Topology: " << vcpus.topology();
    const result<vcpu_plan> plan = vcpus.plan(count, policy);
    if (!plan) return give_up(plan.error());
    std::cout << "Plan for " << count << " vCPUs, " << name_of(policy) << ":\n" << *plan;
    return 0;
}

/// What a thread is given here besides a place: each wish by a thread of its own.
template <affinity_platform Platform>
int show_scheduling(affinity<Platform>& vcpus) {
    if (const auto done = vcpus.configure(1); !done) return give_up(done.error());
    const scheduling_request wishes[] = {
        {os::thread_priority::fifo(1), {}, core_sharing::anyone},
        {os::thread_priority::high(), {}, core_sharing::anyone},
        {{}, os::utilization_clamp{512, 1024}, core_sharing::anyone},
        {{}, {}, core_sharing::this_vm},
    };
    std::cout << "Threads, besides their place:\n";
    for (const scheduling_request& wish : wishes) {
        std::thread{[&] { static_cast<void>(vcpus.place_vmm_thread("asking", wish)); }}.join();
        const scheduling_outcome got = vcpus.vmm_threads().back().scheduling;
        if (const result<> refused = got.refusal(); !refused) {
            std::cout << "  refused: " << refused.error() << '\n';
        } else {
            fixed_text<200> given;
            std::cout << "  given: " << append_scheduling(given, got).view().substr(2) << '\n';
        }
    }
    return 0;
}

/// 16 MiB on each node, given their pages by a thread there.
int show_memory(const cpu_topology& topology) {
    numa_allocator<local_first> memory;
    if (const result<> done = memory.init(topology); !done) return give_up(done.error());
    guest_ram_request request;
    for (const unsigned node : memory.nodes_in_use())
        request.split.push_back({std::uint64_t{16} << 20, node});
    request.prefault_threads = static_cast<unsigned>(request.split.size());
    const result<ram_region> region = memory.allocate(request);
    if (!region) return give_up(region.error());
    const result<placement_report> placement = region->placement();
    if (!placement) return give_up(placement.error());
    std::cout << "Guest RAM, as the kernel reports it:\n" << *placement;
    return placement->as_planned() ? 0 : 1;
}

} // namespace

int main(int argc, char** argv) {
    unsigned count = 4;
    const std::string_view number = argc > 1 ? argv[1] : "4";
    const std::string_view wanted = argc > 2 ? argv[2] : "compact";
    if (std::from_chars(number.begin(), number.end(), count).ptr != number.end()) {
        std::cerr << "usage: host_report [VCPUS] [POLICY] [MACHINE]\n";
        return 2;
    }
    const std::optional<vcpu_policy> found = policy_called(wanted);
    if (!found) {
        std::cerr << "host_report: there is no policy \"" << wanted << "\"\n";
        return 2;
    }
    const vcpu_policy policy = *found;
    if (argc > 3) {
        const result<cpu_topology> described = topology_from_synthetic(argv[3]);
        if (!described) return give_up(described.error());
        affinity<fixed_platform> vcpus{fixed_platform{*described}};
        return show_plan(vcpus, count, policy);
    }
    affinity<native_platform> vcpus;
    if (const int status = show_plan(vcpus, count, policy); status != 0) return status;
    if (const int status = show_scheduling(vcpus); status != 0) return status;
    return show_memory(vcpus.topology());
}
