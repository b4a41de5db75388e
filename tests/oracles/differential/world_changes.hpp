/// What a driver does between accesses: changes, each with an invalidation that suffices, and
/// invalidations of other things with no change at all.
#pragma once

#include "world_builder.hpp"

#include <cstdint>
#include <vector>

namespace differential {

class world_changes {
public:
    world_changes(random_source& random, both_memories& memory, coverage& seen,
                  world_builder& builder, common_features features)
        : random_(random), memory_(memory), seen_(seen), builder_(builder), features_(features) {}

    /// Changes memory and gives the commands that tell the SMMU.
    std::vector<spec::command> change(world& w) {
        commands_.clear();
        const unsigned times = random_.pick<unsigned>({0, 1, 1, 1, 2, 3});
        for (unsigned i = 0; i < times; ++i) {
            const unsigned dice = static_cast<unsigned>(random_.below(100));
            if (dice < 45) {
                change_stage1_leaf(w);
            } else if (dice < 60) {
                change_stage2_leaf(w);
            } else if (dice < 68) {
                cut_table(w);
            } else if (dice < 80) {
                change_cd(w);
            } else {
                change_ste(w);
            }
        }
        if (random_.percent(60)) invalidate_something_else(w);
        return commands_;
    }

private:
    using C = spec::cd;
    using S = spec::ste;

    void send(const spec::command& c) { commands_.push_back(c); }
    void did(const char* what) { seen_.count("change", what); }
    void told(const char* how) { seen_.count("invalidation", how); }

    vm_accel::vmid vmid_of(const world& w, const address_space& space) const {
        return vm_accel::vmid{w.machines[space.machine].vmid};
    }

    void change_stage1_leaf(world& w) {
        address_space& space = random_.pick(w.spaces);
        if (space.leaves.empty()) return;
        const leaf_run run = random_.pick(space.leaves);
        builder_.fill_stage1(w, space, run);
        did("stage-1 leaf");
        invalidate_leaf(w, space, run);
    }
    /// By ASID, or by VMID where the ASID would leave global leaves.
    void invalidate_space(const world& w, const address_space& space) {
        if (space.globals) {
            told("TLBI_NH_ALL");
            send(spec::tlbi_nh_all(vmid_of(w, space)));
        } else {
            told("TLBI_NH_ASID");
            send(spec::tlbi_nh_asid(vmid_of(w, space), vm_accel::asid{space.asid}));
        }
    }
    void invalidate_leaf(const world& w, const address_space& space, const leaf_run& run) {
        const auto vm = vmid_of(w, space);
        const vm_accel::asid id{space.asid};
        const table_tree& tree = space.tree[run.half];
        const unsigned bits = entry_bits(tree.granule, run.level);
        // A tagged entry of the golden model goes with its whole address space only, and a block
        // that stage 2 cut into pieces goes as a range.
        const unsigned first = space.tags_used ? 4 : space.nested ? 2 : 0;
        switch (run.count > 1 ? random_.between(2, 6) : random_.between(first, 6)) {
        case 0:
            told("TLBI_NH_VA");
            send(spec::tlbi_nh_va(vm, id, vm_accel::iova{somewhere_in(run.address, bits)},
                                  random_.percent(50)));
            break;
        case 1:
            told("TLBI_NH_VAA");
            send(spec::tlbi_nh_vaa(vm, vm_accel::iova{somewhere_in(run.address, bits)},
                                   random_.percent(50)));
            break;
        case 2:
        case 3:
            if (space.tags_used) {
                invalidate_space(w, space);
                break;
            }
            invalidate_range(space, vm, id, run);
            break;
        case 4:
            invalidate_space(w, space);
            break;
        case 5:
            told("TLBI_NH_ALL");
            send(spec::tlbi_nh_all(vm));
            break;
        default:
            told("TLBI_NSNH_ALL");
            send(spec::tlbi_nsnh_all());
            break;
        }
    }
    /// One range command that covers the run.
    void invalidate_range(const address_space& space, vm_accel::vmid vm, vm_accel::asid id,
                          const leaf_run& run) {
        const table_tree& tree = space.tree[run.half];
        const spec::tlbi_range range = range_of(tree, run, !space.nested);
        const vm_accel::iova first{run.address};
        if (random_.percent(50)) {
            told(range.ttl != 0 ? "TLBI_NH_VA range with TTL" : "TLBI_NH_VA range");
            send(spec::tlbi_nh_va(vm, id, first, random_.percent(50), range));
        } else {
            told("TLBI_NH_VAA range");
            send(spec::tlbi_nh_vaa(vm, first, random_.percent(50), range));
        }
    }
    spec::tlbi_range range_of(const table_tree& tree, const leaf_run& run, bool with_level) {
        const unsigned log2 = entry_bits(tree.granule, run.level) - tree.granule;
        spec::tlbi_range range;
        range.tg = (tree.granule - 10) / 2;
        // Any split of the size into (NUM + 1) << SCALE.
        unsigned in_num = random_.between(0, std::min(log2, 5U));
        while (run.count << in_num > 32)
            --in_num;
        range.num = (std::uint64_t{run.count} << in_num) - 1;
        range.scale = log2 - in_num;
        if (with_level && run.count == 1 && random_.percent(50)) range.ttl = run.level;
        if (range.num == 0 && range.scale == 0 && range.ttl == 0) range.num = 1;
        return range;
    }
    std::uint64_t somewhere_in(std::uint64_t address, unsigned bits) {
        return address | (random_.below(std::uint64_t{1} << bits) & ~std::uint64_t{0xfff});
    }

    void change_stage2_leaf(world& w) {
        const unsigned index = static_cast<unsigned>(random_.below(w.machines.size()));
        machine_space& m = w.machines[index];
        if (!m.stage2 || m.leaves.empty()) return;
        const leaf_run run = random_.pick(m.leaves);
        builder_.fill_stage2(m, run);
        m.tree.copy_first_table(memory_);
        did("stage-2 leaf");
        const vm_accel::vmid vm{m.vmid};
        const unsigned bits = entry_bits(m.tree.granule, run.level);
        switch (random_.between(0, 3)) {
        case 0:
            told("TLBI_S2_IPA and TLBI_NH_ALL");
            send(spec::tlbi_s2_ipa(vm, vm_accel::ipa{somewhere_in(run.address, bits)},
                                   random_.percent(50)));
            send(spec::tlbi_nh_all(vm));
            break;
        case 1:
            told("TLBI_S2_IPA range and TLBI_NH_ALL");
            send(spec::tlbi_s2_ipa(vm, vm_accel::ipa{run.address}, random_.percent(50),
                                   range_of(m.tree, run, true)));
            send(spec::tlbi_nh_all(vm));
            break;
        case 2:
            told("TLBI_S12_VMALL");
            send(spec::tlbi_s12_vmall(vm));
            break;
        default:
            told("TLBI_NSNH_ALL");
            send(spec::tlbi_nsnh_all());
            break;
        }
        // The golden model keeps stage 2's answer for a CD's tables with the configuration.
        send(spec::cmd_cfgi_all());
    }

    /// A table descriptor of stage 1 becomes invalid, or valid again.
    void cut_table(world& w) {
        address_space& space = random_.pick(w.spaces);
        if (space.leaves.empty() || space.hierarchical) return;
        const leaf_run run = random_.pick(space.leaves);
        const table_tree& tree = space.tree[run.half];
        if (run.level == tree.start_level) return;
        const unsigned level = random_.between(tree.start_level, run.level - 1);
        const std::uint64_t input = run.address & ((std::uint64_t{1} << tree.input_bits) - 1);
        std::uint64_t table = tree.root;
        std::uint64_t slot = 0;
        for (unsigned at = tree.start_level; at <= level; ++at) {
            slot = table + tree.index_of(input, at) * 8;
            table = (memory_.load64(slot) & tree.address_mask()) - tree.own_delta;
            if (at < level && (table < tables || table >= tables_end)) return;
        }
        memory_.store64(slot, memory_.load64(slot) ^ 1);
        did("stage-1 table");
        const auto vm = vmid_of(w, space);
        switch (random_.between(0, 2)) {
        case 0:
            invalidate_space(w, space);
            break;
        case 1:
            told("TLBI_NH_ALL");
            send(spec::tlbi_nh_all(vm));
            break;
        default:
            told("TLBI_NSNH_ALL");
            send(spec::tlbi_nsnh_all());
            break;
        }
    }

    void change_cd(world& w) {
        const unsigned index = static_cast<unsigned>(random_.below(w.spaces.size()));
        address_space& space = w.spaces[index];
        spec::cd& c = space.descriptor;
        switch (random_.between(0, 4)) {
        case 0:
            set<C::R>(c, 1 - get<C::R>(c));
            break;
        case 1:
            if (!space.hierarchical) set<C::AFFD>(c, 1 - get<C::AFFD>(c));
            break;
        case 2:
            set<C::V>(c, space.hierarchical ? 1 : 1 - get<C::V>(c));
            break;
        case 3:
            if (!space.hierarchical) {
                set<C::EPD0>(c, space.enabled[0] ? 1 - get<C::EPD0>(c) : 1);
            }
            break;
        default:
            set<C::PAN>(c, 1 - get<C::PAN>(c));
            break;
        }
        builder_.write_cd(space);
        did("CD");
        const unsigned how = random_.between(0, 3);
        if (how == 0) {
            told("CFGI_ALL");
            send(spec::cmd_cfgi_all());
        } else {
            told(how == 1 ? "CFGI_CD" : how == 2 ? "CFGI_CD_ALL" : "CFGI_STE");
            for (unsigned device = 0; device < device_count; ++device) {
                const stream& s = w.streams[device];
                if (s.kind == stream_kind::absent || s.space != index) continue;
                const vm_accel::stream_id sid{stream_of(device)};
                send(how == 1
                         ? spec::cmd_cfgi_cd(sid, vm_accel::substream_id{0}, random_.percent(50))
                     : how == 2 ? spec::cmd_cfgi_cd_all(sid)
                                : spec::cmd_cfgi_ste(sid, random_.percent(50)));
            }
        }
        invalidate_space(w, space);
    }

    void change_ste(world& w) {
        const unsigned device = static_cast<unsigned>(random_.below(device_count));
        stream& s = w.streams[device];
        if (s.kind == stream_kind::absent) return;
        builder_.choose_stream(w, s);
        did("STE");
        const vm_accel::stream_id sid{stream_of(device)};
        switch (random_.between(0, 2)) {
        case 0:
            told("CFGI_STE");
            send(spec::cmd_cfgi_ste(sid, random_.percent(50)));
            break;
        case 1: {
            const unsigned range = random_.between(0, 7);
            told("CFGI_STE_RANGE");
            send(spec::cmd_cfgi_ste_range(
                vm_accel::stream_id{stream_of(device) & ~((2U << range) - 1)}, range));
            break;
        }
        default:
            told("CFGI_ALL");
            send(spec::cmd_cfgi_all());
            break;
        }
    }

    /// Nothing has changed, so it does not matter what is forgotten.
    void invalidate_something_else(const world& w) {
        const vm_accel::vmid vm{
            static_cast<std::uint16_t>(random_.percent(50) ? w.machines[0].vmid : random_.bits())};
        const vm_accel::asid id{
            static_cast<std::uint16_t>(random_.percent(50) ? w.spaces[0].asid : random_.bits())};
        const std::uint64_t address =
            random_.percent(50) && !w.spaces[0].points.empty()
                ? w.spaces[0]
                      .points[static_cast<std::size_t>(random_.below(w.spaces[0].points.size()))]
                      .address
                : random_.bits();
        const vm_accel::stream_id sid{static_cast<std::uint32_t>(random_.below(0x100))};
        told("of something else");
        switch (random_.between(0, features_.stage2 ? 9 : 7)) {
        case 0:
            return send(spec::tlbi_nh_asid(vm, id));
        case 1:
            return send(spec::tlbi_nh_va(vm, id, vm_accel::iova{address}, random_.percent(50)));
        case 2:
            return send(spec::tlbi_nh_vaa(vm, vm_accel::iova{address}, random_.percent(50)));
        case 3:
            return send(spec::tlbi_nh_all(vm));
        case 4:
            return send(spec::cmd_cfgi_ste(sid, random_.percent(50)));
        case 5:
            return send(spec::cmd_cfgi_cd(sid, vm_accel::substream_id{0}, true));
        case 6:
            return send(spec::cmd_prefetch_config(sid));
        case 7:
            return send(spec::tlbi_nh_va(
                vm, id, vm_accel::iova{address & ~std::uint64_t{0xffff}}, true,
                {.num = random_.below(32), .scale = 1 + random_.below(8), .tg = 1}));
        case 8:
            return send(spec::tlbi_s2_ipa(vm, vm_accel::ipa{address}, random_.percent(50)));
        default:
            return send(spec::tlbi_s12_vmall(vm));
        }
    }

    random_source& random_;
    both_memories& memory_;
    coverage& seen_;
    world_builder& builder_;
    common_features features_;
    std::vector<spec::command> commands_;
};

} // namespace differential
