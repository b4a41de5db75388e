/// One virtual processor of KVM: entering the guest, and being called back out.
///
/// `run` loops in KVM_RUN and serves MMIO and ports from the bus until
/// something happens that the VMM must decide.
///
/// request_exit() loses no request: it sets a flag, then the byte
/// `immediate_exit` that KVM looks at before it enters the guest, and only then
/// signals the thread if it is inside `run`. A signal that comes too early finds
/// the byte set; one that comes too late finds the flag consumed and does
/// nothing.
#pragma once

#include <vm_accel/core/atomic_view.hpp>
#include <vm_accel/core/field.hpp>
#include <vm_accel/hypervisor/hypervisor.hpp>
#include <vm_accel/os/kvm_abi.hpp>
#include <vm_accel/os/kvm_calls.hpp>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <utility>

namespace vm_accel::inline v0 {

/// Made by kvm_vm::create_vcpu. Moved only before it is shared.
class kvm_vcpu {
public:
    kvm_vcpu(kvm_vcpu&& other) noexcept
        : vcpu_(std::move(other.vcpu_)),
          page_(std::move(other.page_)),
          index_(other.index_),
          kick_signal_(other.kick_signal_),
          exit_requested_(other.exit_requested_.load()) {}
    kvm_vcpu& operator=(kvm_vcpu&& other) noexcept {
        vcpu_ = std::move(other.vcpu_);
        page_ = std::move(other.page_);
        index_ = other.index_;
        kick_signal_ = other.kick_signal_;
        exit_requested_.store(other.exit_requested_.load());
        return *this;
    }

    /// Runs the guest on the calling thread until it exits. A request_exit()
    /// made before this call counts: it returns `interrupted` at once.
    /// Errors: busy (another thread is in here), else what KVM_RUN reports.
    template <mmio_bus Bus>
    [[nodiscard]] result<vcpu_exit> run(Bus& bus) noexcept {
        os::thread_number nobody = 0;
        if (!runner_.compare_exchange_strong(nobody, os::accept_kicks(kick_signal_))) {
            return fail(errc::busy, named("another thread is running it"),
                        "run each vCPU on one thread at a time");
        }
        const result<vcpu_exit> ended = run_until_exit(bus);
        runner_.store(0);
        return ended;
    }

    /// Makes the current run(), or else the next one, return `interrupted`.
    /// Several requests before it returns are one. Any thread; never blocks.
    void request_exit() noexcept {
        exit_requested_.store(true);
        immediate_exit().store(1);
        if (const os::thread_number thread = runner_.load(); thread != 0) {
            os::kick(thread, kick_signal_);
        }
    }

    [[nodiscard]] unsigned index() const noexcept { return index_; }

    /// One register by KVM's number for it (arm64: see arm64::x(), arm64::pc).
    /// Not while the vCPU runs. invalid_argument or not_found: no such register.
    [[nodiscard]] result<> set_register(std::uint64_t id, std::uint64_t value) noexcept {
        os::kvm_abi::one_register request{id, address_of(value)};
        return ask(os::kvm_abi::set_one_register, request, "KVM_SET_ONE_REG");
    }
    [[nodiscard]] result<std::uint64_t> get_register(std::uint64_t id) noexcept {
        std::uint64_t value = 0;
        os::kvm_abi::one_register request{id, address_of(value)};
        const result<> done = ask(os::kvm_abi::get_one_register, request, "KVM_GET_ONE_REG");
        if (!done) return fail(done);
        return value;
    }

    /// Any request that has a structure for argument; `what` names it in the error.
    template <class Argument>
    [[nodiscard]] result<> ask(std::uint32_t number, Argument& argument,
                               std::string_view what) noexcept {
        const os::call_result called = os::device_request_with(vcpu_, number, argument);
        if (called.ok()) return {};
        return os::fail_with(called.os_error, named(what).view(),
                             "check the value, and that this architecture and kernel have it");
    }

private:
    friend class kvm_vm;

    kvm_vcpu(os::descriptor vcpu, os::shared_mapping page, unsigned index, int kick) noexcept
        : vcpu_(std::move(vcpu)), page_(std::move(page)), index_(index), kick_signal_(kick) {}

    [[nodiscard]] static std::uint64_t address_of(const std::uint64_t& value) noexcept {
        return reinterpret_cast<std::uintptr_t>(&value);
    }
    [[nodiscard]] fixed_text<160> named(std::string_view what) const noexcept {
        return fixed_text<160>{"vCPU "}.append_number(index_).append(": ").append(what);
    }
    [[nodiscard]] os::kvm_abi::run_page& page() noexcept {
        return *reinterpret_cast<os::kvm_abi::run_page*>(page_.data());
    }
    [[nodiscard]] atomic_view<std::uint8_t> immediate_exit() noexcept {
        return atomic_view<std::uint8_t>{page().immediate_exit};
    }

    template <class Bus>
    [[nodiscard]] result<vcpu_exit> run_until_exit(Bus& bus) noexcept {
        for (;;) {
            const os::call_result called = os::device_request(vcpu_, os::kvm_abi::run);
            if (called.ok()) {
                vcpu_exit ended;
                if (!serve(bus, ended)) return ended;
            } else if (called.os_error == EINTR || called.os_error == EAGAIN) {
                // The byte first: a request that lands in between sets it again
                // and costs one empty round, it is never lost.
                immediate_exit().store(0);
                if (exit_requested_.exchange(false)) return vcpu_exit{exit_reason::interrupted};
            } else {
                return os::fail_with(called.os_error, named("KVM_RUN").view(),
                                     "set the registers and, on arm64, finish_gic() before run()");
            }
        }
    }

    /// Handles one exit. False: `ended` says why the VMM must decide.
    template <class Bus>
    [[nodiscard]] bool serve(Bus& bus, vcpu_exit& ended) noexcept {
        using os::kvm_abi::exit;
        os::kvm_abi::run_page& run = page();
        switch (exit{run.exit_reason}) {
        case exit::mmio: {
            const std::size_t size = std::min<std::size_t>(run.mmio.length, 8);
            const std::span<std::byte> data{reinterpret_cast<std::byte*>(run.mmio.data), size};
            if (run.mmio.is_write != 0) {
                bus.mmio_write(pa{run.mmio.address}, data);
            } else {
                bus.mmio_read(pa{run.mmio.address}, data);
            }
            return true;
        }
        case exit::io:
            serve_ports(bus, run);
            return true;
        case exit::hlt:
            ended.reason = exit_reason::halted;
            return false;
        case exit::shutdown:
            ended.reason = exit_reason::shutdown;
            return false;
        case exit::fail_entry:
            ended = {exit_reason::entry_failed, run.fail_entry.hardware_reason, 0};
            return false;
        case exit::internal_error:
            ended = {exit_reason::not_emulated, run.internal.suberror, 0};
            return false;
        case exit::arm_no_syndrome:
            ended = {exit_reason::not_emulated, run.arm_no_syndrome.syndrome,
                     run.arm_no_syndrome.fault_address};
            return false;
        case exit::system_event:
            ended = of_system_event(run.system_event.type);
            return false;
        case exit::interrupted:
            return true;
        case exit::unknown:
            break;
        }
        ended = {exit_reason::unknown, run.exit_reason, 0};
        return false;
    }

    [[nodiscard]] static vcpu_exit of_system_event(std::uint32_t type) noexcept {
        using os::kvm_abi::system_event;
        switch (system_event{type}) {
        case system_event::shutdown:
            return {exit_reason::shutdown, type, 0};
        case system_event::reset:
            return {exit_reason::reset, type, 0};
        case system_event::crash:
            return {exit_reason::crashed, type, 0};
        }
        return {exit_reason::unknown, type, 0};
    }

    template <class Bus>
    void serve_ports(Bus& bus, const os::kvm_abi::run_page& run) noexcept {
        const auto io = run.io;
        for (std::uint32_t i = 0; i < io.count; ++i) {
            const std::uint64_t at = io.data_offset + std::uint64_t{i} * io.size;
            if (at > page_.size() || io.size > page_.size() - at) return;
            const std::span<std::byte> data{page_.data() + at, io.size};
            if constexpr (port_bus<Bus>) {
                if (io.direction != 0) {
                    bus.io_write(io.port, data);
                } else {
                    bus.io_read(io.port, data);
                }
            } else if (io.direction == 0) {
                std::ranges::fill(data, std::byte{0xff});
            }
        }
    }

    os::descriptor vcpu_;
    os::shared_mapping page_;
    unsigned index_ = 0;
    int kick_signal_ = 0;
    std::atomic<os::thread_number> runner_{0};
    std::atomic<bool> exit_requested_{false};
};

} // namespace vm_accel::inline v0
