/// The calls of Windows that this library makes, and a failed one as an `error`.
/// The declarations exist on Windows only.
///
/// They are written down rather than taken from <windows.h>, and agree with it where
/// a program includes both: the structures are the system's own, named and not
/// defined. What older versions of Windows lack, or Wine, is asked for at run time.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/windows_abi.hpp>

#include <cstddef>
#include <cstdint>
#include <string_view>

#if defined(_WIN32)

// NOLINTBEGIN: names are the system's
extern "C" {
struct _GROUP_AFFINITY;
struct _PROCESSOR_NUMBER;
struct _SYSTEM_INFO;
struct _MEMORYSTATUSEX;
struct _LUID;
struct _TOKEN_PRIVILEGES;

__declspec(dllimport) unsigned long __stdcall GetLastError(void);
__declspec(dllimport) void* __stdcall GetCurrentThread(void);
__declspec(dllimport) void* __stdcall GetCurrentProcess(void);
__declspec(dllimport) int __stdcall CloseHandle(void*);
__declspec(dllimport) int __stdcall SetThreadGroupAffinity(void*, const struct _GROUP_AFFINITY*,
                                                           struct _GROUP_AFFINITY*);
__declspec(dllimport) int __stdcall GetThreadGroupAffinity(void*, struct _GROUP_AFFINITY*);
__declspec(dllimport) void __stdcall GetCurrentProcessorNumberEx(struct _PROCESSOR_NUMBER*);
__declspec(dllimport) int __stdcall GetProcessGroupAffinity(void*, unsigned short*,
                                                            unsigned short*);
__declspec(dllimport) int __stdcall GetProcessAffinityMask(void*, unsigned long long*,
                                                           unsigned long long*);
__declspec(dllimport) unsigned long __stdcall GetActiveProcessorCount(unsigned short);
__declspec(dllimport) unsigned short __stdcall GetActiveProcessorGroupCount(void);
__declspec(dllimport) int __stdcall SetThreadPriority(void*, int);
__declspec(dllimport) int __stdcall GetThreadPriority(void*);
__declspec(dllimport) void* __stdcall VirtualAlloc(void*, unsigned long long, unsigned long,
                                                   unsigned long);
__declspec(dllimport) void* __stdcall VirtualAllocExNuma(void*, void*, unsigned long long,
                                                         unsigned long, unsigned long,
                                                         unsigned long);
__declspec(dllimport) int __stdcall VirtualFree(void*, unsigned long long, unsigned long);
__declspec(dllimport) int __stdcall K32QueryWorkingSetEx(void*, void*, unsigned long);
__declspec(dllimport) unsigned long long __stdcall GetLargePageMinimum(void);
__declspec(dllimport) void __stdcall GetSystemInfo(struct _SYSTEM_INFO*);
__declspec(dllimport) int __stdcall GlobalMemoryStatusEx(struct _MEMORYSTATUSEX*);
__declspec(dllimport) int __stdcall GetNumaAvailableMemoryNodeEx(unsigned short,
                                                                 unsigned long long*);
__declspec(dllimport) void __stdcall FlushProcessWriteBuffers(void);
__declspec(dllimport) int __stdcall OpenProcessToken(void*, unsigned long, void**);
__declspec(dllimport) int __stdcall LookupPrivilegeValueW(const wchar_t*, const wchar_t*,
                                                          struct _LUID*);
__declspec(dllimport) int __stdcall AdjustTokenPrivileges(void*, int, struct _TOKEN_PRIVILEGES*,
                                                          unsigned long, struct _TOKEN_PRIVILEGES*,
                                                          unsigned long*);
}
// NOLINTEND

#endif

namespace vm_accel::inline v0::os {

/// The kind of failure that a number of GetLastError() is.
[[nodiscard]] constexpr errc code_of_windows(std::uint32_t number) noexcept {
    switch (number) {
    case 5:    // ERROR_ACCESS_DENIED
    case 1314: // ERROR_PRIVILEGE_NOT_HELD
    case 1300: // ERROR_NOT_ALL_ASSIGNED
        return errc::permission_denied;
    case 2:   // ERROR_FILE_NOT_FOUND
    case 126: // ERROR_MOD_NOT_FOUND
    case 127: // ERROR_PROC_NOT_FOUND
        return errc::not_found;
    case 8:    // ERROR_NOT_ENOUGH_MEMORY
    case 14:   // ERROR_OUTOFMEMORY
    case 1450: // ERROR_NO_SYSTEM_RESOURCES
    case 1453: // ERROR_WORKING_SET_QUOTA
    case 1455: // ERROR_COMMITMENT_LIMIT
        return errc::exhausted;
    case 1:   // ERROR_INVALID_FUNCTION
    case 50:  // ERROR_NOT_SUPPORTED
    case 120: // ERROR_CALL_NOT_IMPLEMENTED
        return errc::unsupported;
    case 87:  // ERROR_INVALID_PARAMETER
    case 487: // ERROR_INVALID_ADDRESS
        return errc::invalid_argument;
    case 170: // ERROR_BUSY
        return errc::busy;
    default:
        return errc::system_failure;
    }
}

/// "WHAT: Windows error N (words)", with the cure. Pass GetLastError() before
/// anything else can change it. Any thread.
[[nodiscard]] inline tl::unexpected<error>
fail_with_windows(std::uint32_t number, std::string_view what, std::string_view cure) noexcept {
    fixed_text<160> cause{what};
    cause.append(": Windows error ").append_number(number);
    const errc code = code_of_windows(number);
    if (code != errc::system_failure) cause.append(" (").append(name_of(code)).append(")");
    return fail(code, cause, fixed_text<160>{cure}, static_cast<int>(number));
}

#if defined(_WIN32)
/// One of this file's structures, as the system names it.
template <class System, class Ours>
[[nodiscard]] System* as_system(Ours* structure) noexcept {
    return reinterpret_cast<System*>(structure);
}
#endif

} // namespace vm_accel::inline v0::os
