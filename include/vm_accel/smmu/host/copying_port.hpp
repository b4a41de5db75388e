/// Copying between a device's address space and the VMM's own buffers.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/field.hpp>
#include <vm_accel/guest/copy.hpp>
#include <vm_accel/smmu/vocabulary/access.hpp>
#include <vm_accel/smmu/vocabulary/access_attributes.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/smmu/vocabulary/outcome.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>

namespace vm_accel::inline v0 {

/// Part of dma_port, whose rules hold here too.
template <class Port, smmu_features F>
class copying_port {
public:
    /// Copies `out.size()` bytes from the device's address space. False = the
    /// access was refused at some byte; bytes before it have been copied. Waits
    /// while it is stalled, but not inside another guard of this port: there an
    /// access that would stall is refused.
    [[nodiscard]] bool read(iova address, std::span<std::byte> out,
                            access_attributes attributes = {}) noexcept {
        // Most often it is in one page, which has been used before.
        {
            typename Port::guard held{self()};
            outcome hit;
            if (held.quickly(address, out.size(), access::read, attributes, hit)) [[likely]] {
                const auto n = static_cast<std::size_t>(hit.length());
                copy_from_guest(out.data(), hit.host(), n);
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
            typename Port::guard held{self()};
            outcome hit;
            if (held.quickly(address, in.size(), access::write, attributes, hit)) [[likely]] {
                const auto n = static_cast<std::size_t>(hit.length());
                copy_to_guest(hit.host(), in.data(), n);
                held.note_write(hit);
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

private:
    friend Port;
    copying_port() noexcept = default;
    [[nodiscard]] Port& self() noexcept { return static_cast<Port&>(*this); }

    /// A copy that waits, inside a guard that it cannot close: nothing may stall.
    class nesting {
    public:
        explicit nesting(Port& port) noexcept : port_(port) {
            if constexpr (F.stalls) port_.never_stalls_ = port_.slot_->is_open();
        }
        nesting(const nesting&) = delete;
        nesting& operator=(const nesting&) = delete;
        ~nesting() {
            if constexpr (F.stalls) port_.never_stalls_ = false;
        }

    private:
        Port& port_;
    };

    [[nodiscard, gnu::noinline]] bool read_slowly(iova address, std::byte* to, std::size_t bytes,
                                                  std::uint64_t attributes) noexcept {
        const auto by = std::bit_cast<access_attributes>(attributes);
        std::span<std::byte> out{to, bytes};
        const nesting inside{self()};
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
        const nesting inside{self()};
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
        typename Port::guard held{self()};
        outcome next; // looked up while the processor copies
        bool ahead = false;
        while (!out.empty()) {
            const outcome o =
                ahead ? next : held.translate(address, out.size(), access::read, attributes);
            ahead = false;
            if (!o.is_span()) {
                if (!F.quiet_termination || !o.is_ignored()) return stop(o);
                ignore(address, out);
                continue;
            }
            const auto n = static_cast<std::size_t>(o.length());
            const auto to = advance(address, out, n);
            if (!out.empty())
                ahead = held.quickly(address, out.size(), access::read, attributes, next);
            copy_from_guest(to.data(), o.host(), n);
        }
        return true;
    }
    template <class Stop>
    [[nodiscard, gnu::always_inline]] bool push(iova& address, std::span<const std::byte>& in,
                                                access_attributes attributes,
                                                Stop&& stop) noexcept {
        typename Port::guard held{self()};
        outcome next; // looked up while the processor copies
        bool ahead = false;
        while (!in.empty()) {
            const outcome o =
                ahead ? next : held.translate(address, in.size(), access::write, attributes);
            ahead = false;
            if (!o.is_span()) {
                if (!F.quiet_termination || !o.is_ignored()) return stop(o);
                ignore(address, in);
                continue;
            }
            const auto n = static_cast<std::size_t>(o.length());
            const auto from = advance(address, in, n);
            if (!in.empty())
                ahead = held.quickly(address, in.size(), access::write, attributes, next);
            copy_to_guest(o.host(), from.data(), n);
            held.note_write(o);
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
            const stall_decision decided = self().wait(o.ticket());
            if (decided == stall_decision::terminated) ignore(address, left);
            return decided != stall_decision::aborted;
        }
        return false;
    }
    [[nodiscard]] static bool is_message(const outcome& o, std::span<const std::byte> in) noexcept {
        return o.is_mmio() && in.size() == 4 && o.length() == 4 && (raw(o.address()) & 3) == 0;
    }
    /// With no guard of this access open.
    [[nodiscard]] bool deliver_message(pa doorbell, std::span<const std::byte> in) noexcept {
        std::uint32_t data = 0;
        std::memcpy(&data, in.data(), sizeof data);
        data = little_endian(data);
        if (self().device_->deliver_message(self().attachment_->subject.stream, doorbell, data)) {
            self().slot_->counters.messages.add();
            return true;
        }
        self().slot_->counters.faults.add();
        return false;
    }
    /// A register where memory was wanted is a refusal of ours, to be counted.
    [[nodiscard]] bool refused(const outcome& o) noexcept {
        if (o.is_mmio()) self().slot_->counters.faults.add();
        return false;
    }
};

} // namespace vm_accel::inline v0
