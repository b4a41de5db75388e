/// guest_nodes as ACPI tells them: the rows of SRAT (which processors and memory
/// belong to which node) and SLIT (how far nodes are apart), and both tables whole.
///
/// ACPI 6.5, 5.2.16 and 5.2.17. Everything is little-endian bytes, to be copied into
/// guest memory as it is.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/result.hpp>
#include <vm_accel/numa/guest_nodes.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace vm_accel::inline v0::acpi {

/// Writes `bytes` bytes of a number at `offset`, the lowest first.
template <std::size_t Size>
constexpr void put(std::array<std::uint8_t, Size>& row, std::size_t offset, std::uint64_t value,
                   std::size_t bytes) noexcept {
    for (std::size_t i = 0; i < bytes; ++i)
        row[offset + i] = static_cast<std::uint8_t>(value >> (8 * i));
}

/// SRAT's Memory Affinity Structure (type 1).
struct srat_memory {
    std::uint32_t domain = 0; ///< the guest node
    pa base{};
    std::uint64_t length = 0;
    bool hot_pluggable = false;

    friend constexpr bool operator==(const srat_memory&, const srat_memory&) = default;

    [[nodiscard]] constexpr std::array<std::uint8_t, 40> bytes() const noexcept {
        std::array<std::uint8_t, 40> row{1, 40};
        put(row, 2, domain, 4);
        put(row, 8, raw(base), 8);
        put(row, 16, length, 8);
        put(row, 28, 1u | (hot_pluggable ? 2u : 0u), 4); // enabled
        return row;
    }
};

/// SRAT's Processor Local APIC Affinity Structure (type 0): x86, APIC IDs below 255.
struct srat_local_apic {
    std::uint32_t domain = 0;
    std::uint8_t apic_id = 0;

    [[nodiscard]] constexpr std::array<std::uint8_t, 16> bytes() const noexcept {
        std::array<std::uint8_t, 16> row{0, 16};
        put(row, 2, domain, 1);
        row[3] = apic_id;
        put(row, 4, 1, 4); // enabled
        put(row, 9, domain >> 8, 3);
        return row;
    }
};

/// SRAT's Processor Local x2APIC Affinity Structure (type 2): x86, any APIC ID.
struct srat_x2apic {
    std::uint32_t domain = 0;
    std::uint32_t apic_id = 0;

    [[nodiscard]] constexpr std::array<std::uint8_t, 24> bytes() const noexcept {
        std::array<std::uint8_t, 24> row{2, 24};
        put(row, 4, domain, 4);
        put(row, 8, apic_id, 4);
        put(row, 12, 1, 4); // enabled
        return row;
    }
};

/// SRAT's GICC Affinity Structure (type 3): Arm.
struct srat_gicc {
    std::uint32_t domain = 0;
    std::uint32_t processor_uid = 0; ///< as in the MADT's GICC structure

    [[nodiscard]] constexpr std::array<std::uint8_t, 18> bytes() const noexcept {
        std::array<std::uint8_t, 18> row{3, 18};
        put(row, 2, domain, 4);
        put(row, 6, processor_uid, 4);
        put(row, 10, 1, 4); // enabled
        return row;
    }
};

/// How the guest's firmware names processors.
enum class processor_rows : std::uint8_t {
    apic, ///< x86: local APIC rows, x2APIC rows where the ID needs them
    gicc, ///< Arm
};

/// The memory rows of SRAT, by guest node and address.
[[nodiscard]] inline std::vector<srat_memory> memory_rows(const guest_nodes& guest) {
    std::vector<srat_memory> rows;
    for (std::uint32_t node = 0; node < guest.nodes.size(); ++node)
        for (const pa_range& range : guest.nodes[node].memory)
            rows.push_back({node, range.base, range.size});
    return rows;
}

/// Signature, length, checksum and who made it, before a table's own bytes.
[[nodiscard]] inline std::vector<std::uint8_t>
table(std::string_view signature, std::uint8_t revision, std::span<const std::uint8_t> body) {
    constexpr std::size_t header = 36;
    std::array<std::uint8_t, header> start{};
    const auto put_text = [&](std::size_t offset, std::string_view text) {
        for (std::size_t i = 0; i < text.size(); ++i)
            start[offset + i] = static_cast<std::uint8_t>(text[i]);
    };
    put_text(0, signature.substr(0, 4));
    put(start, 4, header + body.size(), 4);
    start[8] = revision;
    put_text(10, "VMACCL"); // OEM
    put_text(16, "VMACCEL ");
    put(start, 24, 1, 4);
    put_text(28, "VMAC"); // who wrote the table
    put(start, 32, 1, 4);
    std::vector<std::uint8_t> whole(header + body.size());
    std::copy(start.begin(), start.end(), whole.begin());
    std::copy(body.begin(), body.end(), whole.begin() + header);
    unsigned sum = 0;
    for (const std::uint8_t byte : whole)
        sum += byte;
    whole[9] = static_cast<std::uint8_t>(0 - sum); // all bytes add up to 0
    return whole;
}

/// SRAT. `processors` names each vCPU as the MADT does: its APIC ID, or its ACPI
/// processor UID on Arm. Errors: out_of_range, for a vCPU without a name.
[[nodiscard]] inline result<std::vector<std::uint8_t>>
srat(const guest_nodes& guest, processor_rows kind,
     std::span<const std::uint32_t> processors) noexcept {
    std::vector<std::uint8_t> body{1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    const auto append = [&body](const auto& row) {
        body.insert(body.end(), row.begin(), row.end());
    };
    for (std::uint32_t node = 0; node < guest.nodes.size(); ++node) {
        for (const unsigned vcpu : guest.nodes[node].vcpus) {
            if (vcpu >= processors.size())
                return fail(errc::out_of_range,
                            fixed_text<160>{"SRAT: vCPU "}.append_number(vcpu).append(
                                " has no APIC ID or processor UID"),
                            "give one for each vCPU");
            const std::uint32_t id = processors[vcpu];
            if (kind == processor_rows::gicc)
                append(srat_gicc{node, id}.bytes());
            else if (id < 255)
                append(srat_local_apic{node, static_cast<std::uint8_t>(id)}.bytes());
            else
                append(srat_x2apic{node, id}.bytes());
        }
    }
    for (const srat_memory& row : memory_rows(guest))
        append(row.bytes());
    return table("SRAT", 3, body);
}

/// SLIT: the number of nodes, and the distances row by row, a byte each.
[[nodiscard]] inline std::vector<std::uint8_t> slit(const guest_nodes& guest) {
    std::array<std::uint8_t, 8> count{};
    put(count, 0, guest.nodes.size(), 8);
    std::vector<std::uint8_t> body(count.begin(), count.end());
    for (const std::uint32_t distance : guest.distances)
        body.push_back(static_cast<std::uint8_t>(distance));
    return table("SLIT", 1, body);
}

} // namespace vm_accel::inline v0::acpi
