/// Registers of command queues: the Command queue's, and the page of enhanced
/// ones (IHI 0070, 3.5.6, 6.2.5).
#pragma once

#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/spec/commands.hpp>
#include <vm_accel/spec/registers.hpp>

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>

namespace vm_accel::inline v0 {

/// Base and indices of one command queue.
struct command_registers {
    static constexpr std::uint64_t base_bits =
        spec::CMDQ_BASE::ADDR::mask | spec::CMDQ_BASE::RA::mask | spec::CMDQ_BASE::LOG2SIZE::mask;

    std::atomic<std::uint64_t> base{0};
    std::atomic<std::uint32_t> prod{0};
    std::atomic<std::uint32_t> cons{0};

    /// PROD and CONS are the same in every bit that an index may have.
    [[nodiscard]] bool are_the_same() const noexcept {
        return ((prod.load(std::memory_order_relaxed) ^ cons.load(std::memory_order_relaxed)) &
                0xf'ffff) == 0;
    }
};

/// Queue 0 is the Command queue, which CR0 and GERROR control; the others are
/// enhanced, and hold their own enable, error and acknowledgements. Those are
/// evenly spaced in a page: a base of 8 bytes and two indices of 4.
///
/// Threads: under the control lock.
template <smmu_features F>
class command_register_set {
public:
    static constexpr unsigned queues = 1 + (F.ecmdq_log2 == 0 ? 0U : 1U << F.ecmdq_log2);
    /// Where the page is, from the start of page 0.
    static constexpr std::uint64_t page = spec::mmio_size;

    [[nodiscard]] command_registers& operator[](unsigned number) noexcept { return queue_[number]; }
    [[nodiscard]] const command_registers& operator[](unsigned number) const noexcept {
        return queue_[number];
    }

    void reset() noexcept {
        for (command_registers& queue : queue_) {
            queue.base.store(0, std::memory_order_relaxed);
            put(queue.prod, 0);
            put(queue.cons, 0);
        }
    }
    /// Enhanced queues off, nothing else changed.
    void disable() noexcept {
        for (unsigned n = 1; n < queues; ++n) {
            put(queue_[n].prod, queue_[n].prod.load(std::memory_order_relaxed) & ~enabled);
            put(queue_[n].cons, queue_[n].cons.load(std::memory_order_relaxed) & ~enabled);
        }
    }

    /// Whether an enhanced queue is on and not stopped by an error.
    [[nodiscard]] bool runs(unsigned number) const noexcept {
        const std::uint32_t prod = queue_[number].prod.load(std::memory_order_relaxed);
        const std::uint32_t cons = queue_[number].cons.load(std::memory_order_relaxed);
        return (prod & cons & enabled) != 0 && ((prod ^ cons) & spec::ECMDQ_CONS::ERR::mask) == 0;
    }
    /// Whether all enhanced queues are off.
    [[nodiscard]] bool enhanced_idle() const noexcept {
        for (unsigned n = 1; n < queues; ++n) {
            if ((queue_[n].prod.load(std::memory_order_relaxed) & enabled) != 0) return false;
        }
        return true;
    }
    /// Notes why a queue has stopped; gives the GERROR bit that tells of it.
    [[nodiscard]] std::uint64_t stop(unsigned number, std::uint64_t cerror) noexcept {
        command_registers& queue = queue_[number];
        const std::uint64_t cons = queue.cons.load(std::memory_order_relaxed);
        if (number == 0) {
            using C = spec::CMDQ_CONS;
            put(queue.cons,
                static_cast<std::uint32_t>((cons & ~C::ERR::mask) | C::ERR::in_place(cerror)));
            return spec::GERROR::CMDQ_ERR::mask;
        }
        using C = spec::ECMDQ_CONS;
        const std::uint64_t reason =
            (cons & ~C::ERR_REASON::mask) | C::ERR_REASON::in_place(cerror);
        put(queue.cons, static_cast<std::uint32_t>(reason ^ C::ERR::mask));
        return spec::GERROR::CMDQP_ERR::mask;
    }

    /// Where in the page an access is; nullopt = elsewhere.
    [[nodiscard]] static constexpr std::optional<std::uint32_t> place_of(std::uint64_t offset,
                                                                         unsigned size) noexcept {
        if constexpr (queues == 1) return std::nullopt;
        if (offset < page || offset >= page + spec::mmio_page_size) return std::nullopt;
        if ((size != 4 && size != 8) || offset % size != 0) return std::nullopt;
        return static_cast<std::uint32_t>(offset - page);
    }
    [[nodiscard]] std::uint64_t read(std::uint32_t at, unsigned size) const noexcept {
        const command_registers& queue = queue_[1 + at / spacing];
        const std::uint64_t base = queue.base.load(std::memory_order_acquire);
        switch (at % spacing) {
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
    /// Gives the number of a queue that is off now, else 0. A queue that is on
    /// has its base and CONS locked; EN is acknowledged at once, because commands
    /// are executed under the same lock.
    [[nodiscard]] unsigned write(std::uint32_t at, unsigned size, std::uint64_t value) noexcept {
        const unsigned number = 1 + at / spacing;
        command_registers& queue = queue_[number];
        const bool idle = (queue.prod.load(std::memory_order_relaxed) & enabled) == 0;
        const std::uint64_t base = queue.base.load(std::memory_order_relaxed);
        const std::uint32_t cons = queue.cons.load(std::memory_order_relaxed);
        const auto low = static_cast<std::uint32_t>(value);
        const auto write_base = [&](std::uint64_t wanted) {
            if (!idle) return;
            queue.base.store(wanted & command_registers::base_bits, std::memory_order_release);
        };
        switch (at % spacing) {
        case 0:
            write_base(size == 8 ? value : (base & ~std::uint64_t{0xffff'ffff}) | low);
            return 0;
        case 4:
            write_base((base & 0xffff'ffff) | std::uint64_t{low} << 32);
            return 0;
        case 8:
            if (size == 8) return 0;
            put(queue.prod, low & prod_bits);
            put(queue.cons, (cons & ~enabled) | (low & enabled));
            return (low & enabled) == 0 ? number : 0;
        case 12:
            if (idle) put(queue.cons, low & cons_bits);
            return 0;
        default:
            return 0;
        }
    }

    /// See saved_state.hpp.
    template <class Visit>
    void visit_state(Visit& visit) noexcept {
        visit(queue_[0].base, command_registers::base_bits);
        visit(queue_[0].prod, spec::CMDQ_PROD::WR::mask);
        visit(queue_[0].cons, spec::CMDQ_CONS::RD::mask | spec::CMDQ_CONS::ERR::mask);
        for (unsigned n = 1; n < queues; ++n) {
            visit(queue_[n].base, command_registers::base_bits);
            visit(queue_[n].prod, prod_bits);
            visit(queue_[n].cons, cons_bits | enabled);
        }
    }

private:
    static constexpr auto enabled = static_cast<std::uint32_t>(spec::ECMDQ_PROD::EN::mask);
    static constexpr auto prod_bits = static_cast<std::uint32_t>(
        spec::ECMDQ_PROD::EN::mask | spec::ECMDQ_PROD::ERRACK::mask | spec::ECMDQ_PROD::WR::mask);
    static constexpr auto cons_bits =
        static_cast<std::uint32_t>(spec::ECMDQ_CONS::ERR::mask |
                                   spec::ECMDQ_CONS::ERR_REASON::mask | spec::ECMDQ_CONS::RD::mask);
    static constexpr auto spacing =
        static_cast<std::uint32_t>(spec::mmio_page_size >> F.ecmdq_log2);

    static void put(std::atomic<std::uint32_t>& r, std::uint32_t value) noexcept {
        r.store(value, std::memory_order_release);
    }

    std::array<command_registers, queues> queue_{};
};

} // namespace vm_accel::inline v0
