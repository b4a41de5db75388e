/// The library's answer to one question. Only library_walk.cpp includes the library, so that a
/// defect planted there is compiled quickly.
#pragma once

#include "configuration.hpp"
#include "tables.hpp"

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace oracle {

enum class answer_kind : std::uint8_t {
    translated,
    translation,
    address_size,
    access_flag,
    permission,
    external_abort,
    other,       ///< some event that no walk gives
    refused_ste, ///< C_BAD_STE
    refused_cd,  ///< C_BAD_CD
    elsewhere,   ///< the walk read what is no table: not compared
};
inline constexpr std::array answer_names{
    "translated",     "translation", "address size", "access flag", "permission",
    "external abort", "other event", "C_BAD_STE",    "C_BAD_CD",    "not in tables"};

struct answer {
    answer_kind kind = answer_kind::other;
    bool stage2 = false;     ///< fault of stage 2
    bool table_walk = false; ///< on an access to a stage-1 table
    int level = 0;           ///< of a fault; 0 when no descriptor was read
    u64 address = 0;         ///< output, without bits [11:0]
    unsigned type = 0;       ///< MAIR encoding
    unsigned shareability = 0;

    friend bool operator==(const answer&, const answer&) = default;
};

/// What a walk says about the addresses around the one that it was asked for.
struct claimed_range {
    u64 asked = 0; ///< the address without a tag
    u64 input_base = 0;
    u64 output_base = 0;
    unsigned size_log2 = 0; ///< 0 = nothing is claimed
};

/// Reads and writes of one walk.
struct walk_trace {
    struct write {
        u64 at, before;
    };
    std::vector<std::pair<u64, u64>> reads; ///< address, value in host order
    std::vector<write> writes;
    claimed_range claimed;
};

/// Bits of what is read, by the number of the read.
using hidden_bits = std::vector<std::pair<std::size_t, u64>>;

class library_walker {
public:
    explicit library_walker(tables& memory);
    ~library_walker();

    /// Makes an STE and a CD of the configuration, as a driver would, and decodes them. Gives
    /// `translated`, or how the library refuses them.
    answer_kind prepare(const configuration& config, bool pan);
    /// Walks under what was prepared. The bits of `hidden` are taken off descriptors before the
    /// walk sees them: for known deviations.
    answer walk(u64 address, const question& asks, walk_trace& trace, const hidden_bits& hidden);

private:
    struct parts;
    std::unique_ptr<parts> parts_;
};

} // namespace oracle
