# Finds hwloc, which ships no CMake package: imported target hwloc::hwloc,
# variables hwloc_FOUND and hwloc_VERSION.
find_path(hwloc_INCLUDE_DIR hwloc.h)
find_library(hwloc_LIBRARY hwloc)
mark_as_advanced(hwloc_INCLUDE_DIR hwloc_LIBRARY)

# config.h of hwloc is per architecture on multiarch systems, so the version
# comes from the API number: 0x00020400 is 2.4.0.
if(hwloc_INCLUDE_DIR)
    file(STRINGS ${hwloc_INCLUDE_DIR}/hwloc.h hwloc_api_line
         REGEX "^#define HWLOC_API_VERSION 0x[0-9a-fA-F]+")
    if(hwloc_api_line MATCHES "0x([0-9a-fA-F]+)")
        math(EXPR hwloc_major "(0x${CMAKE_MATCH_1} >> 16)")
        math(EXPR hwloc_minor "(0x${CMAKE_MATCH_1} >> 8) & 255")
        math(EXPR hwloc_patch "0x${CMAKE_MATCH_1} & 255")
        set(hwloc_VERSION ${hwloc_major}.${hwloc_minor}.${hwloc_patch})
    endif()
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(hwloc
    REQUIRED_VARS hwloc_LIBRARY hwloc_INCLUDE_DIR
    VERSION_VAR hwloc_VERSION
    REASON_FAILURE_MESSAGE "(Debian: libhwloc-dev, needed by vm_accel::host, not by vm_accel::smmu)")

if(hwloc_FOUND AND NOT TARGET hwloc::hwloc)
    add_library(hwloc::hwloc UNKNOWN IMPORTED)
    set_target_properties(hwloc::hwloc PROPERTIES
        IMPORTED_LOCATION ${hwloc_LIBRARY}
        INTERFACE_INCLUDE_DIRECTORIES ${hwloc_INCLUDE_DIR})
endif()
