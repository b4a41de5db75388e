/// Secure and non-secure memory as one, for the SMMU of the secure state.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/security_state.hpp>
#include <vm_accel/guest/guest_memory.hpp>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace vm_accel::inline v0 {

/// Models guest_memory: non_secure_space_bit says which of the two is meant.
/// Each keeps its own regions, and both may be the same memory. References are
/// kept: both must outlive it.
template <guest_memory Secure, guest_memory NonSecure>
class two_spaces {
public:
    two_spaces(Secure& secure, NonSecure& non_secure) noexcept
        : secure_(secure), non_secure_(non_secure) {}

    [[nodiscard]] bool read(pa address, std::span<std::byte> out) const noexcept {
        return is_secure(address) ? secure_.read(address, out)
                                  : non_secure_.read(within_space(address), out);
    }
    [[nodiscard]] bool write(pa address, std::span<const std::byte> in) noexcept {
        return is_secure(address) ? secure_.write(address, in)
                                  : non_secure_.write(within_space(address), in);
    }
    [[nodiscard]] std::optional<std::uint64_t> load64(pa address) const noexcept {
        return is_secure(address) ? secure_.load64(address)
                                  : non_secure_.load64(within_space(address));
    }
    [[nodiscard]] std::optional<std::uint64_t>
    compare_exchange64(pa address, std::uint64_t expected, std::uint64_t desired) noexcept {
        return is_secure(address)
                   ? secure_.compare_exchange64(address, expected, desired)
                   : non_secure_.compare_exchange64(within_space(address), expected, desired);
    }
    [[nodiscard]] std::optional<host_run> find(pa address) const noexcept {
        if (is_secure(address)) return secure_.find(address);
        std::optional<host_run> run = non_secure_.find(within_space(address));
        if (run) run->base = pa{raw(run->base) | non_secure_space_bit};
        return run;
    }
    void note_write(pa address, std::uint64_t bytes) noexcept {
        if (is_secure(address)) {
            secure_.note_write(address, bytes);
        } else {
            non_secure_.note_write(within_space(address), bytes);
        }
    }

private:
    [[nodiscard]] static constexpr bool is_secure(pa address) noexcept {
        return space_of(address) == security_state::secure;
    }

    Secure& secure_;
    NonSecure& non_secure_;
};

} // namespace vm_accel::inline v0
