/// The little machine: where everything lies, and what guest and VMM tell each
/// other. Included by both, so it needs nothing but integers.
#pragma once

#include <cstdint>

namespace machine {

inline constexpr std::uint64_t ram_base = 0;
inline constexpr std::uint64_t ram_bytes = 0x100'0000;

/// Written by the VMM: processor page tables (kvm only), orders for the guest.
inline constexpr std::uint64_t processor_tables = 0x1000; ///< six pages
inline constexpr std::uint64_t orders = 0x8000;
/// Written by the guest.
inline constexpr std::uint64_t report = 0x9000; ///< seven pages
inline constexpr std::uint64_t stack_top = 0xf'0000;
/// The payload's image and entry point (kvm only); its linker script says the same.
inline constexpr std::uint64_t payload = 0x10'0000;
inline constexpr std::uint64_t payload_bytes = 0x10'0000;
/// The SMMU's structures and the buffers, handed out by the guest.
inline constexpr std::uint64_t arena = 0x20'0000;
inline constexpr std::uint64_t arena_end = ram_base + ram_bytes;

inline constexpr std::uint64_t smmu = 0xd000'0000;
inline constexpr std::uint64_t smmu_bytes = 0x2'0000;
inline constexpr std::uint64_t dma_device = 0xd010'0000;
inline constexpr std::uint64_t dma_device_bytes = 0x1000;

/// Registers of the DMA device, 64 bits each, offsets from its base.
namespace dma {
inline constexpr std::uint64_t source = 0x00;      ///< IOVA
inline constexpr std::uint64_t destination = 0x08; ///< IOVA
inline constexpr std::uint64_t length = 0x10;      ///< bytes, at most `longest`
inline constexpr std::uint64_t start = 0x18;       ///< any write starts the copy
inline constexpr std::uint64_t status = 0x20;      ///< see below; writes are ignored
inline constexpr std::uint64_t longest = 0x1'0000;

inline constexpr std::uint64_t idle = 0;
inline constexpr std::uint64_t busy = 1;
inline constexpr std::uint64_t done = 2;
inline constexpr std::uint64_t read_aborted = 3;
inline constexpr std::uint64_t write_aborted = 4;
inline constexpr std::uint64_t refused = 5; ///< a length of 0 or too long
} // namespace dma

/// The orders: 64-bit words at `orders`.
namespace order {
inline constexpr std::uint64_t stream = 0x00;     ///< StreamID of the DMA device
inline constexpr std::uint64_t invalidate = 0x08; ///< 0: leave out TLB invalidations
} // namespace order

/// The report: three words, then records of 40 bytes.
namespace reported {
inline constexpr std::uint64_t magic = 0x00; ///< `complete` once the guest is through
inline constexpr std::uint64_t records = 0x08;
inline constexpr std::uint64_t aborts = 0x10; ///< transfers that were meant to abort
inline constexpr std::uint64_t first_record = 0x40;
inline constexpr std::uint64_t record_bytes = 40; ///< stage, check, passed, found, expected
inline constexpr std::uint64_t most_records = 600;
inline constexpr std::uint64_t complete = 0x6775'6573'7420'6f6b;
} // namespace reported

/// What the guest checks. Keep report.hpp's names in step.
enum class check : std::uint64_t {
    features,              ///< stage 1, AArch64 tables, 4 KiB granule
    stream_fits,           ///< the StreamID is within IDR1.SIDSIZE
    disabled,              ///< CR0ACK follows CR0 = 0
    command_queue_enabled, ///< CR0ACK follows CMDQEN
    commands_consumed,     ///< CONS reaches PROD, without a command error
    event_queue_enabled,   ///< CR0ACK follows EVENTQEN
    interrupts_enabled,    ///< IRQ_CTRLACK follows IRQ_CTRL
    smmu_enabled,          ///< CR0ACK follows SMMUEN
    transfer,              ///< how the device's copy ended
    words_copied,          ///< 64-bit words of the destination that are right
    words_untouched,       ///< 64-bit words that an aborted copy must not have changed
    event_arrived,         ///< a record is in the event queue
    event_type,
    event_stream,
    event_address, ///< InputAddr
    event_is_read, ///< RnW
    no_event,      ///< the queue is empty
    no_global_error,
    last, ///< not a check
};

/// What the guest is doing meanwhile.
enum class stage : std::uint64_t {
    bring_up,
    copy,          ///< through scattered pages
    unmapped_read, ///< from an address that was never mapped
    unmapped_write,
    read_only_write,
    read_only_read,
    access_flag,   ///< a page whose access flag is clear
    upper_half,    ///< the half that EPD1 switches off
    unmap,         ///< an address that worked until it was invalidated
    remap,         ///< the same address on another page
    block,         ///< a 2 MiB block
    stream_aborts, ///< STE.Config = abort: silent
    stream_broken, ///< STE.V = 0
    stream_back,   ///< the STE restored
    shut_down,
    last, ///< not a stage
};

/// Each stage runs once per format of the stream table.
enum class format : std::uint64_t { linear, two_level };

} // namespace machine
