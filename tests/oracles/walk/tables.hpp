/// The memory that tables lie in, twice: the emulated machine's, and the library's own copy.
#pragma once

#include "guest.h"

#include <cstdint>
#include <cstring>
#include <vector>

namespace oracle {

/// Who put a descriptor where: the emulator's known deviations need it.
enum class owner : std::uint8_t { nobody, stage1, stage2 };

/// [ORACLE_TABLES, end of RAM), in 64-bit words.
class tables {
public:
    static constexpr std::uint64_t first = ORACLE_TABLES;
    static constexpr std::uint64_t last = std::uint64_t{ORACLE_RAM} + ORACLE_RAM_BYTES;
    static constexpr std::size_t words = (last - first) / 8;

    /// `machine` is where the emulated machine's RAM is mapped.
    explicit tables(std::byte* machine)
        : machine_(reinterpret_cast<std::uint64_t*>(machine + (first - ORACLE_RAM))),
          ours_(words),
          owners_(words) {}

    [[nodiscard]] static bool contains(std::uint64_t address) noexcept {
        return address >= first && address < last;
    }
    [[nodiscard]] static std::size_t index(std::uint64_t address) noexcept {
        return (address - first) / 8;
    }
    [[nodiscard]] owner owner_of(std::uint64_t address) const noexcept {
        return static_cast<owner>(owners_[index(address)] & 3);
    }
    /// Whether a word belongs to a tree (see begin_tree).
    [[nodiscard]] bool belongs_to(std::uint64_t address, std::uint32_t tree) const noexcept {
        return contains(address) && owners_[index(address)] >> 2 == tree;
    }
    /// What is taken from now on is this tree's.
    void begin_tree(std::uint32_t tree) noexcept { tree_ = tree; }
    /// Takes a free word; false = it is somebody's, or outside.
    [[nodiscard]] bool take(std::uint64_t address, owner whose) noexcept {
        if (!contains(address) || owners_[index(address)] != 0) return false;
        owners_[index(address)] = tree_ << 2 | static_cast<std::uint32_t>(whose);
        taken_.push_back(index(address));
        return true;
    }
    /// Writes both copies.
    void put(std::uint64_t address, std::uint64_t value) noexcept {
        machine_[index(address)] = value;
        ours_[index(address)] = value;
    }
    [[nodiscard]] std::uint64_t& ours(std::uint64_t address) noexcept {
        return ours_[index(address)];
    }
    [[nodiscard]] std::uint64_t machine(std::uint64_t address) const noexcept {
        return machine_[index(address)];
    }
    /// Words that differ between the copies.
    [[nodiscard]] std::vector<std::uint64_t> differences() const {
        std::vector<std::uint64_t> out;
        constexpr std::size_t block = 512;
        for (std::size_t i = 0; i < words; i += block) {
            if (std::memcmp(machine_ + i, ours_.data() + i, block * 8) == 0) continue;
            for (std::size_t j = i; j < i + block; ++j)
                if (machine_[j] != ours_[j]) out.push_back(first + j * 8);
        }
        return out;
    }
    /// Makes everything zero and free again.
    void clear() noexcept {
        for (const std::size_t i : taken_) {
            machine_[i] = 0;
            ours_[i] = 0;
            owners_[i] = 0;
        }
        taken_.clear();
        for (const std::uint64_t address : differences())
            put(address, 0);
    }

private:
    std::uint64_t* machine_;
    std::vector<std::uint64_t> ours_;
    std::vector<std::uint32_t> owners_; ///< tree and stage
    std::vector<std::size_t> taken_;
    std::uint32_t tree_ = 0;
};

} // namespace oracle
