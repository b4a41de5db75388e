/// Which configurations an SMMU refuses before any walk: an independent list of the rules
/// (IHI 0070, 5.2, 5.4 and 5.5) for an SMMU that has every feature and 52-bit addresses.
#pragma once

#include "configuration.hpp"

namespace oracle {

/// Rule broken, or null.
using broken_rule = const char*;

[[nodiscard]] constexpr broken_rule input_size_rule(unsigned tsz, unsigned granule, bool ds) {
    // 52 bits with 64 KiB granules (VAX), or with 4 and 16 KiB and DS; small tables (STT).
    const unsigned least = granule == 16 || ds ? 12 : 16;
    const unsigned most = granule == 16 ? 47 : 48;
    if (tsz < least) return "TxSZ too small";
    if (tsz > most) return "TxSZ too large";
    return nullptr;
}

/// C_BAD_CD.
[[nodiscard]] constexpr broken_rule cd_rule(const configuration& c) {
    for (unsigned i = 0; i < (c.world == regime::el2 ? 1U : 2U); ++i) {
        const half& h = c.halves[i];
        if (h.epd && c.world != regime::el2) continue; // nothing else of the half is looked at
        if (h.granule == 0) return "TG reserved";
        if (const broken_rule rule = input_size_rule(h.tsz, h.granule, c.ds)) return rule;
        if (h.table >> size_bits(c.ips) != 0) return "TTB beyond IPS";
    }
    return nullptr;
}

/// C_BAD_STE.
[[nodiscard]] constexpr broken_rule ste_rule(const configuration& c) {
    if (c.s2granule == 0) return "S2TG reserved";
    if (const broken_rule rule = input_size_rule(c.s2tsz, c.s2granule, c.s2ds)) return rule;
    const int start = stage2_start(c);
    if (start == 9) return "S2SL0 reserved";
    const unsigned bits = 64 - c.s2tsz;
    // One to 16 tables, of at least two descriptors, at the first level.
    if (bits <= covered(c.s2granule, start)) return "S2SL0 starts above the input size";
    if (bits - covered(c.s2granule, start) > stride(c.s2granule) + 4) {
        return "S2SL0 needs more than 16 tables";
    }
    if (c.s2table >> size_bits(c.s2ps) != 0) return "S2TTB beyond S2PS";
    return nullptr;
}

/// The rule that makes a configuration illegal, or null.
[[nodiscard]] constexpr broken_rule illegal(const configuration& c) {
    if (c.stage2) {
        if (const broken_rule rule = ste_rule(c)) return rule;
    }
    return c.stage1 ? cd_rule(c) : nullptr;
}

} // namespace oracle
