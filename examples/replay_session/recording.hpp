/// A recorded session of an SMMUv3 and its driver, as two files.
///
/// REGISTERS is text, one record per line; numbers are hexadecimal with or
/// without 0x, but SIZE is 4 or 8. Blank lines and lines that start with '#'
/// mean nothing.
///   w OFFSET VALUE SIZE          the driver wrote a register; in the order of
///                                the session. The last write of a register
///                                is the value it had when memory was saved.
///   t STREAMID IOVA PA PERM      the SMMU translated IOVA for that stream to
///                                PA at some time of the session. PERM is what
///                                the page allowed: bit 0 read, bit 1 write.
/// PAGES is the memory that the SMMU's structures were in when the session
/// ended: records of a little-endian 64-bit address, a multiple of 4096, and
/// the 4096 bytes there. Stream table, context descriptors, translation tables
/// and both queues must be among them; pages that devices read or wrote need
/// not be. The command queue still holds the commands of the session (all of
/// them, or the last ones if it wrapped).
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/result.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace replay {

using namespace vm_accel;

inline constexpr std::uint64_t page_bytes = 4096;

[[nodiscard]] constexpr std::uint64_t page_of(std::uint64_t address) noexcept {
    return address & ~(page_bytes - 1);
}

struct register_write {
    std::uint64_t offset = 0;
    std::uint64_t value = 0;
    unsigned size = 4;
};

struct translation_line {
    stream_id stream{};
    iova address{};
    pa output{};
    bool readable = false;
    bool writable = false;
    unsigned line = 0; ///< in REGISTERS, from 1
};

struct recording {
    std::vector<register_write> writes;
    std::vector<translation_line> translations;
};

/// Pages by address.
using page_set = std::map<std::uint64_t, std::array<std::byte, page_bytes>>;

/// Splits a line at blanks.
[[nodiscard]] inline std::vector<std::string_view> words_of(std::string_view line) {
    std::vector<std::string_view> words;
    for (;;) {
        const std::size_t start = line.find_first_not_of(" \t\r");
        if (start == std::string_view::npos) return words;
        line.remove_prefix(start);
        const std::size_t end = std::min(line.find_first_of(" \t\r"), line.size());
        words.push_back(line.substr(0, end));
        line.remove_prefix(end);
    }
}

/// A whole word that is a hexadecimal number of at most 64 bits.
[[nodiscard]] inline bool parse_number(std::string_view word, std::uint64_t& value) {
    if (word.starts_with("0x") || word.starts_with("0X")) word.remove_prefix(2);
    const char* const end = word.data() + word.size();
    const auto [stop, failed] = std::from_chars(word.data(), end, value, 16);
    return failed == std::errc{} && stop == end;
}

[[nodiscard]] inline tl::unexpected<error> bad_line(unsigned line, std::string_view why) {
    return fail(errc::invalid_argument,
                fixed_text<160>{"registers, line "}.append_number(line).append(": ").append(why),
                "see recording.hpp for the format");
}

/// Reads REGISTERS. A page that two `t` lines translate differently was mapped
/// twice in the session: the later line counts. Error: invalid_argument.
[[nodiscard]] inline result<recording> parse_registers(std::string_view text) {
    recording out;
    std::map<std::pair<std::uint32_t, std::uint64_t>, std::pair<std::uint64_t, unsigned>> mapped;
    unsigned number = 0;
    while (!text.empty()) {
        const std::size_t end = std::min(text.find('\n'), text.size());
        const std::vector<std::string_view> words = words_of(text.substr(0, end));
        text.remove_prefix(std::min(end + 1, text.size()));
        ++number;
        if (words.empty() || words[0].front() == '#') continue;

        std::array<std::uint64_t, 4> n{};
        const std::size_t wanted = words[0] == "w" ? 3 : words[0] == "t" ? 4 : 0;
        if (wanted == 0) return bad_line(number, "starts with neither w nor t");
        if (words.size() != wanted + 1) return bad_line(number, "has too few or too many fields");
        for (std::size_t i = 0; i < wanted; ++i) {
            if (!parse_number(words[i + 1], n[i])) return bad_line(number, "has a bad number");
        }
        if (words[0] == "w") {
            if (n[2] != 4 && n[2] != 8) return bad_line(number, "a register has 4 or 8 bytes");
            out.writes.push_back({n[0], n[1], static_cast<unsigned>(n[2])});
            continue;
        }
        if (n[0] > 0xffff'ffff) return bad_line(number, "a StreamID has at most 32 bits");
        if (n[3] > 3) return bad_line(number, "PERM has two bits");
        out.translations.push_back({stream_id{static_cast<std::uint32_t>(n[0])}, iova{n[1]},
                                    pa{n[2]}, (n[3] & 1) != 0, (n[3] & 2) != 0, number});
        mapped[{static_cast<std::uint32_t>(n[0]), page_of(n[1])}] = {page_of(n[2]),
                                                                     static_cast<unsigned>(n[3])};
    }
    std::erase_if(out.translations, [&](const translation_line& t) {
        const auto& [page, permission] = mapped[{raw(t.stream), page_of(raw(t.address))}];
        return page != page_of(raw(t.output)) ||
               permission != (t.readable ? 1U : 0U) + (t.writable ? 2U : 0U);
    });
    if (out.translations.empty()) {
        return fail(errc::invalid_argument, "registers: no translation to check",
                    "give a recording with at least one t line");
    }
    return out;
}

/// Reads PAGES; a page given twice counts as given last. Error: invalid_argument.
[[nodiscard]] inline result<page_set> parse_pages(std::string_view bytes) {
    constexpr std::size_t record = 8 + page_bytes;
    if (bytes.empty() || bytes.size() % record != 0) {
        return fail(errc::invalid_argument,
                    fixed_text<160>{"pages: "}
                        .append_number(bytes.size())
                        .append(" bytes are no whole number of records of 4104 bytes"),
                    "give the file that was recorded, complete");
    }
    page_set pages;
    for (; !bytes.empty(); bytes.remove_prefix(record)) {
        std::uint64_t address = 0;
        for (std::size_t i = 8; i-- > 0;) {
            address = (address << 8) | static_cast<unsigned char>(bytes[i]);
        }
        if (address % page_bytes != 0) {
            return fail(errc::invalid_argument,
                        fixed_text<160>{"pages: "}
                            .append_number(address, 16)
                            .append(" is no multiple of 4096"),
                        "give the file that was recorded");
        }
        auto& page = pages[address];
        for (std::size_t i = 0; i < page_bytes; ++i)
            page[i] = static_cast<std::byte>(bytes[8 + i]);
    }
    return pages;
}

} // namespace replay
