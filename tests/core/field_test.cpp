#include <vm_accel/core/field.hpp>

#include <catch2/catch.hpp>

#include <array>
#include <cstdint>
#include <cstring>

namespace {

using namespace vm_accel;

struct layout {
    using low_bit = field<0, 0, 0>;
    using middle = field<0, 51, 12>;
    using top_bit = field<0, 63, 63>;
    using whole = field<1, 63, 0>;
    std::array<le64, 2> word;
};

struct narrow {
    using upper = field<1, 31, 16>;
    std::array<le32, 2> word;
};

TEST_CASE("fields read and write only their own bits", "[core]") {
    layout l{};
    l.word = {le64{~std::uint64_t{0}}, le64{0}};
    set<layout::middle>(l, 0x12345);
    CHECK(get<layout::middle>(l) == 0x12345);
    CHECK(get<layout::low_bit>(l) == 1);
    CHECK(get<layout::top_bit>(l) == 1);
    CHECK(get_address<layout::middle>(l) == 0x1234'5000);
    CHECK(l.word[0].value() == 0xfff0'0000'1234'5fff);
    CHECK(l.word[1].value() == 0);

    set<layout::whole>(l, 0xfedc'ba98'7654'3210);
    CHECK(get<layout::whole>(l) == 0xfedc'ba98'7654'3210);
    CHECK(l.word[0].value() == 0xfff0'0000'1234'5fff);
}

TEST_CASE("a value too wide for a field loses its surplus bits, never a neighbour's", "[core]") {
    layout l{};
    set<layout::low_bit>(l, 0xfe);
    CHECK(l.word[0].value() == 0);
    set<layout::low_bit>(l, 0xff);
    CHECK(l.word[0].value() == 1);
    set<layout::top_bit>(l, 3);
    CHECK(l.word[0].value() == 0x8000'0000'0000'0001);
}

TEST_CASE("fields work on 32-bit words", "[core]") {
    narrow n{};
    n.word[1] = le32{0x0000'abcd};
    set<narrow::upper>(n, 0x1'2345);
    CHECK(n.word[1].value() == 0x2345'abcd);
    CHECK(get<narrow::upper>(n) == 0x2345);
}

TEST_CASE("words are little-endian in memory", "[core]") {
    const le64 word{0x0102'0304'0506'0708};
    std::array<unsigned char, 8> bytes{};
    std::memcpy(bytes.data(), &word, sizeof(word));
    CHECK(bytes == std::array<unsigned char, 8>{8, 7, 6, 5, 4, 3, 2, 1});
    CHECK(word.value() == 0x0102'0304'0506'0708);
}

TEST_CASE("masks and limits of the widest and the narrowest field", "[core]") {
    CHECK(layout::whole::mask == ~std::uint64_t{0});
    CHECK(layout::whole::max == ~std::uint64_t{0});
    CHECK(layout::low_bit::mask == 1);
    CHECK(layout::top_bit::mask == 0x8000'0000'0000'0000);
    CHECK(layout::middle::mask == 0x000f'ffff'ffff'f000);
}

} // namespace
