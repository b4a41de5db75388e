/// A device behind the SMMU, as the VMM sees it.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/fixed_text.hpp>
#include <vm_accel/smmu/caches/configuration_cache.hpp>
#include <vm_accel/smmu/host/ats_endpoint.hpp>
#include <vm_accel/smmu/vocabulary/access.hpp>
#include <vm_accel/smmu/vocabulary/memory_attributes.hpp>
#include <vm_accel/smmu/vocabulary/statistics.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

namespace vm_accel::inline v0 {

/// Longest device id, in bytes.
inline constexpr std::size_t device_id_capacity = 63;

using device_name = fixed_text<device_id_capacity>;

/// How a device is attached. Fixed until it is detached.
struct attach_options {
    /// Ignore the guest's tables: the device sees its window one to one.
    bool managed = false;
    /// Memory type and shareability of the device's accesses: what they have
    /// where the guest configures "use incoming", and nothing translates.
    memory_attributes incoming{};
    /// A PCIe device with a translation cache: it may ask for translations and
    /// pages, and is told what to forget. Means nothing without smmu_features::ats.
    bool ats = false;
};

/// What a device is attached as.
struct attachment_info {
    device_name device_id{};
    stream_id stream{};
    bool attached = false;
    pa_range window{}; ///< physical addresses that its DMA may reach
    bool managed = false;
};

/// "NAME: StreamID 0x10, window 0x40000000 + 0x10000000"
template <class Stream>
    requires requires(Stream& out, std::string_view text) { out << text; }
Stream& operator<<(Stream& out, const attachment_info& info) {
    fixed_text<160> text{info.device_id.view()};
    text.append(": StreamID ").append_number(raw(info.stream), 16).append(", window ");
    text.append_number(raw(info.window.base), 16).append(" + ");
    text.append_number(info.window.size, 16).append(info.managed ? ", managed" : "");
    if (!info.attached) text.append(", detached");
    out << text.view();
    return out;
}

/// An attachment's own state. Lives until it is detached and has no port.
struct attachment_record {
    device_name device_id{};
    translation_subject subject{};
    configuration_slot slot{}; ///< for accesses without a SubstreamID
    /// For accesses with one, 2^n of them; none where there are no SubstreamIDs.
    std::unique_ptr<configuration_slot[]> substream_slots{};
    std::uint32_t substream_mask = 0;    ///< 2^n - 1
    std::unique_ptr<ats_endpoint> ats{}; ///< null = no ATS
    std::size_t ports = 0;               ///< under the control lock
    event_totals finished{};             ///< of ports that are gone; likewise
    // The set's, under the control lock.
    std::unique_ptr<attachment_record> next{}; ///< in the order of attaching
    attachment_record* previous = nullptr;     ///< likewise
    attachment_record* next_of_name = nullptr; ///< whose name has the same hash

    /// Where the configuration of accesses like this one is, or that of another
    /// SubstreamID (see stream_configuration::serves).
    [[nodiscard]] const configuration_slot& slot_for(const transaction& asked) const noexcept {
        if (!asked.has_substream || substream_slots == nullptr) return slot;
        return substream_slots[raw(asked.substream) & substream_mask];
    }
    [[nodiscard]] configuration_slot& slot_for(const transaction& asked) noexcept {
        if (!asked.has_substream || substream_slots == nullptr) return slot;
        return substream_slots[raw(asked.substream) & substream_mask];
    }

    [[nodiscard]] attachment_info info() const noexcept {
        return {device_id, subject.stream, !subject.detached.load(std::memory_order_relaxed),
                subject.window, subject.managed};
    }
};

} // namespace vm_accel::inline v0
