/// How often each value of each random dimension was tried.
#pragma once

#include <array>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

namespace oracle {

/// One dimension: names of its values, and counts.
struct dimension {
    const char* name;
    std::vector<std::string> values;
};

template <std::size_t Dimensions, std::size_t Values = 66>
class coverage {
public:
    void count(std::size_t which, std::size_t value, std::uint64_t times = 1) noexcept {
        counts_[which][value < Values ? value : Values - 1] += times;
    }
    void add(const coverage& other) noexcept {
        for (std::size_t d = 0; d < Dimensions; ++d)
            for (std::size_t v = 0; v < Values; ++v)
                counts_[d][v] += other.counts_[d][v];
    }
    void print(const std::vector<dimension>& dimensions) const {
        for (std::size_t d = 0; d < dimensions.size(); ++d) {
            std::string line;
            for (std::size_t v = 0; v < Values; ++v) {
                if (counts_[d][v] == 0) continue;
                const auto& names = dimensions[d].values;
                line += ' ' + (v < names.size() ? names[v] : std::to_string(v)) + '=' +
                        std::to_string(counts_[d][v]);
            }
            std::printf("  %-28s%s\n", dimensions[d].name, line.c_str());
        }
    }

private:
    std::array<std::array<std::uint64_t, Values>, Dimensions> counts_{};
};

} // namespace oracle
