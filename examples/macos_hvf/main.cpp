/// A small VMM for macOS on Apple silicon: one vCPU of Hypervisor.framework, an SMMUv3
/// that its guest sets up, and a device behind it. Says what this Mac has: its cores by
/// kind, a plan for vCPUs, the priority that the vCPU's thread got, and the report of
/// the backends.
///
///     example_macos_hvf
///
/// The program needs the entitlement; with hvf.plist from this folder:
///
///     codesign -s - --entitlements hvf.plist --force example_macos_hvf
///
/// Exit status: 0 all checks passed, 1 some failed, 77 there is no Hypervisor.framework
/// for arm64 here (with a line `SKIP: reason`).
#include "machine.hpp"

#include <vm_accel/affinity/affinity.hpp>
#include <vm_accel/affinity/macos_platform.hpp>
#include <vm_accel/hypervisor/hvf.hpp>
#include <vm_accel/manager/acceleration_manager.hpp>
#include <vm_accel/manager/diagnostic_report.hpp>

#include <iostream>
#include <optional>
#include <string_view>
#include <thread>

namespace {

using namespace vm_accel;

constexpr int exit_passed = 0;
constexpr int exit_failed = 1;
constexpr int exit_skipped = 77;

using accelerator = acceleration_manager<affinity<macos_platform>, hvf>;

bool check(std::string_view what, bool good) {
    std::cout << "  " << (good ? "ok      " : "FAILED  ") << what << '\n';
    return good;
}

/// The vCPU's thread: urgent first, then the guest. A vCPU belongs to the thread of its
/// first run().
int run_guest(accelerator& host) {
    std::optional<result<macos_machine::outcome>> ended;
    std::thread vcpu_thread{[&] {
        macos_platform here;
        const result<os::given_priority> given = here.set_priority(os::thread_priority::high());
        if (given) {
            std::cout << "vCPU thread: " << given->text.view() << '\n';
        } else {
            std::cout << "vCPU thread: " << given.error() << '\n';
        }
        if (const result<> tag = here.set_affinity_tag(1); !tag)
            std::cout << "vCPU thread: " << tag.error() << '\n';
        ended = macos_machine::run(host.hypervisor());
    }};
    vcpu_thread.join();
    if (!*ended) {
        std::cerr << "macos_hvf: " << (*ended).error() << '\n';
        return exit_failed;
    }
    const macos_machine::outcome& seen = **ended;
    std::cout << "guest: " << seen.printed;
    bool good = check("the guest powered off", seen.ended == exit_reason::shutdown);
    good = check("its line arrived at the UART", seen.printed == payload::greeting) && good;
    good = check("nothing stray on the bus", seen.stray == 0) && good;
    good = check("SMMU: CR0ACK follows CMDQEN and SMMUEN", seen.cr0_acknowledged == 9) && good;
    good = check("SMMU: both commands are done", seen.commands_consumed == 2) && good;
    good = check("the device reads RAM through its stream", seen.device_reads) && good;
    good = check("the device reaches nothing else", seen.device_confined) && good;
    return good && seen.good() ? exit_passed : exit_failed;
}

} // namespace

int main() {
    if constexpr (!hvf_vm::is_arm64) {
        std::cout << "SKIP: the guest of macos_hvf is for arm64; this program is not\n";
        return exit_skipped;
    }
    const hypervisor_capabilities here = hvf::detect();
    if (!here.available) {
        std::cout << "SKIP: " << here.why_not << '\n';
        return exit_skipped;
    }
    accelerator host;
    if (const auto done = host.setup_full_acceleration({.vcpus = 2}); !done)
        std::cerr << "macos_hvf: " << done.error() << '\n';
    const core_counts cores = count_cores(host.topology());
    std::cout << "cores: " << cores.performance << " performance, " << cores.efficiency
              << " efficiency, " << cores.alike << " of one kind\n";
    const int status = run_guest(host);
    std::cout << host.diagnostic_report().to_table();
    return status;
}
