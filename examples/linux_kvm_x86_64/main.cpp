/// A small VMM: one vCPU, 16 MiB, an SMMUv3 and a DMA device behind it.
///
/// The guest (payload.hpp) drives the SMMU like an operating system and checks
/// every answer; the VMM checks from outside that the device and the SMMU tell
/// the same story. The same guest runs under KVM as a bare-metal program and
/// with the software backend as a thread of this process.
///
///     example_linux_kvm_x86_64 [--backend kvm|software] [--kvm PATH] [--without-invalidation]
///
/// Exit status: 0 all checks passed, 1 some failed, 2 wrong usage, 77 the
/// backend is not usable here (with a line `SKIP: reason`).
#include "machine.hpp"
#include "payload_image.hpp"
#include "software_guest.hpp"
#include "vmm.hpp"

#include <vm_accel/hypervisor/kvm.hpp>
#include <vm_accel/hypervisor/software.hpp>

#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <thread>

namespace {

using namespace vm_accel;
using namespace vmm;

struct free_memory {
    void operator()(std::byte* memory) const noexcept { std::free(memory); }
};
using guest_ram = std::unique_ptr<std::byte[], free_memory>;

[[nodiscard]] guest_ram allocate_ram() {
    auto* const memory = static_cast<std::byte*>(std::aligned_alloc(4096, machine::ram_bytes));
    if (memory != nullptr) std::memset(memory, 0, machine::ram_bytes);
    return guest_ram{memory};
}

// ---- the backends
// --------------------------------------------------------------------------------

[[nodiscard]] result<> start_guest(software_vcpu<driver_thread>&, std::span<std::byte>) noexcept {
    return {};
}
[[nodiscard]] result<> start_guest(kvm_vcpu& vcpu, std::span<std::byte> ram) noexcept {
    if (const result<> loaded = load_guest(ram, payload_image()); !loaded) return loaded;
    return x86_64::enter_long_mode(vcpu, pa{machine::processor_tables}, machine::payload,
                                   machine::stack_top);
}

template <hypervisor Backend>
[[nodiscard]] int run_guest(Backend& backend, bool invalidate) {
    const guest_ram ram = allocate_ram();
    if (ram == nullptr) {
        std::cerr << "guest RAM: out of memory\n";
        return exit_failed;
    }
    return run_machine(
        backend, {ram.get(), machine::ram_bytes}, invalidate,
        [](auto& vcpu, std::span<std::byte> memory) { return start_guest(vcpu, memory); });
}

struct options {
    std::string_view backend = "kvm";
    std::string_view kvm_path = kvm::default_path;
    bool invalidate = true;
};

[[nodiscard]] int usage(std::string_view wrong) {
    std::cerr << "example_linux_kvm_x86_64: " << wrong
              << "\nusage: example_linux_kvm_x86_64 [--backend kvm|software] [--kvm PATH] "
                 "[--without-invalidation]\n"
                 "  --without-invalidation  the guest leaves out its TLB invalidations: its checks "
                 "must fail then\n";
    return exit_usage;
}

} // namespace

int main(int argc, char** argv) {
    options chosen;
    const std::span<char* const> arguments{argv + 1,
                                           static_cast<std::size_t>(argc > 0 ? argc - 1 : 0)};
    for (std::size_t i = 0; i < arguments.size(); ++i) {
        const std::string_view word = arguments[i];
        const bool has_value = i + 1 < arguments.size();
        if (word == "--backend" && has_value) {
            chosen.backend = arguments[++i];
        } else if (word == "--kvm" && has_value) {
            chosen.kvm_path = arguments[++i];
        } else if (word == "--without-invalidation") {
            chosen.invalidate = false;
        } else {
            return usage("what is this: " + std::string{word});
        }
    }
    std::cout << "backend: " << chosen.backend << '\n';
    if (chosen.backend == "software") {
        software<driver_thread> backend;
        if (const auto done = backend.init(); !done) return give_up("software", done.error());
        return run_guest(backend, chosen.invalidate);
    }
    if (chosen.backend != "kvm") return usage("no such backend");
    if (payload_image().empty()) {
        std::cout << "SKIP: the bare-metal guest is for x86-64\n";
        return exit_skipped;
    }
    auto backend = kvm::open(chosen.kvm_path);
    const auto usable = backend ? backend->create_vm().map([](const kvm_vm&) {}) : fail(backend);
    if (!usable) {
        std::cout << "SKIP: no usable /dev/kvm: " << usable.error() << '\n';
        return exit_skipped;
    }
    return run_guest(*backend, chosen.invalidate);
}
