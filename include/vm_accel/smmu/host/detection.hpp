/// Does this host have an SMMUv3 of its own, and does its kernel use it?
///
/// Four places answer, in this order:
///   /sys/class/iommu        `smmu3.ADDRESS`: units the kernel's driver registered
///   /sys/devices/platform   `ADDRESS.NODE` (device tree) whose compatible strings
///                           include "arm,smmu-v3", `arm-smmu-v3.N.auto` (ACPI)
///   /proc/device-tree       nodes compatible with "arm,smmu-v3", for kernels
///                           that made no platform device of them
///   /proc/modules           whether `arm_smmu_v3` is loaded: decides `enabled`
///                           where sysfs cannot be read
/// A host without any of these has no SMMUv3. That is an answer, not an error.
#pragma once

#include <vm_accel/os/file_system.hpp>

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace vm_accel::inline v0 {

/// One SMMUv3 of the host.
struct smmu_device_info {
    std::string name;     ///< "9050000.iommu", "arm-smmu-v3.0.auto"
    std::string path;     ///< directory in /sys, or the node in /proc/device-tree
    std::string version;  ///< "SMMUv3"; the kernel does not publish the minor version
    bool enabled = false; ///< the kernel's driver is bound to it

    friend bool operator==(const smmu_device_info&, const smmu_device_info&) = default;
};

/// "NAME: SMMUv3, enabled, PATH"
template <class Stream>
    requires requires(Stream& out, std::string_view text) { out << text; }
Stream& operator<<(Stream& out, const smmu_device_info& device) {
    out << std::string_view{device.name} << std::string_view{": "}
        << std::string_view{device.version}
        << std::string_view{device.enabled ? ", enabled, " : ", not enabled, "}
        << std::string_view{device.path};
    return out;
}

namespace host_smmu {

inline constexpr std::string_view compatible_string = "arm,smmu-v3";
inline constexpr std::string_view version = "SMMUv3";
/// Buses nest; nothing real is deeper. Also what ends a walk in a loop of mounts.
inline constexpr unsigned max_depth = 8;

/// The part of a path behind its last slash.
[[nodiscard]] constexpr std::string_view last_component(std::string_view path) noexcept {
    const std::size_t slash = path.rfind('/');
    return slash == std::string_view::npos ? path : path.substr(slash + 1);
}

/// Whether a device tree property (strings, each ended by NUL) has `wanted`.
[[nodiscard]] constexpr bool lists_string(std::string_view property,
                                          std::string_view wanted) noexcept {
    while (!property.empty()) {
        const std::size_t end = std::min(property.find('\0'), property.size());
        if (property.substr(0, end) == wanted) return true;
        property.remove_prefix(std::min(end + 1, property.size()));
    }
    return false;
}

/// Whether a line of `text` starts with `word` followed by a blank.
[[nodiscard]] constexpr bool has_line_of(std::string_view text, std::string_view word) noexcept {
    while (!text.empty()) {
        const std::size_t end = std::min(text.find('\n'), text.size());
        const std::string_view line = text.substr(0, end);
        if (line.size() > word.size() && line.substr(0, word.size()) == word &&
            line[word.size()] == ' ') {
            return true;
        }
        text.remove_prefix(std::min(end + 1, text.size()));
    }
    return false;
}

/// Whether a platform device's name is one that ACPI gives: arm-smmu-v3.N.auto.
[[nodiscard]] constexpr bool is_acpi_name(std::string_view name) noexcept {
    constexpr std::string_view prefix = "arm-smmu-v3.";
    constexpr std::string_view suffix = ".auto";
    if (name.size() <= prefix.size() + suffix.size() || name.substr(0, prefix.size()) != prefix ||
        name.substr(name.size() - suffix.size()) != suffix) {
        return false;
    }
    name = name.substr(prefix.size(), name.size() - prefix.size() - suffix.size());
    return std::all_of(name.begin(), name.end(), [](char c) { return c >= '0' && c <= '9'; });
}

/// The platform device that Linux makes of a node: "iommu@9050000" gives
/// "9050000.iommu". A node without an address gives its own name.
[[nodiscard]] inline std::string platform_name(std::string_view node) {
    const std::size_t at = node.find('@');
    if (at == std::string_view::npos) return std::string{node};
    return std::string{node.substr(at + 1)}.append(".").append(node.substr(0, at));
}

[[nodiscard]] inline bool has_compatible(const os::file_system_root& root,
                                         const std::string& property_path) {
    const result<std::string> property = root.read_text(property_path);
    return property && lists_string(*property, compatible_string);
}

/// Units registered in /sys/class/iommu. Each is a link to
/// ../../devices/platform/DEVICE/iommu/smmu3.ADDRESS.
inline void add_registered(const os::file_system_root& root, std::vector<smmu_device_info>& found) {
    constexpr std::string_view directory = "/sys/class/iommu/";
    const result<std::vector<std::string>> names = root.list(directory);
    if (!names) return;
    for (const std::string& name : *names) {
        if (!name.starts_with("smmu3.")) continue;
        smmu_device_info device{name, std::string{directory} + name, std::string{version}, true};
        const result<std::string> link = root.read_link(device.path);
        if (link) {
            const std::size_t start = link->find("devices/");
            const std::size_t end = link->rfind("/iommu/");
            if (start != std::string::npos && end != std::string::npos && start < end) {
                device.path = "/sys/" + link->substr(start, end - start);
                device.name = std::string{last_component(device.path)};
            }
        }
        found.push_back(std::move(device));
    }
}

/// Platform devices, also those on buses below /sys/devices/platform.
inline void add_platform(const os::file_system_root& root, const std::string& directory,
                         unsigned depth, std::vector<smmu_device_info>& found) {
    const result<std::vector<std::string>> names = root.list(directory);
    if (!names) return;
    for (const std::string& name : *names) {
        const std::string path = directory + "/" + name;
        if (!root.is_directory(path)) continue;
        const bool from_device_tree = root.exists(path + "/of_node");
        if (is_acpi_name(name) ||
            (from_device_tree && has_compatible(root, path + "/of_node/compatible"))) {
            const bool known = std::any_of(found.begin(), found.end(),
                                           [&](const auto& d) { return d.path == path; });
            if (known) continue;
            const result<std::string> driver = root.read_link(path + "/driver");
            found.push_back({name, path, std::string{version},
                             driver && last_component(*driver) == "arm-smmu-v3"});
        } else if (from_device_tree && depth < max_depth) {
            add_platform(root, path, depth + 1, found);
        }
    }
}

/// Nodes of the device tree that have no platform device in `found`.
inline void add_nodes(const os::file_system_root& root, const std::string& directory,
                      unsigned depth, bool driver_loaded, std::vector<smmu_device_info>& found) {
    const result<std::vector<std::string>> names = root.list(directory);
    if (!names) return;
    for (const std::string& name : *names) {
        const std::string path = directory + "/" + name;
        if (!root.is_directory(path)) continue;
        if (has_compatible(root, path + "/compatible")) {
            const std::string device = platform_name(name);
            const bool known = std::any_of(found.begin(), found.end(),
                                           [&](const auto& d) { return d.name == device; });
            if (known) continue;
            const result<std::string> status = root.read_text(path + "/status");
            const bool okay =
                !status || lists_string(*status, "okay") || lists_string(*status, "ok");
            found.push_back({device, path, std::string{version}, okay && driver_loaded});
        } else if (depth < max_depth) {
            add_nodes(root, path, depth + 1, driver_loaded, found);
        }
    }
}

} // namespace host_smmu

/// All SMMUv3 of the host, ordered by path. Empty on a host that has none, and
/// on one whose /sys and /proc cannot be read. Reads files each time.
/// Threads: any.
[[nodiscard]] inline std::vector<smmu_device_info>
detect_host_smmus(const os::file_system_root& root = {}) {
    std::vector<smmu_device_info> found;
    host_smmu::add_registered(root, found);
    host_smmu::add_platform(root, "/sys/devices/platform", 0, found);
    // With sysfs at hand its word on drivers is final; the module list stands
    // in for it only where sysfs is missing. A built-in driver is in no list.
    const result<std::string> modules = root.read_text("/proc/modules");
    const bool driver_loaded = !root.exists("/sys/devices/platform") && modules &&
                               host_smmu::has_line_of(*modules, "arm_smmu_v3");
    host_smmu::add_nodes(root, "/proc/device-tree", 0, driver_loaded, found);
    std::sort(found.begin(), found.end(),
              [](const auto& a, const auto& b) { return a.path < b.path; });
    return found;
}

/// Whether the host has an SMMUv3, used by its kernel or not.
[[nodiscard]] inline bool is_host_smmu_available(const os::file_system_root& root = {}) noexcept {
    return !detect_host_smmus(root).empty();
}

} // namespace vm_accel::inline v0
