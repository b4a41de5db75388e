/// One trace through one TLB.
#pragma once

#include "trace.hpp"

#include <vm_accel/smmu/caches/context_table.hpp>
#include <vm_accel/smmu/caches/prefetching_tlb.hpp>
#include <vm_accel/smmu/caches/tlb_policy.hpp>

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

namespace policy_lab {

/// A trace made ready: pages in place of accesses, numbers in place of devices.
struct prepared_trace {
    struct step {
        enum class kind : std::uint8_t { access, page, forget };
        kind what = kind::access;
        std::uint8_t size_log2 = 12; ///< access, page
        bool global = false;
        std::uint32_t device = 0; ///< access
        std::uint32_t context = 0;
        std::uint64_t first = 0; ///< access: the whole one's first byte; page: its first
        std::uint64_t last = 0;
        std::uint64_t base = 0; ///< access: of the page that is looked up
        std::size_t scope = 0;  ///< forget: which one
    };
    std::string name;
    std::vector<step> steps;
    std::vector<vm_accel::translation_tag> contexts;
    std::vector<vm_accel::invalidation_scope> scopes;
    std::vector<std::pair<std::uint32_t, std::optional<std::uint32_t>>> devices;
    std::uint64_t accesses = 0; ///< page by page
    std::uint64_t pages = 0;    ///< different ones
};

/// The pages of one context, by their first byte.
class page_map {
public:
    struct page {
        std::uint8_t size_log2 = 12;
        bool global = false;
    };
    /// In place of what was there.
    void put(std::uint64_t base, page p) {
        const std::uint64_t last = base + ((std::uint64_t{1} << p.size_log2) - 1);
        pages_.erase(pages_.lower_bound(base), pages_.upper_bound(last));
        pages_.emplace(base, p);
    }
    [[nodiscard]] const page* find(std::uint64_t address) const {
        auto at = pages_.upper_bound(address);
        if (at == pages_.begin()) return nullptr;
        --at;
        return (address - at->first) >> at->second.size_log2 == 0 ? &at->second : nullptr;
    }
    void erase(const vm_accel::invalidation_scope& scope, const vm_accel::translation_tag& tag) {
        for (auto at = pages_.begin(); at != pages_.end();) {
            const page& p = at->second;
            const bool covered =
                scope.covers(tag, p.global, 0, at->first, std::uint64_t{1} << p.size_log2);
            at = covered ? pages_.erase(at) : std::next(at);
        }
    }

private:
    std::map<std::uint64_t, page> pages_;
};

/// Devices under one tag share a context, as those of one domain do.
[[nodiscard]] inline prepared_trace prepare(const trace& from) {
    using kind = trace_record::kind;
    using step = prepared_trace::step;
    using namespace vm_accel;
    prepared_trace out;
    out.name = from.name;
    constexpr std::uint32_t none = ~std::uint32_t{0};
    std::vector<std::uint32_t> context_of; // by device
    std::vector<page_map> pages;           // by context, as last told
    std::vector<std::map<std::uint64_t, bool>> seen;
    const auto context_for = [&](const translation_tag& tag) {
        const auto at = std::find(out.contexts.begin(), out.contexts.end(), tag);
        if (at != out.contexts.end()) return static_cast<std::uint32_t>(at - out.contexts.begin());
        out.contexts.push_back(tag);
        pages.emplace_back();
        seen.emplace_back();
        return static_cast<std::uint32_t>(out.contexts.size() - 1);
    };
    std::uint32_t device = 0;
    const auto select = [&](std::uint32_t stream, std::optional<std::uint32_t> substream) {
        const std::pair who{stream, substream};
        const auto at = std::find(out.devices.begin(), out.devices.end(), who);
        device = static_cast<std::uint32_t>(at - out.devices.begin());
        if (at != out.devices.end()) return;
        out.devices.push_back(who);
        context_of.push_back(none);
    };
    for (const trace_record& r : from.records) {
        if (r.what == kind::device) {
            select(r.stream, r.substream);
            continue;
        }
        if (r.what == kind::forget) {
            out.steps.push_back({.what = step::kind::forget, .scope = out.scopes.size()});
            out.scopes.push_back(r.scope);
            continue;
        }
        if (out.devices.empty()) select(0, {});
        if (r.what == kind::page) {
            const std::uint32_t context = context_of[device] = context_for(r.tag);
            const std::uint64_t base = r.address >> r.size_log2 << r.size_log2;
            pages[context].put(base, {r.size_log2, r.global});
            out.steps.push_back({.what = step::kind::page,
                                 .size_log2 = r.size_log2,
                                 .global = r.global,
                                 .context = context,
                                 .first = base,
                                 .last = base + ((std::uint64_t{1} << r.size_log2) - 1)});
            continue;
        }
        if (context_of[device] == none) {
            // Nobody else has this tag, until the driver gives it one.
            context_of[device] =
                context_for({stream_world::managed, vmid{static_cast<std::uint16_t>(device >> 16)},
                             asid{static_cast<std::uint16_t>(device)}});
        }
        const std::uint32_t context = context_of[device];
        const std::uint64_t last = r.address + (r.bytes - 1);
        for (std::uint64_t at = r.address;;) {
            const page_map::page* const known = pages[context].find(at);
            const page_map::page p = known != nullptr ? *known : page_map::page{};
            const std::uint64_t base = at >> p.size_log2 << p.size_log2;
            const std::uint64_t end = base + ((std::uint64_t{1} << p.size_log2) - 1);
            out.steps.push_back({.size_log2 = p.size_log2,
                                 .global = p.global,
                                 .device = device,
                                 .context = context,
                                 .first = r.address,
                                 .last = last,
                                 .base = base});
            ++out.accesses;
            out.pages += seen[context].emplace(base, true).second ? 1 : 0;
            if (end >= last) break;
            at = end + 1;
        }
    }
    return out;
}

/// What came of it.
struct outcome_counts {
    std::uint64_t accesses = 0, hits = 0;
    [[nodiscard]] double rate() const noexcept {
        return accesses == 0 ? 0 : static_cast<double>(hits) / static_cast<double>(accesses);
    }
};
struct replay_result {
    outcome_counts all;
    std::vector<outcome_counts> devices; ///< as in the trace
    std::uint64_t walks = 0;             ///< of misses and of prefetches

    /// Of the device that fares worst, among those that `counts` names.
    [[nodiscard]] double worst(const std::vector<bool>& counts) const noexcept {
        double least = 1;
        for (std::size_t i = 0; i < devices.size(); ++i)
            if (counts[i]) least = std::min(least, devices[i].rate());
        return least;
    }
    [[nodiscard]] double walks_per_access() const noexcept {
        return all.accesses == 0 ? 0
                                 : static_cast<double>(walks) / static_cast<double>(all.accesses);
    }
};

/// As the SMMU uses a TLB: contexts age when the driver takes back all, a VMID
/// or an ASID, and a TLB that prefetches is asked after each miss. A prefetch
/// finds pages that the trace has shown, and has not taken back since, and those
/// of the access itself: no trace says what else the driver has mapped.
template <vm_accel::tlb_policy Tlb>
[[nodiscard]] replay_result replay(const prepared_trace& from) {
    using namespace vm_accel;
    using kind = prepared_trace::step::kind;
    const auto tlb = std::make_unique<Tlb>();
    context_table table;
    std::vector<const translation_context*> contexts;
    replay_result result;
    if (!table.allocate(from.contexts.size() + 1, 32)) return result;
    for (const translation_tag& tag : from.contexts)
        contexts.push_back(table.intern({.tag = tag}));
    result.devices.resize(from.devices.size());
    std::vector<page_map> pages(prefetching_tlb<Tlb> ? from.contexts.size() : 0);

    const auto fill = [&](std::uint32_t context, std::uint64_t base, page_map::page p) {
        ++result.walks;
        const translation_context& of = *contexts[context];
        const fill_ticket ticket = tlb->begin_fill({base, 0, 0});
        of.note_page_size(p.size_log2);
        tlb->fill(ticket, {.base = base,
                           .context = of.tag(),
                           .output = base & 0x000f'ffff'ffff'f000,
                           .tag = from.contexts[context],
                           .allowed = permissions{permissions::user_read},
                           .size_log2 = p.size_log2,
                           .guest_size_log2 = p.size_log2,
                           .global = p.global});
    };
    for (const prepared_trace::step& s : from.steps) {
        if (s.what == kind::forget) {
            const invalidation_scope& scope = from.scopes[s.scope];
            if (scope.by_address()) {
                tlb->invalidate(scope);
            } else if (table.invalidate(scope)) {
                tlb->invalidate(invalidation_scope::all());
            }
            for (std::size_t i = 0; i < pages.size(); ++i)
                pages[i].erase(scope, from.contexts[i]);
            continue;
        }
        if (s.what == kind::page) {
            if (!pages.empty()) pages[s.context].put(s.first, {s.size_log2, s.global});
            continue;
        }
        outcome_counts& device = result.devices[s.device];
        ++device.accesses;
        ++result.all.accesses;
        const translation_context& context = *contexts[s.context];
        const tlb_key key{std::max(s.base, s.first), context.tag(), context.page_sizes()};
        if (tlb->lookup(key)) {
            ++device.hits;
            ++result.all.hits;
            continue;
        }
        fill(s.context, s.base, {s.size_log2, s.global});
        if constexpr (prefetching_tlb<Tlb>) {
            page_map& known = pages[s.context];
            known.put(s.base, {s.size_log2, s.global});
            const prefetch_wish wish = tlb->next_wanted(key, s.size_log2);
            const unsigned count = std::min(wish.count, prefetch_wish::most_prefetches);
            for (unsigned i = 0; i < count; ++i) {
                const std::uint64_t at = wish.first + i * wish.step;
                if (tlb->lookup({at, context.tag(), context.page_sizes()})) continue;
                if (const page_map::page* const p = known.find(at)) {
                    fill(s.context, at >> p->size_log2 << p->size_log2, *p);
                } else if (at >= s.first && at <= s.last) {
                    fill(s.context, at >> 12 << 12, {});
                } else {
                    ++result.walks; // for nothing
                }
            }
        }
    }
    return result;
}

} // namespace policy_lab
