/// Memory and NUMA nodes on Windows. On other systems this header is empty.
///
/// Windows chooses a node when it maps, not later: VirtualAllocExNuma() takes the node
/// that is preferred for a mapping, and VirtualAlloc2() for each part of one. What is mapped
/// without one gets each page on the node of the thread that touches it first, so that the threads
/// which prefault guest RAM place it. Where a page lies is told by QueryWorkingSetEx().
#pragma once

#if defined(_WIN32)

#include <vm_accel/core/atomic_view.hpp>
#include <vm_accel/core/result.hpp>
#include <vm_accel/os/dynamic_library.hpp>
#include <vm_accel/os/memory_features.hpp>
#include <vm_accel/os/memory_platform.hpp>
#include <vm_accel/os/windows_abi.hpp>
#include <vm_accel/os/windows_calls.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

// NOLINTBEGIN: names are the system's
extern "C" {
struct _MEMORY_BASIC_INFORMATION;
__declspec(dllimport) unsigned long long __stdcall VirtualQuery(const void*,
                                                                struct _MEMORY_BASIC_INFORMATION*,
                                                                unsigned long long);
__declspec(dllimport) int __stdcall VirtualLock(void*, unsigned long long);
}
// NOLINTEND

namespace vm_accel::inline v0::os {

/// Models memory_platform, huge_page_pools and lockable_memory. Stateless; any thread may call
/// anything.
struct windows_memory {
    static constexpr std::string_view name = "windows";
    static constexpr bool can_bind = true; ///< by map_near(), and by first touch
    static constexpr bool is_this_system = true;

    [[nodiscard]] std::uint64_t page_bytes() const noexcept { return system().page_bytes; }
    /// The size of a large page; 2 MiB where the processor has none.
    [[nodiscard]] std::uint64_t huge_page_bytes() const noexcept {
        const std::uint64_t bytes = ::GetLargePageMinimum();
        return bytes != 0 ? bytes : std::uint64_t{2} << 20;
    }

    /// Committed at once: Windows counts all of it against memory and page file, and
    /// gives pages when they are touched. Errors: unsupported for a shared file.
    [[nodiscard]] result<raw_mapping> map(const mapping_request& request) const noexcept {
        return map_at(request, no_node, 0);
    }
    /// The same with the nodes that parts of it prefer. Several nodes need Windows 10
    /// 1803; before, they are left to the first touch. Errors: also invalid_argument
    /// (parts that are not as long as the mapping, or no such node).
    [[nodiscard]] result<raw_mapping> map_near(const mapping_request& request,
                                               std::span<const node_part> parts) const noexcept {
        std::uint64_t total = 0;
        bool same = true;
        for (const node_part& part : parts) {
            total += part.bytes;
            same = same && part.node == parts.front().node;
        }
        if (parts.empty() || total != request.bytes)
            return fail(errc::invalid_argument, "mapping memory: its parts are not the whole",
                        "give parts that are together as long as the mapping");
        if (same) return map_at(request, parts.front().node, 0);
        return map_parts(request, parts);
    }
    /// The same in large pages, which are there at once and never paged out. Errors:
    /// also permission_denied (the account may not lock pages), exhausted (memory is in
    /// pieces), unsupported (no large pages, or not of that size).
    [[nodiscard]] result<raw_mapping> map_huge(const mapping_request& request,
                                               std::uint64_t huge_bytes) const noexcept {
        if (::GetLargePageMinimum() == 0 || huge_bytes != huge_page_bytes())
            return fail(errc::unsupported,
                        fixed_text<160>{"large pages of "}
                            .append_number(huge_bytes)
                            .append(" bytes: not what this processor has"),
                        "ask for huge_page_bytes(), or for ordinary pages");
        if (const result<> allowed = enable_lock_memory_privilege(); !allowed) return fail(allowed);
        return map_at(request, no_node, windows_abi::allocate_large_pages);
    }
    /// Large pages have their memory from the start.
    [[nodiscard]] result<> populate_huge(std::byte*, std::uint64_t) const noexcept { return {}; }
    /// Windows sets none aside: it looks for them when they are mapped.
    [[nodiscard]] result<std::uint64_t> free_huge_pages(unsigned, std::uint64_t) const noexcept {
        return fail(errc::unsupported, "large pages: Windows keeps no pool that could be counted",
                    "map them, and see whether that fails");
    }

    void unmap(const raw_mapping& mapping) const noexcept {
        // One reservation, which may begin before the aligned address, or one for each part.
        for (std::uint64_t done = 0; mapping.address != nullptr && done < mapping.bytes;) {
            basic_information about{};
            if (::VirtualQuery(mapping.address + done, as_system<_MEMORY_BASIC_INFORMATION>(&about),
                               sizeof about) == 0)
                return;
            const auto* const end =
                static_cast<std::byte*>(about.base_address) + about.region_bytes;
            static_cast<void>(::VirtualFree(about.allocation_base, 0, windows_abi::free_release));
            done = static_cast<std::uint64_t>(end - mapping.address);
        }
    }

    /// Nothing can be bound once it is mapped. Error: unsupported, but for `none`.
    [[nodiscard]] result<> bind(std::byte*, std::uint64_t, unsigned node,
                                bind_mode mode) const noexcept {
        if (mode == bind_mode::none) return {};
        return fail(errc::unsupported,
                    fixed_text<160>{"binding memory to node "}.append_number(node).append(
                        ": Windows chooses nodes when it maps; the first touch decides"),
                    "use map_near(), or prefault with threads of that node");
    }
    [[nodiscard]] result<memory_policy> policy_of(const std::byte*) const noexcept {
        return fail(errc::unsupported, "memory policy: Windows does not tell one",
                    "ask where the pages lie");
    }
    [[nodiscard]] result<> advise_huge_pages(std::byte*, std::uint64_t) const noexcept {
        return fail(errc::unsupported, "huge-page advice: Windows takes none",
                    "map_huge() gives large pages to accounts that may lock pages");
    }

    /// One atomic write of nothing per page.
    [[nodiscard]] result<> populate(std::byte* address, std::uint64_t bytes) const noexcept {
        const std::uint64_t page = page_bytes();
        for (std::uint64_t at = 0; at < bytes; at += page) {
            auto& first = *reinterpret_cast<unsigned char*>(address + at);
            atomic_view<unsigned char>{first}.fetch_or(0, std::memory_order_relaxed);
        }
        return {};
    }

    /// QueryWorkingSetEx(): pages that are paged out count as absent.
    [[nodiscard]] result<> page_nodes(const std::byte* address, std::uint64_t stride,
                                      std::span<int> nodes) const noexcept {
        constexpr std::size_t batch = 512;
        std::array<windows_abi::working_set_entry, batch> entries{};
        for (std::size_t done = 0; done < nodes.size();) {
            const std::size_t count = std::min(batch, nodes.size() - done);
            for (std::size_t i = 0; i < count; ++i)
                entries[i] = {const_cast<std::byte*>(address + (done + i) * stride), 0};
            if (::K32QueryWorkingSetEx(::GetCurrentProcess(), entries.data(),
                                       static_cast<unsigned long>(count * sizeof entries[0])) == 0)
                return fail_with_windows(::GetLastError(), "asking where pages lie",
                                         "let the process query itself");
            for (std::size_t i = 0; i < count; ++i)
                nodes[done + i] =
                    entries[i].valid() ? static_cast<int>(entries[i].node()) : page_absent;
            done += count;
        }
        return {};
    }

    [[nodiscard]] result<std::uint64_t> free_bytes(unsigned node) const noexcept {
        unsigned long long bytes = 0;
        if (node <= 0xffff &&
            ::GetNumaAvailableMemoryNodeEx(static_cast<unsigned short>(node), &bytes) != 0)
            return std::uint64_t{bytes};
        return fail_with_windows(node <= 0xffff ? ::GetLastError() : 87,
                                 fixed_text<160>{"free memory of node "}.append_number(node).view(),
                                 "choose a node of the topology");
    }

    /// VirtualLock(): needs a working set that is large enough.
    [[nodiscard]] result<> lock(std::byte* address, std::uint64_t bytes) const noexcept {
        if (::VirtualLock(address, bytes) != 0) return {};
        return fail_with_windows(::GetLastError(), "locking memory",
                                 "raise the working set with SetProcessWorkingSetSize");
    }

private:
    static constexpr unsigned no_node = node_part::any;

    /// MEMORY_BASIC_INFORMATION
    struct basic_information {
        void* base_address;
        void* allocation_base;
        std::uint32_t allocation_protect;
        std::uint16_t partition;
        std::uint64_t region_bytes;
        std::uint32_t state;
        std::uint32_t protect;
        std::uint32_t type;
    };
    static_assert(sizeof(basic_information) == 48);

    [[nodiscard]] static windows_abi::system_information system() noexcept {
        windows_abi::system_information answer;
        ::GetSystemInfo(as_system<_SYSTEM_INFO>(&answer));
        return answer;
    }

    [[nodiscard]] static void* allocate(void* at, std::uint64_t bytes, std::uint32_t type,
                                        unsigned node) noexcept {
        return node == no_node ? ::VirtualAlloc(at, bytes, type, windows_abi::page_read_write)
                               : ::VirtualAllocExNuma(::GetCurrentProcess(), at, bytes, type,
                                                      windows_abi::page_read_write, node);
    }

    [[nodiscard]] static result<raw_mapping> map_at(const mapping_request& request, unsigned node,
                                                    std::uint32_t type) noexcept {
        const windows_abi::system_information about = system();
        const std::uint64_t alignment =
            std::max<std::uint64_t>(request.alignment, about.allocation_granularity);
        if (request.bytes == 0 || request.bytes % about.page_bytes != 0 ||
            !std::has_single_bit(alignment) || request.bytes > std::uint64_t{1} << 46 ||
            alignment > std::uint64_t{1} << 40)
            return fail(errc::invalid_argument,
                        fixed_text<160>{"mapping "}
                            .append_number(request.bytes)
                            .append(" bytes: not a multiple of the page size, or too large"),
                        "give whole pages and an alignment that is a power of two");
        if (request.shared_file)
            return fail(errc::unsupported, "mapping a shared file: not available on Windows here",
                        "do not ask for a shared file");
        // The system aligns to its granularity, and large pages to their size. For more,
        // reserve too much and commit an aligned piece of it.
        const std::uint64_t given =
            type != 0 ? windows_memory{}.huge_page_bytes() : about.allocation_granularity;
        void* address = nullptr;
        if (alignment <= given) {
            address =
                allocate(nullptr, request.bytes,
                         windows_abi::allocate_reserve | windows_abi::allocate_commit | type, node);
        } else if (type != 0) {
            return fail(errc::invalid_argument, "large pages: aligned to more than their size",
                        "ask for an alignment of huge_page_bytes() at most");
        } else if (void* const reserved = allocate(nullptr, request.bytes + alignment,
                                                   windows_abi::allocate_reserve, node);
                   reserved != nullptr) {
            auto* const first = static_cast<std::byte*>(reserved);
            const std::uint64_t skipped =
                (0 - std::bit_cast<std::uintptr_t>(reserved)) & (alignment - 1);
            address = allocate(first + skipped, request.bytes, windows_abi::allocate_commit, node);
            if (address == nullptr) {
                const std::uint32_t reason = ::GetLastError();
                static_cast<void>(::VirtualFree(reserved, 0, windows_abi::free_release));
                return fail_with_windows(reason, "mapping memory", cure);
            }
        }
        if (address == nullptr)
            return fail_with_windows(::GetLastError(), "mapping memory",
                                     type != 0 ? "map early, before memory is in pieces" : cure);
        return raw_mapping{static_cast<std::byte*>(address), request.bytes, -1};
    }

    /// Reserves the whole as a placeholder, cuts it into the parts, and puts memory that
    /// prefers a node in the place of each.
    [[nodiscard]] static result<raw_mapping> map_parts(const mapping_request& request,
                                                       std::span<const node_part> parts) noexcept {
        using allocate_2 = void* __stdcall(void*, void*, std::uint64_t, std::uint32_t,
                                           std::uint32_t, const void*, std::uint32_t);
        const result<dynamic_library> base = dynamic_library::open("kernelbase.dll");
        allocate_2* const allocate_at = base ? base->find<allocate_2>("VirtualAlloc2") : nullptr;
        if (allocate_at == nullptr || request.shared_file)
            return map_at(request, node_part::any, 0);
        const std::uint64_t alignment =
            std::max<std::uint64_t>(request.alignment, system().allocation_granularity);
        if (!std::has_single_bit(alignment))
            return fail(errc::invalid_argument, "mapping memory: an alignment of several bits",
                        "give a power of two");
        const windows_abi::address_requirements wanted{nullptr, nullptr, alignment};
        const windows_abi::extended_parameter aligned{windows_abi::parameter_address_requirements,
                                                      reinterpret_cast<std::uintptr_t>(&wanted)};
        void* const whole =
            allocate_at(nullptr, nullptr, request.bytes,
                        windows_abi::allocate_reserve | windows_abi::reserve_placeholder,
                        windows_abi::page_no_access, &aligned, 1);
        if (whole == nullptr) return map_at(request, node_part::any, 0);
        auto* const first = static_cast<std::byte*>(whole);
        std::uint64_t done = 0;
        for (const node_part& part : parts) {
            std::byte* const at = first + done;
            const bool is_last = done + part.bytes == request.bytes;
            // Cuts this part off the rest; the last one is what is left.
            if (!is_last &&
                ::VirtualFree(at, part.bytes,
                              windows_abi::free_release | windows_abi::preserve_placeholder) == 0)
                return give_back(first, done, ::GetLastError());
            const windows_abi::extended_parameter on_node{windows_abi::parameter_numa_node,
                                                          part.node};
            if (allocate_at(nullptr, at, part.bytes,
                            windows_abi::allocate_reserve | windows_abi::allocate_commit |
                                windows_abi::replace_placeholder,
                            windows_abi::page_read_write, &on_node,
                            part.node == node_part::any ? 0 : 1) == nullptr) {
                const std::uint32_t reason = ::GetLastError();
                if (!is_last) static_cast<void>(::VirtualFree(at, 0, windows_abi::free_release));
                return give_back(first, is_last ? done : done + part.bytes, reason);
            }
            done += part.bytes;
        }
        return raw_mapping{first, request.bytes, -1};
    }
    /// Frees `mapped` bytes of parts and the placeholder behind them.
    [[nodiscard]] static tl::unexpected<error> give_back(std::byte* first, std::uint64_t mapped,
                                                         std::uint32_t reason) noexcept {
        static_cast<void>(::VirtualFree(first + mapped, 0, windows_abi::free_release));
        windows_memory{}.unmap({first, mapped, -1});
        return fail_with_windows(reason, "mapping memory near nodes",
                                 "choose nodes of the topology, or ask for less");
    }

    /// Large pages want SeLockMemoryPrivilege, which an account has and a process enables.
    [[nodiscard]] static result<> enable_lock_memory_privilege() noexcept {
        constexpr std::string_view how =
            "give the account \"Lock pages in memory\" (secpol.msc, User Rights Assignment), "
            "then log in again";
        void* token = nullptr;
        if (::OpenProcessToken(::GetCurrentProcess(),
                               windows_abi::token_adjust_privileges | windows_abi::token_query,
                               &token) == 0)
            return fail_with_windows(::GetLastError(), "large pages: the process's token", how);
        windows_abi::one_privilege wanted;
        wanted.attributes = windows_abi::privilege_enabled;
        std::uint32_t reason = 0;
        if (::LookupPrivilegeValueW(nullptr, L"SeLockMemoryPrivilege",
                                    as_system<_LUID>(&wanted.luid[0])) == 0 ||
            ::AdjustTokenPrivileges(token, 0, as_system<_TOKEN_PRIVILEGES>(&wanted), 0, nullptr,
                                    nullptr) == 0) {
            reason = ::GetLastError();
        } else {
            reason = ::GetLastError(); // "not all assigned" comes with success
        }
        static_cast<void>(::CloseHandle(token));
        if (reason == 0) return {};
        return fail_with_windows(reason, "large pages: SeLockMemoryPrivilege", how);
    }

    static constexpr std::string_view cure = "ask for less, or enlarge the page file";
};

static_assert(huge_page_pools<windows_memory> && node_mapping_memory<windows_memory> &&
              lockable_memory<windows_memory>);

} // namespace vm_accel::inline v0::os

#endif
