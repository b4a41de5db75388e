/// Memory and NUMA nodes on Linux, by raw system calls: no libnuma is needed.
/// On other systems this header is empty.
#pragma once

#if defined(__linux__)

#include <vm_accel/core/atomic_view.hpp>
#include <vm_accel/os/descriptor.hpp>
#include <vm_accel/os/linux_interleaving.hpp>
#include <vm_accel/os/linux_mapping.hpp>
#include <vm_accel/os/linux_small_file.hpp>
#include <vm_accel/os/memory_features.hpp>
#include <vm_accel/os/memory_platform.hpp>

#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace vm_accel::inline v0::os {

/// Models memory_platform, huge_page_pools, lockable_memory and sealable_memory. Stateless; any
/// thread may call anything.
struct linux_memory : linux_interleaving {
    static constexpr std::string_view name = "linux";
    static constexpr bool can_bind = true;
    static constexpr bool is_this_system = true;
    /// The most nodes that a Linux kernel can be configured for.
    static constexpr unsigned max_nodes = 1024;

    [[nodiscard]] std::uint64_t page_bytes() const noexcept {
        return static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
    }

    /// The size of a transparent huge page; 2 MiB where the kernel does not tell.
    [[nodiscard]] std::uint64_t huge_page_bytes() const noexcept {
        linux_small_file file;
        if (!file.read("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")) return 2u << 20;
        const std::uint64_t bytes = linux_small_file::number_at(file.view());
        return std::has_single_bit(bytes) ? bytes : 2u << 20;
    }

    /// mmap(2), or memfd_create(2) and mmap when a shared file is asked for.
    [[nodiscard]] result<raw_mapping> map(const mapping_request& request) const noexcept {
        return linux_mapping::map(request, page_bytes(), 0);
    }

    /// The same of hugetlb pages of that size, reserved in the pools.
    [[nodiscard]] result<raw_mapping> map_huge(const mapping_request& request,
                                               std::uint64_t huge_page_bytes) const noexcept {
        return linux_mapping::map(request, page_bytes(), huge_page_bytes);
    }

    void unmap(const raw_mapping& mapping) const noexcept { linux_mapping::unmap(mapping); }

    /// F_ADD_SEALS against shrinking, growing and further seals.
    [[nodiscard]] result<> seal(const raw_mapping& mapping) const noexcept {
        return linux_mapping::seal(mapping);
    }

    /// mlock2(2) (Linux 4.4), of pages as they come.
    [[nodiscard]] result<> lock(std::byte* address, std::uint64_t bytes) const noexcept {
        constexpr unsigned lock_on_fault = 1;
        if (::syscall(SYS_mlock2, address, bytes, lock_on_fault) == 0) return {};
        const int reason = errno;
        fixed_text<160> what{"locking "};
        what.append_number(bytes >> 20).append(" MiB of guest memory");
        struct ::rlimit limit{};
        // No permission: the limit is 0. No memory: the limit, or that on mappings.
        if ((reason == EPERM || reason == ENOMEM) && ::getrlimit(RLIMIT_MEMLOCK, &limit) == 0 &&
            limit.rlim_cur != RLIM_INFINITY)
            return fail(errc::permission_denied,
                        what.append(": RLIMIT_MEMLOCK is ")
                            .append_number(limit.rlim_cur >> 10)
                            .append(" KiB"),
                        "raise it (ulimit -l, LimitMEMLOCK=), give the process CAP_IPC_LOCK, or do "
                        "not ask for locked memory",
                        reason);
        return fail_with(reason, what,
                         reason == ENOSYS ? "use Linux 4.4 or later"
                                          : cure_of(reason, "allow mlock2 in the container's "
                                                            "seccomp profile"));
    }

    /// mbind(2). Does not move pages that exist already.
    [[nodiscard]] result<> bind(std::byte* address, std::uint64_t bytes, unsigned node,
                                bind_mode mode) const noexcept {
        node_mask mask{};
        if (node >= max_nodes)
            return fail(errc::invalid_argument,
                        fixed_text<160>{"binding memory to node "}.append_number(node).append(
                            ": no kernel has so many nodes"),
                        "choose a node of the topology");
        mask[node / word_bits] = 1ul << (node % word_bits);
        const int policy = mode == bind_mode::bind     ? MPOL_BIND
                           : mode == bind_mode::prefer ? MPOL_PREFERRED
                                                       : MPOL_DEFAULT;
        const bool any = mode == bind_mode::none;
        if (::syscall(SYS_mbind, address, bytes, policy, any ? nullptr : mask.data(),
                      any ? 0ul : max_nodes + 1ul, 0u) == 0)
            return {};
        const int reason = errno;
        return fail_with(
            reason, fixed_text<160>{"binding memory to node "}.append_number(node).view(),
            reason == EINVAL ? "choose a node that has memory and is in the process's cpuset"
                             : cure_of(reason, "allow mbind in the container's seccomp profile"));
    }

    /// get_mempolicy(2) for an address. Interleaving policies read as `none`.
    [[nodiscard]] result<memory_policy> policy_of(const std::byte* address) const noexcept {
        int mode = 0;
        node_mask mask{};
        if (::syscall(SYS_get_mempolicy, &mode, mask.data(), max_nodes + 1ul, address,
                      static_cast<unsigned long>(MPOL_F_ADDR)) != 0)
            return fail_with(
                errno, "get_mempolicy",
                cure_of(errno, "allow get_mempolicy in the container's seccomp profile"));
        memory_policy policy;
        unsigned nodes = 0;
        for (unsigned i = 0; i < mask.size(); ++i) {
            if (mask[i] != 0 && nodes == 0)
                policy.node = i * word_bits + static_cast<unsigned>(std::countr_zero(mask[i]));
            nodes += static_cast<unsigned>(std::popcount(mask[i]));
        }
        if (nodes != 0 && mode == MPOL_BIND) policy.mode = bind_mode::bind;
        if (nodes != 0 && mode == MPOL_PREFERRED) policy.mode = bind_mode::prefer;
        if (policy.mode == bind_mode::none) policy.node = 0;
        policy.only_that_node = policy.mode != bind_mode::none && nodes == 1;
        return policy;
    }

    /// madvise(2). Accepted advice is no proof of huge pages.
    [[nodiscard]] result<> advise_huge_pages(std::byte* address,
                                             std::uint64_t bytes) const noexcept {
        if (::madvise(address, bytes, MADV_HUGEPAGE) == 0) return {};
        const int reason = errno;
        return fail_with(reason == EINVAL ? ENOSYS : reason, "huge-page advice",
                         "use a kernel with CONFIG_TRANSPARENT_HUGEPAGE, or do not ask for it");
    }

    /// MADV_POPULATE_WRITE (Linux 5.14), or one atomic write of nothing per page.
    [[nodiscard]] result<> populate(std::byte* address, std::uint64_t bytes) const noexcept {
        const int reason = populate_by_advice(address, bytes);
        if (reason == 0) return {};
        if (reason != EINVAL && reason != ENOSYS) return refuse_pages(reason);
        const std::uint64_t page = page_bytes();
        for (std::uint64_t at = 0; at < bytes; at += page) {
            auto& first = *reinterpret_cast<unsigned char*>(address + at);
            atomic_view<unsigned char>{first}.fetch_or(0, std::memory_order_relaxed);
        }
        return {};
    }

    /// MADV_POPULATE_WRITE alone: where a pool is empty, a touch would end the process.
    [[nodiscard]] result<> populate_huge(std::byte* address, std::uint64_t bytes) const noexcept {
        const int reason = populate_by_advice(address, bytes);
        if (reason == 0) return {};
        if (reason == EINVAL || reason == ENOSYS)
            return fail_with(ENOSYS, "populating huge pages without risk (MADV_POPULATE_WRITE)",
                             "use Linux 5.14 or later, or transparent huge pages");
        if (reason == EFAULT || reason == ENOMEM)
            return fail(
                errc::exhausted,
                "populating huge pages: the pool of a node, or the cgroup's share, is empty",
                "raise nr_hugepages of that node, or the cgroup's limit", reason);
        return refuse_pages(reason);
    }

    /// move_pages(2) as a query: nothing moves.
    [[nodiscard]] result<> page_nodes(const std::byte* address, std::uint64_t stride,
                                      std::span<int> nodes) const noexcept {
        constexpr std::size_t batch = 512;
        std::array<const void*, batch> pages{};
        for (std::size_t done = 0; done < nodes.size();) {
            const std::size_t count = std::min(batch, nodes.size() - done);
            for (std::size_t i = 0; i < count; ++i)
                pages[i] = address + (done + i) * stride;
            int* const status = nodes.data() + done;
            if (::syscall(SYS_move_pages, 0, count, pages.data(), nullptr, status, 0) < 0)
                return fail_with(
                    errno, "asking where pages lie (move_pages)",
                    cure_of(errno, "allow move_pages in the container's seccomp profile"));
            for (std::size_t i = 0; i < count; ++i) {
                if (status[i] < 0)
                    status[i] =
                        status[i] == -ENOENT || status[i] == -EFAULT ? page_absent : page_unknown;
            }
            done += count;
        }
        return {};
    }

    /// Free memory and page cache of one node, from sysfs.
    [[nodiscard]] result<std::uint64_t> free_bytes(unsigned node) const noexcept {
        fixed_text<64> path{"/sys/devices/system/node/node"};
        path.append_number(node).append("/meminfo");
        const fixed_text<64> shown = path;
        const char* const terminated = path.append(nul).view().data();
        linux_small_file file;
        if (!file.read(terminated))
            return fail_with(errno, shown, "mount /sys, or let the planner use the node's size");
        const auto kib = [&](std::string_view key) {
            const std::size_t at = file.view().find(key);
            return at == std::string_view::npos
                       ? std::uint64_t{0}
                       : linux_small_file::number_at(file.view().substr(at + key.size()));
        };
        const std::uint64_t kept = kept_kib(kib(" MemTotal:"));
        const std::uint64_t cache = kib(" Active(file):") + kib(" Inactive(file):");
        const std::uint64_t can_go =
            kib(" MemFree:") + kib(" SReclaimable:") / 2 + cache - std::min(cache / 2, kept);
        return (can_go - std::min(can_go, kept)) * 1024;
    }

    /// Pages of one node's hugetlb pool of that size that nobody has, from sysfs.
    [[nodiscard]] result<std::uint64_t>
    free_huge_pages(unsigned node, std::uint64_t huge_page_bytes) const noexcept {
        fixed_text<128> path{"/sys/devices/system/node/node"};
        path.append_number(node).append("/hugepages/hugepages-");
        path.append_number(huge_page_bytes >> 10).append("kB/free_hugepages");
        const fixed_text<128> shown = path;
        const char* const terminated = path.append(nul).view().data();
        linux_small_file file;
        if (file.read(terminated)) return linux_small_file::number_at(file.view());
        const int reason = errno;
        return fail_with(reason == ENOENT ? ENOSYS : reason, shown,
                         "ask for a size that /sys/kernel/mm/hugepages has, or mount /sys");
    }

private:
    static constexpr unsigned word_bits = sizeof(unsigned long) * 8;
    using node_mask = std::array<unsigned long, max_nodes / word_bits>;

    /// Of a node of that size, what nobody gets: the kernel's watermarks, the lowest zones and
    /// page tables. Memory bound to a node of which less is left ends a process of the
    /// kernel's choice, probably this one. vm.min_free_kbytes is shared out by size, and the
    /// high watermark lies half above it; 1/64 covers the rest (mm/page_alloc.c).
    [[nodiscard]] static std::uint64_t kept_kib(std::uint64_t node_kib) noexcept {
        constexpr std::string_view total_key = "MemTotal:";
        linux_small_file minimum;
        linux_small_file all;
        if (!minimum.read("/proc/sys/vm/min_free_kbytes") || !all.read("/proc/meminfo") ||
            !all.view().starts_with(total_key))
            return node_kib / 64;
        const auto total = linux_small_file::number_at(all.view().substr(total_key.size()));
        const double share =
            static_cast<double>(node_kib) / static_cast<double>(std::max<std::uint64_t>(total, 1));
        const auto least = static_cast<double>(linux_small_file::number_at(minimum.view()));
        return node_kib / 64 + static_cast<std::uint64_t>(least * std::min(share, 1.0) * 1.5);
    }

    /// What helps when a call about nodes fails with `reason`; `if_refused` where
    /// somebody forbids it.
    [[nodiscard]] static std::string_view cure_of(int reason,
                                                  std::string_view if_refused) noexcept {
        if (reason == ENOSYS) return "switch NUMA placement off, or use a kernel with CONFIG_NUMA";
        if (reason == EPERM || reason == EACCES) return if_refused;
        if (reason == ENOMEM) return "free memory, or raise vm.max_map_count";
        return "see the manual page of the call";
    }

    /// Ends a path for the system.
    static constexpr std::string_view nul{"\0", 1};

    /// 0, or the errno that stays after interruptions.
    [[nodiscard]] static int populate_by_advice(std::byte* address, std::uint64_t bytes) noexcept {
        constexpr int populate_write = 23; // absent from older headers
        for (;;) {
            if (::madvise(address, bytes, populate_write) == 0) return 0;
            if (errno != EINTR && errno != EAGAIN) return errno;
        }
    }

    [[nodiscard]] static tl::unexpected<error> refuse_pages(int reason) noexcept {
        return fail_with(reason, "populating guest memory",
                         "ask for less memory, or free some on the node");
    }
};

static_assert(huge_page_pools<linux_memory> && lockable_memory<linux_memory> &&
              sealable_memory<linux_memory>);

} // namespace vm_accel::inline v0::os

#endif
