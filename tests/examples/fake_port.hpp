/// Guest memory for tests of the example's device models: a flat block of bytes
/// from address 0 that may refuse a range, as an SMMU does.
#pragma once

#include <vm_accel/core/address.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace linux_vmm_test {

struct flat_memory {
    std::vector<std::byte> bytes = std::vector<std::byte>(0x10'0000);
    vm_accel::iova_range refused{};
    std::uint64_t accesses = 0;

    template <class T>
    void put(std::uint64_t at, T value) {
        std::memcpy(bytes.data() + at, &value, sizeof value);
    }
    template <class T>
    [[nodiscard]] T get(std::uint64_t at) const {
        T value;
        std::memcpy(&value, bytes.data() + at, sizeof value);
        return value;
    }
};

/// A port onto it. Anything outside the block is refused, too.
struct fake_port {
    flat_memory* memory;

    [[nodiscard]] bool read(vm_accel::iova address, std::span<std::byte> out) noexcept {
        if (!allowed(address, out.size())) return false;
        std::memcpy(out.data(), memory->bytes.data() + raw(address), out.size());
        return true;
    }
    [[nodiscard]] bool write(vm_accel::iova address, std::span<const std::byte> in) noexcept {
        if (!allowed(address, in.size())) return false;
        std::memcpy(memory->bytes.data() + raw(address), in.data(), in.size());
        return true;
    }

private:
    [[nodiscard]] bool allowed(vm_accel::iova address, std::uint64_t bytes) noexcept {
        ++memory->accesses;
        const vm_accel::iova_range all{vm_accel::iova{0}, memory->bytes.size()};
        return all.contains(address, bytes) && !memory->refused.overlaps({address, bytes});
    }
};

} // namespace linux_vmm_test
