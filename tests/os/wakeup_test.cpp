#include <vm_accel/os/wakeup.hpp>

#include <catch2/catch.hpp>

#if defined(__linux__)
#include <poll.h>
#endif

using namespace vm_accel;

#if defined(__linux__)

namespace {

bool readable(int fd) {
    ::pollfd asked{fd, POLLIN, 0};
    return ::poll(&asked, 1, 0) == 1 && (asked.revents & POLLIN) != 0;
}

} // namespace

TEST_CASE("wakeup: signalled until cleared, and nothing before it is open") {
    os::wakeup bell;
    CHECK(bell.fd() == -1);
    bell.signal();
    bell.clear();
    REQUIRE(bell.open());
    CHECK_FALSE(readable(bell.fd()));
    bell.signal();
    bell.signal();
    CHECK(readable(bell.fd()));
    bell.clear();
    CHECK_FALSE(readable(bell.fd()));
}

TEST_CASE("wakeup: opened again, it is the descriptor that others wait on") {
    os::wakeup bell;
    REQUIRE(bell.open());
    const int waited_on = bell.fd();
    bell.signal();
    REQUIRE(bell.open());
    CHECK(bell.fd() == waited_on);
    CHECK(readable(waited_on)); // a signal is not lost either
}

#endif
