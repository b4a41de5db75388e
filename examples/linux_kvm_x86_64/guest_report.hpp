/// Reads what the guest has written down, and prints it for people.
#pragma once

#include "machine.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iomanip>
#include <iostream>
#include <span>
#include <string_view>
#include <vector>

namespace guest_report {

inline constexpr std::array check_names = std::to_array<std::string_view>({
    "stage 1, AArch64 tables and 4 KiB pages are offered",
    "the StreamID fits the stream table",
    "CR0ACK follows CR0 = 0",
    "CR0ACK follows CMDQEN",
    "CMDQ_CONS reaches CMDQ_PROD without an error",
    "CR0ACK follows EVENTQEN",
    "IRQ_CTRLACK follows IRQ_CTRL",
    "CR0ACK follows SMMUEN",
    "status of the DMA device",
    "words that were copied right",
    "words that were left alone",
    "an event arrived",
    "event: type",
    "event: StreamID",
    "event: InputAddr",
    "event: RnW",
    "events too many",
    "GERROR xor GERRORN",
});
static_assert(check_names.size() == static_cast<std::size_t>(machine::check::last));

inline constexpr std::array stage_names = std::to_array<std::string_view>({
    "bring up",
    "copy through scattered pages",
    "read an unmapped address: F_TRANSLATION",
    "write an unmapped address: F_TRANSLATION",
    "write a read-only page: F_PERMISSION",
    "read a read-only page",
    "read a page without access flag: F_ACCESS",
    "read the upper half, switched off: F_TRANSLATION",
    "unmap, TLBI, CMD_SYNC: the old address faults",
    "map another page at that address",
    "copy through a 2 MiB block",
    "stream table entry says abort: no event",
    "stream table entry not valid: C_BAD_STE",
    "stream table entry restored",
    "shut down",
});
static_assert(stage_names.size() == static_cast<std::size_t>(machine::stage::last));

struct record {
    std::uint64_t stage, check, passed, found, expected;
};
static_assert(sizeof(record) == machine::reported::record_bytes);

struct summary {
    bool complete = false;
    std::uint64_t count = 0;
    std::uint64_t aborts = 0; ///< transfers that the guest meant to abort
    std::vector<record> records;

    [[nodiscard]] std::uint64_t failed() const {
        std::uint64_t n = 0;
        for (const record& r : records)
            n += r.passed == 0 ? 1 : 0;
        return n;
    }
};

/// `ram` is guest memory from address 0. Nothing in it is trusted.
[[nodiscard]] inline summary read(std::span<const std::byte> ram) {
    const auto word = [&](std::uint64_t offset) {
        std::uint64_t value = 0;
        std::memcpy(&value, ram.data() + machine::report + offset, sizeof value);
        return value;
    };
    summary s;
    s.complete = word(machine::reported::magic) == machine::reported::complete;
    s.count = word(machine::reported::records);
    s.aborts = word(machine::reported::aborts);
    for (std::uint64_t i = 0; i < s.count && i < machine::reported::most_records; ++i) {
        record r{};
        std::memcpy(&r,
                    ram.data() + machine::report + machine::reported::first_record +
                        i * machine::reported::record_bytes,
                    sizeof r);
        s.records.push_back(r);
    }
    return s;
}

template <std::size_t N>
[[nodiscard]] std::string_view name_in(const std::array<std::string_view, N>& names,
                                       std::uint64_t index) {
    return index < N ? names[static_cast<std::size_t>(index)] : std::string_view{"?"};
}

/// One line for each stage, and one for each check that failed.
inline void print(std::ostream& out, const summary& s) {
    std::uint64_t format = ~std::uint64_t{0};
    for (std::size_t i = 0; i < s.records.size();) {
        const std::uint64_t stage = s.records[i].stage;
        if (stage >> 32 != format) {
            format = stage >> 32;
            out << (format == static_cast<std::uint64_t>(machine::format::two_level)
                        ? "two-level stream table\n"
                        : "linear stream table\n");
        }
        std::uint64_t passed = 0;
        std::uint64_t failed = 0;
        const std::size_t first = i;
        for (; i < s.records.size() && s.records[i].stage == stage; ++i)
            (s.records[i].passed != 0 ? passed : failed) += 1;
        out << "  " << std::left << std::setw(50) << name_in(stage_names, stage & 0xffff'ffff)
            << std::right << std::setw(3) << passed << " passed";
        if (failed != 0) out << ", " << failed << " FAILED";
        out << '\n';
        for (std::size_t k = first; k < i; ++k) {
            const record& r = s.records[k];
            if (r.passed != 0) continue;
            out << "    FAILED " << name_in(check_names, r.check) << ": 0x" << std::hex << r.found
                << ", not 0x" << r.expected << std::dec << '\n';
        }
    }
}

} // namespace guest_report
