#include <vm_accel/core/counter.hpp>

#include <catch2/catch.hpp>

#include <cstdint>

namespace {

using namespace vm_accel;

TEST_CASE("a counter adds, reads and starts again", "[core]") {
    counter c;
    CHECK(c.read() == 0);
    c.add();
    c.add(41);
    CHECK(c.read() == 42);
    c.add(~std::uint64_t{0} - 41);
    CHECK(c.read() == 0);
    c.add(5);
    c.reset();
    CHECK(c.read() == 0);
}

} // namespace
