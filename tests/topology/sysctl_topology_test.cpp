/// Macs as sysctl describes them.
#include <vm_accel/topology/sysctl_topology.hpp>

#include <catch2/catch.hpp>

#include <string>

using namespace vm_accel;

namespace {

// The lines of `sysctl hw` that count. M1 Pro and M3 Max as such machines printed them; the
// others from what is published of the chips.
constexpr const char* m1 = "hw.memsize: 17179869184\n"
                           "hw.perflevel0.physicalcpu: 4\nhw.perflevel0.logicalcpu: 4\n"
                           "hw.perflevel0.l1dcachesize: 131072\n"
                           "hw.perflevel0.l2cachesize: 12582912\nhw.perflevel0.cpusperl2: 4\n"
                           "hw.perflevel0.name: Performance\n"
                           "hw.perflevel1.physicalcpu: 4\nhw.perflevel1.logicalcpu: 4\n"
                           "hw.perflevel1.l1dcachesize: 65536\n"
                           "hw.perflevel1.l2cachesize: 4194304\nhw.perflevel1.cpusperl2: 4\n"
                           "hw.perflevel1.name: Efficiency\n"
                           "hw.nperflevels: 2\nhw.physicalcpu: 8\nhw.logicalcpu: 8\n"
                           "hw.cachelinesize: 128\nhw.l2cachesize: 4194304\nhw.packages: 1\n";
constexpr const char* m1_pro = "hw.memsize: 34359738368\n"
                               "hw.perflevel0.physicalcpu: 8\nhw.perflevel0.logicalcpu: 8\n"
                               "hw.perflevel0.cpusperl2: 4\nhw.perflevel0.l1dcachesize: 131072\n"
                               "hw.perflevel0.l2cachesize: 12582912\n"
                               "hw.perflevel1.physicalcpu: 2\nhw.perflevel1.logicalcpu: 2\n"
                               "hw.perflevel1.cpusperl2: 2\nhw.perflevel1.l1dcachesize: 65536\n"
                               "hw.perflevel1.l2cachesize: 4194304\n"
                               "hw.nperflevels: 2\nhw.cachelinesize: 128\n";
constexpr const char* m1_ultra = "hw.memsize: 68719476736\n"
                                 "hw.perflevel0.physicalcpu: 16\nhw.perflevel0.logicalcpu: 16\n"
                                 "hw.perflevel0.cpusperl2: 4\nhw.perflevel0.l1dcachesize: 131072\n"
                                 "hw.perflevel0.l2cachesize: 12582912\n"
                                 "hw.perflevel1.physicalcpu: 4\nhw.perflevel1.logicalcpu: 4\n"
                                 "hw.perflevel1.cpusperl2: 2\nhw.perflevel1.l1dcachesize: 65536\n"
                                 "hw.perflevel1.l2cachesize: 4194304\n"
                                 "hw.nperflevels: 2\nhw.cachelinesize: 128\nhw.packages: 1\n";
constexpr const char* m2_pro = "hw.memsize: 34359738368\n"
                               "hw.perflevel0.physicalcpu: 8\nhw.perflevel0.logicalcpu: 8\n"
                               "hw.perflevel0.cpusperl2: 4\nhw.perflevel0.l1dcachesize: 131072\n"
                               "hw.perflevel0.l2cachesize: 16777216\n"
                               "hw.perflevel1.physicalcpu: 4\nhw.perflevel1.logicalcpu: 4\n"
                               "hw.perflevel1.cpusperl2: 4\nhw.perflevel1.l1dcachesize: 65536\n"
                               "hw.perflevel1.l2cachesize: 4194304\n"
                               "hw.nperflevels: 2\nhw.cachelinesize: 128\nhw.packages: 1\n";
constexpr const char* m3_max = "hw.memsize: 137438953472\n"
                               "hw.perflevel1.physicalcpu: 4\nhw.perflevel1.logicalcpu: 4\n"
                               "hw.perflevel1.l1dcachesize: 65536\n"
                               "hw.perflevel1.l2cachesize: 4194304\nhw.perflevel1.cpusperl2: 4\n"
                               "hw.perflevel1.name: Efficiency\n"
                               "hw.perflevel0.physicalcpu: 12\nhw.perflevel0.logicalcpu: 12\n"
                               "hw.perflevel0.l1dcachesize: 131072\n"
                               "hw.perflevel0.l2cachesize: 16777216\nhw.perflevel0.cpusperl2: 6\n"
                               "hw.perflevel0.name: Performance\n"
                               "hw.nperflevels: 2\nhw.cachelinesize: 128\nhw.packages: 1\n";
constexpr const char* intel = "hw.memsize: 34359738368\nhw.packages: 1\n"
                              "hw.physicalcpu: 6\nhw.logicalcpu: 12\n"
                              "hw.cachelinesize: 64\nhw.l1dcachesize: 32768\n"
                              "hw.l2cachesize: 262144\nhw.l3cachesize: 12582912\n";
constexpr const char* mac_pro = "hw.memsize: 68719476736\nhw.packages: 2\n"
                                "hw.physicalcpu: 12\nhw.logicalcpu: 24\n"
                                "hw.cachelinesize: 64\nhw.l1dcachesize: 32768\n"
                                "hw.l2cachesize: 262144\nhw.l3cachesize: 12582912\n";

std::size_t caches_of_level(const cpu_topology& topology, unsigned level) {
    std::size_t count = 0;
    for (const cpu_cache& cache : topology.caches)
        count += cache.level == level ? 1u : 0u;
    return count;
}

} // namespace

TEST_CASE("Macs: cores by kind, level 2 caches by cluster", "[topology]") {
    struct row {
        const char* name;
        const char* listing;
        core_counts cores;
        std::size_t cpus, l1, l2, l3, packages;
        std::uint64_t last_l2; ///< bytes: a performance core's
    };
    const auto r = GENERATE(values<row>({
        {"M1", m1, {4, 4, 0}, 8, 8, 2, 0, 1, 12582912},
        {"M1 Pro", m1_pro, {8, 2, 0}, 10, 10, 3, 0, 1, 12582912},
        {"M1 Ultra", m1_ultra, {16, 4, 0}, 20, 20, 6, 0, 1, 12582912},
        {"M2 Pro", m2_pro, {8, 4, 0}, 12, 12, 3, 0, 1, 16777216},
        {"M3 Max", m3_max, {12, 4, 0}, 16, 16, 3, 0, 1, 16777216},
        {"Intel, 6 cores", intel, {0, 0, 6}, 12, 6, 6, 1, 1, 262144},
        {"Mac Pro, 2 packages", mac_pro, {0, 0, 12}, 24, 12, 12, 2, 2, 262144},
    }));
    CAPTURE(r.name);
    const result<cpu_topology> made = topology_from_sysctl(os::recorded_sysctl{r.listing});
    REQUIRE(made);
    CHECK(count_cores(*made) == r.cores);
    CHECK(made->cpus.size() == r.cpus);
    CHECK(caches_of_level(*made, 1) == r.l1);
    CHECK(caches_of_level(*made, 2) == r.l2);
    CHECK(caches_of_level(*made, 3) == r.l3);
    CHECK(made->packages.size() == r.packages);
    CHECK(made->nodes.size() == 1);
    CHECK(made->nodes.front().memory_bytes >= std::uint64_t{16} << 30);
    CHECK(made->nodes.front().cpus.size() == r.cpus);
    CHECK_FALSE(made->is_this_system());
    std::uint64_t last_l2 = 0;
    for (const cpu_cache& cache : made->caches)
        if (cache.level == 2) last_l2 = cache.bytes;
    CHECK(last_l2 == r.last_l2);
    // Every CPU refers to its core and back.
    for (unsigned i = 0; i < made->cpus.size(); ++i) {
        const logical_cpu& cpu = made->cpus[i];
        CHECK(cpu.os_index == i);
        CHECK(made->cores[cpu.core].cpus[cpu.smt_index] == i);
        CHECK(made->cores[cpu.core].kind == cpu.kind);
    }
}

TEST_CASE("Macs: efficiency cores have the first numbers", "[topology]") {
    const result<cpu_topology> made = topology_from_sysctl(os::recorded_sysctl{m1_pro});
    REQUIRE(made);
    CHECK(made->cpus[0].kind == cpu_kind::efficiency);
    CHECK(made->cpus[1].kind == cpu_kind::efficiency);
    CHECK(made->cpus[2].kind == cpu_kind::performance);
    CHECK(made->caches.front().bytes == 65536);
    CHECK(made->caches.back().cpus == std::vector<unsigned>{6, 7, 8, 9});
}

TEST_CASE("Macs: what makes no sense is refused with its name", "[topology]") {
    struct row {
        const char* listing;
        const char* named;
    };
    const auto r = GENERATE(values<row>({
        {"", "hw.physicalcpu"},
        {"hw.physicalcpu: 4\n", "hw.logicalcpu"},
        {"hw.physicalcpu: 4\nhw.logicalcpu: 6\n", "hw.logicalcpu"},
        {"hw.physicalcpu: 4\nhw.logicalcpu: 2\n", "hw.logicalcpu"},
        {"hw.physicalcpu: 99999\nhw.logicalcpu: 99999\n", "hw.physicalcpu"},
        {"hw.physicalcpu: four\nhw.logicalcpu: 4\n", "hw.physicalcpu"},
        {"hw.physicalcpu: 99999999999999999999\nhw.logicalcpu: 4\n", "hw.physicalcpu"},
        {"hw.physicalcpu: 4\nhw.logicalcpu: 4\nhw.packages: 3\n", "hw.packages"},
        {"hw.nperflevels: 2\nhw.physicalcpu: 4\nhw.logicalcpu: 4\n", "hw.perflevel1.physicalcpu"},
        {"hw.nperflevels: 9\n", "hw.nperflevels"},
    }));
    CAPTURE(r.listing);
    const result<cpu_topology> refused = topology_from_sysctl(os::recorded_sysctl{r.listing});
    REQUIRE_FALSE(refused);
    CHECK(refused.error() == errc::unavailable);
    CHECK(refused.error().cause.view().find(r.named) != std::string_view::npos);
    CHECK_FALSE(refused.error().cure.empty());
}

TEST_CASE("a recorded listing answers whole names only", "[os]") {
    const os::recorded_sysctl values{"hw.cpu: 1\nhw.cpux: 2\nhw.name: A B\nhw.empty: \nlast: 7"};
    CHECK(values.number("hw.cpu") == 1u);
    CHECK(values.number("hw.cpux") == 2u);
    CHECK_FALSE(values.number("hw.cp"));
    CHECK_FALSE(values.number("cpu"));
    CHECK_FALSE(values.number("hw.name"));
    CHECK_FALSE(values.number("hw.empty"));
    CHECK(values.text("hw.name")->view() == "A B");
    CHECK(values.number("last") == 7u);
}
