/// What was asked, what was given, and why not: the report of a composition.
///
/// A plain struct first: programs read its members. People read `to_table()`,
/// other programs `to_json()`. Backends fill their own section through
/// `report_section` without knowing this file: they call `given()` and `fact()`
/// on whatever they are handed.
#pragma once

#include <vm_accel/core/error.hpp>
#include <vm_accel/core/fixed_text.hpp>
#include <vm_accel/core/version.hpp>
#include <vm_accel/manager/report_text.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>
#include <vector>

namespace vm_accel::inline v0 {

/// Where a backend of a composition stands.
enum class backend_state : std::uint8_t {
    not_asked, ///< in the pack, never set up
    working,   ///< another thread is setting it up or changing it now
    up,        ///< set up
    failed,    ///< tried and refused; `failure` says why
    skipped,   ///< not tried, because one it needs is not up; `failure` names that one
    disabled,  ///< was up and has been switched off
};

[[nodiscard]] constexpr std::string_view name_of(backend_state state) noexcept {
    switch (state) {
    case backend_state::not_asked:
        return "not asked";
    case backend_state::working:
        return "working";
    case backend_state::up:
        return "up";
    case backend_state::failed:
        return "failed";
    case backend_state::skipped:
        return "skipped";
    case backend_state::disabled:
        return "disabled";
    }
    return "unknown";
}

/// One line of a backend's section.
struct report_fact {
    using value_type = std::variant<bool, std::uint64_t, std::int64_t, double, fixed_text<160>>;
    fixed_text<48> name{};
    value_type value{};
};

/// One backend's part of the report.
struct backend_report {
    std::string_view role{};    ///< static storage, e.g. "smmu"
    std::string_view backend{}; ///< static storage, e.g. "kvm"
    backend_state state = backend_state::not_asked;
    fixed_text<64> asked{};            ///< the last request, empty if none
    fixed_text<160> given{};           ///< what came of it, in the backend's words if it has any
    std::optional<bool> host_has_it{}; ///< what detect() found; empty if it was not called
    fixed_text<160> host_summary{};    ///< the same in words, if the backend has any
    std::optional<error> failure{};    ///< why the last request was refused; also when still up
    std::vector<report_fact> facts{};  ///< names are unique

    /// The value of a fact as T (one of report_fact's alternatives), if it is there.
    template <class T>
    [[nodiscard]] std::optional<T> find(std::string_view name) const {
        for (const report_fact& fact : facts) {
            if (fact.name != name) continue;
            if (const T* value = std::get_if<T>(&fact.value)) return *value;
        }
        return std::nullopt;
    }
};

/// What a backend's `report(section)` writes to.
class report_section {
public:
    explicit report_section(backend_report& target) noexcept : target_(&target) {}

    /// What the host or the backend really gave, in one line.
    void given(std::string_view text) { target_->given = fixed_text<160>{text}; }

    /// A named value: bool, integer, floating point, or text. A name said twice
    /// keeps the last value. At most 48 bytes of name and 160 of text are kept.
    template <class T>
        requires std::is_arithmetic_v<T> || std::convertible_to<const T&, std::string_view>
    void fact(std::string_view name, const T& value) {
        if constexpr (std::same_as<T, bool>) {
            put(name, value);
        } else if constexpr (std::floating_point<T>) {
            put(name, static_cast<double>(value));
        } else if constexpr (std::signed_integral<T>) {
            put(name, static_cast<std::int64_t>(value));
        } else if constexpr (std::unsigned_integral<T>) {
            put(name, static_cast<std::uint64_t>(value));
        } else {
            put(name, fixed_text<160>{std::string_view{value}});
        }
    }

private:
    void put(std::string_view name, report_fact::value_type value) {
        const fixed_text<48> kept{name};
        for (report_fact& fact : target_->facts) {
            if (fact.name == kept) {
                fact.value = value;
                return;
            }
        }
        target_->facts.push_back({kept, value});
    }

    backend_report* target_;
};

/// The whole report: one entry per backend, in the order of set-up.
struct diagnostic_report {
    std::vector<backend_report> backends{};

    /// Whether every backend of the composition is up and refused nothing.
    [[nodiscard]] bool all_up() const noexcept {
        return std::ranges::all_of(backends, [](const backend_report& b) {
            return b.state == backend_state::up && !b.failure;
        });
    }
    /// The entry with that role's name; nullptr if the composition has none.
    [[nodiscard]] const backend_report* find(std::string_view role) const noexcept {
        for (const backend_report& b : backends)
            if (b.role == role) return &b;
        return nullptr;
    }

    /// For people: one row per backend, its cause, cure and facts below it.
    /// Control characters are shown as '?'.
    [[nodiscard]] std::string to_table() const;

    /// One JSON object (RFC 8259), valid UTF-8 whatever the texts held: control
    /// characters are escaped, bytes that are no UTF-8 become U+FFFD, numbers
    /// that are not finite become null.
    [[nodiscard]] std::string to_json() const;
};

namespace report_text {

inline void append_json(std::string& out, const report_fact::value_type& value) {
    if (const auto* flag = std::get_if<bool>(&value)) {
        out += *flag ? "true" : "false";
    } else if (const auto* number = std::get_if<std::uint64_t>(&value)) {
        out += std::to_string(*number);
    } else if (const auto* whole = std::get_if<std::int64_t>(&value)) {
        out += std::to_string(*whole);
    } else if (const auto* real = std::get_if<double>(&value)) {
        out += std::isfinite(*real) ? of_number(*real) : std::string{"null"};
    } else if (const auto* text = std::get_if<fixed_text<160>>(&value)) {
        append_json(out, text->view());
    }
}

[[nodiscard]] inline std::string printable(const report_fact::value_type& value) {
    if (const auto* text = std::get_if<fixed_text<160>>(&value)) return printable(text->view());
    if (const auto* flag = std::get_if<bool>(&value)) return *flag ? "yes" : "no";
    if (const auto* real = std::get_if<double>(&value)) return of_number(*real);
    std::string out;
    append_json(out, value);
    return out;
}

[[nodiscard]] inline std::string library_name() {
    return "vm_accel " + std::to_string(library_version.major) + '.' +
           std::to_string(library_version.minor) + '.' + std::to_string(library_version.patch);
}

} // namespace report_text

inline std::string diagnostic_report::to_table() const {
    using namespace report_text;
    constexpr std::string_view heads[] = {"role", "backend", "state", "asked"};
    std::size_t width[] = {heads[0].size(), heads[1].size(), heads[2].size(), heads[3].size()};
    for (const backend_report& b : backends) {
        const std::size_t sizes[] = {b.role.size(), b.backend.size(), name_of(b.state).size(),
                                     b.asked.size()};
        for (std::size_t i = 0; i < 4; ++i)
            width[i] = std::max(width[i], sizes[i]);
    }
    std::string out = library_name() + '\n';
    for (std::size_t i = 0; i < 4; ++i)
        append_padded(out, heads[i], width[i]);
    out += "given\n";
    for (const backend_report& b : backends) {
        append_padded(out, b.role, width[0]);
        append_padded(out, printable(b.backend), width[1]);
        append_padded(out, name_of(b.state), width[2]);
        append_padded(out, b.asked.empty() ? "-" : printable(b.asked.view()), width[3]);
        out += b.given.empty() ? "-" : printable(b.given.view());
        out += '\n';
        if (b.host_has_it) {
            out += *b.host_has_it ? "    found on this host: yes" : "    found on this host: no";
            if (!b.host_summary.empty()) out += ": " + printable(b.host_summary.view());
            out += '\n';
        }
        if (b.failure) {
            out += "    cause: " + printable(b.failure->cause.view()) + '\n';
            if (!b.failure->cure.empty())
                out += "    cure:  " + printable(b.failure->cure.view()) + '\n';
        }
        std::size_t widest = 0;
        for (const report_fact& fact : b.facts)
            widest = std::max(widest, fact.name.size());
        for (const report_fact& fact : b.facts) {
            out += "    ";
            append_padded(out, printable(fact.name.view()), widest);
            out += printable(fact.value) + '\n';
        }
    }
    return out;
}

inline std::string diagnostic_report::to_json() const {
    using report_text::append_json;
    std::string out = "{\"library\":";
    append_json(out, report_text::library_name());
    out += ",\"all_up\":";
    out += all_up() ? "true" : "false";
    out += ",\"backends\":[";
    for (const backend_report& b : backends) {
        out += &b == backends.data() ? "{\"role\":" : ",{\"role\":";
        append_json(out, b.role);
        append_json(out += ",\"backend\":", b.backend);
        append_json(out += ",\"state\":", name_of(b.state));
        append_json(out += ",\"asked\":", b.asked.view());
        append_json(out += ",\"given\":", b.given.view());
        out += ",\"host_has_it\":";
        out += !b.host_has_it ? "null" : *b.host_has_it ? "true" : "false";
        append_json(out += ",\"host_summary\":", b.host_summary.view());
        out += ",\"failure\":";
        if (b.failure) {
            append_json(out += "{\"code\":", name_of(b.failure->code));
            out += ",\"os_error\":" + std::to_string(b.failure->os_error);
            append_json(out += ",\"cause\":", b.failure->cause.view());
            append_json(out += ",\"cure\":", b.failure->cure.view());
            out += '}';
        } else {
            out += "null";
        }
        out += ",\"facts\":{";
        for (const report_fact& fact : b.facts) {
            if (&fact != b.facts.data()) out += ',';
            append_json(out, fact.name.view());
            append_json(out += ':', fact.value);
        }
        out += "}}";
    }
    out += "]}";
    return out;
}

/// Prints the table.
template <class Stream>
    requires requires(Stream& out, std::string_view text) { out << text; }
Stream& operator<<(Stream& out, const diagnostic_report& report) {
    out << std::string_view{report.to_table()};
    return out;
}

} // namespace vm_accel::inline v0
