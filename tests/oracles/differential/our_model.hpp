/// The library's SMMU, with devices that access memory as the golden model's do.
#pragma once

#include "machine_layout.hpp"

#include <vm_accel/guest/region_map.hpp>
#include <vm_accel/smmu/caches/set_associative.hpp>
#include <vm_accel/smmu/host/bitmap_streams.hpp>
#include <vm_accel/smmu/smmu.hpp>
#include <vm_accel/spec/events.hpp>
#include <vm_accel/spec/registers.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace differential {

namespace spec = vm_accel::spec;

struct our_options : vm_accel::default_smmu_options {
    /// What the golden model's ID registers say.
    static constexpr vm_accel::smmu_features features{
        .stage2 = true,
        .granule_16k = true,
        .granule_64k = true,
        .output_bits = 44,
        .bbml = 2,
        .xnx = true,
        .vmid16 = true,
    };
    using quiescence = vm_accel::single_threaded;
    static constexpr std::size_t ports = 16;
};

class our_model {
public:
    using device = vm_accel::smmu<vm_accel::set_associative<64, 4>, vm_accel::bitmap_streams<65536>,
                                  vm_accel::region_map, vm_accel::counting_sink, our_options>;

    our_model() : ram_(static_cast<std::byte*>(::operator new(ram_bytes, std::align_val_t{4096}))) {
        std::memset(ram_, 0, ram_bytes);
        require(memory_.add(vm_accel::pa{ram}, ram_, ram_bytes));
        renew();
    }
    our_model(const our_model&) = delete;
    our_model& operator=(const our_model&) = delete;
    ~our_model() {
        ports_.clear();
        smmu_.reset();
        ::operator delete(ram_, std::align_val_t{4096});
    }

    /// A new SMMU in front of the same memory, with the same devices.
    void renew() {
        ports_.clear();
        smmu_ = std::make_unique<device>(memory_, sink_);
        require(smmu_->init());
        for (unsigned i = 0; i < device_count; ++i) {
            const std::string name = "edu" + std::to_string(i);
            const auto attached = smmu_->attach_device(
                name, {vm_accel::pa{0}, std::uint64_t{1} << our_options::features.output_bits},
                vm_accel::stream_id{stream_of(i)});
            if (!attached) throw std::runtime_error{std::string{attached.error().cause.view()}};
            auto port = smmu_->make_port(name);
            if (!port) throw std::runtime_error{std::string{port.error().cause.view()}};
            ports_.push_back(std::move(*port));
        }
    }

    [[nodiscard]] std::byte* ram_bytes_at_start() const { return ram_; }
    void write_register(std::uint32_t offset, std::uint32_t value) {
        smmu_->mmio_write(offset, 4, value);
    }
    void write_register64(std::uint32_t offset, std::uint64_t value) {
        smmu_->mmio_write(offset, 8, value);
    }
    [[nodiscard]] std::uint32_t read_register(std::uint32_t offset) {
        return static_cast<std::uint32_t>(smmu_->mmio_read(offset, 4));
    }
    /// Until there is no command left that could be executed.
    void poll() {
        while (smmu_->poll()) {}
    }

    /// One access that one translation serves, and what it was answered.
    struct answer {
        vm_accel::outcome outcome;
        std::vector<spec::event_record> events;
    };
    /// Translates and, where that gives memory, copies. `bytes` is the device's own memory.
    answer access(unsigned from, bool write, std::uint64_t address, std::uint32_t length,
                  std::byte* bytes, bool privileged) {
        const std::uint32_t before = read_register(spec::reg::EVENTQ_PROD);
        answer a;
        {
            auto guard = ports_[from].open();
            a.outcome = guard.translate(vm_accel::iova{address}, length,
                                        write ? vm_accel::access::write : vm_accel::access::read,
                                        {privileged, false});
            if (a.outcome.is_span()) {
                const auto n = static_cast<std::size_t>(a.outcome.length());
                if (write) {
                    std::memcpy(a.outcome.host(), bytes, n);
                } else {
                    std::memcpy(bytes, a.outcome.host(), n);
                }
            }
        }
        if (!a.outcome.is_span()) {
            const std::uint32_t after = read_register(spec::reg::EVENTQ_PROD);
            constexpr std::uint32_t positions = (2U << event_log2) - 1;
            for (std::uint32_t at = before; ((at ^ after) & positions) != 0; ++at) {
                spec::event_record record;
                std::memcpy(record.word.data(),
                            ram_ + (event_ring - ram) +
                                (at & ((1U << event_log2) - 1)) * sizeof record,
                            sizeof record);
                a.events.push_back(record);
            }
        }
        return a;
    }
    void take_all_events() {
        write_register(spec::reg::EVENTQ_CONS, read_register(spec::reg::EVENTQ_PROD));
    }
    [[nodiscard]] vm_accel::smmu_statistics statistics() const { return smmu_->stats(); }

private:
    static void require(const vm_accel::result<>& done) {
        if (!done) throw std::runtime_error{std::string{done.error().cause.view()}};
    }

    std::byte* ram_;
    vm_accel::region_map memory_;
    vm_accel::counting_sink sink_;
    std::unique_ptr<device> smmu_;
    std::vector<device::port> ports_;
};

} // namespace differential
