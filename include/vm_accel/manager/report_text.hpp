/// Text as people and JSON readers can take it, whatever bytes it holds.
#pragma once

#include <charconv>
#include <cstddef>
#include <string>
#include <string_view>

namespace vm_accel::inline v0 {

namespace report_text {

[[nodiscard]] inline std::string of_number(double value) {
    char digits[32];
    const auto end = std::to_chars(digits, digits + sizeof digits, value).ptr;
    return {digits, end};
}

/// The bytes of the valid UTF-8 sequence at the start of `text`, 0 if it is not one.
[[nodiscard]] constexpr std::size_t utf8_length(std::string_view text) noexcept {
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
    const unsigned lead = byte(0);
    if (lead < 0x80) return 1;
    const std::size_t length = lead >= 0xf0 ? 4U : lead >= 0xe0 ? 3U : 2U;
    if (lead < 0xc2 || lead > 0xf4 || text.size() < length) return 0;
    for (std::size_t i = 1; i < length; ++i)
        if ((byte(i) & 0xc0U) != 0x80) return 0;
    // Over-long forms, surrogates and values above U+10FFFF are not UTF-8.
    const unsigned second = byte(1);
    if ((lead == 0xe0 && second < 0xa0) || (lead == 0xed && second >= 0xa0)) return 0;
    if ((lead == 0xf0 && second < 0x90) || (lead == 0xf4 && second >= 0x90)) return 0;
    return length;
}

/// Appends `text` as a JSON string, quotes included.
inline void append_json(std::string& out, std::string_view text) {
    out += '"';
    while (!text.empty()) {
        const char c = text.front();
        std::size_t taken = 1;
        if (c == '"' || c == '\\') {
            (out += '\\') += c;
        } else if (c == '\n') {
            out += "\\n";
        } else if (c == '\t') {
            out += "\\t";
        } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
            constexpr char digits[] = "0123456789abcdef";
            ((out += "\\u00") += digits[static_cast<unsigned char>(c) >> 4]) += digits[c & 0xf];
        } else if (const std::size_t length = utf8_length(text); length != 0) {
            out.append(text.substr(0, length));
            taken = length;
        } else {
            out += "\\ufffd";
        }
        text.remove_prefix(taken);
    }
    out += '"';
}

/// Text that cannot move the cursor of a terminal.
[[nodiscard]] inline std::string printable(std::string_view text) {
    std::string out{text};
    for (char& c : out)
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
    return out;
}

inline void append_padded(std::string& out, std::string_view text, std::size_t width) {
    out += text;
    out.append(text.size() < width ? width - text.size() + 2 : 2, ' ');
}

} // namespace report_text

} // namespace vm_accel::inline v0
