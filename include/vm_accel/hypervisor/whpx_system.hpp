/// The Windows Hypervisor Platform as a whole: finding it, and why that may fail.
#pragma once

#include <vm_accel/hypervisor/hypervisor.hpp>
#include <vm_accel/hypervisor/whpx_vm.hpp>
#include <vm_accel/os/whpx_calls.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <string_view>
#include <thread>
#include <utility>

namespace vm_accel::inline v0 {

struct whpx_vm_options {
    /// How many vCPUs it can have, 1 to 64; 0 = as many as this host has CPUs, and two
    /// at least. The platform wants to know before the first one.
    unsigned processors = 0;
    /// Local APICs in the hypervisor: interrupts without exits, and a guest that halts
    /// waits inside run(). Without: HLT ends run() with `halted`.
    bool local_apic = false;
    // What newer versions of Windows know; see basic_whpx_vm::settings() for what became
    // of it.
    std::optional<std::uint16_t> primary_node{}; ///< of what the hypervisor keeps of the VM
    std::optional<std::uint32_t> cpu_weight{};   ///< 1 to 10000; 100 is usual
    std::optional<std::uint32_t> cpu_reserve{};  ///< in 1/65536 of the processors' time
    std::optional<std::uint32_t> cpu_cap{};      ///< likewise, at most
};

/// The backend for Windows, `whpx` with the platform's own calls. `Calls` is a type as
/// os::whpx_calls is one: a test puts a model of the platform there. On any other
/// system it compiles, and detect() and init() say why it is not available.
template <class Calls>
class basic_whpx {
public:
    using role = roles::hypervisor;
    using vm = basic_whpx_vm<Calls>;
    static constexpr std::string_view name = "whpx";

    /// Ready for use, or the error of init().
    [[nodiscard]] static result<basic_whpx> open() noexcept {
        basic_whpx opened;
        if (const result<> done = opened.init(); !done) return fail(done);
        return opened;
    }
    [[nodiscard]] static hypervisor_capabilities detect() noexcept {
        const result<basic_whpx> opened = open();
        if (opened) return opened->capabilities_;
        hypervisor_capabilities none;
        none.why_not = opened.error();
        return none;
    }

    /// Errors: already_initialized, unsupported (not Windows on x86-64), not_found (no
    /// library, or no hypervisor that runs).
    [[nodiscard]] result<> init() noexcept {
        if (initialized_) {
            return fail(errc::already_initialized, "WHPX: in use already", "call init() once");
        }
        result<Calls> loaded = Calls::load();
        if (!loaded) return fail(loaded);
        std::uint32_t present = 0;
        const auto asked = loaded->get_capability(os::whpx_abi::capability::hypervisor_present,
                                                  std::as_writable_bytes(std::span{&present, 1}));
        if (os::whpx_abi::failed(asked))
            return whpx_failure(asked, "WHPX: asking for the hypervisor", "restart Windows");
        if (present == 0) {
            return fail(errc::not_found, "WHPX: the hypervisor is not running",
                        "switch virtualisation on in the firmware, then: bcdedit /set "
                        "hypervisorlaunchtype auto, and restart");
        }
        std::uint64_t features = 0;
        const auto told = loaded->get_capability(os::whpx_abi::capability::features,
                                                 std::as_writable_bytes(std::span{&features, 1}));
        if (os::whpx_abi::failed(told))
            return whpx_failure(told, "WHPX: asking for its features", "update Windows");
        calls_ = *loaded;
        features_ = features;
        capabilities_.available = true;
        capabilities_.recommended_vcpus = default_processors();
        capabilities_.maximum_vcpus = vm::machine::vcpu_limit;
        capabilities_.memory_slots = static_cast<unsigned>(memory_slots::capacity);
        capabilities_.in_kernel_interrupts = has(os::whpx_abi::feature::local_apic);
        initialized_ = true;
        return {};
    }
    [[nodiscard]] bool is_initialized() const noexcept { return initialized_; }
    [[nodiscard]] const hypervisor_capabilities& capabilities() const noexcept {
        return capabilities_;
    }
    template <class Report>
    void report(Report& out) const {
        capabilities_.report(out);
        out.fact("dirty pages are tracked", has(os::whpx_abi::feature::dirty_pages));
        out.fact("memory is removed in parts", has(os::whpx_abi::feature::partial_unmap));
    }

    /// A new machine without memory or vCPUs. Errors: not_initialized, out_of_range
    /// (processors), unsupported (local APICs), those of the platform.
    [[nodiscard]] result<vm> create_vm(const whpx_vm_options& options) noexcept {
        using os::whpx_abi::property;
        if (!initialized_) {
            return fail(errc::not_initialized, "WHPX: not in use", "call init() first");
        }
        const unsigned processors =
            options.processors != 0 ? options.processors : default_processors();
        if (processors > vm::machine::vcpu_limit) {
            return fail(
                errc::out_of_range,
                fixed_text<160>{"WHPX: a VM of "}.append_number(processors).append(" processors"),
                "ask for 1 to 64");
        }
        if (options.local_apic && !has(os::whpx_abi::feature::local_apic)) {
            return fail(errc::unsupported, "WHPX: this version of Windows has no local APICs",
                        "update Windows to 10 1809 or later, or inject interrupts");
        }
        os::whpx_abi::partition partition = nullptr;
        if (const auto made = calls_.create_partition(partition); os::whpx_abi::failed(made))
            return whpx_failure(made, "WHPX: creating a partition", "restart Windows");
        std::unique_ptr<typename vm::machine> machine{new (std::nothrow)
                                                          typename vm::machine{calls_, partition}};
        if (machine == nullptr) {
            static_cast<void>(calls_.delete_partition(partition));
            return fail(errc::exhausted, "WHPX: no memory for a VM", "free memory");
        }
        machine->processors = processors;
        machine->has_apic = options.local_apic;
        vm made{std::move(machine)};
        const auto mode =
            static_cast<std::uint32_t>(options.local_apic ? os::whpx_abi::local_apic_mode::xapic
                                                          : os::whpx_abi::local_apic_mode::none);
        if (const auto done = set(partition, property::processor_count, std::uint32_t{processors});
            os::whpx_abi::failed(done))
            return whpx_failure(done, "WHPX: number of processors", "ask for fewer");
        // Windows 10 1803 does not know the mode, and needs not be told of none.
        if (has(os::whpx_abi::feature::local_apic)) {
            if (const auto done = set(partition, property::local_apic_mode, mode);
                os::whpx_abi::failed(done))
                return whpx_failure(done, "WHPX: local APICs", "create the VM without them");
        }
        try_setting(made, partition, property::primary_numa_node, "primary NUMA node",
                    options.primary_node);
        try_setting(made, partition, property::cpu_weight, "CPU weight", options.cpu_weight);
        try_setting(made, partition, property::cpu_reserve, "CPU reserve", options.cpu_reserve);
        try_setting(made, partition, property::cpu_cap, "CPU cap", options.cpu_cap);
        if (const auto done = calls_.setup_partition(partition); os::whpx_abi::failed(done))
            return whpx_failure(done, "WHPX: setting up the partition",
                                "ask for fewer processors, or free memory");
        return made;
    }
    [[nodiscard]] result<vm> create_vm() noexcept { return create_vm(whpx_vm_options{}); }

private:
    [[nodiscard]] bool has(std::uint64_t feature) const noexcept {
        return (features_ & feature) != 0;
    }
    [[nodiscard]] static unsigned default_processors() noexcept {
        return std::clamp(std::thread::hardware_concurrency(), 2u, vm::machine::vcpu_limit);
    }
    template <class Value>
    [[nodiscard]] os::whpx_abi::status set(os::whpx_abi::partition partition,
                                           os::whpx_abi::property which,
                                           const Value& value) noexcept {
        return calls_.set_property(partition, which, std::as_bytes(std::span{&value, 1}));
    }
    template <class Value>
    void try_setting(vm& made, os::whpx_abi::partition partition, os::whpx_abi::property which,
                     std::string_view what, const std::optional<Value>& wanted) noexcept {
        if (!wanted) return;
        whpx_setting setting{what, *wanted, {}};
        if (const auto done = set(partition, which, *wanted); os::whpx_abi::failed(done))
            setting.refused = whpx_failure(done, what, "leave it to Windows").value();
        made.note(setting);
    }

    Calls calls_{};
    std::uint64_t features_ = 0;
    hypervisor_capabilities capabilities_{};
    bool initialized_ = false;
};

using whpx = basic_whpx<os::whpx_calls>;
using whpx_vm = whpx::vm;
using whpx_vcpu = whpx_vm::vcpu;

static_assert(hypervisor<whpx>);

} // namespace vm_accel::inline v0
