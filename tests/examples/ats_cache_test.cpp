// The PCI disk's translation cache: what it asks for, keeps, uses and gives back.
#include "../../examples/linux_kvm_arm64/ats_cache.hpp"
#include "../../examples/linux_kvm_arm64/news_thread.hpp"
#include "../../examples/linux_kvm_arm64/virtio_pci_disk.hpp"
#include "fake_port.hpp"
#include "temporary_disk.hpp"

#include <catch2/catch.hpp>

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

using namespace linux_vmm;
using namespace linux_vmm_test;
using vm_accel::access_attributes;
using vm_accel::atc_invalidation;
using vm_accel::ats_completion;
using vm_accel::ats_request;
using vm_accel::ats_status;

namespace {

/// What stands behind a port that translates: addresses without an answer mean
/// themselves to untranslated accesses.
struct translating {
    struct piece {
        std::uint64_t output = 0;
        bool read = true, write = true;
        std::uint8_t size_log2 = 12;
        bool untranslated_only = false;
        ats_status status = ats_status::success;
    };
    flat_memory memory;
    std::map<std::uint64_t, piece> pages; ///< by address, a multiple of the size
    unsigned requests = 0, translated = 0, untranslated = 0;
    std::function<void()> during; ///< a translated access

    [[nodiscard]] const piece* find(std::uint64_t address) const {
        auto at = pages.upper_bound(address);
        if (at == pages.begin()) return nullptr;
        --at;
        return (address - at->first) >> at->second.size_log2 == 0 ? &at->second : nullptr;
    }
};

struct translating_port {
    translating* behind;
    std::deque<atc_invalidation>* asked = nullptr;
    std::vector<std::uint32_t>* acknowledged = nullptr;

    [[nodiscard]] ats_completion ats_translate(const ats_request& r) noexcept {
        ++behind->requests;
        const translating::piece* const p = behind->find(raw(r.address));
        if (p == nullptr) return {.status = ats_status::success};
        const std::uint64_t inside = raw(r.address) & ((std::uint64_t{1} << p->size_log2) - 1);
        ats_completion answer{.status = p->status};
        answer.address = p->output + inside;
        answer.size_log2 = p->size_log2;
        answer.read = p->read;
        answer.write = p->write && r.write; // as for a page that is clean
        answer.untranslated_only = p->untranslated_only;
        return answer;
    }
    [[nodiscard]] bool read(iova address, std::span<std::byte> out,
                            access_attributes how = {}) noexcept {
        return fake_port{&behind->memory}.read(counted(address, how), out);
    }
    [[nodiscard]] bool write(iova address, std::span<const std::byte> in,
                             access_attributes how = {}) noexcept {
        return fake_port{&behind->memory}.write(counted(address, how), in);
    }
    [[nodiscard]] std::optional<atc_invalidation> next_invalidation() noexcept {
        if (asked == nullptr || asked->empty()) return std::nullopt;
        const atc_invalidation first = asked->front();
        asked->pop_front();
        return first;
    }
    void invalidated(std::uint32_t token) noexcept { acknowledged->push_back(token); }

private:
    [[nodiscard]] iova counted(iova address, access_attributes how) noexcept {
        ++(how.translated ? behind->translated : behind->untranslated);
        if (how.translated && behind->during) behind->during();
        return address;
    }
};
static_assert(ats_requester<translating_port>);
static_assert(!ats_requester<fake_port>);
static_assert(dma_copier<ats_port<translating_port>> && dma_copier<ats_port<fake_port>>);

struct bench {
    translating behind;
    ats_cache cache;
    ats_port<translating_port> port{{&behind}, cache};

    explicit bench(bool on = true) { cache.enable(on); }
    [[nodiscard]] bool read(std::uint64_t address, std::size_t bytes) {
        std::vector<std::byte> buffer(bytes);
        return port.read(iova{address}, buffer);
    }
    [[nodiscard]] bool write(std::uint64_t address, std::size_t bytes) {
        const std::vector<std::byte> buffer(bytes, std::byte{0x5a});
        return port.write(iova{address}, buffer);
    }
    [[nodiscard]] bool is_written(std::uint64_t at) const {
        return behind.memory.bytes[at] == std::byte{0x5a};
    }
};

} // namespace

TEST_CASE("ats_cache: off, it asks for nothing") {
    bench b{false};
    b.behind.pages[0x5000] = {0x9000};
    REQUIRE(b.write(0x5000, 0x3000));
    CHECK((b.behind.requests == 0 && b.behind.translated == 0 && b.behind.untranslated == 1));
    CHECK(b.is_written(0x5000));
    CHECK(b.cache.statistics().untranslated == 0);
}

TEST_CASE("ats_cache: an access takes its translations, asked for once") {
    bench b;
    b.behind.pages[0x5000] = {0x9000};
    b.behind.pages[0x6000] = {0x3000};
    REQUIRE(b.write(0x5f00, 0x300));
    CHECK((b.is_written(0x9f00) && b.is_written(0x9fff) && !b.is_written(0x9eff)));
    CHECK((b.is_written(0x3000) && b.is_written(0x31ff) && !b.is_written(0x3200)));
    CHECK((b.behind.requests == 2 && b.behind.translated == 2 && b.behind.untranslated == 0));
    REQUIRE(b.read(0x5000, 8));
    REQUIRE(b.write(0x6ff8, 8));
    CHECK((b.behind.requests == 2 && b.behind.translated == 4));
    const ats_statistics s = b.cache.statistics();
    CHECK((s.requests == 2 && s.not_granted == 0 && s.translated == 4 && s.untranslated == 0));
}

TEST_CASE("ats_cache: one answer serves as much as it says") {
    bench b;
    const std::uint8_t size_log2 = GENERATE(std::uint8_t{12}, std::uint8_t{14}, std::uint8_t{16});
    for (std::uint64_t at = 0x10000; at < 0x20000; at += std::uint64_t{1} << size_log2)
        b.behind.pages[at] = {at + 0x30000, true, true, size_log2};
    REQUIRE(b.write(0x10800, 0x7800));
    CHECK(b.behind.requests == (size_log2 == 12 ? 8 : size_log2 == 14 ? 2 : 1));
    CHECK((b.is_written(0x40800) && b.is_written(0x47fff) && !b.is_written(0x48000)));
}

TEST_CASE("ats_cache: what has no translation is accessed without one") {
    struct row {
        translating::piece answer;
        bool writes;
        bool granted;
    };
    const auto r = GENERATE(
        row{{0x9000, true, false}, true, false}, row{{0x9000, true, false}, false, true},
        row{{0x9000, false, false}, false, false},
        row{{0x9000, true, true, 12, true}, false, false},
        row{{0x9000, true, true, 12, false, ats_status::completer_abort}, false, false},
        row{{0x9000, true, true, 12, false, ats_status::unsupported_request}, true, false});
    bench b;
    b.behind.pages[0x5000] = r.answer;
    b.behind.pages[0x6000] = {0x3000};
    // The page behind it has a translation again.
    REQUIRE((r.writes ? b.write(0x5ff8, 16) : b.read(0x5ff8, 16)));
    CHECK(b.behind.untranslated == (r.granted ? 0 : 1));
    CHECK(b.behind.translated == (r.granted ? 2 : 1));
    if (r.writes) CHECK((b.is_written(0x5ff8) && b.is_written(0x3000)));
    CHECK(b.cache.statistics().not_granted == (r.granted ? 0 : 1));
    // It is not kept that there was none.
    b.behind.pages[0x5000] = {0x9000};
    REQUIRE((r.writes ? b.write(0x5000, 8) : b.read(0x5000, 8)));
    CHECK(b.behind.untranslated == (r.granted ? 0 : 1));
}

TEST_CASE("ats_cache: who may read only asks again to write, and knows it once") {
    bench b;
    b.behind.pages[0x5000] = {0x9000};
    REQUIRE(b.read(0x5000, 8));
    REQUIRE(b.write(0x5000, 8));
    CHECK(b.behind.requests == 2);
    REQUIRE(b.read(0x5000, 8));
    REQUIRE(b.write(0x5000, 8));
    CHECK(b.behind.requests == 2);
    b.cache.forget({});
    CHECK(b.cache.statistics().forgotten == 1);
}

TEST_CASE("ats_cache: a refused access is refused, and its translation is gone") {
    bench b;
    b.behind.pages[0x5000] = {0x9000};
    b.behind.memory.refused = {vm_accel::iova{0x9000}, 0x1000};
    CHECK_FALSE(b.read(0x5000, 8));
    CHECK(b.cache.statistics().refused == 1);
    CHECK(b.behind.untranslated == 0);
    b.behind.memory.refused = {};
    CHECK(b.read(0x5000, 8));
    CHECK(b.behind.requests == 2);
}

TEST_CASE("ats_cache: an invalidation takes back what it covers, and nothing else") {
    struct row {
        atc_invalidation asked;
        bool first, second, large;
    };
    const auto r = GENERATE(
        row{{}, true, true, true}, //
        row{{0x5000, 0x5fff}, true, false, false}, row{{0x4000, 0x4fff}, false, false, false},
        row{{0x5fff, 0x6000}, true, true, false}, row{{0x17000, 0x17fff}, false, false, true},
        row{{0x7000, 0xffff}, false, false, false},
        row{{.has_substream = true}, false, false, false},
        row{{.has_substream = true, .global = true}, true, true, true});
    bench b;
    b.behind.pages[0x5000] = {0x9000};
    b.behind.pages[0x6000] = {0x3000};
    b.behind.pages[0x10000] = {0x20000, true, true, 16};
    const auto asks_again = [&](std::uint64_t at) {
        const unsigned before = b.behind.requests;
        REQUIRE(b.read(at, 8));
        return b.behind.requests != before;
    };
    for (const std::uint64_t at : {0x5000ULL, 0x6000ULL, 0x10000ULL})
        REQUIRE(asks_again(at));
    b.cache.forget(r.asked);
    const ats_statistics s = b.cache.statistics();
    CHECK(s.invalidations == 1);
    CHECK(s.forgotten == std::uint64_t{r.first} + r.second + r.large);
    CHECK(asks_again(0x5ff8) == r.first);
    CHECK(asks_again(0x6000) == r.second);
    CHECK(asks_again(0x10008) == r.large);
}

TEST_CASE("ats_cache: turned off it forgets all; full it forgets one") {
    bench b;
    for (std::uint64_t i = 0; i <= ats_cache::capacity; ++i)
        b.behind.pages[i << 12] = {(i << 12) + 0x80000};
    for (std::uint64_t i = 0; i < ats_cache::capacity; ++i)
        REQUIRE(b.read(i << 12, 8));
    REQUIRE(b.read(ats_cache::capacity << 12, 8));
    CHECK(b.behind.requests == ats_cache::capacity + 1);
    unsigned again = 0;
    for (std::uint64_t i = ats_cache::capacity; i > 0; --i) {
        const unsigned before = b.behind.requests;
        REQUIRE(b.read(i << 12, 8));
        again += b.behind.requests - before;
    }
    CHECK(again == 0);
    b.cache.enable(false);
    b.cache.enable(true);
    b.behind.requests = 0;
    REQUIRE(b.read(0x1000, 8));
    CHECK(b.behind.requests == 1);
}

TEST_CASE("ats_cache: who takes a translation back waits for the access that uses it") {
    const bool by_control = GENERATE(false, true);
    bench b;
    b.behind.pages[0x5000] = {0x9000};
    REQUIRE(b.read(0x5000, 8));
    std::atomic<bool> begun{false}, over{false}, seen_over{false};
    std::thread other{[&] {
        while (!begun) {}
        by_control ? b.cache.enable(false) : b.cache.forget({});
        seen_over = over.load();
    }};
    b.behind.during = [&] {
        begun = true;
        // Time enough to overtake this access, for one that does not wait.
        for (unsigned i = 0; i < 1000 && !seen_over; ++i)
            std::this_thread::yield();
        over = true;
        b.behind.during = nullptr;
    };
    REQUIRE(b.write(0x5000, 8));
    other.join();
    CHECK(seen_over);
    const unsigned translated = b.behind.translated;
    b.behind.pages.clear();
    REQUIRE(b.write(0x5000, 8));
    CHECK(b.behind.translated == translated);
}

TEST_CASE("virtio_pci_disk: its data take the way that the ATS control says, messages do not") {
    struct no_notify {
        void operator()() const noexcept {}
    };
    const temporary_disk storage;
    translating behind;
    std::deque<atc_invalidation> asked;
    std::vector<std::uint32_t> acknowledged;
    virtio_pci_disk<translating_port, no_notify> disk{translating_port{&behind}, *storage.file,
                                                      no_notify{}, pci_translation{.ats = true}};
    translating_port news{&behind, &asked, &acknowledged};
    constexpr std::uint64_t control = 0x106;
    REQUIRE((disk.read_configuration(0x100, 4) & 0xffff) == 0x0f);
    // Every address of the rings and buffers, and the doorbell, lies 0x80000 higher.
    for (std::uint64_t at = 0; at < 0x80000; at += 0x1000)
        behind.pages[at] = {at + 0x80000};
    disk.write_configuration(pci_header::command, 2, pci_header::bus_master);
    disk.write_configuration(control, 2, 0x8000);
    std::uint64_t msix = disk.read_configuration(pci_header::capabilities, 1);
    while (disk.read_configuration(msix, 1) != 0x11)
        msix = disk.read_configuration(msix + 1, 1);
    disk.write_configuration(msix + 2, 2, msix_enabled);
    const auto store = [&](std::uint64_t at, unsigned size, std::uint64_t value) {
        disk.write(at, size, value);
    };
    store(0x4010, 4, 0x7040); // the queue's vector
    store(0x4018, 4, 0xa1);
    store(0x401c, 4, 0);
    store(0x08, 4, 1);
    store(0x0c, 4, 3);
    store(0x14, 1, 11);
    store(0x18, 2, 8);
    store(0x20, 4, 0x1000);
    store(0x28, 4, 0x2000);
    store(0x30, 4, 0x3000);
    store(0x1a, 2, 1);
    store(0x1c, 2, 1);
    store(0x14, 1, 15);
    behind.memory.put(0x84008, std::uint64_t{2}); // sector of a read
    const struct {
        std::uint64_t address;
        std::uint32_t bytes;
        std::uint16_t flags, next;
    } chain[] = {{0x4000, 16, 1, 1}, {0x8000, 512, 3, 2}, {0x5000, 1, 2, 0}};
    for (std::size_t i = 0; i < 3; ++i)
        behind.memory.put(0x81000 + 16 * i, chain[i]);
    behind.memory.put(0x82002, std::uint16_t{1});
    disk.serve();
    CHECK(behind.memory.get<std::uint16_t>(0x83002) == 1);
    CHECK(behind.memory.get<std::uint8_t>(0x88003) == static_cast<std::uint8_t>(2 + 1024 + 3));
    CHECK(behind.memory.get<std::uint32_t>(0x7040) == 0xa1);
    CHECK(behind.untranslated == 1); // the message
    CHECK(disk.ats().translated == behind.translated);
    CHECK(disk.ats().requests == behind.requests);
    CHECK(disk.ats_was_enabled());

    asked = {{.first = 0x1000, .last = 0x1fff, .token = 7}, {.token = 9}};
    disk.answer_invalidations(news);
    CHECK(acknowledged == std::vector<std::uint32_t>{7, 9});
    CHECK(disk.ats().invalidations == 2);
    CHECK(disk.ats().forgotten == 6); // rings, header, data, status

    disk.write_configuration(control, 2, 0);
    const unsigned translated = behind.translated;
    disk.serve();
    CHECK(behind.translated == translated);
    CHECK(behind.untranslated > 1);
}

TEST_CASE("news_thread: works when there is news, and ends") {
    struct port_with_news {
        std::atomic<std::uint32_t>* count;
        [[nodiscard]] bool read(iova, std::span<std::byte>) noexcept { return true; }
        [[nodiscard]] bool write(iova, std::span<const std::byte>) noexcept { return true; }
        [[nodiscard]] std::uint32_t news() const noexcept { return *count; }
        void wait_for_news(std::uint32_t seen) const noexcept { count->wait(seen); }
        void wake() noexcept {
            ++*count;
            count->notify_all();
        }
    };
    std::atomic<std::uint32_t> news{0}, worked{0};
    port_with_news port{&news};
    {
        const news_thread thread{"news", port, [&](port_with_news&) noexcept {
                                     ++worked;
                                     worked.notify_all();
                                 }};
        worked.wait(0);
        const std::uint32_t before = worked;
        port.wake();
        worked.wait(before);
    }
    CHECK(worked >= 2);
    // Where there is no news there is no thread.
    flat_memory memory;
    fake_port plain{&memory};
    const news_thread none{"none", plain, [&](fake_port&) noexcept { worked = 0; }};
    CHECK(worked >= 2);
}
