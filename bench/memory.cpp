/// Claim: an entry of a TLB takes 64 bytes at most, and a StreamID that nobody uses takes none.
///
/// Not times but counters:
///   bytes_per_entry   of each TLB: all of it divided by what it holds
///   bytes_per_stream  resident memory that attaching 4,096 devices adds, divided by them
///   bytes_of_all      resident memory of an SMMU with 16-bit StreamIDs (full: 32) and no device,
///                     its TLB of 64 entries and its pools touched as init() leaves them
///   rival_...         the same of a hash table and of an LRU list with 8,192 entries
#include "measure.hpp"

#include <vm_accel/smmu/caches/direct_mapped.hpp>
#include <vm_accel/smmu/caches/fully_associative.hpp>

#if defined(__GLIBC__)
#include <malloc.h>
#endif
#include <unistd.h>

#include <fstream>
#include <memory>

using namespace vm_accel;
using namespace bench;

namespace {

constexpr std::size_t rival_entries = 8192;

double resident_bytes() {
#if defined(__GLIBC__)
    ::malloc_trim(0); // what was freed is not to be used again unseen
#endif
    std::ifstream statm{"/proc/self/statm"};
    double total = 0;
    double resident = 0;
    statm >> total >> resident;
    return resident * static_cast<double>(::sysconf(_SC_PAGESIZE));
}

template <class Tlb>
void entry_of(benchmark::State& state) {
    for (auto _ : state) {}
    state.counters["bytes_per_entry"] =
        static_cast<double>(sizeof(Tlb)) / static_cast<double>(Tlb::capacity);
}
template <class Options>
void streams(benchmark::State& state) {
    using device_type =
        smmu<set_associative<16, 4>, bitmap_streams<65536>, region_map, counting_sink, Options>;
    constexpr std::uint32_t devices = 4096;
    for (auto _ : state) {
        region_map memory;
        counting_sink sink;
        const double start = resident_bytes();
        const auto device = std::make_unique<device_type>(memory, sink);
        if (!device->init()) state.SkipWithError("not initialised");
        const double initialised = resident_bytes();
        for (std::uint32_t i = 0; i < devices; ++i) {
            if (!device->attach_device("device " + std::to_string(i), {pa{guest::ram}, 4096},
                                       stream_id{i})) {
                state.SkipWithError("not attached");
            }
        }
        state.counters["bytes_of_all"] = initialised - start;
        state.counters["bytes_per_stream"] = (resident_bytes() - initialised) / devices;
    }
}

template <class Table, class Fill>
void rival(benchmark::State& state, Fill fill) {
    for (auto _ : state) {
        const double before = resident_bytes();
        const auto table = std::make_unique<Table>(fill());
        state.counters["bytes_per_entry"] = (resident_bytes() - before) / rival_entries;
        benchmark::DoNotOptimize(*table);
    }
}
/// A table that can be made in place although it cannot be moved.
struct filled_hash {
    hash_by_level table{rival_entries};
    explicit filled_hash(int) {
        for (std::uint64_t i = 0; i < rival_entries; ++i)
            table.fill(first_page + (i << page_log2), page_log2, first_space, {});
    }
};
struct filled_list {
    lru_list list{rival_entries, page_log2};
    explicit filled_list(int) {
        for (std::uint64_t i = 0; i < rival_entries; ++i)
            list.fill(first_page + (i << page_log2), first_space, {});
    }
};
void rival_hash(benchmark::State& state) {
    rival<filled_hash>(state, [] { return 0; });
}
void rival_lru(benchmark::State& state) {
    rival<filled_list>(state, [] { return 0; });
}

} // namespace

// What the others leave behind would be counted to the ones that come later: the rivals first.
BENCHMARK(rival_hash)->Iterations(1);
BENCHMARK(rival_lru)->Iterations(1);
BENCHMARK_TEMPLATE(streams, stage1_options)->Iterations(1);
BENCHMARK_TEMPLATE(streams, full_options)->Iterations(1);
BENCHMARK_TEMPLATE(entry_of, usual_tlb)->Iterations(1);
BENCHMARK_TEMPLATE(entry_of, set_associative<1024, 4>)->Iterations(1);
BENCHMARK_TEMPLATE(entry_of, direct_mapped<8192>)->Iterations(1);
BENCHMARK_TEMPLATE(entry_of, fully_associative<8192>)->Iterations(1);
