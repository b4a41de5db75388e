// The control side's lock: one holder at a time, nobody sleeps for ever, and who
// finds it taken can leave work to the holder.
#include <vm_accel/smmu/control/control_mutex.hpp>

#include <catch2/catch.hpp>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

using namespace vm_accel;

TEST_CASE("control_mutex: one holder at a time, and all get their turn", "[concurrent]") {
    control_mutex<true> mutex;
    std::uint64_t owned = 0; // plain: only the lock orders it
    std::uint64_t taken = 0;
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < 4; ++t) {
        threads.emplace_back([&, t] {
            for (unsigned i = 0; i < 5'000; ++i) {
                if (t % 2 == 0) {
                    const std::lock_guard held{mutex};
                    ++owned;
                    // Long enough for the others to go to sleep.
                    if (i % 500 == 0) std::this_thread::sleep_for(std::chrono::microseconds{200});
                } else {
                    const std::unique_lock held{mutex, std::try_to_lock};
                    if (held) ++taken;
                }
            }
        });
    }
    for (std::thread& t : threads)
        t.join();
    CHECK(owned == 10'000);
    CHECK(mutex.try_lock());
    CHECK_FALSE(mutex.try_lock());
    mutex.unlock();
    CHECK(mutex.try_lock());
}

TEST_CASE("control_mutex: work left to the holder is done", "[concurrent]") {
    control_mutex<true> mutex;
    std::atomic<bool> wanted{false};
    std::atomic<std::uint64_t> done{0};
    // As smmu_assembly does: store the flag, then try; unlock, then look.
    const auto look = [&] {
        wanted.store(true, std::memory_order_seq_cst);
        while (wanted.load(std::memory_order_seq_cst)) {
            const std::unique_lock held{mutex, std::try_to_lock};
            if (!held) return;
            if (wanted.exchange(false, std::memory_order_seq_cst)) done.fetch_add(1);
        }
    };
    std::atomic<bool> stop{false};
    std::thread holder{[&] {
        while (!stop.load(std::memory_order_relaxed)) {
            mutex.lock();
            mutex.unlock();
            if (wanted.load(std::memory_order_seq_cst)) look();
        }
    }};
    for (unsigned i = 0; i < 5'000; ++i) {
        const std::uint64_t before = done.load();
        look();
        while (done.load() == before)
            std::this_thread::yield(); // for ever if it was forgotten
    }
    stop = true;
    holder.join();
    CHECK(done.load() >= 5'000);
}

TEST_CASE("control_mutex: for one thread it only remembers") {
    control_mutex<false> mutex;
    mutex.lock();
    CHECK_FALSE(mutex.try_lock());
    mutex.unlock();
    CHECK(mutex.try_lock());
}
