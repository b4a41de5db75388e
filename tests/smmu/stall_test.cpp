// Stalled accesses: who waits, who decides, and what becomes of them when nobody does.
#include "guest_driver.hpp"

#include <catch2/catch.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>
#include <thread>
#include <vector>

using namespace vm_accel;
namespace reg = vm_accel::spec::reg;

namespace {

constexpr std::uint32_t sid = 0x10;
constexpr std::uint32_t other_sid = 0x11;
constexpr unsigned bound = 4;
constexpr std::uint32_t event_entries = 1U << guest::event_log2;
constexpr std::uint64_t page = guest::ram + 0x200000;

template <bool Quiet>
struct stalling : default_smmu_options {
    static constexpr smmu_features features = [] {
        smmu_features f = stage1_features;
        f.stalls = true;
        f.stall_max = bound;
        f.quiet_termination = Quiet;
        return f;
    }();
};

/// CMD_RESUME's Resp: bit 0 retry, bit 1 abort.
constexpr std::uint64_t retry = 1;
constexpr std::uint64_t terminate = 0;
constexpr std::uint64_t abort_it = 2;

/// CD.A, R and S of an address space.
struct fault_bits {
    bool abort = true;
    bool record = true;
    bool stall = true;
};

template <class Options = stalling<true>>
struct bench : guest::machine<set_associative<16, 2>, Options> {
    using base = guest::machine<set_associative<16, 2>, Options>;
    using base::command, base::iommu, base::ste_address, base::store, base::sync, base::take_pages;

    explicit bench(fault_bits bits = {}) {
        this->start();
        (void)iommu().attach_device("disk", base::all_of_ram, stream_id{sid}).value();
        (void)iommu().attach_device("net", base::all_of_ram, stream_id{other_sid}).value();
        root = configure(sid, bits);
        other_root = configure(other_sid, bits);
    }
    std::uint64_t configure(std::uint32_t stream, fault_bits bits) {
        const std::uint64_t table = take_pages();
        const std::uint64_t cd_page = take_pages();
        spec::cd c = base::plain_cd(table, static_cast<std::uint16_t>(stream));
        set<spec::cd::A>(c, bits.abort ? 1 : 0);
        set<spec::cd::R>(c, bits.record ? 1 : 0);
        set<spec::cd::S>(c, bits.stall ? 1 : 0);
        store(cd_page, c);
        store(ste_address(stream), base::plain_ste(spec::ste_config::s1_translate, cd_page));
        command(spec::cmd_cfgi_ste(stream_id{stream}, true));
        sync();
        return table;
    }
    auto port(const char* name = "disk") { return iommu().make_port(name).value(); }
    template <class Port>
    static outcome touch(Port& port, std::uint64_t page_number) {
        auto guard = port.open();
        return guard.translate(iova{page_number << 12}, 4, vm_accel::access::read);
    }
    template <class Port>
    static stall_ticket stalled(Port& port, std::uint64_t page_number) {
        const outcome o = touch(port, page_number);
        REQUIRE(o.is_stalled());
        return o.ticket();
    }
    std::uint32_t prod() { return this->read32(reg::EVENTQ_PROD); }
    /// The tag of the stall record that is next, of an access to that page.
    std::uint16_t tag_told(std::uint64_t page_number) {
        using R = spec::event_record;
        const auto record = this->event();
        REQUIRE(record);
        CHECK(guest::id_of(*record) == spec::event_id::F_TRANSLATION);
        CHECK(get<R::STALL>(*record) == 1);
        CHECK(get<R::InputAddr>(*record) == page_number << 12);
        return static_cast<std::uint16_t>(get<R::STAG>(*record));
    }
    void resume(std::uint32_t stream, std::uint16_t tag, std::uint64_t response) {
        command(spec::cmd_resume(stream_id{stream}, tag, response));
        REQUIRE(this->commands_done());
    }
    void terminate_all(std::uint32_t stream) {
        spec::command c = spec::make_command(spec::opcode::CMD_STALL_TERM);
        set<spec::CMD_STALL_TERM::StreamID>(c, stream);
        command(c);
        REQUIRE(this->commands_done());
    }
    std::uint64_t root = 0;
    std::uint64_t other_root = 0;
};

template <class Port>
concept can_wait = requires(Port p) { p.wait(stall_ticket{}); };

} // namespace

TEST_CASE("CD.A, R and S: what a refused access does", "[smmu][stall]") {
    struct row {
        fault_bits bits;
        bool stalls, ignored, told;
    };
    const auto r = GENERATE(row{{true, true, false}, false, false, true},
                            row{{true, false, false}, false, false, false},
                            row{{false, true, false}, false, true, true},
                            row{{false, false, false}, false, true, false},
                            row{{true, true, true}, true, false, true},
                            row{{true, false, true}, true, false, true}, // R counts as 1
                            row{{false, false, true}, true, false, true});
    CAPTURE(r.bits.abort, r.bits.record, r.bits.stall);
    bench m{r.bits};
    auto port = m.port();
    const outcome o = m.touch(port, 5);
    CHECK(o.is_stalled() == r.stalls);
    CHECK(o.is_fault() == !r.stalls);
    CHECK(o.is_ignored() == r.ignored);
    CHECK(m.prod() == (r.told ? 1 : 0));
    CHECK(m.sink.pulses(wired_interrupt::eventq) == (r.told ? 1 : 0));
    if (r.told) {
        const auto record = m.event();
        REQUIRE(record);
        CHECK(get<spec::event_record::STALL>(*record) == (r.stalls ? 1 : 0));
    }
    CHECK(m.iommu().stats().faults == (r.stalls ? 0 : 1));
    CHECK(m.iommu().stats().events_dropped == 0);
}

TEST_CASE("CMD_RESUME decides about one access", "[smmu][stall]") {
    struct row {
        std::uint64_t response;
        stall_decision decided;
    };
    SECTION("as it says") {
        const auto r = GENERATE(
            row{retry, stall_decision::retry}, row{retry | abort_it, stall_decision::retry},
            row{terminate, stall_decision::terminated}, row{abort_it, stall_decision::aborted});
        CAPTURE(r.response);
        bench m;
        auto port = m.port();
        const stall_ticket ticket = m.stalled(port, 5);
        const stall_ticket second = m.stalled(port, 6);
        CHECK(port.decision(ticket) == stall_decision::pending);
        const std::uint16_t tag = m.tag_told(5);
        CHECK(tag == ticket.tag);
        m.resume(sid, tag, r.response);
        CHECK(port.decision(ticket) == r.decided);
        CHECK(port.decision(ticket) == stall_decision::aborted); // told once
        CHECK(port.decision(second) == stall_decision::pending);
    }
    SECTION("without RAZ/WI, terminated is aborted") {
        bench<stalling<false>> m;
        auto port = m.port();
        const stall_ticket ticket = m.stalled(port, 5);
        m.resume(sid, m.tag_told(5), terminate);
        CHECK(port.decision(ticket) == stall_decision::aborted);
    }
    SECTION("a retried access starts from the STE") {
        bench m;
        auto port = m.port();
        const stall_ticket ticket = m.stalled(port, 5);
        const std::uint16_t tag = m.tag_told(5);
        const bool mapped = GENERATE(true, false);
        if (mapped) {
            m.map(m.root, 0x5000, page);
        } else {
            m.store(m.ste_address(sid), m.plain_ste(spec::ste_config::bypass));
            m.command(spec::cmd_cfgi_ste(stream_id{sid}, true));
            m.sync();
        }
        m.resume(sid, tag, retry);
        REQUIRE(port.wait(ticket) == stall_decision::retry);
        const outcome o = m.touch(port, 5);
        CHECK(o.is_span() == mapped);
        CHECK(o.is_stalled() == false);
        CHECK(m.prod() == 1); // one record for one stall
    }
    SECTION("retried without a change it stalls again, under another tag") {
        bench m;
        auto port = m.port();
        const stall_ticket ticket = m.stalled(port, 5);
        const std::uint16_t tag = m.tag_told(5);
        m.resume(sid, tag, retry);
        REQUIRE(port.decision(ticket) == stall_decision::retry);
        const stall_ticket again = m.stalled(port, 5);
        CHECK(m.tag_told(5) == again.tag);
        CHECK(again.tag != tag);
        m.resume(sid, tag, abort_it); // late: it names the access that is over
        CHECK(port.decision(again) == stall_decision::pending);
    }
}

TEST_CASE("a CMD_RESUME that names no stalled access has no effect", "[smmu][stall]") {
    bench m;
    auto port = m.port();
    const stall_ticket ticket = m.stalled(port, 5);
    const std::uint16_t tag = m.tag_told(5);
    struct row {
        std::uint32_t stream;
        std::uint16_t xor_tag;
    };
    const auto r = GENERATE(row{other_sid, 0}, row{sid, 1}, row{sid, 3}, row{sid, 0x8000},
                            row{sid, 0xffff}, row{0xffff'ffff, 0}, row{0, 0});
    CAPTURE(r.stream, r.xor_tag);
    m.resume(r.stream, static_cast<std::uint16_t>(tag ^ r.xor_tag), abort_it);
    CHECK(port.decision(ticket) == stall_decision::pending);
    CHECK(m.read32(reg::GERROR) == 0);
    m.resume(sid, tag, retry);
    m.resume(sid, tag, abort_it); // once decided, it stays so
    CHECK(port.decision(ticket) == stall_decision::retry);
}

TEST_CASE("CMD_STALL_TERM aborts what its stream has stalled", "[smmu][stall]") {
    bench m;
    auto disk = m.port();
    auto net = m.port("net");
    const std::array tickets{m.stalled(disk, 5), m.stalled(disk, 6)};
    const stall_ticket of_net = m.stalled(net, 7);
    m.terminate_all(sid);
    for (const stall_ticket ticket : tickets)
        CHECK(disk.decision(ticket) == stall_decision::aborted);
    CHECK(net.decision(of_net) == stall_decision::pending);
    const stall_ticket later = m.stalled(disk, 8);
    CHECK(disk.decision(later) == stall_decision::pending);
    CHECK(m.iommu().stats().faults == 2);
}

TEST_CASE("beyond the bound an access is held back, and starts again when there is room",
          "[smmu][stall]") {
    bench m;
    auto port = m.port();
    std::array<stall_ticket, bound> tickets{};
    for (unsigned i = 0; i < bound; ++i)
        tickets[i] = m.stalled(port, i);
    const stall_ticket fifth = m.stalled(port, 50);
    const stall_ticket sixth = m.stalled(port, 51);
    CHECK(m.prod() == bound); // no more records than STALL_MAX
    CHECK(port.decision(fifth) == stall_decision::pending);
    m.resume(sid, tickets[2].tag, retry);
    CHECK(port.decision(fifth) == stall_decision::pending); // the place is not free yet
    CHECK(port.decision(tickets[2]) == stall_decision::retry);
    CHECK(port.decision(fifth) == stall_decision::retry);
    CHECK(port.decision(sixth) == stall_decision::retry);
    const stall_ticket told = m.stalled(port, 50);
    CHECK_FALSE(told.held_back);
    CHECK(m.stalled(port, 51).held_back);
    for (unsigned i = 0; i < bound; ++i)
        (void)m.tag_told(i);
    CHECK(m.tag_told(50) == told.tag);
    CHECK((m.read32(reg::IDR5) >> 16) == bound);
}

TEST_CASE("the record of a stall is never dropped", "[smmu][stall]") {
    bench m;
    const char* const why = GENERATE("full", "off", "aborted");
    CAPTURE(why);
    auto disk = m.port();
    const bool full = std::string_view{why} == "full";
    const bool off = std::string_view{why} == "off";
    if (full) {
        // Records of another kind, two at a time may stay.
        m.store(m.ste_address(other_sid), spec::ste{});
        m.command(spec::cmd_cfgi_ste(stream_id{other_sid}, true));
        m.sync();
        auto net = m.port("net");
        for (std::uint32_t i = 0; i < event_entries; ++i)
            REQUIRE(m.touch(net, i).is_fault());
    } else if (off) {
        m.write32(reg::CR0, 0x9);
    } else {
        m.write32(reg::CR0, 0x9);
        m.write64(reg::EVENTQ_BASE, guest::event_log2); // outside memory
        m.write32(reg::CR0, 0xd);
    }
    const std::uint32_t before = m.prod();
    const stall_ticket ticket = m.stalled(disk, 5);
    CHECK(disk.decision(ticket) == stall_decision::pending);
    CHECK(m.prod() == before); // and no overflow is flagged
    CHECK(m.iommu().stats().events_dropped == 0);
    CHECK(m.read32(reg::GERROR) == (full || off ? 0 : 4));
    m.write32(reg::IRQ_CTRL, 0x5); // a write that changes nothing for it
    CHECK(disk.decision(ticket) == stall_decision::pending);

    if (full) {
        REQUIRE(m.event());
    } else if (off) {
        m.write32(reg::CR0, 0xd);
    } else {
        m.write32(reg::CR0, 0x9);
        m.write64(reg::EVENTQ_BASE, guest::event_ring | guest::event_log2);
        m.write32(reg::CR0, 0xd);
        CHECK(disk.decision(ticket) == stall_decision::pending);
        m.write32(reg::GERRORN, 4);
    }
    REQUIRE(disk.decision(ticket) == stall_decision::retry);
    const stall_ticket again = m.stalled(disk, 5);
    if (full) {
        for (std::uint32_t i = 1; i < event_entries; ++i)
            REQUIRE(m.event());
    }
    CHECK(m.tag_told(5) == again.tag);
}

TEST_CASE("what ends a stall without the driver's word", "[smmu][stall]") {
    bench m;
    auto disk = m.port();
    auto net = m.port("net");
    std::array<stall_ticket, 2> tickets{m.stalled(disk, 5), m.stalled(disk, 6)};
    const stall_ticket of_net = m.stalled(net, 7);
    (void)m.stalled(net, 8);
    const stall_ticket held = m.stalled(disk, 9);
    REQUIRE(held.held_back);
    bool all = true;
    SECTION("SMMUEN = 0") { m.write32(reg::CR0, 0xc); }
    SECTION("reset") { REQUIRE(m.iommu().reset()); }
    SECTION("detach") {
        REQUIRE(m.iommu().detach_device("disk"));
        all = false;
    }
    for (const stall_ticket ticket : tickets)
        CHECK(disk.wait(ticket) == stall_decision::aborted);
    CHECK(disk.wait(held) == stall_decision::retry);
    CHECK_FALSE(m.touch(disk, 9).is_stalled());
    CHECK(net.decision(of_net) == (all ? stall_decision::aborted : stall_decision::pending));
}

TEST_CASE("a port that goes leaves its places to others", "[smmu][stall]") {
    bench m;
    auto keeps = m.port();
    const stall_ticket kept = m.stalled(keeps, 1);
    for (int round = 0; round < 10; ++round) {
        auto port = m.port();
        for (unsigned i = 1; i < bound; ++i)
            CHECK_FALSE(m.stalled(port, 10 + i).held_back);
        CHECK(m.stalled(port, 50).held_back);
        while (m.event()) {}
    }
    CHECK(keeps.decision(kept) == stall_decision::pending);
}

TEST_CASE("a port that goes wakes whoever waits for its accesses", "[smmu][stall]") {
    bench m;
    std::optional port{m.port()};
    const stall_ticket ticket = m.stalled(*port, 1);
    stall_decision decided = stall_decision::pending;
    std::thread waits{[&] {
        auto other = m.port("net");
        decided = other.wait(ticket);
    }};
    std::this_thread::sleep_for(std::chrono::milliseconds{20}); // until it waits, most likely
    port.reset();
    waits.join();
    CHECK(decided == stall_decision::aborted);
}

TEST_CASE("what is held back tries again after a return to an earlier state", "[smmu][stall]") {
    bench m;
    auto port = m.port();
    std::array<stall_ticket, bound> tickets{};
    for (unsigned i = 0; i < bound; ++i)
        tickets[i] = m.stalled(port, i);
    std::vector<std::byte> state(m.iommu().saved_state_size());
    REQUIRE(m.iommu().save(state));
    const unsigned later = GENERATE(0U, 1U, 2U);
    for (unsigned i = 0; i < later; ++i) {
        m.resume(sid, tickets[i].tag, retry);
        CHECK(port.decision(tickets[i]) == stall_decision::retry);
        (void)m.stalled(port, 20 + i);
    }
    const stall_ticket held_back = m.stalled(port, 50);
    REQUIRE(held_back.held_back);
    REQUIRE(m.iommu().restore(state));
    CHECK(port.decision(held_back) == stall_decision::retry);
}

TEST_CASE("restored accesses are the device's, and go with it or its last port", "[smmu][stall]") {
    bench m;
    std::optional first{m.port()};
    std::array<stall_ticket, bound> tickets{};
    for (unsigned i = 0; i < bound; ++i)
        tickets[i] = m.stalled(*first, i);
    std::vector<std::byte> state(m.iommu().saved_state_size());
    REQUIRE(m.iommu().save(state));
    REQUIRE(m.iommu().restore(state));
    // Any of its ports may ask; a port that goes while there are others takes nothing.
    std::optional second{m.port()};
    first.reset();
    CHECK(second->decision(tickets[0]) == stall_decision::pending);
    CHECK(m.stalled(*second, 50).held_back);
    const bool decided = GENERATE(false, true); // though nobody asks any more
    if (decided) m.resume(sid, tickets[0].tag, retry);
    if (GENERATE(false, true)) {
        second.reset();
    } else {
        REQUIRE(m.iommu().detach_device("disk"));
        CHECK(second->decision(tickets[0]) == stall_decision::aborted);
        second.reset();
        (void)m.iommu().attach_device("disk", m.all_of_ram, stream_id{sid}).value();
    }
    auto third = m.port();
    for (unsigned i = 0; i < bound; ++i) {
        CHECK(third.decision(tickets[i]) == stall_decision::aborted);
        CHECK_FALSE(m.stalled(third, 60 + i).held_back);
    }
}

TEST_CASE("a stalled access holds no guard: CMD_SYNC completes", "[smmu][stall]") {
    bench m;
    auto port = m.port();
    const stall_ticket ticket = m.stalled(port, 5);
    m.command(spec::tlbi_nsnh_all());
    m.sync();
    CHECK(m.commands_done());
    CHECK(port.decision(ticket) == stall_decision::pending);
}

TEST_CASE("copies that wait", "[smmu][stall]") {
    struct row {
        std::uint64_t response;
        bool done;
        std::byte seen;
    };
    const auto r = GENERATE(row{retry, true, std::byte{7}}, row{terminate, true, std::byte{0}},
                            row{abort_it, false, std::byte{1}});
    const bool writes = GENERATE(false, true);
    CAPTURE(r.response, writes);
    bench m;
    m.map(m.root, 0x4000, page);
    m.map(m.root, 0x6000, page + 0x2000);
    std::memset(m.host(page), 7, 0x3000);
    std::array<std::byte, 0x1010> bytes{}; // the end of a page, one that is missing, and beyond
    bytes.fill(std::byte{1});
    bool done = false;
    std::thread device{[&] {
        auto port = m.port();
        done = writes ? port.write(iova{0x4ff8}, bytes) : port.read(iova{0x4ff8}, bytes);
    }};
    std::optional<spec::event_record> record;
    while (!(record = m.event()))
        std::this_thread::yield();
    CHECK(get<spec::event_record::InputAddr>(*record) == 0x5000);
    CHECK(get<spec::event_record::RnW>(*record) == (writes ? 0 : 1));
    m.map(m.root, 0x5000, page + 0x1000);
    m.resume(sid, static_cast<std::uint16_t>(get<spec::event_record::STAG>(*record)), r.response);
    device.join();
    CHECK(done == r.done);
    if (writes) {
        CHECK(m.host(page)[0xff8] == std::byte{1});
        CHECK(m.host(page + 0x1000)[0] == (r.response == retry ? std::byte{1} : std::byte{7}));
        CHECK(m.host(page + 0x2000)[7] == (r.done ? std::byte{1} : std::byte{7}));
    } else {
        CHECK(bytes[7] == std::byte{7});
        CHECK(bytes[8] == r.seen);
        CHECK(bytes[0x1007] == r.seen);
        CHECK(bytes[0x1008] == (r.done ? std::byte{7} : std::byte{1}));
    }
}

TEST_CASE("copies that do not wait", "[smmu][stall]") {
    bench m;
    auto port = m.port();
    m.map(m.root, 0x4000, page);
    std::array<std::byte, 32> bytes{};
    const transfer first = port.try_read(iova{0x4ff0}, bytes);
    CHECK(first.done == 16);
    REQUIRE(first.stop.is_stalled());
    m.map(m.root, 0x5000, page + 0x1000);
    m.resume(sid, m.tag_told(5), retry);
    REQUIRE(port.decision(first.stop.ticket()) == stall_decision::retry);
    const transfer rest = port.try_write(iova{0x5000}, std::span{bytes}.subspan(16));
    CHECK(rest.done == 16);
    CHECK(m.iommu().stats().faults == 0);
}

TEST_CASE("inside another guard a copy that waits is refused", "[smmu][stall]") {
    bench m;
    auto port = m.port();
    std::array<std::byte, 4> bytes{};
    {
        const auto outer = port.open();
        CHECK_FALSE(port.read(iova{0x5000}, bytes));
        CHECK_FALSE(port.write(iova{0x5000}, bytes));
        CHECK(port.try_read(iova{0x6000}, bytes).stop.is_stalled());
    }
    using R = spec::event_record;
    CHECK(get<R::STALL>(m.event().value()) == 0);
    CHECK(get<R::STALL>(m.event().value()) == 0);
    CHECK(get<R::STALL>(m.event().value()) == 1);
}

TEST_CASE("CD.A = 0: reads zero, ignores writes, page by page", "[smmu][stall]") {
    bench m{{.abort = false, .record = true, .stall = false}};
    auto port = m.port();
    m.map(m.root, 0x4000, page);
    m.map(m.root, 0x6000, page + 0x2000);
    std::memset(m.host(page), 7, 0x3000);
    std::array<std::byte, 0x1010> bytes{};
    bytes.fill(std::byte{1});
    CHECK(port.read(iova{0x4ff8}, bytes));
    CHECK(bytes[7] == std::byte{7});
    CHECK(bytes[8] == std::byte{0});
    CHECK(bytes[0x1007] == std::byte{0});
    CHECK(bytes[0x1008] == std::byte{7});
    CHECK(m.prod() == 1);
    const transfer all = port.try_write(iova{0x5000}, std::span{bytes}.first(0x1008));
    CHECK(all.done == 0x1008);
    CHECK(m.host(page + 0x1000)[0] == std::byte{7});
    CHECK(m.host(page + 0x2000)[0] == bytes[0x1000]);
    CHECK(m.iommu().stats().faults == 2);
}

TEST_CASE("without the feature nothing of it is there", "[smmu][stall]") {
    guest::machine<> m;
    m.start();
    m.command(spec::cmd_resume(stream_id{sid}, 0, retry));
    CHECK(m.read32(reg::GERROR) == 1); // CERROR_ILL
    STATIC_REQUIRE_FALSE(can_wait<decltype(m)::device::port>);
}
