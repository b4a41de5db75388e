/// The system calls that the KVM backend makes, and nothing else of it.
///
/// On Linux for x86-64 and arm64 they are the kernel's; elsewhere each fails
/// with ENOSYS and `kvm_platform::present` is false, so that code above this
/// file needs no platform conditional.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/os/descriptor.hpp>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>

#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))
#define VM_ACCEL_HAS_KVM 1
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <signal.h>
#else
#define VM_ACCEL_HAS_KVM 0
#endif

namespace vm_accel::inline v0::os {

enum class kvm_architecture : std::uint8_t { none, x86_64, arm64 };

struct kvm_platform {
#if VM_ACCEL_HAS_KVM && defined(__x86_64__)
    static constexpr kvm_architecture architecture = kvm_architecture::x86_64;
#elif VM_ACCEL_HAS_KVM
    static constexpr kvm_architecture architecture = kvm_architecture::arm64;
#else
    static constexpr kvm_architecture architecture = kvm_architecture::none;
#endif
    static constexpr bool present = architecture != kvm_architecture::none;
};

/// What a system call gave: its value, or errno.
struct call_result {
    long value = -1;
    int os_error = ENOSYS;

    [[nodiscard]] constexpr bool ok() const noexcept { return os_error == 0; }
};

/// Names a thread to `kick`. 0 = no thread.
using thread_number = int;

#if VM_ACCEL_HAS_KVM

/// Opens a character device for reading and writing; `path` ends with a zero byte.
[[nodiscard]] inline call_result open_device(const char* path) noexcept {
    const int fd = ::open(path, O_RDWR | O_CLOEXEC);
    return {fd, fd < 0 ? errno : 0};
}

[[nodiscard]] inline call_result device_request(const descriptor& device, std::uint32_t number,
                                                std::uintptr_t argument = 0) noexcept {
    const int value = ::ioctl(device.get(), number, argument);
    return {value, value < 0 ? errno : 0};
}

/// The same with a structure that the kernel reads or fills.
template <class Argument>
[[nodiscard]] call_result device_request_with(const descriptor& device, std::uint32_t number,
                                              Argument& argument) noexcept {
    return device_request(device, number, reinterpret_cast<std::uintptr_t>(&argument));
}

/// A descriptor that counts events (eventfd), for interrupts.
[[nodiscard]] inline call_result make_event() noexcept {
    const int fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return {fd, fd < 0 ? errno : 0};
}

/// Adds one event. Any thread; never blocks. False: the descriptor is not an event.
inline bool signal_event(const descriptor& event) noexcept {
    const std::uint64_t one = 1;
    return ::write(event.get(), &one, sizeof one) == sizeof one || errno == EAGAIN;
}

/// Memory shared with the kernel through a descriptor.
class shared_mapping {
public:
    shared_mapping() noexcept = default;
    shared_mapping(shared_mapping&& other) noexcept
        : bytes_(std::exchange(other.bytes_, nullptr)), size_(std::exchange(other.size_, 0)) {}
    shared_mapping& operator=(shared_mapping&& other) noexcept {
        if (this != &other) {
            unmap();
            bytes_ = std::exchange(other.bytes_, nullptr);
            size_ = std::exchange(other.size_, 0);
        }
        return *this;
    }
    ~shared_mapping() { unmap(); }

    /// Replaces the mapping. Gives errno, 0 if it worked.
    [[nodiscard]] int map(const descriptor& device, std::size_t size) noexcept {
        void* const at = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, device.get(), 0);
        if (at == MAP_FAILED) return errno;
        unmap();
        bytes_ = static_cast<std::byte*>(at);
        size_ = size;
        return 0;
    }
    [[nodiscard]] std::byte* data() const noexcept { return bytes_; }
    [[nodiscard]] std::size_t size() const noexcept { return size_; }

private:
    void unmap() noexcept {
        if (bytes_ != nullptr) ::munmap(bytes_, size_);
    }
    std::byte* bytes_ = nullptr;
    std::size_t size_ = 0;
};

/// The signal that interrupts a vCPU unless another is chosen.
[[nodiscard]] inline int default_kick_signal() noexcept { return SIGRTMIN + 4; }

/// What the kick signal does when it arrives: nothing, but a blocking call ends.
extern "C" inline void vm_accel_ignore_kick(int) noexcept {}

/// Makes `signal_number` interrupt system calls and do nothing else, for the
/// whole process. Error busy: the process already handles it in another way.
[[nodiscard]] inline result<> prepare_kick(int signal_number) noexcept {
    struct sigaction before{};
    if (::sigaction(signal_number, nullptr, &before) != 0) {
        return fail_with(errno, "signal that interrupts vCPUs", "choose a signal that exists");
    }
    const bool with_information = (before.sa_flags & SA_SIGINFO) != 0;
    if (!with_information && before.sa_handler == &vm_accel_ignore_kick) return {};
    if (with_information || before.sa_handler != SIG_DFL) {
        return fail(errc::busy,
                    fixed_text<160>{"signal "}
                        .append_number(static_cast<std::uint64_t>(signal_number))
                        .append(": the process already handles it"),
                    "choose a free signal in kvm_vm_options::kick_signal");
    }
    struct sigaction action{};
    action.sa_handler = &vm_accel_ignore_kick; // no SA_RESTART: calls must end
    ::sigemptyset(&action.sa_mask);
    if (::sigaction(signal_number, &action, nullptr) != 0) {
        return fail_with(errno, "signal that interrupts vCPUs", "choose another signal");
    }
    return {};
}

/// Lets the signal reach the calling thread, and names that thread.
[[nodiscard]] inline thread_number accept_kicks(int signal_number) noexcept {
    sigset_t set;
    ::sigemptyset(&set);
    ::sigaddset(&set, signal_number);
    ::pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
    return static_cast<thread_number>(::syscall(SYS_gettid));
}

/// Interrupts a system call of that thread. A thread that has ended is no error.
inline void kick(thread_number thread, int signal_number) noexcept {
    ::syscall(SYS_tgkill, ::getpid(), thread, signal_number);
}

#else

[[nodiscard]] inline call_result open_device(const char*) noexcept { return {}; }
[[nodiscard]] inline call_result device_request(const descriptor&, std::uint32_t,
                                                std::uintptr_t = 0) noexcept {
    return {};
}
template <class Argument>
[[nodiscard]] call_result device_request_with(const descriptor&, std::uint32_t,
                                              Argument&) noexcept {
    return {};
}
[[nodiscard]] inline call_result make_event() noexcept { return {}; }
inline bool signal_event(const descriptor&) noexcept { return false; }

class shared_mapping {
public:
    [[nodiscard]] int map(const descriptor&, std::size_t) noexcept { return ENOSYS; }
    [[nodiscard]] std::byte* data() const noexcept { return nullptr; }
    [[nodiscard]] std::size_t size() const noexcept { return 0; }
};

[[nodiscard]] inline int default_kick_signal() noexcept { return 0; }
[[nodiscard]] inline result<> prepare_kick(int) noexcept {
    return fail(errc::unsupported, "vCPU signals: not on this platform", "run on Linux");
}
[[nodiscard]] inline thread_number accept_kicks(int) noexcept { return 0; }
inline void kick(thread_number, int) noexcept {}

#endif

} // namespace vm_accel::inline v0::os
