/// What the process may use now, against what plans were made for; and threads put back where
/// a plan wants them. The part of `affinity` behind follow(); VMMs call that.
#pragma once

#include <vm_accel/affinity/planner.hpp>
#include <vm_accel/affinity/platform.hpp>
#include <vm_accel/affinity/thread_pin.hpp>
#include <vm_accel/affinity/vmm_thread_cpus.hpp>

#include <cstddef>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

namespace vm_accel::inline v0 {

namespace thread_placing {

/// Looks after threads, one at a time, and tells of each that was not in its place.
template <following_platform Platform>
class mender {
public:
    /// `act`: threads are pinned; else it is only told. The arguments must outlive it.
    mender(Platform& platform, cpuset_changes& changes, bool act)
        : platform_(platform), changes_(changes), act_(act) {}

    /// `was`: where the thread was to be until now; `why`: of the new place. False if the
    /// thread has ended.
    [[nodiscard]] bool mend(thread_pin& pin, std::string_view who, const os::cpu_set& was,
                            const os::cpu_set& wanted, std::string_view why) noexcept {
        if (pin.thread == os::thread_id{}) return true; // never could be pinned
        const result<os::cpu_set> actual = platform_.pinned(pin.thread);
        if (actual && *actual == wanted) {
            if (act_) keep(pin, *actual, {});
            return true;
        }
        thread_move move;
        move.who.append(who);
        move.before = actual ? *actual : pin.actual;
        move.after = move.before;
        if (!actual && actual.error() == errc::not_found) {
            move.failure = actual.error();
            changes_.moves.push_back(move);
            return false;
        }
        move.wanted = wanted;
        explain(move, was, why);
        if (!actual) {
            move.failure = actual.error();
        } else if (act_) {
            os::cpu_set after = move.before;
            const result<> done = confine(platform_, pin.thread, wanted, who, after);
            if (!done) move.failure = done.error();
            move.after = after;
            keep(pin, after, done);
        }
        changes_.moves.push_back(move);
        return true;
    }

    /// The same for a vCPU that was pinned by a plan of the caller's own, which cannot be made
    /// anew here.
    [[nodiscard]] bool mend_own(vcpu_pin& pin, std::string_view who) noexcept {
        const os::cpu_set wanted = os::cpu_set::of(pin.requested_cpu);
        const result<os::cpu_set> actual = platform_.pinned(pin.thread);
        if (actual && !(wanted - changes_.allowed).empty()) {
            thread_move move;
            move.who.append(who);
            move.before = *actual;
            move.after = *actual;
            move.wanted = wanted;
            move.reason = "it was pinned by a plan of the caller's own";
            move.failure = error{errc::unavailable, 0, "its CPU is gone, and no plan is known",
                                 "make a plan anew and pin its thread by that"};
            changes_.moves.push_back(move);
            return true;
        }
        return mend(pin, who, wanted, wanted, "by a plan of the caller's own");
    }

private:
    static void keep(thread_pin& pin, const os::cpu_set& actual, const result<>& done) noexcept {
        pin.actual = actual;
        pin.failure.reset();
        if (!done) pin.failure = done.error();
    }

    void explain(thread_move& move, const os::cpu_set& was, std::string_view why) const noexcept {
        const os::cpu_set lost = was - changes_.allowed;
        if (!lost.empty()) {
            append_list(move.reason.append(lost.count() == 1 ? "CPU " : "CPUs "), lost);
            move.reason.append(lost.count() == 1 ? " is gone; " : " are gone; ").append(why);
        } else if (!(was == move.wanted)) {
            move.reason.append("planned anew; ").append(why);
        } else {
            move.reason.append("the system or somebody else moved it; ").append(why);
        }
    }

    Platform& platform_;
    cpuset_changes& changes_;
    bool act_;
};

} // namespace thread_placing

/// Plain state: copyable. Threads: one at a time, which `affinity` sees to.
class cpuset_watch {
public:
    /// `allowed`: what the platform allowed when the topology was loaded. Should it have allowed
    /// more than the topology has, a user has taken CPUs from the process (taskset); those stay
    /// taken. Where it did not tell, nobody has.
    void begin(const cpu_topology& loaded, const result<os::cpu_set>& allowed) noexcept {
        usable_ = loaded.cpu_set();
        if (allowed && !(*allowed - usable_).empty()) bound_ = usable_;
    }

    /// plan_vcpus() on the CPUs of the last look.
    [[nodiscard]] result<vcpu_plan> plan(const cpu_topology& loaded,
                                         const vcpu_request& request) const noexcept {
        return plan_vcpus(newest(loaded), with_gone(loaded, request));
    }
    /// cpus_for_vmm_threads() on the same.
    [[nodiscard]] vmm_thread_cpus for_vmm_threads(const cpu_topology& loaded,
                                                  const vcpu_request& request,
                                                  const vcpu_plan& plan) const noexcept {
        return cpus_for_vmm_threads(newest(loaded), with_gone(loaded, request), plan);
    }

    /// affinity::check(), and affinity::follow() if `act`.
    template <following_platform Platform>
    [[nodiscard]] result<cpuset_changes>
    look(Platform& platform, const cpu_topology& loaded, const vcpu_request& request,
         vcpu_plan& plan, std::vector<vcpu_pin>& pins, std::vector<vmm_thread_pin>& vmm_threads,
         bool act) noexcept {
        const result<os::cpu_set> allowed = platform.allowed_cpus();
        if (!allowed) return fail(allowed);
        cpuset_changes changes;
        changes.allowed_before = usable_;
        changes.allowed = within_binding(*allowed);
        if (changes.allowed == usable_) {
            mend_all(platform, changes, loaded, request, plan, plan, pins, vmm_threads, act);
            return changes;
        }
        cpuset_watch next{*this};
        next.usable_ = changes.allowed;
        if (!(changes.allowed - newest(loaded).cpu_set()).empty()) {
            result<cpu_topology> reloaded = platform.reload();
            if (!reloaded) return fail(reloaded);
            next.newer_ = std::move(*reloaded);
        }
        result<vcpu_plan> made = next.plan(loaded, request);
        if (!made) return fail(made);
        changes.planned_anew = true;
        next.mend_all(platform, changes, loaded, request, plan, *made, pins, vmm_threads, act);
        if (act) {
            plan = std::move(*made);
            *this = std::move(next);
        }
        return changes;
    }

private:
    [[nodiscard]] const cpu_topology& newest(const cpu_topology& loaded) const noexcept {
        return newer_ ? *newer_ : loaded;
    }
    [[nodiscard]] vcpu_request with_gone(const cpu_topology& loaded,
                                         vcpu_request request) const noexcept {
        if (!usable_.empty()) // a platform that does not follow tells nothing
            request.gone = request.gone | (newest(loaded).cpu_set() - usable_);
        return request;
    }
    [[nodiscard]] os::cpu_set within_binding(const os::cpu_set& allowed) const noexcept {
        if (!bound_) return allowed;
        // As the kernel does with a thread: a binding of which nothing is left does not count.
        const os::cpu_set both = allowed & *bound_;
        return both.empty() ? allowed : both;
    }

    template <following_platform Platform>
    void mend_all(Platform& platform, cpuset_changes& changes, const cpu_topology& loaded,
                  const vcpu_request& request, const vcpu_plan& before, const vcpu_plan& now,
                  std::vector<vcpu_pin>& pins, std::vector<vmm_thread_pin>& vmm_threads,
                  bool act) const noexcept {
        thread_placing::mender<Platform> mender{platform, changes, act};
        for (std::size_t i = 0; i < pins.size();) {
            vcpu_pin& pin = pins[i];
            fixed_text<32> who{"vCPU "};
            who.append_number(pin.vcpu);
            bool alive = true;
            if (pin.by_own_plan) { // of which the vCPU may be no vCPU of this one
                alive = mender.mend_own(pin, who.view());
            } else {
                const vcpu_assignment& to = now.assignments[pin.vcpu];
                const os::cpu_set was = os::cpu_set::of(before.assignments[pin.vcpu].cpu);
                alive =
                    mender.mend(pin, who.view(), was, os::cpu_set::of(to.cpu), to.reason.view());
                if (act) pin.requested_cpu = to.cpu;
            }
            i = keep_or_drop(pins, i, alive || !act);
        }
        if (vmm_threads.empty()) return;
        const vmm_thread_cpus where = for_vmm_threads(loaded, request, now);
        for (std::size_t i = 0; i < vmm_threads.size();) {
            vmm_thread_pin& pin = vmm_threads[i];
            const bool alive =
                mender.mend(pin, pin.name.view(), pin.requested, where.cpus, where.reason.view());
            if (act) {
                pin.requested = where.cpus;
                pin.reason = where.reason;
            }
            i = keep_or_drop(vmm_threads, i, alive || !act);
        }
    }

    /// The index of the next one to look at.
    template <class Pin>
    [[nodiscard]] static std::size_t keep_or_drop(std::vector<Pin>& pins, std::size_t at,
                                                  bool stays) noexcept {
        if (stays) return at + 1;
        pins.erase(pins.begin() + static_cast<std::ptrdiff_t>(at));
        return at;
    }

    os::cpu_set usable_{};                ///< at the last look
    std::optional<os::cpu_set> bound_{};  ///< what a user left to the process
    std::optional<cpu_topology> newer_{}; ///< of when CPUs came that were not known
};

} // namespace vm_accel::inline v0
