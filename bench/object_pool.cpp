/// Claim: an object of 64 bytes from an object_pool costs at most twice what
/// malloc takes, and a hundredth of numa_alloc_onnode, which makes system calls.
///
/// Each round allocates and frees a batch: the argument. Four objects come from
/// malloc's cache of the thread, 256 do not. Beside it in the same run: the floor (a free list with
/// no sizes, no lock and no pool around it), malloc, libnuma where it is installed, and the system
/// calls that numa_alloc_onnode consists of (mmap, mbind, munmap).
#include <vm_accel/numa/object_pool.hpp>

#include <benchmark/benchmark.h>

#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdlib>
#include <dlfcn.h>
#include <new>
#include <span>
#include <vector>

namespace {

constexpr std::size_t object_bytes = 64;
constexpr std::size_t largest_batch = 256;

template <class Allocate, class Free>
void rounds(benchmark::State& state, Allocate allocate, Free give_back) {
    std::array<void*, largest_batch> memory{};
    const std::span objects{memory.data(), static_cast<std::size_t>(state.range(0))};
    for (auto _ : state) {
        for (void*& object : objects) {
            object = allocate();
            benchmark::DoNotOptimize(object);
        }
        for (void* const object : objects)
            give_back(object);
    }
    state.SetItemsProcessed(state.iterations() * state.range(0));
}

void floor_free_list(benchmark::State& state) {
    struct node {
        node* next;
    };
    std::vector<std::array<std::byte, object_bytes>> memory(largest_batch);
    node* list = nullptr;
    for (auto& block : memory)
        list = ::new (block.data()) node{list};
    rounds(
        state,
        [&]() -> void* {
            node* const taken = list;
            if (taken != nullptr) list = taken->next;
            return taken;
        },
        [&](void* object) { list = ::new (object) node{list}; });
}

void rival_malloc(benchmark::State& state) {
    rounds(
        state, [] { return std::malloc(object_bytes); }, [](void* object) { std::free(object); });
}

template <class Lock>
void ours(benchmark::State& state) {
    vm_accel::object_pool<Lock> pool;
    if (!pool.open({.node = 0})) {
        state.SkipWithError("no memory for a pool");
        return;
    }
    rounds(
        state, [&] { return pool.allocate(object_bytes); },
        [&](void* object) { pool.deallocate(object, object_bytes); });
}

void rival_numa_alloc_onnode(benchmark::State& state) {
    void* const library = ::dlopen("libnuma.so.1", RTLD_NOW);
    if (library == nullptr) {
        state.SkipWithError("libnuma is not installed");
        return;
    }
    const auto allocate =
        reinterpret_cast<void* (*)(std::size_t, int)>(::dlsym(library, "numa_alloc_onnode"));
    const auto give_back =
        reinterpret_cast<void (*)(void*, std::size_t)>(::dlsym(library, "numa_free"));
    if (allocate == nullptr || give_back == nullptr) {
        state.SkipWithError("libnuma lacks numa_alloc_onnode");
        return;
    }
    rounds(
        state, [&] { return allocate(object_bytes, 0); },
        [&](void* object) { give_back(object, object_bytes); });
}

void rival_system_calls(benchmark::State& state) {
    constexpr std::size_t page = 4096;
    const unsigned long nodes = 1;
    rounds(
        state,
        [&] {
            void* const made =
                ::mmap(nullptr, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            ::syscall(SYS_mbind, made, page, MPOL_PREFERRED, &nodes, 64ul, 0u);
            return made;
        },
        [](void* object) { ::munmap(object, page); });
}

} // namespace

BENCHMARK(floor_free_list)->Arg(4)->Arg(256);
BENCHMARK(rival_malloc)->Arg(4)->Arg(256);
BENCHMARK_TEMPLATE(ours, vm_accel::no_lock)->Arg(4)->Arg(256);
BENCHMARK_TEMPLATE(ours, vm_accel::spin_lock)->Arg(4)->Arg(256);
BENCHMARK(rival_numa_alloc_onnode)->Arg(4)->Arg(256);
BENCHMARK(rival_system_calls)->Arg(4)->Arg(256);
