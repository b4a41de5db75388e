#include <vm_accel/core/fixed_text.hpp>
#include <vm_accel/os/cpu_set.hpp>

#include <catch2/catch.hpp>

#include <string>
#include <vector>

using namespace vm_accel;

TEST_CASE("a CPU set is printed as ranges") {
    struct row {
        std::vector<unsigned> members;
        std::string text;
    };
    const auto [members, text] = GENERATE(values<row>({
        {std::vector<unsigned>{}, "none"},
        {{0}, "0"},
        {{3, 1, 2}, "1-3"},
        {{0, 2, 3, 64, 65, 127, 128}, "0,2-3,64-65,127-128"},
        {{8191}, "8191"},
        {{63, 64}, "63-64"},
    }));
    os::cpu_set set;
    for (const unsigned cpu : members)
        CHECK(set.insert(cpu));
    fixed_text<160> printed;
    CHECK(append_list(printed, set).view() == text);
    CHECK(set.count() == members.size());
    CHECK(set.empty() == members.empty());
}

TEST_CASE("a CPU that a set cannot represent changes nothing") {
    os::cpu_set set = os::cpu_set::of(5);
    CHECK_FALSE(set.insert(os::cpu_set::capacity));
    CHECK_FALSE(set.contains(os::cpu_set::capacity));
    set.erase(os::cpu_set::capacity + 5);
    CHECK(set == os::cpu_set::of(5));
    CHECK(os::cpu_set::of(~0u).empty());
}

TEST_CASE("next finds the members in ascending order and then the end") {
    os::cpu_set set;
    for (const unsigned cpu : {1u, 63u, 64u, 4095u})
        set.insert(cpu);
    CHECK(set.next(0) == 1);
    CHECK(set.next(1) == 1);
    CHECK(set.next(2) == 63);
    CHECK(set.next(64) == 64);
    CHECK(set.next(65) == 4095);
    CHECK(set.next(4096) == os::cpu_set::capacity);
    set.erase(63);
    CHECK(set.next(2) == 64);
}
