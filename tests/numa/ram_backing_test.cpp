/// What guest RAM is made of, on a simulated machine: pages from pools, shared
/// files, locked memory, and every refusal of these. tests/numa/guest_ram_test.cpp
/// asks the kernel.
#include "simulated_memory.hpp"

#include <vm_accel/numa/local_first.hpp>
#include <vm_accel/numa/numa_allocator.hpp>
#include <vm_accel/topology/regular.hpp>

#include <catch2/catch.hpp>

#include <algorithm>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

using namespace vm_accel_test;

namespace {

constexpr std::uint64_t MiB = 1u << 20;

/// A machine of four nodes with 64 MiB and a pool of 8 huge pages each.
template <class Memory = simulated_features>
struct on_four_nodes {
    Memory memory{};
    simulated_threads threads{memory.machine};
    numa_allocator<local_first, Memory, simulated_threads> allocator{memory, threads};
    simulated_machine& machine = *memory.machine;

    on_four_nodes() {
        machine.pools = {{0, 8}, {1, 8}, {2, 8}, {3, 8}};
        REQUIRE(allocator.init(make_topology({2, 2, 2, 1, 64 * MiB})));
    }
    [[nodiscard]] std::size_t calls(std::string_view what) const {
        return static_cast<std::size_t>(
            std::count(machine.log.begin(), machine.log.end(), std::string{what}));
    }
};

guest_ram_request reserved(std::vector<guest_node_request> split) {
    guest_ram_request request;
    request.split = std::move(split);
    request.huge_pages = huge_page_use::reserve;
    return request;
}

} // namespace

TEST_CASE("reserved huge pages: mapped from pools, bound, populated although nobody asked") {
    on_four_nodes on;
    guest_ram_request request = reserved({{4 * MiB, 1}, {8 * MiB, 3}});
    request.locked = true;
    request.strict = GENERATE(false, true);
    const auto region = on.allocator.allocate(request);
    REQUIRE(region);
    CHECK(region->grants().reserved_page_bytes == 2 * MiB);
    for (const ram_chunk& chunk : region->chunks()) {
        CHECK(chunk.binding == grant::enforced());
        CHECK(chunk.huge_pages == grant::enforced());
        CHECK(chunk.prefault == grant::enforced());
        CHECK(chunk.locking == grant::enforced()); // pools are never swapped out
    }
    CHECK(on.calls("reserve") == 1);
    CHECK(on.calls("advise") == 0);
    CHECK(on.calls("lock") == 0);
    std::uint64_t populated = 0;
    for (const auto& p : on.machine.populated) {
        populated += p.bytes;
        CHECK(p.bytes % (2 * MiB) == 0);
    }
    CHECK(populated == 12 * MiB);
}

TEST_CASE("reserved huge pages go where the pools have them, not where memory is free") {
    on_four_nodes on;
    on.machine.pools = {{0, 1}, {1, 0}, {2, 5}, {3, 0}};
    guest_ram_request request;
    request.bytes = 8 * MiB;
    request.huge_pages = huge_page_use::reserve;
    const auto region = on.allocator.allocate(request);
    REQUIRE(region);
    REQUIRE(region->chunks().size() == 2);
    CHECK(region->chunks()[0].node == 0);
    CHECK(region->chunks()[0].bytes == 2 * MiB);
    CHECK(region->chunks()[1].node == 2);
    CHECK(region->chunks()[1].bytes == 6 * MiB);
}

TEST_CASE("reserved huge pages that cannot be had: transparent ones instead, or an error") {
    struct row {
        const char* what;
        void (*refuse)(simulated_machine&);
        std::uint64_t bytes;
        errc code;
        const char* cause;
        bool mapped; ///< whether it was noticed only after mapping
    };
    const row r = GENERATE(values<row>({
        {"the pools have too little", [](simulated_machine& m) { m.pools = {{0, 1}, {3, 2}}; },
         8 * MiB, errc::exhausted,
         "guest RAM: 4 pages of 2048 KiB wanted, 3 free in the pools of the nodes in use", false},
        {"no pools of that size",
         [](simulated_machine& m) {
             m.refuse_pools = refusal(errc::unsupported, "free_hugepages: no such file");
         },
         8 * MiB, errc::unsupported, "free_hugepages: no such file", false},
        {"a guest node that is not whole pages", [](simulated_machine&) {}, 3 * MiB,
         errc::invalid_argument, "guest RAM: 3145728 bytes of a guest node are not whole pages",
         false},
        {"others were quicker",
         [](simulated_machine& m) {
             m.refuse_reserving = refusal(errc::exhausted, "reserving 4 huge pages");
         },
         8 * MiB, errc::exhausted, "reserving 4 huge pages", false},
        {"the pool of a node runs empty while populating",
         [](simulated_machine& m) {
             m.refuse_huge_pages = refusal(errc::exhausted, "populating: the pool is empty");
         },
         8 * MiB, errc::exhausted, "populating: the pool is empty", true},
        {"a kernel that cannot populate without risk",
         [](simulated_machine& m) {
             m.refuse_huge_pages = refusal(errc::unsupported, "MADV_POPULATE_WRITE");
         },
         8 * MiB, errc::unsupported, "MADV_POPULATE_WRITE", true},
    }));
    INFO(r.what);
    guest_ram_request request = reserved({{r.bytes, 0}});
    {
        on_four_nodes on;
        r.refuse(on.machine);
        const auto region = on.allocator.allocate(request);
        REQUIRE(region); // never a failed VM
        const ram_chunk& chunk = region->chunks()[0];
        CHECK(region->grants().reserved_page_bytes == 0);
        CHECK(chunk.huge_pages.state == grant_state::preferred);
        CHECK(chunk.huge_pages.code == r.code);
        CHECK_THAT(std::string{chunk.huge_pages.cause.view()}, Catch::Contains(r.cause));
        CHECK(chunk.prefault.state == grant_state::not_requested);
        CHECK(on.calls("unmap") == (r.mapped ? 1 : 0));
        CHECK(on.machine.live_bytes() == r.bytes);
        CHECK(on.calls("advise") == 1);
    }
    {
        on_four_nodes neither;
        r.refuse(neither.machine);
        neither.machine.refuse_advice = refusal(errc::unsupported, "no transparent ones");
        const auto region = neither.allocator.allocate(request);
        REQUIRE(region);
        CHECK(region->chunks()[0].huge_pages.is_denied());
        CHECK_THAT(std::string{region->chunks()[0].huge_pages.cause.view()},
                   Catch::Contains(r.cause));
    }
    on_four_nodes strict;
    r.refuse(strict.machine);
    request.strict = true;
    const auto region = strict.allocator.allocate(request);
    REQUIRE_FALSE(region);
    CHECK(region.error() == r.code);
    CHECK_THAT(std::string{region.error().cause.view()}, Catch::Contains(r.cause));
    CHECK_FALSE(region.error().cure.empty());
    CHECK(strict.machine.live_bytes() == 0);
}

TEST_CASE("reserved huge pages while placement is off come from any pool") {
    on_four_nodes on;
    REQUIRE(on.allocator.disable());
    const auto region = on.allocator.allocate(reserved({{2 * MiB}, {4 * MiB}}));
    REQUIRE(region);
    CHECK(region->grants().reserved_page_bytes == 2 * MiB);
    CHECK(region->chunks()[0].binding.state == grant_state::not_requested);
    CHECK_FALSE(region->chunks()[0].prefault.is_denied());
    on.machine.pools = {};
    CHECK(on.allocator.allocate(reserved({{2 * MiB}}))->grants().reserved_page_bytes == 0);
}

TEST_CASE("a shared file is sealed; where it is refused the region says so") {
    struct row {
        const char* what;
        void (*refuse)(simulated_machine&);
        grant_state sharing, sealing;
        errc strict;
    };
    const row r = GENERATE(values<row>({
        {"no memfd",
         [](simulated_machine& m) {
             m.refuse_shared = refusal(errc::permission_denied, "memfd: refused");
         },
         grant_state::refused, grant_state::not_requested, errc::permission_denied},
        {"no seals",
         [](simulated_machine& m) {
             m.refuse_seal = refusal(errc::unsupported, "sealing: cannot");
         },
         grant_state::enforced, grant_state::unsupported, errc::unsupported},
    }));
    INFO(r.what);
    guest_ram_request request;
    request.bytes = 4 * MiB;
    request.memfd = true;
    {
        on_four_nodes well;
        const auto region = well.allocator.allocate(request);
        REQUIRE(region);
        CHECK(region->grants() ==
              ram_grants{.sharing = grant::enforced(), .sealing = grant::enforced()});
        CHECK(region->shared(MiB, 2 * MiB) ==
              shared_ram{region->file(), MiB, 2 * MiB, region->data() + MiB});
        CHECK(region->shared(0, 4 * MiB).bytes == 4 * MiB);
        CHECK(region->shared(MiB, 4 * MiB).file == -1);
        CHECK(region->shared(5 * MiB, 0).file == -1);
    }
    on_four_nodes on;
    r.refuse(on.machine);
    const auto region = on.allocator.allocate(request);
    REQUIRE(region); // never a failed VM
    CHECK(region->grants().sharing.state == r.sharing);
    CHECK(region->grants().sealing.state == r.sealing);
    const bool has_file = r.sharing == grant_state::enforced;
    CHECK((region->file() >= 0) == has_file);
    CHECK((region->shared(0, 4096).file >= 0) == has_file);
    request.strict = true;
    CHECK(on.allocator.allocate(request).error() == r.strict);
    CHECK(on.machine.live_bytes() == 4 * MiB); // the first region's
    request.memfd = false;
    CHECK(on.allocator.allocate(request));
}

TEST_CASE("locked memory: before it has pages, and a limit is told") {
    on_four_nodes on;
    guest_ram_request request;
    request.split = {{4 * MiB, 1}, {4 * MiB, 2}};
    request.locked = true;
    request.prefault_threads = 1;
    const auto region = on.allocator.allocate(request);
    REQUIRE(region);
    for (const ram_chunk& chunk : region->chunks())
        CHECK(chunk.locking == grant::enforced());
    const auto first = [&](const char* what) {
        return std::find(on.machine.log.begin(), on.machine.log.end(), what);
    };
    CHECK(on.calls("lock") == 2);
    CHECK(first("bind 1") < first("lock"));
    CHECK(first("lock") < first("populate"));

    on.machine.refuse_lock = refusal(errc::permission_denied, "RLIMIT_MEMLOCK is 64 KiB");
    const auto unlocked = on.allocator.allocate(request);
    REQUIRE(unlocked);
    CHECK(unlocked->chunks()[0].locking.state == grant_state::refused);
    std::ostringstream text;
    text << *unlocked->placement();
    CHECK_THAT(text.str(), Catch::Contains("locking refused (RLIMIT_MEMLOCK is 64 KiB)"));
    request.strict = true;
    CHECK(on.allocator.allocate(request).error() == errc::permission_denied);
}

TEST_CASE("a platform without these features says so, and gives the memory") {
    on_four_nodes<simulated_memory> on;
    guest_ram_request request = reserved({{4 * MiB, 1}});
    request.memfd = true;
    request.locked = true;
    const auto region = on.allocator.allocate(request);
    REQUIRE(region);
    CHECK(region->chunks()[0].locking.state == grant_state::unsupported);
    CHECK(region->chunks()[0].huge_pages.state == grant_state::preferred);
    CHECK(region->chunks()[0].huge_pages.code == errc::unsupported);
    CHECK(region->grants().sharing == grant::enforced());
    CHECK(region->grants().sealing.state == grant_state::unsupported);
    for (const grant& given : {region->chunks()[0].locking, region->grants().sealing}) {
        CHECK_FALSE(given.cause.empty());
        CHECK_FALSE(given.cure.empty());
    }
    request.strict = true;
    CHECK(on.allocator.allocate(request).error() == errc::unsupported);
}

TEST_CASE("a listener hears of a prefault's progress, on the caller's thread") {
    on_four_nodes on;
    guest_ram_request request;
    request.split = {{32 * MiB, 0}, {16 * MiB, 3}};
    request.prefault_threads = GENERATE(1u, 3u, 8u);
    std::vector<prefault_progress> heard;
    const auto caller = std::this_thread::get_id();
    bool by_caller = true;
    const auto region =
        on.allocator.allocate(request, [&](const prefault_progress& progress) noexcept {
            heard.push_back(progress);
            by_caller = by_caller && std::this_thread::get_id() == caller;
            return true;
        });
    REQUIRE(region);
    CHECK(by_caller);
    REQUIRE_FALSE(heard.empty());
    CHECK(heard.back() == prefault_progress{48 * MiB, 48 * MiB});
    for (std::size_t i = 0; i < heard.size(); ++i) {
        CHECK(heard[i].total == 48 * MiB);
        CHECK(heard[i].done > (i == 0 ? 0 : heard[i - 1].done));
    }
}

TEST_CASE("a listener ends a prefault: nothing stays allocated, nothing else is tried") {
    simulated_features memory;
    simulated_threads threads{memory.machine};
    numa_allocator<local_first, simulated_features, simulated_threads> allocator{memory, threads};
    REQUIRE(allocator.init(make_topology({1, 1, 1, 1, 4096 * MiB})));
    memory.machine->pools = {{0, 64}};
    guest_ram_request request;
    request.bytes = 128 * MiB;
    request.prefault_threads = 1;
    request.strict = GENERATE(false, true);
    request.huge_pages = GENERATE(huge_page_use::none, huge_page_use::reserve);
    const auto region =
        allocator.allocate(request, [](const prefault_progress&) noexcept { return false; });
    REQUIRE_FALSE(region);
    CHECK(region.error() == errc::cancelled);
    CHECK(memory.machine->live_bytes() == 0);
    CHECK(std::count(memory.machine->log.begin(), memory.machine->log.end(), "map") == 1);
}

TEST_CASE("a prefault goes piece by piece, and stops between two pieces") {
    simulated_memory memory;
    simulated_threads threads{memory.machine};
    std::vector<std::byte> nothing(1); // the simulated platform touches no page
    const std::vector<prefault_range> ranges{{nothing.data(), 640 * MiB, 0, {}}};
    prefault<simulated_memory, simulated_threads> whole{memory, threads, ranges, 1, 2 * MiB};
    std::vector<std::uint64_t> heard;
    const auto grants = whole.run([&](const prefault_progress& progress) noexcept {
        heard.push_back(progress.done);
        return true;
    });
    CHECK(memory.machine->populated.size() == 10);
    CHECK(heard.back() == 640 * MiB);
    CHECK_FALSE(grants[0].is_denied());
    CHECK_FALSE(whole.was_cancelled());

    // Cancelled at the first news; the thread may be some pieces ahead by then.
    memory.machine->populated.clear();
    prefault<simulated_memory, simulated_threads> cut{memory, threads, ranges, 1, 2 * MiB};
    const auto cancelled = cut.run([](const prefault_progress&) noexcept { return false; });
    CHECK(cut.was_cancelled());
    CHECK(cancelled[0].state == grant_state::refused);
    CHECK(cut.progress().done == memory.machine->populated.size() * 64 * MiB);

    // Where a granule is larger than a piece, a piece is a granule.
    memory.machine->populated.clear();
    prefault<simulated_memory, simulated_threads> large{memory, threads, ranges, 1, 256 * MiB};
    static_cast<void>(large.run());
    CHECK(memory.machine->populated.size() == 3);
}
