#include "../../examples/linux_kvm_arm64/pci_host.hpp"
#include "../../examples/linux_kvm_arm64/virtio_pci_disk.hpp"
#include "fake_port.hpp"
#include "temporary_disk.hpp"

#include <catch2/catch.hpp>

#include <map>
#include <random>
#include <vector>

using namespace linux_vmm;
using namespace linux_vmm_test;

namespace {

constexpr std::uint64_t table = 0x1000, driver_ring = 0x2000, device_ring = 0x3000;
constexpr std::uint64_t request_at = 0x4000, status_at = 0x5000, data_at = 0x8000;
/// Where the tests' messages go: a word of memory stands for the doorbell.
constexpr std::uint64_t doorbell = 0x7040;

struct counted_notify {
    unsigned* count;
    void operator()() const noexcept { ++*count; }
};

/// A function on a bus, and a driver that finds its way as Linux's does.
struct bench {
    temporary_disk storage;
    flat_memory memory;
    unsigned notified = 0;
    using disk_type = virtio_pci_disk<fake_port, counted_notify>;
    disk_type disk{fake_port{&memory}, *storage.file, counted_notify{&notified}};
    pci_host<disk_type> bus{disk};
    std::uint64_t bar = 0;
    std::map<unsigned, std::uint64_t> structures; ///< by cfg_type: offset into the BAR
    std::uint64_t msix = 0;                       ///< offset of the capability

    [[nodiscard]] static std::uint64_t at(std::uint64_t offset) {
        return machine_map::pci_disk * pci_function_bytes + offset;
    }
    [[nodiscard]] std::uint64_t get(std::uint64_t offset, unsigned size) {
        return bus.read_configuration(at(offset), size) & ((std::uint64_t{1} << 8 * size) - 1);
    }
    void set(std::uint64_t offset, unsigned size, std::uint64_t value) {
        bus.write_configuration(at(offset), size, value);
    }
    [[nodiscard]] std::uint64_t load(std::uint64_t offset, unsigned size) {
        return bus.read(pa{bar + offset}, size);
    }
    void store(std::uint64_t offset, unsigned size, std::uint64_t value) {
        bus.write(pa{bar + offset}, size, value);
    }

    void place_bar(std::uint64_t address = raw(machine_map::pci_memory.base)) {
        set(pci_header::bar0, 4, address);
        set(pci_header::command, 2, pci_header::memory_space | pci_header::bus_master);
        bar = address;
    }
    void find_capabilities() {
        unsigned steps = 0;
        for (std::uint64_t c = get(pci_header::capabilities, 1); c != 0; c = get(c + 1, 1)) {
            REQUIRE(++steps < 20);
            if (get(c, 1) == 0x11) msix = c;
            if (get(c, 1) == 0x09) structures[static_cast<unsigned>(get(c + 3, 1))] = get(c + 8, 4);
        }
    }
    void write_vector(unsigned vector, std::uint64_t address, std::uint32_t data,
                      std::uint32_t masked) {
        const std::uint64_t entry = get(msix + 4, 4) + 16u * vector;
        store(entry, 4, address & 0xffff'ffff);
        store(entry + 4, 4, address >> 32);
        store(entry + 8, 4, data);
        store(entry + 12, 4, masked);
    }
    void start() {
        place_bar();
        find_capabilities();
        const std::uint64_t common = structures.at(1);
        set(msix + 2, 2, msix_enabled);
        write_vector(0, doorbell, 0xc0, 0);
        write_vector(1, doorbell, 0xa1, 0);
        store(common + 0x14, 1, 0);
        store(common + 0x14, 1, 3);
        store(common + 0x08, 4, 1);
        store(common + 0x0c, 4, 3);
        store(common + 0x14, 1, 3 | 8);
        REQUIRE((load(common + 0x14, 1) & 8) != 0);
        store(common + 0x10, 2, 0);
        store(common + 0x16, 2, 0);
        store(common + 0x18, 2, 8);
        store(common + 0x20, 4, table);
        store(common + 0x28, 4, driver_ring);
        store(common + 0x30, 4, device_ring);
        store(common + 0x1a, 2, 1);
        store(common + 0x1c, 2, 1);
        store(common + 0x14, 1, 3 | 8 | 4);
    }
    void submit(std::uint16_t count) {
        memory.put(request_at, std::uint32_t{0});
        memory.put(request_at + 8, std::uint64_t{2});
        const struct {
            std::uint64_t address;
            std::uint32_t bytes;
            std::uint16_t flags, next;
        } chain[] = {{request_at, 16, 1, 1}, {data_at, 512, 3, 2}, {status_at, 1, 2, 0}};
        for (std::size_t i = 0; i < 3; ++i)
            memory.put(table + 16 * i, chain[i]);
        memory.put(driver_ring + 2, count);
        memory.put(doorbell, std::uint32_t{0});
        store(structures.at(2), 2, 0);
        disk.serve();
    }
    [[nodiscard]] std::uint32_t message() { return memory.get<std::uint32_t>(doorbell); }
};

} // namespace

TEST_CASE("pci_host: one function answers, where its BAR is and while it is on") {
    bench b;
    CHECK(b.get(0, 4) == 0x1042'1af4);
    CHECK(b.get(8, 4) == 0x0100'0001);
    CHECK(b.bus.read_configuration(0, 4) == ~std::uint64_t{0});
    CHECK(b.bus.read_configuration(bench::at(0) + pci_function_bytes, 4) == ~std::uint64_t{0});
    // Size of the BAR as every kernel asks for it; the others are none.
    b.set(pci_header::bar0, 4, 0xffff'ffff);
    CHECK(b.get(pci_header::bar0, 4) == 0xffff'8000);
    for (std::uint64_t other = pci_header::bar0 + 4; other < 0x28; other += 4) {
        b.set(other, 4, 0xffff'ffff);
        CHECK(b.get(other, 4) == 0);
    }
    b.find_capabilities();
    const std::uint64_t queues = b.structures.at(1) + 0x12;
    b.place_bar(0x1230'0000);
    CHECK(b.load(queues, 2) == 1);
    CHECK(b.bus.read(pa{0x1230'8000}, 4) == ~std::uint64_t{0});
    b.place_bar(0x1240'0000); // moved
    CHECK(b.load(queues, 2) == 1);
    CHECK(b.bus.read(pa{0x1230'0000 + queues}, 2) == ~std::uint64_t{0});
    b.set(pci_header::command, 2, 0);
    CHECK(b.load(queues, 2) == ~std::uint64_t{0});
    // Identity, status and capabilities cannot be written.
    b.set(0, 4, 0);
    b.set(b.msix, 4, 0xffff'ffff);
    CHECK(b.get(0, 4) == 0x1042'1af4);
    CHECK(b.get(b.msix, 4) == (0xc001'0011 | b.get(b.msix + 1, 1) << 8));
}

TEST_CASE("virtio_pci_disk: every structure of the specification is there") {
    bench b;
    b.place_bar();
    b.find_capabilities();
    for (const unsigned type : {1u, 2u, 3u, 4u, 5u})
        CHECK(b.structures.count(type) == 1);
    CHECK(b.load(b.structures.at(4), 8) == disk_bytes / 512);
    const std::uint64_t common = b.structures.at(1);
    CHECK(b.load(common + 0x10, 2) == no_vector);
    CHECK(b.load(common + 0x18, 2) == max_queue_size);
    b.store(common + 0x16, 2, 1); // there is one queue only
    CHECK(b.load(common + 0x18, 2) == 0);
    // Vectors that the table does not have are refused.
    b.store(common + 0x10, 2, 2);
    CHECK(b.load(common + 0x10, 2) == no_vector);
    b.store(common + 0x10, 2, 1);
    CHECK(b.load(common + 0x10, 2) == 1);
    // The window in configuration space reads and writes the same registers.
    std::uint64_t window = 0;
    for (std::uint64_t c = b.get(pci_header::capabilities, 1); c != 0; c = b.get(c + 1, 1))
        if (b.get(c, 1) == 0x09 && b.get(c + 3, 1) == 5) window = c;
    b.set(window + 8, 4, common + 0x10);
    b.set(window + 12, 4, 2);
    CHECK(b.get(window + 16, 2) == 1);
    b.set(window + 16, 2, 0);
    CHECK(b.load(common + 0x10, 2) == 0);
    b.set(window + 4, 1, 1); // no such BAR
    b.set(window + 16, 2, 1);
    CHECK(b.load(common + 0x10, 2) == 0);
}

TEST_CASE("virtio_pci_disk: a request is answered, and a message sent through the port") {
    bench b;
    b.start();
    b.submit(1);
    CHECK(b.memory.get<std::uint8_t>(status_at) == 0);
    CHECK(b.memory.get<std::uint8_t>(data_at + 3) == static_cast<std::uint8_t>(2 + 1024 + 3));
    CHECK(b.memory.get<std::uint16_t>(device_ring + 2) == 1);
    CHECK(b.message() == 0xa1);
    CHECK(b.disk.messages().sent == 1);
    CHECK(b.load(b.structures.at(3), 1) == 1); // once read, gone
    CHECK(b.load(b.structures.at(3), 1) == 0);
    // The SMMU refuses the doorbell: the request is done, the message is not sent.
    b.memory.refused = {vm_accel::iova{doorbell}, 4};
    b.submit(2);
    CHECK(b.memory.get<std::uint16_t>(device_ring + 2) == 2);
    CHECK(b.message() == 0);
    CHECK(b.disk.messages().refused == 1);
}

TEST_CASE("virtio_pci_disk: masked vectors wait") {
    enum class mask { vector, function };
    const auto which = GENERATE(mask::vector, mask::function);
    bench b;
    b.start();
    if (which == mask::vector) {
        b.write_vector(1, doorbell, 0xa1, 1);
    } else {
        b.set(b.msix + 2, 2, msix_enabled | msix_all_masked);
    }
    b.submit(1);
    CHECK(b.message() == 0);
    CHECK(b.load(b.get(b.msix + 8, 4), 4) == 2);
    const unsigned before = b.notified;
    if (which == mask::vector) {
        b.write_vector(1, doorbell, 0xb2, 0); // moved while it was masked
    } else {
        b.set(b.msix + 2, 2, msix_enabled);
    }
    CHECK(b.notified > before); // the I/O thread sends it
    b.disk.serve();
    CHECK(b.message() == (which == mask::vector ? 0xb2 : 0xa1));
    CHECK(b.load(b.get(b.msix + 8, 4), 4) == 0);
    b.memory.put(doorbell, std::uint32_t{0});
    b.disk.serve();
    CHECK(b.message() == 0); // once
}

TEST_CASE("virtio_pci_disk: without MSI-X, bus mastering or after a reset nothing is sent") {
    enum class how { off, not_master, reset };
    const auto which = GENERATE(how::off, how::not_master, how::reset);
    bench b;
    b.start();
    switch (which) {
    case how::off:
        b.set(b.msix + 2, 2, 0);
        break;
    case how::not_master:
        b.set(pci_header::command, 2, pci_header::memory_space);
        break;
    case how::reset:
        b.set(b.msix + 2, 2, msix_enabled | msix_all_masked);
        b.submit(1);
        b.store(b.structures.at(1) + 0x14, 1, 0);
        b.set(b.msix + 2, 2, msix_enabled);
        CHECK(b.load(b.structures.at(1) + 0x1a, 2) == no_vector);
        break;
    }
    b.submit(1);
    CHECK(b.message() == 0);
    CHECK(b.disk.messages().sent == 0);
    const unsigned done = b.memory.get<std::uint16_t>(device_ring + 2);
    CHECK(done == (which == how::not_master ? 0u : 1u));
}

TEST_CASE("virtio_pci_disk: ATS and PASIDs are there where they are offered") {
    const temporary_disk storage;
    flat_memory memory;
    unsigned notified = 0;
    using disk_type = virtio_pci_disk<fake_port, counted_notify>;
    const auto extended = [](disk_type& disk) {
        std::map<unsigned, std::uint16_t> found;
        for (std::uint64_t at = 0x100; at != 0;) {
            const std::uint64_t head = disk.read_configuration(at, 4);
            if (head == 0) break;
            found[head & 0xffff] = static_cast<std::uint16_t>(at);
            at = head >> 20;
        }
        return found;
    };
    disk_type plain{fake_port{&memory}, *storage.file, counted_notify{&notified}};
    CHECK(extended(plain).empty());

    disk_type both{fake_port{&memory}, *storage.file, counted_notify{&notified}, {true, 20}};
    auto found = extended(both);
    REQUIRE(found.size() == 2);
    REQUIRE(found.count(0x0f) == 1);
    REQUIRE(found.count(0x1b) == 1);
    CHECK(both.read_configuration(found[0x1b] + 4u, 2) == 20u << 8);
    CHECK_FALSE(both.pasid_was_enabled());
    both.write_configuration(found[0x1b] + 6u, 2, 1);
    CHECK(both.pasid_was_enabled());
    CHECK_FALSE(both.ats_was_enabled());
    both.write_configuration(found[0x0f] + 6u, 2, 0x801f);
    CHECK(both.read_configuration(found[0x0f] + 6u, 2) == 0x801f);
    both.write_configuration(found[0x0f] + 6u, 2, 0);
    CHECK(both.ats_was_enabled());
    // End-to-end TLP prefixes, without which no PASID passes.
    std::uint64_t express = both.read_configuration(pci_header::capabilities, 1);
    REQUIRE(both.read_configuration(express, 1) == 0x10);
    CHECK((both.read_configuration(express + 0x24, 4) & 1u << 21) != 0);
}

TEST_CASE("virtio_pci_disk: random registers end in an answer") {
    bench b;
    b.start();
    std::mt19937_64 random{7};
    for (unsigned i = 0; i < 20'000; ++i) {
        const std::uint64_t r = random();
        const unsigned size = 1u << (r & 3);
        const std::uint64_t where = r >> 8 & 0x7fff, value = random();
        switch (r >> 4 & 7) {
        case 0:
            b.set(where % pci_function_bytes, size, value);
            break;
        case 1:
            static_cast<void>(b.bus.read_configuration(bench::at(where % 0x1000), size));
            break;
        case 2:
            b.store(where & 0x703f, size, value);
            break;
        case 3:
            b.store(where, size, value);
            break;
        case 4:
            b.start();
            break;
        case 5:
            static_cast<void>(b.load(where, size));
            break;
        default:
            b.disk.serve();
        }
    }
    b.set(b.msix + 2, 2, 0);
    b.start();
    b.memory.put(device_ring + 2, std::uint16_t{0});
    b.submit(1);
    CHECK(b.memory.get<std::uint16_t>(device_ring + 2) == 1);
}
