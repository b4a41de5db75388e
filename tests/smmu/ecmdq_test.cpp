// Enhanced command queues: found as a driver finds them, each with its own
// position, errors and CMD_SYNC.
#include "guest_driver.hpp"

#include <catch2/catch.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

using namespace vm_accel;
namespace reg = vm_accel::spec::reg;

namespace {

template <unsigned Log2>
struct with_queues : default_smmu_options {
    static constexpr smmu_features features = [] {
        smmu_features f;
        f.msi = true;
        f.ecmdq_log2 = Log2;
        return f;
    }();
};

constexpr std::uint32_t on = 0x8000'0000;
constexpr std::uint32_t err = 0x0080'0000; // ERR, and ERRACK
constexpr unsigned log2size = 4;

/// A machine whose enhanced queues are found from the ID registers on, as the
/// driver that uses them does (one page, evenly spaced queues).
template <unsigned Log2 = 2>
struct driver : guest::machine<set_associative<16, 2>, with_queues<Log2>> {
    driver() {
        this->start();
        REQUIRE((this->read32(reg::IDR1) >> 31) == 1);
        const std::uint32_t idr6 = this->read32(reg::IDR6);
        REQUIRE((idr6 >> 24 & 0xf) == 0);
        count = 1U << (idr6 >> 16 & 0xf);
        const std::uint64_t page = this->iommu().mmio_read(0x4000, 8);
        REQUIRE((page & 1) == 1);      // registers, not memory
        REQUIRE((page >> 1 & 3) == 1); // 64 KiB
        REQUIRE(this->read32(0x4008) == 1);
        REQUIRE(this->read32(0x400c) == 1);
        base = static_cast<std::uint32_t>(page & 0x00ff'ffff'ffff'0000);
        gap = 0x10000 / count;
        rings = this->take_pages(count);
        written.resize(count);
    }
    std::uint32_t at(unsigned queue, std::uint32_t offset) const {
        return base + queue * gap + offset;
    }
    std::uint64_t ring(unsigned queue) const { return rings + queue * 4096; }

    void enable(unsigned queue, std::uint32_t index = 0) {
        this->write64(at(queue, 0), ring(queue) | log2size);
        this->write32(at(queue, 8), index);
        this->write32(at(queue, 12), index);
        this->write32(at(queue, 8), on | index);
        REQUIRE((cons(queue) & on) != 0);
        written[queue] = index;
    }
    void enqueue(unsigned queue, const spec::command& c) {
        this->store(ring(queue) + (written[queue] & ((1U << log2size) - 1)) * 16, c);
        written[queue] = (written[queue] + 1) & ((2U << log2size) - 1);
    }
    void ring_bell(unsigned queue) {
        const std::uint32_t prod = this->read32(at(queue, 8));
        this->write32(at(queue, 8), (prod & (on | err)) | written[queue]);
    }
    void send(unsigned queue, const spec::command& c) {
        enqueue(queue, c);
        ring_bell(queue);
    }
    std::uint32_t cons(unsigned queue) { return this->read32(at(queue, 12)); }
    bool done(unsigned queue) { return (cons(queue) & 0xf'ffff) == written[queue]; }

    unsigned count = 0;
    std::uint32_t base = 0;
    std::uint32_t gap = 0;
    std::uint64_t rings = 0;
    std::vector<std::uint32_t> written;
};

struct few : with_queues<2> {
    static constexpr unsigned commands_per_call = 3;
};

spec::command harmless() { return spec::cmd_prefetch_config(stream_id{0}); }
spec::command unknown() { return spec::make_command(spec::opcode{0xff}); }

} // namespace

TEST_CASE("each enhanced queue is consumed by itself", "[smmu][ecmdq]") {
    driver<> m;
    REQUIRE(m.count == 4);
    CHECK(m.base == spec::mmio_size);
    CHECK(m.iommu().mmio_size == spec::mmio_size + 0x10000);
    const std::uint64_t before = m.iommu().stats().commands;
    for (unsigned q = 0; q < m.count; ++q)
        m.enable(q);
    for (unsigned q = 0; q < m.count; ++q) {
        for (unsigned i = 0; i <= q; ++i)
            m.send(q, harmless());
    }
    for (unsigned q = 0; q < m.count; ++q) {
        CAPTURE(q);
        CHECK(m.done(q));
        CHECK((m.cons(q) & 0xf'ffff) == q + 1);
    }
    CHECK(m.iommu().stats().commands == before + 10);
    // The Command queue is there as ever.
    m.command(harmless());
    CHECK(m.commands_done());
}

TEST_CASE("an enhanced queue wraps, from any position", "[smmu][ecmdq]") {
    driver<1> m;
    const auto start = GENERATE(0U, 5U, 15U, 16U, 31U);
    m.enable(1, start);
    for (int i = 0; i < 100; ++i) {
        m.send(1, harmless());
        REQUIRE(m.done(1));
    }
    for (int i = 0; i < 16; ++i) // full
        m.enqueue(1, harmless());
    m.ring_bell(1);
    CHECK(m.done(1));
}

TEST_CASE("an error stops the queue it happens in, and no other", "[smmu][ecmdq]") {
    driver<> m;
    m.enable(0);
    m.enable(2);
    const auto pulses = [&] { return m.sink.pulses(wired_interrupt::gerror); };
    m.enqueue(2, harmless());
    m.enqueue(2, unknown());
    m.enqueue(2, harmless());
    m.ring_bell(2);
    // ERR differs from ERRACK, the reason is there, RD is on the command.
    CHECK(m.cons(2) == (on | err | 1U << 24 | 1));
    CHECK(m.read32(reg::GERROR) == 1U << 9); // CMDQP_ERR, not CMDQ_ERR
    CHECK(pulses() == 1);
    m.send(2, harmless());
    CHECK_FALSE(m.done(2));
    m.send(0, harmless());
    CHECK(m.done(0));
    m.command(harmless());
    CHECK(m.commands_done());
    // GERROR's acknowledgement is for GERROR only.
    m.write32(reg::GERRORN, m.read32(reg::GERROR));
    CHECK_FALSE(m.done(2));
    // A second queue's error is told again; a third while that is active is not.
    m.send(0, unknown());
    CHECK(pulses() == 2);
    m.enable(1);
    m.send(1, unknown());
    CHECK(pulses() == 2);
    CHECK((m.cons(1) & err) != 0);
    // Replaced and acknowledged by ERRACK, it goes on.
    m.store(m.ring(2) + 16, harmless());
    m.write32(m.at(2, 8), on | err | m.written[2]);
    CHECK(m.done(2));
    CHECK((m.cons(2) & err) != 0); // equal to ERRACK now
    // The next error toggles it back.
    m.send(2, unknown());
    CHECK((m.cons(2) & err) == 0);
    CHECK_FALSE(m.done(2));
}

TEST_CASE("a ring outside memory stops an enhanced queue with CERROR_ABT", "[smmu][ecmdq]") {
    driver<> m;
    m.write64(m.at(0, 0), 0x1000 | log2size);
    m.write32(m.at(0, 8), on);
    m.write32(m.at(0, 8), on | 1);
    CHECK(m.cons(0) == (on | err | 2U << 24));
}

TEST_CASE("what an enabled queue locks", "[smmu][ecmdq]") {
    driver<> m;
    m.write64(m.at(3, 0), ~std::uint64_t{0});
    CHECK(m.iommu().mmio_read(m.at(3, 0), 8) == 0x40ff'ffff'ffff'ffff);
    m.write32(m.at(3, 4), 0);
    m.write32(m.at(3, 0), 0x1000);
    CHECK(m.iommu().mmio_read(m.at(3, 0), 8) == 0x1000);
    CHECK(m.read32(m.at(3, 0)) == 0x1000);
    CHECK(m.read32(m.at(3, 4)) == 0);
    m.write32(m.at(3, 12), ~0U);
    CHECK(m.cons(3) == 0x078f'ffff); // not ENACK
    m.write32(m.at(3, 12), 0);
    m.write32(m.at(3, 8), 0x7fff'ffff); // not EN
    CHECK(m.read32(m.at(3, 8)) == 0x008f'ffff);
    m.enable(3);
    m.write64(m.at(3, 0), 0x2000);
    m.write32(m.at(3, 12), 0x12345);
    CHECK(m.iommu().mmio_read(m.at(3, 0), 8) == (m.ring(3) | log2size));
    CHECK(m.cons(3) == on);
    // Queue attributes are locked by any queue; all others are off here.
    m.write32(reg::CR0, 0);
    const std::uint32_t before = m.read32(reg::CR1);
    m.write32(reg::CR1, ~before & 0xfff);
    CHECK(m.read32(reg::CR1) == ((~before & 0xfc0) | (before & 0x3f)));
    m.write32(m.at(3, 8), 0);
    CHECK(m.cons(3) == 0);
    m.write32(reg::CR1, before);
    CHECK(m.read32(reg::CR1) == before);
}

TEST_CASE("accesses between the registers of queues", "[smmu][ecmdq]") {
    driver<> m;
    for (const std::uint32_t offset : {0x10U, 0x100U, 0x3ffcU}) {
        m.write32(m.at(1, offset), ~0U);
        CHECK(m.read32(m.at(1, offset)) == 0);
    }
    m.write64(m.at(1, 8), ~std::uint64_t{0}); // two registers
    CHECK(m.iommu().mmio_read(m.at(1, 8), 8) == 0);
    CHECK(m.read32(m.at(1, 8)) == 0);
    CHECK(m.read32(static_cast<std::uint32_t>(m.iommu().mmio_size)) == 0);
    m.iommu().mmio_write(m.at(1, 0) + 2, 4, ~0U);
    m.iommu().mmio_write(m.at(1, 8), 1, 1);
    CHECK(m.read32(m.at(1, 8)) == 0);
    // Without the feature there is neither page nor description.
    guest::machine<> plain;
    CHECK(plain.iommu().mmio_size == spec::mmio_size);
    CHECK(plain.read32(0x4000) == 0);
    CHECK(plain.read32(0x4008) == 0);
    CHECK(plain.read32(reg::IDR6) == 0);
    plain.write32(0x20000, 0x1000);
    CHECK(plain.read32(0x20000) == 0);
}

TEST_CASE("CMD_SYNC in one queue completes what came before it there", "[smmu][ecmdq]") {
    driver<> m;
    const std::uint64_t root = m.stage1_stream(5, 1);
    m.map(root, 0x5000, guest::ram + 0x80'0000);
    REQUIRE(m.iommu().attach_device("disk", m.all_of_ram, stream_id{5}));
    auto port = m.iommu().make_port("disk").value();
    m.enable(0);
    m.enable(1);
    const std::uint64_t slot = m.ring(0) + 16; // the SYNC's own
    {
        auto guard = port.open();
        REQUIRE(guard.translate(iova{0x5000}, 4, access::read).is_span());
        m.unmap(root, 0x5000);
        m.send(0, spec::tlbi_nh_va(vmid{0}, asid{1}, iova{0x5000}, true));
        m.send(0, spec::cmd_sync_msi(pa{slot}, 0x55));
        CHECK_FALSE(m.done(0));
        CHECK(m.iommu().sync_pending());
        // Nothing of that concerns the others.
        m.send(1, harmless());
        m.send(1, spec::cmd_sync(spec::sync_signal::SIG_NONE));
        CHECK(m.done(1));
        m.command(harmless());
        CHECK(m.commands_done());
        CHECK((m.load64(slot) & 0xffff'ffff) != 0x55);
    }
    CHECK(m.done(0));
    CHECK((m.load64(slot) & 0xffff'ffff) == 0x55);
    CHECK_FALSE(port.open().translate(iova{0x5000}, 4, access::read).is_span());
}

TEST_CASE("a queue that is switched off forgets its waiting CMD_SYNC", "[smmu][ecmdq]") {
    driver<> m;
    REQUIRE(m.iommu().attach_device("disk", m.all_of_ram, stream_id{5}));
    auto port = m.iommu().make_port("disk").value();
    m.enable(0);
    {
        auto guard = port.open();
        m.send(0, spec::tlbi_nsnh_all());
        m.send(0, spec::cmd_sync(spec::sync_signal::SIG_IRQ));
        CHECK(m.iommu().sync_pending());
        m.write32(m.at(0, 8), m.written[0]);
        CHECK_FALSE(m.iommu().sync_pending());
        CHECK((m.cons(0) & on) == 0);
    }
    CHECK((m.cons(0) & 0xf'ffff) == 1);
    CHECK(m.sink.pulses(wired_interrupt::cmdq_sync) == 0);
    // On again, it starts over.
    m.write32(m.at(0, 8), on | m.written[0]);
    CHECK(m.done(0));
    CHECK(m.sink.pulses(wired_interrupt::cmdq_sync) == 1);
}

TEST_CASE("enhanced queues need no Command queue, and end with a reset", "[smmu][ecmdq]") {
    driver<3> m;
    REQUIRE(m.count == 8);
    m.write32(reg::CR0, 0);
    for (unsigned q = 0; q < 8; ++q)
        m.enable(q);
    m.send(7, harmless());
    CHECK(m.done(7));
    m.send(6, unknown());
    REQUIRE(m.iommu().reset());
    for (unsigned q = 0; q < 8; ++q) {
        CHECK(m.cons(q) == 0);
        CHECK(m.read32(m.at(q, 8)) == 0);
        CHECK(m.iommu().mmio_read(m.at(q, 0), 8) == 0);
    }
}

TEST_CASE("many commands in many queues are executed within one budget a call", "[smmu][ecmdq]") {
    guest::machine<set_associative<16, 2>, few> m;
    m.start();
    const std::uint64_t rings = m.take_pages(4);
    for (std::uint32_t q = 0; q < 4; ++q) {
        for (std::uint64_t i = 0; i < 8; ++i)
            m.store(rings + q * 4096 + i * 16, harmless());
        m.write64(0x20000 + q * 0x4000, (rings + q * 4096) | log2size);
    }
    while (m.iommu().poll()) {}
    const std::uint64_t before = m.iommu().stats().commands;
    for (std::uint32_t q = 0; q < 4; ++q) {
        m.write32(0x20008 + q * 0x4000, on);
        m.write32(0x20008 + q * 0x4000, on | 8);
    }
    CHECK(m.iommu().stats().commands <= before + 8 * 3);
    unsigned calls = 0;
    while (m.iommu().poll())
        ++calls;
    CHECK(calls >= 2);
    CHECK(m.iommu().stats().commands == before + 32);
}
