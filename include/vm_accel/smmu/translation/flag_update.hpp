/// Hardware updates of access flag and dirty state (HTTU; DDI 0487, D8.5,
/// IHI 0070, 3.13): what a leaf's flags mean, and what an access makes of them.
#pragma once

#include <vm_accel/smmu/translation/leaf_permissions.hpp>
#include <vm_accel/smmu/vocabulary/access.hpp>
#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/spec/descriptors.hpp>

#include <cstdint>
#include <type_traits>

namespace vm_accel::inline v0 {

/// Bit 7 is AP[2] at stage 1 (1 = read-only) and S2AP[1] at stage 2 (1 =
/// writable). AF and DBM are the same bits at both.
inline constexpr std::uint64_t write_bit = spec::access_permission::read_only::mask;
static_assert(write_bit == std::uint64_t{2} << spec::stage2_leaf::S2AP::low);
static_assert(std::is_same_v<spec::stage1_leaf::AF, spec::stage2_leaf::AF> &&
              std::is_same_v<spec::stage1_leaf::DBM, spec::stage2_leaf::DBM>);

/// A leaf for one access. `Regime` is stage1_regime or stage2_regime.
///
/// Both flags are set only when nothing refuses the access at this stage. The
/// dirty state of stage 1 does not wait for stage 2's answer on the output,
/// as in the architecture's pseudocode: too much is marked, never too little.
template <smmu_features F>
class leaf_flags {
public:
    template <class Regime>
    constexpr leaf_flags(const Regime& regime, std::uint64_t descriptor, bool is_stage1) noexcept
        : descriptor_(descriptor) {
        const bool accessed = spec::stage1_leaf::AF::of(descriptor) != 0;
        if constexpr (F.httu >= 1) {
            sets_access_flag_ = !accessed && regime.updates_access_flag;
        }
        faults_ = !accessed && !sets_access_flag_ && !regime.access_flag_ignored;
        if constexpr (F.httu >= 2) {
            const bool read_only = ((descriptor & write_bit) != 0) == is_stage1;
            clean_ = regime.updates_access_flag && regime.updates_dirty_state && read_only &&
                     spec::stage1_leaf::DBM::of(descriptor) != 0;
        }
    }

    /// Nobody sets the flag: F_ACCESS.
    [[nodiscard]] constexpr bool access_fault() const noexcept { return faults_; }
    /// The descriptor with the permissions it really has: clean is writable.
    [[nodiscard]] constexpr std::uint64_t effective() const noexcept {
        return clean_ ? descriptor_ ^ write_bit : descriptor_;
    }
    /// The descriptor after the access.
    [[nodiscard]] constexpr std::uint64_t after(unsigned needed) const noexcept {
        std::uint64_t word = descriptor_;
        if (sets_access_flag_) word |= spec::stage1_leaf::AF::mask;
        if (clean_ && (needed & write_accesses) != 0) word ^= write_bit;
        return word;
    }
    /// What may be done later without another walk: a clean page is not
    /// written before it is marked.
    [[nodiscard]] constexpr permissions lasting(permissions allowed,
                                                unsigned needed) const noexcept {
        if (clean_ && (needed & write_accesses) == 0) {
            return permissions{allowed.bits() & ~write_accesses};
        }
        return allowed;
    }

private:
    std::uint64_t descriptor_;
    bool sets_access_flag_ = false;
    bool faults_ = false;
    bool clean_ = false;
};

} // namespace vm_accel::inline v0
