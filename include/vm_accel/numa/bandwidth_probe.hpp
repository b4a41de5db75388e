/// Measures what nobody tells: how fast each node's memory is read by the CPUs
/// nearest to it. The figures go into the topology, where planners find them.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/numa/ram_planning.hpp>
#include <vm_accel/numa/strategy.hpp>
#include <vm_accel/os/memory.hpp>
#include <vm_accel/os/memory_platform.hpp>
#include <vm_accel/os/thread_platform.hpp>
#include <vm_accel/os/threads.hpp>
#include <vm_accel/os/worker_thread.hpp>
#include <vm_accel/topology/cpu_topology.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace vm_accel::inline v0 {

struct bandwidth_probe_options {
    /// What each thread reads; well above its share of the caches. Of a node with
    /// little free memory, no more than a quarter of that is used.
    std::uint64_t bytes_per_thread = 64u << 20;
    unsigned passes = 2;        ///< how often it is read; at least once
    unsigned most_threads = 16; ///< for one node; never more than it has CPUs near
};

/// One measurement of one node. Use it once.
template <os::memory_platform Memory = os::native_memory,
          os::thread_platform Threads = os::native_threads>
class bandwidth_probe {
public:
    bandwidth_probe(Memory& memory, const Threads& threads,
                    const bandwidth_probe_options& options) noexcept
        : memory_(memory), threads_(threads), options_(options) {}
    bandwidth_probe(const bandwidth_probe&) = delete;
    bandwidth_probe& operator=(const bandwidth_probe&) = delete;

    /// MiB/s, at least 1. Errors: unsupported (the topology is no machine that this
    /// platform runs on); exhausted (no thread, or less than a page of free memory for
    /// each); what binding, pinning and populating refuse.
    [[nodiscard]] result<std::uint64_t> measure(const cpu_topology& topology,
                                                unsigned node) noexcept {
        if (!ram_planning::means_this_system<Memory>(topology))
            return fail(errc::unsupported,
                        "measuring bandwidth: the topology is a description, not this system",
                        "load_topology(), or set numa_node::bandwidth yourself");
        const unsigned number = topology.nodes[node].os_index;
        const os::cpu_set cpus = ram_planning::cpus_near(topology, node);
        const std::uint64_t threads = std::clamp<std::uint64_t>(
            std::min<std::uint64_t>(cpus.count(), options_.most_threads), 1, 1024);
        const result<std::uint64_t> free = memory_.free_bytes(number);
        const std::uint64_t most = (free ? *free : topology.nodes[node].memory_bytes) / 4;
        const std::uint64_t each = numa_planning::round_down(
            std::min(options_.bytes_per_thread, most / threads), memory_.page_bytes());
        if (each == 0)
            return fail(
                errc::exhausted,
                fixed_text<160>{"measuring bandwidth: no free memory on node "}.append_number(
                    number),
                "free memory there, or set numa_node::bandwidth yourself");
        const result<os::raw_mapping> mapped = memory_.map({each * threads, 0, false});
        if (!mapped) return fail(mapped);
        const result<std::uint64_t> figure =
            measure_in(*mapped, number, cpus, static_cast<unsigned>(threads));
        memory_.unmap(*mapped);
        return figure;
    }

private:
    /// One thread: places itself, makes its pages, waits for the others, and reads.
    struct reader {
        bandwidth_probe& owner;
        std::byte* address;
        std::uint64_t bytes;
        const os::cpu_set& cpus;
        result<> prepared{};
        std::uint64_t sum = 0; ///< of all that was read, so that it is read

        void operator()() noexcept {
            if (!cpus.empty()) prepared = owner.threads_.pin_current_thread(cpus);
            if (prepared) prepared = owner.memory_.populate(address, bytes);
            owner.ready_.fetch_add(1);
            owner.ready_.notify_one();
            owner.open_.wait(false);
            for (unsigned pass = 0; pass < std::max(owner.options_.passes, 1u); ++pass)
                if (prepared) sum += read();
            owner.sink_.fetch_add(sum, std::memory_order_relaxed);
        }

        [[nodiscard]] std::uint64_t read() const noexcept {
            std::uint64_t total = 0;
            for (std::uint64_t at = 0; at < bytes; at += sizeof(std::uint64_t)) {
                std::uint64_t word = 0;
                std::memcpy(&word, address + at, sizeof word);
                total += word;
            }
            return total;
        }
    };

    [[nodiscard]] result<std::uint64_t> measure_in(const os::raw_mapping& mapping, unsigned node,
                                                   const os::cpu_set& cpus,
                                                   unsigned threads) noexcept {
        if (const result<> bound =
                memory_.bind(mapping.address, mapping.bytes, node, os::bind_mode::bind);
            !bound)
            return fail(bound);
        const std::uint64_t each = mapping.bytes / threads;
        std::vector<reader> readers;
        for (unsigned i = 0; i < threads; ++i)
            readers.push_back({*this, mapping.address + i * each, each, cpus});
        std::vector<os::worker_thread> workers(threads);
        unsigned started = 0;
        result<> done;
        while (done && started < threads) {
            done = workers[started].start(readers[started]);
            if (done) ++started;
        }
        for (unsigned n = ready_.load(); n != started; n = ready_.load())
            ready_.wait(n);
        const auto start = std::chrono::steady_clock::now();
        open_.store(true);
        open_.notify_all();
        for (os::worker_thread& worker : workers)
            worker.join();
        const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
        for (unsigned i = 0; done && i < started; ++i)
            done = readers[i].prepared;
        if (!done) return fail(done);
        const double mib = static_cast<double>(mapping.bytes) * std::max(options_.passes, 1u) /
                           static_cast<double>(1u << 20);
        const double seconds = std::max(time.count(), 1e-9);
        return static_cast<std::uint64_t>(std::clamp(mib / seconds, 1.0, 1e12));
    }

    Memory& memory_;
    const Threads& threads_;
    bandwidth_probe_options options_;
    std::atomic<unsigned> ready_{0};
    std::atomic<bool> open_{false};
    std::atomic<std::uint64_t> sink_{0};
};

/// Measures every node with memory, one after another, and notes the figures in the
/// topology, unless it knows all of them already: measured figures and firmware's
/// are not compared with each other. Takes some 100 ms for each node; other load
/// distorts it. Errors: as bandwidth_probe::measure(); the topology is then unchanged.
template <os::memory_platform Memory = os::native_memory,
          os::thread_platform Threads = os::native_threads>
[[nodiscard]] result<> measure_bandwidths(cpu_topology& topology, Memory memory = {},
                                          const Threads& threads = {},
                                          const bandwidth_probe_options& options = {}) noexcept {
    const auto known = [](const numa_node& node) {
        return node.memory_bytes == 0 || node.bandwidth != 0;
    };
    if (std::all_of(topology.nodes.begin(), topology.nodes.end(), known)) return {};
    std::vector<std::uint64_t> figures(topology.nodes.size(), 0);
    for (unsigned i = 0; i < topology.nodes.size(); ++i) {
        if (topology.nodes[i].memory_bytes == 0) continue;
        bandwidth_probe<Memory, Threads> probe{memory, threads, options};
        const result<std::uint64_t> figure = probe.measure(topology, i);
        if (!figure) return fail(figure);
        figures[i] = *figure;
    }
    for (std::size_t i = 0; i < figures.size(); ++i)
        topology.nodes[i].bandwidth = figures[i];
    return {};
}

} // namespace vm_accel::inline v0
