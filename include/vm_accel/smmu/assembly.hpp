/// All parts of one SMMU, and how effects travel between them.
///
/// Parts do not know each other: they return effects, and this is where effects
/// are acted on. smmu.hpp is the interface on top.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/guest/guest_memory.hpp>
#include <vm_accel/guest/interrupt_sink.hpp>
#include <vm_accel/os/wakeup.hpp>
#include <vm_accel/smmu/caches/configuration_cache.hpp>
#include <vm_accel/smmu/caches/tlb_policy.hpp>
#include <vm_accel/smmu/control/control_mutex.hpp>
#include <vm_accel/smmu/control/control_plane.hpp>
#include <vm_accel/smmu/control/event_queue.hpp>
#include <vm_accel/smmu/control/page_request_queue.hpp>
#include <vm_accel/smmu/control/quiescence.hpp>
#include <vm_accel/smmu/control/register_file.hpp>
#include <vm_accel/smmu/control/stall_table.hpp>
#include <vm_accel/smmu/executor.hpp>
#include <vm_accel/smmu/host/attachment_set.hpp>
#include <vm_accel/smmu/host/dma_port.hpp>
#include <vm_accel/smmu/host/host_errors.hpp>
#include <vm_accel/smmu/host/stream_allocator.hpp>
#include <vm_accel/smmu/interrupt_delivery.hpp>
#include <vm_accel/smmu/options.hpp>
#include <vm_accel/smmu/performance_group.hpp>
#include <vm_accel/smmu/strict_mode.hpp>
#include <vm_accel/smmu/translation/ats_translation.hpp>
#include <vm_accel/smmu/translation/translator.hpp>
#include <vm_accel/smmu/vocabulary/fault_injection.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <thread>
#include <type_traits>
#include <utility>

namespace vm_accel::inline v0 {

/// Threads: device threads come through ports, without a lock. Everything else
/// holds control_mutex. host_mutex serialises the calls that wait, and is taken
/// before control_mutex, never inside.
template <tlb_policy TlbPolicy, stream_allocator StreamAllocator, guest_memory GuestMemory,
          interrupt_sink InterruptSink, smmu_options Options>
struct smmu_assembly {
    static constexpr smmu_features F = Options::features;
    using quiescence = typename Options::quiescence;
    using fault_injection_type = typename Options::fault_injection;
    /// Memory as the SMMU's own accesses see it.
    using own_memory_type = smmu_memory<GuestMemory, fault_injection_type>;
    using walks_type = typename Options::walk_cache;
    using translator_type = translator<F, TlbPolicy, walks_type, own_memory_type, InterruptSink>;
    using guard_slot_type = guard_slot;
    using views_type = stream_views<F, TlbPolicy>;
    using effects_type = effects;
    using performance_type = performance_group<F>;
    static constexpr stream_id message_requester = Options::message_requester;
    /// StreamIDs that a device can be attached with.
    static constexpr std::uint64_t stream_count =
        std::min(std::uint64_t{1} << F.stream_bits, std::uint64_t{StreamAllocator::capacity});
    using strict_type = strict_mode<typename Options::lint>;
    using port = dma_port<smmu_assembly>;

    [[nodiscard]] port make_port(attachment_record& record, guard_slot& slot) noexcept {
        ++record.ports;
        performance.claimed(guards.index_of(slot), record, slot.counters);
        return port{*this, record, slot};
    }

    /// See smmu::init().
    [[nodiscard]] result<> init() noexcept {
        if (is_initialized()) return host_error::initialized_twice();
        if (memory == nullptr) return host_error::no_memory_connected();
        if constexpr (std::default_initializable<InterruptSink>) {
            if (sink == nullptr) {
                own_sink.reset(new (std::nothrow) InterruptSink{});
                sink = own_sink.get();
                if (sink == nullptr) return host_error::out_of_memory();
            }
        }
        if (sink == nullptr) return host_error::no_sink_connected();
        if (!guards.allocate(Options::ports) ||
            !configurations.allocate(Options::configurations, Options::contexts,
                                     Options::generation_bits) ||
            !control.allocate() || !host_grace.allocate(Options::ports) ||
            !attachments.allocate(stream_count) || !performance.allocate(Options::ports)) {
            return host_error::out_of_memory();
        }
        if constexpr (fault_injection_type::enabled) failing.emplace(*memory, injection);
        (void)deferred.open().has_value(); // a system without eventfd still has poll()
        initialized.store(true, std::memory_order_release);
        return {};
    }
    [[nodiscard]] bool is_initialized() const noexcept {
        return initialized.load(std::memory_order_acquire);
    }

    [[nodiscard]] own_memory_type& own_memory() noexcept {
        if constexpr (fault_injection_type::enabled) {
            return *failing;
        } else {
            return *memory;
        }
    }
    [[nodiscard]] translator_type translate_by() noexcept {
        return {tlb, walks, configurations, own_memory(), *sink};
    }
    [[nodiscard]] stream_table_registers stream_registers() const noexcept {
        return {registers.smmu_enabled(),
                registers.bypass_aborts(),
                registers.records_bad_stream_id(),
                registers.stream_table_base(),
                registers.stream_table_shape(),
                registers.bypass_attributes(),
                registers.el2_host(),
                registers.fetches_secure_only()};
    }
    /// What commands set in motion, for the control plane.
    [[nodiscard]] executor<smmu_assembly> execute_by() noexcept {
        return executor<smmu_assembly>{*this};
    }
    /// Whether service() has anything to do.
    [[nodiscard]] bool has_work() const noexcept {
        return control.has_work() || !events.is_settled();
    }
    void service(effects& out) noexcept {
        // Events that nobody writes whose guard is open. Memory stays under the lock.
        out |= drain_events();
        if (std::exchange(out.drain_events, false)) out.wake_poll = true;
        control.service(own_memory(), execute_by(), Options::commands_per_call, out);
    }

    /// Where the configuration of accesses like this one is kept. Without
    /// SubstreamIDs there is one place, and nothing to choose.
    template <class Record>
    [[nodiscard]] static auto& slot_of(Record& record, const transaction& asked) noexcept {
        if constexpr (F.substream_bits == 0) {
            return record.slot;
        } else {
            return record.slot_for(asked);
        }
    }

    // What ports call.
    void open_guard(guard_slot& slot) noexcept { guards.open(slot); }
    /// A guard that is to do more than translate_hit().
    void settle_guard() noexcept { guards.settle(); }
    [[nodiscard]] bool close_guard(guard_slot& slot) noexcept { return guards.close(slot); }
    [[nodiscard]] bool guard_has_closed(guard_slot& slot) noexcept {
        return guards.has_closed(slot);
    }
    void park_port(guard_slot& slot) noexcept { guards.park(slot); }
    void unpark_port(guard_slot& slot) noexcept { guards.unpark(slot); }
    [[nodiscard, gnu::always_inline]] bool
    translate_hit(views_type& views, iova address, std::uint64_t length, access kind,
                  access_attributes attributes, port_counters& port_share, outcome& out) noexcept {
        if constexpr (strict_type::enabled) return false; // translate() looks closer
        if (F.ats && attributes.translated) return false;
        return translator_type::translate_hit(tlb, configurations.epoch(),
                                              views.of(attributes.has_substream), address, length,
                                              kind, attributes, port_share, out);
    }
    [[nodiscard]] outcome translate(attachment_record& record, const transaction& asked,
                                    port_counters& port_share, views_type& views,
                                    translation_fault& fault) noexcept {
        guards.settle();
        if constexpr (F.ats) {
            if (asked.translated) {
                auto translation = ats_by();
                const outcome answer = translation.access_translated(record.subject, asked, fault);
                translation.cost().add_to(port_share);
                if (!answer.is_fault()) port_share.translated_transactions.add();
                return answer;
            }
        }
        const outcome answer = translate_unchecked(record, asked, port_share, views, fault);
        if constexpr (strict_type::enabled) strict.check_access(*this, record, asked, answer);
        return answer;
    }
    [[nodiscard]] outcome translate_unchecked(attachment_record& record, const transaction& asked,
                                              port_counters& port_share, views_type& views,
                                              translation_fault& fault) noexcept {
        return translate_by().translate(
            record.subject, slot_of(record, asked), asked, [this] { return stream_registers(); },
            port_share, views.of(asked.has_substream), fault);
    }
    [[nodiscard]] effects record(const translation_fault& fault) noexcept {
        if (!fault.has_event()) return {};
        if (injection.overflows(output_queue::events) || !events.push(make_event_record(fault))) {
            events.lose();
        }
        return drain_events();
    }
    [[nodiscard]] effects drain_events() noexcept {
        return events.drain(registers, own_memory(),
                            [this](std::uint16_t tag) noexcept { hold_stall(tag); });
    }

    /// Stalls a refused access, and records that; a stall is recorded whatever
    /// CD.R says (5.5).
    [[nodiscard]] stall_ticket stall(const attachment_record& record, const guard_slot& slot,
                                     translation_fault& fault, effects& out) noexcept {
        const stall_ticket ticket = stalls.begin(fault.stream, guards.index_of(slot));
        std::atomic_thread_fence(std::memory_order_seq_cst);
        if (!registers.smmu_enabled() || record.subject.detached.load(std::memory_order_seq_cst)) {
            stalls.abort(fault.stream);
        } else if (!ticket.held_back) {
            fault.stalled = true;
            fault.stall_tag = ticket.tag;
            if (injection.overflows(output_queue::events) ||
                !events.push(make_event_record(fault))) {
                hold_stall(ticket.tag);
            }
            out |= drain_events();
        }
        return ticket;
    }
    /// A stalled access has no record yet: it starts again once the event queue
    /// takes records, which may be now.
    void hold_stall(std::uint16_t tag) noexcept {
        if constexpr (F.stalls) {
            stalls.hold(tag);
            retry_held_stalls();
        }
    }
    void retry_held_stalls() noexcept {
        std::atomic_thread_fence(std::memory_order_seq_cst);
        if (events.is_writable(registers)) stalls.retry_held();
    }
    /// After a change of registers, which may have made the event queue writable.
    void settle_stalls() noexcept {
        if constexpr (F.stalls) retry_held_stalls();
    }
    void abort_stalls(stream_id stream) noexcept {
        if constexpr (F.stalls) stalls.abort(stream);
    }
    void release_restored_stalls(stream_id stream) noexcept {
        if constexpr (F.stalls) stalls.release_restored(stream);
    }
    [[nodiscard]] stall_decision decision(stall_ticket ticket) noexcept {
        return stalls.decision(ticket);
    }
    [[nodiscard]] stall_decision wait(stall_ticket ticket) noexcept { return stalls.wait(ticket); }
    void note_write(pa address, std::uint64_t bytes) noexcept {
        memory->note_write(address, bytes);
    }
    [[nodiscard]] bool deliver_message(stream_id stream, pa address, std::uint32_t data) noexcept {
        return sink->signal_msi(stream, address, data);
    }
    [[nodiscard]] auto ats_by() noexcept {
        return ats_translation<F, own_memory_type, InterruptSink>{
            own_memory(), *sink, stream_registers(), registers.checks_translated(),
            registers.records_ats_errors()};
    }
    [[nodiscard]] ats_completion ats_translate(const attachment_record& record,
                                               const ats_request& asked, port_counters& port_share,
                                               translation_fault& fault) noexcept {
        auto translation = ats_by();
        const ats_completion answer = translation.translate(record.subject, asked, fault);
        translation.cost().add_to(port_share);
        return answer;
    }
    /// Passes a device's page request on, or answers it.
    void request_page(attachment_record& record, const page_request& asked) noexcept {
        auto held = lock();
        if (record.subject.detached.load(std::memory_order_relaxed)) return;
        const page_request_result result =
            page_requests.push(registers, own_memory(), record.subject.stream, asked,
                               injection.overflows(output_queue::page_requests), [&]() noexcept {
                                   translation_fault fault;
                                   auto translation = ats_by();
                                   const auto keeps =
                                       translation.keeps_pasid(record.subject, fault);
                                   record.finished += translation.cost();
                                   held.after |= this->record(fault);
                                   return keeps;
                               });
        held.after |= result.out;
        // Others may have left their events to this thread, which has no guard.
        if (std::exchange(held.after.drain_events, false)) held.after.drain_commands = true;
        if (result.answer) record.ats->respond(*result.answer);
    }
    void release_port(attachment_record& record, guard_slot& slot) noexcept {
        const auto held = lock();
        if constexpr (F.stalls) stalls.release(guards.index_of(slot));
        if (record.ports == 1 && !record.subject.detached.load(std::memory_order_relaxed))
            release_restored_stalls(record.subject.stream);
        performance.released(guards.index_of(slot), record);
        if (record.ports == 1) note_leaving(record);
        guards.release(slot);
        attachments.release_port(record);
    }

    /// A record without ports that is detached goes away, and its sums with it.
    void note_leaving(const attachment_record& record) noexcept {
        if (record.subject.detached.load(std::memory_order_relaxed)) performance.leaving(record);
    }
    /// The control lock. A device thread that finds it taken asks for a look at
    /// pending work and goes on; whoever holds it looks after letting go. So the
    /// lock is taken through this class only.
    class control_lock {
    public:
        explicit control_lock(smmu_assembly& owner) noexcept : owner_(owner) {
            owner_.control_mutex.lock();
        }
        control_lock(const control_lock&) = delete;
        control_lock& operator=(const control_lock&) = delete;
        ~control_lock() {
            owner_.control_mutex.unlock();
            owner_.act(after);
            // Unlock, then look: and the other side stores, then tries the lock.
            if (owner_.look_wanted.load(std::memory_order_seq_cst)) owner_.look_again();
        }
        effects after{}; ///< acted on once the lock is free

    private:
        smmu_assembly& owner_;
    };
    [[nodiscard]] control_lock lock() noexcept { return control_lock{*this}; }

    /// Lets the control side look at pending work. Never waits: if the lock is
    /// taken, its holder looks when it lets go. After a few rounds the rest is
    /// left to poll(), so that no call lasts while others keep asking.
    void look_again() noexcept {
        look_wanted.store(true, std::memory_order_seq_cst);
        for (int round = 0; round < 4; ++round) {
            if (!look_wanted.load(std::memory_order_seq_cst)) return;
            effects out;
            {
                const std::unique_lock held{control_mutex, std::try_to_lock};
                if (!held) return;
                if (look_wanted.exchange(false, std::memory_order_seq_cst)) service(out);
            }
            if (deliver(out)) look_wanted.store(true, std::memory_order_seq_cst);
        }
        deferred.signal();
    }

    /// Acts on effects. Called with no lock held and no guard of ours open.
    void act(const effects& out) noexcept {
        if (deliver(out) || out.drain_commands) look_again();
    }
    [[nodiscard]] bool deliver(const effects& out) noexcept {
        if (out.wake_poll) deferred.signal();
        return interrupt_delivery<smmu_assembly>{*this}(out);
    }

    /// Runs a change under the control lock, waits until every guard that was
    /// open has closed (the lock is free meanwhile), then runs `after` under it.
    template <class Change, class After>
    [[nodiscard]] result<> waiting(Change&& change, After&& after) noexcept {
        if (!is_initialized()) return host_error::not_initialized();
        {
            const auto held = lock();
            if (guards.held_by_this_thread()) return host_error::guard_open();
        }
        const std::lock_guard one_at_a_time{host_mutex};
        {
            const auto held = lock();
            if (const result<> changed = change(); !changed) return changed;
            control.start(host_grace);
        }
        for (unsigned tries = 0;; ++tries) {
            {
                const auto held = lock();
                if (control.finished(host_grace)) {
                    after();
                    return {};
                }
            }
            if (tries < 64) {
                std::this_thread::yield();
            } else {
                std::this_thread::sleep_for(std::chrono::microseconds{50});
            }
        }
    }

    GuestMemory* memory = nullptr;
    InterruptSink* sink = nullptr;
    std::unique_ptr<InterruptSink> own_sink;
    TlbPolicy tlb{};
    [[no_unique_address]] walks_type walks{};
    StreamAllocator stream_ids{};
    configuration_cache configurations;
    register_file<F> registers;
    event_queue<F> events;
    [[no_unique_address]] stalls_of<F> stalls;
    page_request_queue<F> page_requests;
    quiescence_domain<quiescence> guards{configurations.epoch()};
    control_plane<F, TlbPolicy, walks_type, quiescence> control{tlb, walks, configurations,
                                                                registers, guards};
    attachment_set attachments;
    [[no_unique_address]] performance_type performance;
    [[no_unique_address]] strict_type strict;
    grace_period host_grace;
    [[no_unique_address]] fault_injection_type injection;
    [[no_unique_address]] std::conditional_t<
        fault_injection_type::enabled, std::optional<own_memory_type>, no_failing_memory> failing;
    [[no_unique_address]] typename Options::other_state other_state;
    os::wakeup deferred;
    vm_accel::control_mutex<quiescence::concurrent> control_mutex;
    std::mutex host_mutex;
    std::atomic<bool> look_wanted{false};
    std::atomic<bool> initialized{false};
    std::atomic<std::uint64_t> interrupts{0};
};

} // namespace vm_accel::inline v0
