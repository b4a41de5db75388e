/// What the vCPUs of one VM of Hypervisor.framework share, and the seat of each.
///
/// The framework ties a vCPU to the thread that created it: only that thread may run
/// it, read its registers and destroy it. So a vCPU is created by its first run(), on
/// the thread that runs it; until then its registers are kept here.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/hypervisor/hvf_errors.hpp>
#include <vm_accel/hypervisor/hvf_memory.hpp>
#include <vm_accel/hypervisor/psci.hpp>
#include <vm_accel/os/hvf_abi.hpp>
#include <vm_accel/os/hvf_functions.hpp>
#include <vm_accel/os/thread_mark.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

namespace vm_accel::inline v0 {

/// Names a register of a vCPU in the framework's numbers.
struct hvf_register {
    enum class bank : std::uint8_t {
        general, ///< hv_reg_t, hv_x86_reg_t
        system,  ///< arm64: hv_sys_reg_t; x86-64: a field of the VMCS
    };
    bank in = bank::general;
    std::uint32_t number = 0;

    friend constexpr bool operator==(const hvf_register&, const hvf_register&) = default;
};

template <class Calls>
class hvf_seat;

template <class Calls>
struct hvf_machine {
    static constexpr std::size_t vcpu_limit = psci::power_states::capacity;

    explicit hvf_machine(const Calls& c, unsigned vcpus) noexcept
        : calls(c), maximum_vcpus(std::min<unsigned>(vcpus, vcpu_limit)) {}

    /// Makes vCPU `index` look at what has changed.
    void wake(unsigned index) noexcept {
        const std::lock_guard lock{seats_mutex};
        if (index < seats.size() && seats[index] != nullptr) seats[index]->wake();
    }

    Calls calls;
    unsigned maximum_vcpus;
    hvf_memory memory{};
    psci::power_states power{};
    /// arm64 without a GIC: the level of each vCPU's IRQ input.
    std::array<std::atomic<bool>, vcpu_limit> irq{};
    /// arm64: there is a GIC of the framework's, with SPIs from `first_spi` on.
    std::atomic<unsigned> spi_count{0};
    unsigned first_spi = 32;
    std::mutex seats_mutex{};
    std::array<hvf_seat<Calls>*, vcpu_limit> seats{};
};

/// Where one vCPU lives. It has two owners: the object that the VMM has, and, once it
/// has run, the list of its thread, which destroys it when the thread ends.
template <class Calls>
class hvf_seat {
public:
    using status = os::hvf_abi::status;

    hvf_seat(hvf_machine<Calls>& machine, unsigned index) noexcept
        : machine_(&machine), calls_(machine.calls), index_(index) {
        const std::lock_guard lock{machine.seats_mutex};
        machine.seats[index] = this;
    }
    hvf_seat(const hvf_seat&) = delete;
    hvf_seat& operator=(const hvf_seat&) = delete;

    [[nodiscard]] hvf_machine<Calls>& machine() noexcept { return *machine_; }
    [[nodiscard]] const Calls& calls() const noexcept { return calls_; }
    [[nodiscard]] unsigned index() const noexcept { return index_; }
    [[nodiscard]] std::uint64_t number() const noexcept { return number_; }
    [[nodiscard]] const os::hvf_abi::arm64_exit_information& exit() const noexcept {
        return *exit_;
    }
    [[nodiscard]] fixed_text<160> named(std::string_view what) const noexcept {
        return fixed_text<160>{"vCPU "}.append_number(index_).append(": ").append(what);
    }
    [[nodiscard]] tl::unexpected<error> failed(status refusal,
                                               std::string_view what) const noexcept {
        return hvf_failure(refusal, named(what).view(),
                           "check the registers, and that this Mac has the feature");
    }

    // --- the thread of the vCPU ---------------------------------------------

    /// Creates the vCPU on the calling thread, unless that has been done. `prepare(seat)`
    /// gives a result<>; it sets what a new vCPU needs before the kept registers.
    /// Errors: busy (it lives on another thread), those of the framework.
    template <class Prepare>
    [[nodiscard]] result<> settle(Prepare prepare) noexcept;
    [[nodiscard]] bool is_settled() const noexcept { return thread_ != nullptr; }

    /// The framework's call for it. Only once the vCPU has been created.
    [[nodiscard]] status get(hvf_register which, std::uint64_t& value) const noexcept {
        if (which.in == hvf_register::bank::general)
            return calls_.get_register(number_, which.number, value);
        if constexpr (Calls::architecture == os::hvf_architecture::arm64)
            return calls_.get_system_register(number_, static_cast<std::uint16_t>(which.number),
                                              value);
        else
            return calls_.read_vmcs(number_, which.number, value);
    }
    [[nodiscard]] status set(hvf_register which, std::uint64_t value) const noexcept {
        if (which.in == hvf_register::bank::general)
            return calls_.set_register(number_, which.number, value);
        if constexpr (Calls::architecture == os::hvf_architecture::arm64)
            return calls_.set_system_register(number_, static_cast<std::uint16_t>(which.number),
                                              value);
        else
            return calls_.write_vmcs(number_, which.number, value);
    }

    /// See basic_hvf_vcpu::set_register.
    [[nodiscard]] result<> write_register(hvf_register which, std::uint64_t value) noexcept {
        if (is_settled()) {
            if (const result<> here = on_this_thread(); !here) return here;
            const status done = set(which, value);
            if (done != status::success) return failed(done, "setting a register");
            return {};
        }
        for (kept_register& k : kept_) {
            if (k.which != which) continue;
            k.value = value;
            return {};
        }
        kept_.push_back({which, value});
        return {};
    }
    [[nodiscard]] result<std::uint64_t> read_register(hvf_register which) noexcept {
        std::uint64_t value = 0;
        if (is_settled()) {
            if (const result<> here = on_this_thread(); !here) return fail(here);
            const status done = get(which, value);
            if (done != status::success) return failed(done, "reading a register");
            return value;
        }
        for (const kept_register& k : kept_)
            if (k.which == which) return k.value;
        return fail(errc::not_initialized, named("it has not run, and this register was not set"),
                    "read it on the vCPU's thread after its first run()");
    }

    // --- any thread ---------------------------------------------------------

    void request_exit() noexcept {
        exit_requested_.store(true);
        wake();
    }
    [[nodiscard]] bool take_exit_request() noexcept { return exit_requested_.exchange(false); }
    /// Brings the vCPU out of the guest, or out of idle(), without a request.
    void wake() noexcept {
        {
            const std::lock_guard lock{idle_mutex_};
            woken_ = true;
        }
        idle_.notify_one();
        // A vCPU that is not in the guest comes back at once the next time.
        if (live_.load()) static_cast<void>(calls_.exit_vcpu(number_));
    }
    /// Waits until wake(), for `longest` at most. Nothing is missed: a wake() since the
    /// last idle() ends it at once.
    void idle(std::chrono::milliseconds longest) noexcept {
        std::unique_lock lock{idle_mutex_};
        static_cast<void>(idle_.wait_for(lock, longest, [this] { return woken_; }));
        woken_ = false;
    }

    /// arm64: the virtual timer fired, and the framework has masked it since.
    bool timer_fired = false;
    /// x86-64: the vector to be injected when the guest takes interrupts; 0 = none.
    std::atomic<unsigned> vector{0};

    [[nodiscard]] bool enter() noexcept { return !running_.exchange(true); }
    void leave() noexcept { running_.store(false); }

    /// The VMM's object is gone. If the calling thread is the vCPU's, the vCPU goes too.
    void abandon() noexcept {
        {
            const std::lock_guard lock{machine_->seats_mutex};
            machine_->seats[index_] = nullptr;
        }
        if (live_.load() && thread_ == os::this_thread_mark()) destroy();
        release();
    }
    void destroy() noexcept {
        if (live_.exchange(false)) static_cast<void>(calls_.destroy_vcpu(number_));
    }
    void release() noexcept {
        if (owners_.fetch_sub(1) == 1) delete this;
    }

private:
    struct kept_register {
        hvf_register which{};
        std::uint64_t value = 0;
    };
    ~hvf_seat() = default;

    [[nodiscard]] result<> on_this_thread() const noexcept {
        if (live_.load() && thread_ == os::this_thread_mark()) return {};
        return fail(errc::busy,
                    named(live_.load() ? "it belongs to another thread"
                                       : "the thread that it belonged to has ended"),
                    "run a vCPU, and use its registers, on the thread of its first run()");
    }

    hvf_machine<Calls>* machine_;
    Calls calls_;
    unsigned index_;
    std::vector<kept_register> kept_{};
    const void* thread_ = nullptr; ///< written once, by the thread of the first run()
    std::uint64_t number_ = 0;
    const os::hvf_abi::arm64_exit_information* exit_ = nullptr;
    std::atomic<bool> live_{false};
    std::atomic<unsigned> owners_{1};
    std::atomic<bool> running_{false};
    std::atomic<bool> exit_requested_{false};
    std::mutex idle_mutex_{};
    std::condition_variable idle_{};
    bool woken_ = false;
};

/// The vCPUs that a thread has created. What is left of them goes with the thread.
template <class Calls>
class hvf_residents {
public:
    hvf_residents() noexcept = default;
    hvf_residents(const hvf_residents&) = delete;
    hvf_residents& operator=(const hvf_residents&) = delete;
    ~hvf_residents() {
        for (hvf_seat<Calls>* const seat : seats_) {
            seat->destroy();
            seat->release();
        }
    }
    void add(hvf_seat<Calls>& seat) noexcept { seats_.push_back(&seat); }

    [[nodiscard]] static hvf_residents& of_this_thread() noexcept {
        thread_local hvf_residents residents;
        return residents;
    }

private:
    std::vector<hvf_seat<Calls>*> seats_{};
};

template <class Calls>
template <class Prepare>
result<> hvf_seat<Calls>::settle(Prepare prepare) noexcept {
    if (is_settled()) return on_this_thread();
    status done{};
    if constexpr (Calls::architecture == os::hvf_architecture::arm64) {
        done = calls_.create_vcpu(number_, exit_);
    } else {
        done = calls_.create_vcpu(number_);
    }
    if (done != status::success) return failed(done, "creating it");
    result<> ready = prepare(*this);
    for (std::size_t i = 0; ready && i < kept_.size(); ++i) {
        done = set(kept_[i].which, kept_[i].value);
        if (done != status::success) ready = failed(done, "setting a register");
    }
    if (!ready) {
        static_cast<void>(calls_.destroy_vcpu(number_));
        return ready;
    }
    kept_.clear();
    owners_.fetch_add(1);
    hvf_residents<Calls>::of_this_thread().add(*this);
    thread_ = os::this_thread_mark();
    live_.store(true);
    return {};
}

} // namespace vm_accel::inline v0
