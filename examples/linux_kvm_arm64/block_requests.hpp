/// What a virtio block device does with a request (virtio 1.2, 5.2.6).
#pragma once

#include "virtqueue.hpp"

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/descriptor.hpp>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <vector>

namespace linux_vmm {

/// The file behind the disk.
class disk_file {
public:
    static constexpr std::uint64_t sector_bytes = 512;

    /// Opens it for reading and writing. Bytes behind the last whole sector are
    /// not part of the disk. Errors: those of open(2), and an empty file.
    [[nodiscard]] static vm_accel::result<disk_file> open(const std::string& path) {
        disk_file disk;
        disk.file_ = vm_accel::os::descriptor{::open(path.c_str(), O_RDWR | O_CLOEXEC)};
        struct stat about{};
        if (!disk.file_ || ::fstat(disk.file_.get(), &about) != 0) {
            return vm_accel::os::fail_with(errno, path, "give a file that you may read and write");
        }
        disk.sectors_ = static_cast<std::uint64_t>(about.st_size) / sector_bytes;
        if (disk.sectors_ == 0) {
            return vm_accel::fail(vm_accel::errc::invalid_argument,
                                  vm_accel::fixed_text<160>{path}.append(": less than one sector"),
                                  "give a file of at least 512 bytes");
        }
        return disk;
    }

    [[nodiscard]] std::uint64_t sectors() const noexcept { return sectors_; }
    [[nodiscard]] bool read(std::uint64_t at, std::span<std::byte> out) const noexcept {
        while (!out.empty()) {
            const ssize_t n = ::pread(file_.get(), out.data(), out.size(), static_cast<off_t>(at));
            if (n < 0 && errno == EINTR) continue;
            if (n <= 0) return false;
            out = out.subspan(static_cast<std::size_t>(n));
            at += static_cast<std::uint64_t>(n);
        }
        return true;
    }
    [[nodiscard]] bool write(std::uint64_t at, std::span<const std::byte> in) const noexcept {
        while (!in.empty()) {
            const ssize_t n = ::pwrite(file_.get(), in.data(), in.size(), static_cast<off_t>(at));
            if (n < 0 && errno == EINTR) continue;
            if (n <= 0) return false;
            in = in.subspan(static_cast<std::size_t>(n));
            at += static_cast<std::uint64_t>(n);
        }
        return true;
    }
    [[nodiscard]] bool flush() const noexcept { return ::fdatasync(file_.get()) == 0; }

private:
    vm_accel::os::descriptor file_;
    std::uint64_t sectors_ = 0;
};

/// What a request came to.
struct block_completion {
    bool answered = false;     ///< false: not even the status could be delivered
    std::uint32_t written = 0; ///< bytes put into the driver's buffers
};

/// Counts of one device, read after its thread has ended.
struct block_statistics {
    std::uint64_t reads = 0, writes = 0, flushes = 0, errors = 0;
    std::uint64_t bytes_read = 0, bytes_written = 0;
};

/// Serves requests against a disk. File access blocks, so data pass through a
/// buffer and no guard of the SMMU is ever held meanwhile.
/// Threads: one at a time.
class block_requests {
public:
    explicit block_requests(const disk_file& disk) : disk_(disk), buffer_(64 * 1024) {}

    template <dma_copier Port>
    [[nodiscard]] block_completion serve(Port& port, const buffer_chain& chain) noexcept {
        piece_cursor in{chain.readable_pieces()};
        piece_cursor out{chain.writable_pieces()};
        const std::uint64_t writable = out.remaining();
        // The last writable byte takes the status; without it there is no answer.
        if (writable == 0) return {};
        const std::uint64_t data_bytes = writable - 1;

        header request;
        std::uint8_t status = ok;
        std::uint64_t written = 0;
        if (!in.read(port, std::as_writable_bytes(std::span{&request, 1}))) {
            status = io_error;
        } else {
            switch (request.type) {
            case type_in:
                status = read_disk(port, out, request.sector, data_bytes);
                if (status == ok) written = data_bytes;
                break;
            case type_out:
                status = write_disk(port, in, request.sector);
                break;
            case type_flush:
                ++statistics_.flushes;
                status = disk_.flush() ? ok : io_error;
                break;
            case type_get_id:
                status = identify(port, out, data_bytes, written);
                break;
            default:
                status = unsupported;
                break;
            }
        }
        if (status != ok) ++statistics_.errors;

        piece_cursor end{chain.writable_pieces()};
        const std::array<std::byte, 1> answer{std::byte{status}};
        if (!end.skip(data_bytes) || !end.write(port, answer)) return {};
        return {true,
                static_cast<std::uint32_t>(std::min<std::uint64_t>(written + 1, 0xffff'ffff))};
    }

    [[nodiscard]] const block_statistics& statistics() const noexcept { return statistics_; }

private:
    struct header {
        le32 type;
        le32 reserved;
        le64 sector;
    };
    static_assert(sizeof(header) == 16);
    static constexpr std::uint32_t type_in = 0, type_out = 1, type_flush = 4, type_get_id = 8;
    static constexpr std::uint8_t ok = 0, io_error = 1, unsupported = 2;

    /// Whether `bytes` from `sector` on are whole sectors of the disk.
    [[nodiscard]] bool on_disk(std::uint64_t sector, std::uint64_t bytes) const noexcept {
        const std::uint64_t count = bytes / disk_file::sector_bytes;
        return bytes % disk_file::sector_bytes == 0 && sector <= disk_.sectors() &&
               count <= disk_.sectors() - sector;
    }

    template <dma_copier Port>
    std::uint8_t read_disk(Port& port, piece_cursor& out, std::uint64_t sector,
                           std::uint64_t bytes) noexcept {
        ++statistics_.reads;
        if (!on_disk(sector, bytes)) return io_error;
        for (std::uint64_t done = 0; done < bytes;) {
            const auto part = std::span{buffer_}.first(
                static_cast<std::size_t>(std::min<std::uint64_t>(buffer_.size(), bytes - done)));
            if (!disk_.read(sector * disk_file::sector_bytes + done, part)) return io_error;
            if (!out.write(port, part)) return io_error;
            done += part.size();
        }
        statistics_.bytes_read += bytes;
        return ok;
    }

    template <dma_copier Port>
    std::uint8_t write_disk(Port& port, piece_cursor& in, std::uint64_t sector) noexcept {
        ++statistics_.writes;
        const std::uint64_t bytes = in.remaining();
        if (!on_disk(sector, bytes)) return io_error;
        for (std::uint64_t done = 0; done < bytes;) {
            const auto part = std::span{buffer_}.first(
                static_cast<std::size_t>(std::min<std::uint64_t>(buffer_.size(), bytes - done)));
            if (!in.read(port, part)) return io_error;
            if (!disk_.write(sector * disk_file::sector_bytes + done, part)) return io_error;
            done += part.size();
        }
        statistics_.bytes_written += bytes;
        return ok;
    }

    template <dma_copier Port>
    std::uint8_t identify(Port& port, piece_cursor& out, std::uint64_t data_bytes,
                          std::uint64_t& written) noexcept {
        std::array<char, 20> name{};
        constexpr std::string_view serial = "vm-accel-disk";
        std::memcpy(name.data(), serial.data(), serial.size());
        if (data_bytes < name.size()) return io_error;
        if (!out.write(port, std::as_bytes(std::span{name}))) return io_error;
        written = name.size();
        return ok;
    }

    const disk_file& disk_;
    std::vector<std::byte> buffer_;
    block_statistics statistics_;
};

} // namespace linux_vmm
