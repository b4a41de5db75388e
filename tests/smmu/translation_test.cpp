// What a device's access gives, for tables as a driver builds them.
#include "guest_driver.hpp"

#include <catch2/catch.hpp>

#include <algorithm>
#include <array>
#include <string>

using namespace vm_accel;
using guest::page_flags;

namespace {

constexpr std::uint32_t sid = 0x10;
constexpr std::uint64_t page = 0x1000;

std::array<std::byte, 16> pattern(unsigned seed) {
    std::array<std::byte, 16> bytes{};
    for (std::size_t i = 0; i < bytes.size(); ++i)
        bytes[i] = std::byte(seed + i);
    return bytes;
}

} // namespace

TEMPLATE_TEST_CASE("a mapped page is read and written through the tables", "[smmu]", no_tlb,
                   (set_associative<16, 2>), (set_associative<64, 4, fifo>)) {
    guest::machine<TestType> m;
    m.start();
    REQUIRE(m.commands_done());
    REQUIRE(m.iommu().attach_device("disk", m.all_of_ram, stream_id{sid}));
    const std::uint64_t root = m.stage1_stream(sid, 1);
    const std::uint64_t target = m.take_pages(2);
    m.map(root, 0xffff'0000, target);
    m.map(root, 0xffff'1000, target + page);

    auto port = m.iommu().make_port("disk").value();
    const auto written = pattern(3);
    // Across the page boundary, twice: first walked, then from the TLB.
    for (int round = 0; round < 2; ++round) {
        REQUIRE(port.write(iova{0xffff'0ff8}, written));
        CHECK(std::equal(written.begin(), written.end(), m.host(target + 0xff8)));
        std::array<std::byte, 16> back{};
        REQUIRE(port.read(iova{0xffff'0ff8}, back));
        CHECK(back == written);
    }
    CHECK_FALSE(m.event());
    const smmu_statistics s = m.iommu().stats();
    CHECK(s.translations == 8);
    CHECK(s.hits + s.misses == 8);
    CHECK(s.faults == 0);
    if constexpr (TestType::capacity != 0) CHECK(s.hits == 6);
}

TEST_CASE("both halves of the input space, blocks and top bytes", "[smmu]") {
    struct row {
        const char* what;
        std::uint64_t address;
        int level;
        std::uint64_t offset;
    };
    const auto r = GENERATE(row{"page, lower half", 0x0000'1234'5000, 3, 0x123},
                            row{"2 MiB block, first page", 0x0000'4020'0000, 2, 0x10},
                            row{"2 MiB block, last page", 0x0000'4020'0000, 2, 0x1f'f000},
                            row{"1 GiB block, in the middle", 0x0000'8000'0000, 1, 0x40'3210},
                            row{"page, upper half", 0xffff'ffff'ffff'f000, 3, 0x0},
                            row{"block, upper half", 0xffff'8000'0020'0000, 2, 0x1234},
                            row{"page, lower half, top byte set", 0x5500'0000'1234'5000, 3, 0x8});
    CAPTURE(r.what);
    guest::machine<> m;
    m.start();
    REQUIRE(m.iommu().attach_device("disk", {pa{0}, 1ULL << 44}, stream_id{sid}));
    const std::uint64_t lower = m.take_pages();
    const std::uint64_t upper = m.take_pages();
    spec::cd c = m.plain_cd(lower, 5);
    set<spec::cd::EPD1>(c, 0);
    set<spec::cd::TTB1>(c, upper >> spec::cd::TTB1::low);
    set<spec::cd::TBI0>(c, 1);
    const std::uint64_t cd_page = m.take_pages();
    m.store(cd_page, c);
    m.store(m.ste_address(sid), m.plain_ste(spec::ste_config::s1_translate, cd_page));
    const bool is_upper = (r.address >> 55 & 1) != 0;
    const std::uint64_t input = r.address & 0x0000'ffff'ffff'ffff;
    // Blocks are naturally aligned: RAM's first 1 GiB, or 2 MiB at +8 MiB.
    const std::uint64_t output = r.level == 1   ? guest::ram
                                 : r.level == 2 ? guest::ram + (8U << 20)
                                                : m.take_pages();
    m.map(is_upper ? upper : lower, input, output, r.level);

    auto port = m.iommu().make_port("disk").value();
    for (int round = 0; round < 2; ++round) {
        auto guard = port.open();
        const outcome o = guard.translate(iova{r.address + r.offset}, 4, access::read);
        REQUIRE(o.is_span());
        CHECK(raw(o.address()) == output + r.offset);
        CHECK(o.host() == m.host(output + r.offset));
        CHECK(o.length() == 4);
    }
}

TEST_CASE("each walk fault has its event and syndrome", "[smmu]") {
    using enum spec::event_id;
    struct row {
        const char* what;
        spec::event_id event;
        vm_accel::access kind;
        page_flags flags;
        std::uint64_t output;
        int level;
        std::uint64_t address;
    };
    const page_flags plain{};
    const page_flags no_af{.access_flag = false};
    const page_flags read_only{.read_only = true};
    const page_flags privileged{.user = false};
    const auto r = GENERATE_COPY(
        row{"not mapped", F_TRANSLATION, access::read, plain, 0, 3, 0x9000'0000},
        row{"not mapped, write", F_TRANSLATION, access::write, plain, 0, 3, 0x9000'0000},
        row{"beyond the lower half", F_TRANSLATION, access::read, plain, 0, 3, 0x1'0000'0000'0000},
        row{"upper half switched off", F_TRANSLATION, access::read, plain, 0, 3,
            0xffff'ffff'ffff'0000},
        row{"access flag clear", F_ACCESS, access::read, no_af, guest::ram, 3, 0x1000},
        row{"write to read-only", F_PERMISSION, access::write, read_only, guest::ram, 3, 0x1000},
        row{"unprivileged to privileged", F_PERMISSION, access::read, privileged, guest::ram, 3,
            0x1000},
        row{"output beyond IPS", F_ADDR_SIZE, access::read, plain, 1ULL << 44, 3, 0x1000},
        row{"block output beyond IPS", F_ADDR_SIZE, access::read, plain, 1ULL << 45, 2,
            0x1000}); // NOLINT
    CAPTURE(r.what);
    guest::machine<> m;
    m.start();
    REQUIRE(m.iommu().attach_device("disk", m.all_of_ram, stream_id{sid}));
    const std::uint64_t root = m.stage1_stream(sid, 1);
    if (r.output != 0) m.map(root, r.address, r.output, r.level, r.flags);
    auto port = m.iommu().make_port("disk").value();
    std::array<std::byte, 8> bytes{};
    const std::uint64_t interrupts = m.sink.pulses(wired_interrupt::eventq);
    const bool allowed = r.kind == access::read ? port.read(iova{r.address + 0x18}, bytes)
                                                : port.write(iova{r.address + 0x18}, bytes);
    REQUIRE_FALSE(allowed);
    CHECK(m.sink.pulses(wired_interrupt::eventq) == interrupts + 1);
    const auto record = m.event();
    REQUIRE(record);
    using R = spec::event_record;
    CHECK(guest::id_of(*record) == r.event);
    CHECK(get<R::StreamID>(*record) == sid);
    CHECK(get<R::InputAddr>(*record) == r.address + 0x18);
    CHECK(get<R::RnW>(*record) == (r.kind == access::read ? 1 : 0));
    CHECK(get<R::CLASS>(*record) == static_cast<std::uint64_t>(spec::fault_class::IN));
    CHECK(get<R::S2>(*record) == 0);
    CHECK(get<R::SSV>(*record) == 0);
    CHECK(get<R::STALL>(*record) == 0);
    CHECK_FALSE(m.event());
    CHECK(m.iommu().stats().faults == 1);
    CHECK(m.iommu().stats().events == 1);
}
