/// The machine of examples/macos_hvf on a model of Apple's framework: the guest's own
/// instructions, executed one by one, drive the SMMU.
#include "../../examples/macos_hvf/machine.hpp"
#include "../hypervisor/hvf_framework.hpp"

#include <catch2/catch.hpp>

using namespace vm_accel;

TEST_CASE("macos_hvf: the guest sets up the SMMU, and its device reads through it",
          "[examples][hvf]") {
    hvf_framework::start_afresh();
    auto backend = basic_hvf<hvf_framework::arm64_calls>::open();
    REQUIRE(backend);
    const auto seen = macos_machine::run(*backend);
    REQUIRE(seen);
    CHECK(name_of(seen->ended) == "shutdown");
    CHECK(seen->printed == payload::greeting);
    CHECK(seen->stray == 0);
    CHECK(seen->idr0 != 0);
    CHECK(seen->cr0_acknowledged == 9);
    CHECK(seen->commands_consumed == 2);
    CHECK(seen->finished);
    CHECK(seen->device_reads);
    CHECK(seen->device_confined);
    CHECK(seen->good());
}

TEST_CASE("macos_hvf: without the entitlement the refusal comes through", "[examples][hvf]") {
    hvf_framework::start_afresh();
    hvf_framework::the_world().load_fails = os::hvf_abi::status::denied;
    auto backend = basic_hvf<hvf_framework::arm64_calls>::open();
    REQUIRE(backend);
    const auto refused = macos_machine::run(*backend);
    REQUIRE_FALSE(refused);
    CHECK(refused.error() == errc::permission_denied);
}
