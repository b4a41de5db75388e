/// What the golden model is known to do otherwise than the architecture says.
///
/// Each row is applied to our answer before it is compared, only where its condition holds, and
/// counted. What our answer does not foretell is not generated:
/// - First tables of stage 2 side by side that differ: the first is used for all.
/// - TBI0 unlike TBI1: TBI0 decides for both halves.
/// - S1CDMax not 0: illegal there, although without SubstreamIDs it is ignored. S2AA64 = 0: QEMU
///   stops. S1ContextPtr beyond the output size: not looked at.
/// - S2T0SZ larger than S2PS: illegal there; start levels that the input size does not reach:
/// legal.
/// - A StreamID between once and twice the size of its level-2 table: an STE is read there.
/// - A table's address beyond IPS or S2PS: it is fetched.
/// - APTable above a leaf that faults for another reason: it is checked first; or above a page that
///   was read before: a hit has forgotten it. So spaces with table attributes are only written.
/// - Writes to a read-only page of stage 2 alone after it was read, and reads of a write-only one
///   after it was written: a hit refuses them without a record.
/// - Stage-2 faults of a first table of stage 1: its address is translated with the CD, for both
///   halves, whatever the access; and of part of a table: stage 2 is asked for its first page only.
/// - Changes of stage 2 without CMD_CFGI: see the line before. Changes of a stage-1 page that
///   stage 2 cuts into pieces, or that has been used with tags, with TLBI_NH_VA for one address.
/// - A linear stream table after one of two levels: the first is ignored until QEMU starts again.
#pragma once

#include "golden_model.hpp"
#include "our_model.hpp"
#include "world.hpp"

#include <array>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace differential {

enum class known_error : std::uint8_t {
    privilege_ignored,
    attributes_missing,
    bad_stream_id_always_recorded,
    level2_index_is_bad_ste,
    cd_fetch_address_misplaced,
    bypass_has_no_size,
    size_checked_last,
    ipa_has_low_bits,
    structure_fetch_is_read,
    table_ipa_is_base,
    stage2_input_size_not_recorded,
    table_fault_is_stage1,
    hit_has_no_ipa,
    count_,
};
struct known_error_row {
    const char* name;
    const char* reason;
};
inline constexpr std::array<known_error_row, static_cast<std::size_t>(known_error::count_)>
    known_error_rows{{
        {"privilege", "AP[1], PAN and APTable[0] do not count: whoever asks is let through"},
        {"PnU, InD and TTRnW",
         "records do not say whether the access was privileged or a fetch, nor "
         "how a table was accessed"},
        {"RECINVSID", "C_BAD_STREAMID is recorded whatever CR2.RECINVSID says"},
        {"level-2 index", "an index beyond a level-2 table is C_BAD_STE, not C_BAD_STREAMID"},
        {"F_CD_FETCH", "the address is where InputAddr would be"},
        {"bypass", "addresses beyond the output size pass through bypass with no F_ADDR_SIZE"},
        {"F_ADDR_SIZE", "a leaf's access flag and permissions are checked before its output size"},
        {"IPA", "bits 11 to 0 of the address are in the record, where it has no field"},
        {"RnW of a CD", "a stage-2 fault of a CD's address is a read, whatever the device did"},
        {"IPA of a table", "a stage-2 fault of a table fetch names the table, not the descriptor"},
        {"stage-2 input size", "F_ADDR_SIZE of an address beyond the input size of a stream with "
                               "stage 2 only is not recorded"},
        {"S2 of a table",
         "a stage-2 fault of a table fetch is recorded as one of stage 1, and when CD.R says so"},
        {"IPA of a hit",
         "a write that hits a read-only stage-2 translation has IPA 0 in its record"},
    }};

/// The golden model's answer as it follows from ours.
class golden_errors {
public:
    /// Makes our access of up to `length` bytes. Gives how many bytes it took: what one
    /// translation serves, or the 4 bytes that a refused access consists of.
    std::uint32_t access(our_model& ours, const both_memories& memory, const world& w,
                         const transfer& t, std::uint32_t done, bool privileged, std::byte* bytes,
                         std::vector<spec::event_record>& events,
                         std::vector<std::uint64_t>& touched, std::uint32_t& refused) {
        const std::uint64_t address = t.address + done;
        const std::uint32_t left = t.length - done;
        our_model::answer a = ours.access(t.device, t.write, address, left, bytes, privileged);
        using enum spec::event_id;
        if (a.outcome.is_fault() && is_event(a) && a.outcome.event() == F_PERMISSION) {
            our_model::answer other =
                ours.access(t.device, t.write, address, left, bytes, !privileged);
            if (gets_further(other, a)) {
                note(known_error::privilege_ignored);
                a = std::move(other);
            }
        }
        if (!a.outcome.is_fault()) touched.push_back(raw(a.outcome.address()));
        if (a.outcome.is_span()) {
            return static_cast<std::uint32_t>(a.outcome.length());
        }
        ++refused;
        // Nothing there, or refused: the devices go on in words, and read zeros.
        if (!t.write) std::memset(bytes, 0, 4);
        const stream& s = w.streams[t.device];
        if (a.outcome.is_fault() && is_event(a)) {
            if (a.outcome.event() == C_BAD_STREAMID) {
                if (!w.record_bad_stream_id) {
                    spec::event_record record;
                    set<R::Type>(record, static_cast<std::uint64_t>(C_BAD_STREAMID));
                    set<R::StreamID>(record, stream_of(t.device));
                    a.events.push_back(record);
                    note(known_error::bad_stream_id_always_recorded);
                }
                if (beyond_level2(w, t.device)) {
                    set<R::Type>(a.events.back(), static_cast<std::uint64_t>(C_BAD_STE));
                    note(known_error::level2_index_is_bad_ste);
                }
            }
            if (a.outcome.event() == F_ADDR_SIZE && s.kind == stream_kind::bypass) {
                a.events.clear();
                note(known_error::bypass_has_no_size);
            }
            if (a.outcome.event() == F_ADDR_SIZE && s.kind == stream_kind::stage2 &&
                address >> our_options::features.output_bits != 0 && !a.events.empty()) {
                a.events.clear();
                note(known_error::stage2_input_size_not_recorded);
            }
        }
        for (spec::event_record& record : a.events) {
            if (get<R::Type>(record) == static_cast<std::uint64_t>(F_ADDR_SIZE)) {
                check_size_last(memory, w, t, record);
            }
            if (!stage2_of_structures(w, t, record)) continue;
            if (get<R::PnU>(record) != 0 || get<R::InD>(record) != 0 ||
                get<R::TTRnW>(record) != 0) {
                set<R::PnU>(record, 0);
                set<R::InD>(record, 0);
                set<R::TTRnW>(record, 0);
                note(known_error::attributes_missing);
            }
            if (get<R::Type>(record) == static_cast<std::uint64_t>(F_CD_FETCH)) {
                record.word[2] = record.word[3];
                record.word[3] = 0;
                note(known_error::cd_fetch_address_misplaced);
            }
            events.push_back(record);
        }
        return 4;
    }

    /// The golden model's record without what it has no field for.
    void clean(spec::event_record& record) {
        const std::uint64_t type = get<R::Type>(record);
        if (type < 0x10 || type > 0x13 || (get<R::S2>(record) == 0 && get<R::CLASS>(record) != 1))
            return;
        if ((record.word[3].value() & 0xfff) != 0) note(known_error::ipa_has_low_bits);
        record.word[3] = record.word[3].value() & ~std::uint64_t{0xfff};
    }

    /// Our record where the golden model's depends on what it has cached.
    void follow(const spec::event_record& golden, spec::event_record& found) {
        if (get<R::Type>(found) != static_cast<std::uint64_t>(spec::event_id::F_PERMISSION) ||
            get<R::S2>(found) == 0 || get<R::CLASS>(found) != 2 || get<R::RnW>(found) != 0) {
            return;
        }
        if (golden.word[3].value() == 0 && found.word[3].value() != 0) {
            found.word[3] = 0;
            note(known_error::hit_has_no_ipa);
        }
    }

    [[nodiscard]] std::uint64_t applied(known_error e) const {
        return applied_[static_cast<std::size_t>(e)];
    }
    void add(const golden_errors& other) {
        for (std::size_t i = 0; i < applied_.size(); ++i)
            applied_[i] += other.applied_[i];
    }
    void print() const {
        for (std::size_t i = 0; i < applied_.size(); ++i) {
            std::printf("  %8llu %s: %s\n", static_cast<unsigned long long>(applied_[i]),
                        known_error_rows[i].name, known_error_rows[i].reason);
        }
    }

private:
    using R = spec::event_record;

    static bool is_event(const our_model::answer& a) {
        return a.outcome.why() == vm_accel::silent_abort::none;
    }
    /// Stage-2 faults on the way to a CD or a stage-1 table. False = not recorded.
    bool stage2_of_structures(const world& w, const transfer& t, spec::event_record& record) {
        const std::uint64_t type = get<R::Type>(record);
        const std::uint64_t cls = get<R::CLASS>(record);
        const bool abort = type == static_cast<std::uint64_t>(spec::event_id::F_WALK_EABT);
        if (!abort && (type < 0x10 || type > 0x13)) return true;
        if (get<R::S2>(record) == 0 || cls == 2) return true;
        if (cls == 0) {
            if (get<R::RnW>(record) == 0) {
                set<R::RnW>(record, 1);
                note(known_error::structure_fetch_is_read);
            }
            return true;
        }
        set<R::S2>(record, 0);
        note(known_error::table_fault_is_stage1);
        if (abort) return true;
        const address_space& space = w.spaces[w.streams[t.device].space];
        const table_tree& tree = space.tree[get<R::InputAddr>(record) >> 55 & 1];
        const std::uint64_t ipa = get<R::IPA>(record) << R::IPA::low;
        const std::uint64_t base = ipa & ~((std::uint64_t{1} << tree.granule) - 1);
        if (base != ipa) {
            set<R::IPA>(record, base >> R::IPA::low);
            note(known_error::table_ipa_is_base);
        }
        return get<spec::cd::R>(space.descriptor) != 0;
    }
    /// Turns F_ADDR_SIZE into what the golden model finds first in the same leaf.
    void check_size_last(const both_memories& memory, const world& w, const transfer& t,
                         spec::event_record& record) {
        const stream& s = w.streams[t.device];
        if (s.kind == stream_kind::bypass || get<R::CLASS>(record) != 2) return;
        const bool stage2 = get<R::S2>(record) != 0;
        std::optional<std::uint64_t> leaf;
        bool access_flag_counts = false;
        bool allowed = true;
        if (stage2) {
            const machine_space& m = w.machine_of(s);
            leaf = find_leaf(memory, m.tree, get<R::IPA>(record) << R::IPA::low);
            access_flag_counts = !m.ignore_access_flag;
            allowed = leaf && (*leaf >> (t.write ? 7 : 6) & 1) != 0;
        } else {
            if (s.kind == stream_kind::stage2) return;
            const address_space& space = w.spaces[s.space];
            const std::uint64_t address = get<R::InputAddr>(record);
            leaf = find_leaf(memory, space.tree[address >> 55 & 1], address);
            access_flag_counts = get<spec::cd::AFFD>(space.descriptor) == 0;
            allowed = leaf && !(t.write && (*leaf >> 7 & 1) != 0);
        }
        if (!leaf) return;
        if (access_flag_counts && (*leaf >> 10 & 1) == 0) {
            set<R::Type>(record, static_cast<std::uint64_t>(spec::event_id::F_ACCESS));
            note(known_error::size_checked_last);
        } else if (!allowed) {
            set<R::Type>(record, static_cast<std::uint64_t>(spec::event_id::F_PERMISSION));
            note(known_error::size_checked_last);
        }
    }
    /// Whether the other asker was not refused, or not for stage 1's permissions.
    static bool gets_further(const our_model::answer& other, const our_model::answer& first) {
        if (!other.outcome.is_fault() || other.outcome.event() != first.outcome.event())
            return true;
        const auto of_stage2 = [](const our_model::answer& a) {
            return get<R::S2>(a.events.front()) != 0;
        };
        // What is not recorded is of the stage whose record bit is 0.
        if (!other.events.empty()) return of_stage2(other);
        return !first.events.empty() && !of_stage2(first);
    }
    void note(known_error e) { ++applied_[static_cast<std::size_t>(e)]; }
    static bool beyond_level2(const world& w, unsigned device) {
        const std::uint32_t sid = stream_of(device);
        if (!w.table.two_level || sid >> w.table.log2size != 0) return false;
        const unsigned span = w.table.descriptor[sid >> w.table.split].span;
        return span != 0 && (sid & ((1U << w.table.split) - 1)) >> (span - 1) != 0;
    }

    std::array<std::uint64_t, static_cast<std::size_t>(known_error::count_)> applied_{};
};

} // namespace differential
