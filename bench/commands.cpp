/// Claim: a guest's invalidations go through the command queue at millions per
/// second, and CMD_SYNC pays for waiting only while device threads are awake.
///
/// Each iteration writes a batch of CMD_TLBI_NH_VA and one CMD_SYNC into the
/// ring, rings once, and waits until CMDQ_CONS says that all is consumed. Items
/// are commands. Argument 1: invalidations per CMD_SYNC. Argument 2: the device's
/// port is 0 parked, 1 awake but idle, 2 busy on another thread.
///   tlbi_va    addresses that the TLB holds, one after the other
///   tlbi_asid  one CMD_TLBI_NH_ASID instead: constant time whatever the TLB holds
///   sync_only  CMD_SYNC with nothing before it
#include "mapped_device.hpp"

#include <benchmark/benchmark.h>

#include <atomic>
#include <thread>

using namespace vm_accel;

namespace {

constexpr std::uint64_t pages = 512;
using tlb = set_associative<64, 8>;
using device_type = bench::mapped_device<tlb>;

/// Keeps a port in the state asked for while it lives.
class port_state {
public:
    port_state(device_type& device, std::int64_t wanted) : device_(device) {
        if (wanted == 0) device.port().park();
        if (wanted == 2) {
            busy_ = std::thread{[this] { translate_on_and_on(); }};
            while (translated_.load() == 0)
                std::this_thread::yield();
        }
    }
    port_state(const port_state&) = delete;
    port_state& operator=(const port_state&) = delete;
    ~port_state() {
        stop_.store(true);
        if (busy_.joinable()) busy_.join();
        device_.port().unpark();
    }
    std::uint64_t translated() const { return translated_.load(); }

private:
    void translate_on_and_on() {
        const std::vector<iova> order = bench::addresses(pages, true);
        for (std::size_t i = 0; !stop_.load(std::memory_order_relaxed); ++i) {
            auto guard = device_.port().open();
            benchmark::DoNotOptimize(
                guard.translate(order[i % order.size()], 64, access::read).host());
            translated_.store(i + 1, std::memory_order_relaxed);
        }
    }

    device_type& device_;
    std::atomic<bool> stop_{false};
    std::atomic<std::uint64_t> translated_{0};
    std::thread busy_;
};

/// Runs batches; `invalidate(machine, n)` puts the n-th invalidation into the ring.
template <class Invalidate>
void run(benchmark::State& state, std::uint64_t batch, Invalidate invalidate) {
    static device_type device{pages};
    auto& machine = device.machine();
    const smmu_statistics before = machine.iommu().stats();
    const port_state other{device, state.range(1)};
    std::uint64_t next = 0;
    std::uint64_t batches = 0;
    for (auto _ : state) {
        for (std::uint64_t i = 0; i < batch; ++i)
            machine.enqueue(invalidate(next++));
        machine.enqueue(spec::cmd_sync(spec::sync_signal::SIG_NONE));
        machine.ring();
        while (!machine.commands_done()) {}
        ++batches;
    }
    const smmu_statistics after = machine.iommu().stats();
    if (after.commands - before.commands != batches * (batch + 1))
        state.SkipWithError("not every command was consumed");
    state.SetItemsProcessed(static_cast<std::int64_t>(after.commands - before.commands));
    if (state.range(1) == 2) {
        state.counters["translations/s"] = benchmark::Counter(
            static_cast<double>(other.translated()), benchmark::Counter::kIsRate);
    }
}

void tlbi_va(benchmark::State& state) {
    run(state, static_cast<std::uint64_t>(state.range(0)), [](std::uint64_t n) {
        return spec::tlbi_nh_va(vmid{0}, asid{bench::address_space},
                                iova{bench::first_page + n % pages * 4096}, true);
    });
}
void tlbi_asid(benchmark::State& state) {
    run(state, static_cast<std::uint64_t>(state.range(0)),
        [](std::uint64_t) { return spec::tlbi_nh_asid(vmid{0}, asid{bench::address_space}); });
}
void sync_only(benchmark::State& state) {
    run(state, 0, [](std::uint64_t) { return spec::command{}; });
}

} // namespace

BENCHMARK(tlbi_va)->ArgsProduct({{1, 16, 200}, {0, 1, 2}})->UseRealTime();
BENCHMARK(tlbi_asid)->ArgsProduct({{1}, {0, 1, 2}})->UseRealTime();
BENCHMARK(sync_only)->ArgsProduct({{0}, {0, 1, 2}})->UseRealTime();
