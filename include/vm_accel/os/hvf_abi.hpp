/// Apple's Hypervisor.framework as numbers and structures, so that no header of its
/// is needed: neither another system's compiler nor a cross compiler has them.
///
/// Sources: the framework's documentation and headers (hv_error.h, hv_vcpu_types.h,
/// hv_arch_x86.h); for the fields and exits of VMX, Intel SDM volume 3, appendices B
/// and C.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vm_accel::inline v0::os::hvf_abi {

/// hv_return_t. What a call gave.
enum class status : std::uint32_t {
    success = 0,
    error = 0xfae9'4001,
    busy = 0xfae9'4002,
    bad_argument = 0xfae9'4003,
    illegal_guest_state = 0xfae9'4004,
    no_resources = 0xfae9'4005,
    no_device = 0xfae9'4006,
    denied = 0xfae9'4007, ///< mostly: the program lacks the entitlement
    exists = 0xfae9'4008,
    unsupported = 0xfae9'400f,
};

/// hv_memory_flags_t: what the guest may do with memory.
inline constexpr std::uint64_t memory_read = 1;
inline constexpr std::uint64_t memory_write = 2;
inline constexpr std::uint64_t memory_execute = 4;
inline constexpr std::uint64_t memory_all = memory_read | memory_write | memory_execute;

// --- arm64 ------------------------------------------------------------------

/// hv_exit_reason_t
enum class arm64_exit : std::uint32_t {
    canceled = 0,        ///< hv_vcpus_exit() was called
    exception = 1,       ///< the guest took an exception to EL2
    timer_activated = 2, ///< the virtual timer fired; the framework has masked it
    unknown = 3,
};

/// hv_vcpu_exit_t: the framework writes it before hv_vcpu_run() returns.
struct arm64_exit_information {
    std::uint32_t reason = 0;
    std::uint64_t syndrome = 0;         ///< ESR_EL2
    std::uint64_t virtual_address = 0;  ///< FAR_EL2
    std::uint64_t physical_address = 0; ///< the guest physical address, whole
};
static_assert(sizeof(arm64_exit_information) == 32 &&
              offsetof(arm64_exit_information, syndrome) == 8);

/// hv_reg_t: X0 to X30 are 0 to 30.
inline constexpr std::uint32_t arm64_pc = 31;
inline constexpr std::uint32_t arm64_fpcr = 32;
inline constexpr std::uint32_t arm64_fpsr = 33;
inline constexpr std::uint32_t arm64_cpsr = 34;

/// hv_sys_reg_t: the register's MRS encoding.
[[nodiscard]] constexpr std::uint16_t arm64_system_register(unsigned op0, unsigned op1,
                                                            unsigned crn, unsigned crm,
                                                            unsigned op2) noexcept {
    return static_cast<std::uint16_t>(op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2);
}
inline constexpr std::uint16_t arm64_mpidr_el1 = arm64_system_register(3, 0, 0, 0, 5);
inline constexpr std::uint16_t arm64_sctlr_el1 = arm64_system_register(3, 0, 1, 0, 0);
inline constexpr std::uint16_t arm64_timer_control = arm64_system_register(3, 3, 14, 3, 1);
static_assert(arm64_mpidr_el1 == 0xc005 && arm64_timer_control == 0xdf19);

/// hv_interrupt_type_t
inline constexpr std::uint32_t arm64_irq = 0;

// --- x86-64 -----------------------------------------------------------------

/// hv_capability_t: the most vCPUs of a VM.
inline constexpr std::uint64_t x86_capability_vcpus = 0;

/// hv_x86_reg_t
enum x86_register : std::uint32_t {
    x86_rip = 0,
    x86_rflags = 1,
    x86_rax = 2,
    x86_rcx = 3,
    x86_rdx = 4,
    x86_rbx = 5,
    x86_rsi = 6,
    x86_rdi = 7,
    x86_rsp = 8,
    x86_rbp = 9,
    x86_r8 = 10, ///< to R15 = 17
    x86_cr2 = 38,
    x86_register_count = 51,
};

/// Fields of the virtual machine control structure.
namespace vmcs {
inline constexpr std::uint32_t guest_es = 0x0800; ///< selectors: CS, SS, DS, FS, GS, LDTR, TR next
inline constexpr std::uint32_t guest_tr = 0x080e;
inline constexpr std::uint32_t guest_physical_address = 0x2400;
inline constexpr std::uint32_t guest_efer = 0x2806;
inline constexpr std::uint32_t pin_controls = 0x4000;
inline constexpr std::uint32_t processor_controls = 0x4002;
inline constexpr std::uint32_t exception_bitmap = 0x4004;
inline constexpr std::uint32_t exit_controls = 0x400c;
inline constexpr std::uint32_t entry_controls = 0x4012;
inline constexpr std::uint32_t entry_event = 0x4016;
inline constexpr std::uint32_t entry_error_code = 0x4018;
inline constexpr std::uint32_t processor_controls_2 = 0x401e;
inline constexpr std::uint32_t instruction_error = 0x4400;
inline constexpr std::uint32_t exit_reason = 0x4402;
inline constexpr std::uint32_t instruction_length = 0x440c;
inline constexpr std::uint32_t guest_es_limit = 0x4800; ///< in the order of the selectors
inline constexpr std::uint32_t guest_gdtr_limit = 0x4810;
inline constexpr std::uint32_t guest_idtr_limit = 0x4812;
inline constexpr std::uint32_t guest_es_access = 0x4814; ///< in the order of the selectors
inline constexpr std::uint32_t guest_interruptibility = 0x4824;
inline constexpr std::uint32_t cr0_mask = 0x6000;
inline constexpr std::uint32_t cr4_mask = 0x6002;
inline constexpr std::uint32_t cr0_shadow = 0x6004;
inline constexpr std::uint32_t cr4_shadow = 0x6006;
inline constexpr std::uint32_t exit_qualification = 0x6400;
inline constexpr std::uint32_t guest_cr0 = 0x6800;
inline constexpr std::uint32_t guest_cr3 = 0x6802;
inline constexpr std::uint32_t guest_cr4 = 0x6804;
inline constexpr std::uint32_t guest_es_base = 0x6806; ///< in the order of the selectors
inline constexpr std::uint32_t guest_gdtr_base = 0x6816;
inline constexpr std::uint32_t guest_idtr_base = 0x6818;
} // namespace vmcs

/// Basic exit reasons: bits 15:0 of vmcs::exit_reason.
enum class x86_exit : std::uint16_t {
    exception = 0,
    external_interrupt = 1,
    triple_fault = 2,
    interrupt_window = 7,
    cpuid = 10,
    halt = 12,
    control_register = 28,
    io = 30,
    read_msr = 31,
    write_msr = 32,
    invalid_guest_state = 33,
    entry_msr_failed = 34,
    entry_machine_check = 41,
    ept_violation = 48,
    ept_misconfiguration = 49,
    preemption_timer = 52,
    set_xcr = 55,
};
/// Bit 31 of vmcs::exit_reason: the entry itself failed.
inline constexpr std::uint64_t x86_entry_failed = std::uint64_t{1} << 31;

/// hv_vmx_capability_t
enum class vmx_capability : std::uint32_t {
    pin = 0,
    processor = 1,
    processor_2 = 2,
    entry = 3,
    exit = 4,
};

} // namespace vm_accel::inline v0::os::hvf_abi
