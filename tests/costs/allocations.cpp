/// Nothing allocates after init() but attaching, detaching and lists for the
/// VMM: neither translations nor registers, commands, events or ports do.
///
/// Counted are calls of operator new and, where the C library tells, the bytes
/// that malloc has given out. Exit status 1 if anything was allocated, or if an
/// allocation made on purpose went unnoticed.
#include "smmu/guest_driver.hpp"

#include <array>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <optional>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace {

unsigned long allocations = 0;

void* take(std::size_t bytes, std::size_t alignment) {
    ++allocations;
    void* const taken =
        std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
    if (taken == nullptr) std::abort();
    return taken;
}

} // namespace

void* operator new(std::size_t bytes) { return take(bytes, 16); }
void* operator new(std::size_t bytes, std::align_val_t a) {
    return take(bytes, static_cast<std::size_t>(a));
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return take(bytes, 16); }
void* operator new(std::size_t bytes, std::align_val_t a, const std::nothrow_t&) noexcept {
    return take(bytes, static_cast<std::size_t>(a));
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }

namespace {

using namespace vm_accel;

/// What has been allocated since it was made.
class watch {
public:
    [[nodiscard]] bool saw_nothing() const {
        return allocations == calls_ && given_out() == bytes_;
    }

private:
    [[nodiscard]] static std::size_t given_out() {
#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 33)
        const auto info = ::mallinfo2();
        return info.uordblks + info.hblkhd;
#else
        return 0;
#endif
    }
    unsigned long calls_ = allocations;
    std::size_t bytes_ = given_out();
};

bool failed = false;
void expect(bool condition, const char* what) {
    if (condition) return;
    std::printf("FAILED: %s\n", what);
    failed = true;
}

struct full : default_smmu_options {
    static constexpr smmu_features features = full_features;
};

/// The device thread's and the guest's share of everything, again and again.
template <class Options>
void run(const char* name) {
    guest::machine<set_associative<16, 2>, Options> m;
    m.start();
    const std::uint64_t root = m.stage1_stream(0x10, 1);
    expect(m.iommu().attach_device("disk", m.all_of_ram, stream_id{0x10}).has_value(), "attach");
    std::array<std::uint64_t, 64> target{};
    for (std::size_t p = 0; p < target.size(); ++p) {
        target[p] = m.take_pages();
        m.map(root, 0x1000'0000 + p * 0x1000, target[p]);
    }
    const watch since;
    std::optional<typename guest::machine<set_associative<16, 2>, Options>::device::port> port;
    std::array<std::byte, 256> bytes{};
    std::uint64_t refused = 0;
    std::uint64_t events = 0;
    for (unsigned round = 0; round < 40; ++round) {
        auto made = m.iommu().make_port("disk");
        if (!made) break;
        port.emplace(std::move(*made));
        for (std::size_t p = 0; p < target.size(); ++p) { // twice what the TLB holds
            const iova at{0x1000'0000 + p * 0x1000 + 0xf80};
            (void)port->write(at, bytes); // crosses into the next page
            (void)port->read(at, bytes);
        }
        for (unsigned i = 0; i < 12; ++i) // more than the event queue holds
            refused += port->read(iova{0x9000'0000}, std::span{bytes}.first(8)) ? 0 : 1;
        for (unsigned i = 0; i < 20; ++i)
            events += m.event() ? 1 : 0;
        const std::uint32_t cons = m.read32(spec::reg::EVENTQ_CONS);
        m.write32(spec::reg::EVENTQ_CONS, cons ^ (m.read32(spec::reg::EVENTQ_PROD) & 0x8000'0000));
        m.command(spec::tlbi_nh_va(vmid{0}, asid{1}, iova{0x1000'0000}, true));
        m.command(spec::tlbi_nh_asid(vmid{0}, asid{1}));
        m.command(spec::tlbi_nsnh_all());
        m.command(spec::cmd_cfgi_ste(stream_id{0x10}, true));
        m.command(spec::cmd_cfgi_all());
        m.command(spec::cmd_sync(spec::sync_signal::SIG_IRQ));
        {
            auto guard = port->open(); // a CMD_SYNC that waits
            (void)guard.translate(iova{0x1000'0000}, 8, access::read);
            m.command(spec::tlbi_nsnh_all());
            m.sync();
            expect(m.iommu().sync_pending(), "a CMD_SYNC waits");
        }
        expect(m.commands_done(), "all commands are done");
        if (round % 8 == 0) { // a command error, acknowledged
            spec::command bad{};
            bad.word[0] = le64{0xff};
            m.command(bad);
            m.enqueue(spec::tlbi_nsnh_all());
            const std::uint32_t errors = m.read32(spec::reg::GERROR);
            expect((errors ^ m.read32(spec::reg::GERRORN)) != 0, "an unknown command is an error");
            m.store(guest::command_ring + (m.cons() & 0xff) * sizeof bad, spec::tlbi_nsnh_all());
            m.write32(spec::reg::GERRORN, errors);
            m.ring();
        }
        (void)m.iommu().invalidate_tlb();
        (void)m.iommu().quiesce();
        (void)m.iommu().poll();
        (void)m.iommu().stats();
        (void)m.iommu().attachment("disk");
        (void)m.iommu().translate_dma_addr("disk", iova{0x1000'0000}, 64, access::read);
    }
    expect(since.saw_nothing(), name);
    const smmu_statistics s = m.iommu().stats();
    expect(s.hits > 0 && s.misses > 0 && s.faults >= refused && refused > 0 && events > 0 &&
               s.events_dropped > 0 && s.syncs > 80,
           "everything that was to happen has happened");
}

} // namespace

int main() {
    run<default_smmu_options>("stage 1 features: nothing was allocated after init()");
    run<full>("full features: nothing was allocated after init()");

    // Counting is plain adding only where no two threads share a cache line.
    static_assert(alignof(port_counters) >= 64 && sizeof(port_counters) % 64 == 0);
    static_assert(alignof(guard_slot) >= 64 && sizeof(guard_slot) % 64 == 0);
    const auto shards = std::make_unique<port_counters[]>(2);
    const auto line_of = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) / 64; };
    const auto* const end = reinterpret_cast<const std::byte*>(&shards[1]);
    expect(line_of(end - 1) != line_of(end), "the statistics of two ports share no cache line");

    // The negative control.
    guest::machine<> m;
    const watch since;
    expect(m.iommu().attach_device("disk", m.all_of_ram).has_value(), "attach");
    expect(!since.saw_nothing(), "attaching allocates, and that is noticed");
    if (!failed) std::puts("nothing is allocated after init()");
    return failed ? 1 : 0;
}
