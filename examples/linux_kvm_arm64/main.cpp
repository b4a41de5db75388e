/// Boots an unmodified arm64 Linux kernel under KVM, with disks behind an SMMUv3.
///
/// Everything that makes it a VMM is in this folder; everything that makes it
/// fast and safe comes from the library: guest RAM on the right NUMA nodes, vCPU
/// threads on the right CPUs, KVM, and the SMMU that the guest's own driver
/// programs. A disk reaches guest memory, and the GIC with its messages, through
/// its port of the SMMU only.
#include "access_watch.hpp"
#include "device_tree.hpp"
#include "dma_recorder.hpp"
#include "guest_bus.hpp"
#include "injector.hpp"
#include "io_thread.hpp"
#include "kernel_image.hpp"
#include "machine_map.hpp"
#include "news_thread.hpp"
#include "options.hpp"
#include "pci_host.hpp"
#include "pl011.hpp"
#include "run_report.hpp"
#include "smmu_lines.hpp"
#include "suspend.hpp"
#include "vcpu_threads.hpp"
#include "virtio_disk.hpp"
#include "virtio_pci_disk.hpp"

#include <vm_accel/affinity/affinity.hpp>
#include <vm_accel/affinity/linux_platform.hpp>
#include <vm_accel/guest/region_map.hpp>
#include <vm_accel/hypervisor/kvm.hpp>
#include <vm_accel/manager/acceleration_manager.hpp>
#include <vm_accel/numa/guest_nodes.hpp>
#include <vm_accel/numa/local_first.hpp>
#include <vm_accel/numa/numa_allocator.hpp>
#include <vm_accel/smmu/caches/set_associative.hpp>
#include <vm_accel/smmu/host/bitmap_streams.hpp>
#include <vm_accel/smmu/smmu.hpp>

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace linux_vmm {
namespace {

using namespace vm_accel;

/// Linux listens to the SMMU's messages or to its wires: an edge beside each message would be a
/// system call that nobody hears.
constexpr smmu_features everything = [] {
    smmu_features f = full_features;
    f.wires_beside_messages = false;
    return f;
}();

/// What accelerates this machine. Which SMMU it is, is chosen once, at start.
template <smmu_features F>
struct smmu_choice : default_smmu_options {
    static constexpr smmu_features features = F;
    static constexpr stream_id message_requester{machine_map::smmu_device};
};
template <smmu_features F>
using guest_smmu = smmu<recorded_tlb<set_associative<256, 4>>, bitmap_streams<0x10000>, region_map,
                        smmu_lines, smmu_choice<F>>;
using guest_ram = numa_allocator<local_first>;
using guest_affinity = affinity<linux_platform>;
template <smmu_features F>
using acceleration =
    acceleration_manager<region_map, guest_affinity, guest_ram, guest_smmu<F>, kvm>;

/// Few enough for a CD table of one level; the PCI disk has two.
constexpr unsigned disk_substream_bits = 6;

enum exit_status {
    powered_off = 0,
    failed = 1,
    wrong_usage = 2,
    timed_out = 3,
    ended_otherwise = 4,
    was_suspended = 5
};

/// Prints an error and ends the program: nothing of the guest runs yet.
[[noreturn]] void give_up(const error& why) {
    std::cerr << "linux_kvm_arm64: " << why << '\n';
    std::exit(failed);
}
void need(const result<>& done) {
    if (!done) give_up(done.error());
}
template <class T>
    requires(!std::is_void_v<T>)
[[nodiscard]] T need(result<T>&& made) {
    if (!made) give_up(made.error());
    return std::move(*made);
}

/// Standard output, whole pieces, no buffer in between.
void print(std::string_view text) noexcept {
    while (!text.empty()) {
        const ssize_t n = ::write(STDOUT_FILENO, text.data(), text.size());
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return;
        text.remove_prefix(static_cast<std::size_t>(n));
    }
}

/// What the guest is told of its nodes: memory and vCPUs, with the distances that the host has.
guest_nodes describe_nodes(const vcpu_plan& plan, const ram_region& ram, const cpu_topology& host) {
    std::vector<unsigned> host_nodes;
    for (const vcpu_assignment& vcpu : plan.assignments)
        host_nodes.push_back(vcpu.node);
    const std::vector<unsigned> nodes = nearest_guest_nodes(ram.chunks(), host_nodes, host);
    const ram_window all{machine_map::ram_base, 0, ram.bytes()};
    return need(describe_guest(ram.chunks(), {&all, 1}, nodes, host));
}

// --- the parts of the report

std::vector<run_report::memory> describe_memory(const region_proof& proof,
                                                const access_tracking& tracked) {
    std::vector<run_report::memory> out;
    for (std::size_t i = 0; i < proof.chunks.size(); ++i) {
        const chunk_proof& c = proof.chunks[i];
        const ram_chunk& chunk = c.placement.chunk;
        run_report::memory m{raw(machine_map::ram_base) + chunk.offset,
                             chunk.bytes,
                             chunk.guest_node,
                             chunk.node,
                             c.placement.present(),
                             c.placement.local(),
                             std::string{chunk.reason.view()},
                             std::string{name_of(chunk.mode)},
                             std::string{name_of(c.binding.state)},
                             std::string{name_of(proof.source)},
                             tracked.regions[i]};
        if (chunk.mode != os::bind_mode::none) m.requested += " to node " + std::to_string(m.node);
        if (!c.binding.cause.empty()) m.given += " (" + std::string{c.binding.cause.view()} + ")";
        out.push_back(std::move(m));
    }
    return out;
}

void describe_smmu(run_report& report, const smmu_statistics& stats, const smmu_lines& lines) {
    report.smmu = {{"commands", stats.commands},
                   {"translations", stats.translations},
                   {"hits", stats.hits},
                   {"misses", stats.misses},
                   {"events", stats.events},
                   {"faults", stats.faults},
                   {"interrupts", stats.interrupts},
                   {"msi_messages", stats.msi_messages}};
    report.hit_rate = stats.hit_rate();
    for (std::size_t i = 0; i < wired_interrupt_count; ++i) {
        const auto line = static_cast<wired_interrupt>(i);
        report.lines.emplace_back(name_of(line), lines.pulses(line));
    }
}

template <smmu_features F>
int run(const options& wanted) {
    // --- what the guest is made of
    std::vector<std::byte> kernel = need(load_file(wanted.kernel));
    std::vector<std::byte> initrd = need(load_file(wanted.initrd));
    const disk_file storage = need(disk_file::open(wanted.disk));
    std::optional<disk_file> pci_storage;
    if (!wanted.pci_disk.empty()) pci_storage = need(disk_file::open(wanted.pci_disk));
    const image_header header = need(parse_image_header(kernel));
    const std::uint64_t ram_bytes = wanted.memory_mib << 20;
    const load_plan where =
        need(plan_loading(header, initrd.size(), machine_map::ram_base, ram_bytes));

    // --- the library's parts, set up in the order they need
    smmu_lines lines;
    acceleration<F> host;
    host.smmu().connect(lines);
    need(host.setup_full_acceleration({.vcpus = 0, .numa_nodes = wanted.numa_nodes}));
    const vcpu_policy policy = wanted.numa_nodes > 1 ? vcpu_policy::spread : vcpu_policy::compact;
    // A vCPU runs before the VMM's other threads, and shares its core with no stranger, where the
    // host grants that; what it refuses is reported, and the guest runs all the same.
    const scheduling_request wishes{os::thread_priority::high(), {}, core_sharing::this_vm};
    const vcpu_plan plan = need(host.vcpus().configure({wanted.vcpus, policy}, wishes));

    // --- RAM: on its nodes, known to the SMMU and to KVM
    guest_ram_request request;
    request.prefault_threads = wanted.numa_nodes;
    request.split.assign(wanted.nodes, {ram_bytes / wanted.nodes, any_node});
    const ram_region ram = need(host.memory().allocate(request));
    const pa_range ram_range{machine_map::ram_base, ram_bytes};
    need(host.smmu().add_memory(ram_range.base, ram.data(), ram_bytes));
    kvm_vm vm = need(host.hypervisor().create_vm());
    need(vm.add_memory(ram_range.base, ram.data(), ram_bytes));

    // --- processors and interrupts
    std::vector<kvm_vcpu> vcpus;
    for (unsigned i = 0; i < wanted.vcpus; ++i)
        vcpus.push_back(need(vm.create_vcpu(i)));
    need(vm.create_gic_v3(machine_map::gic_distributor.base, machine_map::gic_redistributors,
                          wanted.vcpus));
    need(vm.finish_gic());
    const bool pci = !wanted.pci_disk.empty();
    if (pci || F.msi) need(vm.create_its(machine_map::gic_its.base));
    need(lines.open(vm));

    // --- devices: console, disks behind the SMMU, and two devices gone wrong
    const auto line_to = [&vm](unsigned spi) {
        return [&vm, spi](bool level) noexcept { static_cast<void>(vm.set_spi(spi, level)); };
    };
    dma_recorder record;
    dma_recorder* const recorder = wanted.record.empty() ? nullptr : &record;
    if (recorder != nullptr) need(record.open(wanted.record));
    using port = recorded_port<typename guest_smmu<F>::port>;
    const auto attach = [&](std::string_view device, std::uint32_t stream,
                            const attach_options& how = {}) {
        static_cast<void>(
            need(host.smmu().attach_device(device, ram_range, stream_id{stream}, how)));
        return port{need(host.smmu().make_port(device)), recorder};
    };
    const auto port_of = [&](std::string_view device) {
        return port{need(host.smmu().make_port(device)), nullptr};
    };
    os::wakeup bell, pci_bell, rogue_bell;
    for (os::wakeup* each : {&bell, &pci_bell, &rogue_bell})
        need(each->open());
    const auto waker = [](os::wakeup& of) { return [&of]() noexcept { of.signal(); }; };
    pl011 uart{[](std::string_view text) noexcept { print(text); }, line_to(machine_map::uart_spi)};
    virtio_disk disk{attach("disk", machine_map::disk_stream), storage,
                     line_to(machine_map::disk_spi), waker(bell)};
    using pci_disk_type = virtio_pci_disk<port, decltype(waker(pci_bell))>;
    std::optional<pci_disk_type> pci_disk;
    std::optional<pci_host<pci_disk_type>> pci_bus;
    std::optional<port> pci_news;
    if (pci) {
        pci_disk.emplace(attach("pci-disk", machine_map::pci_disk_stream, {.ats = F.ats}),
                         *pci_storage, waker(pci_bell), pci_translation{F.ats, F.substream_bits});
        pci_bus.emplace(*pci_disk);
        pci_news.emplace(port_of("pci-disk"));
    }
    std::vector<dma_source<port>> rogues;
    if (wanted.inject) {
        rogues.push_back({"unmapped", machine_map::disk_stream, port_of("disk")});
        rogues.push_back({"no-level-2-table", machine_map::tableless_stream,
                          attach("rogue-far", machine_map::tableless_stream)});
        rogues.push_back({"aborting-ste", machine_map::aborting_stream,
                          attach("rogue-near", machine_map::aborting_stream)});
        if (pci && F.ats) {
            rogues.push_back(
                {"stale-translation", machine_map::pci_disk_stream, port_of("pci-disk"), true});
        }
    }
    injector rogue{
        std::move(rogues), host.guest_memory(), offset_by(machine_map::ram_base, ram_bytes / 2),
        [](const injection& i) noexcept { print(line_of(i) + '\n'); }, waker(rogue_bell)};
    recorded_registers<F, guest_smmu<F>> smmu_registers{host.smmu(), host.guest_memory(), recorder};
    guest_bus bus{uart, smmu_registers, disk, pci ? &*pci_bus : nullptr,
                  wanted.inject ? &rogue : nullptr};

    // --- kernel, initial file system and device tree into RAM
    machine_description machine;
    const guest_nodes nodes = describe_nodes(plan, ram, host.topology());
    for (unsigned vcpu = 0; vcpu < wanted.vcpus; ++vcpu)
        machine.vcpu_nodes.push_back(nodes.node_of(vcpu));
    for (unsigned node = 0; node < nodes.nodes.size(); ++node)
        for (const pa_range& range : nodes.nodes[node].memory)
            machine.memories.push_back({range, node});
    if (nodes.nodes.size() > 1) machine.distance_cells = distance_cells(nodes);
    machine.command_line = wanted.command_line;
    machine.initrd = where.initrd;
    machine.initrd_bytes = where.initrd_bytes;
    machine.pci = pci;
    machine.messages = F.msi;
    machine.ats = F.ats;
    machine.stalls = F.stalls && wanted.can_stall;
    machine.substream_bits = std::min(F.substream_bits, disk_substream_bits);
    machine.counters = F.performance_counters != 0;
    const std::vector<std::byte> tree = need(build_device_tree(machine));
    if (!host.guest_memory().write(where.kernel, kernel) ||
        !host.guest_memory().write(where.initrd, initrd) ||
        !host.guest_memory().write(where.device_tree, tree)) {
        give_up({errc::out_of_range, 0, "the guest's RAM does not hold its files", "give more"});
    }
    kernel = {}; // the guest has its copy
    initrd = {};
    need(arm64::set_boot_registers(vcpus[0], where.kernel, where.device_tree));

    // --- or a machine that was suspended, in place of all that
    const machine_shape shape{.ram_bytes = ram_bytes,
                              .vcpus = wanted.vcpus,
                              .full_features = wanted.full_features ? 1U : 0U,
                              .pci = pci ? 1U : 0U};
    const kernel_parts in_kernel{vm, vcpus, arm64::gic_v3_layout{}.interrupts, pci || F.msi};
    pci_disk_type* const pci_device = pci ? &*pci_disk : nullptr;
    const auto move = [&](const std::string& path, saved_machine::direction which) {
        saved_machine file = need(saved_machine::open(path, which));
        need(move_machine(file, shape, {ram.data(), static_cast<std::size_t>(ram_bytes)}, in_kernel,
                          host.smmu(), &uart, &disk, pci_device));
    };
    if (!wanted.resume.empty()) {
        move(wanted.resume, saved_machine::direction::resume);
        bell.signal(); // requests may wait
        pci_bell.signal();
    }
    disk.freeze_after(wanted.suspend_after);

    // --- the guest runs
    access_watch watch{host.topology()};
    const auto pin = [&](unsigned vcpu) {
        static_cast<void>(host.vcpus().place_current_thread(vcpu)); // what came of it is reported
        watch.follow_this_vcpu(vcpu, machine.vcpu_nodes[vcpu]);
    };
    const auto place = [&](const char* name) noexcept {
        static_cast<void>(host.vcpus().place_vmm_thread(name));
    };
    vcpu_threads threads{vcpus};
    const guest_end end = [&] {
        const io_thread io{"disk-io", bell, host.smmu().deferred_work_fd(),
                           [&]() noexcept {
                               while (host.smmu().poll()) {}
                               disk.serve();
                               watch.look();
                               if (disk.is_frozen()) threads.suspend();
                           },
                           place};
        const io_thread pci_io{"pci-disk-io", pci_bell, -1,
                               [&]() noexcept {
                                   if (pci) pci_disk->serve();
                               },
                               place};
        const auto answer = [&](port& news) noexcept { pci_disk->answer_invalidations(news); };
        std::optional<news_thread<port, decltype(answer)>> pci_ats;
        if (pci) pci_ats.emplace("pci-disk-ats", *pci_news, answer);
        const io_thread rogue_io{"rogue-dma", rogue_bell, -1, [&]() noexcept { rogue.work(); },
                                 place};
        return threads.run(bus, pin, wanted.timeout_seconds);
    }();
    uart.flush();
    if (end.suspended) {
        const std::uint16_t waiting = disk.requests_waiting();
        need(lines.close());
        move(wanted.state, saved_machine::direction::save);
        print("\nsuspended with " + std::to_string(waiting) + " requests waiting\n");
        return was_suspended;
    }

    // --- what happened
    run_report report;
    report.ended = end.text();
    report.features = wanted.full_features ? "full" : "stage 1";
    report.vcpus = describe_vcpus(plan, host.vcpus().pins(), machine.vcpu_nodes);
    report.threads = describe_threads(host.vcpus().vmm_threads());
    const region_proof proof = need(host.memory().verify(ram));
    const access_tracking tracked = watch.track(host.memory(), proof);
    for (std::size_t i = 0; i < report.vcpus.size() && i < tracked.vcpus.size(); ++i)
        report.vcpus[i].accesses = tracked.vcpus[i];
    report.memories = describe_memory(proof, tracked);
    describe_smmu(report, host.smmu().stats(), lines);
    report.disk = disk.statistics();
    if (pci) {
        report.pci_disk = pci_disk->statistics();
        const message_statistics& sent = pci_disk->messages();
        report.messages = {{"sent", sent.sent},
                           {"refused", sent.refused},
                           {"last_address", sent.last_address},
                           {"delivered", lines.messages_delivered()},
                           {"not_delivered", lines.messages_refused()},
                           {"of_smmu", lines.own_messages()},
                           {"ats_was_enabled", pci_disk->ats_was_enabled()},
                           {"pasid_was_enabled", pci_disk->pasid_was_enabled()}};
        const ats_statistics ats = pci_disk->ats();
        report.ats = {{"requests", ats.requests},         {"not_granted", ats.not_granted},
                      {"translated", ats.translated},     {"refused", ats.refused},
                      {"untranslated", ats.untranslated}, {"invalidations", ats.invalidations},
                      {"forgotten", ats.forgotten}};
    }
    report.injections = rogue.done();
    report.acceleration = host.diagnostic_report();
    print("\n" + to_table(report));
    if (!wanted.report.empty() && !(std::ofstream{wanted.report} << to_json(report))) {
        std::cerr << "linux_kvm_arm64: " << wanted.report << ": cannot be written\n";
        return failed;
    }
    if (!report.all_refused()) return failed;
    return end.powered_off() ? powered_off : end.timed_out ? timed_out : ended_otherwise;
}

} // namespace
} // namespace linux_vmm

int main(int count, char** arguments) {
    using namespace linux_vmm;
    const auto wanted =
        parse_options(std::span<const char* const>{arguments, arguments + count}.subspan(1));
    if (!wanted || wanted->help) {
        if (!wanted) std::cerr << wanted.error() << "\n\n";
        (wanted ? std::cout : std::cerr) << usage;
        return wanted ? powered_off : wrong_usage;
    }
    return wanted->full_features ? run<everything>(*wanted) : run<stage1_features>(*wanted);
}
