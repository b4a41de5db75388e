/// Stream allocators used by several threads at once: each StreamID has at
/// most one holder, and none is lost.
#include <vm_accel/smmu/host/bitmap_streams.hpp>
#include <vm_accel/smmu/host/lockfree_streams.hpp>
#include <vm_accel/smmu/host/pci_streams.hpp>
#include <vm_accel/smmu/host/range_streams.hpp>

#include <catch2/catch.hpp>

#include <array>
#include <atomic>
#include <cstdint>
#include <thread>
#include <tuple>
#include <vector>

using namespace vm_accel;

// Boost.Lockfree reads a node that another thread may be setting up again, and
// throws the value away when its compare-and-swap fails. ThreadSanitizer calls
// that a race, and it is Boost's own; ours are still reported.
extern "C" const char* __tsan_default_suppressions();
extern "C" const char* __tsan_default_suppressions() { return "race:boost/lockfree/\n"; }

namespace {

using models =
    std::tuple<bitmap_streams<3>, bitmap_streams<70>, lockfree_streams<3>, lockfree_streams<70>,
               range_streams<70>, pci_streams<pci_layout{.buses = 1}>>;

} // namespace

TEMPLATE_LIST_TEST_CASE("threads that allocate, reserve and release never share a StreamID", "",
                        models) {
    constexpr unsigned threads = 4;
    constexpr unsigned rounds = 20000;
    TestType streams;
    std::array<std::atomic<unsigned>, TestType::capacity> holders{};
    // Plain memory that the holder alone may touch: only the allocator orders it,
    // so the counters beside it are relaxed.
    std::array<std::uint64_t, TestType::capacity> owned{};
    std::atomic<unsigned> shared_twice{0};
    std::atomic<unsigned> refused_release{0};
    std::atomic<std::uint64_t> taken{0};

    const auto hold = [&](stream_id id) {
        if (holders[raw(id)].fetch_add(1, std::memory_order_relaxed) != 0)
            shared_twice.fetch_add(1);
        ++owned[raw(id)];
        taken.fetch_add(1, std::memory_order_relaxed);
        holders[raw(id)].fetch_sub(1, std::memory_order_relaxed);
        if (!streams.release(id)) refused_release.fetch_add(1);
    };
    std::vector<std::thread> workers;
    for (unsigned t = 0; t < threads; ++t) {
        workers.emplace_back([&, t] {
            std::uint32_t random = 12345 + t;
            for (unsigned i = 0; i < rounds; ++i) {
                random = random * 1664525 + 1013904223;
                if ((random >> 24) % 2 == 0) {
                    if (const result<stream_id> id = streams.allocate()) hold(*id);
                } else {
                    const stream_id id{(random >> 8) %
                                       static_cast<std::uint32_t>(TestType::capacity)};
                    if (streams.reserve(id)) hold(id);
                }
            }
        });
    }
    for (std::thread& worker : workers)
        worker.join();

    CHECK(shared_twice == 0);
    CHECK(refused_release == 0);
    std::uint64_t total = 0;
    for (const std::uint64_t n : owned)
        total += n;
    CHECK(total == taken);
    CHECK(taken > 0);
    std::size_t left = 0;
    while (streams.allocate())
        ++left;
    CHECK(left == TestType::capacity);
}
