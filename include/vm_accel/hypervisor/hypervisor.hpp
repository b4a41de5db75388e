/// What every hypervisor backend offers: a machine, its memory, its processors.
///
/// hypervisor -> create_vm() -> virtual_machine -> create_vcpu() -> virtual_cpu.
/// A thread of the VMM enters the guest with `vcpu.run(bus)`; what the guest
/// reads and writes outside its memory arrives at the bus, on that thread.
/// Backends: `kvm` (kvm.hpp), `hvf` (hvf.hpp), `whpx` (whpx.hpp), `software<Program>`
/// (software.hpp). Everything is bound at compile time.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/error.hpp>
#include <vm_accel/core/result.hpp>
#include <vm_accel/core/roles.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace vm_accel::inline v0 {

/// Why `run` came back.
enum class exit_reason : std::uint8_t {
    interrupted,  ///< request_exit() was called; run again to go on
    shutdown,     ///< the guest powered the machine off (x86: also a triple fault)
    reset,        ///< the guest asked for a reset of the machine
    halted,       ///< x86 without an in-kernel interrupt controller: HLT
    crashed,      ///< the guest reported its own crash
    entry_failed, ///< the processor refused the vCPU's state; code = hardware reason
    not_emulated, ///< an access that the hypervisor cannot decode; code, address
    unknown,      ///< another exit; code = the hypervisor's number for it
};

[[nodiscard]] constexpr std::string_view name_of(exit_reason reason) noexcept {
    switch (reason) {
    case exit_reason::interrupted:
        return "interrupted";
    case exit_reason::shutdown:
        return "shutdown";
    case exit_reason::reset:
        return "reset";
    case exit_reason::halted:
        return "halted";
    case exit_reason::crashed:
        return "crashed";
    case exit_reason::entry_failed:
        return "entry failed";
    case exit_reason::not_emulated:
        return "not emulated";
    case exit_reason::unknown:
        return "unknown";
    }
    return "unknown";
}

struct vcpu_exit {
    exit_reason reason = exit_reason::unknown;
    std::uint64_t code = 0;    ///< a number of the backend, see exit_reason
    std::uint64_t address = 0; ///< guest physical address, where one is involved

    friend constexpr bool operator==(const vcpu_exit&, const vcpu_exit&) = default;
};

/// Meaning: accesses of the guest to addresses that are not RAM. Little-endian
/// bytes; sizes 1, 2, 4 or 8. What nothing answers reads as the bus decides.
/// Threads: called on the thread that runs the vCPU, so by several at once.
template <class B>
concept mmio_bus =
    requires(B& bus, pa address, std::span<std::byte> out, std::span<const std::byte> in) {
        { bus.mmio_read(address, out) } noexcept -> std::same_as<void>;
        { bus.mmio_write(address, in) } noexcept -> std::same_as<void>;
    };

/// Meaning: also the I/O ports of x86 (IN, OUT; sizes 1, 2, 4). A bus without
/// them reads ports as all ones and drops writes.
template <class B>
concept port_bus = mmio_bus<B> && requires(B& bus, std::uint16_t port, std::span<std::byte> out,
                                           std::span<const std::byte> in) {
    { bus.io_read(port, out) } noexcept -> std::same_as<void>;
    { bus.io_write(port, in) } noexcept -> std::same_as<void>;
};

/// A bus with nothing on it: reads give all ones, writes are dropped.
struct empty_bus {
    void mmio_read(pa, std::span<std::byte> out) noexcept {
        for (std::byte& b : out)
            b = std::byte{0xff};
    }
    void mmio_write(pa, std::span<const std::byte>) noexcept {}
};

/// What a host can do, as far as a VMM must know before it plans a machine.
struct hypervisor_capabilities {
    bool available = false;
    error why_not{};                   ///< says why, if it is not available
    unsigned api_version = 0;          ///< the hypervisor's own number, 0 if it has none
    unsigned recommended_vcpus = 0;    ///< per VM
    unsigned maximum_vcpus = 0;        ///< per VM
    unsigned memory_slots = 0;         ///< regions of guest RAM per VM
    unsigned guest_address_bits = 0;   ///< guest physical addresses; 0 = not told
    bool in_kernel_interrupts = false; ///< interrupt controller without exits
    bool irqfd = false;                ///< interrupts through descriptors

    /// Facts for a diagnostic report: `out.fact(name, value)` for each.
    template <class Report>
    void report(Report& out) const {
        out.fact("API version", api_version);
        out.fact("recommended vCPUs", recommended_vcpus);
        out.fact("maximum vCPUs", maximum_vcpus);
        out.fact("memory slots", memory_slots);
        out.fact("guest address bits", guest_address_bits);
        out.fact("in-kernel interrupts", in_kernel_interrupts);
        out.fact("irqfd", irqfd);
    }
};

template <class V>
concept virtual_cpu = std::movable<V> && requires(V& vcpu, const V& view, empty_bus& bus) {
    { vcpu.run(bus) } noexcept -> std::same_as<result<vcpu_exit>>;
    { vcpu.request_exit() } noexcept -> std::same_as<void>;
    { view.index() } noexcept -> std::same_as<unsigned>;
};

/// Meaning:
/// - add_memory: the bytes at `host` are RAM at `base` for the guest until
///   removed; they must outlive that. invalid_argument (alignment 4096, empty,
///   wraps), already_exists (overlap), exhausted.
/// - remove_memory: by the base given to add_memory; not_found. Once it has
///   returned no vCPU reaches those bytes any more.
/// - create_vcpu: each index once; already_exists, out_of_range.
/// - set_line / pulse_line: drive interrupt input `line` of the machine.
/// Threads: any thread, also while vCPUs run. A vCPU is run by one thread at a
/// time; only its request_exit() may be called by others. A VM outlives its
/// vCPUs, and objects are moved only before they are shared.
template <class M>
concept virtual_machine =
    std::movable<M> && virtual_cpu<typename M::vcpu> &&
    requires(M& vm, pa base, std::byte* host, std::uint64_t bytes, unsigned number, bool level) {
        { vm.add_memory(base, host, bytes) } noexcept -> std::same_as<result<>>;
        { vm.remove_memory(base) } noexcept -> std::same_as<result<>>;
        { vm.create_vcpu(number) } noexcept -> std::same_as<result<typename M::vcpu>>;
        { vm.set_line(number, level) } noexcept -> std::same_as<result<>>;
        { vm.pulse_line(number) } noexcept -> std::same_as<result<>>;
    };

/// Meaning:
/// - detect: what this host can do; changes nothing. "Not there" is an answer,
///   not a failure.
/// - init: takes the hypervisor into use; already_initialized.
/// - create_vm: not_initialized before init().
/// Threads: init() once, by one thread; create_vm from any thread after it.
template <class H>
concept hypervisor = std::same_as<typename H::role, roles::hypervisor> &&
                     virtual_machine<typename H::vm> && requires(H& backend, const H& view) {
                         { H::name } -> std::convertible_to<std::string_view>;
                         { H::detect() } noexcept -> std::same_as<hypervisor_capabilities>;
                         { backend.init() } noexcept -> std::same_as<result<>>;
                         { view.is_initialized() } noexcept -> std::same_as<bool>;
                         { backend.create_vm() } noexcept -> std::same_as<result<typename H::vm>>;
                     };

} // namespace vm_accel::inline v0
