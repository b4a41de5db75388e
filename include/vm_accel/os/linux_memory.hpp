/// Memory and NUMA nodes on Linux, by raw system calls: no libnuma is needed.
/// On other systems this header is empty.
#pragma once

#if defined(__linux__)

#include <vm_accel/os/descriptor.hpp>
#include <vm_accel/os/memory_platform.hpp>

#include <fcntl.h>
#include <linux/mempolicy.h>
#include <sys/mman.h>
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

/// Models memory_platform. Stateless; any thread may call anything.
struct linux_memory {
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
        text_file file;
        if (!file.read("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")) return 2u << 20;
        const std::uint64_t bytes = number_at(file.view());
        return std::has_single_bit(bytes) ? bytes : 2u << 20;
    }

    /// mmap(2), or memfd_create(2) and mmap when a shared file is asked for.
    [[nodiscard]] result<raw_mapping> map(const mapping_request& request) const noexcept {
        const std::uint64_t page = page_bytes();
        const std::uint64_t alignment = std::max(request.alignment, page);
        if (request.bytes == 0 || request.bytes % page != 0 || !std::has_single_bit(alignment) ||
            request.bytes > std::uint64_t{1} << 56 || alignment > std::uint64_t{1} << 40) {
            return fail(errc::invalid_argument,
                        fixed_text<160>{"mapping "}
                            .append_number(request.bytes)
                            .append(" bytes: not a multiple of the page size, or too large"),
                        "give whole pages and an alignment that is a power of two");
        }
        raw_mapping mapping{nullptr, request.bytes, -1};
        if (request.shared_file) {
            mapping.file =
                static_cast<int>(::syscall(SYS_memfd_create, "guest-memory", MFD_CLOEXEC));
            if (mapping.file < 0 ||
                ::ftruncate(mapping.file, static_cast<::off_t>(request.bytes)) != 0) {
                const int reason = errno;
                unmap(mapping);
                return fail_with(reason, "memfd for guest memory",
                                 "allow memfd_create, or do not ask for a shared file");
            }
        }
        // Reserve enough addresses to cut an aligned piece out, then map over it.
        const std::uint64_t reserved = request.bytes + alignment - page;
        void* const start = ::mmap(nullptr, reserved, PROT_NONE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (start == MAP_FAILED) return refuse_mapping(errno, mapping);
        auto* const first = static_cast<std::byte*>(start);
        const std::uint64_t skipped = (0 - std::bit_cast<std::uintptr_t>(start)) & (alignment - 1);
        std::byte* const address = first + skipped;
        const int flags = MAP_FIXED | MAP_NORESERVE |
                          (request.shared_file ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS);
        if (::mmap(address, request.bytes, PROT_READ | PROT_WRITE, flags, mapping.file, 0) ==
            MAP_FAILED) {
            const int reason = errno;
            ::munmap(start, reserved);
            return refuse_mapping(reason, mapping);
        }
        if (skipped != 0) ::munmap(start, skipped);
        const std::uint64_t rest = reserved - skipped - request.bytes;
        if (rest != 0) ::munmap(address + request.bytes, rest);
        mapping.address = address;
        return mapping;
    }

    void unmap(const raw_mapping& mapping) const noexcept {
        if (mapping.address != nullptr) ::munmap(mapping.address, mapping.bytes);
        if (mapping.file >= 0) ::close(mapping.file);
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
        constexpr int populate_write = 23; // absent from older headers
        for (;;) {
            if (::madvise(address, bytes, populate_write) == 0) return {};
            const int reason = errno;
            if (reason == EINTR || reason == EAGAIN) continue;
            if (reason == EINVAL || reason == ENOSYS) break;
            return fail_with(reason, "populating guest memory",
                             "ask for less memory, or free some on the node");
        }
        const std::uint64_t page = page_bytes();
        for (std::uint64_t at = 0; at < bytes; at += page) {
            auto& first = *reinterpret_cast<unsigned char*>(address + at);
            std::atomic_ref<unsigned char>{first}.fetch_or(0, std::memory_order_relaxed);
        }
        return {};
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
        path.append_number(node).append("/meminfo").append(std::string_view{"\0", 1});
        text_file file;
        const char* const terminated = path.view().data();
        if (!file.read(terminated))
            return fail_with(errno, path.view().substr(0, path.size() - 1),
                             "mount /sys, or let the planner use the node's size");
        std::uint64_t kib = 0;
        for (const std::string_view key :
             {" MemFree:", " Active(file):", " Inactive(file):", " SReclaimable:"}) {
            const std::size_t at = file.view().find(key);
            if (at != std::string_view::npos) kib += number_at(file.view().substr(at + key.size()));
        }
        return kib * 1024;
    }

private:
    static constexpr unsigned word_bits = sizeof(unsigned long) * 8;
    using node_mask = std::array<unsigned long, max_nodes / word_bits>;

    /// What helps when a call about nodes fails with `reason`; `if_refused` where
    /// somebody forbids it.
    [[nodiscard]] static std::string_view cure_of(int reason,
                                                  std::string_view if_refused) noexcept {
        if (reason == ENOSYS) return "switch NUMA placement off, or use a kernel with CONFIG_NUMA";
        if (reason == EPERM || reason == EACCES) return if_refused;
        if (reason == ENOMEM) return "free memory, or raise vm.max_map_count";
        return "see the manual page of the call";
    }

    /// The start of a small file of /sys, whole in practice.
    class text_file {
    public:
        /// False with errno set when the file cannot be read.
        [[nodiscard]] bool read(const char* path) noexcept {
            const descriptor file{::open(path, O_RDONLY | O_CLOEXEC)};
            if (!file) return false;
            while (size_ < bytes_.size()) {
                const ::ssize_t n =
                    ::read(file.get(), bytes_.data() + size_, bytes_.size() - size_);
                if (n < 0) return false;
                if (n == 0) break;
                size_ += static_cast<std::size_t>(n);
            }
            return true;
        }
        [[nodiscard]] std::string_view view() const noexcept { return {bytes_.data(), size_}; }

    private:
        std::array<char, 8192> bytes_{};
        std::size_t size_ = 0;
    };

    /// The decimal number that text starts with after blanks; 0 if there is none.
    [[nodiscard]] static std::uint64_t number_at(std::string_view text) noexcept {
        std::uint64_t value = 0;
        std::size_t i = 0;
        while (i < text.size() && text[i] == ' ')
            ++i;
        for (; i < text.size() && text[i] >= '0' && text[i] <= '9'; ++i)
            value = value * 10 + static_cast<std::uint64_t>(text[i] - '0');
        return value;
    }

    [[nodiscard]] static tl::unexpected<error> refuse_mapping(int reason,
                                                              const raw_mapping& made) noexcept {
        linux_memory{}.unmap(made);
        return fail_with(reason, "mapping memory",
                         "ask for less, or raise the address-space limit");
    }
};

} // namespace vm_accel::inline v0::os

#endif
