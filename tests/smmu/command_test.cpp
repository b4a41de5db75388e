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
