/// A file for tests of the example's disks.
#pragma once

#include "../../examples/linux_kvm_arm64/block_requests.hpp"

#include <catch2/catch.hpp>

#include <unistd.h>

#include <cstdlib>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace linux_vmm_test {

using linux_vmm::disk_file;

inline constexpr std::uint64_t disk_bytes = 64 * 512;

/// A temporary file whose byte i is i / 512 + i, and gone afterwards.
struct temporary_disk {
    std::string path = "/tmp/vm_accel_disk_XXXXXX";
    std::optional<disk_file> file;

    temporary_disk() {
        const int fd = ::mkstemp(path.data());
        std::vector<unsigned char> bytes(disk_bytes);
        for (std::size_t i = 0; i < bytes.size(); ++i)
            bytes[i] = static_cast<unsigned char>(i / 512 + i);
        const ssize_t n = ::write(fd, bytes.data(), bytes.size());
        ::close(fd);
        REQUIRE(n == static_cast<ssize_t>(disk_bytes));
        auto opened = disk_file::open(path);
        REQUIRE(opened);
        file = std::move(*opened);
    }
    ~temporary_disk() { ::unlink(path.c_str()); }
};

} // namespace linux_vmm_test
