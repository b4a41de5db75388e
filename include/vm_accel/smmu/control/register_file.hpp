/// The SMMU's registers (IHI 0070, chapter 6): what is stored, what is locked,
/// what a write sets in motion.
#pragma once

#include <vm_accel/guest/interrupt_sink.hpp>
#include <vm_accel/smmu/control/id_registers.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/smmu/vocabulary/interrupt_message.hpp>
#include <vm_accel/spec/registers.hpp>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>

namespace vm_accel::inline v0 {

/// What a register write asks of the rest of the SMMU.
struct register_effect {
    bool commands_waiting = false; ///< the command queue may have work
    bool enables_changed = false;  ///< CR0 changed: acknowledge when in-flight work is done
    bool streams_changed = false;  ///< every cached configuration is out of date
    bool bypass_changed = false;   ///< GBPA.UPDATE: acknowledge likewise
    bool smmu_disabled = false;    ///< SMMUEN went to 0: nothing stays stalled
    bool atos_started = false;     ///< GATOS_CTRL.RUN went to 1: answer with finish_atos()
    unsigned queue_disabled = 0;   ///< number of an enhanced command queue that went off
};

/// Base and indices of one command queue. Written under the control lock.
struct command_registers {
    std::atomic<std::uint64_t> base{0};
    std::atomic<std::uint32_t> prod{0};
    std::atomic<std::uint32_t> cons{0};
};

/// What software wants to have translated (IHI 0070, 9.1).
struct atos_request {
    std::uint64_t sid = 0;     ///< GATOS_SID
    std::uint64_t address = 0; ///< GATOS_ADDR
};

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
    static constexpr unsigned command_queues = 1 + (F.ecmdq_log2 == 0 ? 0U : 1U << F.ecmdq_log2);
    /// Bytes of the register window.
    static constexpr std::uint64_t window_bytes =
        spec::mmio_size + (command_queues == 1 ? 0 : spec::mmio_page_size);

    register_file() noexcept { reset(); }

    void reset() noexcept {
        for (auto* r : {&cr0_, &cr0_ack_, &cr1_, &cr2_, &gbpa_, &irq_ctrl_, &gerror_, &gerrorn_,
                        &strtab_base_cfg_, &eventq_prod_, &eventq_cons_, &priq_prod_, &priq_cons_,
                        &gmpam_, &gbpmpam_}) {
            r->store(0, std::memory_order_relaxed);
        }
        for (auto* r : {&strtab_base_, &eventq_base_, &priq_base_})
            r->store(0, std::memory_order_relaxed);
        for (command_registers& queue : commands_) {
            queue.base.store(0, std::memory_order_relaxed);
            queue.prod.store(0, std::memory_order_relaxed);
            queue.cons.store(0, std::memory_order_relaxed);
        }
        atos_ = {};
        atos_result_ = 0;
        atos_runs_ = false;
        // Untranslated transactions keep the shareability they come with.
        gbpa_.store(spec::GBPA::SHCFG::in_place(1), std::memory_order_relaxed);
        irq_ = {};
        last_only_.store(false, std::memory_order_relaxed);
    }

    /// Everything off, nothing else changed.
    void disable() noexcept {
        put(cr0_, 0);
        for (unsigned n = 1; n < command_queues; ++n) {
            put(commands_[n].prod, commands_[n].prod.load(std::memory_order_relaxed) & ~enabled);
            put(commands_[n].cons, commands_[n].cons.load(std::memory_order_relaxed) & ~enabled);
        }
    }

    /// Reads `size` bytes (4 or 8); unknown offsets and sizes read as zero.
    [[nodiscard]] std::uint64_t read(std::uint64_t offset, unsigned size) const noexcept {
        if (const auto at = command_page_place(offset, size)) return read_command_page(*at, size);
        const access_shape shape = shape_of(offset, size);
        if (shape.row == nullptr) return 0;
        const std::uint64_t value = load(page0(shape.row->offset));
        return shape.whole ? value : value >> shape.shift & 0xffff'ffff;
    }

    /// Writes `size` bytes. What the architecture locks (an enabled queue's
    /// base, the stream table while SMMUEN is 1) and what is read-only is
    /// ignored.
    [[nodiscard]] register_effect write(std::uint64_t offset, unsigned size,
                                        std::uint64_t value) noexcept {
        if (const auto at = command_page_place(offset, size)) {
            return write_command_page(*at, size, value);
        }
        const access_shape shape = shape_of(offset, size);
        if (shape.row == nullptr || shape.row->access == spec::register_access::read_only) {
            return {};
        }
        const std::uint32_t at = page0(shape.row->offset);
        if (!shape.whole) {
            const std::uint64_t lane = std::uint64_t{0xffff'ffff} << shape.shift;
            value = (load(at) & ~lane) | (value & 0xffff'ffff) << shape.shift;
        }
        return store(at, value);
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
        const std::uint32_t prod = commands_[number].prod.load(std::memory_order_relaxed);
        const std::uint32_t cons = commands_[number].cons.load(std::memory_order_relaxed);
        return (prod & cons & enabled) != 0 && ((prod ^ cons) & spec::ECMDQ_CONS::ERR::mask) == 0;
    }
    /// Stops a command queue with a CERROR code. True = a GERROR bit came with it.
    [[nodiscard]] bool stop_commands(unsigned number, std::uint64_t cerror) noexcept {
        command_registers& queue = commands_[number];
        const std::uint64_t cons = queue.cons.load(std::memory_order_relaxed);
        if (number == 0) {
            const std::uint64_t others = cons & ~spec::CMDQ_CONS::ERR::mask;
            put(queue.cons,
                static_cast<std::uint32_t>(others | spec::CMDQ_CONS::ERR::in_place(cerror)));
            return raise_error(spec::GERROR::CMDQ_ERR::mask);
        }
        const std::uint64_t others = cons & ~spec::ECMDQ_CONS::ERR_REASON::mask;
        put(queue.cons,
            static_cast<std::uint32_t>((others | spec::ECMDQ_CONS::ERR_REASON::in_place(cerror)) ^
                                       spec::ECMDQ_CONS::ERR::mask));
        return raise_error(spec::GERROR::CMDQP_ERR::mask);
    }
    [[nodiscard]] std::atomic<std::uint32_t>& page_request_prod() noexcept { return priq_prod_; }
    [[nodiscard]] std::atomic<std::uint32_t>& page_request_cons() noexcept { return priq_cons_; }
    [[nodiscard]] std::atomic<std::uint32_t>& event_prod() noexcept { return eventq_prod_; }
    [[nodiscard]] std::atomic<std::uint32_t>& event_cons() noexcept { return eventq_cons_; }
    [[nodiscard]] bool eventq_interrupt_enabled() const noexcept {
        return irq<spec::IRQ_CTRL::EVENTQ_IRQEN>();
    }
    [[nodiscard]] bool gerror_interrupt_enabled() const noexcept {
        return irq<spec::IRQ_CTRL::GERROR_IRQEN>();
    }
    [[nodiscard]] bool priq_interrupt_enabled() const noexcept {
        return irq<spec::IRQ_CTRL::PRIQ_IRQEN>();
    }
    /// PRIQ_IRQ_CFG2.LO: an interrupt for the last request of a group only.
    [[nodiscard]] bool priq_interrupt_last_only() const noexcept {
        return last_only_.load(std::memory_order_relaxed);
    }
    /// By line; CMD_SYNC's and others' have no enable bit here.
    [[nodiscard]] bool interrupt_enabled(wired_interrupt line) const noexcept {
        switch (line) {
        case wired_interrupt::eventq:
            return eventq_interrupt_enabled();
        case wired_interrupt::priq:
            return priq_interrupt_enabled();
        case wired_interrupt::gerror:
            return gerror_interrupt_enabled();
        default:
            return true;
        }
    }
    /// The message that a line is configured to send; none without IDR0.MSI.
    /// Under the control lock.
    [[nodiscard]] interrupt_message message_of(wired_interrupt line) const noexcept {
        if (!F.msi) return {};
        if (line != wired_interrupt::gerror && line != wired_interrupt::eventq &&
            line != wired_interrupt::priq) {
            return {};
        }
        const irq_configuration& irq = irq_[irq_index(line)];
        return {irq.cfg0, irq.cfg1};
    }

    /// What GATOS_CTRL.RUN asks for, while it is 1. Under the control lock, like
    /// its answer: finish_atos() sets GATOS_PAR and ends the run.
    [[nodiscard]] std::optional<atos_request> pending_atos() const noexcept {
        return atos_runs_ ? std::optional{atos_} : std::nullopt;
    }
    void finish_atos(std::uint64_t par) noexcept {
        atos_result_ = par;
        atos_runs_ = false;
    }

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
        constexpr std::uint64_t any64 = ~std::uint64_t{0};
        visit(cr0_, 0x1f);
        visit(cr0_ack_, 0x1f);
        visit(cr1_, 0xfff);
        visit(cr2_, cr2_bits);
        visit(gbpa_, 0x801f'3f1f);
        visit(irq_ctrl_, 0x7);
        visit(gerror_, 0x3fd);
        visit(gerrorn_, 0x3fd);
        visit(strtab_base_cfg_, 0x3'07ff);
        visit(strtab_base_, base_mask);
        for (auto* r : {&eventq_prod_, &eventq_cons_, &priq_prod_, &priq_cons_})
            visit(*r, 0x800f'ffff);
        for (auto* r : {&eventq_base_, &priq_base_})
            visit(*r, queue_mask);
        for (auto* r : {&gmpam_, &gbpmpam_})
            visit(*r, F.mpam ? any32 : 0);
        for (command_registers& queue : commands_) {
            visit(queue.base, queue_mask);
            visit(queue.prod, 0xff8f'ffff);
            visit(queue.cons, 0xff8f'ffff);
        }
        for (irq_configuration& irq : irq_) {
            visit(irq.cfg0, spec::IRQ_CFG0::ADDR::mask);
            visit(irq.cfg1, any32);
            const std::uint64_t cfg2 = visit(irq.cfg2, 0x8000'003f);
            if (visit.is_loading()) {
                last_only_.store(spec::IRQ_CFG2::LO::of(cfg2) != 0, std::memory_order_relaxed);
            }
        }
        visit(atos_.sid, F.atos ? gatos_sid_bits : 0);
        visit(atos_.address, F.atos ? any64 : 0);
        visit(atos_result_, F.atos ? any64 : 0);
    }

private:
    struct irq_configuration {
        std::uint64_t cfg0 = 0;
        std::uint32_t cfg1 = 0;
        std::uint32_t cfg2 = 0;
    };
    /// Which register an access meets, and which part of it.
    struct access_shape {
        const spec::register_row* row = nullptr; ///< null = nothing there, or ill-formed
        bool whole = true;
        unsigned shift = 0; ///< of the half, when not whole
    };

    template <class Field>
    [[nodiscard]] bool cr0() const noexcept {
        return Field::of(cr0_.load(std::memory_order_acquire)) != 0;
    }
    template <class Field>
    [[nodiscard]] bool irq() const noexcept {
        return Field::of(irq_ctrl_.load(std::memory_order_acquire)) != 0;
    }

    [[nodiscard]] static constexpr std::uint32_t page0(std::uint64_t offset) noexcept {
        return static_cast<std::uint32_t>(offset & (spec::mmio_page_size - 1));
    }

    [[nodiscard]] static access_shape shape_of(std::uint64_t offset, unsigned size) noexcept {
        if (offset >= spec::mmio_size || (size != 4 && size != 8) || offset % size != 0) return {};
        const std::uint64_t at = offset & (spec::mmio_page_size - 1);
        const spec::register_row* row = spec::find_register(at);
        if (row == nullptr) row = spec::find_register(at + spec::mmio_page_size);
        if (row == nullptr || size > row->width) return {};
        return {row, size == row->width, static_cast<unsigned>(at - page0(row->offset)) * 8};
    }

    [[nodiscard]] std::uint64_t load(std::uint32_t at) const noexcept {
        namespace reg = spec::reg;
        using ids = id_registers<F>;
        constexpr auto order = std::memory_order_acquire;
        switch (at) {
        case reg::IDR0:
            return ids::IDR0;
        case reg::IDR1:
            return ids::IDR1;
        case reg::IDR2:
            return ids::IDR2;
        case reg::IDR3:
            return ids::IDR3;
        case reg::IDR4:
            return ids::IDR4;
        case reg::IDR5:
            return ids::IDR5;
        case reg::IDR6:
            return ids::IDR6;
        case reg::IIDR:
            return ids::IIDR;
        case reg::MPAMIDR:
            return ids::MPAMIDR;
        case reg::AIDR:
            return ids::AIDR;
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
        case reg::IRQ_CTRL:
        case reg::IRQ_CTRLACK:
            return irq_ctrl_.load(order);
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
        case page0(reg::EVENTQ_PROD):
            return eventq_prod_.load(order);
        case page0(reg::EVENTQ_CONS):
            return eventq_cons_.load(order);
        case reg::PRIQ_BASE:
            return priq_base_.load(order);
        case page0(reg::PRIQ_PROD):
            return priq_prod_.load(order);
        case page0(reg::PRIQ_CONS):
            return priq_cons_.load(order);
        case reg::GERROR_IRQ_CFG0:
        case reg::EVENTQ_IRQ_CFG0:
        case reg::PRIQ_IRQ_CFG0:
            return irq_[irq_index(irq_line(at))].cfg0;
        case reg::GERROR_IRQ_CFG1:
        case reg::EVENTQ_IRQ_CFG1:
        case reg::PRIQ_IRQ_CFG1:
            return irq_[irq_index(irq_line(at))].cfg1;
        case reg::GERROR_IRQ_CFG2:
        case reg::EVENTQ_IRQ_CFG2:
        case reg::PRIQ_IRQ_CFG2:
            return irq_[irq_index(irq_line(at))].cfg2;
        case reg::GATOS_CTRL:
            return atos_runs_ ? spec::GATOS_CTRL::RUN::mask : 0;
        case reg::GATOS_SID:
            return atos_.sid;
        case reg::GATOS_ADDR:
            return atos_.address;
        case reg::GATOS_PAR:
            return atos_result_;
        case reg::GMPAM:
            return gmpam_.load(order);
        case reg::GBPMPAM:
            return gbpmpam_.load(order);
        case reg::CMDQ_CONTROL_PAGE_BASE0:
            return command_queues == 1
                       ? 0
                       : spec::mmio_size | spec::CMDQ_CONTROL_PAGE_BASE::PRESET::mask |
                             spec::CMDQ_CONTROL_PAGE_BASE::CMDQGS::in_place(1);
        case reg::CMDQ_CONTROL_PAGE_CFG0:
        case reg::CMDQ_CONTROL_PAGE_STATUS0:
            return command_queues == 1 ? 0 : 1;
        default:
            return 0; // STATUSR: never dormant; AGBPA, VATOS: not there; who made it: nobody
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
        switch (at) {
        case reg::CR0:
            return write_cr0(low);
        case reg::CR1: {
            // Table attributes are locked by SMMUEN, queue attributes by any queue.
            const bool queues_idle =
                commands_idle && events_idle && page_requests_idle && enhanced_queues_idle();
            const std::uint32_t writable = (smmu_idle ? 0xfc0U : 0U) | (queues_idle ? 0x3fU : 0U);
            put(cr1_, (cr1_.load(std::memory_order_relaxed) & ~writable) | (low & writable));
            break;
        }
        case reg::CR2:
            if (smmu_idle) put(cr2_, low & cr2_bits);
            break;
        case reg::GBPA:
            // Takes effect only with UPDATE set, and only when no update is under way.
            if (spec::GBPA::UPDATE::of(low) != 0 &&
                spec::GBPA::UPDATE::of(gbpa_.load(std::memory_order_relaxed)) == 0) {
                put(gbpa_, low & 0x801f'3f1f);
                effect.bypass_changed = true;
                effect.streams_changed = true;
            }
            break;
        case reg::IRQ_CTRL:
            put(irq_ctrl_, low & (F.pri ? 0x7U : 0x5U));
            break;
        case reg::GERRORN:
            // Only an active error can be acknowledged; other toggles are ignored.
            put(gerrorn_, acknowledged(low));
            effect.commands_waiting = true; // consumption resumes if CMDQ_ERR is acknowledged
            break;
        case reg::STRTAB_BASE:
            if (smmu_idle) strtab_base_.store(value & base_mask, std::memory_order_release);
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
            put(commands_[0].prod, low & 0xf'ffff);
            effect.commands_waiting = true;
            break;
        case reg::CMDQ_CONS:
            if (commands_idle) put(commands_[0].cons, low & 0x7f0f'ffff);
            break;
        case reg::EVENTQ_BASE:
            if (events_idle) eventq_base_.store(value & queue_mask, std::memory_order_release);
            break;
        case page0(reg::EVENTQ_PROD):
            if (events_idle) put(eventq_prod_, low & 0x800f'ffff);
            break;
        case page0(reg::EVENTQ_CONS):
            put(eventq_cons_, low & 0x800f'ffff);
            break;
        case reg::PRIQ_BASE:
            if (F.pri && page_requests_idle) {
                priq_base_.store(value & queue_mask, std::memory_order_release);
            }
            break;
        case page0(reg::PRIQ_PROD):
            if (F.pri && page_requests_idle) put(priq_prod_, low & 0x800f'ffff);
            break;
        case page0(reg::PRIQ_CONS):
            if (F.pri) put(priq_cons_, low & 0x800f'ffff);
            break;
        case reg::GERROR_IRQ_CFG0:
        case reg::EVENTQ_IRQ_CFG0:
        case reg::PRIQ_IRQ_CFG0:
            if (irq_configuration* irq = writable_irq(at)) {
                irq->cfg0 = value & spec::IRQ_CFG0::ADDR::mask;
            }
            break;
        case reg::GERROR_IRQ_CFG1:
        case reg::EVENTQ_IRQ_CFG1:
        case reg::PRIQ_IRQ_CFG1:
            if (irq_configuration* irq = writable_irq(at)) irq->cfg1 = low;
            break;
        case reg::GERROR_IRQ_CFG2:
        case reg::EVENTQ_IRQ_CFG2:
            if (irq_configuration* irq = writable_irq(at)) irq->cfg2 = low & 0x3f;
            break;
        case reg::PRIQ_IRQ_CFG2:
            if (irq_configuration* irq = writable_irq(at)) {
                irq->cfg2 = low & 0x8000'003f;
                last_only_.store(spec::IRQ_CFG2::LO::of(low) != 0, std::memory_order_relaxed);
            }
            break;
        case reg::GATOS_CTRL:
            // Ignored while it runs, and while nothing is translated.
            if (F.atos && !atos_runs_ && smmu_enabled() &&
                spec::CR0::SMMUEN::of(cr0_ack_.load(std::memory_order_relaxed)) != 0) {
                atos_runs_ = effect.atos_started = spec::GATOS_CTRL::RUN::of(low) != 0;
            }
            break;
        case reg::GATOS_SID:
            if (F.atos && !atos_runs_) atos_.sid = value & gatos_sid_bits;
            break;
        case reg::GATOS_ADDR:
            if (F.atos && !atos_runs_) atos_.address = value & 0xffff'ffff'ffff'ffc0;
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
        constexpr auto implemented = static_cast<std::uint32_t>(
            spec::CR0::SMMUEN::mask | spec::CR0::EVENTQEN::mask | spec::CR0::CMDQEN::mask |
            (F.pri ? spec::CR0::PRIQEN::mask : 0) | (F.ats ? spec::CR0::ATSCHK::mask : 0));
        const std::uint32_t old = cr0_.load(std::memory_order_relaxed);
        const std::uint32_t now = value & implemented;
        put(cr0_, now);
        register_effect effect;
        effect.enables_changed = old != now;
        effect.streams_changed = ((old ^ now) & streams_bits) != 0;
        effect.smmu_disabled = spec::CR0::SMMUEN::of(old & ~now) != 0;
        effect.commands_waiting = spec::CR0::CMDQEN::of(now) != 0;
        return effect;
    }

    /// Changes with Update set only. There is no memory system here that could
    /// tell partitions apart, so the update is done at once.
    static void write_mpam(std::atomic<std::uint32_t>& r, std::uint32_t value) noexcept {
        constexpr std::uint32_t largest = id_registers<F>::MPAMIDR;
        if (F.mpam && spec::GMPAM::UPDATE::of(value) != 0) put(r, value & largest);
    }

    [[nodiscard]] static constexpr wired_interrupt irq_line(std::uint32_t at) noexcept {
        return at >= spec::reg::PRIQ_IRQ_CFG0     ? wired_interrupt::priq
               : at >= spec::reg::EVENTQ_IRQ_CFG0 ? wired_interrupt::eventq
                                                  : wired_interrupt::gerror;
    }
    [[nodiscard]] static constexpr std::size_t irq_index(wired_interrupt line) noexcept {
        return line == wired_interrupt::gerror ? 0 : line == wired_interrupt::eventq ? 1 : 2;
    }
    /// Locked by its own enable bit. Null = locked, or not there. Without
    /// IDR0.MSI the settings are stored and unused.
    [[nodiscard]] irq_configuration* writable_irq(std::uint32_t at) noexcept {
        const wired_interrupt line = irq_line(at);
        if (line == wired_interrupt::priq && !F.pri) return nullptr;
        return interrupt_enabled(line) ? nullptr : &irq_[irq_index(line)];
    }

    // The page of enhanced command queues (6.2.5): queues are evenly spaced in
    // it, and have a base of 8 bytes and two indices of 4.

    /// Where in that page an access is; nullopt = elsewhere.
    [[nodiscard]] static constexpr std::optional<std::uint32_t>
    command_page_place(std::uint64_t offset, unsigned size) noexcept {
        if constexpr (command_queues == 1) return std::nullopt;
        if (offset < spec::mmio_size || offset >= window_bytes) return std::nullopt;
        if ((size != 4 && size != 8) || offset % size != 0) return std::nullopt;
        return static_cast<std::uint32_t>(offset - spec::mmio_size);
    }
    static constexpr std::uint32_t queue_spacing =
        static_cast<std::uint32_t>(spec::mmio_page_size >> F.ecmdq_log2);

    [[nodiscard]] std::uint64_t read_command_page(std::uint32_t at, unsigned size) const noexcept {
        const command_registers& queue = commands_[1 + at / queue_spacing];
        const std::uint64_t base = queue.base.load(std::memory_order_acquire);
        switch (at % queue_spacing) {
        case 0:
            return size == 8 ? base : base & 0xffff'ffff;
        case 4:
            return base >> 32;
        case 8:
            return size == 8 ? 0 : queue.prod.load(std::memory_order_acquire);
        case 12:
            return queue.cons.load(std::memory_order_acquire);
        default:
            return 0;
        }
    }
    /// A queue that is on has its base and CONS locked; EN is acknowledged at
    /// once, because commands are executed under the same lock.
    [[nodiscard]] register_effect write_command_page(std::uint32_t at, unsigned size,
                                                     std::uint64_t value) noexcept {
        const unsigned number = 1 + at / queue_spacing;
        command_registers& queue = commands_[number];
        const bool idle = (queue.prod.load(std::memory_order_relaxed) & enabled) == 0;
        const std::uint64_t base = queue.base.load(std::memory_order_relaxed);
        const std::uint32_t cons = queue.cons.load(std::memory_order_relaxed);
        const auto low = static_cast<std::uint32_t>(value);
        register_effect effect;
        const auto write_base = [&](std::uint64_t wanted) {
            if (idle) queue.base.store(wanted & queue_mask, std::memory_order_release);
        };
        switch (at % queue_spacing) {
        case 0:
            write_base(size == 8 ? value : (base & ~std::uint64_t{0xffff'ffff}) | low);
            break;
        case 4:
            write_base((base & 0xffff'ffff) | std::uint64_t{low} << 32);
            break;
        case 8:
            if (size == 8) break;
            put(queue.prod, low & 0x808f'ffff);
            put(queue.cons, (cons & ~enabled) | (low & enabled));
            effect.commands_waiting = true;
            if ((low & enabled) == 0) effect.queue_disabled = number;
            break;
        case 12:
            if (idle) put(queue.cons, low & 0x078f'ffff);
            break;
        default:
            break;
        }
        return effect;
    }
    [[nodiscard]] bool enhanced_queues_idle() const noexcept {
        for (unsigned n = 1; n < command_queues; ++n) {
            if ((commands_[n].prod.load(std::memory_order_relaxed) & enabled) != 0) return false;
        }
        return true;
    }

    [[nodiscard]] std::uint32_t acknowledged(std::uint32_t written) const noexcept {
        const std::uint32_t old = gerrorn_.load(std::memory_order_relaxed);
        const std::uint32_t active = old ^ gerror_.load(std::memory_order_acquire);
        return old ^ ((old ^ written) & active);
    }

    static void put(std::atomic<std::uint32_t>& r, std::uint32_t value) noexcept {
        r.store(value, std::memory_order_release);
    }

    static constexpr auto enabled = static_cast<std::uint32_t>(spec::ECMDQ_PROD::EN::mask);
    /// PTM is stored, although there is no broadcast maintenance to ignore.
    static constexpr auto cr2_bits = static_cast<std::uint32_t>(
        spec::CR2::RECINVSID::mask | spec::CR2::PTM::mask |
        (id_registers<F>::IDR0 & spec::IDR0::Hyp::mask ? spec::CR2::E2H::mask : 0) |
        (F.ats ? spec::CR2::REC_CFG_ATS::mask : 0));
    /// What decoded configurations depend on.
    static constexpr auto streams_bits =
        static_cast<std::uint32_t>(spec::CR0::SMMUEN::mask | spec::CR0::ATSCHK::mask);
    static constexpr std::uint64_t gatos_sid_bits =
        spec::GATOS_SID::STREAMID::mask |
        (F.substream_bits != 0
             ? spec::GATOS_SID::SUBSTREAMID::mask | spec::GATOS_SID::SSID_VALID::mask
             : 0);
    static constexpr std::uint64_t base_mask =
        spec::STRTAB_BASE::ADDR::mask | spec::STRTAB_BASE::RA::mask;
    static constexpr std::uint64_t queue_mask =
        spec::CMDQ_BASE::ADDR::mask | spec::CMDQ_BASE::RA::mask | spec::CMDQ_BASE::LOG2SIZE::mask;

    std::atomic<std::uint32_t> cr0_{}, cr0_ack_{}, cr1_{}, cr2_{}, gbpa_{}, irq_ctrl_{};
    std::atomic<std::uint32_t> gerror_{}, gerrorn_{}, strtab_base_cfg_{};
    std::atomic<std::uint32_t> eventq_prod_{}, eventq_cons_{}, priq_prod_{}, priq_cons_{};
    std::atomic<std::uint32_t> gmpam_{}, gbpmpam_{};
    std::atomic<std::uint64_t> strtab_base_{}, eventq_base_{}, priq_base_{};
    std::atomic<bool> last_only_{false};
    std::array<command_registers, command_queues> commands_{};
    std::array<irq_configuration, 3> irq_{};
    atos_request atos_{};
    std::uint64_t atos_result_ = 0;
    bool atos_runs_ = false;
};

} // namespace vm_accel::inline v0
