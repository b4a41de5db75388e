// The performance monitor counter group: its registers, driven as Linux's
// driver drives them, and what an SMMU counts.
#include "guest_driver.hpp"

#include <vm_accel/smmu/control/performance_monitor.hpp>

#include <catch2/catch.hpp>

#include <array>
#include <cstdint>
#include <map>
#include <string>

using namespace vm_accel;
namespace pmcg = vm_accel::spec::pmcg;

namespace {

/// Counts by hand: per stream and event.
struct sums {
    event_totals totals(const stream_filter& filter) noexcept {
        event_totals total;
        for (const auto& [stream, counts] : of) {
            if (filter.matches(stream)) total += counts;
        }
        return total;
    }
    std::uint64_t clock() noexcept { return now; }
    void count(std::uint32_t stream, unsigned event, std::uint64_t n) { of[stream].of[event] += n; }

    std::map<std::uint32_t, event_totals> of;
    std::uint64_t now = 1000;
};

constexpr performance_monitor_shape plain{.counters = 4, .stream_bits = 16, .msi = true};

template <performance_monitor_shape Shape = plain>
struct group {
    std::uint64_t read(std::uint64_t at, unsigned size = 4) {
        return monitor.read(at, size, source);
    }
    void write(std::uint64_t at, std::uint64_t value, unsigned size = 4) {
        monitor.write(at, size, value, source);
    }
    std::uint64_t counter(unsigned n) { return read(pmcg::EVCNTR0 + 8 * n, 8); }
    /// As Linux does: type and filter, half of the range, enable.
    void start(unsigned n, std::uint64_t event, bool span = true,
               std::uint32_t stream = 0xffff'ffff) {
        write(pmcg::EVTYPER0 + 4 * n, event | (span ? 1U << 29 : 0));
        write(pmcg::SMR0 + 4 * n, stream);
        write(pmcg::INTENSET0, std::uint64_t{1} << n, 8);
        write(pmcg::EVCNTR0 + 8 * n, ~std::uint64_t{0} >> 1, 8);
        write(pmcg::CNTENSET0, std::uint64_t{1} << n, 8);
    }
    void enable() {
        write(pmcg::IRQ_CTRL, 1);
        write(pmcg::CR, 1);
    }
    std::uint64_t counted(unsigned n) { return counter(n) - (~std::uint64_t{0} >> 1); }

    sums source;
    performance_monitor<Shape> monitor;
};

} // namespace

TEST_CASE("what Linux's driver reads when it probes", "[smmu][pmcg]") {
    group g;
    const std::uint64_t cfgr = g.read(pmcg::CFGR);
    CHECK((cfgr & 0x3f) + 1 == 4);         // counters
    CHECK((cfgr >> 8 & 0x3f) == 63);       // 64 bits each: 8 bytes apart
    CHECK((cfgr >> 20 & 1) == 0);          // one page
    CHECK((cfgr >> 21 & 1) == 1);          // MSI
    CHECK((cfgr >> 23 & 1) == 0);          // a filter for each counter
    CHECK(g.read(pmcg::CEID0, 8) == 0x3f); // the six mandatory events
    CHECK(g.read(pmcg::CEID1, 8) == 0);
    CHECK(g.read(pmcg::IIDR) == 0);
    group<performance_monitor_shape{.counters = 64, .ats = true, .relocated = true}> full;
    CHECK(full.read(pmcg::CEID0, 8) == 0xff);
    CHECK((full.read(pmcg::CFGR) & 0x10'003f) == 0x10'003f);
    CHECK((full.read(pmcg::CFGR) >> 21 & 1) == 0);
}

TEST_CASE("counters count while they and the group are enabled", "[smmu][pmcg]") {
    group g;
    g.source.count(1, 1, 100);
    g.start(0, 1);
    g.source.count(1, 1, 100);
    CHECK(g.counted(0) == 0); // the group is off
    g.enable();
    g.source.count(1, 1, 5);
    g.source.count(2, 1, 2);
    g.source.count(2, 2, 50);
    CHECK(g.counted(0) == 7);
    g.source.count(1, 1, 1);
    g.write(pmcg::CNTENCLR0, 1, 8);
    g.source.count(1, 1, 1);
    CHECK(g.counted(0) == 8);
    g.write(pmcg::CNTENSET0, 1, 8);
    g.source.count(1, 1, 1);
    g.write(pmcg::CR, 0);
    g.source.count(1, 1, 1);
    CHECK(g.counted(0) == 9);
    // A running counter that is written goes on from there.
    g.write(pmcg::CR, 1);
    g.source.count(1, 1, 3);
    g.write(pmcg::EVCNTR0, 1000, 8);
    g.source.count(1, 1, 4);
    CHECK(g.counter(0) == 1004);
    // Half of a counter by itself.
    g.write(pmcg::EVCNTR0 + 4, 7);
    CHECK(g.counter(0) == 0x7'0000'03ec);
    CHECK(g.read(pmcg::EVCNTR0 + 4) == 7);
}

TEST_CASE("another event type begins where it is", "[smmu][pmcg]") {
    group g;
    g.start(0, 1);
    g.enable();
    g.source.count(1, 1, 5);
    g.source.count(1, 2, 70);
    g.write(pmcg::EVTYPER0, 2 | 1U << 29);
    CHECK(g.counted(0) == 5);
    g.source.count(1, 2, 2);
    CHECK(g.counted(0) == 7);
    g.write(pmcg::EVTYPER0, 0xffff | 1U << 29); // counts nothing
    g.source.count(1, 2, 2);
    CHECK(g.counted(0) == 7);
    g.write(pmcg::EVTYPER0, 6 | 1U << 29); // of a group without ATS
    g.source.count(1, 6, 2);
    CHECK(g.counted(0) == 7);
    g.write(pmcg::EVTYPER0, 0); // cycles, whatever the filter
    g.source.now += 40;
    CHECK(g.counted(0) == 47);
}

TEST_CASE("StreamID filters", "[smmu][pmcg]") {
    struct row {
        bool span;
        std::uint32_t smr;
        std::uint32_t stream;
        bool counted;
    };
    const row rows[] = {
        {false, 0x0010, 0x0010, true},     {false, 0x0010, 0x0011, false},
        {false, 0xffff, 0x0010, false},    {false, 0xffff, 0xffff, true},
        {true, 0xffff'ffff, 0x1234, true}, // all
        {true, 0x7fff, 0x8000, true},      // all, the other way to say it
        {true, 0xf7f7, 0xf7fa, true},      // the low 4 bits are ignored
        {true, 0xf7f7, 0xf7e7, false},     {true, 0xf7f6, 0xf7f7, true}, // the lowest bit is
        {true, 0xf7f6, 0xf7f5, false},     {true, 0xf5ff, 0xf7ff, true}, // ten are
        {true, 0xf5ff, 0xf8ff, false},
    };
    for (const row& r : rows) {
        INFO(std::hex << r.span << " " << r.smr << " " << r.stream);
        group g;
        g.start(0, 1, r.span, r.smr);
        g.enable();
        g.source.count(r.stream, 1, 3);
        CHECK(g.counted(0) == (r.counted ? 3 : 0));
    }
    group<performance_monitor_shape{.counters = 1, .stream_bits = 32}> wide;
    wide.start(0, 1, true, 0x7fff'ffff);
    wide.enable();
    wide.source.count(0x8000'0000, 1, 3);
    CHECK(wide.counted(0) == 3);
    CHECK(wide.read(pmcg::SMR0) == 0x7fff'ffff);
}

TEST_CASE("a stream that goes leaves its counts", "[smmu][pmcg]") {
    group g;
    g.start(0, 1);
    g.start(1, 1, false, 2);
    g.start(2, 1, false, 3);
    g.enable();
    g.source.count(2, 1, 5);
    g.source.count(3, 1, 6);
    g.monitor.forget(2, g.source.of[2]);
    g.source.of.erase(2);
    CHECK(g.counted(0) == 11);
    CHECK(g.counted(1) == 5);
    CHECK(g.counted(2) == 6);
    g.source.count(2, 1, 1); // it comes back
    CHECK(g.counted(0) == 12);
    CHECK(g.counted(1) == 6);
}

TEST_CASE("overflow sets its flag, interrupts and captures", "[smmu][pmcg]") {
    group g;
    g.start(0, 1);
    g.start(1, 2);
    g.write(pmcg::EVTYPER0 + 4, 2 | 1U << 29 | 1U << 31);
    g.write(pmcg::EVCNTR0, ~std::uint64_t{0} - 1, 8);
    g.write(pmcg::EVCNTR0 + 8, ~std::uint64_t{0}, 8);
    g.enable();
    g.source.count(1, 1, 1);
    CHECK(g.counter(0) == ~std::uint64_t{0});
    CHECK(g.read(pmcg::OVSSET0, 8) == 0);
    CHECK_FALSE(g.monitor.take_interrupt().wanted());

    g.source.count(1, 1, 1);
    g.monitor.settle(g.source);
    auto told = g.monitor.take_interrupt();
    CHECK(told.wired);
    CHECK_FALSE(g.monitor.take_interrupt().wanted());
    CHECK(g.read(pmcg::OVSSET0, 8) == 1);
    CHECK(g.read(pmcg::OVSCLR0, 8) == 1);
    CHECK(g.counter(0) == 0);
    CHECK(g.read(pmcg::SVR0, 8) == 0); // this one captures nothing

    // What the driver's interrupt handler does.
    g.write(pmcg::OVSCLR0, 1, 8);
    CHECK(g.read(pmcg::OVSSET0, 8) == 0);
    g.source.count(1, 1, 9);
    g.source.count(1, 2, 4);
    CHECK(g.read(pmcg::OVSSET0, 8) == 2);
    CHECK(g.read(pmcg::SVR0, 8) == 9);
    CHECK(g.read(pmcg::SVR0 + 8, 8) == 3); // with its value after the overflow
    g.source.count(1, 1, 1);
    CHECK(g.read(pmcg::SVR0, 8) == 9);
    g.write(pmcg::CAPR, 1);
    CHECK(g.read(pmcg::SVR0, 8) == 10);
    CHECK(g.read(pmcg::CAPR) == 0);
    CHECK(g.monitor.take_interrupt().wired);

    // Without its enable, or the group's, a counter that overflows tells nobody.
    g.write(pmcg::INTENCLR0, 2, 8);
    g.write(pmcg::EVCNTR0 + 8, ~std::uint64_t{0}, 8);
    g.source.count(1, 2, 1);
    g.monitor.settle(g.source);
    CHECK_FALSE(g.monitor.take_interrupt().wanted());
    g.write(pmcg::INTENSET0, 2, 8);
    g.write(pmcg::IRQ_CTRL, 0);
    g.write(pmcg::EVCNTR0 + 8, ~std::uint64_t{0}, 8);
    g.source.count(1, 2, 1);
    g.monitor.settle(g.source);
    CHECK_FALSE(g.monitor.take_interrupt().wanted());
    CHECK(g.read(pmcg::OVSSET0, 8) == 2);
}

TEST_CASE("an overflow may be a message", "[smmu][pmcg]") {
    group g;
    g.write(pmcg::IRQ_CFG0, 0x1234'5678'0003, 8);
    g.write(pmcg::IRQ_CFG1, 77);
    g.write(pmcg::IRQ_CFG2, 0x1);
    CHECK(g.read(pmcg::IRQ_CFG0, 8) == 0x1234'5678'0000);
    g.start(0, 1);
    g.enable();
    CHECK(g.read(pmcg::IRQ_CTRLACK) == 1);
    g.write(pmcg::IRQ_CFG0, 0x9999'0000, 8); // locked
    g.write(pmcg::IRQ_CFG1, 78);
    g.write(pmcg::IRQ_CFG2, 2);
    CHECK(g.read(pmcg::IRQ_CFG2) == 1);
    g.write(pmcg::EVCNTR0, ~std::uint64_t{0}, 8);
    g.source.count(1, 1, 1);
    g.monitor.settle(g.source);
    const auto told = g.monitor.take_interrupt();
    CHECK_FALSE(told.wired);
    REQUIRE(told.message);
    CHECK(told.message.address == 0x1234'5678'0000);
    CHECK(told.message.data == 77);
    g.monitor.message_aborted();
    CHECK(g.read(pmcg::IRQ_STATUS) == 1);
    g.write(pmcg::IRQ_CTRL, 0);
    CHECK(g.read(pmcg::IRQ_STATUS) == 1);
    g.write(pmcg::IRQ_CTRL, 1);
    CHECK(g.read(pmcg::IRQ_STATUS) == 0);
}

TEST_CASE("the registers' edges", "[smmu][pmcg]") {
    group g;
    // Beyond the implemented counters there is nothing.
    g.write(pmcg::EVCNTR0 + 8 * 4, 5, 8);
    CHECK(g.counter(4) == 0);
    g.write(pmcg::CNTENSET0, ~std::uint64_t{0}, 8);
    CHECK(g.read(pmcg::CNTENSET0, 8) == 0xf);
    CHECK(g.read(pmcg::CNTENCLR0) == 0xf);
    g.write(pmcg::CNTENCLR0, 3); // the low half
    CHECK(g.read(pmcg::CNTENSET0, 8) == 0xc);
    g.write(pmcg::CNTENCLR0 + 4, 0xf); // the high half
    CHECK(g.read(pmcg::CNTENSET0, 8) == 0xc);
    // Ill-formed accesses.
    CHECK(g.read(pmcg::CFGR, 8) == 0);
    CHECK(g.read(pmcg::CFGR, 2) == 0);
    CHECK(g.read(pmcg::CFGR + 2, 4) == 0);
    CHECK(g.read(pmcg::CNTENSET0 + 4, 8) == 0);
    CHECK(g.read(0x1000 + pmcg::CFGR) == 0); // no page 1
    CHECK(g.read(~std::uint64_t{3}) == 0);
    g.write(pmcg::EVTYPER0, 1, 8);
    CHECK(g.read(pmcg::EVTYPER0) == 0);
    // Read-only and secure.
    g.write(pmcg::CFGR, 0);
    g.write(pmcg::SCR, ~0U);
    CHECK((g.read(pmcg::CFGR) & 0x3f) == 3);
    CHECK(g.read(pmcg::SCR) == 0);
    g.write(pmcg::EVTYPER0, ~0U);
    CHECK(g.read(pmcg::EVTYPER0) == 0xa000'ffff);
    g.write(pmcg::SMR0, ~0U);
    CHECK(g.read(pmcg::SMR0) == 0xffff);
}

TEST_CASE("relocated registers are on page 1 and nowhere else", "[smmu][pmcg]") {
    group<performance_monitor_shape{.counters = 2, .relocated = true}> g;
    constexpr std::uint64_t page1 = pmcg::page_size;
    for (const std::uint64_t at : {pmcg::EVCNTR0, pmcg::OVSSET0}) {
        g.write(at, 1, 8);
        CHECK(g.read(page1 + at, 8) == 0);
        g.write(page1 + at, 1, 8);
        CHECK(g.read(page1 + at, 8) == 1);
        CHECK(g.read(at, 8) == 0);
    }
    g.write(page1 + pmcg::CAPR, 1);
    CHECK(g.read(page1 + pmcg::SVR0, 8) == 1);
    g.write(page1 + pmcg::EVTYPER0, 5);
    CHECK(g.read(pmcg::EVTYPER0) == 0);
    CHECK(g.read(page1 + pmcg::CFGR) == 0);
    CHECK(g.read(pmcg::CFGR) != 0);
}

namespace {

constexpr smmu_features counting_features = [] {
    smmu_features f = stage1_features;
    f.performance_counters = 4;
    f.msi = true;
    return f;
}();
struct counting_options : default_smmu_options {
    static constexpr smmu_features features = counting_features;
};

/// An SMMU with two devices, each with one page mapped.
struct bench : guest::machine<set_associative<64, 4>, counting_options> {
    static constexpr std::uint64_t elsewhere = guest::ram + 0x800000;
    bench() {
        start();
        for (const std::uint32_t sid : {0x10U, 0x20U}) {
            (void)iommu().attach_device(name_of(sid), all_of_ram, stream_id{sid}).value();
            map(stage1_stream(sid, static_cast<std::uint16_t>(sid)), 0x1000, elsewhere);
        }
    }
    static std::string name_of(std::uint32_t sid) { return "device " + std::to_string(sid); }
    auto port(std::uint32_t sid) { return iommu().make_port(name_of(sid)).value(); }
    template <class Port>
    static void touch(Port& port, unsigned times, std::uint64_t address = 0x1000) {
        std::array<std::byte, 4> bytes{};
        for (unsigned i = 0; i < times; ++i)
            (void)port.read(iova{address}, bytes);
    }
    void count(unsigned n, std::uint64_t event, bool span = true,
               std::uint32_t stream = 0xffff'ffff) {
        auto g = iommu().performance_monitor();
        g.mmio_write(pmcg::EVTYPER0 + 4 * n, 4, event | (span ? 1U << 29 : 0));
        g.mmio_write(pmcg::SMR0 + 4 * n, 4, stream);
        g.mmio_write(pmcg::EVCNTR0 + 8 * n, 8, 0);
        g.mmio_write(pmcg::INTENSET0, 8, std::uint64_t{1} << n);
        g.mmio_write(pmcg::CNTENSET0, 8, std::uint64_t{1} << n);
        g.mmio_write(pmcg::IRQ_CTRL, 4, 1);
        g.mmio_write(pmcg::CR, 4, 1);
    }
    std::uint64_t counted(unsigned n) {
        return iommu().performance_monitor().mmio_read(pmcg::EVCNTR0 + 8 * n, 8);
    }
    void overflow_next(unsigned n) {
        iommu().performance_monitor().mmio_write(pmcg::EVCNTR0 + 8 * n, 8, ~std::uint64_t{0});
    }
    std::uint64_t told() { return sink.pulses(wired_interrupt::performance); }
};

} // namespace

TEST_CASE("an SMMU counts transactions, misses and accesses to tables", "[smmu][pmcg]") {
    bench m;
    auto disk = m.port(0x10);
    m.count(0, 1);
    m.count(1, 2);
    m.count(2, 3);
    m.count(3, 4);
    bench::touch(disk, 10);
    CHECK(m.counted(0) == 10);
    CHECK(m.counted(1) == 1);
    CHECK(m.counted(2) == 1);
    CHECK(m.counted(3) == 4); // four levels
    m.count(3, 5);
    m.command(spec::cmd_cfgi_ste(stream_id{0x10}, true));
    m.sync();
    bench::touch(disk, 1);
    CHECK(m.counted(3) == 3); // level-1 descriptor, STE, CD
    CHECK(m.counted(2) == 2);
    bench::touch(disk, 2, 0x9000); // refused: misses too
    CHECK(m.counted(0) == 13);
    CHECK(m.counted(1) == 3);
}

TEST_CASE("an SMMU counts by stream, whatever becomes of ports and devices", "[smmu][pmcg]") {
    bench m;
    m.count(0, 1);
    m.count(1, 1, false, 0x10);
    m.count(2, 1, false, 0x20);
    {
        auto disk = m.port(0x10);
        auto net = m.port(0x20);
        bench::touch(disk, 3);
        bench::touch(net, 5);
        CHECK(m.counted(1) == 3);
        CHECK(m.counted(2) == 5);
    }
    CHECK(m.counted(0) == 8);
    CHECK(m.counted(1) == 3);
    {
        auto net = m.port(0x20); // perhaps where the disk's port was
        bench::touch(net, 1);
    }
    CHECK(m.counted(1) == 3);
    CHECK(m.counted(2) == 6);
    REQUIRE(m.iommu().detach_device(bench::name_of(0x10)));
    CHECK(m.counted(0) == 9);
    CHECK(m.counted(1) == 3);
    {
        auto net = m.port(0x20);
        REQUIRE(m.iommu().detach_device(bench::name_of(0x20)));
        bench::touch(net, 2); // refused, but transactions
        CHECK(m.counted(2) == 8);
    }
    CHECK(m.counted(2) == 8);
    CHECK(m.counted(0) == 11);
}

TEST_CASE("an overflow of an SMMU's counter is noticed by poll", "[smmu][pmcg]") {
    bench m;
    auto disk = m.port(0x10);
    m.count(0, 1);
    m.overflow_next(0);
    bench::touch(disk, 1);
    CHECK(m.told() == 0);
    (void)m.iommu().poll();
    CHECK(m.told() == 1);
    (void)m.iommu().poll();
    CHECK(m.told() == 1);
    CHECK(m.iommu().performance_monitor().mmio_read(pmcg::OVSSET0, 8) == 1);

    // Into memory, if the driver wants a message there.
    auto g = m.iommu().performance_monitor();
    g.mmio_write(pmcg::IRQ_CTRL, 4, 0);
    g.mmio_write(pmcg::IRQ_CFG0, 8, bench::elsewhere + 0x100);
    g.mmio_write(pmcg::IRQ_CFG1, 4, 0x77);
    g.mmio_write(pmcg::IRQ_CTRL, 4, 1);
    m.overflow_next(0);
    bench::touch(disk, 1);
    (void)m.iommu().poll();
    CHECK(m.told() == 1);
    CHECK(m.load64(bench::elsewhere + 0x100) == 0x77);
    // To a doorbell that nobody has.
    g.mmio_write(pmcg::IRQ_CTRL, 4, 0);
    g.mmio_write(pmcg::IRQ_CFG0, 8, 0x9000'0000);
    g.mmio_write(pmcg::IRQ_CTRL, 4, 1);
    m.overflow_next(0);
    bench::touch(disk, 1);
    (void)m.iommu().poll();
    CHECK(g.mmio_read(pmcg::IRQ_STATUS, 4) == 1);
}

TEST_CASE("a reset of the SMMU resets its counters, and nobody is told of an overflow",
          "[smmu][pmcg]") {
    bench m;
    auto disk = m.port(0x10);
    auto g = m.iommu().performance_monitor();
    g.mmio_write(pmcg::IRQ_CFG0, 8, bench::elsewhere + 0x100);
    g.mmio_write(pmcg::IRQ_CFG1, 4, 0x77);
    m.count(0, 1);
    m.overflow_next(0);
    REQUIRE(m.iommu().reset());
    bench::touch(disk, 2, guest::ram);
    (void)m.iommu().poll();
    CHECK(m.load64(bench::elsewhere + 0x100) == 0);
    for (const std::uint32_t offset :
         {pmcg::CR, pmcg::IRQ_CTRL, pmcg::IRQ_CFG1, pmcg::CNTENSET0, pmcg::INTENSET0, pmcg::OVSSET0,
          pmcg::EVTYPER0, pmcg::EVCNTR0}) {
        CHECK(g.mmio_read(offset, 4) == 0);
    }
}

namespace {

struct everything : default_smmu_options {
    static constexpr smmu_features features = full_features;
};

/// A machine whose device "gpu", StreamID 0x10, has one page at 0x1000 and may ask for
/// translations.
struct machine_with_ats : guest::machine<set_associative<16, 2>, everything> {
    machine_with_ats() {
        start();
        (void)iommu()
            .attach_device("gpu", all_of_ram, stream_id{0x10}, attach_options{.ats = true})
            .value();
        const std::uint64_t root = stage1_stream(0x10, 1);
        store64(ste_address(0x10) + 8, 1ULL << spec::ste::EATS::low);
        command(spec::cmd_cfgi_ste(stream_id{0x10}, true));
        sync();
        map(root, 0x1000, guest::ram + 0x80'0000);
    }
};

} // namespace

TEST_CASE("ATS requests and translated transactions are counted", "[smmu][pmcg]") {
    machine_with_ats m;
    auto g = m.iommu().performance_monitor();
    CHECK(g.mmio_read(pmcg::CEID0, 8) == 0xff);
    for (const std::uint64_t n : {0U, 1U, 2U}) {
        g.mmio_write(pmcg::EVTYPER0 + 4 * n, 4, std::array{6U, 7U, 1U}[n] | 1U << 29);
        g.mmio_write(pmcg::SMR0 + 4 * n, 4, 0xffff'ffff);
        g.mmio_write(pmcg::EVCNTR0 + 8 * n, 8, 0);
    }
    g.mmio_write(pmcg::CNTENSET0, 8, 7);
    g.mmio_write(pmcg::CR, 4, 1);
    auto port = m.iommu().make_port("gpu").value();
    CHECK(port.ats_translate({.address = iova{0x1000}}).read);
    CHECK_FALSE(port.ats_translate({.address = iova{0x9000}}).read);
    std::array<std::byte, 4> bytes{};
    CHECK(port.read(iova{guest::ram + 0x80'0000}, bytes, {.translated = true}));
    CHECK_FALSE(port.read(iova{0x1000}, bytes, {.translated = true})); // outside the window
    CHECK(g.mmio_read(pmcg::EVCNTR0, 8) == 2);
    CHECK(g.mmio_read(pmcg::EVCNTR0 + 8, 8) == 1);
    CHECK(g.mmio_read(pmcg::EVCNTR0 + 16, 8) == 3);
}

TEST_CASE("accesses to tables are counted, whoever they are for", "[smmu][pmcg]") {
    machine_with_ats m;
    auto g = m.iommu().performance_monitor();
    for (const std::uint64_t n : {0U, 1U, 2U, 3U, 4U}) {
        g.mmio_write(pmcg::EVTYPER0 + 4 * n, 4, (n + 1) | 1U << 29);
        g.mmio_write(pmcg::SMR0 + 4 * n, 4, 0xffff'ffff);
        g.mmio_write(pmcg::EVCNTR0 + 8 * n, 8, 0);
    }
    g.mmio_write(pmcg::CNTENSET0, 8, 0x1f);
    g.mmio_write(pmcg::CR, 4, 1);
    using five = std::array<std::uint64_t, 5>; // events 1 to 5
    const auto counted = [&] {
        five all{};
        for (std::size_t n = 0; n < all.size(); ++n)
            all[n] = g.mmio_read(pmcg::EVCNTR0 + 8 * n, 8);
        return all;
    };
    auto port = m.iommu().make_port("gpu").value();
    // A translation request misses both caches: it asks none. Four levels, and
    // level-1 descriptor, STE and CD.
    CHECK(port.ats_translate({.address = iova{0x1000}}).read);
    CHECK(counted() == five{1, 1, 1, 4, 3});
    // Prefetches and ATOS are no transactions.
    spec::command prefetch = spec::cmd_prefetch_config(stream_id{0x10});
    set<spec::command::Opcode>(prefetch,
                               static_cast<std::uint64_t>(spec::opcode::CMD_PREFETCH_ADDR));
    set<spec::CMD_PREFETCH::Address>(prefetch, 0x1000 >> spec::CMD_PREFETCH::Address::low);
    m.command(prefetch);
    m.sync();
    CHECK(counted() == five{1, 1, 1, 8, 6});
    m.command(prefetch); // there already
    m.sync();
    CHECK(counted() == five{1, 1, 1, 8, 6});
    m.write64(spec::reg::GATOS_SID, 0x10);
    m.write64(spec::reg::GATOS_ADDR, 0x1000 | 1U << 8 | 1U << 10); // a read, stage 1
    m.write32(spec::reg::GATOS_CTRL, 1);
    CHECK((m.iommu().mmio_read(spec::reg::GATOS_PAR, 8) & 1) == 0);
    CHECK(counted() == five{1, 1, 1, 12, 9});
    // A translated access has its STE looked at.
    m.write32(spec::reg::CR0, m.read32(spec::reg::CR0) & ~1U);
    m.write32(spec::reg::CR0, m.read32(spec::reg::CR0) | 1U | 1U << 4); // ATSCHK
    std::array<std::byte, 4> bytes{};
    CHECK(port.read(iova{guest::ram + 0x80'0000}, bytes, {.translated = true}));
    CHECK(counted() == five{2, 1, 2, 12, 11});
}
