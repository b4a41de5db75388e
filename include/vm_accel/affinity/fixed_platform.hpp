/// Any machine, on any machine: plans and pins without touching the system.
///
/// For tests and dry runs. The topology is given (or a default one), and a pin
/// is remembered for the thread that asked for it, not executed.
#pragma once

#include <vm_accel/affinity/platform.hpp>
#include <vm_accel/topology/regular.hpp>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

namespace vm_accel::inline v0 {

/// Models affinity_platform. A CPU that the topology lacks cannot be pinned to,
/// as on a real system. Threads: any.
class fixed_platform {
public:
    static constexpr std::string_view name = "fixed";
    static constexpr bool can_pin_threads = true;
    static constexpr bool pins_are_real = false;

    struct recorded_pin {
        std::uint64_t thread = 0; ///< threads are numbered in the order of their first pin
        os::cpu_set cpus{};
    };

    /// One package with 4 cores of 2 threads.
    fixed_platform() : fixed_platform(make_topology({})) {}
    /// That machine; it is flagged as described, wherever it came from.
    explicit fixed_platform(cpu_topology topology) noexcept : topology_(std::move(topology)) {
        topology_.source = topology_source::described;
    }
    fixed_platform(fixed_platform&& other) noexcept
        : topology_(std::move(other.topology_)), pins_(std::move(other.pins_)) {}

    [[nodiscard]] result<cpu_topology> load() noexcept { return topology_; }

    /// Errors: invalid_argument when the machine has none of the CPUs.
    [[nodiscard]] result<> pin(const os::cpu_set& cpus) noexcept {
        os::cpu_set present;
        for (const logical_cpu& cpu : topology_.cpus)
            if (cpus.contains(cpu.os_index)) present.insert(cpu.os_index);
        if (present.empty()) {
            fixed_text<160> cause{"fixed platform: no CPU of "};
            return fail(errc::invalid_argument, append_list(cause, cpus).append(" exists"),
                        "choose CPUs of the topology");
        }
        const std::lock_guard lock{mutex_};
        for (recorded_pin& known : pins_) {
            if (known.thread == this_thread()) {
                known.cpus = present;
                return {};
            }
        }
        pins_.push_back({this_thread(), present});
        return {};
    }

    /// What the calling thread was pinned to; every CPU before its first pin.
    [[nodiscard]] result<os::cpu_set> pinned() noexcept {
        const std::lock_guard lock{mutex_};
        for (const recorded_pin& known : pins_)
            if (known.thread == this_thread()) return known.cpus;
        return topology_.cpu_set();
    }

    /// Every pin so far, one entry for each thread in the order of its first pin.
    [[nodiscard]] std::vector<recorded_pin> recorded() const {
        const std::lock_guard lock{mutex_};
        return pins_;
    }

private:
    /// Unlike a system's thread identifier, never used twice.
    [[nodiscard]] static std::uint64_t this_thread() noexcept {
        static std::atomic<std::uint64_t> count{0};
        thread_local const std::uint64_t number = ++count;
        return number;
    }

    cpu_topology topology_;
    std::vector<recorded_pin> pins_{};
    mutable std::mutex mutex_{};
};

static_assert(affinity_platform<fixed_platform>);

} // namespace vm_accel::inline v0
