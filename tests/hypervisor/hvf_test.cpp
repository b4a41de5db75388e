/// What is particular to the hvf backend, on a model of Apple's framework: errors with
/// their cures, threads, PSCI, timers, interrupts, traps.
#include "guests.hpp"

#include <catch2/catch.hpp>

#include <thread>

using namespace vm_accel;
using namespace guests;
using hvf_framework::arm64_calls;
using hvf_framework::the_world;
using hvf_framework::x86_64_calls;

namespace {

/// A machine with 64 KiB of RAM at 0 and one vCPU, whose code lies at 0x4000.
template <class Calls>
struct little_machine {
    basic_hvf<Calls> backend;
    ram memory{0x1'0000};
    std::optional<basic_hvf_vm<Calls>> vm;
    std::optional<basic_hvf_vcpu<Calls>> vcpu;
    recording_bus bus;

    little_machine() {
        hvf_framework::start_afresh();
        REQUIRE(backend.init());
        auto made = backend.create_vm();
        REQUIRE(made);
        vm = std::move(*made);
        REQUIRE(vm->add_memory(pa{0}, memory.data(), memory.size()));
        auto cpu = vm->create_vcpu(0);
        REQUIRE(cpu);
        vcpu = std::move(*cpu);
        if constexpr (Calls::is_arm64) {
            REQUIRE(hvf_arm64::set_boot_registers(*vcpu, pa{0x4000}, window));
        } else {
            write_identity_map(memory);
            REQUIRE(hvf_x86_64::enter_long_mode(*vcpu, pa{0x1000}, 0x4000, 0x3ff0, raw(window)));
        }
    }
    ~little_machine() {
        vcpu.reset();
        vm.reset();
    }
    void code(std::initializer_list<std::uint32_t> words, std::uint64_t at = 0x4000) {
        for (const std::uint32_t w : words) {
            memory.put<std::uint32_t>(at, w);
            at += 4;
        }
    }
    void bytes(std::initializer_list<std::uint8_t> code) {
        std::uint64_t at = 0x4000;
        for (const std::uint8_t b : code)
            memory.put<std::uint8_t>(at++, b);
    }
    vcpu_exit run() {
        const auto ended = vcpu->run(bus);
        REQUIRE(ended);
        return *ended;
    }
    std::uint64_t reg(hvf_register which) {
        const auto value = vcpu->get_register(which);
        REQUIRE(value);
        return *value;
    }
    void set(hvf_register which, std::uint64_t value) { REQUIRE(vcpu->set_register(which, value)); }
    /// The first vCPU that the framework made.
    static std::shared_ptr<hvf_framework::processor> framework_vcpu(std::uint64_t number = 0) {
        return Calls::at(number);
    }
};
using arm64_machine = little_machine<arm64_calls>;
using x86_machine = little_machine<x86_64_calls>;

constexpr std::uint32_t hvc = 0xd4000002;
constexpr std::uint32_t smc = 0xd4000003;
constexpr std::uint32_t wfi = 0xd503207f;
constexpr std::uint32_t branch_to_self = 0x14000000;

} // namespace

TEST_CASE("hvf: a refusal names its reason and the cure", "[hypervisor][hvf]") {
    using os::hvf_abi::status;
    struct row {
        status refusal;
        errc code;
        const char* in_cause;
        const char* in_cure;
    };
    const auto r = GENERATE(values<row>({
        {status::denied, errc::permission_denied, "entitlement", "codesign"},
        {status::busy, errc::busy, "busy", "one VM"},
        {status::unsupported, errc::unsupported, "does not have it", "kern.hv_support"},
        {status::no_resources, errc::exhausted, "no resources", "free memory"},
        {status::error, errc::system_failure, "0xfae94001", "kern.hv_support"},
        {static_cast<status>(0x1234), errc::system_failure, "0x1234", "kern.hv_support"},
    }));
    hvf_framework::start_afresh();
    the_world().load_fails = r.refusal;
    auto backend = basic_hvf<arm64_calls>::open();
    REQUIRE(backend); // the framework tells when a VM is created
    const auto refused = backend->create_vm();
    REQUIRE_FALSE(refused);
    CHECK(name_of(refused.error().code) == name_of(r.code));
    CHECK(refused.error().cause.view().find(r.in_cause) != std::string_view::npos);
    CHECK(refused.error().cure.view().find(r.in_cure) != std::string_view::npos);
    CHECK_FALSE(refused.error().cure.view().ends_with("..."));
}

TEST_CASE("hvf: where there is no framework, detect and init say so", "[hypervisor][hvf]") {
    if (os::hvf_calls::present) return;
    const hypervisor_capabilities here = hvf::detect();
    CHECK_FALSE(here.available);
    CHECK(here.why_not == errc::unsupported);
    CHECK(here.why_not.cause.view().find("macOS only") != std::string_view::npos);
    hvf backend;
    const result<> refused = backend.init();
    REQUIRE_FALSE(refused);
    CHECK_FALSE(backend.is_initialized());
    CHECK(backend.create_vm().error() == errc::not_initialized);
}

TEST_CASE("hvf: one VM at a time, and the next once it is gone", "[hypervisor][hvf]") {
    hvf_framework::start_afresh();
    auto backend = basic_hvf<arm64_calls>::open();
    REQUIRE(backend);
    CHECK(backend->init().error() == errc::already_initialized);
    CHECK(backend->capabilities().guest_address_bits == 40);
    {
        auto first = backend->create_vm();
        REQUIRE(first);
        CHECK(backend->create_vm().error() == errc::busy);
        auto moved = std::move(*first);
        CHECK(the_world().vm);
    }
    CHECK_FALSE(the_world().vm);
    CHECK(backend->create_vm());
    CHECK(backend->create_vm(hvf_vm_options{48}).error() == errc::out_of_range);
    CHECK(backend->create_vm(hvf_vm_options{40}));
}

TEST_CASE("hvf: memory of the host's pages, and what the guest may do with it",
          "[hypervisor][hvf]") {
    arm64_machine m;
    the_world().page = 16384;
    ram more{0x1000};
    const result<> refused = m.vm->add_memory(pa{0x10'0000}, more.data(), more.size());
    REQUIRE_FALSE(refused);
    CHECK(refused.error() == errc::invalid_argument);
    CHECK(refused.error().cure.view().find("16384") != std::string_view::npos);
    the_world().page = 4096;
    CHECK(m.vm->add_memory(pa{0x10'0000}, more.data(), more.size())); // the table kept nothing

    CHECK(m.vm->protect_memory(pa{0x10'0000}, {.read = true, .write = false, .execute = false}));
    CHECK(the_world().mappings.back().rights == os::hvf_abi::memory_read);
    CHECK(m.vm->protect_memory(pa{0x10'1000}, {}).error() == errc::not_found);
}

TEST_CASE("hvf: a vCPU belongs to the thread of its first run()", "[hypervisor][hvf]") {
    arm64_machine m;
    m.code({0xd2800540, hvc}); // mov x0, #42; hvc: nothing knows it
    m.memory.put<std::uint32_t>(0x4008, branch_to_self);
    const auto early = m.vcpu->get_register(hvf_arm64::x(9));
    REQUIRE_FALSE(early);
    CHECK(early.error() == errc::not_initialized);
    CHECK(m.reg(hvf_arm64::pc) == 0x4000); // was set, and is kept

    std::thread runner{[&] {
        m.vcpu->request_exit();
        const auto ended = m.vcpu->run(m.bus);
        CHECK((ended && ended->reason == exit_reason::interrupted));
        CHECK(m.vcpu->set_register(hvf_arm64::x(9), 9));
    }};
    runner.join();
    // The thread has ended: the framework's vCPU has gone with it.
    CHECK(the_world().vcpus_destroyed == 1);
    const auto here = m.vcpu->run(m.bus);
    REQUIRE_FALSE(here);
    CHECK(here.error() == errc::busy);
    CHECK(here.error().cause.view().find("has ended") != std::string_view::npos);
    CHECK(m.vcpu->set_register(hvf_arm64::x(9), 9).error() == errc::busy);
    CHECK(the_world().wrong_thread == 0); // refused here, not by the framework
}

TEST_CASE("hvf: on another thread that lives, a vCPU refuses", "[hypervisor][hvf]") {
    arm64_machine m;
    m.code({branch_to_self});
    std::atomic<bool> ran{false};
    std::atomic<bool> done{false};
    std::thread runner{[&] {
        m.vcpu->request_exit();
        CHECK(m.vcpu->run(m.bus));
        ran.store(true);
        while (!done.load())
            std::this_thread::yield();
    }};
    while (!ran.load())
        std::this_thread::yield();
    const auto refused = m.vcpu->run(m.bus);
    CHECK((!refused && refused.error() == errc::busy));
    m.vcpu.reset(); // the VMM's object goes first; the thread's end does the rest
    CHECK(the_world().vcpus_destroyed == 0);
    done.store(true);
    runner.join();
    CHECK(the_world().vcpus_destroyed == 1);
}

TEST_CASE("hvf arm64: loads extend as the instruction says", "[hypervisor][hvf]") {
    struct row {
        const char* what;
        std::uint32_t word;
        std::uint64_t expected; ///< in X1; the bus answers with 0x...77f0 at 0xf0
        std::size_t bytes;
    };
    const auto r = GENERATE(values<row>({
        {"ldrb w1", 0x3943c001, 0xf0, 1},
        {"ldrsb w1", 0x39c3c001, 0xffff'fff0, 1},
        {"ldrsb x1", 0x3983c001, 0xffff'ffff'ffff'fff0, 1},
        {"ldrh w1", 0x7941e001, 0x77f0, 2},
        {"ldrsh x1", 0x7981e001, 0x77f0, 2},
        {"ldr w1", 0xb940f001, 0x5566'77f0, 4},
        {"ldrsw x1", 0xb980f001, 0x5566'77f0, 4},
        {"ldr x1", 0xf9407801, 0x1122'3344'5566'77f0, 8},
    }));
    CAPTURE(r.what);
    arm64_machine m;
    m.set(hvf_arm64::x(0), raw(window));
    m.set(hvf_arm64::x(1), ~std::uint64_t{0});
    m.code({r.word, 0}); // then an instruction that is none
    const vcpu_exit ended = m.run();
    CHECK(name_of(ended.reason) == "not emulated");
    CHECK(m.reg(hvf_arm64::x(1)) == r.expected);
    REQUIRE(m.bus.mmio.size() == 1);
    CHECK(m.bus.mmio[0].size == r.bytes);
    CHECK(m.bus.mmio[0].address == raw(window) + 0xf0);
    CHECK(m.reg(hvf_arm64::pc) == 0x4004);
}

TEST_CASE("hvf arm64: XZR is written as zero and never loaded", "[hypervisor][hvf]") {
    arm64_machine m;
    m.set(hvf_arm64::x(0), raw(window));
    m.code({0xb900001f, 0xb940001f, 0}); // str wzr, [x0]; ldr wzr, [x0]
    m.run();
    REQUIRE(m.bus.mmio.size() == 2);
    CHECK(m.bus.mmio[0].value == 0);
    CHECK(m.reg(hvf_arm64::pc) == 0x4008);
}

TEST_CASE("hvf arm64: what cannot be decoded is named", "[hypervisor][hvf]") {
    arm64_machine m;
    SECTION("an instruction outside RAM") {
        m.set(hvf_arm64::pc, 0x9000'0000);
        const vcpu_exit ended = m.run();
        CHECK(name_of(ended.reason) == "not emulated");
        CHECK(ended.address == 0x9000'0000);
        CHECK(ended.code >> 26 == 0x20);
    }
    SECTION("a system register that nobody serves") {
        m.code({0xd5381001}); // mrs x1, sctlr_el1
        const vcpu_exit ended = m.run();
        CHECK(name_of(ended.reason) == "not emulated");
        CHECK(ended.code >> 26 == 0x18);
        CHECK(m.reg(hvf_arm64::pc) == 0x4000);
    }
    SECTION("the OS lock registers read as zero") {
        m.set(hvf_arm64::x(1), 7);
        m.code({0xd5101081, 0xd5301181, 0xd5101381, 0}); // oslar = x1; x1 = oslsr; osdlr = x1
        m.run();
        CHECK(m.reg(hvf_arm64::x(1)) == 0);
        CHECK(m.reg(hvf_arm64::pc) == 0x400c);
    }
}

TEST_CASE("hvf arm64: PSCI by HVC and by SMC", "[hypervisor][hvf]") {
    const std::uint32_t call = GENERATE(hvc, smc);
    arm64_machine m;
    m.code({0x52b08000, call, 0}); // mov w0, #0x84000000: PSCI_VERSION
    m.run();
    CHECK(m.reg(hvf_arm64::x(0)) == 0x1'0001);
    CHECK(m.reg(hvf_arm64::pc) == 0x4008);
    m.code({0x52800540, call, 0}, 0x4100); // mov w0, #42
    m.set(hvf_arm64::pc, 0x4100);
    m.run();
    CHECK(m.reg(hvf_arm64::x(0)) == psci::not_supported);
    m.code({0x52b08000, 0x72800120, call, 0}, 0x4200); // SYSTEM_RESET
    m.set(hvf_arm64::pc, 0x4200);
    CHECK(name_of(m.run().reason) == "reset");
}

TEST_CASE("hvf arm64: CPU_ON starts the other vCPU, CPU_OFF parks it", "[hypervisor][hvf]") {
    arm64_machine m;
    auto second = m.vm->create_vcpu(1);
    REQUIRE(second);
    // First: CPU_ON(1, 0x5000, 0x77), then x0 to the window, then loops.
    m.set(hvf_arm64::x(9), raw(window));
    m.code({0xd2b88000, 0xf2800060,             // mov x0, #0xc4000003
            0xd2800021, 0xd28a0002, 0xd2800ee3, // mov x1, #1; x2, #0x5000; x3, #0x77
            hvc, 0xb9000120, branch_to_self});  // str w0, [x9]
    // Second: x0 (the context) to the window it computes; then CPU_OFF.
    m.code({0xd2ba0009,             // mov x9, #0xd0000000
            0xb9000520,             // str w0, [x9, #4]
            0x52b08000, 0x72800040, // mov w0, #0x84000002
            hvc},
           0x5000);
    std::atomic<unsigned> writes{0};
    recording_bus other;
    other.on_write = [&](const access_record&) { writes.fetch_add(1); };
    bool ended_well = false;
    std::thread runner{[&] {
        const auto ended = second->run(other);
        ended_well = ended && ended->reason == exit_reason::interrupted;
    }};
    m.bus.on_write = [&](const access_record&) { m.vcpu->request_exit(); };
    CHECK(name_of(m.run().reason) == "interrupted");
    REQUIRE(m.bus.mmio.size() == 1);
    CHECK(m.bus.mmio[0].value == 0); // CPU_ON: success
    while (writes.load() == 0)
        std::this_thread::yield();
    second->request_exit(); // it is off, or about to be
    runner.join();
    CHECK(ended_well);
    REQUIRE(other.mmio.size() == 1);
    CHECK(other.mmio[0].value == 0x77);
    CHECK(arm64_machine::framework_vcpu(0)->system[os::hvf_abi::arm64_mpidr_el1] ==
          psci::mpidr_of(0));
}

TEST_CASE("hvf arm64: WFI comes back, an interrupt line is seen at each entry",
          "[hypervisor][hvf]") {
    arm64_machine m;
    m.set(hvf_arm64::x(0), raw(window));
    m.code({wfi, 0xb900001f, wfi, 0xb900001f, 0}); // str wzr, [x0] in between
    std::vector<bool> pending;
    m.bus.on_write = [&](const access_record&) {
        pending.push_back(arm64_machine::framework_vcpu()->interrupted);
        REQUIRE(m.vm->set_line(0, pending.size() == 1));
    };
    m.run();
    CHECK(pending == std::vector<bool>{false, true});
    CHECK_FALSE(m.vm->set_line(64, true)); // the model has 64 vCPUs
}

TEST_CASE("hvf arm64: the virtual timer interrupts until the guest has seen to it",
          "[hypervisor][hvf]") {
    arm64_machine m;
    m.set(hvf_arm64::x(0), raw(window));
    m.code({0xb900001f, 0xb900001f, 0xb900001f, 0xb900001f, 0});
    std::vector<bool> pending;
    std::vector<bool> masked;
    m.bus.on_write = [&](const access_record&) {
        const auto cpu = arm64_machine::framework_vcpu();
        pending.push_back(cpu->interrupted);
        masked.push_back(cpu->timer_masked);
        if (pending.size() == 1) {
            cpu->timer_fires = true;
            cpu->system[os::hvf_abi::arm64_timer_control] = 5; // ISTATUS, ENABLE
        }
        if (pending.size() == 2) {
            cpu->timer_fires = false;
            cpu->system[os::hvf_abi::arm64_timer_control] = 1;
        }
    };
    m.run();
    CHECK(pending == std::vector<bool>{false, true, false, false});
    CHECK(masked == std::vector<bool>{false, true, false, false});
}

TEST_CASE("hvf arm64: a GIC of the framework's takes lines and messages", "[hypervisor][hvf]") {
    arm64_machine m;
    CHECK(m.vm->gic_sizes().error() == errc::unsupported);
    CHECK(m.vm->create_gic_v3({0x800'0000, 0x80a'0000}).error() == errc::unsupported);
    CHECK(m.vm->signal_msi(pa{0x1000}, 64).error() == errc::not_found);
    the_world().gic = true;
    CHECK(m.vm->create_gic_v3({0x800'0100, 0x80a'0000}).error() == errc::invalid_argument);
    REQUIRE(m.vm->create_gic_v3({0x800'0000, 0x80a'0000, 0x808'0000, 128, 64}));
    CHECK(the_world().gic_at->messages == 0x808'0000);
    CHECK(m.vm->create_gic_v3({0x800'0000, 0x80a'0000}).error() == errc::already_exists);
    REQUIRE(m.vm->pulse_line(7));
    CHECK(the_world().spis == std::vector<std::pair<std::uint32_t, bool>>{{39, true}, {39, false}});
    CHECK(m.vm->set_line(988, true).error() == errc::out_of_range);
    REQUIRE(m.vm->signal_msi(pa{0x808'0000}, 130));
    CHECK(the_world().messages.size() == 1);
}

TEST_CASE("psci: calls and what comes of them", "[hypervisor][hvf]") {
    using psci::effect;
    psci::power_states states;
    REQUIRE(states.add(0, false));
    REQUIRE(states.add(17, true));
    CHECK_FALSE(states.add(17, true));
    CHECK_FALSE(states.add(256, true));
    const auto call = [&](std::uint64_t x0, std::uint64_t x1 = 0, std::uint64_t x2 = 0,
                          std::uint64_t x3 = 0) { return states.call(0, x0, x1, x2, x3); };
    CHECK(psci::mpidr_of(17) == 0x8000'0101);
    CHECK(psci::index_of(psci::mpidr_of(17)) == 17u);
    CHECK_FALSE(psci::index_of(0x10));
    CHECK_FALSE(psci::index_of(std::uint64_t{1} << 32));
    CHECK_FALSE(call(0x8600'ff01));
    CHECK(call(0x8400'000a, 0xc400'0003)->value == 0);
    CHECK(call(0x8400'000a, 0x8400'0011)->value == psci::not_supported);
    CHECK(call(0x8400'0006)->value == 2);
    CHECK(call(0xc400'0004, 0x101)->value == 1); // off
    CHECK(call(0xc400'0003, 0x202)->value == psci::invalid_parameters);
    CHECK(call(0xc400'0003, 0)->value == psci::already_on);
    CHECK_FALSE(states.take_start(17));
    const auto started = call(0x8400'0003, 0xffff'ffff'0000'0101, 0x1'2345'6789, 3);
    CHECK(started->then == effect::started);
    CHECK(started->target == 17);
    CHECK(call(0xc400'0003, 0x101)->value == psci::on_pending);
    CHECK(call(0xc400'0004, 0x101)->value == 2);
    const auto begin = states.take_start(17);
    REQUIRE(begin);
    CHECK(begin->entry == 0x2345'6789); // the 32-bit form
    CHECK(begin->context == 3);
    CHECK(call(0xc400'0004, 0x101)->value == 0);
    CHECK(states.call(17, 0x8400'0002, 0, 0, 0)->then == effect::off);
    CHECK_FALSE(states.is_on(17));
    CHECK(call(0xc400'0001)->then == effect::suspend);
    CHECK(call(0x8400'0008)->then == effect::shutdown);
    CHECK(call(0x8400'0009)->then == effect::reset);
}

// ---- x86-64 ------------------------------------------------------------------------------------

TEST_CASE("x86-64: MOVs to and from devices", "[hypervisor][hvf]") {
    struct row {
        const char* what;
        std::vector<std::uint8_t> code;
        x86_64::x86_mode mode;
        x86_64::mmio_instruction is;
    };
    using x86_64::x86_mode;
    const auto load = [](unsigned length, unsigned bytes, unsigned reg, unsigned wide,
                         bool sign = false) {
        return x86_64::mmio_instruction{length, bytes, false, false, 0, reg, false, wide, sign};
    };
    const auto store = [](unsigned length, unsigned bytes, unsigned reg) {
        return x86_64::mmio_instruction{length, bytes, true, false, 0, reg, false, bytes, false};
    };
    const auto immediate = [](unsigned length, unsigned bytes, std::uint64_t value) {
        return x86_64::mmio_instruction{length, bytes, true, true, value, 0, false, 0, false};
    };
    x86_64::mmio_instruction high = store(2, 1, 0);
    high.high_byte = true;
    const std::vector<row> rows = {
        {"mov (%rdi),%eax", {0x8b, 0x07}, x86_mode::bits_64, load(2, 4, 0, 4)},
        {"mov 16(%rdi),%rax", {0x48, 0x8b, 0x47, 0x10}, x86_mode::bits_64, load(4, 8, 0, 8)},
        {"mov %r9d,0x12345678(%r8)",
         {0x45, 0x89, 0x88, 0x78, 0x56, 0x34, 0x12},
         x86_mode::bits_64,
         store(7, 4, 9)},
        {"mov %ax,(%rsp)", {0x66, 0x89, 0x04, 0x24}, x86_mode::bits_64, store(4, 2, 0)},
        {"mov %sil,(%rdi)", {0x40, 0x88, 0x37}, x86_mode::bits_64, store(3, 1, 6)},
        {"mov %ah,(%rdi)", {0x88, 0x27}, x86_mode::bits_64, high},
        {"mov 0x10(%rip),%ecx", {0x8b, 0x0d, 0x10, 0, 0, 0}, x86_mode::bits_64, load(6, 4, 1, 4)},
        {"mov 8(,%rax,4),%edx",
         {0x8b, 0x14, 0x85, 8, 0, 0, 0},
         x86_mode::bits_64,
         load(7, 4, 2, 4)},
        {"movl $-2,(%rdi)",
         {0xc7, 0x07, 0xfe, 0xff, 0xff, 0xff},
         x86_mode::bits_64,
         immediate(6, 4, ~std::uint64_t{1})},
        {"movq $-1,(%rdi)",
         {0x48, 0xc7, 0x07, 0xff, 0xff, 0xff, 0xff},
         x86_mode::bits_64,
         immediate(7, 8, ~std::uint64_t{0})},
        {"movb $5,(%rdi)", {0xc6, 0x07, 5}, x86_mode::bits_64, immediate(3, 1, 5)},
        {"movzbl (%rdi),%eax", {0x0f, 0xb6, 0x07}, x86_mode::bits_64, load(3, 1, 0, 4)},
        {"movswq (%rdi),%rdx", {0x48, 0x0f, 0xbf, 0x17}, x86_mode::bits_64, load(4, 2, 2, 8, true)},
        {"movslq (%rdi),%rdx", {0x48, 0x63, 0x17}, x86_mode::bits_64, load(3, 4, 2, 8, true)},
        {"mov %al,moffs64", {0xa2, 1, 2, 3, 4, 5, 6, 7, 8}, x86_mode::bits_64, store(9, 1, 0)},
        {"mov (%edi),%eax, 32 bits", {0x8b, 0x07}, x86_mode::bits_32, load(2, 4, 0, 4)},
        {"mov (%bx),%ax, 16 bits", {0x8b, 0x07}, x86_mode::bits_16, load(2, 2, 0, 2)},
        {"mov 0x1234,%cx, 16 bits", {0x8b, 0x0e, 0x34, 0x12}, x86_mode::bits_16, load(4, 2, 1, 2)},
        {"mov %fs:(%rdi),%eax", {0x64, 0x8b, 0x07}, x86_mode::bits_64, load(3, 4, 0, 4)},
    };
    for (const row& r : rows) {
        CAPTURE(r.what);
        const auto found = x86_64::decode_mmio(r.code, r.mode);
        REQUIRE(found);
        CHECK(*found == r.is);
        // Cut off anywhere, it is none.
        for (std::size_t n = 0; n < r.code.size(); ++n)
            CHECK_FALSE(x86_64::decode_mmio(std::span{r.code}.first(n), r.mode));
    }
    const std::vector<std::vector<std::uint8_t>> others = {
        {0x8b, 0xc1},             // register to register
        {0x01, 0x07},             // add
        {0xf3, 0xa4},             // rep movsb
        {0x0f, 0x11, 0x07},       // movups
        {0xc7, 0x0f, 0, 0, 0, 0}, // no MOV: /1
        {0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66,
         0x8b, 0x07}, // too long
    };
    for (const auto& code : others)
        CHECK_FALSE(x86_64::decode_mmio(code));
    // What a load leaves of its register.
    CHECK(x86_64::loaded(load(2, 2, 0, 2), 0x1111'1111'1111'1111, 0xabcd) == 0x1111'1111'1111'abcd);
    CHECK(x86_64::loaded(load(2, 4, 0, 4), ~std::uint64_t{0}, 0xabcd) == 0xabcd);
    CHECK(x86_64::loaded(load(3, 1, 0, 8, true), 0, 0x80) == 0xffff'ffff'ffff'ff80);
    CHECK(x86_64::stored(high, 0x1234) == 0x12);
}

TEST_CASE("hvf x86-64: ports reach the bus, and only AL, AX or EAX change", "[hypervisor][hvf]") {
    x86_machine m;
    m.set(hvf_x86_64::general(os::hvf_abi::x86_rax), 0x1111'2222'3333'4455);
    m.bytes({0xe6, 0x80, 0xe4, 0x81, 0xe7, 0x82, 0xe5, 0x83, 0xf4}); // out al; in al; out, in eax
    CHECK(name_of(m.run().reason) == "halted");
    const std::vector<access_record> expected{{true, 0x80, 1, 0x55},
                                              {false, 0x81, 1, 0x81},
                                              {true, 0x82, 4, 0x3333'4481},
                                              {false, 0x83, 4, 0x5566'7783}};
    CHECK(m.bus.ports == expected);
    CHECK(m.reg(hvf_x86_64::general(os::hvf_abi::x86_rax)) == 0x5566'7783);
    CHECK(m.reg(hvf_x86_64::general(os::hvf_abi::x86_rip)) == 0x4009);
}

TEST_CASE("hvf x86-64: the controls of a new vCPU's VMCS", "[hypervisor][hvf]") {
    namespace vmcs = os::hvf_abi::vmcs;
    x86_machine m;
    m.bytes({0xf4});
    m.run();
    const auto field = [&](std::uint32_t f) { return m.reg(hvf_x86_64::field_of_vmcs(f)); };
    // HLT, I/O and secondary controls, with what the model demands (bits 1, 2, 4).
    CHECK(field(vmcs::processor_controls) == 0x8100'0096);
    CHECK(field(vmcs::processor_controls_2) == 0x96);        // unrestricted guest
    CHECK((field(vmcs::entry_controls) & 0x8200) == 0x8200); // IA-32e, load EFER
    CHECK(field(vmcs::cr4_mask) == hvf_x86_64::cr4_vmxe);
    CHECK(field(vmcs::guest_cr3) == 0x1000); // what was set before the first run() wins
    CHECK(hvf_x86_64::allowed(0x0000'00ff'0000'0001, 0x300) == 1);
}

TEST_CASE("hvf x86-64: CPUID, EFER and other model-specific registers", "[hypervisor][hvf]") {
    using namespace os::hvf_abi;
    x86_machine m;
    SECTION("CPUID shows the host without virtualisation") {
        m.set(hvf_x86_64::general(x86_rax), 1);
        m.bytes({0x0f, 0xa2, 0xf4});
        m.run();
        CHECK(m.reg(hvf_x86_64::general(x86_rbx)) == 0x1234);
        CHECK((m.reg(hvf_x86_64::general(x86_rcx)) & 1u << 5) == 0); // no VMX
        CHECK((m.reg(hvf_x86_64::general(x86_rcx)) >> 31) == 1);     // in a VM
        CHECK(m.reg(hvf_x86_64::general(x86_rip)) == 0x4003);
    }
    SECTION("EFER is written but for LMA") {
        m.set(hvf_x86_64::general(x86_rcx), 0xc000'0080);
        m.set(hvf_x86_64::general(x86_rax), 0x901);
        m.bytes({0x0f, 0x30, 0x0f, 0x32, 0xf4});
        m.run();
        CHECK(m.reg(hvf_x86_64::field_of_vmcs(vmcs::guest_efer)) == 0xd01);
        CHECK(m.reg(hvf_x86_64::general(x86_rax)) == 0xd01);
    }
    SECTION("others raise #GP") {
        m.set(hvf_x86_64::general(x86_rcx), 0x1b);
        m.bytes({0x0f, 0x32, 0xf4});
        m.vcpu->request_exit(); // the model does not deliver events: look at the field
        CHECK(name_of(m.run().reason) == "interrupted");
        std::thread stop{[&] {
            while (x86_machine::framework_vcpu()->entries < 2)
                std::this_thread::yield();
            m.vcpu->request_exit();
        }};
        CHECK(name_of(m.run().reason) == "interrupted");
        stop.join();
        CHECK(m.reg(hvf_x86_64::field_of_vmcs(vmcs::entry_event)) == 0x8000'0b0d);
        CHECK(m.reg(hvf_x86_64::general(x86_rip)) == 0x4000);
    }
}

TEST_CASE("hvf x86-64: an interrupt waits until the guest takes it", "[hypervisor][hvf]") {
    using namespace os::hvf_abi;
    x86_machine m;
    m.bytes({0xf4, 0xf4});
    CHECK(m.vcpu->inject_interrupt(15).error() == errc::invalid_argument);
    CHECK(m.vcpu->inject_interrupt(256).error() == errc::invalid_argument);
    const auto event = [&] { return m.reg(hvf_x86_64::field_of_vmcs(vmcs::entry_event)); };
    const auto window_wanted = [&] {
        return (m.reg(hvf_x86_64::field_of_vmcs(vmcs::processor_controls)) & 4) != 0;
    };
    CHECK(name_of(m.run().reason) == "halted"); // nothing to wake it
    m.set(hvf_x86_64::general(x86_rip), 0x4000);
    REQUIRE(m.vcpu->inject_interrupt(0x41));
    SECTION("interrupts off: a window is asked for, and HLT goes on") {
        m.vcpu->request_exit();
        m.run();
        m.set(hvf_x86_64::general(x86_rflags), 2);
        std::thread stop{[&] {
            while (x86_machine::framework_vcpu()->entries < 3)
                std::this_thread::yield();
            m.vcpu->request_exit();
        }};
        const vcpu_exit ended = m.run();
        stop.join();
        CHECK((name_of(ended.reason) == "interrupted" || name_of(ended.reason) == "shutdown"));
        CHECK(window_wanted());
        CHECK((event() & 1u << 31) == 0);
    }
    SECTION("interrupts on: it is injected at entry, once") {
        m.set(hvf_x86_64::general(x86_rflags), 0x202);
        CHECK(name_of(m.run().reason) == "halted");
        CHECK(event() == 0x8000'0041);
    }
}

TEST_CASE("hvf x86-64: control registers keep what VMX needs", "[hypervisor][hvf]") {
    using namespace os::hvf_abi;
    x86_machine m;
    m.set(hvf_x86_64::general(x86_rcx), 0x8000'0001); // PG and PE, without NE
    m.set(hvf_x86_64::field_of_vmcs(vmcs::guest_efer), 0x100);
    m.bytes({0x0f, 0x22, 0xc1, 0xf4}); // mov %rcx,%cr0
    m.run();
    CHECK(m.reg(hvf_x86_64::field_of_vmcs(vmcs::guest_cr0)) == 0x8000'0021);
    CHECK(m.reg(hvf_x86_64::field_of_vmcs(vmcs::cr0_shadow)) == 0x8000'0001);
    CHECK(m.reg(hvf_x86_64::field_of_vmcs(vmcs::guest_efer)) == 0x500); // LMA follows
    CHECK(m.vm->set_line(0, true).error() == errc::out_of_range);
    CHECK(m.vm->create_gic_v3({}).error() == errc::unsupported);
}

TEST_CASE("hvf x86-64: a fault that is no access to a device is named", "[hypervisor][hvf]") {
    x86_machine m;
    m.bytes({0x0f, 0x22, 0xd1, 0xf4}); // mov %rcx,%cr2: never an exit of ours
    const vcpu_exit ended = m.run();
    CHECK(name_of(ended.reason) == "not emulated");
    CHECK(ended.code == 0x102);
}
