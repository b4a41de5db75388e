/// Power State Coordination Interface (Arm DEN 0022) for hypervisors that leave it to
/// the VMM: which vCPUs run, and what a guest's call means.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>

namespace vm_accel::inline v0::psci {

/// Function identifiers; bit 30 set = the 64-bit form.
inline constexpr std::uint32_t version = 0x8400'0000;
inline constexpr std::uint32_t cpu_suspend = 0x8400'0001;
inline constexpr std::uint32_t cpu_off = 0x8400'0002;
inline constexpr std::uint32_t cpu_on = 0x8400'0003;
inline constexpr std::uint32_t affinity_info = 0x8400'0004;
inline constexpr std::uint32_t migrate_info_type = 0x8400'0006;
inline constexpr std::uint32_t system_off = 0x8400'0008;
inline constexpr std::uint32_t system_reset = 0x8400'0009;
inline constexpr std::uint32_t features = 0x8400'000a;
inline constexpr std::uint32_t form_64 = 1u << 30;
/// SMC Calling Convention: its own version (Arm DEN 0028).
inline constexpr std::uint32_t convention_version = 0x8000'0000;

/// Return values, as X0 shows them.
inline constexpr std::uint64_t not_supported = ~std::uint64_t{0};
inline constexpr std::uint64_t invalid_parameters = ~std::uint64_t{1};
inline constexpr std::uint64_t already_on = ~std::uint64_t{3};
inline constexpr std::uint64_t on_pending = ~std::uint64_t{4};

/// MPIDR_EL1 of a vCPU: sixteen to a cluster, as a GICv3 wants it. Index below 4096.
[[nodiscard]] constexpr std::uint64_t mpidr_of(unsigned index) noexcept {
    return std::uint64_t{1} << 31 | std::uint64_t{index >> 4} << 8 | (index & 15);
}
/// The inverse, of the affinity fields alone; nothing for one that no vCPU can have.
[[nodiscard]] constexpr std::optional<unsigned> index_of(std::uint64_t affinity) noexcept {
    const std::uint64_t fields = affinity & 0xff'00ff'ffff;
    if ((fields & 0xff'00ff'0000) != 0 || (fields & 0xf0) != 0) return std::nullopt;
    return static_cast<unsigned>((fields >> 8) << 4 | (fields & 15));
}

/// What is to happen after a call.
enum class effect : std::uint8_t {
    answer,  ///< the guest goes on; X0 = value
    suspend, ///< the same, but it may wait for an interrupt first
    off,     ///< this vCPU stops until another one starts it
    started, ///< the guest goes on, and vCPU `target` is to be woken
    shutdown,
    reset,
};
struct outcome {
    effect then = effect::answer;
    std::uint64_t value = 0; ///< for X0
    unsigned target = 0;
};

/// Where a started vCPU begins: PC and X0, EL1 with interrupts masked, MMU off.
struct start {
    std::uint64_t entry = 0;
    std::uint64_t context = 0;
};

/// The power states of a machine's vCPUs. Threads: any.
class power_states {
public:
    static constexpr std::size_t capacity = 256;

    /// Makes vCPU `index` known. False: no such index, or known already.
    [[nodiscard]] bool add(unsigned index, bool powered_off) noexcept {
        if (index >= capacity) return false;
        const std::lock_guard lock{mutex_};
        if (states_[index].power.load() != power::absent) return false;
        states_[index].power.store(powered_off ? power::off : power::on);
        return true;
    }
    /// What is asked before each entry: takes no lock.
    [[nodiscard]] bool is_on(unsigned index) const noexcept {
        return states_[index].power.load(std::memory_order_acquire) == power::on;
    }
    /// Where the vCPU is to begin, once for each CPU_ON; it then is on.
    [[nodiscard]] std::optional<start> take_start(unsigned index) noexcept {
        const std::lock_guard lock{mutex_};
        state& own = states_[index];
        if (own.power.load() != power::starting) return std::nullopt;
        own.power.store(power::on);
        return own.begin;
    }

    /// A call of vCPU `caller`: X0 to X3 as the guest set them. Nothing if X0 names
    /// no function of PSCI or of the calling convention.
    [[nodiscard]] std::optional<outcome> call(unsigned caller, std::uint64_t x0, std::uint64_t x1,
                                              std::uint64_t x2, std::uint64_t x3) noexcept {
        const auto function = static_cast<std::uint32_t>(x0);
        const bool wide = (function & form_64) != 0;
        if (!wide) {
            x1 &= 0xffff'ffff;
            x2 &= 0xffff'ffff;
            x3 &= 0xffff'ffff;
        }
        switch (function & ~form_64) {
        case convention_version:
        case version:
            return outcome{effect::answer, 0x1'0001, 0}; // 1.1 of both
        case features:
            return outcome{effect::answer,
                           knows(static_cast<std::uint32_t>(x1)) ? 0 : not_supported, 0};
        case migrate_info_type:
            return outcome{effect::answer, 2, 0}; // no trusted OS: nothing to migrate
        case cpu_suspend:
            return outcome{effect::suspend, 0, 0};
        case cpu_off: {
            const std::lock_guard lock{mutex_};
            states_[caller].power.store(power::off);
            return outcome{effect::off, 0, 0};
        }
        case cpu_on:
            return turn_on(x1, {x2, x3});
        case affinity_info:
            return info(x1);
        case system_off:
            return outcome{effect::shutdown, 0, 0};
        case system_reset:
            return outcome{effect::reset, 0, 0};
        default:
            return std::nullopt;
        }
    }

private:
    enum class power : std::uint8_t { absent, off, starting, on };
    struct state {
        std::atomic<psci::power_states::power> power{power_states::power::absent};
        start begin{};
    };

    [[nodiscard]] static constexpr bool knows(std::uint32_t function) noexcept {
        switch (function & ~form_64) {
        case version:
        case cpu_suspend:
        case cpu_off:
        case cpu_on:
        case affinity_info:
        case migrate_info_type:
        case system_off:
        case system_reset:
        case features:
        case convention_version:
            return true;
        default:
            return false;
        }
    }
    [[nodiscard]] state* find(std::uint64_t affinity) noexcept {
        const std::optional<unsigned> index = index_of(affinity);
        if (!index || *index >= capacity) return nullptr;
        state* const found = &states_[*index];
        return found->power.load() == power::absent ? nullptr : found;
    }
    [[nodiscard]] outcome turn_on(std::uint64_t affinity, start begin) noexcept {
        const std::lock_guard lock{mutex_};
        state* const target = find(affinity);
        if (target == nullptr) return {effect::answer, invalid_parameters, 0};
        const power now = target->power.load();
        if (now == power::on) return {effect::answer, already_on, 0};
        if (now == power::starting) return {effect::answer, on_pending, 0};
        target->begin = begin;
        target->power.store(power::starting);
        return {effect::started, 0, static_cast<unsigned>(target - states_.data())};
    }
    [[nodiscard]] outcome info(std::uint64_t affinity) noexcept {
        const std::lock_guard lock{mutex_};
        const state* const target = find(affinity);
        if (target == nullptr) return {effect::answer, invalid_parameters, 0};
        const power now = target->power.load();
        const std::uint64_t value = now == power::on ? 0 : now == power::off ? 1 : 2;
        return {effect::answer, value, 0};
    }

    std::array<state, capacity> states_{};
    std::mutex mutex_{};
};

} // namespace vm_accel::inline v0::psci
