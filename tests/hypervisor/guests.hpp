/// Tiny guests and the models that can run them, for the hypervisor tests.
#pragma once

#include "hvf_framework.hpp"
#include "whpx_platform.hpp"

#include <vm_accel/hypervisor/kvm.hpp>
#include <vm_accel/hypervisor/software.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <iostream>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <vector>

namespace guests {

using namespace vm_accel;

inline constexpr pa window{0xd000'0000}; ///< nothing is mapped here: MMIO
inline constexpr pa word{0x5000};        ///< a word of RAM

/// What a guest does.
enum class task {
    echo,     ///< see below, then ends
    spin,     ///< loops without touching anything
    hammer,   ///< stores to window + 0x40 for ever
    ram_copy, ///< loads from 0x10000, stores the value to window + 8, ends
};
// echo: 32-bit load from window, plus one, stored to window + 8; 64-bit load
// from window + 16, stored to window + 24; 0x5a through `word` to window + 32.

/// Page-aligned host memory, zeroed.
class ram {
public:
    explicit ram(std::size_t bytes)
        : bytes_(static_cast<std::byte*>(::operator new(bytes, alignment))), size_(bytes) {
        std::fill_n(data(), size_, std::byte{0});
    }
    [[nodiscard]] std::byte* data() { return bytes_.get(); }
    [[nodiscard]] std::uint64_t size() const { return size_; }
    template <class T>
    void put(std::uint64_t offset, const T& value) {
        std::memcpy(data() + offset, &value, sizeof value);
    }
    template <class T>
    [[nodiscard]] T at(std::uint64_t offset) {
        T value;
        std::memcpy(&value, data() + offset, sizeof value);
        return value;
    }

private:
    static constexpr std::align_val_t alignment{4096};
    struct release {
        void operator()(std::byte* bytes) const { ::operator delete(bytes, alignment); }
    };
    std::unique_ptr<std::byte, release> bytes_;
    std::size_t size_;
};

struct access_record {
    bool is_write = false;
    std::uint64_t address = 0;
    std::size_t size = 0;
    std::uint64_t value = 0;

    friend bool operator==(const access_record&, const access_record&) = default;
    friend std::ostream& operator<<(std::ostream& out, const access_record& a) {
        return out << (a.is_write ? "write" : "read") << a.size * 8 << " 0x" << std::hex
                   << a.address << " = 0x" << a.value << std::dec;
    }
};

/// Answers every read with a pattern of the address, remembers every access.
class recording_bus {
public:
    std::vector<access_record> mmio;
    std::vector<access_record> ports;
    std::function<void(const access_record&)> on_write = [](const access_record&) {};

    [[nodiscard]] static std::uint64_t answer(std::uint64_t address, std::size_t size) {
        const std::uint64_t all = 0x1122'3344'5566'7700 + (address & 0xff);
        return size == 8 ? all : all & ((std::uint64_t{1} << (8 * size)) - 1);
    }
    void mmio_read(pa address, std::span<std::byte> out) noexcept { fill(mmio, raw(address), out); }
    void mmio_write(pa address, std::span<const std::byte> in) noexcept {
        on_write(note(mmio, raw(address), in));
    }
    void io_read(std::uint16_t port, std::span<std::byte> out) noexcept { fill(ports, port, out); }
    void io_write(std::uint16_t port, std::span<const std::byte> in) noexcept {
        note(ports, port, in);
    }

private:
    static void fill(std::vector<access_record>& log, std::uint64_t address,
                     std::span<std::byte> out) {
        const std::uint64_t value = answer(address, out.size());
        std::memcpy(out.data(), &value, out.size());
        log.push_back({false, address, out.size(), value});
    }
    static access_record note(std::vector<access_record>& log, std::uint64_t address,
                              std::span<const std::byte> in) {
        std::uint64_t value = 0;
        std::memcpy(&value, in.data(), in.size());
        if (log.size() < 64) log.push_back({true, address, in.size(), value});
        return {true, address, in.size(), value};
    }
};

// ---- software ----------------------------------------------------------------------------------

/// The tasks as a program.
struct program {
    guests::task task = guests::task::echo;

    template <class Port>
    exit_reason operator()(Port& port) noexcept {
        switch (task) {
        case task::echo:
            port.write(offset_by(window, 8), port.template read<std::uint32_t>(window) + 1);
            port.write(offset_by(window, 24),
                       port.template read<std::uint64_t>(offset_by(window, 16)));
            port.write(word, std::uint32_t{0x5a});
            port.write(offset_by(window, 32), port.template read<std::uint32_t>(word));
            return exit_reason::shutdown;
        case task::ram_copy:
            port.write(offset_by(window, 8), port.template read<std::uint32_t>(pa{0x1'0000}));
            return exit_reason::shutdown;
        case task::spin:
            while (!port.exit_requested()) {}
            return exit_reason::interrupted;
        case task::hammer:
            while (!port.exit_requested())
                port.write(offset_by(window, 0x40), std::uint32_t{1});
            return exit_reason::interrupted;
        }
        return exit_reason::unknown;
    }
};

struct software_model {
    using backend = software<program>;
    static constexpr exit_reason end = exit_reason::shutdown;

    [[nodiscard]] static std::optional<backend> open() {
        backend b;
        if (!b.init()) return std::nullopt;
        return b;
    }
    static void start(backend::vm::vcpu& vcpu, ram&, task what) { vcpu.program().task = what; }
};

// ---- kvm ---------------------------------------------------------------------------------------

/// Machine code of each task. RDI = window, RSI = word, RDX = 0x10000.
[[nodiscard]] inline std::vector<std::uint8_t> x86_64_code_of(task what) {
    switch (what) {
    case task::echo:
        return {0x8b, 0x07,                   // mov (%rdi),%eax
                0xff, 0xc0,                   // inc %eax
                0x89, 0x47, 0x08,             // mov %eax,8(%rdi)
                0x48, 0x8b, 0x47, 0x10,       // mov 16(%rdi),%rax
                0x48, 0x89, 0x47, 0x18,       // mov %rax,24(%rdi)
                0xb8, 0x5a, 0x00, 0x00, 0x00, // mov $0x5a,%eax
                0x89, 0x06, 0x8b, 0x06,       // mov %eax,(%rsi); mov (%rsi),%eax
                0x89, 0x47, 0x20,             // mov %eax,32(%rdi)
                0xf4};                        // hlt
    case task::ram_copy:
        return {0x8b, 0x02, 0x89, 0x47, 0x08, 0xf4}; // mov (%rdx),%eax; mov %eax,8(%rdi); hlt
    case task::spin:
        return {0xeb, 0xfe}; // jmp .
    case task::hammer:
        return {0x89, 0x47, 0x40, 0xeb, 0xfb}; // mov %eax,64(%rdi); jmp back
    }
    return {};
}
/// X0 = window, X3 = word, X4 = 0x10000.
[[nodiscard]] inline std::vector<std::uint8_t> arm64_code_of(task what) {
    std::vector<std::uint32_t> words;
    switch (what) {
    case task::echo:
        words = {0xb9400001,  // ldr w1, [x0]
                 0x11000421,  // add w1, w1, #1
                 0xb9000801,  // str w1, [x0, #8]
                 0xf9400802,  // ldr x2, [x0, #16]
                 0xf9000c02,  // str x2, [x0, #24]
                 0x52800b41,  // mov w1, #0x5a
                 0xb9000061,  // str w1, [x3]
                 0xb9400061,  // ldr w1, [x3]
                 0xb9002001,  // str w1, [x0, #32]
                 0x52b08000,  // mov w0, #0x84000000
                 0x72800100,  // movk w0, #8: PSCI SYSTEM_OFF
                 0xd4000002,  // hvc #0
                 0x14000000}; // b .
        break;
    case task::ram_copy:
        words = {0xb9400081, // ldr w1, [x4]
                 0xb9000801, // str w1, [x0, #8]
                 0x52b08000, 0x72800100, 0xd4000002, 0x14000000};
        break;
    case task::spin:
        words = {0x14000000};
        break;
    case task::hammer:
        words = {0xb9004001, 0x17ffffff}; // str w1, [x0, #64]; b back
        break;
    }
    std::vector<std::uint8_t> bytes(words.size() * 4);
    std::memcpy(bytes.data(), words.data(), bytes.size());
    return bytes;
}
[[nodiscard]] inline std::vector<std::uint8_t> code_of(task what) {
    return os::kvm_platform::architecture == os::kvm_architecture::x86_64 ? x86_64_code_of(what)
                                                                          : arm64_code_of(what);
}

/// Page tables for 64-bit mode: a PML4 at 0x1000 that maps 4 GiB one to one.
inline void write_identity_map(ram& memory) {
    memory.put<std::uint64_t>(0x1000, 0x2003);
    for (std::uint64_t i = 0; i < 4; ++i)
        memory.put<std::uint64_t>(0x2000 + 8 * i, (0x6000 + 0x1000 * i) | 3);
    for (std::uint64_t i = 0; i < 2048; ++i)
        memory.put<std::uint64_t>(0x6000 + 8 * i, i << 21 | 0x83);
}

struct kvm_model {
    using backend = kvm;
    static constexpr exit_reason end =
        os::kvm_platform::architecture == os::kvm_architecture::x86_64 ? exit_reason::halted
                                                                       : exit_reason::shutdown;

    /// Empty, and says so on standard output, where /dev/kvm is of no use.
    [[nodiscard]] static std::optional<kvm> open() {
        result<kvm> opened = kvm::open();
        if (opened) {
            const result<kvm_vm> vm = opened->create_vm();
            if (vm) return std::move(*opened);
            std::cout << "SKIP: no usable /dev/kvm: " << vm.error() << '\n';
            return std::nullopt;
        }
        std::cout << "SKIP: no usable /dev/kvm: " << opened.error() << '\n';
        return std::nullopt;
    }

    /// Code at 0x4000; on x86-64 page tables from 0x1000 on.
    static void start(kvm_vcpu& vcpu, ram& memory, task what) {
        const std::vector<std::uint8_t> code = code_of(what);
        std::ranges::copy(std::as_bytes(std::span{code}), memory.data() + 0x4000);
        if constexpr (os::kvm_platform::architecture == os::kvm_architecture::x86_64) {
            write_identity_map(memory);
            check(x86_64::enter_long_mode(vcpu, pa{0x1000}, 0x4000, 0x3ff0, raw(window)));
            result<x86_64::registers> general = x86_64::get_registers(vcpu);
            check(general);
            general->rsi = raw(word);
            general->rdx = 0x1'0000;
            check(x86_64::set_registers(vcpu, *general));
        } else {
            check(arm64::set_boot_registers(vcpu, pa{0x4000}, window));
            check(vcpu.set_register(arm64::x(3), raw(word)));
            check(vcpu.set_register(arm64::x(4), 0x1'0000));
        }
    }

private:
    template <class T>
    static void check(const result<T>& done) {
        if (done) return;
        std::cerr << "guest not started: " << done.error() << '\n';
        std::abort();
    }
};

// ---- hvf, on a model of Apple's framework -------------------------------------------------------

template <class Calls>
struct hvf_model {
    using backend = basic_hvf<Calls>;
    static constexpr bool is_arm64 = Calls::architecture == os::hvf_architecture::arm64;
    static constexpr exit_reason end = is_arm64 ? exit_reason::shutdown : exit_reason::halted;

    [[nodiscard]] static std::optional<backend> open() {
        hvf_framework::start_afresh();
        result<backend> opened = backend::open();
        if (!opened) return std::nullopt;
        return std::move(*opened);
    }
    /// Code at 0x4000; on x86-64 page tables from 0x1000 on.
    static void start(basic_hvf_vcpu<Calls>& vcpu, ram& memory, task what) {
        const std::vector<std::uint8_t> code =
            is_arm64 ? arm64_code_of(what) : x86_64_code_of(what);
        std::ranges::copy(std::as_bytes(std::span{code}), memory.data() + 0x4000);
        bool good = true;
        const auto set = [&](hvf_register which, std::uint64_t value) {
            good = good && vcpu.set_register(which, value);
        };
        if constexpr (is_arm64) {
            good = hvf_arm64::set_boot_registers(vcpu, pa{0x4000}, window).has_value();
            set(hvf_arm64::x(3), raw(word));
            set(hvf_arm64::x(4), 0x1'0000);
        } else {
            write_identity_map(memory);
            good = hvf_x86_64::enter_long_mode(vcpu, pa{0x1000}, 0x4000, 0x3ff0, raw(window))
                       .has_value();
            set(hvf_x86_64::general(os::hvf_abi::x86_rsi), raw(word));
            set(hvf_x86_64::general(os::hvf_abi::x86_rdx), 0x1'0000);
        }
        if (good) return;
        std::cerr << "guest not started\n";
        std::abort();
    }
};
using hvf_arm64_model = hvf_model<hvf_framework::arm64_calls>;
using hvf_x86_64_model = hvf_model<hvf_framework::x86_64_calls>;

// ---- whpx, on a model of Windows's platform -----------------------------------------------------

struct whpx_model {
    using backend = whpx_platform::backend;
    static constexpr exit_reason end = exit_reason::halted;

    [[nodiscard]] static std::optional<backend> open() {
        whpx_platform::start_afresh();
        result<backend> opened = backend::open();
        if (!opened) return std::nullopt;
        return std::move(*opened);
    }
    /// Code at 0x4000, page tables from 0x1000 on.
    static void start(backend::vm::vcpu& vcpu, ram& memory, task what) {
        const std::vector<std::uint8_t> code = x86_64_code_of(what);
        std::ranges::copy(std::as_bytes(std::span{code}), memory.data() + 0x4000);
        write_identity_map(memory);
        if (whpx_x86_64::enter_long_mode(vcpu, pa{0x1000}, 0x4000, 0x3ff0, raw(window)) &&
            vcpu.set_register(os::whpx_abi::general(6), raw(word)) &&
            vcpu.set_register(os::whpx_abi::reg::rdx, 0x1'0000))
            return;
        std::cerr << "guest not started\n";
        std::abort();
    }
};

} // namespace guests
