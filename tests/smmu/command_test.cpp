// The command queue: what each command is, where consumption stands, how it
// stops and starts again, and which addresses a range names.
#include "guest_driver.hpp"

#include <catch2/catch.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <random>
#include <vector>

using namespace vm_accel;
using machine = guest::machine<set_associative<16, 2>>;
namespace reg = vm_accel::spec::reg;

namespace {

constexpr std::uint64_t cerror_ill = 1;
constexpr std::uint64_t cerror_abt = 2;

std::uint64_t error_of(machine& m) { return m.cons() >> 24 & 0x7f; }
std::uint32_t position(machine& m) { return m.cons() & 0xf'ffff; }
bool stopped(machine& m) { return ((m.read32(reg::GERROR) ^ m.read32(reg::GERRORN)) & 1) != 0; }
void acknowledge(machine& m) { m.write32(reg::GERRORN, m.read32(reg::GERROR)); }

/// A command that does nothing but be consumed.
spec::command harmless() { return spec::cmd_prefetch_config(stream_id{0}); }
spec::command with_opcode(unsigned opcode) {
    return spec::make_command(spec::opcode{static_cast<std::uint8_t>(opcode)});
}

/// Opcodes that exist on an SMMU with stage 1 only, without ATS, PRI, stalls,
/// EL2 and substreams.
bool is_legal(unsigned opcode) {
    constexpr std::array<unsigned, 12> legal{0x01, 0x02, 0x03, 0x04, 0x05, 0x06,
                                             0x10, 0x11, 0x12, 0x13, 0x30, 0x46};
    return std::find(legal.begin(), legal.end(), opcode) != legal.end();
}

/// A command ring of 2^log2size entries, at `base`, everything off before.
void start_ring(machine& m, std::uint64_t base, unsigned log2size, std::uint32_t index = 0) {
    m.write32(reg::CR0, 0);
    m.write64(reg::CMDQ_BASE, base | log2size);
    m.write32(reg::CMDQ_PROD, index);
    m.write32(reg::CMDQ_CONS, index);
    m.write32(reg::CR0, 0x8);
}

} // namespace

TEST_CASE("every opcode is consumed, or stops the queue with CERROR_ILL", "[smmu][command]") {
    machine m;
    m.start();
    unsigned consumed = 0;
    for (unsigned opcode = 0; opcode < 256; ++opcode) {
        CAPTURE(opcode);
        const std::uint32_t before = position(m);
        const std::uint64_t pulses = m.sink.pulses(wired_interrupt::gerror);
        m.command(with_opcode(opcode));
        if (is_legal(opcode)) {
            ++consumed;
            CHECK(m.commands_done());
            CHECK_FALSE(stopped(m));
            continue;
        }
        CHECK(stopped(m));
        CHECK(error_of(m) == cerror_ill);
        CHECK(position(m) == before); // CONS is on the command that failed
        CHECK(m.sink.pulses(wired_interrupt::gerror) == pulses + 1);
        // More commands change nothing; nor does acknowledging with the command as it is.
        m.command(harmless());
        CHECK(position(m) == before);
        acknowledge(m);
        CHECK(stopped(m));
        CHECK(position(m) == before);
        CHECK(m.sink.pulses(wired_interrupt::gerror) == pulses + 2);
        // Replaced, as Linux does, it goes on.
        m.store(guest::command_ring + (before & 0xff) * 16, harmless());
        acknowledge(m);
        CHECK_FALSE(stopped(m));
        CHECK(m.commands_done());
    }
    CHECK(consumed == 12);
}

TEST_CASE("operands that make a command illegal, and operands that do not", "[smmu][command]") {
    struct row {
        const char* what;
        spec::command command;
        bool legal;
    };
    const auto secure = [](spec::command c) {
        set<spec::command::SSec>(c, 1);
        return c;
    };
    const auto sync = [](std::uint64_t cs) {
        return spec::cmd_sync(spec::sync_signal{static_cast<std::uint8_t>(cs)});
    };
    const auto va = [](spec::tlbi_range range) {
        return spec::tlbi_nh_va(vmid{0}, asid{1}, iova{0x1000}, true, range);
    };
    const auto prefetch_address = with_opcode(2);
    const auto r = GENERATE_COPY(
        row{"SSec, PREFETCH_CONFIG", secure(harmless()), false},
        row{"SSec, PREFETCH_ADDR", secure(prefetch_address), false},
        row{"SSec, CFGI_STE", secure(spec::cmd_cfgi_ste(stream_id{1}, true)), false},
        row{"SSec, CFGI_STE_RANGE", secure(spec::cmd_cfgi_ste_range(stream_id{0}, 3)), false},
        row{"SSec, CFGI_ALL", secure(spec::cmd_cfgi_all()), false},
        row{"SSec, CFGI_CD", secure(spec::cmd_cfgi_cd(stream_id{1}, substream_id{0}, true)), false},
        row{"SSec, CFGI_CD_ALL", secure(spec::cmd_cfgi_cd_all(stream_id{1})), false},
        row{"CS = SIG_NONE", sync(0), true}, row{"CS = SIG_IRQ", sync(1), true},
        row{"CS = SIG_SEV, as SIG_NONE", sync(2), true}, row{"CS = 3", sync(3), false},
        row{"a StreamID beyond the table", spec::cmd_cfgi_ste(stream_id{0xffff'ffff}, true), true},
        row{"a VMID, without stage 2", spec::tlbi_nh_all(vmid{0xffff}), true},
        row{"a single granule by level", va({.num = 0, .scale = 0, .tg = 1, .ttl = 3}), true},
        row{"two granules", va({.num = 1, .scale = 0, .tg = 1}), true},
        row{"NUM and SCALE without TG", va({.num = 31, .scale = 31, .tg = 0}), true},
        row{"TG with NUM, SCALE and TTL zero", va({.tg = 1}), false});
    CAPTURE(r.what);
    machine m;
    m.start();
    const std::uint32_t before = position(m);
    m.command(r.command);
    CHECK(m.commands_done() == r.legal);
    CHECK(stopped(m) == !r.legal);
    if (!r.legal) {
        CHECK(error_of(m) == cerror_ill);
        CHECK(position(m) == before);
    }
}

TEST_CASE("SIG_IRQ pulses the CMD_SYNC interrupt once, the others never", "[smmu][command]") {
    machine m;
    m.start();
    const auto pulses = [&] { return m.sink.pulses(wired_interrupt::cmdq_sync); };
    REQUIRE(pulses() == 0);
    const std::uint64_t syncs = m.iommu().stats().syncs;
    m.command(spec::cmd_sync(spec::sync_signal::SIG_NONE));
    m.command(spec::cmd_sync(spec::sync_signal::SIG_SEV));
    CHECK(pulses() == 0);
    m.command(spec::cmd_sync(spec::sync_signal::SIG_IRQ));
    CHECK(pulses() == 1);
    // It has no enable bit of its own.
    m.write32(reg::IRQ_CTRL, 0);
    m.command(spec::cmd_sync(spec::sync_signal::SIG_IRQ));
    CHECK(pulses() == 2);
    // An MSI address is not used: IDR0.MSI is 0.
    const std::uint64_t slot = m.take_pages();
    m.command(spec::cmd_sync_msi(pa{slot}, 0x1234'5678));
    CHECK(pulses() == 3);
    CHECK(m.load64(slot) == 0);
    CHECK(m.iommu().stats().syncs == syncs + 5);
}

TEST_CASE("a ring outside memory stops the queue with CERROR_ABT", "[smmu][command]") {
    const std::uint64_t base = GENERATE(0x0ULL, guest::ram - 0x1000, guest::ram + guest::ram_bytes,
                                        0x000f'ffff'ffff'f000ULL);
    machine m;
    m.write32(reg::IRQ_CTRL, 1);
    start_ring(m, base, 8);
    CHECK_FALSE(stopped(m)); // empty: nothing is read
    m.write32(reg::CMDQ_PROD, 2);
    CHECK(stopped(m));
    CHECK(error_of(m) == cerror_abt);
    CHECK(position(m) == 0);
    CHECK(m.sink.pulses(wired_interrupt::gerror) == 1);
    // Acknowledged, it is tried again, and fails again.
    acknowledge(m);
    CHECK(stopped(m));
    CHECK(position(m) == 0);
    CHECK(m.sink.pulses(wired_interrupt::gerror) == 2);
    // Moved to memory, it works.
    m.write32(reg::CR0, 0);
    m.write64(reg::CMDQ_BASE, guest::command_ring | 8);
    m.store(guest::command_ring, harmless());
    m.store(guest::command_ring + 16, harmless());
    m.write32(reg::CR0, 0x8);
    CHECK(position(m) == 0); // the error is still active
    acknowledge(m);
    CHECK_FALSE(stopped(m));
    CHECK(position(m) == 2);
}

TEST_CASE("an error stops in the middle of a batch, and what came before counts",
          "[smmu][command]") {
    machine m;
    m.start();
    const std::uint64_t before = m.iommu().stats().commands;
    const std::uint32_t at = position(m);
    for (int i = 0; i < 3; ++i)
        m.enqueue(harmless());
    m.enqueue(with_opcode(0xff));
    for (int i = 0; i < 4; ++i)
        m.enqueue(harmless());
    m.ring();
    CHECK(position(m) == at + 3);
    CHECK(m.iommu().stats().commands == before + 3);
    // Other ways out do not exist: not PROD, not poll, not the queue's switch.
    m.ring();
    (void)m.iommu().poll();
    m.write32(reg::CR0, 0x5);
    m.write32(reg::CR0, 0xd);
    m.write32(reg::GERRORN, m.read32(reg::GERRORN)); // acknowledges nothing
    CHECK(position(m) == at + 3);
    CHECK(m.iommu().stats().commands == before + 3);
    m.store(guest::command_ring + (at + 3) * 16, harmless());
    acknowledge(m);
    CHECK(m.commands_done());
    CHECK(m.iommu().stats().commands == before + 8);
}

TEST_CASE("the ring wraps, at any size and from any position", "[smmu][command]") {
    const unsigned log2size = GENERATE(0U, 1U, 2U, 5U, 8U);
    CAPTURE(log2size);
    machine m;
    const std::uint32_t entries = 1U << log2size;
    const std::uint32_t mask = 2 * entries - 1;
    std::mt19937 random{log2size};
    // Bits above the wrap flag are not looked at.
    auto prod = static_cast<std::uint32_t>(random() & 0xf'ffff);
    start_ring(m, guest::command_ring, log2size, prod);
    std::uint64_t sent = 0;
    for (int round = 0; round < 2000; ++round) {
        const auto batch = static_cast<std::uint32_t>(1 + random() % entries); // up to a full ring
        for (std::uint32_t i = 0; i < batch; ++i, ++prod) {
            m.store(guest::command_ring + (prod & (entries - 1)) * 16, harmless());
        }
        sent += batch;
        m.write32(reg::CMDQ_PROD, prod & 0xf'ffff);
        REQUIRE(((position(m) ^ prod) & mask) == 0);
        // Consumed commands are not looked at again.
        m.store(guest::command_ring + ((prod - 1) & (entries - 1)) * 16, with_opcode(0xff));
    }
    CHECK_FALSE(stopped(m));
    CHECK(m.iommu().stats().commands == sent);
}

TEST_CASE("LOG2SIZE beyond the maximum is the maximum", "[smmu][command]") {
    const unsigned log2size = GENERATE(19U, 20U, 25U, 31U);
    CAPTURE(log2size);
    machine m;
    constexpr std::uint64_t ring = guest::ram + (8U << 20); // 2^19 commands are 8 MiB
    start_ring(m, ring, log2size, 0x7'ffff);
    m.store(ring + 0x7'ffffULL * 16, harmless());
    m.store(ring, harmless());
    m.write32(reg::CMDQ_PROD, 0x8'0001); // one in the last entry, one in the first
    CHECK(position(m) == 0x8'0001);
    CHECK_FALSE(stopped(m));
    CHECK(m.iommu().stats().commands == 2);
}

TEST_CASE("address bits inside the ring's size are taken as zero", "[smmu][command]") {
    struct row {
        unsigned log2size;
        std::uint64_t extra;
    };
    const auto r =
        GENERATE(row{8, 0x20}, row{8, 0xfe0}, row{1, 0x0}, row{5, 0x1e0}, row{12, 0xffe0});
    CAPTURE(r.log2size, r.extra);
    machine m;
    constexpr std::uint64_t ring = guest::ram + 0x10'0000; // aligned to all these sizes
    start_ring(m, ring | r.extra, r.log2size);
    m.store(ring, harmless());
    m.store(ring + 16, spec::cmd_sync(spec::sync_signal::SIG_IRQ));
    m.write32(reg::CMDQ_PROD, 2);
    CHECK(position(m) == 2);
    CHECK(m.sink.pulses(wired_interrupt::cmdq_sync) == 1);
    CHECK_FALSE(stopped(m));
}

TEST_CASE("PROD written while the queue is off counts when it is on", "[smmu][command]") {
    machine m;
    m.write64(reg::CMDQ_BASE, guest::command_ring | 4);
    for (std::uint64_t i = 0; i < 3; ++i)
        m.store(guest::command_ring + i * 16, harmless());
    m.write32(reg::CMDQ_PROD, 3);
    (void)m.iommu().poll();
    CHECK(position(m) == 0);
    CHECK(m.iommu().stats().commands == 0);
    m.write32(reg::CR0, 0x8);
    CHECK(position(m) == 3);
    CHECK(m.iommu().stats().commands == 3);
    // SMMUEN is not needed, and off again nothing moves.
    m.write32(reg::CR0, 0);
    m.write32(reg::CMDQ_PROD, 4);
    CHECK(position(m) == 3);
}

TEST_CASE("CMDQ_CONS.ERR keeps the reason after it is acknowledged", "[smmu][command]") {
    machine m;
    m.start();
    m.command(with_opcode(0));
    REQUIRE(error_of(m) == cerror_ill);
    m.store(guest::command_ring + (position(m) & 0xff) * 16, harmless());
    acknowledge(m);
    m.command(harmless());
    REQUIRE(m.commands_done());
    CHECK(error_of(m) == cerror_ill); // meaningful only while the error is active
    m.write32(reg::CR0, 0);
    m.write32(reg::CMDQ_CONS, position(m));
    CHECK(error_of(m) == 0);
}

TEST_CASE("StreamIDs that an invalidation of configurations names", "[smmu][command]") {
    struct row {
        const char* what;
        spec::command command;
        std::uint32_t first, last;
    };
    const auto r = GENERATE(
        row{"CFGI_STE", spec::cmd_cfgi_ste(stream_id{0x1234}, true), 0x1234, 0x1234},
        row{"CFGI_CD_ALL", spec::cmd_cfgi_cd_all(stream_id{9}), 9, 9},
        row{"range of 2", spec::cmd_cfgi_ste_range(stream_id{8}, 0), 8, 9},
        row{"range of 2, from its second", spec::cmd_cfgi_ste_range(stream_id{9}, 0), 8, 9},
        row{"range of 256", spec::cmd_cfgi_ste_range(stream_id{0x1'0234}, 7), 0x1'0200, 0x1'02ff},
        row{"range of 2^31", spec::cmd_cfgi_ste_range(stream_id{0x8000'0001}, 30), 0x8000'0000,
            0xffff'ffff},
        row{"all", spec::cmd_cfgi_all(), 0, 0xffff'ffff});
    CAPTURE(r.what);
    const command_action action = decode_command<stage1_features>(r.command);
    CHECK(action.what == command_action::kind::streams);
    CHECK(action.first_stream == r.first);
    CHECK(action.last_stream == r.last);
}

TEST_CASE("translations that a TLB command names", "[smmu][command]") {
    using kind = invalidation_scope::kind;
    struct row {
        const char* what;
        spec::command command;
        kind scope;
        std::uint16_t space;
        bool leaf;
        std::uint64_t first, last;
    };
    const auto r = GENERATE(
        row{"NH_ALL, its VMID ignored", spec::tlbi_nh_all(vmid{5}), kind::vm, 0, false, 0, ~0ULL},
        row{"NH_ASID", spec::tlbi_nh_asid(vmid{5}, asid{0xabcd}), kind::space, 0xabcd, false, 0,
            ~0ULL},
        row{"NH_VA", spec::tlbi_nh_va(vmid{5}, asid{3}, iova{0xffff'8000'1234'5000}, true),
            kind::address, 3, true, 0xffff'8000'1234'5000, 0xffff'8000'1234'5fff},
        row{"NH_VA, walk caches too", spec::tlbi_nh_va(vmid{0}, asid{3}, iova{0x5000}, false),
            kind::address, 3, false, 0x5000, 0x5fff},
        row{"NH_VAA", spec::tlbi_nh_vaa(vmid{0}, iova{0x7000}, true), kind::any_space, 0, true,
            0x7000, 0x7fff},
        row{"NSNH_ALL", spec::tlbi_nsnh_all(), kind::world, 0, false, 0, ~0ULL});
    CAPTURE(r.what);
    const command_action action = decode_command<stage1_features>(r.command);
    REQUIRE(action.what == command_action::kind::invalidate);
    CHECK(action.scope.what == r.scope);
    CHECK(action.scope.tag.world == stream_world::ns_el1);
    CHECK(action.scope.tag.vm == vmid{0});
    if (r.scope != kind::any_space) CHECK(raw(action.scope.tag.space) == r.space);
    CHECK(action.scope.leaf_only == r.leaf);
    CHECK(action.scope.first == r.first);
    CHECK(action.scope.last == r.last);
}

namespace {

/// Counts up granule by granule as long as that is quick, then by doubling; 128
/// bits wide in two words, so that nothing can overflow unseen.
struct slow_range {
    std::uint64_t first = 0;
    std::uint64_t last = 0;
};
slow_range slowly(std::uint64_t address, std::uint64_t tg, std::uint64_t num, std::uint64_t scale) {
    std::uint64_t granule = 4096;
    if (tg == 0) { // one address, whatever NUM and SCALE say
        num = 0;
        scale = 0;
    }
    for (std::uint64_t i = 1; i < tg; ++i)
        granule *= 4;
    address -= address % granule;
    const std::uint64_t room = ~address; // bytes above the first one
    std::uint64_t run = granule;
    bool past = false;
    for (std::uint64_t i = 0; i < scale; ++i) {
        past = past || run > room || run > (~std::uint64_t{0} >> 1);
        run *= 2;
    }
    std::uint64_t end = address - 1; // the last byte covered so far
    for (std::uint64_t i = 0; i <= num && !past; ++i) {
        if (run - 1 > ~(end + 1)) {
            past = true;
        } else {
            end += run;
            if (end == ~std::uint64_t{0} && i != num) past = true;
        }
    }
    return {address, past ? ~std::uint64_t{0} : end};
}

} // namespace

TEST_CASE("the addresses of a range are what counting gives", "[smmu][command]") {
    std::mt19937_64 random{20};
    std::array<unsigned, 4> with_tg{};
    unsigned at_the_top = 0;
    unsigned tried = 0;
    for (int i = 0; i < 20'000; ++i) {
        std::uint64_t address = random() & ~std::uint64_t{0xfff};
        if (i % 3 == 1) address >>= 16 + random() % 36;
        if (i % 3 == 2) address |= ~std::uint64_t{0} << (12 + random() % 44);
        address &= ~std::uint64_t{0xfff};
        const spec::tlbi_range range{
            .num = random() % 32, .scale = random() % 32, .tg = random() % 4, .ttl = random() % 4};
        const spec::command c = spec::tlbi_nh_va(vmid{0}, asid{1}, iova{address}, true, range);
        const command_action action = decode_command<stage1_features>(c);
        // Granules of 16 KiB have no leaves at level 1: that level is none.
        const bool no_level = range.ttl == 0 || (range.tg == 2 && range.ttl == 1);
        if (range.tg != 0 && range.num == 0 && range.scale == 0 && no_level) continue;
        CAPTURE(address, range.num, range.scale, range.tg);
        REQUIRE(action.what == command_action::kind::invalidate);
        const slow_range expected = slowly(address, range.tg, range.num, range.scale);
        REQUIRE(action.scope.first == expected.first);
        REQUIRE(action.scope.last == expected.last);
        ++with_tg[range.tg];
        if (expected.last == ~std::uint64_t{0}) ++at_the_top;
        ++tried;
    }
    CHECK(tried > 19'000);
    for (const unsigned n : with_tg)
        CHECK(n > 4'000);
    CHECK(at_the_top > 1'000);
}

TEST_CASE("edges of ranges", "[smmu][command]") {
    struct row {
        std::uint64_t address;
        spec::tlbi_range range;
        std::uint64_t first, last;
    };
    constexpr std::uint64_t top = ~std::uint64_t{0};
    const auto r = GENERATE_COPY(
        row{0, {.num = 31, .scale = 31, .tg = 1}, 0, (32ULL << 43) - 1},
        row{0xffff'ffff'ffff'f000, {.num = 0, .scale = 0, .tg = 1, .ttl = 3}, top & ~0xfffULL, top},
        row{0xffff'ffff'ffff'f000, {.num = 1, .scale = 0, .tg = 1}, top & ~0xfffULL, top},
        row{0xffff'ffff'ffff'e000, {.num = 1, .scale = 0, .tg = 1}, top & ~0x1fffULL, top},
        row{0xffff'ffff'ffff'd000, {.num = 1, .scale = 0, .tg = 1}, top & ~0x2fffULL, top - 0x1000},
        row{0xffff'f000, {.num = 2, .scale = 1, .tg = 1}, 0xffff'f000, 0x1'0000'4fff},
        row{0x1'7000, {.num = 1, .scale = 0, .tg = 2}, 0x1'4000, 0x1'bfff},
        row{0x1'7000, {.num = 1, .scale = 0, .tg = 3}, 0x1'0000, 0x2'ffff});
    CAPTURE(r.address, r.range.num, r.range.scale, r.range.tg);
    const command_action action = decode_command<stage1_features>(
        spec::tlbi_nh_va(vmid{0}, asid{1}, iova{r.address}, true, r.range));
    CHECK(action.scope.first == r.first);
    CHECK(action.scope.last == r.last);
}

// ---- the whole table, with every feature and with few ------------------------------------------

namespace {

struct whole : default_smmu_options {
    static constexpr smmu_features features = full_features;
};
struct second_stage_only : default_smmu_options {
    static constexpr smmu_features features = [] {
        smmu_features f;
        f.stage1 = false;
        f.stage2 = true;
        return f;
    }();
};

template <smmu_features F>
bool accepts(const spec::command& c) {
    return decode_command<F>(c).what != command_action::kind::illegal;
}

template <class Field>
spec::command with(spec::command c, std::uint64_t value) {
    set<Field>(c, value);
    return c;
}

} // namespace

TEST_CASE("opcodes are legal with the feature that has them, and only then", "[smmu][command]") {
    struct row {
        unsigned opcode;
        bool stage1, stage2_only, full;
    };
    constexpr row rows[] = {
        {0x01, true, true, true},   {0x02, true, true, true},   {0x03, true, true, true},
        {0x04, true, true, true},   {0x05, true, false, true},  {0x06, true, false, true},
        {0x07, false, false, true}, {0x10, true, false, true},  {0x11, true, false, true},
        {0x12, true, false, true},  {0x13, true, false, true},  {0x20, false, false, true},
        {0x21, false, false, true}, {0x22, false, false, true}, {0x23, false, false, true},
        {0x28, false, true, true},  {0x2a, false, true, true},  {0x30, true, true, true},
        {0x40, false, false, true}, {0x41, false, false, true}, {0x44, false, false, true},
        {0x45, false, false, true}, {0x46, true, true, true},
    };
    for (unsigned opcode = 0; opcode < 256; ++opcode) {
        CAPTURE(opcode);
        row expected{opcode, false, false, false};
        for (const row& r : rows) {
            if (r.opcode == opcode) expected = r;
        }
        const spec::command c = with_opcode(opcode);
        CHECK(accepts<stage1_features>(c) == expected.stage1);
        CHECK(accepts<second_stage_only::features>(c) == expected.stage2_only);
        CHECK(accepts<full_features>(c) == expected.full);
        // EL3, secure and DPT opcodes, and reserved ones, are in no row.
    }
}

TEST_CASE("reserved values of operands are illegal, with every feature", "[smmu][command]") {
    using T = spec::CMD_TLBI;
    struct row {
        const char* what;
        spec::command command;
        bool legal;
    };
    const auto secure = [](unsigned opcode) {
        return with<spec::command::SSec>(with_opcode(opcode), 1);
    };
    const auto va = [](unsigned opcode, std::uint64_t tg, std::uint64_t ttl, std::uint64_t num = 0,
                       std::uint64_t scale = 0) {
        return with<T::SCALE>(
            with<T::NUM>(with<T::TTL>(with<T::TG>(with_opcode(opcode), tg), ttl), num), scale);
    };
    const auto size = [](std::uint64_t n) {
        return with<spec::CMD_ATC_INV::Size>(with_opcode(0x40), n);
    };
    const auto resp = [](std::uint64_t n) {
        return with<spec::CMD_PRI_RESP::Resp>(with_opcode(0x41), n);
    };
    const auto r = GENERATE_COPY(
        row{"SSec, CFGI_VMS_PIDM", secure(0x07), false}, row{"SSec, ATC_INV", secure(0x40), false},
        row{"SSec, PRI_RESP", secure(0x41), false}, row{"SSec, RESUME", secure(0x44), false},
        row{"SSec, STALL_TERM", secure(0x45), false},
        row{"NH_VAA, TG alone", va(0x13, 1, 0), false},
        row{"EL2_VA, TG alone", va(0x22, 3, 0), false},
        row{"EL2_VAA, TG alone", va(0x23, 2, 0), false},
        row{"S2_IPA, TG alone", va(0x2a, 1, 0), false},
        row{"S2_IPA, a level", va(0x2a, 1, 2), true},
        row{"S2_IPA, two granules", va(0x2a, 1, 0, 1), true},
        row{"NH_VA, SCALE alone", va(0x12, 1, 0, 0, 1), true},
        row{"16K leaves at level 1, with DS", va(0x12, 2, 1), true},
        row{"SCALE = 32, with DS", va(0x12, 1, 0, 0, 32), true},
        row{"ATC_INV of everything", size(52), true}, row{"ATC_INV of more", size(53), false},
        row{"ATC_INV of a page", size(0), true}, row{"PRI_RESP failure", resp(0), true},
        row{"PRI_RESP success", resp(2), true}, row{"PRI_RESP reserved", resp(3), false},
        row{"SYNC, CS = 3", with<spec::CMD_SYNC::CS>(with_opcode(0x46), 3), false});
    CAPTURE(r.what);
    CHECK(accepts<full_features>(r.command) == r.legal);
    guest::machine<no_tlb, whole> f;
    f.start();
    f.command(r.command);
    CHECK(f.commands_done() == r.legal);
    if (!r.legal) CHECK((f.cons() >> 24 & 0x7f) == cerror_ill);
}

TEST_CASE("levels and scales without IDR5.DS", "[smmu][command]") {
    constexpr smmu_features plain{};
    using T = spec::CMD_TLBI;
    const auto va = [](std::uint64_t tg, std::uint64_t ttl, std::uint64_t scale) {
        spec::command c = with_opcode(0x12);
        return with<T::SCALE>(with<T::TTL>(with<T::TG>(c, tg), ttl), scale);
    };
    CHECK_FALSE(accepts<plain>(va(2, 1, 0))); // as if TTL were 0
    CHECK(accepts<plain>(va(1, 1, 0)));
    CHECK_FALSE(accepts<plain>(va(1, 0, 32))); // bit 5 of SCALE is no part of it
    CHECK(decode_command<full_features>(va(1, 0, 20)).scope.last == (1ULL << 32) - 1);
    CHECK(decode_command<full_features>(va(1, 0, 39)).scope.last == (1ULL << 51) - 1);
    CHECK(decode_command<full_features>(va(1, 0, 63)).scope.last == (1ULL << 51) - 1);
    CHECK(decode_command<plain>(va(1, 0, 52)).scope.last == (1ULL << 32) - 1);
}

TEST_CASE("translations that a TLB command names, with every feature", "[smmu][command]") {
    using kind = invalidation_scope::kind;
    using world = stream_world;
    constexpr std::uint64_t top = ~std::uint64_t{0};
    struct part {
        kind what;
        world of;
        unsigned vm, space;
        std::uint64_t first, last;
    };
    struct row {
        const char* what;
        spec::command command;
        bool e2h;
        part scope;
        std::optional<part> also;
    };
    const vmid vm{0xbeef};
    const asid space{0x77};
    const iova at{0x1234'5000};
    const auto r = GENERATE_COPY(
        row{"NH_ALL",
            spec::tlbi_nh_all(vm),
            false,
            {kind::vm, world::ns_el1, 0xbeef, 0, 0, top},
            {}},
        row{"NH_ASID",
            spec::tlbi_nh_asid(vm, space),
            false,
            {kind::space, world::ns_el1, 0xbeef, 0x77, 0, top},
            {}},
        row{"NH_VA",
            spec::tlbi_nh_va(vm, space, at, true),
            false,
            {kind::address, world::ns_el1, 0xbeef, 0x77, 0x1234'5000, 0x1234'5fff},
            {}},
        row{"NH_VAA",
            spec::tlbi_nh_vaa(vm, at, true),
            false,
            {kind::any_space, world::ns_el1, 0xbeef, 0, 0x1234'5000, 0x1234'5fff},
            {}},
        row{"EL2_ALL reaches both worlds",
            spec::tlbi_el2_all(),
            false,
            {kind::world, world::ns_el2, 0, 0, 0, top},
            part{kind::world, world::ns_el2_e2h, 0, 0, 0, top}},
        row{"EL2_ASID",
            spec::tlbi_el2_asid(space),
            true,
            {kind::space, world::ns_el2_e2h, 0, 0x77, 0, top},
            {}},
        row{"EL2_VA, E2H",
            spec::tlbi_el2_va(space, at, true),
            true,
            {kind::address, world::ns_el2_e2h, 0, 0x77, 0x1234'5000, 0x1234'5fff},
            {}},
        row{"EL2_VA, no E2H: the ASID is ignored",
            spec::tlbi_el2_va(space, at, true),
            false,
            {kind::any_space, world::ns_el2, 0, 0, 0x1234'5000, 0x1234'5fff},
            {}},
        row{"EL2_VAA, E2H",
            spec::tlbi_el2_vaa(at, true),
            true,
            {kind::any_space, world::ns_el2_e2h, 0, 0, 0x1234'5000, 0x1234'5fff},
            {}},
        row{"EL2_VAA, no E2H",
            spec::tlbi_el2_vaa(at, true),
            false,
            {kind::any_space, world::ns_el2, 0, 0, 0x1234'5000, 0x1234'5fff},
            {}},
        row{"S12_VMALL",
            spec::tlbi_s12_vmall(vm),
            false,
            {kind::vm, world::stage2, 0xbeef, 0, 0, top},
            part{kind::vm, world::ns_el1, 0xbeef, 0, 0, top}},
        row{"S2_IPA",
            spec::tlbi_s2_ipa(vm, ipa{0xabc'd000}, true),
            false,
            {kind::any_space, world::stage2, 0xbeef, 0, 0xabc'd000, 0xabc'dfff},
            part{kind::vm, world::ns_el1, 0xbeef, 0, 0, top}},
        row{"S2_IPA, a range",
            spec::tlbi_s2_ipa(vm, ipa{0xabc'd000}, true, {.num = 3, .scale = 0, .tg = 1}),
            false,
            {kind::any_space, world::stage2, 0xbeef, 0, 0xabc'd000, 0xabd'0fff},
            part{kind::vm, world::ns_el1, 0xbeef, 0, 0, top}},
        row{"NSNH_ALL",
            spec::tlbi_nsnh_all(),
            false,
            {kind::world, world::stage2, 0, 0, 0, top}, // first: see decode_command
            part{kind::world, world::ns_el1, 0, 0, 0, top}});
    CAPTURE(r.what);
    const command_action action = decode_command<full_features>(r.command, r.e2h);
    REQUIRE(action.what == command_action::kind::invalidate);
    const auto check = [](const invalidation_scope& scope, const part& expected) {
        CHECK(scope.what == expected.what);
        CHECK(scope.tag.world == expected.of);
        CHECK(raw(scope.tag.vm) == expected.vm);
        if (scope.what == kind::address || scope.what == kind::space) {
            CHECK(raw(scope.tag.space) == expected.space);
        }
        CHECK(scope.first == expected.first);
        CHECK(scope.last == expected.last);
    };
    check(action.scope, r.scope);
    REQUIRE(action.also.has_value() == r.also.has_value());
    if (r.also) check(*action.also, *r.also);
}

TEST_CASE("what the other commands carry", "[smmu][command]") {
    using kind = command_action::kind;
    const auto decode = [](const spec::command& c) { return decode_command<full_features>(c); };
    const auto of_stream = [](unsigned opcode, std::uint64_t ssid) {
        spec::command c = with_opcode(opcode);
        set<spec::CMD_ATC_INV::StreamID>(c, 0xcafe'f00d);
        set<spec::CMD_ATC_INV::SubstreamID>(c, ssid);
        set<spec::command::SSV>(c, 1);
        return c;
    };

    command_action a = decode(spec::cmd_cfgi_cd(stream_id{7}, substream_id{0x12345}, true));
    CHECK(a.what == kind::context);
    CHECK(raw(a.stream()) == 7);
    CHECK(raw(a.substream) == 0x12345);

    a = decode(with<spec::CMD_CFGI::VMID>(with_opcode(0x07), 0xbeef));
    CHECK(a.what == kind::partitions);
    CHECK(raw(a.scope.tag.vm) == 0xbeef);

    a = decode(with<spec::CMD_ATC_INV::Address>(of_stream(0x40, 0xfffff), 0x12345));
    CHECK(a.what == kind::invalidate_atc);
    CHECK(raw(a.stream()) == 0xcafe'f00d);
    CHECK(a.has_substream);
    CHECK(raw(a.substream) == 0xfffff);
    CHECK_FALSE(a.global);
    CHECK(a.first == 0x1234'5000);
    CHECK(a.last == 0x1234'5fff);
    spec::command c = with<spec::CMD_ATC_INV::Address>(of_stream(0x40, 1), 0x12345);
    set<spec::CMD_ATC_INV::Size>(c, 8);
    set<spec::CMD_ATC_INV::Global>(c, 1);
    a = decode(c);
    CHECK(a.first == 0x1230'0000); // aligned to its size
    CHECK(a.last == 0x123f'ffff);
    CHECK(a.global);
    set<spec::CMD_ATC_INV::Size>(c, 52);
    set<spec::command::SSV>(c, 0);
    a = decode(c);
    CHECK(a.first == 0);
    CHECK(a.last == ~std::uint64_t{0});
    CHECK_FALSE(a.has_substream);
    CHECK_FALSE(a.global); // has no meaning without a SubstreamID

    c = with<spec::CMD_PRI_RESP::PRGIndex>(of_stream(0x41, 9), 0x1ff);
    a = decode(with<spec::CMD_PRI_RESP::Resp>(c, 2));
    CHECK(a.what == kind::answer_pages);
    CHECK(a.tag == 0x1ff);
    CHECK(a.response == 2);
    CHECK(raw(a.substream) == 9);

    for (std::uint64_t resp = 0; resp < 4; ++resp) {
        a = decode(spec::cmd_resume(stream_id{3}, 0xabcd, resp));
        CHECK(a.what == kind::resume);
        CHECK(raw(a.stream()) == 3);
        CHECK(a.tag == 0xabcd);
        CHECK(a.retry == ((resp & 1) != 0));
        CHECK(a.abort == ((resp & 2) != 0));
    }
    constexpr smmu_features aborts_only = [] {
        smmu_features f;
        f.stalls = true;
        return f;
    }();
    CHECK(decode_command<aborts_only>(spec::cmd_resume(stream_id{3}, 1, 0)).abort);
    CHECK(decode(of_stream(0x45, 0)).what == kind::terminate_stalls);

    c = with<spec::CMD_PREFETCH::Address>(of_stream(0x02, 5), 0x42);
    set<spec::CMD_PREFETCH::Size>(c, 3);
    set<spec::CMD_PREFETCH::Stride>(c, 9);
    a = decode(c);
    CHECK(a.what == kind::prefetch);
    CHECK(a.first == 0x42'000);
    CHECK(a.pages == 8);
    CHECK(a.stride_log2 == 21);
    CHECK(raw(a.substream) == 5);
    CHECK(decode(of_stream(0x01, 5)).pages == 0);
    CHECK_FALSE(decode_command<stage1_features>(of_stream(0x01, 5)).has_substream);

    a = decode(spec::cmd_sync_msi(pa{0xf'1234'5678'9abc}, 0x1234'5678));
    CHECK(a.what == kind::sync);
    CHECK(a.interrupt);
    CHECK(a.message.address == 0xf'1234'5678'9abc);
    CHECK(a.message.data == 0x1234'5678);
    CHECK_FALSE(decode(spec::cmd_sync(spec::sync_signal::SIG_SEV)).interrupt);
    CHECK_FALSE(decode_command<stage1_features>(spec::cmd_sync_msi(pa{0x1000}, 1)).message);
}

namespace {

/// A machine whose stream 5 has 64 pages mapped at 0x10'0000, in order.
template <class Options>
struct with_stream : guest::machine<set_associative<64, 4>, Options> {
    static constexpr std::uint64_t first_page = 0x10'0000;
    with_stream() {
        this->start();
        root = this->stage1_stream(5, 1);
        for (std::uint64_t i = 0; i < 64; ++i)
            this->map(root, first_page + i * 0x1000, guest::ram + 0x80'0000 + i * 0x1000);
        REQUIRE(this->iommu().attach_device("disk", this->all_of_ram, stream_id{5}));
    }
    void prefetch(std::uint64_t address, std::uint64_t size, std::uint64_t stride = 0) {
        spec::command c = with_opcode(0x02);
        set<spec::CMD_PREFETCH::StreamID>(c, 5);
        c.word[1] = le64{address | stride << 5 | size};
        this->command(c);
        REQUIRE(this->commands_done());
    }
    /// Whether an access finds its translation ready.
    bool hits(std::uint64_t address) {
        auto port = this->iommu().make_port("disk").value();
        const std::uint64_t before = this->iommu().stats().hits;
        std::array<std::byte, 4> bytes{};
        (void)port.read(iova{address}, bytes);
        return this->iommu().stats().hits == before + 1;
    }
    std::uint64_t root = 0;
};

} // namespace

TEMPLATE_TEST_CASE("a prefetched translation is there, and leaves no trace", "[smmu][command]",
                   default_smmu_options, whole) {
    with_stream<TestType> m;
    constexpr std::uint64_t at = with_stream<TestType>::first_page;
    SECTION("one page") {
        m.prefetch(at, 0);
        CHECK(m.hits(at));
        CHECK_FALSE(m.hits(at + 0x1000));
    }
    SECTION("many, one stride from another") {
        m.prefetch(at, 2, 1); // four of them, 8 KiB apart
        for (std::uint64_t i = 0; i < 10; ++i) {
            CAPTURE(i);
            CHECK(m.hits(at + i * 0x1000) == (i < 8 && i % 2 == 0));
        }
    }
    SECTION("an invalidation after it counts") {
        m.prefetch(at, 0);
        m.command(spec::tlbi_nh_asid(vmid{0}, asid{1}));
        CHECK_FALSE(m.hits(at));
    }
    SECTION("what is not there is no event, no fault and no error") {
        m.prefetch(0x4000'0000, 4);
        m.prefetch(~std::uint64_t{0xfff}, 31, 31);
        spec::command c = with_opcode(0x02);
        set<spec::CMD_PREFETCH::StreamID>(c, 0x1234); // nobody
        m.command(c);
        CHECK(m.commands_done());
        CHECK_FALSE(m.event());
        CHECK(m.iommu().stats().faults == 0);
    }
    SECTION("nothing is looked at while SMMUEN is 0") {
        m.write32(reg::CR0, 0xc);
        m.prefetch(at, 0);
        m.write32(reg::CR0, 0xd);
        CHECK_FALSE(m.hits(at));
    }
    SECTION("a page whose access flag is to be set is not kept") {
        m.map(m.root, at, guest::ram + 0x80'0000, 3, {.access_flag = false});
        m.prefetch(at, 0);
        const std::uint64_t descriptor = m.load64(m.descriptor_slot(m.root, at));
        CHECK((descriptor & spec::stage1_leaf::AF::mask) == 0);
        CHECK_FALSE(m.hits(at));
        CHECK(m.event().has_value() == true); // the access itself faults
    }
}

TEST_CASE("a flag that hardware is to set is not set by a prefetch", "[smmu][command]") {
    with_stream<whole> m;
    constexpr std::uint64_t at = with_stream<whole>::first_page;
    const std::uint64_t cd_page = m.take_pages();
    spec::cd c = m.plain_cd(m.root, 1);
    set<spec::cd::HA>(c, 1);
    m.store(cd_page, c);
    m.store(m.ste_address(5), m.plain_ste(spec::ste_config::s1_translate, cd_page));
    m.command(spec::cmd_cfgi_ste(stream_id{5}, true));
    m.map(m.root, at, guest::ram + 0x80'0000, 3, {.access_flag = false});
    const auto flag = [&] {
        return (m.load64(m.descriptor_slot(m.root, at)) & spec::stage1_leaf::AF::mask) != 0;
    };
    m.prefetch(at, 0);
    CHECK_FALSE(flag());
    CHECK_FALSE(m.hits(at)); // the access sets it
    CHECK(flag());
    CHECK(m.hits(at));
    CHECK_FALSE(m.event());
}

TEST_CASE("the configuration alone can be prefetched", "[smmu][command]") {
    with_stream<default_smmu_options> m;
    m.command(spec::cmd_prefetch_config(stream_id{5}));
    // Decoded then: what is written later is seen after a CFGI only.
    m.store(m.ste_address(5), m.plain_ste(spec::ste_config::abort));
    auto port = m.iommu().make_port("disk").value();
    std::array<std::byte, 4> bytes{};
    CHECK(port.read(iova{m.first_page}, bytes));
    m.command(spec::cmd_cfgi_ste(stream_id{5}, true));
    CHECK_FALSE(port.read(iova{m.first_page}, bytes));
}
