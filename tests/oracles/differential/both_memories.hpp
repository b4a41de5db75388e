/// The RAM of both machines: what the driver writes goes to both.
#pragma once

#include "machine_layout.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace differential {

class both_memories {
public:
    both_memories(std::byte* golden, std::byte* ours) : golden_(golden), ours_(ours) {}

    void store64(std::uint64_t address, std::uint64_t value) {
        std::memcpy(golden_ + (address - ram), &value, sizeof value);
        std::memcpy(ours_ + (address - ram), &value, sizeof value);
        written_.push_back(address);
    }
    template <class Structure>
    void store(std::uint64_t address, const Structure& s) {
        for (std::size_t i = 0; i < s.word.size(); ++i)
            store64(address + 8 * i, s.word[i].value());
    }
    /// What the driver wrote; devices do not write tables.
    [[nodiscard]] std::uint64_t load64(std::uint64_t address) const {
        std::uint64_t value = 0;
        std::memcpy(&value, ours_ + (address - ram), sizeof value);
        return value;
    }
    template <class Structure>
    void load(std::uint64_t address, Structure& s) const {
        std::memcpy(s.word.data(), ours_ + (address - ram), sizeof s.word);
    }
    /// Zeroes all that was written since the last call: tables never outlive their case.
    void forget() {
        for (const std::uint64_t address : written_) {
            std::memset(golden_ + (address - ram), 0, 8);
            std::memset(ours_ + (address - ram), 0, 8);
        }
        written_.clear();
    }
    [[nodiscard]] bool same(std::uint64_t address, std::size_t bytes) const {
        return std::memcmp(golden_ + (address - ram), ours_ + (address - ram), bytes) == 0;
    }
    [[nodiscard]] std::byte* golden(std::uint64_t address) const {
        return golden_ + (address - ram);
    }
    [[nodiscard]] std::byte* ours(std::uint64_t address) const { return ours_ + (address - ram); }

private:
    std::byte* golden_;
    std::byte* ours_;
    std::vector<std::uint64_t> written_;
};

} // namespace differential
