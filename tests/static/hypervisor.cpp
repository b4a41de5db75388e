/// The hypervisor concepts: archetypes, one near miss per obligation, and the
/// models. KVM's numbers and structures against the kernel's own header.
#include <vm_accel/hypervisor/hvf.hpp>
#include <vm_accel/hypervisor/hypervisor.hpp>
#include <vm_accel/hypervisor/kvm.hpp>
#include <vm_accel/hypervisor/software.hpp>

#include <type_traits>

#if defined(__linux__) && __has_include(<linux/kvm.h>)
#include <linux/kvm.h>
#define KERNEL_HEADER 1
#else
#define KERNEL_HEADER 0
#endif

namespace {

using namespace vm_accel;

// ---- buses -------------------------------------------------------------------------------------
struct bus_archetype {
    void mmio_read(pa, std::span<std::byte>) noexcept;
    void mmio_write(pa, std::span<const std::byte>) noexcept;
};
struct port_archetype : bus_archetype {
    void io_read(std::uint16_t, std::span<std::byte>) noexcept;
    void io_write(std::uint16_t, std::span<const std::byte>) noexcept;
};
static_assert(mmio_bus<bus_archetype> && !port_bus<bus_archetype>);
static_assert(mmio_bus<port_archetype> && port_bus<port_archetype>);
static_assert(mmio_bus<empty_bus> && !port_bus<empty_bus>);

struct bus_read_throws : bus_archetype {
    void mmio_read(pa, std::span<std::byte>);
};
struct bus_write_throws : bus_archetype {
    void mmio_write(pa, std::span<const std::byte>);
};
struct bus_reads_device_addresses : bus_archetype {
    void mmio_read(iova, std::span<std::byte>) noexcept;
};
struct bus_write_changes_the_data : bus_archetype {
    void mmio_write(pa, std::span<std::byte>) noexcept;
};
struct bus_answers_errors : bus_archetype {
    bool mmio_read(pa, std::span<std::byte>) noexcept;
};
struct ports_throw : port_archetype {
    void io_read(std::uint16_t, std::span<std::byte>);
};
static_assert(!mmio_bus<bus_read_throws>);
static_assert(!mmio_bus<bus_write_throws>);
static_assert(!mmio_bus<bus_reads_device_addresses>);
static_assert(!mmio_bus<bus_write_changes_the_data>);
static_assert(!mmio_bus<bus_answers_errors>);
static_assert(!port_bus<ports_throw>);

// ---- vCPUs -------------------------------------------------------------------------------------
struct vcpu_archetype {
    template <mmio_bus Bus>
    result<vcpu_exit> run(Bus&) noexcept;
    void request_exit() noexcept;
    unsigned index() const noexcept;
};
static_assert(virtual_cpu<vcpu_archetype>);

struct vcpu_run_throws : vcpu_archetype {
    template <mmio_bus Bus>
    result<vcpu_exit> run(Bus&);
};
struct vcpu_run_hides_failure : vcpu_archetype {
    template <mmio_bus Bus>
    vcpu_exit run(Bus&) noexcept;
};
struct vcpu_request_may_fail : vcpu_archetype {
    bool request_exit() noexcept;
};
struct vcpu_request_throws : vcpu_archetype {
    void request_exit();
};
struct vcpu_index_changes_it : vcpu_archetype {
    unsigned index() noexcept;
};
struct vcpu_that_stays : vcpu_archetype {
    vcpu_that_stays(vcpu_that_stays&&) = delete;
};
static_assert(!virtual_cpu<vcpu_run_throws>);
static_assert(!virtual_cpu<vcpu_run_hides_failure>);
static_assert(!virtual_cpu<vcpu_request_may_fail>);
static_assert(!virtual_cpu<vcpu_request_throws>);
static_assert(!virtual_cpu<vcpu_index_changes_it>);
static_assert(!virtual_cpu<vcpu_that_stays>);

// ---- machines ----------------------------------------------------------------------------------
struct vm_archetype {
    using vcpu = vcpu_archetype;
    result<> add_memory(pa, std::byte*, std::uint64_t) noexcept;
    result<> remove_memory(pa) noexcept;
    result<vcpu> create_vcpu(unsigned) noexcept;
    result<> set_line(unsigned, bool) noexcept;
    result<> pulse_line(unsigned) noexcept;
};
static_assert(virtual_machine<vm_archetype>);

struct vm_without_vcpu_type {
    result<> add_memory(pa, std::byte*, std::uint64_t) noexcept;
    result<> remove_memory(pa) noexcept;
    result<vcpu_archetype> create_vcpu(unsigned) noexcept;
    result<> set_line(unsigned, bool) noexcept;
    result<> pulse_line(unsigned) noexcept;
};
struct vm_with_another_vcpu : vm_archetype {
    result<vcpu_that_stays*> create_vcpu(unsigned) noexcept;
};
struct vm_memory_cannot_fail : vm_archetype {
    void add_memory(pa, std::byte*, std::uint64_t) noexcept;
};
struct vm_memory_by_ipa : vm_archetype {
    result<> add_memory(ipa, std::byte*, std::uint64_t) noexcept;
};
struct vm_removal_throws : vm_archetype {
    result<> remove_memory(pa);
};
struct vm_lines_throw : vm_archetype {
    result<> set_line(unsigned, bool);
};
struct vm_pulse_says_nothing : vm_archetype {
    void pulse_line(unsigned) noexcept;
};
static_assert(!virtual_machine<vm_without_vcpu_type>);
static_assert(!virtual_machine<vm_with_another_vcpu>);
static_assert(!virtual_machine<vm_memory_cannot_fail>);
static_assert(!virtual_machine<vm_memory_by_ipa>);
static_assert(!virtual_machine<vm_removal_throws>);
static_assert(!virtual_machine<vm_lines_throw>);
static_assert(!virtual_machine<vm_pulse_says_nothing>);

// ---- backends ----------------------------------------------------------------------------------
struct backend_archetype {
    using role = roles::hypervisor;
    using vm = vm_archetype;
    static constexpr std::string_view name = "archetype";
    static hypervisor_capabilities detect() noexcept;
    result<> init() noexcept;
    bool is_initialized() const noexcept;
    result<vm> create_vm() noexcept;
};
static_assert(hypervisor<backend_archetype>);

struct backend_of_another_role : backend_archetype {
    using role = roles::memory;
};
struct backend_detect_may_fail : backend_archetype {
    static result<hypervisor_capabilities> detect() noexcept;
};
struct backend_detect_needs_an_object : backend_archetype {
    hypervisor_capabilities detect() noexcept;
};
struct backend_init_throws : backend_archetype {
    result<> init();
};
struct backend_state_changes : backend_archetype {
    bool is_initialized() noexcept;
};
struct backend_gives_another_vm : backend_archetype {
    result<vm_without_vcpu_type> create_vm() noexcept;
};
static_assert(!hypervisor<backend_of_another_role>);
static_assert(!hypervisor<backend_detect_may_fail>);
static_assert(!hypervisor<backend_detect_needs_an_object>);
static_assert(!hypervisor<backend_init_throws>);
static_assert(!hypervisor<backend_state_changes>);
static_assert(!hypervisor<backend_gives_another_vm>);

// ---- guest programs ----------------------------------------------------------------------------
struct program_archetype {
    template <class Port>
    exit_reason operator()(Port&) noexcept;
};
struct program_throws {
    template <class Port>
    exit_reason operator()(Port&);
};
struct program_gives_no_reason {
    template <class Port>
    void operator()(Port&) noexcept;
};
struct program_that_cannot_be_copied : program_archetype {
    program_that_cannot_be_copied(program_that_cannot_be_copied&&) = default;
};
static_assert(guest_program<program_archetype>);
static_assert(!guest_program<program_throws>);
static_assert(!guest_program<program_gives_no_reason>);
static_assert(!guest_program<program_that_cannot_be_copied>);

// ---- models ------------------------------------------------------------------------------------
static_assert(hypervisor<kvm>);
static_assert(hypervisor<software<program_archetype>>);
static_assert(!std::is_polymorphic_v<kvm> && !std::is_polymorphic_v<kvm_vm> &&
              !std::is_polymorphic_v<kvm_vcpu>);
// Two owners of one machine would close it twice.
static_assert(!std::is_copy_constructible_v<kvm_vm> && !std::is_copy_constructible_v<kvm_vcpu>);

static_assert(hypervisor<hvf>);
static_assert(!std::is_polymorphic_v<hvf> && !std::is_polymorphic_v<hvf_vm> &&
              !std::is_polymorphic_v<hvf_vcpu>);
static_assert(!std::is_copy_constructible_v<hvf_vm> && !std::is_copy_constructible_v<hvf_vcpu>);

// ---- Hypervisor.framework's interface, as its headers number it ---------------------------------
static_assert(static_cast<std::uint32_t>(os::hvf_abi::status::denied) == 0xfae9'4007);
static_assert(static_cast<std::uint32_t>(os::hvf_abi::status::unsupported) == 0xfae9'400f);
static_assert(hvf_arm64::x(30).number == 30 && hvf_arm64::pc.number == 31 &&
              hvf_arm64::cpsr.number == 34);
static_assert(hvf_arm64::sctlr_el1.number == 0xc080 && hvf_arm64::mpidr_el1.number == 0xc005);
static_assert(hvf_arm64::system_register(3, 0, 12, 0, 0).number == 0xc600); // VBAR_EL1
static_assert(hvf_arm64::system_register(3, 4, 4, 1, 0).number == 0xe208);  // SP_EL1
static_assert(hvf_x86_64::numbered(0).number == os::hvf_abi::x86_rax &&
              hvf_x86_64::numbered(3).number == os::hvf_abi::x86_rbx &&
              hvf_x86_64::numbered(4).number == os::hvf_abi::x86_rsp &&
              hvf_x86_64::numbered(7).number == os::hvf_abi::x86_rdi &&
              hvf_x86_64::numbered(15).number == 17);
// MRS X1, OSLSR_EL1 traps with this syndrome (Arm ARM, ISS of EC 0x18).
static_assert(hvf_arm64::trapped_register(2, 0, 1, 1, 4) == 0x28'0402);

// ---- KVM's interface ---------------------------------------------------------------------------
namespace abi = os::kvm_abi;

// Golden numbers, from the interface's documentation.
static_assert(abi::create_vm == 0xae01 && abi::run == 0xae80);
static_assert(abi::set_memory_region == 0x4020'ae46);
static_assert(abi::set_irq_line == 0x4008'ae61);
static_assert(abi::set_irqfd == 0x4020'ae76);
static_assert(abi::signal_message == 0x4020'aea5);
static_assert(abi::create_device == 0xc00c'aee0);
static_assert(abi::set_device_attribute == 0x4018'aee1);
static_assert(abi::set_one_register == 0x4010'aeac);
static_assert(abi::arm_init_vcpu == 0x4020'aeae);
static_assert(abi::arm_preferred_target == 0x8020'aeaf);
static_assert(abi::get_arm_events == 0x8040'ae9f && abi::set_arm_events == 0x4040'aea0);
// The kernel is C, where the flexible array adds nothing; read as C++, some
// versions of its header give these two a size of 12.
static_assert(abi::get_supported_cpuid == 0xc008'ae05);
static_assert(abi::set_x86_cpuid == 0x4008'ae90);
static_assert(abi::arm_irq_of_spi(33) == 0x0100'0021);
static_assert(abi::arm_irq_of_ppi(0x123, 27) == 0x1223'001b);
static_assert(arm64::x(0) == 0x6030'0000'0010'0000);
static_assert(arm64::x(30) == 0x6030'0000'0010'003c);
static_assert(arm64::sp == 0x6030'0000'0010'003e);
static_assert(arm64::pc == 0x6030'0000'0010'0040);
static_assert(arm64::pstate == 0x6030'0000'0010'0042);
static_assert(arm64::mpidr_el1 == 0x6030'0000'0013'c005);

#if KERNEL_HEADER
static_assert(abi::api_version == KVM_API_VERSION);
static_assert(abi::get_api_version == KVM_GET_API_VERSION);
static_assert(abi::create_vm == KVM_CREATE_VM);
static_assert(abi::check_extension == KVM_CHECK_EXTENSION);
static_assert(abi::get_vcpu_map_size == KVM_GET_VCPU_MMAP_SIZE);
static_assert(abi::create_vcpu == KVM_CREATE_VCPU);
static_assert(abi::set_memory_region == KVM_SET_USER_MEMORY_REGION);
static_assert(abi::create_irqchip == KVM_CREATE_IRQCHIP);
static_assert(abi::set_irq_line == KVM_IRQ_LINE);
static_assert(abi::set_irqfd == KVM_IRQFD);
static_assert(abi::create_device == KVM_CREATE_DEVICE);
static_assert(abi::set_device_attribute == KVM_SET_DEVICE_ATTR);
static_assert(abi::get_device_attribute == KVM_GET_DEVICE_ATTR);
static_assert(abi::run == KVM_RUN);
static_assert(abi::get_one_register == KVM_GET_ONE_REG);
static_assert(abi::set_one_register == KVM_SET_ONE_REG);
static_assert(abi::get_power_state == KVM_GET_MP_STATE);
static_assert(abi::set_power_state == KVM_SET_MP_STATE);
static_assert(abi::arm_init_vcpu >> 16 == (0x4000 | sizeof(abi::arm_vcpu_init)));

template <abi::capability Ours, long Theirs>
inline constexpr bool same = static_cast<long>(Ours) == Theirs;
static_assert(same<abi::capability::irqchip, KVM_CAP_IRQCHIP>);
static_assert(same<abi::capability::user_memory, KVM_CAP_USER_MEMORY>);
static_assert(same<abi::capability::extended_cpuid, KVM_CAP_EXT_CPUID>);
static_assert(same<abi::capability::set_tss_address, KVM_CAP_SET_TSS_ADDR>);
static_assert(same<abi::capability::recommended_vcpus, KVM_CAP_NR_VCPUS>);
static_assert(same<abi::capability::memory_slots, KVM_CAP_NR_MEMSLOTS>);
static_assert(same<abi::capability::irqfd, KVM_CAP_IRQFD>);
static_assert(same<abi::capability::ioeventfd, KVM_CAP_IOEVENTFD>);
static_assert(same<abi::capability::identity_map_address, KVM_CAP_SET_IDENTITY_MAP_ADDR>);
static_assert(same<abi::capability::maximum_vcpus, KVM_CAP_MAX_VCPUS>);
static_assert(same<abi::capability::one_register, KVM_CAP_ONE_REG>);
static_assert(same<abi::capability::signal_msi, KVM_CAP_SIGNAL_MSI>);
static_assert(same<abi::capability::msi_device_id, KVM_CAP_MSI_DEVID>);
static_assert(same<abi::capability::read_only_memory, KVM_CAP_READONLY_MEM>);
static_assert(same<abi::capability::device_control, KVM_CAP_DEVICE_CTRL>);
static_assert(same<abi::capability::arm_psci_0_2, KVM_CAP_ARM_PSCI_0_2>);
static_assert(same<abi::capability::immediate_exit, KVM_CAP_IMMEDIATE_EXIT>);
static_assert(same<abi::capability::arm_ipa_size, KVM_CAP_ARM_VM_IPA_SIZE>);

static_assert(static_cast<int>(abi::exit::io) == KVM_EXIT_IO);
static_assert(static_cast<int>(abi::exit::hlt) == KVM_EXIT_HLT);
static_assert(static_cast<int>(abi::exit::mmio) == KVM_EXIT_MMIO);
static_assert(static_cast<int>(abi::exit::shutdown) == KVM_EXIT_SHUTDOWN);
static_assert(static_cast<int>(abi::exit::fail_entry) == KVM_EXIT_FAIL_ENTRY);
static_assert(static_cast<int>(abi::exit::interrupted) == KVM_EXIT_INTR);
static_assert(static_cast<int>(abi::exit::internal_error) == KVM_EXIT_INTERNAL_ERROR);
static_assert(static_cast<int>(abi::exit::system_event) == KVM_EXIT_SYSTEM_EVENT);
static_assert(static_cast<int>(abi::exit::arm_no_syndrome) == KVM_EXIT_ARM_NISV);
static_assert(static_cast<int>(abi::system_event::shutdown) == KVM_SYSTEM_EVENT_SHUTDOWN);
static_assert(static_cast<int>(abi::system_event::reset) == KVM_SYSTEM_EVENT_RESET);
static_assert(static_cast<int>(abi::system_event::crash) == KVM_SYSTEM_EVENT_CRASH);

static_assert(sizeof(abi::memory_region) == sizeof(kvm_userspace_memory_region));
static_assert(offsetof(abi::memory_region, host_address) ==
              offsetof(kvm_userspace_memory_region, userspace_addr));
static_assert(sizeof(abi::irqfd) == sizeof(kvm_irqfd));
static_assert(sizeof(abi::message) == sizeof(kvm_msi));
static_assert(offsetof(abi::message, device_id) == offsetof(kvm_msi, devid));
static_assert(abi::signal_message == KVM_SIGNAL_MSI);
static_assert(abi::message_has_device_id == KVM_MSI_VALID_DEVID);
static_assert(abi::gic_its::device_type == KVM_DEV_TYPE_ARM_VGIC_ITS);
static_assert(sizeof(abi::device_attribute) == sizeof(kvm_device_attr));
static_assert(offsetof(abi::device_attribute, address) == offsetof(kvm_device_attr, addr));
static_assert(offsetof(abi::run_page, immediate_exit) == offsetof(kvm_run, immediate_exit));
static_assert(offsetof(abi::run_page, exit_reason) == offsetof(kvm_run, exit_reason));
static_assert(offsetof(abi::run_page, mmio) == offsetof(kvm_run, mmio));
static_assert(offsetof(abi::exit_mmio, length) ==
              offsetof(kvm_run, mmio.len) - offsetof(kvm_run, mmio));
static_assert(offsetof(abi::exit_mmio, is_write) ==
              offsetof(kvm_run, mmio.is_write) - offsetof(kvm_run, mmio));
static_assert(offsetof(abi::exit_io, data_offset) ==
              offsetof(kvm_run, io.data_offset) - offsetof(kvm_run, io));
static_assert(offsetof(abi::exit_system_event, data) ==
              offsetof(kvm_run, system_event.data) - offsetof(kvm_run, system_event));
static_assert(abi::gic_v3::device_type == KVM_DEV_TYPE_ARM_VGIC_V3);
#if defined(__x86_64__)
static_assert(abi::set_tss_address == KVM_SET_TSS_ADDR);
static_assert(abi::set_identity_map_address == KVM_SET_IDENTITY_MAP_ADDR);
static_assert(abi::get_x86_registers == KVM_GET_REGS);
static_assert(abi::set_x86_registers == KVM_SET_REGS);
static_assert(abi::get_x86_special_registers == KVM_GET_SREGS);
static_assert(abi::set_x86_special_registers == KVM_SET_SREGS);
static_assert(sizeof(abi::x86_registers) == sizeof(kvm_regs));
static_assert(offsetof(abi::x86_registers, rip) == offsetof(kvm_regs, rip));
static_assert(offsetof(abi::x86_registers, rdi) == offsetof(kvm_regs, rdi));
static_assert(sizeof(abi::x86_special_registers) == sizeof(kvm_sregs));
static_assert(offsetof(abi::x86_special_registers, tr) == offsetof(kvm_sregs, tr));
static_assert(offsetof(abi::x86_special_registers, cr3) == offsetof(kvm_sregs, cr3));
static_assert(offsetof(abi::x86_special_registers, efer) == offsetof(kvm_sregs, efer));
static_assert(sizeof(abi::x86_cpuid_entry) == sizeof(kvm_cpuid_entry2));
#elif defined(__aarch64__)
static_assert(abi::arm_init_vcpu == KVM_ARM_VCPU_INIT);
static_assert(abi::arm_preferred_target == KVM_ARM_PREFERRED_TARGET);
static_assert(sizeof(abi::arm_vcpu_init) == sizeof(kvm_vcpu_init));
static_assert(abi::gic_v3::group_address == KVM_DEV_ARM_VGIC_GRP_ADDR);
static_assert(abi::gic_v3::group_interrupt_count == KVM_DEV_ARM_VGIC_GRP_NR_IRQS);
static_assert(abi::gic_v3::group_control == KVM_DEV_ARM_VGIC_GRP_CTRL);
static_assert(abi::gic_v3::address_distributor == KVM_VGIC_V3_ADDR_TYPE_DIST);
static_assert(abi::gic_v3::address_redistributor_region == KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION);
static_assert(abi::gic_v3::control_init == KVM_DEV_ARM_VGIC_CTRL_INIT);
static_assert(abi::arm_feature_psci_0_2 == 1u << KVM_ARM_VCPU_PSCI_0_2);
static_assert(abi::arm_feature_power_off == 1u << KVM_ARM_VCPU_POWER_OFF);
static_assert(abi::arm_timer::group == KVM_ARM_VCPU_TIMER_CTRL);
static_assert(abi::arm_irq_of_spi(40) == (KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT | 40));
static_assert(arm64::core_register(0) == (KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE));
static_assert(arm64::pc == (KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE |
                            KVM_REG_ARM_CORE_REG(regs.pc)));
static_assert(arm64::pstate == (KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE |
                                KVM_REG_ARM_CORE_REG(regs.pstate)));
static_assert(arm64::mpidr_el1 == ARM64_SYS_REG(3, 0, 0, 0, 5));
static_assert(arm64::timer_count == KVM_REG_ARM_TIMER_CNT);
static_assert(arm64::timer_compare == KVM_REG_ARM_TIMER_CVAL);
#endif
#endif

} // namespace
