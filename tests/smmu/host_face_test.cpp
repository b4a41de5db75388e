// The VMM's side: devices come and go, mistakes are refused and change nothing.
#include "guest_driver.hpp"

#include <vm_accel/smmu/host/lockfree_streams.hpp>

#include <catch2/catch.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

using namespace vm_accel;
namespace reg = vm_accel::spec::reg;

namespace {

constexpr pa_range window{pa{guest::ram}, 0x10000};

struct few_ports : default_smmu_options {
    static constexpr std::size_t ports = 2;
};
struct narrow_streams : default_smmu_options {
    static constexpr smmu_features features = [] {
        smmu_features f;
        f.stream_bits = 4;
        return f;
    }();
};

/// 16 pages of RAM and an SMMU that is off: DMA passes untranslated.
template <class Streams = bitmap_streams<8>, class Options = default_smmu_options,
          class Sink = counting_sink>
struct host {
    using device = smmu<set_associative<16, 2>, Streams, region_map, Sink, Options>;
    host() : iommu(std::make_unique<device>(memory, sink)), pages(0x10000) {
        REQUIRE(memory.add(pa{guest::ram}, pages.data(), pages.size()));
        REQUIRE(iommu->init());
    }
    /// All that a failed call must leave alone.
    std::vector<std::pair<std::string, std::uint32_t>> devices() const {
        std::vector<std::pair<std::string, std::uint32_t>> all;
        for (const attachment_info& info : iommu->list_attached_devices())
            all.emplace_back(std::string{info.device_id.view()}, raw(info.stream));
        CHECK(all.size() == iommu->attached_device_count());
        return all;
    }

    region_map memory;
    Sink sink;
    std::unique_ptr<device> iommu;
    guest::host_pages pages;
};

bool reads(auto& port, std::uint64_t address) {
    std::array<std::byte, 8> bytes{};
    return port.read(iova{address}, bytes);
}
bool names(const error& e, const char* text) {
    return std::string{e.cause.view()}.find(text) != std::string::npos;
}

} // namespace

TEMPLATE_TEST_CASE("devices are attached, listed, found and detached", "[smmu][host]",
                   bitmap_streams<8>, lockfree_streams<8>) {
    host<TestType> m;
    CHECK(m.devices().empty());
    const stream_id nic = m.iommu->attach_device("nic", window).value();
    const stream_id disk = m.iommu->attach_device("disk", window, stream_id{5}).value();
    CHECK(disk == stream_id{5});
    CHECK(nic != disk);
    CHECK(m.devices() ==
          std::vector<std::pair<std::string, std::uint32_t>>{{"nic", raw(nic)}, {"disk", 5}});
    const attachment_info info = m.iommu->attachment("disk").value();
    CHECK(info.device_id == "disk");
    CHECK(info.stream == disk);
    CHECK(info.attached);
    CHECK(info.window == window);
    CHECK_FALSE(info.managed);

    REQUIRE(m.iommu->detach_device("nic"));
    CHECK(m.devices() == std::vector<std::pair<std::string, std::uint32_t>>{{"disk", 5}});
    CHECK(m.iommu->attachment("nic").error() == errc::not_found);
    CHECK(m.iommu->make_port("nic").error() == errc::not_found);
    // Its StreamID can be had again, and so can its name.
    CHECK(m.iommu->attach_device("nic", window, nic).value() == nic);
    REQUIRE(m.iommu->detach_device("nic"));
    CHECK(m.iommu->attach_device("other", window, nic).value() == nic);
}

TEMPLATE_TEST_CASE("attaching: each mistake has its error, and changes nothing", "[smmu][host]",
                   bitmap_streams<8>, lockfree_streams<8>) {
    struct row {
        const char* what;
        std::string id;
        pa_range window;
        std::optional<stream_id> stream;
        std::optional<errc> error; ///< none = it is right
    };
    constexpr std::uint64_t top_page = 0xffff'ffff'ffff'f000;
    const auto r = GENERATE_COPY(
        row{"as it should be", "nic", window, {}, {}},
        row{"attached already", "disk", window, {}, errc::already_exists},
        row{"attached already, with another StreamID", "disk", window, stream_id{6},
            errc::already_exists},
        row{"no id", "", window, {}, errc::invalid_argument},
        row{"id of 63 bytes", std::string(63, 'x'), window, {}, {}},
        row{"id of 64 bytes", std::string(64, 'x'), window, {}, errc::invalid_argument},
        row{"empty window", "nic", {pa{guest::ram}, 0}, {}, errc::invalid_argument},
        row{"base unaligned", "nic", {pa{guest::ram + 0x800}, 0x1000}, {}, errc::invalid_argument},
        row{"size unaligned", "nic", {pa{guest::ram}, 0x1001}, {}, errc::invalid_argument},
        row{"past the end", "nic", {pa{top_page}, 0x2000}, {}, errc::invalid_argument},
        row{"up to the end", "nic", {pa{top_page}, 0x1000}, {}, {}},
        row{"StreamID taken", "nic", window, stream_id{5}, errc::already_exists},
        row{"StreamID beyond the allocator", "nic", window, stream_id{8}, errc::out_of_range},
        row{"last StreamID", "nic", window, stream_id{7}, {}});
    CAPTURE(r.what);
    host<TestType> m;
    REQUIRE(m.iommu->attach_device("disk", window, stream_id{5}));
    const auto before = m.devices();
    const result<stream_id> got = r.stream ? m.iommu->attach_device(r.id, r.window, *r.stream)
                                           : m.iommu->attach_device(r.id, r.window);
    CHECK(got.has_value() == !r.error);
    if (r.error) {
        CHECK(got.error() == *r.error);
        CHECK_FALSE(got.error().cause.empty());
        CHECK_FALSE(got.error().cure.empty());
        CHECK(m.devices() == before);
        // All other StreamIDs are still free: none leaked.
        for (int i = 0; i < 7; ++i)
            CHECK(m.iommu->attach_device("d" + std::to_string(i), window));
    } else {
        CHECK(m.devices().size() == 2);
        for (int i = 0; i < 6; ++i)
            CHECK(m.iommu->attach_device("d" + std::to_string(i), window));
    }
    CHECK(m.iommu->attach_device("one too many", window).error() == errc::exhausted);
    CHECK(m.iommu->attached_device_count() == 8);
}

TEST_CASE("a StreamID wider than IDR1.SIDSIZE is refused", "[smmu][host]") {
    host<bitmap_streams<64>, narrow_streams> m;
    CHECK(m.iommu->attach_device("a", window, stream_id{16}).error() == errc::out_of_range);
    CHECK(m.iommu->attach_device("a", window, stream_id{15}));
}

TEST_CASE("detaching what is not attached", "[smmu][host]") {
    host<> m;
    REQUIRE(m.iommu->attach_device("disk", window));
    const auto before = m.devices();
    const result<> done = m.iommu->detach_device("dis");
    CHECK(done.error() == errc::not_found);
    CHECK(names(done.error(), "'dis'"));
    CHECK(m.devices() == before);
    REQUIRE(m.iommu->detach_device("disk"));
    CHECK(m.iommu->detach_device("disk").error() == errc::not_found);
}

TEST_CASE("ports run out, come back, and move", "[smmu][host]") {
    using bench = host<bitmap_streams<8>, few_ports>;
    bench m;
    REQUIRE(m.iommu->attach_device("disk", window));
    auto first = std::make_optional(m.iommu->make_port("disk").value());
    auto second = m.iommu->make_port("disk").value();
    const auto third = m.iommu->make_port("disk");
    REQUIRE_FALSE(third);
    CHECK(third.error() == errc::exhausted);
    CHECK(names(third.error(), "2"));
    CHECK(reads(*first, guest::ram));
    CHECK(reads(second, guest::ram));
    // Moving a port neither takes nor frees one.
    bench::device::port moved{std::move(*first)};
    first.reset();
    CHECK(m.iommu->make_port("disk").error() == errc::exhausted);
    CHECK(reads(moved, guest::ram));
    second = std::move(moved); // the second port is gone
    CHECK(reads(second, guest::ram));
    CHECK(m.iommu->make_port("disk"));
}

TEST_CASE("a port outlives its attachment, and refuses", "[smmu][host]") {
    host<> m;
    const stream_id stream = m.iommu->attach_device("disk", window).value();
    auto old = m.iommu->make_port("disk").value();
    CHECK(reads(old, guest::ram));
    REQUIRE(m.iommu->detach_device("disk"));
    CHECK_FALSE(reads(old, guest::ram));
    {
        auto guard = old.open();
        const outcome o = guard.translate(iova{guest::ram}, 8, access::read);
        REQUIRE(o.is_fault());
        CHECK(o.why() == silent_abort::detached);
    }
    // The same name and StreamID again are another attachment.
    REQUIRE(m.iommu->attach_device("disk", window, stream));
    auto fresh = m.iommu->make_port("disk").value();
    CHECK(reads(fresh, guest::ram));
    CHECK_FALSE(reads(old, guest::ram));
    CHECK(old.stream() == stream);
    // A configuration command for the StreamID does not revive it.
    m.iommu->mmio_write(reg::GBPA, 4, 0x8010'0000);
    m.iommu->mmio_write(reg::GBPA, 4, 0x8000'0000);
    CHECK(reads(fresh, guest::ram));
    CHECK_FALSE(reads(old, guest::ram));
    REQUIRE(m.iommu->invalidate_tlb());
    CHECK_FALSE(reads(old, guest::ram));
}

TEST_CASE("a device reaches its window and nothing else", "[smmu][host]") {
    host<> m;
    REQUIRE(m.iommu->attach_device("disk", {pa{guest::ram + 0x4000}, 0x2000}));
    auto port = m.iommu->make_port("disk").value();
    for (int round = 0; round < 2; ++round) {
        CHECK_FALSE(reads(port, guest::ram + 0x3ff8));
        CHECK(reads(port, guest::ram + 0x4000));
        CHECK(reads(port, guest::ram + 0x5ff8));
        CHECK_FALSE(reads(port, guest::ram + 0x5ffc)); // its second half is outside
        CHECK_FALSE(reads(port, guest::ram + 0x6000));
    }
    // A window may be larger than memory; what is not memory is refused.
    REQUIRE(m.iommu->attach_device("nic", {pa{0}, 1ULL << 44}));
    auto nic = m.iommu->make_port("nic").value();
    CHECK(reads(nic, guest::ram));
    CHECK_FALSE(reads(nic, guest::ram - 0x1000));
    CHECK_FALSE(reads(nic, guest::ram + 0x10000));
}

TEST_CASE("a managed device sees its window one to one, whatever the guest does", "[smmu][host]") {
    guest::machine<> m;
    m.start();
    const pa_range part{pa{guest::ram + 0x10'0000}, 0x10'0000};
    REQUIRE(m.iommu().attach_device("managed", part, stream_id{0x10}, {.managed = true}));
    REQUIRE(m.iommu().attach_device("plain", part, stream_id{0x11}));
    CHECK(m.iommu().attachment("managed")->managed);
    CHECK_FALSE(m.iommu().attachment("plain")->managed);
    auto managed = m.iommu().make_port("managed").value();
    auto plain = m.iommu().make_port("plain").value();
    const std::uint64_t inside = raw(part.base) + 0x8000;
    const auto holds = [&] {
        CHECK(reads(managed, inside));
        CHECK(reads(managed, raw(part.base)));
        CHECK_FALSE(reads(managed, raw(part.base) - 8));
        CHECK_FALSE(reads(managed, raw(part.base) + part.size));
        auto guard = managed.open();
        const outcome o = guard.translate(iova{inside}, 8, access::write);
        REQUIRE(o.is_span());
        CHECK(raw(o.address()) == inside);
        CHECK(o.host() == m.host(inside));
    };
    holds(); // there is no stream table entry
    CHECK_FALSE(m.event());
    CHECK_FALSE(reads(plain, inside));
    CHECK(m.event());
    m.store(m.ste_address(0x10), m.plain_ste(spec::ste_config::abort));
    m.command(spec::cmd_cfgi_all());
    m.command(spec::tlbi_nsnh_all());
    m.sync();
    holds();
    m.write32(reg::CR0, 0xc);
    m.write32(reg::GBPA, 0x8010'0000);
    holds();
    CHECK_FALSE(reads(plain, inside));
    REQUIRE(m.iommu().reset());
    holds();
    CHECK_FALSE(m.event());
}

TEST_CASE("asking where an access would go", "[smmu][host]") {
    guest::machine<> m;
    m.start();
    REQUIRE(m.iommu().attach_device("disk", {pa{guest::ram}, guest::ram_bytes - 0x1000},
                                    stream_id{0x10}));
    const std::uint64_t root = m.stage1_stream(0x10, 1);
    const std::uint64_t target = m.take_pages(4);
    m.map(root, 0x10000, target);
    m.map(root, 0x11000, target + 0x1000);
    m.map(root, 0x12000, target + 0x3000); // a gap
    m.map(root, 0x13000, guest::ram + guest::ram_bytes - 0x1000);
    m.map(root, 0x14000, target, 3, {.read_only = true});
    m.map(root, 0x4000'0000, guest::ram, 2); // a block
    const auto ask = [&](std::uint64_t address, std::uint64_t size,
                         vm_accel::access kind = access::read) {
        return m.iommu().translate_dma_addr("disk", iova{address}, size, kind);
    };
    CHECK(raw(ask(0x10000, 1).value()) == target);
    CHECK(raw(ask(0x10abc, 0x1544).value()) == target + 0xabc); // to the last byte of the page
    CHECK(raw(ask(0x10000, 0x2000, access::write).value()) == target);
    CHECK(raw(ask(0x4000'0000, 0x20'0000).value()) == guest::ram);

    struct row {
        const char* what;
        std::uint64_t address, size;
        vm_accel::access kind;
        errc code;
        const char* cause;
    };
    for (const row& r : {
             row{"not contiguous", 0x11ff0, 0x20, access::read, errc::mismatch, "0x12000"},
             row{"unmapped", 0x20000, 8, access::read, errc::permission_denied, "F_TRANSLATION"},
             row{"unmapped at its end", 0x14ff8, 9, access::read, errc::permission_denied,
                 "0x15000"},
             row{"read-only", 0x14000, 8, access::write, errc::permission_denied, "F_PERMISSION"},
             row{"outside the window", 0x13000, 8, access::read, errc::permission_denied, "window"},
             row{"empty", 0x10000, 0, access::read, errc::invalid_argument, "empty"},
             row{"wraps", ~std::uint64_t{0} - 6, 8, access::read, errc::invalid_argument, "wraps"},
             row{"ends at the top", ~std::uint64_t{0} - 7, 8, access::read, errc::permission_denied,
                 "F_TRANSLATION"},
         }) {
        CAPTURE(r.what);
        const auto got = ask(r.address, r.size, r.kind);
        REQUIRE_FALSE(got);
        CHECK(got.error() == r.code);
        INFO(got.error().cause.view());
        CHECK(names(got.error(), r.cause));
    }
    CHECK(m.iommu().translate_dma_addr("nic", iova{0}, 8, access::read).error() == errc::not_found);
    // It is a look, and leaves no trace.
    CHECK_FALSE(m.event());
    CHECK(m.iommu().stats().translations == 0);
    CHECK(m.iommu().stats().faults == 0);
    // It looks at memory, not at caches.
    auto port = m.iommu().make_port("disk").value();
    REQUIRE(reads(port, 0x10000));
    m.unmap(root, 0x10000);
    CHECK(reads(port, 0x10000));
    CHECK_FALSE(ask(0x10000, 8));
}

TEST_CASE("the VMM forgets what is cached, of one stream or of all", "[smmu][host]") {
    guest::machine<> m;
    m.start();
    REQUIRE(m.iommu().attach_device("a", m.all_of_ram, stream_id{0x10}));
    REQUIRE(m.iommu().attach_device("b", m.all_of_ram, stream_id{0x11}));
    const std::uint64_t root_a = m.stage1_stream(0x10, 1);
    const std::uint64_t root_b = m.stage1_stream(0x11, 2);
    const std::uint64_t target = m.take_pages();
    m.map(root_a, 0x1000, target);
    m.map(root_b, 0x1000, target);
    auto a = m.iommu().make_port("a").value();
    auto b = m.iommu().make_port("b").value();
    REQUIRE(reads(a, 0x1000));
    REQUIRE(reads(b, 0x1000));
    m.unmap(root_a, 0x1000);
    m.unmap(root_b, 0x1000);
    CHECK(reads(a, 0x1000)); // still cached
    CHECK(reads(b, 0x1000));

    const auto unknown = m.iommu().invalidate_tlb(stream_id{0x12});
    CHECK(unknown.error() == errc::not_found);
    CHECK(names(unknown.error(), "0x12"));
    CHECK(reads(a, 0x1000));

    REQUIRE(m.iommu().invalidate_tlb(stream_id{0x10}));
    CHECK_FALSE(reads(a, 0x1000));
    CHECK(reads(b, 0x1000));
    REQUIRE(m.iommu().invalidate_tlb());
    CHECK_FALSE(reads(b, 0x1000));
}

TEST_CASE("memory comes and goes under a device", "[smmu][host]") {
    host<> m;
    constexpr std::uint64_t more = 0x8000'0000;
    guest::host_pages pages(0x2000);
    REQUIRE(m.iommu->attach_device("disk", {pa{0}, 1ULL << 40}));
    auto port = m.iommu->make_port("disk").value();
    CHECK_FALSE(reads(port, more)); // cached as "no memory there"
    REQUIRE(m.iommu->add_memory(pa{more}, pages.data(), pages.size()));
    CHECK(reads(port, more));
    CHECK(m.iommu->add_memory(pa{more}, pages.data(), 0x1000).error() == errc::already_exists);
    CHECK(m.iommu->add_memory(pa{more + 0x800}, pages.data(), 0x1000).error() ==
          errc::invalid_argument);
    CHECK(m.iommu->remove_memory(pa{more + 0x1000}).error() == errc::not_found);
    CHECK(reads(port, more + 0x1ff8));
    REQUIRE(m.iommu->remove_memory(pa{more}));
    CHECK_FALSE(reads(port, more));
    CHECK_FALSE(reads(port, more + 0x1000));
    CHECK(reads(port, guest::ram));
    // Other memory at the same place is what is found there.
    guest::host_pages others(0x1000);
    others.data()[0] = std::byte{0x5a};
    REQUIRE(m.iommu->add_memory(pa{more}, others.data(), others.size()));
    std::array<std::byte, 1> byte{};
    REQUIRE(port.read(iova{more}, byte));
    CHECK(byte[0] == std::byte{0x5a});
}

namespace {

/// Has one doorbell, and remembers the last message.
class doorbell_sink {
public:
    static constexpr pa doorbell{0x0808'0040};
    void pulse(wired_interrupt) noexcept {}
    bool is_doorbell(pa address) noexcept { return address == doorbell; }
    bool signal_msi(stream_id requester, pa address, std::uint32_t data) noexcept {
        last = {requester, address, data};
        ++messages;
        return address == doorbell && !refuse;
    }
    struct message {
        stream_id requester{};
        pa address{};
        std::uint32_t data = 0;
        bool operator==(const message&) const = default;
    };
    message last{};
    unsigned messages = 0;
    bool refuse = false;
};

} // namespace

TEST_CASE("a write to a doorbell is a message of its device", "[smmu][host]") {
    host<bitmap_streams<8>, default_smmu_options, doorbell_sink> m;
    // The doorbell lies outside the window: it is no memory.
    REQUIRE(m.iommu->attach_device("nic", window, stream_id{3}));
    auto port = m.iommu->make_port("nic").value();
    const std::uint64_t at = raw(doorbell_sink::doorbell);
    const std::array data{std::byte{0x78}, std::byte{0x56}, std::byte{0x34}, std::byte{0x12}};
    for (unsigned round = 1; round <= 2; ++round) {
        REQUIRE(port.write(iova{at}, data));
        CHECK(m.sink.messages == round);
        CHECK(m.sink.last ==
              doorbell_sink::message{stream_id{3}, doorbell_sink::doorbell, 0x1234'5678});
        CHECK(m.iommu->stats().msi_messages == round);
    }
    CHECK(m.iommu->stats().faults == 0);
    SECTION("what is not an aligned write of four bytes is refused") {
        std::array<std::byte, 8> eight{};
        CHECK_FALSE(reads(port, at));
        CHECK_FALSE(port.read(iova{at}, std::span{eight}.first(4)));
        CHECK_FALSE(port.write(iova{at}, eight));
        CHECK_FALSE(port.write(iova{at}, std::span{eight}.first(2)));
        CHECK_FALSE(port.write(iova{at}, std::span{eight}.first(1)));
        CHECK_FALSE(port.write(iova{at + 2}, std::span{eight}.first(4)));
        CHECK(m.sink.messages == 2);
        CHECK(m.iommu->stats().msi_messages == 2);
        CHECK(m.iommu->stats().faults == 6);
    }
    SECTION("a message that the sink refuses is a refused write") {
        m.sink.refuse = true;
        CHECK_FALSE(port.write(iova{at}, data));
        CHECK(m.sink.messages == 3);
        CHECK(m.iommu->stats().msi_messages == 2);
        CHECK(m.iommu->stats().faults == 1);
    }
    SECTION("its neighbours are no doorbells, and reach no memory") {
        CHECK_FALSE(port.write(iova{at + 4}, data));
        CHECK(m.iommu->stats().msi_messages == 2);
    }
}

TEST_CASE("a doorbell is found through the guest's tables too", "[smmu][host]") {
    struct bench {
        using device = smmu<set_associative<16, 2>, bitmap_streams<64>, region_map, doorbell_sink>;
    };
    // The guest's driver of the fixture, and a second SMMU on the same memory
    // with a sink that has a doorbell.
    guest::machine<> m;
    m.start();
    const std::uint64_t root = m.stage1_stream(0x10, 1);
    m.map(root, 0x5000, raw(doorbell_sink::doorbell) & ~std::uint64_t{0xfff});
    m.map(root, 0x6000, raw(doorbell_sink::doorbell) & ~std::uint64_t{0xfff}, 3,
          {.read_only = true});
    doorbell_sink sink;
    bench::device other{m.memory, sink};
    REQUIRE(other.init());
    other.mmio_write(reg::STRTAB_BASE, 8, guest::level1_table);
    other.mmio_write(reg::STRTAB_BASE_CFG, 4, 0x1'0210);
    other.mmio_write(reg::CR0, 4, 0x1);
    REQUIRE(other.attach_device("nic", m.all_of_ram, stream_id{0x10}));
    auto port = other.make_port("nic").value();
    const std::array data{std::byte{1}, std::byte{2}, std::byte{0}, std::byte{0}};
    CHECK(port.write(iova{0x5040}, data));
    CHECK(sink.last == doorbell_sink::message{stream_id{0x10}, doorbell_sink::doorbell, 0x201});
    CHECK_FALSE(port.write(iova{0x6040}, data)); // the mapping forbids it
    CHECK(sink.messages == 1);
}

TEST_CASE("statistics count what happened", "[smmu][host]") {
    guest::machine<set_associative<16, 2>> m;
    m.start(); // three commands, one of them CMD_SYNC
    REQUIRE(m.iommu().attach_device("disk", m.all_of_ram, stream_id{0x10}));
    const std::uint64_t root = m.stage1_stream(0x10, 1); // two, one of them CMD_SYNC
    m.map(root, 0x1000, m.take_pages());
    auto port = m.iommu().make_port("disk").value();
    auto second = m.iommu().make_port("disk").value();
    smmu_statistics s = m.iommu().stats();
    CHECK(s.translations == 0);
    CHECK(s.hit_rate() == 0.0);
    CHECK(s.commands == 5);
    CHECK(s.syncs == 2);

    CHECK(reads(port, 0x1000)); // a miss
    for (int i = 0; i < 3; ++i)
        CHECK(reads(second, 0x1000 + 16U)); // three hits
    CHECK_FALSE(reads(port, 0x1ffc));       // a hit, then a miss that faults
    m.command(spec::cmd_sync(spec::sync_signal::SIG_IRQ));
    s = m.iommu().stats();
    CHECK(s.hits == 4);
    CHECK(s.misses == 2);
    CHECK(s.translations == 6);
    CHECK(s.hit_rate() == Approx(4.0 / 6.0));
    CHECK(s.faults == 1);
    CHECK(s.events == 1);
    CHECK(s.events_dropped == 0);
    CHECK(s.interrupts == 2); // of the event, of CMD_SYNC
    CHECK(s.msi_messages == 0);
    CHECK(s.commands == 6);
    CHECK(s.syncs == 3);

    // Refused before any look-up, and refused by the window.
    m.store(m.ste_address(0x10), spec::ste{});
    m.command(spec::cmd_cfgi_all());
    m.sync();
    CHECK_FALSE(reads(port, 0x1000));
    s = m.iommu().stats();
    CHECK(s.translations == 7);
    CHECK(s.hits + s.misses == 6);
    CHECK(s.faults == 2);
    CHECK(s.events == 2);
}

TEST_CASE("before init() everything says so", "[smmu][host]") {
    using device = host<>::device;
    region_map memory;
    counting_sink sink;
    guest::host_pages pages(0x1000);
    REQUIRE(memory.add(pa{guest::ram}, pages.data(), pages.size()));
    auto iommu = std::make_unique<device>();
    CHECK_FALSE(iommu->is_initialized());
    CHECK(iommu->init().error() == errc::not_initialized); // no memory
    CHECK_FALSE(iommu->is_initialized());
    iommu->connect(memory);
    iommu->connect(sink);
    CHECK(iommu->attach_device("d", window).error() == errc::not_initialized);
    CHECK(iommu->detach_device("d").error() == errc::not_initialized);
    CHECK(iommu->reset().error() == errc::not_initialized);
    CHECK(iommu->quiesce().error() == errc::not_initialized);
    CHECK(iommu->remove_memory(pa{guest::ram}).error() == errc::not_initialized);
    CHECK(memory.find(pa{guest::ram}));
    CHECK_FALSE(iommu->make_port("d"));
    CHECK_FALSE(iommu->attachment("d"));
    CHECK_FALSE(iommu->translate_dma_addr("d", iova{0}, 1, access::read));
    CHECK(iommu->attached_device_count() == 0);
    CHECK(iommu->list_attached_devices().empty());
    CHECK(iommu->stats().commands == 0);
    CHECK_FALSE(iommu->poll());
    iommu->mmio_write(reg::CR1, 4, 0x123);
    CHECK(iommu->mmio_read(reg::IDR0, 4) == 0);
    REQUIRE(iommu->init());
    CHECK(iommu->is_initialized());
    CHECK(iommu->mmio_read(reg::IDR0, 4) != 0);
    CHECK(iommu->mmio_read(reg::CR1, 4) == 0);
    REQUIRE(iommu->attach_device("d", window));
    CHECK(iommu->init().error() == errc::already_initialized);
    CHECK(iommu->attached_device_count() == 1);
}

TEST_CASE("without a sink, interrupts are counted", "[smmu][host]") {
    region_map memory;
    guest::host_pages pages(0x1000);
    REQUIRE(memory.add(pa{guest::ram}, pages.data(), pages.size()));
    auto iommu = std::make_unique<host<>::device>();
    iommu->connect(memory);
    REQUIRE(iommu->init());
    iommu->mmio_write(reg::CMDQ_BASE, 8, guest::ram);
    const spec::command sync = spec::cmd_sync(spec::sync_signal::SIG_IRQ);
    REQUIRE(memory.write(pa{guest::ram}, std::as_bytes(std::span{sync.word})));
    iommu->mmio_write(reg::CR0, 4, 8);
    iommu->mmio_write(reg::CMDQ_PROD, 4, 1);
    CHECK(iommu->stats().interrupts == 1);
}
