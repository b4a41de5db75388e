/// How urgently and how economically the calling thread runs on Windows.
/// On other systems every answer is `unsupported`.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/thread_scheduling.hpp>

#if defined(_WIN32)

#include <vm_accel/os/dynamic_library.hpp>
#include <vm_accel/os/windows_abi.hpp>
#include <vm_accel/os/windows_calls.hpp>
#include <vm_accel/os/windows_groups.hpp>

#include <cstdint>

namespace vm_accel::inline v0::os {

/// Stateless; every call is about the calling thread.
struct windows_scheduling {
    /// The nearest of Windows's seven steps, read back.
    [[nodiscard]] result<given_priority>
    set_priority(const thread_priority& wanted) const noexcept {
        if (!wanted.is_sound()) return unsound(wanted);
        if (::SetThreadPriority(::GetCurrentThread(), windows_priority::value_for(wanted)) == 0)
            return fail_with_windows(::GetLastError(), "setting the priority of a thread",
                                     "let the job object of the process allow it");
        return read(wanted);
    }
    [[nodiscard]] result<given_priority> priority() const noexcept {
        result<given_priority> now = read({});
        if (now) now->as_requested = true;
        return now;
    }

    /// EcoQoS: `economic` lets the system run this thread slowly and on efficiency
    /// cores; false asks for full speed always. Errors: unsupported (before Windows 10
    /// 1709), mismatch (accepted, but it reads back otherwise).
    [[nodiscard]] result<> prefer_economy(bool economic) const noexcept {
        using set_call = int __stdcall(void*, std::uint32_t, void*, std::uint32_t);
        using get_call = int __stdcall(void*, std::uint32_t, void*, std::uint32_t);
        const result<dynamic_library> kernel = dynamic_library::open("kernel32.dll");
        auto* const set = kernel ? kernel->find<set_call>("SetThreadInformation") : nullptr;
        if (set == nullptr)
            return fail(errc::unsupported, "EcoQoS: this system has no SetThreadInformation",
                        "run Windows 10 1709 or later");
        windows_abi::power_throttling state;
        state.control_mask = windows_abi::throttle_execution_speed;
        state.state_mask = economic ? windows_abi::throttle_execution_speed : 0;
        if (set(::GetCurrentThread(), windows_abi::thread_power_throttling, &state, sizeof state) ==
            0)
            return fail(errc::unsupported,
                        "EcoQoS: the system refuses power throttling of a thread",
                        "run Windows 10 1709 or later", static_cast<int>(::GetLastError()));
        windows_abi::power_throttling now;
        auto* const get = kernel->find<get_call>("GetThreadInformation");
        if (get == nullptr ||
            get(::GetCurrentThread(), windows_abi::thread_power_throttling, &now, sizeof now) == 0)
            return {}; // this version of Windows sets it but does not tell
        if (now.control_mask == state.control_mask && now.state_mask == state.state_mask) return {};
        return fail(errc::mismatch, "EcoQoS: accepted, but it reads back otherwise",
                    "leave it to the system");
    }

private:
    [[nodiscard]] static result<given_priority> read(const thread_priority& wanted) noexcept {
        const int now = ::GetThreadPriority(::GetCurrentThread());
        if (now == windows_abi::priority_error)
            return fail_with_windows(::GetLastError(), "priority of a thread", "try again");
        return windows_priority::given(now, wanted);
    }
};

} // namespace vm_accel::inline v0::os

#else

namespace vm_accel::inline v0::os {

struct windows_scheduling : unsupported_scheduling {
    [[nodiscard]] result<> prefer_economy(bool) const noexcept {
        return fail(errc::unsupported, "EcoQoS: Windows only", "leave it to the system");
    }
};

} // namespace vm_accel::inline v0::os

#endif
