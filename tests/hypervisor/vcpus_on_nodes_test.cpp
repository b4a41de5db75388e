/// Virtual machines under KVM with RAM on each node of this machine in turn and the vCPU
/// thread on a CPU beside it: guest RAM, affinity and hypervisor together. Where pages lie
/// and where threads run is asked of the kernel by calls of the tests' own.
#include "guests.hpp"

#include <vm_accel/affinity/affinity.hpp>
#include <vm_accel/affinity/linux_platform.hpp>
#include <vm_accel/numa/local_first.hpp>
#include <vm_accel/numa/numa_allocator.hpp>
#include <vm_accel/os/worker_thread.hpp>

#include <catch2/catch.hpp>

#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))
#include "numa/kernel_nodes.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <iostream>
#include <set>
#include <string>
#include <vector>

using namespace vm_accel;
using namespace guests;

namespace {

constexpr std::uint64_t ram_bytes = 4u << 20;
constexpr std::uint64_t first_written = 1u << 20;

/// Stores its own address to each page from 1 MiB to 4 MiB, then ends.
#if defined(__x86_64__)
constexpr std::array<std::uint8_t, 22> page_writer{
    0xbf, 0x00, 0x00, 0x10, 0x00,       // mov $0x100000,%edi
    0x89, 0x3f,                         // mov %edi,(%rdi)
    0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // add $0x1000,%edi
    0x81, 0xff, 0x00, 0x00, 0x40, 0x00, // cmp $0x400000,%edi
    0x72, 0xf0,                         // jb back to the store
    0xf4};                              // hlt
#else
constexpr std::array<std::uint32_t, 9> page_writer{0xd2a00200,  // mov x0, #0x100000
                                                   0xb9000000,  // str w0, [x0]
                                                   0x91400400,  // add x0, x0, #0x1000
                                                   0xf150001f,  // cmp x0, #0x400000
                                                   0x54ffffa3,  // b.lo back to the store
                                                   0x52b08000,  // mov w0, #0x84000000
                                                   0x72800100,  // movk w0, #8: PSCI SYSTEM_OFF
                                                   0xd4000002,  // hvc #0
                                                   0x14000000}; // b .
#endif

template <class T>
void put(std::byte* ram, std::uint64_t at, const T& value) {
    std::memcpy(ram + at, &value, sizeof value);
}

/// The guest at 0x4000; on x86-64 its first GiB is mapped one to one.
result<> start(kvm_vcpu& vcpu, std::byte* ram) {
    put(ram, 0x4000, page_writer);
#if defined(__x86_64__)
    put(ram, 0x1000, std::uint64_t{0x2003});
    put(ram, 0x2000, std::uint64_t{0x6003});
    for (std::uint64_t i = 0; i < 512; ++i)
        put(ram, 0x6000 + 8 * i, i << 21 | 0x83);
    return x86_64::enter_long_mode(vcpu, pa{0x1000}, 0x4000, 0x3ff0, raw(window));
#else
    return arm64::set_boot_registers(vcpu, pa{0x4000}, window);
#endif
}

/// A machine of one vCPU, whose thread pins itself, and what came of it.
struct machine_on_node {
    unsigned node = 0;
    vcpu_plan plan{};
    std::byte* ram = nullptr;
    affinity<linux_platform>* threads = nullptr;
    kvm_model::backend* backend = nullptr;

    result<> pinned{};
    result<> ran{};
    exit_reason end = exit_reason::unknown;
    std::set<unsigned> allowed{}; ///< the CPUs that the kernel let the thread have

    void operator()() noexcept {
        pinned = threads->pin_current_thread(plan, 0);
        if (!pinned) return;
        auto vm = backend->create_vm();
        ran = vm ? vm->add_memory(pa{0}, ram, ram_bytes) : fail(vm);
        if (!ran) return;
        auto vcpu = vm->create_vcpu(0);
        ran = vcpu ? start(*vcpu, ram) : fail(vcpu);
        if (!ran) return;
        recording_bus bus;
        const auto ended = vcpu->run(bus);
        ran = ended ? result<>{} : fail(ended);
        if (ended) end = ended->reason;
        allowed = kernel_nodes::status_list("Cpus_allowed_list", "/proc/thread-self/status");
    }
};

} // namespace

TEST_CASE("KVM: what a guest touches first lies on its node, whichever it is, and its vCPU stays "
          "beside it",
          "[kernel][kvm]") {
    auto backend = kvm_model::open();
    if (!backend) return;
    numa_allocator<local_first> memory;
    affinity<linux_platform> threads;
    REQUIRE(memory.init());
    REQUIRE(threads.init());
    const std::vector<unsigned> nodes = memory.nodes_in_use();
    if (const int reason = kernel_nodes::why_not_bindable(nodes.front()); reason != 0) {
        std::cout << "SKIP: binding memory to node " << nodes.front() << ": "
                  << std::strerror(reason) << '\n';
        return;
    }
    // One region, a guest node on each host node; nothing touched yet, so that the
    // guests' own writes make the pages.
    guest_ram_request request;
    for (const unsigned node : nodes)
        request.split.push_back({ram_bytes, node});
    const auto region = memory.allocate(request);
    REQUIRE(region);

    std::vector<machine_on_node> machines(nodes.size());
    for (unsigned i = 0; i < nodes.size(); ++i) {
        vcpu_request vcpu;
        vcpu.vcpus = 1;
        vcpu.near_node = nodes[i];
        const auto plan = threads.plan(vcpu);
        REQUIRE(plan);
        machines[i] = {nodes[i], *plan, region->data() + region->guest_node(i).first, &threads,
                       &*backend};
    }
    // All at once, each on its node.
    {
        std::vector<os::worker_thread> workers(machines.size());
        for (unsigned i = 0; i < machines.size(); ++i)
            REQUIRE(workers[i].start(machines[i]));
    }
    for (const machine_on_node& machine : machines) {
        CAPTURE(machine.node);
        if (!machine.pinned) {
            std::cout << "SKIP: " << machine.pinned.error().cause.view() << '\n';
            return;
        }
        if (!machine.ran) FAIL(std::string{machine.ran.error().cause.view()});
        CHECK(machine.end == kvm_model::end);
        const unsigned cpu = machine.plan.assignments[0].cpu;
        CHECK(machine.allowed == std::set<unsigned>{cpu});
        // No CPU is nearer, as the topology has it: there a CPU whose own node is of no use
        // to this process belongs to the next.
        const std::vector<unsigned> row = kernel_nodes::distances_of(machine.node);
        const cpu_topology& topology = threads.topology();
        const auto distance_of = [&](const logical_cpu& c) {
            return c.node == no_index ? ~0u : row[topology.nodes[c.node].os_index];
        };
        for (const logical_cpu& other : topology.cpus)
            CHECK(distance_of(topology.cpus[topology.find_cpu(cpu)]) <= distance_of(other));
        // Each page has what the guest wrote, and lies where it should.
        std::uint64_t right = 0;
        for (std::uint64_t at = first_written; at < ram_bytes; at += 4096) {
            std::uint32_t stored = 0;
            std::memcpy(&stored, machine.ram + at, sizeof stored);
            right += stored == at ? 1 : 0;
        }
        CHECK(right == (ram_bytes - first_written) / 4096);
        CHECK(kernel_nodes::pages_by_node(machine.ram + first_written, ram_bytes - first_written) ==
              kernel_nodes::page_counts{
                  {static_cast<int>(machine.node), (ram_bytes - first_written) / 4096}});
        if (nodes.size() > 1)
            std::cout << "node " << machine.node << ": vCPU on CPU " << cpu << " of node "
                      << kernel_nodes::node_of_cpu(cpu) << ", " << right
                      << " pages written by the guest, all on node " << machine.node << '\n';
    }
}

#endif
