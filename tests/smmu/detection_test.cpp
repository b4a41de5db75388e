/// Host SMMU detection against machines made of files.
#include "os/fake_root.hpp"

#include <vm_accel/smmu/host/detection.hpp>

#include <sstream>

using namespace vm_accel;

namespace {

constexpr std::string_view platform = "/sys/devices/platform/";
const std::string smmu_compatible{"arm,smmu-v3\0", 12};

/// A platform device as a device tree kernel shows it.
void add_device_tree_device(const fake_root& fake, const std::string& device,
                            const std::string& node, bool bound) {
    const std::string path = std::string{platform} + device;
    fake.file("/proc/device-tree/" + node + "/compatible", smmu_compatible);
    fake.directory(path);
    fake.file(path + "/of_node/compatible", smmu_compatible);
    if (bound) fake.link(path + "/driver", "../../../bus/platform/drivers/arm-smmu-v3");
}

} // namespace

TEST_CASE("a host without /sys and /proc has no SMMU") {
    const fake_root fake;
    CHECK(detect_host_smmus(fake.root()).empty());
    CHECK_FALSE(is_host_smmu_available(fake.root()));
}

TEST_CASE("an x86 host has no SMMU, whatever other IOMMUs it has") {
    const fake_root fake;
    fake.directory("/sys/class/iommu/dmar0");
    fake.directory("/sys/class/iommu/ivhd0");
    fake.directory("/sys/devices/platform/serial8250");
    fake.file("/proc/modules", "kvm 1 0 - Live 0x0\n");
    CHECK_FALSE(is_host_smmu_available(fake.root()));
}

TEST_CASE("an SMMU of an older version is not an SMMUv3") {
    const fake_root fake;
    fake.directory("/sys/class/iommu/smmu.0x0000000009050000");
    fake.file("/sys/devices/platform/9050000.iommu/of_node/compatible",
              std::string{"arm,mmu-500\0arm,smmu-v2\0", 24});
    fake.file("/proc/device-tree/iommu@9050000/compatible",
              std::string{"arm,mmu-500\0arm,smmu-v2\0", 24});
    CHECK(detect_host_smmus(fake.root()).empty());
}

TEST_CASE("a device tree host with a bound driver is seen once, by all its traces") {
    const fake_root fake;
    add_device_tree_device(fake, "9050000.iommu", "iommu@9050000", true);
    fake.link("/sys/class/iommu/smmu3.0x0000000009050000",
              "../../devices/platform/9050000.iommu/iommu/smmu3.0x0000000009050000");
    const auto found = detect_host_smmus(fake.root());
    REQUIRE(found.size() == 1);
    CHECK(found[0] ==
          smmu_device_info{"9050000.iommu", "/sys/devices/platform/9050000.iommu", "SMMUv3", true});
    CHECK(is_host_smmu_available(fake.root()));
}

TEST_CASE("without a driver the device is there and not enabled") {
    const fake_root fake;
    add_device_tree_device(fake, "9050000.smmuv3", "smmuv3@9050000", false);
    const auto found = detect_host_smmus(fake.root());
    REQUIRE(found.size() == 1);
    CHECK(found[0].name == "9050000.smmuv3");
    CHECK_FALSE(found[0].enabled);
    CHECK(is_host_smmu_available(fake.root()));
}

TEST_CASE("a driver link to another driver does not enable it") {
    const fake_root fake;
    add_device_tree_device(fake, "9050000.iommu", "iommu@9050000", false);
    fake.link("/sys/devices/platform/9050000.iommu/driver",
              "../../../bus/platform/drivers/vfio-platform");
    CHECK_FALSE(detect_host_smmus(fake.root()).at(0).enabled);
}

TEST_CASE("ACPI hosts name their SMMUs arm-smmu-v3.N.auto") {
    const fake_root fake;
    for (const char* name : {"arm-smmu-v3.0.auto", "arm-smmu-v3.12.auto"}) {
        fake.link(std::string{platform} + name + "/driver",
                  "../../../bus/platform/drivers/arm-smmu-v3");
    }
    // Performance counters and other names are no SMMU.
    fake.directory("/sys/devices/platform/arm-smmu-v3-pmcg.1.auto");
    fake.directory("/sys/devices/platform/arm-smmu-v3.x.auto");
    fake.directory("/sys/devices/platform/arm-smmu-v3..auto");
    const auto found = detect_host_smmus(fake.root());
    REQUIRE(found.size() == 2);
    CHECK(found[0].name == "arm-smmu-v3.0.auto");
    CHECK(found[1].name == "arm-smmu-v3.12.auto");
    CHECK(found[0].enabled);
    CHECK(found[1].enabled);
}

TEST_CASE("an SMMU on a bus below the platform bus is found") {
    const fake_root fake;
    fake.file("/sys/devices/platform/soc/of_node/compatible", std::string{"simple-bus\0", 11});
    fake.file("/sys/devices/platform/soc/2b400000.iommu/of_node/compatible",
              std::string{"vendor,smmu\0arm,smmu-v3\0", 24});
    const auto found = detect_host_smmus(fake.root());
    REQUIRE(found.size() == 1);
    CHECK(found[0].path == "/sys/devices/platform/soc/2b400000.iommu");
}

TEST_CASE("a node that has no device is reported by its node") {
    const fake_root fake;
    fake.directory("/sys/devices/platform");
    fake.file("/proc/device-tree/soc/iommu@2b400000/compatible", smmu_compatible);
    fake.file("/proc/device-tree/soc/iommu@2b400000/status", std::string{"disabled\0", 9});
    fake.file("/proc/modules", "arm_smmu_v3 65536 0 - Live 0x0000000000000000\n");
    const auto found = detect_host_smmus(fake.root());
    REQUIRE(found.size() == 1);
    CHECK(found[0] == smmu_device_info{"2b400000.iommu", "/proc/device-tree/soc/iommu@2b400000",
                                       "SMMUv3", false});
}

TEST_CASE("without sysfs the module list says whether the driver is there") {
    struct row {
        const char* modules;
        std::string_view status;
        bool enabled;
    };
    const row& r = GENERATE_REF(values<row>({
        {"arm_smmu_v3 65536 2 - Live 0x0000000000000000\n", "", true},
        {"kvm 1 0 - Live 0x0\narm_smmu_v3 65536 2 - Live 0x0\n", "okay", true},
        {"arm_smmu_v3 65536 2 - Live 0x0\n", "disabled", false},
        {"arm_smmu_v3_pmu 65536 2 - Live 0x0\n", "", false},
        {"x_arm_smmu_v3 1 0 - Live 0x0\n", "", false},
        {"", "", false},
    }));
    const fake_root fake;
    fake.file("/proc/device-tree/iommu@9050000/compatible", smmu_compatible);
    fake.file("/proc/modules", r.modules);
    if (!r.status.empty()) {
        fake.file("/proc/device-tree/iommu@9050000/status", std::string{r.status}.append(1, '\0'));
    }
    const auto found = detect_host_smmus(fake.root());
    REQUIRE(found.size() == 1);
    CHECK(found[0].enabled == r.enabled);
}

TEST_CASE("a registered unit without a readable link keeps its class entry") {
    const fake_root fake;
    fake.directory("/sys/class/iommu/smmu3.0x0000000009050000");
    const auto found = detect_host_smmus(fake.root());
    REQUIRE(found.size() == 1);
    CHECK(found[0].name == "smmu3.0x0000000009050000");
    CHECK(found[0].path == "/sys/class/iommu/smmu3.0x0000000009050000");
    CHECK(found[0].enabled);
}

TEST_CASE("a device prints on one line") {
    std::ostringstream out;
    out << smmu_device_info{"9050000.iommu", "/sys/x", "SMMUv3", true} << '\n'
        << smmu_device_info{"arm-smmu-v3.0.auto", "/sys/y", "SMMUv3", false};
    CHECK(out.str() == "9050000.iommu: SMMUv3, enabled, /sys/x\n"
                       "arm-smmu-v3.0.auto: SMMUv3, not enabled, /sys/y");
}

TEST_CASE("this host answers without an error") {
    for (const smmu_device_info& device : detect_host_smmus()) {
        CHECK_FALSE(device.name.empty());
        CHECK_FALSE(device.path.empty());
    }
}
