// Strict mode: a row for each mistake that a driver can make and hardware lets
// pass, and a driver that makes none.
#include "guest_driver.hpp"

#include <vm_accel/smmu/vocabulary/lint.hpp>

#include <catch2/catch.hpp>

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

using namespace vm_accel;
namespace reg = vm_accel::spec::reg;

namespace {

constexpr std::uint32_t sid = 0x10;
constexpr std::uint64_t here = guest::ram + 0x80'0000;
constexpr std::uint64_t there = guest::ram + 0x90'0000;

struct strict_options : default_smmu_options {
    using lint = guest_lint<16>;
};

template <class Tlb>
struct bench : guest::machine<Tlb, strict_options> {
    using base = guest::machine<Tlb, strict_options>;
    bench() {
        this->start();
        (void)this->iommu().attach_device("disk", base::all_of_ram, stream_id{sid}).value();
        root = this->stage1_stream(sid, 1);
        this->map(root, 0x1000, here);
        this->map(root, 0x2000, here + 0x1000);
    }
    bool touch(std::uint64_t address = 0x1000) {
        auto port = this->iommu().make_port("disk").value();
        std::array<std::byte, 4> bytes{};
        return port.read(iova{address}, bytes);
    }
    std::vector<lint_finding> findings() {
        std::vector<lint_finding> all;
        while (const auto f = this->iommu().lint().take())
            all.push_back(*f);
        return all;
    }
    std::string texts() {
        std::string all;
        for (const lint_finding& f : findings())
            all += std::string{f.text().view()} + "\n";
        return all;
    }
    std::uint64_t root = 0;
};
using cached = bench<set_associative<64, 4>>;
using uncached = bench<no_tlb>;

struct mistake {
    const char* name;
    lint_rule rule;
    std::uint64_t where;
    std::uint64_t what;
    std::uint64_t instead;
    std::function<void(cached&)> make;
};

void off(cached& m) { m.write32(reg::CR0, 0); }

} // namespace

TEST_CASE("mistakes with registers", "[smmu][lint]") {
    const std::vector<mistake> all{
        {"nothing there", lint_rule::unknown_register, 0x3c, 4, 0,
         [](cached& m) { (void)m.read32(0x3c); }},
        {"a secure register", lint_rule::unknown_register, 0x8020, 4, 0,
         [](cached& m) { m.write32(0x8020, 1); }},
        {"a 64-bit access to a 32-bit register", lint_rule::ill_formed_access, reg::CR0, 8, 4,
         [](cached& m) { m.write64(reg::CR0, 0xd); }},
        {"two bytes", lint_rule::ill_formed_access, reg::CR0, 2, 4,
         [](cached& m) { (void)m.iommu().mmio_read(reg::CR0, 2); }},
        {"an ID register is written", lint_rule::read_only_register, reg::IDR1, 5, 0x0273'0010,
         [](cached& m) { m.write32(reg::IDR1, 5); }},
        {"the stream table moves while in use", lint_rule::locked_register, reg::STRTAB_BASE,
         0x5000'0000, guest::level1_table | spec::STRTAB_BASE::RA::mask,
         [](cached& m) { m.write64(reg::STRTAB_BASE, 0x5000'0000); }},
        {"CONS is written while the queue runs", lint_rule::locked_register, reg::CMDQ_CONS, 0, 5,
         [](cached& m) { m.write32(reg::CMDQ_CONS, 0); }},
        {"an interrupt is changed while enabled", lint_rule::locked_register, reg::EVENTQ_IRQ_CFG1,
         7, 0, [](cached& m) { m.write32(reg::EVENTQ_IRQ_CFG1, 7); }},
        {"a level-1 table that is not aligned", lint_rule::unaligned_table, reg::STRTAB_BASE,
         guest::level1_table + 0x40, guest::level1_table,
         [](cached& m) {
             off(m);
             m.write64(reg::STRTAB_BASE, guest::level1_table + 0x40);
             m.write32(reg::CR0, 1);
         }},
        {"a stream table for more than there are", lint_rule::oversized_table, reg::STRTAB_BASE_CFG,
         17, 16,
         [](cached& m) {
             off(m);
             m.write32(reg::STRTAB_BASE_CFG, 0x1'0211);
             m.write32(reg::CR0, 1);
         }},
        {"a reserved split", lint_rule::reserved_shape, reg::STRTAB_BASE_CFG, 0x1'01d0, 0,
         [](cached& m) {
             off(m);
             m.write32(reg::STRTAB_BASE_CFG, 0x1'01d0);
             m.write32(reg::CR0, 1);
         }},
        {"a command queue that is not aligned", lint_rule::unaligned_queue, reg::CMDQ_BASE,
         guest::command_ring + 0x20, guest::command_ring,
         [](cached& m) {
             off(m);
             m.write64(reg::CMDQ_BASE, (guest::command_ring + 0x20) | 8);
             m.write32(reg::CR0, 8);
         }},
        {"an event queue that is too large", lint_rule::oversized_queue, reg::EVENTQ_BASE, 20, 19,
         [](cached& m) {
             off(m);
             m.write64(reg::EVENTQ_BASE, 20);
             m.write32(reg::CR0, 4);
         }},
        {"PROD moves past the queue", lint_rule::index_beyond_queue, reg::CMDQ_PROD, 0x106, 0x100,
         [](cached& m) {
             for (std::uint64_t i = 0; i < 256; ++i) // stop at the first of them
                 m.store64(guest::command_ring + i * 16, 0xff);
             m.write32(reg::CMDQ_PROD, 5);
             m.write32(reg::CMDQ_PROD, 0x106);
         }},
        {"event CONS moves past PROD", lint_rule::index_beyond_queue, reg::EVENTQ_CONS, 1, 8,
         [](cached& m) { m.write32(reg::EVENTQ_CONS, 1); }},
        {"switched off before its CMD_SYNC", lint_rule::sync_missing, reg::CR0, 0, 0xd,
         [](cached& m) {
             m.command(spec::tlbi_nsnh_all());
             off(m);
         }},
    };
    for (const mistake& row : all) {
        INFO(row.name);
        cached m;
        REQUIRE(m.texts().empty());
        row.make(m);
        const auto found = m.findings();
        REQUIRE(found.size() == 1);
        INFO(found[0].text().view());
        CHECK(found[0].rule == row.rule);
        CHECK(found[0].where == row.where);
        CHECK(found[0].what == row.what);
        CHECK(found[0].instead == row.instead);
        CHECK_FALSE(found[0].stream);
    }
}

TEST_CASE("a configuration that changes without a CFGI", "[smmu][lint]") {
    struct row {
        const char* name;
        std::function<void(cached&)> change;
    };
    const std::vector<row> rows{
        {"the STE", [](cached& m) { m.store64(m.ste_address(sid), 1 | 4 << 1); }},
        {"its validity", [](cached& m) { m.store64(m.ste_address(sid), 0); }},
        {"the CD",
         [](cached& m) {
             const std::uint64_t cd = m.load64(m.ste_address(sid)) & spec::ste::S1ContextPtr::mask;
             m.store(cd, cached::plain_cd(m.root, 2));
         }},
    };
    for (const row& r : rows) {
        INFO(r.name);
        cached m;
        REQUIRE(m.touch());
        r.change(m);
        (void)m.touch(); // the old configuration: not a matter of TLBIs
        // The driver may be about to send the CFGI: nothing to say yet.
        m.sync();
        CHECK(m.texts().empty());
        m.sync();
        const auto found = m.findings();
        REQUIRE(found.size() == 1);
        CHECK(found[0].rule == lint_rule::configuration_changed);
        CHECK(found[0].stream == stream_id{sid});
    }
    for (const row& r : rows) {
        INFO(r.name << ", with its CFGI");
        cached m;
        REQUIRE(m.touch());
        r.change(m);
        m.sync();
        m.command(spec::cmd_cfgi_ste(stream_id{sid}, true));
        m.sync();
        (void)m.touch();
        m.sync();
        m.sync();
        CHECK(m.texts().empty());
    }
}

TEST_CASE("a table's address with bits below its size", "[smmu][lint]") {
    cached m;
    const std::uint64_t cd_page = m.take_pages();
    m.store(cd_page, cached::plain_cd(m.root + 0x40, 1));
    m.store(m.ste_address(sid), cached::plain_ste(spec::ste_config::s1_translate, cd_page));
    m.command(spec::cmd_cfgi_ste(stream_id{sid}, true));
    m.sync();
    REQUIRE(m.touch());
    m.sync();
    const auto found = m.findings();
    REQUIRE(found.size() == 1);
    CHECK(found[0] ==
          lint_finding{lint_rule::unaligned_table, stream_id{sid}, cd_page, m.root + 0x40, m.root});
}

TEST_CASE("a translation that is used after it changed", "[smmu][lint]") {
    cached m;
    REQUIRE(m.touch());
    m.unmap(m.root, 0x1000);
    REQUIRE(m.touch()); // as hardware would, if its TLB holds it
    auto found = m.findings();
    REQUIRE(found.size() == 1);
    CHECK(found[0] ==
          lint_finding{lint_rule::translation_changed, stream_id{sid}, 0x1000, here, 0});
    m.map(m.root, 0x1000, there);
    REQUIRE(m.touch());
    found = m.findings();
    REQUIRE(found.size() == 1);
    CHECK(found[0] ==
          lint_finding{lint_rule::translation_changed, stream_id{sid}, 0x1000, here, there});
    // With its TLBI it is well again.
    m.command(spec::tlbi_nsnh_all());
    m.sync();
    REQUIRE(m.touch());
    CHECK(m.texts().empty());
}

TEST_CASE("a leaf that changes its output without a TLBI", "[smmu][lint]") {
    uncached m;
    REQUIRE(m.touch());
    m.map(m.root, 0x1000, there);
    REQUIRE(m.touch());
    const auto found = m.findings();
    REQUIRE(found.size() == 1);
    CHECK(found[0] ==
          lint_finding{lint_rule::break_before_make, stream_id{sid}, 0x1000, there, here});
    m.unmap(m.root, 0x1000);
    CHECK_FALSE(m.touch());
    m.command(spec::tlbi_nsnh_all());
    m.sync();
    m.map(m.root, 0x1000, here);
    REQUIRE(m.touch());
    CHECK(m.texts().empty());
}

TEST_CASE("a driver that makes no mistake", "[smmu][lint]") {
    cached m;
    for (unsigned i = 0; i < 256; ++i) // a queue that is full is not overfull
        m.enqueue(spec::cmd_sync(spec::sync_signal::SIG_NONE));
    m.ring();
    while (m.iommu().poll()) {}
    for (unsigned round = 0; round < 20; ++round) {
        for (std::uint64_t page = 1; page < 40; ++page)
            m.map(m.root, page << 12, here + (page + round) * 0x1000);
        for (std::uint64_t page = 1; page < 40; ++page)
            REQUIRE(m.touch(page << 12));
        CHECK_FALSE(m.touch(0x90'0000));
        while (m.event()) {}
        for (std::uint64_t page = 1; page < 40; ++page)
            m.unmap(m.root, page << 12);
        m.command(spec::tlbi_nsnh_all());
        m.sync();
        // Another address space for the stream, and back.
        const std::uint64_t ste = m.ste_address(sid);
        const std::uint64_t old = m.load64(ste);
        m.store64(ste, 1 | 4 << 1);
        m.command(spec::cmd_cfgi_ste(stream_id{sid}, true));
        m.sync();
        REQUIRE(m.touch(here));
        m.store64(ste, old);
        m.command(spec::cmd_cfgi_ste(stream_id{sid}, true));
        m.sync();
    }
    m.write32(reg::CR0, 0);
    REQUIRE(m.iommu().reset());
    m.restart_ring();
    m.start();
    INFO(m.texts());
    CHECK(m.iommu().lint().findings() == 0);
}

TEST_CASE("findings are told once, and lost when nobody takes them", "[smmu][lint]") {
    guest_lint<4> lint;
    const lint_finding one{lint_rule::unknown_register, {}, 0x3c, 4, 0};
    lint.report(one);
    lint.report(one);
    CHECK(lint.findings() == 2);
    CHECK(lint.take() == one);
    CHECK_FALSE(lint.take());
    for (std::uint64_t i = 0; i < 6; ++i)
        lint.report({lint_rule::unknown_register, {}, i * 4, 4, 0});
    CHECK(lint.lost() == 2);
    CHECK(lint.take()->where == 0);
    lint.report({lint_rule::unknown_register, {}, 0x100, 4, 0});
    for (const std::uint64_t where : {4U, 8U, 12U, 0x100U})
        CHECK(lint.take()->where == where);
    CHECK_FALSE(lint.take());
    const lint_finding with_stream{lint_rule::translation_changed, stream_id{0x10}, 0x1000, 0x2000,
                                   0x3000};
    CHECK(with_stream.text() == "TLBI missing: StreamID 0x10, at 0x1000: 0x2000 instead of 0x3000");
}
