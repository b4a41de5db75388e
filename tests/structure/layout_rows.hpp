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

using layout_device =
    vm_accel::smmu<vm_accel::set_associative<256, 4>, vm_accel::bitmap_streams<256>>;

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
        row_of<outcome>("outcome"),
        row_of<smmu_statistics>("smmu_statistics"),
        row_of<attachment_info>("attachment_info"),
        row_of<spec::ste>("spec::ste"),
        row_of<spec::cd>("spec::cd"),
        row_of<set_associative<256, 4>>("set_associative"),
        row_of<no_tlb>("no_tlb"),
        row_of<bitmap_streams<256>>("bitmap_streams"),
        row_of<lockfree_streams<64>>("lockfree_streams"),
        row_of<layout_device>("smmu"),
        row_of<layout_device::port>("smmu::port"),
        row_of<layout_device::port::guard>("smmu::port::guard"),
        row_of<cpu_topology>("cpu_topology"),
        row_of<affinity<linux_platform>>("affinity"),
        row_of<numa_allocator<local_first>>("numa_allocator"),
        row_of<object_pool<>>("object_pool"),
        row_of<kvm>("kvm"),
        row_of<kvm_vm>("kvm_vm"),
        row_of<kvm_vcpu>("kvm_vcpu"),
        row_of<acceleration_manager<layout_device>>("acceleration_manager"),
        row_of<diagnostic_report>("diagnostic_report"),
    };
    return rows;
}

} // namespace
