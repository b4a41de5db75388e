/// Any machine, on any machine: plans, pins and priorities without touching the system.
///
/// For tests and dry runs. The topology is given (or a default one), and what a thread asks
/// for is remembered for it, not executed.
#pragma once

#include <vm_accel/affinity/platform.hpp>
#include <vm_accel/topology/regular.hpp>
#include <vm_accel/topology/restricted.hpp>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

namespace vm_accel::inline v0 {

/// Models affinity_platform with every claim. Everything that a topology can have is permitted:
/// a CPU that it lacks cannot be pinned to, and cores without a second thread have no groups,
/// as on a real system. Threads: any.
class fixed_platform {
public:
    static constexpr std::string_view name = "fixed";
    static constexpr bool can_pin_threads = true;
    static constexpr bool can_follow_cpuset = true;
    static constexpr bool can_set_priority = true;
    static constexpr bool can_clamp_utilization = true;
    static constexpr bool can_group_cores = true;
    static constexpr bool pins_are_real = false;

    struct recorded_pin {
        std::uint64_t thread = 0; ///< as os::thread_id
        os::cpu_set cpus{};
    };

    /// One package with 4 cores of 2 threads.
    fixed_platform() : fixed_platform(make_topology({})) {}
    /// That machine; it is flagged as described, wherever it came from.
    explicit fixed_platform(cpu_topology topology) noexcept
        : topology_(std::move(topology)), allowed_(topology_.cpu_set()) {
        topology_.source = topology_source::described;
    }
    fixed_platform(fixed_platform&& other) noexcept
        : topology_(std::move(other.topology_)),
          allowed_(other.allowed_),
          threads_(std::move(other.threads_)),
          groups_(other.groups_) {}

    /// The machine, with the CPUs that are allowed.
    [[nodiscard]] result<cpu_topology> load() noexcept {
        const std::lock_guard lock{mutex_};
        return restricted_to(topology_, allowed_);
    }
    [[nodiscard]] result<cpu_topology> reload() noexcept { return load(); }

    /// Numbered in the order in which they are first asked about. Unlike a system's thread
    /// identifier, never used twice.
    [[nodiscard]] os::thread_id current_thread() noexcept {
        static std::atomic<std::uint64_t> count{0};
        thread_local const std::uint64_t number = ++count;
        return os::thread_id{number};
    }

    /// Errors: invalid_argument when none of the CPUs exists and is allowed.
    [[nodiscard]] result<> pin(os::thread_id thread, const os::cpu_set& cpus) noexcept {
        const std::lock_guard lock{mutex_};
        const os::cpu_set present = cpus & allowed_;
        if (present.empty()) {
            fixed_text<160> cause{"fixed platform: no CPU of "};
            return fail(errc::invalid_argument, append_list(cause, cpus).append(" exists"),
                        "choose CPUs of the topology that are allowed");
        }
        state& known = of(thread);
        known.is_pinned = true;
        known.cpus = present;
        return {};
    }

    /// What a thread was pinned to; every allowed CPU before its first pin.
    [[nodiscard]] result<os::cpu_set> pinned(os::thread_id thread) noexcept {
        const std::lock_guard lock{mutex_};
        const state& known = of(thread);
        return known.is_pinned ? known.cpus : allowed_;
    }

    /// Every pin so far, one entry for each thread in the order in which they first asked for
    /// anything.
    [[nodiscard]] std::vector<recorded_pin> recorded() const {
        const std::lock_guard lock{mutex_};
        std::vector<recorded_pin> pins;
        for (const state& known : threads_)
            if (known.is_pinned)
                pins.push_back({static_cast<std::uint64_t>(known.thread), known.cpus});
        return pins;
    }

    [[nodiscard]] result<os::cpu_set> allowed_cpus() noexcept {
        const std::lock_guard lock{mutex_};
        return allowed_;
    }
    /// What an administrator does to a cpuset: from now on the process may use those of the
    /// topology's CPUs. As on Linux, a pin keeps what is left of it, and a thread with nothing
    /// left may run on all that is allowed. Errors: invalid_argument where none is left.
    [[nodiscard]] result<> allow(const os::cpu_set& cpus) noexcept {
        const std::lock_guard lock{mutex_};
        const os::cpu_set left = topology_.cpu_set() & cpus;
        if (left.empty())
            return fail(errc::invalid_argument, "fixed platform: no CPU would be left",
                        "allow a CPU of the topology");
        allowed_ = left;
        for (state& known : threads_) {
            known.cpus = known.cpus & left;
            if (known.cpus.empty()) known.cpus = left;
        }
        return {};
    }

    [[nodiscard]] result<os::given_priority>
    set_priority(const os::thread_priority& wanted) noexcept {
        if (!wanted.is_sound()) return os::unsound(wanted);
        const std::lock_guard lock{mutex_};
        of(current_thread()).priority = wanted;
        return given(wanted);
    }
    [[nodiscard]] result<os::given_priority> priority() noexcept {
        const std::lock_guard lock{mutex_};
        return given(of(current_thread()).priority);
    }

    [[nodiscard]] result<os::utilization_clamp>
    clamp_utilization(const os::utilization_clamp& wanted) noexcept {
        if (!wanted.is_sound()) return os::unsound(wanted);
        return wanted;
    }

    /// Errors: unavailable when no core of the machine has two threads.
    [[nodiscard]] result<os::core_group> start_core_group() noexcept {
        const std::lock_guard lock{mutex_};
        if (!has_shared_cores()) return nothing_to_share();
        return of(current_thread()).group = os::core_group{++groups_};
    }
    /// Errors: also not_found for a thread that never asked for anything.
    [[nodiscard]] result<os::core_group> join_core_group(os::thread_id member) noexcept {
        const std::lock_guard lock{mutex_};
        if (!has_shared_cores()) return nothing_to_share();
        for (const state& known : threads_) {
            if (known.thread != member) continue;
            const os::core_group group = known.group; // `of` may move what is known
            return of(current_thread()).group = group;
        }
        return fail(errc::not_found, "fixed platform: the thread to join is not known",
                    "join one that has started a group");
    }
    [[nodiscard]] result<os::core_group> current_core_group() noexcept {
        const std::lock_guard lock{mutex_};
        if (!has_shared_cores()) return nothing_to_share();
        return of(current_thread()).group;
    }

private:
    struct state {
        os::thread_id thread{};
        bool is_pinned = false;
        os::cpu_set cpus{};
        os::thread_priority priority{};
        os::core_group group{};
    };

    [[nodiscard]] state& of(os::thread_id thread) noexcept {
        for (state& known : threads_)
            if (known.thread == thread) return known;
        state& added = threads_.emplace_back();
        added.thread = thread;
        added.cpus = allowed_;
        return added;
    }
    [[nodiscard]] static os::given_priority given(const os::thread_priority& priority) noexcept {
        os::given_priority out{priority, true, {}};
        append_priority(out.text, priority);
        return out;
    }
    [[nodiscard]] bool has_shared_cores() const noexcept {
        for (const cpu_core& core : topology_.cores)
            if (core.cpus.size() > 1) return true;
        return false;
    }
    [[nodiscard]] static tl::unexpected<error> nothing_to_share() noexcept {
        return fail(errc::unavailable,
                    "fixed platform: no core has a second thread, none is shared",
                    "nothing is needed");
    }

    cpu_topology topology_;
    os::cpu_set allowed_{};
    std::vector<state> threads_{};
    std::uint64_t groups_ = 0;
    mutable std::mutex mutex_{};
};

static_assert(affinity_platform<fixed_platform>);

} // namespace vm_accel::inline v0
