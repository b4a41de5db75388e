/// The interrupt controller that KVM keeps in the kernel for an arm64 machine: a
/// GICv3, and the interrupt translation service (ITS) that takes messages.
///
/// Set-up can be tried again after an error; what the kernel has accepted stays.
#pragma once

#include <vm_accel/hypervisor/kvm_arm64.hpp>
#include <vm_accel/os/kvm_abi.hpp>
#include <vm_accel/os/kvm_calls.hpp>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string_view>
#include <utility>

namespace vm_accel::inline v0::arm64 {

/// What an interrupt translation service takes of the address space.
inline constexpr std::uint64_t its_bytes = 0x2'0000;

/// Where messages to the service at `base` are written: GITS_TRANSLATER.
[[nodiscard]] constexpr pa its_doorbell(pa base) noexcept { return offset_by(base, 0x1'0040); }

/// Delivers a message through `vm`; see kvm_vm::signal_msi.
[[nodiscard]] inline result<bool> signal_msi(const os::descriptor& vm, pa doorbell,
                                             std::uint32_t data, std::uint32_t device) noexcept {
    os::kvm_abi::message request{static_cast<std::uint32_t>(raw(doorbell)),
                                 static_cast<std::uint32_t>(raw(doorbell) >> 32),
                                 data,
                                 os::kvm_abi::message_has_device_id,
                                 device,
                                 {}};
    const os::call_result called =
        os::device_request_with(vm, os::kvm_abi::signal_message, request);
    if (called.ok()) return called.value > 0;
    fixed_text<160> what = fixed_text<160>{"message to "}.append_number(raw(doorbell), 16);
    if (called.os_error == ENODEV) {
        return fail(errc::not_found, what.append(": no translation service in this VM"),
                    "call create_its() first", called.os_error);
    }
    return os::fail_with(called.os_error, what.view(), "its_doorbell() is where messages go");
}

/// A machine's GICv3 and its translation service. Part of kvm_vm.
/// Threads: set-up, by one thread.
class kernel_gic {
public:
    /// See kvm_vm::create_gic_v3.
    [[nodiscard]] result<> create(const os::descriptor& vm, const gic_v3_layout& layout) noexcept {
        namespace gic = os::kvm_abi::gic_v3;
        if (const result<> possible = check(layout); !possible) return possible;
        if (!gic_) {
            if (const result<> made = make(vm, gic::device_type, gic_, "GICv3"); !made) return made;
        }
        struct step {
            std::uint32_t group;
            std::uint64_t attribute;
            std::uint64_t value;
            std::string_view what, cure;
        };
        const step steps[] = {
            {gic::group_address, gic::address_distributor, raw(layout.distributor),
             "GICv3 distributor at ", "see the kernel's log"},
            // Redistributor region 0: how many in [63:52], base in [51:16], index in [11:0].
            {gic::group_address, gic::address_redistributor_region,
             std::uint64_t{layout.vcpus} << 52 | raw(layout.redistributors),
             "GICv3 redistributors, count and address ", "see the kernel's log"},
            {gic::group_interrupt_count, 0, layout.interrupts, "GICv3 interrupt count ",
             "call it before any vCPU has run"},
        };
        for (std::size_t i = 0; i < std::size(steps); ++i) {
            const step& s = steps[i];
            if (accepted_[i] == s.value) continue;
            if (accepted_[i]) {
                return fail(errc::already_exists, at(s.what, *accepted_[i]).append(": set before"),
                            "keep to that value, or make another VM");
            }
            const result<> done =
                set(gic_, s.group, s.attribute, s.value, at(s.what, s.value), s.cure);
            if (!done) return done;
            accepted_[i] = s.value;
        }
        created_ = true;
        return {};
    }

    /// See kvm_vm::finish_gic.
    [[nodiscard]] result<> finish() noexcept {
        if (!created_) return none();
        return initialise(gic_, "GICv3 initialisation",
                          "create all vCPUs first, and as many redistributors as vCPUs");
    }

    /// See kvm_vm::create_its.
    [[nodiscard]] result<> create_its(const os::descriptor& vm, pa base) noexcept {
        namespace gic = os::kvm_abi::gic_v3;
        namespace its = os::kvm_abi::gic_its;
        if (!created_) return none();
        if (its_created_) {
            return fail(errc::already_exists, "interrupt translation service: this VM has one",
                        "create it once");
        }
        if ((raw(base) & 0xffff) != 0 || raw(base) > (std::uint64_t{1} << 52) - its_bytes) {
            return fail(errc::invalid_argument, at("interrupt translation service at ", raw(base)),
                        "choose a multiple of 64 KiB below 52 bits of address");
        }
        if (!its_) {
            const result<> made = make(vm, its::device_type, its_, "interrupt translation service");
            if (!made) return made;
        }
        if (!its_accepted_) {
            const result<> placed = set(its_, gic::group_address, its::address_registers, raw(base),
                                        at("interrupt translation service at ", raw(base)),
                                        "choose an address where nothing else is");
            if (!placed) return placed;
            its_accepted_ = raw(base);
        } else if (*its_accepted_ != raw(base)) {
            return fail(
                errc::already_exists,
                at("interrupt translation service at ", *its_accepted_).append(": set before"),
                "keep to that value, or make another VM");
        }
        const result<> done =
            initialise(its_, "interrupt translation service", "call it before any vCPU has run");
        its_created_ = done.has_value();
        return done;
    }

    /// See kvm_vm::gic_request.
    [[nodiscard]] result<> request(bool its, std::uint32_t number,
                                   os::kvm_abi::device_attribute& attribute) noexcept {
        if (its ? !its_created_ : !created_) return none();
        const os::call_result called =
            os::device_request_with(its ? its_ : gic_, number, attribute);
        if (called.ok()) return {};
        fixed_text<160> what{its ? "interrupt translation service, register " : "GICv3, register "};
        what.append_number(attribute.attribute, 16).append(" of group ");
        what.append_number(attribute.group);
        return os::fail_with(called.os_error, what.view(),
                             "let no vCPU run, and use the layout that was saved");
    }

private:
    [[nodiscard]] static fixed_text<160> at(std::string_view what, std::uint64_t number) noexcept {
        return fixed_text<160>{what}.append_number(number, 16);
    }
    [[nodiscard]] static result<> none() noexcept {
        return fail(errc::not_found, "GICv3: none in this VM", "call create_gic_v3() first");
    }

    [[nodiscard]] static result<> make(const os::descriptor& vm, std::uint32_t type,
                                       os::descriptor& into, std::string_view what) noexcept {
        os::kvm_abi::device_request request{type, 0, 0};
        const os::call_result made =
            os::device_request_with(vm, os::kvm_abi::create_device, request);
        if (!made.ok()) {
            return fail(made.os_error == EEXIST ? errc::already_exists : errc::unsupported,
                        fixed_text<160>{what}.append(": the kernel makes none"),
                        "run on an arm64 host whose interrupt controller is a GICv3",
                        made.os_error);
        }
        into = os::descriptor{static_cast<int>(request.fd)};
        return {};
    }

    [[nodiscard]] static result<> set(const os::descriptor& device, std::uint32_t group,
                                      std::uint64_t attribute, const std::uint64_t& value,
                                      fixed_text<160> what, std::string_view cure) noexcept {
        os::kvm_abi::device_attribute request{0, group, attribute,
                                              reinterpret_cast<std::uintptr_t>(&value)};
        const os::call_result called =
            os::device_request_with(device, os::kvm_abi::set_device_attribute, request);
        if (called.ok()) return {};
        if (called.os_error == E2BIG) {
            return fail(errc::out_of_range, what.append(": beyond the guest's address bits"),
                        "choose a lower address, or more kvm_vm_options::address_bits",
                        called.os_error);
        }
        return os::fail_with(called.os_error, what.view(), cure);
    }

    [[nodiscard]] static result<> initialise(const os::descriptor& device, std::string_view what,
                                             std::string_view cure) noexcept {
        namespace gic = os::kvm_abi::gic_v3;
        os::kvm_abi::device_attribute request{0, gic::group_control, gic::control_init, 0};
        const os::call_result called =
            os::device_request_with(device, os::kvm_abi::set_device_attribute, request);
        if (called.ok()) return {};
        return os::fail_with(called.os_error, what, cure);
    }

    os::descriptor gic_;
    os::descriptor its_;
    /// What the kernel has of the layout: distributor, redistributors, interrupts.
    std::array<std::optional<std::uint64_t>, 3> accepted_{};
    std::optional<std::uint64_t> its_accepted_;
    bool created_ = false;
    bool its_created_ = false;
};

} // namespace vm_accel::inline v0::arm64
