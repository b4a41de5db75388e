/// How far a CPU is from NUMA nodes, also when its own node is not one of those that the
/// process may use: as Linux tells under /sys. Elsewhere nothing is known.
#pragma once

#include <vm_accel/os/file_system.hpp>
#include <vm_accel/os/isolated_cpus.hpp>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace vm_accel::inline v0::os {

/// A node and how far it is; 10 is local (ACPI SLIT).
struct node_distance {
    unsigned node = 0;
    unsigned distance = 0;

    friend bool operator==(const node_distance&, const node_distance&) = default;
};

/// From the node that a CPU belongs to, to every node that is online, ascending by
/// node. Empty where the system does not tell. Reads three small files. Any thread.
[[nodiscard]] inline std::vector<node_distance>
distances_from_cpu(unsigned cpu, const file_system_root& root = {}) noexcept {
    const std::string folder = "/sys/devices/system/cpu/cpu" + std::to_string(cpu);
    const auto entries = root.list(folder);
    const auto online = root.read_text("/sys/devices/system/node/online");
    if (!entries || !online) return {};
    const std::optional<cpu_set> nodes = parse_cpu_list(*online); // a list has one form
    if (!nodes) return {};
    for (const std::string_view name : *entries) {
        if (!name.starts_with("node")) continue;
        const auto text =
            root.read_text("/sys/devices/system/node/" + std::string{name} + "/distance");
        if (!text) return {};
        std::vector<node_distance> found;
        std::string_view rest = *text;
        for (unsigned node = nodes->next(0); node < cpu_set::capacity;
             node = nodes->next(node + 1)) {
            while (!rest.empty() && (rest.front() < '0' || rest.front() > '9'))
                rest.remove_prefix(1);
            if (rest.empty()) return {}; // a node went on or off line in between
            unsigned distance = 0;
            for (; !rest.empty() && rest.front() >= '0' && rest.front() <= '9';
                 rest.remove_prefix(1))
                distance = distance * 10 + static_cast<unsigned>(rest.front() - '0');
            found.push_back({node, distance});
        }
        return found;
    }
    return {};
}

} // namespace vm_accel::inline v0::os
