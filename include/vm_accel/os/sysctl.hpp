/// Numbers and texts by the names that sysctl(8) knows: this Mac's, or recorded ones.
#pragma once

#include <vm_accel/core/fixed_text.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#if defined(__APPLE__)
#include <sys/sysctl.h>

#include <cstring>
#endif

namespace vm_accel::inline v0::os {

/// Answers by name ("hw.physicalcpu"); nothing where the system has no such value.
template <class V>
concept sysctl_values = requires(const V& values, std::string_view name) {
    { values.number(name) } noexcept -> std::same_as<std::optional<std::uint64_t>>;
    { values.text(name) } noexcept -> std::same_as<std::optional<fixed_text<64>>>;
};

/// What `sysctl -a` printed on some machine: a line "NAME: VALUE" for each.
/// Refers to the text, which outlives it. Any thread.
class recorded_sysctl {
public:
    constexpr explicit recorded_sysctl(std::string_view listing) noexcept : listing_(listing) {}

    [[nodiscard]] constexpr std::optional<fixed_text<64>>
    text(std::string_view name) const noexcept {
        for (std::string_view rest = listing_; !rest.empty();) {
            const std::size_t end = std::min(rest.find('\n'), rest.size());
            const std::string_view line = rest.substr(0, end);
            rest.remove_prefix(std::min(end + 1, rest.size()));
            if (line.size() >= name.size() + 2 && line.starts_with(name) &&
                line.substr(name.size(), 2) == ": ")
                return fixed_text<64>{line.substr(name.size() + 2)};
        }
        return std::nullopt;
    }
    /// Nothing also for a value that is no decimal number of 64 bits.
    [[nodiscard]] constexpr std::optional<std::uint64_t>
    number(std::string_view name) const noexcept {
        const std::optional<fixed_text<64>> written = text(name);
        if (!written || written->empty() || written->size() > 19) return std::nullopt;
        std::uint64_t value = 0;
        for (const char digit : written->view()) {
            if (digit < '0' || digit > '9') return std::nullopt;
            value = value * 10 + static_cast<std::uint64_t>(digit - '0');
        }
        return value;
    }

private:
    std::string_view listing_;
};

static_assert(sysctl_values<recorded_sysctl>);

/// This machine's own; every answer is nothing on systems that are not Apple's.
class native_sysctl {
public:
    [[nodiscard]] std::optional<std::uint64_t>
    number([[maybe_unused]] std::string_view name) const noexcept {
#if defined(__APPLE__)
        std::uint64_t value = 0;
        std::size_t bytes = sizeof value;
        if (read(name, &value, bytes)) {
            if (bytes == sizeof value) return value;
            std::uint32_t small = 0; // little-endian: the first bytes are the value
            std::memcpy(&small, &value, sizeof small);
            if (bytes == sizeof small) return small;
        }
#endif
        return std::nullopt;
    }
    [[nodiscard]] std::optional<fixed_text<64>>
    text([[maybe_unused]] std::string_view name) const noexcept {
#if defined(__APPLE__)
        char value[128]{};
        std::size_t bytes = sizeof value - 1;
        if (read(name, value, bytes)) return fixed_text<64>{std::string_view{value}};
#endif
        return std::nullopt;
    }

private:
#if defined(__APPLE__)
    [[nodiscard]] static bool read(std::string_view name, void* value,
                                   std::size_t& bytes) noexcept {
        char terminated[64]{};
        if (name.size() >= sizeof terminated) return false;
        std::copy(name.begin(), name.end(), terminated);
        return ::sysctlbyname(terminated, value, &bytes, nullptr, 0) == 0;
    }
#endif
};

static_assert(sysctl_values<native_sysctl>);

} // namespace vm_accel::inline v0::os
