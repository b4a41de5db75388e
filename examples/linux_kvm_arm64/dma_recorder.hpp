/// Records what devices and the guest's driver do to the SMMU's TLB, as a trace
/// for examples/policy_lab.
#pragma once

#include "../policy_lab/trace.hpp"
#include "dma.hpp"

#include <vm_accel/core/result.hpp>
#include <vm_accel/guest/region_map.hpp>
#include <vm_accel/smmu/caches/tlb_policy.hpp>
#include <vm_accel/smmu/control/command_decoder.hpp>
#include <vm_accel/smmu/vocabulary/access_attributes.hpp>
#include <vm_accel/spec/commands.hpp>
#include <vm_accel/spec/registers.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <mutex>
#include <span>
#include <string>
#include <utility>

namespace linux_vmm {

/// The file. Threads: any. An access is written when it is over, so the pages
/// that it brought into the TLB come before it.
class dma_recorder {
public:
    /// Error: invalid_argument, `path` cannot be written.
    [[nodiscard]] vm_accel::result<> open(const std::string& path) {
        file_.open(path, std::ios::trunc);
        if (!file_) {
            return vm_accel::fail(vm_accel::errc::invalid_argument,
                                  vm_accel::fixed_text<160>{path}.append(": cannot be written"),
                                  "give --record another file");
        }
        file_ << policy_lab::trace_heading << '\n';
        return {};
    }

    /// One access of a device, from construction to destruction, on one thread.
    class access {
    public:
        /// `recorder` null: nothing is recorded.
        access(dma_recorder* recorder, std::uint32_t stream, iova address, std::uint64_t bytes,
               bool writes) noexcept
            : recorder_(recorder) {
            if (recorder_ == nullptr) return;
            device_.stream = stream;
            made_.what = writes ? policy_lab::trace_record::kind::write
                                : policy_lab::trace_record::kind::read;
            made_.address = raw(address);
            made_.bytes = bytes;
            before_ = std::exchange(of_this_thread, this);
        }
        ~access() {
            if (recorder_ == nullptr) return;
            recorder_->add(made_, &device_);
            of_this_thread = before_;
        }
        access(const access&) = delete;
        access& operator=(const access&) = delete;

    private:
        friend dma_recorder;
        dma_recorder* recorder_;
        policy_lab::trace_record device_, made_;
        access* before_ = nullptr;
    };

    /// A page that has come into the TLB for the access of this thread, if it
    /// makes one that is recorded.
    static void page(const vm_accel::tlb_entry& filled) noexcept {
        const access* const from = of_this_thread;
        if (from == nullptr) return;
        policy_lab::trace_record record{.what = policy_lab::trace_record::kind::page};
        record.address = filled.base;
        record.size_log2 = filled.size_log2;
        record.global = filled.global;
        record.tag = filled.tag;
        from->recorder_->add(record, &from->device_);
    }
    void forget(const vm_accel::invalidation_scope& scope) noexcept {
        policy_lab::trace_record record{.what = policy_lab::trace_record::kind::forget};
        record.scope = scope;
        add(record, nullptr);
    }

private:
    void add(const policy_lab::trace_record& record,
             const policy_lab::trace_record* device) noexcept {
        const std::lock_guard lock{mutex_};
        if (device != nullptr && (!any_ || device->stream != stream_)) {
            file_ << to_line(*device) << '\n';
            stream_ = device->stream;
            any_ = true;
        }
        file_ << to_line(record) << '\n';
    }

    inline static thread_local access* of_this_thread = nullptr;
    std::mutex mutex_;
    std::ofstream file_;
    bool any_ = false;
    std::uint32_t stream_ = 0; ///< of the lines that come now
};

/// A port whose untranslated accesses are recorded.
template <class Port>
class recorded_port : public Port {
public:
    /// `recorder`: null, or outlives the port.
    recorded_port(Port port, dma_recorder* recorder) noexcept
        : Port(std::move(port)), recorder_(recorder) {}

    [[nodiscard]] bool read(iova address, std::span<std::byte> out,
                            vm_accel::access_attributes how = {}) noexcept {
        const dma_recorder::access note{how.translated ? nullptr : recorder_, raw(this->stream()),
                                        address, out.size(), false};
        return Port::read(address, out, how);
    }
    [[nodiscard]] bool write(iova address, std::span<const std::byte> in,
                             vm_accel::access_attributes how = {}) noexcept {
        const dma_recorder::access note{how.translated ? nullptr : recorder_, raw(this->stream()),
                                        address, in.size(), true};
        return Port::write(address, in, how);
    }

private:
    dma_recorder* recorder_;
};

/// A TLB that tells what it is filled with. Its look-ups are `Tlb`'s own.
template <vm_accel::tlb_policy Tlb>
class recorded_tlb : public Tlb {
public:
    void fill(vm_accel::fill_ticket ticket, const vm_accel::tlb_entry& made) noexcept {
        dma_recorder::page(made);
        Tlb::fill(ticket, made);
    }
};

/// The SMMU's registers: when the driver hands commands over, what they take
/// back is recorded. `F`: the SMMU's features.
template <vm_accel::smmu_features F, class Smmu>
class recorded_registers {
public:
    recorded_registers(Smmu& smmu, const vm_accel::region_map& memory,
                       dma_recorder* recorder) noexcept
        : smmu_(smmu), memory_(memory), recorder_(recorder) {}

    [[nodiscard]] std::uint64_t mmio_read(std::uint64_t offset, unsigned size) noexcept {
        return smmu_.mmio_read(offset, size);
    }
    void mmio_write(std::uint64_t offset, unsigned size, std::uint64_t value) noexcept {
        if (recorder_ != nullptr && offset == vm_accel::spec::reg::CMDQ_PROD) {
            record_until(static_cast<std::uint32_t>(value));
        }
        smmu_.mmio_write(offset, size, value);
    }
    [[nodiscard]] decltype(auto) performance_monitor() noexcept
        requires requires(Smmu& smmu) { smmu.performance_monitor(); }
    {
        return smmu_.performance_monitor();
    }

private:
    void record_until(std::uint32_t end) noexcept {
        namespace reg = vm_accel::spec::reg;
        const std::uint64_t base = smmu_.mmio_read(reg::CMDQ_BASE, 8);
        const std::uint32_t size_log2 = base & 0x1f;
        if (size_log2 > 19) return;
        const std::uint32_t wrap = (std::uint32_t{2} << size_log2) - 1; ///< index and wrap bit
        const std::uint32_t entries = std::uint32_t{1} << size_log2;
        auto at = static_cast<std::uint32_t>(smmu_.mmio_read(reg::CMDQ_PROD, 4)) & wrap;
        for (std::uint32_t n = 0; n < entries && at != (end & wrap); ++n, at = (at + 1) & wrap) {
            vm_accel::spec::command command;
            const pa where{(base & 0x000f'ffff'ffff'ffe0) + std::uint64_t{16} * (at % entries)};
            if (!memory_.read(where, std::as_writable_bytes(std::span{&command, 1}))) return;
            const vm_accel::command_action action = vm_accel::decode_command<F>(command);
            if (action.what != vm_accel::command_action::kind::invalidate) continue;
            recorder_->forget(action.scope);
            if (action.also) recorder_->forget(*action.also);
        }
    }
    using pa = vm_accel::pa;

    Smmu& smmu_;
    const vm_accel::region_map& memory_;
    dma_recorder* recorder_;
};

} // namespace linux_vmm
