/// Claim: guest RAM from numa_allocator gets its pages no slower than the
/// emulators' way of doing it, although it is bound, read back and reported.
///
/// Each round maps 512 MiB, gives it all its pages and unmaps it. Beside it in
/// the same run: the floor (one thread, one MADV_POPULATE_WRITE: what the kernel
/// needs), and the rivals (threads that touch a page after another, or populate
/// their share each; no binding). The arguments are the number of threads, and
/// whether transparent huge pages are advised.
#include <vm_accel/numa/local_first.hpp>
#include <vm_accel/numa/numa_allocator.hpp>

#include <benchmark/benchmark.h>

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

constexpr std::uint64_t bytes = std::uint64_t{512} << 20;
constexpr std::uint64_t page = 4096;
constexpr int populate_write = 23;
constexpr std::uint64_t huge_page = 2u << 20;

/// Memory as emulators map it: aligned to a huge page, which they advise by default.
class mapping {
public:
    explicit mapping(bool huge)
        : all_(static_cast<std::byte*>(::mmap(nullptr, bytes + huge_page, PROT_READ | PROT_WRITE,
                                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))),
          address_(all_ + (0 - reinterpret_cast<std::uintptr_t>(all_)) % huge_page) {
        if (huge) ::madvise(address_, bytes, MADV_HUGEPAGE);
    }
    mapping(const mapping&) = delete;
    mapping& operator=(const mapping&) = delete;
    ~mapping() { ::munmap(all_, bytes + huge_page); }
    [[nodiscard]] std::byte* address() const { return address_; }

private:
    std::byte* all_;
    std::byte* address_;
};

void report(benchmark::State& state) {
    state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(bytes));
    state.counters["threads"] = static_cast<double>(state.range(0));
}

void floor_one_populate(benchmark::State& state) {
    for (auto _ : state) {
        const mapping m{state.range(1) != 0};
        if (::madvise(m.address(), bytes, populate_write) != 0) {
            state.SkipWithError("the kernel has no MADV_POPULATE_WRITE");
            break;
        }
    }
    report(state);
}

template <class Share>
void on_threads(std::int64_t count, std::byte* start, Share share) {
    std::vector<std::thread> threads;
    const std::uint64_t part = bytes / static_cast<std::uint64_t>(count);
    for (std::int64_t i = 0; i < count; ++i)
        threads.emplace_back(share, start + static_cast<std::uint64_t>(i) * part, part);
    for (std::thread& thread : threads)
        thread.join();
}

void rival_touch_per_thread(benchmark::State& state) {
    for (auto _ : state) {
        const mapping m{state.range(1) != 0};
        on_threads(state.range(0), m.address(), [](std::byte* start, std::uint64_t size) {
            for (std::uint64_t at = 0; at < size; at += page) {
                auto* const p = reinterpret_cast<volatile unsigned char*>(start + at);
                *p = *p;
            }
        });
    }
    report(state);
}

void rival_populate_per_thread(benchmark::State& state) {
    bool refused = false;
    for (auto _ : state) {
        const mapping m{state.range(1) != 0};
        on_threads(state.range(0), m.address(), [&](std::byte* start, std::uint64_t size) {
            if (::madvise(start, size, populate_write) != 0) refused = true;
        });
    }
    if (refused) state.SkipWithError("the kernel has no MADV_POPULATE_WRITE");
    report(state);
}

void ours(benchmark::State& state) {
    using namespace vm_accel;
    numa_allocator<local_first> allocator;
    if (!allocator.init()) {
        state.SkipWithError("no topology");
        return;
    }
    guest_ram_request request;
    request.bytes = bytes;
    request.prefault_threads = static_cast<unsigned>(state.range(0));
    if (state.range(1) != 0) request.huge_pages = huge_page_use::advise;
    for (auto _ : state) {
        const auto region = allocator.allocate(request);
        if (!region || region->chunks()[0].prefault.is_denied()) {
            state.SkipWithError("populating was refused");
            break;
        }
    }
    report(state);
}

} // namespace

// Processor time is of all threads together: what the kernel is made to do, whoever else runs.
BENCHMARK(floor_one_populate)
    ->ArgsProduct({{1}, {0, 1}})
    ->UseRealTime()
    ->MeasureProcessCPUTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK(rival_touch_per_thread)
    ->ArgsProduct({{1, 2}, {0, 1}})
    ->UseRealTime()
    ->MeasureProcessCPUTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK(rival_populate_per_thread)
    ->ArgsProduct({{1, 2}, {0, 1}})
    ->UseRealTime()
    ->MeasureProcessCPUTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK(ours)
    ->ArgsProduct({{1, 2}, {0, 1}})
    ->UseRealTime()
    ->MeasureProcessCPUTime()
    ->Unit(benchmark::kMillisecond);
