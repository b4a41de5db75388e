/// The fuzzers. Each takes any bytes, and ends the process when it finds a mistake.
#pragma once

#include <cstdint>
#include <span>

namespace fuzz {

/// Registers, memory and DMA in any order.
void device(std::span<const std::uint8_t> bytes);
/// Streams of commands against a working device.
void commands(std::span<const std::uint8_t> bytes);
/// STE, CD and table images, with accesses and invalidations between changes.
void tables(std::span<const std::uint8_t> bytes);
/// Saved states, changed and restored.
void saved_state(std::span<const std::uint8_t> bytes);

struct target {
    const char* name;
    void (*run)(std::span<const std::uint8_t>);
};
inline constexpr target targets[] = {
    {"device", device}, {"commands", commands}, {"tables", tables}, {"saved_state", saved_state}};

} // namespace fuzz
