/// Windows numbers processors in groups of at most 64. This library numbers them
/// through: CPU = group * 64 + number in the group, so that one word of a cpu_set is
/// one group's mask. Pure; compiles everywhere.
#pragma once

#include <vm_accel/os/cpu_set.hpp>
#include <vm_accel/os/thread_scheduling.hpp>
#include <vm_accel/os/windows_abi.hpp>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <optional>
#include <string_view>

namespace vm_accel::inline v0::os {

namespace windows_groups {

inline constexpr unsigned processors_per_group = 64;
static_assert(cpu_set::bits_per_word == processors_per_group);

[[nodiscard]] constexpr unsigned cpu_of(unsigned group, unsigned number) noexcept {
    return group * processors_per_group + number;
}

/// False when the group's numbers are beyond cpu_set::capacity; nothing is added then.
constexpr bool insert(cpu_set& set, unsigned group, std::uint64_t mask) noexcept {
    if (group >= set.words().size()) return false;
    set.words()[group] |= mask;
    return true;
}

/// The group whose mask holds all of the set; nothing when it is empty or spans groups.
[[nodiscard]] constexpr std::optional<windows_abi::group_affinity>
only_group(const cpu_set& set) noexcept {
    std::optional<windows_abi::group_affinity> found;
    for (unsigned group = 0; group < set.words().size(); ++group) {
        if (set.words()[group] == 0) continue;
        if (found) return std::nullopt;
        found.emplace();
        found->mask = set.words()[group];
        found->group = static_cast<std::uint16_t>(group);
    }
    return found;
}

/// The mask of a group whose first `count` processors are active.
[[nodiscard]] constexpr std::uint64_t mask_of_first(unsigned count) noexcept {
    return count >= processors_per_group ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1;
}

} // namespace windows_groups

/// What SetThreadPriority() knows of thread_priority, within the process's priority
/// class: seven steps. Windows takes turns among threads of any one step.
namespace windows_priority {

struct step {
    int value;
    std::string_view text;
    thread_priority nearest;
};
inline constexpr step steps[] = {
    {-15, "THREAD_PRIORITY_IDLE", thread_priority::normal(19)},
    {-2, "THREAD_PRIORITY_LOWEST", thread_priority::normal(10)},
    {-1, "THREAD_PRIORITY_BELOW_NORMAL", thread_priority::normal(5)},
    {0, "THREAD_PRIORITY_NORMAL", thread_priority::normal(0)},
    {1, "THREAD_PRIORITY_ABOVE_NORMAL", thread_priority::normal(-10)},
    {2, "THREAD_PRIORITY_HIGHEST", thread_priority::high()},
    {15, "THREAD_PRIORITY_TIME_CRITICAL", thread_priority::round_robin(1)},
};

/// The step for a sound request.
[[nodiscard]] constexpr int value_for(const thread_priority& wanted) noexcept {
    if (wanted.is_real_time()) return 15;
    if (wanted.kind == priority_class::high) return 2;
    if (wanted.nice < 0) return 1;
    if (wanted.nice == 0) return 0;
    if (wanted.nice <= 7) return -1;
    return wanted.nice <= 14 ? -2 : -15;
}

/// A step as Windows reports it, beside what was asked for.
[[nodiscard]] inline given_priority given(int value, const thread_priority& wanted) noexcept {
    given_priority answer;
    for (const step& s : steps) {
        if (s.value != value) continue;
        answer.nearest = s.nearest;
        answer.text.append(s.text);
    }
    if (answer.text.empty()) {
        // A process of the real-time class has the steps between, too.
        answer.text.append("priority ").append(value < 0 ? "-" : "");
        answer.text.append_number(static_cast<unsigned>(value < 0 ? -value : value));
        answer.nearest = value > 2    ? thread_priority::round_robin(1)
                         : value < -2 ? thread_priority::normal(19)
                                      : thread_priority::normal();
    }
    answer.as_requested = answer.nearest == wanted;
    return answer;
}

} // namespace windows_priority

} // namespace vm_accel::inline v0::os
