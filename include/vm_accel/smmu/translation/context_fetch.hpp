/// From an access to its CD, and to the VMS (IHI 0070, 3.3.2, 5.3, 5.6).
///
/// Under stage 2 the addresses of CDs are intermediate addresses: what stage 2
/// refuses is then a fault of the access, with CLASS = CD.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/smmu/translation/stage2_walk.hpp>
#include <vm_accel/smmu/translation/stream_entry.hpp>
#include <vm_accel/smmu/translation/stream_table.hpp>
#include <vm_accel/smmu/translation/walk.hpp>
#include <vm_accel/smmu/vocabulary/access.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/spec/cd.hpp>
#include <vm_accel/spec/events.hpp>

#include <cstdint>
#include <optional>

namespace vm_accel::inline v0 {

/// Why a stream has no configuration.
struct resolve_fault {
    spec::event_id event{};
    std::uint64_t fetch_address = 0;
    bool record = true;
    // Of a stage-2 fault on the way to a CD:
    bool stage2 = false;
    spec::fault_class cls = spec::fault_class::CD;
    std::uint64_t ipa = 0;
    bool may_stall = false;
};

/// The SubstreamID of an access, or that it has none. Unlike std::optional it
/// has a value at all times: GCC 12 would see an unset one being read.
class optional_substream {
public:
    constexpr optional_substream() noexcept = default;
    constexpr optional_substream(substream_id number) noexcept
        : number_(number), is_present_(true) {}
    constexpr optional_substream(std::optional<substream_id> from) noexcept {
        if (from) *this = optional_substream{*from};
    }

    [[nodiscard]] constexpr bool is_present() const noexcept { return is_present_; }
    /// 0 when there is none.
    [[nodiscard]] constexpr substream_id number() const noexcept { return number_; }

private:
    substream_id number_{};
    bool is_present_ = false;
};

/// Which translation an access takes through a stream whose stage 1 is on.
struct context_choice {
    std::optional<spec::event_id> event{}; ///< set = none
    bool bypasses_stage1 = false;          ///< S1DSS = 0b01, and no SubstreamID
    std::uint32_t index = 0;               ///< of the CD
};

/// The CD that a SubstreamID, or the lack of one, selects (5.2, S1CDMax and
/// S1DSS).
[[nodiscard]] constexpr context_choice choose_context(const stream_plan& plan,
                                                      optional_substream substream) noexcept {
    using enum spec::event_id;
    using enum spec::s1_default_substream;
    const std::uint64_t count = std::uint64_t{1} << plan.contexts.count_log2;
    if (count == 1) {
        if (substream.is_present()) return {.event = C_BAD_SUBSTREAMID};
        return {};
    }
    if (substream.is_present()) {
        const std::uint32_t index = raw(substream.number());
        if (index >= count) return {.event = C_BAD_SUBSTREAMID};
        if (index == 0 && plan.without_substream == substream0) {
            return {.event = F_STREAM_DISABLED};
        }
        return {.index = index};
    }
    if (plan.without_substream == substream0) return {};
    if (plan.without_substream == bypass) return {.bypasses_stage1 = true};
    return {.event = F_STREAM_DISABLED}; // terminate, and the reserved encoding
}

/// Reads structures that stage 1 is configured with: as they are, or through stage 2.
template <smmu_features F, table_access Tables>
class context_reader {
public:
    context_reader(Tables& tables, const stream_plan& plan) noexcept
        : tables_(tables), plan_(plan) {}

    /// Copies the CD of that index.
    [[nodiscard]] std::optional<resolve_fault> fetch(std::uint32_t index,
                                                     spec::cd& context) noexcept {
        const cd_table& table = plan_.contexts;
        const bool linear = table.count_log2 == 0 || table.format == spec::s1_format::linear;
        if (linear) return read(linear_address(table, index), context);

        const unsigned leaf_log2 = table.format == spec::s1_format::two_level_4k ? 6 : 10;
        spec::l1_cd_descriptor level1;
        if (const auto failed = read(level1_address(table, leaf_log2, index), level1)) {
            return failed;
        }
        // The level-2 table is aligned to its size.
        const std::uint64_t leaf_bytes = sizeof(spec::cd) << leaf_log2;
        const std::uint64_t leaf = get_address<spec::l1_cd_descriptor::L2Ptr>(level1);
        if (get<spec::l1_cd_descriptor::V>(level1) == 0 || leaf >> F.output_bits != 0) {
            return resolve_fault{.event = spec::event_id::C_BAD_SUBSTREAMID};
        }
        const std::uint64_t within = index & ((std::uint32_t{1} << leaf_log2) - 1);
        return read((leaf & ~(leaf_bytes - 1)) + within * sizeof(spec::cd), context);
    }

private:
    /// Tables are aligned to their size; address bits below it count as zero.
    [[nodiscard]] static constexpr std::uint64_t linear_address(const cd_table& table,
                                                                std::uint32_t index) noexcept {
        const std::uint64_t bytes = sizeof(spec::cd) << table.count_log2;
        return (table.base & ~(bytes - 1)) + index * sizeof(spec::cd);
    }
    [[nodiscard]] static constexpr std::uint64_t
    level1_address(const cd_table& table, unsigned leaf_log2, std::uint32_t index) noexcept {
        const unsigned entries_log2 =
            table.count_log2 > leaf_log2 ? table.count_log2 - leaf_log2 : 0;
        const std::uint64_t bytes = sizeof(spec::l1_cd_descriptor) << entries_log2;
        const std::uint64_t alignment = bytes < 64 ? 64 : bytes;
        return (table.base & ~(alignment - 1)) +
               (index >> leaf_log2) * sizeof(spec::l1_cd_descriptor);
    }

    /// Copies a structure that does not cross a page.
    template <class Structure>
    [[nodiscard]] std::optional<resolve_fault> read(std::uint64_t address,
                                                    Structure& out) noexcept {
        std::uint64_t at = address;
        if constexpr (F.stage2) {
            if (plan_.stage2) {
                // Protected as tables are (5.2, S2PTW).
                const walk_result page = walk_stage2<F>(
                    plan_.stage2_tables,
                    {.ipa = address, .needed = permissions::privileged_read, .for_table = true},
                    tables_);
                if (page.event) return fault_of(page, address);
                at = page.output_base + (address - page.input_base);
            }
        }
        if (!fetch_structure(tables_, at, out)) {
            return resolve_fault{.event = spec::event_id::F_CD_FETCH, .fetch_address = at};
        }
        return std::nullopt;
    }
    [[nodiscard]] resolve_fault fault_of(const walk_result& page,
                                         std::uint64_t address) const noexcept {
        const bool abort = *page.event == spec::event_id::F_WALK_EABT;
        return {.event = *page.event,
                .fetch_address = page.fetch_address,
                .record = abort || plan_.record_stage2_faults,
                .stage2 = true,
                .cls = spec::fault_class::CD,
                .ipa = address,
                .may_stall = !abort && plan_.stall_stage2_faults};
    }

    Tables& tables_;
    const stream_plan& plan_;
};

/// MPAM of an access through this stream (17.2): of the STE, or of the CD, whose
/// partition is mapped by the VMS under stage 2.
struct partition_choice {
    std::uint16_t partition = 0;
    std::uint8_t group = 0;
    std::optional<resolve_fault> failed{}; ///< set = F_VMS_FETCH
};

/// `context` is null for accesses that do not go through stage 1.
template <table_access Tables>
[[nodiscard]] partition_choice choose_partition(Tables& tables, const stream_plan& plan,
                                                const spec::cd* context) noexcept {
    const partition_plan& by_stream = plan.partition;
    if (context == nullptr || !by_stream.from_cd) return {by_stream.partition, by_stream.group};
    const std::uint64_t asked = get<spec::cd::PARTID>(*context);
    const auto group = static_cast<std::uint8_t>(get<spec::cd::PMG>(*context));
    if (!plan.stage2) return {static_cast<std::uint16_t>(asked), group};
    // PARTID_MAP: 32 entries of 16 bits at the VMS's start.
    const std::uint64_t virtual_partition = asked & 0x1f;
    const std::uint64_t at = by_stream.structure + virtual_partition / 4 * 8;
    const std::optional<std::uint64_t> word = tables.load(at);
    if (!word) {
        return {.failed = resolve_fault{.event = spec::event_id::F_VMS_FETCH, .fetch_address = at}};
    }
    return {static_cast<std::uint16_t>(*word >> (virtual_partition % 4 * 16)), group};
}

} // namespace vm_accel::inline v0
