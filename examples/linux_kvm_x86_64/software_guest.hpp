/// The guest as a thread of this process, for the software backend.
#pragma once

#include "payload.hpp"

#include <vm_accel/core/address.hpp>
#include <vm_accel/hypervisor/hypervisor.hpp>

#include <thread>

namespace vmm {

using namespace vm_accel;

/// The software backend's port, with a way to wait.
template <class Port>
struct patient_port {
    Port& port;

    template <class T>
    [[nodiscard]] T read(pa address) noexcept {
        return port.template read<T>(address);
    }
    template <class T>
    void write(pa address, T value) noexcept {
        port.template write<T>(address, value);
    }
    void relax() noexcept { std::this_thread::yield(); }
};

/// The guest as a thread of this process.
struct driver_thread {
    template <class Port>
    exit_reason operator()(Port& port) noexcept {
        patient_port<Port> guest{port};
        payload::run(guest);
        return exit_reason::halted;
    }
};

} // namespace vmm
