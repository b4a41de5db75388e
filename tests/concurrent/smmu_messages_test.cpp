// Interrupts as messages while many threads raise them.
#include "smmu/guest_driver.hpp"

#include <catch2/catch.hpp>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

using namespace vm_accel;
namespace reg = vm_accel::spec::reg;

namespace {

struct with_messages : default_smmu_options {
    static constexpr smmu_features features = [] {
        smmu_features some = full_features;
        some.wires_beside_messages = false;
        return some;
    }();
};

} // namespace

TEST_CASE("no event lies in the queue without a message that told of it", "[concurrent][smmu]") {
    using machine = guest::machine<set_associative<16, 2>, with_messages>;
    constexpr unsigned devices = 3;
    constexpr int accesses = 300;
    machine m;
    const std::uint64_t word = m.take_pages();
    const std::uint64_t sync_word = word + 8;
    m.start();
    m.write32(reg::IRQ_CTRL, 0);
    m.write64(reg::EVENTQ_IRQ_CFG0, word);
    m.write32(reg::EVENTQ_IRQ_CFG1, 1);
    m.write32(reg::IRQ_CTRL, 0x5);
    std::vector<typename machine::device::port> ports;
    for (std::uint32_t d = 0; d < devices; ++d) {
        (void)m.ste_address(d); // a table with nothing in it: every access is C_BAD_STE
        const std::string name = "disk " + std::to_string(d);
        REQUIRE(m.iommu().attach_device(name, m.all_of_ram, stream_id{d}));
        ports.push_back(m.iommu().make_port(name).value());
    }
    std::atomic<unsigned> running{devices};
    std::vector<std::thread> threads;
    for (auto& port : ports) {
        threads.emplace_back([&] {
            std::array<std::byte, 4> bytes{};
            for (int i = 0; i < accesses; ++i)
                (void)port.read(iova{0x1000}, bytes);
            running.fetch_sub(1);
        });
    }
    // The driver looks into the queue when it was told to, and only then.
    std::uint64_t taken = 0;
    std::uint32_t syncs = 0;
    const auto handle = [&] {
        if (m.load64(word) == 0) return false;
        m.store64(word, 0);
        while (m.event())
            ++taken;
        return true;
    };
    while (running.load() != 0) {
        (void)handle();
        // One at a time: a CMD_SYNC may wait for a device that is telling an event.
        if (!m.commands_done()) continue;
        REQUIRE((m.load64(sync_word) & 0xffff'ffff) == syncs);
        m.command(spec::cmd_sync_msi(pa{sync_word}, ++syncs));
    }
    for (auto& thread : threads)
        thread.join();
    while (m.iommu().poll()) {}
    while (handle()) {}
    CHECK_FALSE(m.event());
    CHECK(taken > 0);
    const smmu_statistics stats = m.iommu().stats();
    CHECK(taken == stats.events);
    CHECK(stats.events + stats.events_dropped == devices * accesses);
    CHECK(m.sink.pulses(wired_interrupt::eventq) == 0);
    CHECK(m.commands_done());
    CHECK((m.load64(sync_word) & 0xffff'ffff) == syncs);
}
