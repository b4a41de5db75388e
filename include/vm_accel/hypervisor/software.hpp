/// No hypervisor at all: the guest is a C++ program on the thread that runs the
/// vCPU, and it reaches memory, devices and interrupts through calls.
///
/// For hosts without hardware virtualisation, for tests, and for comparing the
/// same guest code under a real hypervisor. The program is a type, so the
/// compiler sees through every call.
///
///     struct hello {
///         template <class Port>
///         exit_reason operator()(Port& port) noexcept {
///             port.template write<std::uint32_t>(pa{0x1000'0000}, 1);
///             return exit_reason::shutdown;
///         }
///     };
///     software<hello> backend;
#pragma once

#include <vm_accel/core/field.hpp>
#include <vm_accel/guest/region_map.hpp>
#include <vm_accel/hypervisor/hypervisor.hpp>

#include <array>
#include <atomic>
#include <bit>
#include <memory>
#include <mutex>
#include <new>
#include <shared_mutex>
#include <utility>

namespace vm_accel::inline v0 {

/// What all vCPUs of one software machine share.
struct software_machine {
    static constexpr unsigned line_count = 1024;
    static constexpr unsigned vcpu_limit = 1024;

    basic_region_map<no_dirty_tracking, 128> memory;
    /// Held shared while the guest touches memory, exclusively while a region goes.
    std::shared_mutex memory_in_use;
    /// Bit 0: level. Above: rising edges not yet taken.
    std::array<std::atomic<std::uint32_t>, line_count> lines{};
    std::array<std::atomic<bool>, vcpu_limit> vcpu_made{};
};

/// The guest's side of a software vCPU: what the program is given.
/// Threads: only the one that runs the program.
template <mmio_bus Bus>
class software_port {
public:
    software_port(software_machine& machine, Bus& bus, const std::atomic<bool>& exit_requested,
                  unsigned index) noexcept
        : machine_(machine), bus_(bus), exit_requested_(exit_requested), index_(index) {}

    /// A load as a processor does it: from memory if the address is RAM, else
    /// from the bus. Little-endian; T has 1, 2, 4 or 8 bytes.
    template <class T>
    [[nodiscard]] T read(pa address) noexcept {
        std::array<std::byte, sizeof(T)> bytes{};
        {
            const std::shared_lock lock{machine_.memory_in_use};
            if constexpr (sizeof(T) == 8) {
                if (const auto word = machine_.memory.load64(address)) return static_cast<T>(*word);
            }
            if (machine_.memory.read(address, bytes)) {
                return little_endian(std::bit_cast<T>(bytes));
            }
        }
        bus_.mmio_read(address, bytes);
        return little_endian(std::bit_cast<T>(bytes));
    }
    /// A store, likewise. Ordered after every earlier store of this program.
    template <class T>
    void write(pa address, T value) noexcept {
        const auto bytes = std::bit_cast<std::array<std::byte, sizeof(T)>>(little_endian(value));
        std::atomic_thread_fence(std::memory_order_release);
        {
            const std::shared_lock lock{machine_.memory_in_use};
            if constexpr (sizeof(T) == 8) {
                if (store_whole(address, static_cast<std::uint64_t>(value))) return;
            }
            if (machine_.memory.write(address, bytes)) return;
        }
        bus_.mmio_write(address, bytes);
    }

    [[nodiscard]] bool line_level(unsigned line) const noexcept {
        return line < software_machine::line_count && (machine_.lines[line].load() & 1) != 0;
    }
    /// Whether the line rose since this was asked last (edge-triggered interrupt).
    [[nodiscard]] bool take_edge(unsigned line) noexcept {
        return line < software_machine::line_count && machine_.lines[line].fetch_and(1) > 1;
    }

    /// True once the VMM wants the vCPU back: return exit_reason::interrupted
    /// soon. A program that never asks cannot be interrupted.
    [[nodiscard]] bool exit_requested() const noexcept { return exit_requested_.load(); }
    [[nodiscard]] unsigned vcpu_index() const noexcept { return index_; }

private:
    /// An aligned 64-bit word, never seen half written. False: not such a word.
    [[nodiscard]] bool store_whole(pa address, std::uint64_t value) noexcept {
        std::optional<std::uint64_t> expected = machine_.memory.load64(address);
        while (expected) {
            const auto found = machine_.memory.compare_exchange64(address, *expected, value);
            if (found == expected) return true;
            expected = found;
        }
        return false;
    }

    software_machine& machine_;
    Bus& bus_;
    const std::atomic<bool>& exit_requested_;
    unsigned index_;
};

/// Meaning: one call is one stay in the guest; the object keeps what must last
/// from one run() to the next. Gives the reason why it left.
template <class P>
concept guest_program = std::movable<P> && std::copy_constructible<P> &&
                        requires(P& program, software_port<empty_bus>& port) {
                            { program(port) } noexcept -> std::same_as<exit_reason>;
                        };

/// Runs a program. Made by software_vm::create_vcpu, which must outlive it.
template <guest_program Program>
class software_vcpu {
public:
    software_vcpu(software_vcpu&& other) noexcept
        : machine_(other.machine_),
          program_(std::move(other.program_)),
          index_(other.index_),
          exit_requested_(other.exit_requested_.load()) {}
    software_vcpu& operator=(software_vcpu&& other) noexcept {
        machine_ = other.machine_;
        program_ = std::move(other.program_);
        index_ = other.index_;
        exit_requested_.store(other.exit_requested_.load());
        return *this;
    }

    /// Error busy: another thread is in here.
    template <mmio_bus Bus>
    [[nodiscard]] result<vcpu_exit> run(Bus& bus) noexcept {
        if (running_.exchange(true)) {
            return fail(errc::busy, "software vCPU: another thread is running it",
                        "run each vCPU on one thread at a time");
        }
        vcpu_exit ended{exit_reason::interrupted};
        if (!exit_requested_.load()) {
            software_port<Bus> port{*machine_, bus, exit_requested_, index_};
            ended.reason = program_(port);
        }
        if (ended.reason == exit_reason::interrupted) exit_requested_.store(false);
        running_.store(false);
        return ended;
    }
    void request_exit() noexcept { exit_requested_.store(true); }
    [[nodiscard]] unsigned index() const noexcept { return index_; }
    [[nodiscard]] Program& program() noexcept { return program_; }

private:
    template <guest_program>
    friend class software_vm;

    software_vcpu(software_machine& machine, Program program, unsigned index) noexcept
        : machine_(&machine), program_(std::move(program)), index_(index) {}

    software_machine* machine_;
    Program program_;
    unsigned index_;
    std::atomic<bool> running_{false};
    std::atomic<bool> exit_requested_{false};
};

template <guest_program Program>
class software_vm {
public:
    using vcpu = software_vcpu<Program>;

    [[nodiscard]] result<> add_memory(pa base, std::byte* host, std::uint64_t bytes) noexcept {
        return machine_->memory.add(base, host, bytes);
    }
    [[nodiscard]] result<> remove_memory(pa base) noexcept {
        const std::lock_guard lock{machine_->memory_in_use};
        return machine_->memory.remove(base);
    }
    [[nodiscard]] result<vcpu> create_vcpu(unsigned index) noexcept {
        if (index >= software_machine::vcpu_limit) {
            return fail(errc::out_of_range,
                        fixed_text<160>{"vCPU "}.append_number(index).append(": no such index"),
                        "use an index below 1024");
        }
        if (machine_->vcpu_made[index].exchange(true)) {
            return fail(errc::already_exists,
                        fixed_text<160>{"vCPU "}.append_number(index).append(": exists"),
                        "create each index once");
        }
        return vcpu{*machine_, program_, index};
    }
    [[nodiscard]] result<> set_line(unsigned line, bool level) noexcept {
        if (line >= software_machine::line_count) {
            return fail(errc::out_of_range,
                        fixed_text<160>{"no interrupt line "}.append_number(line),
                        "use a line below 1024");
        }
        std::atomic<std::uint32_t>& state = machine_->lines[line];
        if (!level) {
            state.fetch_and(~1u);
        } else if ((state.fetch_or(1) & 1) == 0) {
            state.fetch_add(2);
        }
        return {};
    }
    [[nodiscard]] result<> pulse_line(unsigned line) noexcept {
        if (const result<> raised = set_line(line, true); !raised) return raised;
        return set_line(line, false);
    }

private:
    template <guest_program>
    friend class software;

    software_vm(std::unique_ptr<software_machine> machine, Program program) noexcept
        : machine_(std::move(machine)), program_(std::move(program)) {}

    std::unique_ptr<software_machine> machine_;
    Program program_;
};

/// The backend. Every vCPU of every VM runs a copy of `program`.
template <guest_program Program>
class software {
public:
    using role = roles::hypervisor;
    using vm = software_vm<Program>;
    static constexpr std::string_view name = "software";

    software() noexcept
        requires std::default_initializable<Program>
    = default;
    explicit software(Program program) noexcept : program_(std::move(program)) {}

    [[nodiscard]] static hypervisor_capabilities detect() noexcept {
        hypervisor_capabilities here;
        here.available = true;
        here.recommended_vcpus = software_machine::vcpu_limit;
        here.maximum_vcpus = software_machine::vcpu_limit;
        here.memory_slots = decltype(software_machine::memory)::capacity;
        here.guest_address_bits = 64;
        here.in_kernel_interrupts = false;
        here.irqfd = false;
        return here;
    }
    [[nodiscard]] result<> init() noexcept {
        if (initialized_) {
            return fail(errc::already_initialized, "software hypervisor: in use already",
                        "call init() once");
        }
        initialized_ = true;
        return {};
    }
    [[nodiscard]] bool is_initialized() const noexcept { return initialized_; }
    template <class Report>
    void report(Report& out) const {
        detect().report(out);
    }

    [[nodiscard]] result<vm> create_vm() noexcept {
        if (!initialized_) {
            return fail(errc::not_initialized, "software hypervisor: not in use",
                        "call init() first");
        }
        std::unique_ptr<software_machine> machine{new (std::nothrow) software_machine};
        if (machine == nullptr) {
            return fail(errc::exhausted, "software hypervisor: no memory", "free memory");
        }
        return vm{std::move(machine), program_};
    }

private:
    Program program_{};
    bool initialized_ = false;
};

} // namespace vm_accel::inline v0
