#include <vm_accel/os/threads.hpp>
#include <vm_accel/topology/load.hpp>
#include <vm_accel/topology/regular.hpp>
#include <vm_accel/topology/restricted.hpp>

#include <catch2/catch.hpp>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <set>
#include <sstream>
#include <string>

#if defined(__linux__)
#include <sched.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

using namespace vm_accel;

namespace {

std::string recorded(const std::string& name) {
    return std::string{VM_ACCEL_TEST_DATA} + "/topology/" + name + ".xml";
}

cpu_topology from_file(const std::string& name) {
    const auto loaded = topology_from_xml_file(recorded(name).c_str());
    REQUIRE(loaded);
    return *loaded;
}

/// Everything refers to what exists, both ways, and every CPU counts once.
void check_consistent(const cpu_topology& t) {
    REQUIRE_FALSE(t.cpus.empty());
    REQUIRE_FALSE(t.packages.empty());
    std::set<unsigned> numbers;
    for (unsigned i = 0; i < t.cpus.size(); ++i) {
        const logical_cpu& cpu = t.cpus[i];
        CHECK(numbers.insert(cpu.os_index).second);
        CHECK(t.find_cpu(cpu.os_index) == i);
        REQUIRE(cpu.core < t.cores.size());
        REQUIRE(cpu.package < t.packages.size());
        REQUIRE((cpu.node == no_index || cpu.node < t.nodes.size()));
        const cpu_core& core = t.cores[cpu.core];
        CHECK(core.package == cpu.package);
        CHECK(core.node == cpu.node);
        CHECK(core.kind == cpu.kind);
        REQUIRE(cpu.smt_index < core.cpus.size());
        CHECK(core.cpus[cpu.smt_index] == i);
    }
    const auto count_all = [](const auto& objects) {
        std::size_t total = 0;
        for (const auto& object : objects)
            total += object.cpus.size();
        return total;
    };
    CHECK(count_all(t.cores) == t.cpus.size());
    CHECK(count_all(t.packages) == t.cpus.size());
    CHECK(count_all(t.nodes) <= t.cpus.size());
    for (unsigned n = 0; n < t.nodes.size(); ++n) {
        CHECK(t.find_node(t.nodes[n].os_index) == n);
        CHECK(t.distance(n, n) == 10);
        std::size_t ordinary = 0;
        for (const unsigned cpu : t.nodes[n].cpus)
            ordinary += t.cpus[cpu].isolated ? 0 : 1;
        CHECK(t.cpu_set_of_node(n).count() == (ordinary != 0 ? ordinary : t.nodes[n].cpus.size()));
        for (const unsigned cpu : t.nodes[n].cpus)
            CHECK(t.cpus[cpu].node == n);
    }
    CHECK((t.distances.empty() || t.distances.size() == t.nodes.size() * t.nodes.size()));
    for (const cpu_cache& cache : t.caches) {
        CHECK_FALSE(cache.cpus.empty());
        for (const unsigned cpu : cache.cpus)
            CHECK(cpu < t.cpus.size());
    }
    CHECK(t.cpu_set().count() == t.cpus.size());
}

std::size_t caches_of_level(const cpu_topology& t, unsigned level) {
    std::size_t count = 0;
    for (const cpu_cache& cache : t.caches)
        count += cache.level == level ? 1 : 0;
    return count;
}

/// Sets a variable until the end of a test.
class environment {
public:
    environment(const char* name, const char* value) : name_(name) { ::setenv(name, value, 1); }
    environment(const environment&) = delete;
    environment& operator=(const environment&) = delete;
    ~environment() { ::unsetenv(name_); }

private:
    const char* name_;
};

} // namespace

TEST_CASE("synthetic descriptions become the machines that they describe") {
    struct row {
        const char* text;
        std::size_t packages, nodes, cores, cpus, l1, l2, l3;
    };
    const row r = GENERATE(values<row>({
        {"package:1 core:1 pu:1", 1, 1, 1, 1, 0, 0, 0},
        {"package:2 numa:1 core:4 pu:2", 2, 2, 8, 16, 0, 0, 0},
        {"package:2 numa:4 l3:1 l2:4 l1:1 core:1 pu:2", 2, 8, 32, 64, 32, 32, 8},
        {"numa:1 core:80 pu:1", 1, 1, 80, 80, 0, 0, 0}, // packages are not told of
        {"package:1 l3:2 core:3 pu:1", 1, 1, 6, 6, 0, 0, 2},
    }));
    INFO(r.text);
    const auto t = topology_from_synthetic(r.text);
    REQUIRE(t);
    check_consistent(*t);
    CHECK(t->packages.size() == r.packages);
    CHECK(t->nodes.size() == r.nodes);
    CHECK(t->cores.size() == r.cores);
    CHECK(t->cpus.size() == r.cpus);
    CHECK(caches_of_level(*t, 1) == r.l1);
    CHECK(caches_of_level(*t, 2) == r.l2);
    CHECK(caches_of_level(*t, 3) == r.l3);
    CHECK_FALSE(t->is_this_system());
}

TEST_CASE("descriptions that hwloc does not understand are errors with a cure") {
    const auto text = GENERATE("", "nonsense", "package:0 core:1 pu:1", "core:2 pu:", "pu:-1");
    const auto t = topology_from_synthetic(text);
    REQUIRE_FALSE(t);
    CHECK(t.error() == errc::invalid_argument);
    CHECK_FALSE(t.error().cure.empty());

    CHECK(topology_from_xml_file("/nonexistent/topology.xml").error() == errc::not_found);
    const auto damaged = topology_from_xml("<?xml version=\"1.0\"?><topology version=\"2.0\">");
    CHECK_FALSE(damaged);
    CHECK_FALSE(topology_from_xml("not XML"));
}

TEST_CASE("a hybrid machine: kinds, and threads on some cores only") {
    const cpu_topology t = from_file("hybrid");
    check_consistent(t);
    CHECK(t.cores.size() == 8);
    CHECK(t.cpus.size() == 12);
    for (const logical_cpu& cpu : t.cpus) {
        INFO("CPU " << cpu.os_index);
        CHECK(cpu.kind == (cpu.os_index < 8 ? cpu_kind::performance : cpu_kind::efficiency));
    }
    for (const cpu_core& core : t.cores)
        CHECK(core.cpus.size() == (core.kind == cpu_kind::performance ? 2 : 1));
    CHECK(caches_of_level(t, 2) == 8);
    CHECK(t.caches.back().cpus.size() == 12); // one L3 for all
    CHECK(t.caches.back().bytes == 24u << 20);
}

TEST_CASE("a two-package machine: nodes, their memory and their distances") {
    const cpu_topology t = from_file("four_nodes");
    check_consistent(t);
    REQUIRE(t.nodes.size() == 4);
    for (const numa_node& node : t.nodes) {
        CHECK(node.memory_bytes == std::uint64_t{8} << 30);
        CHECK(node.cpus.size() == 4);
    }
    CHECK(t.distance(0, 1) == 12);
    CHECK(t.distance(0, 3) == 32);
    CHECK(t.distance(3, 2) == 12);
    CHECK(t.memory_node_count() == 4);
}

TEST_CASE("nodes without memory and memory without CPUs") {
    const cpu_topology t = from_file("odd_nodes");
    check_consistent(t);
    REQUIRE(t.nodes.size() == 5);
    const numa_node& bare = t.nodes[t.find_node(1)];
    CHECK(bare.memory_bytes == 0);
    CHECK(bare.cpus.size() == 4);
    const numa_node& beside = t.nodes[t.find_node(4)]; // has the CPUs of node 0 beside it
    CHECK(beside.memory_bytes == std::uint64_t{4} << 30);
    CHECK(beside.cpus.empty());
    CHECK(t.memory_node_count() == 4);
    CHECK(t.distance(t.find_node(0), t.find_node(4)) == 17);
    CHECK(t.distance(t.find_node(4), t.find_node(3)) == 28);
}

TEST_CASE("a machine of clusters: what they share, and which is slow") {
    const cpu_topology t = from_file("apple_clusters");
    check_consistent(t);
    CHECK(t.cores.size() == 8);
    CHECK(caches_of_level(t, 2) == 2);
    CHECK(t.caches.back().cpus.size() == 4);
    for (const logical_cpu& cpu : t.cpus)
        CHECK(cpu.kind == (cpu.os_index < 4 ? cpu_kind::efficiency : cpu_kind::performance));
}

TEST_CASE("packages that are split into nodes: one cache spans two of them") {
    const cpu_topology t = from_file("xeon_snc");
    check_consistent(t);
    REQUIRE(t.nodes.size() == 4);
    CHECK(t.cpu_set_of_node(0).contains(16)); // the second thread of CPU 0's core
    CHECK(t.distance(0, 1) == 12);
    CHECK(t.distance(0, 2) == 21);
    CHECK(t.caches.back().cpus.size() == 16);
}

TEST_CASE("CPUs that are offline or outside the cgroup's cpuset are not in a topology") {
    const cpu_topology t = from_file("restricted");
    check_consistent(t);
    CHECK(t.cores.size() == 3);
    for (const unsigned cpu : {3u, 6u, 7u})
        CHECK(t.find_cpu(cpu) == no_index);
    CHECK(t.cpus.size() == 5);
}

TEST_CASE("isolated CPUs are marked by the system's numbers") {
    cpu_topology t = from_file("hybrid");
    os::cpu_set isolated;
    for (const unsigned cpu : {1u, 10u, 4000u})
        isolated.insert(cpu);
    topology_reading::mark_isolated(t, isolated);
    for (const logical_cpu& cpu : t.cpus)
        CHECK(cpu.isolated == (cpu.os_index == 1 || cpu.os_index == 10));
}

TEST_CASE("a node's CPUs are those that are not isolated, while it has others") {
    cpu_topology t = make_topology({1, 2, 2, 1, 0});
    os::cpu_set isolated;
    for (const unsigned cpu : {1u, 2u, 3u})
        isolated.insert(cpu);
    topology_reading::mark_isolated(t, isolated);
    CHECK(t.cpu_set_of_node(0) == os::cpu_set::of(0));
    CHECK(t.cpu_set_of_node(1).count() == 2);
}

TEST_CASE("a binding that lacks only isolated CPUs is nobody's wish") {
    struct row {
        const char *bound, *isolated, *then;
    };
    const row r = GENERATE(values<row>({
        {"0-3", "", "0-3"},       // of 0-7: a user's
        {"0-7", "6-7", "0-7"},    // nothing lacks
        {"0-5", "6-7", "0-7"},    // the kernel's own
        {"0-5", "5-7", "0-7"},    // and one was asked for
        {"0-4", "6-7", "0-4"},    // a user took 5 too
        {"6-7", "6-7", "6-7"},    // a user wants these
        {"0-5", "6-7,99", "0-7"}, // isolated, but not this process's
    }));
    INFO(r.bound << " isolated " << r.isolated);
    const hwloc_bitmap_t bound = hwloc_bitmap_alloc();
    const hwloc_bitmap_t allowed = hwloc_bitmap_alloc();
    REQUIRE(hwloc_bitmap_list_sscanf(bound, r.bound) == 0);
    REQUIRE(hwloc_bitmap_list_sscanf(allowed, "0-7") == 0);
    topology_reading::add_isolated(bound, allowed, os::parse_cpu_list(r.isolated).value());
    char text[64];
    hwloc_bitmap_list_snprintf(text, sizeof text, bound);
    CHECK(std::string{text} == r.then);
    hwloc_bitmap_free(bound);
    hwloc_bitmap_free(allowed);
}

TEST_CASE("a machine with three kinds of core: ranked, the slowest being the efficient ones") {
    std::ifstream file{recorded("hybrid")};
    std::ostringstream text;
    text << file.rdbuf();
    std::string xml = text.str();
    const std::string two = "<cpukind cpuset=\"0x00005500\" forced_efficiency=\"0\"/>";
    REQUIRE(xml.find(two) != std::string::npos);
    xml.replace(xml.find(two), two.size(),
                "<cpukind cpuset=\"0x00005000\" forced_efficiency=\"0\"/>"
                "<cpukind cpuset=\"0x00000500\" forced_efficiency=\"0\"/>");
    xml.replace(xml.rfind("forced_efficiency=\"0\""), 21, "forced_efficiency=\"1\"");
    xml.replace(xml.rfind("forced_efficiency=\"1\""), 21, "forced_efficiency=\"2\"");
    const auto t = topology_from_xml(xml);
    REQUIRE(t);
    check_consistent(*t);
    for (const logical_cpu& cpu : t->cpus) {
        INFO("CPU " << cpu.os_index);
        CHECK(cpu.faster_kinds == (cpu.os_index == 8 || cpu.os_index == 10 ? 1u : 0u));
        CHECK((cpu.kind == cpu_kind::efficiency) == (cpu.os_index >= 12));
    }
}

TEST_CASE("a file and its text are the same topology") {
    std::ifstream file{recorded("four_nodes")};
    std::ostringstream text;
    text << file.rdbuf();
    const auto parsed = topology_from_xml(text.str());
    REQUIRE(parsed);
    CHECK(*parsed == from_file("four_nodes"));
}

TEST_CASE("this machine: only CPUs that the process may use", "[kernel]") {
    const auto t = load_topology();
    REQUIRE(t);
    check_consistent(*t);
    CHECK(t->is_this_system());
    const auto allowed = os::native_threads{}.allowed_cpus();
    if (!allowed) {
        std::cout << "SKIP: " << allowed.error().cause.view() << '\n';
        return;
    }
    // Isolated CPUs are none that the process was given by default.
    CHECK((t->cpu_set() - os::isolated_cpus()) == (*allowed - os::isolated_cpus()));
    CHECK((*allowed - t->cpu_set()).empty());
    for (const logical_cpu& cpu : t->cpus)
        CHECK(cpu.isolated == os::isolated_cpus().contains(cpu.os_index));
    const auto shared = shared_topology();
    REQUIRE(shared);
    CHECK(*shared == *shared_topology());
    CHECK((*shared)->cpu_set() == t->cpu_set());
}

TEST_CASE("a narrower binding of the process narrows the topology, on demand", "[kernel]") {
    os::native_threads threads;
    const auto before = threads.current_pin();
    if (!before || before->count() < 2) {
        std::cout << "SKIP: needs two CPUs that this thread may use\n";
        return;
    }
    const os::cpu_set one = os::cpu_set::of(before->next(0));
    const auto pinned = threads.pin_current_thread(one);
    if (!pinned && pinned.error() == errc::permission_denied) {
        std::cout << "SKIP: " << pinned.error().cause.view() << '\n';
        return;
    }
    REQUIRE(pinned);
    const auto narrow = load_topology();
    const auto wide = load_topology({.honour_binding = false});
    REQUIRE(threads.pin_current_thread(*before));
    REQUIRE(narrow);
    REQUIRE(wide);
    CHECK(narrow->cpu_set() == one);
    CHECK(wide->cpu_set().count() >= before->count());
    check_consistent(*narrow);
}

TEST_CASE("a topology that is kept: a failure is tried again, a success is not") {
    topology_reading::kept_topology kept;
    unsigned loads = 0;
    const auto fails = [&]() -> result<cpu_topology> {
        ++loads;
        return fail(errc::exhausted, "no memory", "free some");
    };
    const auto works = [&]() -> result<cpu_topology> {
        ++loads;
        return make_topology({});
    };
    CHECK(kept.get(fails).error() == errc::exhausted);
    const auto first = kept.get(works);
    REQUIRE(first);
    CHECK((*first)->cpus.size() == 8);
    CHECK(kept.get(fails) == first);
    CHECK(loads == 2);
}

#if defined(__linux__)

TEST_CASE("a sandbox that hides /sys or /proc: memory is known, and only allowed CPUs are",
          "[kernel]") {
    const bool sys_too = GENERATE(false, true);
    os::native_threads threads;
    const auto before = threads.current_pin();
    REQUIRE(before);
    // Without /sys hwloc only counts the CPUs, and numbers them from 0.
    unsigned cpu = before->next(0);
    while (!sys_too && before->next(cpu + 1) < os::cpu_set::capacity)
        cpu = before->next(cpu + 1);
    // In a child that sees empty folders instead and is bound to one CPU.
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        const bool hidden =
            (::unshare(CLONE_NEWNS) == 0 || ::unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0) &&
            ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
            (!sys_too || ::mount("none", "/sys", "tmpfs", 0, nullptr) == 0) &&
            ::mount("none", "/proc", "tmpfs", 0, nullptr) == 0 &&
            threads.pin_current_thread(os::cpu_set::of(cpu));
        if (!hidden) ::_exit(3);
        const auto t = load_topology();
        if (!t) ::_exit(4);
        if (t->memory_node_count() == 0) ::_exit(5);
        ::_exit(t->cpu_set() == os::cpu_set::of(cpu) ? 0 : 6);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    REQUIRE(WIFEXITED(status));
    if (WEXITSTATUS(status) == 3) {
        std::cout << "SKIP: this process may not hide /sys and /proc from a child\n";
        return;
    }
    if (sys_too && cpu != 0 && WEXITSTATUS(status) == 4) {
        std::cout << "SKIP: without /sys hwloc does not find CPU 0 among the allowed\n";
        return;
    }
    CHECK(WEXITSTATUS(status) == 0);
}

#endif

TEST_CASE("a machine described by the environment is loaded and flagged") {
    const environment synthetic{"HWLOC_SYNTHETIC", "package:2 core:2 pu:2"};
    const auto t = load_topology();
    REQUIRE(t);
    CHECK(t->cpus.size() == 8);
    CHECK_FALSE(t->is_this_system());
}

TEST_CASE("regular machines are consistent and have the shape asked for") {
    struct row {
        regular_machine machine;
        std::size_t nodes, cores, cpus;
    };
    const row r = GENERATE(values<row>({
        {{}, 1, 4, 8},
        {{1, 1, 1, 1, 1u << 30}, 1, 1, 1},
        {{2, 4, 8, 2, 1u << 30}, 8, 64, 128},
        {{4, 1, 3, 4, 0}, 4, 12, 48},
    }));
    const cpu_topology t = make_topology(r.machine);
    check_consistent(t);
    CHECK(t.nodes.size() == r.nodes);
    CHECK(t.cores.size() == r.cores);
    CHECK(t.cpus.size() == r.cpus);
    CHECK(t.caches.size() == 2 * r.cores + r.nodes);
    CHECK(t.nodes[0].memory_bytes == r.machine.bytes_per_node);
    CHECK_FALSE(t.is_this_system());
}

TEST_CASE("a machine without some CPUs is what hwloc reads of such a machine") {
    // The file has CPUs 0 to 7 of four cores, of which 3, 6 and 7 are not allowed.
    const cpu_topology whole = make_topology({1, 1, 4, 2, 0});
    os::cpu_set left;
    for (const unsigned cpu : {0u, 1u, 2u, 4u, 5u, 99u})
        left.insert(cpu);
    const cpu_topology t = restricted_to(whole, left);
    check_consistent(t);
    const cpu_topology read = from_file("restricted");
    CHECK(t.cpus.size() == read.cpus.size());
    CHECK(t.cores.size() == read.cores.size());
    for (std::size_t i = 0; i < t.cpus.size(); ++i) {
        CHECK(t.cpus[i].os_index == read.cpus[i].os_index);
        CHECK(t.cpus[i].smt_index == read.cpus[i].smt_index);
        CHECK(t.cpus[i].core == read.cpus[i].core);
    }
    CHECK(caches_of_level(t, 1) == 3);
    CHECK(caches_of_level(t, 3) == 1);
}

TEST_CASE("a node that loses its CPUs is memory alone; nothing else changes") {
    const cpu_topology whole = from_file("four_nodes");
    CHECK(restricted_to(whole, whole.cpu_set()) == whole);
    const cpu_topology t = restricted_to(whole, whole.cpu_set() - whole.cpu_set_of_node(1));
    check_consistent(t);
    REQUIRE(t.nodes.size() == 4);
    CHECK(t.nodes[1].cpus.empty());
    CHECK(t.nodes[1].memory_bytes == whole.nodes[1].memory_bytes);
    CHECK(t.distances == whole.distances);
    CHECK(t.cpus.size() == 12);
    // A core that loses its first thread counts from 0 again.
    CHECK(restricted_to(whole, os::cpu_set::of(1)).cpus[0].smt_index == 0);
    CHECK(restricted_to(whole, {}).empty());
}

TEST_CASE("regular machines that cannot be are empty") {
    const auto machine = GENERATE(values<regular_machine>({
        {0, 1, 1, 1, 0},
        {1, 0, 1, 1, 0},
        {1, 1, 0, 1, 0},
        {1, 1, 1, 0, 0},
        {~0u, ~0u, ~0u, ~0u, 0},
        {1, 1, 4096, 4, 0},
    }));
    CHECK(make_topology(machine).empty());
}

TEST_CASE("a topology prints its nodes and caches") {
    std::ostringstream out;
    out << from_file("odd_nodes");
    CHECK_THAT(out.str(), Catch::Contains("2 packages, 5 NUMA nodes, 8 cores, 16 CPUs"));
    CHECK_THAT(out.str(), Catch::Contains("described, not this system"));
    CHECK_THAT(out.str(), Catch::Contains("node 1: 0 MiB, CPUs 4-7"));
    CHECK_THAT(out.str(), Catch::Contains("node 4: 4096 MiB, CPUs none"));
    CHECK_THAT(out.str(), Catch::Contains("L3 32768 KiB: CPUs 8-11"));
}

TEST_CASE("what a topology does not have is not found") {
    const cpu_topology t = make_topology({});
    CHECK(t.find_cpu(99) == no_index);
    CHECK(t.find_node(7) == no_index);
    CHECK(t.cpu_set_of_node(no_index).empty());
    CHECK(t.distance(0, 9) == 20);
    CHECK(cpu_topology{}.empty());
}
