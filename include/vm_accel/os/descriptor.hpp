/// A file descriptor that closes itself, and errno as an `error`.
#pragma once

#include <vm_accel/core/result.hpp>

#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

#if defined(_WIN32)
#include <io.h>
#else
#include <unistd.h>
#endif

namespace vm_accel::inline v0::os {

/// The kind of failure an errno value is.
[[nodiscard]] constexpr errc code_of(int os_error) noexcept {
    switch (os_error) {
    case EACCES:
    case EPERM:
        return errc::permission_denied;
    case ENOENT:
    case ENODEV:
    case ENXIO:
        return errc::not_found;
    case EBUSY:
        return errc::busy;
    case EINVAL:
        return errc::invalid_argument;
    case EEXIST:
        return errc::already_exists;
    case ENOMEM:
    case EMFILE:
    case ENFILE:
    case ENOSPC:
        return errc::exhausted;
    case ENOSYS:
    case EOPNOTSUPP:
        return errc::unsupported;
    default:
        return errc::system_failure;
    }
}

/// The system's words for an errno value. Any thread: std::strerror may use one
/// buffer for all. strerror_r comes in two kinds, one returning the text and one
/// filling the buffer; the overload tells them apart.
class system_reason {
public:
    explicit system_reason(int os_error) noexcept {
#if defined(_WIN32)
        keep(::strerror_s(buffer_, sizeof buffer_, os_error));
#else
        keep(::strerror_r(os_error, buffer_, sizeof buffer_));
#endif
    }
    system_reason(const system_reason&) = delete;
    system_reason& operator=(const system_reason&) = delete;

    [[nodiscard]] std::string_view view() const noexcept { return text_; }

private:
    void keep(const char* text) noexcept { text_ = text; }
    void keep(int failed) noexcept { text_ = failed == 0 ? buffer_ : "unknown error"; }

    char buffer_[160]{};
    std::string_view text_{};
};

/// "WHAT: reason the system gives", with the cure. Reads nothing but its
/// arguments: pass errno before anything else can change it. Any thread.
[[nodiscard]] inline tl::unexpected<error> fail_with(int os_error, std::string_view what,
                                                     std::string_view cure) noexcept {
    fixed_text<160> cause{what};
    cause.append(": ").append(system_reason{os_error}.view());
    return fail(code_of(os_error), cause, fixed_text<160>{cure}, os_error);
}

inline void close_descriptor(int fd) noexcept {
#if defined(_WIN32)
    ::_close(fd);
#else
    ::close(fd);
#endif
}

/// Owns a file descriptor.
class descriptor {
public:
    descriptor() noexcept = default;
    explicit descriptor(int fd) noexcept : fd_(fd) {}
    descriptor(descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    descriptor& operator=(descriptor&& other) noexcept {
        if (this != &other) {
            close();
            fd_ = std::exchange(other.fd_, -1);
        }
        return *this;
    }
    ~descriptor() { close(); }

    [[nodiscard]] int get() const noexcept { return fd_; }
    [[nodiscard]] explicit operator bool() const noexcept { return fd_ >= 0; }
    void close() noexcept {
        if (fd_ >= 0) close_descriptor(std::exchange(fd_, -1));
    }

private:
    int fd_ = -1;
};

} // namespace vm_accel::inline v0::os
