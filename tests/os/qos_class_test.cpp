/// Priorities in Apple's classes of quality of service.
#include <vm_accel/os/macos_scheduling.hpp>
#include <vm_accel/os/macos_threads.hpp>
#include <vm_accel/os/qos_class.hpp>

#include <catch2/catch.hpp>

using namespace vm_accel;
using os::qos_class;
using os::thread_priority;

TEST_CASE("priorities become classes of quality of service", "[os]") {
    struct row {
        thread_priority wanted;
        qos_class quality;
        bool exact; ///< the class means the request again
    };
    const auto r = GENERATE(values<row>({
        {thread_priority::high(), qos_class::user_interactive, true},
        {thread_priority::normal(-20), qos_class::user_initiated, false},
        {thread_priority::normal(-10), qos_class::user_initiated, true},
        {thread_priority::normal(-1), qos_class::user_initiated, false},
        {thread_priority::normal(), qos_class::standard, true},
        {thread_priority::normal(1), qos_class::utility, false},
        {thread_priority::normal(5), qos_class::utility, true},
        {thread_priority::normal(9), qos_class::utility, false},
        {thread_priority::normal(10), qos_class::background, false},
        {thread_priority::normal(19), qos_class::background, true},
        {thread_priority::fifo(1), qos_class::unspecified, false},
        {thread_priority::round_robin(99), qos_class::unspecified, false},
    }));
    CAPTURE(name_of(r.quality));
    CHECK(os::qos_for(r.wanted) == r.quality);
    CHECK((os::nearest_to(r.quality) == r.wanted) == r.exact);
    if (!r.wanted.is_real_time()) CHECK(os::qos_for(os::nearest_to(r.quality)) == r.quality);
}

TEST_CASE("on another system Apple's calls answer why not", "[os]") {
    if (os::macos_scheduling::present) return;
    const auto priority = os::macos_scheduling{}.set_priority(thread_priority::high());
    const auto quality = os::macos_scheduling{}.current_quality();
    const auto tag = os::macos_threads{}.set_affinity_tag(1);
    const auto pin = os::macos_threads{}.pin_current_thread(os::cpu_set::of(0));
    REQUIRE_FALSE(priority);
    REQUIRE_FALSE(quality);
    REQUIRE_FALSE(tag);
    REQUIRE_FALSE(pin);
    CHECK(priority.error() == errc::unsupported);
    CHECK(quality.error() == errc::unsupported);
    CHECK(tag.error() == errc::unsupported);
    CHECK(pin.error() == errc::unsupported);
    CHECK_FALSE(tag.error().cure.empty());
}
