/// From the records of Windows's GetLogicalProcessorInformationEx() to a topology.
///
/// Pure: the records are bytes, wherever they come from, so this is tested on every
/// system with machines that nobody here has. CPUs are numbered as windows_groups.hpp
/// says. Windows tells no distances and no bandwidths.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/cpu_set.hpp>
#include <vm_accel/os/windows_abi.hpp>
#include <vm_accel/os/windows_groups.hpp>
#include <vm_accel/topology/cpu_topology.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

namespace vm_accel::inline v0 {

namespace windows_topology {

/// A record's object: its CPUs, and what its kind tells.
struct object {
    os::cpu_set cpus{};
    unsigned number = 0;           ///< of a node; of others their place among their kind
    unsigned efficiency_class = 0; ///< of a core
    unsigned level = 0;            ///< of a cache
    unsigned line_bytes = 0;
    std::uint64_t bytes = 0;
};

struct objects {
    std::vector<object> cores{};
    std::vector<object> packages{};
    std::vector<object> nodes{};
    std::vector<object> caches{}; ///< data and unified ones
};

/// Reads integers out of one record; what lies beyond its end is 0 and remembered.
class record_reader {
public:
    explicit record_reader(std::span<const std::byte> record) noexcept : record_(record) {}

    template <class T>
    [[nodiscard]] T at(std::size_t offset) noexcept {
        T value{};
        if (offset > record_.size() || record_.size() - offset < sizeof value) {
            complete_ = false;
        } else {
            std::memcpy(&value, record_.data() + offset, sizeof value);
        }
        return value;
    }
    /// The CPUs of `count` masks; a count of 0 (older Windows) means one.
    [[nodiscard]] os::cpu_set masks(std::size_t offset, unsigned count) noexcept {
        os::cpu_set set;
        for (unsigned i = 0; i < std::max(count, 1u) && complete_; ++i) {
            const auto mask = at<os::windows_abi::group_affinity>(
                offset + i * sizeof(os::windows_abi::group_affinity));
            // Groups that a cpu_set cannot hold are left out, as CPUs beyond it are anywhere.
            static_cast<void>(os::windows_groups::insert(set, mask.group, mask.mask));
        }
        return set;
    }
    [[nodiscard]] bool is_complete() const noexcept { return complete_; }

private:
    std::span<const std::byte> record_;
    bool complete_ = true;
};

/// Adds the objects of one record. False: it is shorter than it says.
[[nodiscard]] inline bool read_record(std::span<const std::byte> bytes, objects& out) {
    namespace abi = os::windows_abi;
    record_reader record{bytes};
    object made;
    switch (static_cast<abi::relation>(record.at<std::uint32_t>(abi::record::relationship))) {
    case abi::relation::processor_core:
        made.efficiency_class = record.at<std::uint8_t>(abi::processor_record::efficiency_class);
        made.cpus = record.masks(abi::processor_record::group_masks,
                                 record.at<std::uint16_t>(abi::processor_record::group_count));
        made.number = static_cast<unsigned>(out.cores.size());
        out.cores.push_back(made);
        break;
    case abi::relation::processor_package:
        made.cpus = record.masks(abi::processor_record::group_masks,
                                 record.at<std::uint16_t>(abi::processor_record::group_count));
        made.number = static_cast<unsigned>(out.packages.size());
        out.packages.push_back(made);
        break;
    case abi::relation::numa_node:
    case abi::relation::numa_node_ex:
        made.number = record.at<std::uint32_t>(abi::node_record::node_number);
        made.cpus = record.masks(abi::node_record::group_masks,
                                 record.at<std::uint16_t>(abi::node_record::group_count));
        out.nodes.push_back(made);
        break;
    case abi::relation::cache: {
        const auto type =
            static_cast<abi::cache_type>(record.at<std::uint32_t>(abi::cache_record::type));
        if (type != abi::cache_type::unified && type != abi::cache_type::data) break;
        made.level = record.at<std::uint8_t>(abi::cache_record::level);
        made.line_bytes = record.at<std::uint16_t>(abi::cache_record::line_bytes);
        made.bytes = record.at<std::uint32_t>(abi::cache_record::cache_bytes);
        made.cpus = record.masks(abi::cache_record::group_masks,
                                 record.at<std::uint16_t>(abi::cache_record::group_count));
        out.caches.push_back(made);
        break;
    }
    default: // groups, dies, modules, and what later versions add
        break;
    }
    return record.is_complete();
}

/// Adds the objects of a buffer. Error: invalid_argument for damaged records.
[[nodiscard]] inline result<> read_records(std::span<const std::byte> bytes,
                                           objects& out) noexcept {
    for (std::size_t at = 0; at < bytes.size();) {
        record_reader header{bytes.subspan(at)};
        const std::size_t size = header.at<std::uint32_t>(os::windows_abi::record::size);
        if (!header.is_complete() || size < os::windows_abi::record::body ||
            size > bytes.size() - at || !read_record(bytes.subspan(at, size), out))
            return fail(
                errc::invalid_argument,
                fixed_text<160>{"Windows's processor records: damaged at byte "}.append_number(at),
                "give the buffer as GetLogicalProcessorInformationEx filled it");
        at += size;
    }
    return {};
}

/// Index of the first object that has the CPU; no_index if none has.
[[nodiscard]] inline unsigned owner_of(std::span<const object> objects, unsigned cpu) noexcept {
    for (unsigned i = 0; i < objects.size(); ++i)
        if (objects[i].cpus.contains(cpu)) return i;
    return no_index;
}

/// Whether some cores are of another class than others, and the lowest class.
struct classes {
    bool differ = false;
    unsigned lowest = 0;
    explicit classes(std::span<const object> cores) noexcept {
        if (cores.empty()) return;
        lowest = cores.front().efficiency_class;
        for (const object& core : cores) {
            differ = differ || core.efficiency_class != cores.front().efficiency_class;
            lowest = std::min(lowest, core.efficiency_class);
        }
    }
    [[nodiscard]] cpu_kind kind_of(const object& core) const noexcept {
        if (!differ) return cpu_kind::unknown;
        return core.efficiency_class == lowest ? cpu_kind::efficiency : cpu_kind::performance;
    }
};

[[nodiscard]] inline os::cpu_set both(const os::cpu_set& a, const os::cpu_set& b) noexcept {
    os::cpu_set set;
    for (std::size_t i = 0; i < set.words().size(); ++i)
        set.words()[i] = a.words()[i] & b.words()[i];
    return set;
}

[[nodiscard]] inline cpu_topology assemble(objects found) {
    cpu_topology out;
    const classes kinds{found.cores};
    if (found.packages.empty()) found.packages.push_back({});
    for (const object& package : found.packages)
        out.packages.push_back({package.number, {}});
    for (const object& node : found.nodes)
        out.nodes.push_back({node.number, 0, {}});
    // Neighbours in the order of cores are near each other.
    std::vector<std::tuple<unsigned, unsigned, unsigned, unsigned>> order;
    for (unsigned i = 0; i < found.cores.size(); ++i) {
        const unsigned first = found.cores[i].cpus.next(0);
        if (first == os::cpu_set::capacity) continue; // its CPUs are all left out
        const unsigned package = owner_of(found.packages, first);
        order.emplace_back(package == no_index ? 0 : package, owner_of(found.nodes, first), first,
                           i);
    }
    std::sort(order.begin(), order.end());
    for (const auto& [package, node, first, index] : order) {
        const object& core = found.cores[index];
        const auto number = static_cast<unsigned>(out.cores.size());
        out.cores.push_back({core.number, package, node, kinds.kind_of(core), {}});
        for (unsigned cpu = first; cpu < os::cpu_set::capacity; cpu = core.cpus.next(cpu + 1)) {
            const auto at = static_cast<unsigned>(out.cpus.size());
            const auto thread = static_cast<unsigned>(out.cores[number].cpus.size());
            out.cpus.push_back({cpu, number, package, node, thread, kinds.kind_of(core)});
            out.cores[number].cpus.push_back(at);
            out.packages[package].cpus.push_back(at);
            if (node != no_index) out.nodes[node].cpus.push_back(at);
        }
    }
    for (const object& cache : found.caches) {
        cpu_cache made{cache.level, cache.bytes, cache.line_bytes, {}};
        for (unsigned i = 0; i < out.cpus.size(); ++i)
            if (cache.cpus.contains(out.cpus[i].os_index)) made.cpus.push_back(i);
        if (!made.cpus.empty()) out.caches.push_back(std::move(made));
    }
    std::sort(out.caches.begin(), out.caches.end(), [](const cpu_cache& a, const cpu_cache& b) {
        return std::tie(a.level, a.cpus.front(), a.bytes) <
               std::tie(b.level, b.cpus.front(), b.bytes);
    });
    return out;
}

} // namespace windows_topology

/// The machine that the records describe.
/// `records`: what was given for RelationAll. `nodes`: what was given for
/// RelationNumaNodeEx, which alone tells all groups of a node; may be empty, where the
/// system does not know that request. `allowed`: the CPUs to keep; nothing: all.
/// Nodes keep a size of 0 bytes: records do not tell it. The result is flagged as
/// described. Errors: invalid_argument (damaged records), unavailable (no CPU is left).
[[nodiscard]] inline result<cpu_topology>
topology_from_windows_records(std::span<const std::byte> records,
                              std::span<const std::byte> nodes = {},
                              const std::optional<os::cpu_set>& allowed = {}) noexcept {
    windows_topology::objects found;
    windows_topology::objects whole_nodes;
    if (const result<> read = windows_topology::read_records(records, found); !read)
        return fail(read);
    if (const result<> read = windows_topology::read_records(nodes, whole_nodes); !read)
        return fail(read);
    if (!whole_nodes.nodes.empty()) found.nodes = std::move(whole_nodes.nodes);
    if (allowed)
        for (windows_topology::object& core : found.cores)
            core.cpus = windows_topology::both(core.cpus, *allowed);
    cpu_topology topology = windows_topology::assemble(std::move(found));
    if (topology.cpus.empty())
        return fail(errc::unavailable,
                    "Windows's processor records: there is no CPU that this process may use",
                    "give the process's affinity mask at least one CPU");
    if (topology.nodes.empty()) {
        topology.nodes.push_back({});
        for (unsigned i = 0; i < topology.cpus.size(); ++i) {
            topology.cpus[i].node = 0;
            topology.cores[topology.cpus[i].core].node = 0;
            topology.nodes[0].cpus.push_back(i);
        }
    }
    return topology;
}

} // namespace vm_accel::inline v0
