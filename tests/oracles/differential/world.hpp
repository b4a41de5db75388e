/// A random configuration of everything: streams, context descriptors, tables of both stages.
#pragma once

#include "random_source.hpp"
#include "table_tree.hpp"

#include <vm_accel/core/field.hpp>
#include <vm_accel/spec/cd.hpp>
#include <vm_accel/spec/commands.hpp>
#include <vm_accel/spec/ste.hpp>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace differential {

namespace spec = vm_accel::spec;
using vm_accel::get;
using vm_accel::set;

/// What the two models have in common, and so what is generated.
struct common_features {
    bool stage2 = false;
    bool granule_16k = false;
    bool granule_64k = false;
    unsigned output_bits = 44;
};

/// An address worth an access: a leaf begins, ends or leads somewhere near it.
struct point {
    std::uint64_t address = 0;
    std::uint64_t leaf_bytes = 4096;
    std::uint64_t slot = 0; ///< the descriptor that it comes from
};

/// A run of leaf descriptors that the driver may change later.
struct leaf_run {
    unsigned half = 0;
    std::uint64_t address = 0; ///< of the first leaf, in its input address space
    unsigned level = 3;
    std::uint64_t slot = 0;  ///< physical address of the first descriptor
    unsigned count = 1;      ///< of leaves side by side, changed as one
    bool contiguous = false; ///< they have the contiguous hint
};

/// Stage 2 of a virtual machine, if it has one, and its VMID.
struct machine_space {
    std::uint16_t vmid = 0;
    bool stage2 = false;
    table_tree tree;
    unsigned ps = 4;
    bool ignore_access_flag = false;
    bool record = true;
    std::uint64_t table_window = 0; ///< IPA of `tables`, for nested spaces
    std::vector<leaf_run> leaves;
    std::vector<point> points;              ///< IPAs
    std::vector<std::uint64_t> table_pages; ///< physical: stage-1 tables of nested spaces

    [[nodiscard]] unsigned output_bits(unsigned limit) const;
};

/// One stage-1 address space: a context descriptor and its tables.
struct address_space {
    unsigned machine = 0;
    std::uint16_t asid = 0;
    bool nested = false;
    bool hierarchical = false; ///< table attributes are in use; then everything is mapped well
    bool globals = false;      ///< some leaves are global: no invalidation by ASID reaches them
    bool tags_used = false;    ///< the top byte is ignored, and accesses use it
    spec::cd descriptor{};
    std::uint64_t place = 0; ///< of the CD, physical
    std::array<table_tree, 2> tree{};
    std::array<bool, 2> enabled{};
    std::vector<leaf_run> leaves;
    std::vector<point> points;
};

enum class stream_kind : std::uint8_t { abort, bypass, stage1, stage2, nested, broken, absent };
inline constexpr std::array<const char*, 7> stream_kind_names{
    "abort", "bypass", "stage 1", "stage 2", "nested", "broken STE", "no STE"};

struct stream {
    stream_kind kind = stream_kind::abort;
    unsigned space = 0;   ///< stage1, nested
    unsigned machine = 0; ///< stage2
    std::uint64_t place = 0;
    spec::ste entry{};
};

/// The stream table's shape, as STRTAB_BASE and STRTAB_BASE_CFG say it.
struct stream_table_shape {
    bool two_level = false;
    unsigned split = 6;
    unsigned log2size = 7;
    std::uint64_t base = stream_table;
    struct level1 {
        bool decided = false;
        unsigned span = 0;
        bool outside = false; ///< its table is where no memory is
    };
    std::array<level1, 2> descriptor{};
};

struct world {
    stream_table_shape table;
    bool record_bad_stream_id = true;
    std::vector<machine_space> machines;
    std::vector<address_space> spaces;
    std::array<stream, device_count> streams{};
    std::array<bool, device_count> usable{}; ///< devices that make accesses

    [[nodiscard]] const machine_space& machine_of(const stream& s) const {
        return machines[s.kind == stream_kind::stage2 ? s.machine : spaces[s.space].machine];
    }
};

inline unsigned machine_space::output_bits(unsigned limit) const {
    constexpr std::array<unsigned, 8> bits{32, 36, 40, 42, 44, 48, 52, 52};
    return std::min(bits[ps], limit);
}
inline unsigned stage1_output_bits(const spec::cd& descriptor, unsigned limit) {
    constexpr std::array<unsigned, 8> bits{32, 36, 40, 42, 44, 48, 52, 52};
    return std::min(bits[get<spec::cd::IPS>(descriptor)], limit);
}

/// The last descriptor that a walk of `tree` reads, if it gets that far.
inline std::optional<std::uint64_t> find_leaf(const both_memories& memory, const table_tree& tree,
                                              std::uint64_t address) {
    const std::uint64_t input = address & ((std::uint64_t{1} << tree.input_bits) - 1);
    std::uint64_t table = tree.root;
    for (unsigned level = tree.start_level;; ++level) {
        const std::uint64_t descriptor = memory.load64(table + tree.index_of(input, level) * 8);
        if ((descriptor & 1) == 0 || level == 3 || (descriptor & 2) == 0) return descriptor;
        table = (descriptor & tree.address_mask()) - tree.own_delta;
        if (table < tables || table >= tables_end) return std::nullopt;
    }
}

} // namespace differential
