/// What a translation gives: memory, a device register, a fault, or a wait.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/smmu/vocabulary/access.hpp>
#include <vm_accel/smmu/vocabulary/fault.hpp>
#include <vm_accel/smmu/vocabulary/memory_attributes.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace vm_accel::inline v0 {

/// Names a stalled transaction until CMD_RESUME or CMD_STALL_TERM decides it.
struct stall_ticket {
    std::uint16_t tag = 0;
};

/// The answer to one `translate`. Trivially copyable; valid while the guard
/// that gave it is open.
///
/// A span covers the longest prefix of the access that one translation serves:
/// ask again for the rest (dma_port::read and write do).
class outcome {
public:
    /// `bytes` bytes of host memory at `host`, backing guest memory at `address`.
    [[nodiscard]] static constexpr outcome span(std::byte* host, std::uint64_t bytes, pa address,
                                                memory_attributes attributes = {}) noexcept {
        outcome o;
        o.host_ = host;
        o.attributes_ = attributes;
        o.length_ = bytes;
        o.address_ = address;
        o.kind_ = kind::span;
        return o;
    }
    /// The access goes to something that is not RAM, at `address`.
    [[nodiscard]] static constexpr outcome mmio(pa address, std::uint64_t bytes,
                                                memory_attributes attributes = {}) noexcept {
        outcome o;
        o.attributes_ = attributes;
        o.length_ = bytes;
        o.address_ = address;
        o.kind_ = kind::mmio;
        return o;
    }
    [[nodiscard]] static constexpr outcome refused(spec::event_id event,
                                                   silent_abort silent) noexcept {
        outcome o;
        o.kind_ = kind::fault;
        o.event_ = event;
        o.silent_ = silent;
        return o;
    }
    [[nodiscard]] static constexpr outcome wait_for(stall_ticket ticket) noexcept {
        outcome o;
        o.kind_ = kind::stalled;
        o.length_ = ticket.tag;
        return o;
    }

    [[nodiscard]] constexpr bool is_span() const noexcept { return kind_ == kind::span; }
    [[nodiscard]] constexpr bool is_mmio() const noexcept { return kind_ == kind::mmio; }
    [[nodiscard]] constexpr bool is_fault() const noexcept { return kind_ == kind::fault; }
    [[nodiscard]] constexpr bool is_stalled() const noexcept { return kind_ == kind::stalled; }

    /// Host memory of a span, null for anything else.
    [[nodiscard]] constexpr std::byte* host() const noexcept { return host_; }
    /// Bytes that the span or register access covers, at most what was asked.
    [[nodiscard]] constexpr std::uint64_t length() const noexcept {
        return kind_ == kind::stalled ? 0 : length_;
    }
    /// Physical address of a span or register.
    [[nodiscard]] constexpr pa address() const noexcept { return address_; }
    /// Memory type and shareability of a span or register.
    [[nodiscard]] constexpr memory_attributes attributes() const noexcept { return attributes_; }
    /// The event of a fault; meaningful when why() is none.
    [[nodiscard]] constexpr spec::event_id event() const noexcept { return event_; }
    /// Why a fault raised no event; none if it is an architectural one.
    [[nodiscard]] constexpr silent_abort why() const noexcept { return silent_; }
    [[nodiscard]] constexpr stall_ticket ticket() const noexcept {
        return {static_cast<std::uint16_t>(length_)};
    }

private:
    enum class kind : std::uint8_t { fault, span, mmio, stalled };

    std::byte* host_ = nullptr;
    std::uint64_t length_ = 0;
    pa address_{};
    kind kind_ = kind::fault;
    silent_abort silent_ = silent_abort::none;
    spec::event_id event_{};
    memory_attributes attributes_{};
};

static_assert(std::is_trivially_copyable_v<outcome>);

} // namespace vm_accel::inline v0
