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
