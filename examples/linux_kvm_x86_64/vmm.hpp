/// The little machine around the guest, whatever runs it: an SMMUv3, a DMA device
/// behind it, and the comparison of what guest, device and SMMU say.
#pragma once

#include "dma_device.hpp"
#include "guest_report.hpp"
#include "machine.hpp"

#include <vm_accel/guest/interrupt_sink.hpp>
#include <vm_accel/guest/region_map.hpp>
#include <vm_accel/hypervisor/hypervisor.hpp>
#include <vm_accel/smmu/caches/set_associative.hpp>
#include <vm_accel/smmu/host/bitmap_streams.hpp>
#include <vm_accel/smmu/smmu.hpp>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <iostream>
#include <span>
#include <string_view>

namespace vmm {

using namespace vm_accel;

inline constexpr int exit_passed = 0;
inline constexpr int exit_failed = 1;
inline constexpr int exit_usage = 2;
inline constexpr int exit_skipped = 77;

/// The second entry of the first level that is used, so that both levels matter.
inline constexpr stream_id dma_stream{0x103};

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

inline void put(std::span<std::byte> ram, std::uint64_t address, std::uint64_t value) {
    value = little_endian(value);
    std::memcpy(ram.data() + address, &value, sizeof value);
}

/// For a guest on bare metal: its image, and page tables that map 4 GiB one to one,
/// from machine::processor_tables on. Error: unsupported without an image.
[[nodiscard]] inline result<> load_guest(std::span<std::byte> ram,
                                         std::span<const std::byte> image) noexcept {
    if (image.empty() || image.size() > machine::payload_bytes) {
        return fail(errc::unsupported, "this program has no bare-metal guest inside",
                    "build it for x86-64 with a compiler for ELF");
    }
    std::ranges::copy(image, ram.data() + machine::payload);
    constexpr std::uint64_t pml4 = machine::processor_tables;
    constexpr std::uint64_t present_writable = 3;
    put(ram, pml4, (pml4 + 0x1000) | present_writable);
    for (std::uint64_t i = 0; i < 4; ++i)
        put(ram, pml4 + 0x1000 + 8 * i, (pml4 + 0x2000 + 0x1000 * i) | present_writable);
    for (std::uint64_t i = 0; i < 2048; ++i) // 2 MiB pages
        put(ram, pml4 + 0x2000 + 8 * i, i << 21 | 0x80 | present_writable);
    return {};
}

[[nodiscard]] inline int give_up(std::string_view what, const error& e) {
    std::cerr << what << ": " << e << '\n';
    return exit_failed;
}

/// One comparison made by the VMM.
[[nodiscard]] inline bool agrees(std::string_view what, std::uint64_t found,
                                 std::uint64_t expected) {
    std::cout << "  " << what << ": " << found;
    if (found == expected) {
        std::cout << '\n';
        return true;
    }
    std::cout << " FAILED, not " << expected << '\n';
    return false;
}

/// Runs the guest on the calling thread. `ram` has machine::ram_bytes and is all zero;
/// `start(vcpu, ram)` puts the guest in and sets where it starts.
template <hypervisor Backend, class Start>
[[nodiscard]] int run_machine(Backend& backend, std::span<std::byte> ram, bool invalidate,
                              Start start) {
    region_map memory;
    counting_sink interrupts;
    if (const auto done = memory.add(pa{machine::ram_base}, ram.data(), machine::ram_bytes); !done)
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
    if (const auto done = vm->add_memory(pa{machine::ram_base}, ram.data(), machine::ram_bytes);
        !done) {
        return give_up("virtual machine", done.error());
    }
    auto vcpu = vm->create_vcpu(0);
    if (!vcpu) return give_up("vCPU", vcpu.error());
    if (const auto done = start(*vcpu, ram); !done) return give_up("guest", done.error());

    const auto ended = vcpu->run(bus);
    if (!ended) return give_up("vCPU", ended.error());

    const guest_report::summary guest = guest_report::read(ram);
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

} // namespace vmm
