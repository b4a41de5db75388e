// PCIe address translation services: requests, translated accesses, invalidations of a
// device's own cache.
#include "guest_driver.hpp"

#include <catch2/catch.hpp>

#include <array>
#include <cstdint>
#include <optional>
#include <set>
#include <thread>
#include <vector>

using namespace vm_accel;
namespace reg = vm_accel::spec::reg;

namespace {

using enum spec::event_id;

constexpr std::uint32_t sid = 0x10;
constexpr std::uint64_t page = guest::ram + 0x200000;
/// Stage 2 shows RAM at its own address, and a second time here.
constexpr std::uint64_t alias = 0x8000'0000;

constexpr std::uint32_t enabled = 0xd;
constexpr std::uint32_t checking = 0x1d; ///< with ATSCHK

struct everything : default_smmu_options {
    static constexpr smmu_features features = full_features;
};

/// A stream's STE.
struct stream {
    spec::ste_config config = spec::ste_config::s1_translate;
    std::uint64_t eats = 1;
    bool valid = true;
};
constexpr stream nested_split{spec::ste_config::s1_s2_translate, 2};
constexpr stream nested_full{spec::ste_config::s1_s2_translate, 1};

struct bench : guest::machine<set_associative<16, 2>, everything> {
    explicit bench(stream s = {}, std::uint32_t cr0 = enabled, bool records = false) {
        start();
        (void)iommu()
            .attach_device("gpu", all_of_ram, stream_id{sid}, attach_options{.ats = true})
            .value();
        configure(s);
        if (records) {
            write32(reg::CR0, 0xc);
            write32(reg::CR2, 0xa);
        }
        write32(reg::CR0, cr0);
    }
    void configure(stream s) {
        root = take_pages();
        cd_page = take_pages();
        store(cd_page, plain_cd(root, 1));
        spec::ste entry = plain_ste(s.config, cd_page);
        set<spec::ste::V>(entry, s.valid ? 1 : 0);
        set<spec::ste::EATS>(entry, s.eats);
        if (s.config == spec::ste_config::s1_s2_translate) {
            // 39 bits of intermediate address, from level 1.
            stage2_root = take_pages();
            store64(stage2_slot(guest::ram), guest::ram | 0x7fd);
            store64(stage2_slot(alias), guest::ram | 0x7fd);
            set<spec::ste::S2VMID>(entry, 7);
            set<spec::ste::S2T0SZ>(entry, 25);
            set<spec::ste::S2SL0>(entry, 1);
            set<spec::ste::S2PS>(entry, 4);
            set<spec::ste::S2AA64>(entry, 1);
            set<spec::ste::S2R>(entry, 1);
            set<spec::ste::S2TTB>(entry, stage2_root >> 4);
        }
        store(ste_address(sid), entry);
        command(spec::cmd_cfgi_ste(stream_id{sid}, true));
        sync();
    }
    std::uint64_t stage2_slot(std::uint64_t address) const {
        return stage2_root + (address >> 30) * 8;
    }
    auto port() { return iommu().make_port("gpu").value(); }
    /// The event that was recorded, if one was.
    std::optional<spec::event_id> told() {
        const auto record = event();
        if (!record) return std::nullopt;
        CHECK_FALSE(event());
        CHECK(get<spec::event_record::StreamID>(*record) == sid);
        return guest::id_of(*record);
    }
    void invalidate(std::uint64_t address, unsigned size, std::uint32_t stream = sid,
                    std::optional<std::uint32_t> pasid = {}, bool global = false) {
        using C = spec::CMD_ATC_INV;
        spec::command c = spec::make_command(spec::opcode::CMD_ATC_INV);
        set<C::StreamID>(c, stream);
        set<C::Size>(c, size);
        set<C::Address>(c, address >> 12);
        set<C::Global>(c, global ? 1 : 0);
        if (pasid) {
            set<spec::command::SSV>(c, 1);
            set<C::SubstreamID>(c, *pasid);
        }
        command(c);
    }
    std::uint64_t root = 0;
    std::uint64_t cd_page = 0;
    std::uint64_t stage2_root = 0;
};

constexpr access_attributes translated{.translated = true};

template <class Port>
outcome access_at(Port& port, std::uint64_t address, vm_accel::access kind = vm_accel::access::read,
                  std::uint64_t length = 4) {
    auto guard = port.open();
    return guard.translate(iova{address}, length, kind, translated);
}

} // namespace

TEST_CASE("what a translation request gets where ATS is off or broken", "[smmu][ats]") {
    using enum ats_status;
    using enum spec::ste_config;
    enum class spoil { nothing, table, cd, substream };
    struct row {
        stream configured;
        std::uint32_t cr0;
        spoil what;
        ats_status status;
        std::optional<spec::event_id> plain;    ///< recorded anyway
        std::optional<spec::event_id> with_rec; ///< with CR2.REC_CFG_ATS
    };
    const auto r = GENERATE(
        row{{}, 0xc, spoil::nothing, unsupported_request, F_BAD_ATS_TREQ, F_BAD_ATS_TREQ},
        row{{spec::ste_config::abort}, enabled, spoil::nothing, unsupported_request, {}, {}},
        row{{bypass}, enabled, spoil::nothing, unsupported_request, F_BAD_ATS_TREQ, F_BAD_ATS_TREQ},
        row{{s1_translate, 0},
            enabled,
            spoil::nothing,
            unsupported_request,
            F_BAD_ATS_TREQ,
            F_BAD_ATS_TREQ},
        row{{s1_translate, 3},
            enabled,
            spoil::nothing,
            unsupported_request,
            F_BAD_ATS_TREQ,
            F_BAD_ATS_TREQ},
        row{nested_split, enabled, spoil::nothing, unsupported_request, F_BAD_ATS_TREQ,
            F_BAD_ATS_TREQ}, // needs ATSCHK
        row{{s1_translate, 2}, checking, spoil::nothing, completer_abort, {}, C_BAD_STE},
        row{{s1_translate, 1, false}, enabled, spoil::nothing, completer_abort, {}, C_BAD_STE},
        row{{}, enabled, spoil::table, completer_abort, {}, C_BAD_STREAMID},
        row{{}, enabled, spoil::cd, completer_abort, {}, C_BAD_CD},
        row{{}, enabled, spoil::substream, completer_abort, {}, C_BAD_SUBSTREAMID});
    const bool records = GENERATE(false, true);
    CAPTURE(static_cast<int>(r.configured.config), r.configured.eats, r.cr0,
            static_cast<int>(r.what), records);
    bench m{r.configured, r.cr0, records};
    m.map(m.root, 0x5000, page);
    if (r.what == spoil::table) m.store64(guest::level1_table, 0);
    if (r.what == spoil::cd) m.store(m.cd_page, spec::cd{});
    auto port = m.port();
    ats_request asked{.address = iova{0x5123}};
    asked.has_substream = r.what == spoil::substream;
    const ats_completion answer = port.ats_translate(asked);
    CHECK(answer.status == r.status);
    CHECK(answer.allows_nothing());
    CHECK(m.told() == (records ? r.with_rec : r.plain));
}

TEST_CASE("what a translation request is granted", "[smmu][ats]") {
    struct row {
        guest::page_flags flags;
        int level;
        bool write;
        bool may_read, may_write;
    };
    const auto r = GENERATE(row{{}, 3, false, true, true}, row{{}, 3, true, true, true},
                            row{{.read_only = true}, 3, false, true, false},
                            row{{.read_only = true}, 3, true, true, false},
                            row{{.user = false}, 3, true, false, false},
                            row{{.access_flag = false}, 3, true, false, false}, // no HTTU here
                            row{{}, 2, true, true, true}, row{{}, 1, true, true, true},
                            row{{}, -1, true, false, false}); // not mapped
    const bool nested = GENERATE(false, true);
    CAPTURE(r.flags.user, r.flags.read_only, r.level, r.write, nested);
    bench m{nested ? nested_full : stream{}};
    const std::uint64_t output =
        (r.level == 1 ? guest::ram : page) + (nested ? alias - guest::ram : 0);
    if (r.level > 0) m.map(m.root, 0, output, r.level, r.flags);
    auto port = m.port();
    const ats_completion answer =
        port.ats_translate({.address = iova{0x123}, .write = r.write, .privileged = true});
    REQUIRE(answer.status == ats_status::success);
    CHECK(answer.read == r.may_read);
    CHECK(answer.write == r.may_write);
    CHECK_FALSE(answer.execute);
    CHECK_FALSE(answer.privileged); // that takes a PASID
    if (r.may_read) {
        // A gigabyte is cut down to the window of 16 MiB.
        CHECK(answer.size_log2 == (r.level == 1 ? 24 : r.level == 2 ? 21 : 12));
        CHECK(answer.address == (r.level == 1 ? guest::ram : page) + 0x123);
        CHECK(access_at(port, answer.address).host() == m.host(answer.address));
    }
    CHECK_FALSE(m.told());
    CHECK(m.iommu().stats().faults == 0);
}

TEST_CASE("with a PASID, execution and privilege count", "[smmu][ats]") {
    bench m;
    spec::ste entry = m.plain_ste(spec::ste_config::s1_translate, m.cd_page);
    set<spec::ste::EATS>(entry, 1);
    set<spec::ste::S1CDMax>(entry, 1);
    m.store(m.ste_address(sid), entry);
    m.store(m.cd_page + 64, m.plain_cd(m.root, 1));
    m.map(m.root, 0x5000, page, 3, {.user = false, .privileged_execute_never = false});
    m.map(m.root, 0x6000, page, 3, {.read_only = true, .user_execute_never = false});
    auto port = m.port();
    struct row {
        std::uint64_t at;
        bool execute, privileged;
        bool may_read, may_write, may_execute;
    };
    const auto r = GENERATE(
        row{0x5000, true, true, true, true, false}, // writable by users or not: WXN is off
        row{0x5000, true, false, false, false, false}, row{0x6000, true, false, true, false, true},
        row{0x6000, false, false, true, false, false}, row{0x6000, true, true, true, false, false});
    CAPTURE(r.at, r.execute, r.privileged);
    const ats_completion answer = port.ats_translate({.address = iova{r.at},
                                                      .write = true,
                                                      .execute = r.execute,
                                                      .privileged = r.privileged,
                                                      .has_substream = true,
                                                      .substream = substream_id{1}});
    REQUIRE(answer.status == ats_status::success);
    CHECK(answer.read == r.may_read);
    CHECK(answer.write == r.may_write);
    CHECK(answer.execute == (r.at == 0x5000 && r.privileged ? true : r.may_execute));
    CHECK(answer.privileged == r.privileged);
}

TEST_CASE("a request to write marks a clean page dirty, one to read does not", "[smmu][ats]") {
    bench m;
    spec::cd c = m.plain_cd(m.root, 1);
    set<spec::cd::HA>(c, 1);
    set<spec::cd::HD>(c, 1);
    m.store(m.cd_page, c);
    m.map(m.root, 0x5000, page, 3, {.read_only = true, .access_flag = false});
    const std::uint64_t slot = m.descriptor_slot(m.root, 0x5000);
    constexpr std::uint64_t dbm = 1ULL << 51;
    constexpr std::uint64_t read_only = 1ULL << 7;
    constexpr std::uint64_t accessed = 1ULL << 10;
    m.store64(slot, m.load64(slot) | dbm);
    auto port = m.port();
    const ats_completion first = port.ats_translate({.address = iova{0x5000}});
    CHECK(first.read);
    CHECK_FALSE(first.write);
    CHECK((m.load64(slot) & (read_only | accessed)) == (read_only | accessed));
    const ats_completion second = port.ats_translate({.address = iova{0x5000}, .write = true});
    CHECK(second.write);
    CHECK((m.load64(slot) & read_only) == 0);
    CHECK(port.ats_translate({.address = iova{0x5000}}).write); // dirty already
}

TEST_CASE("what lies outside the window is not granted", "[smmu][ats]") {
    bench m;
    m.map(m.root, 0x5000, guest::ram + guest::ram_bytes);
    m.map(m.root, 0x6000, guest::ram + guest::ram_bytes - 0x1000);
    auto port = m.port();
    CHECK(port.ats_translate({.address = iova{0x5000}}).allows_nothing());
    CHECK(port.ats_translate({.address = iova{0x6000}}).read);
    const std::uint64_t outside =
        GENERATE(guest::ram + guest::ram_bytes, guest::ram - 4, 0x0ULL, 1ULL << 52, ~0ULL - 0xfff);
    CAPTURE(outside);
    const outcome o = access_at(port, outside);
    CHECK(o.is_fault());
    CHECK(o.why() != silent_abort::none);
    CHECK_FALSE(m.told());
    // An access that leaves the window is cut at its edge.
    CHECK(access_at(port, guest::ram + guest::ram_bytes - 8, vm_accel::access::read, 64).length() ==
          8);
}

TEST_CASE("translated accesses: who may make them", "[smmu][ats]") {
    using enum spec::ste_config;
    struct row {
        stream configured;
        std::uint32_t cr0;
        bool passes;
        std::optional<spec::event_id> plain;
        std::optional<spec::event_id> with_rec;
    };
    const auto r =
        GENERATE(row{{}, enabled, true, {}, {}}, row{{}, checking, true, {}, {}},
                 row{{s1_translate, 0}, enabled, true, {}, {}},
                 row{{s1_translate, 0}, checking, false, F_TRANSL_FORBIDDEN, F_TRANSL_FORBIDDEN},
                 row{{bypass}, enabled, true, {}, {}},
                 row{{bypass}, checking, false, F_TRANSL_FORBIDDEN, F_TRANSL_FORBIDDEN},
                 row{{spec::ste_config::abort}, enabled, true, {}, {}},
                 row{{spec::ste_config::abort}, checking, false, {}, {}},
                 row{{s1_translate, 1, false}, enabled, true, {}, {}},
                 row{{s1_translate, 1, false}, checking, false, {}, C_BAD_STE},
                 row{nested_full, checking, true, {}, {}},
                 row{{}, 0x1c, false, F_TRANSL_FORBIDDEN, F_TRANSL_FORBIDDEN},
                 row{{}, 0xc, false, F_TRANSL_FORBIDDEN, F_TRANSL_FORBIDDEN});
    const bool records = GENERATE(false, true);
    CAPTURE(static_cast<int>(r.configured.config), r.configured.eats, r.cr0, records);
    bench m{r.configured, r.cr0, records};
    auto port = m.port();
    const outcome o = access_at(port, page + 0x10);
    CHECK(o.is_span() == r.passes);
    CHECK(o.is_fault() == !r.passes);
    if (r.passes) CHECK(o.host() == m.host(page + 0x10));
    CHECK(m.told() == (records ? r.with_rec : r.plain));
    CHECK(m.iommu().stats().faults == (r.passes ? 0 : 1));
    // The copying interface takes the same way.
    std::array<std::byte, 4> bytes{};
    CHECK(port.write(iova{page}, bytes, translated) == r.passes);
}

TEST_CASE("split stage: the device is told intermediate addresses, stage 2 stays", "[smmu][ats]") {
    bench m{nested_split, checking};
    m.map(m.root, 0x5000, alias + 0x200000);
    auto port = m.port();
    const ats_completion answer = port.ats_translate({.address = iova{0x5008}, .write = true});
    REQUIRE(answer.status == ats_status::success);
    CHECK(answer.address == alias + 0x200008);
    CHECK(answer.size_log2 == 12);
    CHECK((answer.read && answer.write));
    const outcome o = access_at(port, answer.address, vm_accel::access::write);
    REQUIRE(o.is_span());
    CHECK(o.host() == m.host(page + 8));

    SECTION("an intermediate address that stage 2 does not know") {
        REQUIRE(access_at(port, 0xc000'0000).is_fault());
        const auto record = m.event();
        REQUIRE(record);
        using R = spec::event_record;
        CHECK(guest::id_of(*record) == F_TRANSLATION);
        CHECK(get<R::S2>(*record) == 1);
        CHECK(get<R::STALL>(*record) == 0);
        CHECK(get<R::InputAddr>(*record) == 0xc000'0000);
        CHECK(get_address<R::IPA>(*record) == 0xc000'0000);
    }
    SECTION("what stage 2 takes away is not granted, and not accessible") {
        m.store64(m.stage2_slot(alias), guest::ram | 0x77d); // S2AP: read only
        const ats_completion less = port.ats_translate({.address = iova{0x5008}, .write = true});
        CHECK(less.read);
        CHECK_FALSE(less.write);
        CHECK(access_at(port, answer.address, vm_accel::access::write).event() == F_PERMISSION);
        CHECK(m.told() == F_PERMISSION);
    }
    SECTION("stage 2 cannot lead out of the window") {
        m.store64(m.stage2_slot(alias), 0x1'0000'0000 | 0x7fd);
        CHECK(access_at(port, answer.address).why() == silent_abort::outside_window);
        CHECK_FALSE(m.told());
    }
}

TEST_CASE("a device attached without ATS cannot use it", "[smmu][ats]") {
    bench m;
    (void)m.iommu().attach_device("disk", m.all_of_ram, stream_id{0x20}).value();
    auto disk = m.iommu().make_port("disk").value();
    CHECK(disk.ats_translate({}).status == ats_status::unsupported_request);
    CHECK_FALSE(disk.next_invalidation());
    m.invalidate(0x5000, 0, 0x20);
    m.invalidate(0x5000, 0, 0x99);
    m.sync();
    CHECK(m.commands_done());
}

TEST_CASE("CMD_ATC_INV says what to forget", "[smmu][ats]") {
    struct row {
        std::uint64_t address;
        unsigned size;
        std::uint64_t first, last;
    };
    const auto r =
        GENERATE(row{0x5000, 0, 0x5000, 0x5fff}, row{0x7000, 1, 0x6000, 0x7fff},
                 row{0x12'3456'7000, 9, 0x12'3440'0000, 0x12'345f'ffff}, row{0x5000, 52, 0, ~0ULL});
    const std::optional<std::uint32_t> pasid =
        GENERATE(std::optional<std::uint32_t>{}, std::optional<std::uint32_t>{9});
    const bool global = GENERATE(false, true);
    CAPTURE(r.address, r.size, global);
    bench m;
    auto port = m.port();
    const std::uint32_t seen = port.news();
    m.invalidate(r.address, r.size, sid, pasid, global);
    CHECK(port.news() == seen + 1);
    const auto asked = port.next_invalidation();
    REQUIRE(asked);
    CHECK(asked->first == r.first);
    CHECK(asked->last == r.last);
    CHECK(asked->has_substream == pasid.has_value());
    CHECK(raw(asked->substream) == pasid.value_or(0));
    CHECK(asked->global == (global && pasid.has_value()));
    CHECK_FALSE(port.next_invalidation());
}

TEST_CASE("CMD_SYNC waits for the device's cache", "[smmu][ats]") {
    bench m;
    auto port = m.port();
    auto other = m.port();
    m.invalidate(0x5000, 0);
    m.invalidate(0x6000, 0);
    CHECK(m.commands_done()); // consumed, not complete
    m.sync();
    CHECK_FALSE(m.commands_done());
    CHECK(m.iommu().sync_pending());
    const auto first = port.next_invalidation();
    const auto second = other.next_invalidation(); // any port of the device
    REQUIRE((first && second));
    CHECK((first->first == 0x5000 && second->first == 0x6000));
    port.invalidated(second->token);
    port.invalidated(second->token); // said twice: no more than once
    port.invalidated(12345);
    port.invalidated(first->token + 32); // another use of the same place
    CHECK_FALSE(m.commands_done());

    SECTION("until it has said so") {
        other.invalidated(first->token);
        CHECK_FALSE(m.iommu().sync_pending()); // without the driver looking
        CHECK(m.commands_done());
    }
    SECTION("and until the guard that says so has closed") {
        {
            const auto guard = port.open();
            port.invalidated(first->token);
            CHECK(m.iommu().sync_pending());
        }
        CHECK_FALSE(m.iommu().sync_pending());
        CHECK(m.commands_done());
    }
    SECTION("or until it fails: CERROR_ATC_INV_SYNC, and the SYNC starts over") {
        port.invalidation_failed(first->token);
        CHECK_FALSE(m.commands_done());
        CHECK(m.read32(reg::GERROR) == 1);
        CHECK((m.cons() >> 24) == spec::CERROR_ATC_INV_SYNC);
        m.write32(reg::GERRORN, 1);
        CHECK(m.commands_done());
    }
    SECTION("or until the device is detached") {
        REQUIRE(m.iommu().detach_device("gpu"));
        CHECK_FALSE(m.iommu().sync_pending()); // without the driver looking
        CHECK(m.commands_done());
        port.invalidated(first->token);
    }
    SECTION("or until a reset") {
        REQUIRE(m.iommu().reset());
        CHECK_FALSE(m.iommu().sync_pending());
        m.restart_ring();
        m.start();
        m.sync();
        CHECK(m.commands_done());
        port.invalidated(first->token); // nobody waits for it
    }
    SECTION("a SYNC without an invalidation before it does not wait") {
        other.invalidated(first->token);
        m.command(spec::tlbi_nsnh_all());
        m.sync();
        CHECK(m.commands_done());
    }
}

TEST_CASE("invalidations beyond the bound become one of everything", "[smmu][ats]") {
    bench m;
    auto port = m.port();
    constexpr unsigned sent = 40;
    constexpr unsigned kept = 32;
    for (unsigned i = 0; i < sent; ++i)
        m.invalidate(0x1000ULL * i, 0);
    m.sync();
    std::set<std::uint32_t> tokens;
    for (unsigned i = 0; i < kept; ++i) {
        const auto asked = port.next_invalidation();
        REQUIRE(asked);
        CHECK(asked->first == 0x1000ULL * i);
        tokens.insert(asked->token);
    }
    CHECK(tokens.size() == kept);
    CHECK_FALSE(port.next_invalidation());
    for (const std::uint32_t token : tokens)
        port.invalidated(token);
    CHECK_FALSE(m.commands_done());
    const auto all = port.next_invalidation();
    REQUIRE(all);
    CHECK((all->first == 0 && all->last == ~0ULL && all->global));
    CHECK(tokens.count(all->token) == 0);
    port.invalidated(all->token);
    CHECK(m.commands_done());
    CHECK_FALSE(port.next_invalidation());
}

TEST_CASE("CMD_ATC_INV is ignored while SMMUEN = 0", "[smmu][ats]") {
    bench m;
    auto port = m.port();
    m.write32(reg::CR0, 0xc);
    m.invalidate(0x5000, 0);
    m.sync();
    CHECK(m.commands_done());
    CHECK_FALSE(port.next_invalidation());
}

TEST_CASE("who waits for news can be told to stop", "[smmu][ats]") {
    bench m;
    auto port = m.port();
    auto other = m.port();
    const std::uint32_t seen = port.news();
    std::thread waiting{[&] { port.wait_for_news(seen); }};
    other.wake();
    waiting.join();
    CHECK(port.news() == seen + 1);
    CHECK_FALSE(port.next_invalidation());
}

TEST_CASE("a saved mailbox owes everything only if no place in it is free", "[smmu][ats]") {
    using mailbox = basic_ats_endpoint<2, 1>;
    struct row {
        unsigned sent, acknowledged;
        std::uint64_t owed; ///< as the state says
        bool sound;
    };
    const auto r =
        GENERATE(row{0, 0, 0, true}, row{0, 0, 1, false}, row{1, 0, 1, false}, row{2, 0, 0, true},
                 row{2, 0, 1, true}, row{2, 1, 1, false}, row{3, 0, 1, true}, row{2, 2, 1, false});
    CAPTURE(r.sent, r.acknowledged, r.owed);
    constexpr std::size_t outstanding_word = saved_state::header_words + 2 * 8;
    constexpr std::size_t owed_word = outstanding_word + 2;
    mailbox from;
    for (unsigned i = 0; i < r.sent; ++i)
        from.invalidate({.first = 0x1000 * i, .last = 0x1000 * i + 0xfff});
    for (unsigned i = 0; i < r.acknowledged; ++i)
        CHECK(from.acknowledge(from.next_invalidation()->token, true));
    state_writer sizes{{}};
    from.visit_state(sizes);
    std::vector<std::byte> state(sizes.bytes());
    state_writer writer{state};
    from.visit_state(writer);
    const std::uint64_t outstanding = saved_state::word_at(state, outstanding_word);
    REQUIRE(outstanding == (r.sent < 2 ? r.sent : 2) - r.acknowledged);
    REQUIRE(saved_state::word_at(state, owed_word) == (r.sent > 2 ? 1 : 0));
    saved_state::put_word(state, owed_word, r.owed);

    mailbox into;
    state_reader check{state, state_reader::purpose::check};
    into.visit_state(check);
    CHECK(check.finish().has_value() == r.sound);
    CHECK_FALSE(into.owes()); // checking changes nothing
    if (!r.sound) return;
    state_reader load{state, state_reader::purpose::load};
    into.visit_state(load);
    REQUIRE(load.finish());
    CHECK(into.owes() == (outstanding + r.owed != 0));
    unsigned answered = 0;
    while (const auto asked = into.next_invalidation()) {
        CHECK(into.acknowledge(asked->token, true));
        ++answered;
    }
    CHECK(answered == outstanding + r.owed);
    CHECK_FALSE(into.owes());
}
