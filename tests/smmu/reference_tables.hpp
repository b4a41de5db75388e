/// A second walker of both stages, slow and plain, for tests to compare with.
///
/// Written from the architecture alone (DDI 0487, D8; IHI 0070, 3.4 and 3.13),
/// descriptor by descriptor. It caches nothing, answers for one address only,
/// and includes nothing of the library.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

namespace reference {

using u64 = std::uint64_t;

/// Bits [high:low] of a word.
inline u64 part(u64 word, unsigned high, unsigned low) {
    u64 value = 0;
    for (unsigned i = low; i <= high; ++i) {
        if ((word >> i) % 2 == 1) value += u64{1} << (i - low);
    }
    return value;
}
inline bool has(u64 word, unsigned n) { return (word >> n) % 2 == 1; }

/// What one stage is set to.
struct stage {
    bool on = false;
    unsigned granule = 12; ///< log2
    unsigned input = 48;
    unsigned output = 48; ///< IPS or S2PS, at most OAS
    bool ds = false;
    bool big_endian = false;
    u64 table = 0;
    unsigned sh = 3; ///< with DS
    bool affd = false, ha = false, hd = false;
    // Stage 1.
    bool epd = false, e0pd = false, had = false;
    bool wxn = false, pan = false, epan = false, el2 = false;
    u64 mair = 0;
    // Stage 2.
    int start = 0;
    bool ptw = false;
};
struct hardware {
    unsigned oas = 52;
    bool xnx = true;
    unsigned httu = 2;
};
struct asked_access {
    u64 address = 0;
    bool write = false, privileged = false, instruction = false;
    unsigned type = 0xff, sh = 3; ///< the device's own attributes
};
/// Why a walk ended, in the architecture's words.
enum class why { served, translation, address_size, access_flag, permission, external_abort };
struct result {
    why event = why::served;
    bool stage2 = false, on_table = false, table_write = false;
    u64 ipa = 0;     ///< of a fault of stage 2; else what stage 2 was given
    u64 fetched = 0; ///< of an external abort
    u64 address = 0;
    unsigned type = 0, sh = 0;
    unsigned size = 0;       ///< log2 of the smaller page
    unsigned first_page = 0; ///< log2 of the page of the first stage that is on
    bool global = true;
    u64 leaf1 = 0, leaf2 = 0; ///< where the leaves' descriptors are, if those stages are on
};

/// The memory: what is there, and how it is changed.
struct words {
    std::function<std::optional<u64>(u64)> load;
    std::function<void(u64, u64)> store;
};

class walker {
public:
    walker(const hardware& h, const stage& lower, const stage& upper, const stage& second, words& m)
        : h_(h), half_{lower, upper}, second_(second), memory_(m) {}

    result walk(const asked_access& a) {
        result r;
        r.address = a.address;
        r.type = a.type;
        r.sh = a.sh;
        r.size = r.first_page = h_.oas;
        if (half_[0].on || half_[1].on) {
            r = stage1(a);
        } else if (r.address >= u64{1} << h_.oas) {
            r.event = why::address_size;
        }
        if (r.event != why::served || !second_.on) return r;
        const bool first = half_[0].on || half_[1].on;
        r.ipa = r.address;
        const result s = stage2(r.ipa, a, r.type, r.sh, false, false);
        if (s.event != why::served) return s;
        r.leaf2 = s.leaf2;
        r.address = s.address;
        r.type = s.type;
        r.sh = s.sh;
        if (!first) r.first_page = s.size;
        if (!first || s.size < r.size) r.size = s.size;
        return r;
    }

    /// Where stage 2 puts an SMMU's own read, of a CD.
    result read_through_stage2(u64 ipa) {
        asked_access read;
        read.privileged = true;
        return stage2(ipa, read, 0xff, 0, true, false);
    }

private:
    static result failed(why event) {
        result r;
        r.event = event;
        return r;
    }
    static u64 turned(u64 word, const stage& s) {
        if (!s.big_endian) return word;
        u64 out = 0;
        for (unsigned i = 0; i < 8; ++i)
            out = out * 256 + part(word, 8 * i + 7, 8 * i);
        return out;
    }
    /// The lowest address bit that a level looks at.
    static unsigned low(const stage& s, int level) {
        unsigned bit = s.granule;
        for (int l = 3; l > level; --l)
            bit += s.granule - 3;
        return bit;
    }
    static bool uses_ds(const stage& s) { return s.ds && s.granule != 16; }
    bool wide64(const stage& s) const { return s.granule == 16 && h_.oas == 52; }
    unsigned output_bits(const stage& s) const {
        if (uses_ds(s) || s.granule == 16 || s.output < 48) return s.output;
        return 48;
    }
    bool too_large(u64 address, const stage& s) const { return address >> output_bits(s) != 0; }
    /// The first table, without the bits that must be zero.
    u64 first_table(const stage& s, int level) const {
        u64 bytes = 8;
        for (unsigned i = low(s, level); i < s.input; ++i)
            bytes *= 2;
        if (uses_ds(s) || (wide64(s) && s.output == 52)) bytes = bytes < 64 ? 64 : bytes;
        return s.table - s.table % bytes;
    }
    u64 address_of(u64 d, const stage& s, unsigned lowest) const {
        if (uses_ds(s)) {
            return (part(d, 49, lowest) << lowest) + (part(d, 9, 8) << 50);
        }
        u64 a = part(d, 47, lowest) << lowest;
        if (wide64(s)) a += part(d, 15, 12) << 48;
        return a;
    }
    enum class kind { nothing, table, leaf };
    kind kind_of(u64 d, const stage& s, int level) const {
        if (!has(d, 0)) return kind::nothing;
        if (level == 3) return has(d, 1) ? kind::leaf : kind::nothing;
        if (has(d, 1)) return kind::table;
        bool block = false;
        if (s.granule == 12) block = level == 2 || level == 1 || (level == 0 && uses_ds(s));
        if (s.granule == 14) block = level == 2 || (level == 1 && uses_ds(s));
        if (s.granule == 16) block = level == 2 || (level == 1 && wide64(s));
        return block ? kind::leaf : kind::nothing;
    }
    bool sets_af(const stage& s) const { return s.ha && h_.httu >= 1; }
    bool sets_dirty(const stage& s) const { return s.ha && s.hd && h_.httu >= 2; }

    // ---- stage 1 --------------------------------------------------------------------------
    result stage1(const asked_access& a) {
        const bool upper = has(a.address, 63);
        const stage& s = half_[upper ? 1 : 0];
        if (!s.on || s.epd) return failed(why::translation);
        if (part(a.address, 63, s.input) != (upper ? part(~u64{0}, 63, s.input) : 0)) {
            return failed(why::translation);
        }
        if (s.e0pd && !a.privileged && !s.el2) return failed(why::translation);
        if (too_large(s.table, s)) return failed(why::address_size);
        int level = 3;
        while (s.input > low(s, level) + s.granule - 3)
            --level;
        limits none;
        return level1(a, s, first_table(s, level) + 8 * part(a.address, s.input - 1, low(s, level)),
                      level, none);
    }
    struct limits {
        bool no_user = false, no_write = false, uxn = false, pxn = false;
    };
    result level1(const asked_access& a, const stage& s, u64 at, int level, limits so_far) {
        u64 physical = at;
        if (second_.on) {
            asked_access read;
            read.privileged = true;
            const result where = stage2(at, read, 0xff, 0, true, false);
            if (where.event != why::served) return where;
            physical = where.address;
        }
        const auto stored = memory_.load(physical);
        if (!stored) {
            result r = failed(why::external_abort);
            r.fetched = physical;
            return r;
        }
        const u64 d = turned(*stored, s);
        const kind k = kind_of(d, s, level);
        if (k == kind::nothing) return failed(why::translation);
        if (k == kind::table) {
            const u64 next = address_of(d, s, s.granule);
            if (too_large(next, s)) return failed(why::address_size);
            if (!s.had) {
                so_far.no_user |= has(d, 61);
                so_far.no_write |= has(d, 62);
                so_far.uxn |= has(d, 60);
                so_far.pxn |= has(d, 59);
            }
            const unsigned bit = low(s, level + 1);
            return level1(a, s, next + 8 * part(a.address, bit + s.granule - 4, bit), level + 1,
                          so_far);
        }
        const u64 page = address_of(d, s, low(s, level));
        if (too_large(page, s)) return failed(why::address_size);
        if (!has(d, 10) && !sets_af(s) && !s.affd) return failed(why::access_flag);
        const bool managed = sets_dirty(s) && has(d, 51);
        const bool writable = (!has(d, 7) || managed) && !so_far.no_write;
        if (!permitted1(a, s, d, so_far, writable)) return failed(why::permission);

        u64 wanted = d;
        if (!has(d, 10) && sets_af(s)) wanted += u64{1} << 10;
        if (managed && a.write && has(d, 7)) wanted -= u64{1} << 7;
        if (wanted != d) {
            u64 target = physical;
            if (second_.on) {
                asked_access write;
                write.privileged = write.write = true;
                const result where = stage2(at, write, 0xff, 0, true, true);
                if (where.event != why::served) return where;
                target = where.address;
            }
            memory_.store(target, turned(wanted, s));
        }
        result r;
        r.leaf1 = physical;
        r.size = r.first_page = low(s, level);
        r.address = page + part(a.address, r.size - 1, 0);
        r.global = s.el2 || !has(d, 11);
        const unsigned index = static_cast<unsigned>(part(d, 4, 2)) * 8;
        set_type(r, static_cast<unsigned>(part(s.mair, index + 7, index)),
                 uses_ds(s) ? s.sh : static_cast<unsigned>(part(d, 9, 8)));
        return r;
    }
    static bool permitted1(const asked_access& a, const stage& s, u64 d, const limits& l,
                           bool writable) {
        if (s.el2) {
            if (a.write) return writable;
            if (!a.instruction) return true;
            return !has(d, 54) && !l.uxn && !(s.wxn && writable);
        }
        const bool user = has(d, 6) && !l.no_user;
        const bool user_fetch = !has(d, 54) && !l.uxn;
        if (a.instruction && !a.write) {
            if (!a.privileged) return user_fetch && !(s.wxn && user && writable);
            if (has(d, 53) || l.pxn) return false;
            if (user && writable) return false;
            return !(s.wxn && writable);
        }
        if (!a.privileged) return user && (!a.write || writable);
        if (s.pan && (user || (s.epan && user_fetch))) return false;
        return !a.write || writable;
    }

    // ---- stage 2 --------------------------------------------------------------------------
    result stage2(u64 ipa, const asked_access& a, unsigned type, unsigned sh, bool table,
                  bool update) {
        result r = stage2_inside(ipa, a, type, sh, table);
        if (r.event != why::served) {
            r.stage2 = true;
            r.ipa = ipa;
            r.on_table = table;
            r.table_write = update;
        }
        return r;
    }
    result stage2_inside(u64 ipa, const asked_access& a, unsigned type, unsigned sh, bool table) {
        const stage& s = second_;
        if (ipa >= u64{1} << s.input) return failed(why::translation);
        if (too_large(s.table, s)) return failed(why::address_size);
        u64 at = first_table(s, s.start) + 8 * (ipa >> low(s, s.start));
        for (int level = s.start;; ++level) {
            const auto stored = memory_.load(at);
            if (!stored) {
                result r = failed(why::external_abort);
                r.fetched = at;
                return r;
            }
            const u64 d = turned(*stored, s);
            const kind k = kind_of(d, s, level);
            if (k == kind::nothing) return failed(why::translation);
            if (k == kind::table) {
                const u64 next = address_of(d, s, s.granule);
                if (too_large(next, s)) return failed(why::address_size);
                const unsigned bit = low(s, level + 1);
                at = next + 8 * part(ipa, bit + s.granule - 4, bit);
                continue;
            }
            const unsigned size = low(s, level);
            const u64 page = address_of(d, s, size);
            if (too_large(page, s)) return failed(why::address_size);
            if (!has(d, 10) && !sets_af(s) && !s.affd) return failed(why::access_flag);
            const bool managed = sets_dirty(s) && has(d, 51);
            if (!permitted2(a, d, managed)) return failed(why::permission);
            const bool device = part(d, 5, 4) == 0;
            if (table && s.ptw && device) return failed(why::permission);
            u64 wanted = d;
            if (!has(d, 10) && sets_af(s)) wanted += u64{1} << 10;
            if (managed && a.write && !has(d, 7)) wanted += u64{1} << 7;
            if (wanted != d) memory_.store(at, turned(wanted, s));
            result r;
            r.leaf2 = at;
            r.size = size;
            r.address = page + part(ipa, size - 1, 0);
            combine(r, type, sh, d, uses_ds(s) ? s.sh : static_cast<unsigned>(part(d, 9, 8)));
            return r;
        }
    }
    bool permitted2(const asked_access& a, u64 d, bool managed) const {
        if (a.write) return has(d, 7) || managed;
        if (!a.instruction) return has(d, 6);
        if (!h_.xnx) return !has(d, 54);
        switch (part(d, 54, 53)) {
        case 0:
            return true;
        case 1:
            return !a.privileged;
        case 2:
            return false;
        default:
            return a.privileged;
        }
    }

    // ---- memory types ---------------------------------------------------------------------
    static void set_type(result& r, unsigned type, unsigned sh) {
        r.type = type;
        r.sh = sh == 1 ? 0 : sh;
        if (type < 0x10 || type == 0x44) r.sh = 2;
    }
    /// 0 non-cacheable, 1 write-through, 2 write-back.
    static unsigned rank(unsigned nibble) {
        if (nibble == 4) return 0;
        return nibble / 4 % 2 == 1 ? 2 : 1;
    }
    static unsigned weaker(unsigned nibble, unsigned stage2) {
        const unsigned other = stage2 == 1 ? 0 : stage2 == 2 ? 1 : 2;
        const unsigned both = rank(nibble) < other ? rank(nibble) : other;
        if (both == 0) return 4;
        if (both == 2 || rank(nibble) == 1) return nibble;
        return nibble - 4; // write-back made write-through: hints and transience stay
    }
    static void combine(result& r, unsigned type, unsigned sh, u64 d, unsigned sh2) {
        unsigned both = 0;
        if (sh == 3 || sh2 == 3) both = 3;
        if (sh == 2 || sh2 == 2) both = 2;
        const unsigned attr = static_cast<unsigned>(part(d, 5, 2));
        const bool device1 = type < 0x10;
        const bool device2 = attr < 4;
        if (device1 && device2) {
            set_type(r, (type / 4 < attr ? type / 4 : attr) * 4, both);
        } else if (device1) {
            set_type(r, type, both);
        } else if (device2) {
            set_type(r, attr * 4, both);
        } else {
            const bool tagged = type == 0xf0;
            if (tagged) type = 0xff;
            const unsigned t = weaker(type / 16, attr / 4) * 16 + weaker(type % 16, attr % 4);
            set_type(r, tagged && t == 0xff ? 0xf0 : t, both);
        }
    }

    hardware h_;
    stage half_[2];
    stage second_;
    words& memory_;
};

} // namespace reference
