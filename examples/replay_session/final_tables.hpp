/// What the recorded structures say at the end of the session, read without
/// the library: the second opinion that a device's answers are held against.
///
/// Shares with the library the layouts of spec/ and nothing else. Knows stage
/// 1 with 64-bit tables of any granule, bypass and abort; anything beyond that
/// it reports as unknown, and the replay then refuses to judge.
#pragma once

#include "page_memory.hpp"

#include <vm_accel/spec/cd.hpp>
#include <vm_accel/spec/descriptors.hpp>
#include <vm_accel/spec/register_fields.hpp>
#include <vm_accel/spec/registers.hpp>
#include <vm_accel/spec/ste.hpp>

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

namespace replay {

/// A stream's final configuration.
struct configured_stream {
    enum class kind { aborts, bypasses, stage1, unknown };

    kind what = kind::aborts;
    spec::cd context{};
    bool el2 = false;        ///< invalidated by CMD_TLBI_EL2_*
    bool privileged = false; ///< STE.PRIVCFG makes accesses privileged
};

/// A mapping of one input page.
struct mapping {
    std::uint64_t output = 0; ///< of the very address asked for
    bool readable = false;
    bool writable = false;

    friend bool operator==(const mapping&, const mapping&) = default;
};

/// One half of a stage-1 address space.
struct table_half {
    bool enabled = false;
    std::uint64_t base = 0;
    unsigned input_bits = 0;
    spec::granule granule = spec::granule::size_4k;
    bool hierarchical = true; ///< APTable counts
};

class final_tables {
public:
    final_tables(const recording& session, const page_memory& memory) : memory_(memory) {
        for (const register_write& w : session.writes)
            registers_[w.offset] = w.value;
    }

    /// The last value written to a register; 0 if none was.
    [[nodiscard]] std::uint64_t value_of(std::uint64_t offset) const {
        const auto found = registers_.find(offset);
        return found == registers_.end() ? 0 : found->second;
    }

    /// Entries of the command queue: no SMMU has more than 2^19.
    [[nodiscard]] std::uint64_t command_queue_size() const {
        const std::uint64_t asked = spec::CMDQ_BASE::LOG2SIZE::of(value_of(spec::reg::CMDQ_BASE));
        return std::uint64_t{1} << std::min<std::uint64_t>(asked, 19);
    }

    [[nodiscard]] configured_stream stream(stream_id sid) const {
        using enum configured_stream::kind;
        if (spec::CR0::SMMUEN::of(value_of(spec::reg::CR0)) == 0) {
            const bool abort = spec::GBPA::ABORT::of(value_of(spec::reg::GBPA)) != 0;
            return {.what = abort ? aborts : bypasses};
        }
        const std::optional<std::uint64_t> at = entry_address(raw(sid));
        spec::ste entry;
        if (!at || !load(*at, entry) || get<spec::ste::V>(entry) == 0) return {};
        configured_stream view{.el2 = get<spec::ste::STRW>(entry) ==
                                      static_cast<std::uint64_t>(spec::stream_world::el2),
                               .privileged = get<spec::ste::PRIVCFG>(entry) == 3};
        switch (spec::ste_config{static_cast<std::uint8_t>(get<spec::ste::Config>(entry))}) {
        case spec::ste_config::bypass:
            view.what = bypasses;
            return view;
        case spec::ste_config::s1_translate:
            break;
        case spec::ste_config::s2_translate:
        case spec::ste_config::s1_s2_translate:
            view.what = unknown;
            return view;
        default:
            return view;
        }
        if (get<spec::ste::S1CDMax>(entry) != 0 && get<spec::ste::S1Fmt>(entry) != 0) {
            view.what = unknown;
            return view;
        }
        if (!load(get_address<spec::ste::S1ContextPtr>(entry), view.context) ||
            get<spec::cd::V>(view.context) == 0) {
            return view;
        }
        const bool plain = get<spec::cd::AA64>(view.context) == 1 &&
                           get<spec::cd::ENDI>(view.context) == 0 &&
                           get<spec::cd::DS>(view.context) == 0;
        view.what = plain ? stage1 : unknown;
        return view;
    }

    /// What the tables make of an address; nullopt = they do not map it.
    [[nodiscard]] std::optional<mapping> find(const configured_stream& view, iova address) const {
        using enum configured_stream::kind;
        if (view.what == bypasses) return mapping{raw(address), true, true};
        if (view.what != stage1) return std::nullopt;
        address = without_tag(view, address);
        const table_half half = half_of(view, address);
        if (!reaches(half, address)) return std::nullopt;

        std::uint64_t table = half.base;
        bool may_write = true;
        bool may_be_unprivileged = true;
        for (int level = start_level(half); level <= 3; ++level) {
            const std::optional<std::uint64_t> word =
                memory_.load64(pa{descriptor_address(half, table, level, address)});
            if (!word || spec::descriptor_kind::Valid::of(*word) == 0) return std::nullopt;
            const bool table_bit = spec::descriptor_kind::Table::of(*word) != 0;
            if (level < 3 && table_bit) {
                if (half.hierarchical) {
                    const std::uint64_t limit = spec::stage1_table::APTable::of(*word);
                    may_write = may_write && (limit & 2) == 0;
                    may_be_unprivileged = may_be_unprivileged && (limit & 1) == 0;
                }
                table = *word & spec::table_address_mask(half.granule);
                continue;
            }
            if (level == 3 ? !table_bit : !spec::has_blocks(half.granule, level)) {
                return std::nullopt;
            }
            // Without hardware update of the access flag, AF = 0 faults (AFFD aside).
            if (spec::stage1_leaf::AF::of(*word) == 0 && get<spec::cd::HA>(view.context) == 0 &&
                get<spec::cd::AFFD>(view.context) == 0) {
                return std::nullopt;
            }
            const std::uint64_t offset =
                raw(address) & ((std::uint64_t{1} << spec::covered_bits(half.granule, level)) - 1);
            const std::uint64_t output =
                (*word & spec::output_address_mask(half.granule, level)) | offset;
            const unsigned bits = spec::output_address_bits(get<spec::cd::IPS>(view.context));
            if (output >> bits != 0) return std::nullopt;
            const bool reachable =
                view.privileged ||
                (may_be_unprivileged && spec::access_permission::unprivileged::of(*word) != 0 &&
                 !e0pd(view, is_upper(address)));
            if (!reachable) return mapping{output, false, false};
            return mapping{output, true,
                           may_write && spec::access_permission::read_only::of(*word) == 0};
        }
        return std::nullopt;
    }

    /// The mappings that a removed translation can have been, smallest first: a
    /// page, or a block where neither the addresses nor a table that is still
    /// there speak against it.
    [[nodiscard]] std::vector<iova_range> possible_mappings(const configured_stream& view,
                                                            const translation_line& t) const {
        const auto around = [&](unsigned bits) {
            const std::uint64_t size = std::uint64_t{1} << bits;
            return iova_range{iova{raw(t.address) & ~(size - 1)}, size};
        };
        if (view.what != configured_stream::kind::stage1) return {around(12)};
        const iova address = without_tag(view, t.address);
        const table_half half = half_of(view, address);
        if (!reaches(half, address)) return {around(12)};
        std::vector<iova_range> sizes;
        std::uint64_t table = half.base;
        for (int level = start_level(half); level <= 3; ++level) {
            const unsigned bits = spec::covered_bits(half.granule, level);
            const bool aligned =
                ((raw(t.address) ^ raw(t.output)) & ((std::uint64_t{1} << bits) - 1)) == 0;
            const std::uint64_t word =
                memory_.load64(pa{descriptor_address(half, table, level, address)}).value_or(0);
            const bool valid = spec::descriptor_kind::Valid::of(word) != 0;
            if (level == 3 || (!valid && aligned && spec::has_blocks(half.granule, level))) {
                sizes.insert(sizes.begin(), around(bits));
            }
            if (valid) table = word & spec::table_address_mask(half.granule);
            if (!valid && level < 3) table = no_table;
        }
        return sizes;
    }

    /// Bit 55 selects the half, whatever the top byte holds.
    [[nodiscard]] static bool is_upper(iova address) { return (raw(address) >> 55 & 1) != 0; }
    /// The address as the tables see it: where the top byte is ignored, it is
    /// what bit 55 says.
    [[nodiscard]] static iova without_tag(const configured_stream& view, iova address) {
        constexpr std::uint64_t top = std::uint64_t{0xff} << 56;
        const bool ignored = is_upper(address) ? get<spec::cd::TBI1>(view.context) != 0
                                               : get<spec::cd::TBI0>(view.context) != 0;
        if (!ignored) return address;
        return is_upper(address) ? iova{raw(address) | top} : iova{raw(address) & ~top};
    }

    /// Which half an address belongs to, and its tables.
    [[nodiscard]] static table_half half_of(const configured_stream& view, iova address) {
        const spec::cd& c = view.context;
        table_half half;
        if (!is_upper(address)) {
            half.enabled = get<spec::cd::EPD0>(c) == 0;
            half.base = get_address<spec::cd::TTB0>(c);
            half.input_bits = 64 - static_cast<unsigned>(get<spec::cd::T0SZ>(c));
            half.hierarchical = get<spec::cd::HAD0>(c) == 0;
            switch (get<spec::cd::TG0>(c)) {
            case 0:
                half.granule = spec::granule::size_4k;
                break;
            case 1:
                half.granule = spec::granule::size_64k;
                break;
            case 2:
                half.granule = spec::granule::size_16k;
                break;
            default:
                half.enabled = false;
            }
        } else {
            half.enabled = get<spec::cd::EPD1>(c) == 0 && !view.el2;
            half.base = get_address<spec::cd::TTB1>(c);
            half.input_bits = 64 - static_cast<unsigned>(get<spec::cd::T1SZ>(c));
            half.hierarchical = get<spec::cd::HAD1>(c) == 0;
            switch (get<spec::cd::TG1>(c)) {
            case 1:
                half.granule = spec::granule::size_16k;
                break;
            case 2:
                half.granule = spec::granule::size_4k;
                break;
            case 3:
                half.granule = spec::granule::size_64k;
                break;
            default:
                half.enabled = false;
            }
        }
        if (half.input_bits <= spec::page_bits(half.granule) || half.input_bits > 48) {
            half.enabled = false;
        }
        if (!half.enabled) return half;
        // A base beyond the output size makes the descriptor illegal; below, the
        // first table is aligned to its size, like all tables.
        const unsigned output_bits = spec::output_address_bits(get<spec::cd::IPS>(c));
        if (half.base >> output_bits != 0) half.enabled = false;
        half.base = aligned(half.base, half.input_bits -
                                           spec::covered_bits(half.granule, start_level(half)) + 3);
        return half;
    }
    /// Whether the half's tables have a place for the address.
    [[nodiscard]] static bool reaches(const table_half& half, iova address) {
        if (!half.enabled) return false;
        const std::uint64_t top = raw(address) >> half.input_bits;
        return top == (is_upper(address) ? ~std::uint64_t{0} >> half.input_bits : 0);
    }
    [[nodiscard]] static int start_level(const table_half& half) {
        const unsigned resolved = half.input_bits - spec::page_bits(half.granule);
        const unsigned per_level = spec::bits_per_level(half.granule);
        return 4 - static_cast<int>((resolved + per_level - 1) / per_level);
    }
    [[nodiscard]] static std::uint64_t
    descriptor_address(const table_half& half, std::uint64_t table, int level, iova address) {
        const std::uint64_t inside = raw(address) & ((std::uint64_t{1} << half.input_bits) - 1);
        const std::uint64_t index = (inside >> spec::covered_bits(half.granule, level)) &
                                    ((std::uint64_t{1} << spec::bits_per_level(half.granule)) - 1);
        const bool first = level == start_level(half);
        // The first table may be larger or smaller than a page: all bits count.
        const std::uint64_t first_index = inside >> spec::covered_bits(half.granule, level);
        return table + (first ? first_index : index) * 8;
    }

private:
    /// No memory is here: nothing below a missing table is valid.
    static constexpr std::uint64_t no_table = ~std::uint64_t{0} << 52;

    [[nodiscard]] static constexpr std::uint64_t aligned(std::uint64_t address,
                                                         std::uint64_t bits) {
        return bits >= 64 ? 0 : address >> bits << bits;
    }

    [[nodiscard]] static bool e0pd(const configured_stream& view, bool upper) {
        return upper ? get<spec::cd::E0PD1>(view.context) != 0
                     : get<spec::cd::E0PD0>(view.context) != 0;
    }

    /// Where a stream's STE is; nullopt = beyond the tables.
    [[nodiscard]] std::optional<std::uint64_t> entry_address(std::uint64_t sid) const {
        const std::uint64_t shape = value_of(spec::reg::STRTAB_BASE_CFG);
        const std::uint64_t log2size = spec::STRTAB_BASE_CFG::LOG2SIZE::of(shape);
        const std::uint64_t split = spec::STRTAB_BASE_CFG::SPLIT::of(shape);
        const bool two_level =
            spec::STRTAB_BASE_CFG::FMT::of(shape) == spec::STRTAB_BASE_CFG::FMT_2lvl;
        if (log2size > 32 || (sid >> log2size) != 0 || split > 16) return std::nullopt;
        // Every table is aligned to its size, whatever its address says.
        const std::uint64_t table_bits =
            two_level ? std::max<std::uint64_t>(log2size > split ? log2size - split + 3 : 3, 6)
                      : log2size + 6;
        const std::uint64_t base =
            aligned(value_of(spec::reg::STRTAB_BASE) & spec::STRTAB_BASE::ADDR::mask, table_bits);
        if (!two_level) return base + sid * sizeof(spec::ste);
        spec::l1_stream_table_descriptor first;
        if (!load(base + (sid >> split) * 8, first)) return std::nullopt;
        const std::uint64_t span = get<spec::l1_stream_table_descriptor::Span>(first);
        const std::uint64_t index = sid & ((std::uint64_t{1} << split) - 1);
        if (span == 0 || span > split + 1 || index >= (std::uint64_t{1} << (span - 1))) {
            return std::nullopt;
        }
        return aligned(get_address<spec::l1_stream_table_descriptor::L2Ptr>(first), span + 5) +
               index * sizeof(spec::ste);
    }

    template <class Structure>
    [[nodiscard]] bool load(std::uint64_t address, Structure& out) const {
        for (std::size_t i = 0; i < out.word.size(); ++i) {
            const std::optional<std::uint64_t> word = memory_.load64(pa{address + 8 * i});
            if (!word) return false;
            out.word[i] = *word;
        }
        return true;
    }

    const page_memory& memory_;
    std::map<std::uint64_t, std::uint64_t> registers_;
};

} // namespace replay
