// count-events PMU EVENT[:STREAM]... -- COMMAND...
//
// Counts events of a performance monitor of the kernel (a name below
// /sys/bus/event_source/devices) while COMMAND runs, and prints one line per
// event: "count EVENT stream STREAM COUNT". What perf(1) does, in a program small
// enough for an initial file system. The filter is that of arm_smmuv3_pmu: one
// StreamID, or all of them where none is given.
#include <linux/perf_event.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {

[[noreturn]] void give_up(const std::string& what) {
    std::perror(what.c_str());
    std::exit(1);
}

// The first number in a file of the monitor.
unsigned number_in(const std::string& monitor, const char* file) {
    const std::string path = "/sys/bus/event_source/devices/" + monitor + "/" + file;
    std::FILE* const opened = std::fopen(path.c_str(), "r");
    unsigned number = 0;
    if (opened == nullptr || std::fscanf(opened, "%u", &number) != 1) give_up(path);
    std::fclose(opened);
    return number;
}

struct counted_event {
    std::uint64_t number = 0;
    bool filtered = false;
    std::uint64_t stream = 0;
    int counter = -1;
};

counted_event event_of(const char* text) {
    counted_event event;
    char* end = nullptr;
    event.number = std::strtoull(text, &end, 0);
    event.filtered = *end == ':';
    if (event.filtered) event.stream = std::strtoull(end + 1, nullptr, 0);
    return event;
}

} // namespace

int main(int count, char** words) {
    constexpr int most = 8;
    counted_event events[most];
    int used = 0, next = 2;
    while (next < count && std::strcmp(words[next], "--") != 0 && used < most)
        events[used++] = event_of(words[next++]);
    if (used == 0 || next + 1 >= count || std::strcmp(words[next], "--") != 0) {
        std::fprintf(stderr, "count-events PMU EVENT[:STREAM]... -- COMMAND...\n");
        return 2;
    }
    const std::string monitor = words[1];
    perf_event_attr wanted{};
    wanted.size = sizeof wanted;
    wanted.type = number_in(monitor, "type");
    wanted.disabled = 1;
    const int cpu = static_cast<int>(number_in(monitor, "cpumask"));
    for (int i = 0; i < used; ++i) {
        wanted.config = events[i].number;
        wanted.config1 =
            events[i].filtered ? events[i].stream | std::uint64_t{1} << 33 : std::uint64_t{0};
        events[i].counter =
            static_cast<int>(::syscall(SYS_perf_event_open, &wanted, -1, cpu, -1, 0));
        if (events[i].counter < 0) give_up("perf_event_open");
    }
    for (int i = 0; i < used; ++i)
        if (::ioctl(events[i].counter, PERF_EVENT_IOC_ENABLE, 0) != 0) give_up("enable");
    const pid_t child = ::fork();
    if (child == 0) {
        ::execvp(words[next + 1], words + next + 1);
        give_up(words[next + 1]);
    }
    int status = -1;
    if (child < 0 || ::waitpid(child, &status, 0) != child) give_up("the command");
    for (int i = 0; i < used; ++i)
        if (::ioctl(events[i].counter, PERF_EVENT_IOC_DISABLE, 0) != 0) give_up("disable");
    for (int i = 0; i < used; ++i) {
        std::uint64_t value = 0;
        if (::read(events[i].counter, &value, sizeof value) != sizeof value) give_up("read");
        if (events[i].filtered) {
            std::printf("count %llu stream 0x%llx %llu\n",
                        static_cast<unsigned long long>(events[i].number),
                        static_cast<unsigned long long>(events[i].stream),
                        static_cast<unsigned long long>(value));
        } else {
            std::printf("count %llu stream any %llu\n",
                        static_cast<unsigned long long>(events[i].number),
                        static_cast<unsigned long long>(value));
        }
    }
    return status == 0 ? 0 : 1;
}
