/// A second SMMU, slow and plain: what an access gives, from the words in memory.
///
/// Written from the architecture alone (IHI 0070 for STE and CD, DDI 0487 for
/// stage 1 with 4 KiB pages), for tests to compare with. It caches nothing,
/// calls itself level by level, and includes nothing of the library.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

namespace reference {

using u64 = std::uint64_t;

/// Bits [high:low] of a word.
inline u64 bits(u64 word, unsigned high, unsigned low) {
    u64 value = 0;
    for (unsigned i = low; i <= high; ++i) {
        if ((word >> i) % 2 == 1) value += u64{1} << (i - low);
    }
    return value;
}
inline bool bit(u64 word, unsigned n) { return (word >> n) % 2 == 1; }

/// Event numbers.
inline constexpr unsigned C_BAD_STREAMID = 0x02;
inline constexpr unsigned F_STE_FETCH = 0x03;
inline constexpr unsigned C_BAD_STE = 0x04;
inline constexpr unsigned F_CD_FETCH = 0x09;
inline constexpr unsigned C_BAD_CD = 0x0a;
inline constexpr unsigned F_WALK_EABT = 0x0b;
inline constexpr unsigned F_TRANSLATION = 0x10;
inline constexpr unsigned F_ADDR_SIZE = 0x11;
inline constexpr unsigned F_ACCESS = 0x12;
inline constexpr unsigned F_PERMISSION = 0x13;

struct machine {
    std::function<std::optional<u64>(u64)> word; ///< 8 bytes of memory, if it is memory
    u64 stream_table = 0;                        ///< linear
    u64 streams = 0;
    unsigned output_bits = 44; ///< OAS
};
struct access {
    u64 stream = 0;
    u64 address = 0;
    bool write = false;
    bool privileged = false;
    bool instruction = false;
};
struct answer {
    unsigned event = 0;  ///< not 0: this fault
    bool silent = false; ///< refused without an event
    u64 address = 0;     ///< else: where the access goes
    // What was met on the way, for coverage.
    unsigned leaf_level = 0;
    bool upper = false;
    bool hierarchical = false; ///< some table descriptor had a limit
};

/// One half's settings, and what the tables on the way have said.
struct walk_state {
    const machine* m = nullptr;
    access asked{};
    unsigned input_bits = 0;
    unsigned output_bits = 0;
    bool hierarchy_off = false, access_flag_off = false, wxn = false, pan = false;
    bool table_no_user = false, table_no_write = false, table_uxn = false, table_pxn = false;
    answer so_far{};
};

inline answer fault(const walk_state& w, unsigned event) {
    answer a = w.so_far;
    a.event = event;
    return a;
}

inline bool may(const walk_state& w, u64 leaf) {
    const bool ap1 = bit(leaf, 6);
    const bool ap2 = bit(leaf, 7);
    bool user_read = ap1;
    bool user_write = ap1 && !ap2;
    bool privileged_read = true;
    bool privileged_write = !ap2;
    if (w.table_no_user) user_read = user_write = false;
    if (w.table_no_write) user_write = privileged_write = false;
    bool user_execute = !bit(leaf, 54) && !w.table_uxn;
    bool privileged_execute = !bit(leaf, 53) && !w.table_pxn && !user_write;
    if (w.wxn && user_write) user_execute = false;
    if (w.wxn && privileged_write) privileged_execute = false;
    if (w.pan && (user_read || user_write)) privileged_read = privileged_write = false;
    if (w.asked.write) return w.asked.privileged ? privileged_write : user_write;
    if (w.asked.instruction) return w.asked.privileged ? privileged_execute : user_execute;
    return w.asked.privileged ? privileged_read : user_read;
}

inline answer leaf(const walk_state& w, u64 descriptor, unsigned level) {
    const unsigned size = level == 1 ? 30 : level == 2 ? 21 : 12;
    const u64 output = bits(descriptor, 47, size) << size;
    if (output >> w.output_bits != 0) return fault(w, F_ADDR_SIZE);
    if (!bit(descriptor, 10) && !w.access_flag_off) return fault(w, F_ACCESS);
    if (!may(w, descriptor)) return fault(w, F_PERMISSION);
    answer a = w.so_far;
    a.leaf_level = level;
    a.address = output + bits(w.asked.address, size - 1, 0);
    return a;
}

inline answer descend(walk_state w, u64 table, unsigned level) {
    const unsigned low = level == 0 ? 39 : level == 1 ? 30 : level == 2 ? 21 : 12;
    const unsigned high = low + 8 < w.input_bits - 1 ? low + 8 : w.input_bits - 1;
    const u64 index = bits(w.asked.address, high, low);
    const auto descriptor = w.m->word(table + 8 * index);
    if (!descriptor) return fault(w, F_WALK_EABT);
    const u64 kind = *descriptor % 4;
    if (kind == 0 || kind == 2) return fault(w, F_TRANSLATION);
    if (level == 3) return kind == 3 ? leaf(w, *descriptor, 3) : fault(w, F_TRANSLATION);
    if (kind == 1) return level == 0 ? fault(w, F_TRANSLATION) : leaf(w, *descriptor, level);
    const u64 next = bits(*descriptor, 47, 12) << 12;
    if (next >> w.output_bits != 0) return fault(w, F_ADDR_SIZE);
    if (bits(*descriptor, 62, 59) != 0) w.so_far.hierarchical = true;
    if (!w.hierarchy_off) {
        if (bit(*descriptor, 61)) w.table_no_user = true;
        if (bit(*descriptor, 62)) w.table_no_write = true;
        if (bit(*descriptor, 60)) w.table_uxn = true;
        if (bit(*descriptor, 59)) w.table_pxn = true;
    }
    return descend(w, next, level + 1);
}

inline answer stage1(const machine& m, const access& asked, const u64 (&cd)[8]) {
    answer bad;
    bad.event = C_BAD_CD;
    if (!bit(cd[0], 31)) return bad; // V
    if (!bit(cd[0], 41)) return bad; // AA64
    if (bit(cd[0], 15)) return bad;  // big-endian
    const unsigned sizes[8] = {32, 36, 40, 42, 44, 48, 52, 52};
    unsigned output_bits = sizes[bits(cd[0], 34, 32)];
    if (output_bits > m.output_bits) output_bits = m.output_bits;
    const bool off[2] = {bit(cd[0], 14), bit(cd[0], 30)};
    const u64 tsz[2] = {bits(cd[0], 5, 0), bits(cd[0], 21, 16)};
    const u64 granule[2] = {bits(cd[0], 7, 6), bits(cd[0], 23, 22)};
    const u64 four_kib[2] = {0, 2};
    const u64 table[2] = {bits(cd[1], 51, 4) << 4, bits(cd[2], 51, 4) << 4};
    for (int half = 0; half < 2; ++half) {
        if (off[half]) continue;
        if (tsz[half] < 16 || tsz[half] > 39) return bad;
        if (granule[half] != four_kib[half]) return bad;
        if (table[half] >> output_bits != 0) return bad;
    }

    walk_state w;
    w.m = &m;
    w.asked = asked;
    const bool ignore_top = bit(cd[0], bit(asked.address, 55) ? 39 : 38);
    if (ignore_top) {
        w.asked.address = bits(asked.address, 55, 0);
        if (bit(asked.address, 55)) w.asked.address += u64{0xff} << 56;
    }
    const bool upper = bit(w.asked.address, 63);
    w.so_far.upper = upper;
    if (off[upper]) return fault(w, F_TRANSLATION);
    w.input_bits = 64 - static_cast<unsigned>(tsz[upper]);
    for (unsigned i = w.input_bits; i < 64; ++i) {
        if (bit(w.asked.address, i) != upper) return fault(w, F_TRANSLATION);
    }
    w.output_bits = output_bits;
    w.access_flag_off = bit(cd[0], 35);
    w.wxn = bit(cd[0], 36);
    w.pan = bit(cd[0], 40);
    w.hierarchy_off = bit(upper ? cd[2] : cd[1], 1);
    const unsigned level = w.input_bits > 39 ? 0 : w.input_bits > 30 ? 1 : 2;
    const unsigned below = level == 0 ? 39 : level == 1 ? 30 : 21;
    u64 first_table_bytes = 8;
    for (unsigned i = below; i < w.input_bits; ++i)
        first_table_bytes *= 2;
    return descend(w, table[upper] - table[upper] % first_table_bytes, level);
}

inline answer translate(const machine& m, const access& asked) {
    answer a;
    if (asked.stream >= m.streams) {
        a.event = C_BAD_STREAMID;
        return a;
    }
    u64 ste[8];
    for (u64 i = 0; i < 8; ++i) {
        const auto word = m.word(m.stream_table + asked.stream * 64 + i * 8);
        if (!word) {
            a.event = F_STE_FETCH;
            return a;
        }
        ste[i] = *word;
    }
    const u64 config = bits(ste[0], 3, 1);
    if (!bit(ste[0], 0) || config == 6 || config == 7) { // no stage 2 here
        a.event = C_BAD_STE;
        return a;
    }
    if (config < 4) {
        a.silent = true;
        return a;
    }
    if (config == 4) {
        a.address = asked.address;
        if (asked.address >> m.output_bits != 0) a.event = F_ADDR_SIZE;
        return a;
    }
    u64 cd[8];
    for (u64 i = 0; i < 8; ++i) {
        const auto word = m.word((bits(ste[0], 55, 6) << 6) + i * 8);
        if (!word) {
            a.event = F_CD_FETCH;
            return a;
        }
        cd[i] = *word;
    }
    return stage1(m, asked, cd);
}

} // namespace reference
