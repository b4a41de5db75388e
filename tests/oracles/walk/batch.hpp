/// A batch of trees with the library's answers, and the means to ask the library again.
#pragma once

#include "deviations.hpp"
#include "library_walk.hpp"
#include "tree.hpp"

#include <algorithm>
#include <vector>

namespace oracle {

inline constexpr unsigned most_walks = 3; ///< of one tree

struct tree_record {
    configuration config;
    tree_facts facts;
    // Of the last leaf of either stage; 9 = none.
    u64 ap = 0, type1 = 0, s2ap = 0, type2 = 0;
    std::uint32_t first_walk = 0, walks = 0;
};

struct walk_record {
    question asks;
    answer ours;
    claimed_range claimed{};
    std::uint32_t first_write = 0, writes = 0;
};

struct batch {
    explicit batch(std::byte* machine) : tables(machine), library(tables) {}

    oracle::tables tables;
    library_walker library;
    std::vector<tree_record> trees;
    std::vector<oracle_walk> walks;
    std::vector<walk_record> records; ///< of `walks`
    std::vector<walk_trace::write> writes;
    walk_trace trace; ///< of what was asked last

    /// Makes random trees for so many walks.
    void make(u64 seed, u64 number, unsigned cases) {
        trees.clear();
        walks.clear();
        records.clear();
        for (unsigned tree = 0; walks.size() < cases; ++tree) {
            random_source random(seed * 0x1'0000'0001 ^ number << 40 ^ u64{tree} << 12);
            (void)random.word();
            tables.begin_tree(tree);
            tree_builder builder(tables, random);
            const auto left = static_cast<unsigned>(cases - walks.size());
            builder.build(std::min(left, most_walks));
            tree_record r;
            r.config = builder.config;
            r.facts = builder.facts;
            r.ap = r.type1 = r.s2ap = r.type2 = 9;
            for (const descriptor_slot& s : builder.slots) {
                if (!s.leaf) continue;
                if (s.stage == owner::stage1) {
                    r.ap = s.value >> 6 & 3;
                    r.type1 = type_class(
                        static_cast<unsigned>(r.config.mair >> 8 * (s.value >> 2 & 7) & 0xff));
                } else {
                    r.s2ap = s.value >> 6 & 3;
                    const unsigned attributes = s.value >> 2 & 0xf;
                    r.type2 = type_class(r.config.s2fwb ? forced_type(attributes)
                                                        : stage2_type(attributes));
                }
            }
            r.first_walk = static_cast<std::uint32_t>(walks.size());
            r.walks = static_cast<std::uint32_t>(builder.walks.size());
            for (const asked& a : builder.walks) {
                walks.push_back({a.address, 0, a.at, 0});
                question asks = question_of(a.at);
                // NS-EL2 has one privilege level, whatever an access says.
                if (r.config.world == regime::el2) asks.privileged = (a.address >> 4 & 1) != 0;
                records.push_back({asks, {}, {}, 0, 0});
            }
            trees.push_back(r);
        }
    }
    /// Lets the library do all the walks, in order.
    void walk_with_library() {
        writes.clear();
        for (tree_record& t : trees) {
            bool drop = false;
            for (std::uint32_t i = t.first_walk; i < t.first_walk + t.walks; ++i) {
                walk_record& r = records[i];
                r.first_write = static_cast<std::uint32_t>(writes.size());
                r.ours = ask(t.config, r.asks, walks[i].address, trace);
                writes.insert(writes.end(), trace.writes.begin(), trace.writes.end());
                r.writes = static_cast<std::uint32_t>(trace.writes.size());
                if (r.ours.kind == answer_kind::translated) r.claimed = trace.claimed;
                drop =
                    drop || r.ours.kind == answer_kind::elsewhere || reads_foreign(tree_number(t));
            }
            // Reading the emulated machine's devices, or its program, could do anything; and the
            // modelled deviations do not follow from one tree to another.
            if (!drop) continue;
            for (std::uint32_t i = t.first_walk; i < t.first_walk + t.walks; ++i) {
                undo(records[i]);
                records[i].writes = 0;
                records[i].ours.kind = answer_kind::elsewhere;
            }
        }
    }
    answer ask(const configuration& config, const question& asks, u64 address, walk_trace& into,
               const hidden_bits& hidden = {}) {
        into.reads.clear();
        into.writes.clear();
        answer a;
        a.kind = library.prepare(config, asks.pan);
        if (a.kind != answer_kind::translated) return a;
        return library.walk(address, asks, into, hidden);
    }
    /// Asks one walk again, into `trace`.
    answer ask_again(const tree_record& t, std::uint32_t i, const hidden_bits& hidden = {}) {
        return ask(t.config, records[i].asks, walks[i].address, trace, hidden);
    }
    /// Takes back what a walk wrote.
    void undo(const walk_trace& done) {
        for (std::size_t i = done.writes.size(); i > 0; --i)
            tables.ours(done.writes[i - 1].at) = done.writes[i - 1].before;
    }
    void undo(const walk_record& r) {
        for (std::uint32_t i = r.writes; i > 0; --i) {
            const walk_trace::write& w = writes[r.first_write + i - 1];
            tables.ours(w.at) = w.before;
        }
    }
    /// Whether the last walk read a descriptor of another tree.
    [[nodiscard]] bool reads_foreign(std::uint32_t tree) const noexcept {
        for (const auto& [at, value] : trace.reads) {
            if (tables.owner_of(at) != owner::nobody && !tables.belongs_to(at, tree)) return true;
        }
        return false;
    }
    [[nodiscard]] std::uint32_t tree_number(const tree_record& t) const noexcept {
        return static_cast<std::uint32_t>(&t - trees.data());
    }
    [[nodiscard]] const half& half_of(const configuration& c, std::uint32_t i) const noexcept {
        return c.halves[c.world != regime::el2 && (walks[i].address >> 55 & 1) != 0 ? 1 : 0];
    }
    static u64 type_class(unsigned type) noexcept {
        return (type & 0xf0) == 0 ? 0 : type == 0x44 ? 1 : 2;
    }
};

} // namespace oracle
