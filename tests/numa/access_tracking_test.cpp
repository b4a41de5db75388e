/// Local access rates and the matrix behind them, and which source each figure has.
#include <vm_accel/numa/access_tracking.hpp>
#include <vm_accel/topology/regular.hpp>

#include <catch2/catch.hpp>

#include <optional>
#include <sstream>
#include <vector>

using namespace vm_accel;

namespace {
constexpr std::uint64_t MiB = 1u << 20;
constexpr access_source estimate = access_source::placement_estimate;
constexpr access_source none = access_source::none;
} // namespace

TEST_CASE("local access rates, estimated from where vCPUs ran and memory lies") {
    struct row {
        const char* name;
        std::vector<vcpu_residency> vcpus;
        std::vector<region_sample> regions;
        std::vector<double> vcpu_rates; ///< -1: unknown
        std::vector<double> region_rates;
        double all;
    };
    const row r = GENERATE(values<row>({
        {"all local", {{0, {{1, 7}}}}, {{0, {{1, 64 * MiB}}}}, {1}, {1}, 1},
        {"all remote", {{0, {{1, 7}}}}, {{0, {{0, 64 * MiB}}}}, {0}, {0}, 0},
        {"a quarter of the memory", {{0, {{1, 7}}}}, {{0, {{0, 48}, {1, 16}}}}, {.25}, {.25}, .25},
        {"a quarter of the time", {{0, {{0, 25}, {1, 75}}}}, {{0, {{0, 64}}}}, {.25}, {.25}, .25},
        {"its own guest node's memory only",
         {{0, {{0, 10}}}, {1, {{1, 30}}}},
         {{0, {{0, 64}}}, {1, {{0, 64}}}},
         {1, 0},
         {1, 0},
         .25},
        {"memory of everybody counts for each",
         {{0, {{0, 10}}}, {1, {{1, 10}}}},
         {{any_node, {{0, 50}}}, {0, {{0, 50}}}, {1, {{1, 50}}}},
         {1, .5},
         {.5, 1, 1},
         .75},
        {"a vCPU of no guest node uses all",
         {{any_node, {{0, 10}}}},
         {{0, {{0, 30}}}, {1, {{1, 10}}}},
         {.75},
         {1, 0},
         .75},
        {"nobody ran", {{0, {}}}, {{0, {{0, 64}}}}, {-1}, {-1}, -1},
        {"no memory yet", {{0, {{0, 10}}}}, {{0, {}}}, {-1}, {-1}, -1},
        {"nothing at all", {}, {}, {}, {}, -1},
    }));
    CAPTURE(r.name);
    const cpu_topology two = make_topology({2, 1, 2, 1, 1u << 30});
    const access_tracking t = track_accesses(two, {r.vcpus, r.regions});
    REQUIRE(t.vcpus.size() == r.vcpu_rates.size());
    REQUIRE(t.regions.size() == r.region_rates.size());
    const auto check = [](const local_access_rate& given, double expected) {
        CHECK(given.source == (expected < 0 ? none : estimate));
        CHECK(given.rate == Approx(std::max(expected, 0.0)));
    };
    for (std::size_t i = 0; i < t.vcpus.size(); ++i)
        check(t.vcpus[i], r.vcpu_rates[i]);
    for (std::size_t i = 0; i < t.regions.size(); ++i)
        check(t.regions[i], r.region_rates[i]);
    check(t.all, r.all);
    // The matrix tells the same.
    double local = 0;
    double total = 0;
    for (unsigned from = 0; from < 2; ++from)
        for (unsigned to = 0; to < 2; ++to) {
            total += t.share(from, to);
            local += from == to ? t.share(from, to) : 0;
        }
    CHECK(total == Approx(r.all < 0 ? 0 : 1));
    CHECK(local == Approx(std::max(r.all, 0.0)));
    CHECK(t.mean_distance == Approx(r.all < 0 ? 0 : 10 * local + 21 * (total - local)));
    CHECK(t.share(0, 2) == 0);
}

TEST_CASE("the matrix says from where to where") {
    const cpu_topology four = make_topology({2, 2, 2, 1, 1u << 30});
    const std::vector<vcpu_residency> vcpus{{0, {{0, 60}, {2, 20}}}, {1, {{3, 20}}}};
    const std::vector<region_sample> regions{{0, {{0, 30}, {1, 10}}}, {1, {{3, 8}}}};
    const access_tracking t = track_accesses(four, {vcpus, regions});
    CHECK(t.share(0, 0) == Approx(.45));
    CHECK(t.share(0, 1) == Approx(.15));
    CHECK(t.share(2, 0) == Approx(.15));
    CHECK(t.share(2, 1) == Approx(.05));
    CHECK(t.share(3, 3) == Approx(.2));
    CHECK(t.share(3, 0) == 0);
}

TEST_CASE("counted accesses take the place of the estimate, and say so") {
    const cpu_topology two = make_topology({2, 1, 2, 1, 1u << 30});
    const std::vector<vcpu_residency> vcpus{{0, {{0, 10}}}, {1, {{1, 10}}}};
    const std::vector<region_sample> regions{{0, {{0, 50}, {1, 50}}}, {1, {{1, 50}}}};
    using counted = std::vector<std::optional<os::counted_accesses>>;
    const counted first_only{os::counted_accesses{900, 100}, std::nullopt};
    const access_tracking t = track_accesses(two, {vcpus, regions}, first_only);
    CHECK(t.vcpus[0] == local_access_rate{.9, access_source::hardware_counter});
    CHECK(t.vcpus[1] == local_access_rate{1, estimate});
    CHECK(t.all.source == estimate); // not all of it was counted
    CHECK(t.all.rate == Approx(.95));
    CHECK(t.share(0, 0) == Approx(.45));
    CHECK(t.share(0, 1) == Approx(.05));
    CHECK(t.regions[0].source == estimate);

    const counted both{os::counted_accesses{900, 100}, os::counted_accesses{1, 3}};
    const access_tracking all = track_accesses(two, {vcpus, regions}, both);
    CHECK(all.all == local_access_rate{.575, access_source::hardware_counter});
    // Counters that saw nothing say nothing.
    const counted nothing{os::counted_accesses{}, os::counted_accesses{1, 3}};
    CHECK(track_accesses(two, {vcpus, regions}, nothing).vcpus[0].source == estimate);
}

TEST_CASE("CPUs of a node without memory have no local accesses, but a distance") {
    cpu_topology two = make_topology({1, 2, 2, 1, 1u << 30});
    two.nodes[1].memory_bytes = 0;
    const std::vector<vcpu_residency> vcpus{{0, {{1, 10}}}};
    const std::vector<region_sample> regions{{0, {{0, 50}}}};
    const access_tracking t = track_accesses(two, {vcpus, regions});
    CHECK(t.all == local_access_rate{0, estimate});
    CHECK(t.mean_distance == Approx(12));
}

TEST_CASE("a rate in words names its source") {
    const auto [rate, text] = GENERATE(table<local_access_rate, const char*>({
        {{.984, estimate}, "98.4 % (placement estimate)"},
        {{1, access_source::hardware_counter}, "100.0 % (hardware counter)"},
        {{0, estimate}, "0.0 % (placement estimate)"},
        {{.5, none}, "unknown"},
    }));
    std::ostringstream out;
    out << rate;
    CHECK(out.str() == text);
}
