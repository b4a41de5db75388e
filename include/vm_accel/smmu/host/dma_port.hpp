/// A device's way to memory: one port per device and thread.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/smmu/host/attachment.hpp>
#include <vm_accel/smmu/host/copying_port.hpp>
#include <vm_accel/smmu/host/pcie_port.hpp>
#include <vm_accel/smmu/vocabulary/access.hpp>
#include <vm_accel/smmu/vocabulary/access_attributes.hpp>
#include <vm_accel/smmu/vocabulary/fault.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/smmu/vocabulary/outcome.hpp>
#include <vm_accel/smmu/vocabulary/statistics.hpp>

#include <bit>
#include <cstdint>
#include <utility>

namespace vm_accel::inline v0 {

/// Made by `smmu::make_port`. Movable while no guard of it is open; used by one
/// thread at a time; must be destroyed before the SMMU, after its guards.
/// `Device` is the SMMU. Copies are in copying_port.hpp.
///
/// Host memory comes from an open guard only, and may be used until that guard
/// closes. Close guards soon: a CMD_SYNC of the guest completes only after
/// every guard that was open at its invalidation has closed. Never block, wait
/// for a lock or call an interrupt sink inside one.
///
/// With smmu_features::stalls, an access that the guest's tables refuse may
/// wait for the guest's driver: read() and write() then block, with no guard
/// open; try_read(), try_write() and guards give a ticket to ask about later.
/// Ask about each until it is decided: accesses that may be stalled at a time
/// are few.
template <class Device>
class dma_port : public copying_port<dma_port<Device>, Device::F>,
                 public pcie_port<dma_port<Device>, Device::F> {
    static constexpr smmu_features F = Device::F;
    using slot_type = typename Device::guard_slot_type;
    using effects_type = typename Device::effects_type;

public:
    /// An open guard. Guards of one port nest.
    class guard {
    public:
        explicit guard(dma_port& port) noexcept : port_(&port), slot_(port.slot_) {
            port_->device_->open_guard(*slot_);
        }
        guard(const guard&) = delete;
        guard& operator=(const guard&) = delete;
        ~guard() {
            if (port_->device_->close_guard(*slot_)) [[unlikely]]
                port_->act();
        }

        /// Translates [address, address + length): the answer covers the longest
        /// prefix that one translation serves. A refused access has already
        /// been recorded, as the architecture asks, when this returns.
        [[nodiscard, gnu::always_inline]] outcome
        translate(iova address, std::uint64_t length, access kind,
                  access_attributes attributes = {}) noexcept {
            outcome answer;
            if (quickly(address, length, kind, attributes, answer)) [[likely]]
                return answer;
            // Piece by piece: a hit then needs no transaction in memory. The port comes back
            // from the call, and the slot from the port: nothing has to be kept meanwhile, and
            // a hit saves no registers.
            port_ = port_->translate_slowly(address, length, kind,
                                            std::bit_cast<std::uint64_t>(attributes));
            slot_ = port_->slot_;
            return port_->answer_;
        }
        /// To be called after writing through a span: marks pages dirty where the
        /// guest memory tracks that.
        void note_write(const outcome& written) noexcept { port_->note_write(written); }

    private:
        friend copying_port<dma_port, F>;
        /// A hit is answered here; all else is out of line, and so is its state.
        [[nodiscard, gnu::always_inline]] bool quickly(iova address, std::uint64_t length,
                                                       access kind, access_attributes attributes,
                                                       outcome& out) noexcept {
            return port_->device_->translate_hit(port_->views_, address, length, kind, attributes,
                                                 slot_->counters, out);
        }

        dma_port* port_;
        slot_type* slot_;
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

    /// What has become of a stalled access. Anything but pending is told once,
    /// and uses the ticket up.
    [[nodiscard]] stall_decision decision(stall_ticket ticket) noexcept
        requires(F.stalls)
    {
        return counted(device_->decision(ticket));
    }
    /// The same, waiting until it is decided: by CMD_RESUME or CMD_STALL_TERM, by
    /// SMMUEN = 0, reset or detach. With a guard of this port open it does not
    /// wait, and may say pending.
    [[nodiscard]] stall_decision wait(stall_ticket ticket) noexcept
        requires(F.stalls)
    {
        if (slot_->is_open()) return decision(ticket);
        return counted(device_->wait(ticket));
    }

    /// The thread promises not to open a guard until unpark(): synchronisation
    /// does not have to reach it. For device threads that go to sleep.
    void park() noexcept { device_->park_port(*slot_); }
    void unpark() noexcept { device_->unpark_port(*slot_); }

    [[nodiscard]] stream_id stream() const noexcept { return attachment_->subject.stream; }

private:
    friend Device;
    friend copying_port<dma_port, F>;
    friend pcie_port<dma_port, F>;
    dma_port(Device& device, attachment_record& attachment, slot_type& slot) noexcept
        : device_(&device), attachment_(&attachment), slot_(&slot) {}

    void swap(dma_port& other) noexcept {
        std::swap(device_, other.device_);
        std::swap(attachment_, other.attachment_);
        std::swap(slot_, other.slot_);
        std::swap(pending_, other.pending_);
        std::swap(views_, other.views_);
    }

    /// What a guard that has closed leaves to do.
    [[gnu::noinline]] void act() noexcept {
        if (slot_->is_open()) return; // the outermost guard acts
        slot_->effects_taken();
        bool awaited = device_->guard_has_closed(*slot_);
        while (std::exchange(pending_.drain_events, false)) {
            device_->open_guard(*slot_);
            device_->settle_guard();
            pending_ |= device_->drain_events();
            if (device_->close_guard(*slot_))
                awaited = device_->guard_has_closed(*slot_) || awaited;
        }
        pending_.drain_commands = pending_.drain_commands || awaited;
        device_->act(std::exchange(pending_, {}));
    }
    /// The answer is in answer_; gives this.
    [[nodiscard, gnu::noinline, gnu::returns_nonnull]] dma_port*
    translate_slowly(iova address, std::uint64_t length, access kind, std::uint64_t bits) noexcept {
        if (!answered(address, length, kind, bits)) translate_afresh(address, length, kind, bits);
        return this;
    }
    /// Whether it is the usual miss, which needs little: see repeated_miss.
    [[nodiscard, gnu::always_inline]] bool answered(iova address, std::uint64_t length, access kind,
                                                    std::uint64_t bits) noexcept {
        if constexpr (Device::strict_type::enabled || !Device::translator_type::learns) {
            return false; // translate() looks closer
        } else {
            const transaction asked = transaction_of(address, length, kind, bits);
            if (asked.translated) return false;
            device_->settle_guard();
            return device_->translate_by().repeated().answer(views_.of(asked.has_substream).misses,
                                                             Device::slot_of(*attachment_, asked),
                                                             asked, slot_->counters, answer_);
        }
    }
    [[nodiscard, gnu::always_inline]] static transaction
    transaction_of(iova address, std::uint64_t length, access kind, std::uint64_t bits) noexcept {
        const auto attributes = std::bit_cast<access_attributes>(bits);
        return {address,
                length,
                kind,
                attributes.privileged,
                attributes.instruction,
                attributes.has_substream,
                F.ats && attributes.translated,
                attributes.substream};
    }
    [[gnu::noinline]] void translate_afresh(iova address, std::uint64_t length, access kind,
                                            std::uint64_t bits) noexcept {
        answer_ = translated(address, length, kind, bits);
    }
    [[nodiscard, gnu::always_inline]] outcome translated(iova address, std::uint64_t length,
                                                         access kind, std::uint64_t bits) noexcept {
        const transaction asked = transaction_of(address, length, kind, bits);
        if (!is_sound(asked.address, asked.length)) [[unlikely]] {
            slot_->counters.faults.add();
            return outcome::refused({}, silent_abort::bad_access);
        }
        translation_fault fault;
        const outcome o = device_->translate(*attachment_, asked, slot_->counters, views_, fault);
        if (o.is_fault()) [[unlikely]]
            return faulted(o, fault);
        return o;
    }
    [[nodiscard]] outcome faulted(const outcome& o, translation_fault& fault) noexcept {
        slot_->note_effects();
        if constexpr (F.stalls) {
            if (!never_stalls_ && fault.may_stall && !fault.access_made.translated) {
                return outcome::wait_for(device_->stall(*attachment_, *slot_, fault, pending_));
            }
        }
        slot_->counters.faults.add();
        pending_ |= device_->record(fault);
        if constexpr (F.quiet_termination) {
            if (fault.quiet && fault.silent == silent_abort::none)
                return outcome::ignored(o.event());
        }
        return o;
    }

    [[nodiscard]] stall_decision counted(stall_decision decided) noexcept {
        if (decided == stall_decision::terminated || decided == stall_decision::aborted) {
            slot_->counters.faults.add();
        }
        return decided;
    }
    void note_write(const outcome& written) noexcept {
        device_->note_write(written.address(), written.length());
    }

    Device* device_ = nullptr;
    attachment_record* attachment_ = nullptr;
    slot_type* slot_ = nullptr;
    typename Device::views_type views_{};
    outcome answer_;         ///< of translate_slowly()
    effects_type pending_{}; ///< guard_slot::has_effects = there are any
    bool never_stalls_ = false;
};

} // namespace vm_accel::inline v0
