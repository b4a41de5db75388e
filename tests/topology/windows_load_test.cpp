/// This machine's topology where the library reads it from Windows itself.
#include <vm_accel/topology/load.hpp>

#include <catch2/catch.hpp>

#include <string>

using namespace vm_accel;

#if VM_ACCEL_HAS_WINDOWS_TOPOLOGY

TEST_CASE("Windows: the machine has the CPUs that the process may use, and memory") {
    const auto loaded = load_topology();
    REQUIRE(loaded);
    CHECK(loaded->is_this_system());
    const auto allowed = os::native_threads{}.allowed_cpus();
    REQUIRE(allowed);
    CHECK(loaded->cpu_set() == *allowed);
    CHECK(loaded->memory_node_count() >= 1);
    for (const logical_cpu& cpu : loaded->cpus)
        CHECK(cpu.node != no_index);

    const auto shared = shared_topology();
    REQUIRE(shared);
    CHECK((*shared)->cpu_set() == *allowed);
}

TEST_CASE("without hwloc its descriptions are refused with the reason") {
    for (const auto& refused :
         {topology_from_synthetic("core:2 pu:1"), topology_from_xml("<topology/>"),
          topology_from_xml_file("a.xml")}) {
        REQUIRE_FALSE(refused);
        CHECK(refused.error() == errc::unsupported);
        CHECK(refused.error().cause.view().ends_with("built without hwloc"));
    }
}

#endif
