/// Requested against given, now: on a machine of pages that forgets, moves and refuses,
/// and on this one.
#include "paged_machine.hpp"

#include <vm_accel/numa/local_first.hpp>
#include <vm_accel/numa/numa_allocator.hpp>
#include <vm_accel/topology/regular.hpp>

#include <catch2/catch.hpp>

#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

using namespace vm_accel_test;

namespace {

constexpr std::uint64_t MiB = 1u << 20;

/// Two guest nodes of 2 MiB, bound to nodes 1 and 2, populated: 512 pages each.
struct placed {
    paged_memory memory{};
    paged_placement placement{memory.machine};
    paged_machine& machine = *memory.machine;
    numa_allocator<local_first, paged_memory, os::unsupported_threads> allocator{memory, {}};
    basic_ram_region<paged_memory> region{};

    explicit placed(bool refuse_bind = false) {
        if (refuse_bind)
            machine.refuse_bind = error{errc::permission_denied, 1, "mbind: no", "allow it"};
        for (unsigned node = 0; node < 4; ++node)
            machine.free[node] = 64 * MiB;
        REQUIRE(allocator.init(make_topology({2, 2, 2, 1, 64 * MiB})));
        guest_ram_request request;
        request.split = {{2 * MiB, 1}, {2 * MiB, 2}};
        request.prefault_threads = 1;
        auto made = allocator.allocate(request);
        REQUIRE(made);
        region = std::move(*made);
    }
};

struct facts {
    std::map<std::string, std::string> values{};
    void given(std::string_view) {}
    template <class T>
    void fact(std::string_view name, const T& value) {
        std::ostringstream text;
        text << value;
        values[std::string{name}] = text.str();
    }
};

} // namespace

TEST_CASE("verify: as requested, and what is not is told with its cause") {
    struct row {
        const char* name;
        void (*spoil)(placed&);
        bool as_requested;
        proof_source source;
        grant_state binding; ///< of the first chunk
        std::uint64_t wrong, present;
        errc strict; ///< errc{} with as_requested
        const char* told;
    };
    const proof_source query = proof_source::page_query;
    const row r = GENERATE_COPY(values<row>({
        {"all well", [](placed&) {}, true, query, grant_state::enforced, 0, 1024, errc{},
         "guest node 0 +0 MiB: asked for bind to node 1, given enforced; 512 of 512 pages there "
         "(query of pages)"},
        {"pages on a wrong node", [](placed& on) { on.machine.nodes[3] = on.machine.nodes[4] = 3; },
         false, query, grant_state::enforced, 2, 1024, errc::mismatch, "510 of 512 pages there"},
        {"pages without memory", [](placed& on) { on.machine.nodes[3] = os::page_absent; }, true,
         query, grant_state::enforced, 0, 1023, errc{}, "511 of 511 pages there, 1 absent"},
        {"pages of which the kernel does not tell",
         [](placed& on) { on.machine.nodes[3] = os::page_unknown; }, false, query,
         grant_state::enforced, 0, 1023, errc::mismatch, "1 unknown"},
        {"the policy was changed since",
         [](placed& on) { on.machine.bindings.push_back({0, 512, 3, os::bind_mode::bind}); }, false,
         query, grant_state::refused, 0, 1024, errc::permission_denied,
         "given refused (the kernel's policy is bind node 3 now)"},
        {"the policy was dropped", [](placed& on) { on.machine.bindings.clear(); }, false, query,
         grant_state::refused, 0, 1024, errc::permission_denied,
         "given refused (the kernel's policy is none node 0 now)"},
        {"the cpuset was narrowed", [](placed& on) { on.machine.allowed = {0, 2, 3}; }, false,
         query, grant_state::refused, 0, 1024, errc::permission_denied,
         "node 1 is outside the process's cpuset now"},
        {"pages may not be asked about, totals may",
         [](placed& on) {
             on.machine.refuse_query = error{errc::permission_denied, 1, "move_pages: no", "x"};
             on.machine.totals = {{1, 2 * MiB - 4096}, {2, 4096}};
         },
         false, proof_source::mapping_totals, grant_state::enforced, 1 + 511, 1024, errc::mismatch,
         "511 of 512 pages there (totals of mappings)"},
        {"nothing may be asked",
         [](placed& on) {
             on.machine.refuse_query = error{errc::permission_denied, 1, "move_pages: no", "x"};
             on.machine.refuse_totals = error{errc::not_found, 2, "no /proc", "x"};
         },
         false, proof_source::nothing, grant_state::enforced, 0, 0, errc::permission_denied,
         "0 of 0 pages there (nothing)"},
    }));
    CAPTURE(r.name);
    placed on;
    r.spoil(on);
    const auto proof = on.allocator.verify(on.region, {}, on.placement);
    REQUIRE(proof); // never a failed VM
    CHECK(proof->as_requested() == r.as_requested);
    CHECK(proof->source == r.source);
    CHECK(proof->chunks[0].binding.state == r.binding);
    CHECK(proof->wrong_pages() == r.wrong);
    CHECK(proof->pages_present() == r.present);
    CHECK((proof->source == query) == proof->why_not_better.cause.empty());
    std::ostringstream text;
    text << *proof;
    CHECK_THAT(text.str(), Catch::Contains(r.told));

    const auto strict = on.allocator.verify(on.region, {1, true}, on.placement);
    CHECK(strict.has_value() == (r.strict == errc{}));
    if (!strict) {
        CHECK(strict.error() == r.strict);
        CHECK_FALSE(strict.error().cure.empty());
    }
}

TEST_CASE("verify: a binding refused at set-up stays refused, with the kernel's words") {
    placed on{true};
    const auto proof = on.allocator.verify(on.region, {}, on.placement);
    REQUIRE(proof);
    CHECK(proof->chunks[0].binding.state == grant_state::refused);
    CHECK(proof->chunks[0].binding.cause == "mbind: no");
    CHECK(proof->wrong_pages() == 1024); // all went to node 0
    on.machine.nodes.assign(1024, 1);
    for (std::size_t i = 512; i < 1024; ++i)
        on.machine.nodes[i] = 2;
    const auto lucky = on.allocator.verify(on.region, {1, true}, on.placement);
    REQUIRE_FALSE(lucky); // they lie right, but nothing keeps them there
    CHECK(lucky.error() == errc::permission_denied);
    CHECK(lucky.error().cure == "allow it");
}

TEST_CASE("verify: a sample of the pages, and placement that is off") {
    placed on;
    const auto sampled = on.allocator.verify(on.region, {16}, on.placement);
    REQUIRE(sampled);
    CHECK(sampled->stride == 16);
    CHECK(sampled->pages_present() == 64);
    CHECK(sampled->samples(on.allocator.topology())[0].on_nodes ==
          std::vector<share_of_node>{{1, 2 * MiB}});

    REQUIRE(on.allocator.disable());
    guest_ram_request request;
    request.bytes = 2 * MiB;
    request.prefault_threads = 1;
    const auto anywhere = on.allocator.allocate(request);
    REQUIRE(anywhere);
    const auto proof = on.allocator.verify(*anywhere, {1, true}, on.placement);
    REQUIRE(proof);
    CHECK(proof->as_requested());
    CHECK(proof->chunks[0].binding.state == grant_state::not_requested);
}

TEST_CASE("the report tells what was verified, and how local accesses are") {
    placed on;
    facts before;
    on.allocator.report(before);
    CHECK(before.values.count("pages looked at") == 0);
    CHECK(before.values.count("local access rate") == 0);
    on.machine.nodes[3] = 3;
    const auto proof = on.allocator.verify(on.region, {}, on.placement);
    REQUIRE(proof);
    const std::vector<vcpu_residency> vcpus{{0, {{1, 10}}}, {1, {{3, 30}}}};
    const access_tracking tracked = on.allocator.track(*proof, vcpus);
    CHECK(tracked.vcpus[0].rate == Approx(511.0 / 512));
    CHECK(tracked.vcpus[1].rate == 0);
    facts report;
    on.allocator.report(report);
    CHECK(report.values["chunks verified"] == "2");
    CHECK(report.values["chunks as requested"] == "1");
    CHECK(report.values["pages looked at"] == "1024");
    CHECK(report.values["pages on wrong nodes"] == "1");
    CHECK(report.values["pages located by"] == "query of pages");
    CHECK(report.values["local access rate by"] == "placement estimate");
    // A later region of which less is known weakens the whole.
    on.machine.refuse_query = error{errc::permission_denied, 1, "no"};
    REQUIRE(on.allocator.verify(on.region, {}, on.placement));
    on.allocator.report(report);
    CHECK(report.values["pages located by"] == "totals of mappings");
}

TEST_CASE("verify on this machine: every node's memory is there, by pages and by totals",
          "[kernel][numa]") {
    numa_allocator<local_first> allocator;
    REQUIRE(allocator.init());
    guest_ram_request request;
    for (const unsigned node : allocator.nodes_in_use())
        request.split.push_back({4 * MiB, node});
    request.prefault_threads = 1;
    const auto region = allocator.allocate(request);
    REQUIRE(region);
    const auto proof = allocator.verify(*region);
    REQUIRE(proof);
    std::ostringstream text;
    text << *proof;
    INFO(text.str());
    if (proof->source != proof_source::page_query ||
        proof->chunks[0].binding.state != grant_state::enforced) {
        CHECK_FALSE(proof->as_requested());
        const auto& why = proof->chunks[0].binding.cause.empty() ? proof->why_not_better.cause
                                                                 : proof->chunks[0].binding.cause;
        std::cout << "SKIP: " << why.view() << '\n';
        return;
    }
    CHECK(proof->as_requested());
    CHECK(allocator.verify(*region, {1, true}));
    const os::native_placement placement;
    for (const chunk_proof& c : proof->chunks) {
        CHECK(c.placement.absent == 0);
        const auto totals = ram_verification::by_totals(
            c.placement.chunk, region->data() + c.placement.chunk.offset, 4096, placement);
        if (totals && proof->chunks.size() > 1) CHECK(totals->on_nodes == c.placement.on_nodes);
    }
}
