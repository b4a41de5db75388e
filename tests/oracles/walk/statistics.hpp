/// The random dimensions, and which value of each a case has.
#pragma once

#include "batch.hpp"
#include "coverage.hpp"
#include "legality.hpp"

#include <string>
#include <vector>

namespace oracle {

enum dimension_index : std::size_t {
    d_answer,
    d_illegal,
    d_stages,
    d_at,
    d_granule0,
    d_granule1,
    d_t0sz,
    d_t1sz,
    d_ips,
    d_ds,
    d_tbi,
    d_epd,
    d_hpd,
    d_e0pd,
    d_pan,
    d_endian,
    d_update1,
    d_start1,
    d_leaf1,
    d_leaf1_ap,
    d_type1,
    d_granule2,
    d_t2sz,
    d_s2ps,
    d_s2ds,
    d_start2,
    d_tables2,
    d_leaf2,
    d_s2ap,
    d_type2,
    d_update2,
    d_ptw,
    d_fwb,
    d_incoming,
    d_canonical,
    d_flips,
    d_base,
    d_level,
    d_run,
    d_count
};

inline std::vector<std::string> numbers() { return {}; }

inline const std::vector<dimension> dimensions{
    {"answer",
     {"translated", "S1 translation", "S1 address size", "S1 access flag", "S1 permission",
      "S2 translation", "S2 address size", "S2 access flag", "S2 permission",
      "S2 translation on table", "S2 address size on table", "S2 access flag on table",
      "S2 permission on table", "external abort", "C_BAD_STE", "C_BAD_CD", "other"}},
    {"illegal because",
     {"-", "TG reserved", "TxSZ too small", "TxSZ too large", "TTB beyond IPS", "S2TG reserved",
      "S2SL0 reserved", "S2SL0 starts above the input size", "S2SL0 needs more than 16 tables",
      "S2TTB beyond S2PS"}},
    {"stages", {"1", "2", "1+2", "1 (EL2)", "1 (EL2 with E2H)"}},
    {"instruction",
     {"S1E1R", "S1E1W", "S1E0R", "S1E0W", "S1E1RP", "S1E1WP", "S12E1R", "S12E1W", "S12E0R",
      "S12E0W", "S1E2R", "S1E2W"}},
    {"granule, lower half", {"4K", "16K", "64K", "reserved"}},
    {"granule, upper half", {"4K", "16K", "64K", "reserved"}},
    {"T0SZ", numbers()},
    {"T1SZ", numbers()},
    {"IPS", numbers()},
    {"52-bit form, stage 1", {"48 bits", "64K", "DS"}},
    {"TBI", {"no", "yes"}},
    {"EPD of the half", {"no", "yes"}},
    {"HPD of the half", {"no", "yes"}},
    {"E0PD of the half", {"no", "yes"}},
    {"PAN", {"no", "PAN", "PAN and EPAN"}},
    {"tables' byte order, 1 and 2", {"little little", "big little", "little big", "big big"}},
    {"HA, HD", {"none", "HA", "HD alone", "HA HD"}},
    {"start level, stage 1", {"-1", "0", "1", "2", "3"}},
    {"leaf level, stage 1", {"none", "-1", "0", "1", "2", "3"}},
    {"AP of the leaf", {"privileged RW", "RW", "privileged RO", "RO"}},
    {"memory type, stage 1", {"Device", "Non-cacheable", "Normal"}},
    {"granule, stage 2", {"4K", "16K", "64K", "reserved"}},
    {"S2T0SZ", numbers()},
    {"S2PS", numbers()},
    {"52-bit form, stage 2", {"48 bits", "64K", "DS"}},
    {"start level, stage 2", {"-1", "0", "1", "2", "3", "reserved"}},
    {"concatenated tables, log2", {"0", "1", "2", "3", "4", "too many"}},
    {"leaf level, stage 2", {"none", "-1", "0", "1", "2", "3"}},
    {"S2AP of the leaf", {"none", "R", "W", "RW"}},
    {"memory type, stage 2", {"Device", "Non-cacheable", "Normal"}},
    {"S2HA, S2HD", {"none", "HA", "HD alone", "HA HD"}},
    {"S2PTW", {"no", "yes"}},
    {"S2FWB", {"no", "yes"}},
    {"stage 1 off, access is", {"Device", "write-back"}},
    {"address not canonical", {"no", "yes"}},
    {"bits turned over", {"0", "1", "2", "3"}},
    {"first table", {"aligned", "low bits set", "misplaced"}},
    {"level of the fault", {"-1", "0", "1", "2", "3"}},
    {"contiguous leaves", {"none", "hint alone", "whole run"}},
};

using statistics = coverage<d_count>;

inline void count_case(statistics& s, const batch& b, const tree_record& t, std::uint32_t i,
                       const answer& a, broken_rule rule) {
    const configuration& c = t.config;
    const auto kind = static_cast<unsigned>(a.kind);
    std::size_t bucket = 16;
    if (a.kind == answer_kind::translated)
        bucket = 0;
    else if (kind <= 4)
        bucket = kind + (a.stage2 ? (a.table_walk ? 8U : 4U) : 0U);
    else if (a.kind == answer_kind::external_abort)
        bucket = 13;
    else if (a.kind == answer_kind::refused_ste)
        bucket = 14;
    else if (a.kind == answer_kind::refused_cd)
        bucket = 15;
    s.count(d_answer, bucket);
    if (kind >= 1 && kind <= 4) s.count(d_level, static_cast<std::size_t>(a.level + 1));
    if (rule != nullptr) {
        const auto& names = dimensions[d_illegal].values;
        for (std::size_t n = 0; n < names.size(); ++n)
            if (names[n] == rule) s.count(d_illegal, n);
    }
    const std::size_t stages = c.world == regime::el2        ? 3
                               : c.world == regime::el2_host ? 4
                               : !c.stage1                   ? 1
                               : c.stage2                    ? 2
                                                             : 0;
    s.count(d_stages, stages);
    s.count(d_at, b.walks[i].at);
    s.count(d_flips, t.facts.flips);
    s.count(d_run, t.facts.run);
    s.count(d_canonical, t.facts.not_canonical ? 1 : 0);
    s.count(d_base, t.facts.outside_memory ? 2 : t.facts.misaligned_table ? 1 : 0);
    s.count(d_endian, (c.big_endian ? 1U : 0U) + (c.s2big_endian ? 2U : 0U));
    const auto granule = [](unsigned g) { return g == 12 ? 0U : g == 14 ? 1U : g == 16 ? 2U : 3U; };
    const auto form = [](unsigned g, bool ds) { return g == 16 ? 1U : ds ? 2U : 0U; };
    if (c.stage1) {
        const half& h = b.half_of(c, i);
        const bool upper = &h == &c.halves[1];
        s.count(upper ? d_granule1 : d_granule0, granule(h.granule));
        s.count(upper ? d_t1sz : d_t0sz, h.tsz);
        s.count(d_ips, c.ips);
        s.count(d_ds, form(h.granule, c.ds));
        s.count(d_tbi, h.tbi ? 1 : 0);
        s.count(d_epd, h.epd ? 1 : 0);
        s.count(d_hpd, h.hpd ? 1 : 0);
        s.count(d_e0pd, h.e0pd ? 1 : 0);
        s.count(d_pan, !b.records[i].asks.pan ? 0 : c.epan ? 2 : 1);
        s.count(d_update1, (c.ha ? 1U : 0U) + (c.hd ? 2U : 0U));
        if (rule == nullptr && h.granule != 0 && !h.epd) {
            s.count(d_start1,
                    static_cast<std::size_t>(stage1_start(h.granule, h.input_bits()) + 1));
        }
        s.count(d_leaf1, static_cast<std::size_t>(t.facts.stage1_leaf + 2));
        if (t.ap < 4) s.count(d_leaf1_ap, t.ap);
        if (t.type1 < 3) s.count(d_type1, t.type1);
    }
    if (c.stage2) {
        s.count(d_granule2, granule(c.s2granule));
        s.count(d_t2sz, c.s2tsz);
        s.count(d_s2ps, c.s2ps);
        s.count(d_s2ds, form(c.s2granule, c.s2ds));
        const int start = c.s2granule == 0 ? 9 : stage2_start(c);
        s.count(d_start2, start == 9 ? 5 : static_cast<std::size_t>(start + 1));
        if (rule == nullptr) {
            const unsigned bits = 64 - c.s2tsz - covered(c.s2granule, start);
            const unsigned one = stride(c.s2granule);
            s.count(d_tables2, bits <= one ? 0 : bits - one);
        }
        s.count(d_leaf2, static_cast<std::size_t>(t.facts.stage2_leaf + 2));
        if (t.s2ap < 4) s.count(d_s2ap, t.s2ap);
        if (t.type2 < 3) s.count(d_type2, t.type2);
        s.count(d_update2, (c.s2ha ? 1U : 0U) + (c.s2hd ? 2U : 0U));
        s.count(d_ptw, c.s2ptw ? 1 : 0);
        s.count(d_fwb, c.s2fwb ? 1 : 0);
        if (!c.stage1) s.count(d_incoming, c.incoming_normal ? 1 : 0);
    }
}

} // namespace oracle
