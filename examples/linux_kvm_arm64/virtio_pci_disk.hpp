/// A virtio block device on PCI Express (virtio 1.2, 4.1), modern only, with MSI-X.
///
/// Its interrupts are writes of four bytes through its own port, as its data
/// are: the guest's driver must map the doorbell like any page. vCPU threads use
/// the registers; one I/O thread calls serve() and sends the messages. While the
/// guest's driver has ATS on, data go through a translation cache of the
/// device's own, and a third thread answers what the driver invalidates.
#pragma once

#include "ats_cache.hpp"
#include "msix_table.hpp"
#include "pci_configuration.hpp"
#include "virtio_block.hpp"

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <utility>

namespace linux_vmm {

inline constexpr std::size_t virtio_pci_vectors = 2; ///< configuration, and the queue
inline constexpr std::uint16_t no_vector = 0xffff;

/// Messages that were sent, read after the I/O thread has ended.
struct message_statistics {
    std::uint64_t sent = 0;
    std::uint64_t refused = 0;      ///< by the SMMU, or by the interrupt controller
    std::uint64_t last_address = 0; ///< that the device wrote to: an IOVA
};

/// Models virtio_interrupt: the vector that the driver chose for each cause.
class msix_interrupt {
public:
    msix_table<virtio_pci_vectors> table;
    std::atomic<std::uint16_t> configuration_vector{no_vector}, queue_vector{no_vector};

    template <class Port>
    void raise(Port& port, virtio_cause cause) noexcept {
        status_.fetch_or(static_cast<std::uint32_t>(cause));
        const std::uint16_t vector =
            cause == virtio_cause::used_buffer ? queue_vector : configuration_vector;
        if (const auto message = table.raise(vector)) send(port, *message);
    }
    template <class Port>
    void deliver(Port& port) noexcept {
        while (const auto message = table.take())
            send(port, *message);
    }
    void clear() noexcept {
        status_ = 0;
        configuration_vector = no_vector;
        queue_vector = no_vector;
        table.forget_pending();
    }
    /// For a machine at rest.
    template <class State>
    void move_state(State& state) {
        table.move_state(state);
        state(configuration_vector);
        state(queue_vector);
        state(status_);
    }
    /// Reading the causes clears them (4.1.4.5).
    [[nodiscard]] std::uint32_t take_status() noexcept { return status_.exchange(0); }
    [[nodiscard]] const message_statistics& statistics() const noexcept { return statistics_; }

private:
    template <class Port>
    void send(ats_port<Port>& port, const msix_message& message) noexcept {
        statistics_.last_address = message.address;
        if (dma_store(port.untranslated(), iova{message.address}, le32{message.data})) {
            ++statistics_.sent;
        } else {
            ++statistics_.refused;
        }
    }

    std::atomic<std::uint32_t> status_{0};
    message_statistics statistics_;
};

/// What the function has in its extended configuration space. PASIDs are there
/// for the guest's driver to set the SMMU up with; the device's own accesses
/// have none, as they may.
struct pci_translation {
    bool ats = false;              ///< address translation services
    std::uint32_t pasid_width = 0; ///< of its PASIDs, 0: none
};

/// `Notify`: void() noexcept, wakes the thread that calls serve().
template <dma_copier Port, class Notify>
class virtio_pci_disk {
public:
    virtio_pci_disk(Port port, const disk_file& disk, Notify notify,
                    const pci_translation& translation = {})
        : device_(ats_port<Port>{std::move(port), cache_}, disk, notify),
          configuration_({.vendor = 0x1af4,
                          .device = 0x1040 + block::device_type,
                          .subsystem_vendor = 0x1af4,
                          .subsystem = 0x1100,
                          .revision = 1,
                          .class_code = 0x01'0000},
                         bar_bytes) {
        // PCI Express capability: root complex integrated endpoint, version 2.
        const std::uint16_t express = configuration_.add_capability(0x10, 0x3c);
        configuration_.put(at(express, 2), 2 | 9 << 4, 2);
        if (translation.pasid_width != 0) {
            constexpr std::uint32_t end_to_end_prefix = 1u << 21;
            configuration_.put(at(express, 0x24), end_to_end_prefix, 4);
            pasid_ = configuration_.add_extended_capability(0x1b, 1, 8);
            configuration_.put(at(pasid_, 4), translation.pasid_width << 8, 2);
            configuration_.allow(at(pasid_, 6), 1, 2);
        }
        if (translation.ats) {
            constexpr std::uint16_t page_aligned = 1u << 5;
            ats_ = configuration_.add_extended_capability(0x0f, 1, 8);
            configuration_.put(at(ats_, 4), page_aligned, 2);
            configuration_.allow(at(ats_, 6), ats_enable | 0x1f, 2);
        }
        add_structure(1, common, common_bytes);
        add_structure(3, interrupt_status, 4);
        add_structure(4, block_configuration, block_configuration_bytes);
        const std::uint16_t notify_at = add_structure(2, notification, 4);
        configuration_.put(at(notify_at, 2), 20, 1);
        configuration_.put(at(notify_at, 16), 0, 4); // one address for all queues
        access_ = add_structure(5, 0, 0);
        configuration_.put(at(access_, 2), 20, 1);
        configuration_.allow(at(access_, 4), 0xff, 1);
        configuration_.allow(at(access_, 8), ~std::uint64_t{0}, 8);
        msix_ = configuration_.add_capability(0x11, 12);
        configuration_.put(at(msix_, 2), virtio_pci_vectors - 1, 2);
        configuration_.allow(at(msix_, 2), msix_enabled | msix_all_masked, 2);
        configuration_.put(at(msix_, 4), vector_table, 4);
        configuration_.put(at(msix_, 8), pending_bits, 4);
    }

    // --- configuration space

    [[nodiscard]] std::uint64_t read_configuration(std::uint64_t offset, unsigned size) noexcept {
        if (is_at_access_data(offset, size)) {
            if (const auto where = accessed(size)) return read(*where, size);
        }
        return configuration_.read(offset, size);
    }
    void write_configuration(std::uint64_t offset, unsigned size, std::uint64_t value) noexcept {
        if (is_at_access_data(offset, size)) {
            if (const auto where = accessed(size)) write(*where, size, value);
            return;
        }
        configuration_.write(offset, size, value);
        follow_ats_control();
        if (pasid_ != 0 && (configuration_.read(at(pasid_, 6), 2) & 1) != 0) {
            pasid_was_enabled_ = true;
        }
        device_.interrupt().table.control_by(
            static_cast<std::uint16_t>(configuration_.read(at(msix_, 2), 2)));
        device_.notify(); // a vector may be unmasked, or DMA be allowed
    }
    [[nodiscard]] pa_range window() noexcept { return configuration_.window(); }

    // --- what BAR 0 leads to

    [[nodiscard]] std::uint64_t read(std::uint64_t offset, unsigned size) noexcept {
        if (offset >= vector_table && offset < pending_bits) {
            return device_.interrupt().table.read(offset - vector_table, size);
        }
        if (offset >= block_configuration &&
            offset < block_configuration + block_configuration_bytes) {
            return device_.read_configuration(offset - block_configuration, size);
        }
        if (offset == interrupt_status) return device_.interrupt().take_status();
        if (offset == pending_bits) return device_.interrupt().table.pending_bits();
        return offset < common_bytes ? read_common(offset) : 0;
    }

    void write(std::uint64_t offset, unsigned size, std::uint64_t wide) noexcept {
        const auto value = static_cast<std::uint32_t>(wide);
        if (offset >= vector_table && offset < pending_bits) {
            device_.interrupt().table.write(offset - vector_table, size, value);
            device_.notify();
        } else if (offset == notification) {
            device_.notify();
        } else if (offset < common_bytes) {
            write_common(offset, value);
        }
    }

    void serve() noexcept {
        if (configuration_.is_bus_master()) device_.serve();
    }
    /// Does what the guest's driver has asked of the translation cache. For the
    /// thread that waits for news of `port`, which is that thread's own.
    void answer_invalidations(Port& port) noexcept {
        if constexpr (ats_requester<Port>) {
            const port_in_use awake{port};
            while (const auto asked = port.next_invalidation()) {
                cache_.forget(*asked);
                port.invalidated(asked->token);
            }
        }
    }

    /// For a machine at rest.
    template <class State>
    void move_state(State& state) {
        configuration_.move_state(state);
        follow_ats_control(); // what was cached stays behind
        device_.move_state(state);
        state(feature_select_);
        state(driver_feature_select_);
        state(queue_select_);
        state(ats_was_enabled_);
        state(pasid_was_enabled_);
    }

    /// Whether the driver has turned on what pci_translation offers.
    [[nodiscard]] bool ats_was_enabled() const noexcept { return ats_was_enabled_; }
    [[nodiscard]] bool pasid_was_enabled() const noexcept { return pasid_was_enabled_; }
    [[nodiscard]] ats_statistics ats() const noexcept { return cache_.statistics(); }

    /// Both read after the I/O thread has ended.
    [[nodiscard]] const block_statistics& statistics() const noexcept {
        return device_.statistics();
    }
    [[nodiscard]] const message_statistics& messages() noexcept {
        return device_.interrupt().statistics();
    }

private:
    using block = virtio_block<ats_port<Port>, msix_interrupt, Notify>;
    // The structures of the device, all behind BAR 0.
    static constexpr std::uint32_t bar_bytes = 0x8000;
    static constexpr std::uint32_t common = 0, common_bytes = 0x38, interrupt_status = 0x1000,
                                   block_configuration = 0x2000, block_configuration_bytes = 0x40,
                                   notification = 0x3000, vector_table = 0x4000,
                                   pending_bits = 0x5000;

    [[nodiscard]] static constexpr std::uint16_t at(std::uint16_t base, unsigned offset) noexcept {
        return static_cast<std::uint16_t>(base + offset);
    }
    /// A capability that says where a structure is (4.1.4).
    std::uint16_t add_structure(std::uint8_t type, std::uint32_t offset, std::uint32_t bytes) {
        const std::uint16_t where = configuration_.add_capability(0x09, 20);
        configuration_.put(at(where, 2), 16, 1);
        configuration_.put(at(where, 3), type, 1);
        configuration_.put(at(where, 8), offset, 4);
        configuration_.put(at(where, 12), bytes, 4);
        return where;
    }

    void follow_ats_control() noexcept {
        if (ats_ == 0) return;
        const std::lock_guard lock{following_}; // the last one to write is the last one here
        const bool on = (configuration_.read(at(ats_, 6), 2) & ats_enable) != 0;
        ats_was_enabled_ = ats_was_enabled_ || on;
        if (on != cache_.is_enabled()) cache_.enable(on);
    }

    // The window in configuration space onto BAR 0 (4.1.4.9).
    [[nodiscard]] bool is_at_access_data(std::uint64_t offset, unsigned size) const noexcept {
        return offset == at(access_, 16) && (size == 1 || size == 2 || size == 4);
    }
    [[nodiscard]] std::optional<std::uint64_t> accessed(unsigned size) noexcept {
        const std::uint64_t offset = configuration_.read(at(access_, 8), 4);
        if (configuration_.read(at(access_, 4), 1) != 0 || offset % size != 0 ||
            configuration_.read(at(access_, 12), 4) != size || offset >= bar_bytes) {
            return {};
        }
        return offset;
    }

    [[nodiscard]] bool is_queue() const noexcept { return queue_select_ < block::queue_count; }

    /// struct virtio_pci_common_cfg (4.1.4.3), each register at its own offset;
    /// the value is complete whatever the width, and cut by the bus.
    [[nodiscard]] std::uint64_t read_common(std::uint64_t offset) noexcept {
        switch (offset) {
        case 0x00:
            return feature_select_;
        case 0x04:
            return block::offered_features(feature_select_);
        case 0x08:
            return driver_feature_select_;
        case 0x0c:
            return device_.accepted_features(driver_feature_select_);
        case 0x10:
            return device_.interrupt().configuration_vector;
        case 0x12:
            return block::queue_count;
        case 0x14:
            return device_.status();
        case 0x16:
            return queue_select_;
        default:
            break;
        }
        if (!is_queue()) return 0;
        const queue_address place = device_.queue_place();
        const auto half = [](iova address, bool upper) noexcept {
            return static_cast<std::uint32_t>(raw(address) >> (upper ? 32 : 0));
        };
        switch (offset) {
        case 0x18:
            return place.size == 0 ? max_queue_size : place.size;
        case 0x1a:
            return device_.interrupt().queue_vector;
        case 0x1c:
            return device_.is_queue_enabled() ? 1 : 0;
        case 0x20:
        case 0x24:
            return half(place.descriptors, offset == 0x24);
        case 0x28:
        case 0x2c:
            return half(place.driver, offset == 0x2c);
        case 0x30:
        case 0x34:
            return half(place.device, offset == 0x34);
        default:
            return 0; // configuration generation, notification offset
        }
    }

    void write_common(std::uint64_t offset, std::uint32_t value) noexcept {
        const auto vector = static_cast<std::uint16_t>(
            (value & 0xffff) < virtio_pci_vectors ? value & 0xffff : no_vector);
        switch (offset) {
        case 0x00:
            feature_select_ = value;
            return;
        case 0x08:
            driver_feature_select_ = value;
            return;
        case 0x0c:
            device_.accept_features(driver_feature_select_, value);
            return;
        case 0x10:
            device_.interrupt().configuration_vector = vector;
            return;
        case 0x14:
            if (value == 0) feature_select_ = driver_feature_select_ = queue_select_ = 0;
            device_.write_status(value & 0xff);
            return;
        case 0x16:
            queue_select_ = value & 0xffff;
            return;
        default:
            break;
        }
        if (!is_queue()) return;
        queue_address place = device_.queue_place();
        switch (offset) {
        case 0x18:
            place.size = block::sound_queue_size(value & 0xffff);
            break;
        case 0x1a:
            device_.interrupt().queue_vector = vector;
            return;
        case 0x1c:
            if (place.size == 0) place.size = max_queue_size; // as it reads
            device_.place_queue(place);
            if ((value & 1) != 0) device_.enable_queue(true);
            return;
        case 0x20:
        case 0x24:
            block::replace_half(place.descriptors, offset == 0x24, value);
            break;
        case 0x28:
        case 0x2c:
            block::replace_half(place.driver, offset == 0x2c, value);
            break;
        case 0x30:
        case 0x34:
            block::replace_half(place.device, offset == 0x34, value);
            break;
        default:
            return;
        }
        device_.place_queue(place);
    }

    std::mutex following_;
    ats_cache cache_;
    block device_;
    pci_configuration configuration_;
    static constexpr std::uint16_t ats_enable = 1u << 15;
    std::uint16_t access_ = 0, msix_ = 0, ats_ = 0, pasid_ = 0;
    std::atomic<bool> ats_was_enabled_{false}, pasid_was_enabled_{false};
    // A driver selects and then reads: it does so on one vCPU at a time.
    std::atomic<std::uint32_t> feature_select_{0}, driver_feature_select_{0}, queue_select_{0};
};

} // namespace linux_vmm
