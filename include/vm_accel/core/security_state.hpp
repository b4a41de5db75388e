/// Security states, and which of the two physical address spaces an address is in.
#pragma once

#include <vm_accel/core/address.hpp>

#include <cstdint>

namespace vm_accel::inline v0 {

/// Whose streams, tables and commands (IHI 0070, 3.10). Realm is named for
/// completeness: nothing is built for it.
enum class security_state : std::uint8_t { non_secure, secure, realm };

/// Accesses of a secure stream go to one of two physical address spaces (3.10.2).
/// What the SMMU of the secure state hands out has this bit set where it means
/// the non-secure one; addresses there have 48 bits at most. The SMMU of the
/// non-secure state knows one space, and no such bit.
inline constexpr std::uint64_t non_secure_space_bit = std::uint64_t{1} << 51;

/// The space of an address that the SMMU of the secure state gave.
[[nodiscard]] constexpr security_state space_of(pa address) noexcept {
    return (raw(address) & non_secure_space_bit) != 0 ? security_state::non_secure
                                                      : security_state::secure;
}
/// The address within its space.
[[nodiscard]] constexpr pa within_space(pa address) noexcept {
    return pa{raw(address) & ~non_secure_space_bit};
}
/// The same for what the SMMU of state S works with.
template <security_state S>
[[nodiscard]] constexpr std::uint64_t bare_address(std::uint64_t address) noexcept {
    return S == security_state::secure ? address & ~non_secure_space_bit : address;
}

} // namespace vm_accel::inline v0
