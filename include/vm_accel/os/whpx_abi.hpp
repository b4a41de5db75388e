/// The Windows Hypervisor Platform's interface as facts: numbers and structures for
/// x86-64. A test on Windows compares them with <winhvplatform.h>.
///
/// The interface is stable, and written down here so that the `whpx` backend compiles
/// and is tested on every platform. Source: Microsoft's reference of the Windows
/// Hypervisor Platform API.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace vm_accel::inline v0::os::whpx_abi {

/// HRESULT; negative is a failure.
enum class status : std::int32_t { success = 0 };
[[nodiscard]] constexpr bool failed(status s) noexcept { return static_cast<std::int32_t>(s) < 0; }
[[nodiscard]] constexpr status status_of(std::uint32_t number) noexcept {
    return static_cast<status>(static_cast<std::int32_t>(number));
}
/// What a version of the library says that lacks a function: ERROR_PROC_NOT_FOUND.
inline constexpr status no_function = status_of(0x8007'007f);

using partition = void*;

enum class capability : std::uint32_t {
    hypervisor_present = 0x0000,
    features = 0x0001,
    extended_exits = 0x0002,
};
/// Bits of capability::features.
namespace feature {
inline constexpr std::uint64_t partial_unmap = 1u << 0;
inline constexpr std::uint64_t local_apic = 1u << 1;
inline constexpr std::uint64_t dirty_pages = 1u << 3;
} // namespace feature

enum class property : std::uint32_t {
    primary_numa_node = 0x0006, ///< 2 bytes
    cpu_reserve = 0x0007,       ///< 4 bytes
    cpu_cap = 0x0008,
    cpu_weight = 0x0009,
    local_apic_mode = 0x1005, ///< 4 bytes
    processor_count = 0x1fff, ///< 4 bytes
};
enum class local_apic_mode : std::uint32_t { none = 0, xapic = 1, x2apic = 2 };

inline constexpr std::uint32_t map_read = 1;
inline constexpr std::uint32_t map_write = 2;
inline constexpr std::uint32_t map_execute = 4;
inline constexpr std::uint32_t map_track_dirty = 8;

/// WHV_REGISTER_NAME, as far as this library uses it.
enum class reg : std::uint32_t {
    rax = 0x00, ///< then RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15
    rcx = 0x01,
    rdx = 0x02,
    rbx = 0x03,
    rsp = 0x04,
    rdi = 0x07,
    r15 = 0x0f,
    rip = 0x10,
    rflags = 0x11,
    es = 0x12,
    cs = 0x13,
    ss = 0x14,
    ds = 0x15,
    fs = 0x16,
    gs = 0x17,
    ldtr = 0x18,
    tr = 0x19,
    idtr = 0x1a,
    gdtr = 0x1b,
    cr0 = 0x1c,
    cr2 = 0x1d,
    cr3 = 0x1e,
    cr4 = 0x1f,
    efer = 0x2001,
    pending_interruption = 0x8000'0000,
    interrupt_state = 0x8000'0001,
    deliverability_notifications = 0x8000'0004,
};
/// General register by the processor's number: 0 = RAX ... 15 = R15.
[[nodiscard]] constexpr reg general(unsigned number) noexcept {
    return static_cast<reg>(number & 15);
}

/// WHV_X64_SEGMENT_REGISTER
struct segment {
    std::uint64_t base = 0;
    std::uint32_t limit = 0;
    std::uint16_t selector = 0;
    std::uint16_t attributes = 0; ///< type, S, DPL, P in [7:0]; AVL, L, D, G in [15:12]
};
static_assert(sizeof(segment) == 16);
inline constexpr std::uint16_t segment_long = 1u << 13;
inline constexpr std::uint16_t segment_default_32 = 1u << 14;

/// WHV_REGISTER_VALUE
struct alignas(16) register_value {
    std::uint64_t low = 0;
    std::uint64_t high = 0;
};
static_assert(sizeof(register_value) == 16);
[[nodiscard]] constexpr register_value value_of(const segment& s) noexcept {
    return {s.base, std::uint64_t{s.attributes} << 48 | std::uint64_t{s.selector} << 32 | s.limit};
}
[[nodiscard]] constexpr segment segment_of(const register_value& v) noexcept {
    return {v.low, static_cast<std::uint32_t>(v.high), static_cast<std::uint16_t>(v.high >> 32),
            static_cast<std::uint16_t>(v.high >> 48)};
}

/// Bits of reg::interrupt_state.
inline constexpr std::uint64_t interrupt_shadow = 1;
/// reg::pending_interruption for an external interrupt: pending, type 0, the vector.
[[nodiscard]] constexpr std::uint64_t pending_vector(unsigned vector) noexcept {
    return 1 | std::uint64_t{vector} << 16;
}
inline constexpr std::uint64_t notify_interrupt = 2; ///< of deliverability_notifications

/// WHV_RUN_VP_EXIT_REASON
enum class exit : std::uint32_t {
    none = 0,
    memory_access = 1,
    io_port = 2,
    unrecoverable_exception = 4,
    invalid_register = 5,
    unsupported_feature = 6,
    interrupt_window = 7,
    halt = 8,
    apic_eoi = 9,
    canceled = 0x2001,
};

/// WHV_VP_EXIT_CONTEXT
struct vp_context {
    std::uint16_t execution_state = 0;
    std::uint8_t length_and_cr8 = 0; ///< instruction length in [3:0]
    std::uint8_t reserved = 0;
    std::uint32_t reserved2 = 0;
    segment cs{};
    std::uint64_t rip = 0;
    std::uint64_t rflags = 0;

    [[nodiscard]] constexpr unsigned instruction_length() const noexcept {
        return length_and_cr8 & 15u;
    }
    [[nodiscard]] constexpr bool is_long_mode() const noexcept {
        return (execution_state >> 4 & 1) != 0;
    }
    [[nodiscard]] constexpr bool in_shadow() const noexcept {
        return (execution_state >> 12 & 1) != 0;
    }
};
static_assert(sizeof(vp_context) == 40);

/// WHV_MEMORY_ACCESS_CONTEXT
struct memory_access {
    std::uint8_t instruction_bytes = 0; ///< valid ones of `instruction`, 0 = none were read
    std::uint8_t reserved[3]{};
    std::uint8_t instruction[16]{};
    std::uint32_t info = 0; ///< [1:0] read, write, execute; [2] not mapped; [3] virtual valid
    std::uint64_t physical = 0;
    std::uint64_t virtual_address = 0;

    [[nodiscard]] constexpr unsigned kind() const noexcept { return info & 3; }
    [[nodiscard]] constexpr bool unmapped() const noexcept { return (info >> 2 & 1) != 0; }
};
static_assert(sizeof(memory_access) == 40);

/// WHV_X64_IO_PORT_ACCESS_CONTEXT
struct io_port_access {
    std::uint8_t instruction_bytes = 0;
    std::uint8_t reserved[3]{};
    std::uint8_t instruction[16]{};
    std::uint32_t info = 0; ///< [0] write; [3:1] size; [4] string; [5] repeated
    std::uint16_t port = 0;
    std::uint16_t reserved2[3]{};
    std::uint64_t rax = 0, rcx = 0, rsi = 0, rdi = 0;
    segment ds{}, es{};

    [[nodiscard]] constexpr bool is_write() const noexcept { return (info & 1) != 0; }
    [[nodiscard]] constexpr unsigned bytes() const noexcept { return info >> 1 & 7; }
    [[nodiscard]] constexpr bool is_string() const noexcept { return (info & 0x30) != 0; }
};
static_assert(sizeof(io_port_access) == 96);

/// WHV_RUN_VP_EXIT_CONTEXT
struct exit_context {
    exit reason = exit::none;
    std::uint32_t reserved = 0;
    vp_context vp{};
    union {
        memory_access memory;
        io_port_access io;
        std::uint64_t feature[2]; ///< unsupported_feature: code, parameter
        std::uint32_t vector;     ///< apic_eoi
        std::uint8_t bytes[176];
    };

    exit_context() noexcept : bytes{} {}
};
static_assert(sizeof(exit_context) == 224 && offsetof(exit_context, memory) == 48);

/// WHV_INTERRUPT_CONTROL
struct interrupt_control {
    std::uint64_t kind = 0; ///< [7:0] type, [11:8] logical destination, [15:12] level trigger
    std::uint32_t destination = 0;
    std::uint32_t vector = 0;
};
static_assert(sizeof(interrupt_control) == 16);

/// WHV_VIRTUAL_PROCESSOR_PROPERTY with the one code there is: the node of its memory.
struct vcpu_property {
    std::uint32_t code = 0;
    std::uint32_t reserved = 0;
    std::uint64_t numa_node = 0; ///< the low 16 bits count
};
static_assert(sizeof(vcpu_property) == 16);

/// WHvTranslateGva: flags and the result that is good.
inline constexpr std::uint32_t translate_for_execution = 4;
struct translation {
    std::uint32_t code = 0; ///< 0 = translated
    std::uint32_t reserved = 0;
};

} // namespace vm_accel::inline v0::os::whpx_abi
