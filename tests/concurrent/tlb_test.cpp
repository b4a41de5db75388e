// TLBs under threads. Torn entries: threads fill and look up in one set, with addresses that a
// guest has chosen so that the halves of two entries make the tag of a third.
#include "smmu/tlb_every_policy.hpp"

#include <vm_accel/guest/copy.hpp>

#include <catch2/catch.hpp>

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <tuple>
#include <vector>

using namespace vm_accel;

namespace {

// One set and fewer ways than entries, so that they overwrite each other.
using policies = std::tuple<
    set_associative<1, 1>, set_associative<1, 2>, set_associative<1, 2, lru>,
    set_associative<1, 2, tree_plru>, set_duelling<2, 1>, fully_associative<2>,
    fully_associative<2, ::vm_accel::clock>, two_level<direct_mapped<1>, set_associative<1, 2>>,
    two_level<direct_mapped<1>, fully_associative<2>>, partitioned<set_associative<1, 1>, 2>,
    partitioned<set_associative<1, 2>, 2, by_vmid>,
    prefetching<set_associative<1, 2>, constant_stride<>>>;

#if VM_ACCEL_THREAD_SANITIZER
constexpr unsigned lookups = 50'000;
constexpr std::uint64_t changes = 3'000;
#else
constexpr unsigned lookups = 500'000;
constexpr std::uint64_t changes = 40'000;
#endif

// An entry's tag is two words, its address and its context. Entry n has address
// n and context n; the third is the exclusive or of the others. Address n with
// context m is nobody's tag: only a mix of two entries answers to it.
constexpr unsigned entries = 3;
constexpr std::array<std::uint64_t, entries> address{0x1'2340'0000, 0x8'0065'0000, 0x9'2325'0000};
constexpr std::array<std::uint64_t, entries> context{
    std::uint64_t{1} << 32 | 7, std::uint64_t{2} << 32 | 5, std::uint64_t{3} << 32 | 2};

tlb_entry entry_of(unsigned n) {
    tlb_entry e;
    e.base = address[n];
    e.context = context[n];
    e.host = reinterpret_cast<std::byte*>(std::uintptr_t{0x7000'0000'0000} + n * 0x1000);
    e.output = 0x4000'0000 + n * 0x1000;
    e.allowed = permissions{1U << n};
    return e;
}

/// Looks up what may be entry n, quickly where the policy can.
template <class Tlb>
std::optional<tlb_hit> look(Tlb& tlb, const tlb_key& key, unsigned n, bool quickly) {
    if constexpr (quick_tlb_policy<Tlb>) {
        if (quickly) {
            const auto hit = tlb.look_quickly(Tlb::prepare(key.context, 12), key.address,
                                              key.address & ~0xfffULL, Tlb::asks_for(1U << n));
            if (!hit.found) return std::nullopt;
            return tlb_hit{hit.host - (key.address & 0xfff), hit.output, permissions{1U << n}, 12,
                           hit.attributes};
        }
    }
    return tlb.lookup(key);
}

} // namespace

TEMPLATE_LIST_TEST_CASE("TLB: a torn entry is never used", "[concurrent][tlb]", policies) {
    auto tlb = std::make_unique<TestType>();
    std::atomic<bool> stop{false};
    std::atomic<unsigned> filled{0};
    std::atomic<unsigned> hits{0};
    std::atomic<unsigned> forged{0};
    std::atomic<unsigned> mixed{0};

    std::vector<std::thread> fillers;
    for (unsigned f = 0; f < 2; ++f) {
        fillers.emplace_back([&, f] {
            for (unsigned n = f; !stop.load(std::memory_order_relaxed); ++n) {
                const tlb_entry e = entry_of(n % entries);
                tlb->fill(tlb->begin_fill({e.base, e.context, 0}), e);
                filled.fetch_add(1, std::memory_order_relaxed);
                if (f == 0 && n % 64 == 0) { // the set is cleared, perhaps while it is filled
                    tlb->invalidate(
                        invalidation_scope::addresses(e.tag, e.base, e.base + 0xfff, true));
                }
            }
        });
    }
    while (filled.load() < 100)
        std::this_thread::yield();
    std::vector<std::thread> readers;
    for (unsigned r = 0; r < 2; ++r) {
        readers.emplace_back([&, r] {
            unsigned own = 0;
            // More than that where a filler was stopped in the middle of a fill.
            for (unsigned n = r; n < lookups || (own < 100 && n < 1000 * lookups); ++n) {
                if (n % 65536 == 0) std::this_thread::yield();
                const unsigned a = n % entries;
                const unsigned c = n / entries % entries;
                const auto hit = look(*tlb, {address[a] + 0x123, context[c], 1ULL << 12}, a, n % 2);
                if (!hit) continue;
                ++own;
                const tlb_entry e = entry_of(a);
                if (a != c) {
                    forged.fetch_add(1, std::memory_order_relaxed);
                } else if (hit->host != e.host || hit->output != e.output ||
                           hit->allowed != e.allowed) {
                    mixed.fetch_add(1, std::memory_order_relaxed);
                }
            }
            hits.fetch_add(own, std::memory_order_relaxed);
        });
    }
    for (std::thread& t : readers)
        t.join();
    stop = true;
    for (std::thread& t : fillers)
        t.join();
    CHECK(forged.load() == 0);
    CHECK(mixed.load() == 0);
    CHECK(hits.load() > 0);
}

// The promise that invalidations make, kept by every policy and every mix of them:
// device threads walk and fill without pause, one thread changes the "tables" and
// invalidates.
TEMPLATE_LIST_TEST_CASE("TLB: what was invalidated is found no more", "[concurrent][tlb]",
                        policies) {
    constexpr unsigned pages = 3;
    auto tlb = std::make_unique<TestType>();
    std::array<std::atomic<std::uint64_t>, pages> table{};  // where each page is mapped
    std::array<std::atomic<std::uint64_t>, pages> oldest{}; // what may still be used
    std::atomic<bool> stop{false};
    std::atomic<unsigned> stale{0};
    std::atomic<std::uint64_t> hits{0};

    const auto key_of = [](unsigned p) {
        return tlb_key{address[0] + p * 0x1000, context[p % 2], 1ULL << 12};
    };
    const auto finds = [&](unsigned p, bool quickly) {
        const std::uint64_t least = oldest[p].load(std::memory_order_seq_cst);
        const auto hit = look(*tlb, key_of(p), 0, quickly);
        if (!hit) return false;
        if (hit->output >> 12 < least) stale.fetch_add(1, std::memory_order_relaxed);
        hits.fetch_add(1, std::memory_order_relaxed);
        return true;
    };
    const auto access = [&](unsigned p, unsigned n) {
        if (finds(p, n % 2 == 0)) return;
        const fill_ticket ticket = tlb->begin_fill({key_of(p).address, 0, 0});
        tlb_entry e = entry_of(0);
        e.base = key_of(p).address;
        e.context = key_of(p).context;
        e.tag = {stream_world::ns_el1, vmid{static_cast<std::uint16_t>(p % 2)}, asid{1}};
        e.output = table[p].load(std::memory_order_seq_cst) << 12;
        if (n % 16 == 0) std::this_thread::yield(); // a long walk
        tlb->fill(ticket, e);
        (void)finds(p, false);
    };
    std::vector<std::thread> devices;
    for (unsigned d = 0; d < 2; ++d) {
        devices.emplace_back([&, d] {
            for (unsigned n = d; !stop.load(std::memory_order_relaxed); ++n)
                access(n % pages, n);
        });
    }
    while (hits.load() == 0)
        std::this_thread::yield();
    std::uint64_t last = 1;
    for (; last < changes; ++last) {
        const auto p = static_cast<unsigned>(last % pages);
        table[p].store(last, std::memory_order_seq_cst);
        const tlb_key key = key_of(p);
        const vmid vm{static_cast<std::uint16_t>(p % 2)};
        tlb->invalidate(
            last % 8 == 0 ? invalidation_scope::all()
                          : invalidation_scope::addresses({stream_world::ns_el1, vm, asid{1}},
                                                          key.address, key.address + 0xfff, true));
        oldest[p].store(last, std::memory_order_seq_cst);
        for (unsigned look = 0; look < 3; ++look)
            access(p, 3 * static_cast<unsigned>(last) + look);
        if (last % 256 == 0) std::this_thread::yield();
    }
    stop = true;
    for (std::thread& t : devices)
        t.join();
    CHECK(stale.load() == 0);
    CHECK(hits.load() > 0);
}
