/// A device's way to memory: one port per device and thread.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/field.hpp>
#include <vm_accel/guest/copy.hpp>
#include <vm_accel/smmu/host/attachment.hpp>
#include <vm_accel/smmu/host/pcie_port.hpp>
#include <vm_accel/smmu/vocabulary/access.hpp>
#include <vm_accel/smmu/vocabulary/access_attributes.hpp>
#include <vm_accel/smmu/vocabulary/fault.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/smmu/vocabulary/outcome.hpp>
#include <vm_accel/smmu/vocabulary/statistics.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <utility>

namespace vm_accel::inline v0 {

/// Made by `smmu::make_port`. Movable while no guard of it is open; used by one
/// thread at a time; must be destroyed before the SMMU, after its guards.
/// `Device` is the SMMU.
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
class dma_port : public pcie_port<dma_port<Device>, Device::F> {
    static constexpr smmu_features F = Device::F;
    using slot_type = typename Device::guard_slot_type;
    using effects_type = typename Device::effects_type;

public:
    /// An open guard. Guards of one port nest.
    class guard {
    public:
        explicit guard(dma_port& port) noexcept
            : port_(&port), slot_(port.slot_), opened_(port.device_->open_guard(*slot_)) {}
        guard(const guard&) = delete;
        guard& operator=(const guard&) = delete;
        ~guard() {
            if (port_->device_->close_guard(*slot_, opened_)) [[unlikely]]
                port_->act();
        }

        /// Translates [address, address + length): the answer covers the longest
        /// prefix that one translation serves. A refused access has already
        /// been recorded, as the architecture asks, when this returns.
        [[nodiscard, gnu::always_inline]] outcome
        translate(iova address, std::uint64_t length, access kind,
                  access_attributes attributes = {}) noexcept {
            const std::optional<outcome> hit = quickly(address, length, kind, attributes);
            if (hit) [[likely]]
                return *hit;
            // Piece by piece: a hit then needs no transaction in memory.
            return port_->translate_slowly(address, length, kind,
                                           std::bit_cast<std::uint64_t>(attributes));
        }
        /// To be called after writing through a span: marks pages dirty where the
        /// guest memory tracks that.
        void note_write(const outcome& written) noexcept { port_->note_write(written); }

    private:
        friend dma_port;
        /// A hit is answered here; all else is out of line, and so is its state.
        [[nodiscard, gnu::always_inline]] std::optional<outcome>
        quickly(iova address, std::uint64_t length, access kind,
                access_attributes attributes) noexcept {
            return port_->device_->translate_hit(port_->views_, address, length, kind, attributes,
                                                 slot_->counters);
        }

        dma_port* port_;
        slot_type* slot_;
        std::uint64_t opened_;
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
    /// access was refused at some byte; bytes before it have been copied. Waits
    /// while it is stalled, but not inside another guard of this port: there an
    /// access that would stall is refused.
    [[nodiscard]] bool read(iova address, std::span<std::byte> out,
                            access_attributes attributes = {}) noexcept {
        // Most often it is in one page, which has been used before.
        {
            guard held{*this};
            const auto hit = held.quickly(address, out.size(), access::read, attributes);
            if (hit) [[likely]] {
                const auto n = static_cast<std::size_t>(hit->length());
                copy_from_guest(out.data(), hit->host(), n);
                if (n == out.size()) [[likely]]
                    return true;
                advance(address, out, n);
            }
        }
        return read_slowly(address, out.data(), out.size(),
                           std::bit_cast<std::uint64_t>(attributes));
    }

    /// Copies `in` into the device's address space. An aligned 4-byte write that
    /// lands on a doorbell is delivered as a message signalled interrupt. False
    /// = refused at some byte; bytes before it have been written. Waits as
    /// read() does.
    [[nodiscard]] bool write(iova address, std::span<const std::byte> in,
                             access_attributes attributes = {}) noexcept {
        {
            guard held{*this};
            const auto hit = held.quickly(address, in.size(), access::write, attributes);
            if (hit) [[likely]] {
                const auto n = static_cast<std::size_t>(hit->length());
                copy_to_guest(hit->host(), in.data(), n);
                note_write(*hit);
                if (n == in.size()) [[likely]]
                    return true;
                advance(address, in, n);
            }
        }
        return write_slowly(address, in.data(), in.size(),
                            std::bit_cast<std::uint64_t>(attributes));
    }

    /// The same, never waiting: says how far it came, and what stopped it.
    [[nodiscard]] transfer try_read(iova address, std::span<std::byte> out,
                                    access_attributes attributes = {}) noexcept {
        const std::size_t asked = out.size();
        outcome stop;
        if (!pull(address, out, attributes, kept_in(stop))) (void)refused(stop);
        return {asked - out.size(), stop};
    }
    [[nodiscard]] transfer try_write(iova address, std::span<const std::byte> in,
                                     access_attributes attributes = {}) noexcept {
        const std::size_t asked = in.size();
        outcome stop;
        if (push(address, in, attributes, kept_in(stop))) return {asked, stop};
        if (is_message(stop, in)) {
            return {deliver_message(stop.address(), in) ? asked : asked - in.size(), stop};
        }
        (void)refused(stop);
        return {asked - in.size(), stop};
    }

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
            const std::uint64_t opened = device_->open_guard(*slot_);
            device_->settle_guard();
            pending_ |= device_->drain_events();
            if (device_->close_guard(*slot_, opened))
                awaited = device_->guard_has_closed(*slot_) || awaited;
        }
        pending_.drain_commands = pending_.drain_commands || awaited;
        device_->act(std::exchange(pending_, {}));
    }
    /// A copy that waits, inside a guard that it cannot close: nothing may stall.
    class nesting {
    public:
        explicit nesting(dma_port& port) noexcept : port_(port) {
            if constexpr (F.stalls) port_.never_stalls_ = port_.slot_->is_open();
        }
        nesting(const nesting&) = delete;
        nesting& operator=(const nesting&) = delete;
        ~nesting() {
            if constexpr (F.stalls) port_.never_stalls_ = false;
        }

    private:
        dma_port& port_;
    };

    /// Neither empty nor past the end of the address space.
    [[nodiscard]] static bool is_sound(const transaction& asked) noexcept {
        return asked.length != 0 && asked.length - 1 <= ~raw(asked.address);
    }
    [[nodiscard, gnu::noinline]] outcome
    translate_slowly(iova address, std::uint64_t length, access kind, std::uint64_t bits) noexcept {
        const auto attributes = std::bit_cast<access_attributes>(bits);
        const transaction asked{address,
                                length,
                                kind,
                                attributes.privileged,
                                attributes.instruction,
                                attributes.has_substream,
                                F.ats && attributes.translated,
                                attributes.substream};
        if (!is_sound(asked)) [[unlikely]] {
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

    [[nodiscard, gnu::noinline]] bool read_slowly(iova address, std::byte* to, std::size_t bytes,
                                                  std::uint64_t attributes) noexcept {
        const auto by = std::bit_cast<access_attributes>(attributes);
        std::span<std::byte> out{to, bytes};
        const nesting inside{*this};
        outcome stop;
        while (!pull(address, out, by, kept_in(stop))) {
            if (!settled(stop, address, out)) return refused(stop);
        }
        return true;
    }
    [[nodiscard, gnu::noinline]] bool write_slowly(iova address, const std::byte* from,
                                                   std::size_t bytes,
                                                   std::uint64_t attributes) noexcept {
        const auto by = std::bit_cast<access_attributes>(attributes);
        std::span<const std::byte> in{from, bytes};
        const nesting inside{*this};
        outcome stop;
        while (!push(address, in, by, kept_in(stop))) {
            if (is_message(stop, in)) return deliver_message(stop.address(), in);
            if (!settled(stop, address, in)) return refused(stop);
        }
        return true;
    }

    /// Reads inside one guard. True = all is done; else what `stop` makes of the
    /// outcome that stopped it, and what is left is left in `address` and `out`.
    template <class Stop>
    [[nodiscard, gnu::always_inline]] bool pull(iova& address, std::span<std::byte>& out,
                                                access_attributes attributes,
                                                Stop&& stop) noexcept {
        guard held{*this};
        std::optional<outcome> next; // looked up while the processor copies
        while (!out.empty()) {
            const outcome o = next ? *std::exchange(next, {})
                                   : held.translate(address, out.size(), access::read, attributes);
            if (!o.is_span()) {
                if (!F.quiet_termination || !o.is_ignored()) return stop(o);
                ignore(address, out);
                continue;
            }
            const auto n = static_cast<std::size_t>(o.length());
            const auto to = advance(address, out, n);
            if (!out.empty()) next = held.quickly(address, out.size(), access::read, attributes);
            copy_from_guest(to.data(), o.host(), n);
        }
        return true;
    }
    template <class Stop>
    [[nodiscard, gnu::always_inline]] bool push(iova& address, std::span<const std::byte>& in,
                                                access_attributes attributes,
                                                Stop&& stop) noexcept {
        guard held{*this};
        std::optional<outcome> next; // looked up while the processor copies
        while (!in.empty()) {
            const outcome o = next ? *std::exchange(next, {})
                                   : held.translate(address, in.size(), access::write, attributes);
            if (!o.is_span()) {
                if (!F.quiet_termination || !o.is_ignored()) return stop(o);
                ignore(address, in);
                continue;
            }
            const auto n = static_cast<std::size_t>(o.length());
            const auto from = advance(address, in, n);
            if (!in.empty()) next = held.quickly(address, in.size(), access::write, attributes);
            copy_to_guest(o.host(), from.data(), n);
            note_write(o);
        }
        return true;
    }
    [[nodiscard]] static auto kept_in(outcome& stop) noexcept {
        return [&stop](const outcome& o) noexcept {
            stop = o;
            return false;
        };
    }
    template <class Byte>
    static std::span<Byte> advance(iova& address, std::span<Byte>& left, std::size_t n) noexcept {
        address = offset_by(address, n);
        return std::exchange(left, left.subspan(n)).first(n);
    }
    /// An access that is over without a trace: it reads as zero up to the end of
    /// its page.
    static void ignore(iova& address, std::span<std::byte>& out) noexcept {
        const auto over = advance(address, out, in_page(address, out.size()));
        std::memset(over.data(), 0, over.size());
    }
    static void ignore(iova& address, std::span<const std::byte>& in) noexcept {
        advance(address, in, in_page(address, in.size()));
    }
    [[nodiscard]] static std::size_t in_page(iova address, std::size_t bytes) noexcept {
        const auto left = static_cast<std::size_t>(0x1000 - (raw(address) & 0xfff));
        return left < bytes ? left : bytes;
    }
    /// Waits if the outcome says so. True = go on with what is left.
    template <class Byte>
    [[nodiscard]] bool settled(const outcome& o, iova& address, std::span<Byte>& left) noexcept {
        if constexpr (F.stalls) {
            if (!o.is_stalled()) return false;
            const stall_decision decided = wait(o.ticket());
            if (decided == stall_decision::terminated) ignore(address, left);
            return decided != stall_decision::aborted;
        }
        return false;
    }
    [[nodiscard]] stall_decision counted(stall_decision decided) noexcept {
        if (decided == stall_decision::terminated || decided == stall_decision::aborted) {
            slot_->counters.faults.add();
        }
        return decided;
    }
    [[nodiscard]] static bool is_message(const outcome& o, std::span<const std::byte> in) noexcept {
        return o.is_mmio() && in.size() == 4 && o.length() == 4 && (raw(o.address()) & 3) == 0;
    }
    /// With no guard of this access open.
    [[nodiscard]] bool deliver_message(pa doorbell, std::span<const std::byte> in) noexcept {
        std::uint32_t data = 0;
        std::memcpy(&data, in.data(), sizeof data);
        data = little_endian(data);
        if (device_->deliver_message(attachment_->subject.stream, doorbell, data)) {
            slot_->counters.messages.add();
            return true;
        }
        slot_->counters.faults.add();
        return false;
    }
    void note_write(const outcome& written) noexcept {
        device_->note_write(written.address(), written.length());
    }
    /// A register where memory was wanted is a refusal of ours, to be counted.
    [[nodiscard]] bool refused(const outcome& o) noexcept {
        if (o.is_mmio()) slot_->counters.faults.add();
        return false;
    }

    Device* device_ = nullptr;
    attachment_record* attachment_ = nullptr;
    slot_type* slot_ = nullptr;
    typename Device::views_type views_{};
    effects_type pending_{}; ///< guard_slot::has_effects = there are any
    bool never_stalls_ = false;
};

} // namespace vm_accel::inline v0
