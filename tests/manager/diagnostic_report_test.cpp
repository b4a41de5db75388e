#include <vm_accel/manager/diagnostic_report.hpp>

#include <catch2/catch.hpp>

#include <limits>
#include <sstream>

using namespace vm_accel;

namespace {

std::string as_json(std::string_view text) {
    std::string out;
    report_text::append_json(out, text);
    return out;
}

} // namespace

TEST_CASE("text becomes a JSON string whatever bytes it holds") {
    using namespace std::string_view_literals;
    struct row {
        std::string_view text;
        std::string_view json;
    };
    const auto [text, json] = GENERATE(values<row>({
        {""sv, R"("")"sv},
        {"plain"sv, R"("plain")"sv},
        {"a \"quoted\" \\ path"sv, R"("a \"quoted\" \\ path")"sv},
        {"line\nbreak\ttab"sv, R"("line\nbreak\ttab")"sv},
        {"\x01\x1f\x7f\0z"sv, R"("\u0001\u001f\u007f\u0000z")"sv},
        {"Zo\xc3\xab \xe2\x82\xac \xf0\x9f\x98\x80"sv,
         "\"Zo\xc3\xab \xe2\x82\xac \xf0\x9f\x98\x80\""sv},
        {"cut \xe2\x82"sv, R"("cut \ufffd\ufffd")"sv},             // a sequence cut short
        {"\xff\xc0\xaf"sv, R"("\ufffd\ufffd\ufffd")"sv},           // never UTF-8; over-long '/'
        {"\xe0\x80\xaf"sv, R"("\ufffd\ufffd\ufffd")"sv},           // over-long, 3 bytes
        {"\xed\xa0\x80"sv, R"("\ufffd\ufffd\ufffd")"sv},           // a surrogate
        {"\xf4\x90\x80\x80"sv, R"("\ufffd\ufffd\ufffd\ufffd")"sv}, // above U+10FFFF
    }));
    CHECK(as_json(text) == json);
}

TEST_CASE("a report prints as JSON") {
    diagnostic_report report;
    backend_report& b = report.backends.emplace_back();
    b.role = "smmu";
    b.backend = "fake";
    b.state = backend_state::failed;
    b.asked = "set-up";
    b.host_has_it = false;
    b.host_summary = "no \"x\"";
    b.failure = error{errc::permission_denied, 13, "/dev/\"x\": no", "ask"};
    report_section section{b};
    section.fact("flag", true);
    section.fact("count", 18446744073709551615ull);
    section.fact("delta", -3);
    section.fact("rate", 0.25);
    section.fact("nothing", std::numeric_limits<double>::quiet_NaN());
    section.fact("text", "tab\there");
    CHECK(
        report.to_json() ==
        R"({"library":"vm_accel 0.1.0","all_up":false,"backends":[{"role":"smmu",)"
        R"("backend":"fake","state":"failed","asked":"set-up","given":"","host_has_it":false,)"
        R"("host_summary":"no \"x\"","failure":{"code":"permission denied","os_error":13,"cause":"/dev/\"x\": no",)"
        R"("cure":"ask"},"facts":{"flag":true,"count":18446744073709551615,"delta":-3,)"
        R"("rate":0.25,"nothing":null,"text":"tab\there"}}]})");

    SECTION("entries and facts are separated by commas") {
        report.backends.push_back(report.backends.front());
        const std::string json = report.to_json();
        CHECK(json.find(R"(}},{"role":)") != std::string::npos);
    }
}

TEST_CASE("a fact said twice keeps the last value") {
    backend_report b;
    report_section section{b};
    section.fact("pins", 1u);
    section.fact("pins", 2u);
    REQUIRE(b.facts.size() == 1);
    CHECK(b.find<std::uint64_t>("pins") == 2u);
    CHECK_FALSE(b.find<double>("pins").has_value());
    CHECK_FALSE(b.find<std::uint64_t>("other").has_value());
}

TEST_CASE("a report prints as a table") {
    diagnostic_report report;
    backend_report& ram = report.backends.emplace_back();
    ram.role = "guest_memory";
    ram.backend = "region_map";
    ram.state = backend_state::up;
    ram.asked = "set-up";
    ram.given = "up";
    backend_report& kvm = report.backends.emplace_back();
    kvm.role = "hypervisor";
    kvm.backend = "kvm";
    kvm.state = backend_state::failed;
    kvm.asked = "set-up";
    kvm.given = "nothing";
    kvm.host_has_it = false;
    kvm.host_summary = "no /dev/kvm";
    kvm.failure = error{errc::not_found, 2, "/dev/kvm: No such file", "load the kvm module"};
    report_section section{kvm};
    section.fact("irqfd", false);
    section.fact("note", "two\nlines\x1b[2J");
    const std::string_view expected = "vm_accel 0.1.0\n"
                                      "role          backend     state   asked   given\n"
                                      "guest_memory  region_map  up      set-up  up\n"
                                      "hypervisor    kvm         failed  set-up  nothing\n"
                                      "    found on this host: no: no /dev/kvm\n"
                                      "    cause: /dev/kvm: No such file\n"
                                      "    cure:  load the kvm module\n"
                                      "    irqfd  no\n"
                                      "    note   two?lines?[2J\n";
    CHECK(report.to_table() == expected);
    std::ostringstream out;
    out << report;
    CHECK(out.str() == expected);
}
