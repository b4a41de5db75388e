// Save and restore: an SMMU that was saved at any moment, and restored into a
// new one on a copy of the memory, goes on as if nothing had happened; and a
// state that is damaged is refused.
#include "guest_driver.hpp"

#include <catch2/catch.hpp>

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

using namespace vm_accel;
namespace reg = vm_accel::spec::reg;
namespace pmcg = vm_accel::spec::pmcg;

namespace {

constexpr std::uint32_t sids[] = {0x10, 0x20}; // the second one's faults stall
constexpr std::uint64_t pool = guest::ram + 0x80'0000;

constexpr smmu_features moving_features = [] {
    smmu_features f = stage1_features;
    f.stalls = true;
    f.stall_max = 4;
    f.atos = true;
    f.msi = true;
    f.performance_counters = 2;
    return f;
}();
struct moving_options : default_smmu_options {
    static constexpr smmu_features features = moving_features;
    static constexpr unsigned commands_per_call = 4; // so that commands are left over
};

/// What a driver and its devices remember; it moves along with the machine.
struct memory_of_driver {
    std::array<std::uint64_t, 2> roots{};
    std::array<std::map<std::uint64_t, std::uint64_t>, 2> mapped;
    std::vector<stall_ticket> tickets;
    bool bypassing = false;
};

using machine_type = guest::machine<set_associative<16, 2>, moving_options>;
using device_port = machine_type::device::port;

struct world : machine_type, memory_of_driver {
    world() {
        for (const std::uint32_t sid : sids)
            (void)iommu().attach_device(name_of(sid), all_of_ram, stream_id{sid}).value();
        for (const std::uint32_t sid : sids)
            ports.push_back(iommu().make_port(name_of(sid)).value());
    }
    static std::string name_of(std::uint32_t sid) { return "device " + std::to_string(sid); }

    void boot() {
        start();
        for (unsigned i = 0; i < 2; ++i)
            roots[i] = stage1_stream(sids[i], static_cast<std::uint16_t>(i + 1));
        const std::uint64_t cd = load64(ste_address(sids[1])) & spec::ste::S1ContextPtr::mask;
        spec::cd stalling = plain_cd(roots[1], 2);
        set<spec::cd::S>(stalling, 1);
        store(cd, stalling);
        command(spec::cmd_cfgi_ste(stream_id{sids[1]}, true));
        sync();
        auto g = iommu().performance_monitor();
        g.mmio_write(pmcg::EVTYPER0, 4, 1 | 1U << 29);
        g.mmio_write(pmcg::SMR0, 4, 0xffff);
        g.mmio_write(pmcg::EVCNTR0, 8, 0);
        g.mmio_write(pmcg::CNTENSET0, 8, 1);
        g.mmio_write(pmcg::CR, 4, 1);
    }
    std::vector<std::byte> saved() {
        std::vector<std::byte> state(iommu().saved_state_size());
        const result<std::size_t> bytes = iommu().save(state);
        REQUIRE(bytes);
        REQUIRE(*bytes == state.size());
        return state;
    }
    /// A new machine goes on where the other one is.
    void take_over(world& other) {
        static_cast<memory_of_driver&>(*this) = other;
        const std::vector<std::byte> state = other.saved();
        continue_from(other);
        const result<> restored = iommu().restore(state);
        if (!restored) FAIL(std::string{restored.error().cause.view()});
    }
    void work_off() {
        while (iommu().poll()) {}
    }

    /// Not while the queue has stopped at an error: what is cached may then
    /// differ from what is in memory, and a restored SMMU has nothing cached.
    bool invalidations_work() {
        work_off();
        return commands_done();
    }

    /// Everything that a driver or the VMM can see.
    std::vector<std::uint64_t> view() {
        work_off();
        std::vector<std::uint64_t> all;
        for (const spec::register_row& row : spec::registers)
            all.push_back(iommu().mmio_read(row.offset, row.width));
        for (std::uint64_t i = 0; i < (32U << guest::event_log2); i += 8)
            all.push_back(load64(guest::event_ring + i));
        auto g = iommu().performance_monitor();
        for (const std::uint64_t at : {pmcg::EVCNTR0, pmcg::OVSSET0, pmcg::CNTENSET0})
            all.push_back(g.mmio_read(at, 8));
        for (const std::uint64_t at : {pmcg::EVTYPER0, pmcg::SMR0, pmcg::CR})
            all.push_back(g.mmio_read(at, 4));
        return all;
    }

    /// One step of driver or device; gives what became of it.
    std::vector<std::uint64_t> step(unsigned what, std::uint64_t random) {
        const unsigned i = random & 1;
        const std::uint64_t address = 0x1000 + (random >> 8) % 8 * 0x1000;
        const std::uint64_t output = pool + (random >> 16) % 64 * 0x1000;
        switch (what) {
        case 0: // map
            if (!mapped[i].contains(address)) {
                map(roots[i], address, output);
                mapped[i][address] = output;
            }
            return {};
        case 1: // unmap
            if (!invalidations_work() || mapped[i].erase(address) == 0) return {};
            unmap(roots[i], address);
            command(spec::tlbi_nsnh_all());
            sync();
            work_off();
            return {commands_done() ? 1U : 0U};
        case 2:
        case 3:
        case 4: { // access
            auto guard = ports[i].open();
            const outcome o = guard.translate(
                iova{address}, 4, (random >> 32 & 1) != 0 ? access::read : access::write);
            if (o.is_stalled()) tickets.push_back(o.ticket());
            return {o.is_span()      ? 1U
                    : o.is_stalled() ? 2U
                                     : 3U,
                    raw(o.address()),
                    o.is_stalled() ? o.ticket().tag : static_cast<std::uint64_t>(o.event())};
        }
        case 5: { // take an event
            const auto record = event();
            if (!record) return {0};
            return {record->word[0].value(), record->word[1].value(), record->word[2].value()};
        }
        case 6: { // decide a stalled access
            if (tickets.empty()) return {};
            const stall_ticket ticket = tickets[random % tickets.size()];
            if (!ticket.held_back)
                command(spec::cmd_resume(stream_id{sids[1]}, ticket.tag, random >> 40 & 1));
            work_off();
            return {};
        }
        case 7: { // ask about them
            std::vector<std::uint64_t> answers;
            std::vector<stall_ticket> left;
            for (const stall_ticket& t : tickets) {
                const stall_decision d = ports[1].decision(t);
                answers.push_back(static_cast<std::uint64_t>(d));
                if (d == stall_decision::pending) left.push_back(t);
            }
            tickets = left;
            return answers;
        }
        case 8: { // another configuration of the first stream
            if (!invalidations_work()) return {};
            const std::uint64_t ste = ste_address(sids[0]);
            store64(ste, load64(ste) ^ 1U << 1); // stage 1, or bypass
            bypassing = !bypassing;
            command(spec::cmd_cfgi_ste(stream_id{sids[0]}, true));
            sync();
            work_off();
            return {};
        }
        case 9: // a command that is no command, and some behind it
            enqueue(spec::command{{le64{0xff}, le64{0}}});
            enqueue(spec::tlbi_nsnh_all());
            ring();
            return {cons()};
        case 10: // mend the command, then acknowledge the error
            if (commands_done()) return {};
            if (spec::CMDQ_CONS::ERR::of(cons()) == spec::CERROR_ILL) {
                const std::uint32_t at = cons() & ((1U << guest::command_log2) - 1);
                store64(guest::command_ring + at * 16, spec::tlbi_nsnh_all().word[0].value());
            }
            write32(reg::GERRORN, read32(reg::GERROR));
            work_off();
            return {cons()};
        case 11: // many commands, more than one call executes
            for (unsigned n = 0; n < 11; ++n)
                enqueue(spec::cmd_sync(spec::sync_signal::SIG_IRQ));
            ring();
            return {};
        case 12: { // where would it go?
            write64(reg::GATOS_SID, sids[i]);
            write64(reg::GATOS_ADDR, address | 1U << 8 | 1U << 10);
            write32(reg::GATOS_CTRL, 1);
            return {iommu().mmio_read(reg::GATOS_PAR, 8)};
        }
        case 13: // off and on
            write32(reg::CR0, 0xc);
            work_off();
            write32(reg::CR0, 0xd);
            work_off();
            return {read32(reg::CR0ACK)};
        case 14: // interrupts elsewhere
            write32(reg::IRQ_CTRL, 0);
            write64(reg::EVENTQ_IRQ_CFG0, (random >> 33 & 1) != 0 ? pool + 0x80'000 : 0);
            write32(reg::EVENTQ_IRQ_CFG1, static_cast<std::uint32_t>(random >> 40));
            write32(reg::IRQ_CTRL, 5);
            return {load64(pool + 0x80'000)};
        default:
            return {};
        }
    }

    std::vector<device_port> ports;
};

} // namespace

TEST_CASE("an SMMU restored at any moment goes on as its twin does", "[smmu][save]") {
    unsigned stalled = 0;
    unsigned owed = 0;
    for (std::uint64_t seed = 1; seed <= 60; ++seed) {
        std::mt19937_64 random{seed};
        auto twin = std::make_unique<world>();
        twin->boot();
        const std::uint64_t before = random() % 150;
        for (std::uint64_t n = 0; n < before; ++n)
            (void)twin->step(static_cast<unsigned>(random() % 15), random());
        stalled += twin->tickets.empty() ? 0U : 1U;
        owed += twin->commands_done() ? 0U : 1U;

        auto restored = std::make_unique<world>();
        restored->take_over(*twin);
        for (std::uint64_t n = 0; n < 100; ++n) {
            const auto what = static_cast<unsigned>(random() % 15);
            const std::uint64_t how = random();
            INFO("seed " << seed << ", step " << n << ": " << what);
            REQUIRE(restored->step(what, how) == twin->step(what, how));
            REQUIRE(restored->view() == twin->view());
        }
    }
    // Otherwise the moments were too quiet to prove anything.
    CHECK(stalled > 5);
    CHECK(owed > 5);
}

TEST_CASE("a stalled access outlives its process", "[smmu][save]") {
    for (const auto decision : {stall_decision::retry, stall_decision::aborted}) {
        world first;
        first.boot();
        std::optional<stall_ticket> ticket;
        {
            auto guard = first.ports[1].open();
            const outcome o = guard.translate(iova{0x5000}, 4, access::read);
            REQUIRE(o.is_stalled());
            ticket = o.ticket();
        }
        world second;
        second.take_over(first);
        CHECK(second.ports[1].decision(*ticket) == stall_decision::pending);
        const auto record = second.event();
        REQUIRE(record);
        CHECK(get<spec::event_record::STALL>(*record) == 1);
        CHECK(get<spec::event_record::STAG>(*record) == ticket->tag);
        second.command(spec::cmd_resume(
            stream_id{sids[1]}, static_cast<std::uint16_t>(get<spec::event_record::STAG>(*record)),
            decision == stall_decision::retry ? 1 : 2));
        CHECK(second.ports[1].decision(*ticket) == decision);
        CHECK(second.ports[1].decision(*ticket) == stall_decision::aborted); // told once
    }
}

TEST_CASE("a CMD_SYNC that waits, and a change that is not acknowledged yet", "[smmu][save]") {
    world first;
    first.boot();
    first.map(first.roots[0], 0x1000, pool);
    std::vector<std::byte> state;
    {
        auto guard = first.ports[0].open();
        REQUIRE(guard.translate(iova{0x1000}, 4, access::read).is_span());
        first.command(spec::tlbi_nsnh_all());
        first.sync();
        first.write32(reg::CR0, 0xc);
        CHECK_FALSE(first.commands_done());
        CHECK(first.read32(reg::CR0ACK) == 0xd);
        // Not with a guard of its own open.
        state.resize(first.iommu().saved_state_size());
        CHECK(first.iommu().save(state).error() == errc::would_deadlock);
    }
    state = first.saved();
    world second;
    second.continue_from(first);
    REQUIRE(second.iommu().restore(state));
    CHECK(second.commands_done());
    CHECK(second.read32(reg::CR0ACK) == 0xc);
}

TEST_CASE("back to where it was", "[smmu][save]") {
    world m;
    m.boot();
    m.map(m.roots[0], 0x1000, pool);
    const auto touch = [&](unsigned times) {
        for (unsigned i = 0; i < times; ++i) {
            auto guard = m.ports[0].open();
            REQUIRE(guard.translate(iova{0x1000}, 4, access::read).is_span());
        }
    };
    touch(5);
    std::vector<std::byte> state = m.saved();
    const auto before = m.view();
    touch(3);
    m.write32(reg::CR0, 0);
    REQUIRE(m.iommu().restore(state));
    CHECK(m.view() == before); // five transactions counted, not eight
    touch(1);
    CHECK(m.iommu().performance_monitor().mmio_read(pmcg::EVCNTR0, 8) == 6);
    // What has been asked of CR0 is acknowledged anew.
    constexpr std::size_t cr0_ack = 7;
    REQUIRE(saved_state::word_at(state, cr0_ack) == 0xd);
    saved_state::put_word(state, cr0_ack, 0xc);
    saved_state::put_word(state, 4, saved_state::checksum(state));
    REQUIRE(m.iommu().restore(state));
    CHECK(m.read32(reg::CR0ACK) == 0xd);
}

namespace {

struct everything : default_smmu_options {
    static constexpr smmu_features features = full_features;
};

/// Two PCIe devices with caches of their own.
struct pcie : guest::machine<set_associative<16, 2>, everything> {
    explicit pcie(bool ats = true, bool swapped = false) {
        const char* const names[] = {"gpu", "nic"};
        for (unsigned i = 0; i < 2; ++i) {
            const unsigned n = swapped ? 1 - i : i;
            (void)iommu()
                .attach_device(names[n], all_of_ram, stream_id{0x10 + n},
                               attach_options{.ats = ats})
                .value();
        }
    }
    auto port(const char* name) { return iommu().make_port(name).value(); }
    void forget(std::uint32_t sid, std::uint64_t address) {
        using C = spec::CMD_ATC_INV;
        spec::command c = spec::make_command(spec::opcode::CMD_ATC_INV);
        set<C::StreamID>(c, sid);
        set<C::Address>(c, address >> 12);
        command(c);
    }
    std::vector<std::byte> saved() {
        std::vector<std::byte> state(iommu().saved_state_size());
        REQUIRE(iommu().save(state).value() == state.size());
        return state;
    }
};

} // namespace

TEST_CASE("what a device has to answer moves with it", "[smmu][save]") {
    pcie first;
    first.start();
    first.forget(0x11, 0x1000);
    first.forget(0x10, 0x5000);
    first.forget(0x10, 0x6000);
    first.sync();
    CHECK_FALSE(first.commands_done());
    auto before = first.port("gpu");
    const auto seen = before.next_invalidation(); // and being worked on
    REQUIRE(seen);
    before.request_page({.address = iova{0x9000}, .group = 7}); // PRIQEN is 0: failure at once
    const std::vector<std::byte> state = first.saved();

    pcie second{true, true};
    second.continue_from(first);
    REQUIRE(second.iommu().restore(state));
    CHECK_FALSE(second.commands_done());
    auto gpu = second.port("gpu");
    auto nic = second.port("nic");
    const auto other = gpu.next_invalidation();
    REQUIRE(other);
    CHECK(other->first == 0x6000);
    CHECK_FALSE(gpu.next_invalidation());
    gpu.invalidated(seen->token);
    gpu.invalidated(other->token);
    CHECK_FALSE(second.commands_done());
    const auto of_nic = nic.next_invalidation();
    REQUIRE(of_nic);
    CHECK(of_nic->first == 0x1000);
    nic.invalidated(of_nic->token);
    CHECK(second.commands_done());
    const auto answer = gpu.next_page_response();
    REQUIRE(answer);
    CHECK(answer->group == 7);
    CHECK(answer->code == page_response_code::failure);
    CHECK_FALSE(gpu.next_page_response());

    pcie without{false};
    const result<> refused = without.iommu().restore(state);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().cause.view().find("a device that is not attached with ATS here") !=
          std::string_view::npos);
    // Damage in here is found like elsewhere, and does no harm.
    std::mt19937_64 random{3};
    for (unsigned n = 0; n < 300; ++n) {
        std::vector<std::byte> bad = state;
        bad[40 + random() % (bad.size() - 40)] = static_cast<std::byte>(random());
        saved_state::put_word(bad, 4, saved_state::checksum(bad));
        if (!second.iommu().restore(bad)) continue;
        while (const auto asked = gpu.next_invalidation())
            gpu.invalidated(asked->token);
        while (gpu.next_page_response()) {}
        second.forget(0x10, 0x7000);
    }
}

TEST_CASE("what is not a state is refused, and changes nothing", "[smmu][save]") {
    world m;
    m.boot();
    const std::vector<std::byte> good = m.saved();
    const auto refused = [&](std::vector<std::byte> bad, const char* why) {
        INFO(why);
        const auto before = m.view();
        const result<> r = m.iommu().restore(bad);
        REQUIRE_FALSE(r);
        CHECK(r.error() == errc::mismatch);
        INFO(r.error().cause.view());
        CHECK(r.error().cause.view().find(why) != std::string_view::npos);
        CHECK(m.view() == before);
    };
    const auto with_word = [&](std::size_t index, std::uint64_t word, bool sign) {
        std::vector<std::byte> bad = good;
        saved_state::put_word(bad, index, word);
        if (sign) saved_state::put_word(bad, 4, saved_state::checksum(bad));
        return bad;
    };
    refused({}, "not one at all");
    refused(with_word(0, 5, true), "not one at all");
    refused(with_word(1, 2, true), "version 2, this library reads version 1");
    refused(with_word(2, 5, true), "other features");
    refused(with_word(3, 8, true), "another length");
    refused({good.begin(), good.end() - 8}, "another length");
    refused(with_word(10, 1, false), "checksum");
    refused(with_word(5, 2, true), "word 5");                 // a section's name
    refused(with_word(6, 0x8000, true), "word 6");            // CR0
    refused(with_word(good.size() / 8 - 1, 1, true), "word"); // the end
    {
        std::vector<std::byte> longer = good;
        longer.resize(good.size() + 8);
        saved_state::put_word(longer, 3, longer.size());
        saved_state::put_word(longer, 4, saved_state::checksum(longer));
        refused(longer, "word");
        std::vector<std::byte> shorter{good.begin(), good.end() - 8};
        saved_state::put_word(shorter, 3, shorter.size());
        saved_state::put_word(shorter, 4, saved_state::checksum(shorter));
        refused(shorter, "word");
    }
    REQUIRE(m.iommu().restore(good));
    std::vector<std::byte> small(good.size() - 1);
    CHECK(m.iommu().save(small).error() == errc::exhausted);
    machine_type::device idle;
    CHECK(idle.save(small).error() == errc::not_initialized);
    CHECK(idle.restore(good).error() == errc::not_initialized);
    guest::machine<> plain;
    CHECK(plain.iommu().restore(good).error() == errc::mismatch);
}

TEST_CASE("damaged words are refused or harmless", "[smmu][save]") {
    world m;
    m.boot();
    {
        auto guard = m.ports[1].open();
        (void)guard.translate(iova{0x5000}, 4, access::read);
    }
    const std::vector<std::byte> good = m.saved();
    std::mt19937_64 random{7};
    unsigned taken = 0;
    for (unsigned n = 0; n < 3000; ++n) {
        std::vector<std::byte> bad = good;
        const std::size_t flips = 1 + random() % 3;
        for (std::size_t i = 0; i < flips; ++i) {
            const std::size_t at = 40 + random() % (bad.size() - 40);
            bad[at] = static_cast<std::byte>(random());
        }
        CHECK((bad == good || !m.iommu().restore(bad)));
        // Even if it is signed: what any driver could have written, or nothing.
        saved_state::put_word(bad, 4, saved_state::checksum(bad));
        world& victim = m;
        if (!victim.iommu().restore(bad)) continue;
        ++taken;
        for (unsigned i = 0; i < 20; ++i)
            (void)victim.step(static_cast<unsigned>(random() % 15), random());
        (void)victim.view();
        victim.tickets.clear();
        REQUIRE(victim.iommu().restore(good));
    }
    CHECK(taken > 100);
}
