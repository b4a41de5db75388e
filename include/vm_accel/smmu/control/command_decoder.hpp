/// What a command asks for (IHI 0070, chapter 4). A pure function of its words.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/smmu/vocabulary/invalidation.hpp>
#include <vm_accel/spec/commands.hpp>

#include <cstdint>

namespace vm_accel::inline v0 {

/// A decoded command.
struct command_action {
    enum class kind : std::uint8_t {
        nothing,    ///< legal, and no effect on this model
        illegal,    ///< CERROR_ILL
        streams,    ///< forget the configurations of [first_stream, last_stream]
        invalidate, ///< forget the translations in `scope`
        sync,       ///< complete when everything before it is done
    };
    kind what = kind::nothing;
    std::uint32_t first_stream = 0;
    std::uint32_t last_stream = 0;
    invalidation_scope scope{};
    bool interrupt = false; ///< sync: CS = SIG_IRQ

    [[nodiscard]] static constexpr command_action illegal() noexcept {
        return {.what = kind::illegal};
    }
    [[nodiscard]] static constexpr command_action of(invalidation_scope scope) noexcept {
        return {.what = kind::invalidate, .scope = scope};
    }
    [[nodiscard]] static constexpr command_action of_streams(std::uint64_t first,
                                                             std::uint64_t last) noexcept {
        return {.what = kind::streams,
                .first_stream = static_cast<std::uint32_t>(first),
                .last_stream = static_cast<std::uint32_t>(last)};
    }
};

/// First and last input address of a TLBI by address. With range invalidation
/// and TG not 0 it covers (NUM + 1) * 2^SCALE granules, else one address, of
/// whatever page lies there (4.4.1.1). What reaches past the top of the address
/// space ends there.
struct tlbi_addresses {
    std::uint64_t first = 0;
    std::uint64_t last = 0;
};

template <smmu_features F>
[[nodiscard]] constexpr tlbi_addresses addresses_of(const spec::command& c,
                                                    std::uint64_t address) noexcept {
    using T = spec::CMD_TLBI;
    const std::uint64_t tg = get<T::TG>(c);
    if (!F.range_invalidation || tg == 0) return {address, address | 0xfff};
    const unsigned granule_bits = tg == 1 ? 12 : tg == 2 ? 14 : 16;
    const std::uint64_t scale = get<T::SCALE>(c) & 0x1f; // bit 5 counts with IDR5.DS only
    const std::uint64_t count = get<T::NUM>(c) + 1;      // at most 32
    const std::uint64_t first = address >> granule_bits << granule_bits;
    const std::uint64_t shift = scale + granule_bits;
    if (shift >= 59 || (count << shift) - 1 > ~first) return {first, ~std::uint64_t{0}};
    return {first, first + ((count << shift) - 1)};
}

/// Decodes a command for a non-secure queue. Opcodes of features that are not
/// advertised, reserved opcodes and SSec = 1 are illegal (4.1.2, 4.1.3).
template <smmu_features F>
[[nodiscard]] constexpr command_action decode_command(const spec::command& c) noexcept {
    using enum spec::opcode;
    using T = spec::CMD_TLBI;
    using G = spec::CMD_CFGI;
    const auto secure = get<spec::command::SSec>(c) != 0;
    const std::uint64_t sid = get<G::StreamID>(c);
    // Without stage 2 there are no VMIDs, and what software puts there is ignored.
    const vmid vm = F.stage2 ? vmid{static_cast<std::uint16_t>(get<T::VMID>(c))} : vmid{0};
    const asid space{static_cast<std::uint16_t>(get<T::ASID>(c))};
    const bool leaf = get<T::Leaf>(c) != 0;

    switch (spec::opcode_of(c)) {
    case CMD_CFGI_STE:
    case CMD_CFGI_CD:
    case CMD_CFGI_CD_ALL:
        return secure ? command_action::illegal() : command_action::of_streams(sid, sid);
    case CMD_CFGI_STE_RANGE: {
        if (secure) return command_action::illegal();
        const std::uint64_t range = get<G::Range>(c);
        if (range == 31) return command_action::of_streams(0, 0xffff'ffff);
        const std::uint64_t mask = (std::uint64_t{2} << range) - 1;
        return command_action::of_streams(sid & ~mask, sid | mask);
    }
    case CMD_PREFETCH_CONFIG:
    case CMD_PREFETCH_ADDR:
        // A hint; nothing is owed for it.
        return secure ? command_action::illegal() : command_action{};
    case CMD_TLBI_NH_ALL:
        return command_action::of(invalidation_scope::all_of(stream_world::ns_el1, vm));
    case CMD_TLBI_NH_ASID:
        return command_action::of(
            invalidation_scope::all_of(translation_tag{stream_world::ns_el1, vm, space}));
    case CMD_TLBI_NH_VA:
    case CMD_TLBI_NH_VAA: {
        // With a granule named, NUM, SCALE and TTL all zero are reserved (4.4.1.1).
        if (F.range_invalidation && get<T::TG>(c) != 0 && get<T::NUM>(c) == 0 &&
            get<T::SCALE>(c) == 0 && get<T::TTL>(c) == 0) {
            return command_action::illegal();
        }
        const tlbi_addresses range = addresses_of<F>(c, get_address<T::Address>(c));
        invalidation_scope scope = invalidation_scope::addresses({stream_world::ns_el1, vm, space},
                                                                 range.first, range.last, leaf);
        if (spec::opcode_of(c) == CMD_TLBI_NH_VAA) {
            scope.what = invalidation_scope::kind::any_space;
        }
        return command_action::of(scope);
    }
    case CMD_TLBI_NSNH_ALL:
        return command_action::of(invalidation_scope::all_of(stream_world::ns_el1));
    case CMD_SYNC: {
        const std::uint64_t cs = get<spec::CMD_SYNC::CS>(c);
        if (cs == 3) return command_action::illegal();
        return {.what = command_action::kind::sync,
                .interrupt = cs == static_cast<std::uint64_t>(spec::sync_signal::SIG_IRQ)};
    }
    default:
        return command_action::illegal();
    }
}

} // namespace vm_accel::inline v0
