/// Registers through which software asks for translations (IHI 0070, 6.3.37 to
/// 6.3.40, 9.1).
#pragma once

#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/spec/registers.hpp>

#include <cstdint>
#include <optional>

namespace vm_accel::inline v0 {

/// What software wants to have translated.
struct atos_request {
    std::uint64_t sid = 0;     ///< GATOS_SID
    std::uint64_t address = 0; ///< GATOS_ADDR
};

/// GATOS_CTRL, SID, ADDR and PAR. While RUN is 1 they ignore writes.
///
/// Threads: under the control lock.
template <smmu_features F>
class atos_registers {
public:
    /// Offsets in page 0.
    [[nodiscard]] static constexpr bool has(std::uint32_t at) noexcept {
        return F.atos && spec::reg::GATOS_CTRL <= at && at <= spec::reg::GATOS_PAR;
    }

    [[nodiscard]] std::uint64_t read(std::uint32_t at) const noexcept {
        switch (at) {
        case spec::reg::GATOS_CTRL:
            return runs_ ? spec::GATOS_CTRL::RUN::mask : 0;
        case spec::reg::GATOS_SID:
            return asked_.sid;
        case spec::reg::GATOS_ADDR:
            return asked_.address;
        default:
            return result_;
        }
    }
    /// True = RUN went to 1: answer with finish(). Ignored while nothing is
    /// translated.
    [[nodiscard]] bool write(std::uint32_t at, std::uint64_t value, bool translates) noexcept {
        if (runs_) return false;
        switch (at) {
        case spec::reg::GATOS_CTRL:
            runs_ = translates && spec::GATOS_CTRL::RUN::of(value) != 0;
            break;
        case spec::reg::GATOS_SID:
            asked_.sid = value & sid_bits;
            break;
        case spec::reg::GATOS_ADDR:
            asked_.address = value & address_bits;
            break;
        default:
            break;
        }
        return runs_;
    }

    /// What RUN asks for, while it is 1.
    [[nodiscard]] std::optional<atos_request> pending() const noexcept {
        return runs_ ? std::optional{asked_} : std::nullopt;
    }
    /// Sets PAR and ends the run.
    void finish(std::uint64_t par) noexcept {
        result_ = par;
        runs_ = false;
    }

    /// See saved_state.hpp.
    template <class Visit>
    void visit_state(Visit& visit) noexcept {
        visit(asked_.sid, F.atos ? sid_bits : 0);
        visit(asked_.address, F.atos ? address_bits : 0);
        visit(result_, F.atos ? ~std::uint64_t{0} : 0);
    }

private:
    static constexpr std::uint64_t sid_bits =
        spec::GATOS_SID::STREAMID::mask |
        (F.substream_bits != 0
             ? spec::GATOS_SID::SUBSTREAMID::mask | spec::GATOS_SID::SSID_VALID::mask
             : 0);
    static constexpr std::uint64_t address_bits = 0xffff'ffff'ffff'ffc0;

    atos_request asked_{};
    std::uint64_t result_ = 0;
    bool runs_ = false;
};

} // namespace vm_accel::inline v0
