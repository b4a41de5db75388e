/// Claim: a hit costs about the same with every set-associative policy, and what the other policies
/// cost more buys something that can be measured.
///
///   floor    array look-up with length and permission check, not inlined
///   hit      64 or 4,096 pages in random order; every TLB has room for 8,192 entries or more
///   streams  65,536 pages in ascending order, more than any of them holds: what a miss costs, and
///            what prefetching saves
///   two_devices  two devices in turn, each with 1,024 pages at the same addresses, together a
///            quarter of what the TLB holds: the share of hits that is left
/// What shares of other traces hit is examples/policy_lab's to say.
#include "measure.hpp"

#include <vm_accel/smmu/caches/direct_mapped.hpp>
#include <vm_accel/smmu/caches/duelling.hpp>
#include <vm_accel/smmu/caches/fully_associative.hpp>
#include <vm_accel/smmu/caches/partitioned.hpp>
#include <vm_accel/smmu/caches/prefetching.hpp>
#include <vm_accel/smmu/caches/two_level.hpp>

using namespace vm_accel;
using namespace bench;

namespace {

constexpr std::uint64_t most_pages = 65536;

template <class Tlb>
struct setting {
    setting() : port(device.attach()) { device.map(most_pages); }
    mapped_device<Tlb> device;
    typename mapped_device<Tlb>::port_type port;
};
template <class Tlb>
setting<Tlb>& the() {
    static setting<Tlb> one;
    one.device.empty();
    return one;
}
template <class Tlb>
void go(benchmark::State& state, setting<Tlb>& s, bool shuffled) {
    go_round(
        state, addresses(static_cast<std::uint64_t>(state.range(0)), shuffled), page_log2,
        [&](iova address) {
            auto guard = s.port.open();
            return guard.translate(address, bytes_asked, access::read).host();
        },
        [&](std::uint64_t output) { return s.device.host_of(output); });
}
template <class Tlb>
void hit(benchmark::State& state) {
    auto& s = the<Tlb>();
    const auto pages = static_cast<std::uint64_t>(state.range(0));
    // A policy that does not see that old entries have become useless evicts new ones for a while.
    std::uint64_t missed = 1;
    for (int pass = 0; pass < 100 && missed != 0; ++pass) {
        const std::uint64_t before = s.device.iommu().stats().misses;
        for (const iova address : addresses(pages, true)) {
            auto guard = s.port.open();
            benchmark::DoNotOptimize(guard.translate(address, bytes_asked, access::read).host());
        }
        missed = s.device.iommu().stats().misses - before;
    }
    const only_hits check{state, s.device.iommu(), 0};
    go(state, s, true);
}
template <class Tlb>
void streams(benchmark::State& state) {
    auto& s = the<Tlb>();
    const smmu_statistics before = s.device.iommu().stats();
    go(state, s, false);
    smmu_statistics during = s.device.iommu().stats();
    during.hits -= before.hits;
    during.misses -= before.misses;
    state.counters["hit_rate"] = during.hit_rate();
}

/// Not one set of pages round and round, but one page of one device and one of the other.
template <class Tlb>
void two_devices(benchmark::State& state) {
    auto& s = the<Tlb>();
    static auto other = s.device.attach();
    const std::vector<iova> order = addresses(static_cast<std::uint64_t>(state.range(0)), true);
    const auto translate = [&](auto& port, iova address) {
        auto guard = port.open();
        benchmark::DoNotOptimize(guard.translate(address, bytes_asked, access::read).host());
    };
    for (int pass = 0; pass < 20; ++pass) {
        for (const iova address : order) {
            translate(s.port, address);
            translate(other, address);
        }
    }
    const smmu_statistics before = s.device.iommu().stats();
    std::size_t next = 0;
    for (auto _ : state) {
        const iova address = order[next++ & (order.size() - 1)];
        translate(s.port, address);
        translate(other, address);
    }
    smmu_statistics during = s.device.iommu().stats();
    during.hits -= before.hits;
    during.misses -= before.misses;
    state.counters["hit_rate"] = during.hit_rate();
}

void floor_array(benchmark::State& state) {
    auto& s = the<usual_tlb>();
    const auto pages = static_cast<std::uint64_t>(state.range(0));
    flat_table table{first_page, page_log2, pages};
    for (std::uint64_t i = 0; i < pages; ++i) {
        const std::uint64_t output = output_of(i, page_log2);
        table.fill(first_page + (i << page_log2), {s.device.host_of(output), output, 1});
    }
    go_round(
        state, addresses(pages, true), page_log2,
        [&](iova address) { return table.lookup(address, bytes_asked, 1).host; },
        [&](std::uint64_t output) { return s.device.host_of(output); });
}

template <class Tlb>
void add(const std::string& name) {
    if constexpr (Tlb::capacity != 0)
        benchmark::RegisterBenchmark(("hit/" + name).c_str(), hit<Tlb>)->Arg(64)->Arg(4096);
    if constexpr (Tlb::capacity != 0)
        benchmark::RegisterBenchmark(("two_devices/" + name).c_str(), two_devices<Tlb>)->Arg(1024);
    benchmark::RegisterBenchmark(("streams/" + name).c_str(), streams<Tlb>)->Arg(most_pages);
}

} // namespace

int main(int argc, char** argv) {
    benchmark::RegisterBenchmark("floor", floor_array)->Arg(64)->Arg(4096);
    add<set_associative<1024, 8, vm_accel::clock>>("set_associative, clock");
    add<set_associative<1024, 8, fifo>>("set_associative, fifo");
    add<set_associative<1024, 8, lru>>("set_associative, lru");
    add<set_associative<1024, 8, tree_plru>>("set_associative, tree_plru");
    add<set_associative<1024, 8, vm_accel::random>>("set_associative, random");
    add<set_duelling<1024, 8>>("set_associative, duelling_clock");
    add<direct_mapped<8192>>("direct_mapped");
    add<fully_associative<8192>>("fully_associative, lru");
    add<two_level<set_associative<16, 4>, usual_tlb>>("two_level");
    add<partitioned<usual_tlb, 4>>("partitioned");
    add<prefetching<usual_tlb, next_page<>>>("prefetching, next_page");
    add<prefetching<usual_tlb, constant_stride<>>>("prefetching, constant_stride");
    add<no_tlb>("no_tlb");
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
    benchmark::RunSpecifiedBenchmarks();
    return 0;
}
