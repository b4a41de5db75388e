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
#include <vm_accel/smmu/assembly.hpp>
#include <vm_accel/smmu/host/detection.hpp>
#include <vm_accel/smmu/state_transfer.hpp>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
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
    using parts = smmu_assembly<TlbPolicy, StreamAllocator, GuestMemory, InterruptSink, Options>;

public:
    using role = roles::smmu;
    using port = typename parts::port;
    static constexpr std::string_view name = "smmu";
    static constexpr std::size_t substream_slots =
        F.substream_bits == 0 ? 0 : std::size_t{Options::substream_slots};
    /// Bytes of the register window.
    static constexpr std::uint64_t mmio_size = register_file<F>::window_bytes;
    static constexpr smmu_features features = F;

    smmu() = default;
    smmu(GuestMemory& memory, InterruptSink& sink) noexcept {
        connect(memory);
        connect(sink);
    }
    smmu(const smmu&) = delete;
    smmu& operator=(const smmu&) = delete;
    ~smmu() = default;

    /// The guest's memory, and where interrupts go; both outlive the SMMU.
    /// Without a sink, interrupts are counted and delivered nowhere.
    void connect(GuestMemory& memory) noexcept { parts_.memory = &memory; }
    void connect(InterruptSink& sink) noexcept { parts_.sink = &sink; }

    /// Whether the host has an SMMUv3 of its own. Emulation does not need one.
    [[nodiscard]] static bool is_available(const os::file_system_root& root = {}) noexcept {
        return is_host_smmu_available(root);
    }
    [[nodiscard]] static std::vector<smmu_device_info>
    detect_devices(const os::file_system_root& root = {}) {
        return detect_host_smmus(root);
    }

    /// Allocates everything that translation and commands will ever need. Errors:
    /// not_initialized (no memory connected), already_initialized, exhausted.
    [[nodiscard]] result<> init() noexcept { return parts_.init(); }
    [[nodiscard]] bool is_initialized() const noexcept { return parts_.is_initialized(); }

    // --- device face -------------------------------------------------------

    /// Reads 4 or 8 bytes at an offset into the register window.
    [[nodiscard]] std::uint64_t mmio_read(std::uint64_t offset, unsigned size) noexcept {
        if (!is_initialized()) return 0;
        auto held = parts_.lock();
        // A driver that polls makes deferred work go on by polling.
        if (parts_.control.read_depends_on_work(offset) && parts_.has_work()) {
            parts_.service(held.after);
        }
        parts_.strict.before_read(parts_, offset, size);
        parts_.strict.after_commands(parts_);
        return parts_.registers.read(offset, size);
    }

    /// Writes 4 or 8 bytes. Executes commands as far as one call may
    /// (Options::commands_per_call); the rest goes on through poll(), through
    /// reads of CMDQ_CONS, and when guards close.
    void mmio_write(std::uint64_t offset, unsigned size, std::uint64_t value) noexcept {
        if (!is_initialized()) return;
        auto held = parts_.lock();
        parts_.strict.before_write(parts_, offset, size, value);
        parts_.control.write(offset, size, value, parts_.own_memory(), parts_.execute_by(),
                             Options::commands_per_call, held.after);
        if (!parts_.control.is_command_index(offset)) parts_.settle_stalls();
        parts_.strict.after_commands(parts_);
    }

    /// Goes on with deferred work. True = there is more: call again.
    bool poll() noexcept {
        if (!is_initialized()) return false;
        parts_.deferred.clear();
        if constexpr (parts::performance_type::enabled) {
            use_performance_monitor(parts_,
                                    [](auto& monitor, auto& sums) { monitor.settle(sums); });
        }
        auto held = parts_.lock();
        parts_.service(held.after);
        parts_.strict.after_commands(parts_);
        return held.after.wake_poll;
    }
    /// Readable while poll() has work to go on with; -1 where there is no eventfd.
    [[nodiscard]] int deferred_work_fd() const noexcept { return parts_.deferred.fd(); }

    /// Power-on state, the performance monitor's too; devices stay attached. When it returns, no
    /// device uses a translation from before. Error: would_deadlock.
    [[nodiscard]] result<> reset() noexcept {
        return parts_.waiting(
            [this]() noexcept -> result<> {
                parts_.control.begin_reset(parts_.execute_by());
                parts_.attachments.for_each([](const attachment_record& record) noexcept {
                    if (record.ats != nullptr) record.ats->clear();
                });
                return {};
            },
            [this]() noexcept {
                parts_.control.finish_reset(parts_.execute_by());
                parts_.performance.reset();
            });
    }

    // --- save and restore --------------------------------------------------

    /// Bytes that save() needs.
    [[nodiscard]] std::size_t saved_state_size() const noexcept { return state_size(parts_); }
    /// Writes the whole state into `out`: registers, the queues' indices, stalled
    /// accesses, what ATS devices have not answered yet, the performance monitor. Caches are left
    /// out, and so are what the VMM itself has set up (memory, devices and their windows) and
    /// statistics. The guest's memory is saved by the VMM, after this returns.
    ///
    /// Device threads may not start accesses meanwhile; those under way end
    /// first. Gives the number of bytes. Errors: not_initialized, exhausted (`out`
    /// is too small), would_deadlock (the calling thread has a guard open).
    [[nodiscard]] result<std::size_t> save(std::span<std::byte> out) noexcept {
        // Accesses under way end, and what they left to tell is told.
        if (const result<> ended = quiesce(); !ended) return fail(ended);
        (void)poll();
        return save_state(parts_, out);
    }
    /// Takes over a state that an SMMU of the same features has saved, perhaps in
    /// another process: init() this one, give it the guest's memory and the
    /// devices with their StreamIDs, then restore. Tickets of stalled accesses
    /// stay good: any port may ask about them. Nothing is changed unless every
    /// word is sound. Errors: not_initialized, would_deadlock, mismatch (the cause
    /// says what is wrong with the state).
    [[nodiscard]] result<> restore(std::span<const std::byte> state) noexcept {
        const result<> restored = restore_state(parts_, state);
        if (restored) (void)poll();
        return restored;
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
    /// The same with a StreamID that a device tree or IORT has fixed. Error also:
    /// out_of_range (wider than the features' stream_bits, or beyond the allocator).
    [[nodiscard]] result<stream_id> attach_device(std::string_view device_id, pa_range window,
                                                  stream_id stream,
                                                  attach_options options = {}) noexcept {
        return attach(device_id, window, stream, options);
    }

    /// Takes a device away: when it returns, its DMA has ended and later DMA is
    /// refused; its ports stay valid and refuse. Errors: not_found,
    /// would_deadlock (the calling thread has a guard open).
    [[nodiscard]] result<> detach_device(std::string_view device_id) noexcept {
        stream_id stream{};
        result<> released;
        const result<> detached = parts_.waiting(
            [&]() noexcept -> result<> {
                attachment_record* record = parts_.attachments.find(device_id);
                if (record == nullptr) return host_error::unknown_device(device_id);
                stream = record->subject.stream;
                if (record->ports == 0) parts_.performance.leaving(*record);
                parts_.attachments.detach(*record, parts_.configurations);
                parts_.abort_stalls(stream);
                parts_.release_restored_stalls(stream); // asked or not: aborted
                return {};
            },
            [&]() noexcept { released = parts_.stream_ids.release(stream); });
        // A CMD_SYNC may have waited for the device's ATC.
        if (F.ats && detached) parts_.look_again();
        return detached ? released : detached;
    }

    /// Error: not_found.
    [[nodiscard]] result<attachment_info> attachment(std::string_view device_id) const noexcept {
        const auto held = parts_.lock();
        const attachment_record* record = parts_.attachments.find(device_id);
        if (record == nullptr) return host_error::unknown_device(device_id);
        return record->info();
    }
    [[nodiscard]] std::size_t attached_device_count() const noexcept {
        const auto held = parts_.lock();
        return parts_.attachments.attached();
    }
    [[nodiscard]] std::vector<attachment_info> list_attached_devices() const {
        const auto held = parts_.lock();
        return parts_.attachments.list();
    }

    /// A way to memory for one of the device's threads. Errors: not_found,
    /// exhausted (Options::ports are in use).
    [[nodiscard]] result<port> make_port(std::string_view device_id) noexcept {
        const auto held = parts_.lock();
        attachment_record* record = parts_.attachments.find(device_id);
        if (record == nullptr) return host_error::unknown_device(device_id);
        guard_slot* slot = parts_.guards.claim();
        if (slot == nullptr) return host_error::no_port_left(Options::ports);
        return parts_.make_port(*record, *slot);
    }

    /// Where a device's access would go, by what is in memory now. For
    /// diagnosis: no event, no cache, no statistics. Errors: not_found,
    /// invalid_argument, permission_denied (it would be refused; the cause names
    /// the event), mismatch (the bytes are not contiguous).
    [[nodiscard]] result<pa> translate_dma_addr(std::string_view device_id, iova address,
                                                std::uint64_t size, access kind) noexcept {
        if (!iova_range{address, size}.is_valid() || size == 0) {
            return host_error::bad_dma_range(address, size);
        }
        // In batches: a large range must not keep the guest from its registers.
        constexpr std::uint64_t batch = std::uint64_t{1} << 21;
        std::optional<pa> start;
        for (std::uint64_t done = 0; done < size;) {
            const auto held = parts_.lock();
            const attachment_record* record = parts_.attachments.find(device_id);
            if (record == nullptr) return host_error::unknown_device(device_id);
            for (const std::uint64_t end = size - done < batch ? size : done + batch; done < end;) {
                const iova at = offset_by(address, done);
                translation_fault fault;
                const outcome o = parts_.translate_by().probe(
                    record->subject, {at, end - done, kind, false, false},
                    [this] { return parts_.stream_registers(); }, fault);
                if (o.is_fault()) return host_error::refused(device_id, at, o);
                if (!start) start = o.address();
                if (o.address() != offset_by(*start, done)) {
                    return host_error::not_contiguous(device_id, at);
                }
                done += o.length();
            }
        }
        return *start;
    }

    /// Forgets cached translations and configurations, of one StreamID (as it is
    /// configured now, not of STEs before) or of all. Later accesses start from
    /// memory; wait for earlier ones with quiesce(). Error: not_found.
    [[nodiscard]] result<> invalidate_tlb(std::optional<stream_id> stream = {}) noexcept {
        const auto held = parts_.lock();
        if (!stream) {
            parts_.attachments.empty_slots(parts_.configurations, 0U, ~0U);
            parts_.control.invalidate(invalidation_scope::all());
            return {};
        }
        const attachment_record* record = parts_.attachments.find(*stream);
        if (record == nullptr) return host_error::unknown_stream(*stream);
        const stream_configuration* current = record->slot.get();
        invalidation_scope scope = invalidation_scope::all();
        // With SubstreamIDs a stream has as many contexts as there are; stage 2 is
        // known under one that others share.
        if (F.substream_bits == 0 && current != nullptr && current->context != nullptr &&
            current->stage2_context == nullptr) {
            scope.what = invalidation_scope::kind::context;
            scope.context_index = current->context->index();
        }
        parts_.attachments.empty_slots(parts_.configurations, raw(*stream), raw(*stream));
        parts_.control.invalidate(scope);
        return {};
    }

    /// Waits until every access that is under way has ended. Error: would_deadlock.
    [[nodiscard]] result<> quiesce() noexcept {
        return parts_.waiting([]() noexcept -> result<> { return {}; }, []() noexcept {});
    }

    /// Makes memory visible to devices. Errors: as GuestMemory::add.
    [[nodiscard]] result<> add_memory(pa base, std::byte* host, std::uint64_t bytes) noexcept
        requires requires(GuestMemory& memory) { memory.add(base, host, bytes); }
    {
        const auto held = parts_.lock();
        if (const result<> added = parts_.memory->add(base, host, bytes); !added) return added;
        if (is_initialized()) parts_.control.invalidate(invalidation_scope::all());
        return {};
    }
    /// Takes memory away: when it returns, no device uses it and it may be
    /// unmapped. Errors: as GuestMemory::remove, and would_deadlock.
    [[nodiscard]] result<> remove_memory(pa base) noexcept
        requires requires(GuestMemory& memory) { memory.remove(base); }
    {
        return parts_.waiting(
            [&]() noexcept -> result<> {
                if (const result<> removed = parts_.memory->remove(base); !removed) return removed;
                parts_.control.invalidate(invalidation_scope::all());
                return {};
            },
            []() noexcept {});
    }

    /// Totals since init().
    [[nodiscard]] smmu_statistics stats() const noexcept {
        const auto held = parts_.lock();
        smmu_statistics total;
        if (!is_initialized()) return total;
        for (std::size_t i = 0; i < Options::ports; ++i) {
            const port_counters& c = parts_.guards.slot(i).counters;
            total.hits += c.hits.read();
            total.misses += c.misses.read();
            total.translations += c.unresolved.read();
            total.faults += c.faults.read();
            total.msi_messages += c.messages.read();
        }
        total.translations += total.hits + total.misses;
        total.events = parts_.events.written();
        total.events_dropped = parts_.events.dropped();
        total.commands = parts_.control.commands();
        total.syncs = parts_.control.syncs();
        total.interrupts = parts_.interrupts.load(std::memory_order_relaxed);
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
    /// Faults on purpose, for tests of a driver: see Options::fault_injection.
    /// The SMMU's look-ups for translate_dma_addr() count and fail like others.
    [[nodiscard]] typename Options::fault_injection& fault_injection() noexcept {
        return parts_.injection;
    }
    /// The performance monitor counter group, a device of its own for the guest.
    /// What it tells by wire is wired_interrupt::performance.
    [[nodiscard]] performance_registers<parts> performance_monitor() noexcept
        requires(F.performance_counters != 0)
    {
        return performance_registers<parts>{parts_};
    }
    /// Strict mode's findings, for the VMM to take: see Options::lint.
    [[nodiscard]] typename Options::lint& lint() noexcept
        requires(Options::lint::enabled)
    {
        return parts_.strict.policy();
    }
    /// Whether guards cost a fence because the kernel refused membarrier(2).
    [[nodiscard]] bool is_quiescence_degraded() const noexcept {
        return parts_.guards.is_degraded();
    }
    /// Whether a CMD_SYNC waits for guards to close.
    [[nodiscard]] bool sync_pending() const noexcept {
        const auto held = parts_.lock();
        return parts_.control.sync_pending();
    }

private:
    [[nodiscard]] result<stream_id> attach(std::string_view device_id, pa_range window,
                                           std::optional<stream_id> wanted,
                                           attach_options options) noexcept {
        if (!is_initialized()) return host_error::not_initialized();
        if (const result<> ok = host_error::check_attach(device_id, window); !ok) return fail(ok);
        const auto held = parts_.lock();
        if (parts_.attachments.find(device_id) != nullptr)
            return host_error::attached_already(device_id);
        stream_id stream{};
        if (wanted) {
            if (std::uint64_t{raw(*wanted)} >> F.stream_bits != 0) {
                return host_error::stream_too_wide(*wanted, F.stream_bits);
            }
            if (const result<> ok = parts_.stream_ids.reserve(*wanted); !ok) return fail(ok);
            stream = *wanted;
        } else {
            const result<stream_id> given = parts_.stream_ids.allocate();
            if (!given) return given;
            stream = *given;
        }
        options.ats = options.ats && F.ats;
        if (!parts_.attachments.attach(device_id, window, stream, options, substream_slots)) {
            if (const result<> back = parts_.stream_ids.release(stream); !back) return fail(back);
            return host_error::out_of_memory();
        }
        return stream;
    }

    friend struct interface_access; // of another security state
    mutable parts parts_;
};

} // namespace vm_accel::inline v0
