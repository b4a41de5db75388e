#include <vm_accel/core/address.hpp>

#include <catch2/catch.hpp>

#include <cstdint>

namespace {

using namespace vm_accel;

constexpr std::uint64_t top = ~std::uint64_t{0};

TEST_CASE("address ranges do not overflow at the top of the address space", "[core]") {
    struct row {
        const char* what;
        std::uint64_t base;
        std::uint64_t size;
        bool valid;
    };
    const row rows[] = {
        {"empty at zero", 0, 0, true},
        {"empty at the last byte", top, 0, true},
        {"one page", 0x1000, 0x1000, true},
        {"the last byte alone", top, 1, true},
        {"the last page", top - 0xfff, 0x1000, true},
        {"one byte past the last page", top - 0xfff, 0x1001, false},
        {"all but the last byte", 0, top, true},
        {"all but the first byte", 1, top, true},
        {"wraps by one byte", 2, top, false},
        {"two bytes at the last byte", top, 2, false},
        {"everything wraps", top, top, false},
    };
    for (const row& r : rows) {
        INFO(r.what);
        CHECK(pa_range{pa{r.base}, r.size}.is_valid() == r.valid);
    }
}

TEST_CASE("a range contains exactly its own bytes", "[core]") {
    struct row {
        const char* what;
        std::uint64_t base, size, address, length;
        bool inside;
    };
    const row rows[] = {
        {"first byte", 0x1000, 0x1000, 0x1000, 1, true},
        {"last byte", 0x1000, 0x1000, 0x1fff, 1, true},
        {"one past the end", 0x1000, 0x1000, 0x2000, 1, false},
        {"nothing at the end", 0x1000, 0x1000, 0x2000, 0, true},
        {"one before the base", 0x1000, 0x1000, 0xfff, 1, false},
        {"all of it", 0x1000, 0x1000, 0x1000, 0x1000, true},
        {"one byte too long", 0x1000, 0x1000, 0x1000, 0x1001, false},
        {"length that would wrap", 0x1000, 0x1000, 0x1800, top, false},
        {"the last byte of all", top - 0xfff, 0x1000, top, 1, true},
        {"two bytes at the last byte", top - 0xfff, 0x1000, top, 2, false},
        {"zero is not above the top", top - 0xfff, 0x1000, 0, 1, false},
        {"empty range holds no byte", 0x1000, 0, 0x1000, 1, false},
    };
    for (const row& r : rows) {
        INFO(r.what);
        CHECK(pa_range{pa{r.base}, r.size}.contains(pa{r.address}, r.length) == r.inside);
    }
}

TEST_CASE("overlap is symmetric and does not overflow", "[core]") {
    struct row {
        const char* what;
        std::uint64_t a, a_size, b, b_size;
        bool overlap;
    };
    const row rows[] = {
        {"apart", 0x1000, 0x1000, 0x3000, 0x1000, false},
        {"touching", 0x1000, 0x1000, 0x2000, 0x1000, false},
        {"one byte shared", 0x1000, 0x1001, 0x2000, 0x1000, true},
        {"one inside the other", 0x1000, 0x4000, 0x2000, 0x1000, true},
        {"the same", 0x1000, 0x1000, 0x1000, 0x1000, true},
        {"an empty one inside", 0x1000, 0x1000, 0x1800, 0, false},
        {"both at the top", top - 0xfff, 0x1000, top, 1, true},
        {"top and bottom", top - 0xfff, 0x1000, 0, 0x1000, false},
    };
    for (const row& r : rows) {
        INFO(r.what);
        const pa_range a{pa{r.a}, r.a_size};
        const pa_range b{pa{r.b}, r.b_size};
        CHECK(a.overlaps(b) == r.overlap);
        CHECK(b.overlaps(a) == r.overlap);
    }
}

TEST_CASE("offset_by wraps like an address bus", "[core]") {
    CHECK(offset_by(iova{0x1000}, 0x234) == iova{0x1234});
    CHECK(offset_by(iova{top}, 1) == iova{0});
}

} // namespace
