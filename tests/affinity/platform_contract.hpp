/// What every model of affinity_platform must do, whatever it claims.
///
/// Each check takes a platform and runs on a thread of its own, so that nothing that it
/// changes outlives it. A call that the system refuses must say why and what cures it; a
/// refusal is printed (`SKIP: reason`) where the contract cannot be seen then.
#pragma once

#include "own_thread.hpp"

#include <vm_accel/affinity/platform.hpp>

#include <catch2/catch.hpp>

#include <iostream>
#include <string_view>

namespace affinity_contract {

using namespace vm_accel;
using affinity_threads::on_a_thread;
using affinity_threads::staying_thread;

/// Whether the call worked. If not: the error must be of a kind that the concept lists, and whole.
template <class T>
[[nodiscard]] bool worked_or_refused(const result<T>& done) {
    if (done) return true;
    const error& why = done.error();
    CHECK((why == errc::permission_denied || why == errc::unsupported || why == errc::unavailable));
    CHECK_FALSE(why.cause.empty());
    CHECK_FALSE(why.cure.empty());
    std::cout << "SKIP: " << why.cause.view() << '\n';
    return false;
}

template <affinity_platform P>
void check_topology(P& platform) {
    const result<cpu_topology> first = platform.load();
    REQUIRE(first);
    CHECK_FALSE(first->empty());
    CHECK(*platform.load() == *first);
    CHECK_FALSE(std::string_view{P::name}.empty());
}

/// A thread goes where it is told, by its own number and by another thread, and a number that
/// is nobody's is an error.
template <affinity_platform P>
void check_pins(P& platform) {
    if constexpr (P::can_pin_threads) {
        const result<cpu_topology> topology = platform.load();
        REQUIRE(topology);
        for (const logical_cpu& cpu : topology->cpus) {
            const os::cpu_set wanted = os::cpu_set::of(cpu.os_index);
            result<> pinned;
            result<os::cpu_set> itself, seen_from_here;
            os::thread_id there{};
            {
                const staying_thread other{[&] {
                    there = platform.current_thread();
                    pinned = platform.pin(there, wanted);
                    itself = platform.pinned(there);
                }};
                seen_from_here = platform.pinned(there);
            }
            if (!worked_or_refused(pinned)) return;
            REQUIRE(itself);
            CHECK(*itself == wanted);
            REQUIRE(seen_from_here);
            CHECK(*seen_from_here == wanted);
            CHECK(there != platform.current_thread());
            CHECK(there != os::thread_id{});
        }
        const auto absent = platform.pin(platform.current_thread(), os::cpu_set{});
        REQUIRE_FALSE(absent);
        CHECK(absent.error() == errc::invalid_argument);
    }
}

/// Pins do not narrow what is allowed, and every CPU of the topology that is allowed exists.
template <affinity_platform P>
void check_following(P& platform) {
    if constexpr (P::can_follow_cpuset) {
        const auto before = platform.allowed_cpus();
        if (!worked_or_refused(before)) return;
        CHECK_FALSE(before->empty());
        result<os::cpu_set> while_pinned;
        on_a_thread([&] {
            static_cast<void>(
                platform.pin(platform.current_thread(), os::cpu_set::of(before->next(0))));
            while_pinned = platform.allowed_cpus();
        });
        REQUIRE(while_pinned);
        CHECK(*while_pinned == *before);
        const auto whole = platform.reload();
        REQUIRE(whole);
        CHECK((*before - whole->cpu_set()).empty());
    }
}

/// What is given is what is asked for, or it is said that it is not; a refusal changes nothing.
template <affinity_platform P>
void check_priorities(P& platform) {
    if constexpr (P::can_set_priority) {
        using os::thread_priority;
        const thread_priority wanted =
            GENERATE(thread_priority::normal(), thread_priority::normal(5), thread_priority::high(),
                     thread_priority::fifo(1), thread_priority::round_robin(2));
        result<os::given_priority> before, given, after;
        on_a_thread([&] {
            before = platform.priority();
            given = platform.set_priority(wanted);
            after = platform.priority();
        });
        if (!worked_or_refused(before)) return;
        REQUIRE(after);
        if (!worked_or_refused(given)) {
            CHECK(after->nearest == before->nearest);
            return;
        }
        CHECK(given->nearest == after->nearest);
        CHECK(given->text == after->text.view());
        CHECK_FALSE(given->text.empty());
        if (given->as_requested) CHECK(given->nearest.kind == wanted.kind);

        const thread_priority unsound =
            GENERATE(thread_priority::fifo(0), thread_priority::round_robin(100),
                     thread_priority::normal(-21), thread_priority::normal(20));
        on_a_thread([&] { given = platform.set_priority(unsound); });
        REQUIRE_FALSE(given);
        CHECK(given.error() == errc::invalid_argument);
        CHECK_FALSE(given.error().cure.empty());
    }
}

template <affinity_platform P>
void check_clamps(P& platform) {
    if constexpr (P::can_clamp_utilization) {
        result<os::utilization_clamp> given, unsound;
        const os::utilization_clamp wanted =
            GENERATE(values<os::utilization_clamp>({{0, 1024}, {512, 1024}, {0, 256}, {300, 300}}));
        on_a_thread([&] {
            given = platform.clamp_utilization(wanted);
            unsound = platform.clamp_utilization({2, 1});
        });
        REQUIRE_FALSE(unsound);
        CHECK(unsound.error() == errc::invalid_argument);
        if (!worked_or_refused(given)) return;
        CHECK(*given == wanted);
    }
}

/// Two threads that start groups are in different ones; one that joins is in the group joined.
template <affinity_platform P>
void check_core_groups(P& platform) {
    if constexpr (P::can_group_cores) {
        result<os::core_group> none, first, second, joined;
        on_a_thread([&] {
            none = platform.current_core_group();
            first = platform.start_core_group();
            const os::thread_id starter = platform.current_thread();
            on_a_thread([&] {
                second = platform.start_core_group();
                joined = platform.join_core_group(starter);
            });
        });
        if (!worked_or_refused(first)) {
            CHECK_FALSE(second);
            CHECK_FALSE(joined);
            return;
        }
        REQUIRE(none);
        CHECK(*none == os::core_group{});
        CHECK(*first != os::core_group{});
        REQUIRE(second);
        CHECK(*second != *first);
        CHECK(*second != os::core_group{});
        REQUIRE(joined);
        CHECK(*joined == *first);
    }
}

} // namespace affinity_contract
