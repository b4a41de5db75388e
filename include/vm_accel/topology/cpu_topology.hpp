/// The processors and memory nodes that this process may use, as plain data.
///
/// Everything refers to everything else by index into the vectors below; the
/// operating system's numbers are kept beside, for system calls and for people.
/// A topology is a value: copy it, change it, compare planners on it.
#pragma once

#include <vm_accel/core/fixed_text.hpp>
#include <vm_accel/os/cpu_set.hpp>

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace vm_accel::inline v0 {

/// Where an index leads nowhere: no such object, or none known.
inline constexpr unsigned no_index = ~0u;

/// What a core is made for, on machines that mix.
enum class cpu_kind : std::uint8_t {
    unknown,     ///< the machine has one kind, or does not tell
    performance, ///< a faster kind than efficiency
    efficiency,  ///< the slowest and most economical kind
};

[[nodiscard]] constexpr std::string_view name_of(cpu_kind kind) noexcept {
    switch (kind) {
    case cpu_kind::unknown:
        return "unknown";
    case cpu_kind::performance:
        return "performance";
    case cpu_kind::efficiency:
        return "efficiency";
    }
    return "unknown";
}

/// One hardware thread.
struct logical_cpu {
    unsigned os_index = 0;    ///< the operating system's number
    unsigned core = 0;        ///< index into cores
    unsigned package = 0;     ///< index into packages
    unsigned node = no_index; ///< index into nodes: the nearest; no_index if none is known
    unsigned smt_index = 0;   ///< 0 for the first thread of its core
    cpu_kind kind = cpu_kind::unknown;
    bool isolated = false; ///< the system's scheduler puts no thread here by itself
    /// Of a performance kind: how many kinds of this machine are faster still. Not 0 only on
    /// machines with three kinds or more.
    unsigned faster_kinds = 0;

    friend bool operator==(const logical_cpu&, const logical_cpu&) = default;
};

/// Smaller is faster; the same for CPUs that are not told apart.
[[nodiscard]] constexpr unsigned slowness_of(const logical_cpu& cpu) noexcept {
    return cpu.kind == cpu_kind::efficiency ? no_index : cpu.faster_kinds;
}

struct cpu_core {
    unsigned os_index = 0; ///< the operating system's number; not unique across packages
    unsigned package = 0;
    unsigned node = no_index;
    cpu_kind kind = cpu_kind::unknown;
    std::vector<unsigned> cpus{}; ///< indices into cpus, by smt_index

    friend bool operator==(const cpu_core&, const cpu_core&) = default;
};

struct cpu_package {
    unsigned os_index = 0;
    std::vector<unsigned> cpus{}; ///< indices into cpus

    friend bool operator==(const cpu_package&, const cpu_package&) = default;
};

/// A data or unified cache.
struct cpu_cache {
    unsigned level = 0;           ///< 1, 2 or 3
    std::uint64_t bytes = 0;      ///< 0 when unknown
    unsigned line_bytes = 0;      ///< 0 when unknown
    std::vector<unsigned> cpus{}; ///< indices into cpus of those that share it

    friend bool operator==(const cpu_cache&, const cpu_cache&) = default;
};

/// A NUMA node: memory, CPUs, or both.
struct numa_node {
    unsigned os_index = 0;
    std::uint64_t memory_bytes = 0; ///< 0 for a node without memory
    std::vector<unsigned> cpus{};   ///< indices into cpus; empty for a node without CPUs
    /// MiB/s that the CPUs nearest to it get out of its memory; 0 when unknown.
    std::uint64_t bandwidth = 0;

    friend bool operator==(const numa_node&, const numa_node&) = default;
};

enum class topology_source : std::uint8_t {
    this_system, ///< asked of the operating system
    described,   ///< built in code, from a synthetic description, or from recorded XML
};

struct cpu_topology {
    std::vector<cpu_package> packages{};
    std::vector<numa_node> nodes{};
    std::vector<cpu_cache> caches{}; ///< by level, then by first CPU
    std::vector<cpu_core> cores{};   ///< neighbours in this order are near each other
    std::vector<logical_cpu> cpus{}; ///< core by core
    /// nodes.size() squared, row by row, in the units of ACPI SLIT (10 = local);
    /// empty when unknown.
    std::vector<std::uint32_t> distances{};
    topology_source source = topology_source::described;

    friend bool operator==(const cpu_topology&, const cpu_topology&) = default;

    [[nodiscard]] bool empty() const noexcept { return cpus.empty(); }
    /// Whether pins and bindings made from this topology mean this machine.
    [[nodiscard]] bool is_this_system() const noexcept {
        return source == topology_source::this_system;
    }

    /// Index of the CPU with that number, no_index if this process has none.
    [[nodiscard]] unsigned find_cpu(unsigned os_index) const noexcept {
        for (unsigned i = 0; i < cpus.size(); ++i)
            if (cpus[i].os_index == os_index) return i;
        return no_index;
    }
    /// Index of the node with that number, no_index if this process has none.
    [[nodiscard]] unsigned find_node(unsigned os_index) const noexcept {
        for (unsigned i = 0; i < nodes.size(); ++i)
            if (nodes[i].os_index == os_index) return i;
        return no_index;
    }

    /// Distance between two nodes by index: 10 is local. Where the machine does
    /// not tell, 10 for the node itself and 20 for any other.
    [[nodiscard]] std::uint32_t distance(unsigned from, unsigned to) const noexcept {
        const std::size_t at = std::size_t{from} * nodes.size() + to;
        if (from < nodes.size() && to < nodes.size() && at < distances.size()) return distances[at];
        return from == to ? 10 : 20;
    }

    /// The CPUs by the operating system's numbers.
    [[nodiscard]] os::cpu_set cpu_set() const noexcept {
        os::cpu_set set;
        for (const logical_cpu& cpu : cpus)
            set.insert(cpu.os_index);
        return set;
    }
    /// The CPUs of one node by the operating system's numbers; empty for no such node. Isolated
    /// ones only where the node has no others: whoever reserved them wants no other work there.
    [[nodiscard]] os::cpu_set cpu_set_of_node(unsigned node) const noexcept {
        os::cpu_set set, isolated;
        if (node >= nodes.size()) return set;
        for (const unsigned cpu : nodes[node].cpus)
            (cpus[cpu].isolated ? isolated : set).insert(cpus[cpu].os_index);
        return set.empty() ? isolated : set;
    }

    /// Nodes that have memory.
    [[nodiscard]] std::size_t memory_node_count() const noexcept {
        std::size_t count = 0;
        for (const numa_node& node : nodes)
            count += node.memory_bytes != 0 ? 1 : 0;
        return count;
    }
};

/// Prints the counts on one line, then one line for each node and cache.
template <class Stream>
    requires requires(Stream& out, std::string_view text) { out << text; }
Stream& operator<<(Stream& out, const cpu_topology& topology) {
    const auto set_of = [&](const std::vector<unsigned>& members) {
        os::cpu_set set;
        for (const unsigned cpu : members)
            set.insert(topology.cpus[cpu].os_index);
        return set;
    };
    fixed_text<160> line;
    line.append_number(topology.packages.size()).append(" packages, ");
    line.append_number(topology.nodes.size()).append(" NUMA nodes, ");
    line.append_number(topology.cores.size()).append(" cores, ");
    line.append_number(topology.cpus.size()).append(" CPUs");
    line.append(topology.is_this_system() ? "\n" : " (described, not this system)\n");
    out << line.view();
    for (unsigned i = 0; i < topology.nodes.size(); ++i) {
        const numa_node& node = topology.nodes[i];
        line.clear();
        line.append("  node ").append_number(node.os_index).append(": ");
        line.append_number(node.memory_bytes >> 20).append(" MiB, CPUs ");
        append_list(line, set_of(node.cpus)).append(", distances");
        for (unsigned to = 0; to < topology.nodes.size(); ++to)
            line.append(" ").append_number(topology.distance(i, to));
        out << line.append("\n").view();
    }
    for (const cpu_cache& cache : topology.caches) {
        line.clear();
        line.append("  L").append_number(cache.level).append(" ");
        if (cache.bytes == 0) {
            line.append("of unknown size");
        } else {
            line.append_number(cache.bytes >> 10).append(" KiB");
        }
        line.append(": CPUs ");
        append_list(line, set_of(cache.cpus));
        out << line.append("\n").view();
    }
    return out;
}

} // namespace vm_accel::inline v0
