/// What is Windows alone in os/. The pure parts are tested everywhere; the rest, and
/// that our structures are the system's, where the tests are built for Windows.
#include <vm_accel/os/dynamic_library.hpp>
#include <vm_accel/os/memory_barrier.hpp>
#include <vm_accel/os/windows_calls.hpp>
#include <vm_accel/os/windows_groups.hpp>
#include <vm_accel/os/windows_memory.hpp>
#include <vm_accel/os/windows_scheduling.hpp>
#include <vm_accel/os/windows_threads.hpp>

#include <catch2/catch.hpp>

#include <algorithm>
#include <cstddef>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#if defined(_WIN32)
// After the library's headers: both must agree.
#include <windows.h>

#include <psapi.h>
#endif

using namespace vm_accel;
using namespace vm_accel::os;

TEST_CASE("Windows: CPUs are numbered 64 to a group") {
    CHECK(windows_groups::cpu_of(0, 63) == 63);
    CHECK(windows_groups::cpu_of(3, 5) == 197);

    cpu_set set;
    CHECK_FALSE(windows_groups::only_group(set).has_value());
    set.insert(64);
    set.insert(127);
    const auto one = windows_groups::only_group(set);
    REQUIRE(one.has_value());
    CHECK(one->group == 1);
    CHECK(one->mask == 0x8000'0000'0000'0001);
    set.insert(63);
    CHECK_FALSE(windows_groups::only_group(set).has_value());

    cpu_set read;
    CHECK(windows_groups::insert(read, 127, 1));
    CHECK(read.contains(8128));
    CHECK_FALSE(windows_groups::insert(read, 128, 1));
    CHECK(read.count() == 1);
    CHECK(windows_groups::mask_of_first(1) == 1);
    CHECK(windows_groups::mask_of_first(63) == 0x7fff'ffff'ffff'ffff);
    CHECK(windows_groups::mask_of_first(64) == ~std::uint64_t{0});
}

TEST_CASE("Windows: priorities are the nearest of seven steps, and say so") {
    struct row {
        thread_priority wanted;
        int value;
        bool as_requested;
    };
    const row rows[] = {
        {thread_priority::normal(), 0, true},        {thread_priority::normal(-20), 1, false},
        {thread_priority::normal(-10), 1, true},     {thread_priority::normal(-1), 1, false},
        {thread_priority::normal(1), -1, false},     {thread_priority::normal(5), -1, true},
        {thread_priority::normal(7), -1, false},     {thread_priority::normal(8), -2, false},
        {thread_priority::normal(10), -2, true},     {thread_priority::normal(14), -2, false},
        {thread_priority::normal(15), -15, false},   {thread_priority::normal(19), -15, true},
        {thread_priority::high(), 2, true},          {thread_priority::fifo(1), 15, false},
        {thread_priority::round_robin(1), 15, true}, {thread_priority::round_robin(99), 15, false},
    };
    for (const row& r : rows) {
        fixed_text<64> name;
        append_priority(name, r.wanted);
        CAPTURE(name.view());
        CHECK(windows_priority::value_for(r.wanted) == r.value);
        const given_priority given = windows_priority::given(r.value, r.wanted);
        CHECK(given.as_requested == r.as_requested);
        CHECK(given.text.view().starts_with("THREAD_PRIORITY_"));
    }
    // Steps that only processes of the real-time class have.
    CHECK(windows_priority::given(5, {}).text.view() == "priority 5");
    CHECK(windows_priority::given(5, {}).nearest == thread_priority::round_robin(1));
    CHECK(windows_priority::given(-6, {}).text.view() == "priority -6");
}

TEST_CASE("Windows: a failed call is an error with its kind") {
    struct row {
        std::uint32_t number;
        errc code;
    };
    for (const row& r :
         {row{5, errc::permission_denied}, row{1314, errc::permission_denied},
          row{126, errc::not_found}, row{1455, errc::exhausted}, row{120, errc::unsupported},
          row{87, errc::invalid_argument}, row{31, errc::system_failure}}) {
        const error failed = fail_with_windows(r.number, "a call", "a cure").value();
        CAPTURE(r.number);
        CHECK(name_of(failed.code) == name_of(r.code));
        CHECK(failed.os_error == static_cast<int>(r.number));
        CHECK(failed.cause.view().starts_with("a call: Windows error "));
        CHECK(failed.cure.view() == "a cure");
    }
}

TEST_CASE("a library that is missing is an error, and has no functions") {
    const result<dynamic_library> none = dynamic_library::open("vm-accel-no-such-library.dll");
    REQUIRE_FALSE(none);
    CHECK(none.error() == errc::not_found);
    CHECK_FALSE(none.error().cure.empty());
    CHECK(dynamic_library{}.find<int()>("anything") == nullptr);
}

#if defined(_WIN32)

namespace abi = windows_abi;
static_assert(sizeof(abi::group_affinity) == sizeof(GROUP_AFFINITY));
static_assert(offsetof(abi::group_affinity, group) == offsetof(GROUP_AFFINITY, Group));
static_assert(sizeof(abi::processor_number) == sizeof(PROCESSOR_NUMBER));
static_assert(sizeof(abi::system_information) == sizeof(SYSTEM_INFO));
static_assert(offsetof(abi::system_information, allocation_granularity) ==
              offsetof(SYSTEM_INFO, dwAllocationGranularity));
static_assert(sizeof(abi::memory_status) == sizeof(MEMORYSTATUSEX));
static_assert(offsetof(abi::memory_status, total_physical) ==
              offsetof(MEMORYSTATUSEX, ullTotalPhys));
static_assert(sizeof(abi::one_privilege) == sizeof(TOKEN_PRIVILEGES));
static_assert(offsetof(abi::one_privilege, attributes) ==
              offsetof(TOKEN_PRIVILEGES, Privileges[0].Attributes));
static_assert(sizeof(abi::working_set_entry) == sizeof(PSAPI_WORKING_SET_EX_INFORMATION));
using record_type = SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX;
static_assert(abi::processor_record::group_count == offsetof(record_type, Processor.GroupCount));
static_assert(abi::processor_record::group_masks == offsetof(record_type, Processor.GroupMask));
static_assert(abi::node_record::node_number == offsetof(record_type, NumaNode.NodeNumber));
static_assert(abi::node_record::group_masks == offsetof(record_type, NumaNode.GroupMask));
static_assert(abi::cache_record::line_bytes == offsetof(record_type, Cache.LineSize));
static_assert(abi::cache_record::cache_bytes == offsetof(record_type, Cache.CacheSize));
static_assert(abi::cache_record::type == offsetof(record_type, Cache.Type));
static_assert(abi::cache_record::group_masks == offsetof(record_type, Cache.GroupMask));
static_assert(static_cast<int>(abi::relation::numa_node) == RelationNumaNode);
static_assert(static_cast<int>(abi::relation::processor_package) == RelationProcessorPackage);
static_assert(abi::allocate_large_pages == MEM_LARGE_PAGES);
static_assert(abi::free_release == MEM_RELEASE && abi::allocate_reserve == MEM_RESERVE);
static_assert(abi::priority_error == THREAD_PRIORITY_ERROR_RETURN);

TEST_CASE("Windows: a thread is pinned, and reads back where") {
    const windows_threads threads;
    const auto allowed = threads.allowed_cpus();
    REQUIRE(allowed);
    REQUIRE_FALSE(allowed->empty());
    result<> pinned;
    result<cpu_set> actual = cpu_set{};
    result<unsigned> cpu = 0u;
    for (unsigned wanted = allowed->next(0); wanted < cpu_set::capacity;
         wanted = allowed->next(wanted + 1)) {
        std::thread{[&] {
            pinned = threads.pin_current_thread(cpu_set::of(wanted));
            actual = threads.current_pin();
            cpu = threads.current_cpu();
        }}.join();
        REQUIRE(pinned);
        REQUIRE(actual);
        CHECK(*actual == cpu_set::of(wanted));
        REQUIRE(cpu);
        CHECK(*cpu == wanted);
    }
    CHECK(threads.pin_current_thread({}).error() == errc::invalid_argument);
    cpu_set absent;
    absent.insert(63);
    if (!allowed->contains(63))
        CHECK(threads.pin_current_thread(absent).error() == errc::invalid_argument);
    CHECK(threads.pin_thread(thread_id{3}, *allowed).error() == errc::not_found);
}

TEST_CASE("Windows: a set that spans groups is refused where it cannot be confirmed") {
    cpu_set across;
    across.insert(0);
    across.insert(64);
    const result<> refused = windows_threads{}.pin_current_thread(across);
    REQUIRE_FALSE(refused);
    CHECK_FALSE(refused.error().cure.empty());
}

TEST_CASE("Windows: priorities are set and read back") {
    std::thread{[] {
        const windows_scheduling scheduling;
        for (const thread_priority wanted :
             {thread_priority::normal(5), thread_priority::high(), thread_priority::normal()}) {
            const auto given = scheduling.set_priority(wanted);
            REQUIRE(given);
            CHECK(given->as_requested);
            CHECK(given->nearest == wanted);
        }
        CHECK(scheduling.set_priority({priority_class::normal, 40, 0}).error() ==
              errc::invalid_argument);
        const result<> economy = scheduling.prefer_economy(true);
        if (!economy) CHECK_FALSE(economy.error().cure.empty());
    }}.join();
}

TEST_CASE("Windows: memory is mapped aligned, zeroed, and on a node") {
    const windows_memory memory;
    CHECK(memory.page_bytes() == 4096);
    for (const std::uint64_t alignment : {std::uint64_t{0}, std::uint64_t{2} << 20}) {
        const auto mapped = memory.map_near({std::uint64_t{4} << 20, alignment, false},
                                            std::vector<node_part>{{std::uint64_t{4} << 20, 0}});
        REQUIRE(mapped);
        CHECK(
            (alignment == 0 || reinterpret_cast<std::uintptr_t>(mapped->address) % alignment == 0));
        CHECK(mapped->address[mapped->bytes - 1] == std::byte{0});
        REQUIRE(memory.populate(mapped->address, mapped->bytes));
        std::vector<int> nodes(mapped->bytes / 4096, page_unknown);
        REQUIRE(memory.page_nodes(mapped->address, 4096, nodes));
        for (const int node : nodes)
            REQUIRE(node >= 0);
        memory.unmap(*mapped);
    }
    // Parts of different nodes lie one after the other.
    for (const std::uint64_t alignment : {std::uint64_t{0}, std::uint64_t{2} << 20}) {
        const std::vector<node_part> parts{
            {std::uint64_t{1} << 20, 0}, {std::uint64_t{1} << 20, node_part::any}, {0x1'0000, 0}};
        const auto mapped = memory.map_near({0x21'0000, alignment, false}, parts);
        REQUIRE(mapped);
        CHECK(
            (alignment == 0 || reinterpret_cast<std::uintptr_t>(mapped->address) % alignment == 0));
        REQUIRE(memory.populate(mapped->address, mapped->bytes));
        memory.unmap(*mapped);
        // All of it is free again.
        std::vector<int> nodes(mapped->bytes / 4096, 0);
        REQUIRE(memory.page_nodes(mapped->address, 4096, nodes));
        CHECK(std::count(nodes.begin(), nodes.end(), page_absent) ==
              static_cast<std::ptrdiff_t>(nodes.size()));
    }
    CHECK(memory.map_near({0x2000, 0, false}, std::vector<node_part>{{0x1000, 0}}).error() ==
          errc::invalid_argument);
    CHECK(memory.map({4095, 0, false}).error() == errc::invalid_argument);
    CHECK(memory.map({4096, 0, true}).error() == errc::unsupported);
    CHECK(memory.bind(nullptr, 4096, 0, bind_mode::bind).error() == errc::unsupported);
    CHECK(memory.bind(nullptr, 4096, 0, bind_mode::none));
    const auto large =
        memory.map_huge({memory.huge_page_bytes(), 0, false}, memory.huge_page_bytes());
    if (large) {
        memory.unmap(*large);
    } else {
        CHECK_FALSE(large.error().cure.empty());
    }
    if (const auto room = memory.free_bytes(0); room) {
        CHECK(*room > 0);
    } else {
        CHECK(room.error() == errc::unsupported); // Wine
    }
    CHECK_FALSE(memory.free_bytes(70'000));
}

TEST_CASE("Windows: the barrier on all threads is there") {
    CHECK(process_barrier::register_process());
    CHECK(process_barrier::run());
}

#endif
