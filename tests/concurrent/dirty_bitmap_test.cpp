// A page written while it is harvested is reported now or next time.
#include <vm_accel/guest/copy.hpp>
#include <vm_accel/guest/dirty_bitmap.hpp>

#include <catch2/catch.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>

using namespace vm_accel;

namespace {

/// Spins a moment, then lets others run: there may be one processor only.
void wait_for(const std::atomic<std::uint64_t>& word, std::uint64_t value) {
    for (unsigned spins = 0; word.load(std::memory_order_acquire) != value; ++spins) {
        if (spins > 5'000) std::this_thread::yield();
    }
}

} // namespace

TEST_CASE("no write is lost between its data and its bit", "[concurrent][dirty]") {
#if VM_ACCEL_THREAD_SANITIZER
    constexpr std::uint64_t rounds = 20'000;
#else
    constexpr std::uint64_t rounds = 1'500'000;
#endif
    dirty_bitmap map;
    REQUIRE(map.cover({pa{0}, 4096}));
    alignas(128) std::byte data[128]{};
    alignas(128) std::atomic<std::uint64_t> go{0};
    alignas(128) std::atomic<std::uint64_t> ready{0};
    std::atomic<std::uint64_t> written{0};
    std::thread writer{[&] {
        for (std::uint64_t round = 1; round <= rounds; ++round) {
            wait_for(go, round);
            map.note_write(pa{0}, 1); // the bit is set, and near
            ready.store(round, std::memory_order_relaxed);
            copy_to_guest(data, reinterpret_cast<const std::byte*>(&round), sizeof round);
            map.note_write(pa{0}, sizeof round);
            written.store(round, std::memory_order_release);
        }
    }};
    std::uint64_t lost = 0;
    for (std::uint64_t round = 1; round <= rounds; ++round) {
        std::uint64_t copy = 0;
        const auto take = [&](pa) {
            copy_from_guest(reinterpret_cast<std::byte*>(&copy), data, sizeof copy);
        };
        go.store(round, std::memory_order_release);
        wait_for(ready, round);
        (void)map.harvest(take);
        wait_for(written, round);
        // The last harvest, after the writer is quiet, must complete the copy.
        (void)map.harvest(take);
        lost += copy != round ? 1 : 0;
    }
    writer.join();
    CHECK(lost == 0);
}
