#include "manager/recording_backends.hpp"

#include <catch2/catch.hpp>

using namespace vm_accel;
using namespace recording;
using entries = std::vector<std::string>;

namespace {

// Deliberately not in the order of set-up.
using whole = acceleration_manager<machine, device, nodes, placement, ram>;

backend_state state_of(const diagnostic_report& report, std::string_view role) {
    const backend_report* found = report.find(role);
    REQUIRE(found != nullptr);
    return found->state;
}

} // namespace

TEST_CASE("backends are set up in the order of what they take, not of the pack") {
    STATIC_REQUIRE(whole::order_of_setup == std::array<std::string_view, 5>{"guest_memory", "vcpus",
                                                                            "memory", "smmu",
                                                                            "hypervisor"});
    journal().clear();
    whole manager;
    CHECK(journal().empty());
    REQUIRE(manager.setup_full_acceleration({.vcpus = 4, .numa_nodes = 2}));
    CHECK(journal() == entries{"vcpus.init", "memory.connect vcpus", "smmu.connect guest_memory",
                               "smmu.init", "hypervisor.connect smmu", "hypervisor.init",
                               "vcpus.plan 4", "memory.enable 2"});
    CHECK(manager.diagnostic_report().all_up());
    CHECK(manager.smmu().connected == &manager.guest_memory());
    CHECK(manager.is_smmu_initialized());
    CHECK(manager.is_numa_enabled());
    CHECK(manager.topology() == "one package");
}

TEST_CASE("setting up again does nothing to what is up") {
    whole manager;
    REQUIRE(manager.setup_full_acceleration());
    journal().clear();
    REQUIRE(manager.setup_full_acceleration());
    REQUIRE(manager.init_smmu());
    REQUIRE(manager.init_vcpu_affinity());
    CHECK(journal().empty());
}

TEST_CASE("setting up one backend touches only what it takes") {
    whole manager;
    journal().clear();
    SECTION("the SMMU") {
        REQUIRE(manager.init_smmu());
        CHECK(journal() == entries{"smmu.connect guest_memory", "smmu.init"});
        CHECK(state_of(manager.diagnostic_report(), "hypervisor") == backend_state::not_asked);
    }
    SECTION("the hypervisor, which takes the SMMU, which takes the memory") {
        REQUIRE(manager.setup<roles::hypervisor>());
        CHECK(journal() == entries{"smmu.connect guest_memory", "smmu.init",
                                   "hypervisor.connect smmu", "hypervisor.init"});
        CHECK(state_of(manager.diagnostic_report(), "vcpus") == backend_state::not_asked);
    }
    SECTION("a plan sets its backend up first") {
        const result<unsigned> planned = manager.configure_vcpu_affinity(3);
        REQUIRE(planned);
        CHECK(*planned == 3);
        CHECK(journal() == entries{"vcpus.init", "vcpus.plan 3"});
    }
    CHECK_FALSE(manager.is_numa_enabled());
}

namespace {

/// Counts every call of every member that a manager could use.
struct counting_nodes {
    using role = roles::memory;
    static constexpr std::string_view name = "counting_nodes";
    static inline unsigned calls = 0;

    static bool is_available() noexcept { return ++calls != 0; }
    void connect(const placement&) noexcept { ++calls; }
    result<> init() noexcept { return count(); }
    bool is_initialized() const noexcept { return ++calls != 0; }
    result<> enable(unsigned) noexcept { return count(); }
    result<> disable() noexcept { return count(); }
    bool is_enabled() const noexcept { return ++calls != 0; }
    template <class Section>
    void report(Section&) const {
        ++calls;
    }

private:
    static result<> count() noexcept {
        ++calls;
        return {};
    }
};

} // namespace

TEST_CASE("a backend that is never set up is never called") {
    counting_nodes::calls = 0;
    acceleration_manager<counting_nodes, device, placement, ram> manager;
    REQUIRE(manager.init_smmu());
    REQUIRE(manager.configure_vcpu_affinity(2));
    CHECK(manager.smmu().initialized);
    CHECK(manager.topology() == "one package");
    const diagnostic_report report = manager.diagnostic_report();
    CHECK(state_of(report, "memory") == backend_state::not_asked);
    CHECK(state_of(report, "vcpus") == backend_state::up);
    CHECK(counting_nodes::calls == 0);
    CHECK(manager.is_numa_enabled()); // the control: asking it is a call
    CHECK(counting_nodes::calls == 1);
}

TEST_CASE("a failure in the middle leaves the others up and is reported") {
    whole manager;
    manager.smmu().refuses = true;
    journal().clear();
    const result<> done = manager.setup_full_acceleration({.vcpus = 2});
    REQUIRE_FALSE(done);
    CHECK(done.error().code == errc::busy);
    CHECK(done.error().cause == "device is busy");
    CHECK_FALSE(manager.is_smmu_initialized());

    const diagnostic_report report = manager.diagnostic_report();
    CHECK_FALSE(report.all_up());
    CHECK(state_of(report, "guest_memory") == backend_state::up);
    CHECK(state_of(report, "vcpus") == backend_state::up);
    CHECK(state_of(report, "memory") == backend_state::up);
    CHECK(state_of(report, "smmu") == backend_state::failed);
    CHECK(state_of(report, "hypervisor") == backend_state::skipped);
    REQUIRE(report.find("smmu")->failure);
    CHECK(report.find("smmu")->failure->cure == "wait");
    CHECK(report.find("smmu")->failure->os_error == 16);
    CHECK(report.find("smmu")->facts.empty());
    REQUIRE(report.find("hypervisor")->failure);
    CHECK(report.find("hypervisor")->failure->cause ==
          "recorded_machine needs recorded_device, which is not up: device is busy");
    // It was tried once, and what follows a failure still happens.
    CHECK(std::ranges::count(journal(), "smmu.init") == 1);
    CHECK(std::ranges::count(journal(), "hypervisor.init") == 0);
    CHECK(std::ranges::count(journal(), "vcpus.plan 2") == 1);

    SECTION("and trying again, with the cause gone, brings the rest up") {
        manager.smmu().refuses = false;
        journal().clear();
        REQUIRE(manager.setup_full_acceleration());
        CHECK(journal() == entries{"smmu.connect guest_memory", "smmu.init",
                                   "hypervisor.connect smmu", "hypervisor.init"});
        CHECK(manager.diagnostic_report().all_up());
        CHECK_FALSE(manager.diagnostic_report().find("smmu")->failure);
    }
}

TEST_CASE("a refused change leaves the backend as it was and is reported") {
    whole manager;
    REQUIRE(manager.setup_full_acceleration({.vcpus = 4, .numa_nodes = 2}));
    const result<> done = manager.enable_numa(3);
    REQUIRE_FALSE(done);
    CHECK(done.error() == errc::out_of_range);
    CHECK(manager.is_numa_enabled());
    const result<unsigned> planned = manager.configure_vcpu_affinity(9);
    REQUIRE_FALSE(planned);

    const diagnostic_report report = manager.diagnostic_report();
    CHECK(state_of(report, "memory") == backend_state::up);
    CHECK(report.find("memory")->asked == "NUMA nodes: 3");
    CHECK(report.find("memory")->given == "refused; as before");
    REQUIRE(report.find("vcpus")->failure);
    CHECK(report.find("vcpus")->failure->cure == "ask for at most 8");
    CHECK(report.find("vcpus")->find<std::uint64_t>("planned") == 4u);
    CHECK_FALSE(report.all_up());
}

TEST_CASE("NUMA is switched off and on") {
    whole manager;
    CHECK_FALSE(manager.is_numa_enabled());
    REQUIRE(manager.enable_numa(1));
    CHECK(manager.is_numa_enabled());
    REQUIRE(manager.disable_numa());
    CHECK_FALSE(manager.is_numa_enabled());
    CHECK(state_of(manager.diagnostic_report(), "memory") == backend_state::disabled);
    REQUIRE(manager.setup_full_acceleration());
    CHECK_FALSE(manager.is_numa_enabled());
    REQUIRE(manager.enable_numa(2));
    CHECK(state_of(manager.diagnostic_report(), "memory") == backend_state::up);
}

TEST_CASE("what the composition lacks is an error at run time only where it is a number") {
    acceleration_manager<device, ram> manager;
    const result<> done = manager.setup_full_acceleration({.vcpus = 2});
    REQUIRE_FALSE(done);
    CHECK(done.error() == errc::unavailable);
    CHECK(manager.is_smmu_initialized());
    const result<> nodes_wanted = manager.setup_full_acceleration({.numa_nodes = 2});
    REQUIRE_FALSE(nodes_wanted);
    CHECK(nodes_wanted.error().cause.view().find("roles::memory") != std::string_view::npos);
}

TEST_CASE("detection asks each backend, changes nothing, and decides nothing") {
    whole manager;
    journal().clear();
    const auto found = manager.detect();
    CHECK(journal().empty());
    REQUIRE(found.size() == 5);
    CHECK(found[0].available);                 // needs nothing of the host
    CHECK_FALSE(found[2].available);           // is_available()
    CHECK_FALSE(found[2].why_not.has_value()); //
    CHECK(found[4].backend == "recorded_machine");
    CHECK_FALSE(found[4].available); // detect().available
    REQUIRE(found[4].why_not.has_value());
    CHECK(found[4].why_not->cure == "load the module");
    REQUIRE(manager.setup_full_acceleration()); // set-up decides for itself
    CHECK(manager.diagnostic_report().find("memory")->host_has_it == false);
    CHECK(manager.diagnostic_report().find("memory")->state == backend_state::up);
}

TEST_CASE("a backend that its owner has initialized is not initialized again") {
    whole manager;
    manager.vcpus().initialized = true;
    journal().clear();
    REQUIRE(manager.init_vcpu_affinity());
    CHECK(journal().empty());
    CHECK(state_of(manager.diagnostic_report(), "vcpus") == backend_state::up);
}

TEST_CASE("backends are constructed from values, in place, or by default") {
    acceleration_manager<device, ram> manager{[] { return device{"made in place"}; }, by_default};
    CHECK(manager.get<device>().label == "made in place");
    acceleration_manager<ram, device> other{by_default, std::string{"from a value"}};
    CHECK(other.by_role<roles::smmu>().label == "from a value");
    CHECK(std::as_const(other).get<device>().label == "from a value");
    acceleration_manager<device> alone{std::string{"alone"}};
    CHECK(alone.smmu().label == "alone");
    CHECK_FALSE(alone.init_smmu()); // no guest memory in the pack, and none was connected
}
