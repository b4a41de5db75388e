/// Which register an access meets, and what comes of writing one.
#pragma once

#include <vm_accel/spec/registers.hpp>

#include <cstdint>

namespace vm_accel::inline v0 {

/// What a register write asks of the rest of the SMMU.
struct register_effect {
    bool enables_changed = false; ///< CR0 changed: acknowledge when in-flight work is done
    bool streams_changed = false; ///< every cached configuration is out of date
    bool bypass_changed = false;  ///< GBPA.UPDATE: acknowledge likewise
    bool smmu_disabled = false;   ///< SMMUEN went to 0: nothing stays stalled
    bool atos_started = false;    ///< GATOS_CTRL.RUN went to 1: answer with atos().finish()
    unsigned queue_disabled = 0;  ///< number of an enhanced command queue that went off
};

/// An offset without the page: page 1 repeats page 0.
[[nodiscard]] constexpr std::uint32_t offset_in_page(std::uint64_t offset) noexcept {
    return static_cast<std::uint32_t>(offset & (spec::mmio_page_size - 1));
}

/// An access to pages 0 and 1: a whole register, or half of one of 64 bits.
struct register_access_shape {
    const spec::register_row* row = nullptr; ///< null = nothing there, or ill-formed
    bool whole = true;
    unsigned shift = 0; ///< of the half, when not whole

    [[nodiscard]] static constexpr register_access_shape of(std::uint64_t offset,
                                                            unsigned size) noexcept {
        if (offset >= spec::mmio_size || (size != 4 && size != 8) || offset % size != 0) return {};
        const std::uint64_t at = offset_in_page(offset);
        const spec::register_row* row = spec::find_register(at);
        if (row == nullptr) row = spec::find_register(at + spec::mmio_page_size);
        if (row == nullptr || size > row->width) return {};
        return {row, size == row->width,
                static_cast<unsigned>(at - offset_in_page(row->offset)) * 8};
    }
    /// The register, without the page.
    [[nodiscard]] constexpr std::uint32_t at() const noexcept {
        return offset_in_page(row->offset);
    }
    /// What is read of a register that holds `value`.
    [[nodiscard]] constexpr std::uint64_t part_of(std::uint64_t value) const noexcept {
        return whole ? value : value >> shift & 0xffff'ffff;
    }
    /// What a register that holds `old` is given when `value` is written.
    [[nodiscard]] constexpr std::uint64_t merged(std::uint64_t old,
                                                 std::uint64_t value) const noexcept {
        if (whole) return value;
        const std::uint64_t lane = std::uint64_t{0xffff'ffff} << shift;
        return (old & ~lane) | (value & 0xffff'ffff) << shift;
    }
};

} // namespace vm_accel::inline v0
