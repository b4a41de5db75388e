/// Platforms that choose nodes when they map, and not later: what guest RAM asks of them.
#include "simulated_memory.hpp"

#include <vm_accel/numa/local_first.hpp>
#include <vm_accel/numa/numa_allocator.hpp>
#include <vm_accel/topology/regular.hpp>

#include <catch2/catch.hpp>

#include <span>
#include <vector>

using namespace vm_accel_test;

namespace {

constexpr std::uint64_t MiB = 1u << 20;

struct mapping_by_nodes : simulated_memory {
    std::shared_ptr<std::vector<os::node_part>> asked =
        std::make_shared<std::vector<os::node_part>>();

    result<os::raw_mapping> map_near(const os::mapping_request& request,
                                     std::span<const os::node_part> parts) noexcept {
        asked->assign(parts.begin(), parts.end());
        return map(request);
    }
};
static_assert(os::node_mapping_memory<mapping_by_nodes>);
static_assert(!os::node_mapping_memory<simulated_memory>);

/// The same as a platform of this system, whose nodes are not those of a described machine.
struct mapping_here : mapping_by_nodes {
    static constexpr bool is_this_system = true;
};

} // namespace

TEST_CASE("nodes are asked for with the mapping, part by part, and nothing is bound afterwards") {
    mapping_by_nodes memory;
    numa_allocator<local_first, mapping_by_nodes, simulated_threads> allocator{
        memory, simulated_threads{memory.machine}};
    REQUIRE(allocator.init(make_topology({2, 2, 2, 1, 64 * MiB})));
    guest_ram_request request;
    request.split = {{4 * MiB, 2}, {8 * MiB, 1}};
    const auto region = allocator.allocate(request);
    REQUIRE(region);
    REQUIRE(memory.asked->size() == 2);
    CHECK((*memory.asked)[0].bytes == 4 * MiB);
    CHECK((*memory.asked)[0].node == 2);
    CHECK((*memory.asked)[1].bytes == 8 * MiB);
    CHECK((*memory.asked)[1].node == 1);
    CHECK(memory.machine->bindings.empty());
    for (const ram_chunk& chunk : region->chunks())
        CHECK(chunk.binding.state == grant_state::preferred);

    // Only a preference: who wants more is refused.
    request.strict = true;
    const auto strict = allocator.allocate(request);
    REQUIRE_FALSE(strict);
    CHECK_FALSE(strict.error().cure.empty());
    CHECK(memory.machine->mapped.size() == 1);
}

TEST_CASE("no node of a described machine is asked for with the mapping") {
    mapping_here memory;
    numa_allocator<local_first, mapping_here, simulated_threads> allocator{
        memory, simulated_threads{memory.machine}};
    REQUIRE(allocator.init(make_topology({2, 2, 2, 1, 64 * MiB})));
    guest_ram_request request;
    request.split = {{4 * MiB, 1}};
    REQUIRE(allocator.allocate(request));
    REQUIRE(memory.asked->size() == 1);
    CHECK(memory.asked->front().node == os::node_part::any);
}
