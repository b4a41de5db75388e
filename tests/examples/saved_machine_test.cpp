// A saved machine's file: memory and values come back exactly, or not at all.
#include "../../examples/linux_kvm_arm64/saved_machine.hpp"

#include <catch2/catch.hpp>

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

using namespace linux_vmm;

namespace {

constexpr std::size_t page_bytes = 4096;
constexpr std::size_t pages = 6;
using memory = std::vector<std::byte>;

struct temporary_file {
    std::string path = "/tmp/vm_accel_saved_XXXXXX";
    temporary_file() { ::close(::mkstemp(path.data())); }
    temporary_file(const temporary_file&) = delete;
    temporary_file& operator=(const temporary_file&) = delete;
    ~temporary_file() { ::unlink(path.c_str()); }
};

/// Six pages; a bit of `full` says which of them are not zero.
memory ram_of(unsigned full, unsigned char value) {
    memory out(pages * page_bytes);
    for (std::size_t i = 0; i < pages; ++i)
        if ((full >> i & 1) != 0) out[i * page_bytes + 17 * i] = std::byte{value};
    return out;
}

bool save(const std::string& path, memory& ram, std::vector<std::uint64_t> words) {
    saved_machine file = *saved_machine::open(path, saved_machine::direction::save);
    file.memory(ram);
    file(words);
    return file.finish().has_value();
}
bool resume(const std::string& path, memory& ram, std::vector<std::uint64_t>& words) {
    saved_machine file = *saved_machine::open(path, saved_machine::direction::resume);
    file.memory(ram);
    file(words);
    return file.finish().has_value();
}

} // namespace

TEST_CASE(
    "saved machine: pages that were zero are zero again, whatever the new process put there") {
    const unsigned full = GENERATE(0U, 0x3fU, 0x21U, 0x1eU, 0x0aU);
    const unsigned used_before = GENERATE(0U, 0x3fU, 0x15U);
    const temporary_file at;
    memory saved = ram_of(full, 0xa5);
    REQUIRE(save(at.path, saved, {1, 2, 3}));

    memory resumed = ram_of(used_before, 0x77);
    std::vector<std::uint64_t> words;
    REQUIRE(resume(at.path, resumed, words));
    CHECK(resumed == saved);
    CHECK(words == std::vector<std::uint64_t>{1, 2, 3});
}

TEST_CASE("saved machine: a file that is cut off, or of more memory, is refused") {
    const temporary_file at;
    memory saved = ram_of(0x29, 0xa5);
    REQUIRE(save(at.path, saved, {7}));
    memory ram(saved.size());
    std::vector<std::uint64_t> words;

    SECTION("cut off anywhere") {
        // Three pages with their numbers, an end, a count and a word.
        constexpr std::size_t whole = 3 * (8 + page_bytes) + 8 + 8 + 8;
        const std::size_t length = GENERATE(whole - 1, whole - 8, whole - 9, whole - 20,
                                            std::size_t{4104}, std::size_t{4100}, std::size_t{0});
        REQUIRE(::truncate(at.path.c_str(), static_cast<off_t>(length)) == 0);
        CHECK(!resume(at.path, ram, words));
    }
    SECTION("of more memory") {
        ram.resize(5 * page_bytes);
        CHECK(!resume(at.path, ram, words));
    }
    SECTION("whole") { CHECK(resume(at.path, ram, words)); }
}
