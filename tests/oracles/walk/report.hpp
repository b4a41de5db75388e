/// What a person needs to see of a difference.
#pragma once

#include "statistics.hpp"

#include <array>
#include <cinttypes>
#include <cstdio>
#include <mutex>
#include <string>

namespace oracle {

[[nodiscard]] inline std::string describe(const answer& a) {
    std::array<char, 160> text{};
    const char* name = answer_names[static_cast<std::size_t>(a.kind)];
    if (a.kind == answer_kind::translated) {
        std::snprintf(text.data(), text.size(), "%s to 0x%" PRIx64 ", type 0x%02x, SH %u", name,
                      a.address, a.type, a.shareability);
    } else {
        std::snprintf(text.data(), text.size(), "%s, stage %d%s, level %d", name, a.stage2 ? 2 : 1,
                      a.table_walk ? " on a table of stage 1" : "", a.level);
    }
    return text.data();
}

/// Everything about walk `i` of tree `t`, which is case `number` of the run.
inline void print_case(batch& b, u64 seed, u64 number, const tree_record& t, std::uint32_t i,
                       const oracle_walk& got, const answer& machine, const char* why) {
    static std::mutex one_at_a_time;
    const std::scoped_lock lock(one_at_a_time);
    const configuration& c = t.config;
    const walk_record& r = b.records[i];
    const oracle_tree regs = registers_of(c);
    std::printf("CASE seed %" PRIu64 " case %" PRIu64 ": %s\n", seed, number, why);
    std::printf("  %s 0x%016" PRIx64 "\n", dimensions[d_at].values[got.at].c_str(), got.address);
    std::printf("  SCTLR 0x%" PRIx64 " TCR 0x%" PRIx64 " TTBR0 0x%" PRIx64 " TTBR1 0x%" PRIx64
                " MAIR 0x%" PRIx64 "\n  HCR 0x%" PRIx64 " VTCR 0x%" PRIx64 " VTTBR 0x%" PRIx64
                " SCTLR_EL2 0x%" PRIx64 "\n",
                regs.sctlr, regs.tcr, regs.ttbr0, regs.ttbr1, regs.mair, regs.hcr, regs.vtcr,
                regs.vttbr, regs.sctlr_el2);
    if (c.stage1) {
        const half& h = b.half_of(c, i);
        std::printf("  stage 1: %s half, granule %u, T%uSZ %u, IPS %u, DS %d, EPD %d TBI %d HPD %d "
                    "E0PD %d, HA %d HD %d, big-endian %d, EPAN %d, start level %d\n",
                    &h == &c.halves[1] ? "upper" : "lower", h.granule, &h == &c.halves[1] ? 1U : 0U,
                    h.tsz, c.ips, c.ds, h.epd, h.tbi, h.hpd, h.e0pd, c.ha, c.hd, c.big_endian,
                    c.epan, h.granule == 0 ? 9 : stage1_start(h.granule, h.input_bits()));
    }
    if (c.stage2) {
        std::printf("  stage 2: granule %u, S2T0SZ %u, S2SL0 %u.%d, S2PS %u, S2DS %d, HA %d HD %d, "
                    "big-endian %d, PTW %d, start level %d\n",
                    c.s2granule, c.s2tsz, c.s2sl0, c.s2sl2, c.s2ps, c.s2ds, c.s2ha, c.s2hd,
                    c.s2big_endian, c.s2ptw, stage2_start(c));
    }
    std::printf("  machine: PAR 0x%016" PRIx64 " ESR 0x%x: %s\n", got.par, got.esr,
                describe(machine).c_str());
    std::printf("  library: %s\n", describe(r.ours).c_str());
    b.undo(r);
    walk_trace trace;
    (void)b.ask(c, r.asks, got.address, trace);
    for (const auto& [at, value] : trace.reads) {
        const char* whose = !tables::contains(at)                    ? "outside"
                            : b.tables.owner_of(at) == owner::stage1 ? "stage 1"
                            : b.tables.owner_of(at) == owner::stage2 ? "stage 2"
                                                                     : "nobody's";
        std::printf("    read  0x%012" PRIx64 " = 0x%016" PRIx64 " (%s)\n", at, value, whose);
    }
    for (const walk_trace::write& w : trace.writes) {
        std::printf("    wrote 0x%012" PRIx64 ": 0x%016" PRIx64 " -> 0x%016" PRIx64 "\n", w.at,
                    w.before, b.tables.ours(w.at));
    }
    std::fflush(stdout);
}

} // namespace oracle
