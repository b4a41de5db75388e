#include <vm_accel/os/isolated_cpus.hpp>

#include <catch2/catch.hpp>

#include <string>
#include <vector>

using namespace vm_accel;

TEST_CASE("a CPU list is read as the kernel writes it") {
    struct row {
        std::string text;
        std::vector<unsigned> members;
    };
    const auto [text, members] = GENERATE(values<row>({
        {"", {}},
        {"\n", {}},
        {"0\n", {0}},
        {"3,5-7\n", {3, 5, 6, 7}},
        {"0-1,64-65,8191", {0, 1, 64, 65, 8191}},
        {"4-4", {4}},
    }));
    INFO(text);
    os::cpu_set set;
    for (const unsigned cpu : members)
        set.insert(cpu);
    const auto parsed = os::parse_cpu_list(text);
    REQUIRE(parsed.has_value());
    CHECK(*parsed == set);
}

TEST_CASE("other text is no CPU list") {
    const std::string text = GENERATE("x", "1-", "-1", "1,", ",1", "1,,2", "3-1", "8192", "1-8192",
                                      "4294967297", "1 2", "1\n2", "0x3");
    INFO(text);
    CHECK_FALSE(os::parse_cpu_list(text).has_value());
}

static_assert(os::parse_cpu_list("1-2")->count() == 2);

TEST_CASE("the isolated CPUs of this machine do not change by asking", "[kernel]") {
    CHECK(os::isolated_cpus() == os::isolated_cpus());
}
