/// Huge pages from pools, locked and sealed memory: asked of this machine's kernel,
/// with and without what it takes.
#include <vm_accel/os/memory.hpp>
#include <vm_accel/os/memory_features.hpp>

#include <catch2/catch.hpp>

#if defined(__linux__)

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <bit>
#include <cstddef>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

using namespace vm_accel;

namespace {

constexpr std::uint64_t MiB = 1u << 20;
constexpr std::uint64_t huge = 2 * MiB;

struct scoped_mapping {
    os::linux_memory memory{};
    os::raw_mapping mapping{};
    ~scoped_mapping() { memory.unmap(mapping); }
};

/// Makes madvise with `advice` fail with `reason` on the calling thread.
bool forbid_advice(std::uint32_t advice, int reason) {
    std::vector<sock_filter> program{
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_madvise, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[2])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, advice, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<std::uint32_t>(reason)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    const sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
    return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

/// Takes the right to lock any amount of memory from the calling thread.
bool give_up_lock_rights() {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct data[2]{};
    if (::syscall(SYS_capget, &header, data) != 0) return false;
    data[0].effective &= ~(1u << CAP_IPC_LOCK);
    return ::syscall(SYS_capset, &header, data) == 0;
}

std::uint64_t free_huge_pages(const os::linux_memory& memory) {
    std::uint64_t pages = 0;
    for (unsigned node = 0; node < 64; ++node)
        if (const auto free = memory.free_huge_pages(node, huge)) pages += *free;
    return pages;
}

std::uint64_t locked_kib() {
    os::linux_small_file status;
    if (!status.read("/proc/self/status")) return 0;
    const std::size_t at = status.view().find("VmLck:");
    return os::linux_small_file::number_at(
        status.view().substr(status.view().find_first_of("0123456789", at)));
}

} // namespace

TEST_CASE("native memory: a file of guest memory keeps its size once sealed", "[kernel]") {
    scoped_mapping made;
    made.mapping = made.memory.map({4 * MiB, 0, true}).value();
    const auto bytes = static_cast<::off_t>(made.mapping.bytes);
    REQUIRE(made.memory.seal(made.mapping));
    CHECK(::ftruncate(made.mapping.file, bytes / 2) != 0);
    CHECK(::ftruncate(made.mapping.file, bytes * 2) != 0);
    CHECK(::fcntl(made.mapping.file, F_ADD_SEALS, F_SEAL_WRITE) != 0); // and no more seals
    made.mapping.address[bytes - 1] = std::byte{7};
    std::byte read{};
    CHECK(::pread(made.mapping.file, &read, 1, bytes - 1) == 1);
    CHECK(read == std::byte{7});
    CHECK((::fcntl(made.mapping.file, F_GETFD) & FD_CLOEXEC) != 0);

    scoped_mapping anonymous;
    anonymous.mapping = anonymous.memory.map({4096, 0, false}).value();
    CHECK(anonymous.memory.seal(anonymous.mapping).error() == errc::invalid_argument);
}

TEST_CASE("native memory: what is locked is counted, and a limit is named with its cure",
          "[kernel]") {
    scoped_mapping made;
    made.mapping = made.memory.map({16 * MiB, 0, false}).value();
    ::rlimit limit{};
    REQUIRE(::getrlimit(RLIMIT_MEMLOCK, &limit) == 0);
    if (limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur >= 16 * MiB) {
        ::rlimit low{MiB, limit.rlim_max};
        REQUIRE(::setrlimit(RLIMIT_MEMLOCK, &low) == 0);
    }
    result<> refused;
    bool without_rights = false;
    std::thread{[&] {
        without_rights = give_up_lock_rights();
        refused = made.memory.lock(made.mapping.address, made.mapping.bytes);
    }}.join();
    REQUIRE(without_rights);
    REQUIRE_FALSE(refused);
    CHECK(refused.error() == errc::permission_denied);
    CHECK_THAT(std::string{refused.error().cause.view()},
               Catch::Contains("locking 16 MiB of guest memory: RLIMIT_MEMLOCK is "));
    CHECK_THAT(std::string{refused.error().cure.view()}, Catch::Contains("CAP_IPC_LOCK"));
    REQUIRE(::setrlimit(RLIMIT_MEMLOCK, &limit) == 0);

    const std::uint64_t before = locked_kib();
    // A page is below every limit that is not 0.
    const auto locked = made.memory.lock(made.mapping.address, 4096);
    if (limit.rlim_cur != 0 || ::geteuid() == 0) {
        REQUIRE(locked);
        CHECK(locked_kib() == before + 4);
    }
    int node = 0;
    if (made.memory.page_nodes(made.mapping.address, 4096, {&node, 1}))
        CHECK(node == os::page_absent); // locking makes no pages
}

TEST_CASE("native memory: a kernel that cannot populate by advice has its pages touched",
          "[kernel]") {
    constexpr std::uint32_t populate_write = 23;
    scoped_mapping made;
    made.mapping = made.memory.map({64 * 4096, 0, GENERATE(false, true)}).value();
    made.mapping.address[5000] = std::byte{9};
    bool filtered = false;
    result<> populated, huge_populated;
    std::thread{[&] {
        filtered = forbid_advice(populate_write, EINVAL);
        if (!filtered) return;
        populated = made.memory.populate(made.mapping.address, made.mapping.bytes);
        huge_populated = made.memory.populate_huge(made.mapping.address, made.mapping.bytes);
    }}.join();
    if (!filtered) {
        std::cout << "SKIP: this kernel lets nobody filter system calls\n";
        return;
    }
    CHECK(populated);
    CHECK(made.mapping.address[5000] == std::byte{9});
    std::vector<unsigned char> resident(64);
    REQUIRE(::mincore(made.mapping.address, made.mapping.bytes, resident.data()) == 0);
    for (const unsigned char page : resident)
        CHECK((page & 1) == 1);
    // Touching pages of a pool may end the process: that is not done.
    REQUIRE_FALSE(huge_populated);
    CHECK(huge_populated.error() == errc::unsupported);
}

TEST_CASE("native memory: huge pages are reserved with the mapping, or refused", "[kernel]") {
    scoped_mapping made;
    const bool shared = GENERATE(false, true);
    const std::uint64_t free = free_huge_pages(made.memory);
    CAPTURE(free, shared);
    const auto too_many = made.memory.map_huge({(free + 1) * huge, 0, shared}, huge);
    REQUIRE_FALSE(too_many);
    CHECK((too_many.error() == errc::exhausted || too_many.error() == errc::unsupported));
    CHECK_FALSE(too_many.error().cure.empty());
    CHECK(made.memory.map_huge({huge + 4096, 0, shared}, huge).error() == errc::invalid_argument);
    if (free == 0) {
        std::cout << "SKIP: no huge page of 2 MiB is free here\n";
        return;
    }
    const auto mapped = made.memory.map_huge({free * huge, 0, shared}, huge);
    if (!mapped) { // some are promised to others
        CHECK(mapped.error() == errc::exhausted);
        return;
    }
    made.mapping = *mapped;
    CHECK(std::bit_cast<std::uintptr_t>(mapped->address) % huge == 0);
    CHECK((mapped->file >= 0) == shared);
    if (shared) CHECK(made.memory.seal(*mapped));
    REQUIRE(made.memory.populate_huge(mapped->address, mapped->bytes));
    CHECK(free_huge_pages(made.memory) == 0);
    for (std::uint64_t at = 0; at < mapped->bytes; at += huge)
        mapped->address[at + huge - 1] = std::byte{1};
    int node = os::page_absent;
    if (made.memory.page_nodes(mapped->address + huge / 2, 4096, {&node, 1})) CHECK(node >= 0);
    made.memory.unmap(std::exchange(made.mapping, {}));
    CHECK(free_huge_pages(made.memory) == free);
}

TEST_CASE("native memory: a pool of a size or node that is not there is named", "[kernel]") {
    const os::linux_memory memory;
    for (const auto& [node, bytes] : {std::pair{1000u, huge}, std::pair{0u, 3 * MiB}}) {
        const auto free = memory.free_huge_pages(node, bytes);
        REQUIRE_FALSE(free);
        CHECK(free.error() == errc::unsupported);
        CHECK_THAT(std::string{free.error().cause.view()}, Catch::Contains("free_hugepages"));
    }
}

#endif
