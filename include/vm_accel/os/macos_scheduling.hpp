/// How urgently the calling thread runs on Apple's systems: quality of service for
/// ordinary threads, a time constraint for real time. On other systems every answer
/// is `unsupported`.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/qos_class.hpp>
#include <vm_accel/os/thread_scheduling.hpp>

#if defined(__APPLE__)

#include <vm_accel/os/descriptor.hpp>
#include <vm_accel/os/macos_threads.hpp>

#include <pthread.h>
#include <sys/qos.h>

#include <cstdint>
#include <mach/mach.h>
#include <mach/mach_time.h>
#include <mach/thread_policy.h>

namespace vm_accel::inline v0::os {

/// Stateless; every call is about the calling thread.
struct macos_scheduling {
    static constexpr bool present = true;
    /// What a real-time request asks for: within each 10 ms, 5 ms of computing. A thread
    /// that computes longer in one go loses the constraint for a while.
    static constexpr std::uint64_t constraint_ns = 10'000'000;
    static constexpr std::uint64_t computation_ns = 5'000'000;

    /// The nearest class, or a time constraint; read back. Levels of real time do not
    /// exist here; round_robin may be preempted by threads of its kind, fifo not.
    /// Errors: invalid_argument, permission_denied (a thread that opted out of quality
    /// of service before cannot come back), system_failure.
    [[nodiscard]] result<given_priority>
    set_priority(const thread_priority& wanted) const noexcept {
        if (!wanted.is_sound()) return unsound(wanted);
        const result<> done = wanted.is_real_time()
                                  ? set_time_constraint(wanted.kind == priority_class::round_robin)
                                  : set_quality(qos_for(wanted));
        if (!done) return fail(done);
        result<given_priority> now = priority();
        if (now) now->as_requested = now->nearest == wanted;
        return now;
    }

    [[nodiscard]] result<given_priority> priority() const noexcept {
        given_priority now;
        ::thread_time_constraint_policy_data_t constraint{};
        ::mach_msg_type_number_t count = THREAD_TIME_CONSTRAINT_POLICY_COUNT;
        ::boolean_t by_default = FALSE;
        const ::kern_return_t told = ::thread_policy_get(
            macos_threads::this_port(), THREAD_TIME_CONSTRAINT_POLICY,
            reinterpret_cast<::thread_policy_t>(&constraint), &count, &by_default);
        if (told == KERN_SUCCESS && by_default == FALSE && constraint.constraint != 0) {
            now.nearest = constraint.preemptible != FALSE ? thread_priority::round_robin(1)
                                                          : thread_priority::fifo(1);
            now.text.append("time constraint ")
                .append_number(nanoseconds(constraint.computation) / 1000)
                .append(" of ")
                .append_number(nanoseconds(constraint.constraint) / 1000)
                .append(" us");
            return now;
        }
        const result<qos_class> quality = current_quality();
        if (!quality) return fail(quality);
        now.nearest = nearest_to(*quality);
        now.text.append(name_of(*quality));
        return now;
    }

    /// pthread_set_qos_class_self_np().
    [[nodiscard]] result<> set_quality(qos_class wanted) const noexcept {
        const int refused = ::pthread_set_qos_class_self_np(static_cast<::qos_class_t>(wanted), 0);
        if (refused == 0) return {};
        return fail_with(refused, "quality of service of a thread",
                         "set it on a thread that never had a scheduling policy of its own");
    }
    [[nodiscard]] result<qos_class> current_quality() const noexcept {
        ::qos_class_t quality = QOS_CLASS_UNSPECIFIED;
        const int refused = ::pthread_get_qos_class_np(::pthread_self(), &quality, nullptr);
        if (refused == 0) return static_cast<qos_class>(quality);
        return fail_with(refused, "quality of service of a thread", "run macOS 10.10 or later");
    }

private:
    [[nodiscard]] static result<> set_time_constraint(bool preemptible) noexcept {
        ::thread_time_constraint_policy_data_t policy{};
        policy.period = 0; // no regular beat
        policy.computation = ticks(computation_ns);
        policy.constraint = ticks(constraint_ns);
        policy.preemptible = preemptible ? TRUE : FALSE;
        const ::kern_return_t done = ::thread_policy_set(
            macos_threads::this_port(), THREAD_TIME_CONSTRAINT_POLICY,
            reinterpret_cast<::thread_policy_t>(&policy), THREAD_TIME_CONSTRAINT_POLICY_COUNT);
        if (done == KERN_SUCCESS) return {};
        return fail(errc::system_failure,
                    fixed_text<160>{"real time of a thread: kernel error "}.append_number(
                        static_cast<unsigned>(done)),
                    "ask for the priority `high`", done);
    }
    [[nodiscard]] static ::mach_timebase_info_data_t time_base() noexcept {
        ::mach_timebase_info_data_t base{};
        if (::mach_timebase_info(&base) != KERN_SUCCESS || base.numer == 0) base = {1, 1};
        return base;
    }
    [[nodiscard]] static std::uint32_t ticks(std::uint64_t ns) noexcept {
        const ::mach_timebase_info_data_t base = time_base();
        return static_cast<std::uint32_t>(ns * base.denom / base.numer);
    }
    [[nodiscard]] static std::uint64_t nanoseconds(std::uint64_t ticks) noexcept {
        const ::mach_timebase_info_data_t base = time_base();
        return ticks * base.numer / base.denom;
    }
};

} // namespace vm_accel::inline v0::os

#else

namespace vm_accel::inline v0::os {

struct macos_scheduling : unsupported_scheduling {
    static constexpr bool present = false;

    [[nodiscard]] result<> set_quality(qos_class) const noexcept { return not_here(); }
    [[nodiscard]] result<qos_class> current_quality() const noexcept { return not_here(); }

private:
    [[nodiscard]] static tl::unexpected<error> not_here() noexcept {
        return fail(errc::unsupported, "quality of service: this system is not macOS",
                    "use the platform of this system");
    }
};

} // namespace vm_accel::inline v0::os

#endif
