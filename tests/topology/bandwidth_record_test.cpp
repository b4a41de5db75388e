/// Bandwidths that were measured come back from hwloc's own attributes.
#include <vm_accel/topology/bandwidth_record.hpp>
#include <vm_accel/topology/load.hpp>

#include <catch2/catch.hpp>

#include <string>

using namespace vm_accel;

#if VM_ACCEL_HAS_HWLOC

TEST_CASE("bandwidths go into hwloc's attributes and come back", "[kernel][numa]") {
    const auto machine = load_topology();
    REQUIRE(machine);
    cpu_topology measured = *machine;
    for (std::size_t i = 0; i < measured.nodes.size(); ++i)
        measured.nodes[i].bandwidth = measured.nodes[i].memory_bytes == 0 ? 0 : 10000 + 100 * i;
    const auto xml = record_bandwidths(measured);
    REQUIRE(xml);
    CHECK_THAT(*xml, Catch::Contains("Bandwidth") && Catch::Contains("10000"));
    cpu_topology later = *machine;
    REQUIRE(recall_bandwidths(later, *xml));
    for (std::size_t i = 0; i < later.nodes.size(); ++i)
        if (measured.nodes[i].bandwidth != 0)
            CHECK(later.nodes[i].bandwidth == measured.nodes[i].bandwidth);

    SECTION("a node that has changed is another machine") {
        cpu_topology changed = *machine;
        changed.nodes[0].memory_bytes *= 2;
        changed.nodes[0].bandwidth = 7;
        const auto recalled = recall_bandwidths(changed, *xml);
        REQUIRE_FALSE(recalled);
        CHECK(recalled.error() == errc::mismatch);
        CHECK(changed.nodes[0].bandwidth == 7);
    }
    SECTION("a node that was not there") {
        cpu_topology more = *machine;
        more.nodes.push_back({999, 1u << 30});
        CHECK(recall_bandwidths(more, *xml).error() == errc::mismatch);
    }
    SECTION("no XML") { CHECK_FALSE(recall_bandwidths(later, "<nothing/>")); }
}

#endif
