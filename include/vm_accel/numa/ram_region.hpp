/// Guest RAM that a numa_allocator made, and the proof of where it lies.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/numa/grant.hpp>
#include <vm_accel/numa/strategy.hpp>
#include <vm_accel/os/interleaved_memory.hpp>
#include <vm_accel/os/memory.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace vm_accel::inline v0 {

/// A part of a region that was meant for one host node. Node numbers are the
/// operating system's.
struct ram_chunk {
    std::uint64_t offset = 0; ///< from the start of the region
    std::uint64_t bytes = 0;
    unsigned guest_node = 0; ///< index into the request's split; 0 without one
    unsigned node = 0;       ///< the planned host node; any_node while placement is off
    os::bind_mode mode = os::bind_mode::none; ///< how strongly it was to be tied to it
    fixed_text<120> reason{};                 ///< the strategy's
    grant binding{};                          ///< what the kernel made of the binding
    grant huge_pages{};                       ///< and of huge pages, advised or reserved
    grant prefault{};                         ///< and of the populating by threads on the node
    grant locking{};                          ///< and of locking it
    /// Not empty: interleaved over these nodes; `node` is then any_node.
    std::vector<os::node_weight> weights{};

    friend bool operator==(const ram_chunk&, const ram_chunk&) = default;
};

/// What the kernel made of wishes that concern a region as a whole.
struct ram_grants {
    grant sharing{};      ///< a file that other processes can map
    grant sealing{};      ///< its size is fixed for good
    grant interleaving{}; ///< enforced where it was done; see numa/interleaving.hpp
    /// Bytes of the pages that back the region, if they come from pools; else 0.
    std::uint64_t reserved_page_bytes = 0;

    friend bool operator==(const ram_grants&, const ram_grants&) = default;
};

/// Part of a region as another process can map it, for vhost-user's memory table.
struct shared_ram {
    int file = -1;            ///< the descriptor to pass; the region keeps owning it
    std::uint64_t offset = 0; ///< in that file, for mmap
    std::uint64_t bytes = 0;
    std::byte* address = nullptr; ///< where this process has it

    friend bool operator==(const shared_ram&, const shared_ram&) = default;
};

struct pages_on_node {
    unsigned node = 0;
    std::uint64_t pages = 0;

    friend bool operator==(const pages_on_node&, const pages_on_node&) = default;
};

/// Where the kernel says the pages of one chunk are.
struct chunk_placement {
    ram_chunk chunk{};
    std::uint64_t asked = 0;               ///< pages looked at
    std::uint64_t absent = 0;              ///< of these, without memory yet
    std::uint64_t unknown = 0;             ///< of these, the kernel would not tell
    std::vector<pages_on_node> on_nodes{}; ///< the rest, ascending by node

    [[nodiscard]] std::uint64_t present() const noexcept { return asked - absent - unknown; }
    /// Pages that lie on the planned node, or on one of those that the chunk is
    /// interleaved over; while placement is off, any node is.
    [[nodiscard]] std::uint64_t local() const noexcept {
        if (!chunk.weights.empty()) {
            std::uint64_t total = 0;
            for (const pages_on_node& on : on_nodes)
                for (const os::node_weight& w : chunk.weights)
                    total += w.node == on.node ? on.pages : 0;
            return total;
        }
        if (chunk.node == any_node) return present();
        for (const pages_on_node& on : on_nodes)
            if (on.node == chunk.node) return on.pages;
        return 0;
    }
    /// Whether every page that exists lies on the planned node. Pages the kernel
    /// would not tell of are taken as elsewhere.
    [[nodiscard]] bool as_planned() const noexcept { return local() + absent == asked; }
};

struct placement_report {
    std::uint64_t page_bytes = 0; ///< of the pages counted
    std::uint64_t stride = 1;     ///< one page in so many was looked at
    std::vector<chunk_placement> chunks{};

    [[nodiscard]] bool as_planned() const noexcept {
        return std::all_of(chunks.begin(), chunks.end(),
                           [](const chunk_placement& c) { return c.as_planned(); });
    }
};

/// One line for each chunk.
template <class Stream>
    requires requires(Stream& out, std::string_view text) { out << text; }
Stream& operator<<(Stream& out, const placement_report& report) {
    for (const chunk_placement& c : report.chunks) {
        fixed_text<1024> line{"  guest node "};
        line.append_number(c.chunk.guest_node).append(" +").append_number(c.chunk.offset >> 20);
        line.append(" MiB, ").append_number(c.chunk.bytes >> 20).append(" MiB -> ");
        line.append(c.chunk.reason.view())
            .append("; binding ")
            .append(name_of(c.chunk.binding.state));
        if (!c.chunk.binding.cause.empty())
            line.append(" (").append(c.chunk.binding.cause.view()).append(")");
        line.append("; pages");
        for (const pages_on_node& on : c.on_nodes) {
            line.append(" ").append_number(on.pages).append(" on node ").append_number(on.node);
            line.append(",");
        }
        line.append(" ").append_number(c.absent).append(" absent");
        const auto tell = [&line](std::string_view what, const grant& given) {
            if (given.state == grant_state::not_requested) return;
            line.append("; ").append(what).append(" ").append(name_of(given.state));
            if (!given.cause.empty()) line.append(" (").append(given.cause.view()).append(")");
        };
        tell("prefault", c.chunk.prefault);
        tell("huge pages", c.chunk.huge_pages);
        tell("locking", c.chunk.locking);
        line.append("\n");
        out << line.view();
    }
    return out;
}

/// Owns one contiguous mapping of host memory, aligned to a huge page if it is as large
/// as one or these were asked for, else to a page. Movable. Threads: const members by any.
template <os::memory_platform Memory = os::native_memory>
class basic_ram_region {
public:
    basic_ram_region() noexcept = default;
    basic_ram_region(Memory memory, os::raw_mapping mapping, std::vector<ram_chunk> chunks,
                     const ram_grants& grants = {}) noexcept
        : memory_(std::move(memory)),
          mapping_(mapping),
          chunks_(std::move(chunks)),
          grants_(grants) {}
    basic_ram_region(basic_ram_region&& other) noexcept
        : memory_(std::move(other.memory_)),
          mapping_(std::exchange(other.mapping_, {})),
          chunks_(std::exchange(other.chunks_, {})),
          grants_(std::exchange(other.grants_, {})) {}
    basic_ram_region& operator=(basic_ram_region&& other) noexcept {
        if (this != &other) {
            release();
            memory_ = other.memory_;
            mapping_ = std::exchange(other.mapping_, {});
            chunks_ = std::exchange(other.chunks_, {});
            grants_ = std::exchange(other.grants_, {});
        }
        return *this;
    }
    ~basic_ram_region() { release(); }

    [[nodiscard]] std::byte* data() const noexcept { return mapping_.address; }
    [[nodiscard]] std::uint64_t bytes() const noexcept { return mapping_.bytes; }
    [[nodiscard]] bool empty() const noexcept { return mapping_.bytes == 0; }
    /// The anonymous file behind it, to hand to another process; -1 if none. The
    /// region keeps owning it.
    [[nodiscard]] int file() const noexcept { return mapping_.file; }
    /// What went where, in the order of addresses, without gaps.
    [[nodiscard]] std::span<const ram_chunk> chunks() const noexcept { return chunks_; }
    [[nodiscard]] const ram_grants& grants() const noexcept { return grants_; }

    /// What another process maps to see `bytes` from `offset` on; file -1 if the region
    /// has no file, or not that range. Page-aligned ranges can be mapped.
    [[nodiscard]] shared_ram shared(std::uint64_t offset, std::uint64_t bytes) const noexcept {
        if (mapping_.file < 0 || offset > mapping_.bytes || bytes > mapping_.bytes - offset)
            return {};
        return {mapping_.file, offset, bytes, mapping_.address + offset};
    }

    /// Offset and size of one guest node; size 0 if there is no such node.
    [[nodiscard]] std::pair<std::uint64_t, std::uint64_t>
    guest_node(unsigned index) const noexcept {
        std::pair<std::uint64_t, std::uint64_t> found{0, 0};
        for (const ram_chunk& chunk : chunks_) {
            if (chunk.guest_node != index) continue;
            if (found.second == 0) found.first = chunk.offset;
            found.second += chunk.bytes;
        }
        return found;
    }

    /// Asks the kernel where the pages are: every one, or one in `stride`. Pages
    /// that nobody has touched are absent. Errors: unsupported, permission_denied.
    [[nodiscard]] result<placement_report> placement(std::uint64_t stride = 1) const noexcept {
        placement_report report;
        report.page_bytes = memory_.page_bytes();
        report.stride = std::max<std::uint64_t>(stride, 1);
        const std::uint64_t step = report.page_bytes * report.stride;
        std::vector<int> nodes;
        for (const ram_chunk& chunk : chunks_) {
            nodes.assign((chunk.bytes + step - 1) / step, os::page_unknown);
            const result<> asked = memory_.page_nodes(mapping_.address + chunk.offset, step, nodes);
            if (!asked) return fail(asked);
            report.chunks.push_back(count(chunk, nodes));
        }
        return report;
    }

private:
    [[nodiscard]] static chunk_placement count(const ram_chunk& chunk, std::span<const int> nodes) {
        chunk_placement out;
        out.chunk = chunk;
        out.asked = nodes.size();
        for (const int node : nodes) {
            if (node < 0) {
                ++(node == os::page_absent ? out.absent : out.unknown);
                continue;
            }
            const auto number = static_cast<unsigned>(node);
            auto at = out.on_nodes.begin();
            while (at != out.on_nodes.end() && at->node < number)
                ++at;
            if (at == out.on_nodes.end() || at->node != number)
                at = out.on_nodes.insert(at, {number, 0});
            ++at->pages;
        }
        return out;
    }

    void release() noexcept {
        if (!empty()) memory_.unmap(std::exchange(mapping_, {}));
    }

    [[no_unique_address]] Memory memory_{};
    os::raw_mapping mapping_{};
    std::vector<ram_chunk> chunks_{};
    ram_grants grants_{};
};

using ram_region = basic_ram_region<>;

} // namespace vm_accel::inline v0
