/// Machines as Windows describes them, built record by record.
#include <vm_accel/topology/windows_records.hpp>

#include <catch2/catch.hpp>

#include <cstring>
#include <string>
#include <vector>

using namespace vm_accel;
namespace abi = vm_accel::os::windows_abi;

namespace {

using masks = std::vector<abi::group_affinity>;

abi::group_affinity in_group(std::uint16_t group, std::uint64_t mask) {
    abi::group_affinity made;
    made.group = group;
    made.mask = mask;
    return made;
}

/// A buffer as GetLogicalProcessorInformationEx() fills it.
class record_buffer {
public:
    void core(const masks& cpus, std::uint8_t efficiency_class = 0) {
        start(abi::relation::processor_core, abi::processor_record::group_masks, cpus);
        put(abi::processor_record::efficiency_class, efficiency_class);
        put(abi::processor_record::group_count, static_cast<std::uint16_t>(cpus.size()));
    }
    void package(const masks& cpus) {
        start(abi::relation::processor_package, abi::processor_record::group_masks, cpus);
        put(abi::processor_record::group_count, static_cast<std::uint16_t>(cpus.size()));
    }
    /// `count` as older versions write it: 0, with one mask.
    void node(std::uint32_t number, const masks& cpus, std::uint16_t count) {
        start(abi::relation::numa_node, abi::node_record::group_masks, cpus);
        put(abi::node_record::node_number, number);
        put(abi::node_record::group_count, count);
    }
    void cache(std::uint8_t level, abi::cache_type type, std::uint32_t bytes, const masks& cpus) {
        start(abi::relation::cache, abi::cache_record::group_masks, cpus);
        put(abi::cache_record::level, level);
        put(abi::cache_record::line_bytes, std::uint16_t{64});
        put(abi::cache_record::cache_bytes, bytes);
        put(abi::cache_record::type, static_cast<std::uint32_t>(type));
        put(abi::cache_record::group_count, static_cast<std::uint16_t>(cpus.size()));
    }
    /// A kind that this library does not know.
    void other() { start(abi::relation::processor_module, 32, {in_group(0, 1)}); }

    [[nodiscard]] const std::vector<std::byte>& bytes() const { return bytes_; }
    [[nodiscard]] std::vector<std::byte>& bytes() { return bytes_; }

private:
    void start(abi::relation kind, std::size_t first_mask, const masks& cpus) {
        start_ = bytes_.size();
        bytes_.resize(start_ + first_mask + cpus.size() * sizeof(abi::group_affinity));
        put(abi::record::relationship, static_cast<std::uint32_t>(kind));
        put(abi::record::size, static_cast<std::uint32_t>(bytes_.size() - start_));
        for (std::size_t i = 0; i < cpus.size(); ++i)
            put(first_mask + i * sizeof cpus[i], cpus[i]);
    }
    template <class T>
    void put(std::size_t offset, const T& value) {
        std::memcpy(bytes_.data() + start_ + offset, &value, sizeof value);
    }

    std::vector<std::byte> bytes_{};
    std::size_t start_ = 0;
};

/// What holds for every topology: everything refers to everything else.
void check_links(const cpu_topology& t) {
    for (unsigned c = 0; c < t.cores.size(); ++c)
        for (unsigned k = 0; k < t.cores[c].cpus.size(); ++k) {
            const logical_cpu& cpu = t.cpus[t.cores[c].cpus[k]];
            REQUIRE(cpu.core == c);
            REQUIRE(cpu.smt_index == k);
            REQUIRE(cpu.package == t.cores[c].package);
            REQUIRE(cpu.node == t.cores[c].node);
        }
    std::size_t on_nodes = 0;
    for (unsigned n = 0; n < t.nodes.size(); ++n) {
        on_nodes += t.nodes[n].cpus.size();
        for (const unsigned cpu : t.nodes[n].cpus)
            REQUIRE(t.cpus[cpu].node == n);
    }
    CHECK(on_nodes == t.cpus.size());
    CHECK(t.cpu_set().count() == t.cpus.size());
    CHECK_FALSE(t.is_this_system());
}

/// Two sockets of 32 cores with 2 threads, each a group and a node: 128 CPUs.
record_buffer two_groups() {
    record_buffer b;
    for (std::uint16_t group = 0; group < 2; ++group) {
        for (unsigned core = 0; core < 32; ++core) {
            b.core({in_group(group, std::uint64_t{3} << (2 * core))});
            b.cache(1, abi::cache_type::instruction, 32 << 10,
                    {in_group(group, std::uint64_t{3} << (2 * core))});
            b.cache(1, abi::cache_type::data, 48 << 10,
                    {in_group(group, std::uint64_t{3} << (2 * core))});
        }
        b.package({in_group(group, ~std::uint64_t{0})});
        b.cache(3, abi::cache_type::unified, 64 << 20, {in_group(group, ~std::uint64_t{0})});
        b.other();
    }
    b.node(0, {in_group(0, ~std::uint64_t{0})}, 0);
    b.node(1, {in_group(1, ~std::uint64_t{0})}, 0);
    return b;
}

} // namespace

TEST_CASE("Windows records: 128 CPUs in two groups, two threads to a core") {
    const auto read = topology_from_windows_records(two_groups().bytes());
    REQUIRE(read);
    const cpu_topology& t = *read;
    check_links(t);
    CHECK(t.cpus.size() == 128);
    CHECK(t.cores.size() == 64);
    CHECK(t.packages.size() == 2);
    REQUIRE(t.nodes.size() == 2);
    CHECK(t.nodes[1].cpus.size() == 64);
    CHECK(t.distance(0, 1) == 20); // Windows tells none
    const unsigned first_of_second = t.find_cpu(64);
    REQUIRE(first_of_second != no_index);
    CHECK(t.cpus[first_of_second].node == 1);
    CHECK(t.cpus[first_of_second].package == 1);
    CHECK(t.cpus[t.find_cpu(127)].smt_index == 1);
    CHECK(t.cpus[0].kind == cpu_kind::unknown);
    // Instruction caches are no caches of data.
    CHECK(t.caches.size() == 66);
    CHECK(t.caches[0].level == 1);
    CHECK(t.caches[0].bytes == 48 << 10);
    CHECK(t.caches[0].line_bytes == 64);
    CHECK(t.caches.back().level == 3);
    CHECK(t.caches.back().cpus.size() == 64);
}

TEST_CASE("Windows records: a node that spans groups is told whole by the later request alone") {
    record_buffer all;
    for (std::uint16_t group = 0; group < 2; ++group)
        for (unsigned core = 0; core < 48; ++core)
            all.core({in_group(group, std::uint64_t{1} << core)});
    const masks both{in_group(0, 0xffff'ffff'ffff), in_group(1, 0xffff'ffff'ffff)};
    all.package(both);
    all.node(0, {both[0]}, 1); // RelationAll: the primary group alone
    record_buffer whole;
    whole.node(0, both, 2);

    const auto partly = topology_from_windows_records(all.bytes());
    REQUIRE(partly);
    CHECK(partly->nodes[0].cpus.size() == 48);
    CHECK(partly->cpus[partly->find_cpu(64)].node == no_index);

    const auto read = topology_from_windows_records(all.bytes(), whole.bytes());
    REQUIRE(read);
    check_links(*read);
    REQUIRE(read->nodes.size() == 1);
    CHECK(read->nodes[0].cpus.size() == 96);
    CHECK(read->packages[0].cpus.size() == 96);
    CHECK(read->find_cpu(48) == no_index); // a group that is not full leaves numbers out
    CHECK(read->find_cpu(64 + 47) != no_index);
}

TEST_CASE("Windows records: efficiency classes tell the kinds of cores") {
    struct row {
        std::vector<std::uint8_t> classes;
        std::vector<cpu_kind> kinds;
    };
    constexpr auto p = cpu_kind::performance;
    constexpr auto e = cpu_kind::efficiency;
    const row rows[] = {
        {{0, 0}, {cpu_kind::unknown, cpu_kind::unknown}},
        {{1, 1}, {cpu_kind::unknown, cpu_kind::unknown}},
        {{1, 0, 1, 0}, {p, e, p, e}},
        {{2, 1, 0}, {p, p, e}}, // the slowest are the economical ones
    };
    for (const row& r : rows) {
        record_buffer b;
        for (unsigned i = 0; i < r.classes.size(); ++i)
            b.core({in_group(0, std::uint64_t{1} << i)}, r.classes[i]);
        const auto read = topology_from_windows_records(b.bytes());
        REQUIRE(read);
        check_links(*read);
        for (unsigned i = 0; i < r.kinds.size(); ++i) {
            CHECK(name_of(read->cpus[read->find_cpu(i)].kind) == name_of(r.kinds[i]));
            CHECK(name_of(read->cores[read->cpus[read->find_cpu(i)].core].kind) ==
                  name_of(r.kinds[i]));
        }
    }
}

TEST_CASE(
    "Windows records: cores are in the order of packages and nodes, nodes keep their numbers") {
    record_buffer b;
    b.core({in_group(0, 0b1000)});
    b.core({in_group(0, 0b0001)});
    b.core({in_group(0, 0b0100)});
    b.core({in_group(0, 0b0010)});
    b.package({in_group(0, 0b1010)});
    b.package({in_group(0, 0b0101)});
    b.node(4, {in_group(0, 0b1010)}, 1);
    b.node(2, {in_group(0, 0b0101)}, 1);
    b.node(9, {in_group(0, 0)}, 1); // memory without CPUs
    const auto read = topology_from_windows_records(b.bytes());
    REQUIRE(read);
    check_links(*read);
    std::vector<unsigned> order;
    for (const logical_cpu& cpu : read->cpus)
        order.push_back(cpu.os_index);
    CHECK(order == std::vector<unsigned>{1, 3, 0, 2});
    CHECK(read->nodes[0].os_index == 4);
    CHECK(read->find_node(9) == 2);
    CHECK(read->nodes[2].cpus.empty());
}

TEST_CASE("Windows records: CPUs outside the process's affinity are left out") {
    os::cpu_set allowed;
    for (const unsigned cpu : {1u, 64u, 65u})
        allowed.insert(cpu);
    const auto read = topology_from_windows_records(two_groups().bytes(), {}, allowed);
    REQUIRE(read);
    check_links(*read);
    CHECK(read->cpu_set() == allowed);
    CHECK(read->cores.size() == 2);
    CHECK(read->cpus[0].smt_index == 0); // its sibling is left out
    CHECK(read->caches.size() == 4);
    const auto none = topology_from_windows_records(two_groups().bytes(), {}, os::cpu_set{});
    REQUIRE_FALSE(none);
    CHECK(none.error() == errc::unavailable);
}

TEST_CASE("Windows records: a system that tells cores alone has one package and one node") {
    record_buffer b;
    b.core({in_group(0, 1)});
    b.core({in_group(0, 2)});
    const auto read = topology_from_windows_records(b.bytes());
    REQUIRE(read);
    check_links(*read);
    CHECK(read->packages.size() == 1);
    CHECK(read->nodes.size() == 1);
    CHECK(read->nodes[0].cpus.size() == 2);
    // A group beyond what a set of CPUs holds is left out, not misnumbered.
    b.core({in_group(128, 1)});
    CHECK(topology_from_windows_records(b.bytes())->cpus.size() == 2);
}

TEST_CASE("Windows records: damaged ones are an error, wherever they are cut") {
    const record_buffer whole = two_groups();
    for (std::size_t size = 1; size < 200; ++size) {
        const auto read = topology_from_windows_records(std::span{whole.bytes()}.first(size));
        // Between two records there is nothing wrong.
        if (read) continue;
        CAPTURE(size);
        CHECK(read.error() == errc::invalid_argument);
        CHECK_FALSE(read.error().cure.empty());
    }
    const auto with_size = [&](std::uint32_t size) {
        record_buffer b;
        b.core({in_group(0, 1)});
        std::memcpy(b.bytes().data() + abi::record::size, &size, sizeof size);
        return topology_from_windows_records(b.bytes());
    };
    for (const std::uint32_t size : {0u, 7u, 8u, 47u, 49u, ~0u}) {
        CAPTURE(size);
        REQUIRE_FALSE(with_size(size));
        CHECK(with_size(size).error() == errc::invalid_argument);
    }
    CHECK(with_size(48));
    // More masks than the record has room for.
    record_buffer b;
    b.core({in_group(0, 1)});
    const std::uint16_t many = 2;
    std::memcpy(b.bytes().data() + abi::processor_record::group_count, &many, sizeof many);
    CHECK(topology_from_windows_records(b.bytes()).error() == errc::invalid_argument);
    CHECK(topology_from_windows_records({}).error() == errc::unavailable);
}
