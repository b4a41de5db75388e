// Which STEs and CDs are legal: one row per rule of IHI 0070, 5.2.2, 5.4.2 and
// 5.5. Each row changes one thing of a legal image, and is asked of SMMUs that
// have every feature, and of others that lack one.
#include <vm_accel/smmu/translation/context_descriptor.hpp>
#include <vm_accel/smmu/translation/stream_entry.hpp>

#include <catch2/catch.hpp>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

using namespace vm_accel;

namespace {

constexpr smmu_features changed(auto change) {
    smmu_features f = full_features;
    change(f);
    return f;
}

/// Calls `check.operator()<F>(name)` for every kind of SMMU.
template <class Check>
void for_all_features(Check check) {
    using f = smmu_features;
    check.template operator()<full_features>("everything");
    check.template operator()<stage1_features>("the default");
    check.template operator()<changed([](f& x) {
        x.stage1 = false;
        x.substream_bits = 0;
        x.hyp = false;
    })>("no stage 1");
    check.template operator()<changed([](f& x) {
        x.stage2 = false;
        x.mpam = false;
    })>("no stage 2");
    check.template operator()<changed([](f& x) { x.granule_16k = false; })>("no 16K");
    check.template operator()<changed([](f& x) {
        x.granule_64k = false;
        x.vax52 = false;
    })>("no 64K");
    check.template operator()<changed([](f& x) { x.vax52 = false; })>("48-bit VA");
    check.template operator()<changed([](f& x) { x.ds = false; })>("no DS");
    check.template operator()<changed([](f& x) { x.stt = false; })>("no small tables");
    check.template operator()<changed([](f& x) { x.output_bits = 48; })>("48-bit output");
    check.template operator()<changed([](f& x) { x.output_bits = 40; })>("40-bit output");
    check.template operator()<changed([](f& x) { x.mixed_endian = false; })>("little-endian");
    check.template operator()<changed([](f& x) { x.httu = 1; })>("HTTU 1");
    check.template operator()<changed([](f& x) { x.httu = 0; })>("HTTU 0");
    check.template operator()<changed([](f& x) { x.stalls = false; })>("no stalls");
    check.template operator()<changed([](f& x) { x.quiet_termination = false; })>("TERM_MODEL");
    check.template operator()<changed([](f& x) { x.substream_bits = 0; })>("no SubstreamIDs");
    check.template operator()<changed([](f& x) { x.substream_bits = 4; })>("16 SubstreamIDs");
    check.template operator()<changed([](f& x) { x.two_level_cd_table = false; })>("no CD2L");
    check.template operator()<changed([](f& x) { x.hyp = false; })>("no Hyp");
    check.template operator()<changed([](f& x) { x.asid16 = false; })>("8-bit ASIDs");
    check.template operator()<changed([](f& x) { x.vmid16 = false; })>("8-bit VMIDs");
    check.template operator()<changed([](f& x) {
        x.ats = false;
        x.pri = false;
    })>("no ATS");
    check.template operator()<changed([](f& x) { x.mpam = false; })>("no MPAM");
}

using S = spec::ste;
using C = spec::cd;

/// An STE that every SMMU with its stages takes. 4 KiB pages, 40-bit addresses.
S legal_ste(std::uint64_t config) {
    S s;
    set<S::V>(s, 1);
    set<S::Config>(s, config);
    set<S::S1ContextPtr>(s, 0x4000'1000 >> 6);
    set<S::S2VMID>(s, 7);
    set<S::S2T0SZ>(s, 24);
    set<S::S2SL0>(s, 1);
    set<S::S2PS>(s, 2);
    set<S::S2AA64>(s, 1);
    set<S::S2R>(s, 1);
    set<S::S2TTB>(s, 0x4000'2000 >> 4);
    return s;
}
C legal_cd() {
    C c;
    set<C::V>(c, 1);
    set<C::AA64>(c, 1);
    set<C::A>(c, 1);
    set<C::R>(c, 1);
    set<C::IPS>(c, 2);
    set<C::T0SZ>(c, 25);
    set<C::T1SZ>(c, 25);
    set<C::TG1>(c, 2);
    set<C::ASID>(c, 5);
    set<C::TTB0>(c, 0x4000'3000 >> 4);
    set<C::TTB1>(c, 0x4000'4000 >> 4);
    return c;
}

using features = const smmu_features&;
constexpr std::uint64_t stage1 = 0b101;
constexpr std::uint64_t stage2 = 0b110;
constexpr std::uint64_t nested = 0b111;
constexpr std::uint64_t bypass = 0b100;

bool always(features) { return true; }
bool never(features) { return false; }

} // namespace

TEST_CASE("an STE is legal as the features say", "[smmu][config][legality]") {
    struct row {
        const char* what;
        std::vector<std::uint64_t> configs;
        std::function<void(S&)> change;
        std::function<bool(features)> legal; ///< given that the stages are implemented
    };
    const std::vector<std::uint64_t> all{bypass, stage1, stage2, nested};
    const auto s2 = [](std::uint64_t tg, std::uint64_t sz, std::uint64_t sl0, bool ds = false,
                       bool sl0_2 = false, std::uint64_t ps = 6) {
        return [=](S& s) {
            set<S::S2TG>(s, tg);
            set<S::S2T0SZ>(s, sz);
            set<S::S2SL0>(s, sl0);
            set<S::S2DS>(s, ds ? 1 : 0);
            set<S::S2SL0_2>(s, sl0_2 ? 1 : 0);
            set<S::S2PS>(s, ps);
        };
    };
    const auto oas = [](unsigned bits) {
        return [=](features f) { return f.output_bits >= bits; };
    };
    const std::vector<row> rows{
        {"as it should be", all, [](S&) {}, always},
        {"V clear", all, [](S& s) { set<S::V>(s, 0); }, never},
        {"every reserved and implementation-defined bit set",
         {bypass, stage1, stage2, nested},
         [](S& s) {
             s.word[0] = le64{s.word[0].value() | 7ULL << 56};
             s.word[1] = le64{s.word[1].value() | 0xfffULL << 52 | 7ULL << 41 | 0xfULL << 20 |
                              S::DRE::mask | S::DCP::mask | S::PPAR::mask | S::MEV::mask |
                              S::S1PIE::mask | S::S2FWB::mask | S::S2HWU59::mask};
             s.word[2] = le64{s.word[2].value() | 0xffffULL << 16 | S::S2HAFT::mask |
                              S::S2PIE::mask | S::S2POE::mask | S::DPT_VMATCH::mask};
             s.word[3] = le64{s.word[3].value() | 0xfULL << 52 | 0x1fULL << 56 | S::S2SKL::mask |
                              S::S2NSW::mask | S::S2NSA::mask};
             s.word[4] = le64{~std::uint64_t{0} & ~S::PARTID::mask};
             s.word[6] = le64{~std::uint64_t{0}};
             s.word[7] = le64{~std::uint64_t{0}};
         },
         always},
        {"a run of streams (CONT)", all, [](S& s) { set<S::CONT>(s, 15); }, always},
        {"every override", all,
         [](S& s) {
             set<S::MTCFG>(s, 1);
             set<S::MemAttr>(s, 15);
             set<S::SHCFG>(s, 3);
             set<S::ALLOCCFG>(s, 15);
             set<S::NSCFG>(s, 3);
             set<S::PRIVCFG>(s, 3);
             set<S::INSTCFG>(s, 3);
         },
         always},
        // Stage 1.
        {"S1ContextPtr beyond 40 bits",
         {stage1, nested},
         [](S& s) { set<S::S1ContextPtr>(s, (1ULL << 40) >> 6); },
         oas(41)},
        {"S1ContextPtr beyond 52 bits",
         {stage1, nested},
         [](S& s) { set<S::S1ContextPtr>(s, (1ULL << 52) >> 6); },
         never},
        {"S1ContextPtr beyond 52 bits, ignored",
         {bypass, stage2},
         [](S& s) { set<S::S1ContextPtr>(s, (1ULL << 52) >> 6); },
         always},
        {"S1STALLD",
         {stage1, nested},
         [](S& s) { set<S::S1STALLD>(s, 1); },
         [](features f) { return f.stalls; }},
        {"S1STALLD, ignored", {bypass, stage2}, [](S& s) { set<S::S1STALLD>(s, 1); }, always},
        {"S1CDMax of 16 CDs", {stage1, nested}, [](S& s) { set<S::S1CDMax>(s, 4); }, always},
        {"S1CDMax of 32 CDs",
         {stage1, nested},
         [](S& s) { set<S::S1CDMax>(s, 5); },
         [](features f) { return f.substream_bits == 0 || f.substream_bits >= 5; }},
        {"S1CDMax of 2^21 CDs",
         {stage1, nested},
         [](S& s) { set<S::S1CDMax>(s, 21); },
         [](features f) { return f.substream_bits == 0; }},
        {"S1CDMax of 2^31 CDs, ignored",
         {bypass, stage2},
         [](S& s) { set<S::S1CDMax>(s, 31); },
         always},
        {"two-level CD table",
         {stage1, nested},
         [](S& s) {
             set<S::S1CDMax>(s, 4);
             set<S::S1Fmt>(s, 1);
         },
         [](features f) { return f.substream_bits == 0 || f.two_level_cd_table; }},
        {"two-level CD table, 64 KiB leaves",
         {stage1, nested},
         [](S& s) {
             set<S::S1CDMax>(s, 4);
             set<S::S1Fmt>(s, 2);
         },
         [](features f) { return f.substream_bits == 0 || f.two_level_cd_table; }},
        {"reserved CD table format is linear",
         {stage1, nested},
         [](S& s) {
             set<S::S1CDMax>(s, 4);
             set<S::S1Fmt>(s, 3);
         },
         always},
        {"S1Fmt without SubstreamIDs, ignored",
         {stage1, nested},
         [](S& s) { set<S::S1Fmt>(s, 2); },
         always},
        {"STRW = EL2", {stage1}, [](S& s) { set<S::STRW>(s, 2); }, always},
        {"STRW reserved",
         {stage1},
         [](S& s) { set<S::STRW>(s, 1); },
         [](features f) { return !f.hyp; }},
        {"STRW reserved",
         {stage1},
         [](S& s) { set<S::STRW>(s, 3); },
         [](features f) { return !f.hyp; }},
        {"STRW reserved, ignored",
         {bypass, stage2, nested},
         [](S& s) { set<S::STRW>(s, 3); },
         always},
        // VMID.
        {"16-bit VMID",
         {stage1, stage2, nested},
         [](S& s) { set<S::S2VMID>(s, 0x100); },
         [](features f) { return f.vmid16 || !f.stage2; }},
        {"16-bit VMID, ignored", {bypass}, [](S& s) { set<S::S2VMID>(s, 0x100); }, always},
        {"16-bit VMID of an EL2 stream, ignored",
         {stage1},
         [](S& s) {
             set<S::S2VMID>(s, 0x100);
             set<S::STRW>(s, 2);
         },
         [](features f) { return f.vmid16 || !f.stage2 || f.hyp; }},
        // ATS.
        {"full ATS", all, [](S& s) { set<S::EATS>(s, 1); }, always},
        {"full ATS and S2S",
         {stage2, nested},
         [](S& s) {
             set<S::EATS>(s, 1);
             set<S::S2S>(s, 1);
         },
         [](features f) { return f.stalls && !f.ats; }},
        {"full ATS and S2S, ignored",
         {bypass, stage1},
         [](S& s) {
             set<S::EATS>(s, 1);
             set<S::S2S>(s, 1);
         },
         always},
        {"split-stage ATS", {nested}, [](S& s) { set<S::EATS>(s, 2); }, always},
        {"split-stage ATS and S2S",
         {nested},
         [](S& s) {
             set<S::EATS>(s, 2);
             set<S::S2S>(s, 1);
         },
         [](features f) { return f.stalls && !f.ats; }},
        {"split-stage ATS of one stage",
         {stage1, stage2},
         [](S& s) { set<S::EATS>(s, 2); },
         [](features f) { return !f.ats; }},
        {"split-stage ATS, ignored", {bypass}, [](S& s) { set<S::EATS>(s, 2); }, always},
        {"ATS with DPT, which is not offered: as none", all, [](S& s) { set<S::EATS>(s, 3); },
         always},
        // Stage 2.
        {"AArch32 stage 2", {stage2, nested}, [](S& s) { set<S::S2AA64>(s, 0); }, never},
        {"AArch32 stage 2, ignored", {bypass, stage1}, [](S& s) { set<S::S2AA64>(s, 0); }, always},
        {"big-endian",
         {stage2, nested},
         [](S& s) { set<S::S2ENDI>(s, 1); },
         [](features f) { return f.mixed_endian; }},
        {"S2HA",
         {stage2, nested},
         [](S& s) { set<S::S2HA>(s, 1); },
         [](features f) { return f.httu >= 1; }},
        {"S2HD",
         {stage2, nested},
         [](S& s) { set<S::S2HD>(s, 1); },
         [](features f) { return f.httu >= 2; }},
        {"S2HA and S2HD, ignored",
         {bypass, stage1},
         [](S& s) {
             set<S::S2HA>(s, 1);
             set<S::S2HD>(s, 1);
         },
         always},
        {"S2S",
         {stage2, nested},
         [](S& s) { set<S::S2S>(s, 1); },
         [](features f) { return f.stalls; }},
        {"S2PTW, S2AFFD",
         {stage2, nested},
         [](S& s) {
             set<S::S2PTW>(s, 1);
             set<S::S2AFFD>(s, 1);
         },
         always},
        {"S2TTB beyond S2PS",
         {stage2, nested},
         [](S& s) { set<S::S2TTB>(s, (1ULL << 40) >> 4); },
         never},
        {"S2TTB within a larger S2PS",
         {stage2, nested},
         [](S& s) {
             set<S::S2TTB>(s, (1ULL << 40) >> 4);
             set<S::S2PS>(s, 5);
         },
         oas(41)},
        {"S2PS beyond OAS counts as OAS",
         {stage2, nested},
         [](S& s) { set<S::S2PS>(s, 7); },
         always},
        {"S2TTB beyond 48 bits, 4 KiB",
         {stage2, nested},
         [](S& s) {
             set<S::S2TTB>(s, (1ULL << 48) >> 4);
             set<S::S2PS>(s, 6);
         },
         never},
        {"S2TTB beyond 48 bits, 4 KiB, S2DS",
         {stage2, nested},
         [](S& s) {
             set<S::S2TTB>(s, (1ULL << 48) >> 4);
             set<S::S2PS>(s, 6);
             set<S::S2DS>(s, 1);
         },
         [](features f) { return f.output_bits == 52 && f.ds; }},
        {"reserved granule", {stage2, nested}, [](S& s) { set<S::S2TG>(s, 3); }, never},
        {"16 KiB granule",
         {stage2, nested},
         s2(2, 24, 2, false, false, 2),
         [](features f) { return f.granule_16k && f.output_bits >= 42; }},
        {"16 KiB granule, level 2",
         {stage2, nested},
         s2(2, 24, 1, false, false, 2),
         [](features f) { return f.granule_16k; }},
        {"64 KiB granule, level 2",
         {stage2, nested},
         s2(1, 24, 1, false, false, 2),
         [](features f) { return f.granule_64k; }},
        // Input size and start level: 4 KiB.
        {"48 bits from level 0", {stage2, nested}, s2(0, 16, 2), oas(48)},
        {"44 bits from level 0", {stage2, nested}, s2(0, 20, 2), oas(44)},
        {"40 bits from level 0", {stage2, nested}, s2(0, 24, 2), oas(44)},
        {"39 bits from level 0: one descriptor", {stage2, nested}, s2(0, 25, 2), never},
        {"40 bits from level 1: two tables", {stage2, nested}, s2(0, 24, 1), always},
        {"43 bits from level 1: 16 tables", {stage2, nested}, s2(0, 21, 1), oas(43)},
        {"44 bits from level 1: 32 tables", {stage2, nested}, s2(0, 20, 1), never},
        {"34 bits from level 2: 16 tables", {stage2, nested}, s2(0, 30, 0), always},
        {"35 bits from level 2", {stage2, nested}, s2(0, 29, 0), never},
        {"25 bits from level 2", {stage2, nested}, s2(0, 39, 0), always},
        {"24 bits: too small", {stage2, nested}, s2(0, 40, 0), [](features f) { return f.stt; }},
        {"16 bits from level 3", {stage2, nested}, s2(0, 48, 3), [](features f) { return f.stt; }},
        {"15 bits", {stage2, nested}, s2(0, 49, 3), never},
        {"49 bits, 4 KiB", {stage2, nested}, s2(0, 15, 2), never},
        {"49 bits, 4 KiB, S2DS, level 0",
         {stage2, nested},
         s2(0, 15, 2, true),
         [](features f) { return f.ds && f.output_bits == 52; }},
        {"52 bits, 4 KiB, S2DS, level 0",
         {stage2, nested},
         s2(0, 12, 2, true),
         [](features f) { return f.ds && f.output_bits == 52; }},
        {"52 bits, 4 KiB, S2DS, level -1",
         {stage2, nested},
         s2(0, 12, 0, true, true),
         [](features f) { return f.ds && f.output_bits == 52; }},
        {"48 bits from level -1: one descriptor",
         {stage2, nested},
         s2(0, 16, 0, true, true),
         never},
        {"S2SL0_2 with S2SL0", {stage2, nested}, s2(0, 12, 1, true, true), never},
        {"S2SL0_2 without S2DS, ignored", {stage2, nested}, s2(0, 24, 1, false, true), always},
        {"51 bits", {stage2, nested}, s2(0, 11, 2, true), never},
        // 16 KiB.
        {"47 bits from level 1, 16 KiB",
         {stage2, nested},
         s2(2, 17, 2),
         [](features f) { return f.granule_16k && f.output_bits >= 48; }},
        {"48 bits from level 1, 16 KiB: two tables",
         {stage2, nested},
         s2(2, 16, 2),
         [](features f) { return f.granule_16k && f.output_bits >= 48; }},
        {"level 0, 16 KiB", {stage2, nested}, s2(2, 16, 3), never},
        {"52 bits from level 0, 16 KiB, S2DS",
         {stage2, nested},
         s2(2, 12, 3, true),
         [](features f) { return f.granule_16k && f.ds && f.output_bits == 52; }},
        {"52 bits from level 1, 16 KiB, S2DS: 32 tables",
         {stage2, nested},
         s2(2, 12, 2, true),
         never},
        {"51 bits from level 1, 16 KiB, S2DS: 16 tables",
         {stage2, nested},
         s2(2, 13, 2, true),
         [](features f) { return f.granule_16k && f.ds && f.output_bits == 52; }},
        // 64 KiB.
        {"52 bits from level 1, 64 KiB",
         {stage2, nested},
         s2(1, 12, 2),
         [](features f) { return f.granule_64k && f.output_bits == 52; }},
        {"46 bits from level 2, 64 KiB: 16 tables",
         {stage2, nested},
         s2(1, 18, 1),
         [](features f) { return f.granule_64k && f.output_bits >= 48; }},
        {"47 bits from level 2, 64 KiB: 32 tables", {stage2, nested}, s2(1, 17, 1), never},
        {"level 0, 64 KiB", {stage2, nested}, s2(1, 12, 3), never},
        {"17 bits, 64 KiB",
         {stage2, nested},
         s2(1, 47, 0),
         [](features f) { return f.granule_64k && f.stt; }},
        {"16 bits, 64 KiB", {stage2, nested}, s2(1, 48, 0), never},
        // MPAM.
        {"VMSPtr beyond 52 bits",
         {nested},
         [](S& s) {
             set<S::S1MPAM>(s, 1);
             set<S::VMSPtr>(s, (1ULL << 52) >> 12);
         },
         [](features f) { return !f.mpam; }},
        {"VMSPtr beyond 40 bits",
         {nested},
         [](S& s) {
             set<S::S1MPAM>(s, 1);
             set<S::VMSPtr>(s, (1ULL << 40) >> 12);
         },
         [](features f) { return !f.mpam || f.output_bits > 40; }},
        {"VMSPtr beyond 52 bits, ignored",
         {bypass, stage1, stage2},
         [](S& s) {
             set<S::S1MPAM>(s, 1);
             set<S::VMSPtr>(s, (1ULL << 52) >> 12);
         },
         always},
        {"VMSPtr beyond 52 bits without S1MPAM, ignored",
         {nested},
         [](S& s) { set<S::VMSPtr>(s, (1ULL << 52) >> 12); },
         always},
    };
    for_all_features([&]<smmu_features F>(const char* which) {
        for (const row& r : rows) {
            for (const std::uint64_t config : r.configs) {
                S s = legal_ste(config);
                r.change(s);
                const bool implemented =
                    ((config & 1) == 0 || F.stage1) && ((config & 2) == 0 || F.stage2);
                CAPTURE(which, r.what, config);
                CHECK(plan_stream<F>(s).has_value() == (implemented && r.legal(F)));
            }
        }
    });
}

TEST_CASE("a CD is legal as the features and its STE say", "[smmu][config][legality]") {
    struct row {
        const char* what;
        std::function<void(C&)> change;
        std::function<bool(features, const context_use&)> legal;
    };
    using use = const context_use&;
    const auto is_el2 = [](use u) { return u.world == stream_world::ns_el2; };
    const auto of = [](std::function<bool(features)> f) {
        return [=](features x, use) { return f(x); };
    };
    const auto lower = [](std::uint64_t tg, std::uint64_t sz, bool ds = false) {
        return [=](C& c) {
            set<C::TG0>(c, tg);
            set<C::T0SZ>(c, sz);
            set<C::DS>(c, ds ? 1 : 0);
        };
    };
    const auto upper = [](std::uint64_t tg, std::uint64_t sz, bool ds = false) {
        return [=](C& c) {
            set<C::TG1>(c, tg);
            set<C::T1SZ>(c, sz);
            set<C::DS>(c, ds ? 1 : 0);
        };
    };
    const std::vector<row> rows{
        {"as it should be", [](C&) {}, of(always)},
        {"V clear", [](C& c) { set<C::V>(c, 0); }, of(never)},
        {"AArch32", [](C& c) { set<C::AA64>(c, 0); }, of(never)},
        {"every bit without meaning here",
         [](C& c) {
             c.word[1] = le64{c.word[1].value() | 1ULL | C::HAFT::mask | 0xfULL << 52 | 3ULL << 56 |
                              C::PnCH::mask | 0xfULL << 60};
             c.word[2] = le64{c.word[2].value() | 1ULL | C::AIE::mask | 0xfULL << 52 | 3ULL << 56 |
                              C::PIE::mask | 0xfULL << 60};
             for (const std::size_t i : {3U, 4U, 5U, 6U, 7U})
                 c.word[i] = le64{~std::uint64_t{0}};
         },
         of(always)},
        {"everything that restricts permissions",
         [](C& c) {
             for (std::uint64_t bit : {C::WXN::mask, C::UWXN::mask, C::PAN::mask, C::TBI0::mask,
                                       C::TBI1::mask, C::AFFD::mask})
                 c.word[0] = le64{c.word[0].value() | bit};
             c.word[1] = le64{c.word[1].value() | C::HAD0::mask | C::E0PD0::mask | C::EPAN::mask};
             c.word[2] = le64{c.word[2].value() | C::HAD1::mask | C::E0PD1::mask};
         },
         of(always)},
        {"stall", [](C& c) { set<C::S>(c, 1); },
         [](features f, use u) { return f.stalls && !u.stalls_forbidden; }},
        {"terminate quietly", [](C& c) { set<C::A>(c, 0); },
         of([](features f) { return f.quiet_termination; })},
        {"terminate in silence", [](C& c) { set<C::R>(c, 0); }, of(always)},
        {"big-endian", [](C& c) { set<C::ENDI>(c, 1); },
         of([](features f) { return f.mixed_endian; })},
        {"big-endian, one half off",
         [](C& c) {
             set<C::ENDI>(c, 1);
             set<C::EPD0>(c, 1);
         },
         of([](features f) { return f.mixed_endian; })},
        {"big-endian, no walks, ignored",
         [](C& c) {
             set<C::ENDI>(c, 1);
             set<C::EPD0>(c, 1);
             set<C::EPD1>(c, 1);
         },
         [=](features f, use u) { return f.mixed_endian || !is_el2(u); }},
        {"HA", [](C& c) { set<C::HA>(c, 1); }, of([](features f) { return f.httu >= 1; })},
        {"HD", [](C& c) { set<C::HD>(c, 1); }, of([](features f) { return f.httu >= 2; })},
        {"16-bit ASID", [](C& c) { set<C::ASID>(c, 0x100); },
         [=](features f, use u) { return f.asid16 || is_el2(u); }},
        // The lower half.
        {"reserved granule", [](C& c) { set<C::TG0>(c, 3); }, of(never)},
        {"16 KiB", lower(2, 25), of([](features f) { return f.granule_16k; })},
        {"64 KiB", lower(1, 25), of([](features f) { return f.granule_64k; })},
        {"T0SZ 16", lower(0, 16), of(always)},
        {"T0SZ 15", lower(0, 15), of(never)},
        {"T0SZ 15, DS", lower(0, 15, true), of([](features f) { return f.ds && f.vax52; })},
        {"T0SZ 12, DS", lower(0, 12, true), of([](features f) { return f.ds && f.vax52; })},
        {"T0SZ 11, DS", lower(0, 11, true), of(never)},
        {"T0SZ 12, 16 KiB, DS", lower(2, 12, true),
         of([](features f) { return f.granule_16k && f.ds && f.vax52; })},
        {"T0SZ 12, 64 KiB", lower(1, 12), of([](features f) { return f.granule_64k && f.vax52; })},
        {"T0SZ 11, 64 KiB", lower(1, 11), of(never)},
        {"T0SZ 39", lower(0, 39), of(always)},
        {"T0SZ 40", lower(0, 40), of([](features f) { return f.stt; })},
        {"T0SZ 48", lower(0, 48), of([](features f) { return f.stt; })},
        {"T0SZ 49", lower(0, 49), of(never)},
        {"T0SZ 47, 64 KiB", lower(1, 47), of([](features f) { return f.granule_64k && f.stt; })},
        {"T0SZ 48, 64 KiB", lower(1, 48), of(never)},
        {"T0SZ 48, 16 KiB", lower(2, 48), of([](features f) { return f.granule_16k && f.stt; })},
        {"TTB0 beyond IPS", [](C& c) { set<C::TTB0>(c, (1ULL << 40) >> 4); }, of(never)},
        {"TTB0 within a larger IPS",
         [](C& c) {
             set<C::TTB0>(c, (1ULL << 40) >> 4);
             set<C::IPS>(c, 3);
         },
         of([](features f) { return f.output_bits > 40; })},
        {"IPS beyond OAS counts as OAS", [](C& c) { set<C::IPS>(c, 7); }, of(always)},
        {"TTB0 beyond 48 bits",
         [](C& c) {
             set<C::TTB0>(c, (1ULL << 48) >> 4);
             set<C::IPS>(c, 6);
         },
         of(never)},
        {"TTB0 beyond 48 bits, DS",
         [](C& c) {
             set<C::TTB0>(c, (1ULL << 48) >> 4);
             set<C::IPS>(c, 6);
             set<C::DS>(c, 1);
         },
         of([](features f) { return f.output_bits == 52 && f.ds; })},
        {"TTB0 beyond 48 bits, 64 KiB",
         [](C& c) {
             set<C::TTB0>(c, (1ULL << 48) >> 4);
             set<C::IPS>(c, 6);
             set<C::TG0>(c, 1);
         },
         of([](features f) { return f.output_bits == 52 && f.granule_64k; })},
        {"nonsense in a lower half that is off",
         [](C& c) {
             set<C::EPD0>(c, 1);
             set<C::T0SZ>(c, 63);
             set<C::TG0>(c, 3);
             set<C::TTB0>(c, C::TTB0::max);
         },
         [=](features, use u) { return !is_el2(u); }},
        // The upper half, which EL2 has not.
        {"reserved granule above", [](C& c) { set<C::TG1>(c, 0); },
         [=](features, use u) { return is_el2(u); }},
        {"16 KiB above", upper(1, 25),
         [=](features f, use u) { return f.granule_16k || is_el2(u); }},
        {"64 KiB above", upper(3, 25),
         [=](features f, use u) { return f.granule_64k || is_el2(u); }},
        {"T1SZ 15", upper(2, 15), [=](features, use u) { return is_el2(u); }},
        {"T1SZ 12, DS", upper(2, 12, true),
         [=](features f, use u) { return (f.ds && f.vax52) || is_el2(u); }},
        {"T1SZ 40", upper(2, 40), [=](features f, use u) { return f.stt || is_el2(u); }},
        {"T1SZ 49", upper(2, 49), [=](features, use u) { return is_el2(u); }},
        {"TTB1 beyond IPS", [](C& c) { set<C::TTB1>(c, (1ULL << 40) >> 4); },
         [=](features, use u) { return is_el2(u); }},
        {"nonsense in an upper half that is off",
         [](C& c) {
             set<C::EPD1>(c, 1);
             set<C::T1SZ>(c, 63);
             set<C::TG1>(c, 0);
             set<C::TTB1>(c, C::TTB1::max);
         },
         of(always)},
    };
    for_all_features([&]<smmu_features F>(const char* which) {
        if (!F.stage1) return;
        for (const stream_world world :
             {stream_world::ns_el1, stream_world::ns_el2, stream_world::ns_el2_e2h}) {
            for (const bool stalls_forbidden : {false, true}) {
                const context_use u{world, stalls_forbidden};
                for (const row& r : rows) {
                    C c = legal_cd();
                    r.change(c);
                    CAPTURE(which, r.what, static_cast<int>(world), stalls_forbidden);
                    stream_configuration out;
                    const auto event = decode_cd<F>(c, u, out);
                    CHECK(event.has_value() == !r.legal(F, u));
                    if (event) CHECK(*event == spec::event_id::C_BAD_CD);
                }
            }
        }
    });
}
