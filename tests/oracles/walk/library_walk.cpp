/// The library's side of the oracle: a configuration becomes an STE and a CD, as a driver would
/// write them; the library decodes them and walks.
#include "library_walk.hpp"

#include <vm_accel/smmu/translation/context_descriptor.hpp>
#include <vm_accel/smmu/translation/page_walker.hpp>
#include <vm_accel/smmu/translation/stream_entry.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/spec/cd.hpp>
#include <vm_accel/spec/ste.hpp>

#include <optional>

namespace oracle {
namespace {

namespace v = vm_accel;
constexpr v::smmu_features features = v::full_features;

/// The walker's way to memory: our copy of the tables, and a note of what was done.
class traced_tables {
public:
    traced_tables(tables& memory, walk_trace& trace, const hidden_bits& hidden) noexcept
        : memory_(memory), trace_(trace), hidden_(hidden) {}

    [[nodiscard]] std::optional<u64> load(u64 at) noexcept {
        if (at % 8 != 0) {
            elsewhere = true;
            return std::nullopt;
        }
        if (!tables::contains(at)) {
            // Below the end of RAM are devices and what the emulated machine itself uses.
            elsewhere = elsewhere || at < tables::last;
            return std::nullopt;
        }
        const u64 word = memory_.ours(at);
        u64 bits = 0;
        for (const auto& [read, which] : hidden_)
            if (read == trace_.reads.size()) bits = which;
        if (!hidden_.empty()) {
            std::erase_if(seen_without_, [&](const auto& seen) { return seen.first == at; });
            if (bits != 0) seen_without_.emplace_back(at, bits);
        }
        trace_.reads.emplace_back(at, word);
        return word & ~bits;
    }
    [[nodiscard]] std::optional<u64> compare_exchange(u64 at, u64 expected, u64 desired) noexcept {
        if (!tables::contains(at)) return std::nullopt;
        u64 bits = 0;
        for (const auto& [where, which] : seen_without_)
            if (where == at) bits = which;
        u64& word = memory_.ours(at);
        const u64 seen = word & ~bits;
        if (seen == expected) {
            trace_.writes.push_back({at, word});
            word = desired | (word & bits);
        }
        return seen;
    }

    bool elsewhere = false;

private:
    tables& memory_;
    walk_trace& trace_;
    const hidden_bits& hidden_;
    std::vector<std::pair<u64, u64>> seen_without_; ///< addresses that were read so, and the bits
};

[[nodiscard]] v::spec::ste ste_of(const configuration& c) noexcept {
    using E = v::spec::ste;
    E entry;
    v::set<E::V>(entry, 1);
    v::set<E::Config>(entry, 4U | (c.stage1 ? 1U : 0U) | (c.stage2 ? 2U : 0U));
    v::set<E::S1ContextPtr>(entry, 0x1000 >> E::S1ContextPtr::low);
    v::set<E::SHCFG>(entry, 1); // as incoming
    if (c.world != regime::el1) {
        v::set<E::STRW>(entry, static_cast<u64>(v::spec::stream_world::el2));
    }
    if (!c.stage2) return entry;
    v::set<E::S2T0SZ>(entry, c.s2tsz);
    v::set<E::S2SL0>(entry, c.s2sl0);
    v::set<E::S2SL0_2>(entry, c.s2sl2 ? 1 : 0);
    v::set<E::S2SH0>(entry, c.s2shareability);
    v::set<E::S2TG>(entry, tg0(c.s2granule));
    v::set<E::S2PS>(entry, c.s2ps);
    v::set<E::S2AA64>(entry, 1);
    v::set<E::S2ENDI>(entry, c.s2big_endian ? 1 : 0);
    v::set<E::S2PTW>(entry, c.s2ptw ? 1 : 0);
    v::set<E::S2FWB>(entry, c.s2fwb ? 1 : 0);
    v::set<E::S2HA>(entry, c.s2ha ? 1 : 0);
    v::set<E::S2HD>(entry, c.s2hd ? 1 : 0);
    v::set<E::S2R>(entry, 1);
    v::set<E::S2DS>(entry, c.s2ds ? 1 : 0);
    v::set<E::S2TTB>(entry, c.s2table >> E::S2TTB::low);
    return entry;
}

[[nodiscard]] v::spec::cd cd_of(const configuration& c, bool pan) noexcept {
    using C = v::spec::cd;
    C context;
    const half& low = c.halves[0];
    const half& high = c.halves[1];
    v::set<C::V>(context, 1);
    v::set<C::AA64>(context, 1);
    v::set<C::A>(context, 1);
    v::set<C::R>(context, 1);
    v::set<C::T0SZ>(context, low.tsz);
    v::set<C::TG0>(context, tg0(low.granule));
    v::set<C::SH0>(context, low.shareability);
    v::set<C::EPD0>(context, low.epd ? 1 : 0);
    v::set<C::TBI0>(context, low.tbi ? 1 : 0);
    v::set<C::HAD0>(context, low.hpd ? 1 : 0);
    v::set<C::E0PD0>(context, low.e0pd ? 1 : 0);
    v::set<C::TTB0>(context, low.table >> C::TTB0::low);
    v::set<C::T1SZ>(context, high.tsz);
    v::set<C::TG1>(context, tg1(high.granule));
    v::set<C::SH1>(context, high.shareability);
    v::set<C::EPD1>(context, high.epd ? 1 : 0);
    v::set<C::TBI1>(context, high.tbi ? 1 : 0);
    v::set<C::HAD1>(context, high.hpd ? 1 : 0);
    v::set<C::E0PD1>(context, high.e0pd ? 1 : 0);
    v::set<C::TTB1>(context, high.table >> C::TTB1::low);
    v::set<C::IPS>(context, c.ips);
    v::set<C::HA>(context, c.ha ? 1 : 0);
    v::set<C::HD>(context, c.hd ? 1 : 0);
    v::set<C::DS>(context, c.ds ? 1 : 0);
    v::set<C::ENDI>(context, c.big_endian ? 1 : 0);
    v::set<C::WXN>(context, c.wxn ? 1 : 0);
    v::set<C::PAN>(context, pan ? 1 : 0);
    v::set<C::EPAN>(context, c.epan ? 1 : 0);
    v::set<C::MAIR>(context, c.mair);
    return context;
}

} // namespace

struct library_walker::parts {
    tables& memory;
    v::stream_configuration decoded{};
    bool incoming_normal = false;
};

library_walker::library_walker(tables& memory) : parts_(new parts{memory}) {}
library_walker::~library_walker() = default;

answer_kind library_walker::prepare(const configuration& config, bool pan) {
    const auto plan = v::plan_stream<features>(ste_of(config), config.world == regime::el2_host);
    if (!plan) return answer_kind::refused_ste;
    v::stream_configuration& out = parts_->decoded;
    out = {};
    out.mode = v::stream_mode::translate;
    out.regimes.stage2 = plan->stage2_tables;
    out.regimes.stage2_enabled = plan->stage2;
    parts_->incoming_normal = config.incoming_normal;
    if (plan->stage1) {
        const v::context_use use{plan->world, plan->stalls_forbidden};
        if (v::decode_cd<features>(cd_of(config, pan), use, out)) return answer_kind::refused_cd;
    }
    return answer_kind::translated;
}

answer library_walker::walk(u64 address, const question& asks, walk_trace& trace,
                            const hidden_bits& hidden) {
    const v::stream_configuration& decoded = parts_->decoded;
    traced_tables access{parts_->memory, trace, hidden};
    const v::transaction asked{.kind = asks.write ? v::access::write : v::access::read,
                               .privileged = asks.privileged};
    const v::walk_request request{.address = decoded.canonical(address),
                                  .needed = decoded.needed(asked),
                                  .incoming = parts_->incoming_normal
                                                  ? v::memory_attributes{0xff, 0}
                                                  : v::memory_attributes{0x00, 2}};
    const v::walk_result r = v::walk_tables<features>(decoded.regimes, request, access);
    answer a;
    if (access.elsewhere) {
        a.kind = answer_kind::elsewhere;
        return a;
    }
    trace.claimed = {};
    if (!r.event) {
        trace.claimed = {request.address, r.input_base, r.output_base, r.size_log2};
        a.kind = answer_kind::translated;
        a.address = (r.output_base + (request.address - r.input_base)) & ~u64{0xfff};
        a.type = r.attributes.type;
        a.shareability = r.attributes.shareability;
        return a;
    }
    a.stage2 = r.stage2;
    a.table_walk = r.stage2 && r.cls == v::spec::fault_class::TT;
    a.level = r.level;
    switch (*r.event) {
    case v::spec::event_id::F_TRANSLATION:
        a.kind = answer_kind::translation;
        break;
    case v::spec::event_id::F_ADDR_SIZE:
        a.kind = answer_kind::address_size;
        break;
    case v::spec::event_id::F_ACCESS:
        a.kind = answer_kind::access_flag;
        break;
    case v::spec::event_id::F_PERMISSION:
        a.kind = answer_kind::permission;
        break;
    case v::spec::event_id::F_WALK_EABT:
        a.kind = answer_kind::external_abort;
        break;
    default:
        a.kind = answer_kind::other;
        break;
    }
    return a;
}

} // namespace oracle
