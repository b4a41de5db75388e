/// A value, or the error that says why there is none.
///
/// `tl::expected` in every language mode: switching to `std::expected` with
/// C++23 would give one program two types of the same name.
#pragma once

#include <vm_accel/core/error.hpp>

#include <tl/expected.hpp>

namespace vm_accel::inline v0 {

template <class T = void>
using result = tl::expected<T, error>;

/// `return fail(errc::busy, "/dev/kvm: busy", "stop the other hypervisor");`
[[nodiscard]] constexpr tl::unexpected<error>
fail(errc code, fixed_text<160> cause, fixed_text<160> cure = {}, int os_error = 0) noexcept {
    return tl::unexpected<error>{error{code, os_error, cause, cure}};
}

/// Hands an error on from one result type to another.
template <class T>
[[nodiscard]] constexpr tl::unexpected<error> fail(const result<T>& failed) noexcept {
    return tl::unexpected<error>{failed.error()};
}

} // namespace vm_accel::inline v0
