/// Guest RAM in pieces small enough to be moved: where each lies, and moving it.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/numa/grant.hpp>
#include <vm_accel/numa/migration.hpp>
#include <vm_accel/numa/page_mover.hpp>
#include <vm_accel/numa/ram_binding.hpp>
#include <vm_accel/numa/ram_region.hpp>
#include <vm_accel/os/memory_platform.hpp>
#include <vm_accel/os/placement_platform.hpp>
#include <vm_accel/topology/cpu_topology.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace vm_accel::inline v0 {

struct following_options {
    std::uint64_t piece_bytes = 64u << 20; ///< memory is followed in pieces of this size
    unsigned pages_sampled = 64;           ///< of each piece in each round; at least one
    std::uint64_t step_bytes = 2u << 20;   ///< moved by one call of the system
    /// A piece that has moved whole is bound to its new node as it was to the old one, so
    /// that its later pages go there too. Each such piece may cost a mapping.
    bool bind_what_moved = true;
};

/// A part of guest RAM that is followed. Node numbers are the operating system's.
struct followed_piece {
    std::byte* address = nullptr;
    std::uint64_t bytes = 0;
    std::uint64_t page_bytes = 4096;
    unsigned guest_node = 0;
    unsigned node = any_node; ///< where it is bound to, or was meant for
    os::bind_mode mode = os::bind_mode::none;
    grant binding{};                ///< of the last binding
    unsigned rounds_in_place = ~0u; ///< since pages of it were last moved
    unsigned patience = 0; ///< rounds of rest after a move that moved nothing; doubled each time
    unsigned resting = 0;  ///< rounds of rest left
};

/// Threads: one at a time.
template <os::memory_platform Memory, os::placement_platform Placement>
class followed_memory {
public:
    explicit followed_memory(const following_options& options) noexcept : options_(options) {}

    void add(const basic_ram_region<Memory>& region, const Memory& memory) {
        const std::uint64_t page =
            std::max(region.grants().reserved_page_bytes, memory.page_bytes());
        const std::uint64_t most = std::max<std::uint64_t>(options_.piece_bytes / page, 1) * page;
        for (const ram_chunk& chunk : region.chunks()) {
            for (std::uint64_t at = 0; at < chunk.bytes; at += most) {
                followed_piece piece;
                piece.address = region.data() + chunk.offset + at;
                piece.bytes = std::min(most, chunk.bytes - at);
                piece.page_bytes = page;
                piece.guest_node = chunk.guest_node;
                piece.node = chunk.node;
                piece.mode = chunk.mode;
                piece.binding = chunk.binding;
                pieces_.push_back(piece);
            }
        }
    }
    void remove(const basic_ram_region<Memory>& region) {
        std::erase_if(pieces_, [&](const followed_piece& p) {
            return p.address >= region.data() && p.address < region.data() + region.bytes();
        });
    }
    [[nodiscard]] std::span<const followed_piece> pieces() const noexcept { return pieces_; }

    /// Bytes that move together: the largest page there is, at least `least`.
    [[nodiscard]] std::uint64_t granule(std::uint64_t least) const noexcept {
        for (const followed_piece& piece : pieces_)
            least = std::max(least, piece.page_bytes);
        return least;
    }

    /// Asks where a few pages of each piece lie, other ones each time, and takes them for
    /// all of it: one sample for each piece, by indices of `topology`. Pieces that rest
    /// look as if they had just been moved. `given`: enforced; preferred, if some pieces
    /// could not be asked about; or why none could.
    [[nodiscard]] std::vector<region_sample> look(const cpu_topology& topology,
                                                  const Memory& memory, grant& given) {
        std::vector<region_sample> samples;
        samples.reserve(pieces_.size());
        std::vector<int> nodes;
        std::size_t seen = 0;
        std::optional<error> refused;
        for (followed_piece& piece : pieces_) {
            if (piece.rounds_in_place != ~0u) ++piece.rounds_in_place;
            if (piece.resting != 0) --piece.resting;
            region_sample& sample = samples.emplace_back();
            sample.guest_node = piece.guest_node;
            sample.rounds_in_place = piece.resting != 0 ? 0 : piece.rounds_in_place;
            const std::uint64_t pages = piece.bytes / piece.page_bytes;
            const std::uint64_t stride =
                std::max<std::uint64_t>(pages / std::max(options_.pages_sampled, 1u), 1);
            const std::uint64_t first = next_random() % stride;
            nodes.assign(static_cast<std::size_t>((pages - first + stride - 1) / stride),
                         os::page_unknown);
            const result<> asked = memory.page_nodes(piece.address + first * piece.page_bytes,
                                                     stride * piece.page_bytes, nodes);
            if (asked) {
                ++seen;
                count(sample, nodes, piece.bytes, topology);
            } else {
                refused = asked.error();
            }
        }
        given = !refused    ? grant::enforced()
                : seen == 0 ? grant::denied(*refused)
                            : grant::preferred(*refused);
        return samples;
    }

    /// Carries one migration out, as far as the system does. `stays`: bytes of the piece
    /// that will be left on other nodes by the samples. Returns what came of it; `bound`
    /// is set if the piece was bound to its new node.
    [[nodiscard]] move_outcome move(const migration& m, const cpu_topology& topology,
                                    std::uint64_t stays, Memory& memory, Placement& placement,
                                    bool& bound) {
        followed_piece& piece = pieces_[m.region];
        const unsigned from = topology.nodes[m.from].os_index;
        const unsigned to = topology.nodes[m.to].os_index;
        page_mover<Memory, Placement> mover{memory, placement, options_.step_bytes};
        const move_outcome outcome =
            mover.move({piece.address, piece.bytes, piece.page_bytes}, from, to, m.bytes);
        bound = false;
        if (outcome.pages.moved == 0) {
            piece.patience = std::clamp(piece.patience * 2, 2u, most_patience);
            piece.resting = piece.patience;
            return outcome;
        }
        piece.patience = 0;
        piece.rounds_in_place = 0;
        if (stays == 0 && outcome.given.state == grant_state::enforced &&
            options_.bind_what_moved && piece.mode != os::bind_mode::none) {
            piece.binding = ram_binding::bind(memory, piece.address, piece.bytes, to, piece.mode);
            piece.node = to;
            bound = !piece.binding.is_denied();
        }
        return outcome;
    }

private:
    static constexpr unsigned most_patience = 64;

    static void count(region_sample& sample, std::span<const int> nodes, std::uint64_t bytes,
                      const cpu_topology& topology) {
        for (const int number : nodes) {
            const unsigned node =
                number < 0 ? no_index : topology.find_node(static_cast<unsigned>(number));
            if (node == no_index) continue;
            auto known = std::find_if(sample.on_nodes.begin(), sample.on_nodes.end(),
                                      [&](const share_of_node& on) { return on.node == node; });
            if (known == sample.on_nodes.end())
                known = sample.on_nodes.insert(known, share_of_node{node, 0});
            ++known->share;
        }
        for (share_of_node& on : sample.on_nodes)
            on.share =
                bytes / nodes.size() * on.share + bytes % nodes.size() * on.share / nodes.size();
    }

    [[nodiscard]] std::uint64_t next_random() noexcept {
        random_ = random_ * 6364136223846793005u + 1442695040888963407u;
        return random_ >> 33;
    }

    following_options options_;
    std::vector<followed_piece> pieces_{};
    std::uint64_t random_ = 1;
};

} // namespace vm_accel::inline v0
