/// How often each value of each random dimension was generated.
#pragma once

#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <string_view>

namespace differential {

class coverage {
public:
    void count(std::string_view dimension, std::string_view value, std::uint64_t times = 1) {
        const auto row = counts_.find(dimension);
        auto& values = row != counts_.end()
                           ? row->second
                           : counts_.emplace(std::string{dimension}, values_type{}).first->second;
        const auto entry = values.find(value);
        if (entry != values.end()) {
            entry->second += times;
        } else {
            values.emplace(std::string{value}, times);
        }
    }
    void add(const coverage& other) {
        for (const auto& [dimension, values] : other.counts_) {
            for (const auto& [value, times] : values)
                count(dimension, value, times);
        }
    }
    void print() const {
        for (const auto& [dimension, values] : counts_) {
            std::printf("  %s:", dimension.c_str());
            for (const auto& [value, times] : values) {
                std::printf(" %s %llu;", value.c_str(), static_cast<unsigned long long>(times));
            }
            std::printf("\n");
        }
    }

private:
    using values_type = std::map<std::string, std::uint64_t, std::less<>>;
    std::map<std::string, values_type, std::less<>> counts_;
};

} // namespace differential
