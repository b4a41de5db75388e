/// A device's way to memory: one port per device and thread.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/field.hpp>
#include <vm_accel/guest/copy.hpp>
#include <vm_accel/smmu/host/attachment.hpp>
#include <vm_accel/smmu/vocabulary/access.hpp>
#include <vm_accel/smmu/vocabulary/outcome.hpp>
#include <vm_accel/smmu/vocabulary/statistics.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <utility>

namespace vm_accel::inline v0 {

/// Attributes of the accesses that a device makes, besides their direction.
struct access_attributes {
    bool privileged = false;
    bool instruction = false;
};

/// Made by `smmu::make_port`. Movable while no guard of it is open; used by one
/// thread at a time; must be destroyed before the SMMU, after its guards.
/// `Device` is the SMMU.
///
/// Host memory comes from an open guard only, and may be used until that guard
/// closes. Close guards soon: a CMD_SYNC of the guest completes only after
/// every guard that was open at its invalidation has closed. Never block, wait
/// for a lock or call an interrupt sink inside one.
template <class Device>
class dma_port {
    using slot_type = typename Device::guard_slot_type;
    using effects_type = typename Device::effects_type;

public:
    /// An open guard. Guards of one port nest.
    class guard {
    public:
        explicit guard(dma_port& port) noexcept : port_(&port) { port.enter(); }
        guard(const guard&) = delete;
        guard& operator=(const guard&) = delete;
        ~guard() { port_->leave(); }

        /// Translates [address, address + length): the answer covers the longest
        /// prefix that one translation serves. A refused access has already
        /// been recorded, as the architecture asks, when this returns.
        [[nodiscard, gnu::always_inline]] outcome
        translate(iova address, std::uint64_t length, access kind,
                  access_attributes attributes = {}) noexcept {
            return port_->translate(
                {address, length, kind, attributes.privileged, attributes.instruction});
        }
        /// To be called after writing through a span: marks pages dirty where the
        /// guest memory tracks that.
        void note_write(const outcome& written) noexcept { port_->note_write(written); }

    private:
        dma_port* port_;
    };

    dma_port(dma_port&& other) noexcept { swap(other); }
    dma_port& operator=(dma_port&& other) noexcept {
        dma_port{std::move(other)}.swap(*this);
        return *this;
    }
    ~dma_port() {
        if (device_ != nullptr) device_->release_port(*attachment_, *slot_);
    }

    [[nodiscard]] guard open() noexcept { return guard{*this}; }

    /// Copies `out.size()` bytes from the device's address space. False = the
    /// access was refused at some byte; bytes before it have been copied.
    [[nodiscard]] bool read(iova address, std::span<std::byte> out,
                            access_attributes attributes = {}) noexcept {
        const guard held{*this};
        while (!out.empty()) {
            const outcome o = translate(
                {address, out.size(), access::read, attributes.privileged, attributes.instruction});
            if (!o.is_span()) return refused(o);
            const auto n = static_cast<std::size_t>(o.length());
            copy_from_guest(out.data(), o.host(), n);
            out = out.subspan(n);
            address = offset_by(address, n);
        }
        return true;
    }

    /// Copies `in` into the device's address space. An aligned 4-byte write that
    /// lands on a doorbell is delivered as a message signalled interrupt. False
    /// = refused at some byte; bytes before it have been written.
    [[nodiscard]] bool write(iova address, std::span<const std::byte> in,
                             access_attributes attributes = {}) noexcept {
        pa doorbell{};
        {
            const guard held{*this};
            while (!in.empty()) {
                const outcome o = translate({address, in.size(), access::write,
                                             attributes.privileged, attributes.instruction});
                if (o.is_mmio() && in.size() == 4 && o.length() == 4 &&
                    (raw(o.address()) & 3) == 0) {
                    doorbell = o.address();
                    break;
                }
                if (!o.is_span()) return refused(o);
                const auto n = static_cast<std::size_t>(o.length());
                copy_to_guest(o.host(), in.data(), n);
                note_write(o);
                in = in.subspan(n);
                address = offset_by(address, n);
            }
        }
        if (in.empty()) return true;
        std::uint32_t data = 0;
        std::memcpy(&data, in.data(), sizeof data);
        data = little_endian(data);
        if (device_->deliver_message(attachment_->subject.stream, doorbell, data)) {
            counters_->messages.add();
            return true;
        }
        counters_->faults.add();
        return false;
    }

    /// The thread promises not to open a guard until unpark(): synchronisation
    /// does not have to reach it. For device threads that go to sleep.
    void park() noexcept { device_->park_port(*slot_); }
    void unpark() noexcept { device_->unpark_port(*slot_); }

    [[nodiscard]] stream_id stream() const noexcept { return attachment_->subject.stream; }

private:
    friend Device;
    dma_port(Device& device, attachment_record& attachment, slot_type& slot,
             port_counters& counters) noexcept
        : device_(&device), attachment_(&attachment), slot_(&slot), counters_(&counters) {}

    void swap(dma_port& other) noexcept {
        std::swap(device_, other.device_);
        std::swap(attachment_, other.attachment_);
        std::swap(slot_, other.slot_);
        std::swap(counters_, other.counters_);
        std::swap(pending_, other.pending_);
        std::swap(has_pending_, other.has_pending_);
    }

    void enter() noexcept { device_->open_guard(*slot_); }
    void leave() noexcept {
        const bool awaited = device_->close_guard(*slot_);
        if (awaited || has_pending_) [[unlikely]]
            act(awaited);
    }
    /// What a guard that has closed leaves to do.
    [[gnu::noinline]] void act(bool awaited) noexcept {
        if (slot_->depth != 0) return; // the outermost guard acts
        has_pending_ = false;
        pending_.drain_commands = pending_.drain_commands || awaited;
        while (std::exchange(pending_.drain_events, false)) {
            device_->open_guard(*slot_);
            pending_ |= device_->drain_events();
            pending_.drain_commands = device_->close_guard(*slot_) || pending_.drain_commands;
        }
        device_->act(std::exchange(pending_, {}));
    }
    /// A hit is answered here; all else is out of line, and so is its state.
    [[nodiscard, gnu::always_inline]] outcome translate(const transaction& asked) noexcept {
        if (is_sound(asked)) [[likely]] {
            const std::optional<outcome> hit =
                device_->translate_hit(*attachment_, asked, *counters_);
            if (hit) [[likely]]
                return *hit;
        }
        // Piece by piece: a hit then needs no transaction in memory.
        return translate_slowly(asked.address, asked.length, asked.kind,
                                {asked.privileged, asked.instruction});
    }
    /// Neither empty nor past the end of the address space.
    [[nodiscard]] static bool is_sound(const transaction& asked) noexcept {
        return asked.length - 1 <= ~raw(asked.address);
    }
    [[nodiscard, gnu::noinline]] outcome translate_slowly(iova address, std::uint64_t length,
                                                          access kind,
                                                          access_attributes attributes) noexcept {
        const transaction asked{address, length, kind, attributes.privileged,
                                attributes.instruction};
        if (!is_sound(asked)) [[unlikely]] {
            counters_->faults.add();
            return outcome::refused({}, silent_abort::bad_access);
        }
        translation_fault fault;
        const outcome o = device_->translate(*attachment_, asked, *counters_, fault);
        if (o.is_fault()) [[unlikely]] {
            counters_->faults.add();
            pending_ |= device_->record(fault);
            has_pending_ = true;
        }
        return o;
    }
    void note_write(const outcome& written) noexcept {
        device_->note_write(written.address(), written.length());
    }
    /// A register where memory was wanted is a refusal of ours, to be counted.
    [[nodiscard]] bool refused(const outcome& o) noexcept {
        if (!o.is_fault()) counters_->faults.add();
        return false;
    }

    Device* device_ = nullptr;
    attachment_record* attachment_ = nullptr;
    slot_type* slot_ = nullptr;
    port_counters* counters_ = nullptr;
    effects_type pending_{};
    bool has_pending_ = false;
};

} // namespace vm_accel::inline v0
