/// One contract for every platform, and what each of them does besides.
#include "own_thread.hpp"

#include <vm_accel/affinity/affinity.hpp>
#include <vm_accel/affinity/fixed_platform.hpp>
#include <vm_accel/affinity/linux_platform.hpp>
#include <vm_accel/os/threads.hpp>
#include <vm_accel/os/worker_thread.hpp>

#include <catch2/catch.hpp>

#include <atomic>
#include <cstdlib>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

using namespace vm_accel;
using affinity_threads::on_a_thread;

namespace {

/// A platform that sets something other than what it was asked for.
struct disobedient_platform : claims_nothing {
    static constexpr std::string_view name = "disobedient";
    static constexpr bool can_pin_threads = true;
    static constexpr bool pins_are_real = false;
    result<cpu_topology> load() noexcept { return make_topology({}); }
    os::thread_id current_thread() noexcept { return os::thread_id{1}; }
    result<> pin(os::thread_id, const os::cpu_set&) noexcept { return {}; }
    result<os::cpu_set> pinned(os::thread_id) noexcept { return os::cpu_set::of(7); }
};

/// A platform that has no call to pin threads, and says so.
struct pinless_platform : claims_nothing {
    static constexpr std::string_view name = "pinless";
    result<cpu_topology> load() noexcept { return make_topology({}); }
};

/// A platform that is in a bad way.
struct broken_platform : claims_nothing {
    static constexpr std::string_view name = "broken";
    result<cpu_topology> load() noexcept {
        return fail(errc::unavailable, "broken: no topology", "mend it");
    }
};

struct facts {
    std::map<std::string, std::string> seen{};
    std::string summary{};
    void given(std::string_view text) { summary = text; }
    template <class T>
    void fact(std::string_view name, const T& value) {
        std::ostringstream text;
        text << value;
        seen[std::string{name}] = text.str();
    }
};

} // namespace

using platforms = std::tuple<linux_platform, fixed_platform>;

TEMPLATE_LIST_TEST_CASE("affinity contract: nothing works before init, init works once", "[kernel]",
                        platforms) {
    affinity<TestType> a;
    CHECK_FALSE(a.is_initialized());
    CHECK(a.topology().empty());
    CHECK(a.plan(1).error() == errc::not_initialized);
    CHECK(a.configure(1).error() == errc::not_initialized);
    CHECK(a.pin_current_thread(0).error() == errc::not_initialized);
    CHECK(a.pins().empty());
    CHECK(affinity<TestType>::detect().available);

    REQUIRE(a.init());
    CHECK(a.is_initialized());
    CHECK_FALSE(a.topology().empty());
    CHECK(a.init().error() == errc::already_initialized);
    CHECK(a.is_initialized());
}

TEMPLATE_LIST_TEST_CASE("affinity contract: planning changes nothing, configuring keeps the plan",
                        "[kernel]", platforms) {
    affinity<TestType> a;
    REQUIRE(a.init());
    REQUIRE(a.plan(2));
    CHECK(a.current_plan().assignments.empty());
    const auto kept = a.configure(3);
    REQUIRE(kept);
    CHECK(a.current_plan() == *kept);
    CHECK(kept->assignments.size() == 3);
    CHECK(a.configure(0).error() == errc::invalid_argument);
    CHECK(a.configure({1, vcpu_policy::compact, 1u << 20}).error() == errc::out_of_range);
    CHECK(a.current_plan() == *kept);
    CHECK(a.plan(1)->described == !a.topology().is_this_system());
}

TEMPLATE_LIST_TEST_CASE("affinity contract: each thread is where the plan wants it", "[kernel]",
                        platforms) {
    affinity<TestType> a;
    REQUIRE(a.init());
    const auto vcpus = static_cast<unsigned>(a.topology().cpus.size()) + 1; // one too many
    const auto plan = a.configure(vcpus);
    REQUIRE(plan);
    for (unsigned v = vcpus; v-- != 0;) {
        result<> done;
        on_a_thread([&] { done = a.pin_current_thread(v); });
        if (!done && (done.error() == errc::permission_denied ||
                      done.error() == errc::unavailable)) { // a sandbox, or HWLOC_SYNTHETIC
            std::cout << "SKIP: " << done.error().cause.view() << '\n';
            return;
        }
        REQUIRE(done);
    }
    const auto pins = a.pins();
    REQUIRE(pins.size() == vcpus);
    for (unsigned v = 0; v < vcpus; ++v) {
        CHECK(pins[v].vcpu == v);
        CHECK(pins[v].as_requested());
        CHECK(pins[v].requested_cpu == plan->assignments[v].cpu);
        CHECK(pins[v].actual == os::cpu_set::of(plan->assignments[v].cpu));
    }
    CHECK(a.pin_current_thread(vcpus).error() == errc::out_of_range);
    CHECK(a.pins().size() == vcpus);
    facts report;
    a.report(report);
    CHECK(report.seen["vCPUs planned"] == std::to_string(vcpus));
    CHECK(report.seen["vCPUs pinned as planned"] == std::to_string(vcpus));
    CHECK_FALSE(report.summary.empty());

    REQUIRE(a.configure(1));
    CHECK(a.pins().empty()); // they were pins of another plan
}

TEMPLATE_LIST_TEST_CASE("affinity contract: a CPU that does not exist is an error and is kept",
                        "[kernel]", platforms) {
    affinity<TestType> a;
    REQUIRE(a.init());
    auto plan = a.plan(1);
    REQUIRE(plan);
    plan->assignments[0].cpu = GENERATE(os::cpu_set::capacity - 1, 9000u);
    const std::string number = std::to_string(plan->assignments[0].cpu);
    result<> done;
    on_a_thread([&] { done = a.pin_current_thread(*plan, 0); });
    REQUIRE_FALSE(done);
    CHECK_THAT(std::string{done.error().cause.view()}, Catch::Contains(number));
    CHECK_FALSE(done.error().cure.empty());
    REQUIRE(a.pins().size() == 1);
    CHECK_FALSE(a.pins()[0].as_requested());
    CHECK(a.pins()[0].failure->cause == done.error().cause);

    // The same vCPU pinned again replaces what was kept.
    plan->assignments[0].cpu = a.topology().cpus[0].os_index;
    on_a_thread([&] { done = a.pin_current_thread(*plan, 0); });
    CHECK(a.pins().size() == 1);
}

TEMPLATE_LIST_TEST_CASE("affinity contract: threads pin themselves at the same time", "[kernel]",
                        platforms) {
    affinity<TestType> a;
    REQUIRE(a.init());
    constexpr unsigned vcpus = 4;
    REQUIRE(a.configure(vcpus, vcpu_policy::spread));
    std::atomic<unsigned> done{0};
    auto body = [&, next = std::make_shared<std::atomic<unsigned>>(0)]() noexcept {
        if (a.pin_current_thread(next->fetch_add(1))) done.fetch_add(1);
        static_cast<void>(a.pins());
    };
    {
        std::vector<os::worker_thread> threads(vcpus);
        for (auto& thread : threads)
            REQUIRE(thread.start(body));
    }
    if (done.load() == 0 && TestType::pins_are_real) {
        std::cout << "SKIP: this process may not pin threads\n";
        return;
    }
    CHECK(done.load() == vcpus);
    CHECK(a.pins().size() == vcpus);
}

TEST_CASE("what the system set differs from the plan: mismatch, with both sides named") {
    affinity<disobedient_platform> a;
    REQUIRE(a.init());
    REQUIRE(a.configure(8));
    const auto wrong = a.pin_current_thread(2);
    REQUIRE_FALSE(wrong);
    CHECK(wrong.error() == errc::mismatch);
    CHECK_THAT(std::string{wrong.error().cause.view()},
               Catch::Contains("vCPU 2 was to be on CPU 2") && Catch::Contains("says 7"));
    REQUIRE(a.pins().size() == 1);
    CHECK(a.pins()[0].actual == os::cpu_set::of(7));
    CHECK_FALSE(a.pins()[0].as_requested());
    CHECK(a.pin_current_thread(7)); // where it puts everything
}

TEST_CASE("a platform that cannot pin still plans") {
    affinity<pinless_platform> a;
    REQUIRE(a.init());
    REQUIRE(a.configure(2));
    CHECK(a.pin_current_thread(0).error() == errc::unsupported);
    CHECK(a.pins().size() == 1);
    CHECK_THAT(std::string{affinity<pinless_platform>::detect().summary.view()},
               Catch::Contains("cannot be pinned"));
}

TEST_CASE("a platform without a topology: init passes its error on and can be tried again") {
    affinity<broken_platform> a;
    CHECK(a.init().error() == errc::unavailable);
    CHECK_FALSE(a.is_initialized());
    CHECK(a.init().error() == errc::unavailable);
    const detection found = affinity<broken_platform>::detect();
    CHECK_FALSE(found.available);
    CHECK(found.summary == "broken: no topology");
}

TEST_CASE("the fixed platform records pins of a machine that is not there") {
    const auto t = topology_from_synthetic("package:2 numa:2 core:8 pu:2");
    REQUIRE(t);
    affinity<fixed_platform> a{fixed_platform{*t}};
    REQUIRE(a.init());
    CHECK(a.topology().cpus.size() == 64);
    REQUIRE(a.configure(2, vcpu_policy::spread));
    result<> done;
    on_a_thread([&] { done = a.pin_current_thread(1); });
    REQUIRE(done);
    REQUIRE(a.platform().recorded().size() == 1);
    CHECK(a.platform().recorded()[0].cpus == os::cpu_set::of(32));
    // A pin of the same thread replaces the one before.
    on_a_thread([&] {
        done = a.pin_current_thread(0);
        if (done) done = a.pin_current_thread(1);
    });
    CHECK(done);
    CHECK(a.platform().recorded().size() == 2);
}

TEST_CASE("a plan for a described machine is never executed on a real one", "[kernel]") {
    affinity<linux_platform> real;
    REQUIRE(real.init());
    if (!real.topology().is_this_system()) {
        std::cout << "SKIP: the environment describes another machine to hwloc\n";
        return;
    }
    const auto before = os::native_threads{}.current_pin();
    const auto described = plan_vcpus(make_topology({}), {1});
    REQUIRE(described);
    CHECK(real.pin_current_thread(*described, 0).error() == errc::unavailable);
    REQUIRE(before);
    CHECK(os::native_threads{}.current_pin().value() == *before);
}
