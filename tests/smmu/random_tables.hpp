/// Random regimes of both stages, and memory whose every word is a random
/// descriptor that suits them.
#pragma once

#include "reference_tables.hpp"
#include "table_builder.hpp"

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <optional>
#include <random>
#include <vector>

namespace tables {

inline u64 mixed(u64 x) {
    x ^= x >> 31;
    x *= 0x9e37'79b9'7f4a'7c15;
    x ^= x >> 29;
    x *= 0xbf58'476d'1ce4'e5b9;
    return x ^ x >> 32;
}

/// How descriptors look in one case.
struct taste {
    u64 seed = 0;
    u64 fits = 0;          ///< address bits that suit all stages
    u64 wide = 0;          ///< which of [15:12], [9:8] and [49:48] may be anything
    unsigned broken = 0;   ///< per mille: anything at all
    unsigned blocks = 0;   ///< per mille
    unsigned limits = 0;   ///< per mille: table attributes, execute-never
    unsigned no_flag = 0;  ///< per mille
    unsigned run = 0;      ///< log2 of descriptors that continue each other, 0 none
    unsigned run_size = 0; ///< log2 of the step
    bool big_endian = false;
};

/// Every word is made from its address. Writes are kept beside.
class random_memory {
public:
    explicit random_memory(const taste& t) : taste_(t) {}

    std::map<u64, u64> written;
    void become(const taste& t) { taste_ = t; }
    [[nodiscard]] std::optional<u64> load(u64 at) const noexcept {
        if (at % 8 != 0 || at >> 52 != 0) return std::nullopt;
        const auto found = written.find(at);
        if (found != written.end()) return found->second;
        if (mixed(at >> 16 ^ taste_.seed << 1) % 1000 < taste_.broken / 2) return std::nullopt;
        return taste_.big_endian ? swapped(made(at)) : made(at);
    }
    std::optional<u64> compare_exchange(u64 at, u64 expected, u64 desired) noexcept {
        const auto found = load(at);
        if (found && *found == expected) written[at] = desired;
        return found;
    }

private:
    [[nodiscard]] u64 made(u64 at) const noexcept {
        const u64 group = at >> 3 >> taste_.run;
        u64 dice = mixed(group + taste_.seed);
        const auto chance = [&](unsigned per_mille) {
            dice = mixed(dice);
            return dice % 1000 < per_mille;
        };
        if (chance(taste_.broken)) return mixed(dice);
        u64 d = mixed(dice + 1) & 0x0000'ffff'ffff'f000 & taste_.fits;
        d &= ~u64{0xf000};
        d |= mixed(dice + 2) & (chance(5) ? 0x0003'0000'0000'f300 : taste_.wide);
        d |= chance(taste_.blocks) ? 1 : 3;
        d |= mixed(dice + 4) & 0x83c;
        if (!chance(60)) d |= u64{1} << 6;
        if (chance(500)) d |= u64{1} << 7;
        if (!chance(taste_.no_flag)) d |= u64{1} << 10;
        if (chance(600)) d |= u64{1} << 51;
        if (chance(taste_.run != 0 ? 900 : 100)) d |= u64{1} << 52;
        for (const unsigned bit : {53U, 54U, 59U, 60U, 61U, 62U, 63U}) {
            if (chance(taste_.limits)) d |= u64{1} << bit;
        }
        if (taste_.run != 0) {
            const u64 inside = ((u64{1} << taste_.run) - 1) << taste_.run_size;
            d = (d & ~inside) | (at >> 3 << taste_.run_size & inside);
        }
        return d;
    }

    taste taste_;
};
static_assert(table_access<random_memory>);

/// One random case: what the stages are set to, and how descriptors look.
class random_case {
public:
    explicit random_case(u64 seed) : random_(seed) {}

    reference::stage lower, upper, second;
    taste looks;

    u64 below(u64 n) { return random_() % n; }
    bool chance(unsigned percent) { return below(100) < percent; }
    template <class T>
    T one_of(std::initializer_list<T> list) {
        return *(list.begin() + below(list.size()));
    }

    template <smmu_features F>
    reference::stage any_stage() {
        reference::stage s;
        do {
            s.granule = one_of({12U, 14U, 16U});
        } while ((s.granule == 12 && !F.granule_4k) || (s.granule == 14 && !F.granule_16k) ||
                 (s.granule == 16 && !F.granule_64k));
        s.ds = F.ds && chance(40);
        const bool large = s.granule == 16 ? F.vax52 : s.ds;
        const unsigned most = large ? 52 : 48;
        const unsigned least = F.stt ? (s.granule == 16 ? 17 : 16) : 25;
        s.input = static_cast<unsigned>(chance(30) ? most : least + below(most - least + 1));
        do {
            s.output = one_of({32U, 36U, 40U, 42U, 44U, 48U, 52U, 52U});
        } while (s.output > F.output_bits);
        s.big_endian = F.mixed_endian && looks.big_endian;
        s.sh = one_of({0U, 2U, 3U});
        s.affd = chance(20);
        s.ha = F.httu >= 1 && chance(60);
        s.hd = F.httu >= 2 && chance(70);
        return s;
    }
    template <smmu_features F>
    void choose() {
        looks = {};
        looks.seed = random_();
        looks.big_endian = F.mixed_endian && chance(20);
        lower = any_stage<F>();
        upper = any_stage<F>();
        second = any_stage<F>();
        const unsigned kind = F.stage2 ? static_cast<unsigned>(below(8)) : 0;
        lower.on = upper.on = kind < 5;
        second.on = kind >= 2 && kind < 7;
        // What both halves of a regime share.
        lower.wxn = chance(30);
        lower.pan = chance(30);
        lower.epan = F.epan && chance(40);
        lower.el2 = F.hyp && !second.on && chance(20);
        lower.mair = random_();
        if (chance(60)) lower.mair = 0xf04f'bb0c'0004'44ff;
        const u64 lower_mair = lower.mair;
        for (reference::stage* s : {&lower, &upper}) {
            s->e0pd = F.e0pd && chance(15);
            s->had = F.hierarchical_attribute_disable && chance(30);
            s->epd = chance(3);
        }
        upper.wxn = lower.wxn;
        upper.pan = lower.pan;
        upper.epan = lower.epan;
        upper.el2 = lower.el2;
        upper.mair = lower_mair;
        upper.output = lower.output;
        upper.ds = lower.ds;
        upper.input = upper.granule != 16 && !upper.ds && upper.input > 48 ? 48 : upper.input;
        upper.affd = lower.affd;
        upper.ha = lower.ha;
        upper.hd = lower.hd;
        second.ptw = chance(20);
        // A start level that suits the input size: 1 to 16 tables of it.
        std::vector<int> starts;
        for (int level = -1; level <= 3; ++level) {
            const unsigned low =
                second.granule + static_cast<unsigned>(3 - level) * (second.granule - 3);
            if (second.input > low && second.input <= low + second.granule - 3 + 4 &&
                (level >= 0 || second.ds)) {
                starts.push_back(level);
            }
        }
        if (starts.empty()) starts.push_back(3), second.input = second.granule + 2;
        second.start = starts[below(starts.size())];

        unsigned bits = 48;
        if (lower.on) bits = std::min(bits, lower.output);
        if (second.on) bits = std::min(bits, second.output);
        if (lower.on && second.on) bits = std::min(bits, second.input);
        looks.fits = (u64{1} << bits) - 1;
        const auto any = [&](auto what) {
            return (lower.on && (what(lower) || what(upper))) || (second.on && what(second));
        };
        const bool room = !any([](const auto& s) { return s.output != 52; }) &&
                          (!lower.on || !second.on || second.input == 52);
        const bool any64 = any([](const auto& s) { return s.granule == 16; });
        const bool any_ds = any([](const auto& s) { return s.ds && s.granule != 16; });
        if (!any64 || room) looks.wide |= 0xf000;
        if (!any_ds || room) looks.wide |= 0x300;
        if (any_ds && room) looks.wide |= 0x0003'0000'0000'0000;
        looks.broken = one_of({0U, 2U, 5U, 40U});
        looks.blocks = one_of({0U, 0U, 20U, 250U});
        looks.limits = one_of({0U, 20U, 150U});
        looks.no_flag = one_of({0U, 10U, 300U});
        if (chance(40)) {
            looks.run = one_of({4U, 5U, 7U});
            looks.run_size = one_of({12U, 14U, 16U, 21U, 25U, 29U, 30U});
        }
        for (reference::stage* s : {&lower, &upper, &second}) {
            s->table = random_() & 0xf'ffff'ffff'fff0;
            if (!chance(3)) s->table &= looks.fits;
        }
    }
    u64 any_address() {
        const bool high = chance(50);
        const reference::stage& s = !lower.on ? second : high ? upper : lower;
        unsigned bits = s.input;
        if (chance(4)) bits = 64;
        u64 a = bits == 64 ? random_() : random_() & ((u64{1} << bits) - 1);
        if (bits < 64 && lower.on && high) a |= ~u64{0} << bits;
        return a;
    }

private:
    std::mt19937_64 random_;
};

} // namespace tables
