/// The one error type: what failed, why, and what to do about it.
///
/// Errors are for the author of a VMM, at set-up. What a guest can cause never
/// becomes an `error`: it is the architecture's event, GERROR bit or ignored
/// write. Constructing, copying and printing an error never allocates.
#pragma once

#include <vm_accel/core/fixed_text.hpp>

#include <cstdint>
#include <string_view>

namespace vm_accel::inline v0 {

/// What kind of failure, for programs. People read `error::cause` and `cure`.
enum class errc : std::uint8_t {
    invalid_argument,    ///< a value that can never be right (empty range, misaligned base)
    out_of_range,        ///< a value beyond what this machine or object has
    already_exists,      ///< the name, range or identifier is taken
    not_found,           ///< no such device, region, node or file
    exhausted,           ///< a fixed capacity is used up
    unavailable,         ///< this host does not have it
    unsupported,         ///< this platform or kernel cannot do it
    permission_denied,   ///< the kernel refused
    busy,                ///< someone else holds it
    not_initialized,     ///< call init() first
    already_initialized, ///< init() was called before
    would_deadlock,      ///< the calling thread itself holds what would be waited for
    mismatch,            ///< read back and found to differ from what was asked
    cancelled,           ///< the caller's own callback said to stop
    system_failure,      ///< the operating system failed in a way with no name here
};

[[nodiscard]] constexpr std::string_view name_of(errc code) noexcept {
    switch (code) {
    case errc::invalid_argument:
        return "invalid argument";
    case errc::out_of_range:
        return "out of range";
    case errc::already_exists:
        return "already exists";
    case errc::not_found:
        return "not found";
    case errc::exhausted:
        return "exhausted";
    case errc::unavailable:
        return "unavailable";
    case errc::unsupported:
        return "unsupported";
    case errc::permission_denied:
        return "permission denied";
    case errc::busy:
        return "busy";
    case errc::not_initialized:
        return "not initialized";
    case errc::already_initialized:
        return "already initialized";
    case errc::would_deadlock:
        return "would deadlock";
    case errc::mismatch:
        return "mismatch";
    case errc::cancelled:
        return "cancelled";
    case errc::system_failure:
        return "system failure";
    }
    return "unknown";
}

struct error {
    errc code = errc::system_failure;
    int os_error = 0;        ///< errno or GetLastError, 0 if none
    fixed_text<160> cause{}; ///< what happened, to what ("/dev/kvm: permission denied")
    fixed_text<160> cure{};  ///< what the reader can do ("add the user to group kvm")

    constexpr error() noexcept = default;
    /// The texts are assigned, not initialised: GCC 12 from -O2 on can lose the
    /// length of a text that is initialised here from one it has just built.
    constexpr error(errc kind, int system_error, const fixed_text<160>& why = {},
                    const fixed_text<160>& remedy = {}) noexcept
        : code(kind), os_error(system_error) {
        cause = why;
        cure = remedy;
    }

    friend constexpr bool operator==(const error&, const error&) = default;
    friend constexpr bool operator==(const error& e, errc kind) noexcept { return e.code == kind; }
};

/// "CAUSE; CURE"
template <class Stream>
    requires requires(Stream& out, std::string_view text) { out << text; }
Stream& operator<<(Stream& out, const error& e) {
    out << e.cause.view();
    if (!e.cure.empty()) {
        out << std::string_view{"; "};
        out << e.cure.view();
    }
    return out;
}

} // namespace vm_accel::inline v0
