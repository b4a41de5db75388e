/// What the exits of an x86-64 vCPU of Hypervisor.framework mean.
#pragma once

#include <vm_accel/hypervisor/hvf_x86_64.hpp>

#include <optional>
#include <span>

namespace vm_accel::inline v0::hvf_x86_64 {

/// Serves the exits of one vCPU. All calls on its thread.
template <class Calls>
class exits {
public:
    using seat = hvf_seat<Calls>;
    using status = os::hvf_abi::status;

    explicit exits(seat& s) noexcept : seat_(s) {}

    /// A new vCPU: the controls of its VMCS.
    [[nodiscard]] static result<> prepare(seat& s) noexcept {
        using os::hvf_abi::vmx_capability;
        struct control {
            vmx_capability which;
            std::uint32_t field;
            std::uint64_t wanted;
        };
        constexpr std::array<control, 5> controls{{
            {vmx_capability::pin, vmcs::pin_controls, 0},
            {vmx_capability::processor, vmcs::processor_controls,
             halt_exiting | io_exiting | secondary_controls},
            {vmx_capability::processor_2, vmcs::processor_controls_2, unrestricted_guest},
            {vmx_capability::entry, vmcs::entry_controls, load_efer},
            {vmx_capability::exit, vmcs::exit_controls, save_efer},
        }};
        status done = status::success;
        for (const control& c : controls) {
            std::uint64_t capability = 0;
            if (done == status::success) done = s.calls().vmx_capability(c.which, capability);
            if (done == status::success)
                done = s.set(field_of_vmcs(c.field), allowed(capability, c.wanted));
        }
        for (const starting::value& v : {starting::value{field_of_vmcs(vmcs::exception_bitmap), 0},
                                         starting::value{field_of_vmcs(vmcs::cr0_mask), cr0_ne},
                                         starting::value{field_of_vmcs(vmcs::cr4_mask), cr4_vmxe},
                                         starting::value{field_of_vmcs(vmcs::cr4_shadow), 0}}) {
            if (done == status::success) done = s.set(v.which, v.is);
        }
        if (done != status::success) return s.failed(done, "its VMX controls");
        return {};
    }

    /// Before the guest is entered: IA-32e mode in step with EFER, and an interrupt.
    [[nodiscard]] result<bool> before_entry() noexcept {
        std::uint64_t efer = 0;
        std::uint64_t controls = 0;
        status done = get(vmcs::guest_efer, efer);
        if (done == status::success) done = get(vmcs::entry_controls, controls);
        const std::uint64_t in_step =
            (efer & 0x400) != 0 ? controls | ia32e_guest : controls & ~ia32e_guest;
        if (done == status::success && in_step != controls)
            done = set(vmcs::entry_controls, in_step);
        if (done == status::success && seat_.vector.load() != 0) done = inject();
        if (done != status::success) return seat_.failed(done, "entry");
        return true;
    }

    /// Handles one exit. False: `ended` says why the VMM must decide.
    template <class Bus>
    [[nodiscard]] result<bool> serve(Bus& bus, vcpu_exit& ended) noexcept {
        using os::hvf_abi::x86_exit;
        std::uint64_t reason = 0;
        if (const status done = get(vmcs::exit_reason, reason); done != status::success)
            return seat_.failed(done, "its exit");
        if ((reason & os::hvf_abi::x86_entry_failed) != 0) {
            ended = {exit_reason::entry_failed, reason & 0xffff, 0};
            return false;
        }
        status done = status::success;
        switch (x86_exit{static_cast<std::uint16_t>(reason)}) {
        case x86_exit::external_interrupt:
        case x86_exit::preemption_timer:
            return true;
        case x86_exit::interrupt_window:
            return went_on(ask_for_window(false), "interrupt window");
        case x86_exit::triple_fault:
            ended = {exit_reason::shutdown, reason, 0};
            return false;
        case x86_exit::halt:
            done = skip_instruction();
            if (done != status::success) return seat_.failed(done, "HLT");
            if (seat_.vector.load() != 0) return true;
            ended = {exit_reason::halted, 0, 0};
            return false;
        case x86_exit::io:
            return serve_port(bus, ended);
        case x86_exit::ept_violation:
            return serve_access(bus, ended);
        case x86_exit::cpuid:
            return went_on(answer_cpuid(), "CPUID");
        case x86_exit::read_msr:
        case x86_exit::write_msr:
            return went_on(
                serve_msr(x86_exit{static_cast<std::uint16_t>(reason)} == x86_exit::write_msr),
                "model-specific register");
        case x86_exit::control_register:
            return serve_control_register(ended);
        default:
            ended = {exit_reason::unknown, reason & 0xffff, 0};
            return false;
        }
    }

private:
    static constexpr std::uint64_t halt_exiting = 1u << 7;
    static constexpr std::uint64_t io_exiting = 1u << 24;
    static constexpr std::uint64_t secondary_controls = 1u << 31;
    static constexpr std::uint64_t window_exiting = 1u << 2;
    static constexpr std::uint64_t unrestricted_guest = 1u << 7;
    static constexpr std::uint64_t ia32e_guest = 1u << 9; ///< of the entry controls
    static constexpr std::uint64_t load_efer = 1u << 15;
    static constexpr std::uint64_t save_efer = 1u << 20;
    static constexpr std::uint64_t event_valid = 1u << 31;
    static constexpr std::uint32_t efer_number = 0xc000'0080;

    [[nodiscard]] status get(std::uint32_t field, std::uint64_t& value) noexcept {
        return seat_.get(field_of_vmcs(field), value);
    }
    [[nodiscard]] status set(std::uint32_t field, std::uint64_t value) noexcept {
        return seat_.set(field_of_vmcs(field), value);
    }
    [[nodiscard]] result<bool> went_on(status done, std::string_view what) noexcept {
        if (done != status::success) return seat_.failed(done, what);
        return true;
    }
    [[nodiscard]] status skip(std::uint64_t bytes) noexcept {
        constexpr hvf_register rip = general(os::hvf_abi::x86_rip);
        std::uint64_t at = 0;
        status done = seat_.get(rip, at);
        if (done == status::success) done = seat_.set(rip, at + bytes);
        // What held interrupts off for one instruction (STI, MOV SS) is over.
        std::uint64_t held = 0;
        if (done == status::success) done = get(vmcs::guest_interruptibility, held);
        if (done == status::success && (held & 3) != 0)
            done = set(vmcs::guest_interruptibility, held & ~std::uint64_t{3});
        return done;
    }
    [[nodiscard]] status skip_instruction() noexcept {
        std::uint64_t length = 0;
        const status done = get(vmcs::instruction_length, length);
        return done == status::success ? skip(length) : done;
    }

    // --- interrupts and exceptions ------------------------------------------

    [[nodiscard]] status ask_for_window(bool wanted) noexcept {
        std::uint64_t controls = 0;
        const status done = get(vmcs::processor_controls, controls);
        if (done != status::success) return done;
        return set(vmcs::processor_controls,
                   wanted ? controls | window_exiting : controls & ~window_exiting);
    }
    [[nodiscard]] status inject() noexcept {
        std::uint64_t flags = 0;
        std::uint64_t held = 0;
        std::uint64_t event = 0;
        status done = seat_.get(general(os::hvf_abi::x86_rflags), flags);
        if (done == status::success) done = get(vmcs::guest_interruptibility, held);
        if (done == status::success) done = get(vmcs::entry_event, event);
        if (done != status::success) return done;
        const bool open = (flags & 0x200) != 0 && (held & 3) == 0 && (event & event_valid) == 0;
        if (!open) return ask_for_window(true);
        return set(vmcs::entry_event, event_valid | seat_.vector.exchange(0));
    }
    /// #GP(0): a hardware exception with an error code.
    [[nodiscard]] status raise_protection_fault() noexcept {
        const status done = set(vmcs::entry_error_code, 0);
        return done == status::success ? set(vmcs::entry_event, event_valid | 0xb0d) : done;
    }

    // --- ports and memory ---------------------------------------------------

    template <class Bus>
    [[nodiscard]] result<bool> serve_port(Bus& bus, vcpu_exit& ended) noexcept {
        std::uint64_t how = 0;
        status done = get(vmcs::exit_qualification, how);
        const std::size_t bytes = (how & 7) + 1;
        const bool in = (how & 8) != 0;
        const auto port = static_cast<std::uint16_t>(how >> 16);
        const bool is_string = (how & 0x30) != 0;
        if (done == status::success && (is_string || bytes > 4)) {
            ended = {exit_reason::not_emulated, how, port};
            return false;
        }
        constexpr hvf_register rax = general(os::hvf_abi::x86_rax);
        std::uint64_t value = 0;
        if (done == status::success) done = seat_.get(rax, value);
        if (done != status::success) return seat_.failed(done, "port");
        std::array<std::byte, 8> data{};
        const std::uint64_t given = little_endian(value);
        std::memcpy(data.data(), &given, sizeof given);
        const std::span<std::byte> part{data.data(), bytes};
        if (in) {
            if constexpr (port_bus<Bus>) {
                bus.io_read(port, part);
            } else {
                std::memset(data.data(), 0xff, bytes);
            }
            std::uint64_t read = 0;
            std::memcpy(&read, data.data(), sizeof read);
            x86_64::mmio_instruction load;
            load.bytes = load.register_bytes = static_cast<unsigned>(bytes);
            done = seat_.set(rax, x86_64::loaded(load, value, little_endian(read)));
        } else if constexpr (port_bus<Bus>) {
            bus.io_write(port, part);
        }
        if (done == status::success) done = skip_instruction();
        return went_on(done, "port");
    }

    /// The bytes at RIP: at most 15, fewer where memory ends. One byte at a time would
    /// walk the tables 15 times; a page at a time does it at most twice.
    [[nodiscard]] std::size_t fetch(std::array<std::uint8_t, 15>& code,
                                    x86_64::x86_mode& mode) noexcept {
        std::uint64_t rip = 0;
        std::uint64_t base = 0;
        std::uint64_t access = 0;
        std::uint64_t efer = 0;
        if (seat_.get(general(os::hvf_abi::x86_rip), rip) != status::success ||
            get(vmcs::guest_es_base + 2, base) != status::success ||
            get(vmcs::guest_es_access + 2, access) != status::success ||
            get(vmcs::guest_efer, efer) != status::success)
            return 0;
        const bool long_code = (efer & 0x400) != 0 && (access & 0x2000) != 0;
        mode = long_code                ? x86_64::x86_mode::bits_64
               : (access & 0x4000) != 0 ? x86_64::x86_mode::bits_32
                                        : x86_64::x86_mode::bits_16;
        const std::uint64_t start = long_code ? rip : (base + rip) & 0xffff'ffff;
        std::size_t have = 0;
        while (have < code.size()) {
            const std::uint64_t at = start + have;
            const std::size_t here =
                std::min<std::size_t>(code.size() - have, 0x1000 - (at & 0xfff));
            const std::optional<pa> physical = translate(at);
            if (!physical ||
                !seat_.machine().memory.read(
                    *physical, std::as_writable_bytes(std::span{code}.subspan(have, here))))
                break;
            have += here;
        }
        return have;
    }

    /// Through the guest's own tables: none, or four levels of 8-byte entries. (32-bit
    /// and five-level paging are not followed.)
    [[nodiscard]] std::optional<pa> translate(std::uint64_t address) noexcept {
        std::uint64_t cr0 = 0;
        std::uint64_t cr3 = 0;
        std::uint64_t efer = 0;
        if (get(vmcs::guest_cr0, cr0) != status::success ||
            get(vmcs::guest_cr3, cr3) != status::success ||
            get(vmcs::guest_efer, efer) != status::success)
            return std::nullopt;
        if ((cr0 & 0x8000'0000) == 0) return pa{address};
        if ((efer & 0x400) == 0) return std::nullopt;
        constexpr std::uint64_t address_bits = 0x000f'ffff'ffff'f000;
        std::uint64_t entry = cr3;
        for (unsigned shift = 39;; shift -= 9) {
            std::array<std::byte, 8> word{};
            const pa at{(entry & address_bits) + (address >> shift & 0x1ff) * 8};
            if (!seat_.machine().memory.read(at, word)) return std::nullopt;
            std::memcpy(&entry, word.data(), sizeof entry);
            entry = little_endian(entry);
            if ((entry & 1) == 0) return std::nullopt;
            const bool is_leaf = shift == 12 || (shift < 39 && (entry & 0x80) != 0);
            if (!is_leaf) continue;
            const std::uint64_t within = (std::uint64_t{1} << shift) - 1;
            return pa{(entry & address_bits & ~within) | (address & within)};
        }
    }

    template <class Bus>
    [[nodiscard]] result<bool> serve_access(Bus& bus, vcpu_exit& ended) noexcept {
        std::uint64_t at = 0;
        if (const status done = get(vmcs::guest_physical_address, at); done != status::success)
            return seat_.failed(done, "MMIO");
        // The framework fills its tables late: RAM is entered again.
        if (seat_.machine().memory.contains(pa{at})) return true;
        std::array<std::uint8_t, 15> code{};
        x86_64::x86_mode mode{};
        const std::size_t have = fetch(code, mode);
        const std::optional<x86_64::mmio_instruction> what =
            x86_64::decode_mmio(std::span{code}.first(have), mode);
        if (!what) {
            std::uint64_t how = 0;
            static_cast<void>(get(vmcs::exit_qualification, how));
            ended = {exit_reason::not_emulated, how, at};
            return false;
        }
        std::uint64_t value = 0;
        status done = seat_.get(numbered(what->reg), value);
        if (done != status::success) return seat_.failed(done, "MMIO");
        std::array<std::byte, 8> data{};
        const std::span<std::byte> part{data.data(), what->bytes};
        if (what->is_write) {
            const std::uint64_t given = little_endian(x86_64::stored(*what, value));
            std::memcpy(data.data(), &given, sizeof given);
            bus.mmio_write(pa{at}, part);
        } else {
            bus.mmio_read(pa{at}, part);
            std::uint64_t read = 0;
            std::memcpy(&read, data.data(), sizeof read);
            done =
                seat_.set(numbered(what->reg), x86_64::loaded(*what, value, little_endian(read)));
        }
        if (done == status::success) done = skip(what->length);
        return went_on(done, "MMIO");
    }

    // --- instructions that the VMM does -------------------------------------

    [[nodiscard]] status answer_cpuid() noexcept {
        using namespace os::hvf_abi;
        std::uint64_t leaf = 0;
        std::uint64_t subleaf = 0;
        status done = seat_.get(general(x86_rax), leaf);
        if (done == status::success) done = seat_.get(general(x86_rcx), subleaf);
        const auto number = static_cast<std::uint32_t>(leaf);
        const os::cpuid_leaf told =
            shown(number, seat_.calls().host_cpuid(number, static_cast<std::uint32_t>(subleaf)));
        for (const auto& [which, value] :
             {std::pair{x86_rax, told.eax}, std::pair{x86_rbx, told.ebx},
              std::pair{x86_rcx, told.ecx}, std::pair{x86_rdx, told.edx}}) {
            if (done == status::success) done = seat_.set(general(which), value);
        }
        return done == status::success ? skip_instruction() : done;
    }

    [[nodiscard]] status serve_msr(bool is_write) noexcept {
        using namespace os::hvf_abi;
        std::uint64_t number = 0;
        status done = seat_.get(general(x86_rcx), number);
        if (done != status::success) return done;
        if (static_cast<std::uint32_t>(number) != efer_number) return raise_protection_fault();
        std::uint64_t efer = 0;
        std::uint64_t low = 0;
        done = get(vmcs::guest_efer, efer);
        if (is_write) {
            if (done == status::success) done = seat_.get(general(x86_rax), low);
            // SCE, LME and NXE are the guest's; LMA is the processor's.
            if (done == status::success)
                done = set(vmcs::guest_efer, (efer & ~std::uint64_t{0x901}) | (low & 0x901));
        } else {
            if (done == status::success) done = seat_.set(general(x86_rax), efer & 0xffff'ffff);
            if (done == status::success) done = seat_.set(general(x86_rdx), efer >> 32);
        }
        return done == status::success ? skip_instruction() : done;
    }

    /// MOV to CR0 or CR4 that touches NE or VMXE, which VMX keeps set.
    [[nodiscard]] result<bool> serve_control_register(vcpu_exit& ended) noexcept {
        std::uint64_t how = 0;
        status done = get(vmcs::exit_qualification, how);
        const bool is_cr0 = (how & 15) == 0;
        if (done == status::success && ((how & 0x30) != 0 || (!is_cr0 && (how & 15) != 4))) {
            ended = {exit_reason::not_emulated, how, 0};
            return false;
        }
        std::uint64_t value = 0;
        if (done == status::success)
            done = seat_.get(numbered(static_cast<unsigned>(how >> 8 & 15)), value);
        if (done == status::success)
            done = set(is_cr0 ? vmcs::cr0_shadow : vmcs::cr4_shadow, value);
        if (done == status::success)
            done = set(is_cr0 ? vmcs::guest_cr0 : vmcs::guest_cr4,
                       value | (is_cr0 ? cr0_ne : cr4_vmxe));
        if (done == status::success && is_cr0) done = follow_paging(value);
        if (done == status::success) done = skip_instruction();
        return went_on(done, "control register");
    }
    /// EFER.LMA = EFER.LME and CR0.PG.
    [[nodiscard]] status follow_paging(std::uint64_t cr0) noexcept {
        std::uint64_t efer = 0;
        const status done = get(vmcs::guest_efer, efer);
        if (done != status::success) return done;
        const bool active = (cr0 & 0x8000'0000) != 0 && (efer & 0x100) != 0;
        return set(vmcs::guest_efer, active ? efer | 0x400 : efer & ~std::uint64_t{0x400});
    }

    seat& seat_;
};

} // namespace vm_accel::inline v0::hvf_x86_64
