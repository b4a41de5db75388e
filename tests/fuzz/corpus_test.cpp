// Every input of the kept corpus, again: what fuzzers have reached stays reached.
#include "targets.hpp"

#include <catch2/catch.hpp>

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

namespace {

/// An input as scripts/fuzz keeps it: two hexadecimal digits for a byte.
std::vector<std::uint8_t> bytes_of(const std::string& line) {
    std::vector<std::uint8_t> bytes;
    for (std::size_t i = 0; i + 1 < line.size(); i += 2) {
        bytes.push_back(static_cast<std::uint8_t>(std::stoul(line.substr(i, 2), nullptr, 16)));
    }
    return bytes;
}

} // namespace

TEST_CASE("the fuzzers' corpus is replayed without a finding", "[fuzz]") {
    for (const fuzz::target& target : fuzz::targets) {
        CAPTURE(target.name);
        std::ifstream kept{std::string{VM_ACCEL_SOURCE_DIR "/tests/fuzz/corpus/"} + target.name +
                           ".hex"};
        std::size_t replayed = 0;
        for (std::string line; std::getline(kept, line); ++replayed) {
            // A finding ends the process: a debugger, or scripts/fuzz, shows which line.
            target.run(bytes_of(line));
        }
        CHECK(replayed > 0);
    }
}
