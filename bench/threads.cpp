/// Claim: translations scale with threads as well as a table that nobody writes does, while what
/// sits behind a lock gets slower with the second thread.
///
/// Every thread has a device of its own: its own StreamID, ASID, port and addresses, and translates
/// its 64 (or 4,096) pages in random order. From 1 to all hardware threads; the time is that of all
/// divided by the translations of all, so that perfect scaling halves it with each doubling.
///   floor     every thread reads one array
///   hit       open a guard, translate, close it; one TLB for all, statistics on
///   rival_... one table for all, see rivals.hpp
/// Argument 1: pages of each thread.
#include "measure.hpp"

#include <memory>
#include <thread>

using namespace vm_accel;
using namespace bench;

namespace {

int hardware_threads() {
    return static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
}

std::uint16_t space_of(int thread) { return static_cast<std::uint16_t>(first_space + thread); }

constexpr std::uint64_t most_pages = 4096;
std::uint64_t all_pages() { return most_pages * static_cast<std::uint64_t>(hardware_threads()); }

std::vector<iova> addresses_of(int thread, std::uint64_t pages) {
    std::vector<iova> order = addresses(pages, true);
    for (iova& address : order)
        address = offset_by(address, static_cast<std::uint64_t>(thread) * most_pages << page_log2);
    return order;
}

template <class Translate, class HostOf>
void go(benchmark::State& state, Translate translate, HostOf host_of) {
    const auto pages = static_cast<std::uint64_t>(state.range(0));
    go_round(state, addresses_of(state.thread_index(), pages), page_log2, translate, host_of);
    state.SetItemsProcessed(state.iterations());
}

/// The streams of all threads, with all their pages cached: a thread that is interrupted while it
/// fills an entry would make others miss.
template <class Options>
struct streams {
    using device_type = mapped_device<large_tlb, Options>;
    streams() {
        for (int i = 0; i < hardware_threads(); ++i)
            ports.push_back(device.attach());
        device.map(all_pages());
        for (int i = 0; i < hardware_threads(); ++i) {
            auto guard = ports[static_cast<std::size_t>(i)].open();
            for (const iova address : addresses_of(i, most_pages)) {
                if (!guard.translate(address, bytes_asked, access::read).is_span())
                    throw std::runtime_error{"a page was refused"};
            }
        }
    }
    device_type device;
    std::vector<typename device_type::port_type> ports;
    smmu_statistics before;
};
template <class Options>
streams<Options>& all_streams() {
    static streams<Options> one;
    return one;
}

template <class Options>
void hit(benchmark::State& state) {
    auto& s = all_streams<Options>();
    auto& port = s.ports[static_cast<std::size_t>(state.thread_index())];
    go(
        state,
        [&](iova address) {
            auto guard = port.open();
            return guard.translate(address, bytes_asked, access::read).host();
        },
        [&](std::uint64_t output) { return s.device.host_of(output); });
}
template <class Options>
void count_before(const benchmark::State&) {
    auto& s = all_streams<Options>();
    s.before = s.device.iommu().stats();
}
/// Threads that missed would not measure what they say: this ends the program.
template <class Options>
void check_after(const benchmark::State&) {
    auto& s = all_streams<Options>();
    const smmu_statistics after = s.device.iommu().stats();
    const std::uint64_t misses = after.misses - s.before.misses;
    const std::uint64_t hits = after.hits - s.before.hits;
    if (misses > hits / 1000 || after.faults != s.before.faults) {
        std::fprintf(stderr, "threads: %llu misses beside %llu hits\n",
                     static_cast<unsigned long long>(misses),
                     static_cast<unsigned long long>(hits));
        std::exit(1);
    }
}

/// A contender that all threads share, with the pages of each of them.
template <class Table, class Fill>
std::unique_ptr<Table> filled(std::unique_ptr<Table> table, Fill fill) {
    auto& s = all_streams<stage1_options>();
    for (int thread = 0; thread < hardware_threads(); ++thread) {
        for (std::uint64_t i = 0; i < most_pages; ++i) {
            const std::uint64_t page = static_cast<std::uint64_t>(thread) * most_pages + i;
            const std::uint64_t output = output_of(page, page_log2);
            fill(*table, first_page + (page << page_log2), space_of(thread),
                 flat_entry{s.device.host_of(output), output, 1});
        }
    }
    return table;
}
std::byte* place(std::uint64_t output) {
    return all_streams<stage1_options>().device.host_of(output);
}

void floor_array(benchmark::State& state) {
    static const auto table = filled(
        std::make_unique<flat_table>(first_page, page_log2, all_pages()),
        [](flat_table& t, std::uint64_t a, std::uint16_t, const flat_entry& e) { t.fill(a, e); });
    go(state, [](iova a) { return table->lookup(a, bytes_asked, 1).host; }, place);
}
void rival_hash(benchmark::State& state) {
    static const auto table = filled(std::make_unique<hash_by_level>(all_pages()),
                                     [](hash_by_level& t, std::uint64_t a, std::uint16_t space,
                                        const flat_entry& e) { t.fill(a, page_log2, space, e); });
    const std::uint16_t space = space_of(state.thread_index());
    go(state, [space](iova a) { return table->lookup(a, space, bytes_asked, 1).host; }, place);
}
void rival_lru(benchmark::State& state) {
    static const auto table = filled(std::make_unique<lru_list>(all_pages(), page_log2),
                                     [](lru_list& t, std::uint64_t a, std::uint16_t space,
                                        const flat_entry& e) { t.fill(a, space, e); });
    const std::uint16_t space = space_of(state.thread_index());
    go(state, [space](iova a) { return table->lookup(a, space, bytes_asked, 1).host; }, place);
}

void every_count(benchmark::internal::Benchmark* b) {
    b->Arg(64)->Arg(4096)->UseRealTime();
    for (int threads = 1; threads < hardware_threads(); threads *= 2)
        b->Threads(threads);
    b->Threads(hardware_threads());
}

} // namespace

BENCHMARK(floor_array)->Apply(every_count);
BENCHMARK_TEMPLATE(hit, stage1_options)
    ->Apply(every_count)
    ->Setup(count_before<stage1_options>)
    ->Teardown(check_after<stage1_options>);
BENCHMARK_TEMPLATE(hit, full_options)
    ->Apply(every_count)
    ->Setup(count_before<full_options>)
    ->Teardown(check_after<full_options>);
BENCHMARK(rival_hash)->Apply(every_count);
BENCHMARK(rival_lru)->Apply(every_count);
