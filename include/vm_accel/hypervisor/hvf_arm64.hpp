/// arm64 under Hypervisor.framework: registers, a processor's start, and what its exits
/// mean (Arm ARM, D24.2: ESR_EL2).
///
/// The framework hands every exception of the guest's to EL2 over as it is. Here data
/// aborts become accesses of the bus, HVC and SMC become PSCI, WFI becomes a wait.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/field.hpp>
#include <vm_accel/hypervisor/hvf_machine.hpp>
#include <vm_accel/hypervisor/hypervisor.hpp>
#include <vm_accel/hypervisor/psci.hpp>

#include <array>
#include <cstring>

namespace vm_accel::inline v0::hvf_arm64 {

/// X0 to X30.
[[nodiscard]] constexpr hvf_register x(unsigned number) noexcept {
    return {hvf_register::bank::general, number};
}
inline constexpr hvf_register pc{hvf_register::bank::general, os::hvf_abi::arm64_pc};
inline constexpr hvf_register cpsr{hvf_register::bank::general, os::hvf_abi::arm64_cpsr};
/// A system register by its MRS encoding.
[[nodiscard]] constexpr hvf_register system_register(unsigned op0, unsigned op1, unsigned crn,
                                                     unsigned crm, unsigned op2) noexcept {
    return {hvf_register::bank::system,
            os::hvf_abi::arm64_system_register(op0, op1, crn, crm, op2)};
}
inline constexpr hvf_register sctlr_el1{hvf_register::bank::system, os::hvf_abi::arm64_sctlr_el1};
inline constexpr hvf_register mpidr_el1{hvf_register::bank::system, os::hvf_abi::arm64_mpidr_el1};

/// PSTATE of a kernel's entry: EL1h, interrupts masked (D, A, I, F).
inline constexpr std::uint64_t pstate_el1_masked = 0x3c5;

/// Registers as the arm64 Linux boot protocol wants them on the first processor: before
/// the vCPU's first run(), or on its thread.
template <class Vcpu>
[[nodiscard]] result<> set_boot_registers(Vcpu& vcpu, pa kernel_entry, pa device_tree) noexcept {
    const std::pair<hvf_register, std::uint64_t> values[] = {
        {cpsr, pstate_el1_masked}, {x(0), raw(device_tree)}, {x(1), 0}, {x(2), 0}, {x(3), 0},
        {pc, raw(kernel_entry)}};
    for (const auto& [which, value] : values) {
        if (const result<> done = vcpu.set_register(which, value); !done) return done;
    }
    return {};
}

/// ESR_EL2 and its ISS for the exceptions that are served.
struct syndrome {
    using EC = field<0, 31, 26>;
    using DirectionRead = field<0, 0, 0>; ///< of a trapped system register: 1 = MRS
    // Data abort
    using ISV = field<0, 24, 24>;
    using SAS = field<0, 23, 22>; ///< log2 of the bytes
    using SSE = field<0, 21, 21>; ///< sign extension
    using SRT = field<0, 20, 16>; ///< the register; 31 = XZR
    using SF = field<0, 15, 15>;  ///< 64-bit register
    using CM = field<0, 8, 8>;    ///< cache maintenance
    using WnR = field<0, 6, 6>;
    // Trapped system register
    using Rt = field<0, 9, 5>;

    static constexpr std::uint64_t ec_wfi = 0x01;
    static constexpr std::uint64_t ec_hvc = 0x16;
    static constexpr std::uint64_t ec_smc = 0x17;
    static constexpr std::uint64_t ec_system_register = 0x18;
    static constexpr std::uint64_t ec_instruction_abort = 0x20;
    static constexpr std::uint64_t ec_data_abort = 0x24;

    std::array<std::uint64_t, 1> word;
};

/// Op0, Op1, CRn, CRm and Op2 of a trapped system register, in the order of ISS.
[[nodiscard]] constexpr std::uint64_t trapped_register(unsigned op0, unsigned op1, unsigned crn,
                                                       unsigned crm, unsigned op2) noexcept {
    return std::uint64_t{op0} << 20 | std::uint64_t{op2} << 17 | std::uint64_t{op1} << 14 |
           std::uint64_t{crn} << 10 | std::uint64_t{crm} << 1;
}
inline constexpr std::uint64_t trapped_register_mask = trapped_register(3, 7, 15, 15, 7);

/// Whether reads of that register give 0 and writes do nothing: the OS lock and the
/// power-down lock of the debug registers, which every kernel clears.
[[nodiscard]] constexpr bool reads_as_zero(std::uint64_t iss) noexcept {
    const std::uint64_t which = iss & trapped_register_mask;
    return which == trapped_register(2, 0, 1, 0, 4) || which == trapped_register(2, 0, 1, 1, 4) ||
           which == trapped_register(2, 0, 1, 3, 4);
}

/// What a load puts into its register: `value` has `bytes` bytes.
[[nodiscard]] constexpr std::uint64_t extend(std::uint64_t value, unsigned bytes, bool sign,
                                             bool wide) noexcept {
    if (sign && bytes < 8) {
        const std::uint64_t top = std::uint64_t{1} << (8 * bytes - 1);
        value = (value ^ top) - top;
    }
    return wide ? value : value & 0xffff'ffff;
}

/// Serves the exits of one vCPU. All calls on its thread.
template <class Calls>
class exits {
public:
    using seat = hvf_seat<Calls>;
    using status = os::hvf_abi::status;

    explicit exits(seat& s) noexcept : seat_(s) {}

    /// A new vCPU: its number, EL1 with interrupts masked.
    [[nodiscard]] static result<> prepare(seat& s) noexcept {
        status done = s.set(mpidr_el1, psci::mpidr_of(s.index()));
        if (done == status::success) done = s.set(cpsr, pstate_el1_masked);
        if (done != status::success) return s.failed(done, "its first registers");
        return {};
    }

    /// Before the guest is entered: starts that were asked for, and interrupts. True: it
    /// is to be entered; false: it is off, or must look again.
    [[nodiscard]] result<bool> before_entry() noexcept {
        hvf_machine<Calls>& machine = seat_.machine();
        const unsigned index = seat_.index();
        if (!machine.power.is_on(index)) {
            const std::optional<psci::start> begin = machine.power.take_start(index);
            if (!begin) {
                seat_.idle(std::chrono::milliseconds{1000});
                return false;
            }
            if (const status done = begin_at(*begin); done != status::success)
                return seat_.failed(done, "CPU_ON");
        }
        // The framework forgets a pending interrupt at each exit, and has masked the
        // timer when it fired; with a GIC of its own it sees to both.
        if (machine.spi_count.load() != 0) return true;
        bool pending = machine.irq[index].load();
        if (seat_.timer_fired) {
            std::uint64_t control = 0;
            status done = seat_.calls().get_system_register(seat_.number(), timer_control, control);
            const bool firing = (control & 7) == 5; // ISTATUS and ENABLE, not IMASK
            if (done == status::success && !firing) {
                seat_.timer_fired = false;
                done = seat_.calls().mask_timer(seat_.number(), false);
            }
            if (done != status::success) return seat_.failed(done, "its timer");
            pending = pending || firing;
        }
        if (!pending) return true;
        const status done = seat_.calls().set_pending_irq(seat_.number(), true);
        if (done != status::success) return seat_.failed(done, "interrupt");
        return true;
    }

    /// Handles one exit. False: `ended` says why the VMM must decide.
    template <class Bus>
    [[nodiscard]] result<bool> serve(Bus& bus, vcpu_exit& ended) noexcept {
        const os::hvf_abi::arm64_exit_information& exit = seat_.exit();
        switch (os::hvf_abi::arm64_exit{exit.reason}) {
        case os::hvf_abi::arm64_exit::canceled:
            return true;
        case os::hvf_abi::arm64_exit::timer_activated:
            seat_.timer_fired = true;
            return true;
        case os::hvf_abi::arm64_exit::exception:
            return serve_exception(bus, exit, ended);
        case os::hvf_abi::arm64_exit::unknown:
            break;
        }
        ended = {exit_reason::unknown, exit.reason, 0};
        return false;
    }

private:
    static constexpr std::uint16_t timer_control = os::hvf_abi::arm64_timer_control;
    static constexpr unsigned zero_register = 31;

    [[nodiscard]] status begin_at(const psci::start& begin) noexcept {
        std::uint64_t control = 0;
        status done = seat_.get(sctlr_el1, control);
        // M, C and I: a processor starts with its MMU and caches off.
        if (done == status::success) done = seat_.set(sctlr_el1, control & ~std::uint64_t{0x1005});
        if (done == status::success) done = seat_.set(cpsr, pstate_el1_masked);
        if (done == status::success) done = seat_.set(x(0), begin.context);
        if (done == status::success) done = seat_.set(pc, begin.entry);
        return done;
    }
    [[nodiscard]] status skip_instruction() noexcept {
        std::uint64_t at = 0;
        const status done = seat_.get(pc, at);
        return done == status::success ? seat_.set(pc, at + 4) : done;
    }
    [[nodiscard]] result<bool> went_on(status done, std::string_view what) noexcept {
        if (done != status::success) return seat_.failed(done, what);
        return true;
    }

    template <class Bus>
    [[nodiscard]] result<bool> serve_exception(Bus& bus,
                                               const os::hvf_abi::arm64_exit_information& exit,
                                               vcpu_exit& ended) noexcept {
        const syndrome s{{exit.syndrome}};
        switch (vm_accel::get<syndrome::EC>(s)) {
        case syndrome::ec_data_abort:
            if (vm_accel::get<syndrome::CM>(s) != 0)
                return went_on(skip_instruction(), "cache maintenance");
            if (vm_accel::get<syndrome::ISV>(s) == 0) break;
            return went_on(access(bus, s, pa{exit.physical_address}), "MMIO");
        case syndrome::ec_hvc: // the framework has moved PC on
            return call_of_firmware(ended, exit.syndrome);
        case syndrome::ec_smc: {
            const status done = skip_instruction();
            if (done != status::success) return seat_.failed(done, "SMC");
            return call_of_firmware(ended, exit.syndrome);
        }
        case syndrome::ec_wfi: {
            const status done = skip_instruction();
            // It may end without an interrupt, so no timer of the guest's is computed here.
            if (done == status::success) seat_.idle(std::chrono::milliseconds{1});
            return went_on(done, "WFI");
        }
        case syndrome::ec_system_register:
            if (!reads_as_zero(exit.syndrome)) break;
            return went_on(system_register_access(s), "system register");
        default:
            break;
        }
        ended = {exit_reason::not_emulated, exit.syndrome, exit.physical_address};
        return false;
    }

    template <class Bus>
    [[nodiscard]] status access(Bus& bus, const syndrome& s, pa address) noexcept {
        const auto bytes = 1u << vm_accel::get<syndrome::SAS>(s);
        const auto number = static_cast<unsigned>(vm_accel::get<syndrome::SRT>(s));
        std::array<std::byte, 8> data{};
        const std::span<std::byte> part{data.data(), bytes};
        std::uint64_t value = 0;
        status done = status::success;
        if (vm_accel::get<syndrome::WnR>(s) != 0) {
            if (number != zero_register) done = seat_.get(x(number), value);
            if (done != status::success) return done;
            value = little_endian(value);
            std::memcpy(data.data(), &value, sizeof value);
            bus.mmio_write(address, part);
        } else {
            bus.mmio_read(address, part);
            std::memcpy(&value, data.data(), sizeof value);
            value = extend(little_endian(value), bytes, vm_accel::get<syndrome::SSE>(s) != 0,
                           vm_accel::get<syndrome::SF>(s) != 0);
            if (number != zero_register) done = seat_.set(x(number), value);
        }
        return done == status::success ? skip_instruction() : done;
    }

    [[nodiscard]] status system_register_access(const syndrome& s) noexcept {
        const auto number = static_cast<unsigned>(vm_accel::get<syndrome::Rt>(s));
        status done = status::success;
        if (vm_accel::get<syndrome::DirectionRead>(s) != 0 && number != zero_register)
            done = seat_.set(x(number), 0);
        return done == status::success ? skip_instruction() : done;
    }

    [[nodiscard]] result<bool> call_of_firmware(vcpu_exit& ended, std::uint64_t code) noexcept {
        std::array<std::uint64_t, 4> arguments{};
        for (unsigned i = 0; i < arguments.size(); ++i) {
            if (const status done = seat_.get(x(i), arguments[i]); done != status::success)
                return seat_.failed(done, "HVC");
        }
        const std::optional<psci::outcome> told = seat_.machine().power.call(
            seat_.index(), arguments[0], arguments[1], arguments[2], arguments[3]);
        // What nobody knows is answered as the calling convention says.
        const psci::outcome what =
            told ? *told : psci::outcome{psci::effect::answer, psci::not_supported, 0};
        switch (what.then) {
        case psci::effect::shutdown:
            ended = {exit_reason::shutdown, code, 0};
            return false;
        case psci::effect::reset:
            ended = {exit_reason::reset, code, 0};
            return false;
        case psci::effect::off:
            return true;
        case psci::effect::suspend:
            seat_.idle(std::chrono::milliseconds{1});
            break;
        case psci::effect::started:
            seat_.machine().wake(what.target);
            break;
        case psci::effect::answer:
            break;
        }
        return went_on(seat_.set(x(0), what.value), "HVC");
    }

    seat& seat_;
};

} // namespace vm_accel::inline v0::hvf_arm64
