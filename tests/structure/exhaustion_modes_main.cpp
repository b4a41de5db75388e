// The half with exceptions: it gets std::bad_alloc, whatever the other half does. The
// half without ends its program, as a standard container cannot be told.
#include "exhaustion_modes.hpp"

#include <vm_accel/numa/pmr_adapter.hpp>
#include <vm_accel/numa/standard_allocator.hpp>

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>

namespace {

bool aborts_without_exceptions() {
    const ::pid_t child = ::fork();
    if (child == 0) {
        exhausts_without_exceptions();
        ::_exit(0);
    }
    int status = 0;
    return child > 0 && ::waitpid(child, &status, 0) == child && WIFSIGNALED(status) &&
           WTERMSIG(status) == SIGABRT;
}

} // namespace

int main() {
    if (!allocates_without_exceptions()) return 2;
    if (reporter_without_exceptions() ==
        reinterpret_cast<const void*>(&vm_accel::os::report_exhaustion)) {
        std::puts("one report_exhaustion for code with and without exceptions");
        return 3;
    }
    if (!aborts_without_exceptions()) {
        std::puts("a program without exceptions goes on without the memory");
        return 4;
    }
    vm_accel::object_pool<> pool;
    if (!pool.open({.capacity_bytes = 2u << 20})) return 2;
    unsigned caught = 0;
    try {
        vm_accel::standard_allocator<int> allocator{pool};
        static_cast<void>(allocator.allocate(4u << 20));
    } catch (const std::bad_alloc&) {
        ++caught;
    }
    try {
        vm_accel::pmr_adapter<> resource{pool};
        static_cast<void>(resource.allocate(16u << 20));
    } catch (const std::bad_alloc&) {
        ++caught;
    }
    return caught == 2 ? 0 : 1;
}
