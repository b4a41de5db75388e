#include <vm_accel/core/error.hpp>
#include <vm_accel/core/result.hpp>

#include <catch2/catch.hpp>

#include <cstddef>
#include <set>
#include <sstream>
#include <string>
#include <string_view>

namespace {

using namespace vm_accel;

TEST_CASE("text that does not fit is cut and says so", "[core]") {
    struct row {
        std::string_view given;
        std::string_view kept;
    };
    const row rows[] = {
        {"", ""},
        {"1234567", "1234567"},
        {"12345678", "12345678"},
        {"123456789", "12345..."},
        {"1234567890123", "12345..."},
    };
    for (const row& r : rows) {
        INFO(r.given);
        CHECK(fixed_text<8>{r.given}.view() == r.kept);
    }
    fixed_text<8> grown{"1234"};
    grown.append("5678").append("9");
    CHECK(grown.view() == "12345...");
    grown.append("more");
    CHECK(grown.view() == "12345...");
}

TEST_CASE("numbers are appended in decimal and hexadecimal", "[core]") {
    CHECK(fixed_text<32>{}.append_number(0).view() == "0");
    CHECK(fixed_text<32>{}.append_number(~0ull).view() == "18446744073709551615");
    CHECK(fixed_text<32>{}.append_number(0, 16).view() == "0x0");
    CHECK(fixed_text<32>{}.append_number(~0ull, 16).view() == "0xffffffffffffffff");
    CHECK(fixed_text<32>{"at "}.append_number(4096, 16).append(": taken").view() ==
          "at 0x1000: taken");
}

TEST_CASE("an error prints its cause and its cure", "[core]") {
    std::ostringstream out;
    out << error{errc::permission_denied, 13, "/dev/kvm: permission denied",
                 "add the user to group kvm"};
    CHECK(out.str() == "/dev/kvm: permission denied; add the user to group kvm");

    std::ostringstream bare;
    bare << error{errc::busy, 0, "/dev/kvm: busy", {}};
    CHECK(bare.str() == "/dev/kvm: busy");
}

TEST_CASE("every kind of error has a name of its own", "[core]") {
    std::set<std::string> names;
    for (int i = 0; i <= static_cast<int>(errc::system_failure); ++i) {
        const std::string name{name_of(static_cast<errc>(i))};
        CHECK(name != "unknown");
        names.insert(name);
    }
    CHECK(names.size() == static_cast<std::size_t>(errc::system_failure) + 1);
    CHECK(name_of(static_cast<errc>(200)) == "unknown");
}

TEST_CASE("fail carries code, system error, cause and cure through results", "[core]") {
    const auto inner = []() -> result<int> {
        return fail(errc::not_found, "no such device", "attach it first", 19);
    };
    const auto outer = [&]() -> result<std::string> { return fail(inner()); };
    const result<std::string> failed = outer();
    REQUIRE(!failed);
    CHECK(failed.error() == errc::not_found);
    CHECK(!(failed.error() == errc::busy));
    CHECK(failed.error().os_error == 19);
    CHECK(failed.error().cause.view() == "no such device");
    CHECK(failed.error().cure.view() == "attach it first");
    CHECK(result<>{}.has_value());

    const result<int> again = inner();
    CHECK(again == inner());
    CHECK(again != result<int>{fail(errc::not_found, "no such device", "attach it first", 18)});
    CHECK(again != result<int>{fail(errc::not_found, "no such device", "attach it", 19)});
    CHECK(again != result<int>{3});
}

} // namespace

TEST_CASE("fixed text is what a string of the same pieces would be", "[core]") {
    for (std::size_t first = 0; first <= 40; ++first) {
        for (std::size_t second = 0; second <= 40; ++second) {
            const std::string a(first, 'a');
            const std::string b(second, 'b');
            std::string wanted = a + b + "0x1a2b";
            if (wanted.size() > 32) {
                wanted.resize(32);
                wanted.replace(29, 3, "...");
            }
            fixed_text<32> text{a};
            text.append(b).append_number(0x1a2b, 16);
            CHECK(text.view() == wanted);
        }
    }
}
