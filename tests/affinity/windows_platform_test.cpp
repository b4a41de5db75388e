/// Windows as a platform: the contract where this is Windows, the reason elsewhere.
#include "platform_contract.hpp"

#include <vm_accel/affinity/affinity.hpp>
#include <vm_accel/affinity/windows_platform.hpp>

using namespace vm_accel;
using namespace affinity_contract;

#if defined(_WIN32)

TEST_CASE("Windows platform: the contract", "[kernel]") {
    windows_platform platform;
    SECTION("topology") { check_topology(platform); }
    SECTION("pins") { check_pins(platform); }
    SECTION("following") { check_following(platform); }
}
TEST_CASE("Windows platform: priorities are given and read back", "[kernel]") {
    windows_platform platform;
    check_priorities(platform);
}

TEST_CASE("Windows platform: vCPUs are pinned by a plan", "[kernel]") {
    affinity<windows_platform> vcpus;
    REQUIRE(vcpus.init());
    REQUIRE(vcpus.configure(2));
    on_a_thread([&] { CHECK(vcpus.pin_current_thread(0)); });
    REQUIRE(vcpus.pins().size() == 1);
    CHECK(vcpus.pins()[0].as_requested());
}

#else

TEST_CASE("Windows platform: elsewhere it claims nothing and says why") {
    windows_platform platform;
    for (const auto& refused : {platform.load(), platform.reload()}) {
        REQUIRE_FALSE(refused);
        CHECK(refused.error() == errc::unsupported);
        CHECK_FALSE(refused.error().cure.empty());
    }
    affinity<windows_platform> vcpus;
    CHECK_FALSE(vcpus.init());
    CHECK_FALSE(platform.pin({}, os::cpu_set::of(0)));
    CHECK_FALSE(platform.set_priority({}));
    CHECK_FALSE(platform.economy(true));
    static_assert(!windows_platform::can_pin_threads && !windows_platform::can_set_priority);
}

#endif
