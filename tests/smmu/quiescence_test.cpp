// CMD_SYNC means done: every guard that was open at the invalidation has closed.
#include "guest_driver.hpp"

#include <catch2/catch.hpp>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <functional>
#include <optional>
#include <thread>
#include <vector>

using namespace vm_accel;

namespace {

constexpr std::uint32_t sid = 0x10;
constexpr iova mapped{0xffff'0000};

struct fenced : default_smmu_options {
    using quiescence = fence_quiescence;
};
struct small : default_smmu_options {
    static constexpr unsigned commands_per_call = 4;
};
struct alone : default_smmu_options {
    using quiescence = single_threaded;
};

/// One stream with one page, and a port.
template <class Options = default_smmu_options>
struct bench : guest::machine<set_associative<64, 4>, Options> {
    bench() {
        this->start();
        (void)this->iommu().attach_device("disk", this->all_of_ram, stream_id{sid}).value();
        root = this->stage1_stream(sid, 1);
        target = this->take_pages();
        this->map(root, raw(mapped), target);
    }
    void unmap_and_sync() {
        this->unmap(root, raw(mapped));
        this->command(spec::tlbi_nh_va(vmid{0}, asid{1}, mapped, true));
        this->sync();
    }
    std::uint64_t root = 0;
    std::uint64_t target = 0;
};

} // namespace

TEMPLATE_TEST_CASE("CMD_SYNC waits for a guard that was open at the invalidation", "[smmu][sync]",
                   default_smmu_options, fenced, alone) {
    bench<TestType> m;
    auto port = m.iommu().make_port("disk").value();
    const std::uint64_t interrupts = m.sink.pulses(wired_interrupt::cmdq_sync);
    {
        auto guard = port.open();
        REQUIRE(guard.translate(mapped, 8, access::read).is_span());
        m.unmap(m.root, raw(mapped));
        m.command(spec::tlbi_nh_va(vmid{0}, asid{1}, mapped, true));
        spec::command sync = spec::cmd_sync(spec::sync_signal::SIG_IRQ);
        m.command(sync);
        CHECK_FALSE(m.commands_done());
        CHECK(m.iommu().sync_pending());
        CHECK(m.sink.pulses(wired_interrupt::cmdq_sync) == interrupts);
        // The old span may still be used here; a new look-up must not find it.
        CHECK(guard.translate(mapped, 8, access::read).is_fault());
        CHECK_FALSE(m.commands_done());
    }
    // The closing guard itself completes the SYNC: nobody polls.
    CHECK_FALSE(m.iommu().sync_pending());
    CHECK(m.commands_done());
    CHECK(m.sink.pulses(wired_interrupt::cmdq_sync) == interrupts + 1);
}

TEST_CASE("CMD_SYNC does not wait when it need not", "[smmu][sync]") {
    bench<> m;
    auto port = m.iommu().make_port("disk").value();
    SECTION("no invalidation since the last SYNC") {
        m.sync();
        auto guard = port.open();
        m.sync();
        CHECK(m.commands_done());
    }
    SECTION("the guard opened after the invalidation and an earlier SYNC") {
        m.unmap_and_sync();
        auto guard = port.open();
        CHECK(m.commands_done());
        m.sync();
        CHECK(m.commands_done());
    }
    SECTION("no guard is open") {
        m.unmap_and_sync();
        CHECK(m.commands_done());
    }
    SECTION("the port is parked") {
        port.park();
        m.unmap_and_sync();
        CHECK(m.commands_done());
        port.unpark();
        std::array<std::byte, 4> bytes{};
        CHECK_FALSE(port.read(mapped, bytes));
    }
    SECTION("a guard that opened while the SYNC was pending") {
        auto other = m.iommu().make_port("disk").value();
        std::optional<decltype(port)::guard> late;
        {
            auto guard = port.open();
            m.unmap_and_sync();
            CHECK_FALSE(m.commands_done());
            late.emplace(other);
        }
        CHECK(m.commands_done());
        late.reset();
    }
}

namespace {

/// Single threaded, with something happening where the control side's barrier is.
struct interposed : single_threaded {
    static inline std::function<void()> meanwhile;
    bool sync_side_barrier() noexcept {
        if (meanwhile) meanwhile();
        return true;
    }
};

} // namespace

TEST_CASE("a guard that a grace period waits for tells when it closes", "[smmu][sync]") {
    change_epoch epoch;
    quiescence_domain<interposed> guards{epoch};
    grace_period grace, other;
    REQUIRE(guards.allocate(2));
    REQUIRE(grace.allocate(2));
    REQUIRE(other.allocate(2));
    guard_slot& slot = *guards.claim();
    interposed::meanwhile = nullptr;
    guards.open(slot);
    const auto close_tells = [&] { return guards.close(slot) && guards.has_closed(slot); };

    SECTION("although another one closed between the asking and the look") {
        bool first_told = false;
        interposed::meanwhile = [&] {
            first_told = close_tells();
            guards.open(slot);
        };
        guards.start(grace);
        interposed::meanwhile = nullptr;
        CHECK(first_told);
    }
    SECTION("to each of two periods") {
        guards.start(grace);
        interposed::meanwhile = [&] {
            CHECK(close_tells());
            CHECK(guards.finished(grace));
            guards.open(slot);
        };
        guards.start(other); // waits for the guard that opened meanwhile
        interposed::meanwhile = nullptr;
        guards.start(grace);
        CHECK_FALSE(guards.finished(other));
    }
    SECTION("although the period was started twice") {
        guards.start(grace);
        guards.start(grace);
    }
    SECTION("although others opened inside it, and one of them is the last") {
        guards.open(slot);
        guards.start(grace);
        CHECK_FALSE((guards.close(slot) && guards.has_closed(slot)));
    }
    SECTION("once, and the next one is none that it waits for") {
        guards.start(grace);
        CHECK(close_tells());
        guards.open(slot);
        CHECK(guards.finished(grace));
        guards.start(grace);
    }
    CHECK_FALSE(guards.finished(grace));
    CHECK(close_tells());
    CHECK(guards.finished(grace));
    CHECK(guards.finished(other));
    guards.open(slot);
    CHECK_FALSE(close_tells()); // nobody waits any more
}

namespace {

/// Its barrier is refused, at once or from some moment on.
struct refused : single_threaded {
    static inline bool at_once = false, later = false;
    bool prepare() noexcept { return !at_once; }
    bool sync_side_barrier() noexcept { return !later; }
};
struct with_refused : default_smmu_options {
    using quiescence = refused;
};

} // namespace

TEST_CASE("guards make fences of their own where the control side's barrier is refused",
          "[smmu][sync]") {
    refused::at_once = GENERATE(true, false);
    refused::later = false;
    bench<with_refused> m;
    auto port = m.iommu().make_port("disk").value();
    std::array<std::byte, 8> bytes{};
    REQUIRE(port.read(mapped, bytes));
    CHECK(m.iommu().is_quiescence_degraded() == refused::at_once);
    refused::later = true;
    {
        auto guard = port.open();
        CHECK(guard.translate(mapped, 8, access::read).is_span());
        m.unmap_and_sync();
        CHECK_FALSE(m.commands_done());
        CHECK(guard.translate(mapped, 8, access::read).is_fault());
    }
    CHECK(m.commands_done());
    CHECK(m.iommu().is_quiescence_degraded());
    CHECK_FALSE(port.read(mapped, bytes));
    m.map(m.root, raw(mapped), m.target);
    CHECK(port.read(mapped, bytes));
    CHECK(port.read(mapped, bytes));
}

TEST_CASE("a domain that makes fences allows no copies, now and later", "[smmu][sync]") {
    refused::at_once = true;
    change_epoch epoch;
    CHECK(change_epoch::allows_copies(epoch.now()));
    epoch.changed();
    CHECK(change_epoch::allows_copies(epoch.now()));
    quiescence_domain<refused> guards{epoch};
    REQUIRE(guards.allocate(1));
    refused::at_once = false;
    CHECK(guards.is_degraded());
    CHECK_FALSE(change_epoch::allows_copies(epoch.now()));
    epoch.changed();
    CHECK_FALSE(change_epoch::allows_copies(epoch.now()));
    // A guard that closes has to look closer, always.
    guard_slot& slot = *guards.claim();
    guards.open(slot);
    CHECK(guards.close(slot));
    CHECK_FALSE(guards.has_closed(slot));
}

TEST_CASE("guards nest: only the outermost counts", "[smmu][sync]") {
    bench<> m;
    auto port = m.iommu().make_port("disk").value();
    {
        auto outer = port.open();
        {
            auto inner = port.open();
            m.unmap_and_sync();
        }
        CHECK_FALSE(m.commands_done());
    }
    CHECK(m.commands_done());
}

TEST_CASE("commands behind a pending SYNC wait, and go on when it completes", "[smmu][sync]") {
    bench<> m;
    auto port = m.iommu().make_port("disk").value();
    const std::uint64_t commands = m.iommu().stats().commands;
    {
        auto guard = port.open();
        m.enqueue(spec::tlbi_nh_asid(vmid{0}, asid{1}));
        m.enqueue(spec::cmd_sync(spec::sync_signal::SIG_NONE));
        m.enqueue(spec::tlbi_nh_all(vmid{0}));
        m.enqueue(spec::cmd_sync(spec::sync_signal::SIG_NONE));
        m.ring();
        CHECK(m.iommu().stats().commands == commands + 1);
    }
    CHECK(m.commands_done());
    CHECK(m.iommu().stats().commands == commands + 4);
}

TEST_CASE("a pending SYNC has a defined fate", "[smmu][sync]") {
    bench<> m;
    auto port = m.iommu().make_port("disk").value();
    std::optional<decltype(port)::guard> guard;
    guard.emplace(port);
    m.unmap_and_sync();
    REQUIRE(m.iommu().sync_pending());
    SECTION("the queue is switched off: it stays at CONS, and runs when it is on again") {
        m.write32(spec::reg::CR0, 0x5);
        CHECK_FALSE(m.iommu().sync_pending());
        CHECK_FALSE(m.commands_done());
        m.write32(spec::reg::CR0, 0xd);
        CHECK(m.iommu().sync_pending());
        guard.reset();
        CHECK(m.commands_done());
    }
    SECTION("reset from the thread that holds the guard is refused") {
        CHECK(m.iommu().reset().error() == errc::would_deadlock);
        CHECK(m.iommu().sync_pending());
        guard.reset();
        CHECK(m.commands_done());
        REQUIRE(m.iommu().reset());
        CHECK(m.read32(spec::reg::CR0) == 0);
    }
}

TEST_CASE("calls that wait refuse a thread that holds a guard", "[smmu][sync]") {
    bench<> m;
    auto port = m.iommu().make_port("disk").value();
    {
        auto guard = port.open();
        CHECK(m.iommu().detach_device("disk").error() == errc::would_deadlock);
        CHECK(m.iommu().remove_memory(pa{guest::ram}).error() == errc::would_deadlock);
        CHECK(m.iommu().quiesce().error() == errc::would_deadlock);
        CHECK(m.iommu().attached_device_count() == 1);
        CHECK(guard.translate(mapped, 8, access::read).is_span());
    }
    CHECK(m.iommu().quiesce());
}

TEST_CASE("CR0 changes are acknowledged when in-flight accesses are done", "[smmu][sync]") {
    bench<> m;
    auto port = m.iommu().make_port("disk").value();
    {
        auto guard = port.open();
        m.write32(spec::reg::CR0, 0xc);
        CHECK(m.read32(spec::reg::CR0) == 0xc);
        CHECK(m.read32(spec::reg::CR0ACK) == 0xd);
        m.write32(spec::reg::GBPA, 0x8010'0000);
        CHECK(m.read32(spec::reg::GBPA) == 0x8010'0000);
    }
    CHECK(m.read32(spec::reg::CR0ACK) == 0xc);
    CHECK(m.read32(spec::reg::GBPA) == 0x0010'0000);
    std::array<std::byte, 4> bytes{};
    CHECK_FALSE(port.read(mapped, bytes)); // GBPA.ABORT
}

TEST_CASE("detach and memory removal wait for guards of other threads", "[smmu][sync]") {
    bench<> m;
    auto port = m.iommu().make_port("disk").value();
    std::optional<decltype(port)::guard> guard;
    guard.emplace(port);
    const outcome o = guard->translate(mapped, 8, access::write);
    REQUIRE(o.is_span());
    std::atomic<bool> returned{false};
    const bool detach = GENERATE(true, false);
    std::thread control{[&] {
        const result<> done =
            detach ? m.iommu().detach_device("disk") : m.iommu().remove_memory(pa{guest::ram});
        returned = done.has_value();
    }};
    // It has made itself felt (new look-ups are refused) but cannot have returned.
    while (!guard->translate(mapped, 8, access::write).is_fault())
        std::this_thread::yield();
    std::memset(o.host(), 0x5a, 8);
    CHECK_FALSE(returned);
    guard.reset();
    control.join();
    CHECK(returned);
    std::array<std::byte, 4> bytes{};
    CHECK_FALSE(port.read(mapped, bytes));
}

TEST_CASE("what a device is configured with during a reset or a restore does not outlive it",
          "[smmu][sync]") {
    bench<> m;
    auto holds = m.iommu().make_port("disk").value();
    auto port = m.iommu().make_port("disk").value();
    const iova untranslated{guest::ram};
    const auto goes = [&] {
        auto guard = port.open();
        return guard.translate(untranslated, 8, access::read).is_span();
    };
    const bool restores = GENERATE(false, true);
    std::vector<std::byte> state(m.iommu().saved_state_size());
    REQUIRE(m.iommu().save(state));
    // Until it is reset, GBPA says the contrary of what is said afterwards.
    if (!restores) m.write32(spec::reg::GBPA, 0x8010'0000);
    CHECK_FALSE(goes());
    std::thread waits;
    bool done = false;
    {
        auto guard = holds.open();
        waits = std::thread{
            [&] { done = (restores ? m.iommu().restore(state) : m.iommu().reset()).has_value(); }};
        while (m.read32(spec::reg::CR0) != 0)
            std::this_thread::yield();
        CHECK(goes() == restores);
    }
    waits.join();
    CHECK(done);
    CHECK(m.read32(spec::reg::CR0) == (restores ? 0xdU : 0U));
    CHECK(goes() == !restores);
}

TEST_CASE("a queue of commands is executed in bounded calls", "[smmu][sync]") {
    bench<small> m;
    const std::uint64_t before = m.iommu().stats().commands;
    for (int i = 0; i < 10; ++i)
        m.enqueue(spec::tlbi_nh_asid(vmid{0}, asid{7}));
    m.ring();
    CHECK(m.iommu().stats().commands == before + 4);
    CHECK(m.iommu().poll());
    CHECK(m.iommu().stats().commands == before + 8);
    CHECK_FALSE(m.iommu().poll());
    CHECK(m.commands_done());
}
