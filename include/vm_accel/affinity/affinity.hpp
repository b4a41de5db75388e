/// vCPU threads on the CPUs that a plan gives them, proven by reading back.
///
/// init() loads the topology, configure() makes the plan, and each vCPU thread
/// then calls place_current_thread() for itself; other threads of the VMM call
/// place_vmm_thread(). A VMM that outlives changes of its cpuset calls follow() now and then.
#pragma once

#include <vm_accel/affinity/cpuset_watch.hpp>
#include <vm_accel/affinity/planner.hpp>
#include <vm_accel/affinity/platform.hpp>
#include <vm_accel/affinity/scheduling.hpp>
#include <vm_accel/affinity/thread_pin.hpp>
#include <vm_accel/affinity/vmm_thread_cpus.hpp>
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

/// A thread has one place: one that is placed as another vCPU is no longer the one it was.
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
        if constexpr (Platform::can_follow_cpuset) {
            if (acts_here()) cpuset_.begin(topology_, platform_.allowed_cpus());
        }
        initialized_ = true;
        return {};
    }
    [[nodiscard]] bool is_initialized() const noexcept {
        const std::lock_guard lock{mutex_};
        return initialized_;
    }

    /// The topology that init() loaded, empty before. It never changes after, so it lacks
    /// CPUs that were allowed to the process later.
    [[nodiscard]] const cpu_topology& topology() const noexcept { return topology_; }

    /// A plan, without keeping it. Errors: not_initialized, and those of plan_vcpus.
    [[nodiscard]] result<vcpu_plan> plan(const vcpu_request& request) const noexcept {
        const std::lock_guard lock{mutex_};
        if (!initialized_) return not_initialized();
        return cpuset_.plan(topology_, request);
    }
    [[nodiscard]] result<vcpu_plan> plan(unsigned vcpus,
                                         vcpu_policy policy = vcpu_policy::compact) const noexcept {
        return plan(vcpu_request{vcpus, policy, 0});
    }

    /// Makes a plan the one in force and forgets the vCPUs of the one before; threads pinned
    /// already stay where they are. `scheduling` is what place_current_thread() asks for each
    /// vCPU besides. Errors: as plan(); the plan in force is then kept.
    [[nodiscard]] result<vcpu_plan> configure(const vcpu_request& request,
                                              const scheduling_request& scheduling = {}) noexcept {
        const std::lock_guard lock{mutex_};
        if (!initialized_) return not_initialized();
        result<vcpu_plan> made = cpuset_.plan(topology_, request);
        if (!made) return made;
        request_ = request;
        scheduling_ = scheduling;
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
        const std::lock_guard lock{mutex_};
        if (plan_.assignments.empty()) return no_plan();
        return pin_vcpu(plan_, vcpu, false);
    }
    /// The same by a plan of the caller's own. Afterwards the system is asked
    /// where the thread is. What happened is kept for pins().
    /// Errors: out_of_range (vCPU or CPU), unavailable (the plan is for a described machine,
    /// the platform is not), unsupported, permission_denied, invalid_argument
    /// (the CPU went away), mismatch (the system set something else).
    [[nodiscard]] result<> pin_current_thread(const vcpu_plan& plan, unsigned vcpu) noexcept {
        const std::lock_guard lock{mutex_};
        return pin_vcpu(plan, vcpu, true);
    }

    /// Pins the calling thread, which is to run this vCPU, and asks for the scheduling that
    /// configure() was given. Everything is tried whatever fails, and kept for pins(); the first
    /// failure is returned. A VMM that runs without what it was refused ignores it.
    /// Errors: those of pin_current_thread() and of the platform's scheduling calls.
    [[nodiscard]] result<> place_current_thread(unsigned vcpu) noexcept {
        const std::lock_guard lock{mutex_};
        if (plan_.assignments.empty()) return no_plan();
        const result<> pinned = pin_vcpu(plan_, vcpu, false);
        vcpu_pin* const pin = find_pin(vcpu);
        if (pin == nullptr) return pinned;
        pin->scheduling = schedule(scheduling_);
        return pinned ? pin->scheduling.refusal() : pinned;
    }

    /// Places the calling thread, which runs no vCPU: on the CPUs that the plan in force left
    /// for I/O, else as cpus_for_vmm_threads() says. What happened is kept for vmm_threads(), by
    /// the name, of at most 32 characters. Threads that it starts later inherit its place. Errors:
    /// as place_current_thread().
    [[nodiscard]] result<> place_vmm_thread(std::string_view who,
                                            const scheduling_request& scheduling = {}) noexcept {
        const std::lock_guard lock{mutex_};
        if (plan_.assignments.empty()) return no_plan();
        vmm_thread_pin pin;
        pin.name.append(who);
        const vmm_thread_cpus where = cpuset_.for_vmm_threads(topology_, request_, plan_);
        pin.requested = where.cpus;
        pin.reason = where.reason;
        const result<> done = confine(plan_, pin.requested, pin.name.view(), pin);
        if (!done) pin.failure = done.error();
        pin.scheduling = schedule(scheduling);
        forget(pin.thread);
        std::erase_if(vmm_threads_,
                      [&](const vmm_thread_pin& known) { return known.name == pin.name; });
        vmm_threads_.push_back(pin);
        return done ? pin.scheduling.refusal() : done;
    }

    /// Takes the calling thread from those that follow() looks after. A thread that was placed
    /// and ends without it is found out by follow() and named there.
    void forget_current_thread() noexcept {
        if constexpr (Platform::can_pin_threads) {
            const std::lock_guard lock{mutex_};
            forget(platform_.current_thread());
        }
    }

    /// What became of each vCPU, by vCPU; those never pinned are missing.
    [[nodiscard]] std::vector<vcpu_pin> pins() const {
        const std::lock_guard lock{mutex_};
        return pins_;
    }
    /// What became of the other threads, in the order in which they were placed.
    [[nodiscard]] std::vector<vmm_thread_pin> vmm_threads() const {
        const std::lock_guard lock{mutex_};
        return vmm_threads_;
    }

    /// What follow() would do, without doing it. Errors: as follow().
    [[nodiscard]] result<cpuset_changes> check() noexcept { return look(false); }

    /// Compares the CPUs that the process may use, and where its threads may run, with what
    /// they were. If the process's CPUs changed, the plan is made anew for those of now by the
    /// request in force; then every placed thread that is not where the plan wants it is pinned
    /// again. Tells each of them with the reason; a pin that fails is told and goes on.
    ///
    /// No system tells of such a change by itself: Linux overrides pins silently when a cpuset
    /// changes, and notifies nobody. A call every second or so costs a short-lived thread and a
    /// system call for each placed thread. Any thread may call it.
    /// Errors: not_initialized, unsupported, unavailable (a described machine), those of the
    /// platform, and those of plan_vcpus() for the CPUs that are left; nothing is changed then.
    [[nodiscard]] result<cpuset_changes> follow() noexcept { return look(true); }

    /// The platform, for those that can tell more (fixed_platform::recorded).
    [[nodiscard]] const Platform& platform() const noexcept { return platform_; }
    [[nodiscard]] Platform& platform() noexcept { return platform_; }

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
        for (const vmm_thread_pin& pin : vmm_threads_)
            out.fact(fixed_text<48>{"thread "}.append(pin.name.view()).view(),
                     describe(pin).view());
    }

private:
    [[nodiscard]] static tl::unexpected<error> not_initialized() noexcept {
        return fail(errc::not_initialized, "affinity: the topology is not loaded",
                    "call init() first");
    }

    [[nodiscard]] static tl::unexpected<error> no_plan() noexcept {
        return fail(errc::not_initialized, "affinity: there is no plan to pin by",
                    "call configure() with the number of vCPUs first");
    }
    /// Whether the topology is the one that pins act on.
    [[nodiscard]] bool acts_here() const noexcept {
        if constexpr (Platform::can_pin_threads) {
            return !Platform::pins_are_real || topology_.is_this_system();
        } else {
            return false;
        }
    }

    [[nodiscard]] result<> pin_vcpu(const vcpu_plan& plan, unsigned vcpu, bool own) noexcept {
        if (vcpu >= plan.assignments.size())
            return fail(errc::out_of_range,
                        fixed_text<160>{"affinity: the plan has no vCPU "}.append_number(vcpu),
                        "plan for more vCPUs");
        vcpu_pin pin;
        pin.vcpu = vcpu;
        pin.requested_cpu = plan.assignments[vcpu].cpu;
        pin.by_own_plan = own;
        const os::cpu_set wanted = os::cpu_set::of(pin.requested_cpu);
        result<> done;
        if (wanted.empty()) {
            fixed_text<160> cause = name_of_vcpu(vcpu);
            cause.append(" was to be on CPU ").append_number(pin.requested_cpu);
            done = fail(errc::out_of_range, cause.append(", and no system has so many"),
                        "use a plan that plan() or configure() made");
        } else {
            done = confine(plan, wanted, name_of_vcpu(vcpu).view(), pin);
        }
        if (!done) pin.failure = done.error();
        keep(pin);
        return done;
    }

    [[nodiscard]] static fixed_text<160> name_of_vcpu(unsigned vcpu) noexcept {
        fixed_text<160> text{"vCPU "};
        return text.append_number(vcpu);
    }

    /// Pins the calling thread and reads back.
    [[nodiscard]] result<> confine(const vcpu_plan& plan, const os::cpu_set& wanted,
                                   std::string_view who, thread_pin& pin) noexcept {
        if constexpr (!Platform::can_pin_threads) {
            static_cast<void>(plan);
            static_cast<void>(wanted);
            static_cast<void>(who);
            static_cast<void>(pin);
            std::string_view why = "threads cannot be pinned here";
            if constexpr (requires { std::string_view{Platform::why_no_pins}; })
                why = Platform::why_no_pins;
            return fail(errc::unsupported, fixed_text<160>{Platform::name}.append(": ").append(why),
                        "leave placement to the scheduler");
        } else {
            if (Platform::pins_are_real && plan.described)
                return fail(errc::unavailable,
                            "affinity: the plan is for a described machine, not this one",
                            "unset HWLOC_SYNTHETIC and HWLOC_XMLFILE, or use fixed_platform");
            pin.thread = platform_.current_thread();
            return thread_placing::confine(platform_, pin.thread, wanted, who, pin.actual);
        }
    }

    /// For the calling thread.
    [[nodiscard]] scheduling_outcome schedule(const scheduling_request& request) noexcept {
        std::size_t at = 0;
        // The threads of this VM's group, vCPUs first.
        const auto next_member = [&]() noexcept {
            while (at < pins_.size() + vmm_threads_.size()) {
                const thread_pin& pin = at < pins_.size()
                                            ? static_cast<const thread_pin&>(pins_[at])
                                            : vmm_threads_[at - pins_.size()];
                ++at;
                if (pin.scheduling.requested.sharing == core_sharing::this_vm &&
                    pin.scheduling.sharing.given)
                    return pin.thread;
            }
            return os::thread_id{};
        };
        return thread_placing::schedule_current_thread(platform_, request, next_member);
    }

    [[nodiscard]] vcpu_pin* find_pin(unsigned vcpu) noexcept {
        for (vcpu_pin& pin : pins_)
            if (pin.vcpu == vcpu) return &pin;
        return nullptr;
    }
    void forget(os::thread_id thread) noexcept {
        const auto of_it = [thread](const thread_pin& pin) {
            return pin.thread == thread && thread != os::thread_id{};
        };
        std::erase_if(pins_, of_it);
        std::erase_if(vmm_threads_, of_it);
    }
    void keep(const vcpu_pin& pin) noexcept {
        forget(pin.thread);
        std::size_t at = 0;
        while (at < pins_.size() && pins_[at].vcpu < pin.vcpu)
            ++at;
        if (at < pins_.size() && pins_[at].vcpu == pin.vcpu) {
            pins_[at] = pin;
        } else {
            pins_.insert(pins_.begin() + static_cast<std::ptrdiff_t>(at), pin);
        }
    }

    [[nodiscard]] result<cpuset_changes> look(bool act) noexcept {
        if constexpr (!Platform::can_follow_cpuset) {
            static_cast<void>(act);
            return fail(errc::unsupported,
                        fixed_text<160>{Platform::name}.append(
                            ": the CPUs of a process cannot be followed here"),
                        "leave placement to the scheduler");
        } else {
            const std::lock_guard lock{mutex_};
            if (!initialized_) return not_initialized();
            if (plan_.assignments.empty()) return no_plan();
            if (!acts_here())
                return fail(errc::unavailable, "affinity: a described machine has no cpuset",
                            "unset HWLOC_SYNTHETIC and HWLOC_XMLFILE, or use fixed_platform");
            return cpuset_.look(platform_, topology_, request_, plan_, pins_, vmm_threads_, act);
        }
    }

    Platform platform_{};
    mutable std::mutex mutex_{};
    bool initialized_ = false;
    cpu_topology topology_{};
    cpuset_watch cpuset_{};
    vcpu_request request_{};
    scheduling_request scheduling_{};
    vcpu_plan plan_{};
    std::vector<vcpu_pin> pins_{};
    std::vector<vmm_thread_pin> vmm_threads_{};
};

} // namespace vm_accel::inline v0
