/// Memory on Apple's systems: one for all processors, so there is nothing to bind.
/// On other systems this header is empty.
#pragma once

#if defined(__APPLE__)

#include <vm_accel/core/atomic_view.hpp>
#include <vm_accel/os/descriptor.hpp>
#include <vm_accel/os/memory_features.hpp>
#include <vm_accel/os/memory_platform.hpp>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <mach/mach.h>
#include <mach/vm_statistics.h>
#include <span>
#include <string_view>

namespace vm_accel::inline v0::os {

/// Models memory_platform, huge_page_pools and lockable_memory. Stateless; any thread
/// may call anything. There is one node, number 0.
struct macos_memory {
    static constexpr std::string_view name = "macos";
    static constexpr bool can_bind = false;
    static constexpr bool is_this_system = true;
#if defined(__x86_64__)
    static constexpr bool has_superpages = true;
#else
    static constexpr bool has_superpages = false;
#endif
    static constexpr std::uint64_t superpage_bytes = 2u << 20;

    /// 16 KiB on Apple silicon, 4 KiB on Intel.
    [[nodiscard]] std::uint64_t page_bytes() const noexcept {
        return static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
    }
    /// The size of Intel's superpages; where there are none, a granule to plan in.
    [[nodiscard]] std::uint64_t huge_page_bytes() const noexcept { return superpage_bytes; }

    /// mmap(2); a shared file is one of shm_open(2) whose name is removed at once.
    [[nodiscard]] result<raw_mapping> map(const mapping_request& request) const noexcept {
        if (!request.shared_file) return reserve(request, -1, MAP_PRIVATE | MAP_ANON);
        result<descriptor> file = anonymous_file(request.bytes);
        if (!file) return fail(file);
        result<raw_mapping> mapped = reserve(request, file->get(), MAP_SHARED);
        if (mapped) mapped->file = ::dup(file->get());
        if (mapped && mapped->file < 0) {
            const int reason = errno;
            unmap(*mapped);
            return fail_with(reason, "shared guest memory",
                             "close descriptors, or raise ulimit -n");
        }
        return mapped;
    }
    void unmap(const raw_mapping& mapping) const noexcept {
        if (mapping.address != nullptr) static_cast<void>(::munmap(mapping.address, mapping.bytes));
        if (mapping.file >= 0) close_descriptor(mapping.file);
    }

    /// Always `unsupported`: a Mac's memory is as near to one core as to another.
    [[nodiscard]] result<> bind(std::byte*, std::uint64_t, unsigned, bind_mode) const noexcept {
        return fail(errc::unsupported, "binding memory: macOS has one memory for all processors",
                    "leave placement out: nothing can be gained by it here");
    }
    [[nodiscard]] result<memory_policy> policy_of(const std::byte*) const noexcept {
        return memory_policy{};
    }
    /// Always `unsupported`: superpages are had by map_huge(), on Intel.
    [[nodiscard]] result<> advise_huge_pages(std::byte*, std::uint64_t) const noexcept {
        return no_superpages();
    }
    /// One atomic write of nothing per page.
    [[nodiscard]] result<> populate(std::byte* address, std::uint64_t bytes) const noexcept {
        const std::uint64_t page = page_bytes();
        for (std::uint64_t at = 0; at < bytes; at += page)
            atomic_view<unsigned char>{*reinterpret_cast<unsigned char*>(address + at)}.fetch_or(
                0, std::memory_order_relaxed);
        return {};
    }
    /// mincore(2): node 0 for what is in memory.
    [[nodiscard]] result<> page_nodes(const std::byte* address, std::uint64_t stride,
                                      std::span<int> nodes) const noexcept {
        for (std::size_t i = 0; i < nodes.size(); ++i) {
            char state = 0;
            const std::byte* const page = address + i * stride;
            if (::mincore(page, static_cast<std::size_t>(page_bytes()), &state) != 0)
                return fail_with(errno, "asking whether pages are there (mincore)",
                                 "give addresses of guest memory");
            nodes[i] = (state & MINCORE_INCORE) != 0 ? 0 : page_absent;
        }
        return {};
    }
    /// What can be given without swapping: free, speculative and half of the inactive pages.
    [[nodiscard]] result<std::uint64_t> free_bytes(unsigned node) const noexcept {
        if (node != 0)
            return fail(errc::invalid_argument,
                        fixed_text<160>{"memory of node "}.append_number(node).append(
                            ": macOS has node 0 alone"),
                        "choose node 0");
        ::vm_statistics64_data_t told{};
        ::mach_msg_type_number_t count = HOST_VM_INFO64_COUNT;
        const ::mach_port_t host = ::mach_host_self(); // a right of its own each time
        const ::kern_return_t done = ::host_statistics64(
            host, HOST_VM_INFO64, reinterpret_cast<::host_info64_t>(&told), &count);
        static_cast<void>(::mach_port_deallocate(::mach_task_self(), host));
        if (done != KERN_SUCCESS)
            return fail(errc::system_failure, "host_statistics64: the kernel does not tell",
                        "let the planner use the node's size", done);
        const std::uint64_t pages = std::uint64_t{told.free_count} + told.inactive_count / 2;
        return pages * page_bytes();
    }

    // --- huge_page_pools ----------------------------------------------------

    /// Always `unsupported`: macOS keeps no pool of superpages.
    [[nodiscard]] result<std::uint64_t> free_huge_pages(unsigned, std::uint64_t) const noexcept {
        return fail(errc::unsupported, "superpages: macOS has no pool of them to count",
                    "ask for ordinary pages, or map them without a count");
    }
    /// Intel: superpages of 2 MiB, which the kernel makes and wires at once. Errors:
    /// unsupported (Apple silicon, another size), exhausted (no 2 MiB in one piece).
    [[nodiscard]] result<raw_mapping> map_huge(const mapping_request& request,
                                               std::uint64_t bytes) const noexcept {
        if constexpr (!has_superpages) return no_superpages();
        if (bytes != superpage_bytes || request.shared_file || request.alignment > superpage_bytes)
            return no_superpages();
        const std::uint64_t rounded =
            (request.bytes + superpage_bytes - 1) & ~(superpage_bytes - 1);
        void* const at = ::mmap(nullptr, static_cast<std::size_t>(rounded), PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANON, VM_FLAGS_SUPERPAGE_SIZE_2MB, 0);
        if (at != MAP_FAILED) return raw_mapping{static_cast<std::byte*>(at), rounded, -1};
        return fail(errc::exhausted, "superpages: the kernel has no 2 MiB in one piece left",
                    "ask early after the machine's start, or for ordinary pages", errno);
    }
    [[nodiscard]] result<> populate_huge(std::byte* address, std::uint64_t bytes) const noexcept {
        return populate(address, bytes);
    }

    // --- lockable_memory ----------------------------------------------------

    /// mlock(2): makes the pages, too.
    [[nodiscard]] result<> lock(std::byte* address, std::uint64_t bytes) const noexcept {
        if (::mlock(address, static_cast<std::size_t>(bytes)) == 0) return {};
        return fail_with(errno, "locking guest memory",
                         "raise ulimit -l, or do not ask for locked memory");
    }

private:
    [[nodiscard]] static tl::unexpected<error> no_superpages() noexcept {
        return fail(errc::unsupported,
                    has_superpages ? "superpages: macOS has private ones of 2 MiB, by request only"
                                   : "superpages: Apple silicon has none",
                    "ask for ordinary pages");
    }

    /// Maps more than is asked for where the alignment is beyond a page, and gives the
    /// rest back.
    [[nodiscard]] result<raw_mapping> reserve(const mapping_request& request, int file,
                                              int flags) const noexcept {
        const std::uint64_t page = page_bytes();
        const std::uint64_t alignment = std::max(request.alignment, page);
        if (request.bytes == 0 || request.bytes % page != 0 || !std::has_single_bit(alignment))
            return fail(errc::invalid_argument,
                        "guest memory: no whole pages, or no power of two as alignment",
                        "ask for a multiple of page_bytes()");
        if (alignment == page) {
            void* const at = ::mmap(nullptr, static_cast<std::size_t>(request.bytes),
                                    PROT_READ | PROT_WRITE, flags, file, 0);
            if (at == MAP_FAILED) return no_room(errno);
            return raw_mapping{static_cast<std::byte*>(at), request.bytes, -1};
        }
        const std::uint64_t whole = request.bytes + alignment;
        if (whole < request.bytes) return no_room(ENOMEM);
        void* const at = ::mmap(nullptr, static_cast<std::size_t>(whole), PROT_NONE,
                                MAP_PRIVATE | MAP_ANON, -1, 0);
        if (at == MAP_FAILED) return no_room(errno);
        auto* const first = static_cast<std::byte*>(at);
        const std::uint64_t skipped =
            (alignment - std::bit_cast<std::uintptr_t>(first) % alignment) % alignment;
        std::byte* const start = first + skipped;
        void* const placed = ::mmap(start, static_cast<std::size_t>(request.bytes),
                                    PROT_READ | PROT_WRITE, flags | MAP_FIXED, file, 0);
        if (placed == MAP_FAILED) {
            const int reason = errno;
            static_cast<void>(::munmap(first, static_cast<std::size_t>(whole)));
            return no_room(reason);
        }
        if (skipped != 0) static_cast<void>(::munmap(first, static_cast<std::size_t>(skipped)));
        const std::uint64_t rest = whole - skipped - request.bytes;
        if (rest != 0)
            static_cast<void>(::munmap(start + request.bytes, static_cast<std::size_t>(rest)));
        return raw_mapping{start, request.bytes, -1};
    }
    [[nodiscard]] static tl::unexpected<error> no_room(int reason) noexcept {
        return fail_with(reason, "mapping guest memory", "ask for less memory, or free some");
    }

    /// A file without a name. macOS has no memfd_create(2).
    [[nodiscard]] static result<descriptor> anonymous_file(std::uint64_t bytes) noexcept {
        static std::atomic<unsigned> count{0};
        for (int attempt = 0; attempt < 64; ++attempt) {
            fixed_text<32> made{"/vm_accel."}; // 31 bytes at most
            made.append_number(static_cast<unsigned>(::getpid()));
            made.append(".").append_number(count.fetch_add(1) & 0xffff);
            std::array<char, 33> path{};
            std::ranges::copy(made.view(), path.begin());
            descriptor file{::shm_open(path.data(), O_CREAT | O_EXCL | O_RDWR, 0600)};
            if (!file && errno == EEXIST) continue;
            if (!file)
                return fail_with(errno, "shared guest memory (shm_open)",
                                 "let the sandbox of this program allow it");
            static_cast<void>(::shm_unlink(path.data()));
            if (::ftruncate(file.get(), static_cast<::off_t>(bytes)) != 0)
                return fail_with(errno, "shared guest memory", "ask for less memory");
            return file;
        }
        return fail(errc::busy, "shared guest memory: every name is taken", "try again");
    }
};

static_assert(huge_page_pools<macos_memory> && lockable_memory<macos_memory>);

} // namespace vm_accel::inline v0::os

#endif
