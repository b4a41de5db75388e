/// A message signalled interrupt, as the SMMU sends one.
#pragma once

#include <cstdint>

namespace vm_accel::inline v0 {

/// A 32-bit write. Where it goes decides what it is: into memory, for a driver
/// that polls, or to a doorbell (IHI 0070, 3.18).
struct interrupt_message {
    std::uint64_t address = 0; ///< a multiple of 4; 0 = no message
    std::uint32_t data = 0;

    [[nodiscard]] constexpr explicit operator bool() const noexcept { return address != 0; }
    friend constexpr bool operator==(const interrupt_message&, const interrupt_message&) = default;
};

} // namespace vm_accel::inline v0
