// Devices stall, are held back and retried while the driver maps, unmaps and decides; and a
// device with its own cache acknowledges while the driver waits for it.
#include "smmu/guest_driver.hpp"

#include <catch2/catch.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

using namespace vm_accel;

namespace {

constexpr unsigned pages = 8;
constexpr std::uint64_t window_base = 0xfff0'0000;
constexpr std::uint32_t sid = 0x10;

#if VM_ACCEL_THREAD_SANITIZER
constexpr unsigned rounds = 60;
#else
constexpr unsigned rounds = 300;
#endif

struct stalling : default_smmu_options {
    static constexpr smmu_features features = [] {
        smmu_features f = stage1_features;
        f.stalls = true;
        f.stall_max = 3; // fewer than accesses that want to: some are held back
        f.quiet_termination = true;
        f.ats = f.pri = true;
        f.page_request_queue_log2 = 3;
        return f;
    }();
};

/// What the driver answers for a page: some are never there.
enum class fate { mapped, terminated, aborted };
constexpr fate fate_of(unsigned number) {
    return number == pages - 1   ? fate::aborted
           : number == pages - 2 ? fate::terminated
                                 : fate::mapped;
}

struct machine : guest::machine<set_associative<16, 2>, stalling> {
    machine() {
        start();
        root = take_pages();
        const std::uint64_t cd_page = take_pages();
        spec::cd c = plain_cd(root, 1);
        set<spec::cd::S>(c, 1);
        store(cd_page, c);
        spec::ste entry = plain_ste(spec::ste_config::s1_translate, cd_page);
        set<spec::ste::EATS>(entry, 1);
        store(ste_address(sid), entry);
        command(spec::cmd_cfgi_ste(stream_id{sid}, true));
        sync();
        (void)iommu()
            .attach_device("gpu", all_of_ram, stream_id{sid}, attach_options{.ats = true})
            .value();
        data = take_pages(pages);
        std::memset(host(data), 7, pages * 0x1000);
    }
    void show(unsigned number) { map(root, window_base + number * 0x1000, data + number * 0x1000); }
    void hide(unsigned number) {
        const iova at{window_base + number * 0x1000};
        unmap(root, raw(at));
        command(spec::tlbi_nh_va(vmid{0}, asid{1}, at, true));
        sync_and_wait();
    }
    void sync_and_wait() {
        sync();
        while (!commands_done())
            std::this_thread::yield();
    }
    /// Answers one stall, if one is told of.
    void decide() {
        using R = spec::event_record;
        const auto record = event();
        if (!record || get<R::STALL>(*record) == 0) return;
        const auto number = static_cast<unsigned>((get<R::InputAddr>(*record) - window_base) >> 12);
        const fate f = fate_of(number);
        if (f == fate::mapped) show(number);
        command(spec::cmd_resume(stream_id{sid}, get<R::STAG>(*record),
                                 f == fate::mapped       ? 1U
                                 : f == fate::terminated ? 0U
                                                         : 2U));
    }
    std::uint64_t root = 0;
    std::uint64_t data = 0;
};

} // namespace

TEST_CASE("stalled accesses all end, as the driver said", "[concurrent][smmu][stall]") {
    machine m;
    std::atomic<unsigned> running{0};
    std::atomic<unsigned> wrong{0};
    // Four bytes in one page: what they are follows from the page.
    const auto judge = [&](unsigned number, bool done, const std::array<std::byte, 4>& bytes) {
        const fate f = fate_of(number);
        const std::byte expected{f == fate::mapped ? std::uint8_t{7} : std::uint8_t{0}};
        const bool alike =
            std::all_of(bytes.begin(), bytes.end(), [&](std::byte b) { return b == expected; });
        if (done != (f != fate::aborted) || (done && !alike)) ++wrong;
    };
    const auto waits = [&](unsigned seed) {
        auto port = m.iommu().make_port("gpu").value();
        for (unsigned i = 0; i < rounds; ++i) {
            const unsigned number = (i * 5 + seed) % pages;
            std::array<std::byte, 4> bytes{};
            bytes.fill(std::byte{1});
            const bool done = port.read(iova{window_base + number * 0x1000 + 16 * seed}, bytes);
            judge(number, done, bytes);
        }
        --running;
    };
    // Two accesses in flight, and never a wait.
    const auto polls = [&] {
        auto port = m.iommu().make_port("gpu").value();
        struct flight {
            unsigned number = 0;
            bool stalled = false;
            stall_ticket ticket{};
        };
        std::array<flight, 2> flights{};
        unsigned begun = 0;
        unsigned ended = 0;
        while (ended < rounds) {
            for (flight& f : flights) {
                if (f.stalled) {
                    const stall_decision decided = port.decision(f.ticket);
                    if (decided == stall_decision::pending) continue;
                    f.stalled = false;
                    if (decided != stall_decision::retry) {
                        const fate expected = fate_of(f.number);
                        if (expected != (decided == stall_decision::aborted ? fate::aborted
                                                                            : fate::terminated)) {
                            ++wrong;
                        }
                        ++ended;
                        continue;
                    }
                } else {
                    f.number = begun++ * 3 % pages;
                }
                std::array<std::byte, 4> bytes{};
                const transfer t = port.try_read(iova{window_base + f.number * 0x1000 + 64}, bytes);
                if (t.done == bytes.size()) {
                    judge(f.number, true, bytes);
                    ++ended;
                } else if (t.stop.is_stalled()) {
                    f.stalled = true;
                    f.ticket = t.stop.ticket();
                } else {
                    ++wrong;
                    ++ended;
                }
            }
            std::this_thread::yield();
        }
        // What is still in flight goes with the port.
        --running;
    };
    running = 3;
    std::vector<std::thread> devices;
    devices.emplace_back(waits, 1U);
    devices.emplace_back(waits, 2U);
    devices.emplace_back(polls);
    for (unsigned i = 0; running != 0; ++i) {
        m.decide();
        if (i % 8 == 0) m.hide(i / 8 % pages);
        std::this_thread::yield();
    }
    for (std::thread& device : devices)
        device.join();
    CHECK(wrong == 0);
    CHECK(m.read32(spec::reg::GERROR) == 0);
    CHECK(m.iommu().stats().events_dropped == 0);
}

TEST_CASE("stalled accesses all end when the device is taken away", "[concurrent][smmu][stall]") {
    machine m;
    std::atomic<unsigned> ended{0};
    std::vector<std::thread> devices;
    for (unsigned d = 0; d < 4; ++d) {
        devices.emplace_back([&ended, d, port = m.iommu().make_port("gpu").value()]() mutable {
            std::array<std::byte, 4> bytes{};
            while (port.read(iova{window_base + d * 0x1000}, bytes)) {}
            ++ended;
        });
    }
    const bool by_reset = GENERATE(false, true);
    for (unsigned i = 0; i < 50; ++i) {
        m.decide();
        if (i % 3 == 0) m.hide(i % 4);
    }
    if (by_reset) {
        REQUIRE(m.iommu().reset()); // aborts what waits; later accesses bypass
        while (ended == 0)
            std::this_thread::yield();
    }
    REQUIRE(m.iommu().detach_device("gpu"));
    for (std::thread& device : devices)
        device.join();
    CHECK(ended == 4);
}

TEST_CASE("a device's cache is emptied before CMD_SYNC completes", "[concurrent][smmu][ats]") {
    machine m;
    std::atomic<bool> stop{false};
    std::atomic<bool> revoked{false};
    std::atomic<unsigned> broken{0};
    m.show(0);
    std::thread device{[&] {
        auto port = m.iommu().make_port("gpu").value();
        std::uint64_t cached = 0;
        for (; !stop; std::this_thread::yield()) {
            while (const auto asked = port.next_invalidation()) {
                cached = 0;
                port.invalidated(asked->token);
            }
            if (cached == 0) {
                const ats_completion answer = port.ats_translate({.address = iova{window_base}});
                if (answer.read) cached = answer.address;
            }
            if (cached == 0) {
                port.request_page({.address = iova{window_base}, .group = 1});
                const std::uint32_t seen = port.news();
                if (!port.next_page_response()) port.wait_for_news(seen);
                continue;
            }
            std::array<std::byte, 4> bytes{};
            const bool before = revoked.load(std::memory_order_seq_cst);
            if (before) ++broken;
            if (!port.read(iova{cached}, bytes, {.translated = true})) ++broken;
        }
    }};
    for (unsigned i = 0; i < rounds; ++i) {
        m.hide(0);
        spec::command c = spec::make_command(spec::opcode::CMD_ATC_INV);
        set<spec::CMD_ATC_INV::StreamID>(c, sid);
        set<spec::CMD_ATC_INV::Size>(c, 52);
        m.command(c);
        m.sync_and_wait();
        revoked.store(true, std::memory_order_seq_cst);
        for (int k = 0; k < 5; ++k)
            std::this_thread::yield();
        revoked.store(false, std::memory_order_seq_cst);
        m.show(0);
        spec::command r = spec::make_command(spec::opcode::CMD_PRI_RESP);
        set<spec::CMD_PRI_RESP::StreamID>(r, sid);
        set<spec::CMD_PRI_RESP::PRGIndex>(r, 1);
        set<spec::CMD_PRI_RESP::Resp>(r, 2);
        m.command(r);
    }
    stop = true;
    REQUIRE(m.iommu().detach_device("gpu")); // wakes it
    device.join();
    CHECK(broken == 0);
}
