/// What Hypervisor.framework's refusals mean, and what to do about each.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/hvf_abi.hpp>

#include <string_view>

namespace vm_accel::inline v0 {

/// "WHAT: reason (0xfae94007)", with the cure. `cure` is for refusals that have none of
/// their own. Any thread.
[[nodiscard]] inline tl::unexpected<error>
hvf_failure(os::hvf_abi::status refusal, std::string_view what, std::string_view cure) noexcept {
    using os::hvf_abi::status;
    const auto number = static_cast<std::uint32_t>(refusal);
    const auto failed = [&](errc code, std::string_view reason, std::string_view remedy) {
        fixed_text<160> cause{what};
        cause.append(": ").append(reason).append(" (").append_number(number, 16).append(")");
        return fail(code, cause, fixed_text<160>{remedy}, static_cast<int>(number));
    };
    switch (refusal) {
    case status::denied:
        return failed(errc::permission_denied,
                      "macOS denied it; the program lacks the hypervisor entitlement",
                      "give it com.apple.security.hypervisor = true in FILE.plist, then: "
                      "codesign -s - --entitlements FILE.plist --force PROGRAM");
    case status::busy:
        return failed(errc::busy, "busy",
                      "one VM at a time in a process: end the other, and the threads of its vCPUs");
    case status::exists:
        return failed(errc::already_exists, "it exists", cure);
    case status::bad_argument:
        return failed(errc::invalid_argument, "bad argument", cure);
    case status::illegal_guest_state:
        return failed(errc::invalid_argument, "illegal state of the guest", cure);
    case status::no_resources:
        return failed(errc::exhausted, "no resources", "free memory, or use fewer vCPUs");
    case status::no_device:
        return failed(errc::not_found, "there is no VM, or no such vCPU", cure);
    case status::unsupported:
        return failed(errc::unsupported, "this Mac or macOS does not have it",
                      "see that `sysctl kern.hv_support` says 1; in a VM, nested virtualisation "
                      "must be on");
    case status::success:
    case status::error:
        break;
    }
    return failed(errc::system_failure, "the framework gave an error", cure);
}

} // namespace vm_accel::inline v0
