/// What a backend finds out about the host before anything is set up.
#pragma once

#include <vm_accel/core/fixed_text.hpp>

#include <string_view>

namespace vm_accel::inline v0 {

/// Whether the host has what a backend needs, and in words what it has or lacks.
struct detection {
    bool available = false;
    fixed_text<160> summary{};

    friend constexpr bool operator==(const detection&, const detection&) = default;
};

template <class Stream>
    requires requires(Stream& out, std::string_view text) { out << text; }
Stream& operator<<(Stream& out, const detection& found) {
    out << std::string_view{found.available ? "available: " : "not available: "};
    out << found.summary.view();
    return out;
}

} // namespace vm_accel::inline v0
