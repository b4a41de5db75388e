/// Results as a table, and as a picture.
#pragma once

#include "policies.hpp"

#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

namespace policy_lab {

/// A trace and what all policies did with it.
struct experiment {
    prepared_trace trace;
    std::vector<row> rows;

    /// The devices that some policy can do something for: that hit in one of a
    /// hundred accesses at least.
    [[nodiscard]] std::vector<bool> served() const {
        std::vector<bool> some(trace.devices.size(), false);
        for (const row& r : rows)
            for (const replay_result& result : r.results)
                for (std::size_t i = 0; i < some.size(); ++i)
                    some[i] = some[i] || result.devices[i].rate() >= 0.01;
        return some;
    }
};

[[nodiscard]] inline std::string padded(std::string_view text, std::size_t width, bool left) {
    const std::string gap(text.size() < width ? width - text.size() : 0, ' ');
    return left ? std::string{text} + gap : gap + std::string{text};
}
[[nodiscard]] inline std::string percent(double share) {
    char text[16];
    std::snprintf(text, sizeof text, "%.1f", 100 * share);
    return text;
}

/// Hit rates in percent by capacity; of several devices also that of the one that
/// fares worst; and walks per 100 accesses, where a policy makes more of them than
/// it has misses.
[[nodiscard]] inline std::string to_table(const experiment& made) {
    constexpr std::size_t name_width = 19, width = 8;
    const prepared_trace& t = made.trace;
    std::string out = t.name + ": " + std::to_string(t.accesses) + " accesses of " +
                      std::to_string(t.devices.size()) + " devices to " + std::to_string(t.pages) +
                      " pages, " + std::to_string(t.scopes.size()) + " invalidations\n";
    const auto part = [&](std::string_view title, auto value, auto wanted) {
        out += padded(title, name_width, true);
        for (const std::size_t entries : capacities)
            out += padded(std::to_string(entries), width, false);
        out += '\n';
        for (const row& r : made.rows) {
            if (!wanted(r)) continue;
            out += padded(r.name, name_width, true);
            for (const replay_result& result : r.results)
                out += padded(percent(value(result)), width, false);
            out += '\n';
        }
    };
    const auto every = [](const row&) { return true; };
    part("  hits, %", [](const replay_result& r) { return r.all.rate(); }, every);
    if (t.devices.size() > 1) {
        const std::vector<bool> counts = made.served();
        part("  of worst device", [&](const replay_result& r) { return r.worst(counts); }, every);
    }
    part(
        "  walks, %", [](const replay_result& r) { return r.walks_per_access(); },
        [](const row& r) {
            for (const replay_result& result : r.results)
                if (result.walks > result.all.accesses - result.all.hits) return true;
            return false;
        });
    return out;
}

} // namespace policy_lab
