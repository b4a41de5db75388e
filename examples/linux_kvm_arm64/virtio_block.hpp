/// A virtio block device (virtio 1.2, 5.2) without its transport: features,
/// status, one queue, and the requests in it.
///
/// vCPU threads use the registers of a transport, which come here; one I/O
/// thread calls serve(). All rings and buffers are reached through the port
/// given at construction, never straight through RAM, and the device insists on
/// VIRTIO_F_ACCESS_PLATFORM: a driver that would pass physical addresses instead
/// of DMA addresses is refused at FEATURES_OK. Whatever a ring holds, the worst
/// that happens is DEVICE_NEEDS_RESET.
#pragma once

#include "block_requests.hpp"
#include "virtqueue.hpp"

#include <atomic>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <utility>

namespace linux_vmm {

/// Why a virtio device interrupts its driver; values as in the interrupt status
/// registers of both transports.
enum class virtio_cause : std::uint32_t { used_buffer = 1, configuration_change = 2 };

/// Meaning: how the driver learns of a cause.
/// - raise: now; on the I/O thread, the port in use.
/// - deliver: what could not be raised before and can be now; likewise.
/// - clear: the device was reset; any thread.
template <class I, class Port>
concept virtio_interrupt = requires(I& interrupt, Port& port, virtio_cause cause) {
    { interrupt.raise(port, cause) } noexcept -> std::same_as<void>;
    { interrupt.deliver(port) } noexcept -> std::same_as<void>;
    { interrupt.clear() } noexcept -> std::same_as<void>;
};

/// `Notify`: void() noexcept, wakes the thread that calls serve().
template <dma_copier Port, virtio_interrupt<Port> Interrupt, class Notify>
class virtio_block {
public:
    /// `how` makes the interrupt in place.
    template <class... How>
    virtio_block(Port port, const disk_file& disk, Notify notify, How&&... how)
        : port_(std::move(port)),
          requests_(disk),
          sectors_(disk.sectors()),
          interrupt_(std::forward<How>(how)...),
          notify_(notify) {
        port_in_use<Port>::rest(port_);
    }
    virtio_block(const virtio_block&) = delete;
    virtio_block& operator=(const virtio_block&) = delete;

    static constexpr std::uint32_t device_type = 2;
    static constexpr std::uint32_t queue_count = 1;

    [[nodiscard]] Interrupt& interrupt() noexcept { return interrupt_; }

    // --- what the registers of a transport stand for

    [[nodiscard]] std::uint32_t status() const noexcept {
        return status_.load(std::memory_order_acquire);
    }
    void write_status(std::uint32_t value) noexcept {
        const std::lock_guard lock{mutex_};
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

    /// 32 feature bits, the half that `select` chooses.
    [[nodiscard]] static std::uint32_t offered_features(std::uint32_t select) noexcept {
        return select < 2 ? static_cast<std::uint32_t>(offered >> (32 * select)) : 0;
    }
    [[nodiscard]] std::uint32_t accepted_features(std::uint32_t select) noexcept {
        const std::lock_guard lock{mutex_};
        return select < 2 ? static_cast<std::uint32_t>(accepted_ >> (32 * select)) : 0;
    }
    /// Ignored once the device has agreed to them.
    void accept_features(std::uint32_t select, std::uint32_t value) noexcept {
        const std::lock_guard lock{mutex_};
        if ((status() & features_ok) != 0 || select >= 2) return;
        replace_half(accepted_, select == 1, value);
    }

    /// What the driver has said of the queue; size 0: nothing valid.
    [[nodiscard]] queue_address queue_place() noexcept {
        const std::lock_guard lock{mutex_};
        return place_;
    }
    void place_queue(const queue_address& place) noexcept {
        const std::lock_guard lock{mutex_};
        place_ = place;
    }
    [[nodiscard]] bool is_queue_enabled() noexcept {
        const std::lock_guard lock{mutex_};
        return queue_ready_;
    }
    /// Later changes of the place do not reach an enabled queue.
    void enable_queue(bool enabled) noexcept {
        const std::lock_guard lock{mutex_};
        queue_ready_ = enabled && virtqueue::is_valid_size(place_.size);
        queue_ = virtqueue{place_};
    }
    void notify() noexcept { notify_(); }

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

    static void replace_half(std::uint64_t& whole, bool upper, std::uint32_t value) noexcept {
        const unsigned shift = upper ? 32 : 0;
        whole = (whole & ~(std::uint64_t{0xffff'ffff} << shift)) | std::uint64_t{value} << shift;
    }
    static void replace_half(iova& address, bool upper, std::uint32_t value) noexcept {
        std::uint64_t whole = raw(address);
        replace_half(whole, upper, value);
        address = iova{whole};
    }
    /// Sizes that no queue can have count as none.
    [[nodiscard]] static std::uint16_t sound_queue_size(std::uint32_t size) noexcept {
        return virtqueue::is_valid_size(size) ? static_cast<std::uint16_t>(size) : std::uint16_t{0};
    }

    // --- work

    /// Serves what the driver has queued, until nothing waits. For the I/O thread.
    void serve() noexcept {
        const port_in_use awake{port_};
        interrupt_.deliver(port_);
        bool served = true;
        while (served && !is_frozen()) {
            const std::lock_guard lock{mutex_};
            served = !freezes_now() && serve_one();
            if (served && requests_left_ > 1) --requests_left_;
        }
    }
    /// Serves nothing more once that many requests are served and another one
    /// waits: in the middle of the guest's I/O. 0: never. Before the I/O thread runs.
    void freeze_after(std::uint64_t requests) noexcept {
        requests_left_ = requests == 0 ? 0 : requests + 1;
    }
    [[nodiscard]] bool is_frozen() const noexcept { return frozen_; }
    /// Of a machine at rest: what the driver has queued and nobody has taken.
    [[nodiscard]] std::uint16_t requests_waiting() noexcept {
        const std::lock_guard lock{mutex_};
        const port_in_use awake{port_};
        return queue_ready_ ? queue_.waiting(port_) : std::uint16_t{0};
    }

    /// For a machine at rest.
    template <class State>
    void move_state(State& state) {
        const std::lock_guard lock{mutex_};
        state(queue_);
        state(place_);
        state(queue_ready_);
        state(accepted_);
        state(status_);
        interrupt_.move_state(state);
    }

    /// Read after the I/O thread has ended.
    [[nodiscard]] const block_statistics& statistics() const noexcept {
        return requests_.statistics();
    }

private:
    // Device status bits (2.1).
    static constexpr std::uint32_t driver_ok = 4, features_ok = 8, needs_reset = 64;
    // Feature bits.
    static constexpr std::uint64_t seg_max = 1u << 2, flush = 1u << 9;
    static constexpr std::uint64_t version_1 = std::uint64_t{1} << 32;
    static constexpr std::uint64_t access_platform = std::uint64_t{1} << 33;
    static constexpr std::uint64_t required = version_1 | access_platform;
    static constexpr std::uint64_t offered = required | flush | seg_max;

    void reset() noexcept {
        status_.store(0, std::memory_order_release);
        accepted_ = 0;
        place_ = {};
        queue_ = {};
        queue_ready_ = false;
        interrupt_.clear();
    }

    [[nodiscard]] bool freezes_now() noexcept {
        if (requests_left_ == 1 && queue_ready_ && queue_.waiting(port_) != 0) frozen_ = true;
        return frozen_;
    }

    void declare_broken() noexcept {
        status_.fetch_or(needs_reset, std::memory_order_release);
        interrupt_.raise(port_, virtio_cause::configuration_change);
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
        if (queue_.wants_interrupt(port_)) interrupt_.raise(port_, virtio_cause::used_buffer);
        return true;
    }

    std::mutex mutex_; ///< all but the interrupt, which has its own, taken last
    Port port_;
    block_requests requests_;
    const std::uint64_t sectors_;
    buffer_chain chain_;
    virtqueue queue_;
    queue_address place_;
    bool queue_ready_ = false;
    std::uint64_t accepted_ = 0;
    std::atomic<std::uint32_t> status_{0};
    std::uint64_t requests_left_ = 0; ///< until it freezes at 1; 0: never
    std::atomic<bool> frozen_{false};
    Interrupt interrupt_;
    Notify notify_;
};

} // namespace linux_vmm
