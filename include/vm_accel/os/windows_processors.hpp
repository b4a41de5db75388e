/// The records in which Windows describes the machine's processors.
/// On other systems this header is empty.
#pragma once

#if defined(_WIN32)

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/dynamic_library.hpp>
#include <vm_accel/os/windows_abi.hpp>
#include <vm_accel/os/windows_calls.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace vm_accel::inline v0::os {

/// GetLogicalProcessorInformationEx(): records as windows_abi.hpp lays them out.
/// Errors: invalid_argument for a kind that this version of Windows does not know.
[[nodiscard]] inline result<std::vector<std::byte>>
processor_records(windows_abi::relation kind) noexcept {
    // Found at run time: its first parameter is an enumeration, which cannot be named
    // without defining it.
    using call = int __stdcall(std::uint32_t, void*, unsigned long*);
    const result<dynamic_library> kernel = dynamic_library::open("kernel32.dll");
    call* const read = kernel ? kernel->find<call>("GetLogicalProcessorInformationEx") : nullptr;
    if (read == nullptr)
        return fail(errc::unsupported, "processor records: this system does not tell",
                    "run Windows 7 or later");
    std::vector<std::byte> records;
    for (unsigned attempt = 0; attempt < 4; ++attempt) { // CPUs may be added in between
        auto bytes = static_cast<unsigned long>(records.size());
        if (read(static_cast<std::uint32_t>(kind), records.data(), &bytes) != 0) {
            records.resize(bytes);
            return records;
        }
        constexpr std::uint32_t insufficient_buffer = 122;
        const std::uint32_t reason = ::GetLastError();
        if (reason != insufficient_buffer || bytes <= records.size())
            return fail_with_windows(reason, "processor records", "load the topology again");
        records.resize(bytes);
    }
    return fail(errc::busy, "processor records: they grow faster than they are read",
                "load the topology again");
}

} // namespace vm_accel::inline v0::os

#endif
