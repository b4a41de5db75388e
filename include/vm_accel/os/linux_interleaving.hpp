/// MPOL_WEIGHTED_INTERLEAVE (Linux 6.9) and its weights in /sys.
/// On other systems this header is empty.
#pragma once

#if defined(__linux__)

#include <vm_accel/os/descriptor.hpp>
#include <vm_accel/os/interleaved_memory.hpp>
#include <vm_accel/os/linux_small_file.hpp>

#include <fcntl.h>
#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace vm_accel::inline v0::os {

/// The part of interleavable_memory that is Linux's own. Stateless; any thread.
struct linux_interleaving {
    [[nodiscard]] result<> interleave(std::byte* address, std::uint64_t bytes,
                                      std::span<const unsigned> nodes) const noexcept {
        node_mask mask{};
        for (const unsigned node : nodes) {
            if (node >= most_nodes)
                return fail(
                    errc::invalid_argument,
                    fixed_text<160>{"interleaving memory over node "}.append_number(node).append(
                        ": no kernel has so many nodes"),
                    "choose nodes of the topology");
            mask[node / word_bits] |= 1ul << (node % word_bits);
        }
        if (::syscall(SYS_mbind, address, bytes, weighted_interleave, mask.data(), most_nodes + 1ul,
                      0u) == 0)
            return {};
        const int reason = errno;
        // The kernel has one answer for a mode that it does not know and for a bad node.
        if (reason == EINVAL && !has_weights())
            return fail(errc::unsupported, no_such_policy, "use sized chunks, or a later kernel",
                        reason);
        return fail_with(reason, "interleaving memory by weights",
                         reason == EINVAL
                             ? "choose nodes that have memory and are in the process's cpuset"
                             : "allow mbind in the container's seccomp profile");
    }

    [[nodiscard]] result<std::vector<unsigned>>
    interleaved_over(const std::byte* address) const noexcept {
        int mode = 0;
        node_mask mask{};
        if (::syscall(SYS_get_mempolicy, &mode, mask.data(), most_nodes + 1ul, address,
                      static_cast<unsigned long>(MPOL_F_ADDR)) != 0)
            return fail_with(errno, "get_mempolicy",
                             "allow get_mempolicy in the container's seccomp profile");
        std::vector<unsigned> nodes;
        if (mode != weighted_interleave) return nodes;
        for (unsigned i = 0; i < mask.size(); ++i)
            for (unsigned long word = mask[i]; word != 0; word &= word - 1)
                nodes.push_back(i * word_bits + static_cast<unsigned>(std::countr_zero(word)));
        return nodes;
    }

    [[nodiscard]] result<unsigned> interleave_weight(unsigned node) const noexcept {
        linux_small_file file;
        const fixed_text<96> path = path_of(node);
        const char* const terminated = path.view().data();
        if (!file.read(terminated)) {
            const int reason = errno;
            if (reason == ENOENT && !has_weights())
                return fail(errc::unsupported, no_such_policy,
                            "use sized chunks, or a later kernel", reason);
            return fail_with(reason, name_of(node).view(), "mount /sys, or use sized chunks");
        }
        return static_cast<unsigned>(linux_small_file::number_at(file.view()));
    }

    /// For the whole system, until somebody sets it again. Takes root.
    [[nodiscard]] result<> set_interleave_weight(unsigned node, unsigned weight) const noexcept {
        const fixed_text<96> path = path_of(node);
        const char* const terminated = path.view().data();
        const descriptor file{::open(terminated, O_WRONLY | O_CLOEXEC)};
        fixed_text<16> text;
        text.append_number(weight);
        const auto size = static_cast<::ssize_t>(text.size());
        if (file && ::write(file.get(), text.view().data(), text.size()) == size) return {};
        const int reason = errno;
        if (reason == ENOENT && !has_weights())
            return fail(errc::unsupported, no_such_policy, "use sized chunks, or a later kernel",
                        reason);
        return fail_with(reason, name_of(node).view(),
                         reason == EINVAL ? "give a weight of 1 to 255"
                                          : "let the administrator set the weights");
    }

private:
    static constexpr unsigned most_nodes = 1024;
    static constexpr unsigned word_bits = sizeof(unsigned long) * 8;
    static constexpr int weighted_interleave = 6; // absent from older headers
    static constexpr const char* folder = "/sys/kernel/mm/mempolicy/weighted_interleave";
    static constexpr std::string_view no_such_policy =
        "weighted interleave: this kernel has no such policy (Linux 6.9 has it)";
    using node_mask = std::array<unsigned long, most_nodes / word_bits>;

    [[nodiscard]] static bool has_weights() noexcept { return ::access(folder, F_OK) == 0; }
    [[nodiscard]] static fixed_text<96> name_of(unsigned node) noexcept {
        return fixed_text<96>{folder}.append("/node").append_number(node);
    }
    /// The same with a NUL behind it.
    [[nodiscard]] static fixed_text<96> path_of(unsigned node) noexcept {
        return name_of(node).append(std::string_view{"\0", 1});
    }
};

} // namespace vm_accel::inline v0::os

#endif
