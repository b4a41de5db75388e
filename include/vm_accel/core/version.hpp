/// Version of the library, and the one prefix of its macros.
///
/// Everything lives in `vm_accel`, inside the inline namespace `v0`: two
/// versions linked into one program are different types, never one by mistake.
#pragma once

#define VM_ACCEL_VERSION_MAJOR 0
#define VM_ACCEL_VERSION_MINOR 1
#define VM_ACCEL_VERSION_PATCH 0

namespace vm_accel::inline v0 {

struct version {
    int major;
    int minor;
    int patch;
};

inline constexpr version library_version{VM_ACCEL_VERSION_MAJOR, VM_ACCEL_VERSION_MINOR,
                                         VM_ACCEL_VERSION_PATCH};

} // namespace vm_accel::inline v0
