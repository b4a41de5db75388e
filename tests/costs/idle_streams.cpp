/// What StreamIDs cost while nothing uses them: 16 million can be addressed, and
/// 65,536 that a guest has configured and the VMM has given out cost next to
/// nothing. A device that is attached costs its record: some 250 bytes with its
/// name and window (and 16 for each of Options::substream_slots where there are
/// SubstreamIDs).
///
/// What is measured is the process's resident memory, as the kernel counts it.
/// Prints a line per measurement; exit status 1 if one is above its bound.
#include "smmu/guest_driver.hpp"

#include <vm_accel/smmu/host/pci_streams.hpp>
#include <vm_accel/smmu/host/range_streams.hpp>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>

using namespace vm_accel;

namespace {

constexpr unsigned streams = 65'536;
constexpr std::uint64_t all_streams = std::uint64_t{1} << 24;

struct wide : default_smmu_options {
    static constexpr smmu_features features = [] {
        smmu_features f = stage1_features;
        f.stream_bits = 24;
        return f;
    }();
};
/// Every function of 256 segments of PCI.
using every_function = pci_streams<pci_layout{.segments = 256}>;
static_assert(every_function::capacity == all_streams);
using device = smmu<set_associative<64, 4>, every_function, region_map, counting_sink, wide>;

/// Bytes of memory that the process really has; 0 = the system does not tell.
std::uint64_t resident() {
    std::ifstream in{"/proc/self/smaps_rollup"};
    std::string word;
    std::uint64_t kib = 0;
    while (in >> word) {
        if (word == "Rss:" && in >> kib) return kib * 1024;
    }
    return 0;
}

bool failed = false;
std::uint64_t last = 0;

/// Compares what has become resident since the last call with its bound.
void measured(const char* what, std::uint64_t bound) {
    const std::uint64_t now = resident();
    const std::uint64_t more = now > last ? now - last : 0;
    const bool good = more <= bound;
    std::printf("%-9s %9llu bytes, at most %9llu: %s\n", good ? "ok" : "TOO MUCH",
                static_cast<unsigned long long>(more), static_cast<unsigned long long>(bound),
                what);
    failed = failed || !good;
    last = resident();
}
void expect(bool condition, const char* what) {
    if (condition) return;
    std::printf("FAILED: %s\n", what);
    failed = true;
}

template <class Streams>
void hold(const char* what) {
    const auto given = std::make_unique<Streams>();
    for (unsigned i = 0; i < streams; ++i)
        expect(given->reserve(stream_id{i}).has_value(), "reserve");
    measured(what, 64 << 10);
}

} // namespace

int main() {
    if (resident() == 0) {
        std::puts("SKIP: this system does not tell what memory a process has");
        return 0;
    }
    // The device that the guest's structures are for; its own memory does not count.
    constexpr std::uint64_t ram = 0x4000'0000;
    constexpr std::uint64_t ram_bytes = 8U << 20;
    constexpr std::uint64_t table = ram;          // level 1: 2^16 descriptors
    constexpr std::uint64_t leaf = ram + 0x80000; // one level-2 table for all
    guest::host_pages pages{ram_bytes};
    region_map memory;
    counting_sink sink;
    expect(memory.add(pa{ram}, pages.data(), ram_bytes).has_value(), "memory");
    for (unsigned i = 0; i < 0x10000; ++i) {
        const std::uint64_t word = leaf | 9;
        std::memcpy(pages.data() + i * 8, &word, 8);
    }
    const spec::ste bypass = guest::machine<>::plain_ste(spec::ste_config::bypass);
    for (unsigned i = 0; i < 256; ++i)
        std::memcpy(pages.data() + (leaf - ram) + i * sizeof bypass, &bypass, sizeof bypass);
    (void)resident(); // the stream's own buffers
    last = resident();

    auto smmu = std::make_unique<device>(memory, sink);
    expect(smmu->init().has_value(), "init");
    smmu->mmio_write(spec::reg::STRTAB_BASE, 8, table);
    smmu->mmio_write(spec::reg::STRTAB_BASE_CFG, 4, 0x1'0218); // two levels, split 8, 2^24
    smmu->mmio_write(spec::reg::CR0, 4, 1);
    measured("an SMMU whose guest has configured 16,777,216 streams", 2 << 20);

    constexpr pa_range window{pa{ram}, ram_bytes};
    for (const std::uint32_t stream : {0U, 0x123456U, 0xffffffU}) {
        expect(smmu->attach_device("probe", window, stream_id{stream}).has_value(), "attach");
        {
            auto port = std::move(smmu->make_port("probe").value());
            std::uint64_t word = 0;
            expect(port.read(iova{ram + 8}, std::as_writable_bytes(std::span{&word, 1})),
                   "the stream's DMA passes");
            expect(word == (leaf | 9), "and reads what is there");
            expect(smmu->invalidate_tlb(stream_id{stream}).has_value(), "it is found");
        }
        expect(smmu->detach_device("probe").has_value(), "detach");
    }
    measured("three of them used, the first and the last included", 128 << 10);
    expect(smmu->attach_device("probe", window, stream_id{0x1000000}).error() == errc::out_of_range,
           "there is none above");

    hold<bitmap_streams<streams>>("65,536 StreamIDs held, bitmap_streams");
    hold<range_streams<all_streams>>("65,536 of 16,777,216 StreamIDs held, range_streams");
    hold<every_function>("65,536 of 16,777,216 StreamIDs held, pci_streams");

    for (unsigned i = 0; i < streams; ++i) {
        fixed_text<20> name{"function "};
        name.append_number(i);
        expect(smmu->attach_device(name.view(), window, stream_id{i}).has_value(), "attach");
    }
    measured("65,536 devices attached, with name, window and places for configurations",
             std::uint64_t{streams} * sizeof(attachment_record) * 2);
    return failed ? 1 : 0;
}
