/// One contract for every strategy, and what each of them decides.
#include <vm_accel/numa/adaptive.hpp>
#include <vm_accel/numa/bandwidth_optimized.hpp>
#include <vm_accel/numa/load_balanced.hpp>
#include <vm_accel/numa/local_first.hpp>
#include <vm_accel/topology/load.hpp>
#include <vm_accel/topology/regular.hpp>

#include <catch2/catch.hpp>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

using namespace vm_accel;

namespace {

constexpr std::uint64_t MiB = 1u << 20;

cpu_topology odd_nodes() {
    const auto loaded = topology_from_xml_file(
        (std::string{VM_ACCEL_TEST_DATA} + "/topology/odd_nodes.xml").c_str());
    REQUIRE(loaded);
    return *loaded;
}

/// Node and MiB of each chunk, in order.
using pieces = std::vector<std::pair<unsigned, std::uint64_t>>;

pieces pieces_of(const memory_plan& plan) {
    pieces out;
    for (const memory_chunk& chunk : plan)
        out.emplace_back(chunk.node, chunk.bytes / MiB);
    return out;
}

memory_inventory inventory_of(const cpu_topology& topology, std::vector<std::uint64_t> free_mib) {
    for (std::uint64_t& mib : free_mib)
        mib *= MiB;
    return {&topology, free_mib, 2 * MiB};
}

} // namespace

using strategies = std::tuple<local_first, load_balanced, bandwidth_optimized, adaptive>;

TEMPLATE_LIST_TEST_CASE("strategy contract: every byte once, in order, nowhere without room", "",
                        strategies) {
    const cpu_topology four = make_topology({2, 2, 2, 1, 1u << 30});
    const cpu_topology odd = odd_nodes();
    struct row {
        const char* name;
        std::vector<std::uint64_t> free_mib;
        std::vector<memory_request> requests;
    };
    const row r = GENERATE(values<row>({
        {"four", {100, 100, 100, 100}, {{10 * MiB}}},
        {"four", {100, 100, 100, 100}, {{400 * MiB}}},
        {"four", {100, 100, 100, 100}, {{401 * MiB}}},
        {"four", {100, 100, 100, 100}, {{~std::uint64_t{0} / 4}}},
        {"four", {7, 0, 5, 1}, {{4096}, {9 * MiB + 4096}, {4096}}},
        {"four", {0, 0, 0, 64}, {{10 * MiB, 0}, {10 * MiB, 1}, {10 * MiB, 2}}},
        {"four", {3, 3, 3, 3}, {{1 * MiB, 2}, {9 * MiB, 2}, {5 * MiB, any_node, 1}}},
        {"four", {50}, {{10 * MiB, 3}}},
        {"four", {9, 9, 9, 9}, {}},
        {"odd", {8, 4, 0, 8, 8}, {{20 * MiB, any_node, 2}, {6 * MiB, 2}}},
        {"odd", {0, 4, 0, 0, 0}, {{3 * MiB}}},
    }));
    const cpu_topology& topology = r.name == std::string{"odd"} ? odd : four;
    const memory_inventory inventory = inventory_of(topology, r.free_mib);
    const auto plan = TestType{}.plan(inventory, r.requests);
    REQUIRE(plan);
    CHECK(*plan == *TestType{}.plan(inventory, r.requests)); // deterministic
    std::vector<std::uint64_t> given(r.requests.size(), 0);
    std::vector<std::uint64_t> bound(topology.nodes.size(), 0);
    unsigned last = 0;
    for (std::size_t i = 0; i < plan->size(); ++i) {
        const memory_chunk& chunk = (*plan)[i];
        CHECK(chunk.request >= last);
        last = chunk.request;
        REQUIRE(chunk.request < r.requests.size());
        REQUIRE(chunk.node < r.free_mib.size());
        CHECK(chunk.bytes != 0);
        CHECK(r.free_mib[chunk.node] != 0);
        CHECK_FALSE(chunk.reason.empty());
        // Pieces end on granules but for the last of a request.
        given[chunk.request] += chunk.bytes;
        if (given[chunk.request] != r.requests[chunk.request].bytes)
            CHECK(given[chunk.request] % inventory.granule == 0);
        if (chunk.mode == os::bind_mode::bind) bound[chunk.node] += chunk.bytes;
    }
    for (std::size_t i = 0; i < given.size(); ++i)
        CHECK(given[i] == r.requests[i].bytes);
    for (std::size_t n = 0; n < r.free_mib.size(); ++n)
        CHECK(bound[n] <= r.free_mib[n] * MiB);
}

TEMPLATE_LIST_TEST_CASE("strategy contract: no node with memory is an error", "", strategies) {
    const cpu_topology two = make_topology({2, 1, 2, 1, 0});
    const std::vector<memory_request> requests{{MiB}};
    CHECK(TestType{}.plan(inventory_of(two, {0, 0}), requests).error() == errc::unavailable);
    CHECK(TestType{}.plan(inventory_of(two, {}), requests).error() == errc::unavailable);
    CHECK(TestType{}.plan(inventory_of(cpu_topology{}, {}), requests).error() == errc::unavailable);
}

TEMPLATE_LIST_TEST_CASE("strategy contract: a node that is asked for gets what fits", "",
                        strategies) {
    const cpu_topology four = make_topology({2, 2, 2, 1, 1u << 30});
    const auto plan = TestType{}.plan(inventory_of(four, {64, 64, 64, 64}),
                                      std::vector<memory_request>{{48 * MiB, 2}, {4 * MiB, 0}});
    REQUIRE(plan);
    CHECK(pieces_of(*plan) == pieces{{2, 48}, {0, 4}});
}

TEMPLATE_LIST_TEST_CASE("strategy contract: what exceeds all nodes is preferred, never bound", "",
                        strategies) {
    const cpu_topology two = make_topology({2, 1, 2, 1, 1u << 30});
    const auto plan =
        TestType{}.plan(inventory_of(two, {10, 20}), std::vector<memory_request>{{35 * MiB}});
    REQUIRE(plan);
    std::uint64_t preferred = 0;
    for (const memory_chunk& chunk : *plan)
        preferred += chunk.mode == os::bind_mode::prefer ? chunk.bytes : 0;
    CHECK(preferred == 5 * MiB);
}

TEST_CASE("local_first: the node itself, then by distance") {
    const cpu_topology four = make_topology({2, 2, 2, 1, 1u << 30}); // 0 and 1 near, 2 and 3 near
    struct row {
        std::vector<std::uint64_t> free_mib;
        memory_request request;
        pieces expected;
    };
    const row r = GENERATE_COPY(values<row>({
        {{64, 64, 64, 64}, {32 * MiB, any_node, 3}, {{3, 32}}},
        {{64, 64, 64, 64}, {32 * MiB, 1, 3}, {{1, 32}}},
        {{64, 64, 64, 64}, {100 * MiB, any_node, 1}, {{1, 64}, {0, 36}}},
        {{64, 64, 64, 64}, {200 * MiB, any_node, 2}, {{2, 64}, {3, 64}, {0, 64}, {1, 8}}},
        {{64, 0, 64, 64}, {16 * MiB, 1}, {{0, 16}}},
        {{3, 64, 64, 64}, {10 * MiB, 0}, {{0, 2}, {1, 8}}}, // whole granules of a nearly full node
        {{3, 64, 64, 64}, {3 * MiB, 0}, {{0, 3}}},
    }));
    const auto plan =
        local_first{}.plan(inventory_of(four, r.free_mib), std::vector<memory_request>{r.request});
    REQUIRE(plan);
    CHECK(pieces_of(*plan) == r.expected);
}

TEST_CASE("local_first: CPUs of a node without memory get the nearest memory, and it is said") {
    const cpu_topology t = odd_nodes();
    const unsigned bare = t.find_node(1);
    std::vector<std::uint64_t> free_mib;
    for (const numa_node& node : t.nodes)
        free_mib.push_back(node.memory_bytes / MiB);
    const auto plan = local_first{}.plan(inventory_of(t, free_mib),
                                         std::vector<memory_request>{{64 * MiB, any_node, bare}});
    REQUIRE(plan);
    REQUIRE(plan->size() == 1);
    CHECK(t.nodes[(*plan)[0].node].os_index == 0); // at distance 12; node 4 is at 28
    CHECK_THAT(std::string{(*plan)[0].reason.view()},
               Catch::Contains("distance 12 from node 1") && Catch::Contains("has no memory"));
}

TEST_CASE("load_balanced: all nodes keep equally much free") {
    const cpu_topology four = make_topology({2, 2, 2, 1, 1u << 30});
    struct row {
        std::vector<std::uint64_t> free_mib;
        std::vector<memory_request> requests;
        pieces expected;
    };
    const row r = GENERATE_COPY(values<row>({
        {{64, 64, 64, 64}, {{32 * MiB}}, {{0, 8}, {1, 8}, {2, 8}, {3, 8}}},
        {{64, 100, 64, 64}, {{20 * MiB}}, {{1, 20}}},
        {{64, 100, 64, 64}, {{44 * MiB}}, {{1, 38}, {0, 2}, {2, 2}, {3, 2}}},
        {{10, 40, 30, 20}, {{30 * MiB}}, {{1, 20}, {2, 10}}},
        {{64, 64, 64, 64}, {{2 * MiB}, {2 * MiB}, {2 * MiB}}, {{0, 2}, {1, 2}, {2, 2}}},
        {{64, 64, 64, 64}, {{4096}}, {{0, 0}}},
        {{64, 64, 0, 0}, {{4 * MiB}}, {{0, 2}, {1, 2}}},
        {{64, 64, 64, 64}, {{60 * MiB, 1}, {12 * MiB}}, {{1, 60}, {0, 4}, {2, 4}, {3, 4}}},
        {{64, 64, 64, 64}, {{60 * MiB, 0}, {2 * MiB}}, {{0, 60}, {1, 2}}},
        {{3, 2, 0, 0}, {{1 * MiB}, {1 * MiB}, {1 * MiB}}, {{0, 1}, {0, 1}, {1, 1}}},
        {{8, 8, 8, 8}, {{12 * MiB, 3}}, {{3, 8}, {0, 2}, {1, 2}}},
    }));
    const auto plan = load_balanced{}.plan(inventory_of(four, r.free_mib), r.requests);
    REQUIRE(plan);
    CHECK(pieces_of(*plan) == r.expected);
}

TEST_CASE("load_balanced: memory without CPUs serves when no other has room") {
    const cpu_topology t = odd_nodes();
    const unsigned special = t.find_node(4);
    std::vector<std::uint64_t> free_mib(t.nodes.size(), 0);
    free_mib[t.find_node(0)] = 10;
    free_mib[special] = 100;
    const auto bytes_there = [&](std::uint64_t mib) {
        const auto plan = load_balanced{}.plan(inventory_of(t, free_mib),
                                               std::vector<memory_request>{{mib * MiB}});
        REQUIRE(plan);
        std::uint64_t total = 0;
        for (const memory_chunk& chunk : *plan)
            total += chunk.node == special ? chunk.bytes : 0;
        return total / MiB;
    };
    CHECK(bytes_there(8) == 0);
    CHECK(bytes_there(10) == 0);
    CHECK(bytes_there(30) == 20);
}

TEST_CASE("load_balanced is what placing granule by granule gives") {
    const cpu_topology eight = make_topology({4, 2, 1, 1, 1u << 30});
    std::uint64_t state = GENERATE(1u, 2u, 3u, 4u, 5u, 6u, 7u, 8u);
    const auto next = [&](std::uint64_t below) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return (state >> 33) % below;
    };
    std::vector<std::uint64_t> room; // in granules of 2 MiB
    for (unsigned i = 0; i < 8; ++i)
        room.push_back(next(200) + 1);
    std::vector<std::uint64_t> free_mib;
    for (const std::uint64_t granules : room)
        free_mib.push_back(2 * granules);
    std::vector<memory_request> requests;
    std::vector<std::uint64_t> expected(8, 0);
    for (unsigned i = 0; i < 5; ++i) {
        const std::uint64_t granules = next(60) + 1;
        requests.push_back({granules * 2 * MiB});
        for (std::uint64_t g = 0; g < granules; ++g) {
            const auto most = std::max_element(room.begin(), room.end());
            if (*most == 0) break;
            --*most;
            ++expected[static_cast<std::size_t>(most - room.begin())];
        }
    }
    const auto plan = load_balanced{}.plan(inventory_of(eight, free_mib), requests);
    REQUIRE(plan);
    std::vector<std::uint64_t> given(8, 0);
    for (const memory_chunk& chunk : *plan)
        if (chunk.mode == os::bind_mode::bind) given[chunk.node] += chunk.bytes / (2 * MiB);
    // Which of equally full nodes is first may differ by a granule at the end.
    for (unsigned i = 0; i < 8; ++i)
        CHECK(std::max(given[i], expected[i]) - std::min(given[i], expected[i]) <= 1);
}

namespace {

/// Four nodes of 16 CPUs in all, with these bandwidths.
cpu_topology with_bandwidths(std::vector<std::uint64_t> bandwidths) {
    cpu_topology topology = make_topology({2, 2, 2, 1, 1u << 30});
    for (std::size_t i = 0; i < bandwidths.size(); ++i)
        topology.nodes[i].bandwidth = bandwidths[i];
    return topology;
}

/// Granules of 2 MiB bound to each node.
std::vector<std::uint64_t> granules_of(const memory_plan& plan, std::size_t nodes) {
    std::vector<std::uint64_t> given(nodes, 0);
    for (const memory_chunk& chunk : plan)
        if (chunk.mode == os::bind_mode::bind) given[chunk.node] += chunk.bytes / (2 * MiB);
    return given;
}

} // namespace

TEST_CASE("bandwidth_optimized: nodes get granules in the ratio of their bandwidths") {
    struct row {
        const char* name;
        std::vector<std::uint64_t> bandwidths;
        std::vector<std::uint64_t> free_mib;
        std::vector<memory_request> requests;
        std::vector<std::uint64_t> granules;
    };
    const row r = GENERATE(values<row>({
        {"equal", {9, 9, 9, 9}, {64, 64, 64, 64}, {{32 * MiB}}, {4, 4, 4, 4}},
        {"ratio", {300, 100, 100, 100}, {64, 64, 64, 64}, {{60 * MiB}}, {15, 5, 5, 5}},
        {"large", {~0ull, ~0ull / 3, 1, 1}, {512, 512, 512, 512}, {{16 * MiB}}, {6, 2, 0, 0}},
        {"rounding", {3, 2, 2, 1}, {64, 64, 64, 64}, {{10 * MiB}}, {3, 1, 1, 0}},
        {"none known", {}, {64, 64, 64, 64}, {{24 * MiB}}, {3, 3, 3, 3}},
        {"some unknown", {400, 200, 0, 0}, {64, 64, 64, 64}, {{20 * MiB}}, {4, 2, 2, 2}},
        {"full", {300, 100, 100, 100}, {4, 64, 64, 64}, {{64 * MiB}}, {2, 10, 10, 10}},
        {"two full", {400, 200, 100, 100}, {6, 6, 64, 64}, {{40 * MiB}}, {3, 3, 7, 7}},
        {"nearly full", {100, 100, 100, 100}, {3, 64, 64, 1}, {{30 * MiB}}, {1, 7, 7, 0}},
        {"excluded", {300, 100, 100, 100}, {0, 64, 0, 64}, {{24 * MiB}}, {0, 6, 0, 6}},
        {"one node", {300}, {64}, {{24 * MiB}}, {12, 0, 0, 0}},
        {"beyond", {3, 1, 1, 1}, {8, 2, 2, 2}, {{20 * MiB}}, {4, 1, 1, 1}},
        {"asked for", {3, 1, 1, 1}, {64, 64, 64, 64}, {{8 * MiB, 1}, {24 * MiB}}, {6, 6, 2, 2}},
        {"asked, full", {3, 1, 1, 1}, {64, 4, 64, 64}, {{24 * MiB, 1}}, {6, 2, 2, 2}},
        {"no such node", {3, 1, 1, 1}, {64, 64, 64, 64}, {{12 * MiB, 7}}, {3, 1, 1, 1}},
    }));
    CAPTURE(r.name);
    const cpu_topology topology = with_bandwidths(r.bandwidths);
    const auto plan = bandwidth_optimized{}.plan(inventory_of(topology, r.free_mib), r.requests);
    REQUIRE(plan);
    CHECK(granules_of(*plan, 4) == r.granules);
}

TEST_CASE("bandwidth_optimized: many small requests keep the ratio") {
    const cpu_topology topology = with_bandwidths({400, 200, 100, 100});
    const std::uint64_t bytes = GENERATE(2 * MiB, 4096u);
    const std::vector<memory_request> requests(80, {bytes});
    const auto plan =
        bandwidth_optimized{}.plan(inventory_of(topology, {512, 512, 512, 512}), requests);
    REQUIRE(plan);
    std::vector<unsigned> chunks(4, 0);
    for (const memory_chunk& chunk : *plan)
        ++chunks[chunk.node];
    CHECK(chunks == std::vector<unsigned>{40, 20, 10, 10});
}

TEST_CASE("bandwidth_optimized: a part of a request is spread in the ratio too") {
    const cpu_topology topology = with_bandwidths({300, 100});
    const std::vector<memory_request> requests{{256 * MiB}};
    const memory_inventory inventory = inventory_of(topology, {512, 512});
    const auto striped = bandwidth_optimized{}.plan(inventory, requests);
    const auto whole = basic_bandwidth_optimized<1>{}.plan(inventory, requests);
    REQUIRE(striped);
    REQUIRE(whole);
    CHECK(granules_of(*striped, 2) == std::vector<std::uint64_t>{96, 32});
    CHECK(pieces_of(*whole) == pieces{{0, 192}, {1, 64}});
    CHECK(striped->size() <= 16);
    std::uint64_t at = 0;
    std::uint64_t first_quarter_on_1 = 0;
    for (const memory_chunk& chunk : *striped) {
        const std::uint64_t end = std::min(at + chunk.bytes, 64 * MiB);
        if (chunk.node == 1 && at < end) first_quarter_on_1 += end - at;
        at += chunk.bytes;
    }
    CHECK(first_quarter_on_1 == 16 * MiB);
}

TEST_CASE("bandwidth_optimized: memory without CPUs counts, nodes without memory do not") {
    cpu_topology t = odd_nodes();
    const unsigned bare = t.find_node(1);
    const unsigned special = t.find_node(4);
    std::vector<std::uint64_t> free_mib;
    for (const numa_node& node : t.nodes)
        free_mib.push_back(node.memory_bytes / MiB);
    for (numa_node& node : t.nodes)
        node.bandwidth = 100;
    t.nodes[special].bandwidth = 500;
    const auto plan = bandwidth_optimized{}.plan(inventory_of(t, free_mib),
                                                 std::vector<memory_request>{{64 * MiB}});
    REQUIRE(plan);
    const auto given = granules_of(*plan, t.nodes.size());
    CHECK(given[special] == 20);
    CHECK(given[bare] == 0);
    CHECK(given[t.find_node(0)] == 4);
}

TEST_CASE("bandwidth_optimized says what a share comes from") {
    const auto reason = [](std::vector<std::uint64_t> bandwidths) {
        const cpu_topology topology = with_bandwidths(bandwidths);
        const auto plan = bandwidth_optimized{}.plan(inventory_of(topology, {0, 64}),
                                                     std::vector<memory_request>{{2 * MiB}});
        REQUIRE(plan);
        return std::string{plan->front().reason.view()};
    };
    CHECK(reason({7, 200000}) == "node 1: share by its 200000 MiB/s");
    CHECK(reason({7}) == "node 1: equal share, no bandwidth is known");
    CHECK(reason({}) == "node 1: equal share, no bandwidth is known");
    const cpu_topology half = with_bandwidths({7});
    const auto plan = bandwidth_optimized{}.plan(inventory_of(half, {2, 64}),
                                                 std::vector<memory_request>{{4 * MiB}});
    REQUIRE(plan);
    CHECK(std::string{plan->back().reason.view()} ==
          "node 1: bandwidth unknown, counted as the slowest");
}

TEST_CASE("bandwidth_optimized is what placing granule by granule gives") {
    std::uint64_t state = GENERATE(1u, 2u, 3u, 4u, 5u, 6u, 7u, 8u);
    const auto next = [&](std::uint64_t below) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return (state >> 33) % below;
    };
    cpu_topology eight = make_topology({4, 2, 1, 1, 1u << 30});
    std::vector<std::uint64_t> room; // in granules of 2 MiB
    std::vector<std::uint64_t> free_mib;
    for (numa_node& node : eight.nodes) {
        node.bandwidth = next(900) + 1;
        room.push_back(next(100) + 1);
        free_mib.push_back(2 * room.back());
    }
    std::vector<memory_request> requests;
    std::vector<std::uint64_t> expected(8, 0);
    for (unsigned i = 0; i < 6; ++i) {
        const std::uint64_t granules = next(80) + 1;
        requests.push_back({granules * 2 * MiB});
        for (std::uint64_t g = 0; g < granules; ++g) {
            std::size_t due = 8;
            for (std::size_t n = 0; n < 8; ++n) {
                if (expected[n] == room[n]) continue;
                if (due == 8 || (expected[n] + 1) * eight.nodes[due].bandwidth <
                                    (expected[due] + 1) * eight.nodes[n].bandwidth)
                    due = n;
            }
            if (due != 8) ++expected[due];
        }
    }
    const auto plan = bandwidth_optimized{}.plan(inventory_of(eight, free_mib), requests);
    REQUIRE(plan);
    CHECK(granules_of(*plan, 8) == expected);
}

TEST_CASE("the topology's bandwidths are those that hwloc knows") {
    std::ifstream file{std::string{VM_ACCEL_TEST_DATA} + "/topology/odd_nodes.xml"};
    std::stringstream text;
    text << file.rdbuf();
    std::string xml = text.str();
    const auto entry = [](const char* object, const char* value, const char* cpus) {
        return std::string{"<memattr_value target_obj_type=\"NUMANode\" target_obj_gp_index=\""} +
               object + "\" value=\"" + value + "\" initiator_cpuset=\"" + cpus + "\"/>";
    };
    // Node 0 by its own CPUs and by others, and node 4, which has none.
    xml.insert(xml.find("</topology>"), "<memattr name=\"Bandwidth\" flags=\"5\">" +
                                            entry("9", "90000", "0x0000ff00") +
                                            entry("9", "200000", "0x0000000f") +
                                            entry("99", "400000", "0x0000000f") + "</memattr>");
    const auto loaded = topology_from_xml(xml);
    REQUIRE(loaded);
    CHECK(loaded->nodes[loaded->find_node(0)].bandwidth == 200000);
    CHECK(loaded->nodes[loaded->find_node(4)].bandwidth == 400000);
    CHECK(loaded->nodes[loaded->find_node(2)].bandwidth == 0);
    CHECK(odd_nodes().nodes[0].bandwidth == 0);
}
