/// How urgently a thread is to run, how fast a CPU it is to get, and with whom it shares a
/// core: what is asked, in words that every platform can answer.
#pragma once

#include <vm_accel/core/fixed_text.hpp>
#include <vm_accel/core/result.hpp>
#include <vm_accel/os/thread_id.hpp>

#include <cstdint>
#include <string_view>

namespace vm_accel::inline v0::os {

enum class priority_class : std::uint8_t {
    normal,      ///< shares CPUs by the platform's fair rules, weighted by `nice`
    high,        ///< the same, before ordinary threads; real-time threads come before it
    fifo,        ///< real time: runs until it blocks, or one of a higher level is ready
    round_robin, ///< real time: as fifo, but takes turns with others of its level
};

[[nodiscard]] constexpr std::string_view name_of(priority_class kind) noexcept {
    switch (kind) {
    case priority_class::normal:
        return "normal";
    case priority_class::high:
        return "high";
    case priority_class::fifo:
        return "fifo";
    case priority_class::round_robin:
        return "round robin";
    }
    return "unknown";
}

/// A request. Platforms with fewer steps give the nearest step and say so.
struct thread_priority {
    priority_class kind = priority_class::normal;
    int nice = 0;       ///< of `normal`: -20 (most of the CPU) to 19 (least); else 0
    unsigned level = 0; ///< of `fifo` and `round_robin`: 1 (lowest) to 99; else 0

    friend constexpr bool operator==(const thread_priority&, const thread_priority&) = default;

    [[nodiscard]] static constexpr thread_priority normal(int nice = 0) noexcept {
        return {priority_class::normal, nice, 0};
    }
    [[nodiscard]] static constexpr thread_priority high() noexcept {
        return {priority_class::high, 0, 0};
    }
    [[nodiscard]] static constexpr thread_priority fifo(unsigned level) noexcept {
        return {priority_class::fifo, 0, level};
    }
    [[nodiscard]] static constexpr thread_priority round_robin(unsigned level) noexcept {
        return {priority_class::round_robin, 0, level};
    }

    [[nodiscard]] constexpr bool is_real_time() const noexcept {
        return kind == priority_class::fifo || kind == priority_class::round_robin;
    }
    /// Whether the numbers are those that the kind has.
    [[nodiscard]] constexpr bool is_sound() const noexcept {
        if (is_real_time()) return level >= 1 && level <= 99 && nice == 0;
        if (kind == priority_class::high) return level == 0 && nice == 0;
        return kind == priority_class::normal && level == 0 && nice >= -20 && nice <= 19;
    }
};

/// "normal, nice 5", "fifo 10"
template <class Text>
constexpr Text& append_priority(Text& out, const thread_priority& priority) noexcept {
    out.append(name_of(priority.kind));
    if (priority.is_real_time()) {
        out.append(" ").append_number(priority.level);
    } else if (priority.nice != 0) {
        out.append(", nice ").append(priority.nice < 0 ? "-" : "");
        out.append_number(
            static_cast<unsigned>(priority.nice < 0 ? -priority.nice : priority.nice));
    }
    return out;
}

/// A request outside the ranges of thread_priority. The same words on every platform.
[[nodiscard]] inline tl::unexpected<error> unsound(const thread_priority& wanted) noexcept {
    fixed_text<160> cause{"thread priority "};
    return fail(errc::invalid_argument, append_priority(cause, wanted).append(" does not exist"),
                "nice is -20 to 19 and only of normal, a level is 1 to 99 and only of fifo and "
                "round_robin");
}

/// A thread's priority as its platform reports it.
struct given_priority {
    thread_priority nearest{}; ///< in the words of requests
    bool as_requested = true;  ///< false where the platform has a coarser step, or set another
    fixed_text<64> text{};     ///< in the platform's words: "SCHED_FIFO 10"
};

/// Bounds of how busy the system is to think a thread, which decides the CPU's frequency and,
/// on machines that mix, its kind. 0 to 1024, the fastest CPU at its fastest.
struct utilization_clamp {
    unsigned least = 0;
    unsigned most = 1024;

    friend constexpr bool operator==(const utilization_clamp&, const utilization_clamp&) = default;
    [[nodiscard]] constexpr bool is_sound() const noexcept { return least <= most && most <= 1024; }
};

/// The same words on every platform.
[[nodiscard]] inline tl::unexpected<error> unsound(const utilization_clamp& wanted) noexcept {
    fixed_text<160> cause{"utilization clamp "};
    cause.append_number(wanted.least).append(" to ").append_number(wanted.most);
    return fail(errc::invalid_argument, cause.append(" is no range within 0 to 1024"),
                "give least <= most <= 1024");
}

/// Threads with the same number may run on the threads of one core at the same time; others
/// are kept out while one of them runs. 0 is the group of all threads that asked for none.
enum class core_group : std::uint64_t {};

/// What a platform answers that has no call for a thread's scheduling.
struct unsupported_scheduling {
    [[nodiscard]] result<given_priority>
    set_priority(const thread_priority& /*wanted*/) const noexcept {
        return refuse();
    }
    [[nodiscard]] result<given_priority> priority() const noexcept { return refuse(); }
    [[nodiscard]] result<utilization_clamp>
    clamp_utilization(const utilization_clamp& /*wanted*/) const noexcept {
        return refuse();
    }
    [[nodiscard]] result<core_group> start_core_group() const noexcept { return refuse(); }
    [[nodiscard]] result<core_group> join_core_group(thread_id /*member*/) const noexcept {
        return refuse();
    }
    [[nodiscard]] result<core_group> current_core_group() const noexcept { return refuse(); }

private:
    [[nodiscard]] static tl::unexpected<error> refuse() noexcept {
        return fail(errc::unsupported, "scheduling: this platform has no call for it here",
                    "leave it to the system");
    }
};

} // namespace vm_accel::inline v0::os
