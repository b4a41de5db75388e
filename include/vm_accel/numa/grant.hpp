/// What was asked of the kernel against what it gave.
#pragma once

#include <vm_accel/core/error.hpp>
#include <vm_accel/core/fixed_text.hpp>

#include <cstdint>
#include <string_view>

namespace vm_accel::inline v0 {

enum class grant_state : std::uint8_t {
    not_requested, ///< nobody asked for it
    enforced,      ///< given, and the kernel will keep to it
    preferred,     ///< the kernel will try; it may do otherwise
    unsupported,   ///< this kernel or platform has no such thing
    refused,       ///< it exists, and was denied: see the cause
};

[[nodiscard]] constexpr std::string_view name_of(grant_state state) noexcept {
    switch (state) {
    case grant_state::not_requested:
        return "not requested";
    case grant_state::enforced:
        return "enforced";
    case grant_state::preferred:
        return "preferred";
    case grant_state::unsupported:
        return "unsupported";
    case grant_state::refused:
        return "refused";
    }
    return "unknown";
}

/// One request's fate. `cause` explains every state but not_requested and enforced;
/// code, cure and os_error go with it, for callers to whom this is an error.
struct grant {
    grant_state state = grant_state::not_requested;
    fixed_text<160> cause{};
    errc code = errc::permission_denied;
    fixed_text<160> cure{};
    int os_error = 0;

    friend constexpr bool operator==(const grant&, const grant&) = default;

    [[nodiscard]] static constexpr grant enforced() noexcept {
        return {.state = grant_state::enforced};
    }
    [[nodiscard]] static constexpr grant preferred(fixed_text<160> why) noexcept {
        return {.state = grant_state::preferred, .cause = why};
    }
    [[nodiscard]] static constexpr grant refused(fixed_text<160> why) noexcept {
        return {.state = grant_state::refused, .cause = why};
    }
    /// Less than was asked for, because of the error.
    [[nodiscard]] static constexpr grant preferred(const error& e) noexcept {
        return {grant_state::preferred, e.cause, e.code, e.cure, e.os_error};
    }
    /// From the error that a platform's call returned.
    [[nodiscard]] static constexpr grant denied(const error& e) noexcept {
        return {e.code == errc::unsupported ? grant_state::unsupported : grant_state::refused,
                e.cause, e.code, e.cure, e.os_error};
    }
    /// Whether someone asked and did not get it, not even as a preference.
    [[nodiscard]] constexpr bool is_denied() const noexcept {
        return state == grant_state::unsupported || state == grant_state::refused;
    }
};

/// "enforced", or "refused (CAUSE)"
template <class Stream>
    requires requires(Stream& out, std::string_view text) { out << text; }
Stream& operator<<(Stream& out, const grant& g) {
    out << name_of(g.state);
    if (!g.cause.empty()) {
        out << std::string_view{" ("};
        out << g.cause.view();
        out << std::string_view{")"};
    }
    return out;
}

} // namespace vm_accel::inline v0
