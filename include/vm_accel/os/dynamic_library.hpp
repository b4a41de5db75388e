/// A shared library that is looked for while the program runs, so that the program
/// starts where it is missing.
#pragma once

#include <vm_accel/core/result.hpp>

#include <string_view>
#include <utility>

#if defined(_WIN32)
#include <vm_accel/os/windows_calls.hpp>
// NOLINTBEGIN: names are the system's
extern "C" {
struct HINSTANCE__;
__declspec(dllimport) HINSTANCE__* __stdcall LoadLibraryExA(const char*, void*, unsigned long);
__declspec(dllimport) int __stdcall FreeLibrary(HINSTANCE__*);
__declspec(dllimport) long long (*__stdcall GetProcAddress(HINSTANCE__*, const char*))();
}
// NOLINTEND
#else
#include <dlfcn.h>
#endif

namespace vm_accel::inline v0::os {

/// Owns a loaded library. Threads: open() once, then everything from any thread.
class dynamic_library {
public:
    dynamic_library() noexcept = default;
    dynamic_library(dynamic_library&& other) noexcept
        : handle_(std::exchange(other.handle_, nullptr)) {}
    dynamic_library& operator=(dynamic_library&& other) noexcept {
        if (this != &other) {
            close();
            handle_ = std::exchange(other.handle_, nullptr);
        }
        return *this;
    }
    ~dynamic_library() { close(); }

    /// `name` ends with a zero byte. On Windows it is looked for among the system's
    /// own libraries only: never in the current directory. Error: not_found.
    [[nodiscard]] static result<dynamic_library> open(const char* name) noexcept {
        dynamic_library opened;
#if defined(_WIN32)
        constexpr unsigned long search_system32 = 0x800;
        opened.handle_ = ::LoadLibraryExA(name, nullptr, search_system32);
        const int reason = opened.handle_ != nullptr ? 0 : static_cast<int>(::GetLastError());
#else
        opened.handle_ = ::dlopen(name, RTLD_NOW | RTLD_LOCAL);
        const int reason = 0;
#endif
        if (opened.handle_ != nullptr) return opened;
        return fail(errc::not_found, fixed_text<160>{name}.append(": no such library here"),
                    "install the part of the system that has it", reason);
    }

    /// The function of that name, null if the library has none. `Function` must be
    /// its type: nothing can check it.
    template <class Function>
    [[nodiscard]] Function* find(const char* name) const noexcept {
        if (handle_ == nullptr) return nullptr;
#if defined(_WIN32)
        // Through void (*)(), which any function pointer may be cast from and to.
        return reinterpret_cast<Function*>(
            reinterpret_cast<void (*)()>(::GetProcAddress(handle_, name)));
#else
        return reinterpret_cast<Function*>(::dlsym(handle_, name));
#endif
    }
    [[nodiscard]] explicit operator bool() const noexcept { return handle_ != nullptr; }

private:
    void close() noexcept {
        if (handle_ == nullptr) return;
#if defined(_WIN32)
        static_cast<void>(::FreeLibrary(handle_));
#else
        static_cast<void>(::dlclose(handle_));
#endif
        handle_ = nullptr;
    }

#if defined(_WIN32)
    HINSTANCE__* handle_ = nullptr;
#else
    void* handle_ = nullptr;
#endif
};

} // namespace vm_accel::inline v0::os
