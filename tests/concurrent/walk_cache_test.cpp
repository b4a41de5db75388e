#include <vm_accel/smmu/caches/context_table.hpp>
#include <vm_accel/smmu/caches/walk_cache.hpp>

#include <catch2/catch.hpp>

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

using namespace vm_accel;

namespace {

using u64 = std::uint64_t;

constexpr translation_tag tag{stream_world::ns_el1, vmid{3}, asid{5}};
constexpr unsigned size_log2 = 21;
constexpr u64 prefixes = 4;

constexpr walk_owner owner_of(u64 context) { return walk_owner::of(context, tag); }
/// Says whose it is, what for, and since when.
constexpr u64 word_of(u64 context, u64 prefix, u64 version) {
    return version << 16 | context << 8 | prefix;
}

} // namespace

TEST_CASE("words of the walk cache are whole, and gone once invalidated",
          "[smmu][concurrent][walk_cache]") {
    walk_cache<4, 4> cache; // few places: owners and prefixes meet in them
    std::atomic<u64> version{1};
    std::atomic<bool> stop{false};
    std::atomic<u64> invalidated{0}; ///< what is older is gone
    std::atomic<u64> torn{0};
    std::atomic<u64> stale{0};
    std::atomic<u64> found{0};
    std::atomic<u64> late{0};
    const auto use = [&](u64 seed) {
        for (u64 i = seed; !stop.load(std::memory_order_relaxed); ++i) {
            const u64 context = 1 + i % 3;
            const u64 prefix = i / 3 % prefixes;
            const walk_owner owner = owner_of(context);
            const u64 least = invalidated.load(std::memory_order_seq_cst);
            if (const auto word = cache.find_table(owner, prefix << size_log2, size_log2)) {
                found.fetch_add(1, std::memory_order_relaxed);
                if ((*word & 0xffff) != (context << 8 | prefix)) ++torn;
                if (*word >> 16 < least) ++stale;
            }
            const walk_ticket ticket = cache.begin();
            const u64 now = version.load(std::memory_order_seq_cst); // the walk's reads
            if (i % 32 == 0) std::this_thread::yield();              // it may take long
            if (invalidated.load(std::memory_order_seq_cst) > now) ++late;
            cache.keep_table(ticket, owner, prefix << size_log2, size_log2,
                             word_of(context, prefix, now));
        }
    };
    std::vector<std::thread> devices;
    for (u64 seed = 0; seed < 3; ++seed)
        devices.emplace_back(use, seed * 7);
    u64 rounds = 0;
    // Goes on until words have been found, and have come too late, so that it cannot
    // pass by scheduling.
    while (rounds < 3000 || found.load() < 3000 || late.load() < 300) {
        ++rounds;
        const u64 least = version.fetch_add(1, std::memory_order_seq_cst) + 1;
        cache.invalidate(invalidation_scope::addresses(tag, 0, (prefixes << size_log2) - 1, false));
        for (u64 i = 0; i < 3 * prefixes; ++i) {
            const auto word = cache.find_table(owner_of(1 + i % 3), i / 3 << size_log2, size_log2);
            if (word && *word >> 16 < least) ++stale;
        }
        invalidated.store(least, std::memory_order_seq_cst);
        std::this_thread::yield();
    }
    stop = true;
    for (std::thread& device : devices)
        device.join();
    CHECK(torn.load() == 0);
    CHECK(stale.load() == 0);
}

TEST_CASE("nested contexts never age before stage 2 does", "[smmu][concurrent][walk_cache]") {
    context_table table;
    REQUIRE(table.allocate(2, 32)); // so many that they do not come round
    const vmid vm{7};
    const translation_context& nested =
        *table.intern({.tag = {stream_world::ns_el1, vm, asid{1}}, .window = {}, .parameters = {}});
    const translation_context& stage2 =
        *table.intern({.tag = {stream_world::stage2, vm, asid{0}}, .window = {}, .parameters = {}});
    std::atomic<u64> seen{0}; ///< generations
    std::atomic<bool> stop{false};
    u64 too_early = 0;
    std::thread device{[&] {
        // A walk reads them in this order: what it keeps as new must not come of what is old.
        for (std::uint32_t last = 0; !stop.load(std::memory_order_relaxed);) {
            const auto first = static_cast<std::uint32_t>(nested.tag());
            const auto second = static_cast<std::uint32_t>(stage2.tag());
            if (second < first) ++too_early;
            if (first != last) seen.fetch_add(1, std::memory_order_relaxed);
            last = first;
        }
    }};
    for (u64 i = 0; i < 3'000'000 && seen.load(std::memory_order_relaxed) < 300'000; ++i)
        (void)table.invalidate(invalidation_scope::all());
    stop.store(true, std::memory_order_relaxed);
    device.join();
    CAPTURE(seen.load());
    CHECK(too_early == 0);
}

TEST_CASE("what a walk makes of a table that is being forgotten is forgotten too",
          "[smmu][concurrent][walk_cache]") {
    const auto cache = std::make_unique<walk_cache<>>();
    const walk_owner owner = walk_owner::of(1, {stream_world{}, vmid{0}, asid{0}});
    constexpr u64 at = 0x4000'0000;
    std::atomic<u64> round{0}, done{0}, made{0};
    std::atomic<bool> stop{false};
    std::thread device{[&] {
        while (!stop.load(std::memory_order_relaxed)) {
            const u64 now = round.load(std::memory_order_seq_cst);
            if (done.load(std::memory_order_relaxed) == now) continue;
            // One access: from the table above, if the one below is not known.
            const walk_ticket ticket = cache->begin();
            if (!cache->find_table(owner, at, 21)) {
                if (const auto upper = cache->find_table(owner, at, 30)) {
                    cache->keep_table(ticket, owner, at, 21, *upper);
                    made.fetch_add(1, std::memory_order_relaxed);
                }
            }
            if (round.load(std::memory_order_seq_cst) % 2 == 0)
                done.store(now, std::memory_order_seq_cst); // its guard has closed
        }
    }};
    u64 left = 0;
    for (u64 i = 0; i < 20'000; ++i) {
        cache->keep_table(cache->begin(), owner, at, 30, 0x1000);
        round.fetch_add(1, std::memory_order_seq_cst);
        cache->invalidate(invalidation_scope::addresses({stream_world{}, vmid{0}, asid{0}}, at,
                                                        at + (u64{400} << 21) - 1, false));
        const u64 now = round.fetch_add(1, std::memory_order_seq_cst) + 1;
        while (done.load(std::memory_order_seq_cst) != now)
            std::this_thread::yield();
        left += cache->find_table(owner, at, 21) || cache->find_table(owner, at, 30) ? 1U : 0U;
        cache->invalidate(invalidation_scope::all());
    }
    stop.store(true, std::memory_order_relaxed);
    device.join();
    CAPTURE(made.load());
    CHECK(left == 0);
}
