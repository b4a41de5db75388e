/// Memory of this machine follows a thread of this machine: where there are two nodes
/// with CPUs and memory, from one to the other.
#include <vm_accel/numa/local_first.hpp>
#include <vm_accel/numa/numa_allocator.hpp>
#include <vm_accel/numa/rebalancer.hpp>
#include <vm_accel/topology/load.hpp>

#include <catch2/catch.hpp>

#include <cstdint>
#include <ctime>
#include <iostream>
#include <vector>

using namespace vm_accel;

namespace {

constexpr std::uint64_t MiB = 1u << 20;

/// Runs for 10 ms of this thread's time: the kernel tells times from one tick to the next.
void run_for_a_while() {
    const auto ran_ns = [] {
        timespec time{};
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
        return time.tv_sec * 1'000'000'000 + time.tv_nsec;
    };
    for (const auto end = ran_ns() + 10'000'000; ran_ns() < end;) {}
}

} // namespace

TEST_CASE("guest RAM follows a vCPU that is pinned to another node", "[kernel][numa]") {
    const auto topology = load_topology();
    REQUIRE(topology);
    std::vector<unsigned> nodes; // that have both
    for (unsigned i = 0; i < topology->nodes.size(); ++i)
        if (topology->nodes[i].memory_bytes != 0 && !topology->nodes[i].cpus.empty())
            nodes.push_back(i);
    REQUIRE_FALSE(nodes.empty());
    const unsigned from = topology->nodes[nodes.front()].os_index;
    const unsigned to = topology->nodes[nodes.back()].os_index;

    numa_allocator<adaptive> allocator;
    REQUIRE(allocator.init(*topology));
    guest_ram_request request;
    request.split = {{8 * MiB, from}};
    request.prefault_threads = 1;
    const auto region = allocator.allocate(request);
    REQUIRE(region);
    const auto before = region->placement();
    const grant& bound = region->chunks()[0].binding;
    if (bound.state != grant_state::enforced || !before) {
        std::cout << "SKIP: " << (before ? bound.cause : before.error().cause).view() << '\n';
        return;
    }
    REQUIRE(before->chunks[0].on_nodes ==
            std::vector<pages_on_node>{{from, before->chunks[0].asked}});

    const os::native_threads threads;
    const auto pinned = threads.current_pin();
    REQUIRE(pinned);
    if (const auto done = threads.pin_current_thread(topology->cpu_set_of_node(nodes.back()));
        !done) {
        std::cout << "SKIP: " << done.error().cause.view() << '\n';
        return;
    }
    rebalance_options options;
    options.following.piece_bytes = 2 * MiB;
    options.limits.budget = 4 * MiB;
    options.limits.settle_rounds = 0;
    options.keep_free_percent = 1;
    rebalancer<> follow{*topology, options};
    follow.add_region(*region);
    REQUIRE(follow.add_this_vcpu(0));
    std::uint64_t moved = 0;
    for (int round = 0; round < 8; ++round) {
        run_for_a_while();
        const auto done = follow.rebalance();
        REQUIRE(done);
        if (done->moving.is_denied()) {
            std::cout << "SKIP: " << done->moving.cause.view() << '\n';
            static_cast<void>(threads.pin_current_thread(*pinned));
            return;
        }
        CHECK(done->vcpus_seen == 1);
        CHECK(done->bytes_moved <= 4 * MiB);
        moved += done->bytes_moved;
    }
    static_cast<void>(threads.pin_current_thread(*pinned));
    CHECK(moved == (from == to ? 0 : 8 * MiB));
    CHECK(follow.accesses().all.rate == 1);
    CHECK(follow.accesses().mean_distance == 10);
    const auto after = region->placement();
    REQUIRE(after);
    CHECK(after->chunks[0].on_nodes == std::vector<pages_on_node>{{to, after->chunks[0].asked}});
    for (const followed_piece& piece : follow.pieces()) {
        CHECK(piece.node == to);
        CHECK(os::native_memory{}.policy_of(piece.address)->node == to);
    }
}
