/// What adaptive moves, and that it comes to rest.
#include <vm_accel/numa/adaptive.hpp>
#include <vm_accel/topology/load.hpp>
#include <vm_accel/topology/regular.hpp>

#include <catch2/catch.hpp>

#include <map>
#include <string>
#include <tuple>
#include <vector>

using namespace vm_accel;

namespace {

constexpr std::uint64_t MiB = 1u << 20;

/// Region, from, to and MiB of each move, in order.
using moves = std::vector<std::tuple<unsigned, unsigned, unsigned, std::uint64_t>>;

moves moves_of(const migration_plan& plan) {
    moves out;
    for (const migration& m : plan)
        out.emplace_back(m.region, m.from, m.to, m.bytes / MiB);
    return out;
}

region_sample region_on(std::vector<share_of_node> mib, unsigned guest_node = any_node,
                        std::vector<vcpu_accesses> accesses = {}) {
    for (share_of_node& on : mib)
        on.share *= MiB;
    return {guest_node, std::move(mib), std::move(accesses)};
}

memory_inventory room_of(const cpu_topology& topology, std::vector<std::uint64_t> free_mib) {
    for (std::uint64_t& mib : free_mib)
        mib *= MiB;
    return {&topology, free_mib, 2 * MiB};
}

} // namespace

TEST_CASE("adaptive: memory goes where its vCPUs are") {
    // 0 and 1 are near each other, 2 and 3 as well: 10, 12 and 21.
    const cpu_topology four = make_topology({2, 2, 2, 1, 1u << 30});
    struct row {
        const char* name;
        std::vector<vcpu_residency> vcpus;
        std::vector<region_sample> regions;
        std::vector<std::uint64_t> free_mib;
        migration_limits limits;
        moves expected;
    };
    const std::vector<vcpu_residency> on_3{{0, {{3, 100}}}};
    const std::vector<vcpu_residency> on_0_and_3{{0, {{0, 100}}}, {1, {{3, 100}}}};
    const migration_limits usual{};
    const row r = GENERATE_COPY(values<row>({
        {"local", on_3, {region_on({{3, 64}})}, {64, 64, 64, 64}, usual, {}},
        {"remote", on_3, {region_on({{0, 64}})}, {64, 64, 64, 64}, usual, {{0, 0, 3, 64}}},
        {"part of it remote",
         on_3,
         {region_on({{3, 40}, {1, 24}})},
         {64, 64, 64, 64},
         usual,
         {{0, 1, 3, 24}}},
        {"the next best when full",
         on_3,
         {region_on({{0, 64}})},
         {64, 64, 64, 41},
         usual,
         {{0, 0, 3, 40}, {0, 0, 2, 24}}},
        {"not to a node without room", on_3, {region_on({{0, 8}})}, {64, 64, 0, 0}, usual, {}},
        {"off a node that is excluded",
         on_3,
         {region_on({{0, 8}})},
         {0, 0, 64, 0},
         usual,
         {{0, 0, 2, 8}}},
        {"little to gain", on_3, {region_on({{2, 64}})}, {64, 64, 64, 64}, usual, {}},
        {"little to gain, but asked for",
         on_3,
         {region_on({{2, 64}})},
         {64, 64, 64, 64},
         {256 * MiB, 19},
         {{0, 2, 3, 64}}},
        {"budget", on_3, {region_on({{0, 64}})}, {64, 64, 64, 64}, {9 * MiB}, {{0, 0, 3, 8}}},
        {"no budget", on_3, {region_on({{0, 64}})}, {64, 64, 64, 64}, {0}, {}},
        {"just moved",
         on_3,
         {{any_node, {{0, 8 * MiB}}, {}, 1}, {any_node, {{1, 8 * MiB}}, {}, 2}},
         {64, 64, 64, 64},
         usual,
         {{1, 1, 3, 8}}},
        {"to the vCPUs of its guest node",
         on_0_and_3,
         {region_on({{2, 8}}, 0), region_on({{1, 8}}, 1)},
         {64, 64, 64, 64},
         usual,
         {{0, 2, 0, 8}, {1, 1, 3, 8}}},
        {"in the middle of all",
         {{0, {{0, 60}, {3, 40}}}},
         {region_on({{2, 8}})},
         {64, 64, 64, 64},
         {256 * MiB, 0},
         {{0, 2, 0, 8}}},
        {"to who accesses it",
         on_0_and_3,
         {region_on({{0, 8}}, 0, {{0, 10}, {1, 90}})},
         {64, 64, 64, 64},
         usual,
         {{0, 0, 3, 8}}},
        {"the hotter region first",
         on_3,
         {region_on({{0, 8}}, 0, {{0, 10}}), region_on({{0, 64}}, 0, {{0, 100}}),
          region_on({{0, 8}}, 0, {{0, 90}})},
         {64, 64, 64, 64},
         {70 * MiB},
         {{2, 0, 3, 8}, {1, 0, 3, 56}, {1, 0, 2, 6}}},
        {"nobody uses it", {}, {region_on({{0, 8}})}, {64, 64, 64, 64}, usual, {}},
        {"vCPUs that never ran",
         {{0, {{3, 0}}}},
         {region_on({{0, 8}})},
         {64, 64, 64, 64},
         usual,
         {}},
        {"a region without memory", on_3, {region_on({})}, {64, 64, 64, 64}, usual, {}},
        {"less than a granule fits if it is all",
         on_3,
         {{0, {{0, 4096}}, {}}},
         {1, 1, 1, 1},
         usual,
         {{0, 0, 3, 0}}},
    }));
    CAPTURE(r.name);
    const auto plan = adaptive{}.migrate(room_of(four, r.free_mib), {r.vcpus, r.regions}, r.limits);
    REQUIRE(plan);
    CHECK(moves_of(*plan) == r.expected);
}

TEST_CASE("adaptive: the gain is the distance saved by all accesses") {
    const cpu_topology four = make_topology({2, 2, 2, 1, 1u << 30});
    const std::vector<vcpu_residency> vcpus{{0, {{3, 75}, {2, 25}}}};
    const std::vector<region_sample> regions{region_on({{0, 48}, {3, 16}}, 0, {{0, 1000}})};
    const auto plan =
        adaptive{}.migrate(room_of(four, {64, 64, 64, 64}), {vcpus, regions}, migration_limits{});
    REQUIRE(plan);
    REQUIRE(moves_of(*plan) == moves{{0, 0, 3, 48}});
    // Three quarters of the accesses go to these bytes; from 21 to 0.75 x 10 + 0.25 x 12.
    CHECK(plan->front().gain == Approx(750 * (21 - 10.5)));
    // Where nobody counted, one access for each granule of 2 MiB.
    const std::vector<region_sample> uncounted{region_on({{0, 48}, {3, 16}})};
    const auto guess =
        adaptive{}.migrate(room_of(four, {64, 64, 64, 64}), {vcpus, uncounted}, migration_limits{});
    REQUIRE(guess);
    REQUIRE(guess->size() == 1);
    CHECK(guess->front().gain == Approx(24 * (21 - 10.5)));
}

TEST_CASE("adaptive: nodes without room do not hide those behind them") {
    const cpu_topology t = make_topology({2, 20, 1, 1, 1u << 30}); // 40 nodes, 20 near each other
    const std::vector<vcpu_residency> vcpus{{0, {{0, 1}}}};
    const std::vector<region_sample> regions{region_on({{39, 8}})};
    std::vector<std::uint64_t> free_mib(40, 0);
    free_mib[17] = 8;
    const auto plan = adaptive{}.migrate(room_of(t, free_mib), {vcpus, regions});
    REQUIRE(plan);
    CHECK(moves_of(*plan) == moves{{0, 39, 17, 8}});
}

TEST_CASE("adaptive: a sample of what is not there is refused") {
    const cpu_topology two = make_topology({2, 1, 2, 1, 1u << 30});
    struct row {
        std::vector<vcpu_residency> vcpus;
        std::vector<region_sample> regions;
        const char* cause;
    };
    const row r = GENERATE(values<row>({
        {{{0, {{1, 1}}}, {0, {{2, 1}}}}, {}, "vCPU 1 ran on a node that is not there"},
        {{}, {region_on({{0, 1}, {2, 1}})}, "region 0 lies on a node that is not there"},
        {{{0, {{1, 1}}}},
         {region_on({{0, 1}}, 0, {{1, 5}})},
         "region 0 was accessed by a vCPU that is not there"},
    }));
    const auto plan =
        adaptive{}.migrate(room_of(two, {64, 64}), {r.vcpus, r.regions}, migration_limits{});
    REQUIRE_FALSE(plan);
    CHECK(plan.error() == errc::invalid_argument);
    CHECK_THAT(std::string{plan.error().cause.view()}, Catch::Contains(r.cause));
}

namespace {

/// A machine that does what adaptive proposes; every promise is checked on the way.
struct simulated_host {
    const cpu_topology& topology;
    std::vector<bool> allowed;
    std::vector<std::uint64_t> free_bytes; ///< also of nodes that are not allowed
    std::vector<vcpu_residency> vcpus;
    std::vector<region_sample> regions;

    migration_plan step(const migration_limits& limits) {
        memory_inventory inventory{&topology, free_bytes, 2 * MiB};
        for (std::size_t n = 0; n < allowed.size(); ++n)
            if (!allowed[n]) inventory.free_bytes[n] = 0;
        const migration_sample sample{vcpus, regions};
        const auto plan = adaptive{}.migrate(inventory, sample, limits);
        REQUIRE(plan);
        CHECK(*plan == *adaptive{}.migrate(inventory, sample, limits)); // deterministic
        for (region_sample& region : regions)
            if (region.rounds_in_place != ~0u) ++region.rounds_in_place;
        std::uint64_t moved = 0;
        double before = 1e300;
        for (const migration& m : *plan) {
            moved += m.bytes;
            CHECK(m.bytes != 0);
            CHECK(m.gain > 0);
            CHECK(m.from != m.to);
            CHECK(m.gain / static_cast<double>(m.bytes) <= before * 1.000001);
            before = m.gain / static_cast<double>(m.bytes);
            REQUIRE(inventory.free_bytes[m.to] >= m.bytes);
            inventory.free_bytes[m.to] -= m.bytes;
            free_bytes[m.to] -= m.bytes;
            free_bytes[m.from] += m.bytes;
            region_sample& region = regions[m.region];
            region.rounds_in_place = 0;
            for (share_of_node& on : region.on_nodes) {
                if (on.node != m.from) continue;
                REQUIRE(on.share >= m.bytes);
                on.share -= m.bytes;
            }
            bool found = false;
            for (share_of_node& on : region.on_nodes) {
                if (on.node != m.to) continue;
                on.share += m.bytes;
                found = true;
            }
            if (!found) region.on_nodes.push_back({m.to, m.bytes});
        }
        CHECK(moved <= limits.budget);
        return *plan;
    }
};

} // namespace

TEST_CASE("adaptive comes to rest when nothing changes but by its own moves") {
    const auto synthetic = topology_from_synthetic(GENERATE("package:2 numa:2 core:2 pu:1",
                                                            "package:1 numa:1 core:4 pu:1",
                                                            "package:4 numa:5 core:1 pu:1"));
    REQUIRE(synthetic);
    cpu_topology topology = *synthetic;
    const std::size_t nodes = topology.nodes.size();
    std::uint64_t state = GENERATE(1u, 2u, 3u, 4u, 5u, 6u);
    const auto next = [&](std::uint64_t below) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return (state >> 33) % below;
    };
    const auto some_node = [&] { return static_cast<unsigned>(next(nodes)); };
    // Distances with many ties, and in half of the cases not symmetric.
    if (next(2) == 0) {
        topology.distances.clear();
        for (std::size_t i = 0; i < nodes * nodes; ++i)
            topology.distances.push_back(
                i % (nodes + 1) == 0 ? 10 : static_cast<std::uint32_t>(11 + next(3)));
    }
    simulated_host host{topology, {}, {}, {}, {}};
    for (std::size_t n = 0; n < nodes; ++n) {
        host.allowed.push_back(next(5) != 0);
        host.free_bytes.push_back(next(40) * MiB);
    }
    for (unsigned v = 0; v < 6; ++v)
        host.vcpus.push_back({v % 3, {{some_node(), next(50) + 1}, {some_node(), next(50)}}});
    const bool counted = next(2) == 0;
    for (unsigned r = 0; r < 12; ++r) {
        region_sample region = region_on({{some_node(), next(30) + 1}}, r % 3);
        if (counted)
            region.accesses = {{static_cast<unsigned>(next(6)), next(1000)},
                               {static_cast<unsigned>(next(6)), next(1000)}};
        host.regions.push_back(region);
    }
    const migration_limits limits{(next(40) + 1) * MiB, GENERATE(0u, 20u),
                                  static_cast<unsigned>(next(3))};
    unsigned rounds = 0;
    unsigned quiet = 0;
    // A quiet round may be one in which all that could move has to settle.
    for (; quiet <= limits.settle_rounds + 1 && rounds < 2000; ++rounds)
        quiet = host.step(limits).empty() ? quiet + 1 : 0;
    CAPTURE(rounds, limits.budget, limits.hysteresis_percent, limits.settle_rounds);
    CHECK(quiet > limits.settle_rounds + 1);
}

TEST_CASE("adaptive: samples that waver by less than the hysteresis move nothing") {
    const cpu_topology two = make_topology({2, 1, 2, 1, 1u << 30});
    std::vector<region_sample> regions{region_on({{0, 32}})};
    for (const std::uint64_t percent : {45u, 55u, 48u, 60u, 40u}) {
        const std::vector<vcpu_residency> vcpus{{0, {{0, 100 - percent}, {1, percent}}}};
        const auto plan =
            adaptive{}.migrate(room_of(two, {64, 64}), {vcpus, regions}, migration_limits{});
        REQUIRE(plan);
        CHECK(plan->empty());
    }
}
