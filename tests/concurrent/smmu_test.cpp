// Device threads translate while a vCPU thread drives the registers and the VMM
// attaches, detaches, adds and removes memory.
#include "smmu/guest_driver.hpp"

#include <catch2/catch.hpp>

#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

using namespace vm_accel;

namespace {

constexpr unsigned pages = 8;
constexpr std::uint64_t window_base = 0xfff0'0000;

#if VM_ACCEL_THREAD_SANITIZER
constexpr unsigned rounds = 150;
#else
constexpr unsigned rounds = 600;
#endif

struct fenced : default_smmu_options {
    using quiescence = fence_quiescence;
    static constexpr unsigned generation_bits = 6; // wraps often
    static constexpr std::size_t contexts = 3;     // and sweeps
};

/// What the guest has taken back. A device that still holds a translation of a
/// page while its flag is up has broken the promise of CMD_SYNC.
struct revoked_pages {
    std::array<std::atomic<bool>, pages> flag{};
};

void wait_until_done(auto& m) {
    while (!m.commands_done())
        std::this_thread::yield();
}

} // namespace

TEMPLATE_TEST_CASE("no device touches a page after the CMD_SYNC that followed its TLBI",
                   "[concurrent][smmu]", default_smmu_options, fenced) {
    guest::machine<set_associative<16, 2>, TestType> m;
    m.start();
    const std::uint64_t root = m.stage1_stream(0x10, 1);
    REQUIRE(m.iommu().attach_device("disk", m.all_of_ram, stream_id{0x10}));
    std::array<std::uint64_t, pages> target{};
    for (unsigned p = 0; p < pages; ++p) {
        target[p] = m.take_pages();
        m.map(root, window_base + p * 0x1000, target[p]);
    }
    revoked_pages revoked;
    std::atomic<bool> stop{false};
    std::atomic<unsigned> broken{0};
    std::atomic<std::uint64_t> served{0};

    std::vector<std::thread> devices;
    for (unsigned d = 0; d < 2; ++d) {
        devices.emplace_back([&, d] {
            auto port = m.iommu().make_port("disk").value();
            unsigned p = d;
            while (!stop.load(std::memory_order_relaxed)) {
                p = (p + 3) % pages;
                auto guard = port.open();
                const outcome o =
                    guard.translate(iova{window_base + p * 0x1000}, 64, access::write);
                if (!o.is_span()) continue;
                served.fetch_add(1, std::memory_order_relaxed);
                // Some guards are long, so that a SYNC must wait for them.
                const int looks = p % 4 == 0 ? 5'000 : 20;
                for (int look = 0; look < looks; ++look) {
                    if (revoked.flag[p].load(std::memory_order_seq_cst)) broken.fetch_add(1);
                }
                const std::array<std::byte, 8> mark{std::byte(d + 1)};
                copy_to_guest(o.host() + d * 8, mark.data(), mark.size());
            }
        });
    }
    // The devices must really be at it before the guest starts to take away.
    while (served.load() < 100)
        std::this_thread::yield();
    for (unsigned round = 0; round < rounds; ++round) {
        const unsigned p = round % pages;
        const std::uint64_t address = window_base + p * 0x1000;
        m.unmap(root, address);
        switch (round % 4) {
        case 0:
            m.command(spec::tlbi_nh_va(vmid{0}, asid{1}, iova{address}, true));
            break;
        case 1:
            m.command(spec::tlbi_nh_asid(vmid{0}, asid{1}));
            break;
        case 2:
            m.command(spec::tlbi_nh_vaa(vmid{0}, iova{address}, true));
            break;
        default:
            m.command(spec::tlbi_nsnh_all());
            break;
        }
        if (round % 16 == 0) m.command(spec::cmd_cfgi_ste(stream_id{0x10}, true));
        m.sync();
        wait_until_done(m);
        revoked.flag[p].store(true, std::memory_order_seq_cst);
        std::this_thread::yield();
        revoked.flag[p].store(false, std::memory_order_seq_cst);
        m.map(root, address, target[p]);
        while (m.event()) {} // the devices' faults
    }
    stop = true;
    for (std::thread& t : devices)
        t.join();
    CHECK(broken.load() == 0);
    CHECK(m.iommu().stats().hits > 0);
}

TEST_CASE("devices come and go, memory comes and goes, while others do DMA", "[concurrent][smmu]") {
    guest::machine<set_associative<16, 2>, fenced> m;
    m.start();
    for (std::uint32_t sid = 0; sid < 4; ++sid) {
        m.store(m.ste_address(sid), m.plain_ste(spec::ste_config::bypass));
    }
    m.command(spec::cmd_cfgi_all());
    m.sync();
    constexpr std::uint64_t extra = 0x9000'0000;
    constexpr pa_range both{pa{guest::ram}, extra + 0x1000 - guest::ram};
    REQUIRE(m.iommu().attach_device("steady", both, stream_id{0}));
    std::atomic<bool> stop{false};
    std::atomic<std::uint64_t> served{0};
    std::vector<std::thread> threads;
    for (unsigned d = 0; d < 2; ++d) {
        threads.emplace_back([&, d] {
            auto port = m.iommu().make_port("steady").value();
            std::array<std::byte, 64> bytes{};
            while (!stop.load(std::memory_order_relaxed)) {
                if (port.write(iova{extra + d * 64}, bytes)) {
                    served.fetch_add(1, std::memory_order_relaxed);
                }
                (void)port.read(iova{guest::ram + 0x2000 + d * 64}, bytes);
            }
        });
    }
    threads.emplace_back([&] {
        for (unsigned i = 0; !stop.load(std::memory_order_relaxed); ++i) {
            const std::uint32_t sid = 1 + i % 3;
            const std::string id = "guest" + std::to_string(sid);
            const auto attached = m.iommu().attach_device(id, both, stream_id{sid});
            if (!attached) continue;
            auto port = m.iommu().make_port(id).value();
            std::array<std::byte, 8> bytes{};
            (void)port.read(iova{guest::ram}, bytes);
            (void)m.iommu().detach_device(id).has_value();
            if (port.read(iova{guest::ram}, bytes)) stop = true; // would fail below
        }
    });
    for (unsigned round = 0; round < rounds / 4; ++round) {
        auto memory = std::make_unique<guest::host_pages>(0x1000);
        REQUIRE(m.iommu().add_memory(pa{extra}, memory->data(), 0x1000));
        const std::uint64_t before = served.load();
        while (served.load() == before)
            std::this_thread::yield();
        REQUIRE(m.iommu().remove_memory(pa{extra}));
        memory.reset(); // a device that still writes here is a use after free
    }
    CHECK_FALSE(stop.load());
    stop = true;
    for (std::thread& t : threads)
        t.join();
    CHECK(m.iommu().attached_device_count() >= 1);
}

TEST_CASE("faults of many threads reach the event queue whole", "[concurrent][smmu]") {
    guest::machine<set_associative<16, 2>, fenced> m;
    m.start();
    (void)m.stage1_stream(0x10, 1);
    REQUIRE(m.iommu().attach_device("disk", m.all_of_ram, stream_id{0x10}));
    constexpr unsigned threads = 3;
    constexpr std::uint64_t each = 200;
    std::vector<std::thread> devices;
    std::atomic<unsigned> running{threads};
    for (unsigned d = 0; d < threads; ++d) {
        devices.emplace_back([&, d] {
            auto port = m.iommu().make_port("disk").value();
            std::array<std::byte, 4> bytes{};
            for (std::uint64_t i = 0; i < each; ++i) {
                (void)port.read(iova{(d + 1) * 0x1'0000'0000 + i * 0x1000}, bytes);
            }
            running.fetch_sub(1);
        });
    }
    std::uint64_t seen = 0;
    std::array<std::uint64_t, threads> last{};
    bool in_order = true;
    bool whole = true;
    const auto take = [&] {
        while (const auto record = m.event()) {
            const std::uint64_t address = get<spec::event_record::InputAddr>(*record);
            const auto device = static_cast<unsigned>(address >> 32) - 1;
            whole = whole && guest::id_of(*record) == spec::event_id::F_TRANSLATION &&
                    get<spec::event_record::StreamID>(*record) == 0x10 && device < threads;
            if (device < threads) {
                in_order = in_order && address > last[device];
                last[device] = address;
            }
            ++seen;
        }
        // Losing records is allowed when the ring is full; it must be told once.
        const std::uint32_t prod = m.read32(spec::reg::EVENTQ_PROD);
        const std::uint32_t cons = m.read32(spec::reg::EVENTQ_CONS);
        if (((prod ^ cons) & 0x8000'0000) != 0) {
            m.write32(spec::reg::EVENTQ_CONS, cons ^ 0x8000'0000);
        }
    };
    while (running.load() != 0)
        take();
    for (std::thread& t : devices)
        t.join();
    take();
    const smmu_statistics s = m.iommu().stats();
    CHECK(whole);
    CHECK(in_order);
    CHECK(s.faults == threads * each);
    CHECK(s.events == seen);
    CHECK(s.events + s.events_dropped == threads * each);
}

TEST_CASE("the last guard's close completes a SYNC although the VMM holds the lock",
          "[concurrent][smmu]") {
    guest::machine<> m;
    m.start();
    REQUIRE(m.iommu().attach_device("disk", m.all_of_ram, stream_id{0x10}));
    std::atomic<bool> stop{false};
    // The VMM asks for statistics and memory all the time: it often has the lock.
    std::thread busy{[&] {
        while (!stop.load(std::memory_order_relaxed)) {
            (void)m.iommu().stats();
            (void)m.iommu().attached_device_count();
        }
    }};
    auto port = m.iommu().make_port("disk").value();
    for (unsigned round = 0; round < rounds; ++round) {
        const std::uint64_t before = m.sink.pulses(wired_interrupt::cmdq_sync);
        {
            auto guard = port.open();
            m.command(spec::tlbi_nsnh_all());
            m.command(spec::cmd_sync(spec::sync_signal::SIG_IRQ));
        }
        // Nobody reads a register: the interrupt alone must come.
        while (m.sink.pulses(wired_interrupt::cmdq_sync) == before)
            std::this_thread::yield();
    }
    stop = true;
    busy.join();
    CHECK(m.commands_done());
}

TEST_CASE("a reset leaves reset values, whatever devices do meanwhile", "[concurrent][smmu]") {
    guest::machine<set_associative<16, 2>, fenced> m;
    guest::host_pages low{0x1000};
    REQUIRE(m.iommu().add_memory(pa{0}, low.data(), 0x1000));
    REQUIRE(m.iommu().attach_device("disk", m.all_of_ram, stream_id{0x10}));
    std::atomic<bool> stop{false};
    std::thread device{[&] {
        auto port = m.iommu().make_port("disk").value();
        std::array<std::byte, 4> bytes{};
        while (!stop.load(std::memory_order_relaxed))
            (void)port.read(iova{0x5000}, bytes);
    }};
    for (unsigned round = 0; round < rounds / 2; ++round) {
        m.restart_ring();
        m.forget_pages();
        m.start();
        (void)m.stage1_stream(0x10, 1);
        wait_until_done(m);
        while (round % 8 == 0 && m.iommu().stats().events == 0)
            std::this_thread::yield();
        REQUIRE(m.iommu().reset());
        REQUIRE(m.read32(spec::reg::CR0) == 0);
        REQUIRE(m.read32(spec::reg::CR0ACK) == 0);
        REQUIRE(m.read32(spec::reg::EVENTQ_PROD) == 0);
        REQUIRE(m.read32(spec::reg::GERROR) == 0);
    }
    stop = true;
    device.join();
    for (std::size_t i = 0; i < low.size(); ++i)
        REQUIRE(low.data()[i] == std::byte{0});
}
