/// Where threads run: what every platform is asked.
///
/// A platform that cannot do a thing says so with `errc::unsupported` and the reason; it is a
/// concept's model all the same, so that callers need no second path.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/cpu_set.hpp>

#include <concepts>
#include <string_view>

namespace vm_accel::inline v0::os {

/// Says where threads may run and moves them.
/// pin_current_thread(s) confines the calling thread to s; current_pin() is what
/// the kernel then reports, which the caller compares. allowed_cpus() is what
/// the whole process may use. current_cpu() is where the caller ran a moment ago.
/// Threads: every call is about the calling thread and may be made by any.
/// Errors: `unsupported` where the platform has no such call, `permission_denied`
/// where it refused, `invalid_argument` for a CPU that is absent or excluded.
template <class T>
concept thread_platform = std::default_initializable<T> && requires(const T t, const cpu_set& set) {
    { T::name } -> std::convertible_to<std::string_view>;
    { T::can_pin_threads } -> std::convertible_to<bool>;
    { t.pin_current_thread(set) } noexcept -> std::same_as<result<>>;
    { t.current_pin() } noexcept -> std::same_as<result<cpu_set>>;
    { t.allowed_cpus() } noexcept -> std::same_as<result<cpu_set>>;
    { t.current_cpu() } noexcept -> std::same_as<result<unsigned>>;
};

/// Models thread_platform where nothing is known: every answer is `unsupported`.
struct unsupported_threads {
    static constexpr std::string_view name = "unsupported";
    static constexpr bool can_pin_threads = false;

    [[nodiscard]] result<> pin_current_thread(const cpu_set&) const noexcept { return refuse(); }
    [[nodiscard]] result<cpu_set> current_pin() const noexcept { return refuse(); }
    [[nodiscard]] result<cpu_set> allowed_cpus() const noexcept { return refuse(); }
    [[nodiscard]] result<unsigned> current_cpu() const noexcept { return refuse(); }

private:
    [[nodiscard]] static tl::unexpected<error> refuse() noexcept {
        return fail(errc::unsupported, "threads: this platform has no call to place a thread",
                    "leave placement to the scheduler, or run on Linux");
    }
};

} // namespace vm_accel::inline v0::os
