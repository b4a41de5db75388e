#include <vm_accel/guest/region_map.hpp>

#include <catch2/catch.hpp>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <thread>

namespace {

using namespace vm_accel;

constexpr std::uint64_t page = 4096;

struct alignas(page) host_page {
    std::array<std::byte, page> bytes;
};

/// Two host pages take turns behind one guest page while readers look. A reader
/// sees the one, the other or nothing: never a base of one with the host of the
/// other, and never a mixture of bytes.
TEST_CASE("readers see each region whole or not at all", "[guest][concurrent]") {
    static std::array<host_page, 3> ram;
    std::memset(&ram[0], 0x11, page);
    std::memset(&ram[1], 0x22, page);
    std::memset(&ram[2], 0x33, page);

    region_map memory;
    REQUIRE(memory.add(pa{0x10000}, ram[0].bytes.data(), page));
    REQUIRE(memory.add(pa{0x20000}, ram[2].bytes.data(), page));

    std::atomic<bool> stop{false};
    std::atomic<std::uint64_t> wrong{0};
    std::atomic<std::uint64_t> seen_a{0};
    std::atomic<std::uint64_t> seen_b{0};
    const auto reader = [&] {
        while (!stop.load(std::memory_order_relaxed)) {
            // The slot that changes holds either {0x10000, page 0} or {0x30000, page 1}.
            if (const auto run = memory.find(pa{0x10008})) {
                seen_a.fetch_add(1, std::memory_order_relaxed);
                if (run->host != ram[0].bytes.data() || run->base != pa{0x10000}) ++wrong;
            }
            if (const auto run = memory.find(pa{0x30008})) {
                seen_b.fetch_add(1, std::memory_order_relaxed);
                if (run->host != ram[1].bytes.data() || run->base != pa{0x30000}) ++wrong;
            }
            // The region that nobody touches is always there.
            if (memory.load64(pa{0x20000}) != 0x3333'3333'3333'3333) ++wrong;
            std::array<std::byte, 8> out{};
            if (memory.read(pa{0x30010}, out) && out[3] != std::byte{0x22}) ++wrong;
        }
    };
    std::array<std::thread, 2> readers{std::thread{reader}, std::thread{reader}};

    // Goes on until the readers have met both states, so that the test cannot
    // pass by scheduling alone.
    std::uint64_t failures = 0;
    for (std::uint64_t i = 0; i < 20'000 || seen_a.load() == 0 || seen_b.load() == 0; ++i) {
        if (!memory.remove(pa{0x10000})) ++failures;
        if (!memory.add(pa{0x30000}, ram[1].bytes.data(), page)) ++failures;
        if (!memory.remove(pa{0x30000})) ++failures;
        if (!memory.add(pa{0x10000}, ram[0].bytes.data(), page)) ++failures;
    }
    stop = true;
    for (std::thread& t : readers)
        t.join();
    CHECK(failures == 0);
    CHECK(wrong.load() == 0);
    CHECK(seen_a.load() > 0);
    CHECK(seen_b.load() > 0);
}

/// Writers that add at once: each range goes to exactly one of them.
TEST_CASE("threads that add the same ranges share them without overlap", "[guest][concurrent]") {
    static std::array<host_page, 1> ram;
    for (int round = 0; round < 50; ++round) {
        basic_region_map<no_dirty_tracking, 16> memory;
        std::atomic<int> added{0};
        const auto adder = [&] {
            for (std::uint64_t i = 0; i < 16; ++i) {
                if (memory.add(pa{i * page}, ram[0].bytes.data(), page)) ++added;
            }
        };
        std::thread other{adder};
        adder();
        other.join();
        CHECK(added.load() == 16);
        std::size_t seen = 0;
        memory.for_each([&](const host_run&) { ++seen; });
        CHECK(seen == 16);
    }
}

/// Compare-and-swap on a guest word from several threads loses no update.
TEST_CASE("exchanges on one guest word are atomic", "[guest][concurrent]") {
    static std::array<host_page, 1> ram;
    std::memset(&ram[0], 0, page);
    region_map memory;
    REQUIRE(memory.add(pa{0}, ram[0].bytes.data(), page));
    constexpr std::uint64_t each = 5000;
    const auto work = [&] {
        for (std::uint64_t i = 0; i < each;) {
            const std::uint64_t old = *memory.load64(pa{8});
            if (memory.compare_exchange64(pa{8}, old, old + 1) == old) ++i;
        }
    };
    std::thread a{work};
    std::thread b{work};
    a.join();
    b.join();
    CHECK(memory.load64(pa{8}) == 2 * each);
}

} // namespace
