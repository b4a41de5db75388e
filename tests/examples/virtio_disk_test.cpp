#include "../../examples/linux_kvm_arm64/virtio_disk.hpp"
#include "fake_port.hpp"
#include "temporary_disk.hpp"

#include <catch2/catch.hpp>

#include <cstdlib>
#include <iterator>
#include <optional>
#include <random>
#include <string>
#include <vector>

using namespace linux_vmm;
using namespace linux_vmm_test;

namespace {

constexpr std::uint64_t table = 0x1000, driver_ring = 0x2000, device_ring = 0x3000;
constexpr std::uint64_t request_at = 0x4000, status_at = 0x5000, data_at = 0x8000;
constexpr std::uint16_t next = 1, writes = 2;
constexpr std::uint32_t needs_reset = 64;

struct line_state {
    bool level = false;
    unsigned rises = 0;
};

struct line_of {
    line_state* state;
    void operator()(bool level) const noexcept {
        if (level && !state->level) ++state->rises;
        state->level = level;
    }
};

struct counted_notify {
    unsigned* count;
    void operator()() const noexcept { ++*count; }
};

/// A disk and a driver that does what a good driver does, unless told otherwise.
struct bench {
    temporary_disk storage;
    flat_memory memory;
    line_state line;
    unsigned notified = 0;
    virtio_disk<fake_port, line_of, counted_notify> disk{fake_port{&memory}, *storage.file,
                                                         line_of{&line}, counted_notify{&notified}};
    std::uint16_t driver_index = 0;

    [[nodiscard]] std::uint32_t get(std::uint64_t offset) {
        return static_cast<std::uint32_t>(disk.read(offset, 4));
    }
    void set(std::uint64_t offset, std::uint32_t value) { disk.write(offset, 4, value); }

    void accept(std::uint32_t low, std::uint32_t high) {
        set(0x070, 0);
        set(0x070, 3);
        set(0x024, 0);
        set(0x020, low);
        set(0x024, 1);
        set(0x020, high);
        set(0x070, 3 | 8);
    }
    void place_queue(std::uint32_t size = 8) {
        set(0x030, 0);
        set(0x038, size);
        set(0x080, table);
        set(0x084, 0);
        set(0x090, driver_ring);
        set(0x0a0, device_ring);
        set(0x044, 1);
    }
    void start() {
        accept(0, 3);
        REQUIRE((get(0x070) & 8) != 0);
        place_queue();
        set(0x070, 3 | 8 | 4);
        driver_index = 0;
    }
    void describe(std::uint16_t index, std::uint64_t address, std::uint32_t bytes,
                  std::uint16_t flags, std::uint16_t following = 0) {
        memory.put(table + 16u * index, address);
        memory.put(table + 16u * index + 8, bytes);
        memory.put(table + 16u * index + 12, flags);
        memory.put(table + 16u * index + 14, following);
    }
    void header(std::uint32_t type, std::uint64_t sector) {
        memory.put(request_at, type);
        memory.put(request_at + 4, std::uint32_t{0});
        memory.put(request_at + 8, sector);
    }
    void submit(std::uint16_t head = 0) {
        memory.put(driver_ring + 4 + 2u * (driver_index % 8), head);
        memory.put(driver_ring + 2, ++driver_index);
        memory.put(status_at, std::uint8_t{0xee});
        set(0x050, 0);
        disk.serve();
    }
    /// Header, data, status, as Linux lays them out.
    void request(std::uint32_t type, std::uint64_t sector, std::uint32_t bytes) {
        header(type, sector);
        const bool from_disk = type != 1;
        describe(0, request_at, 16, next, bytes == 0 ? 2 : 1);
        describe(1, data_at, bytes, static_cast<std::uint16_t>(next | (from_disk ? writes : 0)), 2);
        describe(2, status_at, 1, writes);
        submit();
    }
    [[nodiscard]] unsigned status() { return memory.get<std::uint8_t>(status_at); }
    [[nodiscard]] bool is_broken() { return (get(0x070) & needs_reset) != 0; }
};

} // namespace

TEST_CASE("virtio_disk: identifies itself as virtio-mmio version 2") {
    bench b;
    CHECK(b.get(0x000) == 0x74726976);
    CHECK(b.get(0x004) == 2);
    CHECK(b.get(0x008) == 2);
    CHECK(b.get(0x034) == max_queue_size);
    b.set(0x030, 1);
    CHECK(b.get(0x034) == 0);
    CHECK(b.disk.read(0x100, 8) == disk_bytes / 512);
    CHECK(b.disk.read(0x100, 4) == disk_bytes / 512);
    CHECK(b.disk.read(0x10c, 4) == max_queue_size - 2);
    CHECK(b.disk.read(0x10e, 4) == 0);
    CHECK(b.disk.read(~std::uint64_t{0}, 8) == 0);
    CHECK(b.disk.read(0x000, 1) == 0);
}

TEST_CASE("virtio_disk: only a driver that goes through the IOMMU is accepted") {
    struct features {
        const char* what;
        std::uint32_t low, high;
        bool accepted;
    };
    const features cases[] = {features{"both", 0, 3, true},
                              features{"with flush", 0x200, 3, true},
                              features{"no ACCESS_PLATFORM", 0, 1, false},
                              features{"no VERSION_1", 0, 2, false},
                              features{"something not offered", 0, 7, false},
                              features{"indirect descriptors", 1u << 28, 3, false}};
    const features& c = cases[GENERATE_COPY(range(std::size_t{0}, std::size(cases)))];
    INFO(c.what);
    bench b;
    b.set(0x014, 1);
    CHECK(b.get(0x010) == 3);
    b.accept(c.low, c.high);
    CHECK(((b.get(0x070) & 8) != 0) == c.accepted);
    // A driver that goes on regardless gets nothing.
    b.place_queue();
    b.set(0x070, b.get(0x070) | 4);
    b.request(0, 0, 512);
    CHECK(b.status() == (c.accepted ? 0u : 0xeeu));
}

TEST_CASE("virtio_disk: requests") {
    struct request_case {
        const char* what;
        std::uint32_t type;
        std::uint64_t sector;
        std::uint32_t bytes;
        unsigned status;
        std::uint32_t written;
    };
    const request_case cases[] = {request_case{"read", 0, 3, 1024, 0, 1025},
                                  request_case{"read to the very end", 0, 63, 512, 0, 513},
                                  request_case{"read past the end", 0, 63, 1024, 1, 1},
                                  request_case{"read at the end", 0, 64, 512, 1, 1},
                                  request_case{"read far outside", 0, ~std::uint64_t{0}, 512, 1, 1},
                                  request_case{"read at a sector whose byte address wraps", 0,
                                               std::uint64_t{1} << 55, 512, 1, 1},
                                  request_case{"half a sector", 0, 0, 100, 1, 1},
                                  request_case{"write", 1, 5, 1024, 0, 1},
                                  request_case{"write past the end", 1, 63, 1024, 1, 1},
                                  request_case{"flush", 4, 0, 0, 0, 1},
                                  request_case{"identify", 8, 0, 20, 0, 21},
                                  request_case{"identify into too little", 8, 0, 10, 1, 1},
                                  request_case{"unknown type", 77, 0, 512, 2, 1}};
    const request_case& c = cases[GENERATE_COPY(range(std::size_t{0}, std::size(cases)))];
    INFO(c.what);
    bench b;
    b.start();
    if (c.type == 1) {
        for (std::uint64_t i = 0; i < c.bytes; ++i)
            b.memory.put(data_at + i, static_cast<std::uint8_t>(0xd0 + i));
    }
    b.request(c.type, c.sector, c.bytes);
    CHECK(b.status() == c.status);
    CHECK(b.memory.get<std::uint16_t>(device_ring + 2) == 1);
    CHECK(b.memory.get<std::uint32_t>(device_ring + 8) == c.written);
    CHECK_FALSE(b.is_broken());
    CHECK(b.line.level);
    CHECK(b.get(0x060) == 1);
    b.set(0x064, 1);
    CHECK_FALSE(b.line.level);
    if (c.type == 0 && c.status == 0) {
        const std::uint64_t first = c.sector * 512;
        for (std::uint64_t i = first; i < first + c.bytes; ++i) {
            if (b.memory.get<std::uint8_t>(data_at + i - first) !=
                static_cast<std::uint8_t>(i / 512 + i)) {
                FAIL("byte " << i);
            }
        }
    }
    if (c.type == 1 && c.status == 0) {
        std::array<std::byte, 2> on_disk{};
        REQUIRE(b.storage.file->read(c.sector * 512, on_disk));
        CHECK(on_disk[1] == std::byte{0xd1});
        b.request(0, c.sector, c.bytes);
        CHECK(b.memory.get<std::uint8_t>(data_at + 1) == 0xd1);
    }
}

TEST_CASE("virtio_disk: what the SMMU refuses is an I/O error or a broken device") {
    struct refusal {
        const char* what;
        vm_accel::iova_range refused;
        bool broken;
        unsigned status;
    };
    const refusal cases[] = {refusal{"request header", {iova{request_at}, 16}, false, 1},
                             refusal{"part of the data", {iova{data_at + 512}, 1}, false, 1},
                             refusal{"status", {iova{status_at}, 1}, true, 0xee},
                             refusal{"descriptor table", {iova{table}, 16}, true, 0xee},
                             refusal{"driver ring", {iova{driver_ring}, 16}, true, 0xee},
                             refusal{"device ring", {iova{device_ring}, 16}, true, 0}};
    const refusal& c = cases[GENERATE_COPY(range(std::size_t{0}, std::size(cases)))];
    INFO(c.what);
    bench b;
    b.start();
    b.memory.refused = c.refused;
    b.request(0, 0, 1024);
    CHECK(b.status() == c.status);
    CHECK(b.is_broken() == c.broken);
    CHECK(b.line.level);
    // Nothing is served until the driver resets the device; then all is well.
    b.memory.refused = {};
    if (c.broken) {
        CHECK((b.get(0x060) & 2) != 0);
        b.request(0, 0, 1024);
        CHECK(b.status() == 0xee);
        b.memory.put(driver_ring + 2, std::uint16_t{0});
        b.start();
        CHECK_FALSE(b.line.level);
    }
    b.request(0, 0, 1024);
    CHECK(b.status() == 0);
    CHECK_FALSE(b.is_broken());
}

TEST_CASE("virtio_disk: a request without room for its status breaks the device") {
    bench b;
    b.start();
    b.header(0, 0);
    b.describe(0, request_at, 16, 0);
    b.submit();
    CHECK(b.is_broken());
}

TEST_CASE("virtio_disk: header, data and status in odd pieces") {
    bench b;
    b.start();
    b.header(0, 1);
    b.describe(0, request_at, 5, next, 1);
    b.describe(1, request_at + 5, 11, next, 2);
    b.describe(2, data_at, 100, next | writes, 3);
    b.describe(3, data_at + 0x1000, 412, next | writes, 4);
    b.describe(4, status_at, 1, writes);
    b.submit();
    CHECK(b.status() == 0);
    CHECK(b.memory.get<std::uint8_t>(data_at + 0x1000) == static_cast<std::uint8_t>(1 + 512 + 100));
}

TEST_CASE("virtio_disk: the queue's place is fixed while it is in use, and gone after a reset") {
    bench b;
    b.start();
    b.set(0x080, 0x7000);
    b.set(0x038, 4);
    b.request(0, 0, 512);
    CHECK(b.status() == 0);
    b.set(0x070, 0);
    CHECK(b.get(0x044) == 0);
    CHECK(b.get(0x060) == 0);
    b.request(0, 0, 512);
    CHECK(b.status() == 0xee);
    // A size that is no power of two, or too large, never makes a queue.
    for (const std::uint32_t size : {0u, 3u, max_queue_size * 2u, 0x1'0008u}) {
        b.accept(0, 3);
        b.place_queue(size);
        CHECK(b.get(0x044) == 0);
    }
}

TEST_CASE("virtio_disk: random rings, registers and refusals end in an answer") {
    bench b;
    std::mt19937 generator{20261121};
    const auto random = [&] { return static_cast<std::uint32_t>(generator()); };
    unsigned broken = 0, answered = 0;
    for (unsigned round = 0; round < 3000; ++round) {
        b.memory.refused = {};
        b.memory.put(driver_ring + 2, std::uint16_t{0});
        b.memory.put(device_ring + 2, std::uint16_t{0});
        b.start();
        for (std::uint16_t i = 0; i < 8; ++i) {
            const std::uint64_t wild =
                random() % 4 == 0 ? random() * std::uint64_t{random()} : random() % 0x1'0000;
            b.describe(i, wild, random() % 3000, static_cast<std::uint16_t>(random() % 4),
                       static_cast<std::uint16_t>(random() % 9));
        }
        b.describe(0, request_at, 16, next, 1);
        b.header(random() % 10, random() % 70);
        if (random() % 4 == 0) b.memory.refused = {iova{random() % 0x1'0000}, random() % 0x1000};
        b.submit(static_cast<std::uint16_t>(random() % 9));
        if (random() % 8 == 0) b.set(random() % 0x200, random());
        b.disk.serve();
        if (b.is_broken()) ++broken;
        if (b.memory.get<std::uint16_t>(device_ring + 2) == 1) ++answered;
    }
    // Both happen, often: the test reaches what it means to reach.
    CHECK(broken > 300);
    CHECK(answered > 300);
}
