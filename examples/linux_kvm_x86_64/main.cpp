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
#include "dma_device.hpp"
#include "guest_report.hpp"
#include "machine.hpp"
#include "payload.hpp"
#include "payload_image.hpp"

#include <vm_accel/guest/interrupt_sink.hpp>
#include <vm_accel/guest/region_map.hpp>
#include <vm_accel/hypervisor/kvm.hpp>
#include <vm_accel/hypervisor/software.hpp>
#include <vm_accel/smmu/caches/set_associative.hpp>
#include <vm_accel/smmu/host/bitmap_streams.hpp>
#include <vm_accel/smmu/smmu.hpp>

#include <algorithm>
#include <atomic>
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

constexpr int exit_passed = 0;
constexpr int exit_failed = 1;
constexpr int exit_usage = 2;
constexpr int exit_skipped = 77;

/// The second entry of the first level that is used, so that both levels matter.
constexpr stream_id dma_stream{0x103};

using machine_smmu = smmu<set_associative<64, 4>, bitmap_streams<1024>>;
using machine_dma = dma_device<machine_smmu::port>;

/// What the guest sees outside its memory.
class machine_bus {
public:
    machine_bus(machine_smmu& smmu, machine_dma& dma) : smmu_(smmu), dma_(dma) {}

    void mmio_read(pa address, std::span<std::byte> out) noexcept {
        std::uint64_t value = ~std::uint64_t{0};
        const auto size = static_cast<unsigned>(out.size());
        if (smmu_window.contains(address, size)) {
            smmu_.poll();
            value = smmu_.mmio_read(raw(address) - machine::smmu, size);
        } else if (dma_window.contains(address, size) && size == 8) {
            value = dma_.read_register(raw(address) - machine::dma_device);
        } else {
            stray_.fetch_add(1);
        }
        value = little_endian(value);
        std::memcpy(out.data(), &value, std::min<std::size_t>(size, sizeof value));
    }
    void mmio_write(pa address, std::span<const std::byte> in) noexcept {
        std::uint64_t value = 0;
        const auto size = static_cast<unsigned>(in.size());
        std::memcpy(&value, in.data(), std::min<std::size_t>(size, sizeof value));
        value = little_endian(value);
        if (smmu_window.contains(address, size)) {
            smmu_.mmio_write(raw(address) - machine::smmu, size, value);
        } else if (dma_window.contains(address, size) && size == 8) {
            dma_.write_register(raw(address) - machine::dma_device, value);
        } else {
            stray_.fetch_add(1);
        }
    }
    /// Accesses that nothing answered.
    [[nodiscard]] std::uint64_t stray() const noexcept { return stray_.load(); }

private:
    static constexpr pa_range smmu_window{pa{machine::smmu}, machine::smmu_bytes};
    static constexpr pa_range dma_window{pa{machine::dma_device}, machine::dma_device_bytes};

    machine_smmu& smmu_;
    machine_dma& dma_;
    std::atomic<std::uint64_t> stray_{0};
};

struct free_memory {
    void operator()(std::byte* memory) const noexcept { std::free(memory); }
};
using guest_ram = std::unique_ptr<std::byte[], free_memory>;

[[nodiscard]] guest_ram allocate_ram() {
    auto* const memory = static_cast<std::byte*>(std::aligned_alloc(4096, machine::ram_bytes));
    if (memory != nullptr) std::memset(memory, 0, machine::ram_bytes);
    return guest_ram{memory};
}

void put(guest_ram& ram, std::uint64_t address, std::uint64_t value) {
    value = little_endian(value);
    std::memcpy(ram.get() + address, &value, sizeof value);
}

// ---- the backends
// --------------------------------------------------------------------------------

/// The software backend's port, with a way to wait.
template <class Port>
struct patient_port {
    Port& port;

    template <class T>
    [[nodiscard]] T read(pa address) noexcept {
        return port.template read<T>(address);
    }
    template <class T>
    void write(pa address, T value) noexcept {
        port.template write<T>(address, value);
    }
    void relax() noexcept { std::this_thread::yield(); }
};

/// The guest as a thread of this process.
struct driver_thread {
    template <class Port>
    exit_reason operator()(Port& port) noexcept {
        patient_port<Port> guest{port};
        payload::run(guest);
        return exit_reason::halted;
    }
};

[[nodiscard]] result<> start_guest(software_vcpu<driver_thread>&, guest_ram&) noexcept {
    return {};
}

/// The guest on bare metal: its image, and 4 GiB mapped one to one.
[[nodiscard]] result<> start_guest(kvm_vcpu& vcpu, guest_ram& ram) noexcept {
    const std::span<const std::byte> image = payload_image();
    if (image.empty() || image.size() > machine::payload_bytes) {
        return fail(errc::unsupported, "this program has no bare-metal guest inside",
                    "build it for x86-64 with a compiler for ELF");
    }
    std::ranges::copy(image, ram.get() + machine::payload);
    constexpr std::uint64_t pml4 = machine::processor_tables;
    constexpr std::uint64_t present_writable = 3;
    put(ram, pml4, (pml4 + 0x1000) | present_writable);
    for (std::uint64_t i = 0; i < 4; ++i)
        put(ram, pml4 + 0x1000 + 8 * i, (pml4 + 0x2000 + 0x1000 * i) | present_writable);
    for (std::uint64_t i = 0; i < 2048; ++i) // 2 MiB pages
        put(ram, pml4 + 0x2000 + 8 * i, i << 21 | 0x80 | present_writable);
    return x86_64::enter_long_mode(vcpu, pa{pml4}, machine::payload, machine::stack_top);
}

// ---- the machine
// ---------------------------------------------------------------------------------

[[nodiscard]] int give_up(std::string_view what, const error& e) {
    std::cerr << what << ": " << e << '\n';
    return exit_failed;
}

/// One comparison made by the VMM.
[[nodiscard]] bool agrees(std::string_view what, std::uint64_t found, std::uint64_t expected) {
    std::cout << "  " << what << ": " << found;
    if (found == expected) {
        std::cout << '\n';
        return true;
    }
    std::cout << " FAILED, not " << expected << '\n';
    return false;
}

template <hypervisor Backend>
[[nodiscard]] int run_machine(Backend& backend, bool invalidate) {
    guest_ram ram = allocate_ram();
    if (ram == nullptr) {
        std::cerr << "guest RAM: out of memory\n";
        return exit_failed;
    }
    region_map memory;
    counting_sink interrupts;
    if (const auto done = memory.add(pa{machine::ram_base}, ram.get(), machine::ram_bytes); !done)
        return give_up("guest RAM", done.error());

    machine_smmu iommu{memory, interrupts};
    if (const auto done = iommu.init(); !done) return give_up("SMMU", done.error());
    // The device may reach the arena and nothing else, whatever the tables say.
    const pa_range window{pa{machine::arena}, machine::arena_end - machine::arena};
    const auto stream = iommu.attach_device("dma0", window, dma_stream);
    if (!stream) return give_up("DMA device", stream.error());
    auto port = iommu.make_port("dma0");
    if (!port) return give_up("DMA device", port.error());
    put(ram, machine::orders + machine::order::stream, raw(*stream));
    put(ram, machine::orders + machine::order::invalidate, invalidate ? 1 : 0);

    machine_dma dma{std::move(*port)};
    machine_bus bus{iommu, dma};
    auto vm = backend.create_vm();
    if (!vm) return give_up("virtual machine", vm.error());
    if (const auto done = vm->add_memory(pa{machine::ram_base}, ram.get(), machine::ram_bytes);
        !done) {
        return give_up("virtual machine", done.error());
    }
    auto vcpu = vm->create_vcpu(0);
    if (!vcpu) return give_up("vCPU", vcpu.error());
    if (const auto done = start_guest(*vcpu, ram); !done) return give_up("guest", done.error());

    const auto ended = vcpu->run(bus);
    if (!ended) return give_up("vCPU", ended.error());

    const guest_report::summary guest = guest_report::read({ram.get(), machine::ram_bytes});
    guest_report::print(std::cout, guest);
    std::cout << "seen from outside\n";
    const auto counts = iommu.stats();
    std::cout << "  guest ended: " << name_of(ended->reason) << '\n'
              << "  SMMU: " << counts.commands << " commands, " << counts.translations
              << " translations, " << counts.hits << " from the TLB, " << counts.faults
              << " faults, " << counts.events << " events\n"
              << "  DMA device: " << dma.completed() << " copies, " << dma.bytes() << " bytes\n"
              << "  interrupts: " << interrupts.pulses(wired_interrupt::eventq) << " eventq, "
              << interrupts.pulses(wired_interrupt::gerror) << " gerror\n";
    bool right = ended->reason == exit_reason::halted;
    right &= agrees("guest finished", guest.complete ? 1 : 0, 1);
    right &= agrees("aborted transfers", dma.aborted(), guest.aborts);
    right &= agrees("faults of the SMMU", counts.faults, guest.aborts);
    right &= agrees("accesses that nothing answered", bus.stray(), 0);
    right &= agrees("gerror interrupts", interrupts.pulses(wired_interrupt::gerror), 0);
    right &=
        agrees("some eventq interrupt", interrupts.pulses(wired_interrupt::eventq) != 0 ? 1 : 0, 1);
    right &= agrees("records that did not fit the report", guest.count - guest.records.size(), 0);
    const std::uint64_t failed = guest.failed();
    std::cout << guest.count - failed << " checks passed, " << failed << " failed"
              << (right ? "" : "; the VMM disagrees, see above") << '\n';
    return right && failed == 0 && guest.count != 0 ? exit_passed : exit_failed;
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
        return run_machine(backend, chosen.invalidate);
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
    return run_machine(*backend, chosen.invalidate);
}
