/// A virtio block device on a virtio-mmio transport, version 2 (virtio 1.2, 4.2).
///
/// vCPU threads read and write the registers; one I/O thread calls serve(). All
/// rings and buffers are reached through the port given at construction, never
/// straight through RAM, and the device insists on VIRTIO_F_ACCESS_PLATFORM: a
/// driver that would pass physical addresses instead of DMA addresses is refused
/// at FEATURES_OK. Whatever a ring holds, the worst that happens is
/// DEVICE_NEEDS_RESET.
#pragma once

#include "block_requests.hpp"
#include "virtqueue.hpp"

#include <atomic>
#include <cstdint>
#include <mutex>
#include <utility>

namespace linux_vmm {

/// `Line`: void(bool level) noexcept, the interrupt line.
/// `Notify`: void() noexcept, wakes the thread that calls serve().
template <dma_copier Port, class Line, class Notify>
class virtio_disk {
public:
    virtio_disk(Port port, const disk_file& disk, Line line, Notify notify)
        : port_(std::move(port)),
          requests_(disk),
          sectors_(disk.sectors()),
          line_(line),
          notify_(notify) {
        port_in_use<Port>::rest(port_);
    }
    virtio_disk(const virtio_disk&) = delete;
    virtio_disk& operator=(const virtio_disk&) = delete;

    /// A register read of `size` bytes. Registers are 32 bits wide and read as 0
    /// at another width; the configuration space takes any.
    [[nodiscard]] std::uint64_t read(std::uint64_t offset, unsigned size) noexcept {
        if (offset >= configuration) return read_configuration(offset - configuration, size);
        if (size != 4) return 0;
        switch (offset) {
        case 0x000:
            return 0x7472'6976; // "virt"
        case 0x004:
            return 2;
        case 0x008:
            return 2; // block device
        case 0x00c:
            return 0x4c43'4156;
        case 0x060: {
            const std::lock_guard lock{interrupt_mutex_};
            return interrupt_status_;
        }
        case 0x070:
            return status_.load(std::memory_order_acquire);
        default:
            break;
        }
        const std::lock_guard lock{mutex_};
        switch (offset) {
        case 0x010:
            return feature_select_ < 2 ? offered >> (32 * feature_select_) & 0xffff'ffff : 0;
        case 0x034:
            return queue_select_ == 0 ? max_queue_size : 0;
        case 0x044:
            return queue_select_ == 0 && queue_ready_ ? 1 : 0;
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
        if (offset == 0x050) {
            if (value == 0) notify_();
            return;
        }
        if (offset == 0x064) {
            const std::lock_guard lock{interrupt_mutex_};
            interrupt_status_ &= ~value;
            line_(interrupt_status_ != 0);
            return;
        }
        const std::lock_guard lock{mutex_};
        if (offset == 0x070) {
            write_status(value);
        } else if (offset == 0x014) {
            feature_select_ = value;
        } else if (offset == 0x024) {
            driver_feature_select_ = value;
        } else if (offset == 0x030) {
            queue_select_ = value;
        } else if (offset == 0x020) {
            // Fixed once the device has agreed to them.
            if ((status() & features_ok) != 0 || driver_feature_select_ >= 2) return;
            replace_half(accepted_, driver_feature_select_ == 1, value);
        } else if (queue_select_ == 0) {
            write_queue(offset, value);
        }
    }

    /// Serves what the driver has queued, until nothing waits. For the I/O thread.
    void serve() noexcept {
        const port_in_use awake{port_};
        bool served = true;
        while (served) {
            const std::lock_guard lock{mutex_};
            served = serve_one();
        }
    }

    /// Read after the I/O thread has ended.
    [[nodiscard]] const block_statistics& statistics() const noexcept {
        return requests_.statistics();
    }

private:
    static constexpr std::uint64_t configuration = 0x100;
    // Device status bits (2.1).
    static constexpr std::uint32_t driver_ok = 4, features_ok = 8, needs_reset = 64;
    // Causes in InterruptStatus.
    static constexpr std::uint32_t used_buffer = 1, configuration_change = 2;
    // Feature bits.
    static constexpr std::uint64_t seg_max = 1u << 2, flush = 1u << 9;
    static constexpr std::uint64_t version_1 = std::uint64_t{1} << 32;
    static constexpr std::uint64_t access_platform = std::uint64_t{1} << 33;
    static constexpr std::uint64_t required = version_1 | access_platform;
    static constexpr std::uint64_t offered = required | flush | seg_max;

    [[nodiscard]] std::uint32_t status() const noexcept {
        return status_.load(std::memory_order_relaxed);
    }

    static void replace_half(std::uint64_t& whole, bool upper, std::uint32_t value) noexcept {
        const unsigned shift = upper ? 32 : 0;
        whole = (whole & ~(std::uint64_t{0xffff'ffff} << shift)) | std::uint64_t{value} << shift;
    }

    /// struct virtio_blk_config as far as the offered features define it:
    /// capacity (le64 at 0), seg_max (le32 at 12).
    [[nodiscard]] std::uint64_t read_configuration(std::uint64_t at, unsigned size) const noexcept {
        struct {
            le64 capacity;
            le32 size_max;
            le32 seg_max;
        } const layout{le64{sectors_}, le32{0}, le32{max_queue_size - 2}};
        if (at >= sizeof layout || size > sizeof layout - at) return 0;
        std::uint64_t value = 0;
        std::memcpy(&value, reinterpret_cast<const std::byte*>(&layout) + at, size);
        return vm_accel::little_endian(value);
    }

    void write_status(std::uint32_t value) noexcept {
        if (value == 0) {
            reset();
            return;
        }
        std::uint32_t next = status() | (value & 0xff);
        if ((next & features_ok) != 0 && (status() & features_ok) == 0 &&
            ((accepted_ & ~offered) != 0 || (accepted_ & required) != required)) {
            next &= ~features_ok;
        }
        status_.store(next, std::memory_order_release);
        if ((next & driver_ok) != 0) notify_();
    }

    void write_queue(std::uint64_t offset, std::uint32_t value) noexcept {
        const auto half = [&](iova& address, bool upper) noexcept {
            std::uint64_t whole = raw(address);
            replace_half(whole, upper, value);
            address = iova{whole};
        };
        if (offset == 0x044) {
            queue_ready_ = (value & 1) != 0 && virtqueue::is_valid_size(place_.size);
            queue_ = virtqueue{place_}; // later changes of the place do not reach it
            return;
        }
        switch (offset) {
        case 0x038:
            place_.size = virtqueue::is_valid_size(value) ? static_cast<std::uint16_t>(value)
                                                          : std::uint16_t{0};
            break;
        case 0x080:
        case 0x084:
            half(place_.descriptors, offset == 0x084);
            break;
        case 0x090:
        case 0x094:
            half(place_.driver, offset == 0x094);
            break;
        case 0x0a0:
        case 0x0a4:
            half(place_.device, offset == 0x0a4);
            break;
        default:
            break;
        }
    }

    void reset() noexcept {
        status_.store(0, std::memory_order_release);
        feature_select_ = driver_feature_select_ = queue_select_ = 0;
        accepted_ = 0;
        place_ = {};
        queue_ = {};
        queue_ready_ = false;
        const std::lock_guard lock{interrupt_mutex_};
        interrupt_status_ = 0;
        line_(false);
    }

    void interrupt(std::uint32_t cause) noexcept {
        const std::lock_guard lock{interrupt_mutex_};
        interrupt_status_ |= cause;
        line_(true);
    }

    void declare_broken() noexcept {
        status_.fetch_or(needs_reset, std::memory_order_release);
        interrupt(configuration_change);
    }

    [[nodiscard]] bool serve_one() noexcept {
        constexpr std::uint32_t working = driver_ok | features_ok;
        if (!queue_ready_ || (status() & (working | needs_reset)) != working) return false;
        switch (queue_.take(port_, chain_)) {
        case queue_state::empty:
            return false;
        case queue_state::broken:
            declare_broken();
            return false;
        case queue_state::ready:
            break;
        }
        const block_completion done = requests_.serve(port_, chain_);
        if (!done.answered || !queue_.give_back(port_, chain_, done.written)) {
            declare_broken();
            return false;
        }
        if (queue_.wants_interrupt(port_)) interrupt(used_buffer);
        return true;
    }

    std::mutex mutex_; ///< all but the interrupt state
    Port port_;
    block_requests requests_;
    const std::uint64_t sectors_;
    buffer_chain chain_;
    virtqueue queue_;
    queue_address place_;
    bool queue_ready_ = false;
    std::uint32_t feature_select_ = 0, driver_feature_select_ = 0, queue_select_ = 0;
    std::uint64_t accepted_ = 0;
    std::atomic<std::uint32_t> status_{0};

    std::mutex interrupt_mutex_; ///< taken last
    std::uint32_t interrupt_status_ = 0;
    Line line_;
    Notify notify_;
};

} // namespace linux_vmm
