/// Guest RAM from the kernel of this machine, on as many nodes as it has.
#include <vm_accel/numa/bandwidth_optimized.hpp>
#include <vm_accel/numa/load_balanced.hpp>
#include <vm_accel/numa/local_first.hpp>
#include <vm_accel/numa/numa_allocator.hpp>

#include <catch2/catch.hpp>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <bit>
#include <iostream>
#include <span>
#include <string_view>
#include <tuple>

using namespace vm_accel;

namespace {
constexpr std::uint64_t MiB = 1u << 20;

} // namespace

using strategies = std::tuple<local_first, load_balanced, bandwidth_optimized>;

TEMPLATE_LIST_TEST_CASE("guest RAM of this machine is where the kernel says, and that is the plan",
                        "[kernel][numa]", strategies) {
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
    CHECK(std::bit_cast<std::uintptr_t>(region->data()) % (2 * MiB) == 0);
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

TEST_CASE("guest RAM that nobody touched has no pages yet", "[kernel][numa]") {
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

TEST_CASE("a topology that describes another machine binds nothing on this one", "[kernel][numa]") {
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

TEST_CASE("detection says how many nodes there are", "[kernel][numa]") {
    const detection found = numa_allocator<local_first>::detect();
    CHECK_FALSE(found.summary.empty());
    CHECK(found.available ==
          (os::native_memory::can_bind && (*shared_topology())->memory_node_count() != 0));
}

namespace {

/// A request for some memory on every node in use.
template <class Allocator>
guest_ram_request on_every_node(const Allocator& allocator, std::uint64_t bytes) {
    guest_ram_request request;
    for (const unsigned node : allocator.nodes_in_use())
        request.split.push_back({bytes, node});
    return request;
}

/// Whether the kernel binds memory and tells where it lies; else says why not.
bool tells_placement(const result<placement_report>& placement, std::span<const ram_chunk> chunks) {
    for (const ram_chunk& chunk : chunks) {
        if (!chunk.binding.is_denied()) continue;
        std::cout << "SKIP: " << chunk.binding.cause.view() << '\n';
        return false;
    }
    if (!placement) std::cout << "SKIP: " << placement.error().cause.view() << '\n';
    return placement.has_value();
}

} // namespace

TEST_CASE("reserved huge pages lie on their nodes; without them the region says why",
          "[kernel][numa]") {
    numa_allocator<local_first> allocator;
    REQUIRE(allocator.init());
    const std::uint64_t page = os::native_memory{}.huge_page_bytes();
    guest_ram_request request = on_every_node(allocator, page);
    request.huge_pages = huge_page_use::reserve;
    request.memfd = GENERATE(false, true);
    request.locked = true;
    bool all_pools = true;
    if constexpr (os::huge_page_pools<os::native_memory>) {
        for (const unsigned node : allocator.nodes_in_use()) {
            const auto free = os::native_memory{}.free_huge_pages(node, page);
            all_pools = all_pools && free && *free != 0;
        }
    } else {
        all_pools = false;
    }
    const auto region = allocator.allocate(request);
    REQUIRE(region);
    for (std::uint64_t at = 0; at < region->bytes(); at += page) // no SIGBUS, whatever was given
        region->data()[at] = std::byte{1};
    if (!all_pools) {
        for (const ram_chunk& chunk : region->chunks()) {
            CHECK(chunk.huge_pages.state != grant_state::enforced);
            CHECK_FALSE(chunk.huge_pages.cause.empty());
            CHECK_FALSE(chunk.huge_pages.cure.empty());
        }
        CHECK(region->grants().reserved_page_bytes == 0);
        request.strict = true;
        CHECK_FALSE(allocator.allocate(request));
        std::cout << "SKIP: no huge page of 2 MiB is free here\n";
        return;
    }
    CHECK(region->grants().reserved_page_bytes == page);
    const auto placement = region->placement();
    if (!tells_placement(placement, region->chunks())) return;
    CHECK(placement->as_planned());
    for (const chunk_placement& c : placement->chunks) {
        CHECK(c.absent == 0);
        CHECK(c.chunk.huge_pages == grant::enforced());
        CHECK(c.chunk.locking == grant::enforced());
    }
}

#if defined(__linux__)
TEST_CASE("shared guest memory is what another mapping of its file sees, on the same nodes",
          "[kernel][numa]") {
    numa_allocator<local_first> allocator;
    REQUIRE(allocator.init());
    guest_ram_request request = on_every_node(allocator, 4 * MiB);
    request.memfd = true;
    request.prefault_threads = 1;
    const auto region = allocator.allocate(request);
    REQUIRE(region);
    if (region->grants().sharing.is_denied()) {
        CHECK(region->file() == -1);
        return;
    }
    CHECK(region->grants().sealing == grant::enforced());
    for (unsigned node = 0; node < request.split.size(); ++node) {
        const auto [offset, bytes] = region->guest_node(node);
        const shared_ram shared = region->shared(offset, bytes);
        REQUIRE(shared.file == region->file());
        region->data()[offset + 4096] = std::byte{static_cast<unsigned char>(node + 1)};
        const os::native_memory memory;
        void* const there = ::mmap(nullptr, shared.bytes, PROT_READ, MAP_SHARED, shared.file,
                                   static_cast<::off_t>(shared.offset));
        REQUIRE(there != MAP_FAILED);
        CHECK(static_cast<std::byte*>(there)[4096] ==
              std::byte{static_cast<unsigned char>(node + 1)});
        int on = os::page_absent;
        const bool told =
            memory.page_nodes(static_cast<std::byte*>(there) + 4096, 4096, {&on, 1}).has_value();
        const ram_chunk& chunk = region->chunks()[node];
        if (told && chunk.binding.state == grant_state::enforced)
            CHECK(on == static_cast<int>(chunk.node));
        ::munmap(there, shared.bytes);
    }
    CHECK(::ftruncate(region->file(), 4096) != 0);
}
#endif

TEST_CASE("locked guest memory is counted by the kernel, or the limit is named", "[kernel][numa]") {
    numa_allocator<local_first> allocator;
    REQUIRE(allocator.init());
    guest_ram_request request = on_every_node(allocator, 2 * MiB);
    request.locked = true;
    request.prefault_threads = GENERATE(0u, 2u);
    const auto region = allocator.allocate(request);
    REQUIRE(region);
    for (const ram_chunk& chunk : region->chunks()) {
        CAPTURE(chunk.locking.cause.view());
        CHECK((chunk.locking == grant::enforced() ||
               chunk.locking.cause.view().find("RLIMIT_MEMLOCK") != std::string_view::npos));
    }
}

TEST_CASE("a listener of a real prefault hears until all is done, or ends it", "[kernel][numa]") {
    numa_allocator<local_first> allocator;
    REQUIRE(allocator.init());
    guest_ram_request request = on_every_node(allocator, 8 * MiB);
    request.prefault_threads = 2;
    std::uint64_t last = 0;
    const auto region = allocator.allocate(request, [&](const prefault_progress& p) noexcept {
        last = p.done;
        return true;
    });
    REQUIRE(region);
    CHECK(last == region->bytes());
    const auto ended =
        allocator.allocate(request, [](const prefault_progress&) noexcept { return false; });
    REQUIRE_FALSE(ended);
    CHECK(ended.error() == errc::cancelled);
}
