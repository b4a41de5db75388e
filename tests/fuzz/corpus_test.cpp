// Every input of the kept corpus, again: what fuzzers have reached stays reached.
#include "targets.hpp"

#include <catch2/catch.hpp>

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

TEST_CASE("the fuzzers' corpus is replayed without a finding", "[fuzz]") {
    const std::filesystem::path corpus{VM_ACCEL_SOURCE_DIR "/tests/fuzz/corpus"};
    for (const fuzz::target& target : fuzz::targets) {
        CAPTURE(target.name);
        std::size_t replayed = 0;
        for (const auto& entry : std::filesystem::directory_iterator{corpus / target.name}) {
            std::ifstream file{entry.path(), std::ios::binary};
            const std::vector<char> text{std::istreambuf_iterator<char>{file}, {}};
            const std::vector<std::uint8_t> bytes(text.begin(), text.end());
            // Ends the process at a finding: the last name printed is the input.
            INFO(entry.path().string());
            target.run(bytes);
            ++replayed;
        }
        CHECK(replayed > 0);
    }
}
