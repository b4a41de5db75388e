/// The contract of platforms for every platform there is, and what Linux says besides.
#include "platform_contract.hpp"

#include <vm_accel/affinity/fixed_platform.hpp>
#include <vm_accel/affinity/linux_platform.hpp>

#include <tuple>

using namespace vm_accel;
using namespace affinity_contract;

using platforms = std::tuple<linux_platform, fixed_platform>;

TEMPLATE_LIST_TEST_CASE("platform contract: one topology", "[kernel]", platforms) {
    TestType platform;
    check_topology(platform);
}
TEMPLATE_LIST_TEST_CASE("platform contract: threads are where they were put", "[kernel]",
                        platforms) {
    TestType platform;
    check_pins(platform);
}
TEMPLATE_LIST_TEST_CASE("platform contract: what is allowed is told whatever is pinned", "[kernel]",
                        platforms) {
    TestType platform;
    check_following(platform);
}
TEMPLATE_LIST_TEST_CASE("platform contract: priorities are given and read back", "[kernel]",
                        platforms) {
    TestType platform;
    check_priorities(platform);
}
TEMPLATE_LIST_TEST_CASE("platform contract: utilization clamps are given and read back", "[kernel]",
                        platforms) {
    TestType platform;
    check_clamps(platform);
}
TEMPLATE_LIST_TEST_CASE("platform contract: core groups are apart", "[kernel]", platforms) {
    TestType platform;
    check_core_groups(platform);
}
