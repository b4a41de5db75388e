/// Claim: DMA of 64 KiB costs what copying 64 KiB costs.
///
///   memcpy     one call, from the memory that the device's pages lie in to a buffer: the floor
///   dma_read   port.read() of the same bytes, over 16 pages of 4 KiB, the TLB holds them
///   dma_write  the other way; memcpy_back is its floor
///   looked_up_by_page  memcpy page by page behind a hash table with a lock: see rivals.hpp
#include "measure.hpp"

#include <array>
#include <span>

using namespace vm_accel;
using namespace bench;

namespace {

constexpr std::size_t bytes = 65536;
constexpr std::uint64_t pages = bytes >> page_log2;

template <class Options>
mapped_device<usual_tlb, Options>& device() {
    static mapped_device<usual_tlb, Options> one;
    return one;
}
template <class Options>
auto& port() {
    static auto one = device<Options>().attach();
    device<Options>().map(pages);
    return one;
}
/// Aligned as the pages are: what is compared is not the alignment.
std::span<std::byte> buffer() {
    static guest::host_pages memory{bytes};
    return {memory.data(), bytes};
}
std::byte* guest_memory() { return device<stage1_options>().host_of(output_of(0, page_log2)); }

template <class Copy>
void run(benchmark::State& state, Copy copy) {
    for (auto _ : state) {
        if (!copy()) {
            state.SkipWithError("the copy was refused");
            break;
        }
        benchmark::ClobberMemory();
    }
    state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(bytes));
}

void memcpy_from(benchmark::State& state) {
    run(state, [] {
        std::memcpy(buffer().data(), guest_memory(), bytes);
        return true;
    });
}
void memcpy_back(benchmark::State& state) {
    run(state, [] {
        std::memcpy(guest_memory(), buffer().data(), bytes);
        return true;
    });
}
template <class Options>
void dma_read(benchmark::State& state) {
    auto& p = port<Options>();
    run(state, [&] { return p.read(iova{first_page}, buffer()); });
    const auto* const expected = device<Options>().host_of(output_of(0, page_log2));
    if (std::memcmp(buffer().data(), expected, bytes) != 0)
        state.SkipWithError("read something else");
}
template <class Options>
void dma_write(benchmark::State& state) {
    auto& p = port<Options>();
    run(state, [&] { return p.write(iova{first_page}, buffer()); });
}
void looked_up_by_page(benchmark::State& state) {
    hash_by_level table{4096};
    for (std::uint64_t i = 0; i < pages; ++i) {
        table.fill(first_page + (i << page_log2), page_log2, first_space,
                   {guest_memory() + (i << page_log2), 0, 1});
    }
    run(state, [&] {
        for (std::size_t done = 0; done < bytes;) {
            const flat_answer part =
                table.lookup(iova{first_page + done}, first_space, bytes - done, 1);
            std::memcpy(buffer().data() + done, part.host, part.length);
            done += part.length;
        }
        return true;
    });
}

} // namespace

BENCHMARK(memcpy_from);
BENCHMARK_TEMPLATE(dma_read, stage1_options);
BENCHMARK_TEMPLATE(dma_read, full_options);
BENCHMARK(looked_up_by_page);
BENCHMARK(memcpy_back);
BENCHMARK_TEMPLATE(dma_write, stage1_options);
BENCHMARK_TEMPLATE(dma_write, full_options);
