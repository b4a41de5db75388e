// Page requests of PCIe devices: the queue, its overflow, and who answers.
#include "guest_driver.hpp"

#include <catch2/catch.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <thread>
#include <utility>

using namespace vm_accel;
namespace reg = vm_accel::spec::reg;

namespace {

constexpr std::uint32_t sid = 0x10;
constexpr unsigned request_log2 = 2;
constexpr std::uint32_t entries = 1U << request_log2;
constexpr std::uint32_t overflow = 0x8000'0000;
constexpr std::uint64_t request_ring = guest::ram + 0x28000;

struct asking : default_smmu_options {
    static constexpr smmu_features features = [] {
        smmu_features f = stage1_features;
        f.ats = f.pri = f.msi = true;
        f.page_request_queue_log2 = request_log2;
        f.substream_bits = 8;
        return f;
    }();
};

/// What a request carries besides the page.
struct traits {
    bool last = true;
    bool pasid = false;
    bool nothing = false; ///< neither read nor write: with a PASID, a stop marker
};

struct bench : guest::machine<set_associative<16, 2>, asking> {
    bench() {
        start();
        (void)iommu()
            .attach_device("gpu", all_of_ram, stream_id{sid}, attach_options{.ats = true})
            .value();
        (void)stage1_stream(sid, 1);
        place_queue(request_ring);
        write32(reg::IRQ_CTRL, 0x7);
    }
    void place_queue(std::uint64_t base) {
        write32(reg::CR0, 0xd);
        write64(reg::PRIQ_BASE, base | request_log2);
        write32(reg::PRIQ_PROD, 0);
        write32(reg::PRIQ_CONS, 0);
        write32(reg::CR0, 0xf);
    }
    auto port() { return iommu().make_port("gpu").value(); }
    template <class Port>
    static void ask(Port& port, std::uint16_t group, traits t = {}) {
        port.request_page({.address = iova{0x1000ULL * group + 5},
                           .read = !t.nothing,
                           .last = t.last,
                           .group = group,
                           .has_substream = t.pasid,
                           .substream = substream_id{t.pasid ? 7U : 0U}});
    }
    std::uint32_t prod() { return read32(reg::PRIQ_PROD); }
    std::uint64_t told() { return sink.pulses(wired_interrupt::priq); }
    std::uint64_t page_in_entry(std::uint32_t entry) {
        return load64(request_ring + entry * 16 + 8) >> 12;
    }
    void answer(std::uint32_t stream, std::uint16_t group, std::uint64_t response,
                std::optional<std::uint32_t> pasid = {}) {
        spec::command c = spec::make_command(spec::opcode::CMD_PRI_RESP);
        set<spec::CMD_PRI_RESP::StreamID>(c, stream);
        set<spec::CMD_PRI_RESP::PRGIndex>(c, group);
        set<spec::CMD_PRI_RESP::Resp>(c, response);
        if (pasid) {
            set<spec::command::SSV>(c, 1);
            set<spec::CMD_PRI_RESP::SubstreamID>(c, *pasid);
        }
        command(c);
    }
};

} // namespace

TEST_CASE("each page request's record, word by word", "[smmu][pri]") {
    struct row {
        page_request asked;
        std::array<std::uint64_t, 2> words;
    };
    const iova at{0xdead'bfff};
    const auto r = GENERATE_COPY(
        row{{.address = at, .group = 0x1ff}, {0x5000'0000'1234'5678, 0xdead'b1ff}},
        row{{.address = at, .write = true, .last = false}, {0x3000'0000'1234'5678, 0xdead'b000}},
        row{{.address = at, .read = false, .last = false}, {0x1234'5678, 0xdead'b000}},
        row{{.address = at, .execute = true, .privileged = true}, // they need a PASID
            {0x5000'0000'1234'5678, 0xdead'b000}},
        row{{.address = at,
             .execute = true,
             .privileged = true,
             .has_substream = true,
             .substream = substream_id{0xa'bcde}},
            {0xdc0a'bcde'1234'5678, 0xdead'b000}},
        row{{.read = false, .has_substream = true, .substream = substream_id{1}},
            {0xc000'0001'1234'5678, 0}});
    const spec::page_request_record record =
        make_page_request_record(stream_id{0x1234'5678}, r.asked);
    CHECK(record.word[0].value() == r.words[0]);
    CHECK(record.word[1].value() == r.words[1]);
}

TEST_CASE("page requests are queued and told of", "[smmu][pri]") {
    bench m;
    auto port = m.port();
    for (std::uint32_t round = 0; round < 3; ++round) {
        for (std::uint16_t i = 0; i < entries; ++i) {
            m.ask(port, static_cast<std::uint16_t>(round * 10 + i));
            CHECK(m.page_in_entry(i) == round * 10 + i);
        }
        CHECK(m.prod() == ((round + 1) * entries & (2 * entries - 1)));
        m.write32(reg::PRIQ_CONS, m.prod());
    }
    CHECK(m.told() == 3 * entries);
    CHECK_FALSE(port.next_page_response());
    SECTION("PRIQ_IRQ_CFG2.LO: of last requests only") {
        m.write32(reg::IRQ_CTRL, 0);
        m.write32(reg::PRIQ_IRQ_CFG2, overflow);
        m.write32(reg::IRQ_CTRL, 0x7);
        m.ask(port, 1, {.last = false});
        CHECK(m.told() == 3 * entries);
        m.ask(port, 1);
        CHECK(m.told() == 3 * entries + 1);
    }
    SECTION("not without the enable") {
        m.write32(reg::IRQ_CTRL, 0x5);
        m.ask(port, 1);
        CHECK(m.told() == 3 * entries);
    }
}

TEST_CASE("who is answered by the SMMU itself, and what", "[smmu][pri]") {
    enum class why { off, disabled, aborted, full, full_keeps_pasid, full_without_ste };
    using enum page_response_code;
    struct row {
        why cause;
        traits asked;
        std::optional<page_response_code> answer;
        bool pasid;
    };
    const auto r = GENERATE(
        row{why::off, {}, failure, false}, row{why::off, {.last = false}, failure, false},
        row{why::off, {.pasid = true}, failure, false},
        row{why::off, {.pasid = true, .nothing = true}, std::nullopt, false},
        row{why::disabled, {}, failure, false}, row{why::aborted, {}, failure, false},
        row{why::aborted, {.pasid = true, .nothing = true}, std::nullopt, false},
        row{why::full, {}, success, false}, row{why::full, {.last = false}, std::nullopt, false},
        row{why::full, {.nothing = true}, success, false}, // without a PASID it is a request
        row{why::full, {.pasid = true, .nothing = true}, std::nullopt, false},
        row{why::full, {.pasid = true}, success, false},
        row{why::full_keeps_pasid, {.pasid = true}, success, true},
        row{why::full_keeps_pasid, {}, success, false},
        row{why::full_without_ste, {.pasid = true}, failure, false},
        row{why::full_without_ste, {}, success, false});
    CAPTURE(static_cast<int>(r.cause), r.asked.last, r.asked.pasid, r.asked.nothing);
    bench m;
    auto port = m.port();
    if (r.cause == why::off) m.write32(reg::CR0, 0xd);
    if (r.cause == why::disabled) m.write32(reg::CR0, 0xe);
    if (r.cause == why::aborted) {
        m.place_queue(0);
        m.ask(port, 99);
        CHECK(port.next_page_response()->code == failure);
        CHECK(m.read32(reg::GERROR) == 0x8);
        CHECK(m.sink.pulses(wired_interrupt::gerror) == 1);
        m.place_queue(request_ring); // in memory again, but not acknowledged
    }
    if (r.cause >= why::full) {
        for (std::uint16_t i = 0; i < entries; ++i)
            m.ask(port, i);
    }
    if (r.cause == why::full_keeps_pasid) {
        const std::uint64_t word = m.ste_address(sid) + 8;
        m.store64(word, m.load64(word) | spec::ste::PPAR::mask);
    }
    if (r.cause == why::full_without_ste) m.store(m.ste_address(sid), spec::ste{});
    const std::uint32_t before = m.prod() & ~overflow;
    m.ask(port, 0x355, r.asked); // PRGIndex has nine bits
    const std::optional<page_response> answer = port.next_page_response();
    REQUIRE(answer.has_value() == r.answer.has_value());
    if (answer) {
        CHECK(answer->group == 0x155);
        CHECK(answer->code == *r.answer);
        CHECK(answer->has_substream == r.pasid);
        CHECK(answer->substream == substream_id{r.pasid ? 7U : 0U});
    }
    CHECK((m.prod() & ~overflow) == before);
    CHECK(((m.prod() & overflow) != 0) == (r.cause >= why::full));
    CHECK_FALSE(m.event());
    if (r.cause == why::aborted) {
        m.write32(reg::GERRORN, 0x8);
        m.ask(port, 1);
        CHECK(m.prod() == 1);
    }
}

TEST_CASE("an overflow keeps everything out until it is acknowledged", "[smmu][pri]") {
    bench m;
    auto port = m.port();
    for (std::uint16_t i = 0; i < entries; ++i)
        m.ask(port, i);
    CHECK(m.told() == entries);
    m.ask(port, 10);
    CHECK(m.prod() == (entries | overflow));
    CHECK(m.told() == entries + 1);
    m.ask(port, 11);
    CHECK(m.prod() == (entries | overflow)); // flagged once
    CHECK(m.told() == entries + 1);
    m.write32(reg::PRIQ_CONS, entries); // room, but no acknowledgement
    m.ask(port, 12);
    CHECK(m.prod() == (entries | overflow));
    m.write32(reg::PRIQ_CONS, entries | overflow);
    m.ask(port, 13);
    CHECK(m.prod() == ((entries + 1) | overflow));
    CHECK(m.page_in_entry(0) == 13);
    for (const unsigned group : {10U, 11U, 12U})
        CHECK(port.next_page_response()->group == group);
    CHECK_FALSE(port.next_page_response());
}

TEST_CASE("CR2.REC_CFG_ATS: a broken STE is recorded when an overflow asks it", "[smmu][pri]") {
    bench m;
    auto port = m.port();
    for (std::uint16_t i = 0; i < entries; ++i)
        m.ask(port, i);
    m.store(m.ste_address(sid), spec::ste{});
    m.write32(reg::CR0, 0xe);
    m.write32(reg::CR2, 0xa);
    m.write32(reg::CR0, 0xf);
    m.ask(port, 10, {.pasid = true});
    const auto record = m.event();
    REQUIRE(record);
    CHECK(guest::id_of(*record) == spec::event_id::C_BAD_STE);
}

TEST_CASE("CMD_PRI_RESP reaches the device", "[smmu][pri]") {
    struct row {
        std::uint64_t response;
        page_response_code code;
    };
    const auto r =
        GENERATE(row{0, page_response_code::failure}, row{1, page_response_code::invalid_request},
                 row{2, page_response_code::success});
    const std::optional<std::uint32_t> pasid =
        GENERATE(std::optional<std::uint32_t>{}, std::optional<std::uint32_t>{9});
    bench m;
    auto port = m.port();
    const std::uint32_t seen = port.news();
    m.answer(sid, 0x1f0, r.response, pasid);
    CHECK(m.commands_done());
    CHECK(port.news() == seen + 1);
    const auto answer = port.next_page_response();
    REQUIRE(answer);
    CHECK(answer->group == 0x1f0);
    CHECK(answer->code == r.code);
    CHECK(answer->has_substream == pasid.has_value());
    CHECK(raw(answer->substream) == pasid.value_or(0));
    CHECK_FALSE(port.next_page_response());
}

TEST_CASE("CMD_PRI_RESP that reaches nobody", "[smmu][pri]") {
    bench m;
    auto port = m.port();
    SECTION("of another stream, or of a device without ATS") {
        (void)m.iommu().attach_device("disk", m.all_of_ram, stream_id{0x20}).value();
        auto disk = m.iommu().make_port("disk").value();
        m.answer(0x20, 1, 2);
        m.answer(0x21, 1, 2);
        m.answer(0xffff'ffff, 1, 2);
        CHECK(m.commands_done());
        disk.request_page({});
        CHECK_FALSE(disk.next_page_response());
        CHECK(m.prod() == 0);
    }
    SECTION("a reserved response is illegal") {
        m.answer(sid, 1, 3);
        CHECK(m.read32(reg::GERROR) == 1);
    }
    SECTION("ignored while SMMUEN = 0") {
        m.write32(reg::CR0, 0xe);
        m.answer(sid, 1, 2);
        CHECK(m.commands_done());
    }
    SECTION("detached") {
        m.answer(sid, 1, 2);
        REQUIRE(m.iommu().detach_device("gpu"));
        m.answer(sid, 1, 2);
        m.ask(port, 3);
        CHECK(m.prod() == 0);
    }
    SECTION("reset forgets what was not taken") {
        m.answer(sid, 1, 2);
        REQUIRE(m.iommu().reset());
    }
    CHECK_FALSE(port.next_page_response());
}

TEST_CASE("more responses than a device has groups are lost", "[smmu][pri]") {
    bench m;
    auto port = m.port();
    for (std::uint16_t i = 0; i < 600; ++i)
        m.answer(sid, i & 0x1ff, 2);
    CHECK(m.commands_done());
    for (std::uint16_t i = 0; i < 512; ++i)
        CHECK(port.next_page_response()->group == i);
    CHECK_FALSE(port.next_page_response());
    m.answer(sid, 5, 2);
    CHECK(port.next_page_response()->group == 5);
}

TEST_CASE("a device sleeps until it is answered", "[smmu][pri]") {
    bench m;
    std::optional<page_response> answer;
    auto port = m.port();
    const std::uint32_t seen = port.news();
    std::thread device{[&] {
        m.ask(port, 3);
        port.wait_for_news(seen);
        answer = port.next_page_response();
    }};
    while (m.prod() == 0)
        std::this_thread::yield();
    m.answer(sid, 3, 2);
    device.join();
    REQUIRE(answer);
    CHECK(answer->group == 3);
}

namespace {

/// Runs something once, in the middle of the SMMU's next write.
struct stepped_memory : region_map {
    bool write(pa address, std::span<const std::byte> in) noexcept {
        if (act) std::exchange(act, nullptr)();
        return region_map::write(address, in);
    }
    std::function<void()> act;
};

} // namespace

TEST_CASE("CMD_SYNC makes the events of accesses visible that have been refused",
          "[smmu][event][sync]") {
    using device = smmu<no_tlb, bitmap_streams<64>, stepped_memory, counting_sink, asking>;
    guest::host_pages pages{1U << 20};
    stepped_memory memory;
    counting_sink sink;
    REQUIRE(memory.add(pa{guest::ram}, pages.data(), pages.size()));
    const auto iommu = std::make_unique<device>(memory, sink);
    REQUIRE(iommu->init());
    REQUIRE(iommu->attach_device("gpu", {pa{guest::ram}, pages.size()}, stream_id{3}));
    // One STE, which is not valid.
    iommu->mmio_write(reg::STRTAB_BASE, 8, guest::ram);
    iommu->mmio_write(reg::STRTAB_BASE_CFG, 4, 2);
    iommu->mmio_write(reg::EVENTQ_BASE, 8, (guest::ram + 0x1'0000) | 4);
    iommu->mmio_write(reg::CMDQ_BASE, 8, (guest::ram + 0x2'0000) | 4);
    iommu->mmio_write(reg::CR0, 4, 0xd);
    const spec::command sync = spec::cmd_sync(spec::sync_signal::SIG_NONE);
    REQUIRE(memory.write(pa{guest::ram + 0x2'0000}, std::as_bytes(std::span{sync.word})));
    auto writes = iommu->make_port("gpu").value();
    auto faults = iommu->make_port("gpu").value();
    std::array<std::byte, 4> bytes{};
    std::uint64_t consumed = 1;
    // In the middle of one device's record another device is refused, and knows it.
    memory.act = [&] {
        CHECK_FALSE(faults.read(iova{0x1000}, bytes));
        iommu->mmio_write(reg::CMDQ_PROD, 4, 1);
        consumed = iommu->mmio_read(reg::CMDQ_CONS, 4);
    };
    CHECK_FALSE(writes.read(iova{0x2000}, bytes));
    CHECK(consumed == 0);
    CHECK(iommu->mmio_read(reg::CMDQ_CONS, 4) == 1);
    CHECK(iommu->mmio_read(reg::EVENTQ_PROD, 4) == 2);
}

TEST_CASE("events that come while a page request's error is written are written too",
          "[smmu][pri][event]") {
    using device = smmu<no_tlb, bitmap_streams<64>, stepped_memory, counting_sink, asking>;
    guest::host_pages pages{1U << 20};
    stepped_memory memory;
    counting_sink sink;
    REQUIRE(memory.add(pa{guest::ram}, pages.data(), pages.size()));
    const auto iommu = std::make_unique<device>(memory, sink);
    REQUIRE(iommu->init());
    REQUIRE(iommu->attach_device("gpu", {pa{guest::ram}, pages.size()}, stream_id{3},
                                 attach_options{.ats = true}));
    // One STE, which is not valid, and no room for page requests.
    iommu->mmio_write(reg::STRTAB_BASE, 8, guest::ram);
    iommu->mmio_write(reg::STRTAB_BASE_CFG, 4, 2);
    iommu->mmio_write(reg::EVENTQ_BASE, 8, (guest::ram + 0x1'0000) | 8);
    iommu->mmio_write(reg::PRIQ_BASE, 8, (guest::ram + 0x2'0000) | 0);
    iommu->mmio_write(reg::PRIQ_PROD, 4, 1);
    iommu->mmio_write(reg::CR2, 4, 0x8); // REC_CFG_ATS
    iommu->mmio_write(reg::CR0, 4, 0x7);
    auto asks = iommu->make_port("gpu").value();
    auto faults = iommu->make_port("gpu").value();
    constexpr unsigned many = 64; // as many as are staged at most
    memory.act = [&] {
        for (unsigned i = 0; i < many; ++i) {
            auto guard = faults.open();
            CHECK(guard.translate(iova{0x1000}, 4, access::read).is_fault());
        }
    };
    asks.request_page({.has_substream = true, .substream = substream_id{7}});
    CHECK(memory.act == nullptr);
    CHECK(asks.next_page_response()->code == page_response_code::failure);
    CHECK(iommu->mmio_read(reg::EVENTQ_PROD, 4) == many + 1);
}
