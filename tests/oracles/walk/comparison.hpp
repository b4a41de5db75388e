/// Compares the processor's answers with the library's, case by case.
#pragma once

#include "deviations.hpp"
#include "legality.hpp"
#include "library_walk.hpp"
#include "tree.hpp"

#include <optional>

namespace oracle {

/// What PAR_EL1, or the exception that came in its place, says.
[[nodiscard]] inline answer answer_of(const oracle_walk& walk) noexcept {
    answer a;
    if (walk.esr != 0) {
        const unsigned status = walk.esr & 0x3f;
        const bool on_walk = (status & 0x3c) == 0x14 || status == 0x13;
        if (walk.esr >> 26 == 0x25 && on_walk) a.kind = answer_kind::external_abort;
        return a;
    }
    if ((walk.par & 1) == 0) {
        a.kind = answer_kind::translated;
        a.address = walk.par & 0x000f'ffff'ffff'f000;
        a.type = static_cast<unsigned>(walk.par >> 56);
        a.shareability = static_cast<unsigned>(walk.par >> 7 & 3);
        return a;
    }
    const unsigned status = static_cast<unsigned>(walk.par >> 1 & 0x3f);
    a.stage2 = (walk.par >> 9 & 1) != 0;
    a.table_walk = (walk.par >> 8 & 1) != 0;
    a.level = static_cast<int>(status & 3);
    if (status == 0x29 || status == 0x2b) {
        a.level = -1;
        a.kind = status == 0x29 ? answer_kind::address_size : answer_kind::translation;
        return a;
    }
    constexpr std::array kinds{answer_kind::address_size, answer_kind::translation,
                               answer_kind::access_flag, answer_kind::permission};
    if (status >> 2 < 4) a.kind = kinds[status >> 2];
    return a;
}

/// The same answer, as far as both sides can say it.
[[nodiscard]] inline bool same(const answer& machine, const answer& ours) noexcept {
    if (machine.kind != ours.kind) return false;
    // An external abort comes as an exception that does not tell the stage.
    if (machine.kind == answer_kind::external_abort) return true;
    return machine == ours;
}

} // namespace oracle
