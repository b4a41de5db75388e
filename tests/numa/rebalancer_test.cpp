/// Sample, decide, migrate on a machine of pages: memory follows its vCPUs, comes to
/// rest, and every refusal is told.
#include "paged_machine.hpp"

#include <vm_accel/numa/local_first.hpp>
#include <vm_accel/numa/numa_allocator.hpp>
#include <vm_accel/numa/rebalancer.hpp>
#include <vm_accel/topology/regular.hpp>

#include <catch2/catch.hpp>

#include <sstream>
#include <string>
#include <vector>

using namespace vm_accel_test;

namespace {

constexpr std::uint64_t KiB = 1024;
constexpr std::uint64_t MiB = 1u << 20;
constexpr std::size_t region_pages = 1024; // 4 MiB in pieces of 256 KiB, granules of 64 KiB

/// Four nodes of two CPUs, 0 and 1 near each other, 2 and 3 as well, each with 16 MiB;
/// a region of two guest nodes, bound to nodes 0 and 1 and populated.
struct followed_machine {
    paged_memory memory{};
    paged_placement placement{memory.machine};
    paged_machine& machine = *memory.machine;
    cpu_topology topology = make_topology({2, 2, 2, 1, 16 * MiB});
    basic_ram_region<paged_memory> region{};
    rebalance_options options{};

    followed_machine() {
        options.following.piece_bytes = 256 * KiB;
        options.limits.settle_rounds = 1;
        for (unsigned node = 0; node < 4; ++node)
            machine.free[node] = 16 * MiB;
        numa_allocator<local_first, paged_memory, os::unsupported_threads> allocator{memory, {}};
        REQUIRE(allocator.init(topology));
        guest_ram_request request;
        request.split = {{2 * MiB, 0}, {2 * MiB, 1}};
        request.prefault_threads = 1;
        auto made = allocator.allocate(request);
        REQUIRE(made);
        region = std::move(*made);
        REQUIRE(machine.pages_on(0) == 512);
        REQUIRE(machine.pages_on(1) == 512);
        machine.bindings.clear();
    }
    using rebalancer_type = rebalancer<adaptive, paged_memory, paged_placement>;
    /// vCPU 100 + n belongs to guest node n.
    void follow(rebalancer_type& of) {
        of.add_region(region);
        of.add_vcpu(os::thread_id{100}, 0);
        of.add_vcpu(os::thread_id{101}, 1);
    }
    /// The vCPUs run for a while on these CPUs.
    void run(unsigned cpu_of_0, unsigned cpu_of_1) {
        machine.threads[100] = {cpu_of_0, machine.threads[100].run_ns + 1'000'000};
        machine.threads[101] = {cpu_of_1, machine.threads[101].run_ns + 1'000'000};
    }
};

struct facts {
    std::map<std::string, std::string> values{};
    template <class T>
    void fact(std::string_view name, const T& value) {
        std::ostringstream text;
        text << value;
        values[std::string{name}] = text.str();
    }
};

} // namespace

TEST_CASE("memory follows its vCPUs within the budget, and comes to rest") {
    followed_machine on;
    on.options.limits.budget = 1 * MiB;
    followed_machine::rebalancer_type follow{on.topology, on.options, on.memory, on.placement};
    on.follow(follow);
    on.run(6, 2); // nodes 3 and 1
    unsigned quiet = 0;
    std::uint64_t moved = 0;
    for (unsigned round = 1; round < 20 && quiet < 3; ++round) {
        const auto done = follow.rebalance();
        REQUIRE(done);
        CHECK(done->number == round);
        CHECK(done->vcpus_seen == 2);
        CHECK(done->sampling == grant::enforced());
        CHECK(done->bytes_moved <= 1 * MiB);
        CHECK(done->bytes_moved == done->pages.moved * 4096);
        CHECK((done->moving.state == grant_state::not_requested) == done->plan.empty());
        if (round == 1) CHECK(done->accesses.all.rate == Approx(.5));
        moved += done->bytes_moved;
        quiet = done->plan.empty() ? quiet + 1 : 0;
        on.run(6, 2);
    }
    CHECK(quiet == 3);
    CHECK(moved == 2 * MiB);
    CHECK(on.machine.pages_on(3) == 512);
    CHECK(on.machine.pages_on(1) == 512);
    CHECK(follow.accesses().all == local_access_rate{1, access_source::placement_estimate});
    // Later pages of what moved go there too.
    CHECK(on.machine.bindings.size() == 8);
    for (const auto& binding : on.machine.bindings)
        CHECK((binding.node == 3 && binding.mode == os::bind_mode::bind));
    for (const followed_piece& piece : follow.pieces())
        CHECK(piece.node == (piece.guest_node == 0 ? 3u : 1u));

    facts report;
    follow.report(report);
    CHECK(report.values["bytes that followed vCPUs"] == std::to_string(2 * MiB));
    CHECK(report.values["local access rate"] == "1");
    CHECK(report.values["local access rate by"] == "placement estimate");
    CHECK(report.values["accesses not counted"] == "no events by node");
    CHECK(report.values.count("last refusal of a move") == 0);
}

TEST_CASE("a vCPU counts by the time that it ran, and less the longer that is ago") {
    followed_machine on;
    followed_machine::rebalancer_type follow{on.topology, on.options, on.memory, on.placement};
    on.follow(follow);
    on.run(0, 2);
    follow.sample_vcpus();
    on.machine.threads[100] = {0, 100'000'000}; // nine times as long here
    follow.sample_vcpus();
    on.machine.threads[100] = {6, 111'000'000}; // as there
    for (int asleep = 0; asleep < 100; ++asleep)
        follow.sample_vcpus();
    const auto first = follow.rebalance();
    REQUIRE(first);
    CHECK(first->accesses.vcpus[0].rate == Approx(.9).margin(.001));
    CHECK(first->plan.empty());
    for (int i = 0; i < 8; ++i) {
        on.machine.threads[100].run_ns += 10'000'000; // in all less than it ran here before
        REQUIRE(follow.rebalance());
    }
    CHECK(on.machine.pages_on(3) == 512);
}

TEST_CASE("a vCPU that cannot be seen is left out, and it is said why") {
    followed_machine on;
    followed_machine::rebalancer_type follow{on.topology, on.options, on.memory, on.placement};
    on.follow(follow);
    on.run(6, 2);
    on.machine.threads.erase(101);
    auto round = follow.rebalance();
    REQUIRE(round);
    CHECK(round->vcpus_seen == 1);
    CHECK(follow.why_not_seen()->code == errc::not_found);
    on.machine.threads[101] = {77, 5};
    round = follow.rebalance();
    REQUIRE(round);
    CHECK(round->vcpus_seen == 1);
    CHECK_THAT(std::string{follow.why_not_seen()->cause.view()}, Catch::Contains("CPU 77"));
    follow.remove_vcpu(os::thread_id{101});
    CHECK(follow.rebalance()->accesses.vcpus.size() == 1);
}

TEST_CASE("refusals are told in the round, and are no errors") {
    struct row {
        const char* name;
        void (*refuse)(paged_machine&);
        grant_state sampling, moving;
        const char* cause;
    };
    const row r = GENERATE(values<row>({
        {"move_pages refused as in a container",
         [](paged_machine& m) { m.refuse_move = error{errc::permission_denied, 1, "no moves"}; },
         grant_state::enforced, grant_state::refused, "no moves"},
        {"no move_pages in the kernel",
         [](paged_machine& m) { m.refuse_move = error{errc::unsupported, 38, "no call"}; },
         grant_state::enforced, grant_state::unsupported, "no call"},
        {"asking refused",
         [](paged_machine& m) { m.refuse_query = error{errc::permission_denied, 1, "no asking"}; },
         grant_state::refused, grant_state::not_requested, "no asking"},
        {"every page pinned by a device",
         [](paged_machine& m) {
             for (std::size_t i = 0; i < region_pages; ++i)
                 m.stuck[i] = os::page_fate::busy;
         },
         grant_state::enforced, grant_state::preferred, "busy"},
        {"binding refused", // pages moved all the same
         [](paged_machine& m) { m.refuse_bind = error{errc::permission_denied, 1, "no mbind"}; },
         grant_state::enforced, grant_state::enforced, ""},
    }));
    CAPTURE(r.name);
    followed_machine on;
    r.refuse(on.machine);
    followed_machine::rebalancer_type follow{on.topology, on.options, on.memory, on.placement};
    on.follow(follow);
    on.run(6, 2);
    const auto round = follow.rebalance();
    REQUIRE(round);
    CHECK(round->sampling.state == r.sampling);
    CHECK(round->moving.state == r.moving);
    const std::string told =
        std::string{round->moving.cause.view()} + " " + std::string{round->sampling.cause.view()};
    CHECK_THAT(told, Catch::Contains(r.cause));
    if (r.moving == grant_state::enforced) {
        CHECK(round->pages.moved == 512);
        CHECK(round->pieces_bound == 0);
        CHECK(follow.pieces()[0].binding.state == grant_state::refused);
    } else {
        CHECK(round->pages.moved == 0);
    }
}

TEST_CASE("what cannot move is tried less and less often") {
    followed_machine on;
    for (std::size_t i = 0; i < region_pages; ++i)
        on.machine.stuck[i] = os::page_fate::busy;
    followed_machine::rebalancer_type follow{on.topology, on.options, on.memory, on.placement};
    on.follow(follow);
    unsigned tried = 0;
    for (int round = 0; round < 100; ++round) {
        on.run(6, 2);
        tried += follow.rebalance()->plan.empty() ? 0 : 1;
    }
    CHECK(tried > 2);
    CHECK(tried < 10);
    on.machine.stuck.clear(); // the device has gone
    for (int round = 0; round < 70; ++round) {
        on.run(6, 2);
        REQUIRE(follow.rebalance());
    }
    CHECK(on.machine.pages_on(3) == 512);
}

TEST_CASE("where memory may go: allowed nodes with room, memory and a margin") {
    struct row {
        const char* name;
        void (*arrange)(followed_machine&);
        std::vector<std::size_t> pages; ///< by node, in the end
    };
    const row r = GENERATE(values<row>({
        {"anywhere", [](followed_machine&) {}, {0, 512, 0, 512}},
        {"the cpuset excludes node 3: its neighbour",
         [](followed_machine& on) { on.machine.allowed = {0, 1, 2}; },
         {0, 512, 512, 0}},
        {"the cpuset excludes all near ones",
         [](followed_machine& on) { on.machine.allowed = {0, 1}; },
         {512, 512, 0, 0}},
        {"node 3 has no memory",
         [](followed_machine& on) { on.topology.nodes[3].memory_bytes = 0; },
         {0, 512, 512, 0}},
        {"node 3 has no CPUs: nobody runs there, so nothing goes there",
         [](followed_machine& on) {
             on.topology.nodes[3].cpus.clear();
             on.topology.cpus[6].node = on.topology.cpus[7].node = 2;
         },
         {0, 512, 512, 0}},
        {"node 3 is nearly full: the rest goes next to it",
         [](followed_machine& on) { on.machine.free[3] = 1 * MiB + 16 * MiB / 100 * 3; },
         {0, 512, 256, 256}},
        {"node 3 has no more than its margin",
         [](followed_machine& on) { on.machine.free[3] = 16 * MiB / 100 * 3; },
         {0, 512, 512, 0}},
    }));
    CAPTURE(r.name);
    followed_machine on;
    r.arrange(on);
    followed_machine::rebalancer_type follow{on.topology, on.options, on.memory, on.placement};
    on.follow(follow);
    for (int round = 0; round < 10; ++round) {
        on.run(6, 2);
        REQUIRE(follow.rebalance());
    }
    for (int node = 0; node < 4; ++node)
        CHECK(on.machine.pages_on(node) == r.pages[static_cast<std::size_t>(node)]);
}

TEST_CASE("counters of the processor, where there are some, tell the rate since the last round") {
    followed_machine on;
    on.machine.counted[100] = {1000, 0}; // before it was followed
    on.machine.counted[101] = {0, 0};
    on.options.limits.budget = 0;
    followed_machine::rebalancer_type follow{on.topology, on.options, on.memory, on.placement};
    on.follow(follow);
    on.run(0, 2);
    REQUIRE(follow.rebalance());
    on.machine.counted[100] = {1300, 100};
    on.machine.counted[101] = {50, 50};
    on.run(0, 2);
    const auto round = follow.rebalance();
    REQUIRE(round);
    CHECK(round->accesses.vcpus[0] == local_access_rate{.75, access_source::hardware_counter});
    CHECK(round->accesses.all.source == access_source::hardware_counter);
    CHECK(round->accesses.all.rate == Approx(.625).margin(.001));
    CHECK_FALSE(follow.why_not_counted());
}

TEST_CASE("a region that is gone is not followed; a described machine is left alone") {
    followed_machine on;
    followed_machine::rebalancer_type follow{on.topology, on.options, on.memory, on.placement};
    on.follow(follow);
    CHECK(follow.pieces().size() == 16);
    follow.remove_region(on.region);
    CHECK(follow.pieces().empty());
    on.run(6, 2);
    CHECK(follow.rebalance()->plan.empty());

    rebalancer<> described{make_topology({2, 2, 2, 1, 16 * MiB})};
    const auto refused = described.rebalance();
    REQUIRE_FALSE(refused);
    CHECK(refused.error() == errc::unsupported);
}
