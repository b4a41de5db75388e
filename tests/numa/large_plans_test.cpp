/// Plans for more nodes and regions than machines have: few enough chunks, in little
/// work, and what simpler and slower planning gives.
#include <vm_accel/numa/adaptive.hpp>
#include <vm_accel/numa/bandwidth_optimized.hpp>
#include <vm_accel/numa/load_balanced.hpp>
#include <vm_accel/numa/local_first.hpp>
#include <vm_accel/topology/regular.hpp>

#include <catch2/catch.hpp>

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

using namespace vm_accel;

namespace {

constexpr std::uint64_t MiB = 1u << 20;

std::vector<std::uint64_t> bound_to_nodes(const memory_plan& plan, std::size_t nodes) {
    std::vector<std::uint64_t> bound(nodes, 0);
    for (const memory_chunk& chunk : plan)
        if (chunk.mode == os::bind_mode::bind) bound[chunk.node] += chunk.bytes;
    return bound;
}

} // namespace

using strategies = std::tuple<local_first, load_balanced, bandwidth_optimized, adaptive>;

TEMPLATE_LIST_TEST_CASE("strategy contract: a plan fits into the mappings of a process", "",
                        strategies) {
    const cpu_topology t = make_topology({64, 16, 1, 1, 1u << 30}); // 1,024 nodes
    struct row {
        std::size_t requests;
        std::uint64_t mib;
        std::uint64_t free_mib;
        bool named;
        std::size_t most;
    };
    const row r = GENERATE(values<row>({
        {4096, 2, 4096, false, 8192},
        {4096, 1024, 8192, true, 8192},
        {4096, 1024, 8192, false, 8192},
        {1, 1024 * 1024, 8192, false, 8192},
        {9, 1024 * 1024, 128 * 1024, false, 8192 + 9},
        {4096, 512, 2047, false, 8192 + 4096}, // everything gets full on the way
    }));
    CAPTURE(r.requests, r.mib, r.free_mib, r.named);
    const memory_inventory inventory{&t, std::vector<std::uint64_t>(1024, r.free_mib * MiB)};
    std::vector<memory_request> requests;
    for (unsigned i = 0; i < r.requests; ++i)
        requests.push_back({r.mib * MiB, r.named ? i % 1024 : any_node, i % 1024});
    const auto plan = TestType{}.plan(inventory, requests);
    REQUIRE(plan);
    CHECK(plan->size() >= r.requests);
    CHECK(plan->size() <= r.most);
    std::vector<std::uint64_t> given(r.requests, 0);
    for (const memory_chunk& chunk : *plan)
        given[chunk.request] += chunk.bytes;
    CHECK(given == std::vector<std::uint64_t>(r.requests, r.mib * MiB));
    for (const std::uint64_t bytes : bound_to_nodes(*plan, 1024))
        CHECK(bytes <= r.free_mib * MiB);
}

TEST_CASE("few chunks for each request: the ratio and the balance come from many") {
    cpu_topology t = make_topology({8, 8, 1, 1, 1u << 30});
    for (unsigned i = 0; i < 64; ++i)
        t.nodes[i].bandwidth = i % 2 == 0 ? 300 : 100;
    memory_inventory inventory{&t, std::vector<std::uint64_t>(64, 65536 * MiB)};
    inventory.most_chunks = 2048;
    const std::vector<memory_request> requests(1024, {512 * MiB}); // 2 chunks each
    const auto by_bandwidth = bandwidth_optimized{}.plan(inventory, requests);
    const auto balanced = load_balanced{}.plan(inventory, requests);
    REQUIRE(by_bandwidth);
    REQUIRE(balanced);
    CHECK(by_bandwidth->size() <= 2048);
    CHECK(balanced->size() <= 2048);
    for (unsigned i = 0; i < 64; ++i) {
        const std::uint64_t share = (i % 2 == 0 ? 3u : 1u) * 4096 * MiB;
        const std::uint64_t given = bound_to_nodes(*by_bandwidth, 64)[i];
        CHECK(std::max(share, given) - std::min(share, given) <= 512 * MiB);
    }
    const std::vector<std::uint64_t> even = bound_to_nodes(*balanced, 64);
    CHECK(*std::max_element(even.begin(), even.end()) -
              *std::min_element(even.begin(), even.end()) <=
          512 * MiB);
}

TEST_CASE("local_first is what trying all nodes by distance gives") {
    std::uint64_t state = GENERATE(1u, 2u, 3u, 4u, 5u, 6u, 7u, 8u, 9u, 10u);
    const auto next = [&](std::uint64_t below) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return (state >> 33) % below;
    };
    const unsigned nodes = 1 + static_cast<unsigned>(next(40));
    cpu_topology t = make_topology({1, nodes, 1, 1, 1u << 30});
    if (next(3) == 0) {
        t.distances.clear(); // not told
    } else {
        for (std::uint32_t& d : t.distances)
            d = static_cast<std::uint32_t>(10 + next(6));
    }
    memory_inventory inventory{&t, {}};
    const std::uint64_t grain = next(2) == 0 ? 4096 : 1;
    for (unsigned i = 0; i < nodes; ++i)
        inventory.free_bytes.push_back(next(4) == 0 ? 0 : next(10 * MiB / grain) * grain);
    inventory.free_bytes[next(nodes)] = 3 * MiB;
    std::vector<memory_request> requests;
    for (unsigned i = 0; i < 30; ++i)
        requests.push_back(
            {next(6 * MiB / grain) * grain + grain, any_node, static_cast<unsigned>(next(nodes))});

    std::vector<std::uint64_t> room = inventory.free_bytes;
    std::vector<std::tuple<unsigned, unsigned, std::uint64_t, bool>> expected;
    for (unsigned r = 0; r < requests.size(); ++r) {
        std::vector<unsigned> order;
        for (unsigned i = 0; i < nodes; ++i)
            if (inventory.free_bytes[i] != 0) order.push_back(i);
        const unsigned from = requests[r].local;
        std::sort(order.begin(), order.end(), [&](unsigned a, unsigned b) {
            const auto key = [&](unsigned n) {
                return std::pair{n == from ? 0u : t.distance(from, n), n};
            };
            return key(a) < key(b);
        });
        std::uint64_t left = requests[r].bytes;
        for (auto n = order.begin(); left != 0 && n != order.end();) {
            const std::uint64_t part = numa_planning::fitting(left, room[*n], inventory.granule);
            room[*n] -= part;
            left -= part;
            if (part != 0) expected.emplace_back(r, *n, part, true);
            n = part != 0 ? order.begin() : n + 1; // what is left may fit nearer again
        }
        if (left != 0) expected.emplace_back(r, order.front(), left, false);
    }
    const auto plan = local_first{}.plan(inventory, requests);
    REQUIRE(plan);
    std::vector<std::tuple<unsigned, unsigned, std::uint64_t, bool>> given;
    for (const memory_chunk& c : *plan)
        given.emplace_back(c.request, c.node, c.bytes, c.mode == os::bind_mode::bind);
    CHECK((given == expected));
}
