/// Following memory and threads on Linux: move_pages(2), /proc/self/task,
/// /proc/self/numa_maps. On other systems this header is empty.
#pragma once

#if defined(__linux__)

#include <vm_accel/os/descriptor.hpp>
#include <vm_accel/os/file_system.hpp>
#include <vm_accel/os/linux_access_counters.hpp>
#include <vm_accel/os/placement_platform.hpp>

#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace vm_accel::inline v0::os {

/// Models placement_platform. Any thread may call anything.
class linux_placement {
public:
    static constexpr std::string_view name = "linux";
    static constexpr bool can_move = true;
    using counters = linux_access_counters;

    linux_placement() = default;
    /// /proc as in a directory, for tests.
    explicit linux_placement(file_system_root root) : root_(std::move(root)) {}

    /// The fates are those that the kernel tells; a page of a huge page moves with it, and
    /// the kernel may call others of the same huge page busy then: ask where they are.
    [[nodiscard]] result<> move_pages(std::span<std::byte* const> pages, unsigned node,
                                      std::span<page_fate> fates) const noexcept {
        std::array<void*, at_once> addresses{};
        std::array<int, at_once> nodes{};
        std::array<int, at_once> told{};
        nodes.fill(static_cast<int>(node));
        std::fill(fates.begin(), fates.end(), page_fate::untried);
        for (std::size_t done = 0; done < pages.size(); done += at_once) {
            const std::size_t count = std::min<std::size_t>(pages.size() - done, at_once);
            std::copy_n(pages.data() + done, count, addresses.begin());
            told.fill(untold);
            const long moved = ::syscall(SYS_move_pages, 0, count, addresses.data(), nodes.data(),
                                         told.data(), MPOL_MF_MOVE);
            const int reason = moved < 0 ? errno : 0;
            for (std::size_t i = 0; i < count; ++i)
                fates[done + i] = fate_of(told[i]);
            if (moved < 0 && reason != ENOMEM) return refuse_move(reason, node);
            if (reason == ENOMEM)
                for (std::size_t i = 0; i < count; ++i)
                    if (told[i] == untold) fates[done + i] = page_fate::no_room;
        }
        return {};
    }

    [[nodiscard]] result<thread_id> current_thread() const noexcept {
        return thread_id{static_cast<std::uint64_t>(::syscall(SYS_gettid))};
    }

    /// From /proc/self/task/THREAD/stat, and schedstat for the time. A guest runs as its
    /// vCPU's thread.
    [[nodiscard]] result<thread_run> run_of(thread_id thread) const noexcept {
        fixed_text<64> folder{"/proc/self/task/"};
        folder.append_number(static_cast<std::uint64_t>(thread));
        const result<std::string> stat = root_.read_text(fixed_text<64>{folder}.append("/stat"));
        if (!stat) return fail(stat);
        // The name in parentheses may hold anything; what follows is numbers.
        const std::size_t name_end = stat->rfind(')');
        constexpr unsigned processor = 39 - 2; // fields count from 1; two are behind us
        std::string_view cpu;
        if (name_end != std::string::npos)
            cpu = word(std::string_view{*stat}.substr(name_end + 1), processor);
        thread_run run;
        if (!parse(cpu, run.cpu, 10))
            return fail(errc::system_failure,
                        fixed_text<160>{folder}.append("/stat: no processor in it"),
                        "use a kernel that tells it");
        if (const auto time = root_.read_text(fixed_text<64>{folder}.append("/schedstat")); time)
            static_cast<void>(parse(word(*time, 1), run.run_ns, 10));
        return run;
    }

    [[nodiscard]] result<std::vector<bytes_on_node>>
    mapped_bytes(const std::byte* address, std::uint64_t bytes) const noexcept {
        const result<std::string> maps = root_.read_text("/proc/self/maps");
        if (!maps) return fail(maps);
        const result<std::string> totals = root_.read_text("/proc/self/numa_maps");
        if (!totals) return fail(totals);
        const auto first = std::bit_cast<std::uintptr_t>(address);
        const std::uint64_t last = first + bytes;
        std::vector<bytes_on_node> out;
        std::string_view lines{*totals};
        std::string_view ends{*maps};
        while (!lines.empty()) {
            const std::string_view line = cut_line(lines);
            std::uint64_t start = 0;
            if (!parse(word(line, 1), start, 16) || start >= last) continue;
            const std::uint64_t end = end_of(ends, start);
            if (end <= first || end <= start) continue;
            const std::uint64_t inside =
                std::min(end, last) - std::max<std::uint64_t>(start, first);
            add_totals(out, line, static_cast<double>(inside) / static_cast<double>(end - start));
        }
        std::sort(out.begin(), out.end(),
                  [](const auto& a, const auto& b) { return a.node < b.node; });
        return out;
    }

    /// Mems_allowed_list of /proc/self/status: what cpusets and cgroups leave.
    [[nodiscard]] result<std::vector<unsigned>> allowed_nodes() const noexcept {
        const result<std::string> status = root_.read_text("/proc/self/status");
        if (!status) return fail(status);
        constexpr std::string_view key = "Mems_allowed_list:";
        const std::size_t at = status->find(key);
        if (at == std::string::npos)
            return fail(errc::unsupported, "/proc/self/status: no Mems_allowed_list in it",
                        "use a kernel with CONFIG_CPUSETS");
        std::string_view rest = std::string_view{*status}.substr(at + key.size());
        rest = word(cut_line(rest), 1);
        std::vector<unsigned> nodes;
        while (!rest.empty()) {
            const std::size_t comma = std::min(rest.find(','), rest.size());
            const std::string_view range = rest.substr(0, comma);
            rest.remove_prefix(std::min(comma + 1, rest.size()));
            const std::size_t dash = range.find('-');
            unsigned low = 0;
            if (!parse(range.substr(0, dash), low, 10)) continue;
            unsigned high = low;
            if (dash != std::string_view::npos && !parse(range.substr(dash + 1), high, 10))
                continue;
            for (unsigned node = low; node <= high && node < most_nodes; ++node)
                nodes.push_back(node);
        }
        return nodes;
    }

    [[nodiscard]] result<counters> count_accesses(thread_id thread) const noexcept {
        return counters::open(thread, root_);
    }

private:
    static constexpr std::size_t at_once = 512; ///< pages for one system call
    static constexpr unsigned most_nodes = 1024;
    static constexpr int untold = -4095; ///< no errno, no node

    [[nodiscard]] static page_fate fate_of(int told) noexcept {
        if (told >= 0) return page_fate::on_node;
        switch (-told) {
        case -untold:
            return page_fate::untried;
        case ENOENT:
        case EFAULT: // the shared zero page, or no mapping
            return page_fate::absent;
        case EBUSY:
        case EAGAIN:
        case EIO:
            return page_fate::busy;
        case EACCES:
            return page_fate::shared;
        case ENOMEM:
            return page_fate::no_room;
        default:
            return page_fate::refused;
        }
    }

    [[nodiscard]] static tl::unexpected<error> refuse_move(int reason, unsigned node) noexcept {
        const auto what = fixed_text<160>{"moving pages to node "}.append_number(node);
        switch (reason) {
        case ENODEV:
            return fail(errc::invalid_argument, fixed_text<160>{what}.append(": it is not online"),
                        "choose a node of the topology", reason);
        case EACCES:
            return fail(errc::invalid_argument,
                        fixed_text<160>{what}.append(": the process's cpuset excludes it"),
                        "widen cpuset.mems, or choose another node", reason);
        case EPERM:
            return fail_with(reason, what, "allow move_pages in the container's seccomp profile");
        default:
            return fail_with(reason, what, "leave memory where it is");
        }
    }

    /// The n-th word of a line, from 1; empty if there are fewer.
    [[nodiscard]] static std::string_view word(std::string_view line, unsigned n) noexcept {
        constexpr std::string_view blanks = " \t\n";
        for (;;) {
            const std::size_t start = line.find_first_not_of(blanks);
            if (start == std::string_view::npos) return {};
            line.remove_prefix(start);
            const std::size_t end = std::min(line.find_first_of(blanks), line.size());
            if (--n == 0) return line.substr(0, end);
            line.remove_prefix(end);
        }
    }
    [[nodiscard]] static std::string_view cut_line(std::string_view& text) noexcept {
        const std::size_t end = std::min(text.find('\n'), text.size());
        const std::string_view line = text.substr(0, end);
        text.remove_prefix(std::min(end + 1, text.size()));
        return line;
    }
    template <class T>
    [[nodiscard]] static bool parse(std::string_view text, T& value, int base) noexcept {
        const auto [end, failed] =
            std::from_chars(text.data(), text.data() + text.size(), value, base);
        return failed == std::errc{} && end != text.data();
    }

    /// Where the mapping that starts at `start` ends; 0 if there is none. Both files are in
    /// the order of addresses: `maps` loses what is behind.
    [[nodiscard]] static std::uint64_t end_of(std::string_view& maps,
                                              std::uint64_t start) noexcept {
        while (!maps.empty()) {
            std::string_view rest = maps;
            const std::string_view line = cut_line(rest);
            std::uint64_t from = 0;
            std::uint64_t to = 0;
            const std::size_t dash = line.find('-');
            const bool understood = dash != std::string_view::npos &&
                                    parse(line.substr(0, dash), from, 16) &&
                                    parse(line.substr(dash + 1), to, 16);
            if (understood && from > start) return 0;
            maps = rest;
            if (understood && from == start) return to;
        }
        return 0;
    }

    /// Adds a share of a line's "N0=12 N1=3 ... kernelpagesize_kB=4".
    static void add_totals(std::vector<bytes_on_node>& out, std::string_view line, double share) {
        std::uint64_t page_kib = 4;
        constexpr std::string_view size = "kernelpagesize_kB=";
        if (const std::size_t at = line.find(size); at != std::string_view::npos)
            static_cast<void>(parse(line.substr(at + size.size()), page_kib, 10));
        for (std::size_t at = line.find(" N"); at != std::string_view::npos;
             at = line.find(" N", at + 1)) {
            const std::string_view rest = line.substr(at + 2);
            const std::size_t equals = rest.find('=');
            unsigned node = 0;
            std::uint64_t pages = 0;
            if (equals == std::string_view::npos || !parse(rest.substr(0, equals), node, 10) ||
                !parse(rest.substr(equals + 1), pages, 10))
                continue;
            const auto bytes =
                static_cast<std::uint64_t>(static_cast<double>(pages * page_kib * 1024) * share);
            const auto known = std::find_if(out.begin(), out.end(),
                                            [&](const auto& on) { return on.node == node; });
            if (known != out.end()) {
                known->bytes += bytes;
            } else {
                out.push_back({node, bytes});
            }
        }
    }

    file_system_root root_{};
};

} // namespace vm_accel::inline v0::os

#endif
