/// Strict mode for register accesses: which of them a driver should not make.
#pragma once

#include <vm_accel/smmu/control/queue_index.hpp>
#include <vm_accel/smmu/control/register_file.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/smmu/vocabulary/lint.hpp>
#include <vm_accel/spec/registers.hpp>

#include <cstdint>

namespace vm_accel::inline v0 {

/// Looks at an access before it is made. Threads: under the control lock.
template <smmu_features F, class Report>
class register_lint {
    using u64 = std::uint64_t;
    using u32 = std::uint32_t;

public:
    register_lint(const register_file<F>& registers, Report& report) noexcept
        : registers_(registers), report_(report) {}

    void before_read(u64 offset, unsigned size) noexcept { (void)row_of(offset, size); }

    /// `sync_owed`: invalidations have been executed that no CMD_SYNC followed.
    void before_write(u64 offset, unsigned size, u64 value, bool sync_owed) noexcept {
        const spec::register_row* const row = row_of(offset, size);
        if (row == nullptr) return;
        if (row->access == spec::register_access::read_only) {
            tell(lint_rule::read_only_register, offset, value, registers_.read(offset, size));
            return;
        }
        const u64 now = registers_.read(offset, size);
        const u32 at = row->offset;
        if (value != now && is_locked(at)) {
            tell(lint_rule::locked_register, offset, value, now);
            return;
        }
        namespace reg = spec::reg;
        if (at == reg::CR0)
            before_enable(static_cast<u32>(value), static_cast<u32>(now), sync_owed);
        if (at == reg::CMDQ_PROD) {
            indices(at, reg::CMDQ_BASE, F.command_queue_log2, value, read(reg::CMDQ_CONS), value);
        }
        if (at == reg::EVENTQ_CONS) {
            indices(at, reg::EVENTQ_BASE, F.event_queue_log2, read(reg::EVENTQ_PROD), value, value);
        }
        if (F.pri && at == reg::PRIQ_CONS) {
            indices(at, reg::PRIQ_BASE, F.page_request_queue_log2, read(reg::PRIQ_PROD), value,
                    value);
        }
    }

private:
    void tell(lint_rule rule, u64 where, u64 what, u64 instead) noexcept {
        report_.report({.rule = rule, .where = where, .what = what, .instead = instead});
    }
    [[nodiscard]] u64 read(u32 offset) const noexcept {
        const spec::register_row* const row = spec::find_register(offset);
        return row == nullptr ? 0 : registers_.read(offset, row->width);
    }

    /// The register that the access meets; null = none as it should be met. The
    /// page of enhanced command queues is not looked at.
    [[nodiscard]] const spec::register_row* row_of(u64 offset, unsigned size) noexcept {
        if (offset >= spec::mmio_size) return nullptr;
        const u64 at = offset & (spec::mmio_page_size - 1);
        const spec::register_row* row = spec::find_register(at);
        if (row == nullptr) row = spec::find_register(at + spec::mmio_page_size);
        if (row == nullptr) {
            tell(lint_rule::unknown_register, offset, size, 0);
        } else if ((size != 4 && size != 8) || offset % size != 0 || size > row->width) {
            tell(lint_rule::ill_formed_access, offset, size, row->width);
            row = nullptr;
        }
        return row;
    }

    [[nodiscard]] bool is_locked(u32 at) const noexcept {
        namespace reg = spec::reg;
        const u64 enabled = read(reg::CR0) | read(reg::CR0ACK);
        const u64 interrupts = read(reg::IRQ_CTRL);
        const auto by = [&](u64 mask) { return (enabled & mask) != 0; };
        const auto irq = [&](u64 mask) { return (interrupts & mask) != 0; };
        switch (at) {
        case reg::STRTAB_BASE:
        case reg::STRTAB_BASE_CFG:
        case reg::CR2:
            return by(spec::CR0::SMMUEN::mask);
        case reg::CMDQ_BASE:
        case reg::CMDQ_CONS:
            return by(spec::CR0::CMDQEN::mask);
        case reg::EVENTQ_BASE:
        case reg::EVENTQ_PROD:
            return by(spec::CR0::EVENTQEN::mask);
        case reg::PRIQ_BASE:
        case reg::PRIQ_PROD:
            return by(spec::CR0::PRIQEN::mask);
        case reg::GERROR_IRQ_CFG0:
        case reg::GERROR_IRQ_CFG1:
        case reg::GERROR_IRQ_CFG2:
            return irq(spec::IRQ_CTRL::GERROR_IRQEN::mask);
        case reg::EVENTQ_IRQ_CFG0:
        case reg::EVENTQ_IRQ_CFG1:
        case reg::EVENTQ_IRQ_CFG2:
            return irq(spec::IRQ_CTRL::EVENTQ_IRQEN::mask);
        case reg::PRIQ_IRQ_CFG0:
        case reg::PRIQ_IRQ_CFG1:
        case reg::PRIQ_IRQ_CFG2:
            return irq(spec::IRQ_CTRL::PRIQ_IRQEN::mask);
        default:
            return false;
        }
    }

    /// What a driver is about to switch on has to be in order.
    void before_enable(u32 value, u32 now, bool sync_owed) noexcept {
        namespace reg = spec::reg;
        const u32 rising = value & ~now;
        if ((rising & spec::CR0::SMMUEN::mask) != 0) stream_table();
        if ((rising & spec::CR0::CMDQEN::mask) != 0) {
            queue(reg::CMDQ_BASE, F.command_queue_log2, 16);
        }
        if ((rising & spec::CR0::EVENTQEN::mask) != 0) {
            queue(reg::EVENTQ_BASE, F.event_queue_log2, 32);
        }
        if (F.pri && (rising & spec::CR0::PRIQEN::mask) != 0) {
            queue(reg::PRIQ_BASE, F.page_request_queue_log2, 16);
        }
        constexpr auto ends = static_cast<u32>(spec::CR0::SMMUEN::mask | spec::CR0::CMDQEN::mask);
        if (sync_owed && ((value ^ now) & ends) != 0) {
            tell(lint_rule::sync_missing, reg::CR0, value, now);
        }
    }

    void queue(u32 base_register, unsigned largest, unsigned entry_bytes) noexcept {
        const u64 base = read(base_register);
        const u64 log2size = spec::CMDQ_BASE::LOG2SIZE::of(base);
        if (log2size > largest) {
            tell(lint_rule::oversized_queue, base_register, log2size, largest);
        }
        const u64 used = queue_place::of(base, largest, entry_bytes).base;
        const u64 given = base & spec::CMDQ_BASE::ADDR::mask;
        if (used != given) tell(lint_rule::unaligned_queue, base_register, given, used);
    }

    void stream_table() noexcept {
        using CFG = spec::STRTAB_BASE_CFG;
        const u64 shape = read(spec::reg::STRTAB_BASE_CFG);
        u64 log2size = CFG::LOG2SIZE::of(shape);
        const u64 split = CFG::SPLIT::of(shape);
        const u64 format = CFG::FMT::of(shape);
        if (log2size > F.stream_bits) {
            tell(lint_rule::oversized_table, spec::reg::STRTAB_BASE_CFG, log2size, F.stream_bits);
            log2size = F.stream_bits;
        }
        const bool two_level = format == CFG::FMT_2lvl;
        if (format > CFG::FMT_2lvl || (two_level && split != 6 && split != 8 && split != 10) ||
            (two_level && !F.two_level_stream_table)) {
            tell(lint_rule::reserved_shape, spec::reg::STRTAB_BASE_CFG, shape, 0);
            return;
        }
        const u64 level1_bits = log2size > split ? log2size - split : 0;
        u64 bytes = two_level ? u64{8} << level1_bits : u64{64} << log2size;
        if (bytes < 64) bytes = 64;
        const u64 base = read(spec::reg::STRTAB_BASE) & spec::STRTAB_BASE::ADDR::mask;
        if ((base & (bytes - 1)) != 0) {
            tell(lint_rule::unaligned_table, spec::reg::STRTAB_BASE, base, base & ~(bytes - 1));
        }
    }

    /// Between CONS and PROD there are at most as many entries as the queue has.
    void indices(u32 at, u32 base_register, unsigned largest, u64 prod, u64 cons,
                 u64 written) noexcept {
        const queue_shape shape = queue_place::of(read(base_register), largest, 16).shape;
        const u32 ahead = shape.position(shape.position(static_cast<u32>(prod)) -
                                         shape.position(static_cast<u32>(cons)));
        const u32 entries = u32{1} << shape.log2size;
        if (ahead > entries) tell(lint_rule::index_beyond_queue, at, written, entries);
    }

    const register_file<F>& registers_;
    Report& report_;
};

} // namespace vm_accel::inline v0
