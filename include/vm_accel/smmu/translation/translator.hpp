/// How a DMA access becomes host memory. Read translate() top to bottom.
#pragma once

#include <vm_accel/guest/guest_memory.hpp>
#include <vm_accel/guest/interrupt_sink.hpp>
#include <vm_accel/smmu/caches/configuration_cache.hpp>
#include <vm_accel/smmu/caches/prefetching_tlb.hpp>
#include <vm_accel/smmu/caches/stream_view.hpp>
#include <vm_accel/smmu/caches/tlb_policy.hpp>
#include <vm_accel/smmu/caches/walk_cache.hpp>
#include <vm_accel/smmu/translation/counted_memory.hpp>
#include <vm_accel/smmu/translation/page_walker.hpp>
#include <vm_accel/smmu/translation/repeated_miss.hpp>
#include <vm_accel/smmu/translation/stream_resolver.hpp>
#include <vm_accel/smmu/translation/walk_memory.hpp>
#include <vm_accel/smmu/vocabulary/fault.hpp>
#include <vm_accel/smmu/vocabulary/outcome.hpp>
#include <vm_accel/smmu/vocabulary/statistics.hpp>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <optional>

namespace vm_accel::inline v0 {

/// Translates accesses. Holds nothing of its own: the caches, memory and
/// counters are handed in. Every call is made inside an open guard.
template <smmu_features F, tlb_policy Tlb, walk_cache_policy Walks, guest_memory Memory,
          interrupt_sink Sink>
class translator {
public:
    translator(Tlb& tlb, Walks& walks, configuration_cache& configurations, Memory& memory,
               Sink& sink) noexcept
        : tlb_(tlb), walks_(walks), configurations_(configurations), memory_(memory), sink_(sink) {}

    using view = stream_view<F, Tlb>;

    /// The usual case, small enough to become part of the caller: the view is as
    /// new as the configuration, and the TLB has memory for it. False = anything
    /// else: nothing has been counted, and translate() decides.
    template <class Counters>
    [[nodiscard, gnu::always_inline]] static bool
    translate_hit(Tlb& tlb, const change_epoch& epoch, const view& known, iova address,
                  std::uint64_t length, access kind, access_attributes attributes,
                  Counters& counters, outcome& out) noexcept {
        view_hit hit;
        if (!known.look_up(tlb, epoch, address, length, kind, attributes, hit)) [[unlikely]]
            return false;
        counters.hits.add();
        out = outcome::span(hit.host, hit.length, pa{hit.output}, hit.attributes);
        return true;
    }

    /// Whether misses learn from those before: see repeated_miss.
    static constexpr bool learns = repeats_misses<F, Tlb, Walks, Memory>;
    [[nodiscard]] auto repeated() noexcept
        requires(learns)
    {
        return repeated_miss<F, Tlb, Walks, Memory, Sink>{tlb_, walks_, configurations_.epoch(),
                                                          memory_, sink_};
    }

    /// Translates one access. `registers()` gives stream_table_registers, and
    /// is called on a configuration miss only. On a fault, `fault` says all
    /// that the event record needs. `known` learns what the next hit needs.
    /// Lock-free; a hit takes no atomic write but the replacement policy's hint
    /// and the caller's counters.
    template <class Registers, class Counters>
    [[nodiscard]] outcome translate(const translation_subject& subject, configuration_slot& slot,
                                    const transaction& asked, Registers&& registers,
                                    Counters& counters, view& known,
                                    translation_fault& fault) noexcept {
        const std::uint64_t epoch = configurations_.epoch().now(); // before what is copied
        const stream_configuration* const configuration = slot.get();
        // Accesses with another SubstreamID may have the slot: these work uncached.
        if (configuration == nullptr || !serves(*configuration, asked)) [[unlikely]] {
            return configure_and_translate(subject, slot, asked, registers, counters, known, epoch,
                                           fault);
        }
        return translate_configured(subject, *configuration, asked, counters, known, epoch, fault);
    }

    /// The same without caches: reads what is in memory now, stores nothing.
    template <class Registers>
    [[nodiscard]] outcome probe(const translation_subject& subject, const transaction& asked,
                                Registers&& registers, translation_fault& fault) noexcept {
        stream_configuration configuration;
        if (const auto failed = decode(memory_, false, subject, asked, registers, configuration)) {
            return refuse(subject, configuration.overridden(asked), *failed, fault);
        }
        if (configuration.mode == stream_mode::abort) {
            return refuse(subject, asked, configuration.why, fault);
        }
        guest_tables tables{memory_, false};
        return miss(subject, configuration, asked, configuration.canonical(raw(asked.address)),
                    needed_by(configuration, asked), tables, fault);
    }

    /// Loads what an access like `asked`, a read, would need: its configuration,
    /// and its translation if it has a length. A hint: no event, no flag
    /// updated, nothing when something is amiss. Called inside an open guard, or
    /// under the lock without which no guard's grace period ends.
    template <class Registers>
    void prefetch(const translation_subject& subject, configuration_slot& slot,
                  const transaction& asked, Registers&& registers, look_up_cost& cost) noexcept {
        const stream_configuration* configuration = slot.get();
        if (configuration == nullptr) {
            const configuration_ticket ticket = slot.begin_fill();
            if (F.substream_bits != 0 && asked.has_substream) subject.note_substream();
            if (subject.detached.load(std::memory_order_acquire)) return;
            stream_configuration decoded;
            counted_memory counted{memory_};
            const auto failed = decode(counted, true, subject, asked, registers, decoded);
            cost.configuration_accesses += counted.accesses();
            if (failed) return;
            configuration = configurations_.publish(slot, ticket, decoded);
        }
        if (configuration == nullptr || configuration->context == nullptr ||
            !serves(*configuration, asked) || asked.length == 0) {
            return;
        }
        const std::uint64_t address = configuration->canonical(raw(asked.address));
        const translation_context& context = *configuration->context;
        if (tlb_.lookup({address, context.tag(), context.page_sizes()})) return;
        guest_tables tables{memory_, false};
        translation_fault unused;
        (void)miss(subject, *configuration, asked, address, needed_by(*configuration, asked),
                   tables, unused);
        cost.walk_accesses += tables.accesses();
    }

private:
    /// Without a configuration for the access, which is fetched first.
    template <class Registers, class Counters>
    [[nodiscard, gnu::noinline]] outcome
    configure_and_translate(const translation_subject& subject, configuration_slot& slot,
                            const transaction& asked, Registers& registers, Counters& counters,
                            view& known, std::uint64_t epoch, translation_fault& fault) noexcept {
        stream_configuration uncached;
        const configuration_ticket ticket = slot.begin_fill();
        if (F.substream_bits != 0 && asked.has_substream) subject.note_substream();
        // After the ticket: a slot emptied by a detach is never filled again.
        if (subject.detached.load(std::memory_order_acquire)) {
            counters.unresolved.add();
            return refuse(subject, asked, silent_abort::detached, fault);
        }
        counters.configuration_misses.add();
        counted_memory counted{memory_};
        const auto failed = decode(counted, true, subject, asked, registers, uncached);
        counters.configuration_accesses.add(counted.accesses());
        if (failed) {
            counters.unresolved.add();
            return refuse(subject, uncached.overridden(asked), *failed, fault);
        }
        const stream_configuration* configuration = configurations_.publish(slot, ticket, uncached);
        if (configuration == nullptr) configuration = &uncached;
        return translate_configured(subject, *configuration, asked, counters, known, epoch, fault);
    }

    template <class Counters>
    [[nodiscard, gnu::always_inline]] outcome
    translate_configured(const translation_subject& subject,
                         const stream_configuration& configuration, const transaction& asked,
                         Counters& counters, view& known, std::uint64_t epoch,
                         translation_fault& fault) noexcept {
        if (configuration.mode == stream_mode::abort) [[unlikely]] {
            counters.unresolved.add();
            return refuse(subject, asked, configuration.why, fault);
        }

        const std::uint64_t address = configuration.canonical(raw(asked.address));
        const unsigned needed = needed_by(configuration, asked);
        if (configuration.context != nullptr) [[likely]] {
            const translation_context& context = *configuration.context;
            const std::uint64_t tag = context.tag();
            const auto hit = tlb_.lookup({address, tag, context.page_sizes()});
            // An entry that does not allow it is no answer: the tables know which stage
            // refuses, and whether a flag is to be set first.
            if (hit && hit->allowed.allow(needed)) [[likely]] {
                counters.hits.add();
                known.copy(epoch, configuration, tag, hit->size_log2);
                const std::uint64_t size = std::uint64_t{1} << hit->size_log2;
                return deliver(*hit, address & (size - 1), size, asked.length);
            }
        }
        counters.misses.add();
        guest_tables tables{memory_};
        const outcome answer =
            miss(subject, configuration, asked, address, needed, tables, fault, &known, epoch);
        counters.walk_accesses.add(tables.accesses());
        if constexpr (prefetching_tlb<Tlb>) {
            if (!answer.is_fault() && configuration.context != nullptr) {
                counters.walk_accesses.add(grant_wish(subject, configuration, asked, address));
            }
        }
        return answer;
    }

    /// Without SubstreamIDs a slot has one configuration for all; then accesses
    /// that carry one have no configuration at all.
    [[nodiscard]] static constexpr bool serves(const stream_configuration& configuration,
                                               const transaction& asked) noexcept {
        if constexpr (F.substream_bits != 0) return configuration.serves(asked);
        return !asked.has_substream;
    }

    /// What is configured for the device's accesses at this moment. Fetching it
    /// may set flags in stage-2 tables.
    template <class View, class Registers>
    [[nodiscard]] static std::optional<resolve_fault>
    decode(View& memory, bool updates, const translation_subject& subject, const transaction& asked,
           Registers& registers, stream_configuration& out) noexcept {
        if (subject.managed) {
            out = untranslated(stream_world::managed, subject.window, subject.incoming, false);
            out.is_substream = asked.has_substream;
            out.substream = asked.substream;
            return std::nullopt;
        }
        guest_tables<View> tables{memory, updates};
        resolve_request request{
            .stream = subject.stream, .window = subject.window, .incoming = subject.incoming};
        if (asked.has_substream) request.substream = asked.substream;
        return resolve_stream<F>(tables, registers(), request, out);
    }

    /// Loads what the TLB wants after an access that missed, as far as reading
    /// it is allowed. Gives the number of accesses to tables.
    [[nodiscard, gnu::noinline]] std::uint64_t
    grant_wish(const translation_subject& subject, const stream_configuration& configuration,
               const transaction& missed, std::uint64_t address) noexcept
        requires prefetching_tlb<Tlb>
    {
        const translation_context& context = *configuration.context;
        const auto key_of = [&](std::uint64_t at) noexcept {
            return tlb_key{at, context.tag(), context.page_sizes()};
        };
        const auto here = tlb_.lookup(key_of(address));
        if (!here) return 0; // not cached: its neighbours would not be either
        const prefetch_wish wish = tlb_.next_wanted(key_of(address), here->size_log2);
        transaction asked = missed;
        asked.kind = access::read;
        asked.length = 1;
        const unsigned count = std::min(wish.count, prefetch_wish::most_prefetches);
        std::uint64_t accesses = 0;
        for (unsigned i = 0; i < count; ++i) {
            const std::uint64_t at = wish.first + i * wish.step;
            if (tlb_.lookup(key_of(at))) continue;
            guest_tables tables{memory_, false};
            translation_fault unused;
            (void)miss(subject, configuration, asked, at, needed_by(configuration, asked), tables,
                       unused);
            accesses += tables.accesses();
        }
        return accesses;
    }

    /// Walks the tables, checks, and fills the TLB. The ticket comes before
    /// the tag, and both before the first descriptor is read. `epoch`: before the tags.
    [[nodiscard]] outcome miss(const translation_subject& subject,
                               const stream_configuration& configuration, const transaction& asked,
                               std::uint64_t address, unsigned needed, guest_tables<Memory>& tables,
                               translation_fault& fault, view* learner = nullptr,
                               std::uint64_t epoch = 0) noexcept {
        const translation_context* const context = configuration.context;
        const fill_ticket ticket = tlb_.begin_fill({address, 0, 0});
        const walk_ticket ticket_of_walks = walks_.begin();
        const std::uint64_t tag = context != nullptr ? context->tag() : 0;
        walk_memory<Walks> known{walks_, ticket_of_walks, configuration.stage2_context};
        if (context != nullptr) known.belongs_to(tag, configuration.identity.tag);
        familiar_leaf familiar;
        if (learner != nullptr && context != nullptr && learner->misses.wants(epoch, configuration))
            known.describe(familiar);

        // In bypass both stages are off, and the walk passes the address on.
        const walk_result leaf = walk_tables<F>(
            configuration.regimes, {address, needed, configuration.incoming}, tables, known);
        if (leaf.event) return refuse_walk(subject, asked, configuration, leaf, fault);

        tlb_entry entry;
        std::optional<host_run> run;
        const silent_abort refused = place(leaf, address, configuration.window, entry, run);
        if (refused != silent_abort::none) return refuse(subject, asked, refused, fault);
        entry.allowed = leaf.allowed;
        entry.global = leaf.global;
        entry.attributes = leaf.attributes;
        // Untranslated addresses have no page of the guest's that could go as one.
        entry.guest_size_log2 =
            configuration.mode == stream_mode::bypass ? entry.size_log2 : leaf.page_size_log2;
        const std::uint64_t size = std::uint64_t{1} << entry.size_log2;
        if (context != nullptr && !tables.owes_update()) {
            entry.context = tag;
            entry.tag = configuration.identity.tag;
            context->note_page_size(entry.size_log2);
            tlb_.fill(ticket, entry);
            if (learner != nullptr && familiar.size_log2 != 0 && entry.host != nullptr &&
                entry.size_log2 == leaf.size_log2)
                learner->misses.learn(epoch, configuration, familiar, entry, *run);
        }
        return deliver({entry.host, entry.output, entry.allowed, entry.size_log2, entry.attributes},
                       address & (size - 1), size, asked.length);
    }

    /// Finds the largest piece around the address that lies inside the window
    /// and one memory region, or is not memory at all.
    [[nodiscard, gnu::always_inline]] silent_abort place(const walk_result& leaf,
                                                         std::uint64_t address, pa_range window,
                                                         tlb_entry& entry,
                                                         std::optional<host_run>& run) noexcept {
        const std::uint64_t leaf_size = std::uint64_t{1} << leaf.size_log2;
        const pa output{leaf.output_base + (address & (leaf_size - 1))};
        const bool doorbell = sink_.is_doorbell(output);
        // A doorbell is no memory: a write there is a message, wherever the window is.
        if (!doorbell && !reaches(window, output)) return silent_abort::outside_window;

        if (!doorbell) run = memory_.find(output);
        for (std::uint8_t size_log2 = leaf.size_log2;; size_log2 = next_smaller(size_log2)) {
            const std::uint64_t size = std::uint64_t{1} << size_log2;
            const pa base{raw(output) & ~(size - 1)};
            // Windows and regions are 4 KiB aligned, so the smallest piece
            // always fits; what is not RAM is cached in smallest pieces.
            const bool in_memory =
                run && (size_log2 == 12 || pa_range{run->base, run->bytes}.contains(base, size));
            if (size_log2 == 12 || (in_memory && reaches(window, base, size))) {
                entry.base = address & ~(size - 1);
                entry.output = raw(base);
                entry.size_log2 = size_log2;
                entry.host = in_memory ? run->host + (raw(base) - raw(run->base)) : nullptr;
                return silent_abort::none;
            }
        }
    }

    /// A secure device has its window in both spaces.
    [[nodiscard]] static constexpr bool reaches(pa_range window, pa address,
                                                std::uint64_t size = 1) noexcept {
        return window.contains(pa{bare_address<F.state>(raw(address))}, size);
    }
    /// The next size to try when a page crosses an edge. Few sizes, because a
    /// look-up probes each size that a context has.
    [[nodiscard]] static constexpr std::uint8_t next_smaller(std::uint8_t size_log2) noexcept {
        return size_log2 > 30 ? 30 : size_log2 > 21 ? 21 : 12;
    }

    [[nodiscard, gnu::always_inline]] static outcome deliver(const tlb_hit& hit,
                                                             std::uint64_t offset,
                                                             std::uint64_t size,
                                                             std::uint64_t length) noexcept {
        const std::uint64_t usable = std::min(length, size - offset);
        const pa address{hit.output + offset};
        if (hit.host == nullptr) [[unlikely]]
            return outcome::mmio(address, usable, hit.attributes);
        return outcome::span(hit.host + offset, usable, address, hit.attributes);
    }

    [[nodiscard]] static outcome refuse(const translation_subject& subject,
                                        const transaction& asked, silent_abort why,
                                        translation_fault& fault) noexcept {
        fault = {};
        fault.silent = why;
        fault.stream = subject.stream;
        fault.access_made = asked;
        fault.substream = asked.substream;
        fault.substream_valid = asked.has_substream;
        return outcome::refused({}, why);
    }
    [[nodiscard]] static outcome refuse(const translation_subject& subject,
                                        const transaction& asked, const resolve_fault& why,
                                        translation_fault& fault) noexcept {
        fault = {};
        fault.event = why.event;
        fault.stream = subject.stream;
        fault.access_made = asked;
        fault.substream = asked.substream;
        fault.substream_valid = asked.has_substream;
        fault.fetch_address = why.fetch_address;
        fault.record = why.record;
        fault.stage2 = why.stage2;
        fault.cls = why.cls;
        fault.ipa = why.ipa;
        fault.may_stall = why.may_stall;
        return outcome::refused(why.event, silent_abort::none);
    }
    [[nodiscard, gnu::noinline]] static outcome
    refuse_walk(const translation_subject& subject, const transaction& asked,
                const stream_configuration& configuration, const walk_result& walk,
                translation_fault& fault) noexcept {
        // CD.R and STE.S2R decide the four faults of a walk; an external abort is
        // recorded anyway, and never stalls.
        const bool abort = *walk.event == spec::event_id::F_WALK_EABT;
        const bool record =
            walk.stage2 ? configuration.record_stage2_faults : configuration.record_stage1_faults;
        const bool stall =
            walk.stage2 ? configuration.stall_stage2_faults : configuration.stall_stage1_faults;
        const resolve_fault why{.event = *walk.event,
                                .fetch_address = walk.fetch_address,
                                .record = abort || record,
                                .stage2 = walk.stage2,
                                .cls = abort && !walk.stage2 ? spec::fault_class::TT : walk.cls,
                                .ipa = walk.ipa,
                                .may_stall = !abort && stall};
        const outcome answer = refuse(subject, configuration.overridden(asked), why, fault);
        fault.table_write = walk.table_write;
        fault.quiet = !abort && !walk.stage2 && configuration.quiet_stage1_faults;
        return answer;
    }
    [[nodiscard]] static constexpr unsigned needed_by(const stream_configuration& configuration,
                                                      const transaction& asked) noexcept {
        if constexpr (F.permission_overrides) return configuration.needed(asked);
        return permissions::needed(asked.kind, asked.privileged, asked.instruction);
    }

    Tlb& tlb_;
    Walks& walks_;
    configuration_cache& configurations_;
    Memory& memory_;
    Sink& sink_;
};

} // namespace vm_accel::inline v0
