/// The allocator on a simulated machine: the order of calls, every refusal, and
/// what the region then says. tests/numa/guest_ram_test.cpp asks the kernel.
#include "simulated_memory.hpp"

#include <vm_accel/numa/load_balanced.hpp>
#include <vm_accel/numa/local_first.hpp>
#include <vm_accel/numa/numa_allocator.hpp>
#include <vm_accel/topology/regular.hpp>

#include <catch2/catch.hpp>

#include <algorithm>
#include <map>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

using namespace vm_accel_test;

namespace {

constexpr std::uint64_t MiB = 1u << 20;

template <class Strategy>
using simulated_allocator = numa_allocator<Strategy, simulated_memory, simulated_threads>;

/// An allocator on a machine of four nodes: 0, 1 in one package, 2, 3 in another,
/// each with 64 MiB and CPUs 2n and 2n + 1.
template <class Strategy = local_first>
struct on_four_nodes {
    simulated_memory memory{};
    simulated_threads threads{memory.machine};
    simulated_allocator<Strategy> allocator{memory, threads};
    simulated_machine& machine = *memory.machine;

    on_four_nodes() { REQUIRE(allocator.init(make_topology({2, 2, 2, 1, 64 * MiB}))); }
};

/// What report() writes, as text.
struct recorded_facts {
    std::map<std::string, std::string> values{};
    void given(std::string_view) {}
    template <class T>
    void fact(std::string_view name, const T& value) {
        std::ostringstream text;
        text << value;
        values[std::string{name}] = text.str();
    }
};

guest_ram_request plain(std::uint64_t bytes) {
    guest_ram_request request;
    request.bytes = bytes;
    return request;
}

guest_ram_request split_over(std::vector<guest_node_request> split) {
    guest_ram_request request;
    request.split = std::move(split);
    return request;
}

} // namespace

using strategies = std::tuple<local_first, load_balanced>;

TEMPLATE_LIST_TEST_CASE("allocator contract: order of calls", "", strategies) {
    on_four_nodes<TestType> on;
    guest_ram_request request = split_over({{8 * MiB, 1}, {8 * MiB, 3}});
    request.huge_pages = huge_page_use::advise;
    request.prefault_threads = 4;
    {
        const auto region = on.allocator.allocate(request);
        REQUIRE(region);
        const auto phase = [](const std::string& call) {
            if (call == "map") return 0;
            if (call.substr(0, 4) == "bind") return 1;
            if (call == "advise") return 2;
            if (call == "pin") return 3;
            return call == "populate" ? 4 : 9;
        };
        std::vector<int> phases;
        for (const std::string& call : on.machine.log)
            phases.push_back(phase(call));
        CHECK(phases == std::vector<int>{0, 1, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4});
        CHECK(on.machine.live_bytes() == 16 * MiB);
    }
    CHECK(on.machine.log.back() == "unmap");
    CHECK(on.machine.live_bytes() == 0);
}

TEMPLATE_LIST_TEST_CASE("allocator contract: the region covers the request, and says where", "",
                        strategies) {
    on_four_nodes<TestType> on;
    guest_ram_request request = split_over({{12 * MiB}, {4 * MiB, 2}, {4096, 0}});
    request.prefault_threads = 3;
    const auto region = on.allocator.allocate(request);
    REQUIRE(region);
    CHECK(region->bytes() == 16 * MiB + 4096);
    std::uint64_t at = 0;
    for (const ram_chunk& chunk : region->chunks()) {
        CHECK(chunk.offset == at);
        CHECK(chunk.binding == grant::enforced());
        CHECK(chunk.prefault == grant::enforced());
        CHECK(chunk.huge_pages == grant{});
        at += chunk.bytes;
    }
    CHECK(at == region->bytes());
    CHECK(region->guest_node(0) == std::pair<std::uint64_t, std::uint64_t>{0, 12 * MiB});
    CHECK(region->guest_node(1) == std::pair<std::uint64_t, std::uint64_t>{12 * MiB, 4 * MiB});
    CHECK(region->guest_node(2).second == 4096);
    CHECK(region->guest_node(3).second == 0);
    CHECK(region->chunks().back().node == 0);

    // Each byte was populated once, by nobody else's hands twice.
    std::uint64_t populated = 0;
    for (const auto& p : on.machine.populated)
        populated += p.bytes;
    CHECK(populated == region->bytes());
    const auto report = region->placement();
    REQUIRE(report);
    CHECK(report->as_planned());
    for (const chunk_placement& c : report->chunks) {
        CHECK(c.asked == c.chunk.bytes / 4096);
        CHECK(c.local() == c.asked);
    }
    std::ostringstream text;
    text << *report;
    CHECK_THAT(text.str(), Catch::Contains("guest node 1 +12 MiB, 4 MiB -> node 2") &&
                               Catch::Contains("binding enforced; pages 1024 on node 2"));
}

TEMPLATE_LIST_TEST_CASE("allocator contract: wrong use is an error and changes nothing", "",
                        strategies) {
    simulated_allocator<TestType> fresh;
    CHECK(fresh.allocate(plain(MiB)).error() == errc::not_initialized);
    CHECK(fresh.enable(1).error() == errc::not_initialized);
    CHECK(fresh.disable().error() == errc::not_initialized);
    CHECK_FALSE(fresh.is_enabled());
    CHECK(fresh.init(make_topology({1, 1, 1, 1, 0})).error() == errc::unavailable);
    CHECK_FALSE(fresh.is_initialized());

    on_four_nodes<TestType> on;
    CHECK(on.allocator.init(make_topology({})).error() == errc::already_initialized);
    CHECK(on.allocator.init().error() == errc::already_initialized);
    REQUIRE(on.allocator.enable(3));
    struct row {
        guest_ram_request request;
        errc code;
    };
    guest_ram_request contradictory = split_over({{MiB}, {MiB}});
    contradictory.bytes = 3 * MiB;
    const row r = GENERATE_COPY(values<row>({
        {plain(0), errc::invalid_argument},
        {plain(4097), errc::invalid_argument},
        {plain(~std::uint64_t{0}), errc::invalid_argument},
        {plain(std::uint64_t{1} << 60), errc::invalid_argument},
        {split_over({{MiB}, {0}}), errc::invalid_argument},
        {split_over({{MiB}, {100}}), errc::invalid_argument},
        {split_over({{std::uint64_t{1} << 63}, {std::uint64_t{1} << 63}}), errc::invalid_argument},
        {contradictory, errc::invalid_argument},
        {split_over({{MiB, 0}, {MiB, 9}}), errc::out_of_range},
        {split_over({{MiB, 3}}), errc::out_of_range}, // there, but not in use
    }));
    const auto region = on.allocator.allocate(r.request);
    REQUIRE_FALSE(region);
    CHECK(region.error() == r.code);
    CHECK_FALSE(region.error().cure.empty());
    CHECK(on.machine.log.empty());

    CHECK(on.allocator.enable(5).error() == errc::out_of_range);
    CHECK(on.allocator.enable(0).error() == errc::invalid_argument);
    CHECK(on.allocator.nodes_in_use() == std::vector<unsigned>{0, 1, 2});
}

TEMPLATE_LIST_TEST_CASE("allocator contract: a mapping that fails leaves nothing", "", strategies) {
    on_four_nodes<TestType> on;
    on.machine.refuse_map = refusal(errc::exhausted, "no address space");
    const auto region = on.allocator.allocate(plain(MiB));
    REQUIRE_FALSE(region);
    CHECK(region.error() == errc::exhausted);
    CHECK(on.machine.log == std::vector<std::string>{"map"});
}

TEST_CASE("disabled: memory lies where the kernel likes, and the region says so") {
    on_four_nodes on;
    REQUIRE(on.allocator.disable());
    CHECK_FALSE(on.allocator.is_enabled());
    CHECK(on.allocator.nodes_in_use().empty());
    for (const unsigned node : {3u, 77u}) { // a wish that nobody would keep
        const auto wished = on.allocator.allocate(split_over({{MiB}, {MiB, node}}));
        REQUIRE_FALSE(wished);
        CHECK(wished.error() == errc::out_of_range);
        CHECK_THAT(std::string{wished.error().cause.view()},
                   Catch::Contains("guest node 1 is to lie on node " + std::to_string(node) +
                                   ", but NUMA placement is off"));
    }
    guest_ram_request request = split_over({{MiB}, {MiB}});
    request.prefault_threads = 1;
    request.strict = true; // nothing was asked for that could be refused
    const auto region = on.allocator.allocate(request);
    REQUIRE(region);
    REQUIRE(region->chunks().size() == 2);
    for (const ram_chunk& chunk : region->chunks()) {
        CHECK(chunk.node == any_node);
        CHECK(chunk.binding.state == grant_state::not_requested);
    }
    CHECK(std::none_of(on.machine.log.begin(), on.machine.log.end(), [](const std::string& call) {
        return call.substr(0, 4) == "bind" || call.substr(0, 6) == "prefer" || call == "pin";
    }));
    CHECK(region->placement()->as_planned());
    REQUIRE(on.allocator.enable(2));
    CHECK(on.allocator.nodes_in_use() == std::vector<unsigned>{0, 1});
}

TEST_CASE("a split without host nodes goes to the nodes in use, one after another") {
    on_four_nodes on;
    REQUIRE(on.allocator.enable(2));
    const auto region = on.allocator.allocate(split_over({{MiB}, {MiB}, {MiB}}));
    REQUIRE(region);
    std::vector<unsigned> nodes;
    for (const ram_chunk& chunk : region->chunks())
        nodes.push_back(chunk.node);
    CHECK(nodes == std::vector<unsigned>{0, 1, 0});
}

TEST_CASE("free memory, not size, decides what fits") {
    on_four_nodes on;
    on.machine.tells_free = true;
    on.machine.free = {{0, 6 * MiB}, {1, 64 * MiB}, {2, 64 * MiB}, {3, 64 * MiB}};
    const auto region = on.allocator.allocate(plain(16 * MiB));
    REQUIRE(region);
    REQUIRE(region->chunks().size() == 2);
    CHECK(region->chunks()[0].node == 0);
    CHECK(region->chunks()[0].bytes == 6 * MiB);
    CHECK(region->chunks()[1].node == 1);
}

TEST_CASE("refusals are told in the region, and are errors when the request is strict") {
    struct row {
        const char* what;
        void (*refuse)(simulated_machine&);
        grant_state binding, huge_pages, prefault;
        errc strict;
    };
    const auto denied = [](simulated_machine& m) {
        m.refuse_bind = m.refuse_prefer = refusal(errc::permission_denied, "mbind: refused");
    };
    const row r = GENERATE_COPY(values<row>({
        {"mbind refused as in a container", denied, grant_state::refused, grant_state::preferred,
         grant_state::enforced, errc::permission_denied},
        {"no mbind in the kernel",
         [](simulated_machine& m) {
             m.refuse_bind = m.refuse_prefer = refusal(errc::unsupported, "mbind: no such call");
         },
         grant_state::unsupported, grant_state::preferred, grant_state::enforced,
         errc::unsupported},
        {"only a preference is granted",
         [](simulated_machine& m) {
             m.refuse_bind = refusal(errc::invalid_argument, "node excluded by cpuset");
         },
         grant_state::preferred, grant_state::preferred, grant_state::enforced,
         errc::invalid_argument},
        {"mbind accepted and ignored", [](simulated_machine& m) { m.forget_bindings = true; },
         grant_state::refused, grant_state::preferred, grant_state::enforced,
         errc::permission_denied},
        {"the policy cannot be read back",
         [](simulated_machine& m) {
             m.refuse_policy = refusal(errc::permission_denied, "get_mempolicy: refused");
         },
         grant_state::preferred, grant_state::preferred, grant_state::enforced,
         errc::permission_denied},
        {"no huge pages",
         [](simulated_machine& m) {
             m.refuse_advice = refusal(errc::unsupported, "no transparent huge pages");
         },
         grant_state::enforced, grant_state::unsupported, grant_state::enforced, errc::unsupported},
        {"populating fails",
         [](simulated_machine& m) {
             m.refuse_populate = refusal(errc::exhausted, "populating: no memory");
         },
         grant_state::enforced, grant_state::preferred, grant_state::refused, errc::exhausted},
    }));
    INFO(r.what);
    guest_ram_request request = split_over({{4 * MiB, 2}});
    request.huge_pages = huge_page_use::advise;
    request.prefault_threads = 2;
    {
        on_four_nodes on;
        r.refuse(on.machine);
        const auto region = on.allocator.allocate(request);
        REQUIRE(region); // never a failed VM
        const ram_chunk& chunk = region->chunks()[0];
        CHECK(chunk.binding.state == r.binding);
        CHECK(chunk.huge_pages.state == r.huge_pages);
        CHECK(chunk.prefault.state == r.prefault);
        for (const grant& g : {chunk.binding, chunk.huge_pages, chunk.prefault})
            CHECK(g.cause.empty() == (g.state == grant_state::enforced));
    }
    on_four_nodes strict;
    r.refuse(strict.machine);
    request.strict = true;
    const auto region = strict.allocator.allocate(request);
    REQUIRE_FALSE(region);
    CHECK(region.error() == r.strict);
    CHECK_FALSE(region.error().cause.empty());
    // What the kernel said and its cure arrive whole; "mbind accepted" has neither.
    const bool kernel_spoke = !strict.machine.forget_bindings && !strict.machine.refuse_policy;
    CHECK(region.error().os_error == (kernel_spoke ? 1 : 0));
    CHECK((region.error().cure == "none") == kernel_spoke);
    CHECK(strict.machine.live_bytes() == 0);
}

TEST_CASE("a prefault that fails is told by the report and by placement") {
    on_four_nodes on;
    on.machine.refuse_populate = refusal(errc::exhausted, "populating: no memory");
    guest_ram_request request = split_over({{2 * MiB, 1}, {2 * MiB, 2}});
    request.prefault_threads = 2;
    const auto region = on.allocator.allocate(request);
    REQUIRE(region);
    const auto placement = region->placement();
    REQUIRE(placement);
    std::ostringstream text;
    text << *placement;
    CHECK_THAT(text.str(), Catch::Contains("512 absent; prefault refused (populating: no memory)"));

    recorded_facts report;
    on.allocator.report(report);
    CHECK(report.values["chunks not prefaulted"] == "2");
    CHECK(report.values["chunks not bound"] == "0");
    CHECK(report.values["last refusal"] == "populating: no memory");
}

TEST_CASE("pages on the wrong node: told by placement, an error when strict") {
    guest_ram_request request = split_over({{2 * MiB, 1}});
    request.prefault_threads = 1;
    on_four_nodes on;
    on.machine.stray_node = 3;
    const auto region = on.allocator.allocate(request);
    REQUIRE(region);
    const auto report = region->placement();
    REQUIRE(report);
    CHECK_FALSE(report->as_planned());
    CHECK(report->chunks[0].local() == 0);
    CHECK(report->chunks[0].on_nodes == std::vector<pages_on_node>{{3, 512}});

    request.strict = true;
    const auto strict = on.allocator.allocate(request);
    REQUIRE_FALSE(strict);
    CHECK(strict.error() == errc::mismatch);
    CHECK_THAT(std::string{strict.error().cause.view()},
               Catch::Contains("512 of 512 pages are not on node 1"));

    on.machine.refuse_query = refusal(errc::permission_denied, "move_pages: refused");
    CHECK(region->placement().error() == errc::permission_denied);
    CHECK(on.allocator.allocate(request).error() == errc::permission_denied);
}

TEST_CASE("strict: no room on the nodes fails before anything is mapped") {
    on_four_nodes on;
    guest_ram_request request = plain(300 * MiB);
    const auto lenient = on.allocator.allocate(request);
    REQUIRE(lenient);
    CHECK(lenient->chunks().back().mode == os::bind_mode::prefer);
    CHECK(lenient->chunks().back().binding.state == grant_state::preferred);
    on.machine.log.clear();
    request.strict = true;
    CHECK(on.allocator.allocate(request).error() == errc::exhausted);
    CHECK(on.machine.log.empty());
}

TEST_CASE("prefault threads run on the CPUs of the node, or near a node without CPUs") {
    simulated_memory memory;
    simulated_threads threads{memory.machine};
    simulated_allocator<local_first> allocator{memory, threads};
    cpu_topology t = make_topology({2, 2, 2, 1, 64 * MiB});
    t.nodes[1].cpus.clear(); // memory only; node 0 is the nearest with CPUs
    for (const unsigned cpu : {2u, 3u})
        t.cpus[cpu].node = 0;
    t.nodes[0].cpus = {0, 1, 2, 3};
    REQUIRE(allocator.init(t));
    guest_ram_request request = split_over({{4 * MiB, 1}, {4 * MiB, 3}});
    request.prefault_threads = 2;
    REQUIRE(allocator.allocate(request));
    auto pins = memory.machine->pins;
    REQUIRE(pins.size() == 2);
    std::sort(pins.begin(), pins.end(),
              [](const auto& a, const auto& b) { return a.next(0) < b.next(0); });
    CHECK(pins[0] == t.cpu_set_of_node(0));
    CHECK(pins[1] == t.cpu_set_of_node(3));

    memory.machine->refuse_pin = refusal(errc::permission_denied, "no pin");
    const auto region = allocator.allocate(request);
    REQUIRE(region);
    CHECK(region->chunks()[0].prefault == grant::preferred("no pin"));
}

TEST_CASE("a memory file is handed out with the region") {
    on_four_nodes on;
    guest_ram_request request = plain(MiB);
    CHECK(on.allocator.allocate(request)->file() == -1);
    request.memfd = true;
    CHECK(on.allocator.allocate(request)->file() == 1000);
}

TEST_CASE("regions move, and are unmapped once") {
    on_four_nodes on;
    auto first = on.allocator.allocate(plain(MiB));
    auto second = on.allocator.allocate(plain(2 * MiB));
    REQUIRE(first);
    REQUIRE(second);
    std::byte* const kept = second->data();
    *first = std::move(*second);
    CHECK(on.machine.live_bytes() == 2 * MiB);
    CHECK(first->data() == kept);
    CHECK(second->empty());
    CHECK(second->chunks().empty());
    *second = {};
    CHECK(on.machine.live_bytes() == 2 * MiB);
    *first = {};
    CHECK(on.machine.live_bytes() == 0);
}

TEST_CASE("shares of threads: in proportion, one at least, no more than granules") {
    struct row {
        std::uint64_t bytes, total;
        unsigned threads;
        std::uint64_t granule;
        unsigned expected;
    };
    const row r = GENERATE(values<row>({
        {100, 100, 8, 1, 8},
        {50, 100, 8, 1, 4},
        {1, 1000, 8, 1, 1},
        {4, 8, 100, 2, 2},
        {5, 8, 100, 2, 3},
        {0, 100, 8, 1, 0},
        {100, 0, 8, 1, 0},
        {100, 100, 0, 1, 1},
        {100, 100, 8, 0, 8},
    }));
    CHECK(threads_for(r.bytes, r.total, r.threads, r.granule) == r.expected);
}

TEST_CASE("prefault: every byte once, whatever the sizes and threads") {
    const auto [mib, kib, threads] = GENERATE(table<unsigned, unsigned, unsigned>({
        {1, 0, 1},
        {1, 0, 64},
        {7, 4, 3},
        {64, 0, 5},
        {13, 8, 16},
        {0, 4, 9},
    }));
    on_four_nodes on;
    guest_ram_request request = split_over({{mib * MiB + kib * 1024, 2}, {3 * MiB, 2}, {MiB, 0}});
    request.prefault_threads = threads;
    const auto region = on.allocator.allocate(request);
    REQUIRE(region);
    auto done = on.machine.populated;
    std::sort(done.begin(), done.end(),
              [](const auto& a, const auto& b) { return a.address < b.address; });
    const std::byte* at = region->data();
    for (const auto& p : done) {
        CHECK(p.address == at);
        at += p.bytes;
    }
    CHECK(at == region->data() + region->bytes());
    CHECK(on.machine.pins.size() <= threads + 3); // one at least for each of four nodes
}
