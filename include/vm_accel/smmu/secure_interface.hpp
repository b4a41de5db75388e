/// An SMMU with a secure programming interface beside the non-secure one (IHI
/// 0070, 3.10): two instances of `smmu`, each with tables, queues, registers and
/// caches of its own, and one window of registers.
///
/// "As though two logical and separate SMMUs are present" (3.10.2.1) is meant
/// literally: nothing that one state configures or caches can be met by the other,
/// because no cache has both. What the secure state may do to the other one goes
/// through non_secure_link.
///
/// Built: stage 1 (EL1 and EL3), NS and NSTable bits, NSCFG, SIF, the secure
/// queues, S_INIT. Not built, and told so in the ID registers: secure EL2 and
/// stage 2 (SEL2), stalls in either state (so NSSTALLD is RES0), ATS maintenance
/// from the secure queue (SAMS), secure ATOS, ECMDQ and performance counters,
/// addresses beyond 48 bits. A device's own NS attribute is not modelled: untranslated
/// accesses of secure streams are secure unless NSCFG says otherwise.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/core/security_state.hpp>
#include <vm_accel/smmu/control/quiescence.hpp>
#include <vm_accel/smmu/options.hpp>
#include <vm_accel/smmu/smmu.hpp>
#include <vm_accel/spec/commands.hpp>
#include <vm_accel/spec/registers.hpp>

#include <cstdint>

namespace vm_accel::inline v0 {

/// What the secure interface of an SMMU with features `of` offers. `of` has to
/// allow it: see two_state_smmu.
[[nodiscard]] constexpr smmu_features secure_features_of(smmu_features of) noexcept {
    of.state = security_state::secure;
    of.stage2 = of.xnx = of.fwb = of.vmid16 = of.hyp = of.mpam = false;
    of.ats = of.pri = of.atos = false;
    of.page_request_queue_log2 = of.ecmdq_log2 = of.performance_counters = 0;
    return of;
}

/// What the two interfaces of one SMMU know of each other.
struct interface_access {
    template <class Smmu>
    [[nodiscard]] static auto& parts(Smmu& smmu) noexcept {
        return smmu.parts_;
    }
};

/// How the secure interface reaches the non-secure one: commands of its queue that
/// name non-secure streams or translations (SSec = 0, 4.1.6), and what its CMD_SYNC
/// then waits for (4.7.3). Threads: under the secure interface's control lock; takes
/// that of the non-secure one, which never takes ours. When it lets go, interrupts
/// of the non-secure state may be pulsed, as after any other call.
template <class NonSecure>
class non_secure_link {
public:
    /// False = out of memory.
    [[nodiscard]] bool connect(NonSecure& smmu) noexcept {
        smmu_ = &smmu;
        return grace_.allocate(interface_access::parts(smmu).guards.capacity());
    }
    /// False = illegal there too.
    [[nodiscard]] bool pass_on(const spec::command& command) noexcept {
        if (smmu_ == nullptr) return false;
        auto& parts = interface_access::parts(*smmu_);
        auto held = parts.lock();
        owes_ = true;
        return parts.control.execute_for_secure(command, parts.execute_by(), held.after);
    }
    /// Whether what was passed on has taken effect for every access.
    [[nodiscard]] bool settled() noexcept {
        if (smmu_ == nullptr) return true;
        auto& parts = interface_access::parts(*smmu_);
        auto held = parts.lock();
        if (owes_) {
            owes_ = false;
            parts.control.start(grace_);
        }
        const bool passed = parts.control.finished(grace_);
        return parts.execute_by().settle_events(held.after) && passed;
    }

private:
    NonSecure* smmu_ = nullptr;
    grace_period grace_{};
    bool owes_ = false; ///< commands were passed on since the last grace period began
};

/// Options of the secure interface beside NonSecure: `Base` with its features.
template <class NonSecure, class Base = default_smmu_options>
struct secure_options : Base {
    static constexpr smmu_features features = secure_features_of(NonSecure::features);
    using other_state = non_secure_link<NonSecure>;
};

/// The register window of both. Devices are attached to the instance of their
/// state; the two StreamID namespaces are separate. References are kept.
template <class NonSecure, class Secure>
class two_state_smmu {
    static constexpr smmu_features F = NonSecure::features;
    static_assert(F.state == security_state::non_secure && F.stage1);
    static_assert(F.output_bits <= 48 && !F.vax52 && !F.ds,
                  "IDR5 is for both states: 48-bit addresses at most beside a secure interface");
    static_assert(!F.stalls, "IDR0.STALL_MODEL is for both states: no stalls beside a secure "
                             "interface");
    static_assert(Secure::features == secure_features_of(F),
                  "the secure interface has secure_options<NonSecure>");

public:
    /// Bytes of the register window.
    static constexpr std::uint64_t mmio_size = NonSecure::mmio_size;
    /// Where the secure interface's registers are in each page (6.1).
    static constexpr std::uint64_t secure_registers = 0x8000;

    /// Both are initialised. Connects them.
    two_state_smmu(NonSecure& non_secure, Secure& secure) noexcept
        : non_secure_(non_secure), secure_(secure) {
        connected_ = interface_access::parts(secure).other_state.connect(non_secure);
    }
    two_state_smmu(const two_state_smmu&) = delete;
    two_state_smmu& operator=(const two_state_smmu&) = delete;

    /// False = out of memory: secure commands for the non-secure state are illegal.
    [[nodiscard]] bool is_connected() const noexcept { return connected_; }

    /// An access by software in state `by`. Secure registers read as zero and
    /// ignore writes unless it is secure (3.10.2).
    [[nodiscard]] std::uint64_t mmio_read(std::uint64_t offset, unsigned size,
                                          security_state by) noexcept {
        if (!is_secure(offset)) return non_secure_.mmio_read(offset, size);
        if (by != security_state::secure) return 0;
        return secure_.mmio_read(offset - secure_registers, size); // S_INIT is never busy
    }
    void mmio_write(std::uint64_t offset, unsigned size, std::uint64_t value,
                    security_state by) noexcept {
        if (!is_secure(offset)) {
            non_secure_.mmio_write(offset, size, value);
        } else if (by != security_state::secure) {
            return;
        } else if (offset == secure_registers + S_INIT) {
            if (size == 4 && spec::S_INIT::INV_ALL::of(value) != 0) invalidate_all();
        } else {
            secure_.mmio_write(offset - secure_registers, size, value);
        }
    }

    /// See smmu::poll().
    [[nodiscard]] bool poll() noexcept {
        const bool more = non_secure_.poll();
        return secure_.poll() || more;
    }

private:
    static constexpr std::uint64_t S_INIT = 0x3c;

    [[nodiscard]] static constexpr bool is_secure(std::uint64_t offset) noexcept {
        return offset < spec::mmio_size &&
               (offset & (spec::mmio_page_size - 1)) >= secure_registers;
    }
    /// All configurations and translations of both states.
    void invalidate_all() noexcept {
        forget(interface_access::parts(non_secure_));
        forget(interface_access::parts(secure_));
    }
    template <class Parts>
    static void forget(Parts& parts) noexcept {
        const auto held = parts.lock();
        parts.execute_by().forget_streams(0U, ~0U);
        parts.control.invalidate(invalidation_scope::all());
    }

    NonSecure& non_secure_;
    Secure& secure_;
    bool connected_ = false;
};

} // namespace vm_accel::inline v0
