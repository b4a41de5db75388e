// Every TLB policy against a slow, obvious one: a list of all that was filled and
// not invalidated since. A TLB may forget; it may not make up.
#include "smmu/tlb_every_policy.hpp"

#include <catch2/catch.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

using namespace vm_accel;
using namespace tlb_tests;

namespace {

/// What a TLB may answer with: for one page, several, if it may have dropped
/// some of its fills.
class everything_filled {
public:
    void replace(const tlb_entry& e) {
        std::erase_if(entries_, [&](const tlb_entry& old) {
            return old.base == e.base && old.size_log2 == e.size_log2 && old.context == e.context;
        });
        entries_.push_back(e);
    }
    void allow(const tlb_entry& e) { entries_.push_back(e); }
    void invalidate(const invalidation_scope& scope) {
        std::erase_if(entries_, [&](const tlb_entry& e) { return e.covered_by(scope); });
    }
    bool allows(const tlb_key& key, const tlb_hit& hit) const {
        return std::any_of(entries_.begin(), entries_.end(), [&](const tlb_entry& e) {
            return e.context == key.context && e.size_log2 == hit.size_log2 &&
                   (key.page_sizes >> e.size_log2 & 1) != 0 &&
                   key.address >> e.size_log2 == e.base >> e.size_log2 && e.host == hit.host &&
                   e.output == hit.output && e.allowed == hit.allowed &&
                   e.attributes == hit.attributes;
        });
    }
    const std::vector<tlb_entry>& entries() const { return entries_; }

private:
    std::vector<tlb_entry> entries_;
};

/// A guest that does everything at random, in a small world.
class random_guest {
public:
    explicit random_guest(unsigned seed) : random_(seed) {}

    unsigned below(unsigned n) { return static_cast<unsigned>(random_() % n); }

    /// Pages of few blocks, at both ends of the address space.
    std::uint64_t address() {
        constexpr std::array<std::uint64_t, 4> blocks{0, 0x4000'0000, 0xffff'ffff'ffe0'0000,
                                                      0x12'3460'0000};
        return blocks[below(4)] + below(16) * 0x1000 + below(8) * 0x200 + below(2) * 0x10'0000;
    }
    translation_tag tag() {
        constexpr std::array<stream_world, 3> worlds{stream_world::ns_el1, stream_world::stage2,
                                                     stream_world::ns_el2};
        const unsigned n = below(8);
        return {worlds[n / 4 + n / 7], vmid{static_cast<std::uint16_t>(below(3))},
                asid{static_cast<std::uint16_t>(below(3))}};
    }
    tlb_entry entry() {
        constexpr std::array<std::uint8_t, 5> sizes{12, 12, 16, 21, 30};
        const unsigned n = below(contexts);
        tlb_entry e = entry_at(0, sizes[below(5)]);
        e.base = address() >> e.size_log2 << e.size_log2;
        e.context = std::uint64_t{n} << 32 | generation_[n];
        e.tag = tags_[n];
        e.host = host_of(0x7000'0000'0000 + random_() % 4096 * 0x1000);
        e.output = random_() % 4096 << e.size_log2;
        e.allowed = permissions{below(64)};
        e.attributes = {static_cast<std::uint8_t>(below(256)), static_cast<std::uint8_t>(below(4))};
        e.global = below(4) == 0;
        if (below(4) == 0) e.guest_size_log2 = std::max<std::uint8_t>(sizes[below(5)], e.size_log2);
        return e;
    }
    tlb_key key() {
        const unsigned n = below(contexts);
        const std::uint64_t sizes = all_sizes | 1ULL << 16;
        return {address(), std::uint64_t{n} << 32 | generation_[n],
                below(4) != 0 ? sizes : 1ULL << 12};
    }
    invalidation_scope scope() {
        using kind = invalidation_scope::kind;
        invalidation_scope s;
        s.what = static_cast<kind>(below(8) != 0 ? static_cast<unsigned>(kind::address) + below(2)
                                                 : below(7));
        s.tag = below(4) != 0 ? tags_[below(contexts)] : tag();
        s.context_index = below(contexts);
        if (s.by_address()) {
            s.first = address() & ~std::uint64_t{0xfff};
            constexpr std::array<std::uint64_t, 5> bytes{0x1000, 0x1000, 0x7000, 0x20'0000,
                                                         0x1'2345'6000};
            s.last = s.first + std::min(bytes[below(5)], ~s.first) - 1;
            if (below(30) == 0) s.first = 0, s.last = ~std::uint64_t{0};
        }
        return s;
    }
    /// As an invalidation without addresses does for the SMMU.
    void next_generation() { ++generation_[below(contexts)]; }

private:
    static constexpr unsigned contexts = 6;
    std::mt19937_64 random_;
    std::array<std::uint64_t, contexts> generation_{1, 1, 1, 1, 1, 1};
    // Two of one VMID and ASID, as with different windows.
    std::array<translation_tag, contexts> tags_{{tag_a,
                                                 tag_a,
                                                 {stream_world::ns_el1, vmid{3}, asid{6}},
                                                 {stream_world::ns_el1, vmid{4}, asid{5}},
                                                 {stream_world::stage2, vmid{3}, {}},
                                                 {stream_world::ns_el2, {}, {}}}};
};

struct findings {
    unsigned made_up = 0, lost_at_once = 0, hits = 0;
};

findings compare(any_tlb& tlb, unsigned seed, unsigned steps) {
    random_guest guest{seed};
    everything_filled reference;
    findings found;
    const auto look = [&](const tlb_key& key) {
        const auto hit = tlb.lookup(key);
        if (!hit) return false;
        ++found.hits;
        found.made_up += reference.allows(key, *hit) ? 0 : 1;
        return true;
    };
    for (unsigned i = 0; i < steps; ++i) {
        const unsigned what = guest.below(100);
        if (what < 30) {
            const tlb_entry e = guest.entry();
            reference.replace(e);
            tlb.put(e);
            const tlb_key key{e.base, e.context, 1ULL << e.size_log2};
            if (!look(key) && tlb.capacity != 0) ++found.lost_at_once;
        } else if (what < 40) { // a walk that an invalidation overtakes
            const tlb_entry e = guest.entry();
            const invalidation_scope scope = guest.scope();
            const fill_ticket ticket = tlb.begin_fill({e.base, e.context, 0});
            tlb.invalidate(scope);
            reference.invalidate(scope);
            tlb.fill(ticket, e);
            if (!e.covered_by(scope)) reference.allow(e);
            (void)look({e.base, e.context, 1ULL << e.size_log2});
        } else if (what < 50) {
            const invalidation_scope scope = guest.scope();
            tlb.invalidate(scope);
            reference.invalidate(scope);
        } else if (what < 52) {
            guest.next_generation();
        } else {
            (void)look(guest.key());
        }
        if (i % 64 != 0) continue;
        for (const tlb_entry& e : reference.entries())
            (void)look({e.base + 0x123, e.context, 1ULL << e.size_log2});
    }
    return found;
}

} // namespace

TEMPLATE_LIST_TEST_CASE("TLB: nothing is found that was not filled and is still valid", "[tlb]",
                        every_policy) {
    const unsigned seed = GENERATE(1U, 2U, 3U);
    CAPTURE(seed);
    tlb_model<TestType> tlb;
    const findings found = compare(tlb, seed, 15000);
    CHECK(found.made_up == 0);
    CHECK(found.lost_at_once == 0);
    CHECK((found.hits != 0) == (tlb.capacity != 0));
}
