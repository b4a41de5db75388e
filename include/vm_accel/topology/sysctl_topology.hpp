/// A Mac's processors from the values of sysctl(8).
///
/// macOS groups its cores into performance levels, level 0 the fastest, and tells for
/// each how many cores there are and how many share a level 2 cache. It has one memory
/// for all. Intel Macs, and macOS before 12, have no levels; their cores are alike.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/sysctl.hpp>
#include <vm_accel/topology/cpu_topology.hpp>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

namespace vm_accel::inline v0 {

namespace sysctl_reading {

/// Cores of one kind.
struct level {
    unsigned cores = 0;
    unsigned threads_per_core = 1;
    unsigned cores_per_l2 = 1;
    std::uint64_t l1_bytes = 0;
    std::uint64_t l2_bytes = 0;
    cpu_kind kind = cpu_kind::unknown;
};

[[nodiscard]] inline tl::unexpected<error> missing(std::string_view name) noexcept {
    return fail(errc::unavailable,
                fixed_text<160>{"topology: sysctl "}.append(name).append(" makes no sense here"),
                "see what `sysctl hw` says; describe the machine with make_topology() meanwhile");
}

template <os::sysctl_values Values>
class reader {
public:
    explicit reader(const Values& values) noexcept : values_(values) {}

    [[nodiscard]] std::uint64_t number(std::string_view name) const noexcept {
        return values_.number(name).value_or(0);
    }
    /// "hw.perflevelN.NAME", or "hw.NAME" on a machine without levels.
    [[nodiscard]] static fixed_text<64> name_in(std::optional<unsigned> at,
                                                std::string_view name) noexcept {
        fixed_text<64> full{"hw."};
        if (at) full.append("perflevel").append_number(*at).append(".");
        return full.append(name);
    }
    [[nodiscard]] result<level> read(std::optional<unsigned> at, unsigned levels) const noexcept {
        constexpr std::uint64_t limit = os::cpu_set::capacity;
        const auto value = [&](std::string_view name) { return number(name_in(at, name)); };
        const std::uint64_t cores = value("physicalcpu");
        const std::uint64_t cpus = value("logicalcpu");
        if (cores == 0 || cores > limit) return missing(name_in(at, "physicalcpu"));
        if (cpus < cores || cpus > limit || cpus % cores != 0)
            return missing(name_in(at, "logicalcpu"));
        level found;
        found.cores = static_cast<unsigned>(cores);
        found.threads_per_core = static_cast<unsigned>(cpus / cores);
        const std::uint64_t sharing = value("cpusperl2") / found.threads_per_core;
        found.cores_per_l2 = static_cast<unsigned>(std::clamp<std::uint64_t>(sharing, 1, cores));
        found.l1_bytes = value("l1dcachesize");
        found.l2_bytes = value("l2cachesize");
        if (at && levels > 1) {
            const std::optional<fixed_text<64>> name = values_.text(name_in(at, "name"));
            const bool slowest = name ? name->view() == "Efficiency" : *at + 1 == levels;
            found.kind = slowest ? cpu_kind::efficiency : cpu_kind::performance;
        }
        return found;
    }

private:
    const Values& values_;
};

/// Appends cores [0, count) of a level, with their L1 and L2 caches.
inline void add_cores(const level& of, unsigned package, unsigned count, unsigned line_bytes,
                      cpu_topology& out) {
    std::vector<unsigned> sharing;
    for (unsigned c = 0; c < count; ++c) {
        const auto core = static_cast<unsigned>(out.cores.size());
        out.cores.push_back({core, package, 0, of.kind, {}});
        for (unsigned t = 0; t < of.threads_per_core; ++t) {
            const auto cpu = static_cast<unsigned>(out.cpus.size());
            out.cpus.push_back({cpu, core, package, 0, t, of.kind});
            out.cores.back().cpus.push_back(cpu);
            out.packages[package].cpus.push_back(cpu);
            out.nodes.front().cpus.push_back(cpu);
            sharing.push_back(cpu);
        }
        out.caches.push_back({1, of.l1_bytes, line_bytes, out.cores.back().cpus});
        if ((c + 1) % of.cores_per_l2 == 0 || c + 1 == count)
            out.caches.push_back({2, of.l2_bytes, line_bytes, std::exchange(sharing, {})});
    }
}

} // namespace sysctl_reading

/// The topology that the values describe; it is flagged as described. Read are
/// hw.nperflevels, hw.perflevelN.{physicalcpu, logicalcpu, cpusperl2, l1dcachesize,
/// l2cachesize, name} or else hw.{physicalcpu, logicalcpu, l1dcachesize, l2cachesize},
/// and hw.{packages, l3cachesize, cachelinesize, memsize}.
///
/// CPU numbers are the kernel's on a chip of one die: efficiency cores come first. On
/// those of two dies the kernel numbers die by die, which no value tells. No call of
/// macOS takes such a number. Errors: unavailable (a count is missing or absurd).
template <os::sysctl_values Values>
[[nodiscard]] result<cpu_topology> topology_from_sysctl(const Values& values) noexcept {
    namespace reading = sysctl_reading;
    const reading::reader<Values> from{values};
    const std::uint64_t told = from.number("hw.nperflevels");
    if (told > 8) return reading::missing("hw.nperflevels");
    const auto levels = static_cast<unsigned>(told);
    std::vector<reading::level> kinds; // slowest first
    for (unsigned i = std::max(levels, 1u); i-- > 0;) {
        const std::optional<unsigned> at = levels == 0 ? std::nullopt : std::optional{i};
        const result<reading::level> found = from.read(at, levels);
        if (!found) return fail(found);
        kinds.push_back(*found);
    }
    const auto packages = static_cast<unsigned>(
        std::clamp<std::uint64_t>(from.number("hw.packages"), 1, os::cpu_set::capacity));
    const auto line = static_cast<unsigned>(from.number("hw.cachelinesize"));
    unsigned cpus = 0;
    for (const reading::level& kind : kinds) {
        if (kind.cores % packages != 0) return reading::missing("hw.packages");
        cpus += kind.cores * kind.threads_per_core;
    }
    if (cpus > os::cpu_set::capacity) return reading::missing("hw.logicalcpu");

    cpu_topology out;
    out.nodes.push_back({0, from.number("hw.memsize"), {}});
    const std::uint64_t l3_bytes = from.number("hw.l3cachesize");
    for (unsigned p = 0; p < packages; ++p) {
        out.packages.push_back({p, {}});
        for (const reading::level& kind : kinds)
            reading::add_cores(kind, p, kind.cores / packages, line, out);
        if (l3_bytes != 0) out.caches.push_back({3, l3_bytes, line, out.packages[p].cpus});
    }
    std::sort(out.caches.begin(), out.caches.end(), [](const cpu_cache& x, const cpu_cache& y) {
        return x.level != y.level ? x.level < y.level : x.cpus.front() < y.cpus.front();
    });
    out.distances = {10};
    return out;
}

/// How many cores a topology has of each kind: the P and E cores of a Mac.
struct core_counts {
    unsigned performance = 0;
    unsigned efficiency = 0;
    unsigned alike = 0; ///< of a machine with one kind

    friend constexpr bool operator==(const core_counts&, const core_counts&) = default;
};
[[nodiscard]] inline core_counts count_cores(const cpu_topology& topology) noexcept {
    core_counts counts;
    for (const cpu_core& core : topology.cores)
        ++(core.kind == cpu_kind::performance  ? counts.performance
           : core.kind == cpu_kind::efficiency ? counts.efficiency
                                               : counts.alike);
    return counts;
}

} // namespace vm_accel::inline v0
