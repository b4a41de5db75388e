/// Translation requests of devices that cache translations, and the accesses
/// they make with what they were told (IHI 0070, 3.9.1, 13.6, 13.7).
#pragma once

#include <vm_accel/guest/guest_memory.hpp>
#include <vm_accel/guest/interrupt_sink.hpp>
#include <vm_accel/smmu/caches/configuration_cache.hpp>
#include <vm_accel/smmu/translation/counted_memory.hpp>
#include <vm_accel/smmu/translation/page_walker.hpp>
#include <vm_accel/smmu/translation/stream_resolver.hpp>
#include <vm_accel/smmu/vocabulary/ats.hpp>
#include <vm_accel/smmu/vocabulary/fault.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/smmu/vocabulary/outcome.hpp>
#include <vm_accel/smmu/vocabulary/statistics.hpp>
#include <vm_accel/spec/events.hpp>

#include <algorithm>
#include <cstdint>
#include <optional>

namespace vm_accel::inline v0 {

/// Works on what is in memory, without the SMMU's own caches: the device has
/// one. Nothing stalls here. Every call is made inside an open guard.
///
/// `checks` is CR0.ATSCHK, `records` CR2.REC_CFG_ATS.
template <smmu_features F, guest_memory Memory, interrupt_sink Sink>
class ats_translation {
public:
    ats_translation(Memory& memory, Sink& sink, const stream_table_registers& registers,
                    bool checks, bool records) noexcept
        : memory_(memory), sink_(sink), registers_(registers), checks_(checks), records_(records) {}

    /// Answers a translation request (3.9.1.2). The fault says what is to be
    /// recorded, if anything (has_event()).
    [[nodiscard]] ats_completion translate(const translation_subject& subject,
                                           const ats_request& asked,
                                           translation_fault& fault) noexcept {
        // Without a PASID there is neither privilege nor execution (13.7).
        fault = of(subject, transaction{.address = asked.address,
                                        .kind = access::read,
                                        .privileged = asked.has_substream && asked.privileged,
                                        .instruction = asked.has_substream && asked.execute,
                                        .has_substream = asked.has_substream,
                                        .substream = asked.substream});
        if (subject.detached.load(std::memory_order_acquire)) return {};
        counted_memory counted{memory_};
        const counting structures{counted, cost_};
        guest_tables tables{counted};
        spec::ste entry;
        const std::optional<stream_plan> plan =
            find_plan(tables, subject, registers_.record_bad_stream_id, entry, fault);
        if (!plan)
            return {.status = fault.event == spec::event_id::F_BAD_ATS_TREQ
                                  ? ats_status::unsupported_request
                                  : ats_status::completer_abort};
        if (plan->aborts) return {};
        const unsigned mode = plan->ats == 2 && !checks_ ? 0U : plan->ats;
        if ((!plan->stage1 && !plan->stage2) || mode == 0) {
            record(fault, spec::event_id::F_BAD_ATS_TREQ);
            return {};
        }
        stream_configuration configuration;
        resolve_request who{
            .stream = subject.stream, .window = subject.window, .incoming = subject.incoming};
        if (asked.has_substream) who.substream = asked.substream;
        if (const auto bad = resolve_plan<F>(tables, *plan, entry, who, configuration)) {
            return failed(bad->event, bad->fetch_address, fault);
        }
        guest_tables<Memory> descriptors{memory_};
        const ats_completion answer = walk(descriptors, configuration, asked, mode == 2, fault);
        count(descriptors);
        return answer;
    }

    /// An access whose address came from a translation request (3.9.1.3).
    [[nodiscard]] outcome access_translated(const translation_subject& subject,
                                            const transaction& asked,
                                            translation_fault& fault) noexcept {
        // Such accesses are data accesses without privilege or SubstreamID.
        transaction made = asked;
        made.privileged = made.instruction = made.has_substream = false;
        fault = of(subject, made);
        if (subject.detached.load(std::memory_order_acquire)) {
            return abort(silent_abort::detached, fault);
        }
        if (subject.managed) return abort(silent_abort::bad_access, fault);
        if (!registers_.enabled) return refuse(spec::event_id::F_TRANSL_FORBIDDEN, fault);
        std::uint64_t address = raw(asked.address);
        std::uint64_t length = asked.length;
        memory_attributes attributes = subject.incoming;
        if (checks_) {
            counted_memory counted{memory_};
            const counting structures{counted, cost_};
            guest_tables tables{counted};
            spec::ste entry;
            const std::optional<stream_plan> plan = find_plan(tables, subject, true, entry, fault);
            if (!plan) return outcome::refused(fault.event, fault.silent);
            if (plan->aborts) return abort(silent_abort::ste_abort, fault);
            if (plan->ats == 0) return refuse(spec::event_id::F_TRANSL_FORBIDDEN, fault);
            if constexpr (F.stage2) {
                if (plan->ats == 2) {
                    guest_tables<Memory> descriptors{memory_};
                    const auto refused = through_stage2(descriptors, *plan, made, address, length,
                                                        attributes, fault);
                    count(descriptors);
                    if (refused) return *refused;
                }
            }
        }
        if (address >> F.output_bits != 0) return abort(silent_abort::bad_access, fault);
        return deliver(subject.window, address, length, attributes, fault);
    }

    /// STE.PPAR: whether an automatic response to a page request carries the
    /// request's PASID; nullopt = no valid STE says so (8.1).
    [[nodiscard]] std::optional<bool> keeps_pasid(const translation_subject& subject,
                                                  translation_fault& fault) noexcept {
        fault = of(subject, {});
        counted_memory counted{memory_};
        const counting structures{counted, cost_};
        guest_tables tables{counted};
        spec::ste entry;
        if (!registers_.enabled ||
            !find_plan(tables, subject, registers_.record_bad_stream_id, entry, fault)) {
            return std::nullopt;
        }
        return get<spec::ste::PPAR>(entry) != 0;
    }

    /// Of the calls so far.
    [[nodiscard]] const look_up_cost& cost() const noexcept { return cost_; }

private:
    /// Takes down what has been read of stream and CD tables when it goes.
    class counting {
    public:
        counting(const counted_memory<Memory>& memory, look_up_cost& cost) noexcept
            : memory_(memory), cost_(cost) {}
        counting(const counting&) = delete;
        counting& operator=(const counting&) = delete;
        ~counting() {
            cost_.configuration_accesses += memory_.accesses();
            cost_.configuration_missed = cost_.configuration_accesses != 0;
        }

    private:
        const counted_memory<Memory>& memory_;
        look_up_cost& cost_;
    };
    void count(const guest_tables<Memory>& walked) noexcept {
        cost_.walked = true;
        cost_.walk_accesses += walked.accesses();
    }

    [[nodiscard]] static translation_fault of(const translation_subject& subject,
                                              const transaction& made) noexcept {
        translation_fault f;
        f.silent = silent_abort::bad_access; // until there is an event to record
        f.stream = subject.stream;
        f.access_made = made;
        f.substream = made.substream;
        f.substream_valid = made.has_substream;
        return f;
    }
    static void record(translation_fault& fault, spec::event_id event,
                       bool wanted = true) noexcept {
        fault.event = event;
        fault.silent = silent_abort::none;
        fault.record = wanted;
    }
    [[nodiscard]] static outcome refuse(spec::event_id event, translation_fault& fault) noexcept {
        record(fault, event);
        return outcome::refused(event, silent_abort::none);
    }
    [[nodiscard]] static outcome abort(silent_abort why, translation_fault& fault) noexcept {
        fault.silent = why;
        return outcome::refused({}, why);
    }

    /// The stream's STE. Nullopt = there is none that is legal, and the fault
    /// says why: such errors are recorded with CR2.REC_CFG_ATS only.
    template <class Tables>
    [[nodiscard]] std::optional<stream_plan>
    find_plan(Tables& tables, const translation_subject& subject, bool record_bad_stream_id,
              spec::ste& entry, translation_fault& fault) noexcept {
        if (subject.managed || !registers_.enabled) {
            record(fault, spec::event_id::F_BAD_ATS_TREQ, !subject.managed);
            return std::nullopt;
        }
        const auto ste =
            fetch_ste(tables, registers_, F.stream_bits, F.two_level_stream_table, subject.stream);
        if (ste.event) {
            const bool wanted =
                *ste.event != spec::event_id::C_BAD_STREAMID || record_bad_stream_id;
            record(fault, *ste.event, records_ && wanted);
            fault.fetch_address = ste.fetch_address;
            return std::nullopt;
        }
        entry = ste.value;
        std::optional<stream_plan> plan = plan_stream<F>(entry, registers_.host_extensions);
        if (!plan) record(fault, spec::event_id::C_BAD_STE, records_);
        return plan;
    }

    /// Faults of a translation deny the page; everything else is an abort.
    [[nodiscard]] ats_completion failed(spec::event_id event, std::uint64_t fetch_address,
                                        translation_fault& fault) noexcept {
        using enum spec::event_id;
        if (event == F_TRANSLATION || event == F_ADDR_SIZE || event == F_ACCESS ||
            event == F_PERMISSION) {
            return denied(fault.access_made);
        }
        record(fault, event, records_);
        fault.fetch_address = fetch_address;
        return {.status = ats_status::completer_abort};
    }
    [[nodiscard]] static ats_completion denied(const transaction& made) noexcept {
        return {.status = ats_status::success, .privileged = made.privileged};
    }

    /// Both stages, and what the device is to be told: the final address, or in
    /// split-stage mode that of stage 1.
    struct both_stages {
        walk_result final{};
        walk_result told{};
    };
    [[nodiscard]] both_stages walk_for(guest_tables<Memory>& tables,
                                       const stream_configuration& configuration,
                                       std::uint64_t address, unsigned needed,
                                       bool split) noexcept {
        const translation_regimes& regimes = configuration.regimes;
        const walk_request asked{address, needed, configuration.incoming};
        both_stages r;
        r.told =
            regimes.stage1_enabled ? walk_stage1<F>(regimes, asked, tables) : pass_stage1<F>(asked);
        r.final = r.told;
        if constexpr (F.stage2) {
            if (regimes.stage2_enabled && !r.told.event) {
                const walk_result stage2 =
                    walk_stage2<F>(regimes.stage2,
                                   {.ipa = r.told.output_base + (address - r.told.input_base),
                                    .needed = needed,
                                    .incoming = r.told.attributes},
                                   tables);
                r.final = stage2.event || !regimes.stage1_enabled
                              ? stage2
                              : combined(r.told, stage2, address);
            }
        }
        if (!split) r.told = r.final;
        return r;
    }

    [[nodiscard]] ats_completion walk(guest_tables<Memory>& tables,
                                      const stream_configuration& configuration,
                                      const ats_request& asked, bool split,
                                      translation_fault& fault) noexcept {
        const bool privileged = fault.access_made.privileged;
        const bool execute = fault.access_made.instruction;
        const auto bit = [&](access kind, bool instruction) {
            return configuration.needed({.address = asked.address,
                                         .kind = kind,
                                         .privileged = privileged,
                                         .instruction = instruction});
        };
        const std::uint64_t address = configuration.canonical(raw(asked.address));
        const unsigned to_read = bit(access::read, false);
        const unsigned to_write = bit(access::write, false);

        both_stages found = walk_for(tables, configuration, address, to_read, split);
        bool read = !found.final.event;
        if (!read && !is_denial(found.final)) {
            return failed(*found.final.event, found.final.fetch_address, fault);
        }
        bool write = read && found.final.allowed.allow(to_write);
        if (asked.write && !write) {
            // Writing may need a flag set, which is for this walk to do.
            const both_stages again = walk_for(tables, configuration, address, to_write, split);
            if (!again.final.event) {
                write = true;
                found = again;
                read = again.final.allowed.allow(to_read);
            } else if (!is_denial(again.final)) {
                return failed(*again.final.event, again.final.fetch_address, fault);
            }
        }
        ats_completion answer = denied(fault.access_made);
        if (!read && !write) return answer;
        answer.address = found.told.output_base + (address - found.told.input_base);
        answer.size_log2 = std::min(found.told.size_log2, found.final.size_log2);
        if (!fits(configuration.window, answer, found, address, split)) {
            return denied(fault.access_made);
        }
        answer.read = read;
        answer.write = write;
        answer.execute = execute && read && found.final.allowed.allow(bit(access::read, true));
        return answer;
    }
    /// A permission that the page itself lacks: others may be granted.
    [[nodiscard]] static bool is_denial(const walk_result& walk) noexcept {
        return walk.event == spec::event_id::F_PERMISSION && walk.cls == spec::fault_class::IN;
    }

    /// Cuts the answer down to a piece that lies inside the VMM's window; false
    /// = no piece does. Doorbells are for untranslated accesses. Intermediate
    /// addresses are looked at when they are used.
    [[nodiscard]] bool fits(pa_range window, ats_completion& answer, const both_stages& found,
                            std::uint64_t address, bool split) noexcept {
        const pa output{found.final.output_base + (address - found.final.input_base)};
        if (sink_.is_doorbell(output)) {
            answer.untranslated_only = true;
            answer.size_log2 = 12;
            return true;
        }
        if (split) return true;
        for (;; --answer.size_log2) {
            const std::uint64_t size = std::uint64_t{1} << answer.size_log2;
            if (window.contains(pa{raw(output) & ~(size - 1)}, size)) return true;
            if (answer.size_log2 == 12) return false;
        }
    }

    /// Split-stage mode: the address is intermediate. Faults are those of an
    /// ordinary access.
    [[nodiscard]] std::optional<outcome>
    through_stage2(guest_tables<Memory>& tables, const stream_plan& plan, transaction& made,
                   std::uint64_t& address, std::uint64_t& length, memory_attributes& attributes,
                   translation_fault& fault) noexcept {
        stream_configuration overrides;
        overrides.attributes_kept = plan.access_kept;
        overrides.attributes_forced = plan.access_forced;
        fault.access_made = made = overrides.overridden(made);
        const unsigned needed = permissions::needed(made.kind, made.privileged, made.instruction);
        walk_result leaf = pass_stage1<F>({address, needed, attributes}); // too wide an address?
        if (!leaf.event) {
            leaf = walk_stage2<F>(plan.stage2_tables,
                                  {.ipa = address,
                                   .needed = needed,
                                   .incoming = overridden(attributes, plan.attributes)},
                                  tables);
        }
        if (leaf.event) {
            const bool external = *leaf.event == spec::event_id::F_WALK_EABT;
            record(fault, *leaf.event, external || !leaf.stage2 || plan.record_stage2_faults);
            fault.stage2 = leaf.stage2;
            fault.cls = leaf.cls;
            fault.ipa = leaf.ipa;
            fault.fetch_address = leaf.fetch_address;
            return outcome::refused(*leaf.event, silent_abort::none);
        }
        const std::uint64_t offset = address - leaf.input_base;
        length = std::min(length, (std::uint64_t{1} << leaf.size_log2) - offset);
        address = leaf.output_base + offset;
        attributes = leaf.attributes;
        return std::nullopt;
    }

    /// The VMM's window holds whatever the address came from.
    [[nodiscard]] outcome deliver(pa_range window, std::uint64_t address, std::uint64_t length,
                                  memory_attributes attributes, translation_fault& fault) noexcept {
        const pa output{address};
        const std::uint64_t in_page = std::min(length, 0x1000 - (address & 0xfff));
        if (sink_.is_doorbell(output)) return outcome::mmio(output, in_page, attributes);
        if (!window.contains(output)) return abort(silent_abort::outside_window, fault);
        const std::optional<host_run> run = memory_.find(output);
        if (!run) return outcome::mmio(output, in_page, attributes);
        const std::uint64_t skipped = address - raw(run->base);
        const std::uint64_t in_window = window.size - (address - raw(window.base));
        return outcome::span(run->host + skipped,
                             std::min({length, run->bytes - skipped, in_window}), output,
                             attributes);
    }

    Memory& memory_;
    Sink& sink_;
    stream_table_registers registers_;
    bool checks_;
    bool records_;
    look_up_cost cost_{};
};

} // namespace vm_accel::inline v0
