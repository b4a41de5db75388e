/// Guest RAM from the kernel of this machine, on as many nodes as it has.
#include <vm_accel/numa/bandwidth_optimized.hpp>
#include <vm_accel/numa/load_balanced.hpp>
#include <vm_accel/numa/local_first.hpp>
#include <vm_accel/numa/numa_allocator.hpp>

#include <catch2/catch.hpp>

#include <bit>
#include <iostream>
#include <tuple>

using namespace vm_accel;

namespace {
constexpr std::uint64_t MiB = 1u << 20;

} // namespace

using strategies = std::tuple<local_first, load_balanced, bandwidth_optimized>;

TEMPLATE_LIST_TEST_CASE("guest RAM of this machine is where the kernel says, and that is the plan",
                        "[kernel]", strategies) {
    numa_allocator<TestType> allocator;
    REQUIRE(allocator.init());
    CHECK(allocator.is_enabled());
    guest_ram_request request;
    for (const unsigned node : allocator.nodes_in_use())
        request.split.push_back({4 * MiB, node});
    request.split.push_back({2 * MiB + allocator.topology().nodes.size() * 65536});
    request.memfd = GENERATE(false, true);
    request.huge_pages = GENERATE(huge_page_use::none, huge_page_use::advise);
    request.prefault_threads = 2;
    const auto region = allocator.allocate(request);
    REQUIRE(region);
    CHECK((region->file() >= 0) == request.memfd);
    const std::uint64_t alignment = request.huge_pages == huge_page_use::none ? 4096 : 2 * MiB;
    CHECK(std::bit_cast<std::uintptr_t>(region->data()) % alignment == 0);
    region->data()[region->bytes() - 1] = std::byte{1};

    for (const ram_chunk& chunk : region->chunks()) {
        if (chunk.binding.is_denied() || chunk.prefault.is_denied()) {
            std::cout << "SKIP: " << chunk.binding.cause.view() << chunk.prefault.cause.view()
                      << '\n';
            return;
        }
    }
    const auto report = region->placement();
    if (!report) {
        std::cout << "SKIP: " << report.error().cause.view() << '\n';
        return;
    }
    std::uint64_t pages = 0;
    for (const chunk_placement& c : report->chunks) {
        CHECK(c.absent == 0);
        CHECK(c.local() == c.asked);
        pages += c.asked;
    }
    CHECK(report->as_planned());
    CHECK(pages * report->page_bytes == region->bytes());

    request.strict = true;
    const auto strict = allocator.allocate(request);
    CHECK(strict);
}

TEST_CASE("guest RAM that nobody touched has no pages yet", "[kernel]") {
    numa_allocator<local_first> allocator;
    REQUIRE(allocator.init());
    guest_ram_request request;
    request.bytes = 8 * MiB;
    const auto region = allocator.allocate(request);
    REQUIRE(region);
    const auto report = region->placement();
    if (!report) {
        std::cout << "SKIP: " << report.error().cause.view() << '\n';
        return;
    }
    for (const chunk_placement& c : report->chunks)
        CHECK(c.absent == c.asked);
    CHECK(report->as_planned());
    const auto sampled = region->placement(16);
    REQUIRE(sampled);
    CHECK(sampled->chunks[0].asked * 16 == report->chunks[0].asked);
}

TEST_CASE("a topology that describes another machine binds nothing on this one", "[kernel]") {
    numa_allocator<load_balanced> allocator;
    const auto described = topology_from_synthetic("numa:4(memory=1073741824) core:2 pu:2");
    REQUIRE(described);
    REQUIRE(allocator.init(*described));
    guest_ram_request request;
    request.bytes = 16 * MiB;
    request.prefault_threads = 4;
    const auto region = allocator.allocate(request);
    REQUIRE(region);
    CHECK(region->chunks().size() == 4);
    for (const ram_chunk& chunk : region->chunks())
        CHECK(chunk.binding.state == grant_state::refused);
    request.strict = true;
    CHECK_FALSE(allocator.allocate(request));
}

TEST_CASE("detection says how many nodes there are", "[kernel]") {
    const detection found = numa_allocator<local_first>::detect();
    CHECK_FALSE(found.summary.empty());
    CHECK(found.available ==
          (os::native_memory::can_bind && (*shared_topology())->memory_node_count() != 0));
}
