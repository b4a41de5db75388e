/// Backends set up one after another, each after those it takes.
///
/// Holds the backends of a composition, what is known of each, and the rules of
/// set-up and change. `acceleration_manager` is the face of it.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/manager/backend.hpp>
#include <vm_accel/manager/composition.hpp>
#include <vm_accel/manager/diagnostic_report.hpp>

#include <array>
#include <concepts>
#include <cstddef>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <tuple>
#include <type_traits>
#include <utility>

namespace vm_accel::inline v0 {

/// Constructor argument: this backend is default constructed.
struct by_default_t {};
inline constexpr by_default_t by_default{};

/// A backend and what the manager knows about it.
template <class Backend>
struct backend_slot {
    struct record {
        backend_state state = backend_state::not_asked;
        std::optional<bool> host_has_it{};
        fixed_text<160> host_summary{};
        fixed_text<64> asked{};
        std::optional<error> failure{};
    };

    Backend value;
    mutable std::shared_mutex use{}; ///< unique: being changed; shared: being reported
    record known{};                  ///< guarded by the manager's status mutex

    backend_slot() : value() {}
    template <class Argument>
        requires(!std::same_as<std::remove_cvref_t<Argument>, backend_slot>)
    explicit backend_slot(Argument&& argument) : value(make(std::forward<Argument>(argument))) {}

private:
    template <class Argument>
    static Backend make(Argument&& argument) {
        if constexpr (std::same_as<std::remove_cvref_t<Argument>, by_default_t>) {
            return Backend();
        } else if constexpr (std::is_constructible_v<Backend, Argument>) {
            return Backend(std::forward<Argument>(argument));
        } else {
            static_assert(std::is_invocable_v<Argument>,
                          "vm_accel: give each backend a value it is constructed from, "
                          "vm_accel::by_default, or a function that returns it");
            return std::forward<Argument>(argument)();
        }
    }
};

/// Locks: control_ (one set-up or change at a time) is taken first, then one
/// slot's `use`, then status_. Reports take only the last two, one at a time.
template <class... Backends>
class setup_sequence {
public:
    using parts = composition<Backends...>;
    static constexpr std::size_t size = sizeof...(Backends);

    setup_sequence() = default;
    /// One argument per backend, see backend_slot.
    template <class... Arguments>
    explicit setup_sequence(std::in_place_t, Arguments&&... arguments)
        : slots_(std::forward<Arguments>(arguments)...) {}

    template <std::size_t I>
    [[nodiscard]] auto& backend() noexcept {
        return std::get<I>(slots_).value;
    }
    template <std::size_t I>
    [[nodiscard]] const auto& backend() const noexcept {
        return std::get<I>(slots_).value;
    }

    /// Calls f<I>() for each backend in the order of set-up.
    template <class F>
    static constexpr void in_order(F&& f) {
        [&]<std::size_t... K>(std::index_sequence<K...>) {
            (f.template operator()<parts::order[K]>(), ...);
        }(std::make_index_sequence<size>{});
    }

    /// Asks backend I what the host has, and keeps the answer for the report.
    template <std::size_t I>
    backend_detection detect() {
        const backend_detection found = detect_backend<typename parts::template at<I>>();
        const std::lock_guard lock{status_};
        std::get<I>(slots_).known.host_has_it = found.available;
        std::get<I>(slots_).known.host_summary = found.summary;
        return found;
    }

    /// Sets up backend I, and first those that it takes.
    template <std::size_t I>
    [[nodiscard]] result<> setup() noexcept {
        const std::lock_guard one_at_a_time{control_};
        attempts tried{};
        return bring_up<I>(tried);
    }

    /// Sets up everything; gives the first error and goes on after it.
    [[nodiscard]] result<> setup_all() noexcept {
        const std::lock_guard one_at_a_time{control_};
        attempts tried{};
        result<> first{};
        in_order([&]<std::size_t I>() {
            const result<> done = bring_up<I>(tried);
            if (first && !done) first = done;
        });
        return first;
    }

    /// Brings backend I up, then does one thing to it. An error leaves the state
    /// as it was and is kept for the report.
    template <std::size_t I, class Action>
    [[nodiscard]] auto change(fixed_text<64> asked, backend_state after, Action action) noexcept {
        auto& slot = std::get<I>(slots_);
        using answer = decltype(action(slot.value));
        const std::lock_guard one_at_a_time{control_};
        {
            const std::lock_guard lock{status_};
            slot.known.asked = asked;
        }
        attempts tried{};
        if (const result<> up = bring_up<I>(tried); !up) return answer{fail(up)};
        const backend_state before = state_of<I>();
        note<I>(backend_state::working);
        answer done = [&] {
            const std::unique_lock changing{slot.use};
            return action(slot.value);
        }();
        if (done) {
            note<I>(after);
        } else {
            note<I>(before, done.error());
        }
        return done;
    }

    /// Reads backend I while nobody changes it; waits for a change in progress.
    template <std::size_t I, class Question>
    [[nodiscard]] auto ask(Question question) const noexcept {
        const auto& slot = std::get<I>(slots_);
        const std::shared_lock reading{slot.use};
        return question(slot.value);
    }

    template <std::size_t I>
    [[nodiscard]] backend_report report() const {
        using backend_type = typename parts::template at<I>;
        const auto& slot = std::get<I>(slots_);
        backend_report out;
        out.role = backend_type::role::name;
        out.backend = backend_type::name;
        {
            const std::lock_guard lock{status_};
            out.state = slot.known.state;
            out.asked = slot.known.asked;
            out.host_has_it = slot.known.host_has_it;
            out.host_summary = slot.known.host_summary;
            out.failure = slot.known.failure;
        }
        if (out.state != backend_state::up && out.state != backend_state::disabled) {
            if (out.state == backend_state::working) out.given = "in progress";
            if (out.failure) out.given = "nothing";
            return out;
        }
        out.given = out.failure ? "refused; as before" : name_of(out.state);
        if constexpr (offers::documented_report<backend_type>) {
            const std::shared_lock reading{slot.use, std::try_to_lock};
            if (!reading) {
                out.state = backend_state::working;
                out.given = "in progress";
                return out;
            }
            report_section section{out};
            slot.value.report(section);
        }
        return out;
    }

private:
    /// Which backends this call has tried, so that none is tried twice.
    using attempts = std::array<bool, size>;

    template <std::size_t I>
    [[nodiscard]] backend_state state_of() const noexcept {
        const std::lock_guard lock{status_};
        return std::get<I>(slots_).known.state;
    }
    template <std::size_t I>
    void note(backend_state state, std::optional<error> failure = {}) noexcept {
        const std::lock_guard lock{status_};
        std::get<I>(slots_).known.state = state;
        std::get<I>(slots_).known.failure = failure;
    }

    /// Sets up backend I after those it takes. Only with control_ held.
    template <std::size_t I>
    [[nodiscard]] result<> bring_up(attempts& tried) noexcept {
        auto& slot = std::get<I>(slots_);
        if (const backend_state state = state_of<I>();
            state == backend_state::up || state == backend_state::disabled) {
            return {};
        }
        if (tried[I]) return tl::unexpected<error>{*slot.known.failure};
        tried[I] = true;
        {
            const std::lock_guard lock{status_};
            if (slot.known.asked.empty()) slot.known.asked = "set-up";
        }
        result<> ready{};
        in_order([&]<std::size_t J>() {
            if constexpr (parts::template takes<I, J>) {
                if (ready) ready = bring_up_before<I, J>(tried);
            }
        });
        if (!ready) {
            note<I>(backend_state::skipped, ready.error());
            return ready;
        }
        note<I>(backend_state::working);
        const result<> done = [&] {
            const std::unique_lock changing{slot.use};
            return connect_and_init<I>();
        }();
        if (done) {
            note<I>(backend_state::up);
        } else {
            note<I>(backend_state::failed, done.error());
        }
        return done;
    }

    template <std::size_t I, std::size_t J>
    [[nodiscard]] result<> bring_up_before(attempts& tried) noexcept {
        const result<> done = bring_up<J>(tried);
        if (done) return {};
        return fail(done.error().code,
                    fixed_text<160>{parts::template at<I>::name}
                        .append(" needs ")
                        .append(parts::template at<J>::name)
                        .append(", which is not up: ")
                        .append(done.error().cause),
                    done.error().cure, done.error().os_error);
    }

    template <std::size_t I>
    [[nodiscard]] result<> connect_and_init() noexcept {
        constexpr bool has_init = offers::documented_init<typename parts::template at<I>>;
        if constexpr (has_init) {
            if (backend<I>().is_initialized()) return {}; // its owner was faster
        }
        in_order([&]<std::size_t J>() { connect<I, J>(); });
        if constexpr (has_init) {
            return backend<I>().init();
        } else {
            return {};
        }
    }

    template <std::size_t I, std::size_t J>
    void connect() noexcept {
        if constexpr (parts::template takes<I, J>) backend<I>().connect(backend<J>());
    }

    std::tuple<backend_slot<Backends>...> slots_;
    std::mutex control_{};        ///< one set-up or change at a time
    mutable std::mutex status_{}; ///< guards every slot's `known`; held briefly
};

} // namespace vm_accel::inline v0
