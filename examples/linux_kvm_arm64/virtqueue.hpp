/// A virtio 1.x split virtqueue, seen by a device that trusts no byte of it.
///
/// The rings and buffers belong to the guest and lie behind the SMMU: each
/// access is a DMA through the device's port and may be refused at any moment.
/// Each descriptor, index and element is copied once and checked on the copy.
/// A chain is followed for at most as many steps as the queue has entries, so
/// no ring content can make the device loop, and no address is formed here but
/// the ones the guest gave, which the SMMU checks.
#pragma once

#include "dma.hpp"

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/field.hpp>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

namespace linux_vmm {

using vm_accel::iova;
using le16 = vm_accel::little<std::uint16_t>;
using vm_accel::le32;
using vm_accel::le64;

inline constexpr std::uint16_t max_queue_size = 128;

/// Where the driver put a queue, and how long it is.
struct queue_address {
    std::uint16_t size = 0; ///< entries: a power of two up to max_queue_size
    iova descriptors{};
    iova driver{}; ///< available ring
    iova device{}; ///< used ring
};

struct buffer_piece {
    iova address{};
    std::uint32_t bytes = 0;
};

/// One request of the driver: what the device may read, then what it may write.
struct buffer_chain {
    std::uint16_t head = 0;
    std::array<buffer_piece, max_queue_size> piece;
    std::uint16_t readable = 0; ///< the first `readable` pieces
    std::uint16_t count = 0;    ///< all pieces

    [[nodiscard]] std::span<const buffer_piece> readable_pieces() const noexcept {
        return std::span{piece}.first(readable);
    }
    [[nodiscard]] std::span<const buffer_piece> writable_pieces() const noexcept {
        return std::span{piece}.subspan(readable, static_cast<std::size_t>(count - readable));
    }
};

enum class queue_state : std::uint8_t {
    empty,  ///< no request waits
    ready,  ///< a request was taken
    broken, ///< the ring makes no sense or could not be reached: the device needs a reset
};

/// Threads: one at a time.
class virtqueue {
public:
    virtqueue() noexcept = default;
    /// Starts at index 0 of both rings, as after a reset.
    explicit virtqueue(queue_address where) noexcept : where_(where) {}

    [[nodiscard]] static constexpr bool is_valid_size(std::uint32_t size) noexcept {
        return size != 0 && size <= max_queue_size && (size & (size - 1)) == 0;
    }

    /// Takes the next request of the driver into `chain`.
    template <dma_copier Port>
    [[nodiscard]] queue_state take(Port& port, buffer_chain& chain) noexcept {
        if (!is_valid_size(where_.size)) return queue_state::broken;
        le16 driver_index;
        if (!dma_load(port, offset_by(where_.driver, 2), driver_index)) return queue_state::broken;
        const auto waiting = static_cast<std::uint16_t>(driver_index - taken_);
        if (waiting == 0) return queue_state::empty;
        if (waiting > where_.size) return queue_state::broken;
        // The driver wrote the element before the index that announces it.
        std::atomic_thread_fence(std::memory_order_acquire);
        le16 head;
        const std::uint64_t slot = taken_ % where_.size;
        if (!dma_load(port, offset_by(where_.driver, 4 + 2 * slot), head)) {
            return queue_state::broken;
        }
        if (!follow(port, head, chain)) return queue_state::broken;
        ++taken_;
        return queue_state::ready;
    }

    /// How many requests the driver has queued and nobody has taken.
    template <dma_copier Port>
    [[nodiscard]] std::uint16_t waiting(Port& port) noexcept {
        le16 driver_index;
        if (!dma_load(port, offset_by(where_.driver, 2), driver_index)) return 0;
        return static_cast<std::uint16_t>(driver_index - taken_);
    }

    /// Gives the request back, `written` bytes of its buffers filled. False:
    /// the ring could not be reached.
    template <dma_copier Port>
    [[nodiscard]] bool give_back(Port& port, const buffer_chain& chain,
                                 std::uint32_t written) noexcept {
        const std::array<le32, 2> element{le32{chain.head}, le32{written}};
        const std::uint64_t slot = given_ % where_.size;
        if (!dma_store(port, offset_by(where_.device, 4 + 8 * slot), element)) return false;
        // The driver must not see the index before the element and the data.
        std::atomic_thread_fence(std::memory_order_release);
        ++given_;
        return dma_store(port, offset_by(where_.device, 2), le16{given_});
    }

    /// Whether the driver wants an interrupt for what was given back. A ring
    /// that cannot be read wants one.
    template <dma_copier Port>
    [[nodiscard]] bool wants_interrupt(Port& port) noexcept {
        std::atomic_thread_fence(std::memory_order_seq_cst);
        le16 flags;
        return !dma_load(port, where_.driver, flags) || (flags & no_interrupt) == 0;
    }

private:
    static constexpr std::uint16_t has_next = 1, device_writes = 2, is_indirect = 4;
    static constexpr std::uint16_t no_interrupt = 1;

    struct descriptor {
        le64 address;
        le32 bytes;
        le16 flags;
        le16 next;
    };
    static_assert(sizeof(descriptor) == 16);

    template <dma_copier Port>
    [[nodiscard]] bool follow(Port& port, std::uint16_t head, buffer_chain& chain) noexcept {
        chain.head = head;
        chain.readable = 0;
        chain.count = 0;
        for (std::uint16_t index = head;;) {
            // More steps than entries: the chain has a loop.
            if (index >= where_.size || chain.count == where_.size) return false;
            descriptor d;
            const auto at = offset_by(where_.descriptors, std::uint64_t{16} * index);
            if (!dma_load(port, at, d)) return false;
            const bool writable = (d.flags & device_writes) != 0;
            // Indirect tables are not offered; readable after writable is forbidden.
            if ((d.flags & is_indirect) != 0) return false;
            if (!writable && chain.readable != chain.count) return false;
            chain.piece[chain.count++] = {iova{d.address.value()}, d.bytes.value()};
            if (!writable) chain.readable = chain.count;
            if ((d.flags & has_next) == 0) return true;
            index = d.next;
        }
    }

    queue_address where_{};
    std::uint16_t taken_ = 0;
    std::uint16_t given_ = 0;
};

/// Walks the pieces of a chain as one run of bytes.
class piece_cursor {
public:
    explicit piece_cursor(std::span<const buffer_piece> pieces) noexcept : pieces_(pieces) {}

    [[nodiscard]] std::uint64_t remaining() const noexcept {
        std::uint64_t bytes = 0;
        for (const buffer_piece& p : pieces_)
            bytes += p.bytes;
        return bytes - used_;
    }
    /// Copies from the guest; false: refused, or not that much is left.
    template <dma_copier Port>
    [[nodiscard]] bool read(Port& port, std::span<std::byte> out) noexcept {
        return step(out.size(), [&](iova at, std::size_t done, std::size_t n) noexcept {
            return port.read(at, out.subspan(done, n));
        });
    }
    /// Copies to the guest; false: refused, or not that much is left.
    template <dma_copier Port>
    [[nodiscard]] bool write(Port& port, std::span<const std::byte> in) noexcept {
        return step(in.size(), [&](iova at, std::size_t done, std::size_t n) noexcept {
            return port.write(at, in.subspan(done, n));
        });
    }
    [[nodiscard]] bool skip(std::uint64_t bytes) noexcept {
        return step(bytes, [](iova, std::size_t, std::size_t) noexcept { return true; });
    }

private:
    template <class F>
    [[nodiscard]] bool step(std::uint64_t bytes, F f) noexcept {
        for (std::uint64_t done = 0; done < bytes;) {
            while (!pieces_.empty() && used_ == pieces_.front().bytes) {
                pieces_ = pieces_.subspan(1);
                used_ = 0;
            }
            if (pieces_.empty()) return false;
            const buffer_piece& p = pieces_.front();
            const std::uint64_t left = p.bytes - used_;
            const std::uint64_t n = left < bytes - done ? left : bytes - done;
            if (!f(offset_by(p.address, used_), static_cast<std::size_t>(done),
                   static_cast<std::size_t>(n))) {
                return false;
            }
            used_ += static_cast<std::uint32_t>(n);
            done += n;
        }
        return true;
    }

    std::span<const buffer_piece> pieces_;
    std::uint32_t used_ = 0; ///< bytes of the first piece
};

} // namespace linux_vmm
