/// What the exits of a vCPU of the Windows Hypervisor Platform mean.
///
/// Accesses to devices are decoded here, from the instruction that the platform
/// reports, rather than by WinHvEmulation.dll: it would call back through pointers,
/// and cannot be tested without Windows.
#pragma once

#include <vm_accel/core/field.hpp>
#include <vm_accel/hypervisor/hypervisor.hpp>
#include <vm_accel/hypervisor/whpx_machine.hpp>
#include <vm_accel/hypervisor/x86_mmio_instruction.hpp>
#include <vm_accel/os/whpx_abi.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>

namespace vm_accel::inline v0 {

/// One vCPU's state that lasts. Made by basic_whpx_vm::create_vcpu, never moved.
template <class Calls>
struct whpx_seat {
    whpx_machine<Calls>& machine;
    unsigned index;
    std::atomic<bool> running{false};
    std::atomic<bool> exit_requested{false};
    std::atomic<unsigned> vector{0}; ///< to inject where there are no local APICs; 0 = none

    using status = os::whpx_abi::status;
    using reg = os::whpx_abi::reg;
    using register_value = os::whpx_abi::register_value;

    [[nodiscard]] status get(reg which, std::uint64_t& value) noexcept {
        register_value read;
        const status done =
            machine.calls.get_registers(machine.partition, index, {&which, 1}, &read);
        value = read.low;
        return done;
    }
    [[nodiscard]] status set(reg which, std::uint64_t value) noexcept {
        const register_value written{value, 0};
        return machine.calls.set_registers(machine.partition, index, {&which, 1}, &written);
    }
    [[nodiscard]] fixed_text<160> named(std::string_view what) const noexcept {
        return fixed_text<160>{"vCPU "}.append_number(index).append(": ").append(what);
    }
    [[nodiscard]] tl::unexpected<error> failed(status refusal,
                                               std::string_view what) const noexcept {
        return whpx_failure(refusal, named(what).view(), "see the Hyper-V event log");
    }
};

/// Serves the exits of one vCPU. All calls on the thread that runs it.
template <class Calls>
class whpx_exits {
public:
    using seat = whpx_seat<Calls>;
    using status = os::whpx_abi::status;
    using reg = os::whpx_abi::reg;
    using register_value = os::whpx_abi::register_value;
    using exit_context = os::whpx_abi::exit_context;

    explicit whpx_exits(seat& s) noexcept : seat_(s) {}

    /// Before the guest is entered: an interrupt that waits, where the VMM injects them.
    [[nodiscard]] result<> before_entry() noexcept {
        if (seat_.vector.load() == 0) return {};
        std::uint64_t flags = 0;
        std::uint64_t held = 0;
        std::uint64_t pending = 0;
        status done = seat_.get(reg::rflags, flags);
        if (good(done)) done = seat_.get(reg::interrupt_state, held);
        if (good(done)) done = seat_.get(reg::pending_interruption, pending);
        if (good(done)) {
            const bool open = (flags & 0x200) != 0 &&
                              (held & os::whpx_abi::interrupt_shadow) == 0 && (pending & 1) == 0;
            done =
                open ? seat_.set(reg::pending_interruption,
                                 os::whpx_abi::pending_vector(seat_.vector.exchange(0)))
                     : seat_.set(reg::deliverability_notifications, os::whpx_abi::notify_interrupt);
        }
        if (!good(done)) return seat_.failed(done, "interrupt");
        return {};
    }

    /// Handles one exit. False: `ended` says why the VMM must decide.
    template <class Bus>
    [[nodiscard]] result<bool> serve(const exit_context& exit, Bus& bus,
                                     vcpu_exit& ended) noexcept {
        using reason = os::whpx_abi::exit;
        switch (exit.reason) {
        case reason::canceled:         // the caller of this looks at what was asked for
        case reason::interrupt_window: // before_entry() looks again
        case reason::none:
            return true;
        case reason::memory_access:
            return serve_access(exit, bus, ended);
        case reason::io_port:
            return serve_port(exit, bus, ended);
        case reason::apic_eoi:
            if (const result<> again = seat_.machine.end_of_interrupt(exit.vector); !again)
                return fail(again);
            return true;
        case reason::halt:
            if (seat_.vector.load() != 0) return true;
            ended = {exit_reason::halted};
            return false;
        case reason::unrecoverable_exception: // a triple fault
            ended = {exit_reason::shutdown, static_cast<std::uint64_t>(exit.reason)};
            return false;
        case reason::invalid_register:
            ended = {exit_reason::entry_failed, static_cast<std::uint64_t>(exit.reason)};
            return false;
        case reason::unsupported_feature:
            ended = {exit_reason::not_emulated, exit.feature[0] & 0xffff'ffff};
            return false;
        }
        ended = {exit_reason::unknown, static_cast<std::uint64_t>(exit.reason)};
        return false;
    }

private:
    [[nodiscard]] static constexpr bool good(status s) noexcept { return !os::whpx_abi::failed(s); }
    [[nodiscard]] static x86_64::x86_mode mode_of(const os::whpx_abi::vp_context& at) noexcept {
        if (at.is_long_mode() && (at.cs.attributes & os::whpx_abi::segment_long) != 0)
            return x86_64::x86_mode::bits_64;
        return (at.cs.attributes & os::whpx_abi::segment_default_32) != 0
                   ? x86_64::x86_mode::bits_32
                   : x86_64::x86_mode::bits_16;
    }

    /// Passes an instruction; `which` gets `value` at the same time, if it is given.
    [[nodiscard]] status finish(const os::whpx_abi::vp_context& at, unsigned length,
                                std::optional<reg> which = {}, std::uint64_t value = 0) noexcept {
        const x86_64::x86_mode mode = mode_of(at);
        std::uint64_t next = at.rip + length;
        if (mode == x86_64::x86_mode::bits_32) next &= 0xffff'ffff;
        if (mode == x86_64::x86_mode::bits_16) next &= 0xffff;
        std::array<reg, 3> names{reg::rip};
        std::array<register_value, 3> values{register_value{next, 0}};
        std::size_t count = 1;
        if (which) {
            names[count] = *which;
            values[count++] = {value, 0};
        }
        if (at.in_shadow()) { // STI and MOV SS hold interrupts off for one instruction
            std::uint64_t held = 0;
            const status done = seat_.get(reg::interrupt_state, held);
            if (!good(done)) return done;
            names[count] = reg::interrupt_state;
            values[count++] = {held & ~os::whpx_abi::interrupt_shadow, 0};
        }
        return seat_.machine.calls.set_registers(seat_.machine.partition, seat_.index,
                                                 std::span{names}.first(count), values.data());
    }

    template <class Bus>
    [[nodiscard]] result<bool> serve_port(const exit_context& exit, Bus& bus,
                                          vcpu_exit& ended) noexcept {
        const os::whpx_abi::io_port_access& io = exit.io;
        const unsigned bytes = io.bytes();
        const unsigned length = exit.vp.instruction_length();
        if (io.is_string() || (bytes != 1 && bytes != 2 && bytes != 4) || length == 0) {
            ended = {exit_reason::not_emulated, io.info, io.port};
            return false;
        }
        std::array<std::byte, 8> data{};
        const std::span<std::byte> part{data.data(), bytes};
        status done{};
        if (io.is_write()) {
            const std::uint64_t given = little_endian(io.rax);
            std::memcpy(data.data(), &given, sizeof given);
            if constexpr (port_bus<Bus>) bus.io_write(io.port, part);
            done = finish(exit.vp, length);
        } else {
            if constexpr (port_bus<Bus>) {
                bus.io_read(io.port, part);
            } else {
                std::memset(data.data(), 0xff, bytes);
            }
            std::uint64_t read = 0;
            std::memcpy(&read, data.data(), sizeof read);
            x86_64::mmio_instruction load;
            load.bytes = load.register_bytes = bytes;
            done = finish(exit.vp, length, reg::rax,
                          x86_64::loaded(load, io.rax, little_endian(read)));
        }
        if (!good(done)) return seat_.failed(done, "port");
        return true;
    }

    template <class Bus>
    [[nodiscard]] result<bool> serve_access(const exit_context& exit, Bus& bus,
                                            vcpu_exit& ended) noexcept {
        const os::whpx_abi::memory_access& access = exit.memory;
        const pa at{access.physical};
        // Memory that was added since the exit: the access is done again.
        if (access.unmapped() && seat_.machine.memory.contains(at)) return true;
        constexpr unsigned execute = 2;
        const auto what = access.kind() >= execute ? std::nullopt : decode(exit.vp, access);
        if (!what) {
            ended = {exit_reason::not_emulated, access.info, access.physical};
            return false;
        }
        std::array<std::byte, 8> data{};
        const std::span<std::byte> part{data.data(), what->bytes};
        const reg which = os::whpx_abi::general(what->reg);
        std::uint64_t value = 0;
        status done = what->has_immediate ? status::success : seat_.get(which, value);
        if (!good(done)) return seat_.failed(done, "MMIO");
        if (what->is_write) {
            const std::uint64_t given = little_endian(x86_64::stored(*what, value));
            std::memcpy(data.data(), &given, sizeof given);
            bus.mmio_write(at, part);
            done = finish(exit.vp, what->length);
        } else {
            bus.mmio_read(at, part);
            std::uint64_t read = 0;
            std::memcpy(&read, data.data(), sizeof read);
            done = finish(exit.vp, what->length, which,
                          x86_64::loaded(*what, value, little_endian(read)));
        }
        if (!good(done)) return seat_.failed(done, "MMIO");
        return true;
    }

    [[nodiscard]] std::optional<x86_64::mmio_instruction>
    decode(const os::whpx_abi::vp_context& at, const os::whpx_abi::memory_access& access) noexcept {
        const x86_64::x86_mode mode = mode_of(at);
        const std::size_t told =
            std::min<std::size_t>(access.instruction_bytes, sizeof access.instruction);
        if (const auto what = x86_64::decode_mmio(std::span{access.instruction}.first(told), mode))
            return what;
        // Some processors report no bytes, or only part of them.
        std::array<std::uint8_t, 15> code{};
        const std::size_t have = fetch(at, mode, code);
        return x86_64::decode_mmio(std::span{code}.first(have), mode);
    }

    /// The bytes at RIP, a page at a time: fewer where memory ends.
    [[nodiscard]] std::size_t fetch(const os::whpx_abi::vp_context& at, x86_64::x86_mode mode,
                                    std::span<std::uint8_t, 15> code) noexcept {
        const std::uint64_t start =
            mode == x86_64::x86_mode::bits_64 ? at.rip : (at.cs.base + at.rip) & 0xffff'ffff;
        std::size_t have = 0;
        while (have < code.size()) {
            const std::uint64_t address = start + have;
            const std::size_t here =
                std::min<std::size_t>(code.size() - have, 0x1000 - (address & 0xfff));
            os::whpx_abi::translation outcome;
            std::uint64_t physical = 0;
            if (!good(seat_.machine.calls.translate(seat_.machine.partition, seat_.index, address,
                                                    outcome, physical)) ||
                outcome.code != 0 ||
                !seat_.machine.memory.read(pa{physical},
                                           std::as_writable_bytes(code.subspan(have, here))))
                break;
            have += here;
        }
        return have;
    }

    seat& seat_;
};

} // namespace vm_accel::inline v0
