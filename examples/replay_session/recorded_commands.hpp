/// The command queue as the session left it, and what its invalidations cover.
#pragma once

#include "final_tables.hpp"

#include <vm_accel/spec/commands.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace replay {

/// The stage-1 address space that a page of a stream belongs to. Where the
/// stream no longer translates nobody knows its ASID: then any one will do.
struct tagged_space {
    stream_id stream{};
    bool el2 = false;
    std::optional<std::uint64_t> asid{};
    std::uint64_t vmid = 0;

    [[nodiscard]] bool has_asid(std::uint64_t other) const { return !asid || *asid == other; }
};

class recorded_commands {
public:
    /// The commands in the order in which they were written, oldest first. The
    /// queue's memory holds the last 2^LOG2SIZE of them.
    recorded_commands(const recording& session, const final_tables& registers,
                      const page_memory& memory) {
        const std::uint64_t shape = registers.value_of(spec::reg::CMDQ_BASE);
        size_ = registers.command_queue_size();
        const std::uint64_t base = shape & spec::CMDQ_BASE::ADDR::mask & ~(size_ * 16 - 1);
        std::uint64_t end = 0;
        std::uint64_t written = 0;
        for (const register_write& w : session.writes) {
            if (w.offset == spec::reg::CMDQ_PROD) {
                written += (w.value - end) & (2 * size_ - 1);
            } else if (w.offset == spec::reg::CMDQ_CONS) {
                written = 0;
            } else {
                continue;
            }
            end = w.value & (2 * size_ - 1);
        }
        const auto at = [&](std::uint64_t index) { return base + (index & (size_ - 1)) * 16; };
        // A recorder may have kept the last write of PROD only. If the slot that
        // would be written next holds a command, the queue has wrapped.
        const bool wrapped =
            written >= size_ || (memory.load64(pa{at(end)}).value_or(0) & 0xff) != 0;
        const std::uint64_t kept = wrapped ? size_ : written;
        start_ = (end - kept) & (2 * size_ - 1);
        for (std::uint64_t i = 0; i < kept; ++i) {
            spec::command c;
            c.word[0] = memory.load64(pa{at(start_ + i)}).value_or(0);
            c.word[1] = memory.load64(pa{at(start_ + i) + 8}).value_or(0);
            commands_.push_back(c);
        }
    }

    [[nodiscard]] std::size_t count() const noexcept { return commands_.size(); }
    [[nodiscard]] const spec::command& operator[](std::size_t i) const { return commands_[i]; }
    /// The queue index (with wrap bit) that stands behind the first `i` commands.
    [[nodiscard]] std::uint64_t index_after(std::size_t i) const noexcept {
        return (start_ + i) & (2 * size_ - 1);
    }

    /// Whether a command drops all translations of an address space, or of more.
    [[nodiscard]] static bool drops_whole(const spec::command& c, const tagged_space& space) {
        const std::uint64_t vmid = get<spec::CMD_TLBI::VMID>(c);
        const std::uint64_t asid = get<spec::CMD_TLBI::ASID>(c);
        switch (spec::opcode_of(c)) {
        case spec::opcode::CMD_TLBI_NSNH_ALL:
            return !space.el2;
        case spec::opcode::CMD_TLBI_NH_ALL:
        case spec::opcode::CMD_TLBI_S12_VMALL:
            return !space.el2 && vmid == space.vmid;
        case spec::opcode::CMD_TLBI_NH_ASID:
            return !space.el2 && vmid == space.vmid && space.has_asid(asid);
        case spec::opcode::CMD_TLBI_EL2_ALL:
            return space.el2;
        case spec::opcode::CMD_TLBI_EL2_ASID:
            return space.el2 && space.has_asid(asid);
        default:
            return false;
        }
    }

    /// Whether a command names, by ASID and address, some part of a mapping: it
    /// then takes all of the mapping out of use.
    [[nodiscard]] static bool names_part(const spec::command& c, const tagged_space& space,
                                         const iova_range& mapping) {
        bool any_asid = false;
        switch (spec::opcode_of(c)) {
        case spec::opcode::CMD_TLBI_NH_VAA:
            any_asid = true;
            [[fallthrough]];
        case spec::opcode::CMD_TLBI_NH_VA:
            if (space.el2 || get<spec::CMD_TLBI::VMID>(c) != space.vmid) return false;
            break;
        case spec::opcode::CMD_TLBI_EL2_VAA:
            any_asid = true;
            [[fallthrough]];
        case spec::opcode::CMD_TLBI_EL2_VA:
            if (!space.el2) return false;
            break;
        default:
            return false;
        }
        if (!any_asid && !space.has_asid(get<spec::CMD_TLBI::ASID>(c))) return false;
        const std::uint64_t first = get_address<spec::CMD_TLBI::Address>(c);
        std::uint64_t bytes = page_bytes;
        if (const std::uint64_t tg = get<spec::CMD_TLBI::TG>(c); tg != 0) {
            const std::uint64_t scale = get<spec::CMD_TLBI::SCALE>(c);
            if (scale > 39) return true;
            const std::uint64_t granules = (get<spec::CMD_TLBI::NUM>(c) + 1) << scale;
            const unsigned granule_bits = 10 + 2 * static_cast<unsigned>(tg);
            bytes =
                granules >> (64 - granule_bits) != 0 ? ~std::uint64_t{0} : granules << granule_bits;
        }
        if (!iova_range{iova{first}, bytes}.is_valid()) bytes = ~first; // does not wrap
        return mapping.overlaps({iova{first}, bytes});
    }

    /// Whether a command makes the SMMU read a stream's configuration again.
    [[nodiscard]] static bool reconfigures(const spec::command& c, stream_id sid) {
        const std::uint64_t named = get<spec::CMD_CFGI::StreamID>(c);
        switch (spec::opcode_of(c)) {
        case spec::opcode::CMD_CFGI_STE:
        case spec::opcode::CMD_CFGI_CD:
        case spec::opcode::CMD_CFGI_CD_ALL:
            return named == raw(sid);
        case spec::opcode::CMD_CFGI_STE_RANGE: {
            const std::uint64_t bits = get<spec::CMD_CFGI::Range>(c) + 1;
            return (named >> bits) == (std::uint64_t{raw(sid)} >> bits);
        }
        default:
            return false;
        }
    }

    /// The last command that covers a mapping. An address space as a whole is
    /// dropped when it is set up, before any page of it was translated: such
    /// commands count only behind the stream's last configuration. For a stream
    /// that no longer translates, that configuration itself is the cover.
    [[nodiscard]] std::optional<std::size_t> last_cover(const tagged_space& space,
                                                        const iova_range& mapping) const {
        for (std::size_t i = commands_.size(); i-- > 0;) {
            if (names_part(commands_[i], space, mapping)) return i;
            if (!space.asid && reconfigures(commands_[i], space.stream)) return i;
            if (drops_whole(commands_[i], space)) {
                const auto later = commands_.begin() + static_cast<std::ptrdiff_t>(i);
                if (std::none_of(later, commands_.end(), [&](const spec::command& c) {
                        return reconfigures(c, space.stream);
                    })) {
                    return i;
                }
            }
        }
        return std::nullopt;
    }

private:
    std::vector<spec::command> commands_;
    std::uint64_t size_ = 0;
    std::uint64_t start_ = 0;
};

} // namespace replay
