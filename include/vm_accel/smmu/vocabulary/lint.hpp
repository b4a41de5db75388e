/// Strict mode: a driver's mistakes that hardware lets pass.
///
/// An SMMU ignores a write to a locked register, cuts an address that is not
/// aligned, and goes on using what its caches hold. The guest then works, until
/// it does not. Here each such mistake is reported, with what, where and which
/// rule, and everything else goes on as ever.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/fixed_text.hpp>

#include <array>
#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace vm_accel::inline v0 {

/// What was violated. Sections are of IHI 0070.
enum class lint_rule : std::uint8_t {
    unknown_register,      ///< 6.1: nothing is at this offset
    ill_formed_access,     ///< 6.2: another size or alignment than the register has
    read_only_register,    ///< 6.3: written
    locked_register,       ///< 6.3: written while an enable bit locks it, hence ignored
    unaligned_table,       ///< 5.1, 5.2, 5.4: a table's address has bits below its own size
    unaligned_queue,       ///< 6.3.26: likewise a queue's
    oversized_queue,       ///< 6.3.26: LOG2SIZE beyond what IDR1 offers
    oversized_table,       ///< 6.3.25: LOG2SIZE beyond IDR1.SIDSIZE
    reserved_shape,        ///< 6.3.25: a reserved FMT or SPLIT
    index_beyond_queue,    ///< 3.5.1: PROD or CONS moved past the other end
    sync_missing,          ///< 4.7: enables change while an invalidation has no CMD_SYNC yet
    configuration_changed, ///< 3.21: an STE or CD is not what is cached, and no CFGI came
    translation_changed,   ///< 3.21: a translation was used that the tables no longer give
    break_before_make,     ///< 3.21.1: a leaf got another output without a TLBI in between
};
inline constexpr std::size_t lint_rule_count = 14;

[[nodiscard]] constexpr std::string_view name_of(lint_rule rule) noexcept {
    constexpr std::array<std::string_view, lint_rule_count> names{
        "unknown register", "ill-formed access",  "read-only register", "locked register",
        "unaligned table",  "unaligned queue",    "oversized queue",    "oversized table",
        "reserved shape",   "index beyond queue", "CMD_SYNC missing",   "CFGI missing",
        "TLBI missing",     "break before make"};
    return names[static_cast<std::size_t>(rule)];
}

/// One mistake. `where` is a register's offset, a structure's address, or the
/// input address of a translation; `what` the value that is wrong, or that was
/// used; `instead` what it should have been, or what memory says.
struct lint_finding {
    lint_rule rule{};
    std::optional<stream_id> stream{};
    std::uint64_t where = 0;
    std::uint64_t what = 0;
    std::uint64_t instead = 0;

    /// "RULE: StreamID 0x10, at 0x1000: 0x2000 instead of 0x3000"
    [[nodiscard]] constexpr fixed_text<160> text() const noexcept {
        fixed_text<160> out{name_of(rule)};
        out.append(": ");
        if (stream) out.append("StreamID ").append_number(raw(*stream), 16).append(", ");
        out.append("at ").append_number(where, 16).append(": ").append_number(what, 16);
        out.append(" instead of ").append_number(instead, 16);
        return out;
    }
    friend constexpr bool operator==(const lint_finding&, const lint_finding&) = default;
};

/// Meaning: with `enabled`, report() is told each mistake as it is seen. It may
/// be told the same more than once. Threads: any; must not wait.
template <class L>
concept lint_policy = std::default_initializable<L> && requires(L& lint, const lint_finding& f) {
    { L::enabled } -> std::convertible_to<bool>;
    { lint.report(f) } noexcept -> std::same_as<void>;
};

/// Nothing is looked at, and nothing of it is left in the object code.
struct no_lint {
    static constexpr bool enabled = false;
    static void report(const lint_finding&) noexcept {}
};

/// Keeps findings until the VMM takes them. What does not fit is counted and
/// lost; what was reported before, as far as it is remembered, is counted only.
/// Costs a walk of the tables for each access of a device.
template <std::size_t Capacity = 64>
class guest_lint {
    static_assert((Capacity & (Capacity - 1)) == 0 && Capacity >= 2);

public:
    static constexpr bool enabled = true;

    guest_lint() noexcept {
        for (std::size_t i = 0; i < Capacity; ++i)
            cells_[i].turn.store(i, std::memory_order_relaxed);
    }

    void report(const lint_finding& finding) noexcept {
        findings_.fetch_add(1, std::memory_order_relaxed);
        const std::uint64_t key = key_of(finding);
        if (told_[key % told_.size()].exchange(key, std::memory_order_relaxed) == key) return;
        std::size_t at = tail_.load(std::memory_order_relaxed);
        for (;;) {
            cell& c = cells_[at % Capacity];
            const std::size_t turn = c.turn.load(std::memory_order_acquire);
            if (turn == at) {
                if (tail_.compare_exchange_weak(at, at + 1, std::memory_order_relaxed)) {
                    c.finding = finding;
                    c.turn.store(at + 1, std::memory_order_release);
                    return;
                }
            } else if (turn < at) {
                lost_.fetch_add(1, std::memory_order_relaxed);
                return;
            } else {
                at = tail_.load(std::memory_order_relaxed);
            }
        }
    }

    /// The oldest finding, or none. One thread at a time.
    [[nodiscard]] std::optional<lint_finding> take() noexcept {
        cell& c = cells_[head_ % Capacity];
        if (c.turn.load(std::memory_order_acquire) != head_ + 1) return std::nullopt;
        const lint_finding finding = c.finding;
        c.turn.store(head_ + Capacity, std::memory_order_release);
        ++head_;
        return finding;
    }
    /// Mistakes seen, repetitions included.
    [[nodiscard]] std::uint64_t findings() const noexcept {
        return findings_.load(std::memory_order_relaxed);
    }
    /// Findings that did not fit.
    [[nodiscard]] std::uint64_t lost() const noexcept {
        return lost_.load(std::memory_order_relaxed);
    }

private:
    struct cell {
        std::atomic<std::size_t> turn{0};
        lint_finding finding{};
    };
    [[nodiscard]] static std::uint64_t key_of(const lint_finding& f) noexcept {
        std::uint64_t key = static_cast<std::uint64_t>(f.rule) + 1;
        for (const std::uint64_t part :
             {f.stream ? std::uint64_t{raw(*f.stream)} + 1 : 0, f.where, f.what, f.instead}) {
            key = (key ^ part) * 0x9e37'79b9'7f4a'7c15;
            key ^= key >> 29;
        }
        return key | 1;
    }

    std::array<cell, Capacity> cells_{};
    std::array<std::atomic<std::uint64_t>, 256> told_{};
    std::atomic<std::size_t> tail_{0};
    std::size_t head_ = 0;
    std::atomic<std::uint64_t> findings_{0};
    std::atomic<std::uint64_t> lost_{0};
};

static_assert(lint_policy<no_lint> && lint_policy<guest_lint<>>);

} // namespace vm_accel::inline v0
