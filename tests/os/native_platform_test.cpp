/// The kernel itself: what it refuses here is skipped and said, never assumed.
#include <vm_accel/os/memory.hpp>
#include <vm_accel/os/threads.hpp>
#include <vm_accel/os/worker_thread.hpp>

#include <catch2/catch.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <iostream>
#include <string>
#include <vector>

#if defined(__linux__)
#include <linux/filter.h>
#include <linux/mempolicy.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <initializer_list>
#include <thread>
#endif

using namespace vm_accel;

namespace {

/// Unmaps at the end of a test.
struct scoped_mapping {
    os::native_memory memory{};
    os::raw_mapping mapping{};
    ~scoped_mapping() { memory.unmap(mapping); }
};

/// A node that memory can be bound to here: it has some, and the cpuset has it.
unsigned some_node() {
    os::native_memory memory;
    std::array<unsigned long, 16> allowed{};
    allowed.fill(~0ul);
#if defined(__linux__)
    static_cast<void>(::syscall(SYS_get_mempolicy, nullptr, allowed.data(), 1025ul, nullptr,
                                static_cast<unsigned long>(MPOL_F_MEMS_ALLOWED)));
#endif
    for (unsigned node = 0; node < 1024; ++node) {
        if ((allowed[node / 64] >> node % 64 & 1) == 0) continue;
        if (const auto bytes = memory.free_bytes(node); bytes && *bytes != 0) return node;
    }
    return 0;
}

bool skip_if(bool condition, const error& e) {
    if (condition) std::cout << "SKIP: " << e.cause.view() << '\n';
    return condition;
}

} // namespace

TEST_CASE("native threads: a pin is what the kernel reports afterwards, for every CPU allowed",
          "[kernel]") {
    os::native_threads threads;
    const auto allowed = threads.allowed_cpus();
    if (!allowed && skip_if(true, allowed.error())) return;
    for (unsigned cpu = allowed->next(0); cpu < os::cpu_set::capacity;
         cpu = allowed->next(cpu + 1)) {
        result<> pinned;
        result<os::cpu_set> read_back;
        result<unsigned> runs_on;
        auto work = [&]() noexcept {
            pinned = threads.pin_current_thread(os::cpu_set::of(cpu));
            read_back = threads.current_pin();
            runs_on = threads.current_cpu();
        };
        os::worker_thread worker;
        REQUIRE(worker.start(work));
        worker.join();
        if (!pinned && skip_if(pinned.error() == errc::permission_denied, pinned.error())) return;
        REQUIRE(pinned);
        CHECK(*read_back == os::cpu_set::of(cpu));
        CHECK(*runs_on == cpu);
    }
    CHECK(*threads.current_pin() == *allowed); // this thread stayed where it was
}

TEST_CASE("native threads: a CPU that does not exist is refused with its number", "[kernel]") {
    os::native_threads threads;
    if (!os::native_threads::can_pin_threads) {
        std::cout << "SKIP: threads cannot be pinned here\n";
        return;
    }
    const auto done = threads.pin_current_thread(os::cpu_set::of(os::cpu_set::capacity - 1));
    REQUIRE_FALSE(done);
    CHECK(done.error().cause.view().find("8191") != std::string_view::npos);
    CHECK_FALSE(done.error().cure.empty());
    // A number that no set can hold leaves the set empty: there is nothing to name.
    const auto none = threads.pin_current_thread(os::cpu_set::of(9000));
    REQUIRE_FALSE(none);
    CHECK(none.error() == errc::invalid_argument);
    CHECK(none.error().cause == "pinning a thread: the set of CPUs is empty");
    CHECK(none.error().cure.view().find("0 to 8191") != std::string_view::npos);
}

TEST_CASE("errno in words is right on every thread at once", "[kernel]") {
    os::system_reason one{EACCES};
    os::system_reason other{ENOENT};
    CHECK(one.view() == std::strerror(EACCES));
    CHECK(other.view() == std::strerror(ENOENT));
    CHECK_FALSE(os::system_reason{99999}.view().empty());
}

#if defined(__linux__)

namespace {

/// Makes these system calls of the calling thread fail with `reason`. False
/// where the kernel has no filters.
bool forbid(std::initializer_list<long> calls, int reason) {
    std::vector<sock_filter> program;
    program.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)));
    for (const long call : calls) {
        program.push_back(
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<std::uint32_t>(call), 0, 1));
        program.push_back(
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<std::uint32_t>(reason)));
    }
    program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    const sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
    return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

} // namespace

TEST_CASE("native memory: a kernel without NUMA and a sandbox have different cures", "[kernel]") {
    const auto [reason, code, cure] = GENERATE(table<int, errc, const char*>({
        {ENOSYS, errc::unsupported, "CONFIG_NUMA"},
        {EPERM, errc::permission_denied, "seccomp"},
        {ENOMEM, errc::exhausted, "free memory"},
    }));
    CAPTURE(reason);
    scoped_mapping made;
    made.mapping = made.memory.map({made.memory.page_bytes(), 0, false}).value();
    result<> bound, asked;
    result<os::memory_policy> policy;
    bool filtered = false;
    std::thread{[&, forced = reason] {
        filtered = forbid({SYS_mbind, SYS_get_mempolicy, SYS_move_pages}, forced);
        if (!filtered) return;
        int node = 0;
        bound = made.memory.bind(made.mapping.address, made.mapping.bytes, 0, os::bind_mode::bind);
        policy = made.memory.policy_of(made.mapping.address);
        asked = made.memory.page_nodes(made.mapping.address, 4096, {&node, 1});
    }}.join();
    if (!filtered) {
        std::cout << "SKIP: this kernel lets nobody filter system calls\n";
        return;
    }
    REQUIRE_FALSE(bound);
    REQUIRE_FALSE(policy);
    REQUIRE_FALSE(asked);
    for (const error& e : {bound.error(), policy.error(), asked.error()}) {
        CAPTURE(e.cause.view());
        CHECK(e.code == code);
        CHECK_THAT(std::string{e.cure.view()}, Catch::Contains(cure));
    }
}

#endif

TEST_CASE("native memory: mappings are zeroed, aligned and as large as asked", "[kernel]") {
    const auto [pages, alignment, shared] = GENERATE(table<std::uint64_t, std::uint64_t, bool>({
        {1, 0, false},
        {3, 0, true},
        {512, 2u << 20, false},
        {513, 2u << 20, true},
        {16, 64u << 20, false},
    }));
    scoped_mapping made;
    const std::uint64_t page = made.memory.page_bytes();
    const auto mapped = made.memory.map({pages * page, alignment, shared});
    REQUIRE(mapped);
    made.mapping = *mapped;
    CHECK(mapped->bytes == pages * page);
    CHECK(std::bit_cast<std::uintptr_t>(mapped->address) % std::max(alignment, page) == 0);
    CHECK((mapped->file >= 0) == shared);
    CHECK(mapped->address[0] == std::byte{0});
    mapped->address[mapped->bytes - 1] = std::byte{7};
    CHECK(mapped->address[mapped->bytes - 1] == std::byte{7});
}

TEST_CASE("native memory: impossible mappings are refused", "[kernel]") {
    os::native_memory memory;
    const std::uint64_t page = memory.page_bytes();
    const auto [bytes, alignment] = GENERATE_COPY(table<std::uint64_t, std::uint64_t>({
        {0, 0},
        {page + 1, 0},
        {page, 3 * page},
        {std::uint64_t{1} << 62, 0},
        {page, std::uint64_t{1} << 63},
        {~std::uint64_t{0}, 0},
    }));
    const auto mapped = memory.map({bytes, alignment, false});
    REQUIRE_FALSE(mapped);
    CHECK(mapped.error() == errc::invalid_argument);
}

TEST_CASE("native memory: pages are absent until populated, then on the node bound to",
          "[kernel]") {
    const bool shared = GENERATE(false, true);
    scoped_mapping made;
    const std::uint64_t page = made.memory.page_bytes();
    made.mapping = made.memory.map({64 * page, 0, shared}).value();
    std::byte* const start = made.mapping.address;
    std::vector<int> nodes(64, -9);

    auto asked = made.memory.page_nodes(start, page, nodes);
    if (!asked &&
        skip_if(asked.error() == errc::permission_denied || asked.error() == errc::unsupported,
                asked.error()))
        return;
    REQUIRE(asked);
    CHECK(nodes == std::vector<int>(64, os::page_absent));

    const unsigned node = some_node();
    const auto bound = made.memory.bind(start, 64 * page, node, os::bind_mode::bind);
    if (!bound &&
        skip_if(bound.error() == errc::permission_denied || bound.error() == errc::unsupported,
                bound.error()))
        return;
    REQUIRE(bound);
    CHECK(made.memory.policy_of(start).value() ==
          os::memory_policy{os::bind_mode::bind, node, true});

    REQUIRE(made.memory.populate(start, 32 * page));
    REQUIRE(made.memory.page_nodes(start, page, nodes));
    std::vector<int> expected(64, os::page_absent);
    std::fill_n(expected.begin(), 32, static_cast<int>(node));
    CHECK(nodes == expected);

    // A page in two: the stride is honoured.
    std::vector<int> every_second(20, -9);
    REQUIRE(made.memory.page_nodes(start, 2 * page, every_second));
    CHECK(std::count(every_second.begin(), every_second.end(), static_cast<int>(node)) == 16);
}

TEST_CASE("native memory: the policies read back are those that were set", "[kernel]") {
    scoped_mapping made;
    const std::uint64_t page = made.memory.page_bytes();
    made.mapping = made.memory.map({4 * page, 0, false}).value();
    std::byte* const start = made.mapping.address;
    const unsigned node = some_node();
    const auto first = made.memory.bind(start, page, node, os::bind_mode::prefer);
    if (!first && skip_if(true, first.error())) return;
    REQUIRE(made.memory.bind(start + page, page, node, os::bind_mode::bind));
    CHECK(made.memory.policy_of(start).value().mode == os::bind_mode::prefer);
    CHECK(made.memory.policy_of(start + page).value().mode == os::bind_mode::bind);
    CHECK(made.memory.policy_of(start + 2 * page).value() == os::memory_policy{});
    REQUIRE(made.memory.bind(start, page, 0, os::bind_mode::none));
    CHECK(made.memory.policy_of(start).value() == os::memory_policy{});
}

TEST_CASE("native memory: populating keeps what is there", "[kernel]") {
    scoped_mapping made;
    const std::uint64_t page = made.memory.page_bytes();
    made.mapping = made.memory.map({8 * page, 0, true}).value();
    std::memset(made.mapping.address + 2 * page, 0x5a, page);
    REQUIRE(made.memory.populate(made.mapping.address, 8 * page));
    for (std::uint64_t i = 0; i < 8 * page; ++i) {
        const bool written = i / page == 2;
        if (made.mapping.address[i] != std::byte{written ? std::uint8_t{0x5a} : std::uint8_t{0}})
            FAIL("byte " << i << " changed");
    }
}

TEST_CASE("native memory: a node that does not exist is refused with its number", "[kernel]") {
    if (!os::native_memory::can_bind) {
        std::cout << "SKIP: memory cannot be bound here\n";
        return;
    }
    const unsigned node = GENERATE(1023u, 1024u, 100000u);
    scoped_mapping made;
    made.mapping = made.memory.map({made.memory.page_bytes(), 0, false}).value();
    const auto bound =
        made.memory.bind(made.mapping.address, made.mapping.bytes, node, os::bind_mode::bind);
    REQUIRE_FALSE(bound);
    CHECK(bound.error().cause.view().find(std::to_string(node)) != std::string_view::npos);
    CHECK_FALSE(made.memory.free_bytes(node));
}

TEST_CASE("worker thread: the work is done when join returns, and one at a time", "[kernel]") {
    int value = 0;
    auto work = [&]() noexcept { value = 42; };
    os::worker_thread worker;
    worker.join(); // nothing to wait for
    REQUIRE(worker.start(work));
    CHECK(worker.start(work).error() == errc::busy);
    os::worker_thread moved = std::move(worker);
    moved.join();
    CHECK(value == 42);
    REQUIRE(moved.start(work));
}
