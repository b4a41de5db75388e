/// Where vCPU threads ran: by node, weighted by the time that they did run.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/numa/migration.hpp>
#include <vm_accel/os/placement_platform.hpp>
#include <vm_accel/topology/cpu_topology.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace vm_accel::inline v0 {

/// Each sample adds the time that a thread ran since the last one to the node where it is
/// seen now; where the kernel tells no times, every sample counts the same. Older
/// samples count half as much after each forget().
/// Threads: one at a time.
template <os::placement_platform Placement>
class vcpu_sampler {
public:
    explicit vcpu_sampler(const cpu_topology& topology) {
        for (const logical_cpu& cpu : topology.cpus) {
            if (cpu.os_index >= node_of_cpu_.size())
                node_of_cpu_.resize(cpu.os_index + std::size_t{1}, no_index);
            node_of_cpu_[cpu.os_index] = cpu.node;
        }
    }

    /// Takes a thread on, and counts its accesses if the processor can; what came of that
    /// is why_not_counted(). A vCPU whose guest node is any_node uses all of the memory.
    void add(Placement& placement, os::thread_id thread, unsigned guest_node) {
        vcpus_.push_back({thread});
        residency_.push_back({guest_node, {}});
        counted_.emplace_back();
        result<typename Placement::counters> counters = placement.count_accesses(thread);
        if (counters) {
            vcpus_.back().counters = std::move(*counters);
        } else {
            why_not_counted_ = counters.error();
        }
    }
    void remove(os::thread_id thread) {
        for (std::size_t v = vcpus_.size(); v-- != 0;) {
            if (vcpus_[v].thread != thread) continue;
            const auto at = static_cast<std::ptrdiff_t>(v);
            vcpus_.erase(vcpus_.begin() + at);
            residency_.erase(residency_.begin() + at);
            counted_.erase(counted_.begin() + at);
        }
    }

    /// Looks at every thread once: two small files of /proc each on Linux. A thread that
    /// cannot be seen, or is on a CPU outside the topology, is left out and counted.
    /// Returns how many were seen.
    std::size_t sample(const Placement& placement) {
        std::size_t seen = 0;
        for (std::size_t v = 0; v < vcpus_.size(); ++v) {
            observed& vcpu = vcpus_[v];
            const result<os::thread_run> run = placement.run_of(vcpu.thread);
            if (!run) {
                last_failure_ = run.error();
                continue;
            }
            const unsigned node =
                run->cpu < node_of_cpu_.size() ? node_of_cpu_[run->cpu] : no_index;
            if (node == no_index) {
                last_failure_ =
                    error{errc::out_of_range, 0,
                          fixed_text<160>{"a vCPU runs on CPU "}.append_number(run->cpu).append(
                              ", which the topology does not have"),
                          "load the topology again after the cpuset changes"};
                continue;
            }
            ++seen;
            // The first look tells where it is, but not for how long.
            const std::uint64_t ran =
                run->run_ns == 0 || !vcpu.run_ns ? 1 : run->run_ns - *vcpu.run_ns;
            vcpu.run_ns = run->run_ns;
            add_time(residency_[v].on_nodes, node, ran);
        }
        return seen;
    }

    /// Reads the counters of those threads that have some: what they accessed since the
    /// last reading.
    void read_counters() {
        for (std::size_t v = 0; v < vcpus_.size(); ++v) {
            counted_[v].reset();
            if (!vcpus_[v].counters) continue;
            const result<os::counted_accesses> now = vcpus_[v].counters->read();
            if (!now) {
                why_not_counted_ = now.error();
                continue;
            }
            os::counted_accesses& before = vcpus_[v].counted;
            counted_[v] = {now->local - std::min(before.local, now->local),
                           now->remote - std::min(before.remote, now->remote)};
            before = *now;
        }
    }

    /// Halves the weight of all that was seen so far.
    void forget() {
        for (vcpu_residency& vcpu : residency_)
            for (share_of_node& on : vcpu.on_nodes)
                on.share /= 2;
    }

    [[nodiscard]] std::span<const vcpu_residency> residency() const noexcept { return residency_; }
    [[nodiscard]] std::span<const std::optional<os::counted_accesses>> counted() const noexcept {
        return counted_;
    }
    [[nodiscard]] std::size_t size() const noexcept { return vcpus_.size(); }
    [[nodiscard]] const std::optional<error>& last_failure() const noexcept {
        return last_failure_;
    }
    [[nodiscard]] const std::optional<error>& why_not_counted() const noexcept {
        return why_not_counted_;
    }

private:
    struct observed {
        os::thread_id thread{};
        std::optional<std::uint64_t> run_ns{}; ///< at the last look
        std::optional<typename Placement::counters> counters{};
        os::counted_accesses counted{}; ///< at the last reading
    };

    static void add_time(std::vector<share_of_node>& on_nodes, unsigned node, std::uint64_t time) {
        for (share_of_node& on : on_nodes) {
            if (on.node != node) continue;
            on.share += time;
            return;
        }
        on_nodes.push_back({node, time});
    }

    std::vector<unsigned> node_of_cpu_{}; ///< by the operating system's number
    std::vector<observed> vcpus_{};
    std::vector<vcpu_residency> residency_{};
    std::vector<std::optional<os::counted_accesses>> counted_{};
    std::optional<error> last_failure_{};
    std::optional<error> why_not_counted_{};
};

} // namespace vm_accel::inline v0
