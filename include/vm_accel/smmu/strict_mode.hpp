/// Strict mode at work: who looks, and when.
#pragma once

#include <vm_accel/smmu/control/register_lint.hpp>
#include <vm_accel/smmu/host/attachment.hpp>
#include <vm_accel/smmu/translation/stream_resolver.hpp>
#include <vm_accel/smmu/translation/structure_lint.hpp>
#include <vm_accel/smmu/translation/walk.hpp>
#include <vm_accel/smmu/vocabulary/lint.hpp>
#include <vm_accel/smmu/vocabulary/outcome.hpp>
#include <vm_accel/smmu/vocabulary/statistics.hpp>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace vm_accel::inline v0 {

/// Looks at register accesses before they are made, at cached configurations
/// when a CMD_SYNC has completed, and at each access of a device. `Parts` is the
/// SMMU's assembly, passed for the time of one call.
///
/// Threads: check_access from device threads, inside their guards; the rest
/// under the control lock.
template <lint_policy Policy>
class strict_mode {
public:
    static constexpr bool enabled = true;

    [[nodiscard]] Policy& policy() noexcept { return policy_; }

    template <class Parts>
    void before_read(Parts& parts, std::uint64_t offset, unsigned size) noexcept {
        register_lint<Parts::F, Policy>{parts.registers, policy_}.before_read(offset, size);
    }
    template <class Parts>
    void before_write(Parts& parts, std::uint64_t offset, unsigned size,
                      std::uint64_t value) noexcept {
        register_lint<Parts::F, Policy>{parts.registers, policy_}.before_write(
            offset, size, value, parts.control.owes_sync());
    }

    /// After commands may have been executed. What is cached has to be what is
    /// in memory, but for structures that the driver is changing at this moment:
    /// so a difference counts when it is still there at the next CMD_SYNC.
    template <class Parts>
    void after_commands(Parts& parts) noexcept {
        if (parts.control.syncs() == syncs_) return;
        syncs_ = parts.control.syncs();
        suspects found;
        const stream_table_registers registers = parts.stream_registers();
        parts.attachments.for_each([&](const attachment_record& record) {
            if (record.subject.managed || record.subject.detached.load(std::memory_order_relaxed))
                return;
            check_slot(parts, registers, record, record.slot, found);
            if (record.substream_slots == nullptr) return;
            for (std::size_t i = 0; i <= record.substream_mask; ++i)
                check_slot(parts, registers, record, record.substream_slots[i], found);
        });
        suspects_ = found;
    }

    /// After an access has been translated: the tables have to say the same.
    template <class Parts>
    void check_access(Parts& parts, attachment_record& record, const transaction& asked,
                      const outcome& given) noexcept {
        if ((!given.is_span() && !given.is_mmio()) || record.subject.managed) return;
        const std::uint64_t before = consumed(parts);
        const outcome fresh = probe(parts, record, asked);
        if (agree(given, fresh)) {
            remember(record.subject.stream, asked, raw(given.address()), before);
            return;
        }
        // The driver may be in the middle of it: commands that wait, tables that
        // change, a configuration that has its own rule.
        port_counters unused;
        typename Parts::views_type unused_views;
        translation_fault fault;
        const outcome again = parts.translate_unchecked(record, asked, unused, unused_views, fault);
        if (!agree(again, given) || !same(probe(parts, record, asked), fresh) ||
            consumed(parts) != before || !is_idle(parts) || !is_configured(parts, record, asked)) {
            return;
        }
        policy_.report({.rule = lint_rule::translation_changed,
                        .stream = record.subject.stream,
                        .where = raw(asked.address),
                        .what = raw(given.address()),
                        .instead = fresh.is_fault() ? 0 : raw(fresh.address())});
    }

private:
    struct suspect {
        const configuration_slot* slot = nullptr;
        const stream_configuration* cached = nullptr;
    };
    /// What differs now; a difference that finds no room here is not judged.
    struct suspects {
        std::array<suspect, 64> of{};
        std::size_t count = 0;
        void add(const suspect& s) noexcept {
            if (count != of.size()) of[count++] = s;
        }
        [[nodiscard]] bool has(const suspect& s) const noexcept {
            for (std::size_t i = 0; i < count; ++i) {
                if (of[i].slot == s.slot && of[i].cached == s.cached) return true;
            }
            return false;
        }
    };
    /// The output of a page at its last translation.
    struct alignas(32) last_output {
        std::atomic<bool> taken{false};
        std::uint64_t page = 0;
        std::uint64_t output = 0;
        std::uint64_t consumed = 0;
        std::uint32_t stream = 0;
        std::uint32_t substream = 0;
        bool valid = false;
    };

    template <class Parts>
    [[nodiscard]] static bool decode(Parts& parts, const stream_table_registers& registers,
                                     const attachment_record& record, bool has_substream,
                                     substream_id substream, stream_configuration& out) noexcept {
        guest_tables tables{parts.own_memory(), false};
        resolve_request request{.stream = record.subject.stream,
                                .window = record.subject.window,
                                .incoming = record.subject.incoming};
        if (has_substream) request.substream = substream;
        return !resolve_stream<Parts::F>(tables, registers, request, out);
    }

    template <class Parts>
    void check_slot(Parts& parts, const stream_table_registers& registers,
                    const attachment_record& record, const configuration_slot& slot,
                    suspects& found) noexcept {
        const stream_configuration* const cached = slot.get();
        if (cached == nullptr) return;
        stream_configuration fresh;
        const bool legal =
            decode(parts, registers, record, cached->is_substream, cached->substream, fresh);
        if (legal && is_same_configuration(*cached, fresh)) {
            guest_tables tables{parts.own_memory(), false};
            check_alignment<Parts::F>(tables, registers, record.subject.stream, fresh, policy_);
            return;
        }
        const suspect s{&slot, cached};
        found.add(s);
        if (!suspects_.has(s)) return;
        policy_.report({.rule = lint_rule::configuration_changed,
                        .stream = record.subject.stream,
                        .where = cached->is_substream ? raw(cached->substream) : 0U,
                        .what = static_cast<std::uint64_t>(cached->mode),
                        .instead = static_cast<std::uint64_t>(fresh.mode)});
    }

    template <class Parts>
    [[nodiscard]] static outcome probe(Parts& parts, const attachment_record& record,
                                       const transaction& asked) noexcept {
        translation_fault fault;
        return parts.translate_by().probe(
            record.subject, asked, [&] { return parts.stream_registers(); }, fault);
    }
    [[nodiscard]] static bool agree(const outcome& given, const outcome& fresh) noexcept {
        return !fresh.is_fault() && !given.is_fault() && given.address() == fresh.address();
    }
    [[nodiscard]] static bool same(const outcome& a, const outcome& b) noexcept {
        return a.is_fault() == b.is_fault() && a.address() == b.address();
    }
    /// Whether the cached configuration is what memory says.
    template <class Parts>
    [[nodiscard]] static bool is_configured(Parts& parts, const attachment_record& record,
                                            const transaction& asked) noexcept {
        const stream_configuration* const cached = Parts::slot_of(record, asked).get();
        stream_configuration fresh;
        return cached != nullptr &&
               decode(parts, parts.stream_registers(), record, asked.has_substream, asked.substream,
                      fresh) &&
               is_same_configuration(*cached, fresh);
    }

    /// Changes whenever a command has been consumed.
    template <class Parts>
    [[nodiscard]] static std::uint64_t consumed(Parts& parts) noexcept {
        std::uint64_t sum = 0;
        for (unsigned n = 0; n < parts.registers.command_queues; ++n) {
            sum += parts.registers.commands(n).cons.load(std::memory_order_acquire) & index_bits;
        }
        return sum;
    }
    template <class Parts>
    [[nodiscard]] static bool is_idle(Parts& parts) noexcept {
        for (unsigned n = 0; n < parts.registers.command_queues; ++n) {
            const auto& queue = parts.registers.commands(n);
            const std::uint32_t apart = queue.prod.load(std::memory_order_acquire) ^
                                        queue.cons.load(std::memory_order_acquire);
            if ((apart & index_bits) != 0) return false;
        }
        return true;
    }

    /// A page may get another output only after its old one was taken away, and
    /// that takes an invalidation.
    void remember(stream_id stream, const transaction& asked, std::uint64_t output,
                  std::uint64_t at) noexcept {
        const std::uint64_t page = raw(asked.address) >> 12;
        const std::uint32_t substream = asked.has_substream ? raw(asked.substream) + 1 : 0;
        const std::uint64_t mixed = (page ^ raw(stream) * 0x9e37'79b9'7f4a'7c15) + substream;
        last_output& last = outputs_[mixed % outputs_.size()];
        if (last.taken.exchange(true, std::memory_order_acquire)) return; // somebody else's turn
        const std::uint64_t output_page = output >> 12;
        const bool known = last.valid && last.page == page && last.stream == raw(stream) &&
                           last.substream == substream;
        const bool broken = known && last.output != output_page && last.consumed == at;
        const std::uint64_t old = last.output;
        last.page = page;
        last.output = output_page;
        last.consumed = at;
        last.stream = raw(stream);
        last.substream = substream;
        last.valid = true;
        last.taken.store(false, std::memory_order_release);
        if (!broken) return;
        policy_.report({.rule = lint_rule::break_before_make,
                        .stream = stream,
                        .where = page << 12,
                        .what = output_page << 12,
                        .instead = old << 12});
    }

    static constexpr std::uint32_t index_bits = 0xf'ffff;

    Policy policy_{};
    std::uint64_t syncs_ = 0;
    suspects suspects_{};
    std::array<last_output, 1024> outputs_{};
};

/// Nobody looks.
template <lint_policy Policy>
    requires(!Policy::enabled)
class strict_mode<Policy> {
public:
    static constexpr bool enabled = false;
    template <class Parts>
    static void before_read(Parts&, std::uint64_t, unsigned) noexcept {}
    template <class Parts>
    static void before_write(Parts&, std::uint64_t, unsigned, std::uint64_t) noexcept {}
    template <class Parts>
    static void after_commands(Parts&) noexcept {}
};

} // namespace vm_accel::inline v0
