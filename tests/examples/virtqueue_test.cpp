#include "../../examples/linux_kvm_arm64/virtqueue.hpp"
#include "fake_port.hpp"

#include <catch2/catch.hpp>

#include <array>
#include <iterator>
#include <string>

using namespace linux_vmm;
using namespace linux_vmm_test;

namespace {

constexpr std::uint64_t table = 0x1000, driver_ring = 0x2000, device_ring = 0x3000;
constexpr std::uint16_t entries = 4;
constexpr std::uint16_t next = 1, writes = 2, indirect = 4;

struct row {
    std::uint64_t address;
    std::uint32_t bytes;
    std::uint16_t flags, next;
};

void put(flat_memory& memory, std::uint16_t index, const row& r) {
    memory.put(table + 16u * index, r.address);
    memory.put(table + 16u * index + 8, r.bytes);
    memory.put(table + 16u * index + 12, r.flags);
    memory.put(table + 16u * index + 14, r.next);
}

virtqueue make_queue() {
    return virtqueue{{entries, iova{table}, iova{driver_ring}, iova{device_ring}}};
}

struct ring_case {
    std::string what;
    std::uint16_t driver_index, head;
    std::array<row, entries> rows;
    vm_accel::iova_range refused;
    queue_state expected;
    unsigned readable = 0, writable = 0;
};

} // namespace

TEST_CASE("virtqueue: every ring content is taken, empty or broken, never followed astray") {
    const vm_accel::iova_range nothing{};
    const ring_case cases[] = {
        ring_case{"nothing queued", 0, 0, {}, nothing, queue_state::empty},
        ring_case{"one readable",
                  1,
                  2,
                  {{{}, {}, {0x40, 8, 0, 0}, {}}},
                  nothing,
                  queue_state::ready,
                  1,
                  0},
        ring_case{"readable, then two writable",
                  1,
                  0,
                  {{{0, 16, next, 1}, {64, 512, next | writes, 3}, {}, {800, 1, writes, 0}}},
                  nothing,
                  queue_state::ready,
                  1,
                  2},
        ring_case{"addresses and lengths that wrap are the SMMU's business",
                  1,
                  0,
                  {{{~std::uint64_t{0}, ~std::uint32_t{0}, writes, 0}, {}, {}, {}}},
                  nothing,
                  queue_state::ready,
                  0,
                  1},
        ring_case{"a full chain",
                  1,
                  0,
                  {{{0, 1, next, 1}, {0, 1, next, 2}, {0, 1, next, 3}, {0, 1, writes, 0}}},
                  nothing,
                  queue_state::ready,
                  3,
                  1},
        ring_case{"a chain that meets itself",
                  1,
                  0,
                  {{{0, 1, next, 1}, {0, 1, next, 0}, {}, {}}},
                  nothing,
                  queue_state::broken},
        ring_case{"a descriptor that follows itself",
                  1,
                  3,
                  {{{}, {}, {}, {0, 1, next | writes, 3}}},
                  nothing,
                  queue_state::broken},
        ring_case{"head outside the table", 1, entries, {}, nothing, queue_state::broken},
        ring_case{"head far outside the table", 1, 0xffff, {}, nothing, queue_state::broken},
        ring_case{"next outside the table",
                  1,
                  0,
                  {{{0, 1, next, entries}, {}, {}, {}}},
                  nothing,
                  queue_state::broken},
        ring_case{"readable after writable",
                  1,
                  0,
                  {{{0, 1, next | writes, 1}, {0, 1, 0, 0}, {}, {}}},
                  nothing,
                  queue_state::broken},
        ring_case{"an indirect table that was not offered",
                  1,
                  0,
                  {{{0, 16, indirect, 0}, {}, {}, {}}},
                  nothing,
                  queue_state::broken},
        ring_case{"more requests than entries", entries + 1, 0, {}, nothing, queue_state::broken},
        ring_case{"an index that went backwards", 0xffff, 0, {}, nothing, queue_state::broken},
        ring_case{"driver ring refused", 1, 0, {}, {iova{driver_ring}, 4}, queue_state::broken},
        ring_case{"its element refused", 1, 0, {}, {iova{driver_ring + 4}, 2}, queue_state::broken},
        ring_case{"descriptor refused",
                  1,
                  0,
                  {{{0, 1, next, 1}, {}, {}, {}}},
                  {iova{table + 16}, 16},
                  queue_state::broken}};
    const ring_case& c = cases[GENERATE_COPY(range(std::size_t{0}, std::size(cases)))];
    INFO(c.what);
    flat_memory memory;
    for (std::uint16_t i = 0; i < entries; ++i)
        put(memory, i, c.rows[i]);
    memory.put(driver_ring + 2, c.driver_index);
    memory.put(driver_ring + 4, c.head);
    memory.refused = c.refused;
    fake_port port{&memory};
    virtqueue queue = make_queue();
    buffer_chain chain;
    CHECK(queue.take(port, chain) == c.expected);
    // Index, element, and one descriptor per entry at most.
    CHECK(memory.accesses <= 2u + entries);
    if (c.expected == queue_state::ready) {
        CHECK(chain.head == c.head);
        CHECK(chain.readable_pieces().size() == c.readable);
        CHECK(chain.writable_pieces().size() == c.writable);
        CHECK(queue.take(port, chain) == queue_state::empty);
    }
}

TEST_CASE("virtqueue: both indices wrap at 16 bits") {
    flat_memory memory;
    fake_port port{&memory};
    virtqueue queue = make_queue();
    buffer_chain chain;
    for (std::uint32_t i = 0; i < 0x1'0010; ++i) {
        const auto head = static_cast<std::uint16_t>(i * 7 % entries);
        put(memory, head, {0, 1, writes, 0});
        memory.put(driver_ring + 4 + 2 * (i % entries), head);
        memory.put(driver_ring + 2, static_cast<std::uint16_t>(i + 1));
        const bool served =
            queue.take(port, chain) == queue_state::ready && chain.head == head &&
            queue.give_back(port, chain, i) &&
            memory.get<std::uint16_t>(device_ring + 2) == static_cast<std::uint16_t>(i + 1) &&
            memory.get<std::uint32_t>(device_ring + 4 + 8 * (i % entries)) == head &&
            memory.get<std::uint32_t>(device_ring + 8 + 8 * (i % entries)) == i;
        if (!served) FAIL("request " << i);
    }
}

TEST_CASE("virtqueue: a refused device ring is reported, and the interrupt flag obeyed") {
    flat_memory memory;
    fake_port port{&memory};
    virtqueue queue = make_queue();
    buffer_chain chain;
    CHECK(queue.wants_interrupt(port));
    memory.put(driver_ring, std::uint16_t{1});
    CHECK_FALSE(queue.wants_interrupt(port));
    memory.refused = {iova{driver_ring}, 2};
    CHECK(queue.wants_interrupt(port));
    memory.refused = {iova{device_ring}, 0x1000};
    CHECK_FALSE(queue.give_back(port, chain, 0));
}

TEST_CASE("piece_cursor: copies across pieces, and no further than they reach") {
    flat_memory memory;
    fake_port port{&memory};
    for (std::uint32_t i = 0; i < 64; ++i)
        memory.put(i, static_cast<std::uint8_t>(i));
    const std::array<buffer_piece, 4> pieces{
        {{iova{0}, 3}, {iova{100}, 0}, {iova{10}, 2}, {iova{20}, 5}}};
    piece_cursor cursor{pieces};
    CHECK(cursor.remaining() == 10);
    std::array<std::byte, 4> four{};
    CHECK(cursor.read(port, four));
    CHECK(four == std::array{std::byte{0}, std::byte{1}, std::byte{2}, std::byte{10}});
    CHECK(cursor.remaining() == 6);
    CHECK(cursor.skip(2));
    CHECK(cursor.read(port, four));
    CHECK(four == std::array{std::byte{21}, std::byte{22}, std::byte{23}, std::byte{24}});
    CHECK(cursor.remaining() == 0);
    CHECK_FALSE(cursor.skip(1));
    CHECK_FALSE(cursor.write(port, four));
}
