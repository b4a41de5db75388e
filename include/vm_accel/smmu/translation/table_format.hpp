/// Shape of a set of tables: granule, input and output sizes, address form
/// (DDI 0487, D8.2, D8.3).
#pragma once

#include <vm_accel/smmu/vocabulary/features.hpp>
#include <vm_accel/spec/descriptors.hpp>

#include <cstdint>

namespace vm_accel::inline v0 {

/// What a descriptor is at its level.
enum class descriptor_role : std::uint8_t {
    invalid,   ///< F_TRANSLATION
    too_large, ///< its address does not fit the output size: F_ADDR_SIZE
    table,
    leaf, ///< a block or page
};
struct decoded_descriptor {
    descriptor_role role = descriptor_role::invalid;
    std::uint64_t address = 0; ///< of the next table, or the first output address
};

/// One half of stage 1, or stage 2. What the features leave no choice in is a
/// constant: with 4 KiB granules alone, nothing here is asked at run time.
template <smmu_features F>
class table_format {
public:
    /// `ds` is CD.DS or STE.S2DS; `output_bits` the effective IPS or S2PS.
    constexpr table_format(unsigned granule_bits, unsigned input_bits, unsigned output_bits,
                           bool ds) noexcept
        : granule_(static_cast<spec::granule>(granule_bits)),
          form_(form_of(granule(), ds)),
          stride_(spec::bits_per_level(granule())),
          input_bits_(input_bits),
          output_bits_(addressed_bits(form(), output_bits)) {}

    [[nodiscard]] constexpr spec::granule granule() const noexcept {
        if constexpr (!F.granule_16k && !F.granule_64k) return spec::granule::size_4k;
        return granule_;
    }
    [[nodiscard]] constexpr spec::address_form form() const noexcept {
        if constexpr (F.output_bits <= 48 && !F.ds) return spec::address_form::narrow;
        return form_;
    }
    [[nodiscard]] constexpr unsigned output_bits() const noexcept { return output_bits_; }
    [[nodiscard]] constexpr unsigned input_bits() const noexcept { return input_bits_; }
    [[nodiscard]] constexpr bool fits(std::uint64_t address) const noexcept {
        return address >> output_bits() == 0;
    }

    /// Input bits that one descriptor at `level` leaves over.
    [[nodiscard]] constexpr unsigned covered(int level) const noexcept {
        if constexpr (!F.granule_16k && !F.granule_64k)
            return spec::covered_bits(spec::granule::size_4k, level);
        return stride_ * static_cast<unsigned>(static_cast<int>(spec::last_level) + 1 - level) + 3;
    }
    /// Where a stage-1 walk starts; 4 = nowhere, the input has no page.
    [[nodiscard]] constexpr int first_level() const noexcept {
        const unsigned stride = spec::bits_per_level(granule());
        const unsigned page = spec::page_bits(granule());
        if (input_bits_ <= page) return 4;
        return static_cast<int>(spec::last_level + 1) -
               static_cast<int>((input_bits_ - page + stride - 1) / stride);
    }
    /// log2 of the descriptors in the first table: fewer than in a page, or up
    /// to 16 pages of them at stage 2.
    [[nodiscard]] constexpr unsigned first_bits(int level) const noexcept {
        return input_bits_ - covered(level);
    }
    /// The first table is aligned to its own size, to 64 bytes when its address
    /// may have more than 48 bits; lower bits of the base are taken as zero.
    [[nodiscard]] constexpr std::uint64_t first_table(std::uint64_t base,
                                                      int level) const noexcept {
        unsigned aligned = first_bits(level) + 3;
        if constexpr (F.output_bits > 48) {
            if (aligned < 6 && form() != spec::address_form::narrow &&
                (form() == spec::address_form::ds || output_bits_ > 48)) {
                aligned = 6;
            }
        }
        return base & ~((std::uint64_t{1} << aligned) - 1);
    }
    /// Which descriptor of a table below the first.
    [[nodiscard]] constexpr std::uint64_t index(std::uint64_t input, int level) const noexcept {
        return input >> covered(level) & ((std::uint64_t{1} << stride_) - 1);
    }

    /// Bits of a leaf of 2^size_log2 bytes that are the same in its output address,
    /// and may have any value.
    [[nodiscard]] constexpr std::uint64_t address_bits(unsigned size_log2) const noexcept {
        const unsigned above = output_bits_ < 48 ? output_bits_ : 48;
        return (std::uint64_t{1} << above) - (std::uint64_t{1} << size_log2);
    }
    /// Without decode()'s questions, in the narrow form and above the last level: whether a
    /// descriptor is a table's whose address is small enough, and that address.
    [[nodiscard]] constexpr bool is_narrow() const noexcept {
        return form() == spec::address_form::narrow;
    }
    [[nodiscard]] constexpr bool is_usual_table(std::uint64_t descriptor) const noexcept {
        return (descriptor & 3) == 3 && fits(usual_table(descriptor));
    }
    [[nodiscard]] constexpr std::uint64_t usual_table(std::uint64_t descriptor) const noexcept {
        return narrow_address(descriptor, spec::page_bits(granule()));
    }

    /// What a descriptor is, and the address in it.
    [[nodiscard, gnu::always_inline]] constexpr decoded_descriptor
    decode(std::uint64_t descriptor, int level) const noexcept {
        using K = spec::descriptor_kind;
        if (K::Valid::of(descriptor) == 0) return {};
        const bool last = level == static_cast<int>(spec::last_level);
        const bool table_bit = K::Table::of(descriptor) != 0;
        const bool leaf = last == table_bit;
        if (leaf && !last && !spec::has_blocks(granule(), level, form())) return {};
        if (last && !leaf) return {};
        const unsigned aligned = leaf ? covered(level) : spec::page_bits(granule());
        const std::uint64_t address = form() == spec::address_form::narrow
                                          ? narrow_address(descriptor, aligned)
                                          : spec::address_in(descriptor, aligned, form());
        if (!fits(address)) return {descriptor_role::too_large, 0};
        return {leaf ? descriptor_role::leaf : descriptor_role::table, address};
    }

private:
    /// The usual form, without asking which it is.
    [[nodiscard]] static constexpr std::uint64_t narrow_address(std::uint64_t descriptor,
                                                                unsigned aligned) noexcept {
        return spec::address_in(descriptor, aligned, spec::address_form::narrow);
    }
    /// With 64 KiB granules bits [15:12] are address bits wherever 52-bit
    /// addresses exist, however small the output size.
    [[nodiscard]] static constexpr spec::address_form form_of(spec::granule granule,
                                                              bool wide) noexcept {
        using enum spec::address_form;
        if constexpr (F.output_bits == 52 && F.granule_64k) {
            if (granule == spec::granule::size_64k) return large_64k;
        }
        if constexpr (F.ds) {
            if (wide && granule != spec::granule::size_64k) return ds;
        }
        return narrow;
    }
    /// The narrow form has no addresses above 48 bits, whatever IPS says.
    [[nodiscard]] static constexpr unsigned addressed_bits(spec::address_form form,
                                                           unsigned output_bits) noexcept {
        if constexpr (F.output_bits > 48) {
            if (form == spec::address_form::narrow && output_bits > 48) return 48;
        }
        return output_bits;
    }

    spec::granule granule_;
    spec::address_form form_;
    unsigned stride_; ///< input bits that a level resolves
    unsigned input_bits_;
    unsigned output_bits_;
};

} // namespace vm_accel::inline v0
