// Interrupts as messages: to memory, to doorbells, and what happens to those
// that nobody takes.
#include "guest_driver.hpp"

#include <catch2/catch.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

using namespace vm_accel;
namespace reg = vm_accel::spec::reg;

namespace {

constexpr std::uint64_t doorbell = 0x808'0040;
constexpr std::uint64_t nowhere = 0x10'0000; // neither memory nor a doorbell

/// Takes messages to one doorbell, and looks at the machine when it does.
struct doorbell_sink {
    struct message {
        stream_id from;
        std::uint64_t address;
        std::uint32_t data;
    };
    void pulse(wired_interrupt line) noexcept { ++pulses[static_cast<std::size_t>(line)]; }
    bool is_doorbell(pa address) noexcept { return raw(address) == doorbell; }
    bool signal_msi(stream_id from, pa address, std::uint32_t data) noexcept {
        if (looks) looks();
        if (raw(address) != doorbell) return false;
        messages.push_back({from, raw(address), data});
        return true;
    }
    std::array<unsigned, wired_interrupt_count> pulses{};
    std::vector<message> messages;
    std::function<void()> looks;
};

struct both : default_smmu_options {
    static constexpr smmu_features features = full_features;
};
struct whole : default_smmu_options {
    static constexpr smmu_features features = [] {
        smmu_features f = full_features;
        f.wires_beside_messages = false;
        return f;
    }();
    static constexpr stream_id message_requester{0xabcd'0000};
};
struct without_messages : default_smmu_options {
    static constexpr smmu_features features = [] {
        smmu_features f = full_features;
        f.msi = false;
        f.ecmdq_log2 = 0;
        return f;
    }();
};

template <class Options = whole>
struct board {
    using device = smmu<no_tlb, bitmap_streams<64>, region_map, doorbell_sink, Options>;
    static constexpr std::uint64_t ring = guest::ram + 0x1000;
    static constexpr std::uint64_t events = guest::ram + 0x2000;
    static constexpr std::uint64_t word = guest::ram + 0x3000;

    board() : iommu(std::make_unique<device>(memory, sink)) {
        REQUIRE(memory.add(pa{guest::ram}, pages.data(), pages.size()));
        REQUIRE(iommu->init());
        write(reg::CMDQ_BASE, ring | 6, 8);
        write(reg::EVENTQ_BASE, events | 4, 8);
    }
    /// The line's message, and everything on.
    void start(std::uint32_t cfg0, std::uint64_t address, std::uint32_t data,
               std::uint32_t irq_ctrl = 0x7) {
        if (cfg0 != 0) {
            write(cfg0, address, 8);
            write(cfg0 + 8, data);
        }
        write(reg::IRQ_CTRL, irq_ctrl);
        write(reg::CR0, 0xd);
    }
    void write(std::uint64_t offset, std::uint64_t value, unsigned size = 4) {
        iommu->mmio_write(offset, size, value);
    }
    std::uint32_t read(std::uint64_t offset) {
        return static_cast<std::uint32_t>(iommu->mmio_read(offset, 4));
    }
    void command(const spec::command& c) {
        for (std::size_t i = 0; i < 2; ++i) {
            const std::uint64_t value = c.word[i].value();
            REQUIRE(memory.write(pa{ring + (prod & 63) * 16 + 8 * i},
                                 std::as_bytes(std::span{&value, 1})));
        }
        prod = (prod + 1) & 127;
        write(reg::CMDQ_PROD, prod);
    }
    std::uint32_t load(std::uint64_t address) {
        std::uint32_t value = 0;
        REQUIRE(memory.read(pa{address}, std::as_writable_bytes(std::span{&value, 1})));
        return value;
    }
    unsigned pulses(wired_interrupt line) const {
        return sink.pulses[static_cast<std::size_t>(line)];
    }
    bool active(std::uint64_t bit) { return ((read(reg::GERROR) ^ read(reg::GERRORN)) & bit) != 0; }

    guest::host_pages pages{1U << 16};
    region_map memory;
    doorbell_sink sink;
    std::unique_ptr<device> iommu;
    std::uint32_t prod = 0;
};

/// Makes the line's interrupt happen once: an event, or an illegal command.
template <class Board>
void provoke(Board& b, wired_interrupt line) {
    if (line == wired_interrupt::eventq) {
        // An empty, linear stream table: every StreamID is beyond it.
        b.write(reg::CR0, 0xc);
        b.write(reg::CR2, 0x2);
        b.write(reg::CR0, 0xd);
        if (!b.iommu->attachment("disk")) {
            REQUIRE(b.iommu->attach_device("disk", {pa{guest::ram}, b.pages.size()}, stream_id{3}));
        }
        auto port = b.iommu->make_port("disk").value();
        std::array<std::byte, 4> bytes{};
        CHECK_FALSE(port.read(iova{0x1000}, bytes));
    } else {
        b.command(spec::command{}); // opcode 0
    }
}

} // namespace

TEST_CASE("a line's interrupt goes where its message is for", "[smmu][message]") {
    struct row {
        const char* what;
        wired_interrupt line;
        std::uint32_t cfg0;
        std::uint64_t abort;
    };
    const auto r = GENERATE(row{"event queue", wired_interrupt::eventq, reg::EVENTQ_IRQ_CFG0,
                                spec::GERROR::MSI_EVENTQ_ABT_ERR::mask},
                            row{"global error", wired_interrupt::gerror, reg::GERROR_IRQ_CFG0,
                                spec::GERROR::MSI_GERROR_ABT_ERR::mask});
    CAPTURE(r.what);
    board<> b;
    SECTION("memory") {
        b.start(r.cfg0, b.word, 0x1234'5678);
        provoke(b, r.line);
        CHECK(b.load(b.word) == 0x1234'5678);
        CHECK(b.load(b.word + 4) == 0); // 32 bits
        CHECK(b.pulses(r.line) == 0);
        CHECK(b.sink.messages.empty());
        CHECK(b.iommu->stats().interrupts == 1);
    }
    SECTION("a doorbell, with the SMMU's own DeviceID") {
        b.start(r.cfg0, doorbell, 77);
        provoke(b, r.line);
        REQUIRE(b.sink.messages.size() == 1);
        CHECK(raw(b.sink.messages[0].from) == 0xabcd'0000);
        CHECK(b.sink.messages[0].data == 77);
        CHECK(b.pulses(r.line) == 0);
        CHECK_FALSE(b.active(r.abort));
    }
    SECTION("the wire, without an address") {
        b.start(r.cfg0, 0, 77);
        provoke(b, r.line);
        CHECK(b.pulses(r.line) == 1);
        CHECK(b.sink.messages.empty());
    }
    SECTION("nobody: an error of its own") {
        b.start(r.cfg0, nowhere, 77);
        provoke(b, r.line);
        CHECK(b.active(r.abort));
        CHECK(b.pulses(r.line) == 0);
        // Which has an interrupt too, if it is not the very one that fails.
        CHECK(b.pulses(wired_interrupt::gerror) == (r.line == wired_interrupt::eventq ? 1 : 0));
        b.write(reg::GERRORN, b.read(reg::GERRORN) ^ r.abort);
        CHECK_FALSE(b.active(r.abort));
    }
    SECTION("nobody, while it is disabled") {
        b.start(r.cfg0, doorbell, 77, 0);
        provoke(b, r.line);
        CHECK(b.sink.messages.empty());
        CHECK(b.pulses(r.line) == 0);
    }
}

TEST_CASE("an error's message may fail: then there is a second error, and an end",
          "[smmu][message]") {
    board<> b;
    b.write(reg::GERROR_IRQ_CFG0, nowhere, 8);
    b.start(reg::EVENTQ_IRQ_CFG0, nowhere, 1);
    provoke(b, wired_interrupt::eventq);
    CHECK(b.active(spec::GERROR::MSI_EVENTQ_ABT_ERR::mask));
    CHECK(b.active(spec::GERROR::MSI_GERROR_ABT_ERR::mask));
    CHECK(b.read(reg::GERROR) == 0xa0);
    // Acknowledged, each can happen again.
    b.write(reg::GERRORN, b.read(reg::GERROR));
    CHECK_FALSE(b.active(0xa0));
    provoke(b, wired_interrupt::eventq);
    CHECK(b.active(spec::GERROR::MSI_EVENTQ_ABT_ERR::mask));
    CHECK(b.active(spec::GERROR::MSI_GERROR_ABT_ERR::mask));
    CHECK(b.read(reg::GERROR) == 0);
}

TEST_CASE("where there are both, a message is sent and its wire pulses", "[smmu][message]") {
    board<both> b;
    b.start(reg::EVENTQ_IRQ_CFG0, doorbell, 5);
    provoke(b, wired_interrupt::eventq);
    REQUIRE(b.sink.messages.size() == 1);
    CHECK(b.sink.messages[0].data == 5);
    CHECK(b.pulses(wired_interrupt::eventq) == 1);
    b.command(spec::cmd_sync_msi(pa{b.word}, 0xfeed));
    CHECK(b.load(b.word) == 0xfeed);
    CHECK(b.pulses(wired_interrupt::cmdq_sync) == 1);
    b.command(spec::cmd_sync_msi(pa{doorbell}, 6));
    CHECK(b.sink.messages.size() == 2);
    CHECK(b.pulses(wired_interrupt::cmdq_sync) == 2);
    b.command(spec::cmd_sync_msi(pa{0}, 7)); // the wire alone
    CHECK(b.sink.messages.size() == 2);
    CHECK(b.pulses(wired_interrupt::cmdq_sync) == 3);
}

TEST_CASE("what CMD_SYNC's message says is true when it arrives", "[smmu][message]") {
    board<> b;
    b.start(0, 0, 0);
    SECTION("in memory, as Linux has it: in the queue, in the command's place") {
        const std::uint64_t slot = b.ring + (b.prod & 63) * 16;
        b.command(spec::cmd_sync_msi(pa{slot}, 0xfeed'beef));
        CHECK(b.load(slot) == 0xfeed'beef);
        CHECK(b.read(reg::CMDQ_CONS) == b.prod);
        CHECK(b.pulses(wired_interrupt::cmdq_sync) == 0);
    }
    SECTION("at a doorbell, CONS has moved, and the SMMU can be spoken to") {
        std::uint32_t seen = ~0U;
        b.sink.looks = [&] { seen = b.read(reg::CMDQ_CONS); };
        b.command(spec::cmd_sync_msi(pa{doorbell}, 9));
        REQUIRE(b.sink.messages.size() == 1);
        CHECK(b.sink.messages[0].data == 9);
        CHECK(seen == b.prod);
    }
    SECTION("without an address, the wire") {
        b.command(spec::cmd_sync_msi(pa{0}, 9));
        CHECK(b.pulses(wired_interrupt::cmdq_sync) == 1);
    }
    SECTION("nobody takes it: the command is complete, and an error tells") {
        b.command(spec::cmd_sync_msi(pa{nowhere}, 9));
        CHECK(b.read(reg::CMDQ_CONS) == b.prod);
        CHECK(b.active(spec::GERROR::MSI_CMDQ_ABT_ERR::mask));
        CHECK(b.pulses(wired_interrupt::gerror) == 1);
        CHECK_FALSE(b.active(spec::GERROR::CMDQ_ERR::mask));
    }
    SECTION("SIG_NONE and SIG_SEV have none") {
        for (const std::uint64_t cs : {0U, 2U}) {
            spec::command c = spec::cmd_sync_msi(pa{b.word}, 9);
            set<spec::CMD_SYNC::CS>(c, cs);
            b.command(c);
            CHECK(b.load(b.word) == 0);
        }
    }
}

TEST_CASE("CMD_SYNCs in a row each send their own message", "[smmu][message]") {
    board<> b;
    b.start(0, 0, 0);
    constexpr std::uint32_t many = 9;
    b.write(reg::CR0, 0x5); // collected, then all at once
    for (std::uint32_t i = 0; i < many; ++i)
        b.command(spec::cmd_sync_msi(pa{doorbell}, i));
    b.write(reg::CR0, 0xd);
    while (b.iommu->poll()) {}
    CHECK(b.read(reg::CMDQ_CONS) == b.prod);
    REQUIRE(b.sink.messages.size() == many);
    for (std::uint32_t i = 0; i < many; ++i)
        CHECK(b.sink.messages[i].data == i);
}

TEST_CASE("a CMD_SYNC that waits for a device sends its message when it completes",
          "[smmu][message]") {
    board<> b;
    b.start(0, 0, 0);
    REQUIRE(b.iommu->attach_device("disk", {pa{guest::ram}, b.pages.size()}, stream_id{3}));
    auto port = b.iommu->make_port("disk").value();
    const std::uint64_t to =
        GENERATE(std::uint64_t{guest::ram + 0x3000}, std::uint64_t{0x808'0040});
    {
        auto guard = port.open();
        b.command(spec::tlbi_nsnh_all());
        b.command(spec::cmd_sync_msi(pa{to}, 5));
        CHECK(b.load(b.word) == 0);
        CHECK(b.sink.messages.empty());
        CHECK(b.read(reg::CMDQ_CONS) == b.prod - 1);
    }
    CHECK(b.read(reg::CMDQ_CONS) == b.prod);
    CHECK((b.load(b.word) == 5) == (to == b.word));
    CHECK(b.sink.messages.size() == (to == doorbell ? 1U : 0U));
}

TEST_CASE("CMD_SYNCs of two queues that complete together each send their message",
          "[smmu][message][ecmdq]") {
    board<> b;
    b.start(0, 0, 0);
    REQUIRE(b.iommu->attach_device("disk", {pa{guest::ram}, b.pages.size()}, stream_id{3}));
    auto port = b.iommu->make_port("disk").value();
    // The first enhanced queue, in a page of their own.
    constexpr std::uint64_t enhanced = spec::mmio_size;
    constexpr std::uint64_t enhanced_ring = guest::ram + 0x4000;
    constexpr std::uint32_t on = 0x8000'0000;
    const std::array commands{spec::tlbi_nsnh_all(), spec::cmd_sync_msi(pa{doorbell}, 2)};
    REQUIRE(b.memory.write(pa{enhanced_ring}, std::as_bytes(std::span{commands})));
    b.write(enhanced, enhanced_ring | 4, 8);
    b.write(enhanced + 8, on);
    {
        auto guard = port.open();
        b.command(spec::tlbi_nsnh_all());
        b.command(spec::cmd_sync_msi(pa{doorbell}, 1));
        b.write(enhanced + 8, on | 2);
        CHECK(b.iommu->sync_pending());
        CHECK(b.sink.messages.empty());
    }
    while (b.iommu->poll()) {}
    CHECK_FALSE(b.iommu->sync_pending());
    CHECK(b.read(reg::CMDQ_CONS) == b.prod);
    CHECK(b.read(enhanced + 12) == (on | 2));
    REQUIRE(b.sink.messages.size() == 2);
    CHECK(b.sink.messages[0].data + b.sink.messages[1].data == 3);
}

TEST_CASE("an interrupt that is disabled before it is routed is forgotten", "[smmu][message]") {
    const std::uint32_t enables = GENERATE(0x0U, 0x1U, 0x2U, 0x4U, 0x7U);
    const std::uint64_t address = GENERATE(std::uint64_t{guest::ram + 0x3000}, std::uint64_t{0});
    CAPTURE(enables, address);
    board<> b;
    register_file<whole::features> registers;
    for (const std::uint32_t cfg0 :
         {reg::EVENTQ_IRQ_CFG0, reg::PRIQ_IRQ_CFG0, reg::GERROR_IRQ_CFG0}) {
        (void)registers.write(cfg0, 8, address);
        (void)registers.write(cfg0 + 8, 4, 1);
    }
    (void)registers.write(reg::IRQ_CTRL, 4, enables);
    interrupt_router<whole::features> router;
    effects raised;
    raised.raise_eventq = raised.raise_priq = raised.raise_gerror = true;
    router.ask(raised);
    effects out;
    router.route(registers, b.memory, out);
    CHECK(out.routed);
    const bool wired = address == 0;
    CHECK(out.raise_gerror == (wired && (enables & 1) != 0));
    CHECK(out.raise_priq == (wired && (enables & 2) != 0));
    CHECK(out.raise_eventq == (wired && (enables & 4) != 0));
    const unsigned lines = enables == 7 ? 3 : enables == 0 ? 0 : 1;
    CHECK(out.messages_written == (wired ? 0 : lines));
    effects again;
    router.route(registers, b.memory, again); // asked for once, routed once
    CHECK(again.messages_written == 0);
    CHECK_FALSE(again.raise_eventq);
}

TEST_CASE("without IDR0.MSI everything goes by wire", "[smmu][message]") {
    board<without_messages> b;
    b.write(reg::GERROR_IRQ_CFG0, b.word, 8);
    b.write(reg::GERROR_IRQ_CFG0 + 8, 1);
    b.start(reg::EVENTQ_IRQ_CFG0, doorbell, 2);
    provoke(b, wired_interrupt::eventq);
    b.command(spec::cmd_sync_msi(pa{b.word}, 3));
    provoke(b, wired_interrupt::gerror);
    CHECK(b.pulses(wired_interrupt::eventq) == 1);
    CHECK(b.pulses(wired_interrupt::cmdq_sync) == 1);
    CHECK(b.pulses(wired_interrupt::gerror) == 1);
    CHECK(b.sink.messages.empty());
    CHECK(b.load(b.word) == 0);
}
