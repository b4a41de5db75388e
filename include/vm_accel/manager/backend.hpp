/// What a backend is: anything that names its role and itself.
///
/// A backend is a plain class. It inherits nothing and includes nothing of the
/// manager; the manager looks at what the class offers and composes it at
/// compile time. Only two members are required:
///
///     using role = roles::memory;                            // what it is for
///     static constexpr std::string_view name = "my_memory";  // what it is called
///
/// Everything else is offered or left out, but what is offered must have
/// exactly the shape below (noexcept included), or the composition does not
/// compile: a misspelt or half-right member is never silently passed over.
///
/// - `result<> init() noexcept` and `bool is_initialized() const noexcept`: takes
///   it into use; both or neither. Without them it is in use once it exists.
/// - `void connect(P&) noexcept`: takes the backend P of the same composition. P
///   is set up first, and connect comes before init(). The parameter may be
///   constrained by a concept, but must not be just anything.
/// - `static D detect() noexcept`: what the host has; changes nothing. D has
///   `bool available` (and may have a text `summary` and `error why_not`), or is
///   `result<T>` or bool.
/// - `static bool is_available() noexcept`: the same, as a plain yes or no.
/// - `void report(Section&) const`: writes its section of the report, with
///   `section.given(text)` and `section.fact(name, value)`.
///
/// The known roles promise more; roles of your own promise nothing more:
///
/// - roles::smmu: init and is_initialized; connect accepts the composition's
///   roles::guest_memory, if there is one.
/// - roles::vcpus: `topology() const` (a reference or a result), and
///   `configure(unsigned vcpus)` or else `plan(unsigned vcpus)`: a `result<...>`.
/// - roles::memory: `result<> enable(unsigned nodes) noexcept`, `result<> disable()
///   noexcept` and `bool is_enabled() const noexcept`.
/// - roles::hypervisor: init and is_initialized.
///
/// Threads: the manager calls init, connect, enable, disable, configure and
/// plan of one backend from one thread at a time, and report from any number
/// of threads, but never while one of the former runs.
#pragma once

#include <vm_accel/core/error.hpp>
#include <vm_accel/core/result.hpp>
#include <vm_accel/core/roles.hpp>
#include <vm_accel/manager/diagnostic_report.hpp>

#include <concepts>
#include <cstddef>
#include <optional>
#include <string_view>
#include <type_traits>

namespace vm_accel::inline v0 {

/// A role is a type with a name; it is never instantiated.
template <class R>
concept backend_role = requires {
    { R::name } -> std::convertible_to<std::string_view>;
};

namespace offers {

/// Each trait pair: "has the member in any shape", and "has it as documented".
template <class B>
concept init = requires(B& b) { b.init(); } || requires(const B& b) { b.is_initialized(); };
template <class B>
concept documented_init = requires(B& b, const B& view) {
    { b.init() } noexcept -> std::same_as<result<>>;
    { view.is_initialized() } noexcept -> std::same_as<bool>;
};

template <class B, class P>
concept connect = requires(B& b, P& predecessor) { b.connect(predecessor); };
template <class B, class P>
concept documented_connect = requires(B& b, P& predecessor) {
    { b.connect(predecessor) } noexcept -> std::same_as<void>;
};

template <class D>
concept detection_answer = std::same_as<D, bool> || requires(const D& found) {
    { found.available } -> std::convertible_to<bool>;
} || requires(const D& found) {
    { found.has_value() } -> std::same_as<bool>;
    { found.error() } -> std::convertible_to<const error&>;
};
template <class B>
concept detect = requires(B& b) { b.detect(); } || requires(B& b) { b.is_available(); };
template <class B>
concept documented_detect = requires {
    { B::detect() } noexcept -> detection_answer;
} || requires {
    { B::is_available() } noexcept -> std::same_as<bool>;
};

template <class B>
concept report =
    requires(B& b, report_section& section) { b.report(section); } || requires { &B::report; };
template <class B>
concept documented_report = requires(const B& b, report_section& section) {
    { b.report(section) } -> std::same_as<void>;
};

/// result<T> for some T.
template <class R>
inline constexpr bool is_result = false;
template <class T>
inline constexpr bool is_result<result<T>> = true;

template <class B>
concept configure = requires(B& b, unsigned vcpus) { b.configure(vcpus); };
template <class B>
concept vcpu_placement =
    requires(const B& view) { view.topology(); } && (requires(B& b, unsigned vcpus) {
        requires is_result<decltype(b.configure(vcpus))>;
    } || (!configure<B> &&
          requires(B& b, unsigned vcpus) { requires is_result<decltype(b.plan(vcpus))>; }));

template <class B>
concept numa_memory = requires(B& b, const B& view, unsigned nodes) {
    { b.enable(nodes) } noexcept -> std::same_as<result<>>;
    { b.disable() } noexcept -> std::same_as<result<>>;
    { view.is_enabled() } noexcept -> std::same_as<bool>;
};

template <class B>
concept role_members = (!std::same_as<typename B::role, roles::smmu> || documented_init<B>) &&
                       (!std::same_as<typename B::role, roles::hypervisor> || documented_init<B>) &&
                       (!std::same_as<typename B::role, roles::vcpus> || vcpu_placement<B>) &&
                       (!std::same_as<typename B::role, roles::memory> || numa_memory<B>);

} // namespace offers

/// Meaning and shape: the lists at the top of this file.
template <class B>
concept backend =
    std::is_class_v<B> && !std::is_polymorphic_v<B> && backend_role<typename B::role> &&
    requires {
        { B::name } -> std::convertible_to<std::string_view>;
    } && (!offers::init<B> || offers::documented_init<B>) &&
    (!offers::detect<B> || offers::documented_detect<B>) &&
    (!offers::report<B> || offers::documented_report<B>) && offers::role_members<B>;

/// Says in words which obligation of `backend` a type breaks. True if none.
template <class B>
consteval bool check_backend() {
    static_assert(std::is_class_v<B>,
                  "vm_accel: a backend is a class, held by value: not a reference or pointer");
    if constexpr (std::is_class_v<B>) {
        static_assert(!std::is_polymorphic_v<B>,
                      "vm_accel: a backend has no virtual functions: nothing is dispatched at run "
                      "time");
        constexpr bool has_role = requires { typename B::role; };
        static_assert(has_role, "vm_accel: this backend has no role: say what it is for with "
                                "`using role = roles::...;`");
        constexpr bool has_name = requires {
            { B::name } -> std::convertible_to<std::string_view>;
        };
        static_assert(has_name, "vm_accel: this backend has no name: add `static constexpr "
                                "std::string_view name = \"...\";`");
        static_assert(!offers::init<B> || offers::documented_init<B>,
                      "vm_accel: this backend's set-up has another shape: it is `result<> init() "
                      "noexcept` together with `bool is_initialized() const noexcept`");
        static_assert(!offers::detect<B> || offers::documented_detect<B>,
                      "vm_accel: this backend's detection has another shape: it is a static "
                      "noexcept detect() that gives bool, result<T> or a struct with `bool "
                      "available`, or `static bool is_available() noexcept`");
        static_assert(!offers::report<B> || offers::documented_report<B>,
                      "vm_accel: this backend's report has another shape: it is `void "
                      "report(Section&) const`");
        if constexpr (has_role) {
            static_assert(backend_role<typename B::role>,
                          "vm_accel: this backend's role has no name: a role is a type with "
                          "`static constexpr std::string_view name`");
            static_assert(offers::role_members<B>,
                          "vm_accel: this backend lacks a member that its role promises: see the "
                          "list of roles in vm_accel/manager/backend.hpp");
        }
    }
    return backend<B>;
}

/// What detect() of one backend gave.
struct backend_detection {
    std::string_view role{};
    std::string_view backend{};
    bool available = true;          ///< a backend that needs nothing of the host is there
    std::optional<error> why_not{}; ///< cause and cure, where the backend tells them
    fixed_text<160> summary{};      ///< what was found or is lacking, in words
};

/// Asks one backend what the host has.
template <backend B>
[[nodiscard]] backend_detection detect_backend() {
    backend_detection out{B::role::name, B::name};
    if constexpr (requires { B::detect(); }) {
        const auto found = B::detect();
        using found_type = std::remove_const_t<decltype(found)>;
        if constexpr (std::same_as<found_type, bool>) {
            out.available = found;
        } else if constexpr (requires { found.available; }) {
            out.available = static_cast<bool>(found.available);
            if constexpr (requires { std::string_view{found.summary}; }) {
                out.summary = fixed_text<160>{std::string_view{found.summary}};
            }
            if constexpr (requires { error{found.why_not}; }) {
                if (!out.available) out.why_not = found.why_not;
            }
        } else {
            out.available = found.has_value();
            if (!found) out.why_not = found.error();
        }
    } else if constexpr (requires { B::is_available(); }) {
        out.available = B::is_available();
    }
    if (out.why_not && out.summary.empty()) out.summary = out.why_not->cause;
    return out;
}

} // namespace vm_accel::inline v0
