/// The CPUs that the kernel's scheduler leaves alone unless a thread is put there.
#pragma once

#include <vm_accel/os/cpu_set.hpp>

#include <cstddef>
#include <optional>
#include <string_view>

#if defined(__linux__)
#include <vm_accel/os/descriptor.hpp>

#include <fcntl.h>
#include <unistd.h>

#include <array>
#endif

namespace vm_accel::inline v0::os {

/// A list as the kernel writes it: "0-3,8", with or without a newline; an empty
/// one is the empty set. Nothing for text of another form, a range that runs
/// backwards, or a number that is not below cpu_set::capacity. Pure.
[[nodiscard]] constexpr std::optional<cpu_set> parse_cpu_list(std::string_view text) noexcept {
    if (!text.empty() && text.back() == '\n') text.remove_suffix(1);
    cpu_set set;
    const auto number = [&]() -> std::optional<unsigned> {
        unsigned value = 0;
        std::size_t digits = 0;
        for (; digits < text.size() && text[digits] >= '0' && text[digits] <= '9'; ++digits) {
            value = value * 10 + static_cast<unsigned>(text[digits] - '0');
            if (value >= cpu_set::capacity) return std::nullopt;
        }
        text.remove_prefix(digits);
        return digits != 0 ? std::optional{value} : std::nullopt;
    };
    while (!text.empty()) {
        const std::optional<unsigned> low = number();
        std::optional<unsigned> high = low;
        if (low && text.starts_with('-')) {
            text.remove_prefix(1);
            high = number();
        }
        if (!low || !high || *high < *low) return std::nullopt;
        for (unsigned cpu = *low; cpu <= *high; ++cpu)
            static_cast<void>(set.insert(cpu));
        if (text.empty()) break;
        if (!text.starts_with(',') || text.size() == 1) return std::nullopt;
        text.remove_prefix(1);
    }
    return set;
}

/// What `isolcpus=` and isolated cpuset partitions name. Empty where there is
/// none, or where the system does not tell. Any thread.
[[nodiscard]] inline cpu_set isolated_cpus() noexcept {
#if defined(__linux__)
    const descriptor file{::open("/sys/devices/system/cpu/isolated", O_RDONLY | O_CLOEXEC)};
    if (!file) return {};
    std::array<char, 4096> text{}; // /sys gives no more at once
    const ::ssize_t size = ::read(file.get(), text.data(), text.size());
    if (size <= 0) return {};
    return parse_cpu_list({text.data(), static_cast<std::size_t>(size)}).value_or(cpu_set{});
#else
    return {};
#endif
}

} // namespace vm_accel::inline v0::os
