/// Hit rate against capacity, as a scalable picture (SVG 1.1).
#pragma once

#include "table.hpp"

#include <cmath>
#include <cstddef>
#include <cstdio>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

namespace policy_lab {

/// One panel per experiment, and one more where devices fare differently: of the
/// one that fares worst.
class plot {
public:
    [[nodiscard]] static std::string draw(const std::vector<experiment>& all) {
        std::vector<panel> panels;
        for (const experiment& e : all) {
            panels.push_back({&e, false});
            if (fare_differently(e)) panels.push_back({&e, true});
        }
        const std::size_t rows = (panels.size() + across - 1) / across;
        std::string out;
        append(out,
               "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %zu %zu\" "
               "font-family=\"sans-serif\" font-size=\"11\">\n"
               "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
               across * wide, rows * high + legend_high);
        for (std::size_t i = 0; i < panels.size(); ++i)
            draw_panel(out, panels[i], i % across * wide, i / across * high);
        if (!all.empty()) draw_legend(out, all.front().rows, rows * high);
        return out + "</svg>\n";
    }

private:
    struct panel {
        const experiment* of;
        bool worst;
    };
    static constexpr std::size_t across = 3, wide = 260, high = 190, legend_high = 66;
    static constexpr std::size_t left = 34, top = 24, inner_wide = 214, inner_high = 136;
    static constexpr std::string_view colours[] = {"#888888", "#d62728", "#1f77b4", "#17becf",
                                                   "#bcbd22", "#e377c2", "#000000", "#8c564b",
                                                   "#2ca02c", "#9467bd", "#ff7f0e", "#ffbb78"};

    [[nodiscard]] static bool fare_differently(const experiment& e) {
        const std::vector<bool> served = e.served();
        for (const row& r : e.rows)
            for (const replay_result& result : r.results)
                if (std::abs(result.worst(served) - result.all.rate()) > 0.05) return true;
        return false;
    }

    template <class... Values>
    static void append(std::string& out, const char* format, Values... values) {
        char text[400];
        std::snprintf(text, sizeof text, format, values...);
        out += text;
    }
    [[nodiscard]] static std::string_view colour(std::size_t i) {
        return colours[i % std::size(colours)];
    }
    /// Names come from files: nothing in them may end an element.
    [[nodiscard]] static std::string quoted(std::string_view text) {
        std::string out;
        for (const char c : text)
            out += c == '<' || c == '&' || c == '>' ? '?' : c;
        return out;
    }

    static void draw_panel(std::string& out, const panel& p, std::size_t x, std::size_t y) {
        const std::string name =
            quoted(p.of->trace.name) + (p.worst ? ": the device that fares worst" : "");
        append(out, "<g transform=\"translate(%zu %zu)\">\n<text x=\"%zu\" y=\"14\">%.60s</text>\n",
               x, y, left, name.c_str());
        for (unsigned share = 0; share <= 100; share += 25) {
            const std::size_t at = top + inner_high - inner_high * share / 100;
            append(out,
                   "<path d=\"M%zu %zuh%zu\" stroke=\"#ddd\"/><text x=\"%zu\" y=\"%zu\" "
                   "text-anchor=\"end\" fill=\"#555\">%u</text>\n",
                   left, at, inner_wide, left - 4, at + 4, share);
        }
        for (std::size_t i = 0; i < capacities.size(); ++i) {
            append(out,
                   "<text x=\"%zu\" y=\"%zu\" text-anchor=\"middle\" fill=\"#555\">%zu</text>\n",
                   place(i), top + inner_high + 16, capacities[i]);
        }
        const std::vector<bool> served = p.of->served();
        for (std::size_t r = 0; r < p.of->rows.size(); ++r) {
            const row& line = p.of->rows[r];
            append(out, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"1.5\" points=\"",
                   colour(r).data());
            for (std::size_t i = 0; i < line.results.size(); ++i) {
                const replay_result& result = line.results[i];
                append(out, "%zu,%.1f ", place(i),
                       static_cast<double>(top + inner_high) -
                           static_cast<double>(inner_high) *
                               (p.worst ? result.worst(served) : result.all.rate()));
            }
            out += "\"/>\n";
        }
        out += "</g>\n";
    }
    [[nodiscard]] static std::size_t place(std::size_t capacity) {
        return left + 10 + capacity * (inner_wide - 20) / (capacities.size() - 1);
    }
    static void draw_legend(std::string& out, const std::vector<row>& rows, std::size_t y) {
        append(out,
               "<text x=\"%zu\" y=\"%zu\" fill=\"#555\">hits in percent, against entries</text>\n",
               left, y + 12);
        for (std::size_t i = 0; i < rows.size(); ++i) {
            const std::size_t x = left + i % 6 * 124, at = y + 30 + i / 6 * 18;
            append(out, "<path d=\"M%zu %zuh16\" stroke=\"%s\" stroke-width=\"3\"/>", x, at,
                   colour(i).data());
            append(out, "<text x=\"%zu\" y=\"%zu\">%s</text>\n", x + 20, at + 4,
                   std::string{rows[i].name}.c_str());
        }
    }
};

} // namespace policy_lab
