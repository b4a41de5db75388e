// Strict mode, fault injection and the performance monitor while devices and a
// driver are at work; and an SMMU that is saved in the middle of it.
#include "smmu/guest_driver.hpp"

#include <catch2/catch.hpp>

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

using namespace vm_accel;
namespace pmcg = vm_accel::spec::pmcg;

namespace {

#if VM_ACCEL_THREAD_SANITIZER
constexpr unsigned rounds = 100;
#else
constexpr unsigned rounds = 150;
#endif
constexpr std::uint64_t pool = guest::ram + 0x80'0000;
constexpr unsigned pages = 8;

struct strict : default_smmu_options {
    static constexpr smmu_features features = [] {
        smmu_features f = stage1_features;
        f.performance_counters = 2;
        return f;
    }();
    using lint = guest_lint<16>;
    using fault_injection = planned_faults<4>;
};

struct bench : guest::machine<set_associative<16, 2>, strict> {
    bench() {
        start();
        root = stage1_stream(0x10, 1);
        REQUIRE(iommu().attach_device("disk", all_of_ram, stream_id{0x10}));
        for (unsigned p = 0; p < pages; ++p)
            map(root, (p + 1) * 0x1000ULL, pool + p * 0x1000);
        auto g = iommu().performance_monitor();
        g.mmio_write(pmcg::EVTYPER0, 4, 1 | 1U << 29);
        g.mmio_write(pmcg::SMR0, 4, 0xffff'ffff);
        g.mmio_write(pmcg::EVCNTR0, 8, 0);
        g.mmio_write(pmcg::CNTENSET0, 8, 1);
        g.mmio_write(pmcg::CR, 4, 1);
    }
    /// Devices that read the mapped pages until they are told to stop.
    void run(unsigned devices) {
        for (unsigned d = 0; d < devices; ++d) {
            threads.emplace_back([this, d] {
                auto port = iommu().make_port("disk").value();
                std::array<std::byte, 4> bytes{};
                for (unsigned p = d; !stop.load(std::memory_order_relaxed); ++p) {
                    const bool read = port.read(iova{(p % pages + 1) * 0x1000ULL}, bytes);
                    (read ? done : refused).fetch_add(1, std::memory_order_relaxed);
                }
            });
        }
    }
    void join() {
        stop.store(true);
        for (std::thread& t : threads)
            t.join();
    }
    /// One of the driver's mappings that no device uses.
    void churn(unsigned round) {
        const std::uint64_t address = 0x100'0000 + (round % 32) * 0x1000ULL;
        map(root, address, pool);
        unmap(root, address);
        command(spec::tlbi_nsnh_all());
        sync();
        while (!commands_done())
            std::this_thread::yield();
    }
    /// Until the devices have made some more accesses.
    void let_devices_run() {
        const std::uint64_t before = done + refused;
        while (done + refused < before + 4)
            std::this_thread::yield();
    }
    std::uint64_t root = 0;
    std::atomic<bool> stop{false};
    std::atomic<std::uint64_t> done{0};
    std::atomic<std::uint64_t> refused{0};
    std::vector<std::thread> threads;
};

} // namespace

TEST_CASE("a clean driver stays clean, and every transaction is counted", "[concurrent][smmu]") {
    bench m;
    m.run(2);
    std::uint64_t last = 0;
    for (unsigned round = 0; round < rounds; ++round) {
        m.churn(round);
        m.let_devices_run();
        if (round % 16 == 0) {
            m.command(spec::cmd_cfgi_ste(stream_id{0x10}, true));
            m.sync();
        }
        const std::uint64_t now = m.iommu().performance_monitor().mmio_read(pmcg::EVCNTR0, 8);
        CHECK(now >= last);
        last = now;
    }
    m.join();
    CHECK(m.refused == 0);
    std::string findings;
    while (const auto f = m.iommu().lint().take())
        findings += std::string{f->text().view()} + "\n";
    CHECK(findings.empty());
    CHECK(m.iommu().performance_monitor().mmio_read(pmcg::EVCNTR0, 8) == m.done);
}

TEST_CASE("as many accesses fail as were planned to", "[concurrent][smmu]") {
    bench m;
    m.run(2);
    auto& faults = m.iommu().fault_injection();
    const std::uint64_t table = m.descriptor_slot(m.root, 0x1000) & ~std::uint64_t{0xfff};
    for (unsigned round = 0; round < rounds; ++round) {
        (void)faults.plan({.where = {pa{table}, 4096}, .after = round % 5});
        m.churn(round);
        m.let_devices_run();
        if (round % 7 == 0) faults.clear();
        while (m.event()) {}
    }
    m.join();
    // Strict mode's own look-ups meet planned faults too, and refuse nothing.
    CHECK(m.refused <= faults.injected());
    CHECK(faults.injected() > 0);
}

TEST_CASE("saved while devices are at work", "[concurrent][smmu]") {
    bench m;
    m.run(2);
    for (unsigned round = 0; round < rounds / 10; ++round) {
        m.churn(round);
        std::vector<std::byte> state(m.iommu().saved_state_size());
        m.let_devices_run();
        REQUIRE(m.iommu().save(state));
        REQUIRE(m.iommu().restore(state));
        m.churn(round);
    }
    m.join();
    CHECK(m.done > 0);
}
