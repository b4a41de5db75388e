/// A small file of /sys or /proc, read without allocating.
/// On other systems this header is empty.
#pragma once

#if defined(__linux__)

#include <vm_accel/os/descriptor.hpp>

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace vm_accel::inline v0::os {

/// The first 8 KiB of a file; the files that are read this way are smaller.
class linux_small_file {
public:
    /// False with errno set when the file cannot be read. `path` ends with a NUL.
    [[nodiscard]] bool read(const char* path) noexcept {
        const descriptor file{::open(path, O_RDONLY | O_CLOEXEC)};
        if (!file) return false;
        while (size_ < bytes_.size()) {
            const ::ssize_t n = ::read(file.get(), bytes_.data() + size_, bytes_.size() - size_);
            if (n < 0) return false;
            if (n == 0) break;
            size_ += static_cast<std::size_t>(n);
        }
        return true;
    }
    [[nodiscard]] std::string_view view() const noexcept { return {bytes_.data(), size_}; }

    /// The decimal number that text starts with after blanks; 0 if there is none.
    [[nodiscard]] static std::uint64_t number_at(std::string_view text) noexcept {
        std::uint64_t value = 0;
        std::size_t i = 0;
        while (i < text.size() && text[i] == ' ')
            ++i;
        for (; i < text.size() && text[i] >= '0' && text[i] <= '9'; ++i)
            value = value * 10 + static_cast<std::uint64_t>(text[i] - '0');
        return value;
    }

private:
    std::array<char, 8192> bytes_{};
    std::size_t size_ = 0;
};

} // namespace vm_accel::inline v0::os

#endif
