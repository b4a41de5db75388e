/// Sizes and offsets of the library's principal types, collected by two translation units of one
/// program: one compiled with NDEBUG, one without.
#pragma once

#include <vm_accel/vm_accel.hpp>

#include <cstddef>
#include <string>
#include <vector>

struct layout_row {
    std::string name;
    std::size_t size;
    std::size_t alignment;
    std::vector<std::size_t> offsets;
    friend bool operator==(const layout_row&, const layout_row&) = default;
};

std::vector<layout_row> layout_with_ndebug();
std::vector<layout_row> layout_without_ndebug();

namespace {

/// The negative control: what the comparison must find.
struct changes_with_ndebug {
#ifndef NDEBUG
    int only_in_debug_builds;
#endif
    char always;
};

template <class T>
layout_row row_of(const char* name, std::vector<std::size_t> offsets = {}) {
    return {name, sizeof(T), alignof(T), std::move(offsets)};
}

inline std::vector<layout_row> collect_layout() {
    using namespace vm_accel;
    std::vector<layout_row> rows{
        row_of<changes_with_ndebug>("control", {offsetof(changes_with_ndebug, always)}),
        row_of<error>("error", {offsetof(error, code), offsetof(error, os_error),
                                offsetof(error, cause), offsetof(error, cure)}),
        row_of<result<>>("result<>"),
        row_of<result<pa>>("result<pa>"),
        row_of<pa_range>("pa_range", {offsetof(pa_range, base), offsetof(pa_range, size)}),
        row_of<counter>("counter"),
        row_of<host_run>("host_run", {offsetof(host_run, host), offsetof(host_run, base),
                                      offsetof(host_run, bytes)}),
        row_of<region_map>("region_map"),
        row_of<counting_sink>("counting_sink"),
        row_of<os::descriptor>("os::descriptor"),
    };
    return rows;
}

} // namespace
