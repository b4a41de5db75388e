/// Whether a known deviation of the emulator is all the difference between two answers.
#pragma once

#include "batch.hpp"
#include "comparison.hpp"

#include <algorithm>
#include <optional>
#include <vector>

namespace oracle {

using deviation_counts = std::array<u64, static_cast<std::size_t>(deviation::count)>;

/// Leaves the library's copy of the tables as the emulator leaves its own, where it finds that the
/// deviation is all; otherwise as the library left it.
class known_deviations {
public:
    explicit known_deviations(batch& all) : batch_(all) {}

    deviation_counts counts{};

    /// Walks again as the emulator does, which takes no notice of some bits of descriptors. Nullopt
    /// = that makes no difference to this walk; otherwise whether it is all the difference.
    std::optional<bool> without_high_bits(const tree_record& t, std::uint32_t i,
                                          const answer& machine) {
        const configuration& c = t.config;
        const walk_record& r = batch_.records[i];
        if (r.ours.kind != answer_kind::address_size) return std::nullopt;
        const auto ask_without = [&](const hidden_bits& hidden) {
            return batch_.ask_again(t, i, hidden);
        };
        batch_.undo(r);
        hidden_bits hidden;
        answer again = ask_without(hidden);
        while (again.kind == answer_kind::address_size && !batch_.trace.reads.empty()) {
            u64 bits = again.stage2 ? ignored_bits(c.s2ps, c.s2granule, c.s2ds)
                                    : ignored_bits(c.ips, batch_.half_of(c, i).granule, c.ds);
            if (again.stage2 ? c.s2big_endian : c.big_endian) bits = __builtin_bswap64(bits);
            const std::size_t last = batch_.trace.reads.size() - 1;
            if ((batch_.trace.reads[last].second & bits) == 0) break;
            if (!hidden.empty() && hidden.back().first == last) break;
            hidden.emplace_back(last, bits);
            batch_.undo(batch_.trace);
            again = ask_without(hidden);
        }
        if (hidden.empty()) return std::nullopt;
        // Without the bits a walk can lead to where nobody knows what is.
        const bool strays = batch_.reads_foreign(batch_.tree_number(t));
        if (strays) {
            for (const walk_trace::write& w : batch_.trace.writes)
                strayed_to_.push_back(w.at);
        }
        if (again.kind == answer_kind::elsewhere || strays || same(machine, again) ||
            explained(t, i, machine, again, true)) {
            return known(deviation::high_output_bits);
        }
        batch_.undo(batch_.trace);
        (void)ask_without({});
        return false;
    }
    /// Whether all the difference is that such a walk had updated flags in this tree before, which
    /// the library did not know of when it walked: with them its answer must be the machine's.
    bool found_updated(const tree_record& t, std::uint32_t i, const answer& machine) {
        if (strayed_to_.empty()) return false;
        batch_.undo(batch_.records[i]);
        const answer again = batch_.ask_again(t, i);
        const auto updated = [this](const auto& read) {
            return std::find(strayed_to_.begin(), strayed_to_.end(), read.first) !=
                   strayed_to_.end();
        };
        const auto& reads = batch_.trace.reads;
        return std::any_of(reads.begin(), reads.end(), updated) && same(machine, again) &&
               known(deviation::high_output_bits);
    }
    /// A new batch has other tables.
    void forget() noexcept {
        counts = {};
        strayed_to_.clear();
    }

    /// Whether a deviation that does not change the walk is all the difference. `walked` says that
    /// the trace is this walk's.
    bool explained(const tree_record& t, std::uint32_t i, const answer& machine, const answer& ours,
                   bool walked) {
        const configuration& c = t.config;
        const auto walk_again = [&] {
            if (walked) return;
            batch_.undo(batch_.records[i]);
            (void)batch_.ask_again(t, i);
        };
        if (only_level_of_protected_table(c, machine, ours)) {
            walk_again();
            if (c.s2ha && !batch_.trace.reads.empty()) {
                constexpr u64 accessed = u64{1} << 10;
                batch_.tables.ours(batch_.trace.reads.back().first) |=
                    c.s2big_endian ? __builtin_bswap64(accessed) : accessed;
            }
            return known(deviation::protected_table);
        }
        answer other = machine;
        other.shareability = 0;
        if (!c.stage2 && machine.shareability == 1 && same(other, ours)) {
            return known(deviation::shareability);
        }
        if (machine.kind == answer_kind::address_size && low_address_bits(t, i, machine, walked)) {
            return known(deviation::block_bits);
        }
        other = machine;
        other.type = ours.type;
        other.shareability = ours.shareability;
        if (c.s2fwb && same(other, ours)) {
            walk_again();
            const auto [stage1, attributes] = leaf_types(c);
            if (machine.shareability == ours.shareability &&
                forced_device_applies(stage1, attributes, ours.type, machine.type)) {
                return known(deviation::forced_device);
            }
            if (machine.type == ours.type &&
                forced_shared_applies(stage1, attributes, ours.shareability)) {
                return known(deviation::forced_shared);
            }
            if (is_reserved_forced(attributes) && machine.type == 0 && machine.shareability == 2) {
                return known(deviation::reserved_type);
            }
            return false;
        }
        other.shareability = machine.shareability;
        if (c.stage2 && same(other, ours)) {
            walk_again();
            const auto [stage1, attributes] = leaf_types(c);
            const unsigned stage2 = stage2_type(attributes);
            if (device_normal_applies(stage1, stage2, ours.type, machine.type)) {
                return known(deviation::device_normal);
            }
            if (transient_applies(stage2, ours.type, machine.type)) {
                return known(deviation::transient);
            }
        }
        return false;
    }

private:
    /// Whether the walk met a block whose address bits below the block's size are beyond the output
    /// size; what the library did from there on is then taken back.
    bool low_address_bits(const tree_record& t, std::uint32_t i, const answer& machine,
                          bool walked) {
        const configuration& c = t.config;
        const unsigned granule = machine.stage2 ? c.s2granule : batch_.half_of(c, i).granule;
        const bool ds = machine.stage2 ? c.s2ds : c.ds;
        const unsigned bits = output_bits(machine.stage2 ? c.s2ps : c.ips, granule, ds);
        if (machine.level >= 3 || bits >= covered(granule, machine.level)) return false;
        const u64 inside = (u64{1} << covered(granule, machine.level)) - (u64{1} << bits);
        if (!walked) {
            batch_.undo(batch_.records[i]);
            (void)batch_.ask_again(t, i);
        }
        const owner stage = machine.stage2 ? owner::stage2 : owner::stage1;
        for (std::size_t n = 0; n < batch_.trace.reads.size(); ++n) {
            auto [at, value] = batch_.trace.reads[n];
            if (machine.stage2 ? c.s2big_endian : c.big_endian) value = __builtin_bswap64(value);
            if (batch_.tables.owner_of(at) != stage || (value & 3) != 1 || (value & inside) == 0)
                continue;
            for (std::size_t w = batch_.trace.writes.size(); w > 0; --w) {
                const walk_trace::write& done = batch_.trace.writes[w - 1];
                const auto is_this = [&](const auto& read) { return read.first == done.at; };
                const auto before = batch_.trace.reads.begin() + static_cast<std::ptrdiff_t>(n);
                if (std::none_of(batch_.trace.reads.begin(), before, is_this)) {
                    batch_.tables.ours(done.at) = done.before;
                }
            }
            return true;
        }
        return false;
    }
    static bool only_level_of_protected_table(const configuration& c, const answer& machine,
                                              const answer& ours) noexcept {
        if (!c.s2ptw || ours.kind != answer_kind::permission || !ours.stage2 || !ours.table_walk ||
            machine.level != 0) {
            return false;
        }
        answer other = machine;
        other.level = ours.level;
        return same(other, ours);
    }
    /// Descriptor bits that the emulator ignores where it should check them.
    static u64 ignored_bits(unsigned ps, unsigned granule, bool ds) noexcept {
        if (size_bits(ps) >= 52) return 0;
        return granule == 16 ? 0xf000 : ds ? 0x300 : 0;
    }
    /// What the leaves of the last walk give: stage 1's memory type, and stage 2's MemAttr.
    [[nodiscard]] std::pair<unsigned, unsigned> leaf_types(const configuration& c) const {
        unsigned stage1 = c.incoming_normal ? 0xff : 0;
        unsigned stage2 = 0;
        u64 run = 0; // of the leaf that was read last, if it says that it is in one
        for (auto [at, value] : batch_.trace.reads) {
            constexpr u64 largest_run = 128 * 8;
            if (run != 0 && at / largest_run == run / largest_run) continue;
            const bool first = batch_.tables.owner_of(at) == owner::stage1;
            if (first ? c.big_endian : c.s2big_endian) value = __builtin_bswap64(value);
            run = (value >> 52 & 1) != 0 ? at : 0;
            if (first) {
                stage1 = static_cast<unsigned>(c.mair >> 8 * (value >> 2 & 7) & 0xff);
            } else {
                stage2 = static_cast<unsigned>(value >> 2 & 0xf);
            }
        }
        return {stage1, stage2};
    }
    bool known(deviation d) noexcept {
        ++counts[static_cast<std::size_t>(d)];
        return true;
    }

    batch& batch_;
    std::vector<u64> strayed_to_; ///< flags of other trees that walks without high bits updated
};

} // namespace oracle
