/// A device behind an SMMU whose guest driver has mapped many pages for it.
#pragma once

#include "../tests/smmu/guest_driver.hpp"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace bench {

using namespace vm_accel;

/// What the targets hold for: sets of eight ways, clock. The usual one has room for twice the 4,096
/// pages of most targets, the large one for twice 65,536.
using usual_tlb = set_associative<1024, 8>;
using large_tlb = set_associative<16384, 8>;

/// The two feature sets that the targets name.
struct stage1_options : default_smmu_options {};
struct full_options : default_smmu_options {
    static constexpr smmu_features features = full_features;
};

inline constexpr std::uint64_t first_page = 0x1'0000'0000;    ///< of pages of 4 KiB
inline constexpr std::uint64_t first_block = 0x100'0000'0000; ///< of blocks of 2 MiB
inline constexpr std::uint64_t scattered = 0x4000'0000'0000;  ///< of pages far from each other
inline constexpr std::uint16_t first_space = 7;               ///< ASID of the first stream
inline constexpr std::uint32_t first_stream = 0x10;
inline constexpr std::uint16_t nested_machine = 3; ///< VMID of nested streams
inline constexpr unsigned page_log2 = 12;
inline constexpr unsigned block_log2 = 21;
/// Outputs repeat: what is measured is the translation, not the data.
inline constexpr std::uint64_t outputs = guest::ram + (8U << 20);
inline constexpr std::uint64_t output_bytes = 4U << 20;

/// Where page (or block) `n` is.
[[nodiscard]] constexpr std::uint64_t output_of(std::uint64_t n, unsigned size_log2) noexcept {
    return outputs + (n << size_log2) % output_bytes;
}
[[nodiscard]] constexpr std::uint64_t base_of(unsigned size_log2) noexcept {
    return size_log2 == page_log2 ? first_page : first_block;
}

/// The addresses of `pages` pages or blocks in ascending or in a fixed random order, each once, at
/// a varying offset within the page.
[[nodiscard]] inline std::vector<iova> addresses(std::uint64_t pages, bool shuffled,
                                                 unsigned size_log2 = page_log2) {
    std::vector<iova> out;
    for (std::uint64_t i = 0; i < pages; ++i)
        out.push_back(iova{base_of(size_log2) + (i << size_log2) + i * 64 % 4032});
    if (shuffled) {
        std::mt19937_64 random{12345};
        std::ranges::shuffle(out, random);
    }
    return out;
}
/// The `n`-th address of those whose walks share nothing but the root: another table at each level,
/// and other lines of these tables.
[[nodiscard]] constexpr iova scattered_address(std::uint64_t n) noexcept {
    const std::uint64_t level1 = (n * 37 + 5) & 0x1ff;
    const std::uint64_t level2 = (n * 91 + 11) & 0x1ff;
    const std::uint64_t level3 = (n * 151 + 17) & 0x1ff;
    return iova{scattered + (n << 39) + (level1 << 30) + (level2 << 21) + (level3 << 12)};
}

/// Which stages a stream goes through.
enum class stages : std::uint8_t { first, both };

/// Commands go through send() only, not through the machine's own functions.
/// One address space, shared by as many streams as are asked for; each has an ASID of its own.
/// Stage 2, where there is one, maps the guest's memory one to one with pages of 4 KiB.
template <class Tlb, class Options = stage1_options>
class mapped_device {
public:
    using machine_type = guest::machine<Tlb, Options>;
    using device_type = typename machine_type::device;
    using port_type = typename device_type::port;

    mapped_device() {
        machine_.start();
        prod_ = machine_.read32(spec::reg::CMDQ_PROD);
        root_ = machine_.take_pages();
    }

    /// A port of a new stream.
    [[nodiscard]] port_type attach(stages which = stages::first) {
        const std::uint32_t number = streams_++;
        const stream_id sid{first_stream + number};
        const std::uint64_t cd = machine_.take_pages();
        machine_.store(
            cd, machine_type::plain_cd(root_, static_cast<std::uint16_t>(first_space + number)));
        machine_.store(machine_.ste_address(raw(sid)),
                       which == stages::first ? one_stage(cd) : two_stages(cd));
        send({spec::cmd_cfgi_ste(sid, true), spec::cmd_sync(spec::sync_signal::SIG_NONE)});
        const std::string name = "device " + std::to_string(number);
        const auto attached = machine_.iommu().attach_device(name, machine_type::all_of_ram, sid);
        if (!attached) throw std::runtime_error{std::string{attached.error().cause.view()}};
        return another_port(number);
    }
    /// One more port of stream `number`, counted from 0.
    [[nodiscard]] port_type another_port(std::uint32_t number) {
        auto port = machine_.iommu().make_port("device " + std::to_string(number));
        if (!port) throw std::runtime_error{"no port is left"};
        return std::move(*port);
    }

    /// At least `n` pages or blocks are mapped.
    void map(std::uint64_t n, unsigned size_log2 = page_log2) {
        std::uint64_t& mapped = size_log2 == page_log2 ? pages_ : blocks_;
        for (; mapped < n; ++mapped) {
            machine_.map(root_, base_of(size_log2) + (mapped << size_log2),
                         output_of(mapped, size_log2), size_log2 == page_log2 ? 3 : 2);
        }
    }
    void map_scattered(std::uint64_t n) {
        for (; scattered_ < n; ++scattered_) {
            machine_.map(root_, raw(scattered_address(scattered_)),
                         output_of(scattered_, page_log2));
        }
    }

    /// Puts commands into the ring, as a driver does, and rings once.
    void send(std::initializer_list<spec::command> commands) {
        for (const spec::command& c : commands)
            put(c);
        ring();
    }
    void put(const spec::command& c) {
        // Word by word, as drivers do: a copy in one piece of what has just been put together of
        // two waits for both.
        auto* const slot = reinterpret_cast<std::uint64_t*>(machine_.host(guest::command_ring)) +
                           (prod_ & ring_mask) * c.word.size();
        for (std::size_t i = 0; i < c.word.size(); ++i) {
            std::atomic_ref{slot[i]}.store(little_endian(c.word[i].value()),
                                           std::memory_order_relaxed);
        }
        ++prod_;
    }
    void ring() { machine_.iommu().mmio_write(spec::reg::CMDQ_PROD, 4, prod_ & positions); }
    /// Whether everything up to PROD has been consumed, without an error.
    [[nodiscard]] bool is_done() {
        return machine_.iommu().mmio_read(spec::reg::CMDQ_CONS, 4) == (prod_ & positions);
    }

    /// Nothing is cached any more, as after a guest's own invalidations. What they have only made
    /// invalid still takes places in a TLB. CMD_SYNC gives back what decoded configurations took.
    void forget() {
        send({spec::cmd_cfgi_all(), spec::tlbi_nsnh_all(),
              spec::cmd_sync(spec::sync_signal::SIG_NONE)});
        while (!is_done()) {} // another thread's guard may be open
    }
    /// As if nothing had ever been cached: invalidations by address take entries out.
    void empty() {
        constexpr spec::tlbi_range everything{.num = 31, .scale = 31, .tg = 1, .ttl = 0};
        send({spec::tlbi_nh_vaa(vmid{0}, iova{0}, false, everything),
              spec::tlbi_nh_vaa(vmid{nested_machine}, iova{0}, false, everything)});
        forget();
    }

    [[nodiscard]] device_type& iommu() { return machine_.iommu(); }
    [[nodiscard]] machine_type& machine() { return machine_; }
    [[nodiscard]] std::uint64_t root() const { return root_; }
    [[nodiscard]] std::byte* host_of(std::uint64_t output) { return machine_.host(output); }

private:
    static constexpr std::uint32_t ring_mask = (1U << guest::command_log2) - 1;
    static constexpr std::uint32_t positions = (2U << guest::command_log2) - 1;

    static spec::ste one_stage(std::uint64_t cd) {
        return machine_type::plain_ste(spec::ste_config::s1_translate, cd);
    }
    spec::ste two_stages(std::uint64_t cd) {
        using S = spec::ste;
        if (stage2_root_ == 0) {
            stage2_root_ = machine_.take_pages();
            // Read and write, write-back memory, inner shareable, accessed.
            constexpr std::uint64_t usual = 0x7ff;
            for (std::uint64_t at = 0; at < guest::ram_bytes; at += 4096) {
                const std::uint64_t address = guest::ram + at;
                machine_.store64(machine_.descriptor_slot(stage2_root_, address), address | usual);
            }
        }
        S entry = machine_type::plain_ste(spec::ste_config::s1_s2_translate, cd);
        set<S::S2VMID>(entry, nested_machine);
        set<S::S2T0SZ>(entry, 16); // 48 bits: four levels
        set<S::S2SL0>(entry, 2);
        set<S::S2PS>(entry, 5);
        set<S::S2AA64>(entry, 1);
        set<S::S2R>(entry, 1);
        set<S::S2TTB>(entry, stage2_root_ >> 4);
        return entry;
    }

    machine_type machine_{};
    std::uint64_t root_ = 0;
    std::uint64_t stage2_root_ = 0;
    std::uint32_t streams_ = 0;
    std::uint32_t prod_ = 0;
    std::uint64_t pages_ = 0;
    std::uint64_t blocks_ = 0;
    std::uint64_t scattered_ = 0;
};

} // namespace bench
