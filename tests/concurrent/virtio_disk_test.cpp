// The example's disk behind a real SMMU that is not enabled yet (its reset state lets DMA
// through): a driver, the I/O thread, and threads that get in the way.
#include "../../examples/linux_kvm_arm64/io_thread.hpp"
#include "../../examples/linux_kvm_arm64/virtio_disk.hpp"

#include <vm_accel/guest/region_map.hpp>
#include <vm_accel/smmu/caches/set_associative.hpp>
#include <vm_accel/smmu/host/bitmap_streams.hpp>
#include <vm_accel/smmu/smmu.hpp>

#include <catch2/catch.hpp>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

using namespace linux_vmm;
using namespace vm_accel;

namespace {

constexpr std::uint64_t ram_bytes = 0x10'0000, disk_bytes = 0x1'0000;
constexpr std::uint64_t table = 0x1000, driver_ring = 0x2000, device_ring = 0x3000;
constexpr std::uint64_t request_at = 0x4000, status_at = 0x5000, data_at = 0x8000;

using device_smmu = smmu<set_associative<16, 2>, bitmap_streams<16>>;

template <class T>
[[nodiscard]] T need(result<T>&& made) {
    REQUIRE(made);
    return std::move(*made);
}

struct no_line {
    void operator()(bool) const noexcept {}
};
struct ring_bell {
    os::wakeup* bell;
    void operator()() const noexcept { bell->signal(); }
};

struct temporary_file {
    std::string path = "/tmp/vm_accel_disk_XXXXXX";
    temporary_file() {
        const int fd = ::mkstemp(path.data());
        std::vector<char> bytes(disk_bytes);
        for (std::size_t i = 0; i < bytes.size(); ++i)
            bytes[i] = static_cast<char>(i / 512 + i);
        const ssize_t n = ::write(fd, bytes.data(), bytes.size());
        ::close(fd);
        REQUIRE(n == static_cast<ssize_t>(bytes.size()));
    }
    ~temporary_file() { ::unlink(path.c_str()); }
};

struct machine {
    temporary_file file;
    std::unique_ptr<std::byte, void (*)(void*)> memory{
        static_cast<std::byte*>(std::aligned_alloc(4096, ram_bytes)), std::free};
    region_map ram;
    device_smmu iommu;
    os::wakeup bell;
    disk_file storage = need(disk_file::open(file.path));

    machine() {
        std::memset(memory.get(), 0, ram_bytes);
        REQUIRE(bell.open());
        iommu.connect(ram);
        REQUIRE(iommu.init());
        REQUIRE(iommu.add_memory(pa{0}, memory.get(), ram_bytes));
        REQUIRE(iommu.attach_device("disk", {pa{0}, ram_bytes}, stream_id{3}));
    }
    template <class T>
    void put(std::uint64_t at, T value) {
        REQUIRE(ram.write(pa{at}, std::as_bytes(std::span{&value, 1})));
    }
    template <class T>
    [[nodiscard]] T get(std::uint64_t at) {
        T value{};
        REQUIRE(ram.read(pa{at}, std::as_writable_bytes(std::span{&value, 1})));
        return value;
    }
    template <class Disk>
    void start(Disk& disk) {
        const auto set = [&](std::uint64_t offset, std::uint32_t value) {
            disk.write(offset, 4, value);
        };
        set(0x070, 0);
        put(driver_ring, std::uint32_t{0});
        put(device_ring, std::uint32_t{0});
        set(0x024, 1);
        set(0x020, 3);
        set(0x070, 3 | 8);
        set(0x038, 8);
        set(0x080, table);
        set(0x090, driver_ring);
        set(0x0a0, device_ring);
        set(0x044, 1);
        set(0x070, 3 | 8 | 4);
    }
    /// Reads `sector` as request number `index` (from 1).
    template <class Disk>
    void submit(Disk& disk, std::uint16_t index, std::uint64_t sector) {
        const auto describe = [&](std::uint64_t i, std::uint64_t at, std::uint32_t bytes,
                                  std::uint32_t flags_and_next) {
            put(table + 16 * i, at);
            put(table + 16 * i + 8, bytes);
            put(table + 16 * i + 12, flags_and_next);
        };
        put(request_at, std::uint64_t{0});
        put(request_at + 8, sector);
        describe(0, request_at, 16, 1 | 1u << 16);
        describe(1, data_at, 512, 3 | 2u << 16);
        describe(2, status_at, 1, 2);
        put(status_at, std::uint8_t{0xee});
        put(driver_ring + 4 + 2 * ((index - 1u) % 8), std::uint16_t{0});
        std::atomic_thread_fence(std::memory_order_release);
        put(driver_ring + 2, index);
        disk.write(0x050, 4, 0);
    }
};

} // namespace

TEST_CASE("virtio disk: requests complete while registers are read and the SMMU is quiesced") {
    machine m;
    virtio_disk disk{need(m.iommu.make_port("disk")), m.storage, no_line{}, ring_bell{&m.bell}};
    const io_thread io{"disk-io", m.bell, m.iommu.deferred_work_fd(), [&]() noexcept {
                           while (m.iommu.poll()) {}
                           disk.serve();
                       }};
    std::atomic<bool> done{false};
    std::thread nosy{[&] {
        std::uint64_t sum = 0;
        while (!done.load()) {
            for (const std::uint64_t offset : {0x010u, 0x044u, 0x060u, 0x070u, 0x100u})
                sum += disk.read(offset, 4);
            disk.write(0x064, 4, 3);
        }
        static_cast<void>(sum);
    }};
    std::thread host{[&] {
        while (!done.load()) {
            static_cast<void>(m.iommu.invalidate_tlb());
            static_cast<void>(m.iommu.quiesce());
            static_cast<void>(m.iommu.poll());
        }
    }};
    m.start(disk);
    unsigned wrong = 0;
    for (std::uint16_t i = 1; i <= 300; ++i) {
        const std::uint64_t sector = i * 7u % (disk_bytes / 512);
        m.submit(disk, i, sector);
        while (m.get<std::uint16_t>(device_ring + 2) != i)
            std::this_thread::yield();
        std::atomic_thread_fence(std::memory_order_acquire);
        const auto first = static_cast<std::uint8_t>(sector * 512 + sector);
        if (m.get<std::uint8_t>(status_at) != 0) ++wrong;
        if (m.get<std::uint8_t>(data_at) != first) ++wrong;
        if (m.get<std::uint8_t>(data_at + 511) != static_cast<std::uint8_t>(first + 511)) ++wrong;
    }
    done = true;
    nosy.join();
    host.join();
    CHECK(wrong == 0);
    CHECK(m.iommu.stats().translations >= 300u * 8);
}

TEST_CASE("virtio disk: a reset in the middle of a request leaves a device that starts anew") {
    machine m;
    virtio_disk disk{need(m.iommu.make_port("disk")), m.storage, no_line{}, ring_bell{&m.bell}};
    const io_thread io{"disk-io", m.bell, m.iommu.deferred_work_fd(), [&]() noexcept {
                           while (m.iommu.poll()) {}
                           disk.serve();
                       }};
    for (unsigned round = 0; round < 200; ++round) {
        m.start(disk);
        m.submit(disk, 1, round % 64);
        disk.write(0x070, 4, 0);
        // From here on the device touches nothing.
        m.put(status_at, std::uint8_t{0xdd});
        CHECK(disk.read(0x070, 4) == 0);
        CHECK(disk.read(0x044, 4) == 0);
        CHECK(m.get<std::uint8_t>(status_at) == 0xdd);
    }
    m.start(disk);
    m.submit(disk, 1, 9);
    while (m.get<std::uint16_t>(device_ring + 2) != 1)
        std::this_thread::yield();
    CHECK(m.get<std::uint8_t>(status_at) == 0);
}
