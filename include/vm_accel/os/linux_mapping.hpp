/// mmap(2) and memfd_create(2) for guest memory.
/// On other systems this header is empty.
#pragma once

#if defined(__linux__)

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/descriptor.hpp>
#include <vm_accel/os/memory_platform.hpp>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>

namespace vm_accel::inline v0::os::linux_mapping {

// Absent from older headers; the numbers are the kernel's.
inline constexpr unsigned memfd_noexec_seal = 8; ///< Linux 6.3; some systems insist on it
inline constexpr unsigned memfd_hugetlb = 4;
inline constexpr unsigned huge_size_shift = 26; ///< of MAP_HUGE_... and MFD_HUGE_...

inline void unmap(const raw_mapping& mapping) noexcept {
    if (mapping.address != nullptr) ::munmap(mapping.address, mapping.bytes);
    if (mapping.file >= 0) ::close(mapping.file);
}

/// What huge pages add to flags, 0 for ordinary pages.
[[nodiscard]] constexpr unsigned size_flags(std::uint64_t huge_page_bytes) noexcept {
    return huge_page_bytes == 0
               ? 0
               : static_cast<unsigned>(std::countr_zero(huge_page_bytes)) << huge_size_shift;
}

/// An anonymous file of that size, closed on exec and open for seals.
[[nodiscard]] inline result<int> make_file(std::uint64_t bytes,
                                           std::uint64_t huge_page_bytes) noexcept {
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING | memfd_noexec_seal;
    if (huge_page_bytes != 0) flags |= memfd_hugetlb | size_flags(huge_page_bytes);
    auto file = static_cast<int>(::syscall(SYS_memfd_create, "guest-memory", flags));
    if (file < 0 && errno == EINVAL)
        file = static_cast<int>(
            ::syscall(SYS_memfd_create, "guest-memory", flags & ~memfd_noexec_seal));
    if (file < 0 || ::ftruncate(file, static_cast<::off_t>(bytes)) != 0) {
        const int reason = errno;
        if (file >= 0) ::close(file);
        // Where huge pages were asked for, "no such file system" means: not of that size.
        if (huge_page_bytes != 0 && (reason == EINVAL || reason == ENODEV || reason == ENOENT))
            return fail_with(ENOSYS, "memfd of huge pages", "use a kernel with CONFIG_HUGETLBFS");
        return fail_with(reason, "memfd for guest memory",
                         "allow memfd_create, or do not ask for a shared file");
    }
    return file;
}

/// Maps what is asked for, of ordinary pages (`huge_page_bytes` 0) or of reserved
/// huge ones. Errors: invalid_argument (sizes), exhausted, unsupported, permission_denied.
[[nodiscard]] inline result<raw_mapping> map(const mapping_request& request, std::uint64_t page,
                                             std::uint64_t huge_page_bytes) noexcept {
    const std::uint64_t least = std::max(page, huge_page_bytes);
    const std::uint64_t alignment = std::max(request.alignment, least);
    if (request.bytes == 0 || request.bytes % least != 0 || !std::has_single_bit(alignment) ||
        !std::has_single_bit(least) || request.bytes > std::uint64_t{1} << 56 ||
        alignment > std::uint64_t{1} << 40) {
        return fail(errc::invalid_argument,
                    fixed_text<160>{"mapping "}
                        .append_number(request.bytes)
                        .append(" bytes: not a multiple of the page size, or too large"),
                    "give whole pages and an alignment that is a power of two");
    }
    const auto refuse = [&](int reason, const raw_mapping& made) noexcept {
        unmap(made);
        if (huge_page_bytes == 0)
            return fail_with(reason, "mapping memory",
                             "ask for less, or raise the address-space limit");
        fixed_text<160> what{"reserving "};
        what.append_number(request.bytes / huge_page_bytes).append(" huge pages of ");
        what.append_number(huge_page_bytes >> 10).append(" KiB");
        return fail_with(reason == EINVAL ? ENOSYS : reason, what,
                         "raise nr_hugepages for that size, or use other pages");
    };
    raw_mapping mapping{nullptr, request.bytes, -1};
    if (request.shared_file) {
        const result<int> file = make_file(request.bytes, huge_page_bytes);
        if (!file) return fail(file);
        mapping.file = *file;
    }
    // Reserve enough addresses to cut an aligned piece out, then map over it.
    const std::uint64_t reserved = request.bytes + alignment - page;
    void* const start =
        ::mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) return refuse(errno, mapping);
    auto* const first = static_cast<std::byte*>(start);
    const std::uint64_t skipped = (0 - std::bit_cast<std::uintptr_t>(start)) & (alignment - 1);
    std::byte* const address = first + skipped;
    int flags = MAP_FIXED | (request.shared_file ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS);
    // Huge pages are reserved with the mapping: that is what MAP_NORESERVE would waive.
    if (huge_page_bytes == 0) flags |= MAP_NORESERVE;
    if (huge_page_bytes != 0 && !request.shared_file)
        flags |= MAP_HUGETLB | static_cast<int>(size_flags(huge_page_bytes));
    if (::mmap(address, request.bytes, PROT_READ | PROT_WRITE, flags, mapping.file, 0) ==
        MAP_FAILED) {
        const int reason = errno;
        ::munmap(start, reserved);
        return refuse(reason, mapping);
    }
    if (skipped != 0) ::munmap(start, skipped);
    const std::uint64_t rest = reserved - skipped - request.bytes;
    if (rest != 0) ::munmap(address + request.bytes, rest);
    mapping.address = address;
    return mapping;
}

/// Fixes the size of a shared mapping's file for good.
[[nodiscard]] inline result<> seal(const raw_mapping& mapping) noexcept {
    if (mapping.file < 0)
        return fail(errc::invalid_argument, "sealing guest memory: it has no shared file",
                    "ask for one");
    if (::fcntl(mapping.file, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0)
        return {};
    const int reason = errno;
    return fail_with(reason == EINVAL ? ENOSYS : reason, "sealing the size of guest memory",
                     reason == EINVAL ? "use a kernel that seals such files (huge pages: 4.16)"
                                      : "allow fcntl in the container's seccomp profile");
}

} // namespace vm_accel::inline v0::os::linux_mapping

#endif
