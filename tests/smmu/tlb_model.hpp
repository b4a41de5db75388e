/// Any TLB policy behind one interface, so that long tests of all policies are
/// compiled once. A test's own convenience: the library has nothing like it.
#pragma once

#include <vm_accel/smmu/caches/tlb_policy.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>

namespace tlb_tests {

using namespace vm_accel;

class any_tlb {
public:
    any_tlb(std::size_t entries, std::size_t above) : capacity(entries), beyond(above) {}
    any_tlb(const any_tlb&) = delete;
    any_tlb& operator=(const any_tlb&) = delete;
    virtual ~any_tlb() = default;

    virtual std::optional<tlb_hit> lookup(const tlb_key& key) = 0;
    virtual fill_ticket begin_fill(const tlb_key& key) = 0;
    virtual void fill(fill_ticket ticket, const tlb_entry& entry) = 0;
    virtual void invalidate(const invalidation_scope& scope) = 0;

    void put(const tlb_entry& e) { fill(begin_fill({e.base, e.context, 0}), e); }

    const std::size_t capacity; ///< entries that one context can have
    const std::size_t beyond;   ///< more of them that may be left somewhere
};

/// What a composed policy holds for one context, and in levels above.
template <class Tlb>
struct tlb_shape {
    static constexpr std::size_t capacity = Tlb::capacity, beyond = 0;
};

template <class Tlb>
class tlb_model final : public any_tlb {
public:
    tlb_model() : any_tlb(tlb_shape<Tlb>::capacity, tlb_shape<Tlb>::beyond) {}

    std::optional<tlb_hit> lookup(const tlb_key& key) override {
        if constexpr (quick_tlb_policy<Tlb>) look_quickly_too(key);
        return tlb.lookup(key);
    }
    fill_ticket begin_fill(const tlb_key& key) override { return tlb.begin_fill(key); }
    void fill(fill_ticket ticket, const tlb_entry& entry) override { tlb.fill(ticket, entry); }
    void invalidate(const invalidation_scope& scope) override { tlb.invalidate(scope); }

    Tlb tlb;

private:
    /// What is found quickly must be what is found, for accesses that it allows.
    void look_quickly_too(const tlb_key& key) {
        for (unsigned size_log2 = 12; size_log2 < 52; ++size_log2) {
            if ((key.page_sizes >> size_log2 & 1) == 0) continue;
            const auto prepared = Tlb::prepare(key.context, size_log2);
            for (unsigned needed = 1; needed <= permissions::all().bits(); needed <<= 1) {
                const quick_hit quick =
                    tlb.look_quickly(prepared, key.address, key.address >> size_log2 << size_log2,
                                     Tlb::asks_for(needed));
                if (!quick.found) continue;
                const auto hit =
                    tlb.lookup({key.address, key.context, std::uint64_t{1} << size_log2});
                const std::uint64_t offset = key.address & ((std::uint64_t{1} << size_log2) - 1);
                if (!hit || !hit->allowed.allow(needed) || quick.host != hit->host + offset ||
                    quick.output != hit->output || quick.attributes != hit->attributes) {
                    throw std::logic_error{"a quick look-up found what is not there"};
                }
            }
        }
    }
};

// Contexts as context_table numbers them: index and generation.
inline constexpr std::uint64_t context_a = std::uint64_t{1} << 32 | 7;
inline constexpr std::uint64_t context_b = std::uint64_t{2} << 32 | 7;
inline constexpr translation_tag tag_a{stream_world::ns_el1, vmid{3}, asid{5}};
inline constexpr std::uint64_t all_sizes = 1ULL << 12 | 1ULL << 21 | 1ULL << 30;

inline std::byte* host_of(std::uint64_t n) {
    return reinterpret_cast<std::byte*>(n); // NOLINT(performance-no-int-to-ptr): only compared
}

inline tlb_entry entry_at(std::uint64_t base, std::uint8_t size_log2 = 12,
                          std::uint64_t context = context_a, translation_tag tag = tag_a) {
    tlb_entry e;
    e.base = base;
    e.context = context;
    e.host = host_of(0x7000'0000'0000 + base);
    e.output = 0x4000'0000 + base;
    e.tag = tag;
    e.allowed = permissions{permissions::user_read | permissions::privileged_write};
    e.size_log2 = size_log2;
    e.guest_size_log2 = size_log2;
    return e;
}

} // namespace tlb_tests
