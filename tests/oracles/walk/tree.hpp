/// One random tree: a configuration, the tables for a few addresses, and what is asked of them.
///
/// Tables are sparse: only the descriptors that a wanted path needs are written, at free words of
/// tables that lie anywhere in the window. A path mostly works; every choice is sometimes a bad
/// one, and some trees have random bits of their descriptors turned over in the end.
#pragma once

#include "random_configuration.hpp"
#include "random_descriptors.hpp"
#include "tables.hpp"

#include <optional>
#include <vector>

namespace oracle {

struct descriptor_slot {
    u64 seen_at = 0; ///< where the walk of its stage expects it (an IPA for nested stage 1)
    u64 at = 0;      ///< physical address
    u64 next = 0;    ///< of a table descriptor
    u64 value = 0;
    int level = 0;
    owner stage = owner::stage1;
    bool leaf = false;
};

struct asked {
    u64 address = 0;
    std::uint32_t at = 0;
};

/// Which of a tree's random choices belong into the statistics besides its configuration.
struct tree_facts {
    int stage1_leaf = -2;
    int stage2_leaf = -2; ///< of the output
    unsigned flips = 0;
    unsigned run = 0; ///< contiguous: 0 none, 1 the hint alone, 2 a whole run
    bool not_canonical = false;
    bool outside_memory = false;
    bool misaligned_table = false;
};

class tree_builder {
public:
    tree_builder(tables& memory, random_source& random)
        : memory_(memory), random_(random), make_(random) {}

    configuration config;
    std::vector<descriptor_slot> slots;
    std::vector<asked> walks;
    tree_facts facts;

    /// Makes a tree for at most `most_walks` walks.
    void build(unsigned most_walks) {
        config = random_configuration(random_).choose();
        if (config.stage2) config.s2table = tables::first + (random_.bits(27) >> 20 << 20);
        if (config.stage1) choose_stage1_tables();
        const unsigned paths = config.updates() ? 1 : random_.between(1, 2);
        std::array<u64, 2> address{};
        for (unsigned i = 0; i < paths; ++i)
            address[i] = config.stage1 ? stage1_path() : stage2_path();
        turn_bits();
        const unsigned count = config.updates() ? 1 : random_.between(1, most_walks);
        for (unsigned i = 0; i < count; ++i) {
            u64 a = address[random_.below(paths)];
            if (i != 0) a ^= random_.bits(random_.one_of({12U, 12U, 12U, 16U, 30U}));
            if (random_.percent(3)) {
                a ^= u64{1} << random_.between(30, 63);
                facts.not_canonical = true;
            }
            walks.push_back({a, choose_instruction(config, random_)});
        }
        if (random_.percent(2)) misplace_a_table();
    }

private:
    [[nodiscard]] static unsigned contiguous_log2(unsigned granule, int level) {
        return granule == 12 ? 4 : granule == 16 || level < 3 ? 5 : 7;
    }
    /// Makes a leaf one of a contiguous run, now and then: it then has the address that its place
    /// asks for.
    void make_contiguous(u64& descriptor, u64& output, u64 input, unsigned granule, int level,
                         bool ds) {
        if (!random_.percent(12)) return;
        const unsigned size = covered(granule, level);
        const u64 inside = ((u64{1} << contiguous_log2(granule, level)) - 1) << size;
        output = (output & ~inside) | (input & inside);
        const u64 all = make_.address_bits(~u64{0}, granule, ds);
        descriptor = (descriptor & ~all) | make_.address_bits(output, granule, ds) | u64{1} << 52;
        facts.run = std::max(facts.run, 1U);
    }
    /// Writes the other leaves of a leaf's run, as far as there is room.
    void fill_run(const descriptor_slot& leaf, unsigned granule) {
        if ((leaf.value >> 52 & 1) == 0 || !random_.percent(40)) return;
        const bool swap = leaf.stage == owner::stage1 ? config.big_endian : config.s2big_endian;
        const unsigned log2 = contiguous_log2(granule, leaf.level);
        const unsigned size = covered(granule, leaf.level);
        const u64 inside = ((u64{1} << log2) - 1) << size;
        const u64 first = leaf.at & ~((u64{8} << log2) - 1);
        for (u64 i = 0; i < u64{1} << log2; ++i) {
            const u64 at = first + i * 8;
            if (at == leaf.at) continue;
            if (!memory_.take(at, leaf.stage)) return;
            const u64 value = (leaf.value & ~inside) | i << size;
            memory_.put(at, swap ? __builtin_bswap64(value) : value);
        }
        facts.run = 2;
    }
    // ---- writing -----------------------------------------------------------------------------
    [[nodiscard]] descriptor_slot* find(owner stage, u64 seen_at) {
        for (descriptor_slot& s : slots)
            if (s.stage == stage && s.seen_at == seen_at) return &s;
        return nullptr;
    }
    void write(const descriptor_slot& s) {
        const bool swap = s.stage == owner::stage1 ? config.big_endian : config.s2big_endian;
        memory_.put(s.at, swap ? __builtin_bswap64(s.value) : s.value);
    }
    void add(const descriptor_slot& s) {
        slots.push_back(s);
        write(s);
    }
    /// A table of 2^size_log2 bytes whose word at `offset` is free, and taken by this.
    [[nodiscard]] std::optional<u64> place(unsigned size_log2, u64 offset, owner stage) {
        for (unsigned tries = 0; tries < 8; ++tries) {
            const u64 base = tables::first + (random_.bits(27) >> size_log2 << size_log2);
            if (memory_.take(base + offset, stage)) return base;
        }
        return std::nullopt;
    }

    // ---- stage 2 -----------------------------------------------------------------------------
    /// What the tables map `address` to so far.
    [[nodiscard]] std::optional<u64> mapped(u64 address) {
        const int start = stage2_start(config);
        if (config.s2granule == 0 || start == 9) return std::nullopt;
        u64 table = stage2_base();
        for (int level = start;; ++level) {
            const unsigned size = covered(config.s2granule, level);
            const u64 index = level == start
                                  ? address >> size
                                  : address >> size & ((u64{1} << stride(config.s2granule)) - 1);
            const descriptor_slot* s = find(owner::stage2, table + index * 8);
            if (s == nullptr) return std::nullopt;
            if (s->leaf) return s->next | (address & ((u64{1} << size) - 1));
            table = s->next;
        }
    }
    /// Maps the leaf around `address`, to `output` or, if that is `movable`, near it. False = there
    /// is no room, or something else is there.
    [[nodiscard]] bool map(u64 address, u64 output, int leaf, bool movable) {
        const unsigned granule = config.s2granule;
        const unsigned bits = 64 - config.s2tsz;
        const int start = stage2_start(config);
        if (granule == 0 || bits < 13 || bits > 52 || start == 9 || address >> bits != 0)
            return false;
        if (bits <= covered(granule, start) || bits > covered(granule, start) + 17) return false;
        const u64 mask = (u64{1} << stride(granule)) - 1;
        u64 index = address >> covered(granule, start);
        if (!stage2_started_) {
            const unsigned size = 3 + bits - covered(granule, start);
            const auto base = place(std::max(size, 6U), index * 8, owner::stage2);
            if (!base) return false;
            config.s2table = *base;
            stage2_started_ = true;
            if (random_.percent(3)) {
                config.s2table |= random_.bits(size) & ~u64{0x3f};
                stage2_base_noise_ = config.s2table ^ *base;
                facts.misaligned_table = true;
            }
        } else if (find(owner::stage2, stage2_base() + index * 8) == nullptr &&
                   !memory_.take(stage2_base() + index * 8, owner::stage2)) {
            return false;
        }
        u64 table = stage2_base();
        for (int level = start;; ++level) {
            const u64 at = table + index * 8;
            const descriptor_slot* here = find(owner::stage2, at);
            if (here != nullptr && (here->leaf || level == leaf)) return false;
            if (level == leaf) {
                const unsigned size = covered(granule, level);
                u64 out = output >> size << size;
                u64 value = make_.stage2_leaf(out, granule, level, config.s2ds, config.s2fwb);
                if (movable) make_contiguous(value, out, address, granule, level, config.s2ds);
                add({at, at, out, value, level, owner::stage2, true});
                fill_run(slots.back(), granule);
                return true;
            }
            const u64 below = address >> covered(granule, level + 1) & mask;
            if (here != nullptr) {
                table = here->next;
                if (find(owner::stage2, table + below * 8) == nullptr &&
                    !memory_.take(table + below * 8, owner::stage2)) {
                    return false;
                }
            } else {
                const auto next = place(granule, below * 8, owner::stage2);
                if (!next) return false;
                add({at, at, *next, make_.table_descriptor(*next, granule, config.s2ds, false),
                     level, owner::stage2, false});
                table = *next;
            }
            index = below;
        }
    }
    [[nodiscard]] u64 stage2_base() const { return config.s2table ^ stage2_base_noise_; }

    /// A random final output address of a stage, mostly one that its size allows.
    [[nodiscard]] u64 output(unsigned bits) { return random_.bits(random_.percent(5) ? 52 : bits); }
    /// Maps an IPA to a random place; gives the level.
    void map_output(u64 address) {
        if (config.s2granule == 0) return;
        const int start = stage2_start(config);
        if (start == 9) return;
        const int leaf = make_.choose_leaf(config.s2granule, start, config.s2ds);
        const u64 out = output(output_bits(config.s2ps, config.s2granule, config.s2ds));
        if (random_.percent(2)) return; // not mapped
        if (map(address, out, leaf, true)) facts.stage2_leaf = leaf;
    }
    u64 stage2_path() {
        const unsigned bits = std::clamp(64 - config.s2tsz, 13U, 52U);
        const u64 address = random_.bits(random_.percent(2) ? 56 : bits);
        map_output(address);
        return address;
    }

    // ---- stage 1 -----------------------------------------------------------------------------
    /// Where in memory the stage-1 descriptor that walks see at `address` has to be. Maps it.
    [[nodiscard]] std::optional<u64> stage1_slot(u64 address) {
        if (!config.stage2) {
            if (!memory_.take(address, owner::stage1)) return std::nullopt;
            return address;
        }
        auto at = mapped(address);
        if (!at) {
            if (config.s2granule == 0 || stage2_start(config) == 9) return std::nullopt;
            int leaf = make_.choose_leaf(config.s2granule, stage2_start(config), config.s2ds);
            u64 frame = 0;
            for (;; leaf = 3) {
                const unsigned size = covered(config.s2granule, leaf);
                const u64 inside = address & ((u64{1} << size) - 1);
                frame = size <= 27 ? tables::first + (random_.bits(27) >> size << size)
                                   : tables::first >> size << size;
                if (tables::contains(frame | inside) || leaf == 3) break;
            }
            if (!map(address, frame, leaf, false)) return std::nullopt;
            at = mapped(address);
        }
        if (!at || !memory_.take(*at, owner::stage1)) return std::nullopt;
        return at;
    }
    /// An address for a table of stage 1; under stage 2 an IPA that can be mapped.
    [[nodiscard]] u64 stage1_table(unsigned size_log2, unsigned granule) {
        if (!config.stage2) {
            return tables::first + (random_.bits(27) >> size_log2 << size_log2);
        }
        const unsigned bits = std::min(std::clamp(64 - config.s2tsz, 13U, 52U),
                                       output_bits(config.ips, granule, config.ds));
        u64 address = random_.bits(bits);
        if (random_.percent(25)) { // reachable through a block of stage 2
            address = (address >> 30 << 30) | ((tables::first + random_.bits(27)) & 0x3fff'ffff);
        }
        return address >> size_log2 << size_log2;
    }
    void choose_stage1_tables() {
        for (half& h : config.halves) {
            const unsigned granule = h.granule == 0 ? 12 : h.granule;
            const unsigned bits = std::clamp(h.input_bits(), granule + 1, 52U);
            const int start = std::max(stage1_start(granule, bits), -1);
            const unsigned size = std::min(3 + bits - covered(granule, start), 16U);
            // A base of 52 bits is aligned to 64 bytes.
            const bool wide = size_bits(config.ips) == 52 || (config.ds && granule != 16);
            h.table = stage1_table(std::max(size, wide ? 6U : 4U), granule);
            if (wide && size < 6) h.table &= (u64{1} << 50) - 1; // see deviations.hpp
            if (random_.percent(2) && !wide && size > 5) {
                h.table |= random_.bits(size) & ~u64{0xf};
                facts.misaligned_table = true;
            }
        }
    }
    /// Builds the tables for an address of either half, and gives the address.
    u64 stage1_path() {
        const bool upper = config.world != regime::el2 && random_.coin();
        const half& h = config.halves[upper ? 1 : 0];
        const unsigned granule = h.granule == 0 ? 12 : h.granule;
        const unsigned bits = std::clamp(h.input_bits(), granule + 1, 52U);
        const u64 input = random_.bits(bits);
        u64 address = upper ? input | ~u64{0} << bits : input;
        if (h.tbi) address = (address & ~(u64{0xff} << 56)) | random_.bits(8) << 56;

        const int start = stage1_start(granule, bits);
        if (start < -1 || (start == -1 && !config.ds)) return address;
        const int leaf = make_.choose_leaf(granule, start, config.ds);
        const unsigned first_bits = bits - covered(granule, start);
        u64 table = h.table & ~((u64{8} << first_bits) - 1);
        u64 index = input >> covered(granule, start);
        const u64 mask = (u64{1} << stride(granule)) - 1;
        for (int level = start;; ++level) {
            const u64 seen = table + index * 8;
            const descriptor_slot* here = find(owner::stage1, seen);
            if (here != nullptr && (here->leaf || level == leaf)) return address;
            std::optional<u64> at;
            if (here == nullptr) {
                at = stage1_slot(seen);
                if (!at) return address;
            }
            if (level == leaf) {
                const unsigned size = covered(granule, level);
                u64 out = stage1_output(granule) >> size << size;
                u64 value = make_.stage1_leaf(out, granule, level, config.ds);
                make_contiguous(value, out, input, granule, level, config.ds);
                add({seen, *at, out, value, level, owner::stage1, true});
                fill_run(slots.back(), granule);
                facts.stage1_leaf = level;
                const u64 ipa = out | (input & ((u64{1} << size) - 1));
                if (config.stage2) map_output(ipa);
                return address;
            }
            if (here != nullptr) {
                table = here->next;
            } else {
                const u64 next = stage1_table(granule, granule);
                add({seen, *at, next, make_.table_descriptor(next, granule, config.ds, true), level,
                     owner::stage1, false});
                table = next;
            }
            index = input >> covered(granule, level + 1) & mask;
        }
    }
    [[nodiscard]] u64 stage1_output(unsigned granule) {
        unsigned bits = output_bits(config.ips, granule, config.ds);
        if (config.stage2 && !random_.percent(4)) {
            bits = std::min(bits, std::clamp(64 - config.s2tsz, 13U, 52U));
        }
        return output(bits);
    }

    // ---- harm --------------------------------------------------------------------------------
    void turn_bits() {
        if (slots.empty() || !random_.percent(12)) return;
        facts.flips = random_.between(1, 3);
        for (unsigned i = 0; i < facts.flips; ++i) {
            descriptor_slot& s = slots[random_.below(static_cast<unsigned>(slots.size()))];
            const unsigned bit = random_.coin()
                                     ? random_.below(64)
                                     : random_.one_of({0U, 1U, 6U, 7U, 8U, 9U, 10U, 12U, 15U, 47U,
                                                       48U, 49U, 50U, 51U, 52U, 61U, 62U});
            s.value ^= u64{1} << bit;
            write(s);
        }
    }
    /// A first table that is not in memory, or beyond the configured size.
    void misplace_a_table() {
        u64& table = config.stage2 && random_.coin() ? config.s2table
                     : config.stage1                 ? config.halves[random_.below(2)].table
                                                     : config.s2table;
        table |= u64{1} << random_.between(32, 47);
        facts.outside_memory = true;
    }

    tables& memory_;
    random_source& random_;
    random_descriptors make_;
    bool stage2_started_ = false;
    u64 stage2_base_noise_ = 0;
};

} // namespace oracle
