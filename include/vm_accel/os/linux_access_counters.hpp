/// Local and remote accesses of a thread, counted by the processor: perf_event_open(2).
/// On other systems this header is empty.
#pragma once

#if defined(__linux__)

#include <vm_accel/os/descriptor.hpp>
#include <vm_accel/os/file_system.hpp>
#include <vm_accel/os/placement_platform.hpp>

#include <linux/perf_event.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

namespace vm_accel::inline v0::os {

/// What the generic event "node loads" means on a processor. Linux lets it count loads
/// from all nodes before Intel's Haswell and on AMD before Zen, and loads from the
/// thread's own node on what came later; "node load misses" are remote everywhere.
/// `cpuinfo` is the text of /proc/cpuinfo.
[[nodiscard]] inline bool node_loads_include_remote(std::string_view cpuinfo) noexcept {
    const auto value_of = [&](std::string_view key) -> std::string_view {
        std::size_t at = cpuinfo.find(key);
        if (at == std::string_view::npos) return {};
        at = cpuinfo.find(": ", at);
        if (at == std::string_view::npos) return {};
        return cpuinfo.substr(at + 2, cpuinfo.find('\n', at) - at - 2);
    };
    const auto number = [](std::string_view text) {
        unsigned value = 0;
        for (const char c : text)
            if (c >= '0' && c <= '9') value = value * 10 + static_cast<unsigned>(c - '0');
        return value;
    };
    const std::string_view vendor = value_of("vendor_id");
    const unsigned family = number(value_of("cpu family"));
    if (vendor == "AuthenticAMD") return family < 0x17;
    if (vendor != "GenuineIntel" || family != 6) return false;
    const unsigned model = number(value_of("model\t"));
    for (const unsigned old :
         {0x1au, 0x1eu, 0x1fu, 0x2eu, 0x25u, 0x2cu, 0x2fu, 0x2au, 0x2du, 0x3au, 0x3eu})
        if (model == old) return true;
    return false;
}

/// Counters of one thread, from open() on. Movable.
class linux_access_counters {
public:
    linux_access_counters() noexcept = default;

    /// Errors: unsupported (the processor, or what emulates it, counts no accesses by
    /// node), permission_denied, not_found (no such thread), exhausted.
    [[nodiscard]] static result<linux_access_counters>
    open(thread_id thread, const file_system_root& root = {}) noexcept {
        linux_access_counters made;
        const result<std::string> cpuinfo = root.read_text("/proc/cpuinfo");
        made.loads_include_remote_ = cpuinfo && node_loads_include_remote(*cpuinfo);
        int reason = made.open_both(thread, false);
        // Without leave to watch the kernel: accesses of the guest's and the VMM's user code.
        if (reason == EACCES || reason == EPERM) reason = made.open_both(thread, true);
        if (reason == 0) return made;
        if (reason == ENOENT || reason == EOPNOTSUPP || reason == EINVAL || reason == ENODEV)
            return fail(errc::unsupported,
                        "counting memory accesses: this processor has no events by node",
                        "use the estimate by placement", reason);
        return fail_with(reason == ESRCH ? ENOENT : reason, "counting memory accesses",
                         reason == EACCES || reason == EPERM
                             ? "lower kernel.perf_event_paranoid to 2, or give CAP_PERFMON"
                             : "use the estimate by placement");
    }

    /// Kernel code, the guest's too, is left out.
    [[nodiscard]] bool user_only() const noexcept { return user_only_; }

    /// Errors: unavailable (the counters have not run yet: others use them), and what
    /// read(2) gives.
    [[nodiscard]] result<counted_accesses> read() const noexcept {
        struct {
            std::uint64_t events, enabled, running, loads, misses;
        } told{};
        const ::ssize_t n = ::read(loads_.get(), &told, sizeof told);
        if (n != static_cast<::ssize_t>(sizeof told))
            return fail_with(n < 0 ? errno : EIO, "reading the counters of memory accesses",
                             "use the estimate by placement");
        if (told.running == 0 && told.enabled != 0)
            return fail(errc::unavailable, "the counters of memory accesses have not run yet",
                        "ask later, or stop other users of the processor's counters");
        const double scale = told.running == 0 ? 1.0
                                               : static_cast<double>(told.enabled) /
                                                     static_cast<double>(told.running);
        if (loads_include_remote_)
            told.loads -= told.loads < told.misses ? told.loads : told.misses;
        return counted_accesses{
            static_cast<std::uint64_t>(static_cast<double>(told.loads) * scale),
            static_cast<std::uint64_t>(static_cast<double>(told.misses) * scale)};
    }

private:
    /// 0, or the errno of the refusal.
    [[nodiscard]] int open_both(thread_id thread, bool user_only) noexcept {
        constexpr std::uint64_t loads = PERF_COUNT_HW_CACHE_NODE |
                                        PERF_COUNT_HW_CACHE_OP_READ << 8 |
                                        PERF_COUNT_HW_CACHE_RESULT_ACCESS << 16;
        constexpr std::uint64_t misses = PERF_COUNT_HW_CACHE_NODE |
                                         PERF_COUNT_HW_CACHE_OP_READ << 8 |
                                         PERF_COUNT_HW_CACHE_RESULT_MISS << 16;
        user_only_ = user_only;
        loads_ = descriptor{open_one(thread, loads, -1)};
        if (!loads_) return errno;
        misses_ = descriptor{open_one(thread, misses, loads_.get())};
        return misses_ ? 0 : errno;
    }

    [[nodiscard]] int open_one(thread_id thread, std::uint64_t event, int group) const noexcept {
        ::perf_event_attr attributes;
        std::memset(&attributes, 0, sizeof attributes);
        attributes.size = sizeof attributes;
        attributes.type = PERF_TYPE_HW_CACHE;
        attributes.config = event;
        attributes.exclude_kernel = user_only_ ? 1 : 0;
        attributes.read_format =
            PERF_FORMAT_GROUP | PERF_FORMAT_TOTAL_TIME_ENABLED | PERF_FORMAT_TOTAL_TIME_RUNNING;
        return static_cast<int>(::syscall(SYS_perf_event_open, &attributes,
                                          static_cast<::pid_t>(thread), -1, group,
                                          static_cast<unsigned long>(PERF_FLAG_FD_CLOEXEC)));
    }

    descriptor loads_{}; ///< leads the group
    descriptor misses_{};
    bool loads_include_remote_ = false;
    bool user_only_ = false;
};

} // namespace vm_accel::inline v0::os

#endif
