/// Distances of a CPU from nodes, out of folders that look like /sys.
#include "fake_root.hpp"

#include <vm_accel/os/node_distance.hpp>

#include <catch2/catch.hpp>

#include <string>
#include <vector>

using namespace vm_accel;
using found = std::vector<os::node_distance>;

TEST_CASE("distances of a CPU are those of its node, by the numbers of the nodes on line") {
    struct row {
        std::string node, online, distance;
        found expected;
    };
    const auto r = GENERATE(values<row>({
        {"node0", "0\n", "10\n", {{0, 10}}},
        {"node2", "0-3\n", "24 14 10 30\n", {{0, 24}, {1, 14}, {2, 10}, {3, 30}}},
        {"node5", "0,5,7-8\n", "21 10 31 255\n", {{0, 21}, {5, 10}, {7, 31}, {8, 255}}},
        {"node0", "0-1\n", "10\n", {}},
        {"node0", "0-1\n", "\n", {}},
        {"node0", "x\n", "10\n", {}},
        {"topology", "0\n", "10\n", {}},
    }));
    CAPTURE(r.node, r.online, r.distance);
    const fake_root machine;
    machine.file("/sys/devices/system/cpu/cpu4/" + r.node + "/cpulist", "4\n");
    machine.file("/sys/devices/system/node/online", r.online);
    machine.file("/sys/devices/system/node/" + r.node + "/distance", r.distance);
    CHECK(os::distances_from_cpu(4, machine.root()) == r.expected);
    CHECK(os::distances_from_cpu(3, machine.root()).empty());
}

TEST_CASE("without /sys no distance is known") {
    const fake_root nothing;
    CHECK(os::distances_from_cpu(0, nothing.root()).empty());
}
