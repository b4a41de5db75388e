// Registers one by one: what is stored, what is locked and when, what is ignored.
#include "guest_driver.hpp"

#include <catch2/catch.hpp>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

using namespace vm_accel;
namespace reg = vm_accel::spec::reg;

namespace {

/// An SMMU without memory: the registers are all there is.
template <class Options = default_smmu_options>
struct bare {
    using device = smmu<no_tlb, bitmap_streams<64>, region_map, counting_sink, Options>;
    bare() : iommu(std::make_unique<device>(memory, sink)) { REQUIRE(iommu->init()); }

    std::uint64_t read(std::uint64_t offset, unsigned size = 4) {
        return iommu->mmio_read(offset, size);
    }
    void write(std::uint64_t offset, std::uint64_t value, unsigned size = 4) {
        iommu->mmio_write(offset, size, value);
    }
    /// All registers, in order of spec::registers.
    std::vector<std::uint64_t> all() {
        std::vector<std::uint64_t> values;
        for (const spec::register_row& row : spec::registers)
            values.push_back(read(row.offset, row.width));
        return values;
    }

    region_map memory;
    counting_sink sink;
    std::unique_ptr<device> iommu;
};

struct whole : default_smmu_options {
    static constexpr smmu_features features = full_features;
};

/// Which bits keep what is written while everything is disabled. Registers that
/// are not named keep nothing: read-only, or of features that are not there.
template <smmu_features F = stage1_features>
std::uint64_t stored_bits(std::string_view name) {
    struct row {
        std::string_view name;
        std::uint64_t bits;
    };
    static constexpr row added[] = {
        {"CR0", 0x1f}, // PRIQEN and ATSCHK too
        {"CR2", 0xf},  // E2H and REC_CFG_ATS too
        {"IRQ_CTRL", 0x7},
        {"PRIQ_BASE", 0x40ff'ffff'ffff'ffff},
        {"PRIQ_IRQ_CFG0", 0x00ff'ffff'ffff'fffc},
        {"PRIQ_IRQ_CFG1", 0xffff'ffff},
        {"PRIQ_IRQ_CFG2", 0x8000'003f}, // LO
        {"PRIQ_PROD", 0x800f'ffff},
        {"PRIQ_CONS", 0x800f'ffff},
        {"GATOS_SID", 0x001f'ffff'ffff'ffff},
        {"GATOS_ADDR", 0xffff'ffff'ffff'ffc0},
    };
    if (F.pri) {
        for (const row& r : added) {
            if (r.name == name) return r.bits;
        }
    }
    static constexpr row rows[] = {
        {"CR0", 0xd}, // SMMUEN, EVENTQEN, CMDQEN
        {"CR1", 0xfff},
        {"CR2", 0x6}, // RECINVSID, PTM
        {"IRQ_CTRL", 0x5},
        {"GERROR_IRQ_CFG0", 0x00ff'ffff'ffff'fffc},
        {"GERROR_IRQ_CFG1", 0xffff'ffff},
        {"GERROR_IRQ_CFG2", 0x3f},
        {"STRTAB_BASE", 0x40ff'ffff'ffff'ffc0},
        {"STRTAB_BASE_CFG", 0x3'07ff},
        {"CMDQ_BASE", 0x40ff'ffff'ffff'ffff},
        {"CMDQ_PROD", 0xf'ffff},
        {"CMDQ_CONS", 0x7f0f'ffff},
        {"EVENTQ_BASE", 0x40ff'ffff'ffff'ffff},
        {"EVENTQ_IRQ_CFG0", 0x00ff'ffff'ffff'fffc},
        {"EVENTQ_IRQ_CFG1", 0xffff'ffff},
        {"EVENTQ_IRQ_CFG2", 0x3f},
        {"EVENTQ_PROD", 0x800f'ffff},
        {"EVENTQ_CONS", 0x800f'ffff},
    };
    for (const row& r : rows) {
        if (r.name == name) return r.bits;
    }
    return 0;
}

/// GBPA wants its UPDATE bit, and CR0 and CMDQ_PROD set things in motion.
bool has_a_protocol(std::string_view name) {
    return name == "GBPA" || name == "GERRORN" || name == "GMPAM" || name == "GBPMPAM";
}

std::uint64_t ones(unsigned bytes) { return bytes == 8 ? ~std::uint64_t{0} : 0xffff'ffff; }

} // namespace

TEMPLATE_TEST_CASE("each register keeps its bits and no others, and touches no other register",
                   "[smmu][registers]", default_smmu_options, whole) {
    constexpr smmu_features f = TestType::features;
    unsigned stored = 0;
    for (const spec::register_row& row : spec::registers) {
        if (has_a_protocol(row.name)) continue;
        CAPTURE(row.name);
        bare<TestType> m;
        const std::vector<std::uint64_t> before = m.all();
        const std::uint64_t at_rest = m.read(row.offset, row.width);
        const std::uint64_t keeps = stored_bits<f>(row.name);
        if (keeps != 0) ++stored;
        for (const std::uint64_t value : {~std::uint64_t{0}, std::uint64_t{0x5555'5555'5555'5555},
                                          std::uint64_t{0xaaaa'aaaa'aaaa'aaaa}, std::uint64_t{0}}) {
            m.write(row.offset, value & ones(row.width), row.width);
            CHECK(m.read(row.offset, row.width) == (keeps == 0 ? at_rest : value & keeps));
            const std::vector<std::uint64_t> after = m.all();
            for (std::size_t i = 0; i < spec::registers.size(); ++i) {
                const std::string_view other = spec::registers[i].name;
                // The acknowledgements follow; an enabled queue takes what it finds.
                if (other == row.name || other == std::string{row.name} + "ACK") continue;
                if (row.name == "CR0" || row.name == "CMDQ_PROD") continue;
                CAPTURE(other);
                CHECK(after[i] == before[i]);
            }
        }
    }
    CHECK(stored == (f.pri ? 26 : 18));
}

TEST_CASE("read-only rows are the ones that nothing is kept in", "[smmu][registers]") {
    for (const spec::register_row& row : spec::registers) {
        CAPTURE(row.name);
        if (row.access != spec::register_access::read_only) continue;
        CHECK(stored_bits(row.name) == 0);
        CHECK(stored_bits<full_features>(row.name) == 0);
    }
}

TEMPLATE_TEST_CASE("64-bit registers are reached by halves", "[smmu][registers]",
                   default_smmu_options, whole) {
    for (const spec::register_row& row : spec::registers) {
        if (row.width != 8 || row.access == spec::register_access::read_only) continue;
        CAPTURE(row.name);
        bare<TestType> m;
        const std::uint64_t keeps = stored_bits<TestType::features>(row.name);
        m.write(row.offset, 0x1234'5678'9abc'def0 & keeps, 8);
        CHECK(m.read(row.offset, 4) == (0x9abc'def0 & keeps));
        CHECK(m.read(row.offset + 4, 4) == (0x1234'5678 & keeps >> 32));
        m.write(row.offset + 4, 0x00ab'cdef, 4);
        CHECK(m.read(row.offset, 8) == (0x00ab'cdef'9abc'def0 & keeps));
        m.write(row.offset, 0x0f0f'0f00, 4);
        CHECK(m.read(row.offset, 8) == (0x00ab'cdef'0f0f'0f00 & keeps));
        // A half's write takes 32 bits, whatever else the bus carries.
        m.write(row.offset, 0xffff'ffff'0000'0000, 4);
        CHECK(m.read(row.offset, 8) == (0x00ab'cdef'0000'0000 & keeps));
    }
}

TEMPLATE_TEST_CASE("page 1 reaches the same registers", "[smmu][registers]", default_smmu_options,
                   whole) {
    bare<TestType> m;
    unsigned differing = 0;
    for (const spec::register_row& row : spec::registers) {
        if (has_a_protocol(row.name) || row.name == "CR0" || row.name == "CMDQ_PROD") continue;
        CAPTURE(row.name);
        const std::uint64_t alias = row.offset ^ spec::mmio_page_size;
        const std::uint64_t value =
            0x0012'3456'789a'bcdc & stored_bits<TestType::features>(row.name);
        m.write(alias, value, row.width);
        if (value != 0) {
            CHECK(m.read(row.offset, row.width) == value);
            ++differing;
        }
        CHECK(m.read(alias, row.width) == m.read(row.offset, row.width));
        m.write(row.offset, 0, row.width);
        CHECK(m.read(alias, row.width) == m.read(row.offset, row.width));
    }
    CHECK(differing > 10);
}

TEST_CASE("accesses of a wrong size, alignment or place read zero and change nothing",
          "[smmu][registers]") {
    struct row {
        const char* what;
        std::uint64_t offset;
        unsigned size;
    };
    const auto r =
        GENERATE(row{"one byte", reg::CR1, 1}, row{"two bytes", reg::CR1, 2},
                 row{"three bytes", reg::CR1, 3}, row{"no bytes", reg::CR1, 0},
                 row{"sixteen bytes", reg::STRTAB_BASE, 16},
                 row{"8 bytes of two 4-byte registers", reg::CR1, 8},
                 row{"8 bytes of two indices", reg::CMDQ_PROD, 8},
                 row{"8 bytes at 4", reg::STRTAB_BASE + 4, 8}, row{"4 bytes at 2", reg::CR1 + 2, 4},
                 row{"4 bytes at 1", reg::STRTAB_BASE + 1, 4}, row{"a hole", 0x30, 4},
                 row{"a hole of 8", 0x38, 8}, row{"past the window", spec::mmio_size, 4},
                 row{"past the window, like CR1", spec::mmio_size + reg::CR1, 4},
                 row{"the last address there is", ~std::uint64_t{3}, 4},
                 row{"4 GiB above CR1", (std::uint64_t{1} << 32) + reg::CR1, 4});
    CAPTURE(r.what);
    bare<> m;
    m.write(reg::CR1, 0x123);
    m.write(reg::CR2, 0x6);
    m.write(reg::STRTAB_BASE, 0x1234'5600, 8);
    m.write(reg::CMDQ_CONS, 0x11); // so that the two indices differ from zero
    const std::vector<std::uint64_t> before = m.all();
    CHECK(m.read(r.offset, r.size) == 0);
    m.write(r.offset, ~std::uint64_t{0}, r.size);
    CHECK(m.all() == before);
}

TEMPLATE_TEST_CASE("what is in use is locked, by the bit that uses it and no other",
                   "[smmu][registers]", default_smmu_options, whole) {
    constexpr smmu_features f = TestType::features;
    struct row {
        std::uint32_t offset;
        unsigned size;
        std::uint32_t cr0, irq_ctrl;
        bool locked;
    };
    constexpr std::uint32_t smmuen = 1, eventqen = 4, cmdqen = 8;
    constexpr std::uint32_t priqen = f.pri ? 2 : 0, priq = f.pri ? 2 : 0;
    const auto r = GENERATE_COPY(
        row{reg::STRTAB_BASE, 8, smmuen, 0, true},
        row{reg::STRTAB_BASE, 8, eventqen | cmdqen, 5, false},
        row{reg::STRTAB_BASE_CFG, 4, smmuen, 0, true},
        row{reg::STRTAB_BASE_CFG, 4, eventqen | cmdqen, 5, false},
        row{reg::CR2, 4, smmuen, 0, true}, row{reg::CR2, 4, eventqen | cmdqen, 5, false},
        row{reg::CMDQ_BASE, 8, cmdqen, 0, true},
        row{reg::CMDQ_BASE, 8, smmuen | eventqen, 5, false},
        row{reg::CMDQ_CONS, 4, cmdqen, 0, true},
        row{reg::CMDQ_CONS, 4, smmuen | eventqen, 5, false},
        row{reg::EVENTQ_BASE, 8, eventqen, 0, true},
        row{reg::EVENTQ_BASE, 8, smmuen | cmdqen, 5, false},
        row{reg::EVENTQ_PROD, 4, eventqen, 0, true},
        row{reg::EVENTQ_PROD, 4, smmuen | cmdqen, 5, false},
        row{reg::EVENTQ_CONS, 4, smmuen | eventqen | cmdqen, 5, false},
        row{reg::CMDQ_PROD, 4, smmuen | eventqen, 5, false},
        row{reg::GERROR_IRQ_CFG0, 8, 0, 1, true}, row{reg::GERROR_IRQ_CFG1, 4, 0, 1, true},
        row{reg::GERROR_IRQ_CFG2, 4, 0, 1, true}, row{reg::EVENTQ_IRQ_CFG0, 8, 0, 4, true},
        row{reg::EVENTQ_IRQ_CFG1, 4, 0, 4, true}, row{reg::EVENTQ_IRQ_CFG2, 4, 0, 4, true},
        row{reg::GERROR_IRQ_CFG0, 8, smmuen, 4, false},
        row{reg::EVENTQ_IRQ_CFG0, 8, smmuen, 1, false},
        row{reg::GERROR_IRQ_CFG0, 8, smmuen | eventqen | cmdqen, 0, false},
        row{reg::EVENTQ_IRQ_CFG0, 8, smmuen | eventqen | cmdqen, 0, false},
        row{reg::CMDQ_BASE, 8, smmuen | eventqen | priqen, 7, false},
        row{reg::EVENTQ_BASE, 8, smmuen | cmdqen | priqen, 7, false},
        row{reg::PRIQ_BASE, 8, priqen, 0, true},
        row{reg::PRIQ_BASE, 8, smmuen | eventqen | cmdqen, 7, false},
        row{reg::PRIQ_PROD, 4, priqen, 0, true},
        row{reg::PRIQ_PROD, 4, smmuen | eventqen | cmdqen, 7, false},
        row{reg::PRIQ_CONS, 4, smmuen | priqen, 7, false},
        row{reg::PRIQ_IRQ_CFG0, 8, 0, priq, true}, row{reg::PRIQ_IRQ_CFG1, 4, 0, priq, true},
        row{reg::PRIQ_IRQ_CFG2, 4, 0, priq, true}, row{reg::PRIQ_IRQ_CFG0, 8, smmuen, 5, false},
        row{reg::EVENTQ_IRQ_CFG0, 8, smmuen, 3, false});
    CAPTURE(spec::find_register(r.offset)->name, r.cr0, r.irq_ctrl);
    bare<TestType> m;
    m.write(reg::CR0, r.cr0);
    m.write(reg::IRQ_CTRL, r.irq_ctrl);
    const std::uint64_t keeps = stored_bits<f>(spec::find_register(r.offset)->name);
    const std::uint64_t value = 0x0000'0000'0000'1024 & keeps; // a different value for each
    m.write(r.offset, value, r.size);
    CHECK(m.read(r.offset, r.size) == (r.locked ? 0 : value));
    if (r.size == 8) { // nor by halves
        m.write(r.offset + 4, 0x12, 4);
        CHECK(m.read(r.offset + 4, 4) == (r.locked ? 0U : 0x12U & keeps >> 32));
    }
    // Off again, it can be written.
    m.write(reg::CR0, 0);
    m.write(reg::IRQ_CTRL, 0);
    m.write(r.offset, keeps & 0x1fc0, r.size);
    CHECK((m.read(r.offset, r.size) & 0xffff'ffff) == (keeps & 0x1fc0));
}

TEST_CASE("what is being switched off stays locked until it is acknowledged", "[smmu][registers]") {
    guest::machine<> m;
    m.start();
    REQUIRE(m.iommu().attach_device("disk", m.all_of_ram, stream_id{1}));
    auto port = m.iommu().make_port("disk").value();
    const std::uint64_t table = m.iommu().mmio_read(reg::STRTAB_BASE, 8);
    const std::uint64_t commands = m.iommu().mmio_read(reg::CMDQ_BASE, 8);
    const std::uint64_t events = m.iommu().mmio_read(reg::EVENTQ_BASE, 8);
    const auto write_all = [&] {
        m.write64(reg::STRTAB_BASE, 0x1000);
        m.write64(reg::CMDQ_BASE, 0x2000);
        m.write64(reg::EVENTQ_BASE, 0x3000);
    };
    {
        auto guard = port.open();
        m.write32(reg::CR0, 0);
        REQUIRE(m.read32(reg::CR0ACK) == 0xd);
        write_all();
        CHECK(m.iommu().mmio_read(reg::STRTAB_BASE, 8) == table);
        CHECK(m.iommu().mmio_read(reg::CMDQ_BASE, 8) == commands);
        CHECK(m.iommu().mmio_read(reg::EVENTQ_BASE, 8) == events);
    }
    REQUIRE(m.read32(reg::CR0ACK) == 0);
    write_all();
    CHECK(m.iommu().mmio_read(reg::STRTAB_BASE, 8) == 0x1000);
    CHECK(m.iommu().mmio_read(reg::CMDQ_BASE, 8) == 0x2000);
    CHECK(m.iommu().mmio_read(reg::EVENTQ_BASE, 8) == 0x3000);
}

TEST_CASE("CR1 is locked by what its fields are for", "[smmu][registers]") {
    struct row {
        std::uint32_t cr0, writable;
    };
    const auto r = GENERATE(row{0, 0xfff}, row{1, 0x03f}, row{2, 0xfc0}, row{4, 0xfc0},
                            row{8, 0xfc0}, row{0x10, 0xfff}, row{0x1f, 0});
    CAPTURE(r.cr0);
    bare<whole> m;
    m.write(reg::CR1, 0xa5a);
    m.write(reg::CR0, r.cr0);
    m.write(reg::CR1, 0x5a5);
    CHECK(m.read(reg::CR1) == ((0xa5a & ~r.writable) | (0x5a5 & r.writable)));
}

TEMPLATE_TEST_CASE("GMPAM and GBPMPAM change with Update only, at once", "[smmu][registers]",
                   default_smmu_options, whole) {
    constexpr bool there = TestType::features.mpam;
    const std::uint32_t at = GENERATE(reg::GMPAM, reg::GBPMPAM);
    bare<TestType> m;
    CHECK(m.read(reg::MPAMIDR) == (there ? 0x00ff'00ffU : 0U));
    m.write(at, 0x0012'0034);
    CHECK(m.read(at) == 0);
    m.write(at, 0x8012'0034);
    CHECK(m.read(at) == (there ? 0x0012'0034U : 0U));
    m.write(at, 0xffff'ffff);
    CHECK(m.read(at) == (there ? 0x00ff'00ffU : 0U)); // no wider than MPAMIDR
    CHECK(m.read(at ^ 4) == 0);
    CHECK(m.read(reg::STATUSR) == 0);
}

TEST_CASE("GATOS runs while the SMMU is on, and answers before the write ends",
          "[smmu][registers]") {
    bare<whole> m;
    m.write(reg::GATOS_SID, 0x0010'0005'0000'0007, 8);
    m.write(reg::GATOS_ADDR, 0x1234'5500, 8);
    m.write(reg::GATOS_CTRL, 1); // SMMUEN = 0: ignored
    CHECK(m.read(reg::GATOS_CTRL) == 0);
    CHECK(m.read(reg::GATOS_PAR, 8) == 0);
    m.write(reg::CR0, 1);
    m.write(reg::GATOS_CTRL, 0);
    CHECK(m.read(reg::GATOS_PAR, 8) == 0);
    m.write(reg::GATOS_CTRL, 1);
    CHECK(m.read(reg::GATOS_CTRL) == 0);
    CHECK((m.read(reg::GATOS_PAR, 8) & 1) == 1); // no stream table: a fault
    m.write(reg::GATOS_PAR, 0, 8);
    CHECK((m.read(reg::GATOS_PAR, 8) & 1) == 1); // read-only
    CHECK(m.read(reg::GATOS_SID, 8) == 0x0010'0005'0000'0007);
}

TEST_CASE("acknowledgements of every feature's enables", "[smmu][registers]") {
    bare<whole> m;
    for (std::uint32_t value = 0; value < 0x800; value += 7) {
        CAPTURE(value);
        m.write(reg::CR0, value);
        CHECK(m.read(reg::CR0) == (value & 0x1f)); // not VMW, not DPT
        CHECK(m.read(reg::CR0ACK) == (value & 0x1f));
        m.write(reg::IRQ_CTRL, value);
        CHECK(m.read(reg::IRQ_CTRLACK) == (value & 0x7));
    }
}

TEST_CASE("CR0 and IRQ_CTRL are acknowledged, as far as they are implemented",
          "[smmu][registers]") {
    bare<> m;
    for (std::uint32_t value = 0; value < 0x800; value += 3) {
        CAPTURE(value);
        m.write(reg::CR0, value);
        CHECK(m.read(reg::CR0) == (value & 0xd));
        CHECK(m.read(reg::CR0ACK) == (value & 0xd));
        m.write(reg::IRQ_CTRL, value);
        CHECK(m.read(reg::IRQ_CTRL) == (value & 0x5));
        CHECK(m.read(reg::IRQ_CTRLACK) == (value & 0x5));
        m.write(reg::CR0ACK, ~value);
        m.write(reg::IRQ_CTRLACK, ~value);
        CHECK(m.read(reg::CR0ACK) == (value & 0xd));
        CHECK(m.read(reg::IRQ_CTRLACK) == (value & 0x5));
    }
}

TEST_CASE("GBPA changes with UPDATE only, and says when it is done", "[smmu][registers]") {
    guest::machine<> m;
    constexpr std::uint32_t update = 0x8000'0000;
    constexpr std::uint32_t all_fields = 0x001f'3f1f;
    m.write32(reg::GBPA, update | all_fields);
    CHECK(m.read32(reg::GBPA) == all_fields);
    m.write32(reg::GBPA, 0);
    CHECK(m.read32(reg::GBPA) == all_fields); // no UPDATE: ignored
    m.write32(reg::GBPA, 0xffff'ffff);
    CHECK(m.read32(reg::GBPA) == all_fields); // reserved bits are not kept
    m.write32(reg::GBPA, update);
    CHECK(m.read32(reg::GBPA) == 0);

    // While an access is under way the update is too: UPDATE reads 1, and
    // another write is ignored.
    REQUIRE(m.iommu().attach_device("disk", m.all_of_ram, stream_id{1}));
    auto port = m.iommu().make_port("disk").value();
    {
        auto guard = port.open();
        m.write32(reg::GBPA, update | 0x0010'0000);
        CHECK(m.read32(reg::GBPA) == (update | 0x0010'0000));
        m.write32(reg::GBPA, update | 0x3);
        CHECK(m.read32(reg::GBPA) == (update | 0x0010'0000));
    }
    CHECK(m.read32(reg::GBPA) == 0x0010'0000);
}

TEST_CASE("an error is acknowledged by its own bit, and only while it is active",
          "[smmu][registers]") {
    constexpr std::uint32_t cmdq_err = 1, eventq_abt = 4;
    guest::machine<> m;
    m.start();
    REQUIRE(m.iommu().attach_device("disk", m.all_of_ram, stream_id{1}));
    auto port = m.iommu().make_port("disk").value();
    const std::uint64_t pulses = m.sink.pulses(wired_interrupt::gerror);
    m.write32(reg::GERRORN, 0xffff'ffff);
    CHECK(m.read32(reg::GERRORN) == 0); // nothing is active
    CHECK(m.read32(reg::GERROR) == 0);
    CHECK(m.sink.pulses(wired_interrupt::gerror) == pulses);

    std::uint32_t acknowledged = 0;
    for (unsigned round = 0; round < 3; ++round) { // the bits are toggled, not set
        m.command(spec::command{});                // opcode 0
        CHECK(m.read32(reg::GERROR) == (acknowledged ^ cmdq_err));
        // The event ring is moved out of memory; an unmapped stream gives an event.
        m.write32(reg::CR0, 0x9);
        m.write64(reg::EVENTQ_BASE, 0x1000 | guest::event_log2);
        m.write32(reg::EVENTQ_PROD, 0);
        m.write32(reg::EVENTQ_CONS, 0);
        m.write32(reg::CR0, 0xd);
        std::array<std::byte, 4> bytes{};
        CHECK_FALSE(port.read(iova{0x1000}, bytes));
        CHECK_FALSE(port.read(iova{0x1000}, bytes)); // active already: no second toggle
        const std::uint32_t active = cmdq_err | eventq_abt;
        CHECK(m.read32(reg::GERROR) == (acknowledged ^ active));
        CHECK(m.sink.pulses(wired_interrupt::gerror) == pulses + 2 * (round + 1U));
        // One bit, and bits of errors that are not active.
        m.write32(reg::GERRORN, (acknowledged ^ eventq_abt) ^ 0xffff'fff0);
        CHECK(m.read32(reg::GERRORN) == (acknowledged ^ eventq_abt));
        CHECK_FALSE(m.commands_done()); // CMDQ_ERR is still active
        m.store(guest::command_ring + (m.cons() & 0xff) * 16, spec::cmd_cfgi_all());
        m.write32(reg::GERRORN, acknowledged ^ active);
        CHECK(m.read32(reg::GERRORN) == (acknowledged ^ active));
        CHECK(m.commands_done());
        acknowledged ^= active;
    }
    m.write32(reg::GERROR, 0);
    CHECK(m.read32(reg::GERROR) == acknowledged); // read-only
}

namespace {

struct as_linux_sees_qemu : default_smmu_options {};
struct narrow : default_smmu_options {
    static constexpr smmu_features features = [] {
        smmu_features f;
        f.output_bits = 32;
        f.stream_bits = 7;
        f.command_queue_log2 = 4;
        f.event_queue_log2 = 5;
        f.two_level_stream_table = false;
        f.asid16 = false;
        f.range_invalidation = false;
        f.hierarchical_attribute_disable = false;
        f.coherent = false;
        return f;
    }();
};
struct wide : default_smmu_options {
    static constexpr smmu_features features = [] {
        smmu_features f;
        f.output_bits = 48;
        f.stream_bits = 32;
        return f;
    }();
};

} // namespace

TEMPLATE_TEST_CASE("the ID registers say what the features are", "[smmu][registers]",
                   as_linux_sees_qemu, narrow, wide) {
    constexpr smmu_features f = TestType::features;
    bare<TestType> m;
    const auto bits = [&](std::uint32_t offset, unsigned high, unsigned low) {
        return m.read(offset) >> low & ((std::uint64_t{2} << (high - low)) - 1);
    };
    CHECK(bits(reg::IDR0, 0, 0) == 0); // S2P
    CHECK(bits(reg::IDR0, 1, 1) == 1); // S1P
    CHECK(bits(reg::IDR0, 3, 2) == 2); // TTF: AArch64
    CHECK(bits(reg::IDR0, 4, 4) == (f.coherent ? 1U : 0U));
    CHECK(bits(reg::IDR0, 5, 5) == 0);   // BTM
    CHECK(bits(reg::IDR0, 7, 6) == 0);   // HTTU
    CHECK(bits(reg::IDR0, 9, 9) == 0);   // Hyp
    CHECK(bits(reg::IDR0, 10, 10) == 0); // ATS
    CHECK(bits(reg::IDR0, 12, 12) == (f.asid16 ? 1U : 0U));
    CHECK(bits(reg::IDR0, 13, 13) == 0); // MSI
    CHECK(bits(reg::IDR0, 14, 14) == 0); // SEV
    CHECK(bits(reg::IDR0, 16, 16) == 0); // PRI
    CHECK(bits(reg::IDR0, 18, 18) == 0); // VMID16
    CHECK(bits(reg::IDR0, 22, 21) == 2); // little-endian tables
    CHECK(bits(reg::IDR0, 25, 24) == 1); // no stall
    CHECK(bits(reg::IDR0, 26, 26) == 1); // faults abort
    CHECK(bits(reg::IDR0, 28, 27) == (f.two_level_stream_table ? 1U : 0U));
    CHECK(bits(reg::IDR1, 5, 0) == f.stream_bits);
    CHECK(bits(reg::IDR1, 10, 6) == 0);  // SSIDSIZE
    CHECK(bits(reg::IDR1, 15, 11) == 0); // PRIQS
    CHECK(bits(reg::IDR1, 20, 16) == f.event_queue_log2);
    CHECK(bits(reg::IDR1, 25, 21) == f.command_queue_log2);
    CHECK(bits(reg::IDR1, 31, 26) == 0); // no overrides, no presets, no ECMDQ
    CHECK(m.read(reg::IDR2) == 0);
    CHECK(m.read(reg::IDR3) ==
          ((f.hierarchical_attribute_disable ? 0x4U : 0U) | (f.range_invalidation ? 0x400U : 0U)));
    CHECK(m.read(reg::IDR4) == 0);
    const unsigned oas = f.output_bits == 32 ? 0 : f.output_bits == 44 ? 4 : 5;
    CHECK(m.read(reg::IDR5) == (oas | 0x10U)); // 4 KiB granules
    // FWB and BBM level 1, which SMMUv3.2 asks for, are not there.
    CHECK(bits(reg::AIDR, 7, 0) == (f.hierarchical_attribute_disable ? 1 : 0));
}

TEST_CASE("AIDR: the release of which nothing is missing", "[smmu][registers]") {
    const auto made_of = [](auto ids) { return std::pair{ids.AIDR, ids.IDR3}; };
    constexpr auto with = [](auto change) {
        smmu_features f = full_features;
        change(f);
        return f;
    };
    using f = smmu_features;
    const auto check = [](const char* what, auto seen, unsigned release, bool treats_device) {
        CAPTURE(what);
        CHECK(seen.first == release);
        CHECK((seen.second >> 14 & 1) == (treats_device ? 1U : 0U));
    };
    check("everything", made_of(id_registers<full_features>{}), 3, true);
    check("no E0PD", made_of(id_registers<with([](f& a) { a.e0pd = false; })>{}), 2, false);
    check("no FWB", made_of(id_registers<with([](f& a) { a.fwb = false; })>{}), 1, false);
    check("no ranges", made_of(id_registers<with([](f& a) { a.range_invalidation = false; })>{}), 1,
          false);
    check("BBM level 0", made_of(id_registers<with([](f& a) { a.bbml = 0; })>{}), 1, false);
    check("both stages and no EL2", made_of(id_registers<with([](f& a) { a.hyp = false; })>{}), 1,
          false);
    check("no XNX", made_of(id_registers<with([](f& a) { a.xnx = false; })>{}), 0, false);
    check("no HAD",
          made_of(id_registers<with([](f& a) { a.hierarchical_attribute_disable = false; })>{}), 0,
          false);
    check("stage 1 alone has no stage 2 to treat",
          made_of(id_registers<with([](f& a) { a.stage2 = a.hyp = a.xnx = a.mpam = false; })>{}), 3,
          false);
}

TEST_CASE("a full device's ID registers", "[smmu][registers]") {
    bare<whole> m;
    const auto bits = [&](std::uint32_t offset, unsigned high, unsigned low) {
        return m.read(offset) >> low & ((std::uint64_t{2} << (high - low)) - 1);
    };
    struct row {
        const char* what;
        std::uint32_t offset;
        unsigned high, low;
        std::uint64_t value;
    };
    static constexpr row rows[] = {
        {"S1P and S2P", reg::IDR0, 1, 0, 3},
        {"TTF: AArch64", reg::IDR0, 3, 2, 2},
        {"COHACC", reg::IDR0, 4, 4, 1},
        {"BTM: never", reg::IDR0, 5, 5, 0},
        {"HTTU: access and dirty", reg::IDR0, 7, 6, 2},
        {"DORMHINT", reg::IDR0, 8, 8, 0},
        {"Hyp", reg::IDR0, 9, 9, 1},
        {"ATS", reg::IDR0, 10, 10, 1},
        {"NS1ATS: split-stage is there", reg::IDR0, 11, 11, 0},
        {"ASID16", reg::IDR0, 12, 12, 1},
        {"MSI", reg::IDR0, 13, 13, 1},
        {"SEV: never", reg::IDR0, 14, 14, 0},
        {"ATOS", reg::IDR0, 15, 15, 1},
        {"PRI", reg::IDR0, 16, 16, 1},
        {"VMW", reg::IDR0, 17, 17, 0},
        {"VMID16", reg::IDR0, 18, 18, 1},
        {"CD2L", reg::IDR0, 19, 19, 1},
        {"VATOS", reg::IDR0, 20, 20, 0},
        {"TTENDIAN: both", reg::IDR0, 22, 21, 0},
        {"STALL_MODEL: both", reg::IDR0, 25, 24, 0},
        {"TERM_MODEL: CD.A decides", reg::IDR0, 26, 26, 0},
        {"ST_LEVEL", reg::IDR0, 28, 27, 1},
        {"SIDSIZE", reg::IDR1, 5, 0, 32},
        {"SSIDSIZE", reg::IDR1, 10, 6, 20},
        {"PRIQS", reg::IDR1, 15, 11, 19},
        {"EVENTQS", reg::IDR1, 20, 16, 19},
        {"CMDQS", reg::IDR1, 25, 21, 19},
        {"overrides", reg::IDR1, 27, 26, 3},
        {"no presets", reg::IDR1, 30, 28, 0},
        {"ECMDQ", reg::IDR1, 31, 31, 1},
        {"HAD", reg::IDR3, 2, 2, 1},
        {"PBHA", reg::IDR3, 3, 3, 0},
        {"XNX", reg::IDR3, 4, 4, 1},
        {"PPS", reg::IDR3, 5, 5, 0}, // STE.PPAR counts (8.1)
        {"MPAM", reg::IDR3, 7, 7, 1},
        {"FWB", reg::IDR3, 8, 8, 1},
        {"STT", reg::IDR3, 9, 9, 1},
        {"RIL", reg::IDR3, 10, 10, 1},
        {"BBML", reg::IDR3, 12, 11, 2},
        {"E0PD", reg::IDR3, 13, 13, 1},
        {"PTWNNC", reg::IDR3, 14, 14, 1},
        {"DPT", reg::IDR3, 15, 15, 0},
        {"EPAN", reg::IDR3, 17, 17, 1},
        {"OAS: 52 bits", reg::IDR5, 2, 0, 6},
        {"granules", reg::IDR5, 6, 4, 7},
        {"DS", reg::IDR5, 7, 7, 1},
        {"VAX: 52 bits", reg::IDR5, 11, 10, 1},
        {"STALL_MAX", reg::IDR5, 31, 16, 64},
        {"queues in a page", reg::IDR6, 19, 16, 2},
        {"pages of queues", reg::IDR6, 27, 24, 0},
        {"architecture: SMMUv3.3", reg::AIDR, 7, 0, 3},
    };
    for (const row& r : rows) {
        CAPTURE(r.what);
        CHECK(bits(r.offset, r.high, r.low) == r.value);
    }
    CHECK(m.read(reg::IDR2) == 0);
    CHECK(m.read(reg::IDR4) == 0);
    CHECK(m.read(reg::IIDR) == 0);
}

TEMPLATE_TEST_CASE("reset gives every register the value it had at power-on", "[smmu][registers]",
                   default_smmu_options, whole) {
    bare<TestType> m;
    const std::vector<std::uint64_t> fresh = m.all();
    for (const spec::register_row& row : spec::registers) {
        if (row.name != "CR0") m.write(row.offset, 0x1234'5678'9abc'def4, row.width);
    }
    m.write(reg::CR0, 0xd);
    REQUIRE(m.all() != fresh);
    REQUIRE(m.iommu->reset());
    CHECK(m.all() == fresh);
}
