/// Placement of threads on Windows: group affinity, CPU sets, and reading back.
/// On other systems every answer is `unsupported`.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/cpu_set.hpp>
#include <vm_accel/os/thread_platform.hpp>
#include <vm_accel/os/thread_scheduling.hpp>

#if defined(_WIN32)

#include <vm_accel/os/dynamic_library.hpp>
#include <vm_accel/os/windows_abi.hpp>
#include <vm_accel/os/windows_calls.hpp>
#include <vm_accel/os/windows_groups.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

// NOLINTBEGIN: names are the system's
extern "C" {
__declspec(dllimport) unsigned long __stdcall GetCurrentThreadId(void);
__declspec(dllimport) void* __stdcall OpenThread(unsigned long, int, unsigned long);
}
// NOLINTEND

namespace vm_accel::inline v0::os {

/// Models thread_platform. CPUs are numbered as windows_groups.hpp says. Stateless;
/// any thread may call anything.
///
/// A set within one group is set as the thread's group affinity, which is binding. A
/// set that spans groups is given as CPU sets (Windows 10): the scheduler keeps to
/// them, and current_pin() tells them.
struct windows_threads {
    static constexpr std::string_view name = "windows";
    static constexpr bool can_pin_threads = true;

    [[nodiscard]] thread_id current_thread() const noexcept {
        return thread_id{::GetCurrentThreadId()};
    }

    [[nodiscard]] result<> pin_current_thread(const cpu_set& set) const noexcept {
        return pin(::GetCurrentThread(), set);
    }
    [[nodiscard]] result<cpu_set> current_pin() const noexcept {
        return pin_of(::GetCurrentThread());
    }
    /// The same for another thread of this process. Errors: also not_found.
    [[nodiscard]] result<> pin_thread(thread_id thread, const cpu_set& set) const noexcept {
        const thread_handle opened{thread};
        if (!opened) return no_such_thread(thread);
        return pin(opened.get(), set);
    }
    [[nodiscard]] result<cpu_set> pin_of(thread_id thread) const noexcept {
        const thread_handle opened{thread};
        if (!opened) return no_such_thread(thread);
        return pin_of(opened.get());
    }

    /// What the process may use: its affinity mask within one group, and every active
    /// processor where it has several.
    [[nodiscard]] result<cpu_set> allowed_cpus() const noexcept {
        std::array<std::uint16_t, 128> groups{};
        auto count = static_cast<std::uint16_t>(groups.size());
        if (::GetProcessGroupAffinity(::GetCurrentProcess(), &count, groups.data()) == 0) {
            const std::uint32_t reason = ::GetLastError();
            // Wine does not tell; with one group there is nothing to tell.
            if (::GetActiveProcessorGroupCount() != 1)
                return fail_with_windows(reason, "processor groups of this process",
                                         "run on a machine with 128 groups at most");
            count = 1;
        }
        cpu_set set;
        unsigned long long mask = 0;
        unsigned long long system_mask = 0;
        if (count == 1 &&
            ::GetProcessAffinityMask(::GetCurrentProcess(), &mask, &system_mask) != 0 &&
            mask != 0) {
            windows_groups::insert(set, groups[0], mask);
            return set;
        }
        for (unsigned i = 0; i < count && i < groups.size(); ++i) {
            const unsigned long active = ::GetActiveProcessorCount(groups[i]);
            windows_groups::insert(set, groups[i],
                                   windows_groups::mask_of_first(static_cast<unsigned>(active)));
        }
        return set;
    }

    [[nodiscard]] result<unsigned> current_cpu() const noexcept {
        windows_abi::processor_number number;
        ::GetCurrentProcessorNumberEx(as_system<_PROCESSOR_NUMBER>(&number));
        return windows_groups::cpu_of(number.group, number.number);
    }

private:
    using set_cpu_sets = int __stdcall(void*, const std::uint32_t*, std::uint32_t);
    using get_cpu_sets = int __stdcall(void*, std::uint32_t*, std::uint32_t, std::uint32_t*);
    using list_cpu_sets = int __stdcall(void*, std::uint32_t, std::uint32_t*, void*, std::uint32_t);

    class thread_handle {
    public:
        explicit thread_handle(thread_id thread) noexcept
            : handle_(::OpenThread(set_information | query_information, 0,
                                   static_cast<unsigned long>(thread))) {}
        thread_handle(const thread_handle&) = delete;
        thread_handle& operator=(const thread_handle&) = delete;
        ~thread_handle() {
            if (handle_ != nullptr) static_cast<void>(::CloseHandle(handle_));
        }
        [[nodiscard]] void* get() const noexcept { return handle_; }
        [[nodiscard]] explicit operator bool() const noexcept { return handle_ != nullptr; }

    private:
        static constexpr unsigned long set_information = 0x20;
        static constexpr unsigned long query_information = 0x40;
        void* handle_;
    };

    [[nodiscard]] static tl::unexpected<error> no_such_thread(thread_id thread) noexcept {
        const std::uint32_t reason = ::GetLastError();
        return fail(errc::not_found,
                    fixed_text<160>{"thread "}
                        .append_number(static_cast<std::uint64_t>(thread))
                        .append(": it has ended, or is not of this process"),
                    "give what current_thread() returned, while that thread runs",
                    static_cast<int>(reason));
    }

    [[nodiscard]] static result<> pin(void* thread, const cpu_set& set) noexcept {
        if (set.empty())
            return fail(errc::invalid_argument, "pinning a thread: the set of CPUs is empty",
                        fixed_text<160>{"give a CPU; their numbers are 0 to "}.append_number(
                            cpu_set::capacity - 1));
        std::optional<windows_abi::group_affinity> one = windows_groups::only_group(set);
        if (!one) return select_cpu_sets(thread, set);
        if (::SetThreadGroupAffinity(thread, as_system<const _GROUP_AFFINITY>(&*one), nullptr) ==
            0) {
            const std::uint32_t reason = ::GetLastError();
            fixed_text<160> what{"pinning to CPUs "};
            append_list(what, set);
            return fail_with_windows(reason, what,
                                     reason == 87 ? "choose CPUs of the topology"
                                                  : "let the job object of the process allow it");
        }
        // Without CPU sets there are none that could contradict the affinity.
        const dynamic_library kernel = kernel32();
        if (auto* const clear = kernel.find<set_cpu_sets>("SetThreadSelectedCpuSets"))
            static_cast<void>(clear(thread, nullptr, 0));
        return {};
    }

    /// For a set that spans groups. What the system does not confirm is an error: some
    /// systems answer "done" and do nothing.
    [[nodiscard]] static result<> select_cpu_sets(void* thread, const cpu_set& set) noexcept {
        const dynamic_library kernel = kernel32();
        auto* const select = kernel.find<set_cpu_sets>("SetThreadSelectedCpuSets");
        if (select == nullptr || kernel.find<get_cpu_sets>("GetThreadSelectedCpuSets") == nullptr)
            return fail(errc::unsupported,
                        "pinning to CPUs of several processor groups: no CPU sets here",
                        "choose CPUs of one group, or run Windows 10 or later");
        std::vector<std::uint32_t> ids;
        for (const windows_abi::cpu_set_information& entry : cpu_sets())
            if (set.contains(windows_groups::cpu_of(entry.group, entry.logical_processor_index)))
                ids.push_back(entry.id);
        if (select(thread, ids.data(), static_cast<std::uint32_t>(ids.size())) == 0)
            return fail_with_windows(::GetLastError(), "selecting CPU sets for a thread",
                                     "choose CPUs of the topology");
        const result<cpu_set> now = pin_of(thread);
        if (!now) return fail(now);
        if (*now == set) return {};
        fixed_text<160> cause{"pinning to CPUs of several groups: the system says "};
        return fail(errc::mismatch, append_list(cause, *now), "choose CPUs of one group");
    }

    [[nodiscard]] static result<cpu_set> pin_of(void* thread) noexcept {
        const dynamic_library kernel = kernel32();
        cpu_set set;
        if (auto* const selected = kernel.find<get_cpu_sets>("GetThreadSelectedCpuSets")) {
            std::vector<std::uint32_t> ids(cpu_set::capacity);
            std::uint32_t count = 0;
            if (selected(thread, ids.data(), static_cast<std::uint32_t>(ids.size()), &count) != 0)
                ids.resize(std::min<std::size_t>(count, ids.size()));
            else
                ids.clear();
            if (!ids.empty()) {
                for (const windows_abi::cpu_set_information& entry : cpu_sets())
                    if (std::find(ids.begin(), ids.end(), entry.id) != ids.end())
                        set.insert(
                            windows_groups::cpu_of(entry.group, entry.logical_processor_index));
                return set;
            }
        }
        windows_abi::group_affinity now;
        if (::GetThreadGroupAffinity(thread, as_system<_GROUP_AFFINITY>(&now)) == 0)
            return fail_with_windows(::GetLastError(), "group affinity of a thread",
                                     "ask about a thread of this process");
        if (!windows_groups::insert(set, now.group, now.mask))
            return fail(errc::out_of_range, "group affinity of a thread: a group beyond 127",
                        "run on a machine with fewer processors");
        return set;
    }

    [[nodiscard]] static std::vector<windows_abi::cpu_set_information> cpu_sets() noexcept {
        std::vector<windows_abi::cpu_set_information> found;
        const dynamic_library kernel = kernel32();
        auto* const list = kernel.find<list_cpu_sets>("GetSystemCpuSetInformation");
        std::uint32_t bytes = 0;
        if (list == nullptr) return found;
        static_cast<void>(list(nullptr, 0, &bytes, ::GetCurrentProcess(), 0));
        std::vector<std::byte> raw(bytes);
        if (bytes == 0 || list(raw.data(), bytes, &bytes, ::GetCurrentProcess(), 0) == 0)
            return found;
        for (std::size_t at = 0; at + sizeof(windows_abi::cpu_set_information) <= raw.size();) {
            windows_abi::cpu_set_information entry;
            std::memcpy(&entry, raw.data() + at, sizeof entry);
            if (entry.size < sizeof entry) break;
            if (entry.type == 0) found.push_back(entry);
            at += entry.size;
        }
        return found;
    }

    [[nodiscard]] static dynamic_library kernel32() noexcept {
        result<dynamic_library> kernel = dynamic_library::open("kernel32.dll");
        return kernel ? std::move(*kernel) : dynamic_library{};
    }
};

} // namespace vm_accel::inline v0::os

#else

namespace vm_accel::inline v0::os {

struct windows_threads : unsupported_threads {
    static constexpr std::string_view name = "windows";

    [[nodiscard]] result<> pin_thread(thread_id /*thread*/, const cpu_set& set) const noexcept {
        return pin_current_thread(set);
    }
    [[nodiscard]] result<cpu_set> pin_of(thread_id /*thread*/) const noexcept {
        return current_pin();
    }
    [[nodiscard]] thread_id current_thread() const noexcept { return {}; }
};

} // namespace vm_accel::inline v0::os

#endif
