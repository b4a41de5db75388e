/// Where everything is in the physical memory that both machines have.
#pragma once

#include <cstddef>
#include <cstdint>

namespace differential {

/// DMA devices; device i is PCI device i + 1 of bus 0, so its StreamID is 8 (i + 1).
inline constexpr unsigned device_count = 8;
inline constexpr std::uint32_t stream_of(unsigned device) { return 8 * (device + 1); }

inline constexpr std::uint64_t ram = 0x4000'0000;
inline constexpr std::size_t ram_bytes = 64U << 20;
/// The first MiB holds QEMU's device tree.
inline constexpr std::uint64_t command_ring = ram + 0x10'0000;
inline constexpr unsigned command_log2 = 8;
inline constexpr std::uint64_t event_ring = ram + 0x10'4000;
inline constexpr unsigned event_log2 = 9;
inline constexpr std::uint64_t stream_table = ram + 0x11'0000; ///< linear, or level 1
inline constexpr std::uint64_t level2_tables = ram + 0x12'0000;
/// What devices read and write: 512 pages of 4 KiB, aligned so that a 2 MiB block can map them.
inline constexpr std::uint64_t data = ram + 0x20'0000;
inline constexpr std::size_t data_bytes = 2U << 20;
/// Where devices put what they have read, with the SMMU off, to be looked at. Only the golden
/// model's do; so it does not follow the data, for accesses that reach past its end.
inline constexpr std::uint64_t dump = ram + 0x42'0000;
inline constexpr std::uint64_t pattern = ram + 0x41'0000; ///< what devices will write
/// Context descriptors and translation tables.
inline constexpr std::uint64_t tables = ram + 0x80'0000;
inline constexpr std::uint64_t tables_end = ram + ram_bytes;

/// Physical addresses that nothing is at, in both machines: above and far above RAM. In a block of
/// any size they are where data or another hole is, never at the driver's structures.
inline constexpr std::uint64_t hole = 0x6020'0000;
inline constexpr std::uint64_t far_hole = 0x0c00'4020'0000;

/// An edu device's own memory: the first half is what it writes, read data goes to the second.
inline constexpr std::uint32_t read_buffer = 2048;
inline constexpr std::uint32_t device_memory = 4096;

} // namespace differential
