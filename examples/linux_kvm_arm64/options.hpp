/// The command line.
#pragma once

#include <vm_accel/core/result.hpp>

#include <charconv>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace linux_vmm {

inline constexpr std::string_view usage =
    "linux_kvm_arm64 --kernel IMAGE --initrd CPIO --disk FILE [--pci-disk FILE]\n"
    "                [--vcpus N] [--memory MIB] [--numa-nodes N] [--nodes N]\n"
    "                [--cmdline TEXT]\n"
    "                [--features stage1|full] [--can-stall] [--inject] [--report FILE.json]\n"
    "                [--timeout SECONDS] [--suspend-after REQUESTS --state FILE | --resume FILE]\n"
    "                [--record FILE]\n"
    "\n"
    "Boots an arm64 Linux kernel under KVM with disks behind an SMMUv3 of this library.\n"
    "  --kernel IMAGE      an uncompressed arm64 Image\n"
    "  --initrd CPIO       its initial file system\n"
    "  --disk FILE         the disk; the guest writes to it\n"
    "  --pci-disk FILE     a second one, on a PCI bus with message signalled interrupts\n"
    "  --vcpus N           1 to 64 (1)\n"
    "  --memory MIB        guest RAM, 64 or more, a multiple of 2 MiB per node (256)\n"
    "  --numa-nodes N      host nodes to split the RAM over (1)\n"
    "  --nodes N           NUMA nodes that the guest has (as many as --numa-nodes)\n"
    "  --cmdline TEXT      kernel command line (console=ttyAMA0 panic=-1)\n"
    "  --features SET      what the SMMU has: stage1, or full for all of the library (stage1)\n"
    "  --can-stall         the disk waits for its faults, if the SMMU has stalls: for a guest "
    "whose\n"
    "                      driver answers them\n"
    "  --inject            writes to the test register at 0x0b000000 start DMA that must fail\n"
    "  --report FILE.json  where to write the report for programs\n"
    "  --timeout SECONDS   stop the guest after that time, exit status 3 (never)\n"
    "  --suspend-after N   when the first disk has served N requests, save the machine into "
    "--state\n"
    "                      and end with exit status 5, in the middle of the guest's I/O\n"
    "  --state FILE        where to save it\n"
    "  --resume FILE       go on with a saved machine; all else as when it was saved\n"
    "  --record FILE       write what the disks and the guest's driver do to the SMMU's TLB "
    "there:\n"
    "                      a trace for examples/policy_lab\n"
    "The guest's console is standard output. Exit status: 0 when the guest powered off, 1 when\n"
    "the machine could not be set up or an injected DMA was not refused, 2 for a wrong command\n"
    "line, 3 after the timeout, 4 when the guest ended otherwise, 5 when it was suspended.\n";

struct options {
    std::string kernel, initrd, disk, report;
    std::string pci_disk;            ///< empty: no PCI bus
    std::string record;              ///< where a trace goes; empty: none
    std::string state;               ///< where a suspended machine goes
    std::string resume;              ///< a suspended machine to go on with; empty: boot
    std::uint64_t suspend_after = 0; ///< requests of the first disk; 0: never
    std::string command_line = "console=ttyAMA0 panic=-1";
    std::uint32_t vcpus = 1;
    std::uint64_t memory_mib = 256;
    std::uint32_t numa_nodes = 1;      ///< of the host
    std::uint32_t nodes = 0;           ///< of the guest; 0 while parsing: as many as the host's
    std::uint32_t timeout_seconds = 0; ///< 0: none
    bool inject = false;
    bool full_features = false;
    bool can_stall = false;
    bool help = false;
};

/// Error: invalid_argument.
[[nodiscard]] inline vm_accel::result<options>
parse_options(std::span<const char* const> arguments) {
    using vm_accel::errc;
    using vm_accel::fail;
    using text = vm_accel::fixed_text<160>;
    options parsed;
    for (std::size_t i = 0; i < arguments.size(); ++i) {
        const std::string_view name = arguments[i];
        if (name == "--help") {
            parsed.help = true;
            return parsed;
        }
        if (name == "--can-stall") {
            parsed.can_stall = true;
            continue;
        }
        if (name == "--inject") {
            parsed.inject = true;
            continue;
        }
        if (i + 1 == arguments.size()) {
            return fail(errc::invalid_argument,
                        text{name}.append(": unknown, or its value is missing"), "see --help");
        }
        const std::string_view value = arguments[++i];
        const auto number = [&](auto& into, std::uint64_t least, std::uint64_t most) {
            std::uint64_t n = 0;
            const auto [end, bad] = std::from_chars(value.data(), value.data() + value.size(), n);
            if (bad != std::errc{} || end != value.data() + value.size() || n < least || n > most) {
                return false;
            }
            into = static_cast<std::remove_reference_t<decltype(into)>>(n);
            return true;
        };
        bool good = true;
        if (name == "--kernel") {
            parsed.kernel = value;
        } else if (name == "--initrd") {
            parsed.initrd = value;
        } else if (name == "--disk") {
            parsed.disk = value;
        } else if (name == "--pci-disk") {
            parsed.pci_disk = value;
        } else if (name == "--record") {
            parsed.record = value;
        } else if (name == "--state") {
            parsed.state = value;
        } else if (name == "--resume") {
            parsed.resume = value;
        } else if (name == "--suspend-after") {
            good = number(parsed.suspend_after, 1, 1u << 30);
        } else if (name == "--report") {
            parsed.report = value;
        } else if (name == "--cmdline") {
            parsed.command_line = value;
        } else if (name == "--features") {
            if (value != "stage1" && value != "full") {
                return fail(
                    errc::invalid_argument,
                    text{"--features: "}.append(value).append(" is neither stage1 nor full"),
                    "see --help");
            }
            parsed.full_features = value == "full";
        } else if (name == "--vcpus") {
            good = number(parsed.vcpus, 1, 64);
        } else if (name == "--memory") {
            good = number(parsed.memory_mib, 64, 1u << 20);
        } else if (name == "--numa-nodes") {
            good = number(parsed.numa_nodes, 1, 8);
        } else if (name == "--nodes") {
            good = number(parsed.nodes, 1, 8);
        } else if (name == "--timeout") {
            good = number(parsed.timeout_seconds, 0, 1u << 30);
        } else {
            return fail(errc::invalid_argument, text{name}.append(": unknown"), "see --help");
        }
        if (!good) {
            return fail(errc::invalid_argument,
                        text{name}.append(": ").append(value).append(" is no number in its range"),
                        "see --help");
        }
    }
    if ((parsed.suspend_after != 0) == parsed.state.empty()) {
        return fail(errc::invalid_argument, "--suspend-after and --state need each other",
                    "see --help");
    }
    if (parsed.kernel.empty() || parsed.initrd.empty() || parsed.disk.empty()) {
        return fail(errc::invalid_argument, "--kernel, --initrd and --disk are needed",
                    "see --help");
    }
    if (parsed.nodes == 0) parsed.nodes = parsed.numa_nodes;
    if (parsed.memory_mib % (2 * std::uint64_t{parsed.nodes}) != 0) {
        return fail(errc::invalid_argument, "--memory: not a multiple of 2 MiB for each guest node",
                    "choose another size");
    }
    return parsed;
}

} // namespace linux_vmm
