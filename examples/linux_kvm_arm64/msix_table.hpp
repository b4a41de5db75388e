/// A table of message signalled interrupts (PCI 3.0, 6.8.2), as many as `Vectors`.
#pragma once

#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>

namespace linux_vmm {

/// Message control bits of the capability.
inline constexpr std::uint16_t msix_enabled = 1u << 15, msix_all_masked = 1u << 14;

struct msix_message {
    std::uint64_t address = 0;
    std::uint32_t data = 0;
};

/// Threads: any.
template <std::size_t Vectors>
class msix_table {
public:
    static constexpr std::uint64_t entry_bytes = 16;
    static constexpr std::uint64_t bytes = Vectors * entry_bytes;

    /// Registers are 32 bits wide; another width reads as 0.
    [[nodiscard]] std::uint32_t read(std::uint64_t at, unsigned size) noexcept {
        const std::lock_guard lock{mutex_};
        return is_register(at, size) ? entries_[at / entry_bytes][at % entry_bytes / 4] : 0;
    }
    void write(std::uint64_t at, unsigned size, std::uint32_t value) noexcept {
        const std::lock_guard lock{mutex_};
        if (!is_register(at, size)) return;
        const std::uint64_t word = at % entry_bytes / 4;
        entries_[at / entry_bytes][word] = word == control ? value & masked : value;
    }
    [[nodiscard]] std::uint32_t pending_bits() noexcept {
        const std::lock_guard lock{mutex_};
        return static_cast<std::uint32_t>(pending_.to_ulong());
    }

    /// The capability's message control.
    void control_by(std::uint16_t message_control) noexcept {
        const std::lock_guard lock{mutex_};
        enabled_ = (message_control & msix_enabled) != 0;
        all_masked_ = (message_control & msix_all_masked) != 0;
    }

    /// What to send for `vector` now. A masked vector stays pending until take()
    /// finds it unmasked. No such vector, or no MSI-X: nothing, ever.
    [[nodiscard]] std::optional<msix_message> raise(std::uint16_t vector) noexcept {
        const std::lock_guard lock{mutex_};
        if (!enabled_ || vector >= Vectors) return {};
        if (is_masked(vector)) {
            pending_[vector] = true;
            return {};
        }
        return message_of(vector);
    }
    /// The message of a pending vector that is no longer masked.
    [[nodiscard]] std::optional<msix_message> take() noexcept {
        const std::lock_guard lock{mutex_};
        for (std::size_t i = 0; i < Vectors; ++i) {
            if (!enabled_ || !pending_[i] || is_masked(i)) continue;
            pending_[i] = false;
            return message_of(i);
        }
        return {};
    }
    /// For a machine at rest.
    template <class State>
    void move_state(State& state) {
        const std::lock_guard lock{mutex_};
        state(entries_);
        state(pending_);
        state(enabled_);
        state(all_masked_);
    }
    /// The device was reset: nothing is owed any more.
    void forget_pending() noexcept {
        const std::lock_guard lock{mutex_};
        pending_.reset();
    }

private:
    static constexpr std::uint32_t masked = 1; ///< of the vector control word
    static constexpr std::size_t control = 3;
    using entry = std::array<std::uint32_t, 4>; ///< address low, high, data, control

    [[nodiscard]] static std::array<entry, Vectors> all_off() noexcept {
        std::array<entry, Vectors> entries{};
        for (entry& e : entries)
            e[control] = masked;
        return entries;
    }
    [[nodiscard]] static bool is_register(std::uint64_t at, unsigned size) noexcept {
        return size == 4 && at % 4 == 0 && at < bytes;
    }
    [[nodiscard]] bool is_masked(std::size_t vector) const noexcept {
        return all_masked_ || (entries_[vector][control] & masked) != 0;
    }
    [[nodiscard]] msix_message message_of(std::size_t vector) const noexcept {
        const entry& e = entries_[vector];
        return {std::uint64_t{e[1]} << 32 | e[0], e[2]};
    }

    std::mutex mutex_;
    std::array<entry, Vectors> entries_ = all_off();
    std::bitset<Vectors> pending_;
    bool enabled_ = false, all_masked_ = false;
};

} // namespace linux_vmm
