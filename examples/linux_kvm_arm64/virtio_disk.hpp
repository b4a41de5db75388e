/// A virtio block device on a virtio-mmio transport, version 2 (virtio 1.2, 4.2).
///
/// vCPU threads read and write the registers; one I/O thread calls serve().
#pragma once

#include "virtio_block.hpp"

#include <atomic>
#include <cstdint>
#include <mutex>
#include <utility>

namespace linux_vmm {

/// Interrupt status behind a level-triggered line. `Line`: void(bool level) noexcept.
template <class Line>
class line_interrupt {
public:
    explicit line_interrupt(Line line) : line_(line) {}

    template <class Port>
    void raise(Port&, virtio_cause cause) noexcept {
        const std::lock_guard lock{mutex_};
        status_ |= static_cast<std::uint32_t>(cause);
        line_(true);
    }
    template <class Port>
    void deliver(Port&) noexcept {}
    void clear() noexcept { acknowledge(~std::uint32_t{0}); }

    [[nodiscard]] std::uint32_t status() noexcept {
        const std::lock_guard lock{mutex_};
        return status_;
    }
    /// For a machine at rest. The line's level is the interrupt controller's state.
    template <class State>
    void move_state(State& state) {
        state(status_);
    }
    void acknowledge(std::uint32_t causes) noexcept {
        const std::lock_guard lock{mutex_};
        status_ &= ~causes;
        line_(status_ != 0);
    }

private:
    std::mutex mutex_;
    std::uint32_t status_ = 0;
    Line line_;
};

/// `Line`: void(bool level) noexcept, the interrupt line.
/// `Notify`: void() noexcept, wakes the thread that calls serve().
template <dma_copier Port, class Line, class Notify>
class virtio_disk {
public:
    virtio_disk(Port port, const disk_file& disk, Line line, Notify notify)
        : device_(std::move(port), disk, notify, line) {}

    /// A register read of `size` bytes. Registers are 32 bits wide and read as 0
    /// at another width; the configuration space takes any.
    [[nodiscard]] std::uint64_t read(std::uint64_t offset, unsigned size) noexcept {
        if (offset >= configuration) {
            return device_.read_configuration(offset - configuration, size);
        }
        if (size != 4) return 0;
        switch (offset) {
        case 0x000:
            return 0x7472'6976; // "virt"
        case 0x004:
            return 2;
        case 0x008:
            return block::device_type;
        case 0x00c:
            return 0x4c43'4156;
        case 0x010:
            return block::offered_features(feature_select_);
        case 0x034:
            return is_queue() ? max_queue_size : 0;
        case 0x044:
            return is_queue() && device_.is_queue_enabled() ? 1 : 0;
        case 0x060:
            return device_.interrupt().status();
        case 0x070:
            return device_.status();
        case 0x0b0:
        case 0x0b4:
            return 0xffff'ffff; // no shared memory region
        default:
            return 0;
        }
    }

    void write(std::uint64_t offset, unsigned size, std::uint64_t wide) noexcept {
        if (size != 4) return;
        const auto value = static_cast<std::uint32_t>(wide);
        switch (offset) {
        case 0x014:
            feature_select_ = value;
            return;
        case 0x020:
            device_.accept_features(driver_feature_select_, value);
            return;
        case 0x024:
            driver_feature_select_ = value;
            return;
        case 0x030:
            queue_select_ = value;
            return;
        case 0x050:
            if (value == 0) device_.notify();
            return;
        case 0x064:
            device_.interrupt().acknowledge(value);
            return;
        case 0x070:
            if (value == 0) feature_select_ = driver_feature_select_ = queue_select_ = 0;
            device_.write_status(value);
            return;
        default:
            if (is_queue()) write_queue(offset, value);
        }
    }

    void serve() noexcept { device_.serve(); }
    /// See virtio_block.
    void freeze_after(std::uint64_t requests) noexcept { device_.freeze_after(requests); }
    [[nodiscard]] bool is_frozen() const noexcept { return device_.is_frozen(); }
    [[nodiscard]] std::uint16_t requests_waiting() noexcept { return device_.requests_waiting(); }

    /// For a machine at rest.
    template <class State>
    void move_state(State& state) {
        device_.move_state(state);
        for (std::atomic<std::uint32_t>* word :
             {&feature_select_, &driver_feature_select_, &queue_select_})
            state(*word);
    }

    /// Read after the I/O thread has ended.
    [[nodiscard]] const block_statistics& statistics() const noexcept {
        return device_.statistics();
    }

private:
    using block = virtio_block<Port, line_interrupt<Line>, Notify>;
    static constexpr std::uint64_t configuration = 0x100;

    [[nodiscard]] bool is_queue() const noexcept { return queue_select_ < block::queue_count; }

    void write_queue(std::uint64_t offset, std::uint32_t value) noexcept {
        if (offset == 0x044) {
            device_.enable_queue((value & 1) != 0);
            return;
        }
        queue_address place = device_.queue_place();
        switch (offset) {
        case 0x038:
            place.size = block::sound_queue_size(value);
            break;
        case 0x080:
        case 0x084:
            block::replace_half(place.descriptors, offset == 0x084, value);
            break;
        case 0x090:
        case 0x094:
            block::replace_half(place.driver, offset == 0x094, value);
            break;
        case 0x0a0:
        case 0x0a4:
            block::replace_half(place.device, offset == 0x0a4, value);
            break;
        default:
            return;
        }
        device_.place_queue(place);
    }

    block device_;
    // A driver selects and then reads: it does so on one vCPU at a time.
    std::atomic<std::uint32_t> feature_select_{0}, driver_feature_select_{0}, queue_select_{0};
};

} // namespace linux_vmm
