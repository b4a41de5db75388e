/// A Performance Monitor Counter Group (IHI 0070, chapter 10).
///
/// Nothing counts here: the ports count what they do anyway, and a counter of
/// the group is the difference between two sums. So an enabled counter costs
/// the devices nothing, and an overflow is noticed when somebody looks: at any
/// access to the group's registers, and in poll().
#pragma once

#include <vm_accel/smmu/vocabulary/interrupt_message.hpp>
#include <vm_accel/smmu/vocabulary/statistics.hpp>
#include <vm_accel/spec/pmcg.hpp>
#include <vm_accel/spec/register_fields.hpp>

#include <array>
#include <bit>
#include <concepts>
#include <cstdint>

namespace vm_accel::inline v0 {

/// Meaning: totals(filter) sums what the streams that the filter matches have
/// done since some moment in the past; it never goes back, but for streams of
/// which performance_monitor::forget() has been told. clock() counts cycles.
template <class S>
concept event_source = requires(S& source, const stream_filter& filter) {
    { source.totals(filter) } noexcept -> std::same_as<event_totals>;
    { source.clock() } noexcept -> std::same_as<std::uint64_t>;
};

/// What a group is made with.
struct performance_monitor_shape {
    unsigned counters = 8;     ///< 1 to 64, each 64 bits wide
    unsigned stream_bits = 16; ///< width of a StreamID
    bool ats = false;          ///< events 6 and 7
    bool msi = false;          ///< overflow may be a message
    bool relocated = false;    ///< counters and overflow status on page 1
    std::uint32_t aidr = 0;    ///< version of the architecture, as SMMU_AIDR
};

/// The group's registers. Threads: all under the SMMU's control lock.
template <performance_monitor_shape Shape>
class performance_monitor {
    static_assert(Shape.counters >= 1 && Shape.counters <= spec::pmcg::max_counters);
    static_assert(Shape.stream_bits >= 1 && Shape.stream_bits <= 32);

public:
    /// Bytes of the register window: page 0, then page 1 if there is one.
    static constexpr std::uint64_t window_size = spec::pmcg::page_size * (Shape.relocated ? 2 : 1);

    /// How an overflow is to be told.
    struct interrupt {
        bool wired = false;
        interrupt_message message{};
        [[nodiscard]] constexpr bool wanted() const noexcept { return wired || message; }
    };

    void reset() noexcept { *this = {}; }

    /// Reads 4 or 8 bytes; unknown offsets and sizes read as zero.
    template <event_source Source>
    [[nodiscard]] std::uint64_t read(std::uint64_t offset, unsigned size, Source& source) noexcept {
        const place at = find(offset, size);
        if (at.width == 0) return 0;
        settle(source);
        const std::uint64_t value = load(at);
        return size == 8 ? value : value >> at.shift & 0xffff'ffff;
    }

    /// Writes 4 or 8 bytes. What is read-only, unknown or locked is ignored.
    template <event_source Source>
    void write(std::uint64_t offset, unsigned size, std::uint64_t value, Source& source) noexcept {
        const place at = find(offset, size);
        if (at.width == 0) return;
        settle(source);
        std::uint64_t lanes = ~std::uint64_t{0};
        if (size != 8) {
            lanes = std::uint64_t{0xffff'ffff} << at.shift;
            value = (value & 0xffff'ffff) << at.shift;
        }
        store(at, value, lanes);
        // Whatever the write has changed counts from here.
        for (unsigned n = 0; n < Shape.counters; ++n)
            counters_[n].base = sum(n, source);
    }

    /// Looks at the counters: overflows that have happened are noticed.
    template <event_source Source>
    void settle(Source& source) noexcept {
        if (!spec::pmcg::CR_fields::E::of(control_)) return;
        std::uint64_t overflowed = 0;
        for (unsigned n = 0; n < Shape.counters; ++n) {
            if ((enabled_ >> n & 1) == 0) continue;
            counter_state& c = counters_[n];
            const std::uint64_t now = sum(n, source);
            const std::uint64_t counted = now - c.base;
            c.base = now;
            c.value += counted;
            if (c.value < counted) overflowed |= std::uint64_t{1} << n;
        }
        if (overflowed != 0) overflow(overflowed);
    }

    /// A stream's totals are about to vanish from the source's sums.
    void forget(std::uint32_t stream, const event_totals& totals) noexcept {
        for (unsigned n = 0; n < Shape.counters; ++n) {
            counter_state& c = counters_[n];
            const std::uint64_t event = spec::pmcg::EVTYPER::EVENT::of(c.type);
            if (event < totals.of.size() && filter(n).matches(stream)) c.base -= totals.of[event];
        }
    }

    /// Whether an interrupt waits to be delivered; taking it forgets it.
    [[nodiscard]] interrupt take_interrupt() noexcept {
        interrupt out;
        if (!interrupt_wanted_) return out;
        interrupt_wanted_ = false;
        const std::uint64_t address = irq_address_ & spec::IRQ_CFG0::ADDR::mask;
        if (Shape.msi && address != 0) {
            out.message = {address, irq_data_};
        } else {
            out.wired = true;
        }
        return out;
    }
    /// The message could not be written.
    void message_aborted() noexcept { irq_status_ = spec::pmcg::IRQ_STATUS_fields::IRQ_ABT::mask; }

    /// See saved_state.hpp. To be settled before, and rebased after a restore.
    template <class Visit>
    void visit_state(Visit& visit) noexcept {
        constexpr std::uint64_t any64 = ~std::uint64_t{0};
        for (counter_state& c : counters_) {
            visit(c.value, any64);
            visit(c.shadow, any64);
            visit(c.type, 0xa000'ffff);
            visit(c.match, stream_mask);
        }
        for (auto* bits : {&enabled_, &interrupts_, &overflowed_})
            visit(*bits, all_counters);
        visit(irq_address_, spec::IRQ_CFG0::ADDR::mask);
        visit(irq_data_, 0xffff'ffff);
        visit(irq_attributes_, 0x3f);
        visit(irq_control_, 1);
        visit(irq_status_, 1);
        visit(control_, 1);
        visit(interrupt_wanted_, 1);
    }
    /// After a restore: counting goes on from the sums of this moment.
    template <event_source Source>
    void rebase(Source& source) noexcept {
        for (unsigned n = 0; n < Shape.counters; ++n)
            counters_[n].base = sum(n, source);
    }

private:
    static constexpr std::uint64_t all_counters =
        Shape.counters == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << Shape.counters) - 1;
    static constexpr std::uint32_t stream_mask =
        static_cast<std::uint32_t>((std::uint64_t{1} << Shape.stream_bits) - 1);

    struct counter_state {
        std::uint64_t value = 0;  ///< up to the last look
        std::uint64_t base = 0;   ///< the sum at the last look
        std::uint64_t shadow = 0; ///< SVR
        std::uint32_t type = 0;   ///< EVTYPER
        std::uint32_t match = 0;  ///< SMR
    };

    /// Which register an access meets: `array` and index, or a single register.
    struct place {
        std::uint32_t base = 0; ///< offset of the register or of its array
        unsigned index = 0;     ///< within the array
        unsigned width = 0;     ///< bytes, 0 = nothing there
        unsigned shift = 0;     ///< of the half of 8 bytes that is accessed
    };

    [[nodiscard]] static constexpr bool is_relocated(std::uint32_t at) noexcept {
        using namespace spec::pmcg;
        return at < EVCNTR0 + 8 * max_counters || (at >= SVR0 && at < SVR0 + 8 * max_counters) ||
               (at & ~7U) == OVSCLR0 || (at & ~7U) == OVSSET0 || at == CAPR;
    }

    [[nodiscard]] static constexpr place find(std::uint64_t offset, unsigned size) noexcept {
        using namespace spec::pmcg;
        if (offset >= window_size || (size != 4 && size != 8) || offset % size != 0) return {};
        const auto at = static_cast<std::uint32_t>(offset % page_size);
        const bool page1 = offset >= page_size;
        if (Shape.relocated && is_relocated(at) != page1) return {};
        const auto array = [&](std::uint32_t base, unsigned width) -> place {
            if (at < base || at >= base + width * Shape.counters) return {};
            if (size > width) return {};
            return {base, (at - base) / width, width, (at % width) * 8};
        };
        for (const place& p :
             {array(EVCNTR0, 8), array(EVTYPER0, 4), array(SVR0, 8), array(SMR0, 4)}) {
            if (p.width != 0) return p;
        }
        for (const std::uint32_t base : {CNTENSET0, CNTENCLR0, INTENSET0, INTENCLR0, OVSCLR0,
                                         OVSSET0, CEID0, CEID1, IRQ_CFG0}) {
            if ((at & ~7U) == base) return {base, 0, 8, at % 8 * 8};
        }
        for (const std::uint32_t base :
             {CAPR, CFGR, CR, IRQ_CTRL, IRQ_CTRLACK, IRQ_CFG1, IRQ_CFG2, IRQ_STATUS, AIDR}) {
            if (at == base && size == 4) return {base, 0, 4, 0};
        }
        return {}; // SCR is of the secure state; IIDR 0 = not implemented
    }

    [[nodiscard]] std::uint64_t load(const place& at) const noexcept {
        using namespace spec::pmcg;
        switch (at.base) {
        case EVCNTR0:
            return counters_[at.index].value;
        case SVR0:
            return counters_[at.index].shadow;
        case EVTYPER0:
            return counters_[at.index].type;
        case SMR0:
            return counters_[at.index].match;
        case CNTENSET0:
        case CNTENCLR0:
            return enabled_;
        case INTENSET0:
        case INTENCLR0:
            return interrupts_;
        case OVSSET0:
        case OVSCLR0:
            return overflowed_;
        case CFGR:
            return CFGR_fields::NCTR::in_place(Shape.counters - 1) |
                   CFGR_fields::SIZE::in_place(63) |
                   (Shape.relocated ? CFGR_fields::RELOC_CTRS::mask : 0) |
                   (Shape.msi ? CFGR_fields::MSI::mask : 0) | CFGR_fields::CAPTURE::mask;
        case CR:
            return control_;
        case CEID0:
            return Shape.ats ? 0xff : 0x3f;
        case IRQ_CTRL:
        case IRQ_CTRLACK:
            return irq_control_;
        case IRQ_CFG0:
            return irq_address_;
        case IRQ_CFG1:
            return irq_data_;
        case IRQ_CFG2:
            return irq_attributes_;
        case IRQ_STATUS:
            return irq_status_;
        case AIDR:
            return Shape.aidr;
        default:
            return 0; // CAPR, CEID1
        }
    }

    /// `lanes`: the bits that are written.
    void store(const place& at, std::uint64_t value, std::uint64_t lanes) noexcept {
        using namespace spec::pmcg;
        const auto low = static_cast<std::uint32_t>(value);
        const bool irq_locked = irq_control_ != 0 || !Shape.msi;
        switch (at.base) {
        case EVCNTR0:
            counters_[at.index].value = (counters_[at.index].value & ~lanes) | value;
            break;
        case EVTYPER0:
            counters_[at.index].type =
                low &
                static_cast<std::uint32_t>(EVTYPER::EVENT::mask | EVTYPER::FILTER_SID_SPAN::mask |
                                           EVTYPER::OVFCAP::mask);
            break;
        case SMR0:
            counters_[at.index].match = low & stream_mask;
            break;
        case CNTENSET0:
            enabled_ |= value & all_counters;
            break;
        case CNTENCLR0:
            enabled_ &= ~value;
            break;
        case INTENSET0:
            interrupts_ |= value & all_counters;
            break;
        case INTENCLR0:
            interrupts_ &= ~value;
            break;
        case OVSSET0:
            // The side effects of an overflow are optional here, and left out.
            overflowed_ |= value & all_counters;
            break;
        case OVSCLR0:
            overflowed_ &= ~value;
            break;
        case CAPR:
            if ((low & 1) != 0) capture();
            break;
        case CR:
            control_ = low & static_cast<std::uint32_t>(CR_fields::E::mask);
            break;
        case IRQ_CTRL:
            if ((low & 1) != 0 && irq_control_ == 0) irq_status_ = 0;
            if ((low & 1) == 0) interrupt_wanted_ = false;
            irq_control_ = low & static_cast<std::uint32_t>(IRQ_CTRL_fields::IRQEN::mask);
            break;
        case IRQ_CFG0:
            if (!irq_locked) {
                irq_address_ = ((irq_address_ & ~lanes) | value) & spec::IRQ_CFG0::ADDR::mask;
            }
            break;
        case IRQ_CFG1:
            if (!irq_locked) irq_data_ = low;
            break;
        case IRQ_CFG2:
            if (!irq_locked) irq_attributes_ = low & 0x3f;
            break;
        default:
            break;
        }
    }

    /// The StreamIDs that counter n is for (10.4).
    [[nodiscard]] stream_filter filter(unsigned n) const noexcept {
        const counter_state& c = counters_[n];
        if (spec::pmcg::EVTYPER::FILTER_SID_SPAN::of(c.type) == 0) {
            return {~std::uint32_t{0}, c.match};
        }
        if (c.match == stream_mask) return {0, 0};
        // The lowest zero is the highest bit that is ignored.
        const auto ignored = static_cast<unsigned>(std::countr_one(c.match)) + 1;
        const std::uint32_t mask = ignored >= 32 ? 0 : ~std::uint32_t{0} << ignored;
        return {mask & stream_mask, c.match};
    }

    template <event_source Source>
    [[nodiscard]] std::uint64_t sum(unsigned n, Source& source) const noexcept {
        const std::uint64_t event = spec::pmcg::EVTYPER::EVENT::of(counters_[n].type);
        const bool counting = control_ != 0 && (enabled_ >> n & 1) != 0;
        if (!counting || event >= (Shape.ats ? 8U : 6U)) return 0;
        if (event == 0) return source.clock();
        return source.totals(filter(n)).of[event];
    }

    void overflow(std::uint64_t which) noexcept {
        overflowed_ |= which;
        if (irq_control_ != 0 && (which & interrupts_) != 0) interrupt_wanted_ = true;
        for (unsigned n = 0; n < Shape.counters; ++n) {
            if ((which >> n & 1) != 0 && spec::pmcg::EVTYPER::OVFCAP::of(counters_[n].type) != 0) {
                capture();
                return;
            }
        }
    }
    void capture() noexcept {
        for (counter_state& c : counters_)
            c.shadow = c.value;
    }

    std::array<counter_state, Shape.counters> counters_{};
    std::uint64_t enabled_ = 0;    ///< CNTEN
    std::uint64_t interrupts_ = 0; ///< INTEN
    std::uint64_t overflowed_ = 0; ///< OVS
    std::uint64_t irq_address_ = 0;
    std::uint32_t irq_data_ = 0;
    std::uint32_t irq_attributes_ = 0;
    std::uint32_t irq_control_ = 0;
    std::uint32_t irq_status_ = 0;
    std::uint32_t control_ = 0; ///< CR
    bool interrupt_wanted_ = false;
};

} // namespace vm_accel::inline v0
