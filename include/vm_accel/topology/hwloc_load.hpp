/// Reads a topology through hwloc: this machine's, a synthetic one, or recorded XML.
///
/// The only header that knows hwloc; empty where the library is used without it
/// (os/topology_source.hpp). What comes out is `cpu_topology`, plain data. hwloc's
/// x86 component is left out: it visits every CPU to execute CPUID there, and the
/// operating system's own answers suffice.
#pragma once

#include <vm_accel/os/topology_source.hpp>

#if VM_ACCEL_HAS_HWLOC

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/isolated_cpus.hpp>
#include <vm_accel/os/node_distance.hpp>
#include <vm_accel/os/physical_memory.hpp>
#include <vm_accel/os/threads.hpp>
#include <vm_accel/topology/cpu_topology.hpp>
#include <vm_accel/topology/loading.hpp>

#include <hwloc.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace vm_accel::inline v0 {

namespace topology_reading {

/// Owns an hwloc topology.
class hwloc_handle {
public:
    hwloc_handle() noexcept {
        if (hwloc_topology_init(&handle_) != 0) handle_ = nullptr;
    }
    hwloc_handle(const hwloc_handle&) = delete;
    hwloc_handle& operator=(const hwloc_handle&) = delete;
    ~hwloc_handle() {
        if (handle_ != nullptr) hwloc_topology_destroy(handle_);
    }
    [[nodiscard]] hwloc_topology_t get() const noexcept { return handle_; }

private:
    hwloc_topology_t handle_ = nullptr;
};

/// Index into topology.cpus of every CPU of a bitmap.
[[nodiscard]] inline std::vector<unsigned> cpus_in(const cpu_topology& topology,
                                                   hwloc_const_bitmap_t set) {
    std::vector<unsigned> members;
    for (unsigned i = 0; set != nullptr && i < topology.cpus.size(); ++i)
        if (hwloc_bitmap_isset(set, topology.cpus[i].os_index) != 0) members.push_back(i);
    return members;
}

struct told_kind {
    cpu_kind kind = cpu_kind::unknown;
    unsigned faster_kinds = 0;
};

/// The kind of the CPU kind `index` of `count`. hwloc sorts kinds by ascending
/// speed where it can rank them (efficiency -1 where it cannot).
[[nodiscard]] inline told_kind kind_of(hwloc_topology_t handle, int index, int count) {
    int efficiency = -1;
    unsigned info_count = 0;
    hwloc_info_s* infos = nullptr;
    if (count < 2 || index < 0 ||
        hwloc_cpukinds_get_info(handle, static_cast<unsigned>(index), nullptr, &efficiency,
                                &info_count, &infos, 0) != 0)
        return {};
    if (efficiency == 0) return {cpu_kind::efficiency};
    if (efficiency > 0 && efficiency < count)
        return {cpu_kind::performance, static_cast<unsigned>(count - 1 - efficiency)};
    for (unsigned i = 0; i < info_count; ++i) {
        if (std::strcmp(infos[i].name, "CoreType") != 0) continue;
        if (std::strcmp(infos[i].value, "IntelAtom") == 0) return {cpu_kind::efficiency};
        if (std::strcmp(infos[i].value, "IntelCore") == 0) return {cpu_kind::performance};
    }
    return {};
}

inline void read_packages_and_cores(hwloc_topology_t handle, cpu_topology& out) {
    const int kinds = hwloc_cpukinds_get_nr(handle, 0);
    const auto package_of = [&](hwloc_obj_t object) {
        const hwloc_obj_t package =
            hwloc_get_ancestor_obj_by_type(handle, HWLOC_OBJ_PACKAGE, object);
        return package != nullptr ? package->logical_index : 0;
    };
    for (hwloc_obj_t p = nullptr;
         (p = hwloc_get_next_obj_by_type(handle, HWLOC_OBJ_PACKAGE, p)) != nullptr;)
        out.packages.push_back({p->os_index, {}});
    if (out.packages.empty()) out.packages.push_back({0, {}});
    hwloc_obj_t last_core = nullptr;
    for (hwloc_obj_t pu = nullptr;
         (pu = hwloc_get_next_obj_by_type(handle, HWLOC_OBJ_PU, pu)) != nullptr;) {
        // Machines without core objects count each CPU as a core of its own.
        const hwloc_obj_t core = hwloc_get_ancestor_obj_by_type(handle, HWLOC_OBJ_CORE, pu);
        const auto cpu = static_cast<unsigned>(out.cpus.size());
        const told_kind told =
            kind_of(handle, hwloc_cpukinds_get_by_cpuset(handle, pu->cpuset, 0), kinds);
        const unsigned package = package_of(pu);
        if (core == nullptr || core != last_core)
            out.cores.push_back({core != nullptr ? core->os_index : pu->os_index,
                                 package,
                                 no_index,
                                 told.kind,
                                 {}});
        last_core = core;
        cpu_core& owner = out.cores.back();
        const auto thread = static_cast<unsigned>(owner.cpus.size());
        owner.cpus.push_back(cpu);
        out.packages[package].cpus.push_back(cpu);
        out.cpus.push_back({pu->os_index, static_cast<unsigned>(out.cores.size() - 1), package,
                            no_index, thread, told.kind, false, told.faster_kinds});
    }
}

/// Gives each CPU without a node the nearest one: its own has no memory, or none that the
/// cpuset allows, and hwloc then leaves it out.
inline void adopt_cpus(cpu_topology& out) {
    for (unsigned cpu = 0; cpu < out.cpus.size(); ++cpu) {
        if (out.cpus[cpu].node != no_index) continue;
        unsigned nearest = no_index;
        unsigned least = ~0u;
        for (const os::node_distance& to : os::distances_from_cpu(out.cpus[cpu].os_index)) {
            const unsigned node = out.find_node(to.node);
            if (node == no_index || out.nodes[node].memory_bytes == 0 || to.distance >= least)
                continue;
            nearest = node;
            least = to.distance;
        }
        if (nearest == no_index) continue;
        out.cpus[cpu].node = nearest;
        out.cores[out.cpus[cpu].core].node = nearest;
        out.nodes[nearest].cpus.push_back(cpu);
    }
}

inline void read_nodes(hwloc_topology_t handle, cpu_topology& out) {
    for (hwloc_obj_t n = nullptr;
         (n = hwloc_get_next_obj_by_type(handle, HWLOC_OBJ_NUMANODE, n)) != nullptr;) {
        const auto node = static_cast<unsigned>(out.nodes.size());
        out.nodes.push_back({n->os_index, n->attr->numanode.local_memory, {}});
        // hwloc gives high-bandwidth and slow memory the CPUs of the DRAM beside
        // it; a CPU's own node is the first that has it.
        for (const unsigned cpu : cpus_in(out, n->cpuset)) {
            if (out.cpus[cpu].node != no_index) continue;
            out.cpus[cpu].node = node;
            out.cores[out.cpus[cpu].core].node = node;
            out.nodes[node].cpus.push_back(cpu);
        }
    }
    if (out.is_this_system()) adopt_cpus(out);
    // Where /sys is hidden, hwloc knows one node and not its size.
    if (out.is_this_system() && !out.nodes.empty() && out.memory_node_count() == 0)
        out.nodes.front().memory_bytes = os::physical_memory_bytes();
}

/// As firmware (ACPI HMAT), an XML file or a user of hwloc tells it; most machines
/// do not.
inline void read_bandwidths(hwloc_topology_t handle, cpu_topology& out) {
    for (hwloc_obj_t n = nullptr;
         (n = hwloc_get_next_obj_by_type(handle, HWLOC_OBJ_NUMANODE, n)) != nullptr;) {
        hwloc_location nearest{};
        hwloc_uint64_t value = 0;
        if (hwloc_memattr_get_best_initiator(handle, HWLOC_MEMATTR_ID_BANDWIDTH, n, 0, &nearest,
                                             &value) == 0)
            out.nodes[n->logical_index].bandwidth = value;
    }
}

inline void read_caches(hwloc_topology_t handle, cpu_topology& out) {
    unsigned level = 0;
    for (const hwloc_obj_type_t type : {HWLOC_OBJ_L1CACHE, HWLOC_OBJ_L2CACHE, HWLOC_OBJ_L3CACHE}) {
        ++level;
        for (hwloc_obj_t c = nullptr;
             (c = hwloc_get_next_obj_by_type(handle, type, c)) != nullptr;) {
            // hwloc keeps a cache whose CPUs are all excluded if a node hangs on it.
            std::vector<unsigned> cpus = cpus_in(out, c->cpuset);
            if (cpus.empty()) continue;
            out.caches.push_back(
                {level, c->attr->cache.size, c->attr->cache.linesize, std::move(cpus)});
        }
    }
}

inline void read_distances(hwloc_topology_t handle, cpu_topology& out) {
    hwloc_distances_s* matrix = nullptr;
    unsigned found = 1;
    if (hwloc_distances_get_by_type(handle, HWLOC_OBJ_NUMANODE, &found, &matrix,
                                    HWLOC_DISTANCES_KIND_MEANS_LATENCY, 0) != 0 ||
        found == 0)
        return;
    const std::size_t size = out.nodes.size();
    std::vector<std::uint32_t> distances(size * size, 0);
    std::size_t filled = 0;
    for (unsigned i = 0; i < matrix->nbobjs; ++i) {
        for (unsigned j = 0; j < matrix->nbobjs; ++j) {
            if (matrix->objs[i] == nullptr || matrix->objs[j] == nullptr) continue;
            const unsigned from = out.find_node(matrix->objs[i]->os_index);
            const unsigned to = out.find_node(matrix->objs[j]->os_index);
            if (from == no_index || to == no_index) continue;
            distances[from * size + to] =
                static_cast<std::uint32_t>(matrix->values[i * matrix->nbobjs + j]);
            ++filled;
        }
    }
    hwloc_distances_release(handle, matrix);
    if (filled == size * size) out.distances = std::move(distances);
}

inline void mark_isolated(cpu_topology& out, const os::cpu_set& isolated) noexcept {
    for (logical_cpu& cpu : out.cpus)
        cpu.isolated = isolated.contains(cpu.os_index);
}

[[nodiscard]] inline tl::unexpected<error> no_memory() noexcept {
    return fail(errc::exhausted, "topology: hwloc has no memory to start", "free memory");
}

/// Fills `bound` with the CPUs that the process is bound to. hwloc asks every
/// thread, which takes /proc; without it the main thread stands for all.
[[nodiscard]] inline result<> read_binding(hwloc_topology_t handle, hwloc_bitmap_t bound) noexcept {
    if (hwloc_get_cpubind(handle, bound, HWLOC_CPUBIND_PROCESS) == 0) return {};
    const result<os::cpu_set> allowed = os::native_threads{}.allowed_cpus();
    if (!allowed) return fail(allowed);
    hwloc_bitmap_zero(bound);
    for (unsigned cpu = allowed->next(0); cpu < os::cpu_set::capacity;
         cpu = allowed->next(cpu + 1)) {
        if (hwloc_bitmap_set(bound, cpu) != 0) return no_memory();
    }
    return {};
}

/// Adds the isolated CPUs to a binding that lacks nothing else. The kernel takes them from
/// every process that does not ask for them, so no user did; the topology has them, marked.
inline void add_isolated(hwloc_bitmap_t bound, hwloc_const_bitmap_t allowed,
                         const os::cpu_set& isolated) noexcept {
    os::cpu_set missing;
    for (int cpu = hwloc_bitmap_first(allowed); cpu >= 0; cpu = hwloc_bitmap_next(allowed, cpu))
        if (hwloc_bitmap_isset(bound, static_cast<unsigned>(cpu)) == 0)
            missing.insert(static_cast<unsigned>(cpu));
    if (missing.empty() || !(missing - isolated).empty()) return;
    // On failure (no memory) they are missing, which is safe.
    static_cast<void>(hwloc_bitmap_or(bound, bound, allowed));
}

/// Takes away the CPUs that the process is not bound to. (hwloc's own flag for
/// it would also declare a synthetic topology to be this machine.) Errors: those
/// of native_threads::allowed_cpus, exhausted, unavailable.
[[nodiscard]] inline result<> restrict_to_binding(hwloc_topology_t handle) noexcept {
    // Systems that cannot bind have nothing to honour.
    if (!os::native_threads::can_pin_threads || hwloc_topology_is_thissystem(handle) == 0)
        return {};
    const hwloc_bitmap_t bound = hwloc_bitmap_alloc();
    if (bound == nullptr) return no_memory();
    result<> done = read_binding(handle, bound);
    if (done) add_isolated(bound, hwloc_topology_get_allowed_cpuset(handle), os::isolated_cpus());
    if (done && hwloc_topology_restrict(handle, bound, 0) != 0)
        done = fail(errc::unavailable, "topology: it cannot be restricted to the process's binding",
                    "load it with honour_binding = false", errno);
    hwloc_bitmap_free(bound);
    return done;
}

/// Loads what the handle was pointed at and turns it into plain data.
[[nodiscard]] inline result<cpu_topology> read(hwloc_topology_t handle, std::string_view what,
                                               topology_options options) noexcept {
    static_cast<void>(
        hwloc_topology_set_components(handle, HWLOC_TOPOLOGY_COMPONENTS_FLAG_BLACKLIST, "x86"));
    if (hwloc_topology_load(handle) != 0)
        return fail(errc::unavailable,
                    fixed_text<160>{what}.append(": hwloc cannot load this topology"),
                    "check the description with lstopo", errno);
    if (options.honour_binding) {
        if (const result<> done = restrict_to_binding(handle); !done) return fail(done);
    }
    cpu_topology topology;
    topology.source = hwloc_topology_is_thissystem(handle) != 0 ? topology_source::this_system
                                                                : topology_source::described;
    read_packages_and_cores(handle, topology);
    read_nodes(handle, topology);
    read_bandwidths(handle, topology);
    read_caches(handle, topology);
    read_distances(handle, topology);
    if (topology.is_this_system()) mark_isolated(topology, os::isolated_cpus());
    if (topology.cpus.empty())
        return fail(errc::unavailable,
                    fixed_text<160>{what}.append(": there is no CPU that this process may use"),
                    "give the process's cpuset at least one CPU");
    return topology;
}

/// This machine: see load_topology().
[[nodiscard]] inline result<cpu_topology> read_this_machine(topology_options options) noexcept {
    const hwloc_handle handle;
    if (handle.get() == nullptr) return no_memory();
    return read(handle.get(), "this machine", options);
}

} // namespace topology_reading

/// A machine in hwloc's synthetic notation: "package:2 numa:1 core:4 pu:2".
/// Errors: invalid_argument for text that hwloc does not understand.
[[nodiscard]] inline result<cpu_topology> topology_from_synthetic(std::string_view text) noexcept {
    const topology_reading::hwloc_handle handle;
    if (handle.get() == nullptr) return topology_reading::no_memory();
    const std::string terminated{text};
    if (hwloc_topology_set_synthetic(handle.get(), terminated.c_str()) != 0)
        return fail(
            errc::invalid_argument,
            fixed_text<160>{"synthetic topology \""}.append(text).append("\": not understood"),
            "write it as \"package:2 numa:1 core:4 pu:2\"", errno);
    return topology_reading::read(handle.get(), "synthetic topology", {});
}

/// A machine that `lstopo --of xml` recorded: the text itself. It is flagged as
/// described, whatever machine it was recorded on. Errors: invalid_argument,
/// unavailable.
[[nodiscard]] inline result<cpu_topology> topology_from_xml(std::string_view xml) noexcept {
    const topology_reading::hwloc_handle handle;
    if (handle.get() == nullptr) return topology_reading::no_memory();
    const std::string terminated{xml};
    if (xml.size() > 0x7fff'fffe ||
        hwloc_topology_set_xmlbuffer(handle.get(), terminated.c_str(),
                                     static_cast<int>(terminated.size() + 1)) != 0)
        return fail(errc::invalid_argument, "topology XML: not understood",
                    "record it with lstopo --of xml", errno);
    return topology_reading::read(handle.get(), "topology XML", {});
}

/// The same from a file. Errors: also not_found.
[[nodiscard]] inline result<cpu_topology> topology_from_xml_file(const char* path) noexcept {
    const topology_reading::hwloc_handle handle;
    if (handle.get() == nullptr) return topology_reading::no_memory();
    if (hwloc_topology_set_xml(handle.get(), path) != 0)
        return fail(errc::not_found, fixed_text<160>{path}.append(": not a file of topology XML"),
                    "record one with lstopo --of xml FILE", errno);
    return topology_reading::read(handle.get(), path, {});
}

} // namespace vm_accel::inline v0

#endif
