// Address translation operations: every kind of request, every kind of answer,
// on streams of one stage and of both.
#include "guest_driver.hpp"
#include "table_builder.hpp"

#include <vm_accel/smmu/translation/address_translation.hpp>

#include <catch2/catch.hpp>

#include <cstdint>
#include <optional>

using namespace vm_accel;
using tables::u64;
using request = address_translation_request;
namespace reg = vm_accel::spec::reg;

namespace {

constexpr smmu_features F = full_features;
constexpr u64 write_request = 0;
constexpr u64 read_request = spec::GATOS_ADDR::RnW::mask;
constexpr u64 passive = spec::GATOS_ADDR::HTTUI::mask;
constexpr u64 of_stage1 = 1, of_stage2 = 2, of_both = 3;

struct par {
    u64 word = 0;
    bool failed() const { return (word & 1) != 0; }
    unsigned code() const { return word >> 4 & 0xff; }
    unsigned reason() const { return word >> 1 & 3; }
    u64 faulting() const { return word & 0x00ff'ffff'ffff'f000; }
    unsigned size_log2() const {
        if ((word >> 11 & 1) == 0) return 12;
        unsigned n = 12;
        while ((word >> n & 1) == 0)
            ++n;
        return n + 1;
    }
    u64 output() const {
        const unsigned n = size_log2();
        return (word & 0x00ff'ffff'ffff'f000) >> n << n;
    }
    unsigned attributes() const { return static_cast<unsigned>(word >> 56); }
    unsigned shareability() const { return word >> 8 & 3; }
};

/// A stream table with one stream of each kind. Stage 2 adds `apart` to addresses.
struct bench {
    static constexpr u64 streams = 0x10'0000;
    static constexpr u64 contexts = 0x20'0000;
    static constexpr u64 apart = 0x1'0000'0000;
    static constexpr std::uint32_t only1 = 1, only2 = 2, nested = 3, bypassed = 4, aborted = 5,
                                   bad = 6, many = 7;

    bench() {
        registers.enabled = true;
        registers.base = streams;
        registers.shape = 4; // 16 StreamIDs, linear
        plain.map(0x1000, tables::leaf({}, 0x5000'0000, 3), 3);
        plain.map(0x20'0000, tables::leaf({}, 0x6000'0000, 2), 2);
        inner.map(0x1000, tables::leaf({}, 0x7000'0000, 3), 3);
        for (u64 page = 0; page < 0x80; ++page) // what stage 1's tables need, and its outputs
            map2(0x20'0000 * page, 2);
        map2(0x7000'0000, 3);
        cd(contexts, plain.root);
        cd(contexts + apart + 0x1'0000, inner.root);
        cd(contexts + 0x2'0000, plain.root);        // substream 0
        cd(contexts + 0x2'0000 + 0x40, plain.root); // substream 1
        ste(only1, 5, contexts, false);
        ste(only2, 6, 0, true);
        ste(nested, 7, contexts + 0x1'0000, true);
        ste(bypassed, 4, 0, false);
        ste(aborted, 0, 0, false);
        ste(bad, 5, contexts, false, [](spec::ste& e) { set<spec::ste::V>(e, 0); });
        ste(many, 5, contexts + 0x2'0000, false,
            [](spec::ste& e) { set<spec::ste::S1CDMax>(e, 1); });
    }
    void map2(u64 ipa, int level, u64 more = tables::AF | 3U << 6 | 0b1111U << 2) {
        outer.map(ipa, tables::leaf({}, ipa + apart, level, more), level);
    }
    template <class Structure>
    void put(u64 at, const Structure& s) {
        for (std::size_t i = 0; i < s.word.size(); ++i)
            memory.words[at + 8 * i] = s.word[i].value();
    }
    void cd(u64 at, u64 root, unsigned attributes = 0xff) {
        spec::cd c = guest::machine<>::plain_cd(root, 1);
        set<spec::cd::HA>(c, 1);
        set<spec::cd::HD>(c, 1);
        c.word[3] = le64{attributes};
        put(at, c);
    }
    template <class More = void (*)(spec::ste&)>
    void
    ste(std::uint32_t sid, u64 config, u64 context, bool stage2, More more = [](spec::ste&) {}) {
        using E = spec::ste;
        E e = guest::machine<>::plain_ste(spec::ste_config{}, context);
        set<E::Config>(e, config);
        if (stage2) {
            set<E::S2T0SZ>(e, 24);
            set<E::S2SL0>(e, 1); // level 1
            set<E::S2PS>(e, 5);
            set<E::S2AA64>(e, 1);
            set<E::S2HA>(e, 1);
            set<E::S2HD>(e, 1);
            set<E::S2TTB>(e, outer.root >> E::S2TTB::low);
        }
        more(e);
        put(streams + sid * sizeof e, e);
    }
    par run(u64 stage, u64 address, u64 flags, std::uint32_t sid,
            std::optional<std::uint32_t> substream = {}) {
        const u64 who = sid | (substream ? spec::GATOS_SID::SUBSTREAMID::in_place(*substream) |
                                               spec::GATOS_SID::SSID_VALID::mask
                                         : 0);
        const auto asked =
            request::from(who, address | flags | spec::GATOS_ADDR::TYPE::in_place(stage));
        watched view{*this, !asked.updates_inhibited};
        return {address_translation<F, watched, watched>{view, view, registers}.run(asked)};
    }

    /// What guest_tables does for a request that must not write.
    struct watched {
        bench& owner;
        bool updates;
        std::optional<u64> load(u64 at) noexcept { return owner.memory.load(at); }
        std::optional<u64> compare_exchange(u64 at, u64 expected, u64 desired) noexcept {
            if (!updates) return expected;
            return owner.memory.compare_exchange(at, expected, desired);
        }
    };

    tables::sparse_memory memory;
    stream_table_registers registers;
    tables::tree plain{memory, {}, 48, 0, 0x100'0000, 0x101'0000};
    tables::tree inner{memory, {}, 48, 0, 0x200'0000, 0x201'0000, apart};
    tables::tree outer{memory, {}, 40, 1, 0x4000'0000, 0x4100'0000};
};

unsigned number(spec::event_id event) { return static_cast<unsigned>(event); }

} // namespace

TEST_CASE("each kind of request on each kind of stream", "[smmu][atos]") {
    bench b;
    struct row {
        const char* name;
        std::uint32_t sid;
        u64 stage;
        u64 address;
        u64 output; ///< of a success
        unsigned size_log2;
        unsigned code; ///< of a failure
    };
    const unsigned inv_req = atos_fault::INV_REQ;
    const unsigned inv_stage = atos_fault::INV_STAGE;
    const row rows[] = {
        {"VA to PA, stage 1 only", bench::only1, of_stage1, 0x1000, 0x5000'0000, 12, 0},
        {"a block", bench::only1, of_stage1, 0x20'3000, 0x6000'0000, 21, 0},
        {"VA to IPA of a nested stream", bench::nested, of_stage1, 0x1000, 0x7000'0000, 12, 0},
        {"VA to PA of a nested stream", bench::nested, of_both, 0x1000, 0x1'7000'0000, 12, 0},
        {"IPA to PA, nested", bench::nested, of_stage2, 0x7000'0000, 0x1'7000'0000, 12, 0},
        {"IPA to PA, stage 2 only", bench::only2, of_stage2, 0x20'1000, 0x1'0020'0000, 21, 0},
        {"no kind", bench::only1, 0, 0x1000, 0, 0, inv_req},
        {"stage 2 of a stage-1 stream", bench::only1, of_stage2, 0x1000, 0, 0, inv_stage},
        {"both of a stage-1 stream", bench::only1, of_both, 0x1000, 0, 0, inv_stage},
        {"both of a stage-2 stream", bench::only2, of_both, 0x1000, 0, 0, inv_stage},
        {"stage 1 of a stage-2 stream", bench::only2, of_stage1, 0x1000, 0, 0, inv_stage},
        {"bypassed", bench::bypassed, of_stage1, 0x1000, 0, 0, inv_stage},
        {"aborted", bench::aborted, of_stage1, 0x1000, 0, 0, inv_stage},
        {"illegal STE", bench::bad, of_stage1, 0x1000, 0, 0, 0x04},
        {"no such stream", 16, of_stage1, 0x1000, 0, 0, 0x02},
        {"not mapped", bench::only1, of_stage1, 0x3000, 0, 0, 0x10},
        {"beyond the input size", bench::only1, of_stage1, u64{1} << 48, 0, 0, 0x10},
    };
    for (const row& r : rows) {
        INFO(r.name);
        const par p = b.run(r.stage, r.address, read_request, r.sid);
        INFO(std::hex << p.word);
        CHECK(p.failed() == (r.code != 0));
        if (r.code != 0) {
            CHECK(p.code() == r.code);
            CHECK(p.reason() == 0);
            CHECK(p.faulting() == 0);
        } else {
            CHECK(p.output() == r.output);
            CHECK(p.size_log2() == r.size_log2);
        }
    }
}

TEST_CASE("SubstreamIDs select CDs, and the lack of one", "[smmu][atos]") {
    bench b;
    CHECK_FALSE(b.run(of_stage1, 0x1000, read_request, bench::many, 1).failed());
    CHECK(b.run(of_stage1, 0x1000, read_request, bench::many, 2).code() == 0x08);
    CHECK(b.run(of_stage1, 0x1000, read_request, bench::many).code() == 0x06);
    CHECK(b.run(of_stage1, 0x1000, read_request, bench::only1, 0).code() == 0x08);
    // Stage 2 alone knows no SubstreamIDs.
    CHECK(b.run(of_stage2, 0x1000, read_request, bench::nested, 0).code() == atos_fault::INV_REQ);
    // S1DSS = 0b01: without one, stage 1 passes the address on.
    b.ste(bench::many, 5, bench::contexts + 0x2'0000, false, [](spec::ste& e) {
        set<spec::ste::S1CDMax>(e, 1);
        set<spec::ste::S1DSS>(e, 1);
    });
    const par p = b.run(of_stage1, 0x9999'9000, read_request, bench::many);
    CHECK_FALSE(p.failed());
    CHECK(p.output() == 0x9999'9000);
    CHECK(b.run(of_stage1, u64{1} << 52, read_request, bench::many).code() == 0x11);
    b.ste(bench::many, 5, bench::contexts + 0x2'0000, false, [](spec::ste& e) {
        set<spec::ste::S1CDMax>(e, 1);
        set<spec::ste::S1DSS>(e, 2);
    });
    CHECK_FALSE(b.run(of_stage1, 0x1000, read_request, bench::many).failed());
    CHECK(b.run(of_stage1, 0x1000, read_request, bench::many, 0).code() == 0x06);
}

TEST_CASE("fetches that fail, and CDs that are illegal", "[smmu][atos]") {
    bench b;
    b.memory.hole = bench::streams;
    CHECK(b.run(of_stage1, 0x1000, read_request, bench::only1).code() == 0x03);
    b.memory.hole = bench::contexts;
    CHECK(b.run(of_stage1, 0x1000, read_request, bench::only1).code() == 0x09);
    b.memory.hole = b.plain.root;
    CHECK(b.run(of_stage1, 0x1000, read_request, bench::only1).code() == 0x0b);
    b.memory.hole = ~u64{0};
    b.put(bench::contexts, spec::cd{});
    CHECK(b.run(of_stage1, 0x1000, read_request, bench::only1).code() == 0x0a);
    b.registers.enabled = false;
    CHECK(b.run(of_stage1, 0x1000, read_request, bench::only1).code() == atos_fault::INTERNAL_ERR);
}

TEST_CASE("what stage 2 refuses, by who asked for it", "[smmu][atos]") {
    using enum spec::event_id;
    enum class what { cd, table, output };
    struct row {
        what where;
        u64 stage;
        unsigned code;
        unsigned reason;
        bool addressed;
    };
    const unsigned fault = number(F_TRANSLATION);
    const row rows[] = {
        {what::cd, of_both, fault, 1, true},      {what::table, of_both, fault, 2, true},
        {what::output, of_both, fault, 3, true},  {what::cd, of_stage1, 0x09, 0, false},
        {what::table, of_stage1, 0x0b, 0, false}, {what::output, of_stage2, fault, 3, false},
    };
    for (const row& r : rows) {
        INFO(static_cast<int>(r.where) << " " << r.stage);
        bench b;
        const u64 ipa = r.where == what::cd      ? bench::contexts + 0x1'0000
                        : r.where == what::table ? b.inner.root
                                                 : 0x7000'0000;
        b.outer.map(ipa, 0, r.where == what::output ? 3 : 2);
        const u64 address = r.stage == of_stage2 ? ipa : 0x1000;
        const par p = b.run(r.stage, address, read_request, bench::nested);
        CHECK(p.failed());
        CHECK(p.code() == r.code);
        CHECK(p.reason() == r.reason);
        CHECK(p.faulting() == (r.addressed ? ipa : 0));
    }
    // An output that stage 2 would refuse does not matter to a stage-1 request.
    bench b;
    b.outer.map(0x7000'0000, 0, 3);
    CHECK_FALSE(b.run(of_stage1, 0x1000, read_request, bench::nested).failed());
    // Stage 2's own tables: the class, and no address.
    b.memory.hole = b.outer.root;
    const par p = b.run(of_both, 0x1000, read_request, bench::nested);
    CHECK(p.code() == number(F_WALK_EABT));
    CHECK(p.reason() == 1);
    CHECK(p.faulting() == 0);
    CHECK(b.run(of_stage1, 0x1000, read_request, bench::nested).code() == 0x09);
    CHECK(b.run(of_stage2, u64{1} << 52, read_request, bench::nested).reason() == 0);
}

TEST_CASE("permissions are those of the request", "[smmu][atos]") {
    bench b;
    using A = spec::GATOS_ADDR;
    b.plain.map(0x4000, tables::leaf({}, 0x5000'4000, 3, tables::AF | tables::AP2), 3);
    const u64 privileged = A::PnU::mask;
    CHECK(b.run(of_stage1, 0x4000, read_request, bench::only1).code() == 0x13);
    CHECK_FALSE(b.run(of_stage1, 0x4000, read_request | privileged, bench::only1).failed());
    CHECK(b.run(of_stage1, 0x4000, write_request | privileged, bench::only1).code() == 0x13);
    CHECK_FALSE(
        b.run(of_stage1, 0x4000, read_request | privileged | A::InD::mask, bench::only1).failed());
    b.plain.map(0x4000, tables::leaf({}, 0x5000'4000, 3, tables::AF | tables::PXN), 3);
    CHECK(b.run(of_stage1, 0x4000, read_request | privileged | A::InD::mask, bench::only1).code() ==
          0x13);
    // A write is of data, whatever InD says; and STE overrides do not count.
    CHECK_FALSE(
        b.run(of_stage1, 0x4000, write_request | privileged | A::InD::mask, bench::only1).failed());
    b.ste(bench::only1, 5, bench::contexts, false,
          [](spec::ste& e) { set<spec::ste::PRIVCFG>(e, 2); });
    CHECK_FALSE(b.run(of_stage1, 0x4000, read_request | privileged, bench::only1).failed());
}

TEST_CASE("flags are updated unless that is inhibited", "[smmu][atos]") {
    bench b;
    using namespace tables;
    const u64 clean = AP1 | AP2 | DBM; // writable-clean, not accessed
    const u64 at = b.plain.map(0x4000, leaf({}, 0x5000'4000, 3, clean), 3);
    const u64 before = b.memory.words[at];
    CHECK_FALSE(b.run(of_stage1, 0x4000, write_request | passive, bench::only1).failed());
    CHECK(b.memory.words[at] == before);
    CHECK_FALSE(b.run(of_stage1, 0x4000, read_request, bench::only1).failed());
    CHECK(b.memory.words[at] == (before | AF));
    CHECK_FALSE(b.run(of_stage1, 0x4000, write_request, bench::only1).failed());
    CHECK(b.memory.words[at] == ((before | AF) & ~AP2));
}

TEST_CASE("attributes are the tables', Device is outer shareable", "[smmu][atos]") {
    bench b;
    using namespace tables;
    b.plain.map(0x4000, leaf({}, 0x5000'4000, 3, AF | AP1 | 3U << 8), 3);
    const par p = b.run(of_stage1, 0x4000, read_request, bench::only1);
    CHECK(p.attributes() == 0xff);
    CHECK(p.shareability() == 3);
    b.cd(bench::contexts, b.plain.root, 0x04);
    const par device = b.run(of_stage1, 0x4000, read_request, bench::only1);
    CHECK(device.attributes() == 0x04);
    CHECK(device.shareability() == 2);
    b.map2(0x7000'0000, 3, AF | 3U << 6 | 0b0101U << 2 | 0U << 8); // Normal non-cacheable
    CHECK(b.run(of_stage2, 0x7000'0000, read_request, bench::nested).attributes() == 0x44);
    CHECK(b.run(of_both, 0x1000, read_request, bench::nested).attributes() == 0x44);
    CHECK(b.run(of_stage1, 0x1000, read_request, bench::nested).attributes() == 0xff);
}

namespace {

constexpr smmu_features asking_features = [] {
    smmu_features f = stage1_features;
    f.atos = true;
    return f;
}();
struct asking_options : default_smmu_options {
    static constexpr smmu_features features = asking_features;
};

} // namespace

TEST_CASE("through the registers, as software asks", "[smmu][atos]") {
    guest::machine<set_associative<16, 2>, asking_options> m;
    CHECK(spec::IDR0::ATOS::of(m.read32(reg::IDR0)) == 1);
    m.write64(reg::GATOS_SID, 0x10);
    m.write64(reg::GATOS_ADDR, 0x1000 | read_request | spec::GATOS_ADDR::TYPE::in_place(1));
    m.write32(reg::GATOS_CTRL, 1);
    CHECK(m.iommu().mmio_read(reg::GATOS_PAR, 8) == 0); // SMMUEN is 0: ignored
    m.start();
    const std::uint64_t root = m.stage1_stream(0x10, 1);
    m.map(root, 0x1000, guest::ram + 0x40'0000);
    // No device needs to be there.
    m.write32(reg::GATOS_CTRL, 1);
    CHECK(m.read32(reg::GATOS_CTRL) == 0);
    const par good{m.iommu().mmio_read(reg::GATOS_PAR, 8)};
    CHECK_FALSE(good.failed());
    CHECK(good.output() == guest::ram + 0x40'0000);
    // What is there now counts, not what has been cached or invalidated.
    m.unmap(root, 0x1000);
    m.write32(reg::GATOS_CTRL, 1);
    const par gone{m.iommu().mmio_read(reg::GATOS_PAR, 8)};
    CHECK(gone.failed());
    CHECK(gone.code() == number(spec::event_id::F_TRANSLATION));
    CHECK_FALSE(m.event());
    CHECK(m.iommu().stats().translations == 0);
}
