/// From a StreamID to its Stream Table Entry (IHI 0070, 3.3.1 and 5.1).
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/smmu/translation/walk.hpp>
#include <vm_accel/spec/events.hpp>
#include <vm_accel/spec/registers.hpp>
#include <vm_accel/spec/ste.hpp>

#include <cstdint>
#include <optional>
#include <span>

namespace vm_accel::inline v0 {

/// What the registers say about streams, copied at one moment.
struct stream_table_registers {
    bool enabled = false;              ///< CR0.SMMUEN
    bool bypass_aborts = false;        ///< GBPA.ABORT
    bool record_bad_stream_id = false; ///< CR2.RECINVSID
    std::uint64_t base = 0;            ///< STRTAB_BASE
    std::uint32_t shape = 0;           ///< STRTAB_BASE_CFG
    std::uint32_t bypass = 0x1000;     ///< GBPA: attributes of what bypasses
    bool host_extensions = false;      ///< CR2.E2H
    bool fetches_secure_only = false;  ///< S_CR0.SIF
};

/// A structure fetched from memory, or why it could not be.
template <class Structure>
struct fetched {
    Structure value{};
    std::optional<spec::event_id> event{}; ///< set = there is no value
    std::uint64_t fetch_address = 0;       ///< of what could not be read
};

/// Copies a structure out of guest memory, one 64-bit word at a time.
template <class Structure, table_access Tables>
[[nodiscard]] bool fetch_structure(Tables& tables, std::uint64_t address, Structure& out) noexcept {
    for (std::size_t i = 0; i < out.word.size(); ++i) {
        const std::optional<std::uint64_t> word = tables.load(address + 8 * i);
        if (!word) return false;
        out.word[i] = le64{*word};
    }
    return true;
}

/// Finds and copies the STE of a stream. `stream_bits` is IDR1.SIDSIZE.
///
/// The table's base is used with the bits below its own size taken as zero,
/// and LOG2SIZE is cut to SIDSIZE (6.3.24, 6.3.25).
template <table_access Tables>
[[nodiscard]] fetched<spec::ste> fetch_ste(Tables& tables, const stream_table_registers& registers,
                                           unsigned stream_bits, bool two_level_allowed,
                                           stream_id stream) noexcept {
    using CFG = spec::STRTAB_BASE_CFG;
    constexpr std::uint64_t ste_bytes = sizeof(spec::ste);
    fetched<spec::ste> result;

    std::uint64_t log2size = CFG::LOG2SIZE::of(registers.shape);
    if (log2size > stream_bits) log2size = stream_bits;
    const std::uint64_t sid = raw(stream);
    if (sid >> log2size != 0) {
        result.event = spec::event_id::C_BAD_STREAMID;
        return result;
    }

    const std::uint64_t base = registers.base & spec::STRTAB_BASE::ADDR::mask;
    std::uint64_t address = 0;
    if (two_level_allowed && CFG::FMT::of(registers.shape) == CFG::FMT_2lvl) {
        const std::uint64_t wanted_split = CFG::SPLIT::of(registers.shape);
        // Reserved values of SPLIT behave as 6 (6.3.25).
        const std::uint64_t split = wanted_split == 8 || wanted_split == 10 ? wanted_split : 6;
        const std::uint64_t level1_bits = log2size > split ? log2size - split : 0;
        const std::uint64_t level1_bytes = std::uint64_t{8} << level1_bits;
        const std::uint64_t level1_base =
            base & ~((level1_bytes < 64 ? std::uint64_t{64} : level1_bytes) - 1);
        const std::uint64_t level1_address = level1_base + (sid >> split) * 8;
        spec::l1_stream_table_descriptor level1;
        if (!fetch_structure(tables, level1_address, level1)) {
            result.event = spec::event_id::F_STE_FETCH;
            result.fetch_address = level1_address;
            return result;
        }
        using L1 = spec::l1_stream_table_descriptor;
        const std::uint64_t span = get<L1::Span>(level1);
        const std::uint64_t index = sid & ((std::uint64_t{1} << split) - 1);
        if (span == 0 || span > split + 1 || index >> (span - 1) != 0) {
            result.event = spec::event_id::C_BAD_STREAMID;
            return result;
        }
        const std::uint64_t level2_bytes = ste_bytes << (span - 1);
        address = (get_address<L1::L2Ptr>(level1) & ~(level2_bytes - 1)) + index * ste_bytes;
    } else {
        const std::uint64_t table_bytes = ste_bytes << log2size;
        address = (base & ~(table_bytes - 1)) + sid * ste_bytes;
    }
    if (!fetch_structure(tables, address, result.value)) {
        result.event = spec::event_id::F_STE_FETCH;
        result.fetch_address = address;
    }
    return result;
}

} // namespace vm_accel::inline v0
