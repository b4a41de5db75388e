/// What devices and the guest's driver do to a TLB, as text.
///
/// The first line is `vm_accel DMA trace 1`; each other line is one of these, or
/// a comment behind `#`. Numbers are hexadecimal, without a prefix.
///
///     d STREAM [SUBSTREAM]             the device of the lines that follow
///     r ADDRESS BYTES                  it reads; w: it writes
///     p ADDRESS LOG2 WORLD VMID ASID [g]
///                                      from now on its accesses there are translated by
///                                      a page of 2^LOG2 bytes under that tag; g: global
///     f all                            the driver takes back all translations
///     f world WORLD                    those of a world
///     f vm WORLD VMID                  of a VMID
///     f space WORLD VMID ASID          of an ASID, but for global pages
///     f address WORLD VMID ASID FIRST LAST
///                                      of an ASID, and global ones, in [FIRST, LAST]
///     f any WORLD VMID FIRST LAST      of every ASID there
///
/// WORLD is a stream_world as a number. A device before its first `p` has pages
/// of 4 KiB under a tag of its own.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/smmu/vocabulary/invalidation.hpp>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <initializer_list>
#include <istream>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace policy_lab {

/// One line. Which members have meaning depends on `what`.
struct trace_record {
    enum class kind : std::uint8_t { device, read, write, page, forget };
    kind what = kind::device;
    std::uint32_t stream = 0;
    std::optional<std::uint32_t> substream{};
    std::uint64_t address = 0;
    std::uint64_t bytes = 0; ///< not 0
    std::uint8_t size_log2 = 12;
    bool global = false;
    vm_accel::translation_tag tag{};
    vm_accel::invalidation_scope scope{};
};

inline constexpr std::string_view trace_heading = "vm_accel DMA trace 1";

/// The line of a record, without its end.
[[nodiscard]] inline std::string to_line(const trace_record& record) {
    using kind = trace_record::kind;
    std::string line;
    const auto add = [&line](std::initializer_list<std::uint64_t> numbers) {
        for (const std::uint64_t n : numbers) {
            char digits[16];
            const auto end = std::to_chars(digits, digits + sizeof digits, n, 16).ptr;
            line.append(1, ' ').append(digits, end);
        }
    };
    const auto world = [](const vm_accel::translation_tag& tag) {
        return static_cast<std::uint64_t>(tag.world);
    };
    switch (record.what) {
    case kind::device:
        line = "d";
        add({record.stream});
        if (record.substream) add({*record.substream});
        break;
    case kind::read:
    case kind::write:
        line = record.what == kind::read ? "r" : "w";
        add({record.address, record.bytes});
        break;
    case kind::page:
        line = "p";
        add({record.address, record.size_log2, world(record.tag), raw(record.tag.vm),
             raw(record.tag.space)});
        if (record.global) line += " g";
        break;
    case kind::forget: {
        using scope = vm_accel::invalidation_scope::kind;
        const auto& s = record.scope;
        const std::uint64_t w = world(s.tag), vm = raw(s.tag.vm), space = raw(s.tag.space);
        line = "f";
        switch (s.what) {
        case scope::everything:
        case scope::context: // a driver cannot say that
            line += " all";
            break;
        case scope::world:
            line += " world";
            add({w});
            break;
        case scope::vm:
            line += " vm";
            add({w, vm});
            break;
        case scope::space:
            line += " space";
            add({w, vm, space});
            break;
        case scope::address:
            line += " address";
            add({w, vm, space, s.first, s.last});
            break;
        case scope::any_space:
            line += " any";
            add({w, vm, s.first, s.last});
            break;
        }
        break;
    }
    }
    return line;
}

/// Reads a line's words, one after the other.
class line_words {
public:
    explicit line_words(std::string_view line) : rest_(line) {}

    [[nodiscard]] std::string_view next() {
        rest_.remove_prefix(std::min(rest_.find_first_not_of(' '), rest_.size()));
        const std::string_view word = rest_.substr(0, rest_.find(' '));
        rest_.remove_prefix(word.size());
        return word;
    }
    /// A number up to `most`; bad() from now on, if there is none.
    std::uint64_t number(std::uint64_t most = ~std::uint64_t{0}) {
        const std::string_view word = next();
        std::uint64_t n = 0;
        const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), n, 16);
        bad_ = bad_ || word.empty() || error != std::errc{} || end != word.data() + word.size() ||
               n > most;
        return n;
    }
    [[nodiscard]] bool at_end() const {
        return rest_.find_first_not_of(' ') == std::string_view::npos;
    }
    [[nodiscard]] bool bad() const { return bad_; }

private:
    std::string_view rest_;
    bool bad_ = false;
};

/// The record of a line, or nothing: it is no such line.
[[nodiscard]] inline std::optional<trace_record> parse_line(std::string_view line) {
    using kind = trace_record::kind;
    using scope = vm_accel::invalidation_scope::kind;
    line_words words{line};
    trace_record record;
    const auto read_tag = [&words](vm_accel::translation_tag& tag, unsigned parts) {
        tag.world = static_cast<vm_accel::stream_world>(words.number(5));
        if (parts > 1) tag.vm = vm_accel::vmid{static_cast<std::uint16_t>(words.number(0xffff))};
        if (parts > 2) tag.space = vm_accel::asid{static_cast<std::uint16_t>(words.number(0xffff))};
    };
    const std::string_view name = words.next();
    if (name == "d") {
        record.what = kind::device;
        record.stream = static_cast<std::uint32_t>(words.number(0xffff'ffff));
        if (!words.at_end()) {
            record.substream = static_cast<std::uint32_t>(words.number(0xf'ffff));
        }
    } else if (name == "r" || name == "w") {
        record.what = name == "r" ? kind::read : kind::write;
        record.address = words.number();
        record.bytes = words.number();
        if (record.bytes - 1 > ~record.address) return std::nullopt;
    } else if (name == "p") {
        record.what = kind::page;
        record.address = words.number();
        record.size_log2 = static_cast<std::uint8_t>(words.number(52));
        read_tag(record.tag, 3);
        record.global = !words.at_end();
        if (record.size_log2 < 12 || (record.global && words.next() != "g")) return std::nullopt;
    } else if (name == "f") {
        record.what = kind::forget;
        vm_accel::invalidation_scope& s = record.scope;
        const std::string_view what = words.next();
        if (what == "all") {
            s.what = scope::everything;
        } else if (what == "world") {
            s.what = scope::world;
            read_tag(s.tag, 1);
        } else if (what == "vm") {
            s.what = scope::vm;
            read_tag(s.tag, 2);
        } else if (what == "space") {
            s.what = scope::space;
            read_tag(s.tag, 3);
        } else if (what == "address" || what == "any") {
            s.what = what == "any" ? scope::any_space : scope::address;
            read_tag(s.tag, what == "any" ? 2 : 3);
            s.first = words.number();
            s.last = words.number();
            if (s.last < s.first) return std::nullopt;
        } else {
            return std::nullopt;
        }
    } else {
        return std::nullopt;
    }
    if (words.bad() || !words.at_end()) return std::nullopt;
    return record;
}

/// A trace, and where it comes from.
struct trace {
    std::string name;
    std::vector<trace_record> records;
};

/// Reads a whole trace; on failure gives the text of the error instead.
[[nodiscard]] inline std::optional<std::string> read_trace(std::istream& in, trace& into) {
    std::string line;
    if (!std::getline(in, line) || line != trace_heading) {
        return "its first line is not \"" + std::string{trace_heading} + '"';
    }
    for (std::uint64_t number = 2; std::getline(in, line); ++number) {
        const std::string_view text = std::string_view{line}.substr(0, line.find('#'));
        if (text.find_first_not_of(' ') == std::string_view::npos) continue;
        const auto record = parse_line(text);
        if (!record) return "line " + std::to_string(number) + " makes no sense: " + line;
        into.records.push_back(*record);
    }
    return std::nullopt;
}

} // namespace policy_lab
