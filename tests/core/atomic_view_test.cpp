/// Words in memory as atomic ones.
#include <vm_accel/core/atomic_view.hpp>

#include <catch2/catch.hpp>

#include <cstdint>
#include <thread>

using namespace vm_accel;

TEMPLATE_TEST_CASE("an atomic view reads, writes and exchanges", "[core]", std::uint8_t,
                   std::uint16_t, std::uint32_t, std::uint64_t) {
    TestType word = 5;
    const atomic_view<TestType> view{word};
    CHECK(view.load(std::memory_order_acquire) == 5);
    view.store(9, std::memory_order_release);
    CHECK(word == 9);
    CHECK(view.fetch_or(6, std::memory_order_relaxed) == 9);
    CHECK(word == 15);

    TestType expected = 14;
    CHECK_FALSE(view.compare_exchange_strong(expected, 1));
    CHECK(expected == 15);
    CHECK(word == 15);
    CHECK(view.compare_exchange_strong(expected, 1, std::memory_order_acq_rel));
    CHECK(word == 1);
}

TEST_CASE("atomic views of one word lose no update", "[core]") {
    std::uint32_t word = 0;
    const auto add = [&word] {
        const atomic_view<std::uint32_t> view{word};
        for (int i = 0; i < 20'000; ++i) {
            std::uint32_t seen = view.load();
            while (!view.compare_exchange_strong(seen, seen + 1)) {}
        }
    };
    std::thread other{add};
    add();
    other.join();
    CHECK(word == 40'000);
}
