/// macos_platform and ios_platform where they cannot do anything: on another system.
#include <vm_accel/affinity/affinity.hpp>
#include <vm_accel/affinity/ios_platform.hpp>
#include <vm_accel/affinity/macos_platform.hpp>

#include <catch2/catch.hpp>

using namespace vm_accel;

namespace {

template <class T>
void unsupported_with_reason(const result<T>& refused, std::string_view named) {
    REQUIRE_FALSE(refused);
    CHECK(refused.error() == errc::unsupported);
    CHECK(refused.error().cause.view().find(named) != std::string_view::npos);
    CHECK_FALSE(refused.error().cure.empty());
}

} // namespace

namespace {

/// A Mac as macos_platform would load it, on any system.
struct recorded_mac : claims_nothing {
    static constexpr std::string_view name = macos_platform::name;
    static constexpr std::string_view why_no_pins = macos_platform::why_no_pins;
    [[nodiscard]] result<cpu_topology> load() noexcept {
        return topology_from_sysctl(os::recorded_sysctl{
            "hw.perflevel0.physicalcpu: 8\nhw.perflevel0.logicalcpu: 8\n"
            "hw.perflevel0.cpusperl2: 4\nhw.perflevel1.physicalcpu: 2\n"
            "hw.perflevel1.logicalcpu: 2\nhw.perflevel1.cpusperl2: 2\nhw.nperflevels: 2\n"});
    }
};

} // namespace

TEST_CASE("on a Mac vCPUs are planned, performance cores first, and pins refused with the reason",
          "[affinity]") {
    affinity<recorded_mac> vcpus;
    REQUIRE(vcpus.init());
    const result<vcpu_plan> plan = vcpus.plan(9, vcpu_policy::performance_first);
    REQUIRE(plan);
    REQUIRE(plan->assignments.size() == 9);
    for (unsigned i = 0; i < 9; ++i)
        CHECK((vcpus.topology().cpus[vcpus.topology().find_cpu(plan->assignments[i].cpu)].kind ==
               cpu_kind::performance) == (i < 8));
    const result<> refused = vcpus.pin_current_thread(*plan, 0);
    REQUIRE_FALSE(refused);
    CHECK(refused.error() == errc::unsupported);
    CHECK(refused.error().cause.view().find("binds no thread") != std::string_view::npos);
}

TEST_CASE("ios_platform answers unsupported, with the reason", "[affinity]") {
    ios_platform ios;
    CHECK_FALSE(ios_platform::can_pin_threads);
    CHECK_FALSE(ios_platform::can_set_priority);
    unsupported_with_reason(ios.load(), "virtual machines");
    unsupported_with_reason(ios.pin(os::thread_id{1}, os::cpu_set::of(0)), "pinning");
    unsupported_with_reason(ios.set_priority(os::thread_priority::high()), "priorities");
    affinity<ios_platform> vcpus;
    const result<> begun = vcpus.init();
    unsupported_with_reason(begun, "ios platform");
}

TEST_CASE("macos_platform says so on another system", "[affinity]") {
    if (macos_platform::present) return;
    macos_platform macos;
    CHECK_FALSE(macos_platform::can_pin_threads);
    unsupported_with_reason(macos.load(), "not macOS");
    unsupported_with_reason(macos.core_kinds(), "not macOS");
    unsupported_with_reason(macos.pin(os::thread_id{1}, os::cpu_set::of(0)), "not macOS");
    unsupported_with_reason(macos.set_affinity_tag(1), "not macOS");
    affinity<macos_platform> vcpus;
    unsupported_with_reason(vcpus.init(), "not macOS");
}
