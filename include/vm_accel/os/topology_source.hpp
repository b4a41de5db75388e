/// Which way of reading the machine's topology this program is compiled for.
///
/// Linux asks hwloc, which knows every variant of /sys. Windows and macOS tell all
/// that is needed by one call of their own, so no library is built for them.
#pragma once

namespace vm_accel::inline v0 {} // namespace vm_accel::inline v0

#if defined(_WIN32) || defined(__APPLE__)
#define VM_ACCEL_HAS_HWLOC 0
#else
#define VM_ACCEL_HAS_HWLOC 1
#endif

#if defined(_WIN32)
#define VM_ACCEL_HAS_WINDOWS_TOPOLOGY 1
#else
#define VM_ACCEL_HAS_WINDOWS_TOPOLOGY 0
#endif

#if defined(__APPLE__)
#define VM_ACCEL_HAS_SYSCTL_TOPOLOGY 1
#else
#define VM_ACCEL_HAS_SYSCTL_TOPOLOGY 0
#endif

/// Whether there is a way without hwloc.
#define VM_ACCEL_READS_SYSTEM_TOPOLOGY                                                             \
    (VM_ACCEL_HAS_WINDOWS_TOPOLOGY || VM_ACCEL_HAS_SYSCTL_TOPOLOGY)
