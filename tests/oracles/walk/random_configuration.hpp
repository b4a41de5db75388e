/// What the registers of a random tree say: mostly legal, each field sometimes not.
#pragma once

#include "configuration.hpp"
#include "random.hpp"

namespace oracle {

class random_configuration {
public:
    explicit random_configuration(random_source& random) : random_(random) {}

    [[nodiscard]] configuration choose() {
        configuration c;
        const unsigned kind = random_.below(100);
        if (kind < 35) {
            c.stage2 = false;
        } else if (kind < 75) {
            c.stage2 = true;
        } else if (kind < 88) {
            c.stage1 = false;
            c.stage2 = true;
            c.incoming_normal = random_.coin();
        } else {
            c.world = random_.coin() ? regime::el2 : regime::el2_host;
        }
        c.ds = random_.percent(35);
        c.ips = choose_size();
        c.ha = random_.percent(40);
        c.hd = random_.percent(c.ha ? 60 : 10);
        c.big_endian = random_.percent(10);
        c.epan = random_.percent(30);
        c.wxn = random_.percent(20);
        c.mair = choose_memory_types();
        for (half& h : c.halves) {
            h.granule = granules[random_.percent(1) ? 3 : random_.below(3)];
            h.tsz = random_.percent(2) ? random_.below(64)
                                       : legal_tsz(h.granule == 0 ? 12 : h.granule, c.ds);
            h.shareability = random_.one_of({0U, 2U, 3U});
            h.epd = random_.percent(6);
            h.tbi = random_.percent(30);
            h.hpd = random_.percent(25);
            h.e0pd = random_.percent(4);
        }
        if (c.world == regime::el2) {
            c.halves[0].epd = c.halves[0].e0pd = false;
            c.halves[1] = {.epd = true};
        }
        if (c.world != regime::el1) c.halves[0].e0pd = c.halves[1].e0pd = false;
        if (!c.stage1) {
            c.ha = c.hd = c.ds = c.big_endian = false;
            c.halves = {};
        }

        c.s2granule = granules[random_.percent(1) ? 3 : random_.below(3)];
        c.s2ds = random_.percent(35);
        const unsigned granule = c.s2granule == 0 ? 12 : c.s2granule;
        c.s2tsz = random_.percent(2) ? random_.below(64) : legal_tsz(granule, c.s2ds);
        c.s2ps = choose_size();
        c.s2ha = random_.percent(40);
        c.s2hd = random_.percent(c.s2ha ? 60 : 10);
        c.s2shareability = random_.one_of({0U, 2U, 3U});
        c.s2big_endian = random_.percent(10);
        c.s2ptw = random_.percent(20);
        c.s2fwb = random_.percent(30);
        choose_start_level(c);
        if (!c.stage2) {
            c.s2ha = c.s2hd = c.s2ds = c.s2ptw = c.s2fwb = c.s2big_endian = false;
        }
        return c;
    }

private:
    [[nodiscard]] unsigned legal_tsz(unsigned granule, bool ds) {
        const unsigned least = granule == 16 || ds ? 12 : 16;
        const unsigned most = granule == 16 ? 47 : 48;
        return random_.percent(30) ? random_.one_of({least, 16U, 24U, 25U, 32U, 39U, most})
                                   : random_.between(least, most);
    }
    [[nodiscard]] unsigned choose_size() {
        return random_.percent(60) ? random_.one_of({5U, 6U}) : random_.below(8);
    }
    [[nodiscard]] u64 choose_memory_types() {
        u64 mair = 0;
        for (unsigned i = 0; i < 8; ++i) {
            u64 type = random_.one_of<u64>({0x00, 0x04, 0x08, 0x0c, 0x44, 0xff, 0xbb, 0});
            if (random_.coin()) {
                type = u64{random_.between(1, 15)} << 4 | random_.between(1, 15);
            }
            mair |= type << 8 * i;
        }
        return mair;
    }
    /// A start level that fits the input size, with or without concatenation; sometimes any.
    void choose_start_level(configuration& c) {
        const unsigned bits = 64 - c.s2tsz;
        const auto fits = [&] {
            const int start = stage2_start(c);
            return start != 9 && c.s2granule != 0 && bits > covered(c.s2granule, start) &&
                   bits <= covered(c.s2granule, start) + stride(c.s2granule) + 4;
        };
        for (unsigned tries = 0; tries < 24; ++tries) {
            c.s2sl0 = random_.below(4);
            c.s2sl2 = c.s2granule == 12 && c.s2ds && random_.coin();
            if (fits() || random_.percent(1)) return;
        }
    }

    random_source& random_;
};

/// An AT instruction that fits the regime.
[[nodiscard]] inline std::uint32_t choose_instruction(const configuration& config,
                                                      random_source& random) {
    if (config.world != regime::el1) return AT_S1E2R + random.below(2);
    if (config.stage2) return AT_S12E1R + random.below(4);
    return random.percent(10) ? AT_S12E1R + random.below(4) : AT_S1E1R + random.below(6);
}

} // namespace oracle
