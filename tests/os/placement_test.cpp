/// What /proc tells of threads and mappings, and what this machine's kernel makes of
/// moving pages.
#include "fake_root.hpp"

#include <vm_accel/os/memory.hpp>
#include <vm_accel/os/placement.hpp>

#include <catch2/catch.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <iostream>
#include <string>
#include <vector>

using namespace vm_accel;
using os::bytes_on_node;
using os::page_fate;

#if defined(__linux__)

#include <sys/mman.h>

namespace {

/// Fields 4 to 38 of /proc/N/stat.
std::string fields_before_processor() {
    std::string text;
    for (int i = 4; i <= 38; ++i) {
        text += ' ';
        text += std::to_string(i);
    }
    return text;
}

} // namespace

TEST_CASE("linux_placement: a thread's CPU and time") {
    struct row {
        const char* name;
        std::string stat;
        std::string schedstat;
        unsigned cpu;
        std::uint64_t run_ns;
        errc code;
    };
    const row r = GENERATE(values<row>({
        {"usual", "17 (vcpu0) R" + fields_before_processor() + " 5 0 0\n", "1234567 89 10\n", 5,
         1234567, errc{}},
        {"odd name", "17 (a) R 1 (b) S" + fields_before_processor() + " 31 0\n", "7 1 1\n", 31, 7,
         errc{}},
        {"no schedstat", "17 (vcpu0) R" + fields_before_processor() + " 5\n", "", 5, 0, errc{}},
        {"cut short", "17 (vcpu0) R 1 2 3", "", 0, 0, errc::system_failure},
        {"no parenthesis", "17", "", 0, 0, errc::system_failure},
        {"no thread", "", "", 0, 0, errc::not_found},
    }));
    CAPTURE(r.name);
    const fake_root machine;
    if (!r.stat.empty()) machine.file("/proc/self/task/17/stat", r.stat);
    if (!r.schedstat.empty()) machine.file("/proc/self/task/17/schedstat", r.schedstat);
    const auto run = os::linux_placement{machine.root()}.run_of(os::thread_id{17});
    if (r.code != errc{}) {
        REQUIRE_FALSE(run);
        CHECK(run.error() == r.code);
        return;
    }
    REQUIRE(run);
    CHECK(run->cpu == r.cpu);
    CHECK(run->run_ns == r.run_ns);
}

TEST_CASE("linux_placement: what of a range lies where, by the totals of its mappings") {
    const fake_root machine;
    machine.file("/proc/self/maps", "1000-3000 rw-p 00000000 00:00 0 \n"
                                    "10000-20000 rw-p 00000000 00:00 0 \n"
                                    "20000-30000 rw-p 00000000 00:00 0 \n"
                                    "40000-50000 r--p 00000000 00:00 0  /lib/N7=3.so\n");
    machine.file("/proc/self/numa_maps",
                 "1000 default anon=2 dirty=2 N0=2 kernelpagesize_kB=4\n"
                 "10000 bind:1 anon=16 dirty=16 active=0 N0=4 N1=12 kernelpagesize_kB=4\n"
                 "20000 prefer:2 anon=8 N2=8 kernelpagesize_kB=4\n"
                 "30000 gone in the meantime N3=9\n"
                 "40000 default file=/x N0=1 kernelpagesize_kB=4\n");
    const os::linux_placement placement{machine.root()};
    struct row {
        std::uint64_t from, bytes;
        std::vector<bytes_on_node> expected;
    };
    const row r = GENERATE(values<row>({
        {0x10000, 0x10000, {{0, 16384}, {1, 49152}}},
        {0x10000, 0x20000, {{0, 16384}, {1, 49152}, {2, 32768}}},
        {0x18000, 0x10000, {{0, 8192}, {1, 24576}, {2, 16384}}}, // half of each mapping
        {0x1000, 0x1000, {{0, 4096}}},
        {0x30000, 0x10000, {}},
    }));
    const auto told =
        placement.mapped_bytes(std::bit_cast<const std::byte*>(std::uintptr_t{r.from}), r.bytes);
    REQUIRE(told);
    CHECK((*told == r.expected));
    const fake_root hidden;
    CHECK(os::linux_placement{hidden.root()}.mapped_bytes(nullptr, 4096).error() ==
          errc::not_found);
}

TEST_CASE("linux_placement: the nodes that a cpuset leaves") {
    const auto [line, expected] = GENERATE(table<const char*, std::vector<unsigned>>({
        {"Mems_allowed_list:\t0\n", {0}},
        {"Mems_allowed_list:\t0-2,5\nother: 9\n", {0, 1, 2, 5}},
        {"Mems_allowed_list:\t1,x,3\n", {1, 3}},
        {"Mems_allowed_list:\t\n", {}},
    }));
    const fake_root machine;
    machine.file("/proc/self/status", std::string{"Name:\tx\nMems_allowed:\t1\n"} + line);
    const auto nodes = os::linux_placement{machine.root()}.allowed_nodes();
    REQUIRE(nodes);
    CHECK(*nodes == expected);
    machine.file("/proc/self/status", "Name:\tx\n");
    CHECK(os::linux_placement{machine.root()}.allowed_nodes().error() == errc::unsupported);
}

TEST_CASE("node loads: which processors count remote ones among them") {
    const auto [text, expected] = GENERATE(table<const char*, bool>({
        {"vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 45\nmodel name\t: Xeon E5-2680",
         true},
        {"vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 85\nmodel name\t: Xeon 8180",
         false},
        {"vendor_id\t: AuthenticAMD\ncpu family\t: 16\nmodel\t\t: 9\n", true},
        {"vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\n", false},
        {"CPU implementer\t: 0x41\n", false},
        {"", false},
    }));
    CHECK(os::node_loads_include_remote(text) == expected);
}

TEST_CASE("native placement: this thread runs somewhere, and its time goes on", "[kernel]") {
    const os::native_placement placement;
    const auto self = placement.current_thread();
    REQUIRE(self);
    const auto before = placement.run_of(*self);
    REQUIRE(before);
    volatile std::uint64_t work = 0;
    auto after = before;
    for (int i = 0; i < 1000 && after && after->run_ns == before->run_ns; ++i) {
        for (std::uint64_t k = 0; k < 1'000'000; ++k)
            work = work + k;
        after = placement.run_of(*self);
    }
    REQUIRE(after);
    CHECK((before->run_ns == 0 || after->run_ns > before->run_ns));
    CHECK(placement.run_of(os::thread_id{0x7fff'fff0}).error() == errc::not_found);
    const auto allowed = placement.allowed_nodes();
    REQUIRE(allowed);
    CHECK_FALSE(allowed->empty());
}

TEST_CASE("native placement: pages go to a node that is allowed, with a fate each",
          "[kernel][numa]") {
    os::native_memory memory;
    os::native_placement placement;
    const std::uint64_t page = memory.page_bytes();
    const auto mapped = memory.map({700 * page, 0, false});
    REQUIRE(mapped);
    // A huge page would give memory to more than is populated.
    static_cast<void>(madvise(mapped->address, mapped->bytes, MADV_NOHUGEPAGE));
    REQUIRE(memory.populate(mapped->address, 600 * page));
    const auto allowed = placement.allowed_nodes();
    REQUIRE(allowed);
    std::vector<std::byte*> pages; // the last 100 have no memory
    for (std::uint64_t i = 0; i < 700; ++i)
        pages.push_back(mapped->address + i * page);
    for (const unsigned node : *allowed) {
        const auto free = memory.free_bytes(node);
        if (!free || *free == 0) continue; // a node without memory
        CAPTURE(node);
        std::vector<page_fate> fates(pages.size());
        auto moved = placement.move_pages(pages, node, fates);
        // A page that the kernel holds for a moment, for its own balancing, says so: ask again.
        for (int again = 0; moved && again < 20; ++again) {
            if (std::count(fates.begin(), fates.end(), page_fate::busy) == 0) break;
            moved = placement.move_pages(pages, node, fates);
        }
        if (!moved) {
            std::cout << "SKIP: " << moved.error().cause.view() << '\n';
            break;
        }
        std::vector<int> nodes(700);
        REQUIRE(memory.page_nodes(mapped->address, page, nodes));
        for (std::size_t i = 0; i < 700; ++i) {
            CHECK(fates[i] == (i < 600 ? page_fate::on_node : page_fate::absent));
            CHECK(nodes[i] == (i < 600 ? static_cast<int>(node) : os::page_absent));
        }
        // The kernel's totals agree, but for pages that were not populated by us.
        const auto totals = placement.mapped_bytes(mapped->address, mapped->bytes);
        if (!totals) continue;
        std::uint64_t there = 0;
        for (const bytes_on_node& on : *totals)
            there += on.node == node ? on.bytes : 0;
        CHECK(there > 0);
    }
    std::array<page_fate, 1> fate{};
    const auto nowhere = placement.move_pages(std::span{pages}.first(1), 1023, fate);
    REQUIRE_FALSE(nowhere);
    CHECK_FALSE(nowhere.error().cure.empty());
    memory.unmap(*mapped);
}

TEST_CASE("native placement: counters of accesses, or why there are none", "[kernel]") {
    const os::native_placement placement;
    const auto counters = placement.count_accesses(*placement.current_thread());
    if (counters) {
        const auto counted = counters->read();
        CHECK((counted || counted.error() == errc::unavailable));
    } else {
        const errc why = counters.error().code;
        CHECK((why == errc::unsupported || why == errc::permission_denied));
        CHECK_FALSE(counters.error().cure.empty());
    }
}

#endif
