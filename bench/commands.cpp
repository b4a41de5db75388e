/// Claim: a guest's invalidation of a page and its CMD_SYNC take tens of nanoseconds, whatever is
/// cached; CMD_SYNC pays for waiting only while device threads are awake, and once per batch.
///
///   tlbi_va_sync     CMD_TLBI_NH_VA of a cached page and CMD_SYNC, rung for once. Argument 1:
///                    entries cached. <quiescence policy>. No other thread; the port is parked
///                    unless the policy makes that needless.
///   with_readers     the same while another thread translates, waiting for CMDQ_CONS as a driver
///                    does; argument 1: invalidations per CMD_SYNC. <quiescence policy>
///   awake            the same while the port is awake but idle
///   membarrier_...   one membarrier(2), alone and while another thread of the process runs: what
///                    the waiting of membarrier_quiescence consists of
///   mmio_write       a register write that does nothing: the floor of every command
///   batch            200 CMD_TLBI_NH_VA and one CMD_SYNC; items are commands
///   sync_only        CMD_SYNC with nothing before it
#include "measure.hpp"

#include <vm_accel/os/memory_barrier.hpp>

#include <atomic>
#include <thread>

using namespace vm_accel;
using namespace bench;

namespace {

template <class Policy>
struct with_policy : stage1_options {
    using quiescence = Policy;
};
template <class Policy>
struct setting {
    using device_type = mapped_device<large_tlb, with_policy<Policy>>;
    setting() : port(device.attach()), reader(device.attach()) { device.map(65536); }
    device_type device;
    typename device_type::port_type port;   ///< of the thread that measures; fills the TLB
    typename device_type::port_type reader; ///< of the thread that translates, if one does
};
template <class Policy>
setting<Policy>& the() {
    static setting<Policy> one;
    one.port.park();
    one.reader.park();
    return one;
}

template <class Port>
bool touch(Port& port, std::uint64_t page) {
    auto guard = port.open();
    return guard.translate(iova{first_page + (page << page_log2)}, bytes_asked, access::read)
        .is_span();
}
spec::command page_of_first(std::uint64_t page) {
    return spec::tlbi_nh_va(vmid{0}, asid{first_space}, iova{first_page + (page << page_log2)},
                            true);
}
const spec::command sync = spec::cmd_sync(spec::sync_signal::SIG_NONE);

/// Translates on a thread of its own while it lives.
template <class Port>
class running_reader {
public:
    explicit running_reader(Port& port) : port_(port) {
        port_.unpark();
        thread_ = std::thread{[this] { translate_on_and_on(); }};
        while (translated_.load() == 0)
            std::this_thread::yield();
    }
    running_reader(const running_reader&) = delete;
    running_reader& operator=(const running_reader&) = delete;
    ~running_reader() {
        stop_.store(true);
        thread_.join();
        port_.park();
    }
    [[nodiscard]] std::uint64_t translated() const { return translated_.load(); }

private:
    void translate_on_and_on() {
        for (std::uint64_t i = 0; !stop_.load(std::memory_order_relaxed); ++i) {
            if (!touch(port_, i % 64)) return;
            translated_.store(i + 1, std::memory_order_relaxed);
        }
    }
    Port& port_;
    std::atomic<bool> stop_{false};
    std::atomic<std::uint64_t> translated_{0};
    std::thread thread_;
};

/// Times `batches` at a time, and puts back in between what they have removed. The first `entries`
/// pages are cached before.
template <class Setting, class Batch>
void measure(benchmark::State& state, Setting& s, std::uint64_t entries, std::uint64_t pages,
             Batch batch) {
    constexpr std::uint64_t batches = 16;
    s.device.empty();
    s.port.unpark();
    for (std::uint64_t i = 0; i < entries; ++i)
        touch(s.port, i);
    const smmu_statistics before = s.device.iommu().stats();
    std::uint64_t next = 0;
    std::uint64_t sent = 0;
    stopwatch watch{state};
    for (auto _ : state) {
        const std::uint64_t first = next;
        s.port.park();
        watch.start();
        for (std::uint64_t b = 0; b < batches; ++b) {
            batch(next, entries);
            next += pages;
        }
        watch.stop(batches);
        sent += batches * (pages + 1);
        if (!s.device.is_done()) state.SkipWithError("CMD_SYNC did not complete");
        s.port.unpark();
        for (std::uint64_t i = first; i < next; ++i)
            touch(s.port, i % entries);
    }
    s.port.park();
    const smmu_statistics after = s.device.iommu().stats();
    if (after.commands - before.commands != sent)
        state.SkipWithError("not every command was consumed");
    // The other thread misses as well, where its pages share sets with those.
    if (after.misses - before.misses < next)
        state.SkipWithError("a page was cached after its invalidation");
}

template <class Policy>
void tlbi_va_sync(benchmark::State& state) {
    auto& s = the<Policy>();
    measure(state, s, static_cast<std::uint64_t>(state.range(0)), 1,
            [&](std::uint64_t next, std::uint64_t entries) {
                s.device.put(page_of_first(next % entries));
                s.device.put(sync);
                s.device.ring();
            });
}

/// Sends one batch and waits for CMDQ_CONS.
template <class Device>
void send_and_wait(Device& device, std::uint64_t next, std::uint64_t pages, std::uint64_t entries) {
    for (std::uint64_t i = 0; i < pages; ++i)
        device.put(page_of_first((next + i) % entries));
    device.put(sync);
    device.ring();
    while (!device.is_done()) {}
}
template <class Policy>
void with_readers(benchmark::State& state) {
    auto& s = the<Policy>();
    const auto pages = static_cast<std::uint64_t>(state.range(0));
    const running_reader reader{s.reader};
    measure(state, s, 4096, pages, [&](std::uint64_t next, std::uint64_t entries) {
        send_and_wait(s.device, next, pages, entries);
    });
    state.counters["translations/s"] =
        benchmark::Counter(static_cast<double>(reader.translated()), benchmark::Counter::kIsRate);
}
/// The same with nobody to wait for: what polling CMDQ_CONS adds to tlbi_va_sync.
template <class Policy>
void awake(benchmark::State& state) {
    auto& s = the<Policy>();
    const auto pages = static_cast<std::uint64_t>(state.range(0));
    s.reader.unpark();
    measure(state, s, 4096, pages, [&](std::uint64_t next, std::uint64_t entries) {
        send_and_wait(s.device, next, pages, entries);
    });
    s.reader.park();
}

void membarrier_alone(benchmark::State& state) {
    if (!os::process_barrier::register_process()) state.SkipWithError("no membarrier(2)");
    stopwatch watch{state};
    for (auto _ : state) {
        watch.start();
        if (!os::process_barrier::run()) state.SkipWithError("membarrier(2) failed");
        watch.stop();
    }
}
void membarrier_with_a_running_thread(benchmark::State& state) {
    auto& s = the<membarrier_quiescence>();
    const running_reader reader{s.reader};
    membarrier_alone(state);
}

void mmio_write(benchmark::State& state) {
    auto& s = the<membarrier_quiescence>();
    for (auto _ : state)
        s.device.ring();
}
void batch(benchmark::State& state) {
    auto& s = the<membarrier_quiescence>();
    measure(state, s, 4096, 200, [&](std::uint64_t next, std::uint64_t entries) {
        send_and_wait(s.device, next, 200, entries);
    });
    state.SetItemsProcessed(state.iterations() * 201);
}
void sync_only(benchmark::State& state) {
    auto& s = the<membarrier_quiescence>();
    for (auto _ : state)
        s.device.send({sync});
    if (!s.device.is_done()) state.SkipWithError("CMD_SYNC did not complete");
}

/// What CMD_TLBI_VA is to a hash table behind a mutex that tries each level; no queue, no CMD_SYNC.
void rival_hash(benchmark::State& state) {
    const auto entries = static_cast<std::uint64_t>(state.range(0));
    hash_by_level table{entries};
    const auto fill = [&](std::uint64_t page) {
        table.fill(first_page + (page << page_log2), page_log2, first_space, {nullptr, 0, 1});
    };
    for (std::uint64_t i = 0; i < entries; ++i)
        fill(i);
    std::uint64_t next = 0;
    stopwatch watch{state};
    for (auto _ : state) {
        watch.start();
        for (int i = 0; i < 16; ++i)
            table.invalidate_page(first_page + ((next++ % entries) << page_log2), first_space);
        watch.stop(16);
        for (std::uint64_t i = next - 16; i < next; ++i)
            fill(i % entries);
    }
}

// So many iterations and not so much time: what is timed is the smaller part of each, by far.
constexpr std::int64_t times = 10'000;

void entries(benchmark::internal::Benchmark* b) {
    b->Arg(256)->Arg(4096)->Arg(65536)->Iterations(times)->UseManualTime();
}

} // namespace

BENCHMARK(mmio_write);
BENCHMARK(sync_only);
BENCHMARK_TEMPLATE(tlbi_va_sync, membarrier_quiescence)->Apply(entries);
BENCHMARK_TEMPLATE(tlbi_va_sync, single_threaded)->Apply(entries);
BENCHMARK(rival_hash)->Apply(entries);
BENCHMARK(membarrier_alone)->UseManualTime();
BENCHMARK(membarrier_with_a_running_thread)->UseManualTime();
BENCHMARK_TEMPLATE(awake, membarrier_quiescence)->Arg(1)->Iterations(times)->UseManualTime();
BENCHMARK_TEMPLATE(awake, fence_quiescence)->Arg(1)->Iterations(times)->UseManualTime();
BENCHMARK_TEMPLATE(with_readers, membarrier_quiescence)
    ->Arg(1)
    ->Arg(16)
    ->Iterations(times / 10)
    ->UseManualTime();
BENCHMARK_TEMPLATE(with_readers, fence_quiescence)
    ->Arg(1)
    ->Arg(16)
    ->Iterations(times / 10)
    ->UseManualTime();
BENCHMARK(batch)->Iterations(times / 40)->UseManualTime();
