/// What a guest is told of its nodes: by chunks of RAM, windows and vCPUs, and as the
/// bytes of ACPI tables.
#include <vm_accel/numa/acpi_tables.hpp>
#include <vm_accel/numa/guest_nodes.hpp>
#include <vm_accel/topology/regular.hpp>

#include <catch2/catch.hpp>

#include <numeric>
#include <string>
#include <vector>

using namespace vm_accel;

namespace {

constexpr std::uint64_t GiB = 1u << 30;

ram_chunk chunk(std::uint64_t offset, std::uint64_t bytes, unsigned guest, unsigned host) {
    ram_chunk c;
    c.offset = offset;
    c.bytes = bytes;
    c.guest_node = guest;
    c.node = host;
    return c;
}

/// Four nodes: 0, 1 in one package, 2, 3 in another; 12 within, 21 beyond. Numbers
/// of the operating system are ten times the index.
cpu_topology four_nodes() {
    cpu_topology t = make_topology({2, 2, 2, 1, GiB});
    for (numa_node& node : t.nodes)
        node.os_index *= 10;
    return t;
}

guest_nodes described(const std::vector<ram_chunk>& chunks, const std::vector<ram_window>& windows,
                      const std::vector<unsigned>& vcpus = {}) {
    const auto made = describe_guest(chunks, windows, vcpus, four_nodes());
    REQUIRE(made);
    return *made;
}

} // namespace

TEST_CASE("guest nodes: memory, vCPUs, host nodes and distances") {
    const guest_nodes guest = described({chunk(0, 2 * GiB, 0, 10), chunk(2 * GiB, 2 * GiB, 1, 30)},
                                        {{pa{GiB}, 0, 4 * GiB}}, {1, 0, 1});
    REQUIRE(guest.nodes.size() == 2);
    CHECK(guest.nodes[0] == guest_node{10, {{pa{GiB}, 2 * GiB}}, {1}});
    CHECK(guest.nodes[1] == guest_node{30, {{pa{3 * GiB}, 2 * GiB}}, {0, 2}});
    CHECK(guest.distances == std::vector<std::uint32_t>{10, 21, 21, 10});
    CHECK(guest.node_of(1) == 0);
    CHECK(guest.node_of(2) == 1);
    CHECK(guest.node_of(3) == any_node);
    CHECK(distance_cells(guest) ==
          std::vector<std::uint32_t>{0, 0, 10, 0, 1, 21, 1, 0, 21, 1, 1, 10});
}

TEST_CASE("guest nodes: a hole below 4 GiB cuts a node in two; neighbours are put together") {
    const guest_nodes guest =
        described({chunk(0, GiB, 0, 0), chunk(GiB, GiB, 0, 10), chunk(2 * GiB, 2 * GiB, 1, 20)},
                  {{pa{4 * GiB}, 3 * GiB, GiB}, {pa{0}, 0, 3 * GiB}});
    CHECK(guest.nodes[0].memory == std::vector<pa_range>{{pa{0}, 2 * GiB}});
    CHECK(guest.nodes[1].memory == std::vector<pa_range>{{pa{2 * GiB}, GiB}, {pa{4 * GiB}, GiB}});
    // The order of windows is not that of the guest's addresses.
    const guest_nodes swapped =
        described({chunk(0, 2 * GiB, 0, 0)}, {{pa{GiB}, 0, GiB}, {pa{0}, GiB, GiB}});
    CHECK(swapped.nodes[0].memory == std::vector<pa_range>{{pa{0}, 2 * GiB}});
}

TEST_CASE("guest nodes: distances that tables can tell") {
    struct row {
        const char* what;
        std::vector<ram_chunk> chunks;
        std::uint32_t there, back;
    };
    const row r = GENERATE(values<row>({
        {"both on one host node: near, but two",
         {chunk(0, GiB, 0, 20), chunk(GiB, GiB, 1, 20)},
         11,
         11},
        {"half of a node was spilled to the other package",
         {chunk(0, GiB, 0, 0), chunk(GiB, GiB, 0, 20), chunk(2 * GiB, GiB, 1, 10)},
         17,
         17},
        {"the spill counts by its size",
         {chunk(0, 3 * GiB, 0, 0), chunk(3 * GiB, GiB, 0, 20), chunk(4 * GiB, GiB, 1, 10)},
         14,
         14},
        {"placement is off", {chunk(0, GiB, 0, any_node), chunk(GiB, GiB, 1, any_node)}, 20, 20},
        {"a host node that is not in the topology",
         {chunk(0, GiB, 0, 7), chunk(GiB, GiB, 1, 0)},
         20,
         20},
    }));
    INFO(r.what);
    const std::uint64_t bytes = r.chunks.back().offset + r.chunks.back().bytes;
    const guest_nodes guest = described(r.chunks, {{pa{0}, 0, bytes}});
    CHECK(guest.distance(0, 1) == r.there);
    CHECK(guest.distance(1, 0) == r.back);
    CHECK(guest.distance(0, 0) == 10);
    CHECK(guest.distance(1, 1) == 10);
}

TEST_CASE("guest nodes: the host's distances are kept where they differ by direction") {
    cpu_topology t = four_nodes();
    t.distances = {10, 900, 30, 40, 5, 10, 50, 60, 70, 80, 10, 90, 15, 16, 17, 10};
    const std::vector<ram_chunk> chunks{chunk(0, GiB, 0, 0), chunk(GiB, GiB, 1, 10),
                                        chunk(2 * GiB, GiB, 2, 20)};
    const auto guest = describe_guest(chunks, std::vector<ram_window>{{pa{0}, 0, 3 * GiB}}, {}, t);
    REQUIRE(guest);
    CHECK(guest->distances == std::vector<std::uint32_t>{10, 254, 30, 11, 10, 50, 70, 80, 10});
}

TEST_CASE("guest nodes: what cannot be described is refused") {
    const std::vector<ram_chunk> chunks{chunk(0, GiB, 0, 0), chunk(GiB, GiB, 1, 10)};
    struct row {
        const char* what;
        std::vector<ram_chunk> chunks;
        std::vector<ram_window> windows;
        std::vector<unsigned> vcpus;
        errc code;
    };
    const row r = GENERATE_COPY(values<row>({
        {"no memory", {}, {}, {}, errc::invalid_argument},
        {"a part that nobody sees", chunks, {{pa{0}, 0, GiB}}, {}, errc::invalid_argument},
        {"a window beyond", chunks, {{pa{0}, GiB, 2 * GiB}}, {}, errc::invalid_argument},
        {"a part seen twice",
         chunks,
         {{pa{0}, 0, GiB}, {pa{GiB}, 0, GiB}},
         {},
         errc::invalid_argument},
        {"two parts in one place",
         chunks,
         {{pa{0}, 0, GiB}, {pa{GiB / 2}, GiB, GiB}},
         {},
         errc::invalid_argument},
        {"beyond the last address",
         chunks,
         {{pa{~0ull - GiB}, 0, 2 * GiB}},
         {},
         errc::invalid_argument},
        {"a vCPU elsewhere", chunks, {{pa{0}, 0, 2 * GiB}}, {0, 2}, errc::out_of_range},
    }));
    INFO(r.what);
    const auto made = describe_guest(r.chunks, r.windows, r.vcpus, four_nodes());
    REQUIRE_FALSE(made);
    CHECK(made.error() == r.code);
    CHECK_FALSE(made.error().cure.empty());
}

TEST_CASE("guest node of each vCPU: the nearest memory, in blocks where it is as near") {
    struct row {
        const char* what;
        std::vector<unsigned> hosts; ///< of the guest nodes' memory
        std::vector<unsigned> vcpus; ///< host nodes
        std::vector<unsigned> expected;
    };
    const row r = GENERATE(values<row>({
        {"each on its own", {0, 10, 20, 30}, {30, 0, 20, 10}, {3, 0, 2, 1}},
        {"no memory there: the same package", {0, 20}, {10, 30, 10}, {0, 1, 0}},
        {"two guest nodes on one host node", {0, 0}, {0, 0, 0, 0}, {0, 0, 1, 1}},
        {"the same, uneven", {0, 0}, {0, 0, 0}, {0, 0, 1}},
        {"and vCPUs elsewhere in between", {0, 0, 20}, {0, 20, 0, 20}, {0, 2, 1, 2}},
        {"not known where: all are as near", {0, 20}, {any_node, any_node}, {0, 1}},
        {"one node", {20}, {0, 10, 30}, {0, 0, 0}},
        {"no memory", {}, {0, 10}, {0, 0}},
        {"no vCPUs", {0, 10}, {}, {}},
    }));
    INFO(r.what);
    std::vector<ram_chunk> chunks;
    for (unsigned i = 0; i < r.hosts.size(); ++i)
        chunks.push_back(chunk(i * GiB, GiB, i, r.hosts[i]));
    CHECK(nearest_guest_nodes(chunks, r.vcpus, four_nodes()) == r.expected);
}

// --- ACPI 6.5: golden bytes

static_assert(acpi::srat_memory{0x01020304, pa{0x1122334455667788}, 0x99aabbccddeeff00}.bytes() ==
              std::array<std::uint8_t, 40>{1,    40,   4,    3,    2,    1,    0,    0,
                                           0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,
                                           0x00, 0xff, 0xee, 0xdd, 0xcc, 0xbb, 0xaa, 0x99,
                                           0,    0,    0,    0,    1,    0,    0,    0});
static_assert(acpi::srat_memory{0, {}, 0, true}.bytes()[28] == 3);
static_assert(acpi::srat_local_apic{0x01020304, 9}.bytes() ==
              std::array<std::uint8_t, 16>{0, 16, 4, 9, 1, 0, 0, 0, 0, 3, 2, 1});
static_assert(acpi::srat_x2apic{0x01020304, 0x105}.bytes() ==
              std::array<std::uint8_t, 24>{2, 24, 0, 0, 4, 3, 2, 1, 5, 1, 0, 0, 1});
static_assert(acpi::srat_gicc{0x01020304, 0x105}.bytes() ==
              std::array<std::uint8_t, 18>{3, 18, 4, 3, 2, 1, 5, 1, 0, 0, 1});

TEST_CASE("ACPI tables: length, checksum, and every row once") {
    const guest_nodes guest =
        described({chunk(0, 3 * GiB, 0, 0), chunk(3 * GiB, GiB, 1, 20)},
                  {{pa{0}, 0, 2 * GiB}, {pa{4 * GiB}, 2 * GiB, 2 * GiB}}, {0, 1, 1});
    const auto sum_of = [](const std::vector<std::uint8_t>& table) {
        return std::accumulate(table.begin(), table.end(), 0u) % 256;
    };
    const auto slit = acpi::slit(guest);
    CHECK(std::string(slit.begin(), slit.begin() + 4) == "SLIT");
    CHECK(slit.size() == 36 + 8 + 4);
    CHECK(slit[4] == slit.size());
    CHECK(sum_of(slit) == 0);
    CHECK(std::vector<std::uint8_t>(slit.begin() + 36, slit.end()) ==
          std::vector<std::uint8_t>{2, 0, 0, 0, 0, 0, 0, 0, 10, 21, 21, 10});

    CHECK(acpi::memory_rows(guest) == std::vector<acpi::srat_memory>{{0, pa{0}, 2 * GiB},
                                                                     {0, pa{4 * GiB}, GiB},
                                                                     {1, pa{5 * GiB}, GiB}});
    const auto x86 = acpi::srat(guest, acpi::processor_rows::apic, std::vector{0u, 254u, 255u});
    REQUIRE(x86);
    CHECK(x86->size() == 36 + 12 + 2 * 16 + 24 + 3 * 40);
    CHECK((*x86)[4] == x86->size() % 256);
    CHECK((*x86)[5] == x86->size() / 256);
    CHECK(sum_of(*x86) == 0);
    CHECK((*x86)[36] == 1);
    std::vector<int> types;
    for (std::size_t at = 48; at < x86->size(); at += (*x86)[at + 1])
        types.push_back((*x86)[at]);
    CHECK(types == std::vector<int>{0, 0, 2, 1, 1, 1});

    const auto arm = acpi::srat(guest, acpi::processor_rows::gicc, std::vector{7u, 8u, 9u});
    REQUIRE(arm);
    CHECK(arm->size() == 36 + 12 + 3 * 18 + 3 * 40);
    CHECK((*arm)[48 + 18 + 6] == 8); // the second row is vCPU 1's
    CHECK((*arm)[48 + 18 + 2] == 1);
    const auto unnamed = acpi::srat(guest, acpi::processor_rows::gicc, std::vector{7u, 8u});
    REQUIRE_FALSE(unnamed);
    CHECK(unnamed.error() == errc::out_of_range);
}
