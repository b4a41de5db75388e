/// What is arm64 alone about KVM: register numbers, processor start, GICv3.
///
/// Everything compiles on every platform; on another architecture the kernel's
/// refusal comes back as an error.
#pragma once

#include <vm_accel/hypervisor/kvm_vcpu.hpp>

namespace vm_accel::inline v0::arm64 {

/// KVM's number of a 64-bit core register, by its byte offset in struct user_pt_regs.
[[nodiscard]] constexpr std::uint64_t core_register(std::uint64_t byte_offset) noexcept {
    return 0x6030'0000'0010'0000 | byte_offset / 4;
}
/// X0 to X30.
[[nodiscard]] constexpr std::uint64_t x(unsigned number) noexcept {
    return core_register(std::uint64_t{number} * 8);
}
inline constexpr std::uint64_t sp = core_register(248);
inline constexpr std::uint64_t pc = core_register(256);
inline constexpr std::uint64_t pstate = core_register(264);

/// KVM's number of a system register, by its MRS encoding.
[[nodiscard]] constexpr std::uint64_t system_register(unsigned op0, unsigned op1, unsigned crn,
                                                      unsigned crm, unsigned op2) noexcept {
    return 0x6030'0000'0013'0000 | std::uint64_t{op0} << 14 | std::uint64_t{op1} << 11 |
           std::uint64_t{crn} << 7 | std::uint64_t{crm} << 3 | op2;
}
inline constexpr std::uint64_t mpidr_el1 = system_register(3, 0, 0, 0, 5);
/// The virtual timer. KVM's numbers of its count and compare value are each
/// other's register encodings; the interface keeps it so.
inline constexpr std::uint64_t timer_control = system_register(3, 3, 14, 3, 1);
inline constexpr std::uint64_t timer_count = system_register(3, 3, 14, 3, 2);
inline constexpr std::uint64_t timer_compare = system_register(3, 3, 14, 0, 2);

/// How a processor begins.
struct vcpu_options {
    bool powered_off = false; ///< waits for PSCI CPU_ON of another vCPU
    bool psci = true;         ///< PSCI 0.2 or later by HVC, done by the kernel
};

/// PSTATE of a kernel's entry: EL1h, interrupts masked (D, A, I, F).
inline constexpr std::uint64_t pstate_el1_masked = 0x3c5;

/// Registers as the arm64 Linux boot protocol wants them on the first processor:
/// PC = kernel, X0 = device tree, X1 to X3 = 0.
[[nodiscard]] inline result<> set_boot_registers(kvm_vcpu& vcpu, pa kernel_entry,
                                                 pa device_tree) noexcept {
    const std::pair<std::uint64_t, std::uint64_t> values[] = {
        {pstate, pstate_el1_masked}, {x(0), raw(device_tree)}, {x(1), 0}, {x(2), 0}, {x(3), 0},
        {pc, raw(kernel_entry)}};
    for (const auto& [id, value] : values) {
        if (const result<> done = vcpu.set_register(id, value); !done) return done;
    }
    return {};
}

/// Chooses the private interrupts (INTID 16 to 31) of a vCPU's timers: after
/// create_gic_v3() and before any vCPU runs. KVM's own choice is 27 (virtual)
/// and 30 (physical).
[[nodiscard]] inline result<> set_timer_interrupts(kvm_vcpu& vcpu, std::uint32_t virtual_timer,
                                                   std::uint32_t physical_timer) noexcept {
    namespace abi = os::kvm_abi;
    const auto set = [&](std::uint64_t which, const std::uint32_t& intid) {
        abi::device_attribute attribute{0, abi::arm_timer::group, which,
                                        reinterpret_cast<std::uintptr_t>(&intid)};
        return vcpu.ask(abi::set_device_attribute, attribute, "timer interrupt");
    };
    if (const result<> done = set(abi::arm_timer::virtual_interrupt, virtual_timer); !done) {
        return done;
    }
    return set(abi::arm_timer::physical_interrupt, physical_timer);
}

/// Where an in-kernel GICv3 lies. Both addresses are multiples of 64 KiB; the
/// distributor takes 64 KiB, the redistributors 128 KiB for each vCPU.
struct gic_v3_layout {
    pa distributor{};
    pa redistributors{};
    unsigned vcpus = 1;        ///< 1 to 4095: how many redistributors
    unsigned interrupts = 256; ///< SGIs, PPIs and SPIs: 64 to 1024, in steps of 32
};

inline constexpr std::uint64_t gic_v3_distributor_bytes = 0x1'0000;
inline constexpr std::uint64_t gic_v3_redistributor_bytes = 0x2'0000;
/// INTID of the first shared peripheral interrupt.
inline constexpr unsigned first_spi = 32;

/// Whether a GICv3 can lie so in any machine. Error: invalid_argument.
[[nodiscard]] constexpr result<> check(const gic_v3_layout& layout) noexcept {
    const pa_range distributor{layout.distributor, gic_v3_distributor_bytes};
    const pa_range redistributors{layout.redistributors, layout.vcpus * gic_v3_redistributor_bytes};
    if (((raw(layout.distributor) | raw(layout.redistributors)) & 0xffff) != 0) {
        return fail(errc::invalid_argument, "GICv3: an address that is no multiple of 64 KiB",
                    "align distributor and redistributors to 64 KiB");
    }
    if (layout.vcpus == 0 || layout.vcpus > 0xfff) {
        return fail(errc::invalid_argument,
                    fixed_text<160>{"GICv3: redistributors for "}
                        .append_number(layout.vcpus)
                        .append(" vCPUs"),
                    "ask for 1 to 4095");
    }
    constexpr std::uint64_t top = std::uint64_t{1} << 52;
    if (raw(layout.distributor) > top - distributor.size ||
        raw(layout.redistributors) > top - redistributors.size) {
        return fail(errc::invalid_argument, "GICv3: it reaches beyond 52 bits of address",
                    "choose lower addresses");
    }
    if (distributor.overlaps(redistributors)) {
        return fail(errc::invalid_argument, "GICv3: distributor and redistributors overlap",
                    "leave 64 KiB to the distributor and 128 KiB to each redistributor");
    }
    if (layout.interrupts < 64 || layout.interrupts > 1024 || layout.interrupts % 32 != 0) {
        return fail(
            errc::invalid_argument,
            fixed_text<160>{"GICv3: "}.append_number(layout.interrupts).append(" interrupts"),
            "ask for 64 to 1024, in steps of 32");
    }
    return {};
}

} // namespace vm_accel::inline v0::arm64
