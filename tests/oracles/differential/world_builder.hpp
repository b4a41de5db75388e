/// Makes a random world, in the memory of both machines.
#pragma once

#include "coverage.hpp"
#include "world.hpp"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <utility>

namespace differential {

class world_builder {
public:
    world_builder(random_source& random, both_memories& memory, table_memory& pool, coverage& seen,
                  common_features features)
        : random_(random), memory_(memory), pool_(pool), seen_(seen), features_(features) {}

    world build(bool two_level) {
        world w;
        w.record_bad_stream_id = random_.percent(70);
        const unsigned machines =
            features_.stage2 ? random_.between(1, 2) : 1; // VMIDs tell them apart
        for (unsigned i = 0; i < machines; ++i)
            add_machine(w);
        const unsigned spaces = random_.between(1, 3);
        for (unsigned i = 0; i < spaces; ++i)
            add_space(w);
        for (machine_space& m : w.machines) {
            break_some_table_page(w, m);
            m.tree.copy_first_table(memory_);
        }
        make_stream_table(w, two_level);
        for (unsigned device = 0; device < device_count; ++device)
            make_stream(w, device);
        return w;
    }

    // What changes a world uses these too.

    /// A random value for the leaves of a run of a space; notes the points it makes.
    void fill_stage1(world& w, address_space& space, const leaf_run& run) {
        if (run.count > 1 && !run.contiguous) {
            const unsigned bits = entry_bits(space.tree[run.half].granule, run.level);
            for (unsigned i = 0; i < run.count; ++i) {
                fill_stage1(w, space,
                            {.half = run.half,
                             .address = run.address + (std::uint64_t{i} << bits),
                             .level = run.level,
                             .slot = run.slot + 8 * i});
            }
            return;
        }
        const table_tree& tree = space.tree[run.half];
        const unsigned bits = entry_bits(tree.granule, run.level);
        const std::uint64_t bytes = std::uint64_t{1} << bits;
        const unsigned output = stage1_output_bits(space.descriptor, features_.output_bits);
        const unsigned kind = space.hierarchical ? 0 : static_cast<unsigned>(random_.below(100));
        std::uint64_t target = space.nested ? nested_target(w, space)
                                            : physical_target(space.hierarchical ? 100U : 93U);
        std::uint64_t attributes = stage1_attributes(space);
        const char* what = "mapped";
        std::uint64_t type = run.level == 3 ? 3 : 1;
        if (kind < 74) {
            // as it is
        } else if (kind < 79) {
            type = random_.pick<std::uint64_t>({0, 2});
            what = "invalid";
        } else if (kind < 82 && run.level == 3) {
            type = 1;
            what = "reserved";
        } else if (kind < 86) {
            attributes &= ~(std::uint64_t{1} << 10);
            what = "access flag clear";
        } else if (kind < 92) {
            attributes |= std::uint64_t{1} << 7;
            what = "read-only";
        } else if (kind < 95) {
            attributes &= ~(std::uint64_t{1} << 6);
            what = "privileged only";
        } else if (output < 48) {
            target |= std::uint64_t{1} << random_.between(output, 47);
            what = "output too large";
        }
        seen_.count("stage-1 leaf", what);
        if (run.count > 1) attributes |= std::uint64_t{1} << 52;
        const std::uint64_t first = target & ~(bytes * run.count - 1);
        for (unsigned i = 0; i < run.count; ++i) {
            memory_.store64(run.slot + 8 * i, (first + i * bytes) | attributes | type);
        }
        note_point(space.points, run,
                   {run.address + (target & (bytes * run.count - 1) & ~std::uint64_t{0xfff}), bytes,
                    run.slot});
        if (run.count == 1 && random_.percent(5) && !space.hierarchical) {
            flip_bit(run);
            seen_.count("stage-1 leaf", "a bit flipped");
        }
    }
    void fill_stage2(machine_space& m, const leaf_run& run) {
        const unsigned bits = entry_bits(m.tree.granule, run.level);
        const std::uint64_t bytes = std::uint64_t{1} << bits;
        const unsigned kind = static_cast<unsigned>(random_.below(100));
        std::uint64_t target = physical_target(94);
        std::uint64_t attributes = stage2_attributes(3);
        const char* what = "mapped";
        std::uint64_t type = run.level == 3 ? 3 : 1;
        if (kind < 80) {
            // as it is
        } else if (kind < 84) {
            type = random_.pick<std::uint64_t>({0, 2});
            what = "invalid";
        } else if (kind < 86 && run.level == 3) {
            type = 1;
            what = "reserved";
        } else if (kind < 89) {
            attributes &= ~(std::uint64_t{1} << 10);
            what = "access flag clear";
        } else if (kind < 94) {
            attributes = stage2_attributes(1);
            what = "read-only";
        } else if (kind < 97) {
            attributes = stage2_attributes(0);
            what = "no access";
        } else if (m.output_bits(features_.output_bits) < 48) {
            target |= std::uint64_t{1} << random_.between(m.output_bits(features_.output_bits), 47);
            what = "output too large";
        }
        seen_.count("stage-2 leaf", what);
        if (run.count > 1) attributes |= std::uint64_t{1} << 52;
        const std::uint64_t first = target & ~(bytes * run.count - 1);
        for (unsigned i = 0; i < run.count; ++i) {
            memory_.store64(run.slot + 8 * i, (first + i * bytes) | attributes | type);
        }
        note_point(m.points, run,
                   {run.address + (target & (bytes * run.count - 1) & ~std::uint64_t{0xfff}), bytes,
                    run.slot});
    }

    void write_cd(const address_space& space) { memory_.store(space.place, space.descriptor); }

    /// Decides what the stream does and writes its STE.
    void choose_stream(world& w, stream& s) {
        const unsigned dice = static_cast<unsigned>(random_.below(100));
        s.entry = {};
        s.space = static_cast<unsigned>(random_.below(w.spaces.size()));
        s.machine = static_cast<unsigned>(random_.below(w.machines.size()));
        const bool any_stage2 = std::any_of(w.machines.begin(), w.machines.end(),
                                            [](const machine_space& m) { return m.stage2; });
        if (dice < 5) {
            s.kind = stream_kind::abort;
        } else if (dice < 10) {
            s.kind = stream_kind::bypass;
        } else if (dice < 13) {
            s.kind = stream_kind::broken;
        } else if (dice < 34 && any_stage2) {
            s.kind = stream_kind::stage2;
            while (!w.machines[s.machine].stage2) {
                s.machine = (s.machine + 1) % static_cast<unsigned>(w.machines.size());
            }
        } else {
            s.kind = w.spaces[s.space].nested ? stream_kind::nested : stream_kind::stage1;
        }
        compose_ste(w, s);
        if (s.kind == stream_kind::broken) break_ste(w, s);
        memory_.store(s.place, s.entry);
        seen_.count("stream", stream_kind_names[static_cast<std::size_t>(s.kind)]);
    }

private:
    using S = spec::ste;
    using C = spec::cd;

    // --- stage 2 -------------------------------------------------------------

    void add_machine(world& w) {
        machine_space m;
        m.vmid = static_cast<std::uint16_t>(
            features_.stage2 ? random_.pick<std::uint64_t>({0, 1, 0x100, random_.bits()}) : 0);
        for (const machine_space& other : w.machines) {
            if (other.vmid == m.vmid && features_.stage2) ++m.vmid;
        }
        m.stage2 = features_.stage2 && random_.percent(75);
        if (m.stage2) {
            m.ps = random_.percent(60) ? 4 : random_.between(0, 6);
            const unsigned output = m.output_bits(features_.output_bits);
            m.tree.granule = pick_granule();
            m.tree.input_bits =
                random_.between(std::min(output, 25U + random_.between(0, 8)), output);
            choose_stage2_start(m.tree);
            const std::uint64_t bytes = m.tree.root_bytes();
            m.tree.root = pool_.take(bytes, bytes);
            m.ignore_access_flag = random_.percent(15);
            m.record = random_.percent(85);
            // IPAs of stage-1 tables: 16 MiB somewhere, the same distance from their memory.
            const std::uint64_t windows = (std::uint64_t{1} << m.tree.input_bits) >> 24;
            m.table_window = random_.percent(50) ? 0 : random_.below(windows) << 24;
            seen_.count("stage-2 granule", granule_name(m.tree.granule));
            seen_.count("stage-2 input bits", std::to_string(m.tree.input_bits));
            seen_.count("stage-2 start level", std::to_string(m.tree.start_level));
            const unsigned leaves = random_.between(4, 9);
            for (unsigned i = 0; i < leaves; ++i)
                add_stage2_leaf(m);
        }
        w.machines.push_back(std::move(m));
    }
    /// Any level from which at most 16 tables side by side reach the input size.
    void choose_stage2_start(table_tree& tree) {
        const unsigned granule = tree.granule;
        std::vector<unsigned> fit;
        const unsigned lowest = granule == 12 ? 0 : 1;
        const unsigned highest = granule == 12 ? 2 : 3;
        for (unsigned level = lowest; level <= highest; ++level) {
            const unsigned covered = entry_bits(granule, level) + granule - 3;
            if (tree.input_bits > entry_bits(granule, level) && tree.input_bits <= covered + 4) {
                fit.push_back(level);
            }
        }
        tree.start_level = random_.pick(fit);
    }
    void add_stage2_leaf(machine_space& m) {
        table_tree& tree = m.tree;
        leaf_run run;
        run.level = pick_leaf_level(tree);
        const std::uint64_t bytes = std::uint64_t{1} << entry_bits(tree.granule, run.level);
        run.count = 1;
        const std::uint64_t limit = std::uint64_t{1} << tree.input_bits;
        std::uint64_t address = random_.below(limit);
        if (!m.leaves.empty() && random_.percent(60)) {
            // Near another: the same tables.
            address = random_.pick(m.leaves).address + (random_.below(64) << tree.granule);
        }
        run.address = address & ~(bytes - 1);
        if (run.address >= limit || bytes > limit - run.address) return;
        // First tables side by side are one, so addresses that differ above it are the same.
        const unsigned seen_bits = entry_bits(tree.granule, tree.start_level) + tree.granule - 3;
        const std::uint64_t seen = (std::uint64_t{1} << std::min(tree.input_bits, seen_bits)) - 1;
        const std::uint64_t window = m.table_window & seen;
        if ((run.address & seen) < window + (16U << 20) && window < (run.address & seen) + bytes) {
            return;
        }
        run.slot =
            tree.slot(memory_, pool_, run.address, run.level, [](std::uint64_t, std::uint64_t) {});
        if (run.slot == 0 || memory_.load64(run.slot) != 0) return;
        if (random_.percent(4)) {
            // A table where nothing is.
            if (run.level < 3) {
                memory_.store64(run.slot, hole | 3);
                m.points.push_back({run.address, 4096, run.slot});
                seen_.count("stage-2 leaf", "table outside memory");
                return;
            }
        }
        fill_stage2(m, run);
        m.leaves.push_back(run);
        seen_.count("stage-2 leaf level", std::to_string(run.level));
    }
    /// An IPA of the tables that stage 2 maps where no memory is.
    static std::uint64_t nowhere(const machine_space& m) {
        return m.table_window + (16U << 20) - 0x1'0000;
    }
    /// Stage 2 of the memory that a nested space's tables are in.
    void map_table_memory(machine_space& m, std::uint64_t physical, std::uint64_t bytes) {
        const std::uint64_t page = std::uint64_t{1} << m.tree.granule;
        for (std::uint64_t at = physical & ~(page - 1); at < physical + bytes; at += page) {
            const std::uint64_t slot = m.tree.slot(memory_, pool_, at - tables + m.table_window, 3,
                                                   [](std::uint64_t, std::uint64_t) {});
            if (slot == 0 || memory_.load64(slot) != 0) continue;
            memory_.store64(slot, at | stage2_attributes(1) | 3);
        }
        m.table_pages.push_back(physical);
    }
    /// A stage-1 table or a CD that stage 2 does not let through.
    void break_some_table_page(world& w, machine_space& m) {
        if (m.table_pages.empty() || !random_.percent(20)) return;
        const std::uint64_t page = std::uint64_t{1} << m.tree.granule;
        std::uint64_t largest = 12;
        for (const address_space& space : w.spaces) {
            if (&w.machines[space.machine] != &m || !space.nested) continue;
            for (const table_tree& tree : space.tree) {
                largest = std::max<std::uint64_t>(largest, tree.granule);
            }
        }
        const std::uint64_t bytes = std::max(page, std::uint64_t{1} << largest);
        const std::uint64_t start = random_.pick(m.table_pages) & ~(bytes - 1);
        // The golden model translates the address of each first table whichever it needs.
        for (const address_space& space : w.spaces) {
            for (const unsigned half : {0U, 1U}) {
                const std::uint64_t root = space.tree[half].root;
                if (space.enabled[half] && root >= start && root < start + bytes) return;
            }
        }
        const unsigned kind = random_.between(0, 3);
        m.record = true;
        for (std::uint64_t at = start; at < start + bytes; at += page) {
            const std::uint64_t slot = m.tree.slot(memory_, pool_, at - tables + m.table_window, 3,
                                                   [](std::uint64_t, std::uint64_t) {});
            if (slot == 0) return;
            const std::uint64_t old = memory_.load64(slot);
            if (old == 0) continue;
            memory_.store64(slot, kind == 0   ? 0
                                  : kind == 1 ? old & ~std::uint64_t{0xc0}
                                  : kind == 2 ? (old & ~std::uint64_t{0xc0}) | 0x80
                                              : old & ~(std::uint64_t{1} << 10));
        }
        seen_.count("stage 2 of stage-1 tables", kind == 0   ? "unmapped"
                                                 : kind == 1 ? "no access"
                                                 : kind == 2 ? "write-only"
                                                             : "access flag clear");
    }
    std::uint64_t stage2_attributes(std::uint64_t s2ap) {
        return s2ap << 6 | std::uint64_t{1} << 10 | random_.below(4) << 8 |
               std::uint64_t{0xf} << 2 | random_.below(4) << 53 | random_.below(16) << 55;
    }

    // --- stage 1 -------------------------------------------------------------

    void add_space(world& w) {
        address_space space;
        space.machine = static_cast<unsigned>(random_.below(w.machines.size()));
        machine_space& m = w.machines[space.machine];
        space.nested = m.stage2 && random_.percent(60);
        space.asid = static_cast<std::uint16_t>(
            random_.pick<std::uint64_t>({0, 1, 2, 0x1234, random_.bits()}));
        for (bool taken = true; taken;) {
            taken = false;
            for (const address_space& other : w.spaces) {
                if (other.machine == space.machine && other.asid == space.asid) {
                    ++space.asid;
                    taken = true;
                }
            }
        }
        space.hierarchical = !space.nested && random_.percent(6);
        space.globals = random_.percent(30);
        seen_.count("global leaves", space.globals ? "some" : "none");
        const std::uint64_t delta = space.nested ? m.table_window - tables : 0;
        const unsigned which = static_cast<unsigned>(random_.below(10));
        space.enabled = {which < 7 || space.hierarchical, which > 4};
        for (unsigned half = 0; half < 2; ++half) {
            table_tree& tree = space.tree[half];
            tree.granule = pick_granule();
            tree.input_bits = random_.between(25, 48);
            tree.start_level = first_level(tree.granule, tree.input_bits);
            tree.own_delta = delta;
            const std::uint64_t bytes = tree.root_bytes();
            tree.root = pool_.take(bytes, bytes);
            if (space.nested) map_table_memory(m, tree.root, bytes);
            if (!space.enabled[half]) continue;
            seen_.count("stage-1 granule", granule_name(tree.granule));
            seen_.count("stage-1 input bits", std::to_string(tree.input_bits));
        }
        seen_.count("stage-1 halves", space.enabled[0] && space.enabled[1] ? "both"
                                      : space.enabled[0]                   ? "lower"
                                                                           : "upper");
        space.place = pool_.take(64, 64);
        if (space.nested) map_table_memory(m, space.place, 64);
        compose_cd(w, space);
        for (unsigned half = 0; half < 2; ++half) {
            if (!space.enabled[half]) continue;
            const unsigned leaves = random_.between(3, 7);
            for (unsigned i = 0; i < leaves; ++i)
                add_stage1_leaf(w, space, half);
        }
        if (random_.percent(4) && !space.hierarchical) break_cd(space);
        write_cd(space);
        w.spaces.push_back(std::move(space));
    }
    void compose_cd(const world& w, address_space& space) {
        spec::cd& c = space.descriptor;
        const machine_space& m = w.machines[space.machine];
        set<C::T0SZ>(c, 64 - space.tree[0].input_bits);
        set<C::T1SZ>(c, 64 - space.tree[1].input_bits);
        set<C::TG0>(c, tg0_of(space.tree[0].granule));
        set<C::TG1>(c, tg1_of(space.tree[1].granule));
        set<C::EPD0>(c, space.enabled[0] ? 0 : 1);
        set<C::EPD1>(c, space.enabled[1] ? 0 : 1);
        for (const unsigned i : {0U, 1U}) {
            const std::uint64_t root = space.tree[i].own(space.tree[i].root);
            if (i == 0) {
                set<C::TTB0>(c, root >> C::TTB0::low);
            } else {
                set<C::TTB1>(c, root >> C::TTB1::low);
            }
        }
        set<C::IR0>(c, 1);
        set<C::OR0>(c, 1);
        set<C::SH0>(c, 3);
        set<C::V>(c, 1);
        set<C::AA64>(c, 1);
        set<C::A>(c, 1);
        set<C::R>(c, random_.percent(85) ? 1 : 0);
        set<C::ASET>(c, random_.below(2));
        set<C::ASID>(c, space.asid);
        set<C::MAIR>(c, random_.bits());
        set<C::AFFD>(c, random_.percent(15) ? 1 : 0);
        set<C::WXN>(c, random_.percent(15) ? 1 : 0);
        set<C::UWXN>(c, random_.percent(15) ? 1 : 0);
        set<C::PAN>(c, random_.percent(15) ? 1 : 0);
        set<C::HAD0>(c, random_.percent(30) ? 1 : 0);
        set<C::HAD1>(c, random_.percent(30) ? 1 : 0);
        if (random_.percent(20)) {
            set<C::TBI0>(c, 1);
            set<C::TBI1>(c, 1);
            space.tags_used = true;
        }
        // Large enough for the tables' own addresses, or the CD is illegal.
        std::uint64_t ips = random_.percent(75) ? 4 : random_.below(6);
        if (space.nested) {
            const std::uint64_t end = m.table_window + (16U << 20);
            while (ips < 5 && end >> (ips == 0 ? 32 : ips == 1 ? 36 : ips == 2 ? 40 : 42) != 0) {
                ++ips;
            }
        }
        set<C::IPS>(c, ips);
        seen_.count("IPS", std::to_string(ips));
    }
    void break_cd(address_space& space) {
        spec::cd& c = space.descriptor;
        const unsigned kind = random_.between(0, 11);
        static constexpr std::array<const char*, 12> names{
            "V=0",    "AA64=0",  "A=0",     "S=1",          "HA=1",         "HD=1",
            "ENDI=1", "T0SZ<16", "T0SZ>39", "TG0 reserved", "TG1 reserved", "TTB beyond IPS"};
        switch (kind) {
        case 0:
            set<C::V>(c, 0);
            break;
        case 1:
            set<C::AA64>(c, 0);
            break;
        case 2:
            set<C::A>(c, 0);
            break;
        case 3:
            set<C::S>(c, 1);
            break;
        case 4:
            set<C::HA>(c, 1);
            break;
        case 5:
            set<C::HA>(c, 1);
            set<C::HD>(c, 1);
            break;
        case 6:
            set<C::ENDI>(c, 1);
            break;
        case 7:
            set<C::T0SZ>(c, random_.between(0, 15));
            break;
        case 8:
            set<C::T0SZ>(c, random_.between(40, 63));
            break;
        case 9:
            set<C::TG0>(c, 3);
            break;
        case 10:
            set<C::TG1>(c, 0);
            break;
        default:
            set<C::TTB0>(c, get<C::TTB0>(c) | std::uint64_t{1} << (47 - C::TTB0::low));
            break;
        }
        seen_.count("broken CD", names[kind]);
    }
    void add_stage1_leaf(world& w, address_space& space, unsigned half) {
        table_tree& tree = space.tree[half];
        machine_space& m = w.machines[space.machine];
        leaf_run run;
        run.half = half;
        run.level = pick_leaf_level(tree);
        const std::uint64_t bytes = std::uint64_t{1} << entry_bits(tree.granule, run.level);
        const std::uint64_t limit = std::uint64_t{1} << tree.input_bits;
        std::uint64_t address = random_.below(limit);
        if (!space.leaves.empty() && random_.percent(60)) {
            address = random_.pick(space.leaves).address + (random_.below(64) << tree.granule);
            address &= limit - 1;
        }
        if (tree.granule == 12 && run.level > 1 && random_.percent(10)) {
            run.count = 16;
            run.contiguous = true;
        } else if (random_.percent(15)) {
            run.count = random_.between(2, 8);
        }
        run.address = address & ~(bytes * std::bit_ceil(run.count) - 1);
        if (bytes * run.count > limit - run.address) return;
        const auto made = [&](std::uint64_t table, std::uint64_t size) {
            if (space.nested) map_table_memory(m, table, size);
        };
        run.slot = tree.slot(memory_, pool_, run.address, run.level, made);
        if (run.slot == 0) return;
        for (unsigned i = 0; i < run.count; ++i) {
            if (memory_.load64(run.slot + 8 * i) != 0) return;
        }
        if (half == 1) run.address |= ~(limit - 1);
        if (space.hierarchical) add_table_attributes(tree, run);
        if (!space.hierarchical && run.level < 3 && random_.percent(5)) {
            // The golden model asks stage 2 for the first page of a table only.
            if (space.nested && tree.granule != 12) return;
            const std::uint64_t table = space.nested ? unmapped_ipa(m) : hole;
            if (table == 0) return;
            m.record = true;
            memory_.store64(run.slot, table | 3);
            space.points.push_back({run.address, 4096, run.slot});
            seen_.count("stage-1 leaf",
                        space.nested ? "table that stage 2 does not map" : "table outside memory");
            return;
        }
        fill_stage1(w, space, run);
        space.leaves.push_back(run);
        seen_.count("stage-1 leaf level", std::to_string(run.level));
        if (run.count > 1)
            seen_.count(run.contiguous ? "contiguous" : "side by side", std::to_string(run.count));
    }
    /// APTable, XNTable and PXNTable on the way to a leaf.
    void add_table_attributes(table_tree& tree, const leaf_run& run) {
        if (run.level == tree.start_level) return;
        const std::uint64_t slot = tree.slot(memory_, pool_, run.address, run.level - 1,
                                             [](std::uint64_t, std::uint64_t) {});
        if (slot == 0) return;
        memory_.store64(slot, memory_.load64(slot) | random_.below(16) << 59);
        seen_.count("table attributes", "used");
    }
    std::uint64_t stage1_attributes(const address_space& space) {
        std::uint64_t a = std::uint64_t{1} << 10 | std::uint64_t{1} << 6;
        a |= random_.below(8) << 2 | random_.below(4) << 8;
        a |= (space.globals ? random_.below(2) : 1) << 11;
        a |= random_.below(4) << 53 | random_.below(16) << 55;
        if (!space.hierarchical && random_.percent(20))
            a |= random_.below(16) << 59 | random_.below(2) << 51;
        return a;
    }
    /// Flips a bit that neither moves the output to other memory that exists nor makes a table of
    /// a block.
    void flip_bit(const leaf_run& run) {
        const unsigned bit = random_.pick<unsigned>({0,  1,  2,  3,  4,  6,  7,  8,  9,  10, 26,
                                                     27, 28, 29, 31, 33, 36, 40, 41, 42, 43, 51,
                                                     53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63});
        const std::uint64_t flipped = memory_.load64(run.slot) ^ std::uint64_t{1} << bit;
        if (run.level == 3 || (flipped & 3) != 3) memory_.store64(run.slot, flipped);
    }

    // --- streams ---------------------------------------------------------------

    void make_stream_table(world& w, bool two_level) {
        stream_table_shape& t = w.table;
        t.two_level = two_level;
        t.log2size = random_.percent(90) ? 7 : random_.percent(50) ? 16 : random_.between(4, 6);
        if (random_.percent(1)) t.base = hole;
        if (!two_level) {
            if (t.log2size > 8) t.log2size = 8;
        } else {
            t.split = random_.pick<unsigned>({6, 8, 10});
            if (t.log2size < t.split) t.log2size = t.split;
        }
        seen_.count("stream table", two_level ? "two levels, split " + std::to_string(t.split)
                                              : std::string{"linear"});
        for (unsigned device = 0; device < device_count; ++device) {
            const std::uint32_t sid = stream_of(device);
            stream& s = w.streams[device];
            w.usable[device] = true;
            const bool covered = sid >> t.log2size == 0 && t.base != hole;
            if (!two_level) {
                s.place = stream_table + sid * 64;
                if (!covered) s.kind = stream_kind::absent;
                continue;
            }
            const unsigned index = sid >> t.split;
            const unsigned entry = sid & ((1U << t.split) - 1);
            stream_table_shape::level1& level1 = t.descriptor[index];
            if (!level1.decided) choose_level2(t, index);
            s.place = level2_tables + index * 0x1'0000 + entry * 64;
            const unsigned span = level1.span;
            if (!covered || span == 0 || level1.outside || entry >> (span - 1) != 0) {
                s.kind = stream_kind::absent;
            }
            // The golden model takes level-2 tables for twice as large as they are: an index in
            // the upper half of that is not asked for.
            if (span != 0 && entry >> (span - 1) == 1) w.usable[device] = false;
        }
    }
    void choose_level2(stream_table_shape& t, unsigned index) {
        const std::uint64_t table = level2_tables + index * 0x1'0000;
        stream_table_shape::level1& level1 = t.descriptor[index];
        level1.decided = true;
        level1.span = t.split + 1;
        if (random_.percent(4)) level1.span = random_.between(4, t.split);
        if (random_.percent(2)) level1.span = 0;
        level1.outside = random_.percent(2) && level1.span != 0;
        memory_.store64(stream_table + index * 8, level1.span | (level1.outside ? hole : table));
        seen_.count("level-1 descriptor", level1.span == 0             ? "no table"
                                          : level1.outside             ? "outside memory"
                                          : level1.span == t.split + 1 ? "full"
                                                                       : "short");
    }
    void make_stream(world& w, unsigned device) {
        stream& s = w.streams[device];
        if (s.kind == stream_kind::absent) {
            seen_.count("stream", "no STE");
            return;
        }
        choose_stream(w, s);
    }
    void compose_ste(const world& w, stream& s) {
        spec::ste& e = s.entry;
        set<S::V>(e, 1);
        const bool uses_space = s.kind == stream_kind::stage1 || s.kind == stream_kind::nested ||
                                s.kind == stream_kind::broken;
        const bool nested = s.kind == stream_kind::nested ||
                            (s.kind == stream_kind::broken && w.spaces[s.space].nested);
        const machine_space& m = w.machine_of(s);
        if (uses_space) {
            const address_space& space = w.spaces[s.space];
            std::uint64_t cd = space.place;
            if (space.nested) cd = cd - tables + m.table_window;
            set<S::S1ContextPtr>(e, cd >> S::S1ContextPtr::low);
            if (random_.percent(2)) {
                // Where no memory is, or where stage 2 leads nowhere.
                std::uint64_t place = hole;
                if (space.nested) {
                    const bool beyond =
                        m.tree.input_bits < features_.output_bits && random_.percent(50);
                    place = beyond ? std::uint64_t{1} << m.tree.input_bits : nowhere(m);
                }
                set<S::S1ContextPtr>(e, place >> S::S1ContextPtr::low);
                seen_.count("CD", "elsewhere");
            }
            set<S::S1DSS>(e, 2);
            set<S::S1CIR>(e, 1);
            set<S::S1COR>(e, 1);
            set<S::S1CSH>(e, 3);
        }
        if (features_.stage2) set<S::S2VMID>(e, m.vmid);
        if (nested || s.kind == stream_kind::stage2) compose_stage2(m, e);
        const auto config = [&](spec::ste_config c) {
            set<S::Config>(e, static_cast<std::uint64_t>(c));
        };
        switch (s.kind) {
        case stream_kind::abort:
            set<S::Config>(e, random_.below(4));
            break;
        case stream_kind::bypass:
            config(spec::ste_config::bypass);
            break;
        case stream_kind::stage2:
            config(spec::ste_config::s2_translate);
            break;
        default:
            config(nested ? spec::ste_config::s1_s2_translate : spec::ste_config::s1_translate);
            break;
        }
        set<S::SHCFG>(e, random_.below(2));
    }
    void compose_stage2(const machine_space& m, spec::ste& e) {
        const table_tree& tree = m.tree;
        set<S::S2T0SZ>(e, 64 - tree.input_bits);
        set<S::S2SL0>(e, tree.granule == 12 ? 2 - tree.start_level : 3 - tree.start_level);
        set<S::S2TG>(e, tg0_of(tree.granule));
        set<S::S2PS>(e, m.ps);
        set<S::S2AA64>(e, 1);
        set<S::S2IR0>(e, 1);
        set<S::S2OR0>(e, 1);
        set<S::S2SH0>(e, 3);
        set<S::S2AFFD>(e, m.ignore_access_flag ? 1 : 0);
        set<S::S2R>(e, m.record ? 1 : 0);
        set<S::S2TTB>(e, tree.root >> S::S2TTB::low);
    }
    void break_ste(const world& w, stream& s) {
        spec::ste& e = s.entry;
        const bool nested = w.spaces[s.space].nested;
        const unsigned kind = nested ? random_.between(0, 8) : random_.between(0, 2);
        static constexpr std::array<const char*, 9> names{"V=0",
                                                          "V=0, any Config",
                                                          "stage 2 not offered or V=0",
                                                          "S2TG reserved",
                                                          "S2SL0 = 3",
                                                          "S2T0SZ > 39",
                                                          "S2ENDI",
                                                          "S2S",
                                                          "S2TTB beyond S2PS"};
        switch (kind) {
        case 1:
            // Reading the STE as abort would be wrong.
            set<S::V>(e, 0);
            set<S::Config>(e, random_.below(8));
            break;
        case 2:
            if (!features_.stage2) {
                set<S::Config>(e, 6 + random_.below(2));
                set<S::S2AA64>(e, 1);
            } else {
                set<S::V>(e, 0);
            }
            break;
        case 3:
            set<S::S2TG>(e, 3);
            break;
        case 4:
            set<S::S2SL0>(e, 3);
            break;
        case 5:
            set<S::S2T0SZ>(e, random_.between(40, 63));
            break;
        case 6:
            set<S::S2ENDI>(e, 1);
            break;
        case 7:
            set<S::S2S>(e, 1);
            break;
        case 8:
            set<S::S2TTB>(e, get<S::S2TTB>(e) | std::uint64_t{1} << (47 - S::S2TTB::low));
            break;
        default:
            set<S::V>(e, 0);
            break;
        }
        seen_.count("broken STE", names[kind]);
    }

    /// A run has one point: what a larger leaf once led to may be anything now.
    static void note_point(std::vector<point>& points, const leaf_run& run, const point& p) {
        std::erase_if(points, [&](const point& other) { return other.slot == run.slot; });
        points.push_back(p);
    }

    // --- shared ------------------------------------------------------------------

    static std::string granule_name(unsigned granule) {
        return granule == 12 ? "4K" : granule == 14 ? "16K" : "64K";
    }
    static std::uint64_t tg0_of(unsigned granule) {
        return granule == 12 ? 0 : granule == 14 ? 2 : 1;
    }
    static std::uint64_t tg1_of(unsigned granule) {
        return granule == 12 ? 2 : granule == 14 ? 1 : 3;
    }
    unsigned pick_granule() {
        const unsigned dice = static_cast<unsigned>(random_.below(10));
        if (dice > 7 && features_.granule_16k) return 14;
        if (dice > 5 && features_.granule_64k) return 16;
        return 12;
    }
    unsigned pick_leaf_level(const table_tree& tree) {
        const unsigned first = std::max(first_leaf_level(tree.granule), tree.start_level);
        return random_.percent(55) ? 3 : random_.between(first, 3);
    }
    /// Physical memory, mostly data.
    std::uint64_t physical_target(unsigned data_percent) {
        if (random_.percent(data_percent))
            return data + (random_.below((data_bytes >> 12) - 1) << 12);
        return random_.percent(60) ? hole + (random_.below(64) << 12) : far_hole;
    }
    /// An IPA that stage 2 will never map: anything might be at a random place in a block. 0 =
    /// found none.
    std::uint64_t unmapped_ipa(const machine_space& m) {
        for (int tries = 0; tries < 8; ++tries) {
            const std::uint64_t ipa =
                random_.below(std::uint64_t{1} << std::min(m.tree.input_bits, 32U)) &
                ~std::uint64_t{0xfff};
            const auto leaf = find_leaf(memory_, m.tree, ipa);
            if (leaf && *leaf == 0) return ipa;
        }
        return 0;
    }
    std::uint64_t nested_target(const world& w, const address_space& space) {
        const machine_space& m = w.machines[space.machine];
        if (!m.points.empty() && random_.percent(94)) {
            return m.points[static_cast<std::size_t>(random_.below(m.points.size()))].address &
                   ~std::uint64_t{0xfff};
        }
        if (random_.percent(50)) return std::uint64_t{1} << m.tree.input_bits;
        const std::uint64_t ipa = unmapped_ipa(m);
        return ipa != 0 ? ipa : std::uint64_t{1} << m.tree.input_bits;
    }

    random_source& random_;
    both_memories& memory_;
    table_memory& pool_;
    coverage& seen_;
    common_features features_;
};

} // namespace differential
