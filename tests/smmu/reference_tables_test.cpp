// The walker against a slow reference: random regimes of both stages over
// memory whose every word is a random descriptor.
#include "reference_tables.hpp"
#include "table_builder.hpp"

#include <catch2/catch.hpp>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

using namespace tables;

namespace {

u64 mixed(u64 x) {
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
    [[nodiscard]] std::optional<u64> load(u64 at) const noexcept {
        if (at % 8 != 0 || at >> 52 != 0) return std::nullopt;
        if (mixed(at >> 16 ^ taste_.seed << 1) % 1000 < taste_.broken / 2) return std::nullopt;
        const auto found = written.find(at);
        if (found != written.end()) return found->second;
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

class judge {
public:
    explicit judge(u64 seed) : random_(seed) {}

    template <smmu_features F>
    void run(unsigned count) {
        for (unsigned i = 0; i < count; ++i) {
            choose<F>();
            for (unsigned j = 0; j < 4; ++j)
                compare<F>();
        }
    }

    std::map<std::string, unsigned> seen;
    unsigned cases = 0;
    unsigned served = 0;

private:
    u64 below(u64 n) { return random_() % n; }
    bool chance(unsigned percent) { return below(100) < percent; }
    template <class T>
    T one_of(std::initializer_list<T> list) {
        return *(list.begin() + below(list.size()));
    }

    // ---- a case ---------------------------------------------------------------------------
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
        s.big_endian = F.mixed_endian && taste_.big_endian;
        s.sh = one_of({0U, 2U, 3U});
        s.affd = chance(20);
        s.ha = F.httu >= 1 && chance(60);
        s.hd = F.httu >= 2 && chance(70);
        return s;
    }
    template <smmu_features F>
    void choose() {
        taste_ = {};
        taste_.seed = random_();
        taste_.big_endian = F.mixed_endian && chance(20);
        lower_ = any_stage<F>();
        upper_ = any_stage<F>();
        second_ = any_stage<F>();
        const unsigned kind = F.stage2 ? static_cast<unsigned>(below(8)) : 0;
        lower_.on = upper_.on = kind < 5;
        second_.on = kind >= 2 && kind < 7;
        // What both halves of a regime share.
        lower_.wxn = chance(30);
        lower_.pan = chance(30);
        lower_.epan = F.epan && chance(40);
        lower_.el2 = F.hyp && !second_.on && chance(20);
        lower_.mair = random_();
        if (chance(60)) lower_.mair = 0xf04f'bb0c'0004'44ff;
        const u64 lower_mair = lower_.mair;
        for (reference::stage* s : {&lower_, &upper_}) {
            s->e0pd = F.e0pd && chance(15);
            s->had = F.hierarchical_attribute_disable && chance(30);
            s->epd = chance(3);
        }
        upper_.wxn = lower_.wxn;
        upper_.pan = lower_.pan;
        upper_.epan = lower_.epan;
        upper_.el2 = lower_.el2;
        upper_.mair = lower_mair;
        upper_.output = lower_.output;
        upper_.ds = lower_.ds;
        upper_.input = upper_.granule != 16 && !upper_.ds && upper_.input > 48 ? 48 : upper_.input;
        upper_.affd = lower_.affd;
        upper_.ha = lower_.ha;
        upper_.hd = lower_.hd;
        second_.ptw = chance(20);
        // A start level that suits the input size: 1 to 16 tables of it.
        std::vector<int> starts;
        for (int level = -1; level <= 3; ++level) {
            const unsigned low =
                second_.granule + static_cast<unsigned>(3 - level) * (second_.granule - 3);
            if (second_.input > low && second_.input <= low + second_.granule - 3 + 4 &&
                (level >= 0 || second_.ds)) {
                starts.push_back(level);
            }
        }
        if (starts.empty()) starts.push_back(3), second_.input = second_.granule + 2;
        second_.start = starts[below(starts.size())];

        unsigned bits = 48;
        if (lower_.on) bits = std::min(bits, lower_.output);
        if (second_.on) bits = std::min(bits, second_.output);
        if (lower_.on && second_.on) bits = std::min(bits, second_.input);
        taste_.fits = (u64{1} << bits) - 1;
        const auto any = [&](auto what) {
            return (lower_.on && (what(lower_) || what(upper_))) || (second_.on && what(second_));
        };
        const bool room = !any([](const auto& s) { return s.output != 52; }) &&
                          (!lower_.on || !second_.on || second_.input == 52);
        const bool any64 = any([](const auto& s) { return s.granule == 16; });
        const bool any_ds = any([](const auto& s) { return s.ds && s.granule != 16; });
        if (!any64 || room) taste_.wide |= 0xf000;
        if (!any_ds || room) taste_.wide |= 0x300;
        if (any_ds && room) taste_.wide |= 0x0003'0000'0000'0000;
        taste_.broken = one_of({0U, 2U, 5U, 40U});
        taste_.blocks = one_of({0U, 0U, 20U, 250U});
        taste_.limits = one_of({0U, 20U, 150U});
        taste_.no_flag = one_of({0U, 10U, 300U});
        if (chance(40)) {
            taste_.run = one_of({4U, 5U, 7U});
            taste_.run_size = one_of({12U, 14U, 16U, 21U, 25U, 29U, 30U});
        }
        for (reference::stage* s : {&lower_, &upper_, &second_}) {
            s->table = random_() & 0xf'ffff'ffff'fff0;
            if (!chance(3)) s->table &= taste_.fits;
        }
    }
    u64 any_address() {
        const bool high = chance(50);
        const reference::stage& s = !lower_.on ? second_ : high ? upper_ : lower_;
        unsigned bits = s.input;
        if (chance(4)) bits = 64;
        u64 a = bits == 64 ? random_() : random_() & ((u64{1} << bits) - 1);
        if (bits < 64 && lower_.on && high) a |= ~u64{0} << bits;
        return a;
    }

    // ---- the library's view ---------------------------------------------------------------
    static stage1_half half_of(const reference::stage& s) {
        return {.table = s.table,
                .input_bits = static_cast<std::uint8_t>(s.input),
                .granule_bits = static_cast<std::uint8_t>(s.granule),
                .shareability = static_cast<std::uint8_t>(s.sh),
                .enabled = !s.epd,
                .flat_permissions = s.had,
                .user_forbidden = s.e0pd};
    }
    translation_regimes regimes() const {
        translation_regimes r;
        r.stage1_enabled = lower_.on;
        r.stage2_enabled = second_.on;
        r.stage1 = {.half = {half_of(lower_), half_of(upper_)},
                    .memory_types = lower_.mair,
                    .output_bits = static_cast<std::uint8_t>(lower_.output),
                    .wide_format = lower_.ds,
                    .big_endian = lower_.big_endian,
                    .access_flag_ignored = lower_.affd,
                    .updates_access_flag = lower_.ha,
                    .updates_dirty_state = lower_.hd,
                    .write_execute_never = lower_.wxn,
                    .privileged_access_never = lower_.pan,
                    .enhanced_pan = lower_.epan,
                    .one_privilege = lower_.el2};
        r.stage2 = {.table = second_.table,
                    .input_bits = static_cast<std::uint8_t>(second_.input),
                    .granule_bits = static_cast<std::uint8_t>(second_.granule),
                    .start_level = static_cast<std::int8_t>(second_.start),
                    .output_bits = static_cast<std::uint8_t>(second_.output),
                    .shareability = static_cast<std::uint8_t>(second_.sh),
                    .wide_format = second_.ds,
                    .big_endian = second_.big_endian,
                    .access_flag_ignored = second_.affd,
                    .updates_access_flag = second_.ha,
                    .updates_dirty_state = second_.hd,
                    .protected_tables = second_.ptw};
        return r;
    }
    template <smmu_features F>
    reference::result expect(const reference::asked_access& a, random_memory& memory) {
        reference::words words{[&](u64 at) { return memory.load(at); },
                               [&](u64 at, u64 value) { memory.written[at] = value; }};
        const reference::hardware h{.oas = F.output_bits, .xnx = F.xnx, .httu = F.httu};
        return reference::walker{h, lower_, upper_, second_, words}.walk(a);
    }
    static unsigned bit_of(const reference::asked_access& a) {
        return permissions::needed(a.write ? vm_accel::access::write : vm_accel::access::read,
                                   a.privileged, a.instruction);
    }

    template <smmu_features F>
    void compare() {
        ++cases;
        reference::asked_access asked;
        asked.address = any_address();
        asked.write = chance(40);
        asked.privileged = chance(60);
        asked.instruction = chance(25);
        asked.type = one_of({0xffU, 0x44U, 0x04U, 0x00U, 0xbbU});
        asked.sh = asked.type == 0xff || asked.type == 0xbb ? one_of({0U, 2U, 3U}) : 2;
        random_memory theirs{taste_}, ours{taste_};
        const reference::result want = expect<F>(asked, theirs);
        const memory_attributes incoming{static_cast<std::uint8_t>(asked.type),
                                         static_cast<std::uint8_t>(asked.sh)};
        const walk_request request{asked.address, bit_of(asked), incoming};
        const walk_result got = walk_tables<F>(regimes(), request, ours);
        CAPTURE(cases, asked.address, asked.write, asked.privileged, asked.instruction, lower_.on,
                second_.on, static_cast<int>(want.event), want.stage2, want.address);
        const reference::stage& first = !lower_.on                 ? second_
                                        : asked.address >> 63 != 0 ? upper_
                                                                   : lower_;
        CAPTURE(first.granule, first.input, first.output, first.ds, second_.granule, second_.input,
                second_.output, second_.ds, second_.start);

        using spec::event_id;
        static const std::map<reference::why, event_id> events{
            {reference::why::translation, event_id::F_TRANSLATION},
            {reference::why::address_size, event_id::F_ADDR_SIZE},
            {reference::why::access_flag, event_id::F_ACCESS},
            {reference::why::permission, event_id::F_PERMISSION},
            {reference::why::external_abort, event_id::F_WALK_EABT}};
        const char* const stages = !lower_.on   ? (second_.on ? "stage 2" : "none")
                                   : second_.on ? "both stages"
                                                : "stage 1";
        REQUIRE((ours.written == theirs.written));
        if (!ours.written.empty()) ++seen[std::string{"flags set, "} + stages];
        if (want.event != reference::why::served) {
            ++seen["event " + std::to_string(static_cast<int>(want.event)) +
                   (want.stage2 ? want.on_table ? ", stage 2 on a table" : ", stage 2"
                                : ", stage 1")];
            if (want.table_write) ++seen["a table's flag may not be set"];
            REQUIRE(got.event == events.at(want.event));
            REQUIRE(got.stage2 == want.stage2);
            REQUIRE((got.cls == spec::fault_class::TT) == want.on_table);
            REQUIRE(got.table_write == want.table_write);
            REQUIRE(got.ipa == want.ipa);
            REQUIRE(got.fetch_address == want.fetched);
            return;
        }
        ++served;
        REQUIRE_FALSE(got.event);
        REQUIRE(output_of(got, asked.address) == want.address);
        REQUIRE(unsigned{got.attributes.type} == want.type);
        REQUIRE(unsigned{got.attributes.shareability} == want.sh);
        REQUIRE(got.global == want.global);
        REQUIRE(unsigned{got.size_log2} >= want.size);
        REQUIRE(unsigned{got.page_size_log2} >= want.first_page);
        ++seen[std::string{"served, "} + stages];
        if (!first.on) return;
        ++seen["granule " + std::to_string(first.granule) + (first.ds ? " DS" : "")];
        if (want.address >> 48 != 0) ++seen["output above 48 bits"];
        if (asked.address >> 63 != 0) ++seen["upper half"];
        if (first.input > 48) ++seen["input above 48 bits"];
        if (want.first_page > first.granule) ++seen["block"];
        if (unsigned{got.size_log2} > want.size) ++seen["contiguous run"];
        if (lower_.on && second_.on && want.size < want.first_page)
            ++seen["smaller page of stage 2"];

        // Everything that the answer covers, and what it allows later, is what a walk says.
        reference::asked_access later = asked;
        for (unsigned i = 0; i < 2; ++i) {
            const u64 size = u64{1} << got.size_log2;
            later.address = got.input_base + below(size);
            check_lasting<F>(later, got, ours);
        }
        later = asked;
        for (unsigned i = 0; i < 8; ++i) {
            later.write = (i & 1) != 0;
            later.privileged = (i & 2) != 0;
            later.instruction = (i & 4) != 0;
            check_lasting<F>(later, got, ours);
        }
    }
    /// A later access is allowed exactly if a walk would serve it and change nothing.
    template <smmu_features F>
    void check_lasting(const reference::asked_access& later, const walk_result& got,
                       const random_memory& after) {
        random_memory memory = after;
        const reference::result again = expect<F>(later, memory);
        const bool serves =
            again.event == reference::why::served && memory.written == after.written;
        CAPTURE(later.address, later.write, later.privileged, later.instruction,
                static_cast<int>(again.event));
        REQUIRE(got.allowed.allow(bit_of(later)) == serves);
        if (serves) {
            REQUIRE(output_of(got, later.address) == again.address);
            REQUIRE(unsigned{got.attributes.type} == again.type);
            REQUIRE(unsigned{got.attributes.shareability} == again.sh);
            REQUIRE(got.global == again.global);
        }
    }

    std::mt19937_64 random_;
    taste taste_;
    reference::stage lower_, upper_, second_;
};

std::vector<u64> seeds() {
    if (const char* wanted = std::getenv("VM_ACCEL_WALK_SEED")) {
        return {std::strtoull(wanted, nullptr, 0)};
    }
    return {1, 2, 3};
}

/// 48 bits, no XNX, no dirty state: what the forms and flags mean without them.
constexpr smmu_features middling{
    .stage2 = true, .granule_16k = true, .granule_64k = true, .output_bits = 48, .httu = 1};

} // namespace

TEST_CASE("the walker gives what the reference gives", "[smmu][walk][reference]") {
    std::map<std::string, unsigned> seen;
    for (const u64 seed : seeds()) {
        CAPTURE(seed);
        judge j{seed};
        j.run<full_features>(6000);
        j.run<middling>(1500);
        j.run<stage1_features>(500);
        std::printf("reference tables: seed %llu, %u cases, %u served\n",
                    static_cast<unsigned long long>(seed), j.cases, j.served);
        CHECK(j.served > j.cases / 5);
        CHECK(j.served < j.cases * 9 / 10);
        for (const auto& [what, times] : j.seen)
            seen[what] += times;
    }
    if (seeds().size() == 1) return; // one seed need not meet everything
    for (const char* what :
         {"served, none", "served, stage 1", "served, stage 2", "served, both stages",
          "flags set, stage 1", "flags set, stage 2", "flags set, both stages",
          "a table's flag may not be set", "granule 12", "granule 12 DS", "granule 14",
          "granule 14 DS", "granule 16", "upper half", "input above 48 bits",
          "output above 48 bits", "block", "contiguous run", "smaller page of stage 2"}) {
        CAPTURE(what);
        CHECK(seen[what] >= 50);
    }
    for (unsigned event = 1; event <= 5; ++event) {
        for (const char* stage : {", stage 1", ", stage 2", ", stage 2 on a table"}) {
            CAPTURE(event, stage);
            CHECK(seen["event " + std::to_string(event) + stage] >= 50);
        }
    }
}
