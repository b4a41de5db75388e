/// The SMMU's registers (IHI 0070, chapter 6): what is stored, what is locked,
/// what a write sets in motion.
#pragma once

#include <vm_accel/guest/interrupt_sink.hpp>
#include <vm_accel/smmu/control/atos_registers.hpp>
#include <vm_accel/smmu/control/command_registers.hpp>
#include <vm_accel/smmu/control/id_registers.hpp>
#include <vm_accel/smmu/control/interrupt_registers.hpp>
#include <vm_accel/smmu/control/register_access.hpp>
#include <vm_accel/smmu/control/register_bits.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/smmu/vocabulary/interrupt_message.hpp>
#include <vm_accel/spec/registers.hpp>

#include <atomic>
#include <cstdint>
#include <optional>

namespace vm_accel::inline v0 {

/// Threads: read and write are called under the SMMU's control lock. Device
/// threads read the live values (all atomic) and toggle errors without it.
///
/// Page 1 repeats page 0: either page reaches every register, as the
/// architecture leaves to the implementation (6.1). Accesses of another size
/// than the register's are ignored or read as zero, but that either half of a
/// 64-bit register may be accessed by itself. Where there are enhanced command
/// queues, a third page holds their registers.
template <smmu_features F>
class register_file {
public:
    /// Command queues: the Command queue and the enhanced ones.
    static constexpr unsigned command_queues = command_register_set<F>::queues;
    /// Bytes of the register window.
    static constexpr std::uint64_t window_bytes =
        spec::mmio_size + (command_queues == 1 ? 0 : spec::mmio_page_size);

    register_file() noexcept { reset(); }

    void reset() noexcept {
        for (auto* r :
             {&cr0_, &cr0_ack_, &cr1_, &cr2_, &gbpa_, &gerror_, &gerrorn_, &strtab_base_cfg_,
              &eventq_prod_, &eventq_cons_, &priq_prod_, &priq_cons_, &gmpam_, &gbpmpam_}) {
            r->store(0, std::memory_order_relaxed);
        }
        for (auto* r : {&strtab_base_, &eventq_base_, &priq_base_})
            r->store(0, std::memory_order_relaxed);
        commands_.reset();
        interrupts_.reset();
        atos_ = {};
        // Untranslated transactions keep the shareability they come with.
        gbpa_.store(spec::GBPA::SHCFG::in_place(1), std::memory_order_relaxed);
    }

    /// Everything off, nothing else changed.
    void disable() noexcept {
        put(cr0_, 0);
        commands_.disable();
    }

    /// Reads `size` bytes (4 or 8); unknown offsets and sizes read as zero.
    [[nodiscard]] std::uint64_t read(std::uint64_t offset, unsigned size) const noexcept {
        if (const auto at = command_register_set<F>::place_of(offset, size)) {
            return commands_.read(*at, size);
        }
        const auto shape = register_access_shape::of(offset, size);
        return shape.row == nullptr ? 0 : shape.part_of(load(shape.at()));
    }

    /// Writes `size` bytes. What the architecture locks (an enabled queue's
    /// base, the stream table while SMMUEN is 1) and what is read-only is
    /// ignored.
    [[nodiscard]] register_effect write(std::uint64_t offset, unsigned size,
                                        std::uint64_t value) noexcept {
        if (const auto at = command_register_set<F>::place_of(offset, size)) {
            register_effect effect;
            effect.queue_disabled = commands_.write(*at, size, value);
            return effect;
        }
        const auto shape = register_access_shape::of(offset, size);
        if (shape.row == nullptr || shape.row->access == spec::register_access::read_only) {
            return {};
        }
        return store(shape.at(), shape.merged(shape.whole ? 0 : load(shape.at()), value));
    }

    /// What write() does for the Command queue's PROD, which nothing locks.
    void write_command_index(std::uint64_t value) noexcept {
        put(commands_[0].prod, static_cast<std::uint32_t>(value) & 0xf'ffff);
    }

    // Live values, for device threads and the queues.
    [[nodiscard]] bool smmu_enabled() const noexcept { return cr0<spec::CR0::SMMUEN>(); }
    [[nodiscard]] bool commands_enabled() const noexcept { return cr0<spec::CR0::CMDQEN>(); }
    [[nodiscard]] bool events_enabled() const noexcept { return cr0<spec::CR0::EVENTQEN>(); }
    /// The effective PRIQEN: page requests are taken while SMMUEN is 1 only (6.3.9.5).
    [[nodiscard]] bool page_requests_enabled() const noexcept {
        return cr0<spec::CR0::PRIQEN>() && smmu_enabled();
    }
    /// Safe mode: translated transactions are checked against STE.EATS.
    [[nodiscard]] bool checks_translated() const noexcept { return cr0<spec::CR0::ATSCHK>(); }
    [[nodiscard]] bool bypass_aborts() const noexcept {
        return spec::GBPA::ABORT::of(gbpa_.load(std::memory_order_relaxed)) != 0;
    }
    [[nodiscard]] bool records_bad_stream_id() const noexcept {
        return spec::CR2::RECINVSID::of(cr2_.load(std::memory_order_relaxed)) != 0;
    }
    /// S_CR0.SIF.
    [[nodiscard]] bool fetches_secure_only() const noexcept {
        return bits::secure && cr0<spec::CR0::SIF>();
    }
    /// NS-EL2 streams are of the E2H world.
    [[nodiscard]] bool el2_host() const noexcept {
        return spec::CR2::E2H::of(cr2_.load(std::memory_order_relaxed)) != 0;
    }
    /// Configuration errors of ATS and page requests are recorded too.
    [[nodiscard]] bool records_ats_errors() const noexcept {
        return spec::CR2::REC_CFG_ATS::of(cr2_.load(std::memory_order_relaxed)) != 0;
    }
    /// Attributes of transactions while SMMUEN is 0: GBPA.
    [[nodiscard]] std::uint32_t bypass_attributes() const noexcept {
        return gbpa_.load(std::memory_order_relaxed);
    }
    [[nodiscard]] std::uint64_t stream_table_base() const noexcept {
        return strtab_base_.load(std::memory_order_relaxed);
    }
    [[nodiscard]] std::uint32_t stream_table_shape() const noexcept {
        return strtab_base_cfg_.load(std::memory_order_relaxed);
    }
    [[nodiscard]] std::uint64_t event_queue_base() const noexcept {
        return eventq_base_.load(std::memory_order_relaxed);
    }
    [[nodiscard]] std::uint64_t page_request_queue_base() const noexcept {
        return priq_base_.load(std::memory_order_relaxed);
    }
    /// Command queue `number`: 0 is the Command queue, 1 the first enhanced one.
    [[nodiscard]] command_registers& commands(unsigned number) noexcept {
        return commands_[number];
    }
    /// Whether a command queue is on and not stopped by an error.
    [[nodiscard]] bool commands_run(unsigned number) const noexcept {
        if (number == 0) return commands_enabled() && !error_active(spec::GERROR::CMDQ_ERR::mask);
        return commands_.runs(number);
    }
    /// Stops a command queue with a CERROR code. True = a GERROR bit came with it.
    [[nodiscard]] bool stop_commands(unsigned number, std::uint64_t cerror) noexcept {
        return raise_error(commands_.stop(number, cerror));
    }
    [[nodiscard]] std::atomic<std::uint32_t>& page_request_prod() noexcept { return priq_prod_; }
    [[nodiscard]] std::atomic<std::uint32_t>& page_request_cons() noexcept { return priq_cons_; }
    [[nodiscard]] std::atomic<std::uint32_t>& event_prod() noexcept { return eventq_prod_; }
    [[nodiscard]] std::atomic<std::uint32_t>& event_cons() noexcept { return eventq_cons_; }
    [[nodiscard]] bool eventq_interrupt_enabled() const noexcept {
        return interrupts_.enabled(wired_interrupt::eventq);
    }
    [[nodiscard]] bool gerror_interrupt_enabled() const noexcept {
        return interrupts_.enabled(wired_interrupt::gerror);
    }
    [[nodiscard]] bool priq_interrupt_enabled() const noexcept {
        return interrupts_.enabled(wired_interrupt::priq);
    }
    [[nodiscard]] bool priq_interrupt_last_only() const noexcept { return interrupts_.last_only(); }
    [[nodiscard]] const interrupt_registers<F>& interrupts() const noexcept { return interrupts_; }
    /// Under the control lock.
    [[nodiscard]] atos_registers<F>& atos() noexcept { return atos_; }

    /// Whether an error is active: its GERROR and GERRORN bits differ.
    [[nodiscard]] bool error_active(std::uint64_t bit) const noexcept {
        return ((gerror_.load(std::memory_order_acquire) ^
                 gerrorn_.load(std::memory_order_acquire)) &
                bit) != 0;
    }
    /// Activates an error unless it is active already; true = it was not.
    [[nodiscard]] bool raise_error(std::uint64_t bit) noexcept {
        std::uint32_t old = gerror_.load(std::memory_order_acquire);
        do {
            if (((old ^ gerrorn_.load(std::memory_order_acquire)) & bit) != 0) return false;
        } while (!gerror_.compare_exchange_weak(old, old ^ static_cast<std::uint32_t>(bit),
                                                std::memory_order_acq_rel));
        return true;
    }

    /// Every change of CR0 and GBPA made so far has taken effect.
    void acknowledge() noexcept {
        cr0_ack_.store(cr0_.load(std::memory_order_relaxed), std::memory_order_release);
        gbpa_.store(gbpa_.load(std::memory_order_relaxed) &
                        ~static_cast<std::uint32_t>(spec::GBPA::UPDATE::mask),
                    std::memory_order_release);
    }

    /// See saved_state.hpp. What is allowed is what a driver can have written.
    template <class Visit>
    void visit_state(Visit& visit) noexcept {
        constexpr std::uint64_t any32 = 0xffff'ffff;
        visit(cr0_, bits::cr0);
        visit(cr0_ack_, bits::cr0);
        visit(cr1_, 0xfff);
        visit(cr2_, bits::cr2);
        visit(gbpa_, bits::gbpa);
        visit(gerror_, 0x3fd);
        visit(gerrorn_, 0x3fd);
        visit(strtab_base_cfg_, 0x3'07ff);
        visit(strtab_base_, bits::stream_table);
        for (auto* r : {&eventq_prod_, &eventq_cons_, &priq_prod_, &priq_cons_})
            visit(*r, 0x800f'ffff);
        for (auto* r : {&eventq_base_, &priq_base_})
            visit(*r, queue_mask);
        for (auto* r : {&gmpam_, &gbpmpam_})
            visit(*r, F.mpam ? any32 : 0);
        commands_.visit_state(visit);
        interrupts_.visit_state(visit);
        atos_.visit_state(visit);
    }

private:
    template <class Field>
    [[nodiscard]] bool cr0() const noexcept {
        return Field::of(cr0_.load(std::memory_order_acquire)) != 0;
    }
    [[nodiscard]] std::uint64_t load(std::uint32_t at) const noexcept {
        namespace reg = spec::reg;
        constexpr auto order = std::memory_order_acquire;
        if (interrupt_registers<F>::has(at)) return interrupts_.read(at);
        if (atos_registers<F>::has(at)) return atos_.read(at);
        if (const auto id = id_registers<F>::at(at)) return *id;
        switch (at) {
        case reg::CR0:
            return cr0_.load(order);
        case reg::CR0ACK:
            return cr0_ack_.load(order);
        case reg::CR1:
            return cr1_.load(order);
        case reg::CR2:
            return cr2_.load(order);
        case reg::GBPA:
            return gbpa_.load(order);
        case reg::GERROR:
            return gerror_.load(order);
        case reg::GERRORN:
            return gerrorn_.load(order);
        case reg::STRTAB_BASE:
            return strtab_base_.load(order);
        case reg::STRTAB_BASE_CFG:
            return strtab_base_cfg_.load(order);
        case reg::CMDQ_BASE:
            return commands_[0].base.load(order);
        case reg::CMDQ_PROD:
            return commands_[0].prod.load(order);
        case reg::CMDQ_CONS:
            return commands_[0].cons.load(order);
        case reg::EVENTQ_BASE:
            return eventq_base_.load(order);
        case offset_in_page(reg::EVENTQ_PROD):
            return eventq_prod_.load(order);
        case offset_in_page(reg::EVENTQ_CONS):
            return eventq_cons_.load(order);
        case reg::PRIQ_BASE:
            return priq_base_.load(order);
        case offset_in_page(reg::PRIQ_PROD):
            return priq_prod_.load(order);
        case offset_in_page(reg::PRIQ_CONS):
            return priq_cons_.load(order);
        case reg::GMPAM:
            return gmpam_.load(order);
        case reg::GBPMPAM:
            return gbpmpam_.load(order);
        default:
            return 0; // STATUSR: never dormant; AGBPA, VATOS: not there
        }
    }

    [[nodiscard]] register_effect store(std::uint32_t at, std::uint64_t value) noexcept {
        namespace reg = spec::reg;
        register_effect effect;
        const auto low = static_cast<std::uint32_t>(value);
        const std::uint32_t on =
            cr0_.load(std::memory_order_relaxed) | cr0_ack_.load(std::memory_order_relaxed);
        const bool smmu_idle = spec::CR0::SMMUEN::of(on) == 0;
        const bool commands_idle = spec::CR0::CMDQEN::of(on) == 0;
        const bool events_idle = spec::CR0::EVENTQEN::of(on) == 0;
        const bool page_requests_idle = spec::CR0::PRIQEN::of(on) == 0;
        if (interrupt_registers<F>::has(at)) {
            interrupts_.write(at, value);
            return effect;
        }
        if (atos_registers<F>::has(at)) {
            effect.atos_started = atos_.write(at, value, translates());
            return effect;
        }
        switch (at) {
        case reg::CR0:
            return write_cr0(low);
        case reg::CR1: {
            // Table attributes are locked by SMMUEN, queue attributes by any queue.
            const bool queues_idle =
                commands_idle && events_idle && page_requests_idle && commands_.enhanced_idle();
            const std::uint32_t writable = (smmu_idle ? 0xfc0U : 0U) | (queues_idle ? 0x3fU : 0U);
            put(cr1_, (cr1_.load(std::memory_order_relaxed) & ~writable) | (low & writable));
            break;
        }
        case reg::CR2:
            if (smmu_idle) put(cr2_, low & bits::cr2);
            break;
        case reg::GBPA:
            // Takes effect only with UPDATE set, and only when no update is under way.
            if (spec::GBPA::UPDATE::of(low) != 0 &&
                spec::GBPA::UPDATE::of(gbpa_.load(std::memory_order_relaxed)) == 0) {
                put(gbpa_, low & bits::gbpa);
                effect.bypass_changed = true;
                effect.streams_changed = true;
            }
            break;
        case reg::GERRORN:
            // Only an active error can be acknowledged; other toggles are ignored.
            put(gerrorn_, acknowledged(low));
            break;
        case reg::STRTAB_BASE:
            if (smmu_idle)
                strtab_base_.store(value & bits::stream_table, std::memory_order_release);
            break;
        case reg::STRTAB_BASE_CFG:
            if (smmu_idle) put(strtab_base_cfg_, low & 0x3'07ff);
            break;
        case reg::CMDQ_BASE:
            if (commands_idle) {
                commands_[0].base.store(value & queue_mask, std::memory_order_release);
            }
            break;
        case reg::CMDQ_PROD:
            write_command_index(low);
            break;
        case reg::CMDQ_CONS:
            if (commands_idle) put(commands_[0].cons, low & 0x7f0f'ffff);
            break;
        case reg::EVENTQ_BASE:
            if (events_idle) eventq_base_.store(value & queue_mask, std::memory_order_release);
            break;
        case offset_in_page(reg::EVENTQ_PROD):
            if (events_idle) put(eventq_prod_, low & 0x800f'ffff);
            break;
        case offset_in_page(reg::EVENTQ_CONS):
            put(eventq_cons_, low & 0x800f'ffff);
            break;
        case reg::PRIQ_BASE:
            if (F.pri && page_requests_idle) {
                priq_base_.store(value & queue_mask, std::memory_order_release);
            }
            break;
        case offset_in_page(reg::PRIQ_PROD):
            if (F.pri && page_requests_idle) put(priq_prod_, low & 0x800f'ffff);
            break;
        case offset_in_page(reg::PRIQ_CONS):
            if (F.pri) put(priq_cons_, low & 0x800f'ffff);
            break;
        case reg::GMPAM:
            write_mpam(gmpam_, low);
            break;
        case reg::GBPMPAM:
            write_mpam(gbpmpam_, low);
            break;
        default:
            break; // nothing there: AGBPA, VATOS_SEL
        }
        return effect;
    }

    [[nodiscard]] register_effect write_cr0(std::uint32_t value) noexcept {
        const std::uint32_t old = cr0_.load(std::memory_order_relaxed);
        const std::uint32_t now = value & bits::cr0;
        put(cr0_, now);
        register_effect effect;
        effect.enables_changed = old != now;
        effect.streams_changed = ((old ^ now) & bits::streams) != 0;
        effect.smmu_disabled = spec::CR0::SMMUEN::of(old & ~now) != 0;
        return effect;
    }

    /// Changes with Update set only. There is no memory system here that could
    /// tell partitions apart, so the update is done at once.
    static void write_mpam(std::atomic<std::uint32_t>& r, std::uint32_t value) noexcept {
        constexpr std::uint32_t largest = id_registers<F>::MPAMIDR;
        if (F.mpam && spec::GMPAM::UPDATE::of(value) != 0) put(r, value & largest);
    }

    /// SMMUEN, as written and as acknowledged.
    [[nodiscard]] bool translates() const noexcept {
        return spec::CR0::SMMUEN::of(cr0_.load(std::memory_order_relaxed) &
                                     cr0_ack_.load(std::memory_order_relaxed)) != 0;
    }

    [[nodiscard]] std::uint32_t acknowledged(std::uint32_t written) const noexcept {
        const std::uint32_t old = gerrorn_.load(std::memory_order_relaxed);
        const std::uint32_t active = old ^ gerror_.load(std::memory_order_acquire);
        return old ^ ((old ^ written) & active);
    }

    static void put(std::atomic<std::uint32_t>& r, std::uint32_t value) noexcept {
        r.store(value, std::memory_order_release);
    }

    using bits = register_bits<F>;
    static constexpr std::uint64_t queue_mask = command_registers::base_bits;

    std::atomic<std::uint32_t> cr0_{}, cr0_ack_{}, cr1_{}, cr2_{}, gbpa_{};
    std::atomic<std::uint32_t> gerror_{}, gerrorn_{}, strtab_base_cfg_{};
    std::atomic<std::uint32_t> eventq_prod_{}, eventq_cons_{}, priq_prod_{}, priq_cons_{};
    std::atomic<std::uint32_t> gmpam_{}, gbpmpam_{};
    std::atomic<std::uint64_t> strtab_base_{}, eventq_base_{}, priq_base_{};
    command_register_set<F> commands_;
    interrupt_registers<F> interrupts_;
    atos_registers<F> atos_;
};

} // namespace vm_accel::inline v0
