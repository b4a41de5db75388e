// Stream tables, STEs and CDs: what each shape and each mistake gives.
#include "guest_driver.hpp"

#include <catch2/catch.hpp>

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

using namespace vm_accel;
using machine = guest::machine<>;

namespace {

constexpr std::uint32_t sid = 0x10;
constexpr iova mapped{0xffff'0000};

/// One read by a device with StreamID `sid`; gives the event it caused.
struct attempt {
    bool served = false;
    std::optional<spec::event_record> event;
};
attempt read_as(machine& m, std::uint32_t stream, iova address = mapped) {
    const std::string id = "device" + std::to_string(stream);
    if (!m.iommu().attachment(id)) {
        REQUIRE(m.iommu().attach_device(id, m.all_of_ram, stream_id{stream}));
    }
    auto port = m.iommu().make_port(id).value();
    std::array<std::byte, 8> bytes{};
    attempt a;
    a.served = port.read(address, bytes);
    a.event = m.event();
    return a;
}

/// A working stage-1 stream; gives the addresses of its STE and CD.
struct stream {
    std::uint64_t ste = 0;
    std::uint64_t cd = 0;
    std::uint64_t root = 0;
    std::uint64_t target = 0;
};
stream good_stream(machine& m) {
    stream s;
    s.root = m.take_pages();
    s.cd = m.take_pages();
    s.target = m.take_pages();
    s.ste = m.ste_address(sid);
    m.store(s.cd, m.plain_cd(s.root, 1));
    m.store(s.ste, m.plain_ste(spec::ste_config::s1_translate, s.cd));
    m.map(s.root, raw(mapped), s.target);
    return s;
}

} // namespace

TEST_CASE("an illegal or unreadable STE or CD has its own event", "[smmu][config]") {
    using enum spec::event_id;
    using S = spec::ste;
    using C = spec::cd;
    struct row {
        const char* what;
        std::optional<spec::event_id> event; ///< none = it works
        std::function<void(S&)> ste;
        std::function<void(C&)> cd;
    };
    const auto no_ste = [](S&) {};
    const auto no_cd = [](C&) {};
    const auto r = GENERATE_COPY(
        row{"as it should be", std::nullopt, no_ste, no_cd},
        row{"STE.V clear", C_BAD_STE, [](S& s) { set<S::V>(s, 0); }, no_cd},
        row{"stage 2, not advertised", C_BAD_STE, [](S& s) { set<S::Config>(s, 6); }, no_cd},
        row{"nested, not advertised", C_BAD_STE, [](S& s) { set<S::Config>(s, 7); }, no_cd},
        row{"S1CDMax, ignored without SubstreamIDs", std::nullopt,
            [](S& s) { set<S::S1CDMax>(s, 1); }, no_cd},
        row{"STRW, ignored without Hyp", std::nullopt, [](S& s) { set<S::STRW>(s, 2); }, no_cd},
        row{"CD outside RAM", F_CD_FETCH, [](S& s) { set<S::S1ContextPtr>(s, 0x1000 >> 6); },
            no_cd},
        row{"CD.V clear", C_BAD_CD, no_ste, [](C& c) { set<C::V>(c, 0); }},
        row{"AArch32", C_BAD_CD, no_ste, [](C& c) { set<C::AA64>(c, 0); }},
        row{"big-endian tables", C_BAD_CD, no_ste, [](C& c) { set<C::ENDI>(c, 1); }},
        row{"hardware access flag", C_BAD_CD, no_ste, [](C& c) { set<C::HA>(c, 1); }},
        row{"hardware dirty state", C_BAD_CD, no_ste, [](C& c) { set<C::HD>(c, 1); }},
        row{"stall, not advertised", C_BAD_CD, no_ste, [](C& c) { set<C::S>(c, 1); }},
        row{"T0SZ too small", C_BAD_CD, no_ste, [](C& c) { set<C::T0SZ>(c, 15); }},
        row{"T0SZ too large", C_BAD_CD, no_ste, [](C& c) { set<C::T0SZ>(c, 40); }},
        row{"64 KiB granule, not advertised", C_BAD_CD, no_ste, [](C& c) { set<C::TG0>(c, 1); }},
        row{"reserved granule", C_BAD_CD, no_ste, [](C& c) { set<C::TG0>(c, 3); }},
        row{"table beyond IPS", C_BAD_CD, no_ste, [](C& c) { set<C::TTB0>(c, (1ULL << 44) >> 4); }},
        row{"nonsense in a half that is off", std::nullopt, no_ste,
            [](C& c) {
                set<C::T1SZ>(c, 63);
                set<C::TG1>(c, 0);
                set<C::TTB1>(c, C::TTB1::max);
            }},
        row{"IPS larger than OAS counts as OAS", std::nullopt, no_ste,
            [](C& c) { set<C::IPS>(c, 6); }},
        row{"EPD0 set", F_TRANSLATION, no_ste, [](C& c) { set<C::EPD0>(c, 1); }},
        row{"table outside RAM", F_WALK_EABT, no_ste, [](C& c) { set<C::TTB0>(c, 0x1000 >> 4); }});
    CAPTURE(r.what);
    machine m;
    m.start();
    const stream s = good_stream(m);
    S ste = m.plain_ste(spec::ste_config::s1_translate, s.cd);
    C cd = m.plain_cd(s.root, 1);
    r.ste(ste);
    r.cd(cd);
    m.store(s.ste, ste);
    m.store(s.cd, cd);
    const attempt a = read_as(m, sid);
    CHECK(a.served == !r.event);
    REQUIRE(a.event.has_value() == r.event.has_value());
    if (!r.event) return;
    using R = spec::event_record;
    CHECK(guest::id_of(*a.event) == *r.event);
    CHECK(get<R::StreamID>(*a.event) == sid);
    if (*r.event == F_CD_FETCH) CHECK(get_address<R::FetchAddr>(*a.event) == 0x1000);
    if (*r.event == F_WALK_EABT) {
        CHECK(get_address<R::FetchAddr>(*a.event) == 0x1000);
        CHECK(get<R::CLASS>(*a.event) == static_cast<std::uint64_t>(spec::fault_class::TT));
        CHECK(get<R::InputAddr>(*a.event) == raw(mapped));
    }
    if (*r.event == C_BAD_STE || *r.event == C_BAD_CD) {
        CHECK(get<R::InputAddr>(*a.event) == 0);
    }
    // Nothing wrong is remembered: mended and invalidated, it works.
    m.store(s.ste, m.plain_ste(spec::ste_config::s1_translate, s.cd));
    m.store(s.cd, m.plain_cd(s.root, 1));
    m.command(spec::cmd_cfgi_ste(stream_id{sid}, true));
    m.sync();
    CHECK(read_as(m, sid).served);
}

TEST_CASE("abort and bypass streams", "[smmu][config]") {
    machine m;
    m.start();
    const std::uint64_t ste = m.ste_address(sid);
    SECTION("abort is silent, whatever the rest of the STE says") {
        const std::uint64_t config = GENERATE(0U, 1U, 2U, 3U);
        spec::ste s;
        s.word.fill(le64{~std::uint64_t{0}});
        set<spec::ste::Config>(s, config);
        m.store(ste, s);
        const attempt a = read_as(m, sid);
        CHECK_FALSE(a.served);
        CHECK_FALSE(a.event);
    }
    SECTION("bypass: the output is the input, inside the window") {
        m.store(ste, m.plain_ste(spec::ste_config::bypass));
        CHECK(read_as(m, sid, iova{guest::ram + 0x5000}).served);
        CHECK(read_as(m, sid, iova{guest::ram + guest::ram_bytes - 8}).served);
        const attempt outside = read_as(m, sid, iova{guest::ram + guest::ram_bytes});
        CHECK_FALSE(outside.served);
        CHECK_FALSE(outside.event);
        const attempt beyond = read_as(m, sid, iova{1ULL << 44});
        CHECK_FALSE(beyond.served);
        REQUIRE(beyond.event);
        CHECK(guest::id_of(*beyond.event) == spec::event_id::F_ADDR_SIZE);
    }
}

TEST_CASE("SMMUEN = 0: GBPA decides, and no event is recorded", "[smmu][config]") {
    machine m;
    m.start();
    m.write32(spec::reg::CR0, 0xc);
    CHECK(read_as(m, sid, iova{guest::ram}).served);
    m.write32(spec::reg::GBPA, 0x8010'0000);
    const attempt aborted = read_as(m, sid, iova{guest::ram});
    CHECK_FALSE(aborted.served);
    CHECK_FALSE(aborted.event);
    m.write32(spec::reg::GBPA, 0x8000'0000);
    CHECK(read_as(m, sid, iova{guest::ram}).served);
    CHECK_FALSE(read_as(m, sid, iova{1ULL << 50}).event);
}

TEST_CASE("which STE a StreamID finds", "[smmu][config]") {
    using enum spec::event_id;
    struct row {
        const char* what;
        std::uint32_t shape; ///< STRTAB_BASE_CFG
        std::uint32_t stream;
        std::uint64_t level1_word;           ///< linear: ignored
        std::optional<std::uint64_t> ste_at; ///< offset from the level-2 or linear table
        std::optional<spec::event_id> event;
    };
    constexpr std::uint64_t table = guest::first_free + 0x80000;
    const auto r = GENERATE_COPY(
        row{"linear, first", 0x8, 0, 0, 0, {}}, row{"linear, last", 0x8, 255, 0, 255 * 64, {}},
        row{"linear, one past", 0x8, 256, 0, {}, C_BAD_STREAMID},
        row{"linear of one", 0x0, 0, 0, 0, {}},
        row{"two-level, split 6", 0x1'0190, 0x7f, table | 7, 0x3f * 64, {}},
        row{"two-level, split 8", 0x1'0210, 0x1ff, table | 9, 0xff * 64, {}},
        row{"two-level, split 10", 0x1'0290, 0x7ff, table | 11, 0x3ff * 64, {}},
        row{"reserved split counts as 6", 0x1'01d0, 0x7f, table | 7, 0x3f * 64, {}},
        row{"two-level, past LOG2SIZE", 0x1'0209, 0x200, table | 9, {}, C_BAD_STREAMID},
        row{"level-2 table absent", 0x1'0210, 0x110, 0, {}, C_BAD_STREAMID},
        row{"beyond a short level-2 table", 0x1'0210, 0x104, table | 3, {}, C_BAD_STREAMID},
        row{"last of a short level-2 table", 0x1'0210, 0x103, table | 3, 3 * 64, {}},
        row{"Span beyond the split", 0x1'0210, 0x101, table | 10, {}, C_BAD_STREAMID},
        row{"level-2 table outside RAM", 0x1'0210, 0x101, 0x1000 | 9, {}, F_STE_FETCH},
        row{"LOG2SIZE beyond SIDSIZE is cut", 0x1'023f, 0x1ff, table | 9, 0xff * 64, {}});
    CAPTURE(r.what);
    machine m;
    m.start();
    m.write32(spec::reg::CR0, 0xc);
    const bool two_level = (r.shape >> 16) != 0;
    m.write64(spec::reg::STRTAB_BASE, two_level ? guest::level1_table : table);
    m.write32(spec::reg::STRTAB_BASE_CFG, r.shape);
    m.write32(spec::reg::CR0, 0xd);
    if (two_level) {
        const std::uint64_t split = r.shape >> 6 & 0x1f;
        const std::uint64_t used = split == 8 || split == 10 ? split : 6;
        m.store64(guest::level1_table + (r.stream >> used) * 8, r.level1_word);
    }
    if (r.ste_at) m.store(table + *r.ste_at, m.plain_ste(spec::ste_config::bypass));
    const attempt a = read_as(m, r.stream, iova{guest::ram});
    CHECK(a.served == !r.event);
    REQUIRE(a.event.has_value() == r.event.has_value());
    if (r.event) CHECK(guest::id_of(*a.event) == *r.event);
}

TEST_CASE("C_BAD_STREAMID is recorded only with RECINVSID", "[smmu][config]") {
    machine m;
    m.start();
    m.write32(spec::reg::CR0, 0xc);
    m.write32(spec::reg::CR2, 0x4);
    m.write32(spec::reg::CR0, 0xd);
    const attempt a = read_as(m, 0x1010);
    CHECK_FALSE(a.served);
    CHECK_FALSE(a.event);
}

TEST_CASE("CFGI makes a changed STE or CD count", "[smmu][config]") {
    struct row {
        const char* what;
        spec::command command;
        bool counts;
    };
    const auto r = GENERATE(
        row{"CFGI_STE", spec::cmd_cfgi_ste(stream_id{sid}, true), true},
        row{"CFGI_STE of another", spec::cmd_cfgi_ste(stream_id{sid + 1}, true), false},
        row{"CFGI_STE_RANGE around it", spec::cmd_cfgi_ste_range(stream_id{sid}, 3), true},
        row{"CFGI_STE_RANGE, base not aligned", spec::cmd_cfgi_ste_range(stream_id{sid + 5}, 3),
            true},
        row{"CFGI_STE_RANGE beside it", spec::cmd_cfgi_ste_range(stream_id{sid + 16}, 3), false},
        row{"CFGI_ALL", spec::cmd_cfgi_all(), true},
        row{"CFGI_CD", spec::cmd_cfgi_cd(stream_id{sid}, substream_id{0}, true), true},
        row{"CFGI_CD_ALL", spec::cmd_cfgi_cd_all(stream_id{sid}), true},
        row{"TLBI_NSNH_ALL", spec::tlbi_nsnh_all(), false});
    CAPTURE(r.what);
    machine m;
    m.start();
    const stream s = good_stream(m);
    REQUIRE(read_as(m, sid).served);
    spec::cd cd = m.plain_cd(s.root, 1);
    set<spec::cd::EPD0>(cd, 1);
    m.store(s.cd, cd);
    REQUIRE(read_as(m, sid).served); // still cached
    m.command(r.command);
    m.sync();
    CHECK(read_as(m, sid).served == !r.counts);
}

TEST_CASE("permissions follow AP, APTable, PAN, WXN and the device's attributes",
          "[smmu][permission]") {
    // Each row: leaf flags, table attributes, CD bits; then what is allowed of
    // user read, user write, privileged read, privileged write, execute.
    struct row {
        const char* what;
        guest::page_flags leaf;
        std::uint64_t table_bits;
        bool pan, wxn, had;
        bool ur, uw, pr, pw, ux, px;
    };
    constexpr std::uint64_t no_user = 1ULL << 61;
    constexpr std::uint64_t no_write = 1ULL << 62;
    constexpr std::uint64_t no_user_execute = 1ULL << 60;
    constexpr std::uint64_t no_privileged_execute = 1ULL << 59;
    const guest::page_flags rw{.user_execute_never = false, .privileged_execute_never = false};
    const guest::page_flags ro{
        .read_only = true, .user_execute_never = false, .privileged_execute_never = false};
    const guest::page_flags priv{
        .user = false, .user_execute_never = false, .privileged_execute_never = false};
    const guest::page_flags data{};
    const auto r = GENERATE_COPY(
        row{"user, read and write", rw, 0, false, false, false, true, true, true, true, true,
            false},
        row{"user, read-only", ro, 0, false, false, false, true, false, true, false, true, true},
        row{"privileged, execute-only for users", priv, 0, false, false, false, false, false, true,
            true, true, true},
        row{"never executed", data, 0, false, false, false, true, true, true, true, false, false},
        row{"APTable: no user", rw, no_user, false, false, false, false, false, true, true, true,
            true},
        row{"APTable: no write", rw, no_write, false, false, false, true, false, true, false, true,
            true},
        row{"XNTable", ro, no_user_execute, false, false, false, true, false, true, false, false,
            true},
        row{"PXNTable", ro, no_privileged_execute, false, false, false, true, false, true, false,
            true, false},
        row{"table attributes ignored with HAD", rw, no_user | no_write, false, false, true, true,
            true, true, true, true, false},
        row{"PAN: user pages are not for privileged data", rw, 0, true, false, false, true, true,
            false, false, true, false},
        row{"PAN spares privileged pages", priv, 0, true, false, false, false, false, true, true,
            true, true},
        row{"WXN", rw, 0, false, true, false, true, true, true, true, false, false},
        row{"WXN spares read-only pages", ro, 0, false, true, false, true, false, true, false, true,
            true});
    CAPTURE(r.what);
    machine m;
    m.start();
    const stream s = good_stream(m);
    spec::cd cd = m.plain_cd(s.root, 1);
    set<spec::cd::PAN>(cd, r.pan ? 1 : 0);
    set<spec::cd::WXN>(cd, r.wxn ? 1 : 0);
    set<spec::cd::HAD0>(cd, r.had ? 1 : 0);
    m.store(s.cd, cd);
    m.map(s.root, raw(mapped), s.target, 3, r.leaf);
    const std::uint64_t top = m.descriptor_slot(s.root, raw(mapped), 0);
    m.store64(top, m.load64(top) | r.table_bits);
    REQUIRE(m.iommu().attach_device("d", m.all_of_ram, stream_id{sid}));
    auto port = m.iommu().make_port("d").value();
    const auto may = [&](vm_accel::access kind, bool privileged, bool instruction) {
        auto guard = port.open();
        const outcome o = guard.translate(mapped, 4, kind, {privileged, instruction});
        if (o.is_fault()) CHECK(o.event() == spec::event_id::F_PERMISSION);
        return o.is_span();
    };
    for (int round = 0; round < 2; ++round) { // walked, then from the TLB
        CHECK(may(access::read, false, false) == r.ur);
        CHECK(may(access::write, false, false) == r.uw);
        CHECK(may(access::read, true, false) == r.pr);
        CHECK(may(access::write, true, false) == r.pw);
        CHECK(may(access::read, false, true) == r.ux);
        CHECK(may(access::read, true, true) == r.px);
    }
}
