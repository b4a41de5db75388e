// SubstreamIDs, stage 2 and StreamWorlds through the whole SMMU: what is cached,
// what a CFGI or TLBI removes, what the event record says.
#include "guest_driver.hpp"

#include <catch2/catch.hpp>

#include <array>
#include <cstdint>
#include <optional>
#include <span>

using namespace vm_accel;

namespace {

using S = spec::ste;
using C = spec::cd;
using R = spec::event_record;

struct everything : default_smmu_options {
    static constexpr smmu_features features = full_features;
};
using machine = guest::machine<set_associative<64, 4>, everything>;

constexpr std::uint32_t sid = 0x10;
constexpr std::uint64_t mapped = 0xffff'0000;
constexpr std::size_t slots = everything::substream_slots;

access_attributes with(std::optional<std::uint32_t> substream) {
    access_attributes a;
    a.has_substream = substream.has_value();
    a.substream = substream_id{substream.value_or(0)};
    return a;
}

/// A stream with a linear table of 128 CDs; CD n maps `mapped` to a page that
/// holds the number n + 1.
struct stream_with_substreams {
    machine m;
    machine::device::port port = attached(m);
    std::uint64_t cds = 0;
    std::uint64_t ste_at = 0;
    S ste;

    static machine::device::port attached(machine& m) {
        m.start();
        REQUIRE(m.iommu().attach_device("device", m.all_of_ram, stream_id{sid}));
        return m.iommu().make_port("device").value();
    }
    stream_with_substreams() {
        cds = (m.take_pages(4) + 0x1fff) & ~std::uint64_t{0x1fff};
        ste_at = m.ste_address(sid);
        ste = m.plain_ste(spec::ste_config::s1_translate, cds);
        set<S::S1CDMax>(ste, 7);
        set<S::S1DSS>(ste, 2);
        m.store(ste_at, ste);
    }
    void put_cd(std::uint32_t index, std::uint64_t number) {
        const std::uint64_t root = m.take_pages();
        const std::uint64_t page = m.take_pages();
        m.store64(page, number);
        m.map(root, mapped, page);
        C c = m.plain_cd(root, static_cast<std::uint16_t>(number));
        m.store(cds + index * 64, c);
    }
    /// The number that an access finds; 0 = refused.
    std::uint64_t read(std::optional<std::uint32_t> substream, std::uint64_t address = mapped) {
        std::uint64_t number = 0;
        if (!port.read(iova{address}, std::as_writable_bytes(std::span{&number, 1}),
                       with(substream))) {
            return 0;
        }
        return number;
    }
    void run(const spec::command& c) {
        m.command(c);
        m.sync();
        REQUIRE(m.commands_done());
    }
};

} // namespace

TEST_CASE("each SubstreamID has its own address space", "[smmu][substream]") {
    stream_with_substreams s;
    for (const std::uint32_t i : {0U, 1U, 2U, 127U})
        s.put_cd(i, i + 1);
    for (int round = 0; round < 3; ++round) {
        CHECK(s.read(1) == 2);
        CHECK(s.read({}) == 1);
        CHECK(s.read(127) == 128);
        CHECK(s.read(2) == 3);
    }
    CHECK_FALSE(s.m.event());
    CHECK(s.read(3) == 0); // CD 3 is not valid
    const auto bad = s.m.event();
    REQUIRE(bad);
    CHECK(guest::id_of(*bad) == spec::event_id::C_BAD_CD);
    CHECK((get<R::SSV>(*bad) == 1 && get<R::SSID>(*bad) == 3));
    CHECK(s.read(128) == 0);
    const auto far = s.m.event();
    REQUIRE(far);
    CHECK(guest::id_of(*far) == spec::event_id::C_BAD_SUBSTREAMID);
    CHECK(get<R::SSID>(*far) == 128);
    CHECK(s.read(0) == 0);
    const auto taken = s.m.event();
    REQUIRE(taken);
    CHECK(guest::id_of(*taken) == spec::event_id::F_STREAM_DISABLED);
    CHECK(s.read(2, 0x1000) == 0);
    const auto fault = s.m.event();
    REQUIRE(fault);
    CHECK(guest::id_of(*fault) == spec::event_id::F_TRANSLATION);
    CHECK((get<R::SSV>(*fault) == 1 && get<R::SSID>(*fault) == 2));
    CHECK(s.read({}, 0x1000) == 0);
    CHECK(get<R::SSV>(s.m.event().value()) == 0);
}

TEST_CASE("configurations are cached by SubstreamID", "[smmu][substream]") {
    stream_with_substreams s;
    s.put_cd(0, 1);
    s.put_cd(1, 2);
    CHECK(s.read({}) == 1);
    CHECK(s.read(1) == 2);
    const auto decoded = s.m.iommu().stats();
    for (int i = 0; i < 10; ++i) {
        CHECK(s.read({}) == 1);
        CHECK(s.read(1) == 2);
    }
    CHECK(s.m.iommu().stats().hits == decoded.hits + 20);
    // Two that want the same place: both work.
    s.put_cd(1 + slots, 9);
    static_assert(1 + slots < 128);
    for (int i = 0; i < 3; ++i) {
        CHECK(s.read(1 + slots) == 9);
        CHECK(s.read(1) == 2);
    }
}

TEST_CASE("CFGI_CD removes what its SubstreamID names", "[smmu][substream]") {
    struct row {
        const char* what;
        spec::command command;
        bool plain, one, two; ///< which accesses see the change
    };
    const auto cd = [](std::uint32_t n) {
        return spec::cmd_cfgi_cd(stream_id{sid}, substream_id{n}, true);
    };
    const auto r = GENERATE_COPY(
        row{"CFGI_CD of 0", cd(0), true, false, false},
        row{"CFGI_CD of 1", cd(1), false, true, false},
        row{"CFGI_CD of 2", cd(2), false, false, true},
        row{"CFGI_CD of 3", cd(3), false, false, false},
        row{"CFGI_CD of another stream",
            spec::cmd_cfgi_cd(stream_id{sid + 1}, substream_id{1}, true), false, false, false},
        row{"CFGI_CD_ALL", spec::cmd_cfgi_cd_all(stream_id{sid}), true, true, true},
        row{"CFGI_STE", spec::cmd_cfgi_ste(stream_id{sid}, true), true, true, true},
        row{"CFGI_STE of another", spec::cmd_cfgi_ste(stream_id{sid + 1}, true), false, false,
            false},
        row{"CFGI_ALL", spec::cmd_cfgi_all(), true, true, true});
    CAPTURE(r.what);
    stream_with_substreams s;
    for (const std::uint32_t i : {0U, 1U, 2U})
        s.put_cd(i, i + 1);
    REQUIRE(s.read({}) == 1);
    REQUIRE(s.read(1) == 2);
    REQUIRE(s.read(2) == 3);
    for (const std::uint32_t i : {0U, 1U, 2U})
        s.put_cd(i, i + 11);
    REQUIRE(s.read({}) == 1); // not told yet
    REQUIRE(s.read(1) == 2);
    REQUIRE(s.read(2) == 3);
    s.run(r.command);
    CHECK(s.read({}) == (r.plain ? 11 : 1));
    CHECK(s.read(1) == (r.one ? 12 : 2));
    CHECK(s.read(2) == (r.two ? 13 : 3));
}

TEST_CASE("detaching ends the accesses of every SubstreamID", "[smmu][substream]") {
    stream_with_substreams s;
    s.put_cd(0, 1);
    s.put_cd(1, 2);
    REQUIRE(s.read({}) == 1);
    REQUIRE(s.read(1) == 2);
    REQUIRE(s.m.iommu().detach_device("device"));
    CHECK(s.read({}) == 0);
    CHECK(s.read(1) == 0);
}

TEST_CASE("invalidate_tlb reaches every SubstreamID", "[smmu][substream]") {
    stream_with_substreams s;
    s.put_cd(1, 2);
    REQUIRE(s.read(1) == 2);
    const std::uint64_t root = s.m.load64(s.cds + 64 + 8) & C::TTB0::mask;
    s.m.unmap(root, mapped);
    REQUIRE(s.read(1) == 2);
    REQUIRE(s.m.iommu().invalidate_tlb(stream_id{sid}));
    CHECK(s.read(1) == 0);
}

TEST_CASE("without SubstreamIDs, an access with one is refused", "[smmu][substream]") {
    guest::machine<> m;
    m.start();
    const std::uint64_t root = m.stage1_stream(sid, 1);
    m.map(root, mapped, m.take_pages());
    REQUIRE(m.iommu().attach_device("device", m.all_of_ram, stream_id{sid}));
    auto port = m.iommu().make_port("device").value();
    std::array<std::byte, 8> bytes{};
    for (int round = 0; round < 3; ++round) {
        CHECK(port.read(iova{mapped}, bytes));
        CHECK_FALSE(port.read(iova{mapped}, bytes, with(0)));
        CHECK(guest::id_of(m.event().value()) == spec::event_id::C_BAD_SUBSTREAMID);
    }
}

TEST_CASE("EL2 streams have entries of their own world", "[smmu][strw]") {
    struct row {
        const char* what;
        bool el2, e2h;
        spec::command command;
        bool gone;
    };
    const asid own{1};
    const auto r = GENERATE_COPY(
        row{"EL1, NH_ALL", false, false, spec::tlbi_nh_all(vmid{0}), true},
        row{"EL1, EL2_ALL", false, false, spec::tlbi_el2_all(), false},
        row{"EL2, NH_ALL", true, false, spec::tlbi_nh_all(vmid{0}), false},
        row{"EL2, NSNH_ALL", true, false, spec::tlbi_nsnh_all(), false},
        row{"EL2, EL2_ALL", true, false, spec::tlbi_el2_all(), true},
        row{"EL2-E2H, NH_ASID", true, true, spec::tlbi_nh_asid(vmid{0}, own), false},
        row{"EL2-E2H, EL2_ASID", true, true, spec::tlbi_el2_asid(own), true},
        row{"EL2-E2H, EL2_ASID of another", true, true, spec::tlbi_el2_asid(asid{2}), false},
        row{"EL2-E2H, EL2_ALL", true, true, spec::tlbi_el2_all(), true});
    CAPTURE(r.what);
    machine m;
    m.start();
    m.write32(spec::reg::CR0, 0xc);
    m.write32(spec::reg::CR2, r.e2h ? 0x7 : 0x6);
    m.write32(spec::reg::CR0, 0xd);
    const std::uint64_t root = m.stage1_stream(sid, raw(own));
    S ste;
    for (std::size_t i = 0; i < 8; ++i)
        ste.word[i] = le64{m.load64(m.ste_address(sid) + 8 * i)};
    set<S::STRW>(ste, r.el2 ? 2 : 0);
    m.store(m.ste_address(sid), ste);
    m.command(spec::cmd_cfgi_ste(stream_id{sid}, true));
    m.sync();
    m.map(root, mapped, m.take_pages());
    REQUIRE(m.iommu().attach_device("device", m.all_of_ram, stream_id{sid}));
    auto port = m.iommu().make_port("device").value();
    std::array<std::byte, 8> bytes{};
    REQUIRE(port.read(iova{mapped}, bytes));
    m.unmap(root, mapped);
    REQUIRE(port.read(iova{mapped}, bytes));
    m.command(r.command);
    m.sync();
    REQUIRE(m.commands_done());
    CHECK(port.read(iova{mapped}, bytes) == !r.gone);
}

TEST_CASE("what stage 2 refuses on the way to a CD", "[smmu][nested]") {
    machine m;
    m.start();
    const std::uint64_t cd = m.take_pages();
    m.store(cd, m.plain_cd(m.take_pages(), 1));
    const std::uint64_t stage2 = (m.take_pages(3) + 0x1fff) & ~std::uint64_t{0x1fff};
    S ste = m.plain_ste(spec::ste_config::s1_s2_translate, cd);
    set<S::S2T0SZ>(ste, 24);
    set<S::S2SL0>(ste, 1);
    set<S::S2PS>(ste, 4);
    set<S::S2AA64>(ste, 1);
    set<S::S2TTB>(ste, stage2 >> 4);
    const bool record = GENERATE(true, false);
    set<S::S2R>(ste, record ? 1 : 0);
    set<S::PRIVCFG>(ste, 3);
    m.store(m.ste_address(sid), ste);
    REQUIRE(m.iommu().attach_device("device", m.all_of_ram, stream_id{sid}));
    auto port = m.iommu().make_port("device").value();
    std::array<std::byte, 8> bytes{};
    access_attributes plain;
    CHECK_FALSE(port.write(iova{mapped}, bytes, plain));
    const auto event = m.event();
    REQUIRE(event.has_value() == record);
    if (!record) return;
    CHECK(guest::id_of(*event) == spec::event_id::F_TRANSLATION);
    CHECK(get<R::S2>(*event) == 1);
    CHECK(get<R::CLASS>(*event) == static_cast<std::uint64_t>(spec::fault_class::CD));
    CHECK(get_address<R::IPA>(*event) == (cd & R::IPA::mask));
    CHECK(get<R::InputAddr>(*event) == mapped);
    CHECK(get<R::RnW>(*event) == 0);
    CHECK(get<R::PnU>(*event) == 1); // as the STE has it
    // Nothing of it is remembered: mapped, it is found without a command.
    m.store64(stage2 + 8, guest::ram | 0x4fd);
    CHECK_FALSE(port.read(iova{mapped}, bytes));
    const auto next = m.event();
    REQUIRE(next);
    CHECK(get<R::S2>(*next) == 0); // stage 1 has no such page
}

TEST_CASE("PRIVCFG and INSTCFG decide which permission counts", "[smmu][permission]") {
    // A page that privileged software may read, and users may execute.
    machine m;
    m.start();
    const std::uint64_t root = m.stage1_stream(sid, 1);
    m.map(root, mapped, m.take_pages(), 3, {.user = false, .user_execute_never = false});
    REQUIRE(m.iommu().attach_device("device", m.all_of_ram, stream_id{sid}));
    auto port = m.iommu().make_port("device").value();
    struct row {
        std::uint64_t privilege, instruction;
        access_attributes attributes;
        bool allowed;
    };
    const auto r =
        GENERATE(row{0, 0, {}, false}, row{0, 0, {.privileged = true}, true}, row{3, 0, {}, true},
                 row{2, 0, {.privileged = true}, false}, row{0, 3, {}, true}, row{3, 3, {}, false},
                 row{0, 2, {.instruction = true}, false}, row{3, 2, {.instruction = true}, true});
    CAPTURE(r.privilege, r.instruction, r.attributes.privileged, r.attributes.instruction);
    S ste;
    for (std::size_t i = 0; i < 8; ++i)
        ste.word[i] = le64{m.load64(m.ste_address(sid) + 8 * i)};
    set<S::PRIVCFG>(ste, r.privilege);
    set<S::INSTCFG>(ste, r.instruction);
    m.store(m.ste_address(sid), ste);
    m.command(spec::cmd_cfgi_ste(stream_id{sid}, true));
    m.sync();
    std::array<std::byte, 4> bytes{};
    // What is cached for another kind of access says nothing about this one.
    for (int i = 0; i < 4; ++i)
        (void)port.read(iova{mapped}, bytes, {.instruction = true});
    while (m.event()) {}
    for (int round = 0; round < 2; ++round) {
        CHECK(port.read(iova{mapped}, bytes, r.attributes) == r.allowed);
        const auto event = m.event();
        REQUIRE(event.has_value() == !r.allowed);
        if (!event) continue;
        CHECK(guest::id_of(*event) == spec::event_id::F_PERMISSION);
        const bool privileged = r.privilege == 3 || (r.privilege == 0 && r.attributes.privileged);
        const bool instruction =
            r.instruction == 3 || (r.instruction == 0 && r.attributes.instruction);
        CHECK(get<R::PnU>(*event) == (privileged ? 1 : 0));
        CHECK(get<R::InD>(*event) == (instruction ? 1 : 0));
    }
}

TEST_CASE("memory attributes of what is not translated", "[smmu][attributes]") {
    machine m;
    m.start();
    attach_options options;
    options.incoming = {0xbb, 0};
    REQUIRE(m.iommu().attach_device("device", m.all_of_ram, stream_id{sid}, options));
    auto port = m.iommu().make_port("device").value();
    const auto attributes = [&] {
        auto guard = port.open();
        const outcome o = guard.translate(iova{guest::ram}, 8, access::read);
        REQUIRE(o.is_span());
        return o.attributes();
    };
    S ste = m.plain_ste(spec::ste_config::bypass);
    set<S::SHCFG>(ste, 1);
    m.store(m.ste_address(sid), ste);
    for (int round = 0; round < 2; ++round)
        CHECK(attributes() == memory_attributes{0xbb, 0});
    set<S::SHCFG>(ste, 3);
    set<S::MTCFG>(ste, 1);
    set<S::MemAttr>(ste, 5);
    m.store(m.ste_address(sid), ste);
    CHECK(attributes() == memory_attributes{0xbb, 0}); // not told yet
    m.command(spec::cmd_cfgi_ste(stream_id{sid}, true));
    m.sync();
    for (int round = 0; round < 2; ++round)
        CHECK(attributes() == memory_attributes{0x44, 2});
    // SMMUEN = 0: GBPA's.
    m.write32(spec::reg::CR0, 0xc);
    CHECK(attributes() == memory_attributes{0xbb, 0});
    m.write32(spec::reg::GBPA, 0x8000'3000);
    CHECK(attributes() == memory_attributes{0xbb, 3});
    m.write32(spec::reg::GBPA, 0x8000'1011);
    CHECK(attributes() == memory_attributes{0x04, 2});
}
