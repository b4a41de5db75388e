/// Faults on purpose: for those who test a guest's driver.
///
/// A driver's error paths are rarely run, because hardware rarely fails. Here
/// the SMMU's own accesses to memory fail on demand, queues overflow and
/// interrupts get lost; what follows is the architecture's event or GERROR bit,
/// made by the same code as for a real failure.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/result.hpp>
#include <vm_accel/guest/guest_memory.hpp>
#include <vm_accel/guest/interrupt_sink.hpp>

#include <array>
#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <type_traits>

namespace vm_accel::inline v0 {

/// How the SMMU itself accesses memory. Devices' own accesses are not meant.
enum class memory_operation : std::uint8_t {
    load,   ///< one 64-bit word: of an STE, a CD, a descriptor
    update, ///< compare-and-swap of a descriptor's flags
    read,   ///< a command
    write,  ///< an event record, a page request, a message
};

/// Queues that the SMMU writes and that can be made to overflow.
enum class output_queue : std::uint8_t { events, page_requests };

/// Meaning: each member answers whether this very access, record or interrupt
/// is to fail. Every one that really happens is asked about once.
/// Threads: from any thread at once; never waits.
template <class I>
concept fault_injection =
    std::default_initializable<I> && requires(I& policy, memory_operation what, pa address,
                                              output_queue queue, wired_interrupt line) {
        { I::enabled } -> std::convertible_to<bool>;
        { policy.fails(what, address) } noexcept -> std::same_as<bool>;
        { policy.overflows(queue) } noexcept -> std::same_as<bool>;
        { policy.drops(line) } noexcept -> std::same_as<bool>;
    };

/// Nothing ever fails, and nothing of this file is left in the object code.
struct no_fault_injection {
    static constexpr bool enabled = false;
    [[nodiscard]] static constexpr bool fails(memory_operation, pa) noexcept { return false; }
    [[nodiscard]] static constexpr bool overflows(output_queue) noexcept { return false; }
    [[nodiscard]] static constexpr bool drops(wired_interrupt) noexcept { return false; }
};

/// Which accesses a planned fault counts, and which of those fail.
struct fault_plan {
    memory_operation what = memory_operation::load;
    pa_range where{pa{0}, ~std::uint64_t{0}}; ///< counts accesses whose first byte lies here
    std::uint64_t after = 0;                  ///< so many are left alone first
    std::uint64_t times = 1;                  ///< then so many fail
};

/// Faults by plan: "the third command fetch", "every load from this STE".
///
/// A 64-byte structure is loaded in eight words: give `where` its first word to
/// count fetches. Threads: plans may be made and removed while devices run.
template <std::size_t Plans = 8>
class planned_faults {
public:
    static constexpr bool enabled = true;

    /// Adds a plan; it counts from now on. Errors: invalid_argument (a range that
    /// is empty or wraps, no times), exhausted (all Plans are in use; those that
    /// are used up make room).
    [[nodiscard]] result<> plan(const fault_plan& wanted) noexcept {
        if (wanted.where.empty() || !wanted.where.is_valid() || wanted.times == 0) {
            return fail(errc::invalid_argument,
                        "planned fault: empty address range, or one that wraps, or no times",
                        "give a range of at least one byte and times of at least 1");
        }
        for (entry& e : entries_) {
            std::uint8_t expected = entry::unused;
            if (!e.state.compare_exchange_strong(expected, entry::changing,
                                                 std::memory_order_acquire)) {
                continue;
            }
            e.what.store(wanted.what, std::memory_order_relaxed);
            e.base.store(raw(wanted.where.base), std::memory_order_relaxed);
            e.bytes.store(wanted.where.size, std::memory_order_relaxed);
            e.after = wanted.after;
            e.times = wanted.times;
            e.seen.store(0, std::memory_order_relaxed);
            e.state.store(entry::armed, std::memory_order_release);
            return {};
        }
        return fail(errc::exhausted, "planned faults: every plan is in use",
                    "clear() plans, or instantiate planned_faults with more");
    }
    /// The next `records` records of a queue find it full.
    void overflow(output_queue queue, std::uint64_t records = 1) noexcept {
        overflows_[static_cast<std::size_t>(queue)].fetch_add(records, std::memory_order_relaxed);
    }
    /// The next `pulses` interrupts on a line get lost, by wire or to a doorbell. A
    /// message into memory is a write, which a plan can make fail.
    void drop(wired_interrupt line, std::uint64_t pulses = 1) noexcept {
        drops_[static_cast<std::size_t>(line)].fetch_add(pulses, std::memory_order_relaxed);
    }
    /// Forgets every plan. What is being asked at this moment may still fail.
    void clear() noexcept {
        for (entry& e : entries_) {
            std::uint8_t expected = entry::armed;
            (void)e.state.compare_exchange_strong(expected, entry::unused,
                                                  std::memory_order_acq_rel);
        }
        for (auto& left : overflows_)
            left.store(0, std::memory_order_relaxed);
        for (auto& left : drops_)
            left.store(0, std::memory_order_relaxed);
    }
    /// How many faults have been made.
    [[nodiscard]] std::uint64_t injected() const noexcept {
        return injected_.load(std::memory_order_relaxed);
    }

    [[nodiscard]] bool fails(memory_operation what, pa address) noexcept {
        bool failed = false;
        for (entry& e : entries_) {
            if (e.state.load(std::memory_order_acquire) != entry::armed) continue;
            if (e.what.load(std::memory_order_relaxed) != what) continue;
            const pa_range where{pa{e.base.load(std::memory_order_relaxed)},
                                 e.bytes.load(std::memory_order_relaxed)};
            if (!where.contains(address)) continue;
            const std::uint64_t number = e.seen.fetch_add(1, std::memory_order_relaxed);
            if (number < e.after) continue;
            if (number - e.after < e.times) failed = true;
            if (number - e.after + 1 >= e.times) {
                std::uint8_t expected = entry::armed;
                (void)e.state.compare_exchange_strong(expected, entry::unused,
                                                      std::memory_order_acq_rel);
            }
        }
        return counted(failed);
    }
    [[nodiscard]] bool overflows(output_queue queue) noexcept {
        return counted(take(overflows_[static_cast<std::size_t>(queue)]));
    }
    [[nodiscard]] bool drops(wired_interrupt line) noexcept {
        return counted(take(drops_[static_cast<std::size_t>(line)]));
    }

private:
    struct entry {
        static constexpr std::uint8_t unused = 0;
        static constexpr std::uint8_t changing = 1;
        static constexpr std::uint8_t armed = 2;
        std::atomic<std::uint8_t> state{unused};
        std::atomic<memory_operation> what{memory_operation::load};
        std::atomic<std::uint64_t> base{0};
        std::atomic<std::uint64_t> bytes{0};
        std::atomic<std::uint64_t> seen{0};
        std::atomic<std::uint64_t> after{0};
        std::atomic<std::uint64_t> times{0};
    };

    [[nodiscard]] bool counted(bool failed) noexcept {
        if (failed) injected_.fetch_add(1, std::memory_order_relaxed);
        return failed;
    }
    [[nodiscard]] static bool take(std::atomic<std::uint64_t>& left) noexcept {
        std::uint64_t old = left.load(std::memory_order_relaxed);
        while (old != 0) {
            if (left.compare_exchange_weak(old, old - 1, std::memory_order_relaxed)) return true;
        }
        return false;
    }

    std::array<entry, Plans> entries_{};
    std::array<std::atomic<std::uint64_t>, 2> overflows_{};
    std::array<std::atomic<std::uint64_t>, wired_interrupt_count> drops_{};
    std::atomic<std::uint64_t> injected_{0};
};

/// Guest memory as the SMMU itself sees it when accesses may fail. Devices'
/// data does not come this way: find() is passed on.
template <guest_memory Memory, fault_injection Injection>
class failing_memory {
public:
    /// Each access is one of those that a plan counts: nothing is read ahead.
    static constexpr bool counts_accesses = true;

    failing_memory(Memory& memory, Injection& injection) noexcept
        : memory_(memory), injection_(injection) {}

    [[nodiscard]] bool read(pa address, std::span<std::byte> out) const noexcept {
        return !injection_.fails(memory_operation::read, address) && memory_.read(address, out);
    }
    [[nodiscard]] bool write(pa address, std::span<const std::byte> in) noexcept {
        return !injection_.fails(memory_operation::write, address) && memory_.write(address, in);
    }
    [[nodiscard]] std::optional<std::uint64_t> load64(pa address) const noexcept {
        if (injection_.fails(memory_operation::load, address)) return std::nullopt;
        return memory_.load64(address);
    }
    [[nodiscard]] std::optional<std::uint64_t>
    compare_exchange64(pa address, std::uint64_t expected, std::uint64_t desired) noexcept {
        if (injection_.fails(memory_operation::update, address)) return std::nullopt;
        return memory_.compare_exchange64(address, expected, desired);
    }
    [[nodiscard]] std::optional<host_run> find(pa address) const noexcept {
        return memory_.find(address);
    }
    void note_write(pa address, std::uint64_t bytes) noexcept {
        memory_.note_write(address, bytes);
    }

private:
    Memory& memory_;
    Injection& injection_;
};

/// Stands where a failing_memory would.
struct no_failing_memory {};

/// The memory that an SMMU's own accesses go to: `Memory` itself when nothing
/// is ever injected.
template <guest_memory Memory, fault_injection Injection>
using smmu_memory =
    std::conditional_t<Injection::enabled, failing_memory<Memory, Injection>, Memory>;

static_assert(fault_injection<no_fault_injection> && fault_injection<planned_faults<>>);
static_assert(std::is_empty_v<no_fault_injection>);

} // namespace vm_accel::inline v0
