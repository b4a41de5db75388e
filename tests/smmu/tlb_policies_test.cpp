// What each TLB policy promises beyond the contract that all share.
#include "smmu/tlb_every_policy.hpp"

#include <vm_accel/smmu/caches/context_table.hpp>

#include <catch2/catch.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <random>
#include <tuple>
#include <utility>
#include <vector>

using namespace vm_accel;
using namespace tlb_tests;

namespace {

constexpr std::uint64_t page = 0x1000;

/// One access of a device: true = a hit. A miss fills.
bool touch(any_tlb& tlb, std::uint64_t address, std::uint64_t context = context_a,
           translation_tag tag = tag_a) {
    if (tlb.lookup({address, context, 1ULL << 12})) return true;
    tlb.put(entry_at(address & ~(page - 1), 12, context, tag));
    return false;
}
bool has(any_tlb& tlb, std::uint64_t address, std::uint64_t context = context_a) {
    return tlb.lookup({address, context, 1ULL << 12}).has_value();
}

} // namespace

// ---- replacement -------------------------------------------------------------------------------

namespace {

/// The entries of one set, next victim first, as a textbook keeps them.
struct ordered_list {
    list_order order;
    std::size_t ways;
    std::list<std::pair<std::uint64_t, bool>> entries{}; ///< page, and whether it was hit

    bool touch(std::uint64_t address) {
        const auto at = std::find_if(entries.begin(), entries.end(),
                                     [&](const auto& e) { return e.first == address; });
        if (at != entries.end()) {
            at->second = true;
            if (order == list_order::as_used) entries.splice(entries.end(), entries, at);
            return true;
        }
        while (order == list_order::second_chance && entries.size() == ways &&
               entries.front().second) {
            entries.front().second = false;
            entries.splice(entries.end(), entries, entries.begin());
        }
        if (entries.size() == ways) entries.pop_front();
        entries.emplace_back(address, false);
        return false;
    }
};

template <class Tlb, list_order Order>
struct exact {
    using tlb = Tlb;
    static constexpr list_order order = Order;
};
using exact_policies =
    std::tuple<exact<set_associative<1, 1, lru>, list_order::as_used>,
               exact<set_associative<1, 2, lru>, list_order::as_used>,
               exact<set_associative<1, 5, lru>, list_order::as_used>,
               exact<set_associative<1, 8, lru>, list_order::as_used>,
               exact<set_associative<1, 2, tree_plru>, list_order::as_used>,
               exact<fully_associative<9>, list_order::as_used>,
               exact<fully_associative<9, fifo>, list_order::as_filled>,
               exact<fully_associative<9, ::vm_accel::clock>, list_order::second_chance>>;

} // namespace

TEMPLATE_LIST_TEST_CASE("TLB: exact orders are exact", "[tlb][replacement]", exact_policies) {
    tlb_model<typename TestType::tlb> tlb;
    ordered_list reference{TestType::order, tlb.capacity};
    std::mt19937 random{7};
    unsigned different = 0;
    for (unsigned i = 0; i < 20'000; ++i) {
        const std::uint64_t address = random() % (tlb.capacity + 3) * page;
        different += touch(tlb, address) == reference.touch(address) ? 0 : 1;
        if (i % 1000 == 999) { // holes are filled first, and count as used
            const std::uint64_t gone = reference.entries.front().first;
            reference.entries.pop_front();
            tlb.invalidate(invalidation_scope::addresses(tag_a, gone, gone + page - 1, true));
        }
    }
    CHECK(different == 0);
}

TEMPLATE_TEST_CASE("TLB: without hits, each way of a full set gives way in its turn",
                   "[tlb][replacement]", ::vm_accel::clock, fifo, lru, tree_plru) {
    std::atomic<std::uint32_t> state{0};
    const unsigned ways = GENERATE(1U, 2U, 4U, 8U, 16U);
    if (!can_choose_among<TestType>(ways)) return;
    replacement_of<TestType> replacement;
    for (unsigned w = 0; w < ways; ++w)
        replacement.filled(state, w);
    for (unsigned round = 0; round < 3; ++round) {
        unsigned seen = 0;
        for (unsigned i = 0; i < ways; ++i)
            seen |= 1U << replacement.victim(state, ways, 0);
        CHECK(seen == (1U << ways) - 1);
    }
}

TEMPLATE_TEST_CASE("TLB: what was hit last stays", "[tlb][replacement]", ::vm_accel::clock, lru,
                   tree_plru) {
    const unsigned ways = GENERATE(2U, 4U, 8U, 16U);
    if (!can_choose_among<TestType>(ways)) return;
    std::atomic<std::uint32_t> state{0};
    replacement_of<TestType> replacement;
    std::mt19937 random{3};
    for (unsigned i = 0; i < 1000; ++i) {
        const unsigned hit = static_cast<unsigned>(random()) % ways;
        TestType::touch(state, hit);
        const unsigned gone = replacement.victim(state, ways, i % 64);
        REQUIRE(gone < ways);
        REQUIRE(gone != hit);
        replacement.filled(state, gone);
    }
}

TEST_CASE("TLB: random chooses all ways, and equally often", "[tlb][replacement]") {
    const unsigned ways = GENERATE(1U, 3U, 4U, 16U);
    std::atomic<std::uint32_t> state{0};
    std::array<unsigned, 16> chosen{};
    for (unsigned i = 0; i < 1000 * ways; ++i)
        ++chosen.at(::vm_accel::random::victim(state, ways));
    for (unsigned w = 0; w < ways; ++w) {
        CHECK(chosen.at(w) > 800);
        CHECK(chosen.at(w) < 1200);
    }
    CHECK(std::all_of(chosen.begin() + ways, chosen.end(), [](unsigned n) { return n == 0; }));
}

TEST_CASE("TLB: replacement policies say how many ways they can choose among",
          "[tlb][replacement]") {
    CHECK(can_choose_among<lru>(8));
    CHECK_FALSE(can_choose_among<lru>(9));
    CHECK(can_choose_among<tree_plru>(16));
    CHECK_FALSE(can_choose_among<tree_plru>(12));
    CHECK(can_choose_among<::vm_accel::clock>(16));
    CHECK(can_choose_among<::vm_accel::random>(13));
}

// ---- set_duelling ------------------------------------------------------------------------------

namespace {

/// Hits in the second half of `accesses`, in percent.
unsigned hit_percent(any_tlb& tlb, unsigned accesses,
                     const std::function<std::uint64_t(unsigned)>& address) {
    unsigned hits = 0;
    for (unsigned i = 0; i < accesses; ++i) {
        const bool hit = touch(tlb, address(i) * page);
        if (i >= accesses / 2 && hit) ++hits;
    }
    return hits * 100 / (accesses / 2);
}

} // namespace

TEST_CASE("TLB: set_duelling keeps what a stream would throw out", "[tlb][replacement]") {
    tlb_model<set_associative<64, 4, ::vm_accel::clock>> plain;
    tlb_model<set_duelling<64, 4>> duelling;
    std::mt19937 random{11};
    const auto both = [&](unsigned accesses, const std::function<std::uint64_t(unsigned)>& f) {
        const unsigned before = hit_percent(plain, accesses, f);
        return std::pair{before, hit_percent(duelling, accesses, f)};
    };
    // A cycle of twice the capacity: clock evicts each page just before its turn.
    const auto cycle = both(20'000, [](unsigned i) { return i % 512; });
    CHECK(cycle.first == 0);
    CHECK(cycle.second > 25);
    // Half the capacity, and three times as many accesses of a stream.
    std::uint64_t next = 0x10'0000;
    const auto stream = both(40'000, [&](unsigned i) -> std::uint64_t {
        return i % 4 == 0 ? 0x8000 + random() % 128 * 2 : next++;
    });
    CHECK(stream.second > 2 * stream.first);
    CHECK(stream.second >= 22); // of 25
    // It notices when the stream is over, and pages are used again soon.
    const auto fits = both(20'000, [](unsigned i) { return 0x20'0000 + i % 200; });
    CHECK(fits.second == 100);
    // Each page eight times, then never again: to stay for a round is right, and a few sets
    // go on trying the other way.
    const auto bursts = both(20'000, [&](unsigned i) -> std::uint64_t {
        return 0x30'0000 + i / 1024 * 128 + random() % 128;
    });
    CHECK(bursts.second + 6 >= bursts.first);
}

// ---- partitioned -------------------------------------------------------------------------------

namespace {

constexpr std::uint64_t context_number(std::uint64_t n) { return n << 32 | 1; }
constexpr translation_tag in_vm(unsigned n) {
    return {stream_world::ns_el1, vmid{static_cast<std::uint16_t>(n)}, asid{1}};
}

/// How many of its 16 pages a device still has after its neighbour, in another
/// context and VMID, has done its worst.
unsigned left_after_thrashing(any_tlb& tlb) {
    const std::uint64_t own = context_number(4);
    const std::uint64_t other = context_number(5);
    for (std::uint64_t p = 0; p < 16; ++p)
        tlb.put(entry_at(p * page, 12, own, in_vm(0)));
    std::mt19937 random{5};
    for (unsigned i = 0; i < 20'000; ++i)
        (void)touch(tlb, random() % 4096 * page, other, in_vm(1));
    unsigned left = 0;
    for (std::uint64_t p = 0; p < 16; ++p)
        left += has(tlb, p * page, own) ? 1 : 0;
    return left;
}

} // namespace

TEST_CASE("TLB: one part's contexts cannot evict another's entries", "[tlb][partitioned]") {
    tlb_model<set_associative<16, 4>> shared;
    CHECK(left_after_thrashing(shared) < 16); // the neighbour can, if nothing is in the way
    tlb_model<partitioned<set_associative<16, 2>, 2>> by_number;
    CHECK(left_after_thrashing(by_number) == 16);
    tlb_model<partitioned<set_duelling<16, 1>, 7>> by_number_of_seven;
    CHECK(left_after_thrashing(by_number_of_seven) == 16);
    tlb_model<partitioned<fully_associative<16>, 2, by_vmid>> by_vm;
    CHECK(left_after_thrashing(by_vm) == 16);
    tlb_model<two_level<partitioned<direct_mapped<16>, 2>,
                        partitioned<set_associative<16, 2>, 2, by_vmid>>>
        levels;
    CHECK(left_after_thrashing(levels) == 16);
    // And in one part it can: 4 and 6 are the same modulo 2.
    tlb_model<partitioned<set_associative<16, 2>, 2>> same_part;
    const auto evicted = [&] {
        for (std::uint64_t p = 0; p < 16; ++p)
            same_part.put(entry_at(p * page, 12, context_number(4), in_vm(0)));
        for (std::uint64_t p = 0; p < 64; ++p)
            same_part.put(entry_at(p * page, 12, context_number(6), in_vm(0)));
        return !has(same_part, 0, context_number(4));
    };
    CHECK(evicted());
}

TEST_CASE("TLB: devices that use the same addresses have room beside each other",
          "[tlb][set_associative]") {
    tlb_model<set_associative<128, 8>> tlb;
    for (std::uint64_t n = 0; n < 32; ++n) {
        for (std::uint64_t p = 0; p < 24; ++p)
            tlb.put(entry_at(0xffff'0000 + p * page, 12, context_number(n), in_vm(0)));
    }
    std::size_t left = 0;
    for (std::uint64_t n = 0; n < 32; ++n) {
        for (std::uint64_t p = 0; p < 24; ++p)
            left += has(tlb, 0xffff'0000 + p * page, context_number(n)) ? 1U : 0U;
    }
    CHECK(left == 32 * 24); // of 1,024
    // An invalidation by address, of any address space, finds them all.
    tlb.invalidate({.what = invalidation_scope::kind::any_space,
                    .tag = in_vm(0),
                    .first = 0xffff'0000,
                    .last = 0xffff'0fff});
    for (std::uint64_t n = 0; n < 32; ++n) {
        CHECK_FALSE(has(tlb, 0xffff'0000, context_number(n)));
        CHECK(has(tlb, 0xffff'1000, context_number(n)));
    }
}

TEST_CASE("TLB: two devices at the same addresses have half of it each", "[tlb][set_associative]") {
    tlb_model<set_associative<128, 8>> tlb;
    for (std::uint64_t n = 0; n < 2; ++n) {
        for (std::uint64_t p = 0; p < 512; ++p)
            tlb.put(entry_at(0xffff'0000 + p * page, 12, context_number(n), in_vm(0)));
    }
    std::size_t left = 0;
    for (std::uint64_t n = 0; n < 2; ++n) {
        for (std::uint64_t p = 0; p < 512; ++p)
            left += has(tlb, 0xffff'0000 + p * page, context_number(n)) ? 1U : 0U;
    }
    CHECK(left == 1024);
}

TEST_CASE("TLB: an invalidation that names its contexts looks for them, and for global entries",
          "[tlb][set_associative]") {
    tlb_model<set_associative<128, 8>> tlb;
    const auto space = [](std::uint16_t number) {
        return translation_tag{stream_world::ns_el1, vmid{0}, asid{number}};
    };
    tlb_entry global = entry_at(0x1000, 12, context_number(9), space(9));
    global.global = true;
    tlb.put(global);
    // 70 and 582 are 6 modulo 64 too, and in other home ways.
    for (const std::uint64_t n : {6U, 7U, 70U, 582U})
        tlb.put(entry_at(0x1000, 12, context_number(n), space(6)));
    const std::atomic<std::uint64_t> named{1U << 6};
    invalidation_scope scope = invalidation_scope::addresses(space(6), 0x1000, 0x1fff, true);
    scope.contexts = &named;
    tlb.invalidate(scope);
    CHECK_FALSE(has(tlb, 0x1000, context_number(6)));
    CHECK_FALSE(has(tlb, 0x1000, context_number(70)));
    CHECK_FALSE(has(tlb, 0x1000, context_number(582)));
    CHECK_FALSE(has(tlb, 0x1000, context_number(9)));
    CHECK(has(tlb, 0x1000, context_number(7))); // nobody was to look there
}

TEST_CASE("TLB: a range of several pages is looked for in every size and context",
          "[tlb][set_associative]") {
    tlb_model<set_associative<128, 8>> tlb;
    constexpr std::uint64_t blocks = 0x4000'0000;
    for (std::uint64_t n = 0; n < 3; ++n) {
        tlb.put(entry_at(blocks + 0x20'0000, 21, context_number(n), in_vm(0)));
        tlb.put(entry_at(blocks + 0x1f'f000, 12, context_number(n), in_vm(0)));
    }
    tlb.invalidate({.what = invalidation_scope::kind::any_space,
                    .tag = in_vm(0),
                    .first = blocks + 0x1f'f000,
                    .last = blocks + 0x20'0fff});
    for (std::uint64_t n = 0; n < 3; ++n) {
        CHECK_FALSE(has(tlb, blocks + 0x1f'f000, context_number(n)));
        CHECK_FALSE(tlb.lookup({blocks + 0x20'0000, context_number(n), 1ULL << 21}));
    }
}

TEST_CASE("contexts of an address space, and of a VMID", "[smmu][context]") {
    context_table contexts;
    REQUIRE(contexts.allocate(128, 20));
    const auto of = [](std::uint16_t vm, std::uint16_t space) {
        return translation_tag{stream_world::ns_el1, vmid{vm}, asid{space}};
    };
    const auto named = [&](const invalidation_scope& scope) {
        return contexts.contexts_of(scope).load();
    };
    std::uint64_t first = 0;
    std::uint64_t second = 0;
    for (std::uint64_t i = 0; i < 70; ++i) {
        const auto* const made =
            contexts.intern({.tag = of(1, i % 2 == 0 ? 4 : 5), .parameters = {i}});
        REQUIRE(made != nullptr);
        (i % 2 == 0 ? first : second) |= std::uint64_t{1} << (made->index() % 64);
    }
    CHECK(named(invalidation_scope::addresses(of(1, 4), 0, 0xfff, true)) == first);
    CHECK(named(invalidation_scope::addresses(of(1, 5), 0, 0xfff, true)) == second);
    CHECK(named(invalidation_scope::addresses(of(2, 5), 0, 0xfff, true)) == 0);
    const invalidation_scope any{.what = invalidation_scope::kind::any_space, .tag = of(1, 9)};
    CHECK(named(any) == (first | second));
}

TEST_CASE("TLB: where no context has entries, no address is looked for", "[tlb][set_associative]") {
    // So an invalidation finds it that meets the very first fill between its two notes.
    const auto start = std::chrono::steady_clock::now();
    std::size_t visited = 0;
    const auto visit = [&](std::size_t) { ++visited; };
    set_geometry<16, 4>::visit_sets(0, (std::uint64_t{1} << 48) - 1, page, 0, visit);
    CHECK(visited == 0);
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds{1});
}

TEST_CASE("TLB: the contexts of one VMID share its part", "[tlb][partitioned]") {
    tlb_model<partitioned<fully_associative<4>, 2, by_vmid>> tlb;
    for (std::uint64_t n = 0; n < 5; ++n)
        tlb.put(entry_at(0x1000, 12, context_number(n), in_vm(2)));
    CHECK_FALSE(has(tlb, 0x1000, context_number(0))); // five in a part of four
    CHECK(has(tlb, 0x1000, context_number(4)));
}

TEST_CASE("TLB: a context's number may come to belong to another VMID", "[tlb][partitioned]") {
    tlb_model<partitioned<set_associative<16, 4>, 4, by_vmid>> tlb;
    const std::uint64_t then = context_number(3);
    const std::uint64_t now = then + 1; // its next generation
    tlb.put(entry_at(0x1000, 12, then, in_vm(1)));
    tlb.put(entry_at(0x1000, 12, now, in_vm(2)));
    CHECK(has(tlb, 0x1000, now));
    CHECK_FALSE(has(tlb, 0x1000, then)); // gone astray
    // What cannot be looked up is invalidated all the same.
    tlb.invalidate(invalidation_scope::addresses(in_vm(1), 0x1000, 0x1fff, true));
    CHECK(has(tlb, 0x1000, now));
    tlb.put(entry_at(0x2000, 12, then, in_vm(1)));
    CHECK_FALSE(has(tlb, 0x1000, then));
    CHECK(has(tlb, 0x2000, then));
    tlb.invalidate(invalidation_scope::all_of(stream_world::ns_el1, vmid{2}));
    CHECK(has(tlb, 0x2000, then));
}

// ---- policies made of policies: every interleaving with an invalidation ------------------------

namespace {

/// A TLB that lets a test act at the beginning of a call.
struct stepped_tlb : set_associative<4, 2> {
    using base = set_associative<4, 2>;

    std::optional<tlb_entry> find(const tlb_key& key) noexcept {
        ++finds;
        const auto found = base::find(key);
        run(after_find);
        return found;
    }
    fill_ticket begin_fill(const tlb_key& key) noexcept {
        run(before_ticket);
        return base::begin_fill(key);
    }
    void fill(fill_ticket ticket, const tlb_entry& filled) noexcept {
        run(before_fill);
        base::fill(ticket, filled);
    }
    void invalidate(const invalidation_scope& scope) noexcept {
        run(before_invalidate);
        base::invalidate(scope);
        run(after_invalidate);
    }

    static void run(std::function<void()>& step) noexcept {
        if (step) std::exchange(step, nullptr)();
    }
    static inline std::function<void()> after_find, before_ticket, before_fill, before_invalidate,
        after_invalidate;
    static inline unsigned finds = 0;
};

template <class Tlb>
void check_every_interleaving() {
    const auto scope = GENERATE(invalidation_scope::addresses(tag_a, 0x3000, 0x3fff, true),
                                invalidation_scope::all());
    const tlb_entry e = entry_at(0x3000);
    const std::array steps{&stepped_tlb::after_find, &stepped_tlb::before_ticket,
                           &stepped_tlb::before_fill};
    for (const auto step : steps) {
        tlb_model<Tlb> tlb;
        // An invalidation in the middle of a fill, and of a look-up.
        const fill_ticket ticket = tlb.begin_fill({e.base, e.context, 0});
        *step = [&] { tlb.invalidate(scope); };
        tlb.fill(ticket, e);
        if (*step == nullptr) CHECK_FALSE(has(tlb, 0x3000));
        *step = nullptr;

        tlb.put(e);
        *step = [&] { tlb.invalidate(scope); };
        (void)has(tlb, 0x3000);
        if (*step == nullptr) CHECK_FALSE(has(tlb, 0x3000));
        *step = nullptr;
    }
    // A look-up and a late fill in the middle of an invalidation.
    for (const auto step : {&stepped_tlb::before_invalidate, &stepped_tlb::after_invalidate}) {
        tlb_model<Tlb> tlb;
        tlb.put(e);
        *step = [&] { (void)has(tlb, 0x3000); };
        tlb.invalidate(scope);
        CHECK(*step == nullptr);
        CHECK_FALSE(has(tlb, 0x3000));
        const fill_ticket ticket = tlb.begin_fill({e.base, e.context, 0});
        *step = [&] { tlb.fill(ticket, e); };
        tlb.invalidate(scope);
        CHECK_FALSE(has(tlb, 0x3000));
    }
}

} // namespace

TEMPLATE_TEST_CASE("TLB: composed policies drop what an invalidation overtakes", "[tlb]",
                   (two_level<direct_mapped<1>, stepped_tlb>),
                   (two_level<stepped_tlb, set_associative<4, 2>>), (partitioned<stepped_tlb, 3>),
                   (partitioned<stepped_tlb, 2, by_vmid>)) {
    check_every_interleaving<TestType>();
}

TEST_CASE("TLB: what is found in the far level is near the next time", "[tlb]") {
    tlb_model<two_level<direct_mapped<1>, stepped_tlb>> tlb;
    tlb_entry e = entry_at(0x20'0000, 21);
    e.attributes = {0x44, 2};
    tlb.put(e);
    tlb.put(entry_at(0x5000)); // takes the only place in the near level
    stepped_tlb::finds = 0;
    for (unsigned i = 0; i < 3; ++i) {
        const auto hit = tlb.lookup({0x20'1234, context_a, all_sizes});
        REQUIRE(hit);
        CHECK(hit->host == e.host);
        CHECK(hit->output == e.output);
        CHECK(hit->allowed == e.allowed);
        CHECK(hit->size_log2 == e.size_log2);
        CHECK(hit->attributes == e.attributes);
        CHECK(stepped_tlb::finds == 1);
    }
    CHECK(has(tlb, 0x5000));
    CHECK(stepped_tlb::finds == 2);
    // Tag and guest's page have travelled along: what covers them covers it near.
    tlb_entry piece = entry_at(0x40'3000);
    piece.guest_size_log2 = 21;
    tlb.put(piece);
    tlb.put(entry_at(0x5000));
    CHECK(has(tlb, 0x40'3000));
    tlb.invalidate(invalidation_scope::addresses(tag_a, 0x5f'f000, 0x5f'ffff, true));
    CHECK_FALSE(has(tlb, 0x40'3000));
}

// ---- prefetching -------------------------------------------------------------------------------

TEST_CASE("TLB: next_page wants the pages behind the one that missed", "[tlb][prefetch]") {
    struct row {
        std::uint64_t address;
        unsigned size_log2;
        prefetch_wish wish;
    };
    const auto r = GENERATE(row{0x1234, 12, {0x2000, 0x1000, 3}},
                            row{0x4030'5678, 21, {0x4040'0000, 0x20'0000, 3}},
                            row{0xffff'ffff'ffff'f008, 12, {0, 0x1000, 3}});
    prefetching<no_tlb, next_page<3>> tlb;
    CHECK(tlb.next_wanted({r.address, context_a, 0}, r.size_log2) == r.wish);
}

TEST_CASE("TLB: constant_stride waits for a second miss at the same distance", "[tlb][prefetch]") {
    prefetching<no_tlb, constant_stride<2, 4>> tlb;
    const auto miss = [&](std::uint64_t address, std::uint64_t context = context_a) {
        return tlb.next_wanted({address, context, 0}, 12);
    };
    const prefetch_wish none;
    SECTION("upwards, and on where the prefetched pages end") {
        CHECK(miss(0x1'0008) == none);
        CHECK(miss(0x1'3ff0) == none);
        CHECK(miss(0x1'6000) == prefetch_wish{0x1'9000, 0x3000, 2});
        CHECK(miss(0x1'f000) == prefetch_wish{0x2'2000, 0x3000, 2});
        CHECK(miss(0x2'2000) == prefetch_wish{0x2'5000, 0x3000, 2}); // one was evicted
        CHECK(miss(0x9'0000) == none);                               // somewhere else
        CHECK(miss(0x9'1000) == none);
        CHECK(miss(0x9'2000) == prefetch_wish{0x9'3000, 0x1000, 2});
    }
    SECTION("downwards") {
        CHECK(miss(0x5000) == none);
        CHECK(miss(0x4000) == none);
        CHECK(miss(0x3000) == prefetch_wish{0x2000, ~std::uint64_t{0xfff}, 2});
    }
    SECTION("the same page again is no stride") {
        for (int i = 0; i < 4; ++i)
            CHECK(miss(0x5000) == none);
    }
    SECTION("contexts apart, as far as there is room") {
        for (std::uint64_t i = 0; i < 2; ++i) {
            CHECK(miss(0x1000 * i) == none);
            CHECK(miss(0x2000 * i, context_b) == none);
        }
        CHECK(miss(0x2000) == prefetch_wish{0x3000, 0x1000, 2});
        CHECK(miss(0x4000, context_b) == prefetch_wish{0x6000, 0x2000, 2});
        CHECK(miss(0x3000, context_a + (std::uint64_t{4} << 32)) == none); // takes its place
        CHECK(miss(0x3000) == none);
    }
}
