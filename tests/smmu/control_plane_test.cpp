// The control plane by itself, with an executor that plays the rest of the
// SMMU: which commands reach it, and what a CMD_SYNC waits for.
#include "guest_driver.hpp"

#include <vm_accel/smmu/control/control_plane.hpp>

#include <catch2/catch.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

using namespace vm_accel;
namespace reg = vm_accel::spec::reg;

namespace {

struct whole : default_smmu_options {
    static constexpr smmu_features features = full_features;
};

/// Notes what it is asked for.
struct noting_executor {
    void forget_streams(std::uint32_t first, std::uint32_t last) noexcept {
        note("streams " + std::to_string(first) + "-" + std::to_string(last));
    }
    void forget_context(const command_action& a) noexcept {
        note("context " + std::to_string(a.first_stream) + "." + std::to_string(raw(a.substream)));
    }
    void forget_partitions(const command_action& a) noexcept {
        note("partitions " + std::to_string(raw(a.scope.tag.vm)));
    }
    void prefetch(const command_action&) noexcept { note("prefetch"); }
    effects invalidate_atc(const command_action&) noexcept { return note("invalidate_atc"); }
    effects answer_pages(const command_action&) noexcept { return note("answer_pages"); }
    effects resume(const command_action&) noexcept { return note("resume"); }
    effects terminate_stalls(const command_action&) noexcept { return note("terminate_stalls"); }
    atc_progress atc() noexcept {
        ++asked;
        return progress;
    }
    bool settle_events(effects&) noexcept { return true; }
    void smmu_disabled() noexcept { note("smmu_disabled"); }
    void run_atos() noexcept { note("run_atos"); }

    effects note(const std::string& what) {
        notes.push_back(what);
        return {};
    }
    std::vector<std::string> take() { return std::exchange(notes, {}); }

    std::vector<std::string> notes;
    atc_progress progress = atc_progress::done;
    unsigned asked = 0;
};
static_assert(command_executor<noting_executor>);

struct bench {
    static constexpr smmu_features F = full_features;
    static constexpr std::uint64_t ring = guest::ram + 0x1000;
    static constexpr std::uint64_t enhanced_ring = guest::ram + 0x2000;

    bench() {
        REQUIRE(memory.add(pa{guest::ram}, pages.data(), pages.size()));
        REQUIRE(guards.allocate(4));
        REQUIRE(configurations.allocate(4, 4, 32));
        REQUIRE(plane.allocate());
        write(reg::CMDQ_BASE, ring | 6, 8);
        write(reg::IRQ_CTRL, 7);
        write(reg::CR0, 0xd);
        (void)executor.take();
    }
    effects write(std::uint64_t offset, std::uint64_t value, unsigned size = 4) {
        effects out;
        plane.write(offset, size, value, memory, executor, 64, out);
        return out;
    }
    effects service() {
        effects out;
        plane.service(memory, executor, 64, out);
        return out;
    }
    void store(std::uint64_t at, const spec::command& c) {
        for (std::size_t i = 0; i < 2; ++i) {
            const std::uint64_t value = c.word[i].value();
            REQUIRE(memory.write(pa{at + 8 * i}, std::as_bytes(std::span{&value, 1})));
        }
    }
    effects command(const spec::command& c) {
        store(ring + (prod & 63) * 16, c);
        prod = (prod + 1) & 127;
        return write(reg::CMDQ_PROD, prod);
    }
    std::uint32_t cons() { return static_cast<std::uint32_t>(registers.read(reg::CMDQ_CONS, 4)); }
    bool done() { return (cons() & 0xf'ffff) == prod; }

    guest::host_pages pages{1U << 16};
    region_map memory;
    no_tlb tlb;
    no_walk_cache walks;
    configuration_cache configurations;
    register_file<F> registers;
    quiescence_domain<single_threaded> guards{configurations.epoch()};
    noting_executor executor;
    control_plane<F, no_tlb, no_walk_cache, single_threaded> plane{tlb, walks, configurations,
                                                                   registers, guards};
    std::uint32_t prod = 0;
};

spec::command plain(unsigned opcode) {
    return spec::make_command(spec::opcode{static_cast<std::uint8_t>(opcode)});
}
const spec::command sync_command = spec::cmd_sync(spec::sync_signal::SIG_IRQ);

} // namespace

TEST_CASE("commands reach those whom they are for", "[smmu][control]") {
    struct row {
        spec::command command;
        const char* note;
        bool only_while_enabled; ///< ignored while SMMUEN is 0
    };
    spec::command vms = plain(0x07);
    set<spec::CMD_CFGI::VMID>(vms, 9);
    const auto r = GENERATE_COPY(
        row{spec::cmd_cfgi_ste(stream_id{7}, true), "streams 7-7", false},
        row{spec::cmd_cfgi_cd_all(stream_id{7}), "streams 7-7", false},
        row{spec::cmd_cfgi_cd(stream_id{7}, substream_id{3}, true), "context 7.3", false},
        row{vms, "partitions 9", false}, row{plain(0x01), "prefetch", true},
        row{plain(0x02), "prefetch", true}, row{plain(0x40), "invalidate_atc", true},
        row{plain(0x41), "answer_pages", true}, row{plain(0x44), "resume", false},
        row{plain(0x45), "terminate_stalls", false});
    CAPTURE(r.note);
    bench b;
    (void)b.command(r.command);
    CHECK(b.done());
    CHECK(b.executor.take() == std::vector<std::string>{r.note});
    (void)b.write(reg::CR0, 0xc);
    CHECK(b.executor.take() == std::vector<std::string>{"streams 0-4294967295", "smmu_disabled"});
    (void)b.command(r.command);
    CHECK(b.done());
    CHECK(b.executor.take().empty() == r.only_while_enabled);
}

TEST_CASE("CMD_SYNC waits for devices that invalidate, and for those only", "[smmu][control]") {
    bench b;
    b.executor.progress = atc_progress::pending;
    (void)b.command(sync_command); // nothing was sent
    CHECK(b.done());
    CHECK(b.executor.asked == 0);
    (void)b.command(plain(0x40));
    CHECK(b.done());
    (void)b.command(sync_command);
    (void)b.command(plain(0x45)); // behind it
    CHECK_FALSE(b.done());
    CHECK(b.plane.sync_pending());
    CHECK_FALSE(b.service().raise_cmdq_sync);
    CHECK(b.executor.take() == std::vector<std::string>{"invalidate_atc"});
    b.executor.progress = atc_progress::done;
    const effects out = b.service();
    CHECK(out.raise_cmdq_sync);
    CHECK(b.done());
    CHECK_FALSE(b.plane.sync_pending());
    CHECK(b.executor.take() == std::vector<std::string>{"terminate_stalls"});
    // It has been waited for: the next one does not ask again.
    const unsigned asked = b.executor.asked;
    (void)b.command(sync_command);
    CHECK(b.executor.asked == asked);
}

TEST_CASE("an invalidation that a device does not answer is CERROR_ATC_INV_SYNC",
          "[smmu][control]") {
    const bool late = GENERATE(false, true);
    bench b;
    (void)b.command(plain(0x40));
    b.executor.progress = late ? atc_progress::pending : atc_progress::failed;
    effects out = b.command(sync_command);
    if (late) {
        CHECK_FALSE(out.raise_gerror);
        b.executor.progress = atc_progress::failed;
        out = b.service();
    }
    CHECK(out.raise_gerror);
    CHECK_FALSE(out.raise_cmdq_sync);
    CHECK(b.cons() == (3U << 24 | 1)); // on the CMD_SYNC
    CHECK(b.registers.error_active(spec::GERROR::CMDQ_ERR::mask));
    CHECK_FALSE(b.plane.sync_pending());
    // Acknowledged, the same CMD_SYNC is tried again: nothing is outstanding now.
    b.executor.progress = atc_progress::done;
    out = b.write(reg::GERRORN, 1);
    CHECK(out.raise_cmdq_sync);
    CHECK(b.done());
}

TEST_CASE("a device is waited for by the queue that sent to it", "[smmu][control]") {
    bench b;
    (void)b.write(0x20000, b.enhanced_ring | 4, 8);
    (void)b.write(0x20008, 0x8000'0000);
    b.store(b.enhanced_ring, plain(0x40));
    b.store(b.enhanced_ring + 16, sync_command);
    b.executor.progress = atc_progress::pending;
    (void)b.write(0x20008, 0x8000'0002);
    CHECK(b.registers.read(0x2000c, 4) == 0x8000'0001);
    (void)b.command(sync_command);
    CHECK(b.done());
    b.executor.progress = atc_progress::failed;
    const effects out = b.service();
    CHECK(out.raise_gerror);
    CHECK(b.registers.read(0x2000c, 4) == (0x8080'0001 | 3U << 24));
    CHECK_FALSE(b.registers.error_active(spec::GERROR::CMDQ_ERR::mask));
    CHECK(b.registers.error_active(spec::GERROR::CMDQP_ERR::mask));
}

TEST_CASE("a reset ends what waits", "[smmu][control]") {
    bench b;
    (void)b.command(plain(0x40));
    b.executor.progress = atc_progress::pending;
    (void)b.command(sync_command);
    REQUIRE(b.plane.sync_pending());
    (void)b.executor.take();
    b.plane.begin_reset(b.executor);
    CHECK(b.executor.take() == std::vector<std::string>{"streams 0-4294967295", "smmu_disabled"});
    CHECK_FALSE(b.plane.sync_pending());
    (void)b.write(reg::CR0, 0xd); // ignored in the middle of a reset
    CHECK(b.registers.read(reg::CR0, 4) == 0);
    b.plane.finish_reset(b.executor);
    CHECK(b.cons() == 0);
    CHECK_FALSE(b.service().raise_cmdq_sync);
}

TEST_CASE("GATOS is started once for each RUN", "[smmu][control]") {
    bench b;
    (void)b.write(reg::GATOS_CTRL, 1);
    CHECK(b.executor.take() == std::vector<std::string>{"run_atos"});
    CHECK(b.registers.read(reg::GATOS_CTRL, 4) == 1); // until it is answered
    (void)b.write(reg::GATOS_CTRL, 1);
    (void)b.write(reg::GATOS_CTRL, 0);
    (void)b.write(reg::GATOS_SID, 7, 8);
    (void)b.write(reg::GATOS_ADDR, 0x1000, 8);
    CHECK(b.executor.take().empty());
    CHECK(b.registers.read(reg::GATOS_SID, 8) == 0);
    CHECK(b.registers.read(reg::GATOS_ADDR, 8) == 0);
    REQUIRE(b.registers.atos().pending());
    b.registers.atos().finish(0x1234'5000);
    CHECK(b.registers.read(reg::GATOS_CTRL, 4) == 0);
    CHECK(b.registers.read(reg::GATOS_PAR, 8) == 0x1234'5000);
    (void)b.write(reg::GATOS_CTRL, 1);
    CHECK(b.executor.take() == std::vector<std::string>{"run_atos"});
}

TEMPLATE_TEST_CASE("the SMMU is disabled and enabled again in the middle of an access",
                   "[smmu][control]", default_smmu_options, whole) {
    guest::machine<set_associative<16, 2>, TestType> m;
    m.start();
    const std::uint64_t root = m.stage1_stream(5, 1);
    m.map(root, 0x4000'1000, guest::ram + 0x80'0000);
    REQUIRE(m.iommu().attach_device("disk", m.all_of_ram, stream_id{5}));
    auto port = m.iommu().make_port("disk").value();
    auto other = m.iommu().make_port("disk").value();
    const auto goes_to = [&](auto& through) {
        auto guard = through.open();
        const outcome o = guard.translate(iova{0x4000'1000}, 4, access::read);
        return o.is_span() ? raw(o.address()) : 0;
    };
    constexpr std::uint64_t translated = guest::ram + 0x80'0000;
    REQUIRE(goes_to(port) == translated);
    const bool aborts = GENERATE(false, true);
    m.write32(reg::GBPA, aborts ? 0x8010'0000 : 0x8000'0000);
    {
        auto guard = port.open();
        const outcome o = guard.translate(iova{0x4000'1000}, 4, access::write);
        REQUIRE(o.is_span());
        m.write32(reg::CR0, 0xc);
        CHECK(m.read32(reg::CR0) == 0xc);
        CHECK(m.read32(reg::CR0ACK) == 0xd); // while the access goes on
        *o.host() = std::byte{0x5a};
        // New accesses go by GBPA already: untranslated, or not at all.
        CHECK(goes_to(other) == (aborts ? 0 : 0x4000'1000));
        // On again before the first change is acknowledged.
        m.write32(reg::CR0, 0xd);
        CHECK(goes_to(other) == translated);
        CHECK(m.read32(reg::CR0ACK) == 0xd);
        m.write32(reg::CR0, 0xc);
        CHECK(m.read32(reg::CR0ACK) == 0xd);
    }
    CHECK(m.read32(reg::CR0ACK) == 0xc);
    CHECK(std::to_integer<int>(*m.host(translated)) == 0x5a);
    CHECK(goes_to(port) == (aborts ? 0 : 0x4000'1000));
    // Commands are executed meanwhile, and what they name is gone afterwards.
    m.unmap(root, 0x4000'1000);
    m.command(spec::tlbi_nsnh_all());
    m.sync();
    CHECK(m.commands_done());
    m.write32(reg::CR0, 0xd);
    CHECK(m.read32(reg::CR0ACK) == 0xd);
    CHECK(goes_to(port) == 0);
    CHECK(m.event().has_value());
}
