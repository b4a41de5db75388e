/// Claim: a translation that hits, its guard included, costs a small multiple of
/// a checked array look-up, whatever the number of pages, and far less than a
/// hash table behind a lock or an ordered map of intervals.
///
/// All of them in one run: the machine's speed of the moment cancels out.
///   hit        open a guard, translate 64 bytes, close it
///   hit_held   the same inside one guard for all
///   floor      array look-up with length and permission check, not inlined
///   hash       std::unordered_map by page, ASID, VMID and level, behind a mutex,
///              each level looked for in turn
///   intervals  std::map by first address, no lock
/// hit<usual_tlb>: 64 sets of 8; hit<.., fenced> and hit<.., alone>: other
/// quiescence policies.
/// Argument 1: pages in use. Argument 2: 0 in ascending order, 1 in random order.
#include "mapped_device.hpp"

#include <benchmark/benchmark.h>

#include <map>
#include <mutex>
#include <unordered_map>

using namespace vm_accel;

namespace {

constexpr std::uint64_t most_pages = 65536;
constexpr std::uint64_t bytes_asked = 64;

using large_tlb = set_associative<16384, 8>;

struct fenced : default_smmu_options {
    using quiescence = fence_quiescence;
};
struct alone : default_smmu_options {
    using quiescence = single_threaded;
};

template <class Tlb, class Options>
bench::mapped_device<Tlb, Options>& device() {
    static bench::mapped_device<Tlb, Options> one{most_pages};
    return one;
}

/// Runs `translate` over the addresses; everything it gives is used.
template <class Translate>
void run(benchmark::State& state, Translate translate) {
    const std::vector<iova> order =
        bench::addresses(static_cast<std::uint64_t>(state.range(0)), state.range(1) != 0);
    const std::size_t mask = order.size() - 1;
    std::size_t next = 0;
    for (const iova address : order) // fills what is there to fill
        benchmark::DoNotOptimize(translate(address));
    for (auto _ : state) {
        std::byte* const host = translate(order[next++ & mask]);
        benchmark::DoNotOptimize(host);
    }
}

/// Reports a run that did not only hit: it would not measure what it says.
template <class Device>
class only_hits {
public:
    only_hits(benchmark::State& state, Device& device)
        : state_(state), device_(device), before_(device.machine().iommu().stats()) {}
    ~only_hits() {
        const smmu_statistics after = device_.machine().iommu().stats();
        const auto first_touches = static_cast<std::uint64_t>(state_.range(0));
        if (after.misses - before_.misses > first_touches || after.faults != before_.faults)
            state_.SkipWithError("missed or faulted during the measurement");
    }

private:
    benchmark::State& state_;
    Device& device_;
    smmu_statistics before_;
};

template <class Tlb = large_tlb, class Options = default_smmu_options>
void hit(benchmark::State& state) {
    auto& d = device<Tlb, Options>();
    const only_hits check{state, d};
    run(state, [&](iova address) {
        auto guard = d.port().open();
        return guard.translate(address, bytes_asked, access::read).host();
    });
}

void hit_held(benchmark::State& state) {
    auto& d = device<large_tlb, default_smmu_options>();
    const only_hits check{state, d};
    auto guard = d.port().open();
    run(state,
        [&](iova address) { return guard.translate(address, bytes_asked, access::read).host(); });
}

// --- the floor ---------------------------------------------------------------

struct flat_entry {
    std::byte* host = nullptr;
    std::uint64_t output = 0;
    unsigned allowed = 0;
};
struct flat_answer {
    std::byte* host = nullptr;
    std::uint64_t length = 0;
};

std::byte* backing() {
    static guest::host_pages pages{1024 * 4096};
    return pages.data();
}

[[gnu::noinline]] flat_answer flat_lookup(const std::vector<flat_entry>& table, iova address,
                                          std::uint64_t length, unsigned needed) {
    const std::uint64_t index = (raw(address) - bench::first_page) >> 12;
    if (index >= table.size() || (table[index].allowed & needed) == 0) return {};
    const std::uint64_t offset = raw(address) & 4095;
    return {table[index].host + offset, std::min(length, 4096 - offset)};
}

void floor_array(benchmark::State& state) {
    std::vector<flat_entry> table(most_pages);
    for (std::uint64_t i = 0; i < most_pages; ++i)
        table[i] = {backing() + i % 1024 * 4096, i, 1};
    run(state, [&](iova address) { return flat_lookup(table, address, bytes_asked, 1).host; });
}

// --- how it is done elsewhere --------------------------------------------------

struct hash_key {
    std::uint64_t page = 0;
    std::uint16_t space = 0;
    std::uint16_t machine = 0;
    std::uint8_t level = 0;
    friend bool operator==(const hash_key&, const hash_key&) = default;
};
struct hash_of_key {
    std::size_t operator()(const hash_key& key) const noexcept {
        std::uint64_t h = key.page ^ std::uint64_t{key.space} << 40 ^
                          std::uint64_t{key.machine} << 52 ^ std::uint64_t{key.level} << 36;
        h *= 0x9e37'79b9'7f4a'7c15;
        return static_cast<std::size_t>(h ^ h >> 32);
    }
};

class hash_tlb {
public:
    void fill(std::uint64_t address, flat_entry entry) {
        entries_[{address >> 12, bench::address_space, 0, 3}] = entry;
    }
    [[gnu::noinline]] flat_answer lookup(iova address, std::uint64_t length, unsigned needed) {
        const std::lock_guard lock{mutex_};
        for (std::uint8_t level = 1; level <= 3; ++level) {
            const unsigned bits = 12U + 9U * (3U - level);
            const auto found =
                entries_.find({raw(address) >> bits, bench::address_space, 0, level});
            if (found == entries_.end()) continue;
            if ((found->second.allowed & needed) == 0) return {};
            const std::uint64_t offset = raw(address) & ((std::uint64_t{1} << bits) - 1);
            return {found->second.host + offset,
                    std::min(length, (std::uint64_t{1} << bits) - offset)};
        }
        return {};
    }

private:
    std::mutex mutex_;
    std::unordered_map<hash_key, flat_entry, hash_of_key> entries_;
};

void rival_hash(benchmark::State& state) {
    hash_tlb tlb;
    for (std::uint64_t i = 0; i < static_cast<std::uint64_t>(state.range(0)); ++i)
        tlb.fill(bench::first_page + i * 4096, {backing() + i % 1024 * 4096, i, 1});
    run(state, [&](iova address) { return tlb.lookup(address, bytes_asked, 1).host; });
}

struct interval {
    std::uint64_t last = 0;
    flat_entry entry{};
};
using interval_map = std::map<std::uint64_t, interval>;

[[gnu::noinline]] flat_answer interval_lookup(const interval_map& map, iova address,
                                              std::uint64_t length, unsigned needed) {
    auto found = map.upper_bound(raw(address));
    if (found == map.begin()) return {};
    --found;
    const interval& i = found->second;
    if (raw(address) > i.last || (i.entry.allowed & needed) == 0) return {};
    return {i.entry.host + (raw(address) - found->first),
            std::min(length, i.last - raw(address) + 1)};
}

void rival_intervals(benchmark::State& state) {
    interval_map map;
    for (std::uint64_t i = 0; i < static_cast<std::uint64_t>(state.range(0)); ++i) {
        const std::uint64_t base = bench::first_page + i * 4096;
        map[base] = {base + 4095, {backing() + i % 1024 * 4096, i, 1}};
    }
    run(state, [&](iova address) { return interval_lookup(map, address, bytes_asked, 1).host; });
}

void every_size(benchmark::internal::Benchmark* b) {
    for (const int random : {0, 1}) {
        for (const int pages : {1, 64, 4096, 65536}) {
            if (pages != 1 || random == 0) b->Args({pages, random});
        }
    }
}

using usual_tlb = set_associative<64, 8>;

} // namespace

BENCHMARK(floor_array)->Apply(every_size);
BENCHMARK(hit<>)->Apply(every_size);
BENCHMARK(hit_held)->Apply(every_size);
BENCHMARK(rival_hash)->Apply(every_size);
BENCHMARK(rival_intervals)->Apply(every_size);
BENCHMARK(hit<usual_tlb>)->Args({64, 1});
BENCHMARK(hit<large_tlb, fenced>)->Args({64, 1});
BENCHMARK(hit<large_tlb, alone>)->Args({64, 1});
