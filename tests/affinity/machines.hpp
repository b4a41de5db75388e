/// Machines that plans are made for in tests, and what is read off a plan.
#pragma once

#include <vm_accel/affinity/vcpu_plan.hpp>
#include <vm_accel/topology/load.hpp>

#include <catch2/catch.hpp>

#include <sstream>
#include <string>
#include <vector>

namespace affinity_machines {

using namespace vm_accel;

/// A recorded machine by its name, any other by its synthetic description.
inline cpu_topology machine(const std::string& name) {
    const auto t =
        name.find(':') != std::string::npos
            ? topology_from_synthetic(name)
            : topology_from_xml_file(
                  (std::string{VM_ACCEL_TEST_DATA} + "/topology/" + name + ".xml").c_str());
    REQUIRE(t);
    return *t;
}

inline std::vector<unsigned> cpus_of(const vcpu_plan& plan) {
    std::vector<unsigned> cpus;
    for (const vcpu_assignment& to : plan.assignments)
        cpus.push_back(to.cpu);
    return cpus;
}

inline std::string text_of(const vcpu_plan& plan) {
    std::ostringstream out;
    out << plan;
    return out.str();
}

inline os::cpu_set set_of(const std::vector<unsigned>& cpus) {
    os::cpu_set set;
    for (const unsigned cpu : cpus)
        set.insert(cpu);
    return set;
}

} // namespace affinity_machines
