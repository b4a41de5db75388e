/// A little machine on any backend that runs arm64: RAM, a UART, an SMMUv3 and a device
/// behind it.
#pragma once

#include "payload.hpp"

#include <vm_accel/core/field.hpp>
#include <vm_accel/guest/interrupt_sink.hpp>
#include <vm_accel/guest/region_map.hpp>
#include <vm_accel/hypervisor/hvf_arm64.hpp>
#include <vm_accel/hypervisor/hypervisor.hpp>
#include <vm_accel/smmu/caches/set_associative.hpp>
#include <vm_accel/smmu/host/bitmap_streams.hpp>
#include <vm_accel/smmu/smmu.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <utility>

namespace macos_machine {

using namespace vm_accel;
namespace place = payload::place;

using machine_smmu = smmu<set_associative<64, 4>, bitmap_streams<16>>;

/// Guest RAM on pages of any host.
class guest_ram {
public:
    guest_ram() : bytes_(new(std::align_val_t{alignment}) std::byte[place::ram_bytes]()) {}
    [[nodiscard]] std::byte* data() noexcept { return bytes_.get(); }
    [[nodiscard]] std::uint32_t word(std::uint64_t address) const noexcept {
        std::uint32_t value = 0;
        std::memcpy(&value, bytes_.get() + (address - place::ram), sizeof value);
        return value;
    }

private:
    static constexpr std::size_t alignment = 0x1'0000;
    struct release {
        void operator()(std::byte* bytes) const noexcept {
            ::operator delete[](bytes, std::align_val_t{alignment});
        }
    };
    std::unique_ptr<std::byte[], release> bytes_;
};

/// What the guest sees outside its memory.
class bus {
public:
    explicit bus(machine_smmu& smmu) noexcept : smmu_(smmu) {}

    void mmio_read(pa address, std::span<std::byte> out) noexcept {
        std::uint64_t value = 0;
        const auto size = static_cast<unsigned>(out.size());
        if (smmu_window.contains(address, size)) {
            smmu_.poll();
            value = smmu_.mmio_read(raw(address) - place::smmu, size);
        } else {
            stray_ += 1;
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
            smmu_.mmio_write(raw(address) - place::smmu, size, value);
        } else if (raw(address) == place::uart) {
            printed_.push_back(static_cast<char>(value));
        } else {
            stray_ += 1;
        }
    }
    [[nodiscard]] const std::string& printed() const noexcept { return printed_; }
    /// Accesses that nothing answered.
    [[nodiscard]] unsigned stray() const noexcept { return stray_; }

private:
    static constexpr pa_range smmu_window{pa{place::smmu}, place::smmu_bytes};

    machine_smmu& smmu_;
    std::string printed_;
    unsigned stray_ = 0;
};

/// What came of a run.
struct outcome {
    exit_reason ended = exit_reason::unknown;
    std::string printed{};
    unsigned stray = 0;
    std::uint32_t idr0 = 0;
    std::uint32_t cr0_acknowledged = 0;
    std::uint32_t commands_consumed = 0;
    bool finished = false;
    bool device_reads = false;    ///< through the stream that the guest set up
    bool device_confined = false; ///< and nothing outside RAM

    [[nodiscard]] bool good() const noexcept {
        return ended == exit_reason::shutdown && printed == payload::greeting && stray == 0 &&
               idr0 != 0 && cr0_acknowledged == 9 && commands_consumed == 2 && finished &&
               device_reads && device_confined;
    }
};

/// Runs the guest on the calling thread, then has the device read memory. Errors: those
/// of the backend and of the SMMU's set-up.
template <class Backend>
[[nodiscard]] result<outcome> run(Backend& backend) {
    guest_ram ram;
    region_map memory;
    counting_sink interrupts;
    constexpr pa_range window{pa{place::ram}, place::ram_bytes};
    if (const auto done = memory.add(window.base, ram.data(), window.size); !done)
        return fail(done);
    const auto iommu = std::make_unique<machine_smmu>(memory, interrupts);
    if (const auto done = iommu->init(); !done) return fail(done);
    const auto stream = iommu->attach_device("dma0", window, stream_id{0});
    if (!stream) return fail(stream);
    auto port = iommu->make_port("dma0");
    if (!port) return fail(port);

    constexpr payload::program code = payload::make();
    std::memcpy(ram.data(), code.words().data(), code.words().size_bytes());
    auto vm = backend.create_vm();
    if (!vm) return fail(vm);
    if (const auto done = vm->add_memory(window.base, ram.data(), window.size); !done)
        return fail(done);
    auto vcpu = vm->create_vcpu(0);
    if (!vcpu) return fail(vcpu);
    if (const auto done = hvf_arm64::set_boot_registers(*vcpu, pa{place::code}, pa{0}); !done)
        return fail(done);

    bus outside{*iommu};
    const auto ended = vcpu->run(outside);
    if (!ended) return fail(ended);

    outcome seen;
    seen.ended = ended->reason;
    seen.printed = outside.printed();
    seen.stray = outside.stray();
    seen.idr0 = ram.word(place::report + payload::reported::idr0);
    seen.cr0_acknowledged = ram.word(place::report + payload::reported::cr0_acknowledged);
    seen.commands_consumed = ram.word(place::report + payload::reported::commands_consumed);
    seen.finished =
        ram.word(place::report + payload::reported::finished) == payload::reported::done;
    std::array<std::byte, 8> text{};
    std::uint64_t value = 0;
    seen.device_reads = port->read(iova{place::buffer}, text);
    std::memcpy(&value, text.data(), sizeof value);
    seen.device_reads = seen.device_reads && value == payload::text_for_device;
    seen.device_confined = !port->read(iova{place::ram + place::ram_bytes}, text);
    return seen;
}

} // namespace macos_machine
