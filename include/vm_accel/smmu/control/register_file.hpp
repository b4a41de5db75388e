/// The SMMU's registers (IHI 0070, chapter 6): what is stored, what is locked,
/// what a write sets in motion.
#pragma once

#include <vm_accel/smmu/control/id_registers.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/spec/registers.hpp>

#include <atomic>
#include <cstdint>

namespace vm_accel::inline v0 {

/// What a register write asks of the rest of the SMMU.
struct register_effect {
    bool commands_waiting = false; ///< the command queue may have work
    bool enables_changed = false;  ///< CR0 changed: acknowledge when in-flight work is done
    bool streams_changed = false;  ///< every cached configuration is out of date
    bool bypass_changed = false;   ///< GBPA.UPDATE: acknowledge likewise
};

/// Threads: read and write are called under the SMMU's control lock. Device
/// threads read the live values (all atomic) and toggle errors without it.
///
/// Page 1 repeats page 0: either page reaches every register, as the
/// architecture leaves to the implementation (6.1). Accesses of another size
/// than the register's are ignored or read as zero, but that either half of a
/// 64-bit register may be accessed by itself.
template <smmu_features F>
class register_file {
public:
    register_file() noexcept { reset(); }

    void reset() noexcept {
        for (auto* r :
             {&cr0_, &cr0_ack_, &cr1_, &cr2_, &gbpa_, &irq_ctrl_, &gerror_, &gerrorn_,
              &strtab_base_cfg_, &cmdq_prod_, &cmdq_cons_, &eventq_prod_, &eventq_cons_}) {
            r->store(0, std::memory_order_relaxed);
        }
        for (auto* r : {&strtab_base_, &cmdq_base_, &eventq_base_}) {
            r->store(0, std::memory_order_relaxed);
        }
        // Untranslated transactions keep the shareability they come with.
        gbpa_.store(spec::GBPA::SHCFG::in_place(1), std::memory_order_relaxed);
        for (irq_configuration& irq : irq_)
            irq = {};
    }

    /// Everything off, nothing else changed.
    void disable() noexcept { put(cr0_, 0); }

    /// Reads `size` bytes (4 or 8); unknown offsets and sizes read as zero.
    [[nodiscard]] std::uint64_t read(std::uint64_t offset, unsigned size) const noexcept {
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
    [[nodiscard]] bool bypass_aborts() const noexcept {
        return spec::GBPA::ABORT::of(gbpa_.load(std::memory_order_relaxed)) != 0;
    }
    [[nodiscard]] bool records_bad_stream_id() const noexcept {
        return spec::CR2::RECINVSID::of(cr2_.load(std::memory_order_relaxed)) != 0;
    }
    [[nodiscard]] std::uint64_t stream_table_base() const noexcept {
        return strtab_base_.load(std::memory_order_relaxed);
    }
    [[nodiscard]] std::uint32_t stream_table_shape() const noexcept {
        return strtab_base_cfg_.load(std::memory_order_relaxed);
    }
    [[nodiscard]] std::uint64_t command_queue_base() const noexcept {
        return cmdq_base_.load(std::memory_order_relaxed);
    }
    [[nodiscard]] std::uint64_t event_queue_base() const noexcept {
        return eventq_base_.load(std::memory_order_relaxed);
    }
    [[nodiscard]] std::atomic<std::uint32_t>& command_prod() noexcept { return cmdq_prod_; }
    [[nodiscard]] std::atomic<std::uint32_t>& command_cons() noexcept { return cmdq_cons_; }
    [[nodiscard]] std::atomic<std::uint32_t>& event_prod() noexcept { return eventq_prod_; }
    [[nodiscard]] std::atomic<std::uint32_t>& event_cons() noexcept { return eventq_cons_; }
    [[nodiscard]] bool eventq_interrupt_enabled() const noexcept {
        return irq<spec::IRQ_CTRL::EVENTQ_IRQEN>();
    }
    [[nodiscard]] bool gerror_interrupt_enabled() const noexcept {
        return irq<spec::IRQ_CTRL::GERROR_IRQEN>();
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
        case reg::IDR3:
            return ids::IDR3;
        case reg::IDR5:
            return ids::IDR5;
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
            return cmdq_base_.load(order);
        case reg::CMDQ_PROD:
            return cmdq_prod_.load(order);
        case reg::CMDQ_CONS:
            return cmdq_cons_.load(order);
        case reg::EVENTQ_BASE:
            return eventq_base_.load(order);
        case page0(reg::EVENTQ_PROD):
            return eventq_prod_.load(order);
        case page0(reg::EVENTQ_CONS):
            return eventq_cons_.load(order);
        case reg::GERROR_IRQ_CFG0:
            return irq_[0].cfg0;
        case reg::GERROR_IRQ_CFG1:
            return irq_[0].cfg1;
        case reg::GERROR_IRQ_CFG2:
            return irq_[0].cfg2;
        case reg::EVENTQ_IRQ_CFG0:
            return irq_[1].cfg0;
        case reg::EVENTQ_IRQ_CFG1:
            return irq_[1].cfg1;
        case reg::EVENTQ_IRQ_CFG2:
            return irq_[1].cfg2;
        default:
            return 0; // of features that are not advertised: PRI, ATOS, ECMDQ...
        }
    }

    [[nodiscard]] register_effect store(std::uint32_t at, std::uint64_t value) noexcept {
        namespace reg = spec::reg;
        register_effect effect;
        const auto low = static_cast<std::uint32_t>(value);
        const std::uint32_t enabled =
            cr0_.load(std::memory_order_relaxed) | cr0_ack_.load(std::memory_order_relaxed);
        const bool smmu_idle = spec::CR0::SMMUEN::of(enabled) == 0;
        const bool commands_idle = spec::CR0::CMDQEN::of(enabled) == 0;
        const bool events_idle = spec::CR0::EVENTQEN::of(enabled) == 0;
        switch (at) {
        case reg::CR0:
            return write_cr0(low);
        case reg::CR1:
            put(cr1_, low & 0xfff);
            break;
        case reg::CR2:
            // E2H is for devices with Hyp; PTM and RECINVSID are stored.
            if (smmu_idle) put(cr2_, low & (F.hyp ? 0x7 : 0x6));
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
            put(irq_ctrl_, low & 0x5);
            break; // no PRI queue
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
            if (commands_idle) cmdq_base_.store(value & queue_mask, std::memory_order_release);
            break;
        case reg::CMDQ_PROD:
            put(cmdq_prod_, low & 0xf'ffff);
            effect.commands_waiting = true;
            break;
        case reg::CMDQ_CONS:
            if (commands_idle) put(cmdq_cons_, low & 0x7f0f'ffff);
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
        case reg::GERROR_IRQ_CFG0:
            write_irq(irq_[0], 0, value);
            break;
        case reg::GERROR_IRQ_CFG1:
            write_irq(irq_[0], 1, value);
            break;
        case reg::GERROR_IRQ_CFG2:
            write_irq(irq_[0], 2, value);
            break;
        case reg::EVENTQ_IRQ_CFG0:
            write_irq(irq_[1], 0, value);
            break;
        case reg::EVENTQ_IRQ_CFG1:
            write_irq(irq_[1], 1, value);
            break;
        case reg::EVENTQ_IRQ_CFG2:
            write_irq(irq_[1], 2, value);
            break;
        default:
            break; // of features that are not advertised: PRI queue, ATOS, AGBPA
        }
        return effect;
    }

    [[nodiscard]] register_effect write_cr0(std::uint32_t value) noexcept {
        // PRIQEN, ATSCHK and VMW belong to features that are not advertised.
        constexpr auto implemented = static_cast<std::uint32_t>(
            spec::CR0::SMMUEN::mask | spec::CR0::EVENTQEN::mask | spec::CR0::CMDQEN::mask);
        const std::uint32_t old = cr0_.load(std::memory_order_relaxed);
        const std::uint32_t now = value & implemented;
        put(cr0_, now);
        register_effect effect;
        effect.enables_changed = old != now;
        effect.streams_changed = spec::CR0::SMMUEN::of(old ^ now) != 0;
        effect.commands_waiting = spec::CR0::CMDQEN::of(now) != 0;
        return effect;
    }

    /// MSI settings are stored and unused: IDR0.MSI is 0, interrupts are wired.
    void write_irq(irq_configuration& irq, int which, std::uint64_t value) noexcept {
        const std::uint64_t enable = &irq == &irq_[0] ? spec::IRQ_CTRL::GERROR_IRQEN::mask
                                                      : spec::IRQ_CTRL::EVENTQ_IRQEN::mask;
        if ((irq_ctrl_.load(std::memory_order_relaxed) & enable) != 0) return;
        if (which == 0) irq.cfg0 = value & spec::IRQ_CFG0::ADDR::mask;
        if (which == 1) irq.cfg1 = static_cast<std::uint32_t>(value);
        if (which == 2) irq.cfg2 = static_cast<std::uint32_t>(value & 0x3f);
    }

    [[nodiscard]] std::uint32_t acknowledged(std::uint32_t written) const noexcept {
        const std::uint32_t old = gerrorn_.load(std::memory_order_relaxed);
        const std::uint32_t active = old ^ gerror_.load(std::memory_order_acquire);
        return old ^ ((old ^ written) & active);
    }

    static void put(std::atomic<std::uint32_t>& r, std::uint32_t value) noexcept {
        r.store(value, std::memory_order_release);
    }

    static constexpr std::uint64_t base_mask =
        spec::STRTAB_BASE::ADDR::mask | spec::STRTAB_BASE::RA::mask;
    static constexpr std::uint64_t queue_mask =
        spec::CMDQ_BASE::ADDR::mask | spec::CMDQ_BASE::RA::mask | spec::CMDQ_BASE::LOG2SIZE::mask;

    std::atomic<std::uint32_t> cr0_{}, cr0_ack_{}, cr1_{}, cr2_{}, gbpa_{}, irq_ctrl_{};
    std::atomic<std::uint32_t> gerror_{}, gerrorn_{}, strtab_base_cfg_{};
    std::atomic<std::uint32_t> cmdq_prod_{}, cmdq_cons_{}, eventq_prod_{}, eventq_cons_{};
    std::atomic<std::uint64_t> strtab_base_{}, cmdq_base_{}, eventq_base_{};
    irq_configuration irq_[2]{};
};

} // namespace vm_accel::inline v0
