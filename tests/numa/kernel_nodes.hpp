/// What the kernel says of NUMA nodes, asked without the library: /sys, /proc and
/// system calls. Linux only.
#pragma once

#if defined(__linux__)

#include <vm_accel/os/cpu_set.hpp>

#include <linux/filter.h>
#include <linux/mempolicy.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace kernel_nodes {

using page_counts = std::map<int, std::uint64_t>; ///< pages by node, or by minus an errno

[[nodiscard]] inline std::string text_of(const std::string& path) {
    std::ifstream file{path};
    return {std::istreambuf_iterator<char>{file}, {}};
}

/// "0-1,3" as numbers.
[[nodiscard]] inline std::set<unsigned> numbers_in(const std::string& list) {
    std::set<unsigned> found;
    std::istringstream text{list};
    for (std::string part; std::getline(text, part, ',');) {
        std::istringstream range{part};
        unsigned first = 0;
        if (!(range >> first)) continue;
        unsigned last = first;
        char dash = 0;
        if (range >> dash) range >> last;
        for (unsigned n = first; n <= last; ++n)
            found.insert(n);
    }
    return found;
}

/// The nodes of a state: "online", "has_memory", "has_cpu".
[[nodiscard]] inline std::set<unsigned> node_list(const std::string& state) {
    return numbers_in(text_of("/sys/devices/system/node/" + state));
}
[[nodiscard]] inline std::set<unsigned> cpus_of(unsigned node) {
    return numbers_in(text_of("/sys/devices/system/node/node" + std::to_string(node) + "/cpulist"));
}
[[nodiscard]] inline unsigned node_of_cpu(unsigned cpu) {
    for (const unsigned node : node_list("online"))
        if (cpus_of(node).contains(cpu)) return node;
    return 0;
}

/// From a node to each node, by number; those that are not online are 255.
[[nodiscard]] inline std::vector<unsigned> distances_of(unsigned node) {
    std::istringstream text{
        text_of("/sys/devices/system/node/node" + std::to_string(node) + "/distance")};
    std::vector<unsigned> row;
    for (const unsigned to : node_list("online")) {
        row.resize(to, 255);
        unsigned distance = 255;
        text >> distance;
        row.push_back(distance);
    }
    return row;
}

/// MemFree of a node, in bytes.
[[nodiscard]] inline std::uint64_t free_memory(unsigned node) {
    const std::string text =
        text_of("/sys/devices/system/node/node" + std::to_string(node) + "/meminfo");
    const std::size_t at = text.find("MemFree:");
    return at == std::string::npos ? 0 : std::stoull(text.substr(at + 8)) * 1024;
}

/// A list in /proc about the process's main thread, or about the calling thread.
[[nodiscard]] inline std::set<unsigned> status_list(const std::string& key,
                                                    const std::string& path = "/proc/self/status") {
    const std::string text = text_of(path);
    const std::size_t at = text.find(key + ":");
    if (at == std::string::npos) return {};
    const std::size_t from = at + key.size() + 1;
    return numbers_in(text.substr(from, text.find('\n', from) - from));
}
[[nodiscard]] inline std::set<unsigned> allowed_nodes() { return status_list("Mems_allowed_list"); }
[[nodiscard]] inline std::set<unsigned> allowed_cpus() { return status_list("Cpus_allowed_list"); }

[[nodiscard]] inline std::set<unsigned> in_common(const std::set<unsigned>& a,
                                                  const std::set<unsigned>& b) {
    std::set<unsigned> both;
    for (const unsigned n : a)
        if (b.contains(n)) both.insert(n);
    return both;
}

[[nodiscard]] inline std::set<unsigned> members(const vm_accel::os::cpu_set& set) {
    std::set<unsigned> found;
    for (unsigned cpu = set.next(0); cpu < vm_accel::os::cpu_set::capacity; cpu = set.next(cpu + 1))
        found.insert(cpu);
    return found;
}

/// The node of the page at an address, or minus an errno: absent, or what refused.
[[nodiscard]] inline int node_of_page(const void* address) {
    int status = 0;
    if (::syscall(SYS_move_pages, 0, 1ul, &address, nullptr, &status, 0) < 0) return -errno;
    return status;
}

/// The pages of 4 KiB of a range by where they lie.
[[nodiscard]] inline page_counts pages_by_node(const std::byte* start, std::uint64_t bytes) {
    page_counts counts;
    std::vector<const void*> pages;
    std::vector<int> status;
    for (std::uint64_t at = 0; at < bytes; at += 4096 * pages.size()) {
        pages.clear();
        for (std::uint64_t i = at; i < bytes && pages.size() < 1024; i += 4096)
            pages.push_back(start + i);
        status.assign(pages.size(), 0);
        if (::syscall(SYS_move_pages, 0, pages.size(), pages.data(), nullptr, status.data(), 0) < 0)
            status.assign(pages.size(), -errno);
        for (const int node : status)
            ++counts[node];
    }
    return counts;
}

/// 0 if this process may bind memory to the node, else an errno.
[[nodiscard]] inline int why_not_bindable(unsigned node) {
    std::array<unsigned long, 16> mask{};
    mask[node / 64] = 1ul << (node % 64);
    void* const page = ::mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const long done = ::syscall(SYS_mbind, page, 4096ul, MPOL_BIND, mask.data(), 1025ul, 0u);
    const int reason = done == 0 ? 0 : errno;
    ::munmap(page, 4096);
    return reason;
}

/// Makes mbind fail with EPERM for the calling thread and those it starts. False
/// where the kernel has no filters.
[[nodiscard]] inline bool refuse_binding() noexcept {
    std::array<sock_filter, 4> program{{
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mbind, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    }};
    const sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
    return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

} // namespace kernel_nodes

#endif
