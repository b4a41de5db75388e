/// StreamIDs of PCI functions: the requester ID, moved by a base.
///
/// A function's StreamID follows from where it sits, and what tells the guest
/// so (`iommu-map` and `msi-map` of a device tree, ID mappings of an IORT) comes
/// from the same place.
#pragma once

#include <vm_accel/os/reserved_array.hpp>
#include <vm_accel/smmu/host/stream_allocator.hpp>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>

namespace vm_accel::inline v0 {

/// Where a PCI function sits. With alternative routing (ARI) a bus has one
/// device whose function number has 8 bits: its upper 5 are in `device`.
struct pci_address {
    std::uint16_t segment = 0;
    std::uint8_t bus = 0;
    std::uint8_t device = 0;   ///< 0 to 31
    std::uint8_t function = 0; ///< 0 to 7

    /// As its transactions carry it: bus, device and function in 16 bits.
    [[nodiscard]] constexpr std::uint16_t requester_id() const noexcept {
        return static_cast<std::uint16_t>(bus << 8 | (device & 0x1f) << 3 | (function & 0x7));
    }
    [[nodiscard]] static constexpr pci_address of(std::uint16_t segment,
                                                  std::uint32_t requester_id) noexcept {
        return {segment, static_cast<std::uint8_t>(requester_id >> 8 & 0xff),
                static_cast<std::uint8_t>(requester_id >> 3 & 0x1f),
                static_cast<std::uint8_t>(requester_id & 0x7)};
    }
    friend constexpr bool operator==(const pci_address&, const pci_address&) = default;
};

/// How requester IDs become StreamIDs: those of segment s, buses 0 to `buses` -
/// 1, begin at base + s * buses * 256.
struct pci_layout {
    std::uint32_t base = 0; ///< StreamIDs below it are for what is not on PCI
    unsigned segments = 1;  ///< host bridges, each a segment of its own
    unsigned buses = 256;   ///< of each segment, 1 to 256

    [[nodiscard]] constexpr std::uint64_t end() const noexcept {
        return base + std::uint64_t{segments} * buses * 256;
    }
};

/// One host bridge's line in a table that maps requester IDs.
struct pci_id_mapping {
    std::uint32_t first_requester = 0;
    std::uint32_t first_stream = 0;
    std::uint32_t count = 0;

    /// An entry of the properties `iommu-map` (phandle of the SMMU) and `msi-map`
    /// (of the ITS, whose DeviceIDs are the StreamIDs).
    [[nodiscard]] constexpr std::array<std::uint32_t, 4>
    device_tree_cells(std::uint32_t phandle) const noexcept {
        return {first_requester, phandle, first_stream, count};
    }
    /// An ID mapping of the IORT's root complex node (DEN 0049, "ID mapping
    /// format"): input base, number of IDs minus one, output base, offset of the
    /// SMMU's node, flags. To be stored little-endian.
    [[nodiscard]] constexpr std::array<std::uint32_t, 5>
    iort_words(std::uint32_t output_reference) const noexcept {
        return {first_requester, count - 1, first_stream, output_reference, 0};
    }
};

/// The StreamIDs 0 to capacity - 1: those of PCI functions, and those below
/// the base.
///
/// Cost: one bit per StreamID, in memory that comes as it is needed; 16 million
/// StreamIDs are 256 segments of 256 buses. Under a mutex of its own.
template <pci_layout Layout = pci_layout{}>
class pci_streams {
    static_assert(Layout.segments >= 1 && Layout.segments <= 65536, "a segment has 16 bits");
    static_assert(Layout.buses >= 1 && Layout.buses <= 256, "a bus number has 8 bits");
    static_assert(Layout.end() <= (std::uint64_t{1} << 32), "a StreamID has at most 32 bits");

public:
    static constexpr std::size_t capacity = Layout.end();
    static constexpr pci_layout layout = Layout;

    pci_streams() noexcept {
        // Without address space all are held for ever: see holds().
        (void)words_.reserve((capacity + 63) / 64);
    }
    pci_streams(const pci_streams&) = delete;
    pci_streams& operator=(const pci_streams&) = delete;

    /// The lowest free one. Devices on PCI want reserve() or
    /// allocate_functions(): their StreamID follows from their place.
    [[nodiscard]] result<stream_id> allocate() noexcept {
        const std::lock_guard lock{mutex_};
        for (std::size_t i = 0; i < words_.size(); ++i) {
            const auto bit = static_cast<unsigned>(std::countr_one(words_[i]));
            if (bit == 64 || i * 64 + bit >= capacity) continue;
            words_[i] |= std::uint64_t{1} << bit;
            return stream_id{static_cast<std::uint32_t>(i * 64 + bit)};
        }
        return stream_error::all_held(capacity);
    }
    [[nodiscard]] result<> reserve(stream_id id) noexcept { return reserve_row(id, 1); }
    [[nodiscard]] result<> release(stream_id id) noexcept { return release_row(id, 1); }
    [[nodiscard]] bool is_held(stream_id id) const noexcept {
        const std::lock_guard lock{mutex_};
        return raw(id) < capacity && holds(raw(id));
    }

    /// The StreamID of a function. Error: out_of_range (no such segment, bus,
    /// device or function).
    [[nodiscard]] static result<stream_id> stream_of(pci_address at) noexcept {
        if (at.segment >= Layout.segments || at.bus >= Layout.buses || at.device > 31 ||
            at.function > 7) {
            return fail(errc::out_of_range,
                        fixed_text<160>{"PCI function "}
                            .append_number(at.segment, 16)
                            .append(":")
                            .append_number(at.bus, 16)
                            .append(":")
                            .append_number(at.device, 16)
                            .append(".")
                            .append_number(at.function)
                            .append(": the layout has no such place"),
                        "raise pci_layout::segments or buses");
        }
        return stream_id{Layout.base + at.segment * per_segment + at.requester_id()};
    }
    /// The function with that StreamID; none below the base and past the end.
    [[nodiscard]] static constexpr std::optional<pci_address> address_of(stream_id id) noexcept {
        if (raw(id) < Layout.base || raw(id) >= capacity) return std::nullopt;
        const std::uint32_t from_base = raw(id) - Layout.base;
        return pci_address::of(static_cast<std::uint16_t>(from_base / per_segment),
                               from_base % per_segment);
    }
    /// What maps the requester IDs of one segment, below Layout.segments.
    [[nodiscard]] static constexpr pci_id_mapping mapping(std::uint16_t segment) noexcept {
        return {0, Layout.base + segment * per_segment, per_segment};
    }

    /// Takes the StreamIDs of `count` functions in a row from `first` on, whole or
    /// not at all. Errors: as reserve(); invalid_argument (none, or past the bus).
    [[nodiscard]] result<> reserve_functions(pci_address first, unsigned count) noexcept {
        const result<stream_id> id = first_of(first, count);
        return id ? reserve_row(*id, count) : fail(id);
    }
    /// Gives them back, whole or not at all. Errors: as release(); invalid_argument.
    [[nodiscard]] result<> release_functions(pci_address first, unsigned count) noexcept {
        const result<stream_id> id = first_of(first, count);
        return id ? release_row(*id, count) : fail(id);
    }
    /// Finds a place on a bus for a device of `count` functions: the lowest device
    /// number from which on all function numbers it needs are free, those that
    /// the last device number of it leaves unused included. Gives its function 0.
    /// Errors: exhausted, out_of_range, invalid_argument (0 or above 256).
    [[nodiscard]] result<pci_address> allocate_functions(std::uint16_t segment, std::uint8_t bus,
                                                         unsigned count) noexcept {
        const result<stream_id> id = first_of({segment, bus, 0, 0}, count);
        if (!id) return fail(id);
        const std::lock_guard lock{mutex_};
        const std::uint64_t start = raw(*id);
        const std::uint64_t needed = (std::uint64_t{count} + 7) / 8 * 8;
        for (std::uint64_t at = start; at + needed <= start + 256; at += 8) {
            if (first_held(at, needed) != needed) continue;
            set(at, count, true);
            return *address_of(stream_id{static_cast<std::uint32_t>(at)});
        }
        return fail(errc::exhausted,
                    fixed_text<160>{"PCI bus "}
                        .append_number(segment, 16)
                        .append(":")
                        .append_number(bus, 16)
                        .append(": no device number has ")
                        .append_number(count)
                        .append(" functions free"),
                    "use another bus, or detach a device");
    }

private:
    static constexpr std::uint32_t per_segment = Layout.buses * 256;

    [[nodiscard]] static result<stream_id> first_of(pci_address first, unsigned count) noexcept {
        if (count == 0 || (first.requester_id() & 0xffU) + count > 256) {
            return fail(errc::invalid_argument,
                        fixed_text<160>{"PCI: "}.append_number(count).append(" functions"),
                        "a bus has 256 function numbers; ask for at least one");
        }
        return stream_of(first);
    }
    [[nodiscard]] result<> reserve_row(stream_id first, unsigned count) noexcept {
        if (raw(first) >= capacity) return stream_error::too_large(first, capacity);
        const std::lock_guard lock{mutex_};
        const std::uint64_t free = first_held(raw(first), count);
        if (free != count) {
            return stream_error::already_held(offset(first, free));
        }
        set(raw(first), count, true);
        return {};
    }
    [[nodiscard]] result<> release_row(stream_id first, unsigned count) noexcept {
        if (raw(first) >= capacity) return stream_error::too_large(first, capacity);
        const std::lock_guard lock{mutex_};
        for (unsigned i = 0; i < count; ++i) {
            if (!holds(raw(first) + i)) return stream_error::not_held(offset(first, i));
        }
        set(raw(first), count, false);
        return {};
    }
    [[nodiscard]] static stream_id offset(stream_id first, std::uint64_t by) noexcept {
        return stream_id{static_cast<std::uint32_t>(raw(first) + by)};
    }
    [[nodiscard]] bool holds(std::uint64_t id) const noexcept {
        return words_.size() == 0 || (words_[id / 64] >> id % 64 & 1) != 0;
    }
    /// How many of `count` in a row are free before the first that is held.
    [[nodiscard]] std::uint64_t first_held(std::uint64_t id, std::uint64_t count) const noexcept {
        std::uint64_t n = 0;
        while (n < count && !holds(id + n))
            ++n;
        return n;
    }
    void set(std::uint64_t id, std::uint64_t count, bool held) noexcept {
        if (words_.size() == 0) return;
        for (std::uint64_t i = id; i < id + count; ++i) {
            const std::uint64_t bit = std::uint64_t{1} << i % 64;
            words_[i / 64] = held ? words_[i / 64] | bit : words_[i / 64] & ~bit;
        }
    }

    mutable std::mutex mutex_;
    os::reserved_array<std::uint64_t> words_;
};

static_assert(stream_allocator<pci_streams<>> &&
              stream_allocator<pci_streams<pci_layout{.base = 16, .segments = 2, .buses = 1}>>);

} // namespace vm_accel::inline v0
