/// What only a machine with several nodes can show. Where pages lie is asked of the
/// kernel here, by calls of this file's own: the library's answers are on trial too.
///
/// scripts/on-numa gives such a machine to everybody.
#include <vm_accel/numa/bandwidth_optimized.hpp>
#include <vm_accel/numa/load_balanced.hpp>
#include <vm_accel/numa/local_first.hpp>
#include <vm_accel/numa/numa_allocator.hpp>
#include <vm_accel/numa/object_pool.hpp>
#include <vm_accel/os/worker_thread.hpp>

#include <catch2/catch.hpp>

#if defined(__linux__)
#include "kernel_nodes.hpp"

#include <algorithm>
#include <cstring>
#include <iostream>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <vector>

using namespace vm_accel;
using namespace kernel_nodes;

namespace {

constexpr std::uint64_t MiB = 1u << 20;

/// Runs on a thread of its own on these CPUs. False if it may not be pinned.
template <class Work>
bool on_cpus(const os::cpu_set& cpus, Work work) {
    bool pinned = false;
    auto body = [&]() noexcept {
        pinned = os::native_threads{}.pin_current_thread(cpus).has_value();
        if (pinned) work();
    };
    os::worker_thread worker;
    REQUIRE(worker.start(body));
    worker.join();
    if (!pinned) std::cout << "SKIP: this process may not pin threads\n";
    return pinned;
}

/// Whether tests of several nodes can be done with these; if not, says why.
bool serve(const std::vector<unsigned>& nodes) {
    if (nodes.size() < 2) {
        std::cout << "SKIP: memory on two nodes is needed, and this process may use that of one\n";
        return false;
    }
    const int reason = why_not_bindable(nodes[0]);
    if (reason != 0)
        std::cout << "SKIP: binding memory to node " << nodes[0] << ": " << std::strerror(reason)
                  << '\n';
    return reason == 0;
}

/// An allocator for this machine, or nothing and a line that says why not.
template <class Strategy>
std::unique_ptr<numa_allocator<Strategy>> allocator_for_several_nodes() {
    auto allocator = std::make_unique<numa_allocator<Strategy>>();
    REQUIRE(allocator->init());
    if (!serve(allocator->nodes_in_use())) return nullptr;
    return allocator;
}

/// The nodes with memory, by distance from one of them as /sys has it.
std::vector<unsigned> by_distance(unsigned from, std::vector<unsigned> nodes) {
    const std::vector<unsigned> row = distances_of(from);
    std::sort(nodes.begin(), nodes.end(),
              [&](unsigned a, unsigned b) { return row[a] != row[b] ? row[a] < row[b] : a < b; });
    return nodes;
}

/// Every chunk's pages, asked of the kernel: all of them exist and lie where the chunk says.
template <class Region>
void check_pages(const Region& region) {
    for (const ram_chunk& chunk : region.chunks()) {
        CAPTURE(chunk.node, chunk.offset, chunk.bytes, chunk.reason.view());
        CHECK(pages_by_node(region.data() + chunk.offset, chunk.bytes) ==
              page_counts{{static_cast<int>(chunk.node), chunk.bytes / 4096}});
    }
}

} // namespace

TEST_CASE("several nodes: the topology has the kernel's nodes and distances", "[kernel]") {
    const auto topology = load_topology();
    REQUIRE(topology);
    const std::set<unsigned> with_memory = in_common(node_list("has_memory"), allowed_nodes());
    if (!topology->is_this_system() || with_memory.empty()) {
        std::cout << "SKIP: the kernel tells of no node with memory\n";
        return;
    }
    // A CPU whose own node has no memory, or none that is allowed, is of the nearest. A node's
    // threads stay off isolated CPUs.
    const std::set<unsigned> isolated = numbers_in(text_of("/sys/devices/system/cpu/isolated"));
    const std::vector<unsigned> nodes{with_memory.begin(), with_memory.end()};
    std::map<unsigned, std::set<unsigned>> cpus;
    for (const unsigned cpu : allowed_cpus())
        if (!isolated.contains(cpu)) cpus[by_distance(node_of_cpu(cpu), nodes).front()].insert(cpu);
    std::set<unsigned> found;
    for (unsigned i = 0; i < topology->nodes.size(); ++i) {
        const numa_node& node = topology->nodes[i];
        CAPTURE(node.os_index);
        if (node.memory_bytes != 0) found.insert(node.os_index);
        std::set<unsigned> own = members(topology->cpu_set_of_node(i));
        std::erase_if(own, [&](unsigned cpu) { return isolated.contains(cpu); });
        CHECK(own == cpus[node.os_index]);
    }
    CHECK(found == with_memory);
    for (const numa_node& from : topology->nodes) {
        const std::vector<unsigned> row = distances_of(from.os_index);
        for (const numa_node& to : topology->nodes) {
            CAPTURE(from.os_index, to.os_index);
            CHECK(topology->distance(topology->find_node(from.os_index),
                                     topology->find_node(to.os_index)) == row.at(to.os_index));
        }
    }
}

using strategies = std::tuple<local_first, load_balanced, bandwidth_optimized>;

TEMPLATE_LIST_TEST_CASE("several nodes: guest nodes lie on the host nodes asked for, page by page",
                        "[kernel]", strategies) {
    const auto allocator = allocator_for_several_nodes<TestType>();
    if (!allocator) return;
    guest_ram_request request;
    const std::vector<unsigned> nodes = allocator->nodes_in_use();
    for (auto node = nodes.rbegin(); node != nodes.rend(); ++node) // not in the kernel's order
        request.split.push_back({6 * MiB + 8192, *node});
    request.memfd = GENERATE(false, true);
    request.prefault_threads = 3;
    request.strict = true;
    const auto region = allocator->allocate(request);
    REQUIRE(region);
    check_pages(*region);
    for (unsigned i = 0; i < nodes.size(); ++i) {
        const auto [offset, bytes] = region->guest_node(i);
        CHECK(bytes == 6 * MiB + 8192);
        CHECK(pages_by_node(region->data() + offset, bytes) ==
              page_counts{{static_cast<int>(nodes[nodes.size() - 1 - i]), bytes / 4096}});
    }
}

TEST_CASE("several nodes: a binding holds whichever CPU touches a page first", "[kernel]") {
    const auto allocator = allocator_for_several_nodes<local_first>();
    if (!allocator) return;
    guest_ram_request request;
    for (const unsigned node : allocator->nodes_in_use())
        request.split.push_back({2 * MiB, node});
    const auto region = allocator->allocate(request);
    REQUIRE(region);
    const std::vector<logical_cpu>& cpus = allocator->topology().cpus;
    for (std::size_t i = 0; i < cpus.size(); ++i) {
        // Each CPU touches its own pages of every guest node.
        const bool done = on_cpus(os::cpu_set::of(cpus[i].os_index), [&] {
            for (std::uint64_t page = i; page < region->bytes() / 4096; page += cpus.size())
                region->data()[page * 4096] = std::byte{1};
        });
        if (!done) return;
    }
    check_pages(*region);
}

TEST_CASE("several nodes: RAM that names no node is local to its thread, or as near as can be",
          "[kernel]") {
    const auto allocator = allocator_for_several_nodes<local_first>();
    if (!allocator) return;
    const std::vector<unsigned> nodes = allocator->nodes_in_use();
    for (const unsigned cpu : allowed_cpus()) {
        const unsigned own = node_of_cpu(cpu);
        const unsigned expected = by_distance(own, nodes).front();
        CAPTURE(cpu, own, expected);
        result<ram_region> region = fail(errc::unavailable, "not made", "");
        const bool done = on_cpus(os::cpu_set::of(cpu), [&] {
            guest_ram_request request;
            request.bytes = 4 * MiB;
            request.prefault_threads = 1;
            region = allocator->allocate(request);
        });
        if (!done) return;
        REQUIRE(region);
        CHECK(region->chunks()[0].node == expected);
        check_pages(*region);
    }
}

TEST_CASE("several nodes: local_first goes on to the next nearest node when one is full",
          "[kernel]") {
    const auto allocator = allocator_for_several_nodes<local_first>();
    if (!allocator) return;
    const std::vector<unsigned> nodes = allocator->nodes_in_use();
    // From the node with the least memory, so that the rest fits elsewhere.
    const unsigned smallest = *std::min_element(
        nodes.begin(), nodes.end(), [](auto a, auto b) { return free_memory(a) < free_memory(b); });
    const std::vector<unsigned> order = by_distance(smallest, nodes);
    if (free_memory(smallest) > 1024 * MiB || free_memory(order[1]) < 64 * MiB) {
        std::cout << "SKIP: a node is too large to be filled by a test, or the next too full\n";
        return;
    }
    guest_ram_request request;
    request.split = {{free_memory(smallest) / (2 * MiB) * (2 * MiB) + 24 * MiB, smallest}};
    request.prefault_threads = 2;
    const auto region = allocator->allocate(request);
    REQUIRE(region);
    const auto chunks = region->chunks();
    REQUIRE(chunks.size() == 2);
    CHECK(chunks[0].node == smallest);
    CHECK(chunks[1].node == order[1]);
    for (const ram_chunk& chunk : chunks) {
        CHECK(chunk.binding.state == grant_state::enforced);
        CHECK(chunk.prefault.state == grant_state::enforced);
    }
    check_pages(*region);
    // All of it can be used: nobody was promised more than there is.
    for (std::uint64_t at = 0; at < region->bytes(); at += 4096)
        region->data()[at] = std::byte{1};
}

TEST_CASE("several nodes: load_balanced leaves equally much on each node with CPUs", "[kernel]") {
    const auto allocator = allocator_for_several_nodes<load_balanced>();
    if (!allocator) return;
    std::vector<unsigned> nodes;
    for (const unsigned node : allocator->nodes_in_use())
        if (!cpus_of(node).empty()) nodes.push_back(node);
    std::uint64_t total = 0;
    std::uint64_t least = ~std::uint64_t{0};
    std::uint64_t most = 0;
    for (const unsigned node : nodes) {
        total += free_memory(node);
        least = std::min(least, free_memory(node));
        most = std::max(most, free_memory(node));
    }
    const std::uint64_t before = (most - least) / MiB;
    if (total > 4096 * MiB || nodes.size() < 2) {
        std::cout << "SKIP: a node is too large to be filled by a test, or the next too full\n";
        return;
    }
    // What brings all to three quarters of what the smallest has.
    guest_ram_request request;
    request.bytes = (total - nodes.size() * (least / 4 * 3)) / (2 * MiB) * (2 * MiB);
    request.prefault_threads = 2;
    const auto region = allocator->allocate(request);
    REQUIRE(region);
    check_pages(*region);
    CHECK(region->chunks().size() == nodes.size());
    for (const ram_chunk& chunk : region->chunks())
        CHECK(std::count(nodes.begin(), nodes.end(), chunk.node) == 1);
    // Apart by what the kernel keeps of nodes of different sizes, and what it caches.
    std::vector<std::uint64_t> left;
    for (const unsigned node : nodes)
        left.push_back(free_memory(node) / MiB);
    std::sort(left.begin(), left.end());
    CAPTURE(left, before);
    CHECK(left.back() - left.front() < std::max<std::uint64_t>(before / 2, 32));
}

TEST_CASE("several nodes: objects lie on their pool's node, whoever asks for them", "[kernel]") {
    const auto allocator = allocator_for_several_nodes<local_first>();
    if (!allocator) return;
    for (const unsigned node : allocator->nodes_in_use()) {
        CAPTURE(node);
        object_pool<> pool;
        REQUIRE(pool.open({.node = node}));
        CHECK(pool.binding().state == grant_state::preferred);
        for (const logical_cpu& cpu : allocator->topology().cpus) {
            std::vector<void*> objects;
            const bool done = on_cpus(os::cpu_set::of(cpu.os_index), [&] {
                for (const std::size_t bytes : {16u, 64u, 1000u, 4096u, 60000u, 300000u}) {
                    objects.push_back(pool.allocate(bytes));
                    if (objects.back() != nullptr) std::memset(objects.back(), 1, bytes);
                }
            });
            if (!done) return;
            for (void* const object : objects) {
                REQUIRE(object != nullptr);
                CHECK(node_of_page(object) == static_cast<int>(node));
            }
        }
    }
}

TEST_CASE("several nodes: a node without memory is refused by name, and the pool serves on",
          "[kernel]") {
    const std::set<unsigned> with_memory = node_list("has_memory");
    for (const unsigned node : node_list("online")) {
        if (with_memory.contains(node)) continue;
        CAPTURE(node);
        object_pool<> pool;
        REQUIRE(pool.open({.node = node}));
        CHECK(pool.binding().is_denied());
        CHECK(pool.binding().cause.view().find("node " + std::to_string(node)) !=
              std::string_view::npos);
        void* const object = pool.allocate(64);
        REQUIRE(object != nullptr);
        std::memset(object, 1, 64);

        numa_allocator<local_first> allocator;
        REQUIRE(allocator.init());
        guest_ram_request request;
        request.split = {{4 * MiB, node}};
        const auto wrong = allocator.allocate(request);
        REQUIRE_FALSE(wrong);
        CHECK(wrong.error() == errc::out_of_range);
        CHECK_THAT(std::string{wrong.error().cause.view()},
                   Catch::Contains("node " + std::to_string(node)));
        return;
    }
    std::cout << "SKIP: every node of this machine has memory\n";
}

TEST_CASE("several nodes: a node that the cpuset excludes is not in use", "[kernel]") {
    numa_allocator<load_balanced> allocator;
    REQUIRE(allocator.init());
    const std::vector<unsigned> used = allocator.nodes_in_use();
    const std::set<unsigned> allowed = allowed_nodes();
    for (const unsigned node : node_list("has_memory")) {
        CAPTURE(node);
        const bool in_use = std::find(used.begin(), used.end(), node) != used.end();
        CHECK(in_use == allowed.contains(node));
        guest_ram_request request;
        request.split = {{2 * MiB, node}};
        request.prefault_threads = 1;
        const auto region = allocator.allocate(request);
        CHECK(region.has_value() == in_use);
        if (!region) CHECK(region.error() == errc::out_of_range);
    }
}

TEST_CASE("several nodes: where binding is refused, pages come from threads on the node",
          "[kernel]") {
    numa_allocator<local_first> allocator;
    REQUIRE(allocator.init());
    const std::vector<unsigned> nodes = allocator.nodes_in_use();
    std::vector<unsigned> with_cpus;
    for (const unsigned node : nodes)
        if (!in_common(cpus_of(node), allowed_cpus()).empty()) with_cpus.push_back(node);
    if (with_cpus.size() < 2) {
        std::cout << "SKIP: memory on two nodes is needed, and this process may use that of one\n";
        return;
    }
    guest_ram_request request;
    for (const unsigned node : with_cpus)
        request.split.push_back({6 * MiB, node});
    request.prefault_threads = static_cast<unsigned>(with_cpus.size());
    result<ram_region> region = fail(errc::unavailable, "not made", "");
    result<ram_region> strict = fail(errc::unavailable, "not made", "");
    bool filtered = false;
    auto body = [&]() noexcept {
        filtered = refuse_binding();
        if (!filtered) return;
        region = allocator.allocate(request);
        request.strict = true;
        strict = allocator.allocate(request);
    };
    os::worker_thread worker;
    REQUIRE(worker.start(body));
    worker.join();
    if (!filtered) {
        std::cout << "SKIP: this kernel lets nobody filter system calls\n";
        return;
    }
    REQUIRE(region);
    REQUIRE_FALSE(strict);
    CHECK(strict.error() == errc::permission_denied);
    bool placed = true;
    for (const ram_chunk& chunk : region->chunks()) {
        CHECK(chunk.binding.state == grant_state::refused);
        CHECK(chunk.binding.code == errc::permission_denied);
        placed = placed && chunk.prefault.state == grant_state::enforced;
    }
    if (!placed) {
        std::cout << "SKIP: this process may not pin threads\n";
        return;
    }
    if (const int node = node_of_page(region->data()); node < 0) {
        std::cout << "SKIP: asking where pages lie (move_pages): " << std::strerror(-node) << '\n';
        return;
    }
    check_pages(*region);
}

#endif
