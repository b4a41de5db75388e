/// What a VMM asks of the planner: how many vCPUs, of which shape, placed how.
#pragma once

#include <vm_accel/os/cpu_set.hpp>
#include <vm_accel/topology/cpu_topology.hpp>

#include <cstdint>
#include <string_view>

namespace vm_accel::inline v0 {

/// In which order vCPUs take the host's CPUs. Whatever the policy, faster cores
/// come before slower ones where the machine tells them apart.
enum class vcpu_policy : std::uint8_t {
    compact,           ///< near each other: threads of a core, cores of a node, then the next node
    spread,            ///< far from each other: packages in turn, nodes in turn, caches in turn,
                       ///< cores in turn
    one_per_core,      ///< near each other, but no core twice while another is free
    siblings_together, ///< as compact, and each guest core gets a host core of its own while
                       ///< there are any: its threads are the host core's threads
    performance_first, ///< every thread of the faster cores, one per core first, before any
                       ///< efficiency core
};

[[nodiscard]] constexpr std::string_view name_of(vcpu_policy policy) noexcept {
    switch (policy) {
    case vcpu_policy::compact:
        return "compact";
    case vcpu_policy::spread:
        return "spread";
    case vcpu_policy::one_per_core:
        return "one per core";
    case vcpu_policy::siblings_together:
        return "siblings together";
    case vcpu_policy::performance_first:
        return "performance first";
    }
    return "unknown";
}

/// What the guest is shown. vCPUs are numbered thread by thread, core by core,
/// socket by socket. 0 means: as many as the vCPUs need beside the others. Where
/// several are 0, there is 1 socket, and 1 thread (under siblings_together: what the
/// host's cores have).
///
/// With more than one thread, the vCPUs of a guest core stay on one host core
/// where one has room (one_per_core excepted). With more than one socket, the
/// vCPUs of a socket stay on one host node, else package, where one has room.
struct guest_topology {
    unsigned sockets = 0;
    unsigned cores = 0;   ///< of a socket
    unsigned threads = 0; ///< of a core

    friend bool operator==(const guest_topology&, const guest_topology&) = default;
};

/// What to do with CPUs that the kernel's scheduler leaves alone. Where a process
/// may use no others, they are used, and the plan says so.
enum class isolated_use : std::uint8_t {
    leave,    ///< somebody reserved them: use none
    first,    ///< they are reserved for these vCPUs: use them before others, others for I/O
    like_any, ///< as if they were not isolated
};

struct vcpu_request {
    unsigned vcpus = 0;
    vcpu_policy policy = vcpu_policy::compact;
    unsigned io_cpus = 0; ///< CPUs to leave for the VMM's I/O threads
    guest_topology guest{};
    /// The operating system's number of the node that a device is on, as in the
    /// numa_node file of a PCI device: nearer CPUs come first. no_index (or the
    /// file's -1): none is preferred.
    unsigned near_node = no_index;
    unsigned io_cores = 0; ///< cores to leave for I/O with all their threads, besides io_cpus
    isolated_use isolated = isolated_use::leave;
    /// CPUs not to use, by the operating system's numbers: those that the VMM needs itself.
    os::cpu_set excluded{};
    /// The same for those that went offline or left the cpuset after the topology was loaded.
    /// `affinity` adds them by itself.
    os::cpu_set gone{};
};

} // namespace vm_accel::inline v0
