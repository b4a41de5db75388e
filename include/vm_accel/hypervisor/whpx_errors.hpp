/// What the Windows Hypervisor Platform's refusals mean, and what to do about each.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/whpx_abi.hpp>

#include <cstdint>
#include <string_view>

namespace vm_accel::inline v0 {

/// "WHAT: reason (0x80370304)", with the cure. `cure` is for refusals that have none of
/// their own. Any thread.
[[nodiscard]] inline tl::unexpected<error>
whpx_failure(os::whpx_abi::status refusal, std::string_view what, std::string_view cure) noexcept {
    const auto number = static_cast<std::uint32_t>(refusal);
    const auto failed = [&](errc code, std::string_view reason, std::string_view remedy) {
        fixed_text<160> cause{what};
        cause.append(": ").append(reason).append(" (").append_number(number, 16).append(")");
        return fail(code, cause, fixed_text<160>{remedy}, static_cast<int>(number));
    };
    switch (number) {
    case 0x8007'0005: // E_ACCESSDENIED
        return failed(errc::permission_denied, "Windows denied it",
                      "add the account to the group Hyper-V Administrators, or run as "
                      "administrator");
    case 0x8007'000e: // E_OUTOFMEMORY
    case 0x8007'05aa: // ERROR_NO_SYSTEM_RESOURCES
        return failed(errc::exhausted, "no memory for it", "free memory, or give the guest less");
    case 0x8007'0057: // E_INVALIDARG
        return failed(errc::invalid_argument, "bad argument", cure);
    case 0x8007'007f: // ERROR_PROC_NOT_FOUND
    case 0x8000'4001: // E_NOTIMPL
        return failed(errc::unsupported, "this version of Windows does not have it",
                      "update Windows, or do without");
    case 0x8037'0300: // WHV_E_UNKNOWN_CAPABILITY
    case 0x8037'0302: // WHV_E_UNKNOWN_PROPERTY
        return failed(errc::unsupported, "this version of Windows does not know it",
                      "update Windows, or do without");
    case 0x8037'0303: // WHV_E_UNSUPPORTED_HYPERVISOR_CONFIG
        return failed(errc::unsupported, "the hypervisor is not set up for it",
                      "see that the processor has second-level translation and that "
                      "virtualisation is on in the firmware");
    case 0x8037'0304: // WHV_E_INVALID_PARTITION_CONFIG
        return failed(errc::invalid_argument, "not a possible machine", cure);
    case 0x8037'0305: // WHV_E_GPA_RANGE_NOT_FOUND
    case 0x8037'0307: // WHV_E_VP_DOES_NOT_EXIST
        return failed(errc::not_found, "it does not exist", cure);
    case 0x8037'0306: // WHV_E_VP_ALREADY_EXISTS
        return failed(errc::already_exists, "it exists", cure);
    case 0x8037'0308: // WHV_E_INVALID_VP_STATE
        return failed(errc::busy, "the vCPU is in another state", "stop the vCPU first");
    default:
        return failed(errc::system_failure, "the hypervisor gave an error", cure);
    }
}

} // namespace vm_accel::inline v0
