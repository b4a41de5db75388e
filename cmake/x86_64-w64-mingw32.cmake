# Cross-building for Windows with Debian's g++-mingw-w64-x86-64-posix; wine64 runs the programs.
#   cmake -S . -B build/windows/cmake -DCMAKE_TOOLCHAIN_FILE=cmake/x86_64-w64-mingw32.cmake
# Boost, tl::expected and Catch2 are headers, the host's own; but the host's /usr/include as a whole
# must not be on the include path. So links to the three stand in a folder of their own,
# VM_ACCEL_WINDOWS_HEADERS (by default build/windows/headers), which this file makes.
# VM_ACCEL_HEADER_SOURCE names where they are found, by default /usr/include.
set(CMAKE_SYSTEM_NAME Windows)
set(CMAKE_SYSTEM_PROCESSOR x86_64)
set(CMAKE_C_COMPILER x86_64-w64-mingw32-gcc-posix)
set(CMAKE_CXX_COMPILER x86_64-w64-mingw32-g++-posix)
set(CMAKE_RC_COMPILER x86_64-w64-mingw32-windres)
# One file that needs no library of the compiler's beside it.
set(CMAKE_EXE_LINKER_FLAGS_INIT "-static")

if(NOT VM_ACCEL_WINDOWS_HEADERS)
  get_filename_component(VM_ACCEL_WINDOWS_HEADERS "${CMAKE_CURRENT_LIST_DIR}/../build/windows/headers"
                         ABSOLUTE)
endif()
if(NOT VM_ACCEL_HEADER_SOURCE)
  set(VM_ACCEL_HEADER_SOURCE /usr/include)
endif()
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES VM_ACCEL_WINDOWS_HEADERS VM_ACCEL_HEADER_SOURCE)

file(MAKE_DIRECTORY "${VM_ACCEL_WINDOWS_HEADERS}/include")
foreach(package boost tl catch2)
  if(EXISTS "${VM_ACCEL_HEADER_SOURCE}/${package}"
     AND NOT EXISTS "${VM_ACCEL_WINDOWS_HEADERS}/include/${package}")
    file(CREATE_LINK "${VM_ACCEL_HEADER_SOURCE}/${package}"
         "${VM_ACCEL_WINDOWS_HEADERS}/include/${package}" SYMBOLIC)
  endif()
endforeach()
# What find_package() finds of the two that come with package files on the host.
foreach(package_and_target "tl-expected;tl::expected;1.0.0" "Catch2;Catch2::Catch2;2.13.10")
  list(GET package_and_target 0 package)
  list(GET package_and_target 1 target)
  list(GET package_and_target 2 version)
  set(folder "${VM_ACCEL_WINDOWS_HEADERS}/lib/cmake/${package}")
  if(NOT EXISTS "${folder}/${package}Config.cmake")
    file(WRITE "${folder}/${package}ConfigVersion.cmake"
         "set(PACKAGE_VERSION ${version})\nset(PACKAGE_VERSION_COMPATIBLE TRUE)\n")
    file(WRITE "${folder}/${package}Config.cmake"
         "add_library(${target} INTERFACE IMPORTED)\n"
         "set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "
         "\"${VM_ACCEL_WINDOWS_HEADERS}/include\")\n")
  endif()
endforeach()

set(CMAKE_FIND_ROOT_PATH "${VM_ACCEL_WINDOWS_HEADERS}" /usr/x86_64-w64-mingw32)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
set(Boost_NO_BOOST_CMAKE ON)
