/// The parts of the host side that promise to be called by any thread, called by
/// several at once: what ThreadSanitizer is to see.
#include "numa/simulated_memory.hpp"

#include <vm_accel/affinity/affinity.hpp>
#include <vm_accel/affinity/fixed_platform.hpp>
#include <vm_accel/numa/local_first.hpp>
#include <vm_accel/numa/numa_allocator.hpp>
#include <vm_accel/numa/object_pool.hpp>
#include <vm_accel/topology/load.hpp>
#include <vm_accel/topology/regular.hpp>

#include <catch2/catch.hpp>

#include <atomic>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

using namespace vm_accel_test;

namespace {

template <class Work>
void on_threads(unsigned count, Work work) {
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < count; ++i)
        threads.emplace_back(work, i);
    for (std::thread& thread : threads)
        thread.join();
}

} // namespace

TEST_CASE("object pool: no block is given to two threads, and any thread may free it") {
    object_pool<> pool;
    REQUIRE(pool.open({.capacity_bytes = 64u << 20}));
    std::atomic<unsigned> damaged{0};
    std::mutex mutex;
    std::vector<std::pair<unsigned char*, unsigned char>> handed_on;
    on_threads(4, [&](unsigned me) {
        const auto mark = static_cast<unsigned char>(me + 1);
        for (unsigned round = 0; round < 2000; ++round) {
            auto* const p = static_cast<unsigned char*>(pool.allocate(64));
            if (p == nullptr) {
                damaged.fetch_add(1);
                return;
            }
            std::memset(p, mark, 64);
            std::pair<unsigned char*, unsigned char> other{p, mark};
            {
                const std::lock_guard lock{mutex};
                handed_on.push_back(other);
                if (handed_on.size() < 100) continue;
                std::swap(handed_on[round % handed_on.size()], handed_on.back());
                other = handed_on.back();
                handed_on.pop_back();
            }
            for (unsigned i = 0; i < 64; ++i)
                if (other.first[i] != other.second) damaged.fetch_add(1);
            pool.deallocate(other.first, 64);
        }
    });
    CHECK(damaged.load() == 0);
    for (const auto& [address, mark] : handed_on)
        pool.deallocate(address, 64);
    CHECK(pool.usage().live_objects == 0);
}

TEST_CASE("numa: allocating, switching nodes and reporting at the same time") {
    simulated_memory memory;
    simulated_threads threads{memory.machine};
    numa_allocator<local_first, simulated_memory, simulated_threads> allocator{memory, threads};
    std::atomic<unsigned> failed{0};
    std::atomic<unsigned> initialised{0};
    on_threads(3, [&](unsigned) {
        if (allocator.init(make_topology({2, 1, 2, 1, 64u << 20}))) initialised.fetch_add(1);
    });
    CHECK(initialised.load() == 1);
    on_threads(4, [&](unsigned me) {
        for (unsigned round = 0; round < 20; ++round) {
            if (me == 0) {
                const result<> done =
                    round % 3 == 0 ? allocator.disable() : allocator.enable(1 + round % 2);
                if (!done) failed.fetch_add(1);
                continue;
            }
            guest_ram_request request;
            request.split = {{1u << 20}, {1u << 20}};
            request.prefault_threads = 2;
            const auto region = allocator.allocate(request);
            if (!region || region->bytes() != 2u << 20 || !region->placement()) failed.fetch_add(1);
            static_cast<void>(allocator.is_enabled());
        }
    });
    CHECK(failed.load() == 0);
    CHECK(memory.machine->live_bytes() == 0);
}

TEST_CASE("affinity: configuring, pinning and reading pins at the same time") {
    affinity<fixed_platform> a;
    REQUIRE(a.init());
    REQUIRE(a.configure(8));
    std::atomic<unsigned> failed{0};
    on_threads(4, [&](unsigned me) {
        for (unsigned round = 0; round < 200; ++round) {
            if (me == 0) {
                if (!a.configure(8, round % 2 == 0 ? vcpu_policy::spread : vcpu_policy::compact))
                    failed.fetch_add(1);
            } else if (!a.pin_current_thread((me + round) % 8)) {
                failed.fetch_add(1);
            }
            if (a.pins().size() > 8) failed.fetch_add(1);
        }
    });
    CHECK(failed.load() == 0);
}

TEST_CASE("affinity: threads come and go while a cpuset changes and is followed") {
    affinity<fixed_platform> a;
    REQUIRE(a.init());
    REQUIRE(a.configure({8}, {os::thread_priority::fifo(1), {}, core_sharing::this_vm}));
    std::atomic<unsigned> failed{0};
    on_threads(4, [&](unsigned me) {
        for (unsigned round = 0; round < 100; ++round) {
            if (me == 0) {
                const os::cpu_set two = os::cpu_set::of(round % 8) | os::cpu_set::of(7);
                if (!a.platform().allow(round % 2 == 0 ? two : a.topology().cpu_set()) ||
                    !a.follow())
                    failed.fetch_add(1);
            } else if (round % 16 == 15) {
                a.forget_current_thread();
            } else {
                // Refused where the CPU has gone and nobody has followed yet.
                static_cast<void>(a.place_current_thread((me + round) % 8));
                if (a.vmm_threads().size() > 1) failed.fetch_add(1);
                if (me == 1) static_cast<void>(a.place_vmm_thread("io"));
            }
        }
    });
    CHECK(failed.load() == 0);
    REQUIRE(a.platform().allow(a.topology().cpu_set()));
    const auto last = a.follow();
    REQUIRE(last);
    CHECK(last->in_place());
    CHECK(a.follow()->none());
}

TEST_CASE("the shared topology is loaded once, whoever asks first") {
    std::vector<const void*> seen(4, nullptr);
    on_threads(4, [&](unsigned me) { seen[me] = shared_topology().value_or(nullptr); });
    CHECK(seen == std::vector<const void*>(4, seen[0]));
}
