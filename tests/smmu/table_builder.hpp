/// Translation tables in sparse memory, for tests of walks.
#pragma once

#include <vm_accel/smmu/translation/page_walker.hpp>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>

namespace tables {

using u64 = std::uint64_t;
using namespace vm_accel;

/// 52-bit memory that is zero until written, with one hole.
struct sparse_memory {
    std::map<u64, u64> words; ///< as a little-endian reader sees them
    u64 hole = ~u64{0};       ///< [hole, hole + 64 KiB) is no memory
    unsigned loads = 0;
    unsigned exchanges = 0;
    std::function<void(u64)> before_exchange; ///< somebody else's write, just before ours

    bool is_memory(u64 at) const noexcept {
        return at % 8 == 0 && at >> 52 == 0 && (at < hole || at - hole >= 0x1'0000);
    }
    std::optional<u64> load(u64 at) noexcept {
        ++loads;
        if (!is_memory(at)) return std::nullopt;
        const auto found = words.find(at);
        return found == words.end() ? 0 : found->second;
    }
    std::optional<u64> compare_exchange(u64 at, u64 expected, u64 desired) noexcept {
        ++exchanges;
        if (before_exchange) before_exchange(at);
        const auto found = load(at);
        if (found && *found == expected) words[at] = desired;
        return found;
    }
};
static_assert(table_access<sparse_memory>);

inline u64 swapped(u64 word) {
    u64 out = 0;
    for (unsigned i = 0; i < 8; ++i)
        out |= (word >> (8 * i) & 0xff) << (56 - 8 * i);
    return out;
}

/// How descriptors are written.
struct format {
    unsigned granule_bits = 12;
    bool ds = false;
    bool big_endian = false;

    u64 address(u64 a) const {
        if (granule_bits == 16) return (a & 0xffff'ffff'ffff) | (a >> 48 & 15) << 12;
        if (ds) return (a & 0x3'ffff'ffff'ffff) | (a >> 50 & 3) << 8;
        return a;
    }
    unsigned covered(int level) const {
        return granule_bits + static_cast<unsigned>(3 - level) * (granule_bits - 3);
    }
};

/// A tree of tables. Its addresses are what descriptors say; where they are in
/// memory is `displaced` further on (stage 1 under a stage 2 that adds it).
struct tree {
    sparse_memory& memory;
    format form;
    unsigned input_bits;
    int start;
    u64 root;
    u64 next; ///< of the next table
    u64 displaced = 0;

    u64 word(u64 at) { return shown(memory.words[at + displaced]); }
    void store(u64 at, u64 value) { memory.words[at + displaced] = shown(value); }
    u64 shown(u64 value) const { return form.big_endian ? swapped(value) : value; }

    /// Stores a leaf for `input` at `level`, with tables above it; `table_bits`
    /// are attributes of those. The address of the leaf's descriptor.
    u64 map(u64 input, u64 leaf, int level, u64 table_bits = 0) {
        u64 table = root;
        for (int l = start;; ++l) {
            const u64 mask = l == start ? (u64{1} << (input_bits - form.covered(l))) - 1
                                        : (u64{1} << (form.granule_bits - 3)) - 1;
            const u64 at = table + (input >> form.covered(l) & mask) * 8;
            if (l == level) {
                store(at, leaf);
                return at;
            }
            if (word(at) == 0) {
                store(at, form.address(next) | table_bits | 3);
                next += 0x1'0000;
            }
            const u64 d = word(at);
            table = d & 0xffff'ffff'f000 & ~((u64{1} << form.granule_bits) - 1);
            if (form.granule_bits == 16) table |= (d >> 12 & 15) << 48;
            if (form.granule_bits != 16 && form.ds)
                table |= (d >> 48 & 3) << 48 | (d >> 8 & 3) << 50;
        }
    }
};

/// Where stage 1 starts.
inline int first_level(unsigned granule_bits, unsigned input_bits) {
    int level = 3;
    for (unsigned bits = granule_bits; bits + granule_bits - 3 < input_bits;
         bits += granule_bits - 3)
        --level;
    return level;
}

inline constexpr u64 AF = u64{1} << 10;
inline constexpr u64 AP1 = u64{1} << 6; ///< user
inline constexpr u64 AP2 = u64{1} << 7; ///< read-only
inline constexpr u64 nG = u64{1} << 11;
inline constexpr u64 DBM = u64{1} << 51;
inline constexpr u64 contiguous = u64{1} << 52;
inline constexpr u64 PXN = u64{1} << 53;
inline constexpr u64 UXN = u64{1} << 54;

/// A leaf's word: address, kind for its level, AF, and more.
inline u64 leaf(const format& f, u64 output, int level, u64 more = AF | AP1) {
    return f.address(output) | (level == 3 ? 3U : 1U) | more;
}

/// Regimes with one half of stage 1, or stage 2, made to fit a tree.
inline translation_regimes stage1_of(const tree& t, unsigned output_bits = 52, bool upper = false) {
    translation_regimes r;
    r.stage1_enabled = true;
    r.stage1.output_bits = static_cast<std::uint8_t>(output_bits);
    r.stage1.wide_format = t.form.ds;
    r.stage1.big_endian = t.form.big_endian;
    r.stage1.memory_types = 0xff;
    stage1_half& half = r.stage1.half[upper ? 1 : 0];
    half.enabled = true;
    half.table = t.root;
    half.input_bits = static_cast<std::uint8_t>(t.input_bits);
    half.granule_bits = static_cast<std::uint8_t>(t.form.granule_bits);
    return r;
}
inline void add_stage2(translation_regimes& r, const tree& t, unsigned output_bits = 52) {
    r.stage2_enabled = true;
    r.stage2.output_bits = static_cast<std::uint8_t>(output_bits);
    r.stage2.wide_format = t.form.ds;
    r.stage2.big_endian = t.form.big_endian;
    r.stage2.table = t.root;
    r.stage2.input_bits = static_cast<std::uint8_t>(t.input_bits);
    r.stage2.granule_bits = static_cast<std::uint8_t>(t.form.granule_bits);
    r.stage2.start_level = static_cast<std::int8_t>(t.start);
}

inline constexpr unsigned user_read = permissions::user_read;
inline constexpr unsigned user_write = permissions::user_write;
inline constexpr unsigned privileged_read = permissions::privileged_read;
inline constexpr unsigned privileged_write = permissions::privileged_write;
inline constexpr unsigned user_execute = permissions::user_execute;
inline constexpr unsigned privileged_execute = permissions::privileged_execute;

template <smmu_features F = full_features>
walk_result walk(sparse_memory& memory, const translation_regimes& r, u64 address,
                 unsigned needed = user_read, memory_attributes incoming = {}) {
    return walk_tables<F>(r, {address, needed, incoming}, memory);
}
inline u64 output_of(const walk_result& r, u64 address) {
    return r.output_base + (address - r.input_base);
}

} // namespace tables
