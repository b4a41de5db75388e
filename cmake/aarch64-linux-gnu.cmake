# Cross-building for arm64 Linux with Debian's g++-aarch64-linux-gnu.
#   cmake -S . -B build/arm64/cmake -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake
# VM_ACCEL_SYSROOT names a folder with unpacked arm64 packages (hwloc, fdt, expected, Boost), by
# default build/arm64/sysroot, which scripts/demo makes. It holds no C library: that is the compiler's.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)

if(NOT VM_ACCEL_SYSROOT)
  get_filename_component(VM_ACCEL_SYSROOT "${CMAKE_CURRENT_LIST_DIR}/../build/arm64/sysroot" ABSOLUTE)
endif()
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES VM_ACCEL_SYSROOT)

set(CMAKE_FIND_ROOT_PATH "${VM_ACCEL_SYSROOT}" /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
set(ENV{PKG_CONFIG_SYSROOT_DIR} "${VM_ACCEL_SYSROOT}")
set(ENV{PKG_CONFIG_LIBDIR}
    "${VM_ACCEL_SYSROOT}/usr/lib/aarch64-linux-gnu/pkgconfig:${VM_ACCEL_SYSROOT}/usr/share/pkgconfig")

# Debian keeps headers that differ between architectures (hwloc/autogen/config.h) in a folder that
# the cross compiler does not search.
set(CMAKE_C_STANDARD_INCLUDE_DIRECTORIES "${VM_ACCEL_SYSROOT}/usr/include/aarch64-linux-gnu")
set(CMAKE_CXX_STANDARD_INCLUDE_DIRECTORIES "${VM_ACCEL_SYSROOT}/usr/include/aarch64-linux-gnu")

# libudev and others are needed by libhwloc only; the linker looks for them here.
set(CMAKE_EXE_LINKER_FLAGS_INIT
    "\"-Wl,-rpath-link,${VM_ACCEL_SYSROOT}/usr/lib/aarch64-linux-gnu:${VM_ACCEL_SYSROOT}/lib/aarch64-linux-gnu\"")
