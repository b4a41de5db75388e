/// What is particular to the backend for Windows, on a model of its platform; and what
/// it says on this machine, where the platform is missing.
#include "guests.hpp"

#include <catch2/catch.hpp>

#include <bit>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#if defined(_WIN32)
#include <windows.h>

#include <winhvplatform.h>
#endif

using namespace vm_accel;
using namespace guests;
namespace abi = os::whpx_abi;
using abi::reg;

namespace {

constexpr std::uint64_t code_at = 0x4000;

/// A VM with 64 KiB of RAM and one vCPU that starts at some code in 64-bit mode.
struct fixture {
    ram memory{0x1'0000};
    whpx_model::backend backend;
    std::optional<whpx_model::backend::vm> vm;
    std::optional<whpx_model::backend::vm::vcpu> vcpu;
    recording_bus bus;

    explicit fixture(const whpx_vm_options& options = {}) : backend(*whpx_model::open()) {
        auto made = backend.create_vm(options);
        REQUIRE(made);
        vm.emplace(std::move(*made));
        REQUIRE(vm->add_memory(pa{0}, memory.data(), memory.size()));
        auto cpu = vm->create_vcpu(0);
        REQUIRE(cpu);
        vcpu.emplace(std::move(*cpu));
    }
    void start(const std::vector<std::uint8_t>& code) {
        std::ranges::copy(std::as_bytes(std::span{code}), memory.data() + code_at);
        REQUIRE(whpx_x86_64::enter_long_mode(*vcpu, pa{0x1000}, code_at, 0x3ff0, raw(window)));
    }
    vcpu_exit run() {
        const auto ended = vcpu->run(bus);
        REQUIRE(ended);
        return *ended;
    }
    vcpu_exit run(const std::vector<std::uint8_t>& code) {
        start(code);
        return run();
    }
    whpx_platform::processor& cpu() { return *whpx_platform::last_partition().processors.at(0); }
    std::uint64_t operator[](reg which) { return *vcpu->get_register(which); }
};

} // namespace

TEST_CASE("whpx: where the platform is missing, it says so and what to do") {
    whpx backend;
    const result<> refused = backend.init();
    if (refused) {
        std::cout << "this machine has WHPX\n";
        return;
    }
    const hypervisor_capabilities here = whpx::detect();
    CHECK_FALSE(here.available);
    CHECK(here.why_not == refused.error().code);
    CHECK_FALSE(backend.is_initialized());
    CHECK_FALSE(refused.error().cure.empty());
    if constexpr (os::whpx_calls::present) {
        CHECK(refused.error() == errc::not_found);
        CHECK(refused.error().cause.view() == "WHPX: WinHvPlatform.dll is not there");
        CHECK(refused.error().cure.view().find("Windows Hypervisor Platform") !=
              std::string_view::npos);
    } else {
        CHECK(refused.error() == errc::unsupported);
    }
    CHECK(backend.create_vm().error() == errc::not_initialized);
}

TEST_CASE("whpx: a platform that is not ready is an error with its cure") {
    using backend = whpx_platform::backend;
    whpx_platform::start_afresh();
    SECTION("no hypervisor runs") {
        whpx_platform::the_world().hypervisor_present = 0;
        const auto opened = backend::open();
        REQUIRE_FALSE(opened);
        CHECK(opened.error() == errc::not_found);
        CHECK(opened.error().cure.view().find("hypervisorlaunchtype") != std::string_view::npos);
    }
    SECTION("taken into use once") {
        backend b;
        REQUIRE(b.init());
        CHECK(b.init().error() == errc::already_initialized);
        CHECK(b.capabilities().in_kernel_interrupts);
        CHECK(b.capabilities().maximum_vcpus == 64);
    }
    SECTION("no local APICs") {
        whpx_platform::the_world().features = 0;
        auto opened = backend::open();
        REQUIRE(opened);
        CHECK_FALSE(opened->capabilities().in_kernel_interrupts);
        CHECK(opened->create_vm({.local_apic = true}).error() == errc::unsupported);
        // Of a mode that this version does not know nothing is said.
        whpx_platform::the_world().refused.insert(abi::property::local_apic_mode);
        CHECK(opened->create_vm());
    }
    SECTION("partitions") {
        auto opened = backend::open();
        REQUIRE(opened);
        CHECK(opened->create_vm({.processors = 65}).error() == errc::out_of_range);
        whpx_platform::the_world().create_gives = abi::status_of(0x8007'0005);
        const auto denied = opened->create_vm();
        REQUIRE_FALSE(denied);
        CHECK(denied.error() == errc::permission_denied);
        CHECK(denied.error().cure.view().find("Hyper-V Administrators") != std::string_view::npos);
        whpx_platform::the_world().create_gives = abi::status::success;
        whpx_platform::the_world().setup_gives = abi::status_of(0x8037'0304);
        CHECK(opened->create_vm().error() == errc::invalid_argument);
        // What was made half-way is deleted.
        CHECK(whpx_platform::the_world().partitions.back() == nullptr);
    }
}

TEST_CASE("whpx: refusals have their kinds, and none is without a cure") {
    struct row {
        std::uint32_t number;
        errc code;
    };
    for (const row& r :
         {row{0x8007'0005, errc::permission_denied}, row{0x8007'000e, errc::exhausted},
          row{0x8007'0057, errc::invalid_argument}, row{0x8007'007f, errc::unsupported},
          row{0x8037'0300, errc::unsupported}, row{0x8037'0302, errc::unsupported},
          row{0x8037'0303, errc::unsupported}, row{0x8037'0304, errc::invalid_argument},
          row{0x8037'0305, errc::not_found}, row{0x8037'0306, errc::already_exists},
          row{0x8037'0307, errc::not_found}, row{0x8037'0308, errc::busy},
          row{0x8000'ffff, errc::system_failure}}) {
        const error e = whpx_failure(abi::status_of(r.number), "what", "cure").value();
        CAPTURE(r.number);
        CHECK(name_of(e.code) == name_of(r.code));
        CHECK(static_cast<std::uint32_t>(e.os_error) == r.number);
        CHECK(e.cause.view().starts_with("what: "));
        CHECK_FALSE(e.cure.empty());
    }
}

TEST_CASE("whpx: settings that Windows does not know fail no VM, and are told") {
    auto backend = whpx_model::open();
    REQUIRE(backend);
    whpx_platform::the_world().refused.insert(abi::property::cpu_cap);
    auto vm = backend->create_vm(
        {.processors = 3, .primary_node = 1, .cpu_weight = 200, .cpu_cap = 0x8000});
    REQUIRE(vm);
    REQUIRE(vm->settings().size() == 3);
    CHECK(vm->settings()[0].name == "primary NUMA node");
    CHECK(vm->settings()[0].value == 1);
    CHECK_FALSE(vm->settings()[0].refused);
    CHECK_FALSE(vm->settings()[1].refused);
    REQUIRE(vm->settings()[2].refused);
    CHECK(*vm->settings()[2].refused == errc::unsupported);
    auto& made = whpx_platform::last_partition();
    CHECK(made.properties.at(abi::property::primary_numa_node) == 1);
    CHECK(made.properties.at(abi::property::cpu_weight) == 200);
    CHECK(made.properties.at(abi::property::processor_count) == 3);

    const auto placed = vm->create_vcpu(2, std::uint16_t{1});
    REQUIRE(placed);
    CHECK(made.processors.at(2)->node == std::uint16_t{1});
    whpx_platform::the_world().has_vcpu_properties = false;
    CHECK(vm->create_vcpu(1, std::uint16_t{0}).error() == errc::unsupported);
    CHECK(vm->create_vcpu(1)); // the index is still free
    CHECK(vm->create_vcpu(3).error() == errc::out_of_range);
}

TEST_CASE("whpx: MMIO of every size and kind, with and without the instruction's bytes") {
    struct row {
        const char* what;
        std::vector<std::uint8_t> code; ///< RDI = window; ends with HLT
        std::vector<access_record> mmio;
        std::uint64_t rax; ///< afterwards; it starts as all ones
    };
    constexpr std::uint64_t w = 0xd000'0000;
    constexpr std::uint64_t ones = ~std::uint64_t{0};
    const row rows[] = {
        {"mov (%rdi),%al", {0x8a, 0x07, 0xf4}, {{false, w, 1, 0x00}}, 0xffff'ffff'ffff'ff00},
        {"mov (%rdi),%ax",
         {0x66, 0x8b, 0x07, 0xf4},
         {{false, w, 2, 0x7700}},
         0xffff'ffff'ffff'7700},
        {"mov (%rdi),%eax", {0x8b, 0x07, 0xf4}, {{false, w, 4, 0x5566'7700}}, 0x5566'7700},
        {"mov (%rdi),%rax",
         {0x48, 0x8b, 0x07, 0xf4},
         {{false, w, 8, 0x1122'3344'5566'7700}},
         0x1122'3344'5566'7700},
        {"movzbl 1(%rdi),%eax", {0x0f, 0xb6, 0x47, 0x01, 0xf4}, {{false, w + 1, 1, 0x01}}, 0x01},
        {"mov %al,4(%rdi)", {0x88, 0x47, 0x04, 0xf4}, {{true, w + 4, 1, 0xff}}, ones},
        {"mov %rax,8(%rdi)", {0x48, 0x89, 0x47, 0x08, 0xf4}, {{true, w + 8, 8, ones}}, ones},
        {"movl $0x12345678,(%rdi)",
         {0xc7, 0x07, 0x78, 0x56, 0x34, 0x12, 0xf4},
         {{true, w, 4, 0x1234'5678}},
         ones},
    };
    for (const unsigned told : {16u, 0u, 1u}) {
        for (const row& r : rows) {
            CAPTURE(r.what, told);
            fixture f;
            whpx_platform::the_world().instruction_bytes = told;
            f.start(r.code);
            REQUIRE(f.vcpu->set_register(reg::rax, ones));
            CHECK(name_of(f.run().reason) == "halted");
            CHECK(f.bus.mmio == r.mmio);
            CHECK(f[reg::rax] == r.rax);
            CHECK(f[reg::rip] == code_at + r.code.size());
        }
    }
}

TEST_CASE("whpx: ports, of a bus that has them and of one that has none") {
    fixture f;
    f.start({0xe4, 0x10, 0xe7, 0x20, 0xe5, 0x30, 0xf4}); // in al; out eax; in eax
    REQUIRE(f.vcpu->set_register(reg::rax, 0xaabb'ccdd'1122'3344));
    CHECK(name_of(f.run().reason) == "halted");
    const std::vector<access_record> expected{
        {false, 0x10, 1, 0x10}, {true, 0x20, 4, 0x1122'3310}, {false, 0x30, 4, 0x5566'7730}};
    CHECK(f.bus.ports == expected);
    CHECK(f[reg::rax] == 0x5566'7730);

    empty_bus none;
    f.start({0xe4, 0x10, 0xe6, 0x20, 0xf4});
    REQUIRE(f.vcpu->run(none));
    CHECK((f[reg::rax] & 0xff) == 0xff);
}

TEST_CASE("whpx: exits that the VMM must decide") {
    struct row {
        const char* what;
        abi::exit reason;
        std::uint32_t info;
        exit_reason ended;
        std::uint64_t code;
    };
    const row rows[] = {
        {"triple fault", abi::exit::unrecoverable_exception, 0, exit_reason::shutdown, 4},
        {"bad register", abi::exit::invalid_register, 0, exit_reason::entry_failed, 5},
        {"halt", abi::exit::halt, 0, exit_reason::halted, 0},
        {"MSR exits were not asked for", abi::exit{0x1000}, 0, exit_reason::unknown, 0x1000},
        {"a string of ports", abi::exit::io_port, 2 | 0x10, exit_reason::not_emulated, 0x12},
        {"a repeated port", abi::exit::io_port, 2 | 0x20, exit_reason::not_emulated, 0x22},
        {"a port access of no size", abi::exit::io_port, 0, exit_reason::not_emulated, 0},
        {"execution from a device", abi::exit::memory_access, 2 | 4, exit_reason::not_emulated, 6},
        {"an instruction that is no MOV", abi::exit::memory_access, 4, exit_reason::not_emulated,
         4},
    };
    for (const row& r : rows) {
        CAPTURE(r.what);
        fixture f;
        f.start({0x01, 0x07}); // add %eax,(%rdi)
        abi::exit_context exit;
        exit.reason = r.reason;
        exit.vp.rip = code_at;
        exit.vp.cs = abi::segment{0, 0, 8, 0xa09b};
        exit.vp.execution_state = 1 << 4;
        exit.vp.length_and_cr8 = 2;
        if (r.reason == abi::exit::io_port) {
            exit.io = {};
            exit.io.info = r.info;
        } else if (r.reason == abi::exit::memory_access) {
            exit.memory = {};
            exit.memory.info = r.info;
            exit.memory.physical = raw(window);
        }
        whpx_platform::the_world().next_exit = exit;
        const vcpu_exit ended = f.run();
        CHECK(name_of(ended.reason) == name_of(r.ended));
        CHECK(ended.code == r.code);
        if (r.reason == abi::exit::memory_access) CHECK(ended.address == raw(window));
        CHECK(f.bus.mmio.empty());
        CHECK(f.bus.ports.empty());
    }
}

TEST_CASE("whpx: real mode wraps at 64 KiB and decodes 16-bit instructions") {
    fixture f;
    whpx_platform::the_world().instruction_bytes = 0;
    REQUIRE(whpx_x86_64::enter_real_mode(*f.vcpu, 0x400, 0));
    CHECK(abi::segment_of(f.cpu().at(reg::cs)).base == 0x4000);
    CHECK((f[reg::cr0] & 1) == 0);
    const std::uint8_t code[] = {0x89, 0x07}; // mov %ax,(%bx)
    std::memcpy(f.memory.data() + 0x4000, code, sizeof code);
    abi::exit_context exit;
    exit.reason = abi::exit::memory_access;
    exit.memory = {};
    exit.memory.info = 1 | 4;
    exit.memory.physical = raw(window);
    exit.vp.cs = abi::segment_of(f.cpu().at(reg::cs));
    whpx_platform::the_world().next_exit = exit;
    f.memory.put<std::uint8_t>(2, 0xf4); // the model executes at RIP without segments
    REQUIRE(f.vcpu->set_register(reg::rax, 0xbeef));
    CHECK(name_of(f.run().reason) == "halted");
    CHECK(f.bus.mmio == std::vector<access_record>{{true, raw(window), 2, 0xbeef}});
}

TEST_CASE("whpx: memory that is only read gives its writes to the bus; writes are tracked") {
    fixture f;
    ram rom{0x1000};
    ram tracked{0x3000};
    rom.put<std::uint32_t>(0, 0x600d);
    REQUIRE(f.vm->add_memory(pa{0x2'0000}, rom.data(), rom.size(), {.writable = false}));
    REQUIRE(f.vm->add_memory(pa{0x3'0000}, tracked.data(), tracked.size(), {.track_dirty = true}));
    // mov (%rsi),%eax; mov %eax,4(%rsi); mov %eax,(%rdx); hlt
    f.start({0x8b, 0x06, 0x89, 0x46, 0x04, 0x89, 0x02, 0xf4});
    REQUIRE(f.vcpu->set_register(abi::general(6), 0x2'0000));
    REQUIRE(f.vcpu->set_register(reg::rdx, 0x3'2000));
    CHECK(name_of(f.run().reason) == "halted");
    CHECK(f.bus.mmio == std::vector<access_record>{{true, 0x2'0004, 4, 0x600d}});
    CHECK(rom.at<std::uint32_t>(4) == 0);
    std::uint64_t bitmap[1] = {~std::uint64_t{0}};
    REQUIRE(f.vm->take_dirty(pa{0x3'0000}, bitmap));
    CHECK(bitmap[0] == 4);
    REQUIRE(f.vm->take_dirty(pa{0x3'0000}, bitmap));
    CHECK(bitmap[0] == 0);
    CHECK(f.vm->take_dirty(pa{0x3'0000}, {}).error() == errc::invalid_argument);
    CHECK(f.vm->take_dirty(pa{0}, bitmap).error() == errc::invalid_argument);
    CHECK(f.vm->take_dirty(pa{0x3'1000}, bitmap).error() == errc::not_found);
}

TEST_CASE("whpx: an interrupt waits until the guest takes them, and ends a HLT") {
    fixture f;
    f.start({0xb8, 1, 0, 0, 0, 0xfb, 0x89, 0x07, 0xb8, 2, 0, 0, 0, 0xf4}); // ... sti; mov; mov; hlt
    REQUIRE(f.vcpu->inject_interrupt(0x40));
    CHECK(f.cpu().delivered.empty());
    CHECK(name_of(f.run().reason) == "halted");
    CHECK(f.cpu().delivered == std::vector<unsigned>{0x40});
    // The MMIO write in the shadow of STI ended the shadow.
    CHECK(f[reg::interrupt_state] == 0);
    CHECK(f[reg::deliverability_notifications] == 0);

    // Interrupts are on: the next one is put in before the guest is entered.
    REQUIRE(f.vcpu->inject_interrupt(0x41));
    f.memory.put<std::uint16_t>(code_at + 14, 0xf4f4);
    CHECK(name_of(f.run().reason) == "halted");
    CHECK(f.cpu().delivered == std::vector<unsigned>{0x40, 0x41});

    CHECK(f.vcpu->inject_interrupt(15).error() == errc::invalid_argument);
    CHECK(f.vcpu->inject_interrupt(256).error() == errc::invalid_argument);
    CHECK(f.vm->route_line(0, {0x30, 0, false}).error() == errc::unsupported);
    CHECK(f.vm->signal_msi(pa{0xfee0'0000}, 0x30).error() == errc::unsupported);
}

TEST_CASE("whpx: lines and messages reach the local APICs") {
    fixture f{{.processors = 2, .local_apic = true}};
    auto& sent = whpx_platform::last_partition().interrupts;
    CHECK(f.vm->set_line(4, true).error() == errc::out_of_range); // it leads nowhere
    CHECK(f.vm->route_line(4, {15, 0, false}).error() == errc::invalid_argument);
    CHECK(f.vm->route_line(24, {0x30, 0, false}).error() == errc::out_of_range);
    REQUIRE(f.vm->route_line(4, {0x34, 1, false}));
    REQUIRE(f.vm->route_line(5, {0x35, 0, true}));
    REQUIRE(f.vm->pulse_line(4));
    REQUIRE(sent.size() == 1);
    CHECK(sent[0].kind == 0);
    CHECK(sent[0].destination == 1);
    CHECK(sent[0].vector == 0x34);

    // A level line is sent once as it rises, and again after each EOI while it is high.
    REQUIRE(f.vm->set_line(5, true));
    REQUIRE(f.vm->set_line(5, true));
    REQUIRE(sent.size() == 2);
    CHECK(sent[1].kind == 1u << 12);
    const auto end_of_interrupt = [&](std::uint32_t vector) {
        f.start({0xf4});
        abi::exit_context exit;
        exit.reason = abi::exit::apic_eoi;
        exit.vector = vector;
        whpx_platform::the_world().next_exit = exit;
        f.run();
    };
    end_of_interrupt(0x34);
    CHECK(sent.size() == 2);
    end_of_interrupt(0x35);
    CHECK(sent.size() == 3);
    REQUIRE(f.vm->set_line(5, false));
    end_of_interrupt(0x35);
    CHECK(sent.size() == 3);
    CHECK(f.vcpu->inject_interrupt(0x40).error() == errc::unsupported);

    struct row {
        std::uint64_t address;
        std::uint32_t data;
        std::optional<abi::interrupt_control> expected;
    };
    const row rows[] = {
        {0xfee0'0000, 0x41, abi::interrupt_control{0, 0, 0x41}},
        {0xfee0'1000, 0x41, abi::interrupt_control{0, 1, 0x41}},
        {0xfeef'f004, 0x8142, abi::interrupt_control{1 | 1 << 8 | 1 << 12, 0xff, 0x42}},
        {0xfee0'0000, 0x0400, abi::interrupt_control{4, 0, 0}},
        {0xfee0'0000, 0x0700, std::nullopt},
        {0xfed0'0000, 0x41, std::nullopt},
        {0x1'fee0'0000, 0x41, std::nullopt},
    };
    for (const row& r : rows) {
        CAPTURE(r.address, r.data);
        sent.clear();
        const result<> done = f.vm->signal_msi(pa{r.address}, r.data);
        REQUIRE(done.has_value() == r.expected.has_value());
        if (!done) {
            CHECK(done.error() == errc::invalid_argument);
            continue;
        }
        REQUIRE(sent.size() == 1);
        CHECK(sent[0].kind == r.expected->kind);
        CHECK(sent[0].destination == r.expected->destination);
        CHECK(sent[0].vector == r.expected->vector);
    }
}

TEST_CASE("whpx: memory that was added since the exit is used, not the bus") {
    fixture f;
    f.start({0xf4});
    abi::exit_context exit;
    exit.reason = abi::exit::memory_access;
    exit.memory = {};
    exit.memory.info = 4; // not mapped when it happened
    exit.memory.physical = 0x5000;
    whpx_platform::the_world().next_exit = exit;
    CHECK(name_of(f.run().reason) == "halted");
    CHECK(f.bus.mmio.empty());
    CHECK(f.cpu().entries == 2);
}

TEST_CASE("whpx: a vCPU and a VM that end are deleted") {
    std::optional<fixture> f{std::in_place};
    CHECK(whpx_platform::last_partition().processors.size() == 1);
    f->vcpu.reset();
    CHECK(whpx_platform::last_partition().processors.empty());
    CHECK(f->vm->create_vcpu(0).error() == errc::already_exists); // each index once
    f->vm.reset();
    CHECK(whpx_platform::the_world().partitions.back() == nullptr);
}

#if defined(_WIN32)
// Our facts are the header's.
static_assert(sizeof(abi::exit_context) == sizeof(WHV_RUN_VP_EXIT_CONTEXT));
static_assert(offsetof(abi::exit_context, vp) == offsetof(WHV_RUN_VP_EXIT_CONTEXT, VpContext));
static_assert(offsetof(abi::exit_context, memory) ==
              offsetof(WHV_RUN_VP_EXIT_CONTEXT, MemoryAccess));
static_assert(offsetof(abi::vp_context, cs) == offsetof(WHV_VP_EXIT_CONTEXT, Cs));
static_assert(offsetof(abi::vp_context, rip) == offsetof(WHV_VP_EXIT_CONTEXT, Rip));
static_assert(offsetof(abi::memory_access, info) ==
              offsetof(WHV_MEMORY_ACCESS_CONTEXT, AccessInfo));
static_assert(offsetof(abi::memory_access, physical) == offsetof(WHV_MEMORY_ACCESS_CONTEXT, Gpa));
static_assert(offsetof(abi::io_port_access, info) ==
              offsetof(WHV_X64_IO_PORT_ACCESS_CONTEXT, AccessInfo));
static_assert(offsetof(abi::io_port_access, port) ==
              offsetof(WHV_X64_IO_PORT_ACCESS_CONTEXT, PortNumber));
static_assert(offsetof(abi::io_port_access, rax) == offsetof(WHV_X64_IO_PORT_ACCESS_CONTEXT, Rax));
static_assert(sizeof(abi::register_value) == sizeof(WHV_REGISTER_VALUE));
static_assert(offsetof(abi::segment, limit) == offsetof(WHV_X64_SEGMENT_REGISTER, Limit));
static_assert(offsetof(abi::segment, attributes) == offsetof(WHV_X64_SEGMENT_REGISTER, Attributes));
static_assert(sizeof(abi::interrupt_control) == sizeof(WHV_INTERRUPT_CONTROL));
static_assert(offsetof(abi::interrupt_control, vector) == offsetof(WHV_INTERRUPT_CONTROL, Vector));
static_assert(sizeof(abi::vcpu_property) == sizeof(WHV_VIRTUAL_PROCESSOR_PROPERTY));
static_assert(sizeof(abi::translation) == sizeof(WHV_TRANSLATE_GVA_RESULT));
template <class Ours, class Theirs>
constexpr bool same(Ours ours, Theirs theirs) {
    return static_cast<std::uint32_t>(ours) == static_cast<std::uint32_t>(theirs);
}
static_assert(same(abi::capability::features, WHvCapabilityCodeFeatures));
static_assert(same(abi::property::primary_numa_node, WHvPartitionPropertyCodePrimaryNumaNode));
static_assert(same(abi::property::cpu_reserve, WHvPartitionPropertyCodeCpuReserve));
static_assert(same(abi::property::cpu_cap, WHvPartitionPropertyCodeCpuCap));
static_assert(same(abi::property::cpu_weight, WHvPartitionPropertyCodeCpuWeight));
static_assert(same(abi::property::local_apic_mode, WHvPartitionPropertyCodeLocalApicEmulationMode));
static_assert(same(abi::property::processor_count, WHvPartitionPropertyCodeProcessorCount));
static_assert(same(abi::map_track_dirty, WHvMapGpaRangeFlagTrackDirtyPages));
static_assert(same(reg::rdi, WHvX64RegisterRdi) && same(reg::r15, WHvX64RegisterR15));
static_assert(same(reg::gdtr, WHvX64RegisterGdtr) && same(reg::cr4, WHvX64RegisterCr4));
static_assert(same(reg::efer, WHvX64RegisterEfer));
static_assert(same(reg::pending_interruption, WHvRegisterPendingInterruption));
static_assert(same(reg::interrupt_state, WHvRegisterInterruptState));
static_assert(same(reg::deliverability_notifications, WHvX64RegisterDeliverabilityNotifications));
static_assert(same(abi::exit::apic_eoi, WHvRunVpExitReasonX64ApicEoi));
static_assert(same(abi::exit::canceled, WHvRunVpExitReasonCanceled));
static_assert(same(abi::exit::unsupported_feature, WHvRunVpExitReasonUnsupportedFeature));

TEST_CASE("whpx: bit fields lie where the header has them") {
    WHV_X64_IO_PORT_ACCESS_INFO io{};
    io.IsWrite = 1;
    io.AccessSize = 4;
    io.RepPrefix = 1;
    abi::io_port_access ours{};
    ours.info = io.AsUINT32;
    CHECK(ours.is_write());
    CHECK(ours.bytes() == 4);
    CHECK(ours.is_string());
    WHV_MEMORY_ACCESS_INFO access{};
    access.AccessType = 1;
    access.GpaUnmapped = 1;
    abi::memory_access memory{};
    memory.info = access.AsUINT32;
    CHECK(memory.kind() == 1);
    CHECK(memory.unmapped());
    WHV_X64_VP_EXECUTION_STATE state{};
    state.EferLma = 1;
    state.InterruptShadow = 1;
    abi::vp_context at{};
    at.execution_state = state.AsUINT16;
    CHECK(at.is_long_mode());
    CHECK(at.in_shadow());
    WHV_X64_PENDING_INTERRUPTION_REGISTER pending{};
    pending.InterruptionPending = 1;
    pending.InterruptionVector = 0x41;
    CHECK(abi::pending_vector(0x41) == pending.AsUINT64);
    WHV_X64_DELIVERABILITY_NOTIFICATIONS_REGISTER notify{};
    notify.InterruptNotification = 1;
    CHECK(abi::notify_interrupt == notify.AsUINT64);
    WHV_INTERRUPT_CONTROL control{};
    control.Type = WHvX64InterruptTypeNmi;
    control.DestinationMode = WHvX64InterruptDestinationModeLogical;
    control.TriggerMode = WHvX64InterruptTriggerModeLevel;
    abi::interrupt_control kind{};
    kind = std::bit_cast<abi::interrupt_control>(control);
    CHECK(kind.kind == (4u | 1u << 8 | 1u << 12));
    WHV_CAPABILITY_FEATURES features{};
    features.LocalApicEmulation = 1;
    features.DirtyPageTracking = 1;
    CHECK(features.AsUINT64 == (abi::feature::local_apic | abi::feature::dirty_pages));
    WHV_X64_SEGMENT_REGISTER segment{};
    segment.Long = 1;
    segment.Selector = 8;
    segment.Limit = 5;
    segment.Base = 7;
    WHV_REGISTER_VALUE value{};
    value.Segment = segment;
    const abi::register_value read = abi::value_of(abi::segment{7, 5, 8, abi::segment_long});
    CHECK(std::memcmp(&read, &value, sizeof read) == 0);
}
#endif
