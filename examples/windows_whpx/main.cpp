/// A small VMM for Windows: one vCPU on the Windows Hypervisor Platform, on the CPU
/// that a plan gives it, 16 MiB of RAM on that CPU's NUMA node, an SMMUv3 and a DMA
/// device behind it.
///
/// The guest is that of linux_kvm_x86_64: a bare-metal program that drives the SMMU
/// like an operating system and checks every answer. With `--backend software` the
/// same guest runs as a thread of this process, where there is no hypervisor.
///
///     example_windows_whpx [--backend whpx|software]
///
/// Builds everywhere. Exit status: 0 all checks passed, 1 some failed, 2 wrong usage, 77
/// the backend is not usable here (with a line `SKIP: reason`).
#include "machine.hpp"
#include "payload_image.hpp"
#include "software_guest.hpp"
#include "vmm.hpp"

#include <vm_accel/affinity/affinity.hpp>
#include <vm_accel/affinity/windows_platform.hpp>
#include <vm_accel/hypervisor/software.hpp>
#include <vm_accel/hypervisor/whpx.hpp>
#include <vm_accel/numa/local_first.hpp>
#include <vm_accel/numa/numa_allocator.hpp>

#include <algorithm>
#include <cstring>
#include <iostream>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace {

using namespace vm_accel;
using namespace vmm;

/// The thread of the vCPU and the RAM of the guest, each where it should be.
class placement {
public:
    /// Plans, pins the calling thread, which is to run the vCPU, and allocates. What the
    /// system refuses of it is said, and the machine runs all the same.
    [[nodiscard]] result<> set_up() noexcept {
        if (const result<> done = vcpus_.init(); !done) return done;
        const result<vcpu_plan> plan = vcpus_.configure(1);
        if (!plan) return fail(plan);
        std::cout << "plan\n" << *plan;
        say("pin", vcpus_.pin_current_thread(0));
        windows_platform platform;
        if (const auto given = platform.set_priority(os::thread_priority::high()); given) {
            std::cout << "  priority: " << given->text.view() << '\n';
        } else {
            std::cout << "  priority: " << given.error() << '\n';
        }
        say("full speed always", platform.economy(false));

        if (const result<> done = memory_.init(vcpus_.topology()); !done) return done;
        guest_ram_request request;
        request.bytes = machine::ram_bytes;
        request.prefault_threads = 1;
        result<ram_region> region = memory_.allocate(request);
        if (!region) return fail(region);
        region_.emplace(std::move(*region));
        if (const auto report = region_->placement(); report)
            std::cout << "guest RAM, as Windows reports it\n" << *report;
        return {};
    }
    [[nodiscard]] std::span<std::byte> ram() noexcept {
        return {region_->data(), machine::ram_bytes};
    }
    /// The node that the guest's memory and its vCPU are on; nothing if it is not known.
    [[nodiscard]] std::optional<std::uint16_t> node() const noexcept {
        const vcpu_plan plan = vcpus_.current_plan();
        const unsigned node = plan.assignments.front().node;
        return node == no_index ? std::nullopt : std::optional{static_cast<std::uint16_t>(node)};
    }

private:
    static void say(std::string_view what, const result<>& done) {
        std::cout << "  " << what << ": ";
        if (done) {
            std::cout << "done\n";
        } else {
            std::cout << done.error() << '\n';
        }
    }

    affinity<windows_platform> vcpus_{};
    numa_allocator<local_first> memory_{};
    std::optional<ram_region> region_{};
};

/// A backend whose VMs are made with the node of the guest's memory.
struct placed_whpx {
    whpx& platform;
    std::optional<std::uint16_t> node;

    using role = whpx::role;
    using vm = whpx::vm;
    static constexpr std::string_view name = whpx::name;

    [[nodiscard]] static hypervisor_capabilities detect() noexcept { return whpx::detect(); }
    [[nodiscard]] result<> init() noexcept { return platform.init(); }
    [[nodiscard]] bool is_initialized() const noexcept { return platform.is_initialized(); }
    [[nodiscard]] result<vm> create_vm() noexcept {
        whpx_vm_options options;
        options.processors = 1;
        options.primary_node = node;
        result<vm> made = platform.create_vm(options);
        if (!made) return made;
        for (const whpx_setting& setting : made->settings()) {
            std::cout << "  " << setting.name << ' ' << setting.value << ": ";
            if (setting.refused) {
                std::cout << *setting.refused << '\n';
            } else {
                std::cout << "taken\n";
            }
        }
        return made;
    }
};

[[nodiscard]] result<> start_guest(whpx_vcpu& vcpu, std::span<std::byte> ram) noexcept {
    if (const result<> loaded = load_guest(ram, payload_image()); !loaded) return loaded;
    return whpx_x86_64::enter_long_mode(vcpu, pa{machine::processor_tables}, machine::payload,
                                        machine::stack_top);
}

[[nodiscard]] int usage(std::string_view wrong) {
    std::cerr << "example_windows_whpx: " << wrong
              << "\nusage: example_windows_whpx [--backend whpx|software]\n";
    return exit_usage;
}

} // namespace

int main(int argc, char** argv) {
    std::string_view backend = "whpx";
    for (int i = 1; i < argc; ++i) {
        if (std::string_view{argv[i]} != "--backend" || i + 1 == argc)
            return usage("what is this: " + std::string{argv[i]});
        backend = argv[++i];
    }
    if (backend != "whpx" && backend != "software") return usage("no such backend");
    std::cout << "backend: " << backend << '\n';

    whpx platform;
    if (backend == "whpx") {
        if (const result<> ready = platform.init(); !ready) {
            std::cout << "SKIP: " << ready.error() << '\n';
            return exit_skipped;
        }
    }
    placement here;
    if (const result<> done = here.set_up(); !done) return give_up("placement", done.error());
    if (backend == "software") {
        software<driver_thread> program;
        if (const auto done = program.init(); !done) return give_up("software", done.error());
        return run_machine(program, here.ram(), true,
                           [](auto&, std::span<std::byte>) { return result<>{}; });
    }
    placed_whpx placed{platform, here.node()};
    return run_machine(placed, here.ram(), true, [](whpx_vcpu& vcpu, std::span<std::byte> ram) {
        return start_guest(vcpu, ram);
    });
}
