// The PCI disk's translation cache: a page that was taken back is its owner's alone.
#include "../../examples/linux_kvm_arm64/ats_cache.hpp"

#include <catch2/catch.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <thread>

using namespace linux_vmm;
using vm_accel::access_attributes;
using vm_accel::ats_completion;
using vm_accel::ats_request;
using vm_accel::ats_status;

namespace {

using page = std::array<std::byte, 256>;

/// Two pages; every address of the device is the one that `now` says. All
/// accesses are plain: whoever touches a page that it does not own is a race.
struct two_pages {
    std::array<page, 2> pages{};
    std::atomic<std::uint64_t> now{0};
    std::atomic<std::uint64_t> translated{0};
};

struct port_onto {
    two_pages* behind;

    [[nodiscard]] ats_completion ats_translate(const ats_request& asked) noexcept {
        ats_completion answer{.status = ats_status::success};
        answer.address = behind->now << 12 | (raw(asked.address) & 0xfff);
        answer.read = answer.write = true;
        return answer;
    }
    [[nodiscard]] bool read(iova, std::span<std::byte>, access_attributes = {}) noexcept {
        return false;
    }
    [[nodiscard]] bool write(iova address, std::span<const std::byte> in,
                             access_attributes how = {}) noexcept {
        if (!how.translated) return true; // an SMMU's own matter
        std::copy(in.begin(), in.end(), behind->pages[raw(address) >> 12].begin());
        ++behind->translated;
        return true;
    }
};

} // namespace

TEST_CASE("ats_cache: what was taken back is not touched again") {
    const bool by_control = GENERATE(false, true);
    two_pages behind;
    ats_cache cache;
    cache.enable(true);
    std::atomic<bool> stop{false};
    std::thread device{[&] {
        ats_port<port_onto> port{{&behind}, cache};
        page written;
        written.fill(std::byte{0x5a});
        while (!stop)
            (void)port.write(iova{0x5000}, written);
    }};
    std::uint64_t touched = 0;
    for (unsigned round = 0; round < 400; ++round) {
        const std::uint64_t before = behind.now;
        while (behind.translated == touched)
            std::this_thread::yield();
        behind.now = 1 - before;
        if (by_control) {
            cache.enable(false);
            cache.enable(true);
        } else {
            cache.forget({.first = 0x5000, .last = 0x5fff});
        }
        touched = behind.translated;
        // Ours again.
        page& freed = behind.pages[before];
        freed.fill(std::byte{0});
        std::this_thread::yield();
        REQUIRE(freed == page{});
    }
    stop = true;
    device.join();
    CHECK(behind.translated >= 400);
}
