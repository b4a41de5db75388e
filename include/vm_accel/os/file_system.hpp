/// The few things this library reads from a file system: small text files,
/// directory listings and link targets, all below a root that tests replace.
///
/// `/sys` and `/proc` are read this way, so that a detection can run against a
/// directory that looks like another machine. On a platform without POSIX
/// calls every answer is "not there".
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/descriptor.hpp>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace vm_accel::inline v0::os {

/// A directory that stands for "/". Paths passed in are absolute paths inside
/// it ("/proc/modules"). It is a prefix, not a jail: an absolute link or ".."
/// inside the tree leads out of it.
/// Threads: immutable after construction; any thread may read through it.
class file_system_root {
public:
    /// The machine's own root.
    file_system_root() = default;
    /// Everything below `directory`; a trailing slash makes no difference.
    explicit file_system_root(std::string_view directory) : prefix_(directory) {
        while (!prefix_.empty() && prefix_.back() == '/')
            prefix_.pop_back();
    }

    /// Files larger than this are no small text files: read_text() fails.
    static constexpr std::size_t max_text_bytes = std::size_t{1} << 20;

    /// `path` as the operating system knows it.
    [[nodiscard]] std::string host_path(std::string_view path) const {
        std::string full{prefix_};
        if (path.empty() || path.front() != '/') full += '/';
        full += path;
        return full;
    }

    /// The bytes of a file, NULs included (device tree properties have them).
    /// Errors: not_found, permission_denied, out_of_range (too large), system_failure.
    [[nodiscard]] result<std::string> read_text(std::string_view path) const noexcept {
        const std::string full = host_path(path);
#if defined(__unix__) || defined(__APPLE__)
        const descriptor file{::open(full.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
        if (!file) return fail_with(errno, full, "check that it exists and can be read");
        std::string text;
        char chunk[4096];
        for (;;) {
            const ::ssize_t n = ::read(file.get(), chunk, sizeof chunk);
            if (n < 0 && errno == EINTR) continue;
            if (n < 0) return fail_with(errno, full, "check that it is a readable file");
            if (n == 0) return text;
            text.append(chunk, static_cast<std::size_t>(n));
            if (text.size() > max_text_bytes) {
                return fail(errc::out_of_range,
                            fixed_text<160>{full}.append(": more than 1 MiB of text"),
                            "this reads small files only");
            }
        }
#else
        return absent(full);
#endif
    }

    /// Names in a directory, sorted, without "." and "..". Errors: not_found,
    /// permission_denied, system_failure.
    [[nodiscard]] result<std::vector<std::string>> list(std::string_view path) const noexcept {
        const std::string full = host_path(path);
#if defined(__unix__) || defined(__APPLE__)
        ::DIR* const directory = ::opendir(full.c_str());
        if (directory == nullptr) {
            return fail_with(errno, full, "check that the directory exists and can be read");
        }
        std::vector<std::string> names;
        for (;;) {
            errno = 0;
            const ::dirent* const entry = ::readdir(directory);
            if (entry == nullptr) break;
            const std::string_view name{entry->d_name};
            if (name != "." && name != "..") names.emplace_back(name);
        }
        const int failed = errno;
        ::closedir(directory);
        if (failed != 0) return fail_with(failed, full, "check that the directory can be read");
        std::sort(names.begin(), names.end());
        return names;
#else
        return absent(full);
#endif
    }

    /// The text of a symbolic link, as written. Errors: not_found,
    /// invalid_argument (no link), permission_denied, system_failure.
    [[nodiscard]] result<std::string> read_link(std::string_view path) const noexcept {
        const std::string full = host_path(path);
#if defined(__unix__) || defined(__APPLE__)
        char target[4096];
        const ::ssize_t n = ::readlink(full.c_str(), target, sizeof target);
        if (n < 0) return fail_with(errno, full, "check that it is a symbolic link");
        return std::string{target, static_cast<std::size_t>(n)};
#else
        return absent(full);
#endif
    }

    /// Whether there is something, links followed.
    [[nodiscard]] bool exists(std::string_view path) const noexcept {
#if defined(__unix__) || defined(__APPLE__)
        struct ::stat status{};
        return ::stat(host_path(path).c_str(), &status) == 0;
#else
        static_cast<void>(path);
        return false;
#endif
    }

    /// Whether it is a directory itself: a link to one is not.
    [[nodiscard]] bool is_directory(std::string_view path) const noexcept {
#if defined(__unix__) || defined(__APPLE__)
        struct ::stat status{};
        return ::lstat(host_path(path).c_str(), &status) == 0 && S_ISDIR(status.st_mode);
#else
        static_cast<void>(path);
        return false;
#endif
    }

private:
#if !defined(__unix__) && !defined(__APPLE__)
    [[nodiscard]] static tl::unexpected<error> absent(std::string_view full) noexcept {
        return fail(errc::not_found,
                    fixed_text<160>{full}.append(": this platform has no such file system"));
    }
#endif

    std::string prefix_;
};

} // namespace vm_accel::inline v0::os
