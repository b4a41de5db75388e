/// What KVM holds of an arm64 machine, taken out and put back: vCPU registers
/// (the virtual timer among them), GICv3 and ITS.
///
/// For suspend and resume, also into another process: make the VM, its vCPUs
/// and its GIC as before, give it the same RAM contents, then restore. No vCPU
/// runs meanwhile. Sources: the kernel's Documentation/virt/kvm/api.rst,
/// devices/arm-vgic-v3.rst, devices/arm-vgic-its.rst.
#pragma once

#include <vm_accel/hypervisor/kvm_arm64.hpp>
#include <vm_accel/hypervisor/kvm_vcpu.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace vm_accel::inline v0::arm64 {

/// One vCPU: KVM's register numbers, their bytes one after the other (the
/// number tells how many), whether PSCI has it running, and what it is owed.
struct vcpu_state {
    std::vector<std::uint64_t> registers;
    std::vector<std::byte> values;
    std::uint32_t power_state = 0;
    os::kvm_abi::arm_vcpu_events events{};
};

/// Bytes of a register, by its number.
[[nodiscard]] constexpr std::size_t register_bytes(std::uint64_t id) noexcept {
    return std::size_t{1} << (id >> 52 & 0xf);
}

/// Errors: exhausted, else what the kernel reports.
[[nodiscard]] inline result<vcpu_state> save_vcpu(kvm_vcpu& vcpu) {
    namespace abi = os::kvm_abi;
    vcpu_state out;
    // The count first, which the kernel puts in place of one that is too small.
    std::vector<std::uint64_t> list(1, 0);
    static_cast<void>(vcpu.ask(abi::get_register_list, list[0], "KVM_GET_REG_LIST"));
    list.resize(1 + static_cast<std::size_t>(list[0]));
    if (const result<> listed = vcpu.ask(abi::get_register_list, list[0], "KVM_GET_REG_LIST");
        !listed) {
        return fail(listed);
    }
    for (const std::uint64_t id : std::span{list}.subspan(1)) {
        const std::size_t at = out.values.size();
        out.values.resize(at + register_bytes(id));
        abi::one_register request{id, reinterpret_cast<std::uintptr_t>(out.values.data() + at)};
        if (!vcpu.ask(abi::get_one_register, request, "KVM_GET_ONE_REG")) {
            out.values.resize(at); // listed, but not on this processor
            continue;
        }
        out.registers.push_back(id);
    }
    if (const result<> asked = vcpu.ask(abi::get_power_state, out.power_state, "KVM_GET_MP_STATE");
        !asked) {
        return fail(asked);
    }
    if (const result<> asked = vcpu.ask(abi::get_arm_events, out.events, "KVM_GET_VCPU_EVENTS");
        !asked) {
        return fail(asked);
    }
    return out;
}

/// Error: mismatch (the state is cut off), else what the kernel reports of the
/// first register that it does not take: the processors differ.
[[nodiscard]] inline result<> restore_vcpu(kvm_vcpu& vcpu, const vcpu_state& state) {
    namespace abi = os::kvm_abi;
    std::size_t at = 0;
    for (const std::uint64_t id : state.registers) {
        const std::size_t bytes = register_bytes(id);
        if (bytes > state.values.size() - at) {
            return fail(errc::mismatch, "vCPU state: fewer values than registers",
                        "restore what save_vcpu() gave, whole");
        }
        abi::one_register request{id, reinterpret_cast<std::uintptr_t>(state.values.data() + at)};
        const auto name = fixed_text<64>{"register "}.append_number(id, 16);
        if (const result<> set = vcpu.ask(abi::set_one_register, request, name.view()); !set) {
            return set;
        }
        at += bytes;
    }
    abi::arm_vcpu_events events = state.events;
    if (const result<> set = vcpu.ask(abi::set_arm_events, events, "KVM_SET_VCPU_EVENTS"); !set) {
        return set;
    }
    std::uint32_t power_state = state.power_state;
    return vcpu.ask(abi::set_power_state, power_state, "KVM_SET_MP_STATE");
}

/// Which in-kernel device a word of the interrupt controller belongs to.
enum class gic_part : std::uint32_t { gic, its };

/// One register of the interrupt controller, or one action, as KVM names it.
struct gic_word {
    gic_part part = gic_part::gic;
    std::uint32_t group = 0;
    std::uint64_t attribute = 0;
    std::uint64_t value = 0;
};

/// The interrupt controller: words in the order in which they are put back.
struct gic_state {
    std::vector<gic_word> words;
};

/// The order of GIC and ITS registers that a restore needs.
///
/// Distributor control before anything that depends on it; LPI tables before
/// the redistributors are enabled; what is set bit by bit is cleared first; the
/// ITS last, its tables after their addresses, its enable after all.
class gic_plan {
public:
    enum class kind : std::uint8_t {
        word32,  ///< read when saving, written when restoring
        word64,  ///< the same
        clear32, ///< all ones, only when restoring
        action,  ///< only when restoring, no value
    };
    struct step {
        kind what = kind::word32;
        gic_part part = gic_part::gic;
        std::uint32_t group = 0;
        std::uint64_t attribute = 0;
    };

    /// `affinities`: MPIDR of each vCPU. `interrupts`: gic_v3_layout::interrupts.
    /// `priority_bits`: what gic_priority_bits() says.
    gic_plan(std::span<const std::uint64_t> affinities, unsigned interrupts, bool with_its,
             unsigned priority_bits = 5) {
        distributor(0x0);
        for (const std::uint64_t mpidr : affinities)
            redistributor(packed(mpidr));
        for (unsigned first = first_spi; first < interrupts; first += 32)
            shared(first);
        for (const std::uint64_t mpidr : affinities)
            processor_interface(packed(mpidr), priority_bits);
        if (with_its) translation_service();
    }
    [[nodiscard]] std::span<const step> steps() const noexcept { return steps_; }

    /// ICC_CTLR_EL1 of the vCPU with that MPIDR, as group_processor_registers has it.
    [[nodiscard]] static constexpr std::uint64_t interface_control(std::uint64_t mpidr) noexcept {
        return packed(mpidr) | icc(12, 12, 4);
    }

private:
    using abi_group = std::uint32_t;

    /// Aff3 to Aff0 as the upper half of an attribute.
    [[nodiscard]] static constexpr std::uint64_t packed(std::uint64_t mpidr) noexcept {
        return ((mpidr >> 32 & 0xff) << 24 | (mpidr & 0xff'ffff)) << 32;
    }
    void add(kind what, abi_group group, std::uint64_t attribute, gic_part part = gic_part::gic) {
        steps_.push_back({what, part, group, attribute});
    }
    void distributor(std::uint64_t offset) {
        add(kind::word32, os::kvm_abi::gic_v3::group_distributor_registers, offset);
    }
    /// A pair of registers that set and clear the same bits.
    void bits(abi_group group, std::uint64_t set, std::uint64_t clear) {
        add(kind::clear32, group, clear);
        add(kind::word32, group, set);
    }

    void redistributor(std::uint64_t affinity) {
        namespace gic = os::kvm_abi::gic_v3;
        constexpr abi_group group = gic::group_redistributor_registers;
        constexpr std::uint64_t sgi_frame = 0x1'0000;
        for (const std::uint64_t offset : {0x70U, 0x74U, 0x78U, 0x7cU, 0x0U, 0x14U})
            add(kind::word32, group, affinity | offset);
        add(kind::word32, group, affinity | sgi_frame | 0x80);
        bits(group, affinity | sgi_frame | 0x100, affinity | sgi_frame | 0x180);
        add(kind::word32, group, affinity | sgi_frame | 0xc04);
        add(kind::word32, gic::group_level_info, affinity);
        bits(group, affinity | sgi_frame | 0x200, affinity | sgi_frame | 0x280);
        bits(group, affinity | sgi_frame | 0x300, affinity | sgi_frame | 0x380);
        for (std::uint64_t four = 0; four < 32; four += 4)
            add(kind::word32, group, affinity | sgi_frame | (0x400 + four));
    }
    /// Thirty-two shared interrupts from `first`.
    void shared(unsigned first) {
        namespace gic = os::kvm_abi::gic_v3;
        constexpr abi_group group = gic::group_distributor_registers;
        const std::uint64_t word = std::uint64_t{first} / 32 * 4;
        distributor(0x80 + word);
        bits(group, 0x100 + word, 0x180 + word);
        distributor(0xc00 + word * 2);
        distributor(0xc00 + word * 2 + 4);
        for (std::uint64_t four = 0; four < 32; four += 4)
            distributor(0x400 + first + four);
        for (std::uint64_t i = 0; i < 32; ++i) {
            distributor(0x6000 + (first + i) * 8);
            distributor(0x6000 + (first + i) * 8 + 4);
        }
        add(kind::word32, gic::group_level_info, first);
        bits(group, 0x200 + word, 0x280 + word);
        bits(group, 0x300 + word, 0x380 + word);
    }
    [[nodiscard]] static constexpr std::uint64_t icc(unsigned crn, unsigned crm,
                                                     unsigned op2) noexcept {
        return 3U << 14 | crn << 7 | crm << 3 | op2;
    }
    void processor_interface(std::uint64_t affinity, unsigned priority_bits) {
        constexpr abi_group group = os::kvm_abi::gic_v3::group_processor_registers;
        // SRE, CTLR, IGRPEN0, IGRPEN1, PMR, BPR0, BPR1.
        for (const std::uint64_t reg :
             {icc(12, 12, 5), icc(12, 12, 4), icc(12, 12, 6), icc(12, 12, 7), icc(4, 6, 0),
              icc(12, 8, 3), icc(12, 12, 3)})
            add(kind::word64, group, affinity | reg);
        // AP0Rn, AP1Rn: a bit for each priority that can preempt.
        const unsigned words = priority_bits > 5 ? 1U << (priority_bits - 5) : 1U;
        for (unsigned n = 0; n < words && n < 4; ++n) {
            add(kind::word64, group, affinity | icc(12, 8, 4 + n));
            add(kind::word64, group, affinity | icc(12, 9, n));
        }
    }
    void translation_service() {
        namespace gic = os::kvm_abi::gic_v3;
        const auto word = [this](std::uint64_t offset) {
            add(kind::word64, gic::group_its_registers, offset, gic_part::its);
        };
        // CBASER resets CREADR, and so comes before it; then CWRITER, BASER0 to 7.
        for (const std::uint64_t offset : {0x80U, 0x90U, 0x88U})
            word(offset);
        for (std::uint64_t table = 0; table < 8; ++table)
            word(0x100 + table * 8);
        add(kind::action, gic::group_control, gic::control_its_restore_tables, gic_part::its);
        word(0x0);
    }

    std::vector<step> steps_;
};

/// How many bits a priority has in the machine of the vCPU with that MPIDR: 5 to 7.
/// `Vm` is kvm_vm.
template <class Vm>
[[nodiscard]] result<unsigned> gic_priority_bits(Vm& vm, std::uint64_t mpidr) {
    std::uint64_t control = 0;
    os::kvm_abi::device_attribute request{0, os::kvm_abi::gic_v3::group_processor_registers,
                                          gic_plan::interface_control(mpidr),
                                          reinterpret_cast<std::uintptr_t>(&control)};
    if (const result<> read = vm.gic_request(false, os::kvm_abi::get_device_attribute, request);
        !read) {
        return fail(read);
    }
    return static_cast<unsigned>(control >> 8 & 7) + 1; // ICC_CTLR_EL1.PRIbits
}

/// Takes the interrupt controller's state; pending LPIs and the ITS's tables go
/// to guest memory, so save that afterwards. `Vm` is kvm_vm.
template <class Vm>
[[nodiscard]] result<gic_state> save_gic(Vm& vm, const gic_plan& plan, bool with_its) {
    namespace gic = os::kvm_abi::gic_v3;
    const auto act = [&vm](gic_part part, std::uint64_t action) {
        os::kvm_abi::device_attribute request{0, gic::group_control, action, 0};
        return vm.gic_request(part == gic_part::its, os::kvm_abi::set_device_attribute, request);
    };
    if (with_its) {
        if (const result<> done = act(gic_part::gic, gic::control_save_pending_tables); !done)
            return fail(done);
        if (const result<> done = act(gic_part::its, gic::control_its_save_tables); !done)
            return fail(done);
    }
    gic_state out;
    for (const gic_plan::step& step : plan.steps()) {
        gic_word word{step.part, step.group, step.attribute, ~std::uint64_t{0}};
        if (step.what == gic_plan::kind::word32 || step.what == gic_plan::kind::word64) {
            word.value = 0; // KVM fills four bytes or eight; both are little-endian
            os::kvm_abi::device_attribute request{0, step.group, step.attribute,
                                                  reinterpret_cast<std::uintptr_t>(&word.value)};
            if (const result<> read = vm.gic_request(step.part == gic_part::its,
                                                     os::kvm_abi::get_device_attribute, request);
                !read) {
                return fail(read);
            }
        }
        out.words.push_back(word);
    }
    return out;
}

/// Puts it back into a controller that was made the same way. After the vCPUs'
/// registers and guest memory.
template <class Vm>
[[nodiscard]] result<> restore_gic(Vm& vm, const gic_state& state) {
    for (const gic_word& word : state.words) {
        const std::uint64_t value = word.value;
        os::kvm_abi::device_attribute request{0, word.group, word.attribute,
                                              reinterpret_cast<std::uintptr_t>(&value)};
        if (const result<> done = vm.gic_request(word.part == gic_part::its,
                                                 os::kvm_abi::set_device_attribute, request);
            !done) {
            return done;
        }
    }
    return {};
}

} // namespace vm_accel::inline v0::arm64
