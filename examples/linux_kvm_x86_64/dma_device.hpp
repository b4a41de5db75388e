/// A device that copies: reads from one I/O virtual address, writes to another.
///
/// The vCPU's thread programs its registers; the copying is done by a thread of
/// the device's own, through its port of the SMMU. Everything the device knows
/// of memory comes out of that port.
#pragma once

#include "machine.hpp"

#include <vm_accel/core/address.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <thread>
#include <utility>

/// `Port` is `smmu<...>::port`.
template <class Port>
class dma_device {
public:
    explicit dma_device(Port port) : port_(std::move(port)), thread_([this] { serve(); }) {}
    ~dma_device() {
        stopping_.store(true);
        started_.fetch_add(1);
        started_.notify_one();
        thread_.join();
    }
    dma_device(const dma_device&) = delete;
    dma_device& operator=(const dma_device&) = delete;

    // The vCPU's side.
    [[nodiscard]] std::uint64_t read_register(std::uint64_t offset) const noexcept {
        switch (offset) {
        case machine::dma::source:
            return source_.load();
        case machine::dma::destination:
            return destination_.load();
        case machine::dma::length:
            return length_.load();
        case machine::dma::status:
            return status_.load();
        default:
            return 0;
        }
    }
    /// A busy device takes no new orders.
    void write_register(std::uint64_t offset, std::uint64_t value) noexcept {
        if (status_.load() == machine::dma::busy) return;
        switch (offset) {
        case machine::dma::source:
            source_.store(value);
            break;
        case machine::dma::destination:
            destination_.store(value);
            break;
        case machine::dma::length:
            length_.store(value);
            break;
        case machine::dma::start:
            status_.store(machine::dma::busy);
            started_.fetch_add(1);
            started_.notify_one();
            break;
        default:
            break;
        }
    }

    // What it has done, for the report.
    [[nodiscard]] std::uint64_t completed() const noexcept { return completed_.load(); }
    [[nodiscard]] std::uint64_t aborted() const noexcept { return aborted_.load(); }
    [[nodiscard]] std::uint64_t bytes() const noexcept { return bytes_.load(); }

private:
    /// The device's thread. Asleep it is parked: a CMD_SYNC need not wait for it.
    void serve() noexcept {
        for (std::uint32_t seen = 0;;) {
            port_.park();
            started_.wait(seen);
            port_.unpark();
            seen = started_.load();
            if (stopping_.load()) return;
            const std::uint64_t result = copy();
            if (result == machine::dma::done) {
                completed_.fetch_add(1);
            } else {
                aborted_.fetch_add(1);
            }
            status_.store(result);
        }
    }

    /// In pieces of the device's buffer, as hardware does it: what was read is
    /// held before it is written, and the first refusal ends it.
    [[nodiscard]] std::uint64_t copy() noexcept {
        const std::uint64_t length = length_.load();
        if (length == 0 || length > machine::dma::longest) return machine::dma::refused;
        for (std::uint64_t done = 0; done < length;) {
            const std::span<std::byte> piece{
                buffer_.data(),
                static_cast<std::size_t>(std::min<std::uint64_t>(buffer_.size(), length - done))};
            if (!port_.read(vm_accel::iova{source_.load() + done}, piece)) {
                return machine::dma::read_aborted;
            }
            if (!port_.write(vm_accel::iova{destination_.load() + done}, piece)) {
                return machine::dma::write_aborted;
            }
            done += piece.size();
            bytes_.fetch_add(piece.size());
        }
        return machine::dma::done;
    }

    Port port_;
    std::array<std::byte, 512> buffer_{};
    std::atomic<std::uint64_t> source_{0};
    std::atomic<std::uint64_t> destination_{0};
    std::atomic<std::uint64_t> length_{0};
    std::atomic<std::uint64_t> status_{machine::dma::idle};
    std::atomic<std::uint32_t> started_{0};
    std::atomic<bool> stopping_{false};
    std::atomic<std::uint64_t> completed_{0};
    std::atomic<std::uint64_t> aborted_{0};
    std::atomic<std::uint64_t> bytes_{0};
    std::thread thread_;
};
