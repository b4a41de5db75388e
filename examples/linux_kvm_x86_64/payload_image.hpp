/// The guest's flat image, built into the VMM. Empty where the processor is not
/// x86-64: then only the software backend can run the guest.
#pragma once

#include <cstddef>
#include <span>

/// Entered at its first byte, to be loaded at machine::payload.
[[nodiscard]] std::span<const std::byte> payload_image() noexcept;
