/// A machine at rest, in a file: one process writes it, another one goes on.
///
/// Every part moves its state by `move_state(file)`, which names the same fields
/// for both directions. The file says what machine it is of; another one refuses
/// it. It is for the same program on the same kind of host, not for transport.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/descriptor.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

namespace linux_vmm {

/// What both machines must have in common.
struct machine_shape {
    std::uint64_t magic = 0x3031'6d76'6d6d'7673; ///< "svmmvm10"
    std::uint64_t ram_bytes = 0;
    std::uint32_t vcpus = 0;
    std::uint32_t full_features = 0;
    std::uint32_t pci = 0;
    std::uint32_t program = 1; ///< changes with what is saved

    friend bool operator==(const machine_shape&, const machine_shape&) = default;
};

/// Threads: one.
class saved_machine {
public:
    enum class direction : std::uint8_t { save, resume };

    /// Error: os_error (the file cannot be opened).
    [[nodiscard]] static vm_accel::result<saved_machine> open(const std::string& path,
                                                              direction which) {
        saved_machine file;
        file.file_.reset(std::fopen(path.c_str(), which == direction::save ? "wb" : "rb"));
        if (!file.file_) {
            return vm_accel::os::fail_with(errno, path, "give a file of a suspended machine");
        }
        file.direction_ = which;
        return file;
    }
    [[nodiscard]] bool is_saving() const noexcept { return direction_ == direction::save; }

    template <class T>
        requires std::is_trivially_copyable_v<T>
    void operator()(T& value) {
        bytes(std::as_writable_bytes(std::span{&value, 1}));
    }
    template <class T>
    void operator()(std::atomic<T>& value) {
        T copy = value.load();
        (*this)(copy);
        if (!is_saving()) value.store(copy);
    }
    template <class T>
    void operator()(std::vector<T>& values) {
        std::uint64_t count = values.size();
        (*this)(count);
        constexpr std::uint64_t most = std::uint64_t{1} << 24;
        if (count > most) return spoil();
        values.resize(static_cast<std::size_t>(count));
        bytes(std::as_writable_bytes(std::span{values}));
    }
    /// RAM: pages that are not zero, each with its number. Resuming, all others
    /// become zero, whatever was in them: a guest relies on the pages that it has cleared.
    void memory(std::span<std::byte> ram) {
        static constexpr std::array<std::byte, 4096> zero{};
        constexpr std::uint64_t end = ~std::uint64_t{0};
        const auto page = [&](std::uint64_t i) {
            return ram.subspan(static_cast<std::size_t>(i) * zero.size(), zero.size());
        };
        const auto is_zero = [&](std::uint64_t i) {
            return std::memcmp(page(i).data(), zero.data(), zero.size()) == 0;
        };
        const std::uint64_t pages = ram.size() / zero.size();
        const auto listed = [&](std::uint64_t i) {
            (*this)(i);
            return i;
        };
        if (is_saving()) {
            for (std::uint64_t i = 0; i < pages; ++i)
                if (!is_zero(i)) bytes(page(listed(i)));
            listed(end);
            return;
        }
        std::uint64_t next = listed(end);
        for (std::uint64_t i = 0; i < pages; ++i) {
            if (i == next) {
                bytes(page(i));
                next = listed(end);
            } else if (!is_zero(i)) {
                std::ranges::fill(page(i), std::byte{0});
            }
        }
        if (next != end) spoil();
    }

    /// Error: mismatch (cut off, damaged, or the disk is full).
    [[nodiscard]] vm_accel::result<> finish() {
        if (is_saving() && std::fflush(file_.get()) != 0) spoil();
        if (!failed_) return {};
        return vm_accel::fail(vm_accel::errc::mismatch, "the saved machine is not whole",
                              is_saving() ? "free space for it" : "take another copy");
    }

private:
    struct closer {
        void operator()(std::FILE* file) const noexcept { std::fclose(file); }
    };

    void bytes(std::span<std::byte> data) {
        if (failed_ || data.empty()) return;
        const std::size_t moved = is_saving()
                                      ? std::fwrite(data.data(), 1, data.size(), file_.get())
                                      : std::fread(data.data(), 1, data.size(), file_.get());
        if (moved != data.size()) spoil();
    }
    void spoil() noexcept { failed_ = true; }

    std::unique_ptr<std::FILE, closer> file_;
    direction direction_ = direction::save;
    bool failed_ = false;
};

} // namespace linux_vmm
