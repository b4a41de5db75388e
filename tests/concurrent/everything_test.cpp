// Everything at once: devices do DMA while the guest takes pages back and changes
// configurations, and while the VMM takes memory and devices away. Whatever is
// taken away is flagged once it must not be touched any more; a device that
// still has a way to it then has broken a promise.
#include "smmu/guest_driver.hpp"

#include <catch2/catch.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

using namespace vm_accel;

namespace {

#if VM_ACCEL_THREAD_SANITIZER
constexpr unsigned rounds = 80;
#else
constexpr unsigned rounds = 240;
#endif
constexpr unsigned pages = 8;
constexpr std::uint64_t first_page = 0xfff0'0000;
constexpr std::uint64_t extra = 0x9000'0000; ///< memory that comes and goes
constexpr std::uint64_t extra_page = first_page + pages * 0x1000;
constexpr pa_range window{pa{guest::ram}, extra + 0x1000 - guest::ram};

struct stressed : default_smmu_options {
    static constexpr unsigned generation_bits = 6; // wraps often
    static constexpr std::size_t contexts = 3;     // and sweeps
};

/// The guest's two address spaces for the one device, each with frames of its own.
struct machine : guest::machine<set_associative<16, 2>, stressed> {
    std::array<std::uint64_t, 2> root{};
    std::array<std::uint64_t, 2> descriptor{}; ///< CDs
    std::uint64_t frames = 0;
    unsigned current = 0; ///< the address space that the STE names

    /// Up: what must not be touched. Frames by number, then the extra memory.
    std::array<std::atomic<bool>, 2 * pages> revoked{};
    std::atomic<bool> extra_gone{true};
    std::atomic<bool> other_gone{true}; ///< the device that comes and goes

    std::atomic<bool> stop{false};
    std::atomic<unsigned> broken{0};
    std::array<std::atomic<std::uint64_t>, 3> served{}; ///< frames, extra, the other device

    machine() {
        start();
        frames = take_pages(2 * pages);
        for (unsigned s = 0; s < 2; ++s) {
            root[s] = take_pages();
            descriptor[s] = take_pages();
            store(descriptor[s], plain_cd(root[s], static_cast<std::uint16_t>(s + 1)));
            for (unsigned p = 0; p < pages; ++p)
                map(root[s], first_page + p * 0x1000, frame(s, p));
            map(root[s], extra_page, extra);
        }
        store(ste_address(0x10), plain_ste(spec::ste_config::s1_translate, descriptor[0]));
        store(ste_address(0x11), plain_ste(spec::ste_config::bypass));
        command(spec::cmd_cfgi_all());
        sync();
        REQUIRE(iommu().attach_device("disk", window, stream_id{0x10}));
    }
    std::uint64_t frame(unsigned space, unsigned page) const {
        return frames + (space * pages + page) * 0x1000;
    }
    void wait_for_sync() {
        sync();
        while (!commands_done())
            std::this_thread::yield();
        while (event()) {} // the devices' faults
    }
    void flag_for_a_while(unsigned first, unsigned count) {
        for (unsigned i = first; i < first + count; ++i)
            revoked[i].store(true, std::memory_order_seq_cst);
        std::this_thread::yield();
        for (unsigned i = first; i < first + count; ++i)
            revoked[i].store(false, std::memory_order_seq_cst);
    }

    /// The guest takes a page back, by every kind of invalidation.
    void take_page_back(unsigned round) {
        const unsigned p = round / 4 % pages;
        const std::uint64_t address = first_page + p * 0x1000;
        const asid space{static_cast<std::uint16_t>(current + 1)};
        unmap(root[current], address);
        switch (round % 5) {
        case 0:
            command(spec::tlbi_nh_va(vmid{0}, space, iova{address}, true));
            break;
        case 1:
            command(spec::tlbi_nh_vaa(vmid{0}, iova{address}, true));
            break;
        case 2:
            command(spec::tlbi_nh_asid(vmid{0}, space));
            break;
        case 3:
            command(spec::tlbi_nh_all(vmid{0}));
            break;
        default:
            command(spec::tlbi_nsnh_all());
            break;
        }
        wait_for_sync();
        flag_for_a_while(current * pages + p, 1);
        map(root[current], address, frame(current, p));
    }
    /// The STE names the other address space: all frames of this one are free.
    void change_address_space() {
        const unsigned old = std::exchange(current, 1 - current);
        // The stage-1 pointer and the configuration are one word: one store.
        store64(ste_address(0x10),
                plain_ste(spec::ste_config::s1_translate, descriptor[current]).word[0].value());
        command(spec::cmd_cfgi_ste(stream_id{0x10}, true));
        wait_for_sync();
        flag_for_a_while(old * pages, pages);
    }
    /// The device is cut off, and let on again.
    void cut_off() {
        const std::uint64_t word = load64(ste_address(0x10));
        store64(ste_address(0x10), plain_ste(spec::ste_config::abort).word[0].value());
        command(spec::cmd_cfgi_ste(stream_id{0x10}, true));
        wait_for_sync();
        flag_for_a_while(0, 2 * pages);
        store64(ste_address(0x10), word);
        command(spec::cmd_cfgi_ste(stream_id{0x10}, true));
        wait_for_sync();
    }

    /// Holds on to what a translation gave, and looks at its flag all the time.
    void use(const outcome& o, std::atomic<bool>& taken_away, unsigned looks, unsigned place) {
        for (unsigned look = 0; look < looks; ++look) {
            if (taken_away.load(std::memory_order_seq_cst)) broken.fetch_add(1);
        }
        const std::array<std::byte, 8> mark{std::byte(place + 1)};
        copy_to_guest(o.host() + place * 8, mark.data(), mark.size());
    }
    void device(unsigned number) {
        auto port = iommu().make_port("disk").value();
        for (unsigned i = number; !stop.load(std::memory_order_relaxed); i += 2) {
            const unsigned p = i % (pages + 1);
            auto guard = port.open();
            const outcome o = guard.translate(iova{first_page + p * 0x1000}, 64, access::write);
            if (!o.is_span()) continue;
            // Some guards are long, so that who takes away must wait for them.
            const unsigned looks = i % 8 == 0 ? 2'000 : 20;
            if (raw(o.address()) == extra) {
                use(o, extra_gone, looks, number);
                served[1].fetch_add(1, std::memory_order_relaxed);
            } else {
                const std::uint64_t n = (raw(o.address()) - frames) / 0x1000;
                if (n >= revoked.size() || n % pages != p) {
                    broken.fetch_add(1); // not a frame of that page
                } else {
                    use(o, revoked[n], looks, number);
                }
                served[0].fetch_add(1, std::memory_order_relaxed);
            }
        }
    }
    /// A thread of the device that comes and goes. Its port may outlive it.
    void other_device() {
        while (!stop.load(std::memory_order_relaxed)) {
            auto port = iommu().make_port("other");
            if (!port) {
                std::this_thread::yield();
                continue;
            }
            for (unsigned i = 0; i < 50; ++i) {
                auto guard = port->open();
                const outcome o = guard.translate(iova{guest::ram + 0x3000}, 64, access::write);
                if (!o.is_span()) break;
                use(o, other_gone, 200, 3);
                served[2].fetch_add(1, std::memory_order_relaxed);
            }
        }
    }
    /// The VMM: memory and a device come and go.
    void host() {
        const auto wait_for_more = [&](std::size_t what) {
            const std::uint64_t before = served[what].load();
            for (unsigned i = 0; i < 2000 && served[what].load() == before; ++i)
                std::this_thread::yield();
        };
        while (!stop.load(std::memory_order_relaxed)) {
            auto memory_there = std::make_unique<guest::host_pages>(0x1000);
            extra_gone.store(false, std::memory_order_seq_cst);
            if (!iommu().add_memory(pa{extra}, memory_there->data(), 0x1000)) broken.fetch_add(1);
            other_gone.store(false, std::memory_order_seq_cst);
            if (!iommu().attach_device("other", window, stream_id{0x11})) broken.fetch_add(1);
            wait_for_more(1);
            wait_for_more(2);
            if (!iommu().remove_memory(pa{extra})) broken.fetch_add(1);
            extra_gone.store(true, std::memory_order_seq_cst);
            memory_there.reset(); // who writes there now uses what was freed
            if (!iommu().detach_device("other")) broken.fetch_add(1);
            other_gone.store(true, std::memory_order_seq_cst);
            std::this_thread::yield();
        }
    }
};

} // namespace

TEST_CASE("nothing is touched after it was taken away, whatever is changed meanwhile",
          "[concurrent][smmu]") {
    machine m;
    std::vector<std::thread> threads;
    threads.emplace_back([&] { m.device(0); });
    threads.emplace_back([&] { m.device(1); });
    threads.emplace_back([&] { m.other_device(); });
    threads.emplace_back([&] { m.host(); });
    while (m.served[0].load() < 100)
        std::this_thread::yield();
    // On a busy machine some threads come late: without them nothing is shown.
    const auto all_have_served = [&] {
        return std::ranges::all_of(m.served, [](const auto& count) { return count.load() > 0; });
    };
    for (unsigned round = 0; round < rounds || (round < 1000 * rounds && !all_have_served());
         ++round) {
        if (round % 16 == 7) {
            m.change_address_space();
        } else if (round % 32 == 21) {
            m.cut_off();
        } else {
            m.take_page_back(round);
        }
    }
    m.stop = true;
    for (std::thread& t : threads)
        t.join();
    CHECK(m.broken.load() == 0);
    for (const auto& count : m.served)
        CHECK(count.load() > 0);
    const smmu_statistics s = m.iommu().stats();
    CHECK(s.hits > 0);
    CHECK(s.misses > 0);
}
