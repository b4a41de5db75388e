/// How much memory the machine has, for where nobody tells it node by node.
#pragma once

#include <cstdint>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#elif defined(_WIN32)
#include <vm_accel/os/windows_calls.hpp>
#endif

namespace vm_accel::inline v0::os {

/// Bytes of RAM; 0 where the system does not tell. Any thread.
[[nodiscard]] inline std::uint64_t physical_memory_bytes() noexcept {
#if defined(_SC_PHYS_PAGES)
    const long pages = ::sysconf(_SC_PHYS_PAGES);
    const long page = ::sysconf(_SC_PAGESIZE);
    if (pages > 0 && page > 0)
        return static_cast<std::uint64_t>(pages) * static_cast<std::uint64_t>(page);
#elif defined(_WIN32)
    windows_abi::memory_status status;
    if (::GlobalMemoryStatusEx(as_system<_MEMORYSTATUSEX>(&status)) != 0)
        return status.total_physical;
#endif
    return 0;
}

} // namespace vm_accel::inline v0::os
