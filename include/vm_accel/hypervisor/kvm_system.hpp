/// KVM as a whole: finding it, opening it, and why that may fail.
#pragma once

#include <vm_accel/hypervisor/kvm_vm.hpp>
#include <vm_accel/hypervisor/kvm_x86_64.hpp>

namespace vm_accel::inline v0 {

/// The KVM backend. x86-64 and arm64 Linux; on any other platform it compiles,
/// and detect() and init() say why it is not available.
class kvm {
public:
    using role = roles::hypervisor;
    using vm = kvm_vm;
    static constexpr std::string_view name = "kvm";
    static constexpr std::string_view default_path = "/dev/kvm";

    kvm() noexcept = default;
    /// Will open another path than /dev/kvm (at most 159 bytes).
    explicit kvm(std::string_view path) noexcept : path_(path) {}

    /// Opens `path` ready for use. Errors: not_found (no such device),
    /// permission_denied, busy, unsupported (platform, version, capability),
    /// invalid_argument (not a KVM device).
    [[nodiscard]] static result<kvm> open(std::string_view path = default_path) noexcept {
        kvm opened{path};
        if (const result<> done = opened.init(); !done) return fail(done);
        return opened;
    }

    /// The error that errno `os_error` of opening `path` is, with its cure.
    [[nodiscard]] static error open_failure(std::string_view path, int os_error) noexcept;
    /// The error that errno `os_error` of creating a VM is.
    [[nodiscard]] static error vm_failure(std::string_view path, int os_error) noexcept;

    /// What KVM can do here, or the error open() would give.
    [[nodiscard]] static hypervisor_capabilities detect(std::string_view path) noexcept {
        const result<kvm> opened = open(path);
        if (opened) return opened->capabilities_;
        hypervisor_capabilities none;
        none.why_not = opened.error();
        return none;
    }
    [[nodiscard]] static hypervisor_capabilities detect() noexcept { return detect(default_path); }

    [[nodiscard]] result<> init() noexcept;
    [[nodiscard]] bool is_initialized() const noexcept { return static_cast<bool>(device_); }
    [[nodiscard]] const hypervisor_capabilities& capabilities() const noexcept {
        return capabilities_;
    }
    template <class Report>
    void report(Report& out) const {
        out.fact("device", path_.view());
        capabilities_.report(out);
    }

    /// A new machine without memory or vCPUs. Errors: not_initialized, busy
    /// (another hypervisor holds the processor's extensions), invalid_argument.
    [[nodiscard]] result<kvm_vm> create_vm(const kvm_vm_options& options) noexcept;
    [[nodiscard]] result<kvm_vm> create_vm() noexcept { return create_vm(kvm_vm_options{}); }

    /// x86-64: the CPUID leaves that KVM can give a vCPU on this host.
    [[nodiscard]] result<x86_64::cpuid_table> supported_cpuid() const noexcept {
        x86_64::cpuid_table table;
        table.header.count = static_cast<std::uint32_t>(table.entries.size());
        const os::call_result called =
            os::device_request_with(device_, os::kvm_abi::get_supported_cpuid, table);
        if (called.ok()) return table;
        return os::fail_with(called.os_error, "CPUID of this host", "init() first, on x86-64");
    }

private:
    /// What to do about a system that has too little of something.
    [[nodiscard]] static std::string_view shortage_cure(int os_error) noexcept {
        if (os_error == EMFILE) return "close descriptors, or raise the limit (ulimit -n)";
        if (os_error == ENFILE) return "raise the system's limit of open files (fs.file-max)";
        return os_error == ENOMEM ? "free memory" : "see the kernel's log";
    }
    [[nodiscard]] fixed_text<160> about(std::string_view what) const noexcept {
        return fixed_text<160>{path_}.append(": ").append(what);
    }
    [[nodiscard]] unsigned count_of(os::kvm_abi::capability which,
                                    unsigned otherwise = 0) const noexcept {
        const os::call_result called = os::device_request(device_, os::kvm_abi::check_extension,
                                                          static_cast<std::uintptr_t>(which));
        return called.ok() && called.value > 0 ? static_cast<unsigned>(called.value) : otherwise;
    }
    [[nodiscard]] result<> examine() noexcept;

    fixed_text<160> path_{default_path};
    os::descriptor device_;
    std::size_t vcpu_map_bytes_ = 0;
    hypervisor_capabilities capabilities_;
};

inline result<> kvm::init() noexcept {
    if (device_) {
        return fail(errc::already_initialized, about("already open"), "call init() once");
    }
    if constexpr (!os::kvm_platform::present) {
        return fail(errc::unsupported, about("KVM exists on Linux for x86-64 and arm64 only"),
                    "use another hypervisor backend, such as software");
    }
    char terminated[161]{};
    std::ranges::copy(path_.view(), terminated);
    const os::call_result opened = os::open_device(terminated);
    if (!opened.ok()) return tl::unexpected<error>{open_failure(path_.view(), opened.os_error)};
    device_ = os::descriptor{static_cast<int>(opened.value)};
    const result<> examined = examine();
    if (!examined) device_.close();
    return examined;
}

inline error kvm::open_failure(std::string_view path, int os_error) noexcept {
    const auto about = [&](std::string_view what) {
        return fixed_text<160>{path}.append(": ").append(what);
    };
    switch (os_error) {
    case ENOENT:
        return {errc::not_found, os_error, about("no such device"),
                "load the kvm module (kvm_intel, kvm_amd), enable virtualisation in the "
                "firmware, or run on hardware or a machine with nested virtualisation"};
    case ENODEV:
    case ENXIO:
        return {errc::not_found, os_error, about("no hypervisor behind it"),
                "enable virtualisation in the firmware or for this machine, then load the kvm "
                "module"};
    case EACCES:
    case EPERM:
        return {errc::permission_denied, os_error, about("permission denied"),
                "add the user to group kvm (usermod -aG kvm USER) and log in again"};
    case EBUSY:
        return {errc::busy, os_error, about("busy"), "stop the other hypervisor of this host"};
    case EMFILE:
    case ENFILE:
    case ENOMEM:
        return os::fail_with(os_error, path, shortage_cure(os_error)).value();
    default:
        return os::fail_with(os_error, path, "give the path of the KVM device").value();
    }
}

inline error kvm::vm_failure(std::string_view path, int os_error) noexcept {
    if (os_error == EBUSY) {
        return {
            errc::busy, os_error,
            fixed_text<160>{path}.append(": another hypervisor holds the processor's extensions"),
            "stop it (VirtualBox, VMware), then try again"};
    }
    return os::fail_with(os_error, fixed_text<160>{path}.append(": KVM_CREATE_VM").view(),
                         shortage_cure(os_error))
        .value();
}

/// Asks the open device who it is and what it has.
inline result<> kvm::examine() noexcept {
    using os::kvm_abi::capability;
    const os::call_result version = os::device_request(device_, os::kvm_abi::get_api_version);
    if (!version.ok()) {
        return fail(errc::invalid_argument, about("not a KVM device"),
                    "give the path of the KVM device, usually /dev/kvm", version.os_error);
    }
    if (version.value != os::kvm_abi::api_version) {
        return fail(errc::unsupported,
                    about("interface version ")
                        .append_number(static_cast<std::uint64_t>(version.value))
                        .append(", not 12"),
                    "run a Linux kernel of version 2.6.22 or later");
    }
    for (const auto& [which, what] :
         {std::pair{capability::user_memory, "KVM_CAP_USER_MEMORY"},
          std::pair{capability::immediate_exit, "KVM_CAP_IMMEDIATE_EXIT"}}) {
        if (count_of(which) == 0) {
            return fail(errc::unsupported, about("misses ").append(what),
                        "run a Linux kernel of version 4.11 or later");
        }
    }
    const os::call_result bytes = os::device_request(device_, os::kvm_abi::get_vcpu_map_size);
    if (!bytes.ok() || bytes.value < static_cast<long>(sizeof(os::kvm_abi::run_page))) {
        return fail(errc::unsupported, about("vCPU page too small"), "update the kernel",
                    bytes.os_error);
    }
    vcpu_map_bytes_ = static_cast<std::size_t>(bytes.value);
    capabilities_.available = true;
    capabilities_.api_version = static_cast<unsigned>(version.value);
    capabilities_.recommended_vcpus = count_of(capability::recommended_vcpus, 4);
    capabilities_.maximum_vcpus =
        count_of(capability::maximum_vcpus, capabilities_.recommended_vcpus);
    capabilities_.memory_slots = count_of(capability::memory_slots, 32);
    capabilities_.guest_address_bits = count_of(capability::arm_ipa_size);
    capabilities_.in_kernel_interrupts = count_of(capability::irqchip) != 0;
    capabilities_.irqfd = count_of(capability::irqfd) != 0;
    return {};
}

inline result<kvm_vm> kvm::create_vm(const kvm_vm_options& options) noexcept {
    if (!device_) return fail(errc::not_initialized, about("not open"), "call init() first");
    const int signal = options.kick_signal != 0 ? options.kick_signal : os::default_kick_signal();
    if (const result<> ready = os::prepare_kick(signal); !ready) return fail(ready);
    std::uintptr_t type = 0; // arm64: bits of guest addresses, 0 = 40; x86-64: the only type
    if constexpr (os::kvm_platform::architecture == os::kvm_architecture::arm64) {
        const unsigned most = capabilities_.guest_address_bits;
        type = options.address_bits;
        if (type == 0 && most != 0 && most < 40) type = most;
        if (type != 0 && (type < 32 || type > (most == 0 ? 40 : most))) {
            return fail(errc::out_of_range, about("guest address bits: ").append_number(type),
                        "choose 32 to hypervisor_capabilities::guest_address_bits");
        }
    }
    const os::call_result made = os::device_request(device_, os::kvm_abi::create_vm, type);
    if (!made.ok()) {
        return tl::unexpected<error>{vm_failure(path_.view(), made.os_error)};
    }
    os::descriptor descriptor{static_cast<int>(made.value)};
    if constexpr (os::kvm_platform::architecture == os::kvm_architecture::x86_64) {
        // Real mode on older Intel processors needs four pages of guest space
        // that nothing else uses: an identity map and a task state segment.
        std::uint64_t identity_map = 0xfffb'c000;
        const os::call_result mapped = os::device_request_with(
            descriptor, os::kvm_abi::set_identity_map_address, identity_map);
        const os::call_result placed =
            os::device_request(descriptor, os::kvm_abi::set_tss_address, 0xfffb'd000);
        if (!mapped.ok() || !placed.ok()) {
            return os::fail_with(mapped.ok() ? placed.os_error : mapped.os_error,
                                 about("pages at 0xfffbc000").view(), "see the kernel's log");
        }
    }
    return kvm_vm{std::move(descriptor), capabilities_, vcpu_map_bytes_, signal};
}

static_assert(hypervisor<kvm>);

} // namespace vm_accel::inline v0
