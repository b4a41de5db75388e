/// Claim: memory of 4,096 regions is planned onto 1,024 nodes in under 10 ms, by every strategy and
/// whatever the regions ask for; so is what to migrate of them.
///
/// The shape of the question, by the benchmark's argument:
///   0  2 MiB each, anywhere            3  1 GiB each on a node of their own choice
///   1  1 GiB each, anywhere            4  512 MiB each, nodes that get full on the way (2,047 MiB)
///   2  as 1, nodes of three sizes      5  one region of 1 TiB, nodes as in 2
/// Beside it in the same run: the floor (a plan of that many chunks is written, nothing decided),
/// and the plainest planner (for every region the node with the most room, found by looking at
/// all).
#include <vm_accel/numa/adaptive.hpp>
#include <vm_accel/numa/bandwidth_optimized.hpp>
#include <vm_accel/numa/load_balanced.hpp>
#include <vm_accel/numa/local_first.hpp>
#include <vm_accel/topology/regular.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace {

using namespace vm_accel;

constexpr unsigned node_count = 1024;
constexpr unsigned region_count = 4096;
constexpr std::uint64_t MiB = 1u << 20;
constexpr int shapes = 6;

struct question {
    cpu_topology topology = make_topology({64, 16, 2, 1, 1u << 30});
    memory_inventory inventory{&topology, {}};
    std::vector<memory_request> requests{};

    explicit question(std::int64_t shape) {
        const bool uneven = shape == 2 || shape == 5;
        for (unsigned i = 0; i < node_count; ++i) {
            topology.nodes[i].bandwidth = 20'000 + 1'000 * (i % 7);
            const std::uint64_t free_mib = shape == 4 ? 2047 : uneven ? 4096u << (i % 3) : 8192;
            inventory.free_bytes.push_back(free_mib * MiB);
        }
        if (shape == 5) {
            requests.push_back({1024 * 1024 * MiB});
            return;
        }
        const std::uint64_t mib = shape == 0 ? 2 : shape == 4 ? 512 : 1024;
        for (unsigned i = 0; i < region_count; ++i)
            requests.push_back(
                {mib * MiB, shape == 3 ? i * 7 % node_count : any_node, i % node_count});
    }
};

template <class Strategy>
void plan(benchmark::State& state) {
    const question asked{state.range(0)};
    std::size_t chunks = 0;
    for (auto _ : state) {
        const result<memory_plan> made = Strategy{}.plan(asked.inventory, asked.requests);
        if (!made) state.SkipWithError("no plan");
        if (made) chunks = made->size();
        benchmark::DoNotOptimize(made);
    }
    state.counters["chunks"] = static_cast<double>(chunks);
}

/// Each region was placed in another package than its vCPUs' own.
void migrate(benchmark::State& state) {
    const question asked{1};
    std::vector<vcpu_residency> vcpus;
    std::vector<region_sample> regions;
    for (unsigned node = 0; node < node_count; ++node)
        vcpus.push_back({node, {{node, 3}, {(node + 1) % node_count, 1}}});
    for (unsigned i = 0; i < region_count; ++i)
        regions.push_back({i % node_count, {{(i + 100) % node_count, 64 * MiB}}, {}, ~0u});
    for (auto _ : state) {
        const result<migration_plan> made =
            adaptive{}.migrate(asked.inventory, {vcpus, regions}, {std::uint64_t{16} << 30, 20, 2});
        if (!made || made->empty()) state.SkipWithError("nothing to migrate");
        benchmark::DoNotOptimize(made);
    }
}

void floor_write_chunks(benchmark::State& state) {
    for (auto _ : state) {
        memory_plan made;
        for (unsigned i = 0; i < region_count; ++i)
            made.push_back({i, i % node_count, 2 * MiB, os::bind_mode::bind, {}});
        benchmark::DoNotOptimize(made);
    }
}

void rival_look_at_all_nodes(benchmark::State& state) {
    const question asked{state.range(0)};
    for (auto _ : state) {
        std::vector<std::uint64_t> room = asked.inventory.free_bytes;
        memory_plan made;
        for (unsigned r = 0; r < asked.requests.size(); ++r) {
            for (std::uint64_t left = asked.requests[r].bytes; left != 0;) {
                const auto most = std::max_element(room.begin(), room.end());
                if (*most == 0) break;
                const std::uint64_t part = std::min(left, *most);
                made.push_back(
                    {r, static_cast<unsigned>(most - room.begin()), part, os::bind_mode::bind, {}});
                *most -= part;
                left -= part;
            }
        }
        benchmark::DoNotOptimize(made);
    }
}

} // namespace

BENCHMARK(floor_write_chunks)->Unit(benchmark::kMillisecond);
BENCHMARK(rival_look_at_all_nodes)->DenseRange(0, shapes - 1)->Unit(benchmark::kMillisecond);
BENCHMARK_TEMPLATE(plan, local_first)->DenseRange(0, shapes - 1)->Unit(benchmark::kMillisecond);
BENCHMARK_TEMPLATE(plan, load_balanced)->DenseRange(0, shapes - 1)->Unit(benchmark::kMillisecond);
BENCHMARK_TEMPLATE(plan, bandwidth_optimized)
    ->DenseRange(0, shapes - 1)
    ->Unit(benchmark::kMillisecond);
BENCHMARK_TEMPLATE(plan, adaptive)->DenseRange(0, shapes - 1)->Unit(benchmark::kMillisecond);
BENCHMARK(migrate)->Unit(benchmark::kMillisecond);
