/// Loops that every contender runs alike, and checks that they measured what they say.
#pragma once

#include "mapped_device.hpp"
#include "rivals.hpp"

#include <benchmark/benchmark.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

namespace bench {

inline constexpr std::uint64_t bytes_asked = 64;

/// Translates one address after the other, round and round. Before the measurement each is asked
/// for once, which fills what is there to fill, and once more, which must give the right place.
template <class Translate, class HostOf>
void go_round(benchmark::State& state, const std::vector<iova>& order, unsigned size_log2,
              Translate translate, HostOf host_of) {
    for (const iova address : order)
        benchmark::DoNotOptimize(translate(address));
    for (const iova address : order) {
        const std::uint64_t offset = raw(address) - base_of(size_log2);
        const std::uint64_t in_page = offset & ((std::uint64_t{1} << size_log2) - 1);
        if (translate(address) != host_of(output_of(offset >> size_log2, size_log2)) + in_page) {
            state.SkipWithError("gave a wrong place in memory");
            return;
        }
    }
    const std::size_t mask = order.size() - 1;
    std::size_t next = 0;
    for (auto _ : state) {
        std::byte* const host = translate(order[next++ & mask]);
        benchmark::DoNotOptimize(host);
    }
}

/// Fails a run that did not only hit: it would not measure what it says. For one thread.
template <class Iommu>
class only_hits {
public:
    /// `first_touches`: how many pages may be walked for.
    only_hits(benchmark::State& state, Iommu& iommu, std::uint64_t first_touches)
        : state_(state), iommu_(iommu), first_touches_(first_touches), before_(iommu.stats()) {}
    only_hits(const only_hits&) = delete;
    only_hits& operator=(const only_hits&) = delete;
    ~only_hits() {
        const smmu_statistics after = iommu_.stats();
        if (after.misses - before_.misses > first_touches_ || after.faults != before_.faults)
            state_.SkipWithError("missed or faulted during the measurement");
        if (after.hits - before_.hits < static_cast<std::uint64_t>(state_.iterations()))
            state_.SkipWithError("hit less often than it was asked");
    }

private:
    benchmark::State& state_;
    Iommu& iommu_;
    std::uint64_t first_touches_;
    smmu_statistics before_;
};

/// Times single short operations. What reading the clock costs is taken off. Beside the mean, which
/// one interruption moves, the counter `typical_ns` is reported: the mean of the middle half. (Not
/// the median: clocks tick in tens of nanoseconds on some machines.)
class stopwatch {
public:
    explicit stopwatch(benchmark::State& state) : state_(state) {
        samples_.reserve(most_samples);
        for (int i = 0; i < 1000; ++i) {
            start();
            end();
            samples_.push_back(passed());
        }
        cost_ = middle();
        samples_.clear();
    }
    stopwatch(const stopwatch&) = delete;
    stopwatch& operator=(const stopwatch&) = delete;
    ~stopwatch() {
        if (!samples_.empty()) state_.counters["typical_ns"] = middle() * 1e9;
    }

    void start() { started_ = clock::now(); }
    void end() { ended_ = clock::now(); }
    /// What lies between start() and end() is one iteration, in which `operations` were done. What
    /// is not kept was a rehearsal: what runs for the first time in a long while takes longer.
    void keep(std::uint64_t operations = 1) {
        const double each = (passed() - cost_) / static_cast<double>(operations);
        state_.SetIterationTime(std::max(0.0, each));
        if (samples_.size() < most_samples) samples_.push_back(each);
    }
    void stop(std::uint64_t operations = 1) {
        end();
        keep(operations);
    }

private:
    using clock = std::chrono::steady_clock;
    static constexpr std::size_t most_samples = 1U << 20;

    [[nodiscard]] double passed() const {
        return std::chrono::duration<double>(ended_ - started_).count();
    }
    [[nodiscard]] double middle() {
        std::ranges::sort(samples_);
        const std::size_t quarter = samples_.size() / 4;
        const auto first = samples_.begin() + static_cast<std::ptrdiff_t>(quarter);
        const auto last = samples_.end() - static_cast<std::ptrdiff_t>(quarter);
        return std::accumulate(first, last, 0.0) / static_cast<double>(last - first);
    }

    benchmark::State& state_;
    double cost_ = 0;
    clock::time_point started_{};
    clock::time_point ended_{};
    std::vector<double> samples_;
};

} // namespace bench
