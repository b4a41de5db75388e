#include <vm_accel/guest/copy.hpp>

#include <catch2/catch.hpp>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <thread>

using namespace vm_accel;

namespace {

/// Not known while compiling, so that no compiler turns the copy into one access by itself.
template <class Word>
std::size_t size_of_word() {
    volatile std::size_t bytes = sizeof(Word);
    return bytes;
}

template <class Word>
Word load(const std::byte* from) {
    alignas(8) std::array<std::byte, 8> bytes{};
    copy_from_guest(bytes.data(), from, size_of_word<Word>());
    Word word{};
    std::memcpy(&word, bytes.data(), sizeof word);
    return word;
}
template <class Word>
void store(std::byte* to, Word word) {
    alignas(8) std::array<std::byte, 8> bytes{};
    std::memcpy(bytes.data(), &word, sizeof word);
    copy_to_guest(to, bytes.data(), size_of_word<Word>());
}

} // namespace

TEMPLATE_TEST_CASE("copy: an aligned word is never seen half old and half new", "", std::uint16_t,
                   std::uint32_t, std::uint64_t) {
    // A ring index that steps over a byte boundary, such as 0x00ff to 0x0100.
    constexpr auto low = static_cast<TestType>(static_cast<TestType>(~TestType{0}) >> 8);
    constexpr auto high = static_cast<TestType>(low + 1);
    alignas(8) std::array<std::byte, 8> guest{};
    store<TestType>(guest.data(), low);
    std::atomic<bool> done{false};
    std::atomic<bool> started{false};
    std::thread writer{[&] {
        while (!done.load(std::memory_order_relaxed)) {
            store<TestType>(guest.data(), high);
            store<TestType>(guest.data(), low);
            started.store(true, std::memory_order_relaxed);
        }
    }};
    while (!started.load(std::memory_order_relaxed))
        std::this_thread::yield();
    unsigned torn = 0;
    for (unsigned i = 0; i < 1'000'000; ++i) {
        const auto seen = load<TestType>(guest.data());
        if (seen != low && seen != high) ++torn;
    }
    done = true;
    writer.join();
    CHECK(torn == 0);
}

TEST_CASE("copy: any size from and to any alignment") {
    for (std::size_t bytes = 0; bytes <= 40; ++bytes) {
        for (std::size_t at = 0; at < 9; ++at) {
            alignas(8) std::array<std::byte, 64> guest{}, host{};
            for (std::size_t i = 0; i < host.size(); ++i)
                host[i] = static_cast<std::byte>(i + 1);
            copy_to_guest(guest.data() + at, host.data() + 3, bytes);
            std::array<std::byte, 64> back{};
            copy_from_guest(back.data() + 5, guest.data() + at, bytes);
            CHECK(std::memcmp(back.data() + 5, host.data() + 3, bytes) == 0);
            CHECK(guest[at + bytes] == std::byte{0});
            CHECK(back[5 + bytes] == std::byte{0});
        }
    }
}
