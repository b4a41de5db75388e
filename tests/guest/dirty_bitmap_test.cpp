#include "smmu/guest_driver.hpp"

#include <vm_accel/guest/dirty_bitmap.hpp>
#include <vm_accel/guest/region_map.hpp>

#include <catch2/catch.hpp>

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

using namespace vm_accel;

namespace {

std::vector<std::uint64_t> pages(dirty_bitmap& map) {
    std::vector<std::uint64_t> found;
    const std::uint64_t count = map.harvest([&](pa page) { found.push_back(raw(page)); });
    CHECK(count == found.size());
    return found;
}

} // namespace

TEST_CASE("which pages a write makes dirty", "[guest][dirty]") {
    using list = std::vector<std::uint64_t>;
    struct row {
        const char* what;
        std::uint64_t address, bytes;
        list dirty;
    };
    const auto r =
        GENERATE(row{"one byte", 0x4000'1234, 1, {0x4000'1000}}, row{"nothing", 0x4000'1234, 0, {}},
                 row{"last byte of a page", 0x4000'1fff, 1, {0x4000'1000}},
                 row{"across", 0x4000'1fff, 2, {0x4000'1000, 0x4000'2000}},
                 row{"starts before the range", 0x3fff'f000, 0x1001, {0x4000'0000}},
                 row{"ends after the range", 0x4010'0000 - 1, 0x5000, {0x400f'f000}},
                 row{"before the range", 0x3fff'f000, 0x1000, {}},
                 row{"after the range", 0x4010'0000, 0x1000, {}},
                 row{"page 64", 0x4004'0000, 4, {0x4004'0000}});
    CAPTURE(r.what);
    dirty_bitmap map;
    REQUIRE(map.cover({pa{0x4000'0000}, 0x10'0000}));
    map.note_write(pa{r.address}, r.bytes);
    CHECK(pages(map) == r.dirty);
    CHECK(pages(map).empty());
    map.note_write(pa{r.address}, r.bytes);
    CHECK(pages(map) == r.dirty);
}

TEST_CASE("a dirty bitmap refuses what is no range, and forgets without one", "[guest][dirty]") {
    dirty_bitmap map;
    CHECK(map.cover({pa{0}, 0}).error() == errc::invalid_argument);
    CHECK(map.cover({pa{~0ULL - 10}, 4096}).error() == errc::invalid_argument);
    map.note_write(pa{0}, 4096);
    CHECK(pages(map).empty());
    REQUIRE(map.cover({pa{~0ULL - 0xfff}, 0x1000}));
    map.note_write(pa{~0ULL}, 1);
    CHECK(pages(map) == std::vector<std::uint64_t>{~0ULL - 0xfff});
}

TEST_CASE("DMA and the SMMU's own writes make pages dirty", "[guest][dirty][smmu]") {
    using tracked = basic_region_map<dirty_bitmap>;
    static_assert(guest_memory<tracked>);
    tracked memory;
    counting_sink sink;
    guest::host_pages ram{0x10000};
    REQUIRE(memory.add(pa{0x4000'0000}, ram.data(), ram.size()));
    REQUIRE(memory.tracking().cover({pa{0x4000'0000}, ram.size()}));
    using device = smmu<no_tlb, bitmap_streams<4>, tracked>;
    auto iommu = std::make_unique<device>(memory, sink);
    REQUIRE(iommu->init());
    REQUIRE(iommu->attach_device("disk", {pa{0x4000'0000}, ram.size()}));
    auto port = iommu->make_port("disk").value();
    std::array<std::byte, 16> bytes{};
    REQUIRE(port.read(iova{0x4000'3000}, bytes));
    CHECK(pages(memory.tracking()).empty());
    REQUIRE(port.write(iova{0x4000'3ff8}, bytes));
    CHECK(pages(memory.tracking()) == std::vector<std::uint64_t>{0x4000'3000, 0x4000'4000});
    // An event record: no stream table, so the next access is C_BAD_STREAMID or worse.
    iommu->mmio_write(spec::reg::CR2, 4, 0x2);
    iommu->mmio_write(spec::reg::EVENTQ_BASE, 8, 0x4000'8000 | 3);
    iommu->mmio_write(spec::reg::CR0, 4, 0x5);
    REQUIRE_FALSE(port.write(iova{0x4000'3000}, bytes));
    CHECK(iommu->stats().events == 1);
    CHECK(pages(memory.tracking()) == std::vector<std::uint64_t>{0x4000'8000});
}
