/// KVM's interface to user space as facts: request numbers and structures.
///
/// The interface is stable and the same on x86-64 and arm64 where it is not
/// named after one of them, so it is written down here instead of included:
/// the KVM backend then compiles, and is type-checked, on every platform. A
/// test compares each number and offset with <linux/kvm.h> where that exists.
/// Source: the kernel's Documentation/virt/kvm/api.rst and devices/arm-vgic-v3.rst.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vm_accel::inline v0::os::kvm_abi {

/// Request numbers: direction in [31:30], size of the argument in [29:16].
[[nodiscard]] constexpr std::uint32_t request(std::uint32_t number) noexcept {
    return 0xae00 | number;
}
template <class Argument>
[[nodiscard]] constexpr std::uint32_t writes(std::uint32_t number) noexcept {
    return 0x4000'0000 | static_cast<std::uint32_t>(sizeof(Argument)) << 16 | request(number);
}
template <class Argument>
[[nodiscard]] constexpr std::uint32_t reads(std::uint32_t number) noexcept {
    return 0x8000'0000 | static_cast<std::uint32_t>(sizeof(Argument)) << 16 | request(number);
}
template <class Argument>
[[nodiscard]] constexpr std::uint32_t exchanges(std::uint32_t number) noexcept {
    return reads<Argument>(number) | writes<Argument>(number);
}

/// The only version ever released (GET_API_VERSION).
inline constexpr int api_version = 12;

/// KVM_CAP_*: what CHECK_EXTENSION is asked.
enum class capability : unsigned {
    irqchip = 0,
    user_memory = 3,
    set_tss_address = 4,
    extended_cpuid = 7,
    recommended_vcpus = 9,
    memory_slots = 10,
    irqfd = 32,
    ioeventfd = 36,
    identity_map_address = 37,
    maximum_vcpus = 66,
    one_register = 70,
    signal_msi = 77,
    read_only_memory = 81,
    device_control = 89,
    arm_psci_0_2 = 102,
    msi_device_id = 131,
    immediate_exit = 136,
    arm_ipa_size = 165,
};

/// struct kvm_userspace_memory_region
struct memory_region {
    std::uint32_t slot = 0;
    std::uint32_t flags = 0; ///< bit 1: read only for the guest
    std::uint64_t guest_address = 0;
    std::uint64_t bytes = 0; ///< 0 removes the slot
    std::uint64_t host_address = 0;
};
inline constexpr std::uint32_t memory_read_only = 1u << 1;

/// struct kvm_irq_level
struct irq_level {
    std::uint32_t irq = 0;
    std::uint32_t level = 0;
};

/// struct kvm_irqfd
struct irqfd {
    std::uint32_t fd = 0;
    std::uint32_t gsi = 0;
    std::uint32_t flags = 0; ///< bit 0: detach
    std::uint32_t resample_fd = 0;
    std::uint8_t reserved[16]{};
};
inline constexpr std::uint32_t irqfd_detach = 1u << 0;

/// struct kvm_msi
struct message {
    std::uint32_t address_low = 0;
    std::uint32_t address_high = 0;
    std::uint32_t data = 0;
    std::uint32_t flags = 0; ///< bit 0: device_id is given
    std::uint32_t device_id = 0;
    std::uint8_t padding[12]{};
};
inline constexpr std::uint32_t message_has_device_id = 1u << 0;

/// struct kvm_create_device
struct device_request {
    std::uint32_t type = 0;
    std::uint32_t fd = 0; ///< out
    std::uint32_t flags = 0;
};

/// struct kvm_device_attr
struct device_attribute {
    std::uint32_t flags = 0;
    std::uint32_t group = 0;
    std::uint64_t attribute = 0;
    std::uint64_t address = 0; ///< host address of the value
};

/// struct kvm_one_reg
struct one_register {
    std::uint64_t id = 0;
    std::uint64_t address = 0; ///< host address of the value
};

/// struct kvm_vcpu_init (arm64)
struct arm_vcpu_init {
    std::uint32_t target = 0;
    std::uint32_t features[7]{};
};

/// struct kvm_vcpu_events (arm64): what the processor owes the guest.
struct arm_vcpu_events {
    std::uint8_t serror_pending = 0;
    std::uint8_t serror_has_syndrome = 0;
    std::uint8_t external_abort_pending = 0; ///< written only
    std::uint8_t padding[5]{};
    std::uint64_t serror_syndrome = 0;
    std::uint32_t reserved[12]{};
};

/// struct kvm_regs of x86-64
struct x86_registers {
    std::uint64_t rax = 0, rbx = 0, rcx = 0, rdx = 0, rsi = 0, rdi = 0, rsp = 0, rbp = 0;
    std::uint64_t r8 = 0, r9 = 0, r10 = 0, r11 = 0, r12 = 0, r13 = 0, r14 = 0, r15 = 0;
    std::uint64_t rip = 0, rflags = 0;
};

/// struct kvm_segment of x86-64
struct x86_segment {
    std::uint64_t base = 0;
    std::uint32_t limit = 0;
    std::uint16_t selector = 0;
    std::uint8_t type = 0, present = 0, dpl = 0, db = 0, s = 0, l = 0, g = 0, avl = 0, unusable = 0;
    std::uint8_t padding = 0;
};

/// struct kvm_dtable of x86-64
struct x86_table {
    std::uint64_t base = 0;
    std::uint16_t limit = 0;
    std::uint16_t padding[3]{};
};

/// struct kvm_sregs of x86-64
struct x86_special_registers {
    x86_segment cs, ds, es, fs, gs, ss, tr, ldt;
    x86_table gdt, idt;
    std::uint64_t cr0 = 0, cr2 = 0, cr3 = 0, cr4 = 0, cr8 = 0, efer = 0, apic_base = 0;
    std::uint64_t interrupt_bitmap[4]{};
};

/// struct kvm_cpuid_entry2
struct x86_cpuid_entry {
    std::uint32_t function = 0, index = 0, flags = 0;
    std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
    std::uint32_t padding[3]{};
};

/// The fixed part of struct kvm_cpuid2; entries follow it.
struct x86_cpuid_header {
    std::uint32_t count = 0;
    std::uint32_t padding = 0;
};

// What run_page carries for each kind of exit.
struct exit_fail_entry {
    std::uint64_t hardware_reason;
    std::uint32_t cpu;
};
struct exit_io {
    std::uint8_t direction; ///< 0 in, 1 out
    std::uint8_t size;      ///< bytes of one access
    std::uint16_t port;
    std::uint32_t count;
    std::uint64_t data_offset; ///< from the start of the page
};
struct exit_mmio {
    std::uint64_t address;
    std::uint8_t data[8];
    std::uint32_t length;
    std::uint8_t is_write;
};
struct exit_internal {
    std::uint32_t suberror;
    std::uint32_t count;
    std::uint64_t data[16];
};
struct exit_system_event {
    std::uint32_t type;
    std::uint32_t count;
    std::uint64_t data[16];
};
struct exit_arm_no_syndrome {
    std::uint64_t syndrome;
    std::uint64_t fault_address;
};

/// The start of struct kvm_run, which the kernel shares with the vCPU's thread.
struct run_page {
    std::uint8_t request_interrupt_window;
    std::uint8_t immediate_exit;
    std::uint8_t padding1[6];
    std::uint32_t exit_reason;
    std::uint8_t ready_for_interrupt_injection;
    std::uint8_t if_flag;
    std::uint16_t flags;
    std::uint64_t cr8;
    std::uint64_t apic_base;
    union {
        exit_fail_entry fail_entry;
        exit_io io;
        exit_mmio mmio;
        exit_internal internal;
        exit_system_event system_event;
        exit_arm_no_syndrome arm_no_syndrome;
        std::uint8_t bytes[256];
    };
};
static_assert(offsetof(run_page, exit_reason) == 8);
static_assert(offsetof(run_page, mmio) == 32);

/// KVM_EXIT_*
enum class exit : std::uint32_t {
    unknown = 0,
    io = 2,
    hlt = 5,
    mmio = 6,
    shutdown = 8,
    fail_entry = 9,
    interrupted = 10,
    internal_error = 17,
    system_event = 24,
    arm_no_syndrome = 28,
};

/// KVM_SYSTEM_EVENT_*
enum class system_event : std::uint32_t { shutdown = 1, reset = 2, crash = 3 };

// System requests.
inline constexpr std::uint32_t get_api_version = request(0x00);
inline constexpr std::uint32_t create_vm = request(0x01);
inline constexpr std::uint32_t check_extension = request(0x03);
inline constexpr std::uint32_t get_vcpu_map_size = request(0x04);
inline constexpr std::uint32_t get_supported_cpuid = exchanges<x86_cpuid_header>(0x05);
// Requests on a VM.
inline constexpr std::uint32_t create_vcpu = request(0x41);
inline constexpr std::uint32_t set_memory_region = writes<memory_region>(0x46);
inline constexpr std::uint32_t set_tss_address = request(0x47);
inline constexpr std::uint32_t set_identity_map_address = writes<std::uint64_t>(0x48);
inline constexpr std::uint32_t create_irqchip = request(0x60);
inline constexpr std::uint32_t set_irq_line = writes<irq_level>(0x61);
inline constexpr std::uint32_t set_irqfd = writes<irqfd>(0x76);
inline constexpr std::uint32_t signal_message = writes<message>(0xa5);
inline constexpr std::uint32_t arm_preferred_target = reads<arm_vcpu_init>(0xaf);
inline constexpr std::uint32_t create_device = exchanges<device_request>(0xe0);
// Requests on a device, and on a vCPU that has attributes.
inline constexpr std::uint32_t set_device_attribute = writes<device_attribute>(0xe1);
inline constexpr std::uint32_t get_device_attribute = writes<device_attribute>(0xe2);
// Requests on a vCPU.
inline constexpr std::uint32_t run = request(0x80);
inline constexpr std::uint32_t get_x86_registers = reads<x86_registers>(0x81);
inline constexpr std::uint32_t set_x86_registers = writes<x86_registers>(0x82);
inline constexpr std::uint32_t get_x86_special_registers = reads<x86_special_registers>(0x83);
inline constexpr std::uint32_t set_x86_special_registers = writes<x86_special_registers>(0x84);
inline constexpr std::uint32_t set_x86_cpuid = writes<x86_cpuid_header>(0x90);
inline constexpr std::uint32_t get_one_register = writes<one_register>(0xab);
inline constexpr std::uint32_t set_one_register = writes<one_register>(0xac);
inline constexpr std::uint32_t arm_init_vcpu = writes<arm_vcpu_init>(0xae);
/// The argument is a count, and as many register numbers behind it.
inline constexpr std::uint32_t get_register_list = exchanges<std::uint64_t>(0xb0);
inline constexpr std::uint32_t get_power_state = reads<std::uint32_t>(0x98); ///< MP_STATE
inline constexpr std::uint32_t set_power_state = writes<std::uint32_t>(0x99);
inline constexpr std::uint32_t get_arm_events = reads<arm_vcpu_events>(0x9f);
inline constexpr std::uint32_t set_arm_events = writes<arm_vcpu_events>(0xa0);

/// KVM_DEV_TYPE_ARM_VGIC_V3 and its attribute groups.
namespace gic_v3 {
inline constexpr std::uint32_t device_type = 7;
inline constexpr std::uint32_t group_address = 0;
inline constexpr std::uint32_t group_distributor_registers = 1;
inline constexpr std::uint32_t group_redistributor_registers = 5;
inline constexpr std::uint32_t group_processor_registers = 6;
inline constexpr std::uint32_t group_level_info = 7;
inline constexpr std::uint32_t group_its_registers = 8;
inline constexpr std::uint32_t group_interrupt_count = 3;
inline constexpr std::uint32_t group_control = 4;
inline constexpr std::uint64_t address_distributor = 2;
inline constexpr std::uint64_t address_redistributor_region = 5;
inline constexpr std::uint64_t control_init = 0;
inline constexpr std::uint64_t control_its_save_tables = 1;
inline constexpr std::uint64_t control_its_restore_tables = 2;
inline constexpr std::uint64_t control_save_pending_tables = 3;
} // namespace gic_v3

/// KVM_DEV_TYPE_ARM_VGIC_ITS and its attributes; the groups are those of gic_v3.
namespace gic_its {
inline constexpr std::uint32_t device_type = 8;
inline constexpr std::uint64_t address_registers = 4;
} // namespace gic_its

/// Attribute group of a vCPU's timers (KVM_ARM_VCPU_TIMER_CTRL).
namespace arm_timer {
inline constexpr std::uint32_t group = 1;
inline constexpr std::uint64_t virtual_interrupt = 0;
inline constexpr std::uint64_t physical_interrupt = 1;
} // namespace arm_timer

/// Bits of arm_vcpu_init::features[0].
inline constexpr std::uint32_t arm_feature_power_off = 1u << 0;
inline constexpr std::uint32_t arm_feature_psci_0_2 = 1u << 2;

/// irq_level::irq for a shared peripheral interrupt: type 1 in [27:24], INTID below.
[[nodiscard]] constexpr std::uint32_t arm_irq_of_spi(std::uint32_t intid) noexcept {
    return 1u << 24 | intid;
}
/// irq_level::irq for a private interrupt of one vCPU: type 2, the vCPU in
/// [31:28] (high part) and [23:16].
[[nodiscard]] constexpr std::uint32_t arm_irq_of_ppi(std::uint32_t vcpu,
                                                     std::uint32_t intid) noexcept {
    return (vcpu >> 8 & 0xf) << 28 | 2u << 24 | (vcpu & 0xff) << 16 | intid;
}

} // namespace vm_accel::inline v0::os::kvm_abi
