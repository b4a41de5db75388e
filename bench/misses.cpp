/// Claim: a miss costs little more than the loads of its walk, and with a warm walk cache hardly
/// more than one of them; through both stages too.
///
/// A miss here is all of it: guard, look-up, walk, checks, fill with the eviction of another entry.
///   warm   4,096 pages in ascending (0) or random (1) order through a TLB of 64 entries: every
///          access walks, and what walks leave behind may help
///   cold   before each access the guest forgets everything (CMD_TLBI_NSNH_ALL, not in the time;
///          it covers the walk caches, as leaf = 0 does), and no two accesses in succession share
///          a table but the root; the tables stay in the processor's caches
///   floor_one_load   one load of a descriptor behind a call, the same pages
///   floor_four_loads four that depend on each other: what the tables themselves cost
/// <features, stages>.
#include "measure.hpp"

using namespace vm_accel;
using namespace bench;

namespace {

using small_tlb = set_associative<16, 4>;
constexpr std::uint64_t warm_pages = 4096;
constexpr std::uint64_t cold_pages = 64;

template <class Options>
mapped_device<small_tlb, Options>& device() {
    static auto& one = []() -> auto& {
        static mapped_device<small_tlb, Options> made;
        made.map(warm_pages);
        made.map_scattered(cold_pages);
        return made;
    }();
    return one;
}
template <class Options, stages Which>
auto& port() {
    static auto one = device<Options>().attach(Which);
    return one;
}

/// Fails a run in which an access hit.
template <class Iommu>
class only_misses {
public:
    only_misses(benchmark::State& state, Iommu& iommu)
        : state_(state), iommu_(iommu), before_(iommu.stats()) {}
    only_misses(const only_misses&) = delete;
    only_misses& operator=(const only_misses&) = delete;
    ~only_misses() {
        const smmu_statistics after = iommu_.stats();
        if (after.hits != before_.hits || after.faults != before_.faults)
            state_.SkipWithError("hit or faulted during the measurement");
        if (after.misses - before_.misses < static_cast<std::uint64_t>(state_.iterations()))
            state_.SkipWithError("missed less often than it was asked");
    }

private:
    benchmark::State& state_;
    Iommu& iommu_;
    smmu_statistics before_;
};

template <class Options, stages Which>
void warm(benchmark::State& state) {
    auto& d = device<Options>();
    auto& p = port<Options, Which>();
    const std::vector<iova> order = addresses(warm_pages, state.range(0) != 0);
    d.empty();
    const only_misses check{state, d.iommu()};
    go_round(
        state, order, page_log2,
        [&](iova address) {
            auto guard = p.open();
            return guard.translate(address, bytes_asked, access::read).host();
        },
        [&](std::uint64_t output) { return d.host_of(output); });
}

template <class Options, stages Which>
void cold(benchmark::State& state) {
    auto& d = device<Options>();
    auto& p = port<Options, Which>();
    const auto forget = [&] { d.send({spec::tlbi_nsnh_all()}); };
    stopwatch watch{state};
    std::uint64_t next = 0;
    for (std::uint64_t i = 0; i < cold_pages; ++i) { // the tables come into the caches
        auto guard = p.open();
        if (!guard.translate(scattered_address(i), bytes_asked, access::read).is_span())
            state.SkipWithError("was refused");
    }
    forget();
    const only_misses check{state, d.iommu()};
    for (auto _ : state) {
        forget();
        const iova address = scattered_address(next++ % cold_pages);
        watch.start();
        {
            auto guard = p.open();
            benchmark::DoNotOptimize(guard.translate(address, bytes_asked, access::read).host());
        }
        watch.stop();
    }
    if (!d.is_done()) state.SkipWithError("the invalidations were not executed");
}

[[gnu::noinline]] std::uint64_t load_at(const std::byte* host) {
    std::uint64_t word;
    std::memcpy(&word, host, sizeof word);
    return word;
}
constexpr std::uint64_t table_bits = 0x0000'ffff'ffff'f000;

void floor_one_load(benchmark::State& state) {
    auto& d = device<stage1_options>();
    const std::vector<iova> order = addresses(warm_pages, state.range(0) != 0);
    // The tables of neighbouring pages need not be neighbours: where each is, in an array.
    std::vector<const std::byte*> leaf;
    for (std::uint64_t i = 0; i < warm_pages; i += 512)
        leaf.push_back(d.host_of(d.machine().descriptor_slot(d.root(), first_page + (i << 12))));
    const std::size_t mask = order.size() - 1;
    std::size_t next = 0;
    for (auto _ : state) {
        const std::uint64_t page = (raw(order[next++ & mask]) - first_page) >> 12;
        benchmark::DoNotOptimize(load_at(leaf[page >> 9] + (page & 511) * 8));
    }
}

[[gnu::noinline]] std::uint64_t walk(std::byte* ram, std::uint64_t root, iova address) {
    std::uint64_t table = root;
    for (unsigned shift = 39; shift > 12; shift -= 9)
        table =
            load_at(ram + (table - guest::ram) + (raw(address) >> shift & 511) * 8) & table_bits;
    return load_at(ram + (table - guest::ram) + (raw(address) >> 12 & 511) * 8);
}

void floor_four_loads(benchmark::State& state) {
    auto& d = device<stage1_options>();
    std::byte* const ram = d.host_of(guest::ram);
    std::uint64_t next = 0;
    stopwatch watch{state};
    for (auto _ : state) {
        const iova address = scattered_address(next++ % cold_pages);
        watch.start();
        benchmark::DoNotOptimize(walk(ram, d.root(), address));
        watch.stop();
    }
}

} // namespace

BENCHMARK(floor_one_load)->Arg(0)->Arg(1);
BENCHMARK_TEMPLATE(warm, stage1_options, stages::first)->Arg(0)->Arg(1);
BENCHMARK_TEMPLATE(warm, full_options, stages::first)->Arg(0)->Arg(1);
BENCHMARK_TEMPLATE(warm, full_options, stages::both)->Arg(0)->Arg(1);
BENCHMARK(floor_four_loads)->UseManualTime();
BENCHMARK_TEMPLATE(cold, stage1_options, stages::first)->UseManualTime();
BENCHMARK_TEMPLATE(cold, full_options, stages::first)->UseManualTime();
BENCHMARK_TEMPLATE(cold, full_options, stages::both)->UseManualTime();
