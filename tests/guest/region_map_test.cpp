#include <vm_accel/guest/region_map.hpp>

#include <catch2/catch.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <span>
#include <utility>
#include <vector>

namespace {

using namespace vm_accel;

constexpr std::uint64_t page = 4096;
constexpr std::uint64_t top = ~std::uint64_t{0};

/// Page-aligned host memory, filled with one value.
class pages {
public:
    explicit pages(std::size_t count, unsigned char fill = 0) : size_(count * page) {
        data_ = static_cast<std::byte*>(::operator new(size_, std::align_val_t{page}));
        std::memset(data_, fill, size_);
    }
    pages(const pages&) = delete;
    pages& operator=(const pages&) = delete;
    ~pages() { ::operator delete(data_, std::align_val_t{page}); }
    [[nodiscard]] std::byte* data() const { return data_; }
    [[nodiscard]] std::uint64_t size() const { return size_; }

private:
    std::size_t size_;
    std::byte* data_;
};

std::vector<std::byte> bytes_of(std::size_t n, unsigned char value) {
    return std::vector<std::byte>(n, std::byte{value});
}

TEST_CASE("add refuses what can never be a region", "[guest]") {
    const pages ram{4};
    struct row {
        const char* what;
        std::uint64_t base;
        std::ptrdiff_t host_offset;
        std::uint64_t size;
        errc expected;
    };
    const row rows[] = {
        {"empty", 0x1000, 0, 0, errc::invalid_argument},
        {"base not aligned", 0x1001, 0, page, errc::invalid_argument},
        {"size not aligned", 0x1000, 0, page + 8, errc::invalid_argument},
        {"host not aligned", 0x1000, 8, page, errc::invalid_argument},
        {"past the top", top - 0xfff, 0, 2 * page, errc::invalid_argument},
        {"wraps around everything", 0x2000, 0, top - 0xfff, errc::invalid_argument},
    };
    for (const row& r : rows) {
        INFO(r.what);
        region_map memory;
        const result<> added = memory.add(pa{r.base}, ram.data() + r.host_offset, r.size);
        REQUIRE(!added);
        CHECK(added.error() == r.expected);
        CHECK(!added.error().cause.empty());
        CHECK(!added.error().cure.empty());
        CHECK(!memory.find(pa{r.base}));
    }
    region_map memory;
    const result<> no_host = memory.add(pa{0x1000}, nullptr, page);
    REQUIRE(!no_host);
    CHECK(no_host.error() == errc::invalid_argument);
}

TEST_CASE("regions may touch and may not overlap", "[guest]") {
    const pages ram{8};
    region_map memory;
    REQUIRE(memory.add(pa{0x10000}, ram.data(), 2 * page));
    struct row {
        const char* what;
        std::uint64_t base, size;
        bool accepted;
    };
    const row rows[] = {
        {"the same again", 0x10000, 2 * page, false},   {"its second page", 0x11000, page, false},
        {"around it", 0xf000, 4 * page, false},         {"over its start", 0xf000, 2 * page, false},
        {"touching below", 0xf000, page, true},         {"touching above", 0x12000, page, true},
        {"between the new ones", 0x10000, page, false},
    };
    for (const row& r : rows) {
        INFO(r.what);
        const result<> added = memory.add(pa{r.base}, ram.data(), r.size);
        CHECK(added.has_value() == r.accepted);
        if (!added) CHECK(added.error() == errc::already_exists);
    }
}

TEST_CASE("the last page of the address space is a region like any other", "[guest]") {
    const pages ram{1, 0x5a};
    region_map memory;
    REQUIRE(memory.add(pa{top - 0xfff}, ram.data(), page));
    const auto run = memory.find(pa{top});
    REQUIRE(run);
    CHECK(run->base == pa{top - 0xfff});
    CHECK(run->bytes == page);
    CHECK(run->host == ram.data());

    auto out = bytes_of(16, 0);
    CHECK(memory.read(pa{top - 15}, out));
    CHECK(out == bytes_of(16, 0x5a));
    CHECK(memory.load64(pa{top - 7}) == 0x5a5a'5a5a'5a5a'5a5a);

    auto past = bytes_of(16, 0x11);
    CHECK(!memory.read(pa{top - 14}, past));
    CHECK(past == bytes_of(16, 0x11));
    CHECK(!memory.write(pa{top - 14}, past));
    CHECK(!memory.find(pa{0}));
    CHECK(!memory.find(pa{top - 0x1000}));
}

TEST_CASE("copies are all or nothing, also across regions that touch", "[guest]") {
    const pages low{1, 0xaa};
    const pages high{1, 0xbb};
    region_map memory;
    REQUIRE(memory.add(pa{0x1000}, low.data(), page));
    REQUIRE(memory.add(pa{0x2000}, high.data(), page));

    auto out = bytes_of(32, 0);
    REQUIRE(memory.read(pa{0x1ff0}, out));
    CHECK(std::vector<std::byte>(out.begin(), out.begin() + 16) == bytes_of(16, 0xaa));
    CHECK(std::vector<std::byte>(out.begin() + 16, out.end()) == bytes_of(16, 0xbb));

    // From RAM into the hole above 0x3000: not one byte is written.
    const auto in = bytes_of(32, 0xcc);
    CHECK(!memory.write(pa{0x2ff0}, in));
    CHECK(high.data()[page - 16] == std::byte{0xbb});
    CHECK(high.data()[page - 1] == std::byte{0xbb});
    // From the hole below into RAM.
    CHECK(!memory.write(pa{0x0ff0}, in));
    CHECK(low.data()[0] == std::byte{0xaa});
    // Across both, for good.
    CHECK(memory.write(pa{0x1ff0}, in));
    CHECK(low.data()[page - 1] == std::byte{0xcc});
    CHECK(high.data()[15] == std::byte{0xcc});
    CHECK(high.data()[16] == std::byte{0xbb});

    CHECK(memory.read(pa{0x9999'9000}, std::span<std::byte>{}));
}

TEST_CASE("words are read and exchanged only when aligned and in RAM", "[guest]") {
    const pages ram{1};
    region_map memory;
    REQUIRE(memory.add(pa{0x1000}, ram.data(), page));
    const auto word = std::array<std::byte, 8>{std::byte{0x08}, std::byte{0x07}, std::byte{0x06},
                                               std::byte{0x05}, std::byte{0x04}, std::byte{0x03},
                                               std::byte{0x02}, std::byte{0x01}};
    REQUIRE(memory.write(pa{0x1ff8}, word));
    CHECK(memory.load64(pa{0x1ff8}) == 0x0102'0304'0506'0708);
    CHECK(!memory.load64(pa{0x1ffc}));
    CHECK(!memory.load64(pa{0x2000}));
    CHECK(!memory.compare_exchange64(pa{0x1ff9}, 0, 1));
    CHECK(!memory.compare_exchange64(pa{0x2000}, 0, 1));

    // A failed exchange gives what is there and changes nothing.
    CHECK(memory.compare_exchange64(pa{0x1ff8}, 1, 2) == 0x0102'0304'0506'0708);
    CHECK(memory.load64(pa{0x1ff8}) == 0x0102'0304'0506'0708);
    CHECK(memory.compare_exchange64(pa{0x1ff8}, 0x0102'0304'0506'0708, 2) == 0x0102'0304'0506'0708);
    CHECK(memory.load64(pa{0x1ff8}) == 2);
}

TEST_CASE("a removed region is gone and its place is free", "[guest]") {
    const pages ram{2, 1};
    region_map memory;
    REQUIRE(memory.add(pa{0x1000}, ram.data(), page));
    const result<> unknown = memory.remove(pa{0x2000});
    REQUIRE(!unknown);
    CHECK(unknown.error() == errc::not_found);
    REQUIRE(memory.remove(pa{0x1000}));
    CHECK(!memory.find(pa{0x1000}));
    CHECK(!memory.remove(pa{0x1000}));
    REQUIRE(memory.add(pa{0x1000}, ram.data() + page, page));
    CHECK(memory.find(pa{0x1000})->host == ram.data() + page);
}

TEST_CASE("a full map says so and keeps what it has", "[guest]") {
    const pages ram{1};
    basic_region_map<no_dirty_tracking, 3> memory;
    for (std::uint64_t i = 1; i <= 3; ++i)
        REQUIRE(memory.add(pa{i * 0x10000}, ram.data(), page));
    const result<> fourth = memory.add(pa{0x40000}, ram.data(), page);
    REQUIRE(!fourth);
    CHECK(fourth.error() == errc::exhausted);
    std::size_t seen = 0;
    memory.for_each([&](const host_run&) { ++seen; });
    CHECK(seen == 3);
    REQUIRE(memory.remove(pa{0x20000}));
    CHECK(memory.add(pa{0x40000}, ram.data(), page));
}

struct recording_tracker {
    std::vector<std::pair<std::uint64_t, std::uint64_t>> writes;
    void note_write(pa address, std::uint64_t bytes) noexcept {
        writes.emplace_back(raw(address), bytes);
    }
};

TEST_CASE("every write that happened is tracked, and no other", "[guest]") {
    const pages ram{1};
    basic_region_map<recording_tracker> memory;
    REQUIRE(memory.add(pa{0x1000}, ram.data(), page));
    const auto in = bytes_of(24, 7);
    CHECK(memory.write(pa{0x1010}, in));
    CHECK(!memory.write(pa{0x1ff8}, in));
    CHECK(memory.compare_exchange64(pa{0x1000}, 0, 9) == 0);
    CHECK(memory.compare_exchange64(pa{0x1000}, 0, 10) == 9);
    memory.note_write(pa{0x1100}, 4);
    const std::vector<std::pair<std::uint64_t, std::uint64_t>> expected{
        {0x1010, 24}, {0x1000, 8}, {0x1100, 4}};
    CHECK(memory.tracking().writes == expected);
}

} // namespace
