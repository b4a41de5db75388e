/// The manager with the backends that the library ships.
#include <vm_accel/affinity/affinity.hpp>
#include <vm_accel/affinity/fixed_platform.hpp>
#include <vm_accel/guest/region_map.hpp>
#include <vm_accel/hypervisor/kvm.hpp>
#include <vm_accel/hypervisor/software.hpp>
#include <vm_accel/manager/acceleration_manager.hpp>
#include <vm_accel/numa/local_first.hpp>
#include <vm_accel/numa/numa_allocator.hpp>
#include <vm_accel/smmu/caches/set_associative.hpp>
#include <vm_accel/smmu/host/bitmap_streams.hpp>
#include <vm_accel/smmu/smmu.hpp>

#include <catch2/catch.hpp>

#include <iostream>
#include <memory>
#include <new>
#include <type_traits>

using namespace vm_accel;

namespace {

struct powers_off {
    template <class Port>
    exit_reason operator()(Port&) noexcept {
        return exit_reason::shutdown;
    }
};

using device = smmu<set_associative<16, 4>, bitmap_streams<64>>;
using placement = affinity<fixed_platform>;
using nodes = numa_allocator<local_first>;
using machine = software<powers_off>;
using composed = acceleration_manager<machine, device, nodes, placement, region_map>;

// Composition adds no indirection: a member of a member, and a bounded account.
static_assert(!std::is_polymorphic_v<composed>);
static_assert(sizeof(composed) <= sizeof(machine) + sizeof(device) + sizeof(nodes) +
                                      sizeof(placement) + sizeof(region_map) +
                                      2 * 5 * alignof(composed) + 5 * composed::bytes_per_backend +
                                      composed::bytes_fixed);
static_assert(std::is_same_v<decltype(std::declval<composed&>().smmu()), device&>);
static_assert(composed::order_of_setup == std::array<std::string_view, 5>{"guest_memory", "vcpus",
                                                                          "memory", "smmu",
                                                                          "hypervisor"});

} // namespace

TEST_CASE("every backend of the library composes, sets up and reports") {
    const auto manager = std::make_unique<composed>();
    REQUIRE(manager->setup_full_acceleration({.vcpus = 2}));
    CHECK(manager->is_smmu_initialized());
    CHECK(manager->topology().cpus.size() == 8);
    CHECK(manager->vcpus().current_plan().assignments.size() == 2);

    const result<numa_allocator<local_first>::region_type> ram =
        manager->memory().allocate({.bytes = 2u << 20});
    REQUIRE(ram);
    REQUIRE(manager->smmu().add_memory(pa{0x4000'0000}, ram->data(), ram->bytes()));
    const result<stream_id> stream =
        manager->smmu().attach_device("disk", {pa{0x4000'0000}, ram->bytes()});
    REQUIRE(stream);
    REQUIRE(manager->vcpus().pin_current_thread(1));
    const auto vm = manager->hypervisor().create_vm();
    REQUIRE(vm);

    const diagnostic_report report = manager->diagnostic_report();
    CHECK(report.all_up());
    CHECK(report.find("guest_memory")->find<std::uint64_t>("regions") == 1u);
    CHECK(report.find("guest_memory")->find<std::uint64_t>("bytes") == 2u << 20);
    CHECK(report.find("smmu")->find<std::uint64_t>("devices") == 1u);
    CHECK(report.find("smmu")->find<double>("hit rate") == 0.0);
    CHECK(report.find("vcpus")->asked == "vCPUs: 2");
    CHECK(report.find("vcpus")->given == "2 vCPUs planned on 8 CPUs, 1 pinned as planned");
    CHECK(report.find("smmu")->given == "1 devices attached");
    CHECK(report.find("memory")->given.view().find("2 MiB") != std::string_view::npos);
    CHECK(report.find("vcpus")->find<std::uint64_t>("vCPUs pinned as planned") == 1u);
    CHECK(report.find("memory")->find<std::uint64_t>("regions allocated") == 1u);
    CHECK(report.find("hypervisor")->find<std::uint64_t>("guest address bits") == 64u);
    CHECK(report.to_table().find("hit rate") != std::string::npos);
    CHECK(report.to_json().find(R"("MSI messages":0)") != std::string::npos);
    REQUIRE(manager->smmu().remove_memory(pa{0x4000'0000}));
}

TEST_CASE("what real backends refuse reaches the report with cause and cure") {
    SECTION("more NUMA nodes than there are") {
        acceleration_manager<nodes> manager;
        const result<> done = manager.enable_numa(4096);
        REQUIRE_FALSE(done);
        CHECK(done.error() == errc::out_of_range);
        CHECK(manager.is_numa_enabled()); // as set-up left it
        REQUIRE(manager.disable_numa());
        CHECK_FALSE(manager.is_numa_enabled());
    }
    SECTION("no vCPUs at all") {
        acceleration_manager<placement> manager;
        const result<vcpu_plan> plan = manager.configure_vcpu_affinity(0);
        REQUIRE_FALSE(plan);
        CHECK_FALSE(plan.error().cure.empty());
    }
    SECTION("a hypervisor that is not there") {
        acceleration_manager<kvm, region_map> manager{std::string_view{"/dev/no-such-kvm"},
                                                      by_default};
        const result<> done = manager.setup_full_acceleration();
        REQUIRE_FALSE(done);
        const diagnostic_report report = manager.diagnostic_report();
        CHECK(report.find("guest_memory")->state == backend_state::up);
        CHECK(report.find("hypervisor")->state == backend_state::failed);
        CHECK(report.to_table().find("/dev/no-such-kvm") != std::string::npos);
        CHECK(report.to_table().find("cure:") != std::string::npos);
    }
    SECTION("an SMMU without guest memory") {
        const auto manager = std::make_unique<acceleration_manager<device>>();
        const result<> done = manager->init_smmu();
        REQUIRE_FALSE(done);
        CHECK(done.error() == errc::not_initialized);
        CHECK_FALSE(manager->is_smmu_initialized());
    }
}

TEST_CASE("detection of the real backends changes nothing") {
    const auto manager = std::make_unique<composed>();
    const auto found = manager->detect();
    REQUIRE(found.size() == 5);
    for (const backend_detection& one : found)
        INFO(one.backend << ": " << one.available << ' ' << one.summary.view());
    CHECK(found[4].available); // the software hypervisor is everywhere
    CHECK_FALSE(manager->is_smmu_initialized());
    CHECK(manager->diagnostic_report().find("smmu")->state == backend_state::not_asked);
}
