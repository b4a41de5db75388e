// Torn entries: threads fill and look up in one set, with addresses that a guest
// has chosen so that the halves of two entries make the tag of a third.
#include <vm_accel/guest/copy.hpp>
#include <vm_accel/smmu/caches/set_associative.hpp>

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
using policies = std::tuple<set_associative<1, 1>, set_associative<1, 2>>;

#if VM_ACCEL_THREAD_SANITIZER
constexpr unsigned lookups = 100'000;
#else
constexpr unsigned lookups = 2'000'000;
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
                const auto hit = tlb->lookup({address[a] + 0x123, context[c], 1ULL << 12});
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
