/// The structures of Windows that this library reads and writes, as facts.
///
/// Written down here instead of including <windows.h>, which defines macros such as
/// `near`, `far` and `min` for whoever includes the library. Compiles everywhere, so
/// that what reads these records is tested on any system; a test on Windows compares
/// every size and offset with the system's headers.
/// Source: Microsoft's reference of the Win32 API (winnt.h, psapi.h, processthreadsapi.h).
#pragma once

#include <cstddef>
#include <cstdint>

namespace vm_accel::inline v0::os::windows_abi {

/// GROUP_AFFINITY: processors of one group of at most 64.
struct group_affinity {
    std::uint64_t mask = 0;
    std::uint16_t group = 0;
    std::uint16_t reserved[3]{};
};
static_assert(sizeof(group_affinity) == 16);

/// PROCESSOR_NUMBER
struct processor_number {
    std::uint16_t group = 0;
    std::uint8_t number = 0;
    std::uint8_t reserved = 0;
};
static_assert(sizeof(processor_number) == 4);

/// LOGICAL_PROCESSOR_RELATIONSHIP: kinds of record.
enum class relation : std::uint32_t {
    processor_core = 0,
    numa_node = 1,
    cache = 2,
    processor_package = 3,
    group = 4,
    processor_die = 5,
    numa_node_ex = 6, ///< asked for; answered with records of kind numa_node
    processor_module = 7,
    all = 0xffff,
};

// SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX: `relationship` and `size` (of the whole
// record), then one of the bodies below. Offsets are from the start of the record.
namespace record {
inline constexpr std::size_t relationship = 0;
inline constexpr std::size_t size = 4;
inline constexpr std::size_t body = 8;
} // namespace record

/// PROCESSOR_RELATIONSHIP: a core or a package; group masks follow.
namespace processor_record {
inline constexpr std::size_t flags = 8;            ///< 1 byte; bit 0: the core has SMT
inline constexpr std::size_t efficiency_class = 9; ///< 1 byte; higher is faster
inline constexpr std::size_t group_count = 30;     ///< 2 bytes
inline constexpr std::size_t group_masks = 32;     ///< group_affinity each
} // namespace processor_record

/// NUMA_NODE_RELATIONSHIP. group_count is 0 before Windows Server 2022 (20348): one mask.
namespace node_record {
inline constexpr std::size_t node_number = 8;  ///< 4 bytes
inline constexpr std::size_t group_count = 30; ///< 2 bytes
inline constexpr std::size_t group_masks = 32;
} // namespace node_record

/// CACHE_RELATIONSHIP. group_count as in node_record.
namespace cache_record {
inline constexpr std::size_t level = 8;         ///< 1 byte
inline constexpr std::size_t associativity = 9; ///< 1 byte
inline constexpr std::size_t line_bytes = 10;   ///< 2 bytes
inline constexpr std::size_t cache_bytes = 12;  ///< 4 bytes
inline constexpr std::size_t type = 16;         ///< 4 bytes: see cache_type
inline constexpr std::size_t group_count = 38;  ///< 2 bytes
inline constexpr std::size_t group_masks = 40;
} // namespace cache_record

/// PROCESSOR_CACHE_TYPE
enum class cache_type : std::uint32_t { unified = 0, instruction = 1, data = 2, trace = 3 };

/// SYSTEM_CPU_SET_INFORMATION, the only kind there is (CpuSetInformation).
struct cpu_set_information {
    std::uint32_t size = 0; ///< of this record; later versions may be longer
    std::uint32_t type = 0; ///< 0
    std::uint32_t id = 0;   ///< what SetThreadSelectedCpuSets takes
    std::uint16_t group = 0;
    std::uint8_t logical_processor_index = 0; ///< within the group
    std::uint8_t core_index = 0;
    std::uint8_t last_level_cache_index = 0;
    std::uint8_t numa_node_index = 0;
    std::uint8_t efficiency_class = 0;
    std::uint8_t flags = 0; ///< bit 0 parked, bit 1 allocated, bit 2 to this process
    std::uint32_t scheduling_class = 0;
    std::uint64_t allocation_tag = 0;
};
static_assert(sizeof(cpu_set_information) == 32);

/// PSAPI_WORKING_SET_EX_INFORMATION
struct working_set_entry {
    void* address = nullptr;
    std::uint64_t attributes = 0;

    [[nodiscard]] bool valid() const noexcept { return (attributes & 1) != 0; }
    [[nodiscard]] unsigned node() const noexcept {
        return static_cast<unsigned>(attributes >> 16 & 0x3f);
    }
    [[nodiscard]] bool large_page() const noexcept { return (attributes >> 23 & 1) != 0; }
};

/// SYSTEM_INFO
struct system_information {
    std::uint16_t processor_architecture = 0;
    std::uint16_t reserved = 0;
    std::uint32_t page_bytes = 0;
    void* minimum_address = nullptr;
    void* maximum_address = nullptr;
    std::uint64_t active_processors = 0;
    std::uint32_t processors = 0;
    std::uint32_t processor_type = 0;
    std::uint32_t allocation_granularity = 0;
    std::uint16_t processor_level = 0;
    std::uint16_t processor_revision = 0;
};

/// MEMORYSTATUSEX
struct memory_status {
    std::uint32_t length = sizeof(memory_status);
    std::uint32_t load_percent = 0;
    std::uint64_t total_physical = 0;
    std::uint64_t available_physical = 0;
    std::uint64_t total_page_file = 0;
    std::uint64_t available_page_file = 0;
    std::uint64_t total_virtual = 0;
    std::uint64_t available_virtual = 0;
    std::uint64_t available_extended_virtual = 0;
};
static_assert(sizeof(memory_status) == 64);

/// MEM_ADDRESS_REQUIREMENTS
struct address_requirements {
    void* lowest = nullptr;
    void* highest = nullptr;
    std::uint64_t alignment = 0;
};
static_assert(sizeof(address_requirements) == 24);
/// MEM_EXTENDED_PARAMETER: what kind it is, and a number or an address.
struct extended_parameter {
    std::uint64_t kind = 0;
    std::uint64_t value = 0;
};
static_assert(sizeof(extended_parameter) == 16);
inline constexpr std::uint64_t parameter_address_requirements = 1;
inline constexpr std::uint64_t parameter_numa_node = 2;

/// TOKEN_PRIVILEGES with one entry. The identifier is a LUID, 4-byte aligned.
struct one_privilege {
    std::uint32_t count = 1;
    std::uint32_t luid[2]{};
    std::uint32_t attributes = 0;
};
static_assert(sizeof(one_privilege) == 16);

/// THREAD_POWER_THROTTLING_STATE (EcoQoS)
struct power_throttling {
    std::uint32_t version = 1;
    std::uint32_t control_mask = 0;
    std::uint32_t state_mask = 0;
};

inline constexpr std::uint32_t thread_power_throttling = 3; ///< THREAD_INFORMATION_CLASS
inline constexpr std::uint32_t throttle_execution_speed = 1;
inline constexpr std::uint32_t allocate_commit = 0x1000;
inline constexpr std::uint32_t allocate_reserve = 0x2000;
inline constexpr std::uint32_t allocate_large_pages = 0x2000'0000;
inline constexpr std::uint32_t reserve_placeholder = 0x4'0000;
inline constexpr std::uint32_t replace_placeholder = 0x4000;
inline constexpr std::uint32_t preserve_placeholder = 2; ///< of VirtualFree()
inline constexpr std::uint32_t page_no_access = 1;
inline constexpr std::uint32_t free_release = 0x8000;
inline constexpr std::uint32_t page_read_write = 0x04;
inline constexpr std::uint32_t token_adjust_privileges = 0x20;
inline constexpr std::uint32_t token_query = 0x08;
inline constexpr std::uint32_t privilege_enabled = 2;
inline constexpr int priority_error = 0x7fff'ffff; ///< THREAD_PRIORITY_ERROR_RETURN

} // namespace vm_accel::inline v0::os::windows_abi
