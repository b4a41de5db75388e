/// Hypervisor.framework as a whole: finding it, and why that may fail.
#pragma once

#include <vm_accel/hypervisor/hvf_vm.hpp>
#include <vm_accel/os/hvf_calls.hpp>

#include <memory>
#include <new>
#include <string_view>

namespace vm_accel::inline v0 {

struct hvf_vm_options {
    /// arm64, macOS 13 or later: bits of guest physical addresses; 0 = the framework's
    /// default (36 on many Macs). x86-64: ignored.
    unsigned address_bits = 0;
};

/// The backend for macOS, `hvf` with the framework's own calls. `Calls` is a type as
/// os::hvf_calls is one: a test puts a model of the framework there. On any other
/// platform it compiles, and detect() and init() say why it is not available.
template <class Calls>
class basic_hvf {
public:
    using role = roles::hypervisor;
    using vm = basic_hvf_vm<Calls>;
    static constexpr std::string_view name = "hvf";

    /// Ready for use, or the error of init().
    [[nodiscard]] static result<basic_hvf> open() noexcept {
        basic_hvf opened;
        if (const result<> done = opened.init(); !done) return fail(done);
        return opened;
    }

    /// What this host can do. The framework tells whether it lets this program in only
    /// when a VM is created: `available` does not mean that the entitlement is there.
    [[nodiscard]] static hypervisor_capabilities detect() noexcept {
        const result<basic_hvf> opened = open();
        if (opened) return opened->capabilities_;
        hypervisor_capabilities none;
        none.why_not = opened.error();
        return none;
    }

    /// Errors: already_initialized, unsupported (not macOS), not_found (no framework, or
    /// one that lacks a function).
    [[nodiscard]] result<> init() noexcept {
        if (initialized_) {
            return fail(errc::already_initialized, "hvf: in use already", "call init() once");
        }
        result<Calls> loaded = Calls::load();
        if (!loaded) return fail(loaded);
        calls_ = *loaded;
        capabilities_.available = true;
        capabilities_.maximum_vcpus = std::min<unsigned>(
            calls_.maximum_vcpus(), static_cast<unsigned>(hvf_machine<Calls>::vcpu_limit));
        capabilities_.recommended_vcpus = capabilities_.maximum_vcpus;
        capabilities_.memory_slots = static_cast<unsigned>(memory_slots::capacity);
        if constexpr (vm::is_arm64) {
            capabilities_.guest_address_bits = calls_.maximum_address_bits();
            capabilities_.in_kernel_interrupts = calls_.has_gic();
        }
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
        if constexpr (vm::is_arm64) {
            out.fact("default guest address bits", calls_.default_address_bits());
        }
    }

    /// A new machine without memory or vCPUs; one at a time in a process. Errors:
    /// not_initialized, permission_denied (the program lacks the entitlement; the cure
    /// says how to give it), busy, unsupported, out_of_range (address bits).
    [[nodiscard]] result<vm> create_vm(const hvf_vm_options& options) noexcept {
        if (!initialized_) {
            return fail(errc::not_initialized, "hvf: not in use", "call init() first");
        }
        const unsigned most = capabilities_.guest_address_bits;
        if (vm::is_arm64 && options.address_bits != 0 &&
            (options.address_bits < 32 || (most != 0 && options.address_bits > most))) {
            return fail(
                errc::out_of_range,
                fixed_text<160>{"hvf: guest address bits: "}.append_number(options.address_bits),
                "choose 32 to hypervisor_capabilities::guest_address_bits");
        }
        std::unique_ptr<hvf_machine<Calls>> machine{
            new (std::nothrow) hvf_machine<Calls>{calls_, capabilities_.maximum_vcpus}};
        if (machine == nullptr) return fail(errc::exhausted, "hvf: no memory", "free memory");
        const auto made = calls_.create_vm(options.address_bits);
        if (made != os::hvf_abi::status::success) {
            return hvf_failure(made, "hvf: creating a VM",
                               "see that `sysctl kern.hv_support` says 1");
        }
        return vm{std::move(machine)};
    }
    [[nodiscard]] result<vm> create_vm() noexcept { return create_vm(hvf_vm_options{}); }

private:
    Calls calls_{};
    hypervisor_capabilities capabilities_{};
    bool initialized_ = false;
};

using hvf = basic_hvf<os::hvf_calls>;
using hvf_vm = hvf::vm;
using hvf_vcpu = hvf_vm::vcpu;

static_assert(hypervisor<hvf>);

} // namespace vm_accel::inline v0
