/// An Arm SMMUv3 (IHI 0070) for a virtual machine: the wiring of its parts.
///
/// Two faces. The device face is what the guest's driver sees: mmio_read and
/// mmio_write, and structures in guest memory. The host face is for the VMM:
/// devices are attached and detached, and their DMA goes through ports.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/core/roles.hpp>
#include <vm_accel/guest/interrupt_sink.hpp>
#include <vm_accel/guest/region_map.hpp>
#include <vm_accel/os/wakeup.hpp>
#include <vm_accel/smmu/caches/configuration_cache.hpp>
#include <vm_accel/smmu/caches/tlb_policy.hpp>
#include <vm_accel/smmu/control/control_plane.hpp>
#include <vm_accel/smmu/control/event_queue.hpp>
#include <vm_accel/smmu/control/quiescence.hpp>
#include <vm_accel/smmu/control/register_file.hpp>
#include <vm_accel/smmu/host/attachment_set.hpp>
#include <vm_accel/smmu/host/detection.hpp>
#include <vm_accel/smmu/host/dma_port.hpp>
#include <vm_accel/smmu/host/host_errors.hpp>
#include <vm_accel/smmu/host/stream_allocator.hpp>
#include <vm_accel/smmu/options.hpp>
#include <vm_accel/smmu/translation/translator.hpp>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string_view>
#include <thread>
#include <vector>

namespace vm_accel::inline v0 {

/// Threads, unless a member says otherwise: any member from any thread once
/// init() has returned. connect() and init() come first, from one thread.
/// No member of the device face waits for another thread's DMA.
template <tlb_policy TlbPolicy, stream_allocator StreamAllocator,
          guest_memory GuestMemory = region_map, interrupt_sink InterruptSink = counting_sink,
          smmu_options Options = default_smmu_options>
class smmu {
    static constexpr smmu_features F = Options::features;
    using quiescence = typename Options::quiescence;
    using translator_type = translator<F, TlbPolicy, GuestMemory, InterruptSink>;

public:
    using role = roles::smmu;
    using port = dma_port<smmu>;
    using guard_slot_type = guard_slot;
    using effects_type = effects;
    static constexpr std::string_view name = "smmu";
    /// Bytes of the register window.
    static constexpr std::uint64_t mmio_size = spec::mmio_size;
    static constexpr smmu_features features = F;

    smmu() = default;
    smmu(GuestMemory& memory, InterruptSink& sink) noexcept : memory_(&memory), sink_(&sink) {}
    smmu(const smmu&) = delete;
    smmu& operator=(const smmu&) = delete;
    ~smmu() = default;

    /// The guest's memory, and where interrupts go; both outlive the SMMU.
    /// Without a sink, interrupts are counted and delivered nowhere.
    void connect(GuestMemory& memory) noexcept { memory_ = &memory; }
    void connect(InterruptSink& sink) noexcept { sink_ = &sink; }

    /// Whether the host has an SMMUv3 of its own. Emulation does not need one.
    [[nodiscard]] static bool is_available(const os::file_system_root& root = {}) noexcept {
        return is_host_smmu_available(root);
    }
    [[nodiscard]] static std::vector<smmu_device_info>
    detect_devices(const os::file_system_root& root = {}) {
        return detect_host_smmus(root);
    }

    /// Allocates everything that translation and commands will ever need.
    /// Errors: not_initialized (no memory connected), already_initialized,
    /// exhausted.
    [[nodiscard]] result<> init() noexcept {
        if (is_initialized()) return host_error::initialized_twice();
        if (memory_ == nullptr) return host_error::no_memory_connected();
        if (sink_ == nullptr) {
            own_sink_.reset(new (std::nothrow) InterruptSink{});
            sink_ = own_sink_.get();
        }
        counters_.reset(new (std::nothrow) port_counters[Options::ports]);
        if (sink_ == nullptr || !counters_ || !guards_.allocate(Options::ports) ||
            !configurations_.allocate(Options::configurations, Options::contexts,
                                      Options::generation_bits) ||
            !control_.allocate() || !host_grace_.allocate(Options::ports)) {
            return host_error::out_of_memory();
        }
        // A system without eventfd still has poll().
        (void)deferred_.open().has_value();
        initialized_.store(true, std::memory_order_release);
        return {};
    }
    [[nodiscard]] bool is_initialized() const noexcept {
        return initialized_.load(std::memory_order_acquire);
    }

    // --- device face -------------------------------------------------------

    /// Reads 4 or 8 bytes at an offset into the register window.
    [[nodiscard]] std::uint64_t mmio_read(std::uint64_t offset, unsigned size) noexcept {
        if (!is_initialized()) return 0;
        std::uint64_t value = 0;
        with_control([&]() noexcept {
            // A driver that polls makes deferred work go on by polling.
            effects out;
            if (control_.read_depends_on_work(offset)) out = service();
            value = registers_.read(offset, size);
            return out;
        });
        return value;
    }

    /// Writes 4 or 8 bytes. Executes commands as far as one call may
    /// (Options::commands_per_call); the rest goes on through poll(), through
    /// reads of CMDQ_CONS, and when guards close.
    void mmio_write(std::uint64_t offset, unsigned size, std::uint64_t value) noexcept {
        if (!is_initialized()) return;
        with_control([&]() noexcept {
            return control_.write(offset, size, value, *memory_, streams(),
                                  Options::commands_per_call);
        });
    }

    /// Goes on with deferred work. True = there is more: call again.
    bool poll() noexcept {
        if (!is_initialized()) return false;
        deferred_.clear();
        bool more = false;
        with_control([&]() noexcept {
            effects out = service();
            more = out.wake_poll;
            out.wake_poll = false;
            return out;
        });
        return more;
    }
    /// Readable while poll() has work to go on with; -1 where there is no eventfd.
    [[nodiscard]] int deferred_work_fd() const noexcept { return deferred_.fd(); }

    /// Power-on state; devices stay attached. When it returns, no device uses a
    /// translation from before. Error: would_deadlock.
    [[nodiscard]] result<> reset() noexcept {
        return waiting([this]() noexcept -> result<> {
            control_.reset();
            attachments_.empty_slots(configurations_, 0U, ~0U);
            return {};
        });
    }

    // --- host face ---------------------------------------------------------

    /// Puts a device behind the SMMU with a StreamID of the allocator's choice.
    /// `window`: the physical addresses its DMA may reach, a multiple of 4 KiB.
    /// Errors: invalid_argument (id empty or longer than 63 bytes; window empty,
    /// unaligned or past the end), already_exists, exhausted, not_initialized.
    [[nodiscard]] result<stream_id> attach_device(std::string_view device_id, pa_range window,
                                                  attach_options options = {}) noexcept {
        return attach(device_id, window, std::nullopt, options);
    }
    /// The same with a StreamID that a device tree or IORT has fixed.
    [[nodiscard]] result<stream_id> attach_device(std::string_view device_id, pa_range window,
                                                  stream_id stream,
                                                  attach_options options = {}) noexcept {
        return attach(device_id, window, stream, options);
    }

    /// Takes a device away: when it returns, its DMA has ended and later DMA is
    /// refused; its ports stay valid and refuse. Errors: not_found,
    /// would_deadlock (the calling thread has a guard open).
    [[nodiscard]] result<> detach_device(std::string_view device_id) noexcept {
        return waiting([&]() noexcept -> result<> {
            attachment_record* record = attachments_.find(device_id);
            if (record == nullptr) return host_error::unknown_device(device_id);
            const stream_id stream = record->subject.stream;
            attachments_.detach(*record, configurations_);
            return streams_.release(stream);
        });
    }

    /// Error: not_found.
    [[nodiscard]] result<attachment_info> attachment(std::string_view device_id) const noexcept {
        const std::lock_guard lock{control_mutex_};
        const attachment_record* record = attachments_.find(device_id);
        if (record == nullptr) return host_error::unknown_device(device_id);
        return record->info();
    }
    [[nodiscard]] std::size_t attached_device_count() const noexcept {
        const std::lock_guard lock{control_mutex_};
        return attachments_.attached();
    }
    [[nodiscard]] std::vector<attachment_info> list_attached_devices() const {
        const std::lock_guard lock{control_mutex_};
        return attachments_.list();
    }

    /// A way to memory for one of the device's threads. Errors: not_found,
    /// exhausted (Options::ports are in use).
    [[nodiscard]] result<port> make_port(std::string_view device_id) noexcept {
        const std::lock_guard lock{control_mutex_};
        attachment_record* record = attachments_.find(device_id);
        if (record == nullptr) return host_error::unknown_device(device_id);
        guard_slot* slot = guards_.claim();
        if (slot == nullptr) return host_error::no_port_left(Options::ports);
        ++record->ports;
        return port{*this, *record, *slot, counters_[guards_.index_of(*slot)]};
    }

    /// Where a device's access would go, by what is in memory now. For
    /// diagnosis: no event, no cache, no statistics. Errors: not_found,
    /// invalid_argument, permission_denied (it would be refused; the cause names
    /// the event), mismatch (the bytes are not contiguous).
    [[nodiscard]] result<pa> translate_dma_addr(std::string_view device_id, iova address,
                                                std::uint64_t size, access kind) noexcept {
        const std::lock_guard lock{control_mutex_};
        const attachment_record* record = attachments_.find(device_id);
        if (record == nullptr) return host_error::unknown_device(device_id);
        if (!iova_range{address, size}.is_valid() || size == 0) {
            return host_error::bad_dma_range(address, size);
        }
        std::optional<pa> start;
        for (std::uint64_t done = 0; done < size;) {
            const iova at = offset_by(address, done);
            translation_fault fault;
            const outcome o = translate_by().probe(
                record->subject, {at, size - done, kind, false, false},
                [this] { return stream_registers(); }, fault);
            if (o.is_fault()) return host_error::refused(device_id, at, o);
            if (!start) start = o.address();
            if (o.address() != offset_by(*start, done)) {
                return host_error::not_contiguous(device_id, at);
            }
            done += o.length();
        }
        return *start;
    }

    /// Forgets cached translations and configurations, of one StreamID or of
    /// all. Later accesses start from memory; wait for earlier ones with
    /// quiesce(). Error: not_found.
    [[nodiscard]] result<> invalidate_tlb(std::optional<stream_id> stream = {}) noexcept {
        const std::lock_guard lock{control_mutex_};
        if (!stream) {
            attachments_.empty_slots(configurations_, 0U, ~0U);
            control_.invalidate(invalidation_scope::all());
            return {};
        }
        const attachment_record* record = attachments_.find(*stream);
        if (record == nullptr) return host_error::unknown_stream(*stream);
        const stream_configuration* current = record->slot.get();
        invalidation_scope scope = invalidation_scope::all();
        if (current != nullptr && current->context != nullptr) {
            scope.what = invalidation_scope::kind::context;
            scope.context_index = current->context->index();
        }
        attachments_.empty_slots(configurations_, raw(*stream), raw(*stream));
        control_.invalidate(scope);
        return {};
    }

    /// Waits until every access that is under way has ended. Error: would_deadlock.
    [[nodiscard]] result<> quiesce() noexcept {
        return waiting([]() noexcept -> result<> { return {}; });
    }

    /// Makes memory visible to devices. Errors: as GuestMemory::add.
    [[nodiscard]] result<> add_memory(pa base, std::byte* host, std::uint64_t bytes) noexcept
        requires requires(GuestMemory& memory) { memory.add(base, host, bytes); }
    {
        const std::lock_guard lock{control_mutex_};
        if (const result<> added = memory_->add(base, host, bytes); !added) return added;
        if (is_initialized()) control_.invalidate(invalidation_scope::all());
        return {};
    }
    /// Takes memory away: when it returns, no device uses it and it may be
    /// unmapped. Errors: as GuestMemory::remove, and would_deadlock.
    [[nodiscard]] result<> remove_memory(pa base) noexcept
        requires requires(GuestMemory& memory) { memory.remove(base); }
    {
        return waiting([&]() noexcept -> result<> {
            if (const result<> removed = memory_->remove(base); !removed) return removed;
            control_.invalidate(invalidation_scope::all());
            return {};
        });
    }

    /// Totals since init().
    [[nodiscard]] smmu_statistics stats() const noexcept {
        const std::lock_guard lock{control_mutex_};
        smmu_statistics total;
        if (!is_initialized()) return total;
        for (std::size_t i = 0; i < Options::ports; ++i) {
            const port_counters& c = counters_[i];
            total.hits += c.hits.read();
            total.misses += c.misses.read();
            total.translations += c.unresolved.read();
            total.faults += c.faults.read();
            total.msi_messages += c.messages.read();
        }
        total.translations += total.hits + total.misses;
        total.events = events_.written();
        total.events_dropped = events_.dropped();
        total.commands = control_.commands();
        total.syncs = control_.syncs();
        total.interrupts = interrupts_.load(std::memory_order_relaxed);
        return total;
    }
    /// For a diagnostic report: `out.given(text)`, and `out.fact(name, value)` for each fact.
    template <class Report>
    void report(Report& out) const {
        const smmu_statistics total = stats();
        const std::size_t devices = attached_device_count();
        out.given(fixed_text<160>{}.append_number(devices).append(" devices attached").view());
        out.fact("devices", devices);
        out.fact("translations", total.translations);
        out.fact("hits", total.hits);
        out.fact("misses", total.misses);
        out.fact("hit rate", total.hit_rate());
        out.fact("faults", total.faults);
        out.fact("commands", total.commands);
        out.fact("events", total.events);
        out.fact("events dropped", total.events_dropped);
        out.fact("interrupts", total.interrupts);
        out.fact("MSI messages", total.msi_messages);
        out.fact("guards cost a fence", is_quiescence_degraded());
    }
    /// Whether guards cost a fence because the kernel refused membarrier(2).
    [[nodiscard]] bool is_quiescence_degraded() const noexcept { return guards_.is_degraded(); }
    /// Whether a CMD_SYNC waits for guards to close.
    [[nodiscard]] bool sync_pending() const noexcept {
        const std::lock_guard lock{control_mutex_};
        return control_.sync_pending();
    }

private:
    friend port;

    [[nodiscard]] translator_type translate_by() noexcept {
        return {tlb_, configurations_, *memory_, *sink_};
    }
    [[nodiscard]] stream_table_registers stream_registers() const noexcept {
        return {registers_.smmu_enabled(), registers_.bypass_aborts(),
                registers_.records_bad_stream_id(), registers_.stream_table_base(),
                registers_.stream_table_shape()};
    }
    [[nodiscard]] auto streams() noexcept {
        return [this](std::uint32_t first, std::uint32_t last) noexcept {
            attachments_.empty_slots(configurations_, first, last);
        };
    }
    [[nodiscard]] effects service() noexcept {
        return control_.service(*memory_, streams(), Options::commands_per_call);
    }

    // What ports call.
    void open_guard(guard_slot& slot) noexcept { guards_.open(slot); }
    [[nodiscard]] bool close_guard(guard_slot& slot) noexcept { return guards_.close(slot); }
    void park_port(guard_slot& slot) noexcept { guards_.park(slot); }
    void unpark_port(guard_slot& slot) noexcept { guards_.unpark(slot); }
    [[nodiscard]] outcome translate(attachment_record& record, const transaction& asked,
                                    port_counters& counters, translation_fault& fault) noexcept {
        return translate_by().translate(
            record.subject, record.slot, asked, [this] { return stream_registers(); }, counters,
            fault);
    }
    [[nodiscard]] effects record(const translation_fault& fault) noexcept {
        if (!fault.has_event()) return {};
        events_.push(make_event_record(fault));
        return events_.drain(registers_, *memory_);
    }
    void note_write(pa address, std::uint64_t bytes) noexcept {
        memory_->note_write(address, bytes);
    }
    [[nodiscard]] bool deliver_message(stream_id stream, pa address, std::uint32_t data) noexcept {
        return sink_->signal_msi(stream, address, data);
    }
    void release_port(attachment_record& record, guard_slot& slot) noexcept {
        const std::lock_guard lock{control_mutex_};
        guards_.release(slot);
        attachments_.release_port(record);
    }

    /// Runs f under the control lock, then acts on its effects without it.
    template <class Action>
    void with_control(Action&& action) noexcept {
        effects out;
        {
            const std::lock_guard lock{control_mutex_};
            out = action();
        }
        act(out);
        // Somebody may have asked for a look while the lock was held here.
        if (look_wanted_.load(std::memory_order_seq_cst)) look_again();
    }

    /// Lets the control side look at pending work. Never waits: if the lock is
    /// taken, its holder looks when it lets go.
    void look_again() noexcept {
        look_wanted_.store(true, std::memory_order_seq_cst);
        while (look_wanted_.load(std::memory_order_seq_cst)) {
            effects out;
            {
                const std::unique_lock lock{control_mutex_, std::try_to_lock};
                if (!lock) return;
                if (look_wanted_.exchange(false, std::memory_order_seq_cst)) out = service();
            }
            act(out);
        }
    }

    /// Delivers effects. Called with no lock held and no guard of ours open.
    void act(const effects& out) noexcept {
        const auto pulse = [this](bool wanted, wired_interrupt line) noexcept {
            if (!wanted) return;
            interrupts_.fetch_add(1, std::memory_order_relaxed);
            sink_->pulse(line);
        };
        pulse(out.raise_eventq, wired_interrupt::eventq);
        pulse(out.raise_cmdq_sync, wired_interrupt::cmdq_sync);
        pulse(out.raise_gerror, wired_interrupt::gerror);
        if (out.wake_poll) deferred_.signal();
        if (out.drain_commands) look_again();
    }

    /// Runs a change under the control lock, then waits until every guard that
    /// was open has closed. The lock is free while it waits.
    template <class Change>
    [[nodiscard]] result<> waiting(Change&& change) noexcept {
        if (!is_initialized()) return host_error::not_initialized();
        {
            const std::lock_guard lock{control_mutex_};
            if (guards_.held_by_this_thread()) return host_error::guard_open();
        }
        const std::lock_guard one_at_a_time{host_mutex_};
        result<> changed;
        with_control([&]() noexcept {
            changed = change();
            if (changed) control_.start(host_grace_);
            return effects{};
        });
        if (!changed) return changed;
        for (unsigned tries = 0;; ++tries) {
            bool done = false;
            with_control([&]() noexcept {
                done = control_.finished(host_grace_);
                return effects{};
            });
            if (done) return {};
            if (tries < 64) {
                std::this_thread::yield();
            } else {
                std::this_thread::sleep_for(std::chrono::microseconds{50});
            }
        }
    }

    [[nodiscard]] result<stream_id> attach(std::string_view device_id, pa_range window,
                                           std::optional<stream_id> wanted,
                                           attach_options options) noexcept {
        if (!is_initialized()) return host_error::not_initialized();
        if (const result<> ok = host_error::check_attach(device_id, window); !ok) return fail(ok);
        const std::lock_guard lock{control_mutex_};
        if (attachments_.find(device_id) != nullptr) return host_error::attached_already(device_id);
        stream_id stream{};
        if (wanted) {
            if (const result<> ok = streams_.reserve(*wanted); !ok) return fail(ok);
            stream = *wanted;
        } else {
            const result<stream_id> given = streams_.allocate();
            if (!given) return given;
            stream = *given;
        }
        if (!attachments_.attach(device_id, window, stream, options)) {
            if (const result<> back = streams_.release(stream); !back) return fail(back);
            return host_error::out_of_memory();
        }
        return stream;
    }

    GuestMemory* memory_ = nullptr;
    InterruptSink* sink_ = nullptr;
    std::unique_ptr<InterruptSink> own_sink_;
    TlbPolicy tlb_{};
    StreamAllocator streams_{};
    configuration_cache configurations_;
    register_file<F> registers_;
    event_queue<F> events_;
    quiescence_domain<quiescence> guards_;
    control_plane<F, TlbPolicy, quiescence> control_{tlb_, configurations_, registers_, guards_};
    attachment_set attachments_;
    std::unique_ptr<port_counters[]> counters_;
    grace_period host_grace_;
    os::wakeup deferred_;
    mutable std::mutex control_mutex_;
    std::mutex host_mutex_;
    std::atomic<bool> look_wanted_{false};
    std::atomic<bool> initialized_{false};
    std::atomic<std::uint64_t> interrupts_{0};
};

} // namespace vm_accel::inline v0
