/// Commands: what a driver puts into the command queue (IHI 0070, chapter 4).
///
/// `opcode` has every mnemonic. The field structs say where operands are; the
/// constexpr constructors compose whole commands and are proven against the
/// words that Linux's driver writes.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/field.hpp>

#include <array>
#include <cstdint>

namespace vm_accel::inline v0::spec {

/// CMDQ_CONS.ERR: why consumption stopped (7.1 and 6.3.28).
inline constexpr std::uint64_t CERROR_NONE = 0;
inline constexpr std::uint64_t CERROR_ILL = 1;
inline constexpr std::uint64_t CERROR_ABT = 2;
inline constexpr std::uint64_t CERROR_ATC_INV_SYNC = 3;

/// Command opcodes (4.1.3). Values not listed are CERROR_ILL.
enum class opcode : std::uint8_t {
    CMD_PREFETCH_CONFIG = 0x01,
    CMD_PREFETCH_ADDR = 0x02,
    CMD_CFGI_STE = 0x03,
    CMD_CFGI_STE_RANGE = 0x04, ///< with Range 31: CMD_CFGI_ALL
    CMD_CFGI_CD = 0x05,
    CMD_CFGI_CD_ALL = 0x06,
    CMD_CFGI_VMS_PIDM = 0x07,
    CMD_TLBI_NH_ALL = 0x10,
    CMD_TLBI_NH_ASID = 0x11,
    CMD_TLBI_NH_VA = 0x12,
    CMD_TLBI_NH_VAA = 0x13,
    CMD_TLBI_EL3_ALL = 0x18,
    CMD_TLBI_EL3_VA = 0x1a,
    CMD_TLBI_EL2_ALL = 0x20,
    CMD_TLBI_EL2_ASID = 0x21,
    CMD_TLBI_EL2_VA = 0x22,
    CMD_TLBI_EL2_VAA = 0x23,
    CMD_TLBI_S12_VMALL = 0x28,
    CMD_TLBI_S2_IPA = 0x2a,
    CMD_TLBI_NSNH_ALL = 0x30,
    CMD_ATC_INV = 0x40,
    CMD_PRI_RESP = 0x41,
    CMD_RESUME = 0x44,
    CMD_STALL_TERM = 0x45,
    CMD_SYNC = 0x46,
    CMD_TLBI_S_EL2_ALL = 0x50,
    CMD_TLBI_S_EL2_ASID = 0x51,
    CMD_TLBI_S_EL2_VA = 0x52,
    CMD_TLBI_S_EL2_VAA = 0x53,
    CMD_TLBI_S_S12_VMALL = 0x58,
    CMD_TLBI_S_S2_IPA = 0x5a,
    CMD_TLBI_SNH_ALL = 0x60,
    CMD_DPTI_ALL = 0x70,
    CMD_DPTI_PA = 0x73,
};

/// A command: 16 bytes. The fields every command has are named here.
struct command {
    using Opcode = field<0, 7, 0>;
    using SSec = field<0, 10, 10>; ///< target is secure; CERROR_ILL in a non-secure queue
    using SSV = field<0, 11, 11>;  ///< SubstreamID is valid

    std::array<le64, 2> word{};
};
static_assert(sizeof(command) == 16);

/// CMD_PREFETCH_CONFIG and CMD_PREFETCH_ADDR (4.2).
struct CMD_PREFETCH {
    using SubstreamID = field<0, 31, 12>;
    using StreamID = field<0, 63, 32>;
    using Size = field<1, 4, 0>;      ///< CMD_PREFETCH_ADDR
    using Stride = field<1, 9, 5>;    ///< CMD_PREFETCH_ADDR
    using Address = field<1, 63, 12>; ///< CMD_PREFETCH_ADDR, bits [63:12]
};

/// CMD_CFGI_STE, _STE_RANGE, _CD, _CD_ALL, _VMS_PIDM (4.3).
struct CMD_CFGI {
    using SubstreamID = field<0, 31, 12>; ///< CMD_CFGI_CD
    using StreamID = field<0, 63, 32>;
    using VMID = field<0, 47, 32>; ///< CMD_CFGI_VMS_PIDM, in StreamID's place
    using Leaf = field<1, 0, 0>;   ///< CMD_CFGI_STE, CMD_CFGI_CD: 1 = the last level only
    using Range = field<1, 4, 0>;  ///< CMD_CFGI_STE_RANGE: 2^(Range+1) streams; 31 = all
};

/// All TLB invalidations (4.4). NUM, SCALE, TG and TTL have meaning when
/// IDR3.RIL is 1: with TG not 0 the command covers (NUM+1) * 2^SCALE granules.
/// Then NUM, SCALE and TTL all 0 is CERROR_ILL, and an end past the top of the
/// address space does not wrap.
struct CMD_TLBI {
    using NUM = field<0, 16, 12>;
    using SCALE = field<0, 25, 20>; ///< bit 25 only when IDR5.DS is 1
    using VMID = field<0, 47, 32>;
    using ASID = field<0, 63, 48>;
    using Leaf = field<1, 0, 0>; ///< 1 = leaf entries only, walk caches stay
    using TTL128 = field<1, 7, 7>;
    using TTL = field<1, 9, 8>;          ///< level of the leaf, 0 = any
    using TG = field<1, 11, 10>;         ///< 0 no range, 1 4 KiB, 2 16 KiB, 3 64 KiB
    using Address = field<1, 63, 12>;    ///< VA bits [63:12]
    using AddressIPA = field<1, 55, 12>; ///< IPA bits [55:12], CMD_TLBI_S2_IPA
};

/// CMD_ATC_INV (4.5.1).
struct CMD_ATC_INV {
    using Global = field<0, 9, 9>;
    using SubstreamID = field<0, 31, 12>;
    using StreamID = field<0, 63, 32>;
    using Size = field<1, 5, 0>; ///< 2^Size pages of 4 KiB; 52 = all
    using Address = field<1, 63, 12>;
};

/// CMD_PRI_RESP (4.5.2).
struct CMD_PRI_RESP {
    using SubstreamID = field<0, 31, 12>;
    using StreamID = field<0, 63, 32>;
    using PRGIndex = field<1, 8, 0>;
    using Resp = field<1, 13, 12>; ///< 0 denied, 1 failed, 2 success
};

/// CMD_RESUME and CMD_STALL_TERM (4.7.1, 4.7.2).
struct CMD_RESUME {
    using Action = field<0, 12, 12>; ///< 1 retry, 0 terminate
    using Abort = field<0, 13, 13>;  ///< with Action 0: abort, else read zero, ignore writes
    using Resp = field<0, 13, 12>;   ///< both
    using StreamID = field<0, 63, 32>;
    using STAG = field<1, 15, 0>;
};
using CMD_STALL_TERM = CMD_RESUME; ///< StreamID only

/// CMD_SYNC (4.7.3).
struct CMD_SYNC {
    using CS = field<0, 13, 12>; ///< sync_signal
    using MSH = field<0, 23, 22>;
    using MSIAttr = field<0, 27, 24>;
    using MSIData = field<0, 63, 32>;
    using MSIAddress = field<1, 55, 2>; ///< address bits [55:2]; 0 = wired or none
};

/// CMD_SYNC.CS: how completion is told. 3 is CERROR_ILL.
enum class sync_signal : std::uint8_t { SIG_NONE = 0, SIG_IRQ = 1, SIG_SEV = 2 };

/// The opcode byte of a command, which may be none of the known ones.
[[nodiscard]] constexpr opcode opcode_of(const command& c) noexcept {
    return opcode{static_cast<std::uint8_t>(get<command::Opcode>(c))};
}

/// A command with an opcode and nothing else.
[[nodiscard]] constexpr command make_command(opcode op) noexcept {
    command c;
    set<command::Opcode>(c, static_cast<std::uint64_t>(op));
    return c;
}

/// The granules and the level a TLBI by address names; default: one address.
struct tlbi_range {
    std::uint64_t num = 0;   ///< NUM, 0 to 31
    std::uint64_t scale = 0; ///< SCALE, 0 to 63
    std::uint64_t tg = 0;    ///< TG
    std::uint64_t ttl = 0;   ///< TTL
};

[[nodiscard]] constexpr command cmd_prefetch_config(stream_id sid) noexcept {
    command c = make_command(opcode::CMD_PREFETCH_CONFIG);
    set<CMD_PREFETCH::StreamID>(c, raw(sid));
    return c;
}
[[nodiscard]] constexpr command cmd_cfgi_ste(stream_id sid, bool leaf) noexcept {
    command c = make_command(opcode::CMD_CFGI_STE);
    set<CMD_CFGI::StreamID>(c, raw(sid));
    set<CMD_CFGI::Leaf>(c, leaf ? 1 : 0);
    return c;
}
/// 2^(range + 1) streams from `sid`, which is aligned to that many.
[[nodiscard]] constexpr command cmd_cfgi_ste_range(stream_id sid, std::uint64_t range) noexcept {
    command c = make_command(opcode::CMD_CFGI_STE_RANGE);
    set<CMD_CFGI::StreamID>(c, raw(sid));
    set<CMD_CFGI::Range>(c, range);
    return c;
}
[[nodiscard]] constexpr command cmd_cfgi_all() noexcept {
    return cmd_cfgi_ste_range(stream_id{0}, 31);
}
[[nodiscard]] constexpr command cmd_cfgi_cd(stream_id sid, substream_id ssid, bool leaf) noexcept {
    command c = make_command(opcode::CMD_CFGI_CD);
    set<CMD_CFGI::StreamID>(c, raw(sid));
    set<CMD_CFGI::SubstreamID>(c, raw(ssid));
    set<CMD_CFGI::Leaf>(c, leaf ? 1 : 0);
    return c;
}
[[nodiscard]] constexpr command cmd_cfgi_cd_all(stream_id sid) noexcept {
    command c = make_command(opcode::CMD_CFGI_CD_ALL);
    set<CMD_CFGI::StreamID>(c, raw(sid));
    return c;
}

[[nodiscard]] constexpr command tlbi_nh_all(vmid vm) noexcept {
    command c = make_command(opcode::CMD_TLBI_NH_ALL);
    set<CMD_TLBI::VMID>(c, raw(vm));
    return c;
}
[[nodiscard]] constexpr command tlbi_nh_asid(vmid vm, asid space) noexcept {
    command c = make_command(opcode::CMD_TLBI_NH_ASID);
    set<CMD_TLBI::VMID>(c, raw(vm));
    set<CMD_TLBI::ASID>(c, raw(space));
    return c;
}
/// Any invalidation by input address: sets what all of them share.
[[nodiscard]] constexpr command tlbi_by_address(opcode op, vmid vm, std::uint64_t address,
                                                bool leaf, tlbi_range range = {}) noexcept {
    command c = make_command(op);
    set<CMD_TLBI::VMID>(c, raw(vm));
    set<CMD_TLBI::NUM>(c, range.num);
    set<CMD_TLBI::SCALE>(c, range.scale);
    set<CMD_TLBI::Leaf>(c, leaf ? 1 : 0);
    set<CMD_TLBI::TTL>(c, range.ttl);
    set<CMD_TLBI::TG>(c, range.tg);
    set<CMD_TLBI::Address>(c, address >> CMD_TLBI::Address::low);
    return c;
}
[[nodiscard]] constexpr command tlbi_nh_va(vmid vm, asid space, iova address, bool leaf,
                                           tlbi_range range = {}) noexcept {
    command c = tlbi_by_address(opcode::CMD_TLBI_NH_VA, vm, raw(address), leaf, range);
    set<CMD_TLBI::ASID>(c, raw(space));
    return c;
}
[[nodiscard]] constexpr command tlbi_nh_vaa(vmid vm, iova address, bool leaf,
                                            tlbi_range range = {}) noexcept {
    return tlbi_by_address(opcode::CMD_TLBI_NH_VAA, vm, raw(address), leaf, range);
}
[[nodiscard]] constexpr command tlbi_el2_all() noexcept {
    return make_command(opcode::CMD_TLBI_EL2_ALL);
}
[[nodiscard]] constexpr command tlbi_el2_asid(asid space) noexcept {
    command c = make_command(opcode::CMD_TLBI_EL2_ASID);
    set<CMD_TLBI::ASID>(c, raw(space));
    return c;
}
[[nodiscard]] constexpr command tlbi_el2_va(asid space, iova address, bool leaf,
                                            tlbi_range range = {}) noexcept {
    command c = tlbi_by_address(opcode::CMD_TLBI_EL2_VA, vmid{0}, raw(address), leaf, range);
    set<CMD_TLBI::ASID>(c, raw(space));
    return c;
}
[[nodiscard]] constexpr command tlbi_el2_vaa(iova address, bool leaf,
                                             tlbi_range range = {}) noexcept {
    return tlbi_by_address(opcode::CMD_TLBI_EL2_VAA, vmid{0}, raw(address), leaf, range);
}
[[nodiscard]] constexpr command tlbi_s12_vmall(vmid vm) noexcept {
    command c = make_command(opcode::CMD_TLBI_S12_VMALL);
    set<CMD_TLBI::VMID>(c, raw(vm));
    return c;
}
[[nodiscard]] constexpr command tlbi_s2_ipa(vmid vm, ipa address, bool leaf,
                                            tlbi_range range = {}) noexcept {
    return tlbi_by_address(opcode::CMD_TLBI_S2_IPA, vm, raw(address) & CMD_TLBI::AddressIPA::mask,
                           leaf, range);
}
[[nodiscard]] constexpr command tlbi_nsnh_all() noexcept {
    return make_command(opcode::CMD_TLBI_NSNH_ALL);
}

/// Retry, terminate or abort a stalled transaction: `resp` is CMD_RESUME::Resp.
[[nodiscard]] constexpr command cmd_resume(stream_id sid, std::uint64_t stag,
                                           std::uint64_t resp) noexcept {
    command c = make_command(opcode::CMD_RESUME);
    set<CMD_RESUME::StreamID>(c, raw(sid));
    set<CMD_RESUME::STAG>(c, stag);
    set<CMD_RESUME::Resp>(c, resp);
    return c;
}
[[nodiscard]] constexpr command cmd_sync(sync_signal cs) noexcept {
    command c = make_command(opcode::CMD_SYNC);
    set<CMD_SYNC::CS>(c, static_cast<std::uint64_t>(cs));
    return c;
}
/// Completion told by a 32-bit write of `data` to `address` (inner shareable,
/// write-back, as Linux asks for).
[[nodiscard]] constexpr command cmd_sync_msi(pa address, std::uint32_t data) noexcept {
    command c = cmd_sync(sync_signal::SIG_IRQ);
    set<CMD_SYNC::MSH>(c, 3);
    set<CMD_SYNC::MSIAttr>(c, 0xf);
    set<CMD_SYNC::MSIData>(c, data);
    set<CMD_SYNC::MSIAddress>(c, raw(address) >> CMD_SYNC::MSIAddress::low);
    return c;
}

/// Whether a command is these two words.
[[nodiscard]] constexpr bool has_words(const command& c, std::uint64_t word0,
                                       std::uint64_t word1) noexcept {
    return c.word[0].value() == word0 && c.word[1].value() == word1;
}

// Golden words, as Linux's driver composes them.
static_assert(has_words(cmd_cfgi_ste(stream_id{0x10}, true), 0x0000'0010'0000'0003, 1));
static_assert(has_words(cmd_cfgi_all(), 0x04, 0x1f));
static_assert(has_words(cmd_cfgi_cd(stream_id{8}, substream_id{5}, true), 0x0000'0008'0000'5005,
                        1));
static_assert(has_words(tlbi_nh_asid(vmid{0}, asid{1}), 0x0001'0000'0000'0011, 0));
static_assert(has_words(tlbi_nh_va(vmid{0}, asid{1}, iova{0xffff'f000}, true),
                        0x0001'0000'0000'0012, 0xffff'f001));
static_assert(has_words(tlbi_s12_vmall(vmid{7}), 0x0000'0007'0000'0028, 0));
static_assert(has_words(tlbi_nsnh_all(), 0x30, 0));
static_assert(has_words(tlbi_nh_va(vmid{0}, asid{1}, iova{0xfffe'0000}, true,
                                   {.num = 2, .scale = 1, .tg = 1, .ttl = 3}),
                        0x0001'0000'0010'2012, 0xfffe'0701));
static_assert(has_words(cmd_sync(sync_signal::SIG_NONE), 0x46, 0));
static_assert(has_words(cmd_sync(sync_signal::SIG_SEV), 0x2046, 0));
static_assert(has_words(cmd_sync_msi(pa{0x5bb0'0020}, 0), 0x0000'0000'0fc0'1046, 0x5bb0'0020));

} // namespace vm_accel::inline v0::spec
