/// The guest on bare metal, x86-64 long mode: entered by the VMM with a stack,
/// flat segments and an identity map, interrupts off. Linked to a flat image.
#include "payload.hpp"

#include <cstddef>
#include <cstdint>

namespace {

/// Plain loads and stores. The instructions are spelt out because an exit for
/// MMIO wants a simple one, whatever the optimiser would think of.
struct processor_port {
    template <class T>
    [[nodiscard]] T read(vm_accel::pa address) {
        T value;
        asm volatile("mov (%1), %0" : "=r"(value) : "r"(vm_accel::raw(address)) : "memory");
        return value;
    }
    template <class T>
    void write(vm_accel::pa address, T value) {
        asm volatile("mov %0, (%1)" : : "r"(value), "r"(vm_accel::raw(address)) : "memory");
    }
    void relax() { asm volatile("pause"); }
};

} // namespace

// What a compiler may call though nothing asked for it.
extern "C" void* memset(void* to, int value, std::size_t bytes) {
    void* const start = to;
    asm volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(value) : "memory");
    return start;
}
extern "C" void* memcpy(void* to, const void* from, std::size_t bytes) {
    void* const start = to;
    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
    return start;
}

extern "C" [[noreturn]] void payload_start() {
    processor_port port;
    payload::run(port);
    for (;;)
        asm volatile("hlt");
}
