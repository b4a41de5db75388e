// The event queue: full, off, outside memory, of every size; who is told; and
// the words of each record.
#include "guest_driver.hpp"

#include <catch2/catch.hpp>

#include <array>
#include <cstdint>
#include <string>

using namespace vm_accel;
namespace reg = vm_accel::spec::reg;

namespace {

constexpr std::uint32_t sid = 0x10;
constexpr std::uint32_t overflow = 0x8000'0000;
constexpr std::uint32_t entries = 1U << guest::event_log2;

/// One stream with nothing mapped: each access is one F_TRANSLATION.
struct bench : guest::machine<set_associative<16, 2>> {
    bench() {
        start();
        (void)iommu().attach_device("disk", all_of_ram, stream_id{sid}).value();
        root = stage1_stream(sid, 1);
    }
    void fault(std::uint64_t page_number) {
        auto port = iommu().make_port("disk").value();
        std::array<std::byte, 4> bytes{};
        REQUIRE_FALSE(port.read(iova{page_number << 12}, bytes));
    }
    std::uint32_t prod() { return read32(reg::EVENTQ_PROD); }
    std::uint32_t cons() { return read32(reg::EVENTQ_CONS); }
    std::uint64_t page_in_entry(std::uint32_t entry) {
        return load64(guest::event_ring + entry * 32 + 16) >> 12;
    }
    std::uint64_t told() { return sink.pulses(wired_interrupt::eventq); }
    /// Takes a record and says which page it is about.
    std::uint64_t taken() {
        const auto record = event();
        REQUIRE(record);
        return get<spec::event_record::InputAddr>(*record) >> 12;
    }
    void move_queue(std::uint64_t base, unsigned log2size, std::uint32_t index = 0) {
        write32(reg::CR0, 0x9);
        write64(reg::EVENTQ_BASE, base | log2size);
        write32(reg::EVENTQ_PROD, index);
        write32(reg::EVENTQ_CONS, index);
        write32(reg::CR0, 0xd);
    }
    std::uint64_t root = 0;
};

} // namespace

TEST_CASE("a full event queue drops, flags it once, and keeps what is unread", "[smmu][event]") {
    bench m;
    for (std::uint32_t i = 0; i < entries; ++i)
        m.fault(i);
    CHECK(m.prod() == entries); // full: same entry, other wrap flag
    CHECK(m.iommu().stats().events_dropped == 0);

    const std::uint64_t told = m.told();
    m.fault(100);
    CHECK(m.prod() == (entries | overflow));
    CHECK(m.iommu().stats().events_dropped == 1);
    CHECK(m.told() == told + 1); // of the overflow
    m.fault(101);
    m.fault(102);
    CHECK(m.prod() == (entries | overflow)); // once per overflow, however many are lost
    CHECK(m.told() == told + 1);
    CHECK(m.iommu().stats().events_dropped == 3);
    CHECK(m.iommu().stats().events == entries);
    for (std::uint32_t i = 0; i < entries; ++i)
        CHECK(m.page_in_entry(i) == i);

    SECTION("acknowledged, the next overflow is flagged again") {
        for (std::uint32_t i = 0; i < entries; ++i)
            CHECK(m.taken() == i);
        CHECK_FALSE(m.event());
        m.write32(reg::EVENTQ_CONS, entries | overflow);
        for (std::uint32_t i = 0; i < entries; ++i)
            m.fault(50 + i);
        CHECK(m.prod() == (0 | overflow));
        m.fault(200);
        CHECK(m.prod() == 0); // toggled back
        CHECK(m.cons() == (entries | overflow));
        for (std::uint32_t i = 0; i < entries; ++i)
            CHECK(m.page_in_entry(i) == 50 + i);
    }
    SECTION("not acknowledged, records go on as there is room, and no second flag comes") {
        CHECK(m.taken() == 0);
        CHECK(m.taken() == 1);
        m.fault(60);
        CHECK(m.prod() == ((entries + 1) | overflow));
        CHECK(m.page_in_entry(0) == 60);
        m.fault(61);
        m.fault(62); // lost
        CHECK(m.prod() == ((entries + 2) | overflow));
        for (std::uint32_t i = 2; i < entries; ++i)
            CHECK(m.taken() == i);
        CHECK(m.taken() == 60);
        CHECK(m.taken() == 61);
        CHECK_FALSE(m.event());
    }
    SECTION("acknowledging without reading leaves it full") {
        m.write32(reg::EVENTQ_CONS, overflow);
        m.fault(103);
        CHECK(m.prod() == entries); // a new overflow
        CHECK(m.taken() == 0);
    }
}

TEST_CASE("with the event queue off, events are discarded and nothing is flagged",
          "[smmu][event]") {
    bench m;
    m.write32(reg::CR0, 0x9);
    const std::uint64_t told = m.told();
    for (std::uint32_t i = 0; i < entries + 2; ++i)
        m.fault(i);
    CHECK(m.prod() == 0);
    CHECK(m.told() == told);
    CHECK(m.read32(reg::GERROR) == 0);
    CHECK(m.iommu().stats().events == 0);
    CHECK(m.iommu().stats().events_dropped == entries + 2);
    CHECK(m.iommu().stats().faults == entries + 2);
    // They are gone; the next one after switching on is the first.
    m.write32(reg::CR0, 0xd);
    m.fault(77);
    CHECK(m.prod() == 1);
    CHECK(m.taken() == 77);
}

TEST_CASE("a full queue that is off does not overflow", "[smmu][event]") {
    bench m;
    for (std::uint32_t i = 0; i < entries; ++i)
        m.fault(i);
    m.write32(reg::CR0, 0x9);
    m.fault(100);
    CHECK(m.prod() == entries);
}

TEST_CASE("an event queue outside memory is a global error", "[smmu][event]") {
    const std::uint64_t base = GENERATE(0x0ULL, guest::ram - 0x1000, guest::ram + guest::ram_bytes);
    CAPTURE(base);
    bench m;
    m.move_queue(base, guest::event_log2);
    const std::uint64_t told = m.told();
    m.fault(1);
    CHECK(m.read32(reg::GERROR) == 0x4);
    CHECK(m.sink.pulses(wired_interrupt::gerror) == 1);
    CHECK(m.told() == told);
    CHECK((m.prod() & overflow) == 0);
    CHECK(m.iommu().stats().events == 0);
    CHECK(m.iommu().stats().events_dropped == 1);
    m.fault(2);
    CHECK(m.read32(reg::GERROR) == 0x4); // active already
    CHECK(m.sink.pulses(wired_interrupt::gerror) == 1);
    m.write32(reg::GERRORN, 0x4);
    m.fault(3);
    CHECK(m.read32(reg::GERROR) == 0);
    CHECK(m.sink.pulses(wired_interrupt::gerror) == 2);
    // Commands are not concerned.
    m.sync();
    CHECK(m.commands_done());
    // Moved into memory, it works.
    m.write32(reg::GERRORN, 0);
    m.move_queue(guest::event_ring, guest::event_log2);
    m.fault(4);
    CHECK(m.taken() == 4);
    CHECK(m.told() == told + 1);
}

TEST_CASE("interrupts follow their enables", "[smmu][event]") {
    struct row {
        std::uint32_t irq_ctrl;
        bool events, errors;
    };
    const auto r = GENERATE(row{0x0, false, false}, row{0x1, false, true}, row{0x2, false, false},
                            row{0x4, true, false}, row{0x5, true, true});
    CAPTURE(r.irq_ctrl);
    bench m;
    m.write32(reg::IRQ_CTRL, r.irq_ctrl);
    m.fault(1);
    CHECK(m.told() == (r.events ? 1 : 0));
    CHECK(m.prod() == 1); // written all the same
    for (std::uint32_t i = 1; i < entries; ++i)
        m.fault(i);
    const std::uint64_t told = m.told();
    m.fault(100);
    CHECK(m.told() == told + (r.events ? 1 : 0)); // the overflow
    m.command(spec::command{});
    CHECK(m.sink.pulses(wired_interrupt::gerror) == (r.errors ? 1 : 0));
    m.move_queue(0, guest::event_log2);
    m.fault(101);
    CHECK(m.sink.pulses(wired_interrupt::gerror) == (r.errors ? 2 : 0));
    CHECK(m.read32(reg::GERROR) == 0x5);
    CHECK(m.sink.pulses(wired_interrupt::priq) == 0);
    CHECK(m.iommu().stats().interrupts == m.told() + (r.errors ? 2 : 0));
}

TEST_CASE("the event queue wraps, at any size and from any position", "[smmu][event]") {
    const unsigned log2size = GENERATE(0U, 1U, 3U, 6U);
    const std::uint32_t start = GENERATE(0U, 1U, 0xf'fffeU);
    CAPTURE(log2size, start);
    bench m;
    const std::uint32_t size = 1U << log2size;
    const std::uint32_t mask = 2 * size - 1;
    m.move_queue(guest::event_ring, log2size, start);
    std::uint32_t at = start & mask;
    std::uint64_t page = 1;
    for (int round = 0; round < 20; ++round) {
        for (std::uint32_t i = 0; i < size; ++i) {
            m.fault(page + i);
            CHECK(m.page_in_entry((at + i) & (size - 1)) == page + i);
        }
        CHECK((m.prod() & mask) == ((at + size) & mask));
        page += size;
        at = (at + size) & mask;
        m.write32(reg::EVENTQ_CONS, at);
    }
    CHECK((m.prod() & overflow) == 0);
    CHECK(m.iommu().stats().events_dropped == 0);
}

TEST_CASE("the event queue's base: low bits and LOG2SIZE are cut", "[smmu][event]") {
    bench m;
    SECTION("address bits inside the queue's size count as zero") {
        m.move_queue(guest::event_ring | 0xe0, guest::event_log2);
        m.fault(5);
        CHECK(m.page_in_entry(0) == 5);
    }
    SECTION("LOG2SIZE beyond the maximum is the maximum") {
        // 2^19 records are 16 MiB: all of RAM.
        m.move_queue(guest::ram, 31, 0x7'fffe);
        m.fault(5);
        CHECK(m.load64(guest::ram + 0x7'fffeULL * 32 + 16) == 0x5000);
        CHECK(m.prod() == 0x7'ffff);
    }
}

TEST_CASE("CD.R = 0 suppresses the records of its address space", "[smmu][event]") {
    bench m;
    spec::cd c = m.plain_cd(m.root, 1);
    set<spec::cd::R>(c, 0);
    const std::uint64_t cd_page = m.take_pages();
    m.store(cd_page, c);
    m.store(m.ste_address(sid), m.plain_ste(spec::ste_config::s1_translate, cd_page));
    m.command(spec::cmd_cfgi_ste(stream_id{sid}, true));
    m.sync();
    m.fault(1);
    CHECK(m.prod() == 0);
    CHECK(m.iommu().stats().faults == 1);
    CHECK(m.iommu().stats().events_dropped == 0);
    // A table that cannot be read is told all the same.
    m.store64(m.root, 0x1003);
    m.fault(2);
    const auto record = m.event();
    REQUIRE(record);
    CHECK(guest::id_of(*record) == spec::event_id::F_WALK_EABT);
}

TEST_CASE("each event's record, word by word", "[smmu][event]") {
    using enum spec::event_id;
    using spec::fault_class;
    struct row {
        const char* what;
        translation_fault fault;
        std::array<std::uint64_t, 4> words;
    };
    const auto made = [](spec::event_id event, transaction access,
                         fault_class cls = fault_class::IN, std::uint64_t fetch = 0) {
        translation_fault f;
        f.event = event;
        f.cls = cls;
        f.stream = stream_id{0x1234'5678};
        f.access_made = access;
        f.fetch_address = fetch;
        return f;
    };
    const auto with_substream = [](translation_fault f) {
        f.substream = substream_id{0xa'bcde};
        f.substream_valid = true;
        return f;
    };
    const auto stalled = [](translation_fault f) {
        f.stalled = true;
        f.stall_tag = 0x1234;
        return f;
    };
    const auto of_stage2 = [](translation_fault f) {
        f.stage2 = true;
        f.ipa = 0x0000'00ab'cdef'0123;
        return f;
    };
    const auto updating = [](translation_fault f) {
        f.table_write = true;
        return f;
    };
    const auto because = [](translation_fault f, std::uint8_t reason) {
        f.reason = reason;
        return f;
    };
    constexpr iova at{0xffff'8000'dead'beef};
    const transaction read{at, 8, access::read, false, false};
    const transaction write{at, 8, access::write, false, false};
    const transaction fetch{at, 8, access::read, true, true};
    const transaction odd_write{at, 8, access::write, true, true};
    constexpr std::uint64_t sid_word = 0x1234'5678'0000'0000;
    constexpr std::uint64_t input = 0xffff'8000'dead'beef;
    const auto r = GENERATE_COPY(
        row{"F_TRANSLATION, read",
            made(F_TRANSLATION, read),
            {sid_word | 0x10, 0x0000'0208'0000'0000, input, 0}},
        row{"F_TRANSLATION, write",
            made(F_TRANSLATION, write),
            {sid_word | 0x10, 0x0000'0200'0000'0000, input, 0}},
        row{"F_ADDR_SIZE, privileged instruction",
            made(F_ADDR_SIZE, fetch),
            {sid_word | 0x11, 0x0000'020e'0000'0000, input, 0}},
        row{"F_ACCESS", made(F_ACCESS, read), {sid_word | 0x12, 0x0000'0208'0000'0000, input, 0}},
        row{"F_PERMISSION: a write is of data",
            made(F_PERMISSION, odd_write),
            {sid_word | 0x13, 0x0000'0202'0000'0000, input, 0}},
        row{"F_PERMISSION with SubstreamID",
            with_substream(made(F_PERMISSION, write)),
            {sid_word | 0xabcd'e813, 0x0000'0200'0000'0000, input, 0}},
        row{"F_WALK_EABT",
            made(F_WALK_EABT, read, fault_class::TT, 0x0000'1234'5678'9ab8),
            {sid_word | 0x0b, 0x0000'0108'0000'0000, input, 0x0000'1234'5678'9ab8}},
        row{"F_STE_FETCH",
            made(F_STE_FETCH, read, fault_class::IN, 0x0000'1234'5678'9a40),
            {sid_word | 0x03, 0, 0, 0x0000'1234'5678'9a40}},
        row{"F_CD_FETCH",
            made(F_CD_FETCH, read, fault_class::IN, 0x0000'1234'5678'9a40),
            {sid_word | 0x09, 0, 0, 0x0000'1234'5678'9a40}},
        row{"C_BAD_STREAMID", made(C_BAD_STREAMID, read), {sid_word | 0x02, 0, 0, 0}},
        row{"C_BAD_STE", made(C_BAD_STE, fetch), {sid_word | 0x04, 0, 0, 0}},
        row{"C_BAD_CD", made(C_BAD_CD, write), {sid_word | 0x0a, 0, 0, 0}},
        row{"C_BAD_SUBSTREAMID",
            with_substream(made(C_BAD_SUBSTREAMID, write)),
            {sid_word | 0xabcd'e008, 0, 0, 0}}, // always meant, so without SSV
        row{"F_STREAM_DISABLED", made(F_STREAM_DISABLED, write), {sid_word | 0x06, 0, 0, 0}},
        row{"F_UUT", made(F_UUT, read), {sid_word | 0x01, 0x0000'0008'0000'0000, input, 0}},
        row{"F_UUT with its reason",
            because(made(F_UUT, fetch), 7),
            {sid_word | 0x01, 0x0000'000e'0000'0007, input, 0}},
        row{"F_TRANSLATION, stalled",
            stalled(made(F_TRANSLATION, read)),
            {sid_word | 0x10, 0x0000'0208'8000'1234, input, 0}},
        row{"F_ACCESS of stage 2, stalled",
            of_stage2(stalled(made(F_ACCESS, write))),
            {sid_word | 0x12, 0x0000'0280'8000'1234, input, 0x0000'00ab'cdef'0000}},
        row{"F_PERMISSION of a table read",
            of_stage2(made(F_PERMISSION, write, fault_class::TT)),
            {sid_word | 0x13, 0x0000'1180'0000'0000, input, 0x0000'00ab'cdef'0000}},
        row{"F_PERMISSION of a table write",
            updating(of_stage2(made(F_PERMISSION, read, fault_class::TT))),
            {sid_word | 0x13, 0x0000'0188'0000'0000, input, 0x0000'00ab'cdef'0000}},
        row{"F_TRANSLATION of a CD fetch",
            of_stage2(made(F_TRANSLATION, read, fault_class::CD)),
            {sid_word | 0x10, 0x0000'0088'0000'0000, input, 0x0000'00ab'cdef'0000}},
        row{"F_VMS_FETCH",
            because(made(F_VMS_FETCH, read, fault_class::IN, 0x0000'1234'5678'9a40), 3),
            {sid_word | 0x25, 3, 0, 0x0000'1234'5678'9a40}},
        row{"F_BAD_ATS_TREQ",
            with_substream(made(F_BAD_ATS_TREQ, write)),
            {sid_word | 0xabcd'e805, 0, input, 0}},
        row{"F_TRANSL_FORBIDDEN: the direction only",
            with_substream(made(F_TRANSL_FORBIDDEN, fetch)),
            {sid_word | 0x07, 0x0000'0008'0000'0000, input, 0}},
        row{"F_TLB_CONFLICT",
            of_stage2(because(made(F_TLB_CONFLICT, fetch), 5)),
            {sid_word | 0x20, 0x0000'008e'0000'0005, input, 0x0000'00ab'cdef'0000}},
        row{"F_CFG_CONFLICT",
            because(with_substream(made(F_CFG_CONFLICT, fetch)), 5),
            {sid_word | 0xabcd'e821, 5, 0, 0}},
        row{"E_PAGE_REQUEST, user read",
            made(E_PAGE_REQUEST, read),
            {sid_word | 0x24, 0x0000'1008'0000'0000, input & ~0xfffULL, 0}},
        row{"E_PAGE_REQUEST, privileged execute, over two pages",
            made(E_PAGE_REQUEST, transaction{iova{0x5ff8}, 16, access::read, true, true}),
            {sid_word | 0x24, 0x0000'2020'0000'0000, 0x5000, 0}},
        row{"E_PAGE_REQUEST, more than a span can say",
            made(E_PAGE_REQUEST, transaction{iova{0x5000}, 0x20'0000, access::write}),
            {sid_word | 0x24, 0x000f'f004'0000'0000, 0x5000, 0}});
    CAPTURE(r.what);
    const spec::event_record record = make_event_record(r.fault);
    for (std::size_t i = 0; i < 4; ++i) {
        CAPTURE(i);
        CHECK(record.word[i].value() == r.words[i]);
    }
}

TEST_CASE("a device announces what it will access", "[smmu][event]") {
    bench m;
    auto port = m.iommu().make_port("disk").value();
    port.announce(iova{0x5ff8}, 16, vm_accel::access::write, {.privileged = true});
    const auto record = m.event();
    REQUIRE(record);
    using R = spec::event_record;
    CHECK(guest::id_of(*record) == spec::event_id::E_PAGE_REQUEST);
    CHECK(get<R::StreamID>(*record) == sid);
    CHECK(get<R::InputAddr>(*record) == 0x5000);
    CHECK(get<R::Span>(*record) == 2);
    CHECK((get<R::pW>(*record) == 1 && get<R::uW>(*record) == 0));
    CHECK(m.told() == 1);
    CHECK(m.iommu().stats().faults == 0);
    port.announce(iova{0x5000}, 0, vm_accel::access::read); // nothing is announced
    port.announce(iova{~0ULL}, 2, vm_accel::access::read);
    m.write32(reg::CR0, 0xc); // SMMUEN = 0
    port.announce(iova{0x5000}, 1, vm_accel::access::read);
    m.write32(reg::CR0, 0xd);
    REQUIRE(m.iommu().detach_device("disk"));
    port.announce(iova{0x5000}, 1, vm_accel::access::read);
    CHECK_FALSE(m.event());
}

TEST_CASE("a stage-2 fault names stage and IPA", "[smmu][event]") {
    translation_fault f;
    f.event = spec::event_id::F_TRANSLATION;
    f.cls = spec::fault_class::TT;
    f.stage2 = true;
    f.stream = stream_id{1};
    f.access_made = {iova{0x5000}, 4, access::read, false, false};
    f.ipa = 0x0000'0012'3456'7890;
    const spec::event_record record = make_event_record(f);
    CHECK(record.word[0].value() == 0x0000'0001'0000'0010);
    CHECK(record.word[1].value() == 0x0000'0188'0000'0000); // S2, CLASS = TT, RnW
    CHECK(record.word[2].value() == 0x5000);
    CHECK(record.word[3].value() == 0x0000'0012'3456'7000);
}
