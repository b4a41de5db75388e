// The interrupt controller's state, taken from one machine and put back into
// another: every word, and in an order that KVM can take.
#include <vm_accel/hypervisor/kvm_arm64_state.hpp>

#include <catch2/catch.hpp>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <tuple>
#include <vector>

#if defined(__linux__) && defined(__aarch64__)
#include "guests.hpp"

#include <optional>
#include <span>
#include <utility>
#endif

using namespace vm_accel;
namespace gic = vm_accel::os::kvm_abi::gic_v3;

namespace {

/// Attributes as KVM keeps them, and the order of what was asked.
struct fake_vm {
    using key = std::tuple<bool, std::uint32_t, std::uint64_t>;
    std::map<key, std::uint64_t> words;
    std::vector<key> actions;
    std::vector<key> writes;

    static unsigned width(std::uint32_t group) {
        return group == gic::group_processor_registers || group == gic::group_its_registers ? 8 : 4;
    }
    result<> gic_request(bool its, std::uint32_t number,
                         os::kvm_abi::device_attribute& attribute) noexcept {
        const key at{its, attribute.group, attribute.attribute};
        if (attribute.group == gic::group_control) {
            actions.push_back(at);
            if (number == os::kvm_abi::set_device_attribute) writes.push_back(at);
            return {};
        }
        auto* const value = reinterpret_cast<std::byte*>(attribute.address);
        if (number == os::kvm_abi::get_device_attribute) {
            // A value of its own for each register.
            const std::uint64_t word =
                words.try_emplace(at, 0x0101'0000'0000 * words.size() + words.size() + 1)
                    .first->second;
            std::memcpy(value, &word, width(attribute.group));
        } else {
            std::uint64_t word = 0;
            std::memcpy(&word, value, width(attribute.group));
            words[at] = word;
            writes.push_back(at);
        }
        return {};
    }
};

constexpr std::array<std::uint64_t, 2> affinities{0x8000'0000, 0x8000'0001};

std::size_t position(const fake_vm& vm, bool its, std::uint32_t group, std::uint64_t attribute) {
    const auto found = std::ranges::find(vm.writes, fake_vm::key{its, group, attribute});
    REQUIRE(found != vm.writes.end());
    return static_cast<std::size_t>(found - vm.writes.begin());
}

} // namespace

TEST_CASE("the interrupt controller's words go from one machine to another", "[kvm][state]") {
    const bool its = GENERATE(false, true);
    const arm64::gic_plan plan{affinities, 64, its};
    fake_vm from;
    const result<arm64::gic_state> saved = arm64::save_gic(from, plan, its);
    REQUIRE(saved);
    // Messages and tables are in memory before anything is read.
    CHECK(from.actions.size() == (its ? 2 : 0));

    fake_vm into;
    REQUIRE(arm64::restore_gic(into, *saved));
    for (const auto& [at, word] : from.words) {
        const bool narrow = fake_vm::width(std::get<1>(at)) == 4;
        CHECK(into.words[at] == (narrow ? word & 0xffff'ffff : word));
    }
}

TEST_CASE("the order in which a controller is put back", "[kvm][state]") {
    const arm64::gic_plan plan{affinities, 64, true};
    fake_vm from;
    fake_vm into;
    REQUIRE(arm64::restore_gic(into, *arm64::save_gic(from, plan, true)));
    constexpr std::uint64_t second = std::uint64_t{1} << 32;
    const auto redistributor = [&](std::uint64_t offset) {
        return position(into, false, gic::group_redistributor_registers, second | offset);
    };
    const auto distributor = [&](std::uint64_t offset) {
        return position(into, false, gic::group_distributor_registers, offset);
    };
    const auto service = [&](std::uint64_t offset) {
        return position(into, true, gic::group_its_registers, offset);
    };
    CHECK(distributor(0x0) == 0);
    CHECK(redistributor(0x70) < redistributor(0x0));          // LPI tables before they are used
    CHECK(redistributor(0x1'0180) < redistributor(0x1'0100)); // cleared before set
    CHECK(distributor(0x184) < distributor(0x104));
    CHECK(distributor(0x384) < distributor(0x304));
    CHECK(service(0x80) < service(0x90)); // CBASER resets CREADR
    CHECK(service(0x90) < service(0x88));
    const std::size_t tables =
        position(into, true, gic::group_control, gic::control_its_restore_tables);
    CHECK(service(0x138) < tables);
    CHECK(tables < service(0x0)); // its enable comes last
    CHECK(service(0x0) + 1 == into.writes.size());
}

TEST_CASE("each priority that can preempt has its bit in the saved state", "[kvm][state]") {
    const auto [bits, words] =
        GENERATE(table<unsigned, std::size_t>({{4, 1}, {5, 1}, {6, 2}, {7, 4}, {8, 4}}));
    fake_vm vm;
    vm.words[{false, gic::group_processor_registers, 0xc664}] = (bits - 1) << 8 | 0x8003U;
    REQUIRE(arm64::gic_priority_bits(vm, 0x8000'0000) == bits);
    REQUIRE(arm64::save_gic(vm, arm64::gic_plan{affinities, 64, false, bits}, false));
    for (const std::uint64_t first : {0xc644U, 0xc648U}) { // AP0R0, AP1R0
        for (std::uint64_t n = 0; n < 4; ++n)
            CHECK(vm.words.contains({false, gic::group_processor_registers, first + n}) ==
                  (n < words));
    }
}

TEST_CASE("register numbers say how long a register is", "[kvm][state]") {
    CHECK(arm64::register_bytes(arm64::pc) == 8);
    CHECK(arm64::register_bytes(0x6040'0000'0010'0054) == 16); // a vector register
    CHECK(arm64::register_bytes(0x6020'0000'0011'0000) == 4);  // a cache's size
}

#if defined(__linux__) && defined(__aarch64__)

namespace {

/// A machine with one vCPU, RAM at 0 and a GIC.
struct small_machine {
    std::optional<kvm_vm> vm;
    std::vector<kvm_vcpu> vcpu;

    small_machine(kvm& backend, guests::ram& memory) {
        auto made = backend.create_vm();
        REQUIRE(made);
        vm.emplace(std::move(*made));
        REQUIRE(vm->add_memory(pa{0}, memory.data(), memory.size()));
        REQUIRE(vm->create_gic_v3(pa{0x0800'0000}, pa{0x080a'0000}, 1));
        auto processor = vm->create_vcpu(0);
        REQUIRE(processor);
        vcpu.push_back(std::move(*processor));
        REQUIRE(vm->finish_gic());
    }
    [[nodiscard]] arm64::vcpu_state save_processor() {
        auto saved = arm64::save_vcpu(vcpu[0]);
        REQUIRE(saved);
        return std::move(*saved);
    }
    [[nodiscard]] arm64::gic_state save_interrupts() {
        const auto mpidr = vcpu[0].get_register(arm64::mpidr_el1);
        REQUIRE(mpidr);
        const auto bits = arm64::gic_priority_bits(*vm, *mpidr);
        REQUIRE(bits);
        CHECK(*bits >= 5);
        auto saved =
            arm64::save_gic(*vm, arm64::gic_plan{std::array{*mpidr}, 256, false, *bits}, false);
        REQUIRE(saved);
        return std::move(*saved);
    }
};

/// Enables the virtual timer's interrupt (27), 33 (level) and 40 (edge), sets
/// the timer, and announces that with a store to the window. Then: a store of
/// the time to window + 8, and of each interrupt's number to window + 4.
constexpr std::uint32_t interrupted_guest[] = {
    0xd2a10001, // mov x1, #0x08000000: the distributor
    0xd2a10162, // mov x2, #0x080b0000: the redistributor's second frame
    0x52800243, // mov w3, #0x12
    0xb9000023, // str w3, [x1]: GICD_CTLR
    0x52a00043, // mov w3, #0x20000
    0xb90c0823, // str w3, [x1, #0xc08]: 40 is edge-triggered
    0x52802043, // mov w3, #0x102
    0xb9008423, // str w3, [x1, #0x84]: group 1
    0xb9010423, // str w3, [x1, #0x104]: enabled
    0x12800003, // mov w3, #-1
    0xb9008043, // str w3, [x2, #0x80]
    0x52a10003, // mov w3, #0x08000000
    0xb9010043, // str w3, [x2, #0x100]: the timer's
    0x52b00003, // mov w3, #0x80000000
    0xb9041843, // str w3, [x2, #0x418]: with less priority than the others
    0xd2801e03, // mov x3, #0xf0
    0xd5184603, // msr icc_pmr_el1, x3
    0xd2800023, // mov x3, #1
    0xd518cce3, // msr icc_igrpen1_el1, x3
    0xd5033fdf, // isb
    0xd53be044, // mrs x4, cntvct_el0
    0xd2a00803, // mov x3, #0x400000
    0x8b030084, // add x4, x4, x3
    0xd51be344, // msr cntv_cval_el0, x4
    0xd2800023, // mov x3, #1
    0xd51be323, // msr cntv_ctl_el0, x3
    0xb9000003, // str w3, [x0]: ready
    0xd53be043, // mrs x3, cntvct_el0
    0xf9000403, // str x3, [x0, #8]
    0xd503207f, // wait: wfi
    0xd538cc03, // mrs x3, icc_iar1_el1
    0x710ff07f, // cmp w3, #1020
    0x54ffffa2, // b.hs wait
    0xb9000403, // str w3, [x0, #4]
    0x71006c7f, // cmp w3, #27
    0x54000041, // b.ne done
    0xd51be33f, // msr cntv_ctl_el0, xzr
    0xd518cc23, // done: msr icc_eoir1_el1, x3
    0x17fffff7, // b wait
};

} // namespace

TEST_CASE("arm64: a machine goes on in another VM, its time and its interrupts too",
          "[hypervisor][kvm][state]") {
    auto backend = guests::kvm_model::open();
    if (!backend) return;
    guests::ram memory{0x1'0000};
    std::ranges::copy(std::as_bytes(std::span{interrupted_guest}), memory.data() + 0x4000);
    constexpr std::uint64_t late = std::uint64_t{1} << 40; // no new VM's time

    small_machine first{*backend, memory};
    REQUIRE(arm64::set_boot_registers(first.vcpu[0], pa{0x4000}, guests::window));
    REQUIRE(first.vcpu[0].set_register(arm64::timer_count, late));
    auto line = first.vm->irqfd(8);
    REQUIRE(line);
    guests::recording_bus bus;
    bus.on_write = [&](const guests::access_record&) {
        CHECK(first.vm->set_spi(1, true));
        CHECK(os::signal_event(*line));
        first.vcpu[0].request_exit();
    };
    const auto suspended = first.vcpu[0].run(bus);
    REQUIRE(suspended);
    REQUIRE(name_of(suspended->reason) == "interrupted");
    REQUIRE(bus.mmio.size() == 1);
    REQUIRE(first.vm->end_irqfd(8, std::move(*line))); // its edge is in the GIC
    const arm64::vcpu_state processor = first.save_processor();
    const arm64::gic_state interrupts = first.save_interrupts();

    small_machine second{*backend, memory};
    REQUIRE(arm64::restore_vcpu(second.vcpu[0], processor));
    REQUIRE(arm64::restore_gic(*second.vm, interrupts));

    SECTION("all that was put back is there") {
        const arm64::vcpu_state again = second.save_processor();
        REQUIRE(again.registers == processor.registers);
        CHECK(again.power_state == processor.power_state);
        std::size_t at = 0;
        for (const std::uint64_t id : processor.registers) {
            CAPTURE(id);
            const auto value = [&](const arm64::vcpu_state& of) {
                return std::vector(of.values.begin() + static_cast<std::ptrdiff_t>(at),
                                   of.values.begin() +
                                       static_cast<std::ptrdiff_t>(at + arm64::register_bytes(id)));
            };
            // Time goes on, and the timer may have rung since.
            if (id != arm64::timer_count && id != arm64::timer_control)
                CHECK(value(again) == value(processor));
            at += arm64::register_bytes(id);
        }
        const arm64::gic_state words = second.save_interrupts();
        REQUIRE(words.words.size() == interrupts.words.size());
        for (std::size_t i = 0; i < words.words.size(); ++i) {
            CAPTURE(i, words.words[i].group, words.words[i].attribute);
            // KVM adds its own cacheability to GICR_PROPBASER.
            if (words.words[i].attribute != 0x70)
                CHECK(words.words[i].value == interrupts.words[i].value);
        }
    }
    SECTION("the guest goes on where it was") {
        std::vector<std::uint64_t> taken;
        std::uint64_t time = 0;
        bus.on_write = [&](const guests::access_record& access) {
            if (access.address == raw(guests::window) + 8) {
                time = access.value;
            } else {
                taken.push_back(access.value);
                if (access.value == 33) CHECK(second.vm->set_spi(1, false));
            }
            if (time < late || access.value == 27) second.vcpu[0].request_exit();
        };
        REQUIRE(second.vcpu[0].run(bus));
        CHECK(time >= late);
        CHECK(taken == std::vector<std::uint64_t>{33, 40, 27});
    }
}

#endif
