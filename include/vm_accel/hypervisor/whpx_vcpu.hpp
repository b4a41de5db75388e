/// One virtual processor of the Windows Hypervisor Platform.
///
/// `run` enters the guest and serves its exits from the bus until something happens
/// that the VMM must decide.
///
/// request_exit() loses no request: it sets a flag and then cancels. A cancel that comes
/// while the vCPU is not in the guest ends its next entry (users of the platform rely on
/// it; its reference does not say); one that comes too late finds the flag consumed, and
/// the guest is entered again.
#pragma once

#include <vm_accel/hypervisor/hypervisor.hpp>
#include <vm_accel/hypervisor/whpx_exits.hpp>
#include <vm_accel/os/whpx_abi.hpp>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

namespace vm_accel::inline v0 {

/// Made by basic_whpx_vm::create_vcpu. Moved only before it is shared.
template <class Calls>
class basic_whpx_vcpu {
public:
    using seat = whpx_seat<Calls>;

    basic_whpx_vcpu(basic_whpx_vcpu&&) noexcept = default;
    basic_whpx_vcpu& operator=(basic_whpx_vcpu&& other) noexcept {
        if (this != &other) {
            end();
            seat_ = std::move(other.seat_);
        }
        return *this;
    }
    ~basic_whpx_vcpu() { end(); }

    /// Runs the guest on the calling thread until it exits. A request_exit() made
    /// before this call counts: it returns `interrupted` at once. With local APICs a
    /// guest that halts waits in here. Errors: busy (another thread is in here), those
    /// of the platform.
    template <mmio_bus Bus>
    [[nodiscard]] result<vcpu_exit> run(Bus& bus) noexcept {
        if (seat_->running.exchange(true)) {
            return fail(errc::busy, seat_->named("another thread is running it"),
                        "run each vCPU on one thread at a time");
        }
        const result<vcpu_exit> ended = run_until_exit(bus);
        seat_->running.store(false);
        return ended;
    }

    /// Makes the current run(), or else the next one, return `interrupted`. Several
    /// requests before it returns are one. Any thread; never waits for the guest.
    void request_exit() noexcept {
        seat_->exit_requested.store(true);
        cancel();
    }

    [[nodiscard]] unsigned index() const noexcept { return seat_->index; }

    /// As many values as names, at once. Not while the vCPU runs. Errors: those of the
    /// platform.
    [[nodiscard]] result<>
    set_registers(std::span<const os::whpx_abi::reg> names,
                  std::span<const os::whpx_abi::register_value> values) noexcept {
        const auto done = seat_->machine.calls.set_registers(
            seat_->machine.partition, seat_->index,
            names.first(std::min(names.size(), values.size())), values.data());
        if (os::whpx_abi::failed(done)) return seat_->failed(done, "register");
        return {};
    }
    [[nodiscard]] result<> set_register(os::whpx_abi::reg which, std::uint64_t value) noexcept {
        const os::whpx_abi::register_value written{value, 0};
        return set_registers({&which, 1}, {&written, 1});
    }
    [[nodiscard]] result<std::uint64_t> get_register(os::whpx_abi::reg which) noexcept {
        std::uint64_t value = 0;
        const auto done = seat_->get(which, value);
        if (os::whpx_abi::failed(done)) return seat_->failed(done, "register");
        return value;
    }

    /// Without local APICs: delivers interrupt `vector` (16 to 255) as soon as the guest
    /// takes interrupts; also ends a HLT. One that was not taken yet is replaced. Any
    /// thread. Errors: invalid_argument, unsupported (with local APICs).
    [[nodiscard]] result<> inject_interrupt(unsigned vector) noexcept {
        if (seat_->machine.has_apic) {
            return fail(errc::unsupported, seat_->named("its local APIC takes the interrupts"),
                        "use set_line() or signal_msi() of the VM");
        }
        if (vector < 16 || vector > 255) {
            return fail(errc::invalid_argument,
                        seat_->named("no interrupt has vector ").append_number(vector),
                        "choose 16 to 255");
        }
        seat_->vector.store(vector);
        cancel();
        return {};
    }

private:
    template <class>
    friend class basic_whpx_vm;

    explicit basic_whpx_vcpu(std::unique_ptr<seat> made) noexcept : seat_(std::move(made)) {}

    void cancel() noexcept {
        // Refused only for a vCPU that does not exist.
        static_cast<void>(seat_->machine.calls.cancel(seat_->machine.partition, seat_->index));
    }
    void end() noexcept {
        if (seat_ != nullptr)
            static_cast<void>(
                seat_->machine.calls.delete_vcpu(seat_->machine.partition, seat_->index));
        seat_.reset();
    }

    template <class Bus>
    [[nodiscard]] result<vcpu_exit> run_until_exit(Bus& bus) noexcept {
        whpx_exits<Calls> of_guest{*seat_};
        for (;;) {
            if (seat_->exit_requested.exchange(false)) return vcpu_exit{exit_reason::interrupted};
            if (const result<> ready = of_guest.before_entry(); !ready) return fail(ready);
            os::whpx_abi::exit_context exit;
            const auto ran = seat_->machine.calls.run(seat_->machine.partition, seat_->index, exit);
            if (os::whpx_abi::failed(ran)) return seat_->failed(ran, "running it");
            vcpu_exit ended;
            const result<bool> served = of_guest.serve(exit, bus, ended);
            if (!served) return fail(served);
            if (!*served) return ended;
        }
    }

    std::unique_ptr<seat> seat_;
};

} // namespace vm_accel::inline v0
