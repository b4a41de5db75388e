/// One virtual processor of Hypervisor.framework.
///
/// `run` enters the guest and serves its exits from the bus until something happens
/// that the VMM must decide. The framework ties a vCPU to a thread: it is created by
/// its first run(), and belongs to that thread from then on.
///
/// request_exit() loses no request: it sets a flag and then brings the vCPU out. A
/// vCPU that is not in the guest at that moment comes back from its next entry at
/// once, and looks at the flag.
#pragma once

#include <vm_accel/hypervisor/hvf_arm64.hpp>
#include <vm_accel/hypervisor/hvf_machine.hpp>
#include <vm_accel/hypervisor/hvf_x86_64_exits.hpp>
#include <vm_accel/hypervisor/hypervisor.hpp>

#include <type_traits>
#include <utility>

namespace vm_accel::inline v0 {

/// Made by basic_hvf_vm::create_vcpu. Moved only before it is shared. Destroy it on
/// the thread that ran it, or let that thread end: the framework's part goes with
/// whichever comes first.
template <class Calls>
class basic_hvf_vcpu {
public:
    static constexpr bool is_arm64 = Calls::architecture == os::hvf_architecture::arm64;

    basic_hvf_vcpu(basic_hvf_vcpu&& other) noexcept : seat_(std::exchange(other.seat_, nullptr)) {}
    basic_hvf_vcpu& operator=(basic_hvf_vcpu&& other) noexcept {
        if (this != &other) {
            if (seat_ != nullptr) seat_->abandon();
            seat_ = std::exchange(other.seat_, nullptr);
        }
        return *this;
    }
    ~basic_hvf_vcpu() {
        if (seat_ != nullptr) seat_->abandon();
    }

    /// Runs the guest on the calling thread until it exits. A request_exit() made
    /// before this call counts: it returns `interrupted` at once. arm64: a vCPU that is
    /// off waits in here for the guest's CPU_ON. Errors: busy (another thread is in
    /// here, or the vCPU belongs to another thread), those of the framework.
    template <mmio_bus Bus>
    [[nodiscard]] result<vcpu_exit> run(Bus& bus) noexcept {
        if (!seat_->enter()) {
            return fail(errc::busy, seat_->named("another thread is running it"),
                        "run each vCPU on one thread at a time");
        }
        const result<vcpu_exit> ended = run_until_exit(bus);
        seat_->leave();
        return ended;
    }

    /// Makes the current run(), or else the next one, return `interrupted`. Several
    /// requests before it returns are one. Any thread; never waits for the guest.
    void request_exit() noexcept { seat_->request_exit(); }

    [[nodiscard]] unsigned index() const noexcept { return seat_->index(); }

    /// A register (see hvf_arm64::x() and hvf_x86_64::general()). Before the first run()
    /// from any one thread: the value is kept, and set when the vCPU is created. Then on
    /// its thread only, not while it runs. Errors: busy, those of the framework.
    [[nodiscard]] result<> set_register(hvf_register which, std::uint64_t value) noexcept {
        return seat_->write_register(which, value);
    }
    /// Also not_initialized: the vCPU has not run, and the register was not set.
    [[nodiscard]] result<std::uint64_t> get_register(hvf_register which) noexcept {
        return seat_->read_register(which);
    }

    /// x86-64: delivers interrupt `vector` (16 to 255) as soon as the guest takes
    /// interrupts; also ends a HLT. One that was not taken yet is replaced. Any thread.
    /// Errors: invalid_argument, unsupported (arm64: use set_line()).
    [[nodiscard]] result<> inject_interrupt(unsigned vector) noexcept {
        if constexpr (is_arm64) {
            return fail(errc::unsupported, seat_->named("vectors are of x86-64"),
                        "use set_line() of the VM");
        }
        if (vector < 16 || vector > 255) {
            return fail(errc::invalid_argument,
                        seat_->named("no interrupt has vector ").append_number(vector),
                        "choose 16 to 255");
        }
        seat_->vector.store(vector);
        seat_->wake();
        return {};
    }

private:
    template <class>
    friend class basic_hvf_vm;
    using exits = std::conditional_t<is_arm64, hvf_arm64::exits<Calls>, hvf_x86_64::exits<Calls>>;

    explicit basic_hvf_vcpu(hvf_seat<Calls>* seat) noexcept : seat_(seat) {}

    template <class Bus>
    [[nodiscard]] result<vcpu_exit> run_until_exit(Bus& bus) noexcept {
        const result<> here =
            seat_->settle([](hvf_seat<Calls>& seat) { return exits::prepare(seat); });
        if (!here) return fail(here);
        exits of_guest{*seat_};
        for (;;) {
            if (seat_->take_exit_request()) return vcpu_exit{exit_reason::interrupted};
            const result<bool> ready = of_guest.before_entry();
            if (!ready) return fail(ready);
            if (!*ready) continue;
            const os::hvf_abi::status ran = seat_->calls().run_vcpu(seat_->number());
            if (ran != os::hvf_abi::status::success) return seat_->failed(ran, "running it");
            vcpu_exit ended;
            const result<bool> served = of_guest.serve(bus, ended);
            if (!served) return fail(served);
            if (!*served) return ended;
        }
    }

    hvf_seat<Calls>* seat_;
};

} // namespace vm_accel::inline v0
