/// An arm64 Linux kernel image as a file, and where it wants to be in RAM
/// (Documentation/arch/arm64/booting.rst).
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/field.hpp>
#include <vm_accel/core/result.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <span>
#include <string>
#include <vector>

namespace linux_vmm {

using vm_accel::errc;
using vm_accel::fail;
using vm_accel::fixed_text;
using vm_accel::pa;
using vm_accel::result;

/// The 64 bytes an arm64 Image starts with.
struct image_header {
    vm_accel::le32 code0, code1;
    vm_accel::le64 text_offset; ///< bytes from a 2 MiB boundary
    vm_accel::le64 image_size;  ///< bytes of RAM from there that the kernel needs
    vm_accel::le64 flags;       ///< bit 0: big endian
    vm_accel::le64 reserved[3];
    vm_accel::le32 magic; ///< "ARM\x64"
    vm_accel::le32 reserved_end;
};
static_assert(sizeof(image_header) == 64);

/// All bytes of a file. Error: not_found, system_failure.
[[nodiscard]] inline result<std::vector<std::byte>> load_file(const std::string& path) {
    std::ifstream in{path, std::ios::binary | std::ios::ate};
    if (!in) {
        return fail(errc::not_found, fixed_text<160>{path}.append(": cannot be opened"),
                    "give the path of a readable file");
    }
    std::vector<std::byte> bytes(static_cast<std::size_t>(in.tellg()));
    in.seekg(0);
    in.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    if (!in) {
        return fail(errc::system_failure, fixed_text<160>{path}.append(": cannot be read"),
                    "check the file and its medium");
    }
    return bytes;
}

/// The header of an image, checked. Error: invalid_argument.
[[nodiscard]] inline result<image_header> parse_image_header(std::span<const std::byte> image) {
    image_header header;
    if (image.size() < sizeof header) {
        return fail(errc::invalid_argument, "kernel: shorter than an arm64 Image header",
                    "give an uncompressed arm64 Image");
    }
    std::memcpy(&header, image.data(), sizeof header);
    if (header.magic != 0x644d5241) {
        const bool gzip = image[0] == std::byte{0x1f} && image[1] == std::byte{0x8b};
        return fail(errc::invalid_argument, "kernel: no arm64 Image magic at offset 56",
                    gzip ? "this is a gzip file: decompress it first"
                         : "give an uncompressed arm64 Image (Debian's /boot/vmlinuz is one)");
    }
    if ((header.flags & 1) != 0) {
        return fail(errc::unsupported, "kernel: built for big-endian", "give a little-endian one");
    }
    if (header.image_size < image.size() || header.text_offset >= 0x20'0000) {
        return fail(errc::invalid_argument,
                    "kernel: its header gives a size or an offset that cannot be",
                    "give an image of Linux 3.17 or later");
    }
    return header;
}

/// Where the kernel, the device tree and the initial file system go.
struct load_plan {
    pa kernel{};
    pa device_tree{};
    pa initrd{};
    std::uint64_t initrd_bytes = 0;
};

inline constexpr std::uint64_t two_mib = 0x20'0000;

/// Kernel first, then one 2 MiB page for the tree, then the initial file
/// system. `ram_base` is a multiple of 2 MiB. Error: out_of_range.
[[nodiscard]] inline result<load_plan> plan_loading(const image_header& header,
                                                    std::uint64_t initrd_bytes, pa ram_base,
                                                    std::uint64_t ram_bytes) {
    const auto next_2_mib = [](std::uint64_t at) { return (at + two_mib - 1) & ~(two_mib - 1); };
    constexpr std::uint64_t limit = std::uint64_t{1} << 40;
    const std::uint64_t image_bytes = header.image_size;
    if (image_bytes < limit && initrd_bytes < limit) {
        const std::uint64_t tree = next_2_mib(header.text_offset + image_bytes);
        const std::uint64_t initrd = tree + two_mib;
        if (initrd + initrd_bytes <= ram_bytes) {
            return load_plan{offset_by(ram_base, header.text_offset), offset_by(ram_base, tree),
                             offset_by(ram_base, initrd), initrd_bytes};
        }
    }
    return fail(errc::out_of_range,
                fixed_text<160>{"guest RAM: "}
                    .append_number(ram_bytes >> 20)
                    .append(" MiB do not hold the kernel and its initial file system"),
                "give more with --memory");
}

} // namespace linux_vmm
