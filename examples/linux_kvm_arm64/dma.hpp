/// How the device models of this VMM reach guest memory: through a port, only.
#pragma once

#include <vm_accel/core/address.hpp>

#include <concepts>
#include <cstddef>
#include <span>

namespace linux_vmm {

using vm_accel::iova;

/// What a device does DMA through: copies `span.size()` bytes, false = refused.
template <class P>
concept dma_copier =
    requires(P& port, iova address, std::span<std::byte> out, std::span<const std::byte> in) {
        { port.read(address, out) } noexcept -> std::same_as<bool>;
        { port.write(address, in) } noexcept -> std::same_as<bool>;
    };

/// Reads or writes one trivially copyable object at `address`.
template <class T, dma_copier Port>
[[nodiscard]] bool dma_load(Port& port, iova address, T& object) noexcept {
    return port.read(address, std::as_writable_bytes(std::span{&object, 1}));
}
template <class T, dma_copier Port>
[[nodiscard]] bool dma_store(Port& port, iova address, const T& object) noexcept {
    return port.write(address, std::as_bytes(std::span{&object, 1}));
}

/// A port in use. Before and after, it is parked where it can be, so that the
/// guest's CMD_SYNC does not have to reach a thread that sleeps.
template <dma_copier Port>
class port_in_use {
public:
    explicit port_in_use(Port& port) noexcept : port_(port) {
        if constexpr (requires { port_.unpark(); }) port_.unpark();
    }
    ~port_in_use() { rest(port_); }
    port_in_use(const port_in_use&) = delete;
    port_in_use& operator=(const port_in_use&) = delete;

    static void rest(Port& port) noexcept {
        if constexpr (requires { port.park(); }) port.park();
    }

private:
    Port& port_;
};

} // namespace linux_vmm
