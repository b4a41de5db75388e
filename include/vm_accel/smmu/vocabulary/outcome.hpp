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

/// Names a stalled access until it is decided (IHI 0070, 3.12.2).
struct stall_ticket {
    std::uint16_t tag = 0; ///< STAG
    /// As many accesses are stalled as there may be: this one has no tag and no
    /// record, and starts again when there is room.
    bool held_back = false;
    std::uint32_t turn = 0; ///< held_back: since when it waits

    [[nodiscard]] constexpr std::uint64_t packed() const noexcept {
        return std::uint64_t{turn} << 32 | (held_back ? 0x1'0000U : 0U) | tag;
    }
    [[nodiscard]] static constexpr stall_ticket unpacked(std::uint64_t bits) noexcept {
        return {static_cast<std::uint16_t>(bits), (bits & 0x1'0000) != 0,
                static_cast<std::uint32_t>(bits >> 32)};
    }
};

/// What became of a stalled access.
enum class stall_decision : std::uint8_t {
    pending,    ///< not decided yet
    retry,      ///< make the access again, as if for the first time
    terminated, ///< it is over: what it reads is zero, what it writes is ignored
    aborted,    ///< it is over, and refused
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
    /// A refusal that the device does not notice (CD.A = 0).
    [[nodiscard]] static constexpr outcome ignored(spec::event_id event) noexcept {
        outcome o;
        o.kind_ = kind::ignored;
        o.event_ = event;
        return o;
    }
    [[nodiscard]] static constexpr outcome wait_for(stall_ticket ticket) noexcept {
        outcome o;
        o.kind_ = kind::stalled;
        o.length_ = ticket.packed();
        return o;
    }

    [[nodiscard]] constexpr bool is_span() const noexcept { return kind_ == kind::span; }
    [[nodiscard]] constexpr bool is_mmio() const noexcept { return kind_ == kind::mmio; }
    /// Refused: no memory comes of it.
    [[nodiscard]] constexpr bool is_fault() const noexcept {
        return kind_ == kind::fault || kind_ == kind::ignored;
    }
    /// A fault, but the access ends well: what it reads is zero, what it writes
    /// is ignored, up to the end of the 4 KiB page.
    [[nodiscard]] constexpr bool is_ignored() const noexcept { return kind_ == kind::ignored; }
    /// The access waits for the guest's driver. Close the guard, then ask
    /// dma_port::decision() or wait().
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
    /// Meaningful when is_stalled().
    [[nodiscard]] constexpr stall_ticket ticket() const noexcept {
        return stall_ticket::unpacked(length_);
    }

private:
    enum class kind : std::uint8_t { fault, span, mmio, stalled, ignored };

    std::byte* host_ = nullptr;
    std::uint64_t length_ = 0;
    pa address_{};
    kind kind_ = kind::fault;
    silent_abort silent_ = silent_abort::none;
    spec::event_id event_{};
    memory_attributes attributes_{};
};

static_assert(std::is_trivially_copyable_v<outcome>);

/// How far a copy came that never waits.
struct transfer {
    std::uint64_t done = 0; ///< bytes copied, ignored ones included
    outcome stop{};         ///< why no more; meaningful when done is less than asked
};

static_assert(std::is_trivially_copyable_v<transfer>);

} // namespace vm_accel::inline v0
