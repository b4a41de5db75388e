/// Random descriptors: attributes of all kinds, ignored bits set, sometimes the wrong kind.
#pragma once

#include "configuration.hpp"
#include "random.hpp"

#include <algorithm>

namespace oracle {

class random_descriptors {
public:
    explicit random_descriptors(random_source& random) : random_(random) {}

    /// An output or table address in place.
    [[nodiscard]] static u64 address_bits(u64 address, unsigned granule, bool ds) {
        const u64 page = (u64{1} << granule) - 1;
        if (granule == 16) {
            return (address & ((u64{1} << 48) - 1) & ~page) | (address >> 48 & 0xf) << 12;
        }
        if (ds) return (address & ((u64{1} << 50) - 1) & ~page) | (address >> 50 & 3) << 8;
        return address & ((u64{1} << 48) - 1) & ~page;
    }
    [[nodiscard]] u64 table_descriptor(u64 next, unsigned granule, bool ds, bool limits) {
        u64 d = kind(true) | address_bits(next, granule, ds);
        if (limits && random_.percent(20)) d |= random_.bits(5) << 59;
        if (random_.percent(10)) d |= random_.bits(8) << 51; // ignored bits
        if (granule != 16 && !ds && random_.percent(10)) d |= random_.bits(10) << 2;
        return d;
    }
    [[nodiscard]] u64 stage1_leaf(u64 output, unsigned granule, int level, bool ds) {
        u64 d = leaf_common(output, granule, level, ds) | random_.bits(3) << 2 |
                random_.bits(1) << 5 | random_.bits(2) << 6 | random_.bits(2) << 53;
        if (random_.percent(50)) d = (d & ~u64{0xc0}) | u64{1} << 6; // everything is allowed
        return d;
    }
    [[nodiscard]] u64 stage2_leaf(u64 output, unsigned granule, int level, bool ds, bool fwb) {
        const u64 attributes =
            fwb ? random_.one_of<u64>({0, 1, 2, 3, 5, 5, 6, 6, 6, 7, 7, 7})
                : random_.one_of<u64>({0, 1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15, 15, 15, 15});
        const u64 access = random_.percent(85) ? 3 : random_.below(4);
        return leaf_common(output, granule, level, ds) | attributes << 2 | access << 6 |
               random_.bits(2) << 53;
    }
    /// A level for a leaf, mostly one that may have leaves.
    [[nodiscard]] int choose_leaf(unsigned granule, int start, bool ds) {
        if (random_.percent(2))
            return static_cast<int>(random_.between(static_cast<unsigned>(std::max(start, 0)), 3));
        for (;;) {
            const int level = random_.coin() ? 3 : static_cast<int>(random_.below(4));
            if (level >= start && leaf_allowed(granule, level, ds)) return level;
        }
    }

private:
    /// What bits [1:0] should be; sometimes they are not.
    [[nodiscard]] u64 kind(bool table_or_page) {
        if (random_.percent(1)) return random_.below(4);
        return table_or_page ? 3 : 1;
    }
    /// Bits that both stages' leaves have.
    [[nodiscard]] u64 leaf_common(u64 output, unsigned granule, int level, bool ds) {
        u64 d = kind(level == 3) | address_bits(output, granule, ds);
        const bool has_shareability = !ds || granule == 16;
        if (has_shareability) d |= u64{random_.one_of({0U, 2U, 3U, 3U})} << 8;
        d |= at_bit(!random_.percent(12), 10) | at_bit(random_.coin(), 11) |
             at_bit(random_.coin(), 51);
        if (random_.percent(20)) d |= random_.bits(8) << 55;
        if (level < 3 && random_.percent(10)) d |= u64{1} << 16; // nT
        return d;
    }

    random_source& random_;
};

} // namespace oracle
