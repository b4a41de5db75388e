// refuse-calls CALL[,CALL]... PROGRAM ARGUMENT...
//
// Runs PROGRAM as a container would whose seccomp profile forbids these system
// calls: each of them fails with EPERM, in PROGRAM and in all that it starts.
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <vector>

namespace {

struct known_call {
    std::string_view name;
    std::uint32_t number;
};
// What the default profiles of container engines keep from processes without
// CAP_SYS_NICE, and the calls of the library beside them.
constexpr std::array<known_call, 11> known{{
    {"get_mempolicy", SYS_get_mempolicy},
    {"set_mempolicy", SYS_set_mempolicy},
    {"mbind", SYS_mbind},
    {"move_pages", SYS_move_pages},
    {"migrate_pages", SYS_migrate_pages},
    {"madvise", SYS_madvise},
    {"memfd_create", SYS_memfd_create},
    {"sched_setaffinity", SYS_sched_setaffinity},
    {"sched_setscheduler", SYS_sched_setscheduler},
    {"sched_setattr", SYS_sched_setattr},
    {"membarrier", SYS_membarrier},
}};

#if defined(__x86_64__)
constexpr std::uint32_t architecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
constexpr std::uint32_t architecture = AUDIT_ARCH_AARCH64;
#else
#error "refuse-calls knows the system calls of x86-64 and arm64"
#endif

[[noreturn]] void give_up(const char* what) {
    std::perror(what);
    std::exit(125);
}

sock_filter load(std::size_t offset) {
    return BPF_STMT(BPF_LD | BPF_W | BPF_ABS, static_cast<std::uint32_t>(offset));
}

} // namespace

int main(int argc, char** argv) {
    if (argc < 3) {
        std::fputs("usage: refuse-calls CALL[,CALL]... PROGRAM ARGUMENT...\n", stderr);
        return 125;
    }
    std::vector<sock_filter> filter{
        load(offsetof(seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, architecture, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        load(offsetof(seccomp_data, nr)),
    };
    for (std::string_view rest = argv[1]; !rest.empty();) {
        const std::string_view name = rest.substr(0, rest.find(','));
        rest.remove_prefix(name.size() < rest.size() ? name.size() + 1 : rest.size());
        const known_call* found = nullptr;
        for (const known_call& call : known)
            if (call.name == name) found = &call;
        if (found == nullptr) {
            std::fprintf(stderr, "refuse-calls: no such call is known: %.*s\n",
                         static_cast<int>(name.size()), name.data());
            return 125;
        }
        filter.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, found->number, 0, 1));
        filter.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM));
    }
    filter.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    const sock_fprog program{static_cast<unsigned short>(filter.size()), filter.data()};
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) give_up("PR_SET_NO_NEW_PRIVS");
    if (::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) give_up("PR_SET_SECCOMP");
    ::execv(argv[2], argv + 2);
    give_up(argv[2]);
}
