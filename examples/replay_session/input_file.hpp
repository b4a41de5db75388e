/// Reads an input whole: a file, an .xz file through the xz program, or "-".
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/descriptor.hpp>

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <string_view>

namespace replay {

[[nodiscard]] inline vm_accel::result<std::string> read_all(int fd, std::string_view name) {
    std::string text;
    char chunk[65536];
    for (;;) {
        const ssize_t n = ::read(fd, chunk, sizeof chunk);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return vm_accel::os::fail_with(errno, name, "give a readable file");
        if (n == 0) return text;
        text.append(chunk, static_cast<std::size_t>(n));
    }
}

/// The contents of an .xz file.
[[nodiscard]] inline vm_accel::result<std::string> read_xz(const std::string& path) {
    int ends[2];
    if (::pipe(ends) != 0) return vm_accel::os::fail_with(errno, "pipe", "close some files");
    vm_accel::os::descriptor from{ends[0]};
    vm_accel::os::descriptor to{ends[1]};
    const pid_t child = ::fork();
    if (child < 0) return vm_accel::os::fail_with(errno, "fork", "end some processes");
    if (child == 0) {
        ::dup2(to.get(), STDOUT_FILENO);
        ::execlp("xz", "xz", "-dc", "--", path.c_str(), static_cast<char*>(nullptr));
        ::_exit(127);
    }
    to.close();
    vm_accel::result<std::string> text = read_all(from.get(), path);
    int status = 0;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {}
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        return vm_accel::fail(
            vm_accel::errc::system_failure,
            vm_accel::fixed_text<160>{path}.append(": xz could not decompress it"),
            "install xz-utils, or decompress the file first");
    }
    return text;
}

/// Everything in `path`; "-" is standard input (not compressed).
[[nodiscard]] inline vm_accel::result<std::string> read_input(const std::string& path) {
    if (path == "-") return read_all(STDIN_FILENO, "standard input");
    const vm_accel::os::descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    if (!file) {
        return vm_accel::os::fail_with(errno, path, "check the path and its permissions");
    }
    vm_accel::result<std::string> text = read_all(file.get(), path);
    if (text && text->starts_with(std::string_view{"\xfd"
                                                   "7zXZ\0",
                                                   6}))
        return read_xz(path);
    return text;
}

} // namespace replay
