/// What a command asks for (IHI 0070, chapter 4). A pure function of its words.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/smmu/vocabulary/interrupt_message.hpp>
#include <vm_accel/smmu/vocabulary/invalidation.hpp>
#include <vm_accel/spec/commands.hpp>

#include <cstdint>
#include <optional>

namespace vm_accel::inline v0 {

/// A decoded command. Which members have meaning depends on `what`.
struct command_action {
    enum class kind : std::uint8_t {
        illegal,          ///< CERROR_ILL
        streams,          ///< forget the configurations of [first_stream, last_stream]
        context,          ///< forget what the CD of `stream()` and `substream` gave
        partitions,       ///< forget what the VMS of the VMID in `scope` gave
        invalidate,       ///< forget the translations in `scope`, then in `also`
        prefetch,         ///< load the configuration of `stream()`, and `pages` translations
        invalidate_atc,   ///< the device shall forget [first, last]
        answer_pages,     ///< tell the device what became of page request group `tag`
        resume,           ///< decide about the stalled access `tag` of `stream()`
        terminate_stalls, ///< abort all stalled accesses of `stream()`
        sync,             ///< complete when everything before it is done
        other_state,      ///< of a secure queue, and for the non-secure state
    };
    kind what = kind::illegal;
    std::uint32_t first_stream = 0;
    std::uint32_t last_stream = 0;
    bool has_substream = false; ///< SSV
    substream_id substream{};
    invalidation_scope scope{};
    std::optional<invalidation_scope> also{};
    std::uint64_t first = 0;       ///< prefetch, invalidate_atc: first address
    std::uint64_t last = 0;        ///< invalidate_atc: last address
    std::uint64_t pages = 0;       ///< prefetch: translations asked for; 0 = the configuration only
    std::uint8_t stride_log2 = 12; ///< prefetch: log2 of the bytes between two of them
    bool global = false;           ///< invalidate_atc: of every PASID
    std::uint16_t tag = 0;         ///< resume: STAG; answer_pages: PRGIndex
    std::uint8_t response = 0;     ///< answer_pages: PRI_RESP.Resp
    bool retry = false;            ///< resume: start again from the STE
    bool abort = true;             ///< resume without retry: abort; else read zero, ignore writes
    bool interrupt = false;        ///< sync: CS = SIG_IRQ
    interrupt_message message{};   ///< sync: its MSI

    [[nodiscard]] constexpr stream_id stream() const noexcept { return stream_id{first_stream}; }

    [[nodiscard]] static constexpr command_action illegal() noexcept { return {}; }
    [[nodiscard]] static constexpr command_action of(invalidation_scope scope) noexcept {
        return {.what = kind::invalidate, .scope = scope};
    }
    [[nodiscard]] static constexpr command_action of(invalidation_scope scope,
                                                     invalidation_scope also) noexcept {
        return {.what = kind::invalidate, .scope = scope, .also = also};
    }
    [[nodiscard]] static constexpr command_action of_streams(std::uint64_t first,
                                                             std::uint64_t last) noexcept {
        return {.what = kind::streams,
                .first_stream = static_cast<std::uint32_t>(first),
                .last_stream = static_cast<std::uint32_t>(last)};
    }
    [[nodiscard]] static constexpr command_action of_stream(kind what, std::uint64_t sid) noexcept {
        return {.what = what,
                .first_stream = static_cast<std::uint32_t>(sid),
                .last_stream = static_cast<std::uint32_t>(sid)};
    }
};

/// First and last input address of a TLBI by address.
struct tlbi_addresses {
    std::uint64_t first = 0;
    std::uint64_t last = 0;
};

/// Nullopt = CERROR_ILL. With range invalidation and TG not 0 a command covers
/// (NUM + 1) * 2^SCALE granules, else one address, of whatever page lies there
/// (4.4.1.1). What reaches past the top of the address space ends there. TTL
/// narrows what has to go; here all levels go.
template <smmu_features F>
[[nodiscard]] constexpr std::optional<tlbi_addresses> addresses_of(const spec::command& c,
                                                                   std::uint64_t address) noexcept {
    using T = spec::CMD_TLBI;
    const std::uint64_t tg = get<T::TG>(c);
    if (!F.range_invalidation || tg == 0) return tlbi_addresses{address, address | 0xfff};
    // Bit 5 counts with IDR5.DS only, and more than 39 is 39.
    std::uint64_t scale = get<T::SCALE>(c) & (F.ds ? 0x3f : 0x1f);
    if (scale > 39) scale = 39;
    // A level that the granule has no leaves at is as good as none.
    const bool no_level = get<T::TTL>(c) == 0 || (tg == 2 && get<T::TTL>(c) == 1 && !F.ds);
    if (get<T::NUM>(c) == 0 && scale == 0 && no_level) return std::nullopt;
    const unsigned granule_bits = tg == 1 ? 12 : tg == 2 ? 14 : 16;
    const std::uint64_t count = get<T::NUM>(c) + 1; // at most 32
    const std::uint64_t first = address >> granule_bits << granule_bits;
    const std::uint64_t shift = scale + granule_bits;
    if (shift >= 59 || (count << shift) - 1 > ~first) {
        return tlbi_addresses{first, ~std::uint64_t{0}};
    }
    return tlbi_addresses{first, first + ((count << shift) - 1)};
}

/// Whether a command of a secure queue works on the non-secure state: on one of
/// its streams (SSec = 0), or on translations that only it has (4.4).
[[nodiscard]] constexpr bool is_for_non_secure(const spec::command& c) noexcept {
    using enum spec::opcode;
    switch (spec::opcode_of(c)) {
    case CMD_CFGI_STE:
    case CMD_CFGI_STE_RANGE:
    case CMD_CFGI_CD:
    case CMD_CFGI_CD_ALL:
    case CMD_CFGI_VMS_PIDM:
    case CMD_PREFETCH_CONFIG:
    case CMD_PREFETCH_ADDR:
    case CMD_RESUME:
    case CMD_STALL_TERM:
        return get<spec::command::SSec>(c) == 0;
    case CMD_TLBI_EL2_ALL:
    case CMD_TLBI_EL2_ASID:
    case CMD_TLBI_EL2_VA:
    case CMD_TLBI_EL2_VAA:
    case CMD_TLBI_S12_VMALL:
    case CMD_TLBI_S2_IPA:
    case CMD_TLBI_NSNH_ALL:
        return true;
    default:
        return false;
    }
}

/// Decodes a command for a queue of state F.state. `el2_host` is CR2.E2H. Opcodes
/// of features that are not advertised, of other states and reserved ones, SSec = 1
/// in a non-secure queue and reserved values of fields are illegal (4.1.3, 4.1.6).
template <smmu_features F>
[[nodiscard, gnu::always_inline]] constexpr command_action
decode_command(const spec::command& c, bool el2_host = false) noexcept {
    using enum spec::opcode;
    using T = spec::CMD_TLBI;
    using G = spec::CMD_CFGI;
    using kind = command_action::kind;
    using scope_type = invalidation_scope;
    const spec::opcode op = spec::opcode_of(c);
    if constexpr (F.state == security_state::secure) {
        if (is_for_non_secure(c)) return {.what = kind::other_state};
    }
    const bool secure = F.state == security_state::non_secure && get<spec::command::SSec>(c) != 0;
    const std::uint64_t sid = get<G::StreamID>(c);
    // Without stage 2 there are no VMIDs, and what software puts there is ignored.
    const vmid vm = F.stage2 ? vmid{static_cast<std::uint16_t>(get<T::VMID>(c))} : vmid{0};
    const asid space{static_cast<std::uint16_t>(get<T::ASID>(c))};

    const auto with_substream = [&](command_action action) {
        action.has_substream = F.substream_bits != 0 && get<spec::command::SSV>(c) != 0;
        if (action.has_substream) {
            action.substream = substream_id{static_cast<std::uint32_t>(get<G::SubstreamID>(c))};
        }
        return action;
    };
    const auto by_address = [&](translation_tag tag, bool any_space) {
        const auto range = addresses_of<F>(c, get_address<T::Address>(c));
        if (!range) return command_action::illegal();
        scope_type scope =
            scope_type::addresses(tag, range->first, range->last, get<T::Leaf>(c) != 0);
        if (any_space) scope.what = scope_type::kind::any_space;
        return command_action::of(scope);
    };
    // The E2H world has ASIDs; the other one has none.
    const translation_tag el2 = el2_host ? translation_tag{stream_world::ns_el2_e2h, {}, space}
                                         : translation_tag{stream_world::ns_el2, {}, {}};

    switch (op) {
    case CMD_CFGI_STE:
        return secure ? command_action::illegal() : command_action::of_streams(sid, sid);
    case CMD_CFGI_STE_RANGE: {
        if (secure) return command_action::illegal();
        const std::uint64_t range = get<G::Range>(c);
        if (range == 31) return command_action::of_streams(0, 0xffff'ffff);
        const std::uint64_t mask = (std::uint64_t{2} << range) - 1;
        return command_action::of_streams(sid & ~mask, sid | mask);
    }
    case CMD_CFGI_CD: {
        if (secure || !F.stage1) return command_action::illegal();
        command_action action = command_action::of_stream(kind::context, sid);
        action.has_substream = true; // an index into the CD table, whatever SSV says
        action.substream = substream_id{static_cast<std::uint32_t>(get<G::SubstreamID>(c))};
        return action;
    }
    case CMD_CFGI_CD_ALL:
        return secure || !F.stage1 ? command_action::illegal()
                                   : command_action::of_streams(sid, sid);
    case CMD_CFGI_VMS_PIDM:
        if (secure || !F.mpam) return command_action::illegal();
        return {.what = kind::partitions, .scope = {.tag = {stream_world::ns_el1, vm, {}}}};
    case CMD_PREFETCH_CONFIG:
        return secure ? command_action::illegal()
                      : with_substream(command_action::of_stream(kind::prefetch, sid));
    case CMD_PREFETCH_ADDR: {
        using P = spec::CMD_PREFETCH;
        if (secure) return command_action::illegal();
        command_action action = with_substream(command_action::of_stream(kind::prefetch, sid));
        action.first = get_address<P::Address>(c);
        action.stride_log2 = static_cast<std::uint8_t>(12 + get<P::Stride>(c));
        action.pages = std::uint64_t{1} << get<P::Size>(c);
        return action;
    }
    case CMD_TLBI_NH_ALL:
        if (!F.stage1) return command_action::illegal();
        return command_action::of(scope_type::all_of(stream_world::ns_el1, vm));
    case CMD_TLBI_NH_ASID:
        if (!F.stage1) return command_action::illegal();
        return command_action::of(scope_type::all_of({stream_world::ns_el1, vm, space}));
    case CMD_TLBI_NH_VA:
    case CMD_TLBI_NH_VAA:
        if (!F.stage1) return command_action::illegal();
        return by_address({stream_world::ns_el1, vm, space}, op == CMD_TLBI_NH_VAA);
    case CMD_TLBI_EL3_ALL:
        if (F.state != security_state::secure) return command_action::illegal();
        return command_action::of(scope_type::all_of(stream_world::ns_el2));
    case CMD_TLBI_EL3_VA:
        if (F.state != security_state::secure) return command_action::illegal();
        return by_address({stream_world::ns_el2, {}, {}}, true);
    case CMD_TLBI_EL2_ALL:
        if (!F.hyp) return command_action::illegal();
        return command_action::of(scope_type::all_of(stream_world::ns_el2),
                                  scope_type::all_of(stream_world::ns_el2_e2h));
    case CMD_TLBI_EL2_ASID:
        if (!F.hyp) return command_action::illegal();
        return command_action::of(scope_type::all_of({stream_world::ns_el2_e2h, {}, space}));
    case CMD_TLBI_EL2_VA:
    case CMD_TLBI_EL2_VAA:
        if (!F.hyp) return command_action::illegal();
        return by_address(el2, op == CMD_TLBI_EL2_VAA || !el2_host);
    // Stage 2 goes first: a nested walk that begins in between puts what stage 2 gave
    // it into an entry of its own, and that has to go too.
    case CMD_TLBI_S12_VMALL:
        if (!F.stage2) return command_action::illegal();
        return command_action::of(scope_type::all_of(stream_world::stage2, vm),
                                  scope_type::all_of(stream_world::ns_el1, vm));
    case CMD_TLBI_S2_IPA: {
        if (!F.stage2) return command_action::illegal();
        const auto range = addresses_of<F>(c, get_address<T::AddressIPA>(c));
        if (!range) return command_action::illegal();
        scope_type scope = scope_type::addresses({stream_world::stage2, vm, {}}, range->first,
                                                 range->last, get<T::Leaf>(c) != 0);
        scope.what = scope_type::kind::any_space;
        // Entries of nested streams hold both stages as one, under addresses of
        // stage 1: an IPA does not find them.
        return command_action::of(scope, scope_type::all_of(stream_world::ns_el1, vm));
    }
    case CMD_TLBI_NSNH_ALL:
        if (!F.stage2) return command_action::of(scope_type::all_of(stream_world::ns_el1));
        return command_action::of(scope_type::all_of(stream_world::stage2),
                                  scope_type::all_of(stream_world::ns_el1));
    case CMD_ATC_INV: {
        using A = spec::CMD_ATC_INV;
        const std::uint64_t size = get<A::Size>(c);
        if (secure || !F.ats || size > 52) return command_action::illegal();
        command_action action =
            with_substream(command_action::of_stream(kind::invalidate_atc, sid));
        const std::uint64_t span = size == 52 ? ~std::uint64_t{0} : (0x1000ULL << size) - 1;
        action.first = get_address<A::Address>(c) & ~span;
        action.last = action.first | span;
        action.global = action.has_substream && get<A::Global>(c) != 0;
        return action;
    }
    case CMD_PRI_RESP: {
        using P = spec::CMD_PRI_RESP;
        if (secure || !F.pri || get<P::Resp>(c) == 3) return command_action::illegal();
        command_action action = with_substream(command_action::of_stream(kind::answer_pages, sid));
        action.tag = static_cast<std::uint16_t>(get<P::PRGIndex>(c));
        action.response = static_cast<std::uint8_t>(get<P::Resp>(c));
        return action;
    }
    case CMD_RESUME: {
        using R = spec::CMD_RESUME;
        if (secure || !F.stalls) return command_action::illegal();
        command_action action = command_action::of_stream(kind::resume, sid);
        action.tag = static_cast<std::uint16_t>(get<R::STAG>(c));
        action.retry = get<R::Action>(c) != 0;
        action.abort = !F.quiet_termination || get<R::Abort>(c) != 0;
        return action;
    }
    case CMD_STALL_TERM:
        return secure || !F.stalls ? command_action::illegal()
                                   : command_action::of_stream(kind::terminate_stalls, sid);
    case CMD_SYNC: {
        using S = spec::CMD_SYNC;
        const std::uint64_t cs = get<S::CS>(c);
        if (cs == 3) return command_action::illegal();
        const bool interrupt = cs == static_cast<std::uint64_t>(spec::sync_signal::SIG_IRQ);
        const bool message = F.msi && interrupt;
        return {.what = kind::sync,
                .interrupt = interrupt,
                .message = {message ? get_address<S::MSIAddress>(c) : 0,
                            static_cast<std::uint32_t>(get<S::MSIData>(c))}};
    }
    default:
        return command_action::illegal();
    }
}

} // namespace vm_accel::inline v0
