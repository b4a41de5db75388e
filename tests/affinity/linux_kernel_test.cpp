/// The running kernel: what it grants a thread, to whom, and what it does to pins when a cpuset
/// changes. Each case is played in a child process, so that nothing outlives it.
#include <vm_accel/affinity/affinity.hpp>
#include <vm_accel/affinity/linux_platform.hpp>

#include <catch2/catch.hpp>

#if defined(__linux__)

#include "own_thread.hpp"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#ifndef PR_SCHED_CORE // C libraries before 2.34
#define PR_SCHED_CORE 62
#endif

using namespace vm_accel;
using affinity_threads::staying_thread;
using os::thread_priority;

namespace {

/// What a child process has to say: nothing when all was well.
struct verdict {
    std::string failure{};
    bool skipped = false; ///< `failure` is then the reason
};

/// Plays `act` in a child and reports what it found.
template <class Act>
void in_a_child(Act act) {
    int ends[2];
    REQUIRE(::pipe(ends) == 0);
    const ::pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        const verdict said = act();
        const ::ssize_t n = ::write(ends[1], said.failure.data(), said.failure.size());
        ::_exit(n < 0 ? 3 : said.skipped ? 2 : said.failure.empty() ? 0 : 1);
    }
    ::close(ends[1]);
    std::string text;
    char part[512];
    for (::ssize_t n = 0; (n = ::read(ends[0], part, sizeof part)) > 0;)
        text.append(part, static_cast<std::size_t>(n));
    ::close(ends[0]);
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    REQUIRE(WIFEXITED(status));
    if (WEXITSTATUS(status) == 2) {
        std::cout << "SKIP: " << text << '\n';
        return;
    }
    INFO(text);
    CHECK(WEXITSTATUS(status) == 0);
}

verdict skip(std::string reason) { return {std::move(reason), true}; }
verdict skip(const error& why) { return skip(std::string{why.cause.view()}); }
verdict wrong(std::string what) { return {std::move(what), false}; }
verdict wrong(std::string_view what, const error& why) {
    std::ostringstream text;
    text << what << ": " << why;
    return {text.str(), false};
}

/// Whether what refused is no limit of the user's.
bool by_sandbox(const error& why) {
    return why == errc::permission_denied &&
           why.cure.view().find("seccomp") != std::string_view::npos;
}

bool write_file(const std::string& path, const std::string& text) {
    std::ofstream file{path};
    return (file << text << std::flush).good();
}
std::string read_file(const std::string& path) {
    std::ifstream file{path};
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}
std::string list_of(const os::cpu_set& set) {
    fixed_text<200> text;
    return std::string{append_list(text, set).view()};
}

bool set_limits(unsigned rtprio, unsigned nice) {
    const ::rlimit real_time{rtprio, rtprio};
    const ::rlimit niceness{nice, nice};
    return ::setrlimit(RLIMIT_RTPRIO, &real_time) == 0 && ::setrlimit(RLIMIT_NICE, &niceness) == 0;
}
bool become_ordinary() {
    return ::setresgid(65534, 65534, 65534) == 0 && ::setresuid(65534, 65534, 65534) == 0;
}

/// Has a system call fail with `answer` from now on; prctl only where it is about core groups.
bool answer_calls(long call, int answer) {
    ::sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(::seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<unsigned>(call), 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(::seccomp_data, args)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PR_SCHED_CORE, 0,
                 static_cast<unsigned char>(call == SYS_prctl ? 1 : 0)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<unsigned>(answer)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const ::sock_fprog filter{std::size(program), program};
    return ::prctl(PR_SET_NO_NEW_PRIVS, 1L, 0L, 0L, 0L) == 0 &&
           ::prctl(PR_SET_SECCOMP, static_cast<long>(SECCOMP_MODE_FILTER), &filter) == 0;
}

/// What a kernel with core scheduling and utilization clamps answers, after its documentation;
/// the kernels of most distributions have neither.
class modelled_kernel {
public:
    /// Answers the calls of this thread, and of those that it starts, from now on.
    [[nodiscard]] static bool begin() {
        static std::atomic<int> listener{-1};
        std::thread{[] {
            while (listener < 0)
                std::this_thread::yield();
            modelled_kernel{}.serve(listener);
        }}.detach(); // until the child process ends
        ::sock_filter program[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(::seccomp_data, nr)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_sched_setattr, 4, 0),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_sched_getattr, 3, 0),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_prctl, 0, 3),
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(::seccomp_data, args)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PR_SCHED_CORE, 0, 1),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        };
        const ::sock_fprog filter{std::size(program), program};
        if (::prctl(PR_SET_NO_NEW_PRIVS, 1L, 0L, 0L, 0L) != 0) return false;
        const long made = ::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
                                    SECCOMP_FILTER_FLAG_NEW_LISTENER, &filter);
        if (made < 0) return false;
        listener = static_cast<int>(made);
        return true;
    }

private:
    struct thread_state {
        std::uint64_t cookie = 0;
        std::uint32_t least = 0, most = 1024;
    };

    void serve(int listener) {
        for (;;) {
            ::seccomp_notif asked{};
            if (::ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &asked) != 0) continue;
            ::seccomp_notif_resp answer{};
            answer.id = asked.id;
            answer.error = asked.data.nr == SYS_prctl ? -core_scheduling(asked.pid, asked.data.args)
                                                      : -attributes(asked.pid, asked.data);
            static_cast<void>(::ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer));
        }
    }

    /// prctl(PR_SCHED_CORE, command, thread, kind of number, where to)
    int core_scheduling(std::uint32_t caller, const __u64 (&args)[6]) {
        const auto target = args[2] == 0 ? caller : static_cast<std::uint32_t>(args[2]);
        if (args[3] != 0) return EINVAL; // not one thread
        switch (args[1]) {
        case 0: // get
            if (args[4] == 0 || args[4] % 8 != 0) return EINVAL;
            *reinterpret_cast<std::uint64_t*>(args[4]) = threads_[target].cookie;
            return 0;
        case 1: // create
            if (args[4] != 0) return EINVAL;
            threads_[target].cookie = cookies_ += 0x40;
            return 0;
        case 3: // share from
            if (args[4] != 0) return EINVAL;
            threads_[caller].cookie = threads_[target].cookie;
            return 0;
        default:
            return EINVAL;
        }
    }

    /// sched_setattr(thread, attributes, flags), sched_getattr(thread, attributes, size, flags):
    /// what they say of clamps. struct sched_attr of 5.3 has 56 bytes, the clamps at the end.
    int attributes(std::uint32_t caller, const ::seccomp_data& call) {
        const auto target = call.args[0] == 0 ? caller : static_cast<std::uint32_t>(call.args[0]);
        auto* const bytes = reinterpret_cast<char*>(call.args[1]);
        const auto read = [&](std::size_t at, auto value) {
            std::memcpy(&value, bytes + at, sizeof value);
            return value;
        };
        thread_state& state = threads_[target];
        if (call.nr == SYS_sched_setattr) {
            if (read(0, std::uint32_t{}) < 56) return EINVAL;
            if (read(8, std::uint64_t{}) != (0x08 | 0x10 | 0x20 | 0x40)) return EINVAL;
            state.least = read(48, std::uint32_t{});
            state.most = read(52, std::uint32_t{});
            return 0;
        }
        if (call.args[2] < 56) return EINVAL;
        std::memset(bytes, 0, 56);
        std::memcpy(bytes + 48, &state.least, 4);
        std::memcpy(bytes + 52, &state.most, 4);
        return 0;
    }

    std::map<std::uint32_t, thread_state> threads_{};
    std::uint64_t cookies_ = 0;
};

/// A cpuset of this process's own, with all that its parent has, in either kind of cgroup.
/// Removed at the end, the process being back where it was.
class own_cpuset {
public:
    own_cpuset() {
        std::ifstream mounts{"/proc/self/mounts"};
        for (std::string line; std::getline(mounts, line);) {
            std::istringstream words{line};
            std::string device, where, type, options;
            words >> device >> where >> type >> options;
            const bool first_kind = type == "cgroup" && options.find("cpuset") != std::string::npos;
            if ((first_kind || type == "cgroup2") && enter(where, first_kind)) return;
        }
    }
    own_cpuset(const own_cpuset&) = delete;
    own_cpuset& operator=(const own_cpuset&) = delete;
    ~own_cpuset() {
        if (folder_.empty()) return;
        write_file(parent_ + "/cgroup.procs", "0");
        ::rmdir(folder_.c_str());
    }

    [[nodiscard]] bool is_made() const { return !folder_.empty(); }
    [[nodiscard]] bool allow(const os::cpu_set& cpus) {
        return write_file(folder_ + "/cpuset.cpus", list_of(cpus));
    }

private:
    bool enter(const std::string& where, bool first_kind) {
        const std::string folder = where + "/vm_accel_test_" + std::to_string(::getpid());
        if (!first_kind && !write_file(where + "/cgroup.subtree_control", "+cpuset")) return false;
        if (::mkdir(folder.c_str(), 0755) != 0) return false;
        const char* const effective = first_kind ? "/cpuset.effective_" : "/cpuset.";
        const char* const end = first_kind ? "" : ".effective";
        for (const std::string what : {"cpus", "mems"})
            write_file(folder + "/cpuset." + what, read_file(where + effective + what + end));
        parent_ = where;
        if (!write_file(folder + "/cgroup.procs", "0")) {
            ::rmdir(folder.c_str());
            return false;
        }
        folder_ = folder;
        return true;
    }

    std::string parent_{}, folder_{};
};

/// Where the kernel lets a thread run, asked without the library.
std::optional<std::string> pins_differ(affinity<linux_platform>& host) {
    for (const vcpu_pin& pin : host.pins()) {
        ::cpu_set_t set;
        CPU_ZERO(&set);
        const auto thread = static_cast<::pid_t>(pin.thread);
        if (::sched_getaffinity(thread, sizeof set, &set) != 0) return "sched_getaffinity";
        const unsigned cpu = host.current_plan().assignments[pin.vcpu].cpu;
        if (CPU_COUNT(&set) != 1 || !CPU_ISSET(cpu, &set))
            return "vCPU " + std::to_string(pin.vcpu) + " is not on CPU " + std::to_string(cpu);
    }
    return std::nullopt;
}

} // namespace

TEST_CASE("kernel: real time and nice are given, and seen from outside", "[kernel]") {
    struct row {
        thread_priority priority;
        int policy, level, nice;
        const char* text;
    };
    const row r = GENERATE(values<row>({
        {thread_priority::fifo(10), SCHED_FIFO, 10, 0, "SCHED_FIFO 10"},
        {thread_priority::round_robin(1), SCHED_RR, 1, 0, "SCHED_RR 1"},
        {thread_priority::normal(7), SCHED_OTHER, 0, 7, "SCHED_OTHER, nice 7"},
        {thread_priority::high(), SCHED_OTHER, 0, os::linux_scheduling::high_nice,
         "SCHED_OTHER, nice -10"},
    }));
    in_a_child([&]() -> verdict {
        affinity<linux_platform> host;
        if (const auto done = host.init(); !done) return wrong("init", done.error());
        if (const auto made = host.configure({1}, {r.priority, {}, {}}); !made)
            return wrong("configure", made.error());
        result<> placed;
        const staying_thread vcpu{[&] { placed = host.place_current_thread(0); }};
        if (!placed && placed.error() == errc::permission_denied) return skip(placed.error());
        if (!placed) return wrong("place", placed.error());
        const vcpu_pin pin = host.pins()[0];
        const auto thread = static_cast<::pid_t>(pin.thread);
        ::sched_param parameters{};
        if (::sched_getscheduler(thread) != r.policy) return wrong("another policy");
        if (::sched_getparam(thread, &parameters) != 0 || parameters.sched_priority != r.level)
            return wrong("another level");
        if (::getpriority(PRIO_PROCESS, static_cast<::id_t>(thread)) != r.nice)
            return wrong("another nice");
        if (pin.scheduling.priority.given->text != r.text)
            return wrong(std::string{pin.scheduling.priority.given->text.view()});
        if (::sched_getscheduler(0) != SCHED_OTHER) return wrong("the whole process was changed");
        return {};
    });
}

TEST_CASE("kernel: an ordinary user gets what the limits allow, else the limit to raise",
          "[kernel]") {
    struct row {
        unsigned rtprio, nice;
        thread_priority wanted;
        const char* cure; ///< empty: it is granted
    };
    const row r = GENERATE(values<row>({
        {0, 0, thread_priority::fifo(1),
         "raise RLIMIT_RTPRIO to 1 (ulimit -r), or give CAP_SYS_NICE"},
        {5, 0, thread_priority::fifo(5), ""},
        {5, 0, thread_priority::round_robin(6), "raise RLIMIT_RTPRIO to 6"},
        {0, 0, thread_priority::normal(5), ""},
        {0, 0, thread_priority::normal(-1), "raise RLIMIT_NICE to 21 (ulimit -e)"},
        {0, 25, thread_priority::normal(-5), ""},
        {0, 25, thread_priority::high(), "raise RLIMIT_NICE to 30"},
    }));
    in_a_child([&]() -> verdict {
        if (!set_limits(r.rtprio, r.nice)) return skip("this process may not raise its limits");
        if (!become_ordinary()) return skip("root cannot become an ordinary user here");
        const auto given = os::linux_scheduling{}.set_priority(r.wanted);
        if (std::string_view{r.cure}.empty()) {
            if (!given && by_sandbox(given.error())) return skip(given.error());
            if (!given) return wrong("refused", given.error());
            if (!given->as_requested) return wrong("not as requested");
            return {};
        }
        if (given) return wrong("granted");
        if (by_sandbox(given.error())) return skip(given.error());
        if (given.error() != errc::permission_denied) return wrong("error", given.error());
        if (given.error().cure.view().find(r.cure) == std::string_view::npos)
            return wrong("cure", given.error());
        return {};
    });
}

TEST_CASE("kernel: each refusal has its cause and its cure", "[kernel]") {
    struct row {
        long call;  ///< that a filter refuses
        int answer; ///< with this
        errc code;
        const char* cause;
        const char* cure;
    };
    const row r = GENERATE(values<row>({
        {SYS_prctl, EINVAL, errc::unsupported, "this kernel has none", "CONFIG_SCHED_CORE"},
        {SYS_prctl, ENODEV, errc::unavailable, "no core has a second thread", "smt"},
        {SYS_prctl, ESRCH, errc::not_found, "has ended", "start a group"},
        {SYS_prctl, EPERM, errc::permission_denied, "Operation not permitted", "ptrace"},
        {SYS_sched_setattr, ENOSYS, errc::unsupported, "thread priority fifo 1", "seccomp"},
        {SYS_sched_setattr, E2BIG, errc::unsupported, "this kernel has none", "UCLAMP"},
        {SYS_sched_setattr, EOPNOTSUPP, errc::unsupported, "this kernel has none", "UCLAMP"},
        {SYS_sched_setattr, EPERM, errc::permission_denied, "utilization clamp", "CAP_SYS_NICE"},
        {SYS_sched_getattr, EPERM, errc::permission_denied, "sched_getattr", "seccomp"},
        {SYS_sched_setaffinity, EPERM, errc::permission_denied, "pinning to CPUs", "seccomp"},
        {SYS_sched_setaffinity, EINVAL, errc::invalid_argument, "pinning to CPUs", "online"},
    }));
    in_a_child([&]() -> verdict {
        if (!answer_calls(r.call, r.answer))
            return skip("this kernel lets nobody filter system calls");
        const os::linux_scheduling scheduling;
        std::vector<error> said;
        const auto keep = [&](const auto& done) {
            if (!done) said.push_back(done.error());
        };
        if (r.call == SYS_prctl) {
            keep(scheduling.join_core_group(os::linux_threads{}.current_thread()));
        } else if (r.call == SYS_sched_setaffinity) {
            keep(os::linux_threads{}.cpuset_cpus());
        } else if (r.answer == ENOSYS) {
            keep(scheduling.set_priority(thread_priority::fifo(1)));
        } else if (r.call == SYS_sched_setattr) {
            keep(scheduling.clamp_utilization({1, 2}));
        } else {
            keep(scheduling.priority());
        }
        if (said.size() != 1) return wrong("it was not refused");
        const bool as_told = said[0].code == r.code && said[0].os_error == r.answer &&
                             said[0].cause.view().find(r.cause) != std::string_view::npos &&
                             said[0].cure.view().find(r.cure) != std::string_view::npos;
        return as_told ? verdict{} : wrong("it says", said[0]);
    });
}

TEST_CASE("kernel: core groups are the kernel's cookies, one for a VM", "[kernel]") {
    const bool modelled = GENERATE(false, true);
    in_a_child([&]() -> verdict {
        affinity<linux_platform> host;
        if (const auto done = host.init(); !done) return wrong("init", done.error());
        scheduling_request wishes{{}, {}, core_sharing::this_vm};
        if (modelled) {
            if (!modelled_kernel::begin())
                return skip("this kernel lets nobody filter system calls");
            wishes.utilization = os::utilization_clamp{512, 1000};
        }
        if (const auto made = host.configure({3}, wishes); !made)
            return wrong("configure", made.error());
        result<> placed;
        std::deque<staying_thread> vcpus;
        for (unsigned v = 0; v < 3; ++v) {
            vcpus.emplace_back([&] { placed = host.place_current_thread(v); });
            if (!modelled && !placed &&
                (placed.error() == errc::unsupported || placed.error() == errc::unavailable))
                return skip(placed.error());
            if (!placed && by_sandbox(placed.error())) return skip(placed.error());
            if (!placed) return wrong("place", placed.error());
        }
        const auto pins = host.pins();
        const os::core_group group = *pins[0].scheduling.sharing.given;
        if (group == os::core_group{}) return wrong("no cookie");
        for (const vcpu_pin& pin : pins) {
            if (*pin.scheduling.sharing.given != group) return wrong("another cookie");
            if (pin.scheduling.utilization.given != wishes.utilization)
                return wrong("another clamp");
        }
        // The next VM's vCPUs, and this thread, are in none of them.
        if (*os::linux_scheduling{}.current_core_group() != os::core_group{})
            return wrong("the whole process was changed");
        affinity<linux_platform> other;
        if (!other.init() || !other.configure({1}, {{}, {}, core_sharing::nobody}))
            return wrong("a second VM");
        vcpus.emplace_back([&] { placed = other.place_current_thread(0); });
        if (!placed || *other.pins()[0].scheduling.sharing.given == group)
            return wrong("a second VM shares the group");
        return {};
    });
}

TEST_CASE("kernel: threads follow a cpuset that changes under them", "[kernel]") {
    in_a_child([]() -> verdict {
        affinity<linux_platform> host;
        if (const auto done = host.init(); !done) return wrong("init", done.error());
        const os::cpu_set all = host.topology().cpu_set();
        if (all.count() < 2) return skip("needs two CPUs that this thread may use");
        const os::cpu_set last = [&] {
            unsigned cpu = all.next(0);
            while (all.next(cpu + 1) < os::cpu_set::capacity)
                cpu = all.next(cpu + 1);
            return os::cpu_set::of(cpu);
        }();
        if (const auto made = host.configure(2, vcpu_policy::one_per_core); !made)
            return wrong("configure", made.error());
        const vcpu_plan first_plan = host.current_plan();
        result<> placed;
        std::deque<staying_thread> threads;
        for (unsigned v = 0; v < 2; ++v) {
            threads.emplace_back([&] { placed = host.place_current_thread(v); });
            if (!placed && placed.error() == errc::permission_denied) return skip(placed.error());
            if (!placed) return wrong("place", placed.error());
        }
        threads.emplace_back([&] { placed = host.place_vmm_thread("disk-io"); });
        if (!placed) return wrong("place another thread", placed.error());

        own_cpuset cpuset;
        if (!cpuset.is_made()) return skip("no cpuset can be made here");
        if (!cpuset.allow(last)) return wrong("the cpuset cannot be narrowed");
        auto changes = host.follow();
        if (!changes) return wrong("follow", changes.error());
        if (!changes->planned_anew || !changes->in_place()) return wrong("not planned anew");
        if (!(changes->allowed == last)) return wrong("allowed are " + list_of(changes->allowed));
        if (!host.current_plan().overcommitted()) return wrong("two vCPUs on one CPU unsaid");
        if (const auto how = pins_differ(host)) return wrong("narrow: " + *how);
        if (!host.follow()->none()) return wrong("it does not come to rest");

        if (!cpuset.allow(all)) return wrong("the cpuset cannot be widened");
        changes = host.follow();
        if (!changes) return wrong("follow again", changes.error());
        if (!(changes->allowed == all)) return wrong("allowed are " + list_of(changes->allowed));
        if (host.current_plan().assignments != first_plan.assignments)
            return wrong("another plan than in the beginning");
        if (const auto how = pins_differ(host)) return wrong("wide: " + *how);

        // Somebody moves a thread by hand; one ends.
        const auto thread = static_cast<::pid_t>(host.pins()[0].thread);
        ::cpu_set_t elsewhere;
        CPU_ZERO(&elsewhere);
        for (unsigned cpu = all.next(0); cpu < CPU_SETSIZE; cpu = all.next(cpu + 1))
            CPU_SET(cpu, &elsewhere);
        if (::sched_setaffinity(thread, sizeof elsewhere, &elsewhere) != 0)
            return wrong("a thread cannot be moved");
        threads.back().let_go();
        changes = host.follow();
        if (!changes) return wrong("follow", changes.error());
        if (changes->planned_anew || changes->moves.size() != 2 || !changes->in_place() ||
            !changes->moves[1].has_ended())
            return wrong("what happened to threads is not told");
        if (const auto how = pins_differ(host)) return wrong("moved by hand: " + *how);
        return {};
    });
}

TEST_CASE("kernel: what taskset took from a process stays taken when its cpuset grows",
          "[kernel]") {
    in_a_child([]() -> verdict {
        const auto all = os::linux_threads{}.cpuset_cpus();
        if (!all) return skip(all.error());
        if (all->count() < 2) return skip("needs two CPUs that this thread may use");
        const os::cpu_set one = os::cpu_set::of(all->next(0));
        if (const auto bound = os::linux_threads{}.pin_current_thread(one); !bound)
            return skip(bound.error());
        // What the parent knew is not this process's.
        affinity<linux_platform> host;
        const auto fresh = load_topology();
        if (!fresh || !(fresh->cpu_set() == one)) return wrong("the binding is not honoured");
        cpuset_watch watch;
        watch.begin(*fresh, all);
        vcpu_plan plan = watch.plan(*fresh, {2}).value();
        std::vector<vcpu_pin> pins;
        std::vector<vmm_thread_pin> others;
        linux_platform platform;
        const auto changes = watch.look(platform, *fresh, {2}, plan, pins, others, true);
        if (!changes) return wrong("look", changes.error());
        if (!changes->none() || !(changes->allowed == one))
            return wrong("allowed are " + list_of(changes->allowed));
        return {};
    });
}

TEST_CASE("kernel: isolated CPUs are known, left alone, and given on request", "[kernel]") {
    in_a_child([]() -> verdict {
        const os::cpu_set isolated = os::isolated_cpus();
        if (isolated.empty()) return skip("no CPU of this machine is isolated");
        affinity<linux_platform> host;
        if (const auto done = host.init(); !done) return wrong("init", done.error());
        if (!(isolated - host.topology().cpu_set()).empty()) return wrong("some are not known");
        const auto ordinary = host.plan(static_cast<unsigned>(host.topology().cpus.size()));
        if (!ordinary) return wrong("plan", ordinary.error());
        for (const vcpu_assignment& to : ordinary->assignments)
            if (isolated.contains(to.cpu)) return wrong("an isolated CPU is taken");
        vcpu_request request{isolated.count()};
        request.isolated = isolated_use::first;
        if (const auto made = host.configure(request); !made)
            return wrong("configure", made.error());
        std::deque<staying_thread> threads;
        result<> placed;
        for (unsigned v = 0; v < request.vcpus; ++v) {
            threads.emplace_back([&] { placed = host.place_current_thread(v); });
            if (!placed && by_sandbox(placed.error())) return skip(placed.error());
            if (!placed) return wrong("place", placed.error());
            if (!isolated.contains(host.pins()[v].actual.next(0))) return wrong("not isolated");
        }
        const auto changes = host.follow();
        if (!changes) return wrong("follow", changes.error());
        if (!changes->none()) return wrong("isolated CPUs look like a changed cpuset");
        return {};
    });
}

// Switches a CPU off: for machines that are there for it. `unit_tests "[hotplug]"`
TEST_CASE("kernel: threads leave a CPU that goes offline, and come back", "[.][hotplug]") {
    in_a_child([]() -> verdict {
        affinity<linux_platform> host;
        if (const auto done = host.init(); !done) return wrong("init", done.error());
        const auto count = static_cast<unsigned>(host.topology().cpus.size());
        if (count < 2) return skip("needs two CPUs that this thread may use");
        const unsigned victim = host.topology().cpus.back().os_index;
        if (const auto made = host.configure(count); !made) return wrong("configure", made.error());
        std::deque<staying_thread> threads;
        result<> placed;
        for (unsigned v = 0; v < count; ++v) {
            threads.emplace_back([&] { placed = host.place_current_thread(v); });
            if (!placed) return wrong("place", placed.error());
        }
        const vcpu_plan first = host.current_plan();
        const std::string online =
            "/sys/devices/system/cpu/cpu" + std::to_string(victim) + "/online";
        if (!write_file(online, "0")) return wrong("the CPU cannot be switched off");
        auto changes = host.follow();
        if (!changes || !changes->in_place() || changes->allowed.contains(victim)) {
            static_cast<void>(write_file(online, "1"));
            return changes ? wrong("it is still planned with") : wrong("follow", changes.error());
        }
        const auto how = pins_differ(host);
        if (!write_file(online, "1")) return wrong("the CPU cannot be switched on");
        if (how) return wrong("offline: " + *how);
        changes = host.follow();
        if (!changes) return wrong("follow again", changes.error());
        if (const auto again = pins_differ(host)) return wrong("online: " + *again);
        if (host.current_plan().assignments != first.assignments)
            return wrong("another plan than in the beginning");
        return {};
    });
}

#endif
