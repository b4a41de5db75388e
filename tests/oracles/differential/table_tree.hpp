/// Translation tables as a driver builds them: VMSAv8-64, either stage.
#pragma once

#include "both_memories.hpp"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace differential {

/// Bump allocation of table memory; each case starts over.
class table_memory {
public:
    void reset() { next_ = tables; }
    /// `align` is a power of two.
    std::uint64_t take(std::uint64_t bytes, std::uint64_t align) {
        const std::uint64_t at = (next_ + align - 1) & ~(align - 1);
        next_ = at + bytes;
        return at;
    }
    [[nodiscard]] std::uint64_t used() const { return next_ - tables; }

private:
    std::uint64_t next_ = tables;
};

/// What an entry covers: log2 of its bytes.
inline unsigned entry_bits(unsigned granule, unsigned level) {
    return granule + (3 - level) * (granule - 3);
}
/// The level at which a stage-1 walk begins.
inline unsigned first_level(unsigned granule, unsigned input_bits) {
    return 4 - (input_bits - 4) / (granule - 3);
}
/// The largest pages: level 1 with 4 KiB granules, else level 2.
inline unsigned first_leaf_level(unsigned granule) { return granule == 12 ? 1 : 2; }

/// One tree. `own` = the address space that descriptors speak of: physical addresses, or IPAs when
/// stage 2 translates table fetches. They differ by a constant.
struct table_tree {
    unsigned granule = 12;
    unsigned input_bits = 39;
    unsigned start_level = 1;
    std::uint64_t root = 0;                     ///< physical
    std::uint64_t own_delta = 0;                ///< own address = physical address + own_delta
    std::vector<std::uint64_t> first_entries{}; ///< those in use, if first_tables() > 1

    [[nodiscard]] std::uint64_t root_bytes() const {
        const unsigned index_bits = input_bits - entry_bits(granule, start_level);
        return std::max<std::uint64_t>(64, std::uint64_t{8} << index_bits);
    }
    /// First tables side by side, as stage 2 may have them; else 1.
    [[nodiscard]] unsigned first_tables() const {
        const unsigned index_bits = input_bits - entry_bits(granule, start_level);
        return index_bits > granule - 3 ? 1U << (index_bits - (granule - 3)) : 1;
    }
    /// The entry of a table of this level. First tables side by side are all alike, see
    /// known_errors.hpp: entries are those of the first, and copy_first_table() makes the others.
    [[nodiscard]] std::uint64_t index_of(std::uint64_t input, unsigned level) const {
        return input >> entry_bits(granule, level) & ((std::uint64_t{1} << (granule - 3)) - 1);
    }
    void copy_first_table(both_memories& memory) const {
        const std::uint64_t bytes = std::uint64_t{1} << granule;
        for (const std::uint64_t place : first_entries) {
            for (unsigned i = 1; i < first_tables(); ++i) {
                memory.store64(place + i * bytes, memory.load64(place));
            }
        }
    }

    [[nodiscard]] std::uint64_t own(std::uint64_t physical) const { return physical + own_delta; }
    [[nodiscard]] std::uint64_t address_mask() const {
        return ((std::uint64_t{1} << 48) - 1) & ~((std::uint64_t{1} << granule) - 1);
    }

    /// Physical address of the descriptor of `address` at `level`; makes tables on the way and
    /// tells `made(physical, bytes)`. 0 = a page is in the way.
    template <class Made>
    std::uint64_t slot(both_memories& memory, table_memory& pool, std::uint64_t address,
                       unsigned level, Made made) {
        const std::uint64_t input = address & ((std::uint64_t{1} << input_bits) - 1);
        std::uint64_t table = root;
        for (unsigned at = start_level;; ++at) {
            const std::uint64_t place = table + index_of(input, at) * 8;
            if (at == start_level && first_tables() > 1 &&
                std::find(first_entries.begin(), first_entries.end(), place) ==
                    first_entries.end()) {
                first_entries.push_back(place);
            }
            if (at == level) return place;
            const std::uint64_t descriptor = memory.load64(place);
            if (descriptor == 0) {
                const std::uint64_t bytes = std::uint64_t{1} << granule;
                table = pool.take(bytes, bytes);
                made(table, bytes);
                memory.store64(place, own(table) | 3);
            } else if ((descriptor & 3) == 3) {
                table = (descriptor & address_mask()) - own_delta;
                if (table < tables || table >= tables_end) return 0;
            } else {
                return 0;
            }
        }
    }
};

} // namespace differential
