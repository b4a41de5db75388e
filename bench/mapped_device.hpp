/// A device behind an SMMU whose guest driver has mapped many pages for it.
#pragma once

#include "../tests/smmu/guest_driver.hpp"

#include <algorithm>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <vector>

namespace bench {

using namespace vm_accel;

inline constexpr std::uint64_t first_page = 0x1'0000'0000;
inline constexpr std::uint16_t address_space = 7;
inline constexpr std::uint32_t stream = 0x10;

/// `most` pages mapped 4 KiB by 4 KiB, all in the TLB's reach. Outputs repeat
/// after 1024 pages: what is measured is the translation, not the data.
template <class Tlb, class Options = default_smmu_options>
class mapped_device {
public:
    using machine_type = guest::machine<Tlb, Options>;
    using port_type = typename machine_type::device::port;

    explicit mapped_device(std::uint64_t most) : port_(attach()) {
        for (std::uint64_t i = 0; i < most; ++i)
            machine_.map(root_, first_page + i * 4096, output_of(i));
    }

    static std::uint64_t output_of(std::uint64_t page) {
        return guest::ram + (8U << 20) + page % 1024 * 4096;
    }
    machine_type& machine() { return machine_; }
    port_type& port() { return port_; }
    port_type another_port() { return std::move(machine_.iommu().make_port("device").value()); }
    std::uint64_t root() const { return root_; }

private:
    port_type attach() {
        machine_.start();
        root_ = machine_.stage1_stream(stream, address_space);
        if (!machine_.iommu().attach_device("device", machine_type::all_of_ram,
                                            stream_id{stream})) {
            throw std::runtime_error{"the device could not be attached"};
        }
        return another_port();
    }

    machine_type machine_{};
    std::uint64_t root_ = 0;
    port_type port_;
};

/// The addresses of `pages` pages in ascending or in a fixed random order, each
/// once, at a varying offset within the page.
inline std::vector<iova> addresses(std::uint64_t pages, bool shuffled) {
    std::vector<iova> out;
    for (std::uint64_t i = 0; i < pages; ++i)
        out.push_back(iova{first_page + i * 4096 + i * 64 % 4032});
    if (shuffled) {
        std::mt19937_64 random{12345};
        std::ranges::shuffle(out, random);
    }
    return out;
}

} // namespace bench
