/// vCPU threads on the CPUs that a plan gives them, proven by reading back.
///
/// init() loads the topology, configure() makes the plan, and each vCPU thread
/// then calls pin_current_thread() for itself.
#pragma once

#include <vm_accel/affinity/planner.hpp>
#include <vm_accel/affinity/platform.hpp>
#include <vm_accel/core/detection.hpp>
#include <vm_accel/core/result.hpp>
#include <vm_accel/core/roles.hpp>

#include <concepts>
#include <cstddef>
#include <mutex>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

namespace vm_accel::inline v0 {

/// What became of the pin of one vCPU.
struct vcpu_pin {
    unsigned vcpu = 0;
    unsigned requested_cpu = 0;
    os::cpu_set actual{};           ///< as the system reports it; empty if it was not read
    std::optional<error> failure{}; ///< why the vCPU is not where the plan wants it

    [[nodiscard]] bool as_requested() const noexcept { return !failure.has_value(); }
};

/// Threads: any member may be called by any thread at any time, but for init(),
/// which must return before a reference from topology() is used.
template <affinity_platform Platform>
class affinity {
public:
    using role = roles::vcpus;
    using platform_type = Platform;
    static constexpr std::string_view name = "affinity";

    affinity() = default;
    /// With a platform that has state, such as a fixed_platform of another machine.
    explicit affinity(Platform platform)
        requires std::move_constructible<Platform>
        : platform_(std::move(platform)) {}
    affinity(const affinity&) = delete;
    affinity& operator=(const affinity&) = delete;

    /// Whether threads can be placed here. Loads the topology, keeps nothing.
    [[nodiscard]] static detection detect() noexcept {
        Platform platform;
        const result<cpu_topology> topology = platform.load();
        if (!topology) return {false, topology.error().cause};
        fixed_text<160> text{Platform::name};
        text.append(": ").append_number(topology->cpus.size()).append(" CPUs in ");
        text.append_number(topology->cores.size()).append(" cores, ");
        text.append_number(topology->nodes.size()).append(" NUMA nodes");
        if (!Platform::can_pin_threads) text.append(", threads cannot be pinned");
        return {true, text};
    }

    /// Loads the topology. Errors: already_initialized, and those of the platform.
    [[nodiscard]] result<> init() noexcept {
        const std::lock_guard lock{mutex_};
        if (initialized_)
            return fail(errc::already_initialized, "affinity: init() was called before",
                        "call it once");
        result<cpu_topology> loaded = platform_.load();
        if (!loaded) return fail(loaded);
        topology_ = std::move(*loaded);
        initialized_ = true;
        return {};
    }
    [[nodiscard]] bool is_initialized() const noexcept {
        const std::lock_guard lock{mutex_};
        return initialized_;
    }

    /// The topology that init() loaded, empty before. It never changes after.
    [[nodiscard]] const cpu_topology& topology() const noexcept { return topology_; }

    /// A plan, without keeping it. Errors: not_initialized, and those of plan_vcpus.
    [[nodiscard]] result<vcpu_plan> plan(const vcpu_request& request) const noexcept {
        const std::lock_guard lock{mutex_};
        if (!initialized_) return not_initialized();
        return plan_vcpus(topology_, request);
    }
    [[nodiscard]] result<vcpu_plan> plan(unsigned vcpus,
                                         vcpu_policy policy = vcpu_policy::compact) const noexcept {
        return plan(vcpu_request{vcpus, policy, 0});
    }

    /// Makes a plan the one in force and forgets the pins of the one before;
    /// threads pinned already stay where they are. Errors: as plan(); the plan in
    /// force is then kept.
    [[nodiscard]] result<vcpu_plan> configure(const vcpu_request& request) noexcept {
        result<vcpu_plan> made = plan(request);
        if (!made) return made;
        const std::lock_guard lock{mutex_};
        plan_ = *made;
        pins_.clear();
        return made;
    }
    [[nodiscard]] result<vcpu_plan> configure(unsigned vcpus,
                                              vcpu_policy policy = vcpu_policy::compact) noexcept {
        return configure(vcpu_request{vcpus, policy, 0});
    }
    /// The plan in force; no assignments before configure().
    [[nodiscard]] vcpu_plan current_plan() const noexcept {
        const std::lock_guard lock{mutex_};
        return plan_;
    }

    /// Pins the calling thread, which is to run this vCPU, by the plan in force.
    /// Errors: not_initialized (no plan), out_of_range (no such vCPU), and those
    /// of the other overload.
    [[nodiscard]] result<> pin_current_thread(unsigned vcpu) noexcept {
        const vcpu_plan plan = current_plan();
        if (plan.assignments.empty())
            return fail(errc::not_initialized, "affinity: there is no plan to pin by",
                        "call configure() with the number of vCPUs first");
        return pin_current_thread(plan, vcpu);
    }
    /// The same by a plan of the caller's own. Afterwards the system is asked
    /// where the thread is. What happened is kept for pins().
    /// Errors: out_of_range (vCPU or CPU), unavailable (the plan is for a described machine,
    /// the platform is not), unsupported, permission_denied, invalid_argument
    /// (the CPU went away), mismatch (the system set something else).
    [[nodiscard]] result<> pin_current_thread(const vcpu_plan& plan, unsigned vcpu) noexcept {
        if (vcpu >= plan.assignments.size())
            return fail(errc::out_of_range,
                        fixed_text<160>{"affinity: the plan has no vCPU "}.append_number(vcpu),
                        "plan for more vCPUs");
        vcpu_pin pin{vcpu, plan.assignments[vcpu].cpu, {}, {}};
        const result<> done = place(plan, pin);
        if (!done) pin.failure = done.error();
        keep(pin);
        return done;
    }

    /// What became of each vCPU's pin, by vCPU; those never pinned are missing.
    [[nodiscard]] std::vector<vcpu_pin> pins() const {
        const std::lock_guard lock{mutex_};
        return pins_;
    }

    /// The platform, for those that can tell more (fixed_platform::recorded).
    [[nodiscard]] const Platform& platform() const noexcept { return platform_; }

    /// For a diagnostic report: `out.given(text)`, and `out.fact(name, value)` for each fact.
    template <class Report>
    void report(Report& out) const {
        const std::lock_guard lock{mutex_};
        out.fact("platform", std::string_view{Platform::name});
        out.fact("CPUs", topology_.cpus.size());
        out.fact("cores", topology_.cores.size());
        out.fact("NUMA nodes", topology_.nodes.size());
        out.fact("vCPUs planned", plan_.assignments.size());
        out.fact("more vCPUs than CPUs", plan_.overcommitted());
        std::size_t in_place = 0;
        for (const vcpu_pin& pin : pins_)
            in_place += pin.as_requested() ? 1 : 0;
        out.fact("vCPUs pinned as planned", in_place);
        fixed_text<160> given;
        given.append_number(plan_.assignments.size()).append(" vCPUs planned on ");
        given.append_number(topology_.cpus.size()).append(" CPUs, ");
        out.given(given.append_number(in_place).append(" pinned as planned").view());
        for (const vcpu_pin& pin : pins_)
            out.fact(fixed_text<48>{"vCPU "}.append_number(pin.vcpu).view(), describe(pin).view());
    }

private:
    [[nodiscard]] static tl::unexpected<error> not_initialized() noexcept {
        return fail(errc::not_initialized, "affinity: the topology is not loaded",
                    "call init() first");
    }

    [[nodiscard]] result<> place(const vcpu_plan& plan, vcpu_pin& pin) noexcept {
        if constexpr (!Platform::can_pin_threads) {
            return fail(errc::unsupported,
                        fixed_text<160>{Platform::name}.append(": threads cannot be pinned here"),
                        "leave placement to the scheduler");
        } else {
            if (Platform::pins_are_real && plan.described)
                return fail(errc::unavailable,
                            "affinity: the plan is for a described machine, not this one",
                            "unset HWLOC_SYNTHETIC and HWLOC_XMLFILE, or use fixed_platform");
            const os::cpu_set wanted = os::cpu_set::of(pin.requested_cpu);
            if (wanted.empty())
                return fail(errc::out_of_range,
                            fixed_text<160>{"affinity: vCPU "}
                                .append_number(pin.vcpu)
                                .append(" was to be on CPU ")
                                .append_number(pin.requested_cpu)
                                .append(", and no system has so many"),
                            "use a plan that plan() or configure() made");
            const os::thread_id thread = platform_.current_thread();
            if (const result<> done = platform_.pin(thread, wanted); !done) return done;
            const result<os::cpu_set> actual = platform_.pinned(thread);
            if (!actual) return fail(actual);
            pin.actual = *actual;
            if (pin.actual == wanted) return {};
            fixed_text<160> cause{"affinity: vCPU "};
            cause.append_number(pin.vcpu).append(" was to be on CPU ");
            cause.append_number(pin.requested_cpu).append(", the system says ");
            return fail(errc::mismatch, append_list(cause, pin.actual),
                        "see whether the process's cpuset has changed, and plan again");
        }
    }

    void keep(const vcpu_pin& pin) noexcept {
        const std::lock_guard lock{mutex_};
        std::size_t at = 0;
        while (at < pins_.size() && pins_[at].vcpu < pin.vcpu)
            ++at;
        if (at < pins_.size() && pins_[at].vcpu == pin.vcpu) {
            pins_[at] = pin;
        } else {
            pins_.insert(pins_.begin() + static_cast<std::ptrdiff_t>(at), pin);
        }
    }

    [[nodiscard]] static fixed_text<160> describe(const vcpu_pin& pin) noexcept {
        if (pin.failure) return pin.failure->cause;
        fixed_text<160> text{"CPU "};
        return append_list(text, pin.actual);
    }

    Platform platform_{};
    mutable std::mutex mutex_{};
    bool initialized_ = false;
    cpu_topology topology_{};
    vcpu_plan plan_{};
    std::vector<vcpu_pin> pins_{};
};

} // namespace vm_accel::inline v0
