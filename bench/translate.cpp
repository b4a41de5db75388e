/// Claim: a translation that hits, its guard included, costs a small multiple of a checked array
/// look-up whatever the number of pages, and far less than a hash table behind a lock, an LRU list
/// or a map of intervals.
///
/// All of them in one run: the machine's speed of the moment cancels out.
///   floor      array look-up with length and permission check, not inlined
///   hit        open a guard, translate 64 bytes, close it: <features, stages, TLB, quiescence>
///   hit_held   the same inside one guard for all
///   hit_aged   the TLB was full of entries that have been invalidated: <features>
///   hit_mixed  the stream uses pages of both sizes, and has to look for both
///   rival_...  see rivals.hpp
/// Argument 1: pages in use. Argument 2: 0 in ascending order, 1 in random order. Argument 3: log2
/// of the page size.
#include "measure.hpp"

using namespace vm_accel;
using namespace bench;

namespace {

struct fenced : stage1_options {
    using quiescence = fence_quiescence;
};
struct alone : stage1_options {
    using quiescence = single_threaded;
};

/// Which pages in which order a run asks for.
struct shape {
    explicit shape(const benchmark::State& state)
        : pages(static_cast<std::uint64_t>(state.range(0))),
          size_log2(static_cast<unsigned>(state.range(2))),
          order(addresses(pages, state.range(1) != 0, size_log2)) {}
    std::uint64_t pages;
    unsigned size_log2;
    std::vector<iova> order;
};

/// One device per kind of SMMU, which all runs share, and its streams: one for each page size, as a
/// stream looks for the sizes that it uses.
template <class Tlb, class Options>
mapped_device<Tlb, Options>& device() {
    static mapped_device<Tlb, Options> one;
    return one;
}
template <class Tlb, class Options, stages Which>
auto& port(unsigned size_log2) {
    static auto pages = device<Tlb, Options>().attach(Which);
    static auto blocks = device<Tlb, Options>().attach(Which);
    return size_log2 == page_log2 ? pages : blocks;
}
template <class Port>
std::byte* guarded(Port& port, iova address) {
    auto guard = port.open();
    return guard.translate(address, bytes_asked, access::read).host();
}

/// Measures the addresses as they are asked for: they must hit, each but for the first time.
template <class Device, class Port>
void measure_hits(benchmark::State& state, const shape& asked, Device& d, Port& p) {
    const only_hits check{state, d.iommu(), asked.pages};
    go_round(
        state, asked.order, asked.size_log2, [&](iova address) { return guarded(p, address); },
        [&](std::uint64_t output) { return d.host_of(output); });
}

template <class Options, stages Which, class Tlb>
void hit(benchmark::State& state) {
    const shape asked{state};
    auto& d = device<Tlb, Options>();
    auto& p = port<Tlb, Options, Which>(asked.size_log2);
    d.map(asked.pages, asked.size_log2);
    d.empty();
    measure_hits(state, asked, d, p);
}

/// Twice as many other pages were cached before, and have been invalidated; their places are taken.
template <class Options>
void hit_aged(benchmark::State& state) {
    const shape asked{state};
    auto& d = device<usual_tlb, Options>();
    auto& p = port<usual_tlb, Options, stages::first>(asked.size_log2);
    auto& before = port<usual_tlb, Options, stages::first>(
        asked.size_log2 == page_log2 ? block_log2 : page_log2);
    const unsigned other_size = asked.size_log2 == page_log2 ? block_log2 : page_log2;
    d.map(asked.pages, asked.size_log2);
    d.map(usual_tlb::capacity, other_size);
    d.empty();
    for (const iova address : addresses(usual_tlb::capacity, false, other_size))
        benchmark::DoNotOptimize(guarded(before, address));
    d.forget();
    // Some of them go for new ones only after a while.
    for (int pass = 0; pass < 20; ++pass) {
        for (const iova address : asked.order)
            benchmark::DoNotOptimize(guarded(p, address));
    }
    measure_hits(state, asked, d, p);
}

void hit_mixed(benchmark::State& state) {
    const shape asked{state};
    auto& d = device<usual_tlb, stage1_options>();
    static auto p = d.attach();
    d.map(asked.pages);
    d.map(1, block_log2);
    d.empty();
    benchmark::DoNotOptimize(guarded(p, iova{first_block}));
    for (const iova address : asked.order)
        benchmark::DoNotOptimize(guarded(p, address));
    measure_hits(state, asked, d, p);
}

void hit_held(benchmark::State& state) {
    const shape asked{state};
    auto& d = device<usual_tlb, stage1_options>();
    auto& p = port<usual_tlb, stage1_options, stages::first>(asked.size_log2);
    d.map(asked.pages, asked.size_log2);
    d.empty();
    const only_hits check{state, d.iommu(), asked.pages};
    auto guard = p.open();
    go_round(
        state, asked.order, asked.size_log2,
        [&](iova address) { return guard.translate(address, bytes_asked, access::read).host(); },
        [&](std::uint64_t output) { return d.host_of(output); });
}

/// Runs a contender that `fill` has put the pages into.
template <class Fill, class Lookup>
void others(benchmark::State& state, Fill fill, Lookup lookup) {
    const shape asked{state};
    auto& d = device<usual_tlb, stage1_options>(); // for its memory
    for (std::uint64_t i = 0; i < asked.pages; ++i) {
        const std::uint64_t output = output_of(i, asked.size_log2);
        fill(base_of(asked.size_log2) + (i << asked.size_log2), asked.size_log2,
             flat_entry{d.host_of(output), output, 1});
    }
    go_round(state, asked.order, asked.size_log2, lookup,
             [&](std::uint64_t output) { return d.host_of(output); });
}

void floor_array(benchmark::State& state) {
    const auto size_log2 = static_cast<unsigned>(state.range(2));
    flat_table table{base_of(size_log2), size_log2, static_cast<std::uint64_t>(state.range(0))};
    others(
        state,
        [&](std::uint64_t address, unsigned, const flat_entry& e) { table.fill(address, e); },
        [&](iova address) { return table.lookup(address, bytes_asked, 1).host; });
}
void rival_hash(benchmark::State& state) {
    hash_by_level table{static_cast<std::size_t>(state.range(0))};
    others(
        state,
        [&](std::uint64_t address, unsigned size_log2, const flat_entry& e) {
            table.fill(address, size_log2, first_space, e);
        },
        [&](iova address) { return table.lookup(address, first_space, bytes_asked, 1).host; });
}
void rival_lru(benchmark::State& state) {
    lru_list list{static_cast<std::size_t>(state.range(0)), static_cast<unsigned>(state.range(2))};
    others(
        state,
        [&](std::uint64_t address, unsigned, const flat_entry& e) {
            list.fill(address, first_space, e);
        },
        [&](iova address) { return list.lookup(address, first_space, bytes_asked, 1).host; });
}
void rival_intervals(benchmark::State& state) {
    interval_map map;
    others(
        state,
        [&](std::uint64_t address, unsigned size_log2, const flat_entry& e) {
            map.fill(address, size_log2, e);
        },
        [&](iova address) { return map.lookup(address, bytes_asked, 1).host; });
}

void sizes(benchmark::internal::Benchmark* b, std::initializer_list<std::int64_t> pages,
           unsigned size_log2) {
    for (const int random : {0, 1}) {
        for (const std::int64_t n : pages) {
            if (n != 1 || random == 0) b->Args({n, random, size_log2});
        }
    }
}
/// What the usual TLB holds, what only the large one does, and both.
void usual(benchmark::internal::Benchmark* b) {
    sizes(b, {1, 64, 4096}, page_log2);
    sizes(b, {64, 4096}, block_log2);
}
void large(benchmark::internal::Benchmark* b) {
    sizes(b, {65536}, page_log2);
    sizes(b, {65536}, block_log2);
}
/// Stage 2 has pages of 4 KiB: through both stages a block is cached in pieces.
void usual_nested(benchmark::internal::Benchmark* b) { sizes(b, {1, 64, 4096}, page_log2); }
void large_nested(benchmark::internal::Benchmark* b) { sizes(b, {65536}, page_log2); }
void all(benchmark::internal::Benchmark* b) {
    usual(b);
    large(b);
}

} // namespace

BENCHMARK(floor_array)->Apply(all);
BENCHMARK_TEMPLATE(hit, stage1_options, stages::first, usual_tlb)->Apply(usual);
BENCHMARK_TEMPLATE(hit, full_options, stages::first, usual_tlb)->Apply(usual);
BENCHMARK_TEMPLATE(hit, full_options, stages::both, usual_tlb)->Apply(usual_nested);
BENCHMARK_TEMPLATE(hit, stage1_options, stages::first, large_tlb)->Apply(large);
BENCHMARK_TEMPLATE(hit, full_options, stages::first, large_tlb)->Apply(large);
BENCHMARK_TEMPLATE(hit, full_options, stages::both, large_tlb)->Apply(large_nested);
BENCHMARK(rival_hash)->Apply(all);
BENCHMARK(rival_lru)->Apply(all);
BENCHMARK(rival_intervals)->Apply(all);
// What parts of it cost: no guard each time, a fence per guard, no threads at all.
BENCHMARK(hit_held)->Args({64, 1, page_log2});
BENCHMARK_TEMPLATE(hit_aged, stage1_options)->Args({64, 1, page_log2})->Args({4096, 1, page_log2});
BENCHMARK_TEMPLATE(hit_aged, full_options)->Args({64, 1, page_log2})->Args({4096, 1, page_log2});
BENCHMARK(hit_mixed)->Args({64, 1, page_log2});
BENCHMARK_TEMPLATE(hit, fenced, stages::first, usual_tlb)->Args({64, 1, page_log2});
BENCHMARK_TEMPLATE(hit, alone, stages::first, usual_tlb)->Args({64, 1, page_log2});
