/// KVM alone: why it cannot be opened, and what is particular to x86-64.
#include "guests.hpp"

#include <catch2/catch.hpp>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <string>
#include <thread>

#if defined(__linux__)
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

using namespace vm_accel;
using namespace guests;

namespace {

bool contains(const fixed_text<160>& text, std::string_view part) {
    return text.view().find(part) != std::string_view::npos;
}

} // namespace

TEST_CASE("each way KVM cannot be opened names its cause and its cure", "[hypervisor][kvm]") {
    struct row {
        int os_error;
        errc code;
        std::string_view cause, cure;
    };
    const row rows[] = {
        {ENOENT, errc::not_found, "no such device", "load the kvm module"},
        {ENODEV, errc::not_found, "no hypervisor behind it", "enable virtualisation"},
        {ENXIO, errc::not_found, "no hypervisor behind it", "enable virtualisation"},
        {EACCES, errc::permission_denied, "permission denied", "group kvm"},
        {EPERM, errc::permission_denied, "permission denied", "group kvm"},
        {EBUSY, errc::busy, "busy", "stop the other hypervisor"},
        {EISDIR, errc::system_failure, "directory", "path of the KVM device"},
        {EMFILE, errc::exhausted, "open files", "ulimit -n"},
        {ENFILE, errc::exhausted, "open files", "fs.file-max"},
        {ENOMEM, errc::exhausted, "memory", "free memory"},
    };
    for (const row& r : rows) {
        CAPTURE(r.os_error);
        const error e = kvm::open_failure("/some/kvm", r.os_error);
        CHECK(name_of(e.code) == name_of(r.code));
        CHECK(e.os_error == r.os_error);
        CHECK(contains(e.cause, "/some/kvm: "));
        CHECK(contains(e.cause, r.cause));
        CHECK(contains(e.cure, r.cure));
        CHECK_FALSE(contains(e.cure, "...")); // nothing was cut
    }
    const error taken = kvm::vm_failure("/some/kvm", EBUSY);
    CHECK(taken == errc::busy);
    CHECK(contains(taken.cause, "another hypervisor"));
    CHECK(contains(taken.cure, "stop it"));
    CHECK(kvm::vm_failure("/some/kvm", ENOMEM) == errc::exhausted);
    CHECK(contains(kvm::vm_failure("/some/kvm", EMFILE).cure, "ulimit -n"));
}

TEST_CASE("a GICv3 layout that no machine can have is named before anything is made",
          "[hypervisor][kvm]") {
    struct row {
        arm64::gic_v3_layout layout;
        std::string_view cause;
    };
    const row r = GENERATE(values<row>({
        {{pa{0x0800'1000}, pa{0x080a'0000}, 1, 256}, "64 KiB"},
        {{pa{0x0800'0000}, pa{0x080a'8000}, 1, 256}, "64 KiB"},
        {{pa{0x0800'0000}, pa{0x080a'0000}, 0, 256}, "for 0 vCPUs"},
        {{pa{0x0800'0000}, pa{0x080a'0000}, 4096, 256}, "for 4096 vCPUs"},
        {{pa{0x0800'0000}, pa{0x0800'0000}, 1, 256}, "overlap"},
        {{pa{0x0803'0000}, pa{0x0800'0000}, 2, 256}, "overlap"},
        {{pa{std::uint64_t{1} << 52}, pa{0x0800'0000}, 1, 256}, "beyond 52 bits"},
        {{pa{0x0800'0000}, pa{0xf'ffff'ffff'0000}, 1, 256}, "beyond 52 bits"},
        {{pa{0x0800'0000}, pa{0xffff'ffff'ffff'0000}, 1, 256}, "beyond 52 bits"},
        {{pa{0x0800'0000}, pa{0x080a'0000}, 1, 32}, "32 interrupts"},
        {{pa{0x0800'0000}, pa{0x080a'0000}, 1, 100}, "100 interrupts"},
        {{pa{0x0800'0000}, pa{0x080a'0000}, 1, 1056}, "1056 interrupts"},
    }));
    const result<> possible = arm64::check(r.layout);
    REQUIRE_FALSE(possible);
    CHECK(possible.error() == errc::invalid_argument);
    CHECK(contains(possible.error().cause, r.cause));
    CHECK_FALSE(possible.error().cure.empty());
    CHECK(arm64::check({pa{0x0800'0000}, pa{0x0801'0000}, 4095, 1024}));
    CHECK(arm64::check({pa{0x0804'0000}, pa{0x0800'0000}, 2, 64}));
    auto backend = kvm_model::open();
    if (!backend) return;
    auto vm = backend->create_vm();
    REQUIRE(vm);
    CHECK(vm->create_gic_v3(r.layout).error() == errc::invalid_argument);
    CHECK(vm->finish_gic().error() == errc::not_found);
}

#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))

namespace {

/// A folder of its own that goes away with everything in it.
class scratch {
public:
    scratch() { REQUIRE(::mkdtemp(path_.data()) != nullptr); }
    ~scratch() {
        ::unlink((path_ + "/f").c_str());
        ::rmdir(path_.c_str());
    }
    [[nodiscard]] const std::string& folder() const { return path_; }
    [[nodiscard]] std::string file() const { return path_ + "/f"; }

private:
    std::string path_ = "vm_accel_kvm_XXXXXX";
};

} // namespace

TEST_CASE("kvm::open on things that are not KVM", "[hypervisor][kvm]") {
    const scratch here;
    struct row {
        std::string path;
        errc code;
        std::string_view cause;
    };
    const row rows[] = {
        {here.folder() + "/none", errc::not_found, "no such device"},
        {"", errc::not_found, "no such device"},
        {here.folder(), errc::system_failure, "directory"},
        {"/dev/null", errc::invalid_argument, "not a KVM device"},
    };
    for (const row& r : rows) {
        CAPTURE(r.path);
        const result<kvm> opened = kvm::open(r.path);
        REQUIRE_FALSE(opened);
        CHECK(name_of(opened.error().code) == name_of(r.code));
        CHECK(contains(opened.error().cause, r.path + ": "));
        CHECK(contains(opened.error().cause, r.cause));
        CHECK_FALSE(opened.error().cure.empty());
        const hypervisor_capabilities none = kvm::detect(r.path);
        CHECK_FALSE(none.available);
        CHECK(none.why_not == opened.error().code);
        kvm backend{r.path};
        CHECK_FALSE(backend.init());
        CHECK_FALSE(backend.is_initialized());
    }
}

TEST_CASE("kvm::open on a device with nothing behind it", "[hypervisor][kvm]") {
    const scratch here; // opening a socket's path gives ENXIO, as a dead device does
    const int listener = ::socket(AF_UNIX, SOCK_STREAM, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    REQUIRE(here.file().size() < sizeof address.sun_path);
    std::ranges::copy(here.file(), address.sun_path);
    REQUIRE(::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    const result<kvm> opened = kvm::open(here.file());
    ::close(listener);
    REQUIRE_FALSE(opened);
    CHECK(opened.error() == errc::not_found);
    CHECK(contains(opened.error().cause, "no hypervisor behind it"));
}

TEST_CASE("kvm::open without permission", "[hypervisor][kvm]") {
    const scratch here;
    const int fd = ::open(here.file().c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0);
    REQUIRE(fd >= 0);
    ::close(fd);
    // A child, because root may open anything: it becomes an ordinary user.
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        if (::geteuid() == 0 &&
            (::chdir(here.folder().c_str()) != 0 || ::setgid(65534) != 0 || ::setuid(65534) != 0)) {
            ::_exit(3);
        }
        const result<kvm> opened = kvm::open(::geteuid() == 65534 ? "f" : here.file());
        const bool right = !opened && opened.error() == errc::permission_denied &&
                           contains(opened.error().cure, "group kvm");
        ::_exit(right ? 0 : 1);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    REQUIRE(WIFEXITED(status));
    if (WEXITSTATUS(status) == 3) {
        std::cout << "SKIP: root cannot become an ordinary user here\n";
        return;
    }
    CHECK(WEXITSTATUS(status) == 0);
}

TEST_CASE("the signal that interrupts vCPUs is never taken from someone else",
          "[hypervisor][kvm]") {
    struct sigaction before{};
    struct sigaction own{};
    own.sa_handler = [](int) {};
    REQUIRE(::sigaction(SIGUSR2, &own, &before) == 0);
    const result<> refused = os::prepare_kick(SIGUSR2);
    struct sigaction after{};
    REQUIRE(::sigaction(SIGUSR2, &before, &after) == 0);
    REQUIRE_FALSE(refused);
    CHECK(refused.error() == errc::busy);
    CHECK(contains(refused.error().cure, "kick_signal"));
    CHECK(after.sa_handler == own.sa_handler);

    CHECK(os::prepare_kick(os::default_kick_signal()));
    CHECK(os::prepare_kick(os::default_kick_signal())); // ours already: nothing to do
    CHECK_FALSE(os::prepare_kick(9999));
}

TEST_CASE("a vCPU that could not be finished can be created again", "[hypervisor][kvm]") {
    auto backend = kvm_model::open();
    if (!backend) return;
    auto vm = backend->create_vm();
    REQUIRE(vm);
    // The kernel makes the vCPU, but there is no address space left for its page.
    rlimit before{};
    REQUIRE(::getrlimit(RLIMIT_AS, &before) == 0);
    rlimit none = before;
    none.rlim_cur = 1;
    REQUIRE(::setrlimit(RLIMIT_AS, &none) == 0);
    const auto refused = vm->create_vcpu(0);
    REQUIRE(::setrlimit(RLIMIT_AS, &before) == 0);
    REQUIRE_FALSE(refused);
    CHECK(refused.error() == errc::exhausted);
    auto moved = std::move(*vm);
    const auto again = moved.create_vcpu(0);
    if (!again) std::cerr << again.error() << '\n';
    CHECK(again);
    CHECK_FALSE(moved.create_vcpu(0)); // it is there now
}

TEST_CASE("two vCPUs are interrupted independently of each other", "[hypervisor][kvm]") {
    auto backend = kvm_model::open();
    if (!backend) return;
    auto vm = backend->create_vm();
    REQUIRE(vm);
    ram memory{0x1'0000};
    REQUIRE(vm->add_memory(pa{0}, memory.data(), memory.size()));
    auto first = vm->create_vcpu(0, {});
    auto second = vm->create_vcpu(1, {});
    REQUIRE(first);
    REQUIRE(second);
    kvm_model::start(*first, memory, task::echo);
    kvm_model::start(*second, memory, task::echo);
    second->request_exit();
    recording_bus bus;
    auto ended = first->run(bus);
    REQUIRE(ended);
    CHECK(name_of(ended->reason) == name_of(kvm_model::end));
    ended = second->run(bus);
    REQUIRE(ended);
    CHECK(name_of(ended->reason) == "interrupted");
}

#endif

#if defined(__linux__) && defined(__x86_64__)

namespace {

/// A machine with 64 KiB and one vCPU in real mode, code at `at`.
struct real_mode_machine {
    ram memory{0x1'0000};
    std::optional<kvm_vm> vm;
    std::optional<kvm_vcpu> vcpu;

    real_mode_machine(kvm& backend, std::span<const std::uint8_t> code, std::uint16_t at,
                      bool irqchip = false) {
        result<kvm_vm> made = backend.create_vm();
        REQUIRE(made);
        vm.emplace(std::move(*made));
        REQUIRE(vm->add_memory(pa{0}, memory.data(), memory.size()));
        std::ranges::copy(std::as_bytes(code), memory.data() + at);
        if (irqchip) REQUIRE(vm->create_irqchip());
        result<kvm_vcpu> cpu = vm->create_vcpu(0);
        REQUIRE(cpu);
        vcpu.emplace(std::move(*cpu));
        REQUIRE(x86_64::enter_real_mode(*vcpu, 0, at));
    }
};

} // namespace

TEST_CASE("x86-64: real mode, MMIO and I/O ports", "[hypervisor][kvm]") {
    auto backend = kvm_model::open();
    if (!backend) return;
    const std::uint8_t code[] = {
        0xb8, 0x00, 0xd0, 0x8e, 0xd8,       // mov $0xd000,%ax; mov %ax,%ds
        0x66, 0xa1, 0x00, 0x00, 0x66, 0x40, // mov 0,%eax; inc %eax
        0x66, 0xa3, 0x08, 0x00,             // mov %eax,8
        0xe6, 0x10, 0xe4, 0x11, 0xe6, 0x12, // out %al,$0x10; in $0x11,%al; out %al,$0x12
        0xf4,                               // hlt
    };
    real_mode_machine machine{*backend, code, 0x1000};
    recording_bus bus;
    const auto ended = machine.vcpu->run(bus);
    REQUIRE(ended);
    CHECK(name_of(ended->reason) == "halted");
    CHECK(bus.mmio == std::vector<access_record>{{false, 0xd'0000, 4, 0x5566'7700},
                                                 {true, 0xd'0008, 4, 0x5566'7701}});
    CHECK(bus.ports == std::vector<access_record>{
                           {true, 0x10, 1, 0x01}, {false, 0x11, 1, 0x11}, {true, 0x12, 1, 0x11}});

    // A bus without ports: IN gives ones, OUT goes nowhere.
    REQUIRE(x86_64::enter_real_mode(*machine.vcpu, 0, 0x1011)); // in $0x11,%al
    empty_bus nothing;
    REQUIRE(machine.vcpu->run(nothing));
    const auto general = x86_64::get_registers(*machine.vcpu);
    REQUIRE(general);
    CHECK((general->rax & 0xff) == 0xff);
}

TEST_CASE("x86-64: a triple fault ends run()", "[hypervisor][kvm]") {
    auto backend = kvm_model::open();
    if (!backend) return;
    auto vm = backend->create_vm();
    REQUIRE(vm);
    ram memory{0x1'0000};
    REQUIRE(vm->add_memory(pa{0}, memory.data(), memory.size()));
    auto vcpu = vm->create_vcpu(0);
    REQUIRE(vcpu);
    kvm_model::start(*vcpu, memory, task::spin);
    memory.put<std::uint8_t>(0x4000, 0xcc); // int3
    auto special = x86_64::get_special_registers(*vcpu);
    REQUIRE(special);
    special->idt.limit = 0; // no handler for the trap, none for that fault either
    REQUIRE(x86_64::set_special_registers(*vcpu, *special));
    empty_bus bus;
    const auto ended = vcpu->run(bus);
    REQUIRE(ended);
    // KVM without hardware support for it (a paravirtual host) reports that it
    // cannot emulate the fault; every other host reports the shutdown.
    CAPTURE(name_of(ended->reason), ended->code);
    const vcpu_exit not_emulated{exit_reason::not_emulated, 1, 0};
    CHECK((ended->reason == exit_reason::shutdown || *ended == not_emulated));
}

TEST_CASE("x86-64: read-only memory reads as RAM and writes to the bus", "[hypervisor][kvm]") {
    auto backend = kvm_model::open();
    if (!backend) return;
    const std::uint8_t code[] = {
        0xb8, 0x00, 0x10, 0x8e, 0xd8, // mov $0x1000,%ax; mov %ax,%ds
        0xa1, 0x00, 0x00,             // mov 0,%ax
        0x40, 0xa3, 0x02, 0x00, 0xf4, // inc %ax; mov %ax,2; hlt
    };
    real_mode_machine machine{*backend, code, 0x1000};
    ram rom{0x1000};
    rom.put<std::uint16_t>(0, 0x1234);
    REQUIRE(machine.vm->add_read_only_memory(pa{0x1'0000}, rom.data(), rom.size()));
    recording_bus bus;
    REQUIRE(machine.vcpu->run(bus));
    CHECK(bus.mmio == std::vector<access_record>{{true, 0x1'0002, 2, 0x1235}});
    CHECK(rom.at<std::uint16_t>(2) == 0);
}

TEST_CASE("x86-64: interrupts by line and by irqfd reach the guest", "[hypervisor][kvm]") {
    auto backend = kvm_model::open();
    if (!backend) return;
    // Sets up vector 0x25 and the first PIC, enables IRQ 5 alone, announces
    // itself with a store to 0xd0000, halts for ever; each IRQ 5 stores to 0xd0004.
    std::vector<std::uint8_t> code{
        0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0, 0xbc, 0x00, 0x70, // ds = ss = 0, sp = 0x7000
        0xc7, 0x06, 0x94, 0x00, 0x40, 0x08, 0xa3, 0x96, 0x00, // vector 0x25 = 0:0x840
        0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x20, 0xe6, 0x21,       // ICW1, ICW2
        0xb0, 0x04, 0xe6, 0x21, 0xb0, 0x01, 0xe6, 0x21,       // ICW3, ICW4
        0xb0, 0xdf, 0xe6, 0x21,                               // mask all but 5
        0xb8, 0x00, 0xd0, 0x8e, 0xd8, 0xfb, 0xa3, 0x00, 0x00, // sti; mov %ax,0
        0xf4, 0xeb, 0xfd,                                     // hlt; jmp back
    };
    code.resize(0x40);
    code.insert(code.end(), {0xa3, 0x04, 0x00, 0xb0, 0x20, 0xe6, 0x20, 0xcf}); // mov; EOI; iret
    real_mode_machine machine{*backend, code, 0x800, true};
    const result<os::descriptor> line = machine.vm->irqfd(5);
    REQUIRE(line);
    recording_bus bus;
    unsigned interrupts = 0;
    bus.on_write = [&](const access_record& access) {
        if (access.address == 0xd'0000) {
            CHECK(machine.vm->pulse_line(5));
        } else if (++interrupts == 1) {
            CHECK(os::signal_event(*line));
        } else {
            machine.vcpu->request_exit();
        }
    };
    const auto ended = machine.vcpu->run(bus);
    REQUIRE(ended);
    CHECK(name_of(ended->reason) == "interrupted");
    CHECK(interrupts == 2);
    CHECK(machine.vm->set_line(24, true).error() == errc::out_of_range);
}

TEST_CASE("x86-64: without an interrupt controller, lines and irqfd say so", "[hypervisor][kvm]") {
    auto backend = kvm_model::open();
    if (!backend) return;
    auto vm = backend->create_vm();
    REQUIRE(vm);
    const auto refused = vm->irqfd(5);
    REQUIRE_FALSE(refused);
    CHECK(contains(refused.error().cure, "create_irqchip"));
    CHECK(vm->set_line(5, true).error() == errc::out_of_range);
    // What is arm64's alone is refused, not misunderstood.
    CHECK(vm->create_gic_v3(pa{0x800'0000}, pa{0x80a'0000}, 1).error() == errc::unsupported);
    CHECK(vm->finish_gic().error() == errc::not_found);
    CHECK(vm->set_spi(1, true).error() == errc::out_of_range);
}

TEST_CASE("x86-64: CPUID of the host can be given to a vCPU", "[hypervisor][kvm]") {
    auto backend = kvm_model::open();
    if (!backend) return;
    const auto table = backend->supported_cpuid();
    REQUIRE(table);
    REQUIRE(table->header.count > 4);
    const std::uint8_t code[] = {
        0x66, 0xb8, 0x00, 0x00, 0x00, 0x80, // mov $0x80000000,%eax
        0x0f, 0xa2, 0xf4,                   // cpuid; hlt
    };
    real_mode_machine machine{*backend, code, 0x1000};
    REQUIRE(x86_64::set_cpuid(*machine.vcpu, *table));
    empty_bus bus;
    REQUIRE(machine.vcpu->run(bus));
    const auto general = x86_64::get_registers(*machine.vcpu);
    REQUIRE(general);
    bool found = false;
    for (std::uint32_t i = 0; i < table->header.count; ++i) {
        const auto& entry = table->entries[i];
        if (entry.function != 0x8000'0000) continue;
        found = true;
        CHECK(general->rax == entry.eax);
        CHECK(entry.eax >= 0x8000'0001);
    }
    CHECK(found);
}

#endif

#if defined(__linux__) && defined(__aarch64__)

TEST_CASE("arm64: the in-kernel GICv3", "[hypervisor][kvm]") {
    auto backend = kvm_model::open();
    if (!backend) return;
    auto vm = backend->create_vm();
    REQUIRE(vm);
    constexpr pa distributor{0x0800'0000};
    constexpr pa redistributors{0x080a'0000};
    CHECK(vm->set_spi(3, true).error() == errc::out_of_range);
    CHECK(vm->finish_gic().error() == errc::not_found);
    CHECK(vm->create_gic_v3(pa{0x0800'1000}, redistributors, 2).error() == errc::invalid_argument);
    CHECK(vm->create_gic_v3(distributor, redistributors, 0).error() == errc::invalid_argument);
    const result<> made = vm->create_gic_v3(distributor, redistributors, 2);
    if (!made) std::cerr << made.error() << '\n';
    REQUIRE(made);
    CHECK(vm->create_gic_v3(distributor, redistributors, 2).error() == errc::already_exists);
    const auto early = vm->irqfd(3);
    REQUIRE_FALSE(early);
    CHECK(contains(early.error().cure, "finish_gic()"));

    auto first = vm->create_vcpu(0);
    auto second = vm->create_vcpu(1);
    REQUIRE(first);
    REQUIRE(second);
    CHECK(arm64::set_timer_interrupts(*first, 27, 30));
    CHECK_FALSE(arm64::set_timer_interrupts(*first, 5, 30)); // not a private interrupt
    const result<> finished = vm->finish_gic();
    if (!finished) std::cerr << finished.error() << '\n';
    REQUIRE(finished);
    CHECK(vm->set_spi(0, true));
    CHECK(vm->set_spi(0, false));
    CHECK(vm->pulse_spi(223)); // INTID 255, the last of 256
    CHECK(vm->pulse_spi(224).error() == errc::out_of_range);
    CHECK(vm->set_spi(~0u - 31, true).error() == errc::out_of_range);
    const auto line = vm->irqfd(3);
    REQUIRE(line);
    CHECK(os::signal_event(*line));
}

TEST_CASE("arm64: a GICv3 that was refused can be created again", "[hypervisor][kvm]") {
    auto backend = kvm_model::open();
    if (!backend) return;
    auto vm = backend->create_vm();
    REQUIRE(vm);
    constexpr pa distributor{0x0800'0000};
    constexpr pa too_high{std::uint64_t{1} << 51}; // machines have 40 bits unless asked
    const result<> refused = vm->create_gic_v3(distributor, too_high, 1);
    REQUIRE_FALSE(refused);
    CHECK(refused.error() == errc::out_of_range);
    CHECK(contains(refused.error().cure, "address_bits"));
    CHECK(vm->finish_gic().error() == errc::not_found);
    CHECK(vm->set_spi(1, true).error() == errc::out_of_range);
    // The kernel has the distributor already: that part can no longer change.
    const result<> moved = vm->create_gic_v3(pa{0x0900'0000}, pa{0x080a'0000}, 1);
    REQUIRE_FALSE(moved);
    CHECK(moved.error() == errc::already_exists);
    CHECK(contains(moved.error().cause, "0x8000000"));
    REQUIRE(vm->create_gic_v3(distributor, pa{0x080a'0000}, 1));
    auto vcpu = vm->create_vcpu(0);
    REQUIRE(vcpu);
    CHECK(vm->finish_gic());
}

TEST_CASE("arm64: the in-kernel interrupt translation service", "[hypervisor][kvm]") {
    auto backend = kvm_model::open();
    if (!backend) return;
    auto vm = backend->create_vm();
    REQUIRE(vm);
    constexpr pa base{0x0808'0000};
    CHECK(vm->create_its(base).error() == errc::not_found); // no GIC yet
    REQUIRE(vm->create_gic_v3(pa{0x0800'0000}, pa{0x080a'0000}, 1));
    auto vcpu = vm->create_vcpu(0);
    REQUIRE(vcpu);
    REQUIRE(vm->finish_gic());
    CHECK(vm->create_its(pa{0x0808'1000}).error() == errc::invalid_argument);
    CHECK(vm->create_its(pa{std::uint64_t{1} << 52}).error() == errc::invalid_argument);
    CHECK(vm->signal_msi(arm64::its_doorbell(base), 0, 1).error() == errc::not_found);
    const result<> too_high = vm->create_its(pa{std::uint64_t{1} << 51});
    REQUIRE_FALSE(too_high);
    CHECK(too_high.error() == errc::out_of_range);
    const result<> made = vm->create_its(base);
    if (!made) std::cerr << made.error() << '\n';
    REQUIRE(made);
    CHECK(vm->create_its(base).error() == errc::already_exists);
    // The guest has not enabled it.
    CHECK(vm->signal_msi(arm64::its_doorbell(base), 0, 1).error() == errc::busy);
    CHECK(vm->signal_msi(pa{0x0900'0000}, 0, 1).error() == errc::invalid_argument);
}

TEST_CASE("arm64: interrupts by line and by irqfd are pending in the GIC", "[hypervisor][kvm]") {
    auto backend = kvm_model::open();
    if (!backend) return;
    auto vm = backend->create_vm();
    REQUIRE(vm);
    ram memory{0x1'0000};
    REQUIRE(vm->add_memory(pa{0}, memory.data(), memory.size()));
    REQUIRE(vm->create_gic_v3(pa{0x0800'0000}, pa{0x080a'0000}, 1));
    auto vcpu = vm->create_vcpu(0);
    REQUIRE(vcpu);
    REQUIRE(vm->finish_gic());
    const auto line = vm->irqfd(8); // INTID 40
    REQUIRE(line);
    REQUIRE(vm->set_spi(1, true)); // INTID 33, level
    REQUIRE(os::signal_event(*line));
    // The guest makes INTID 40 edge triggered first (GICD_ICFGR2, bit 17), then
    // waits for the VMM, then shows GICD_ISPENDR1.
    kvm_model::start(*vcpu, memory, task::spin);
    const std::uint32_t code[] = {
        0x52a10001, // mov w1, #0x08000000
        0x52a00042, // mov w2, #0x20000
        0xb90c0822, // str w2, [x1, #0xc08]
        0xb9000002, // str w2, [x0]: the VMM signals
        0xb9420422, // ldr w2, [x1, #0x204]
        0xb9000402, // str w2, [x0, #4]
        0x17fffffe, // b back to the load
    };
    std::ranges::copy(std::as_bytes(std::span{code}), memory.data() + 0x4000);
    recording_bus bus;
    std::uint64_t pending = 0;
    bus.on_write = [&](const access_record& access) {
        if (access.address == raw(window)) {
            CHECK(os::signal_event(*line));
        } else {
            pending |= access.value;
            if (pending == 0x102) vcpu->request_exit(); // an irqfd may take a moment
        }
    };
    const auto ended = vcpu->run(bus);
    REQUIRE(ended);
    CHECK(name_of(ended->reason) == "interrupted");
    CHECK(pending == 0x102);
}

TEST_CASE("arm64: a vCPU that is off until CPU_ON can be brought back", "[hypervisor][kvm]") {
    auto backend = kvm_model::open();
    if (!backend) return;
    auto vm = backend->create_vm();
    REQUIRE(vm);
    auto first = vm->create_vcpu(0);
    auto second = vm->create_vcpu(1);
    REQUIRE(first);
    REQUIRE(second);
    bool interrupted = false;
    std::thread waiting{[&] {
        empty_bus bus;
        const auto ended = second->run(bus);
        interrupted = ended && ended->reason == exit_reason::interrupted;
    }};
    second->request_exit();
    waiting.join();
    CHECK(interrupted);
}

TEST_CASE("arm64: registers are read back as written", "[hypervisor][kvm]") {
    auto backend = kvm_model::open();
    if (!backend) return;
    auto vm = backend->create_vm();
    REQUIRE(vm);
    auto vcpu = vm->create_vcpu(0);
    REQUIRE(vcpu);
    REQUIRE(arm64::set_boot_registers(*vcpu, pa{0x4020'0000}, pa{0x4400'0000}));
    CHECK(vcpu->get_register(arm64::pc) == 0x4020'0000u);
    CHECK(vcpu->get_register(arm64::x(0)) == 0x4400'0000u);
    CHECK(vcpu->get_register(arm64::pstate) == 0x3c5u);
    for (unsigned i = 4; i <= 30; ++i)
        REQUIRE(vcpu->set_register(arm64::x(i), 0x1000 + i));
    for (unsigned i = 4; i <= 30; ++i)
        CHECK(vcpu->get_register(arm64::x(i)) == 0x1000u + i);
    CHECK(vcpu->get_register(arm64::mpidr_el1));
    const auto none = vcpu->get_register(0x6030'0000'0010'ffff);
    REQUIRE_FALSE(none);
    CHECK_FALSE(none.error().cure.empty());
}

#endif
