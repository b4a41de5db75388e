/// Shares by the kernel's weights: only where they are the planned ratio, else chunks,
/// and it is told which and why.
#include "paged_machine.hpp"

#include <vm_accel/numa/bandwidth_optimized.hpp>
#include <vm_accel/numa/numa_allocator.hpp>
#include <vm_accel/topology/regular.hpp>

#include <catch2/catch.hpp>

#include <iostream>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

using namespace vm_accel_test;
using os::node_weight;

namespace {

constexpr std::uint64_t MiB = 1u << 20;

/// Weights of a system, and what it refuses.
struct weights_of_system {
    std::map<unsigned, unsigned> weights{};
    std::optional<error> refuse_reading{};
    std::optional<error> refuse_setting{};
    std::optional<error> refuse_policy{};
    bool forget_policy = false;
    bool forget_weights = false;
    std::vector<unsigned> over{};
};

struct interleaved_pages : paged_memory {
    std::shared_ptr<weights_of_system> system = std::make_shared<weights_of_system>();

    result<> interleave(std::byte* address, std::uint64_t bytes,
                        std::span<const unsigned> nodes) noexcept {
        if (system->refuse_policy) return tl::unexpected<error>{*system->refuse_policy};
        if (system->forget_policy) return {};
        system->over.assign(nodes.begin(), nodes.end());
        // As the kernel: so many pages in a row on each node.
        std::vector<unsigned> turns;
        for (const unsigned node : nodes)
            turns.insert(turns.end(), system->weights[node], node);
        for (std::uint64_t page = 0; page < bytes / 4096; ++page)
            machine->nodes[machine->page_of(address) + page] =
                static_cast<int>(turns[page % turns.size()]);
        return {};
    }
    result<std::vector<unsigned>> interleaved_over(const std::byte*) const noexcept {
        return system->over;
    }
    result<unsigned> interleave_weight(unsigned node) const noexcept {
        if (system->refuse_reading) return tl::unexpected<error>{*system->refuse_reading};
        return system->weights[node];
    }
    result<> set_interleave_weight(unsigned node, unsigned weight) noexcept {
        if (system->refuse_setting) return tl::unexpected<error>{*system->refuse_setting};
        if (!system->forget_weights) system->weights[node] = weight;
        return {};
    }
};
static_assert(os::interleavable_memory<interleaved_pages>);
static_assert(!os::interleavable_memory<paged_memory>);

/// Two nodes, of which 0 has three times the bandwidth.
template <class Memory>
struct two_nodes {
    Memory memory{};
    numa_allocator<bandwidth_optimized, Memory, os::unsupported_threads> allocator{memory, {}};

    two_nodes() {
        cpu_topology topology = make_topology({2, 1, 2, 1, 64 * MiB});
        topology.nodes[0].bandwidth = 300;
        topology.nodes[1].bandwidth = 100;
        for (unsigned node = 0; node < 2; ++node)
            memory.machine->free[node] = 64 * MiB;
        REQUIRE(allocator.init(topology));
    }
    auto allocate(interleave_use use, bool strict = false) {
        guest_ram_request request;
        request.bytes = 32 * MiB;
        request.interleave = use;
        request.strict = strict;
        auto made = allocator.allocate(request);
        REQUIRE(made);
        return std::move(*made);
    }
};

} // namespace

TEST_CASE("weighted interleave: used where the weights are the planned ratio") {
    struct row {
        const char* name;
        interleave_use use;
        std::map<unsigned, unsigned> weights;
        void (*spoil)(weights_of_system&);
        grant_state outcome;
        const char* cause;
        std::vector<node_weight> in_force; ///< empty: chunks
    };
    const auto as_is = [](weights_of_system&) {};
    const interleave_use fits = interleave_use::if_weights_fit;
    const interleave_use set = interleave_use::set_weights;
    const row r = GENERATE_COPY(values<row>({
        {"not asked for",
         interleave_use::never,
         {{0, 3}, {1, 1}},
         as_is,
         grant_state::not_requested,
         "",
         {}},
        {"weights fit", fits, {{0, 3}, {1, 1}}, as_is, grant_state::enforced, "", {{0, 3}, {1, 1}}},
        {"a multiple fits too",
         fits,
         {{0, 60}, {1, 20}},
         as_is,
         grant_state::enforced,
         "",
         {{0, 60}, {1, 20}}},
        {"nearly", fits, {{0, 31}, {1, 10}}, as_is, grant_state::enforced, "", {{0, 31}, {1, 10}}},
        {"weights are others",
         fits,
         {{0, 1}, {1, 1}},
         as_is,
         grant_state::refused,
         "the system's weights are 0:1 1:1, not 0:3 1:1",
         {}},
        {"weights may be set",
         set,
         {{0, 1}, {1, 1}},
         as_is,
         grant_state::enforced,
         "",
         {{0, 3}, {1, 1}}},
        {"weights may not be set",
         set,
         {{0, 1}, {1, 1}},
         [](weights_of_system& s) { s.refuse_setting = error{errc::permission_denied, 13, "no"}; },
         grant_state::refused,
         "no",
         {}},
        {"weights do not change by setting them",
         set,
         {{0, 1}, {1, 1}},
         [](weights_of_system& s) { s.forget_weights = true; },
         grant_state::refused,
         "the system's weights are 0:1 1:1",
         {}},
        {"no such policy",
         fits,
         {},
         [](weights_of_system& s) { s.refuse_reading = error{errc::unsupported, 2, "too old"}; },
         grant_state::unsupported,
         "too old",
         {}},
        {"policy refused",
         fits,
         {{0, 3}, {1, 1}},
         [](weights_of_system& s) { s.refuse_policy = error{errc::permission_denied, 1, "EPERM"}; },
         grant_state::refused,
         "EPERM",
         {}},
        {"policy accepted and not in force",
         fits,
         {{0, 3}, {1, 1}},
         [](weights_of_system& s) { s.forget_policy = true; },
         grant_state::refused,
         "not in force",
         {}},
    }));
    CAPTURE(r.name);
    two_nodes<interleaved_pages> on;
    on.memory.system->weights = r.weights;
    r.spoil(*on.memory.system);
    const auto region = on.allocate(r.use);
    CHECK(region.grants().interleaving.state == r.outcome);
    CHECK_THAT(std::string{region.grants().interleaving.cause.view()}, Catch::Contains(r.cause));
    CHECK(region.bytes() == 32 * MiB);
    if (r.in_force.empty()) { // chunks, bound as ever
        CHECK(region.chunks().size() > 2);
        for (const ram_chunk& chunk : region.chunks()) {
            CHECK(chunk.binding == grant::enforced());
            CHECK(chunk.weights.empty());
        }
        return;
    }
    REQUIRE(region.chunks().size() == 1);
    const ram_chunk& chunk = region.chunks()[0];
    CHECK(chunk.weights == r.in_force);
    CHECK(chunk.node == any_node);
    CHECK(chunk.binding.state == grant_state::preferred);
    CHECK_FALSE(chunk.binding.cause.empty());
    CHECK(on.memory.machine->bindings.empty());
    const auto proof = on.allocator.verify(region, {}, paged_placement{on.memory.machine});
    REQUIRE(proof);
    CHECK(proof->as_requested());
    const auto& nodes = proof->chunks[0].placement.on_nodes;
    CHECK(static_cast<double>(nodes[0].pages) / 8192 == Approx(.75).margin(.01));
    std::ostringstream text;
    text << *proof;
    CHECK_THAT(text.str(), Catch::Contains("asked for weighted interleave over nodes 0:"));
    // Pages elsewhere are wrong, and so is a policy that is gone.
    on.memory.machine->nodes[5] = 3;
    CHECK(on.allocator.verify(region, {}, paged_placement{on.memory.machine})->wrong_pages() == 1);
    on.memory.system->over.clear();
    CHECK(on.allocator.verify(region, {}, paged_placement{on.memory.machine})
              ->chunks[0]
              .binding.state == grant_state::refused);
}

TEST_CASE("weighted interleave: never for what is strict, nor where the platform has none") {
    two_nodes<interleaved_pages> on;
    on.memory.system->weights = {{0, 3}, {1, 1}};
    const auto strict = on.allocate(interleave_use::set_weights, true);
    CHECK(strict.grants().interleaving.state == grant_state::not_requested);
    CHECK(strict.chunks().size() > 2);
    two_nodes<paged_memory> plain;
    const auto region = plain.allocate(interleave_use::if_weights_fit);
    CHECK(region.grants().interleaving.state == grant_state::unsupported);
    CHECK(region.chunks().size() > 2);
}

TEST_CASE("the smallest weights that come near to shares") {
    using list = std::vector<node_weight>;
    const auto [shares, expected] = GENERATE(table<std::vector<pages_on_node>, list>({
        {{{0, 100}}, {{0, 1}}},
        {{{0, 100}, {1, 100}}, {{0, 1}, {1, 1}}},
        {{{0, 100}, {4, 101}}, {{0, 1}, {4, 1}}},
        {{{0, 300}, {1, 100}}, {{0, 3}, {1, 1}}},
        {{{0, 200}, {1, 300}}, {{0, 2}, {1, 3}}},
        {{{0, 255}, {1, 1}}, {{0, 50}, {1, 1}}}, // off by less than 2 percent
    }));
    const auto weights = ram_interleaving::weights_for(shares);
    CHECK(ram_interleaving::fit(weights, shares));
    CHECK(weights.size() == shares.size());
    if (shares.size() == 2 && shares[1].pages > 1) CHECK(weights == expected);
    for (const node_weight& w : weights)
        CHECK((w.weight >= 1 && w.weight <= 255));
}

#if defined(__linux__)
TEST_CASE("weighted interleave of this kernel: over its nodes, or it says that it has none",
          "[kernel][numa]") {
    os::linux_memory memory;
    const os::native_placement placement;
    std::vector<unsigned> nodes;
    for (const unsigned node : placement.allowed_nodes().value_or(std::vector<unsigned>{0})) {
        const auto free = memory.free_bytes(node);
        if (free && *free > 16 * MiB) nodes.push_back(node);
    }
    REQUIRE_FALSE(nodes.empty());
    // Two huge pages for each node: the kernel may use them, and then deals these out.
    const auto mapped = memory.map({nodes.size() * 4 * MiB, 2 * MiB, false});
    REQUIRE(mapped);
    CHECK(memory.interleaved_over(mapped->address).value_or(std::vector<unsigned>{}).empty());
    const auto weight = memory.interleave_weight(nodes.front());
    const auto done = memory.interleave(mapped->address, mapped->bytes, nodes);
    if (!weight || !done) {
        const error& why = weight ? done.error() : weight.error();
        CHECK_FALSE(why.cure.empty());
        std::cout << "SKIP: " << why.cause.view() << '\n';
        memory.unmap(*mapped);
        return;
    }
    CHECK(*weight >= 1);
    CHECK(*memory.interleaved_over(mapped->address) == nodes);
    REQUIRE(memory.populate(mapped->address, mapped->bytes));
    std::vector<int> where(mapped->bytes / 4096);
    REQUIRE(memory.page_nodes(mapped->address, 4096, where));
    for (const unsigned node : nodes)
        CHECK(std::count(where.begin(), where.end(), static_cast<int>(node)) > 0);
    CHECK_FALSE(memory.interleave(mapped->address, mapped->bytes, std::vector<unsigned>{1023}));
    CHECK_FALSE(memory.set_interleave_weight(nodes.front(), 1000));
    memory.unmap(*mapped);
}
#endif
