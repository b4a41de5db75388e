/// Quality of service, by which Apple's systems choose how soon a thread runs and on
/// which kind of core. Pure: no call is made here.
#pragma once

#include <vm_accel/os/thread_scheduling.hpp>

#include <cstdint>
#include <string_view>

namespace vm_accel::inline v0::os {

/// qos_class_t. From user-initiated up, threads run on performance cores while there is
/// room; background threads keep to efficiency cores. What is between moves.
enum class qos_class : std::uint32_t {
    unspecified = 0x00, ///< also: the thread opted out, as real-time threads have
    background = 0x09,
    utility = 0x11,
    standard = 0x15, ///< QOS_CLASS_DEFAULT
    user_initiated = 0x19,
    user_interactive = 0x21,
};

[[nodiscard]] constexpr std::string_view name_of(qos_class quality) noexcept {
    switch (quality) {
    case qos_class::unspecified:
        return "QOS_CLASS_UNSPECIFIED";
    case qos_class::background:
        return "QOS_CLASS_BACKGROUND";
    case qos_class::utility:
        return "QOS_CLASS_UTILITY";
    case qos_class::standard:
        return "QOS_CLASS_DEFAULT";
    case qos_class::user_initiated:
        return "QOS_CLASS_USER_INITIATED";
    case qos_class::user_interactive:
        return "QOS_CLASS_USER_INTERACTIVE";
    }
    return "unknown";
}

/// The class that comes nearest to a request. Real-time requests have none: they are
/// served by a time constraint (macos_scheduling).
[[nodiscard]] constexpr qos_class qos_for(const thread_priority& wanted) noexcept {
    if (wanted.is_real_time()) return qos_class::unspecified;
    if (wanted.kind == priority_class::high) return qos_class::user_interactive;
    if (wanted.nice < 0) return qos_class::user_initiated;
    if (wanted.nice == 0) return qos_class::standard;
    return wanted.nice < 10 ? qos_class::utility : qos_class::background;
}
/// A class in the words of requests: qos_for() of it is the class again.
[[nodiscard]] constexpr thread_priority nearest_to(qos_class quality) noexcept {
    switch (quality) {
    case qos_class::user_interactive:
        return thread_priority::high();
    case qos_class::user_initiated:
        return thread_priority::normal(-10);
    case qos_class::utility:
        return thread_priority::normal(5);
    case qos_class::background:
        return thread_priority::normal(19);
    case qos_class::standard:
    case qos_class::unspecified:
        break;
    }
    return thread_priority::normal();
}

} // namespace vm_accel::inline v0::os
