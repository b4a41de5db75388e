/// Any set of backends as one object, composed while compiling.
///
///     acceleration_manager<region_map, smmu<set_associative<64, 8>, bitmap_streams<256>>> host;
///     if (auto ok = host.setup_full_acceleration(); !ok) std::cerr << ok.error();
///     auto disk = host.smmu().attach_device("disk", {pa{0x4000'0000}, 1 << 30});
///     if (!disk) std::cerr << disk.error();
///     std::cout << host.diagnostic_report();
///
/// Backends are found by type (`get<B>()`) or by what they are for
/// (`by_role<R>()`). Both are member accesses: once set up, code that goes
/// through the manager is the code that names the backend. A backend that is
/// never set up is constructed and otherwise left alone.
///
/// Set-up goes as far as it can: a backend that fails leaves the others up, and
/// only those that take it (see composition.hpp) are skipped. Trying again
/// tries what is not up.
///
/// Threads: every member may be called from any thread, but for those that hand
/// out a backend or a part of one, see below. Set-up and changes
/// (setup_..., init_..., configure_..., enable_..., disable_...) go one after
/// the other and each returns when its work is done. diagnostic_report() does
/// not wait for them: it shows a backend in the middle of one as "working" and
/// without facts. What `get`, `by_role`, `smmu` and the like, and `topology` hand
/// out follows the backend's own rules; do not use it while another thread sets
/// that backend up.
#pragma once

#include <vm_accel/core/result.hpp>
#include <vm_accel/core/roles.hpp>
#include <vm_accel/manager/backend.hpp>
#include <vm_accel/manager/composition.hpp>
#include <vm_accel/manager/diagnostic_report.hpp>
#include <vm_accel/manager/setup_sequence.hpp>

#include <array>
#include <concepts>
#include <cstddef>
#include <string_view>
#include <type_traits>
#include <utility>

namespace vm_accel::inline v0 {

/// What setup_full_acceleration is to achieve beyond set-up itself. 0 = leave as it is.
struct acceleration_request {
    unsigned vcpus = 0;      ///< plan this many virtual processors
    unsigned numa_nodes = 0; ///< place guest memory on this many nodes, see enable_numa
};

template <class... Backends>
class acceleration_manager {
    static_assert((check_backend<Backends>() && ...));
    using parts = composition<Backends...>;
    static_assert(parts::roles_are_distinct,
                  "vm_accel: two backends of this acceleration_manager have the same role; keep "
                  "one of them");
    static_assert(parts::connections_are_documented,
                  "vm_accel: a backend takes another through a connect() of another shape: it is "
                  "`void connect(P&) noexcept`");
    static_assert(parts::has_order,
                  "vm_accel: these backends connect to each other in a circle; one of them has to "
                  "do without");
    static_assert(parts::smmu_takes_guest_memory,
                  "vm_accel: the roles::smmu backend cannot use this roles::guest_memory backend: "
                  "its connect() does not accept it; give the smmu that type as its GuestMemory");

public:
    static constexpr std::size_t backend_count = sizeof...(Backends);
    /// Names of the roles in the order of set-up.
    static constexpr std::array<std::string_view, backend_count> order_of_setup = [] {
        constexpr std::array<std::string_view, backend_count> names{Backends::role::name...};
        std::array<std::string_view, backend_count> out{};
        for (std::size_t i = 0; i < backend_count; ++i)
            out[i] = names[parts::order[i]];
        return out;
    }();
    /// What a manager occupies beyond its backends (and their alignment), at most.
    static constexpr std::size_t bytes_per_backend = 768;
    static constexpr std::size_t bytes_fixed = 256;

    template <class Role>
    static constexpr bool has_role = parts::template has_role<Role>;
    template <class Backend>
    static constexpr bool has = parts::template has<Backend>;

    /// Every backend default constructed.
    acceleration_manager() = default;
    /// One argument per backend, in the order of the pack: a value that it is
    /// constructed from, `by_default`, or a function that returns it.
    template <class... Arguments>
        requires(sizeof...(Arguments) == sizeof...(Backends) && sizeof...(Backends) != 0 &&
                 (!std::same_as<std::remove_cvref_t<Arguments>, acceleration_manager> && ...))
    explicit acceleration_manager(Arguments&&... arguments)
        : sequence_(std::in_place, std::forward<Arguments>(arguments)...) {}
    acceleration_manager(const acceleration_manager&) = delete;
    acceleration_manager& operator=(const acceleration_manager&) = delete;

    /// The backend of that type. Does not compile if it is not in the pack.
    template <class Backend>
    [[nodiscard]] Backend& get() noexcept {
        return sequence_.template backend<index_of<Backend>()>();
    }
    template <class Backend>
    [[nodiscard]] const Backend& get() const noexcept {
        return sequence_.template backend<index_of<Backend>()>();
    }
    /// The backend with that role. Does not compile if the pack has none.
    template <class Role>
    [[nodiscard]] auto& by_role() noexcept {
        return sequence_.template backend<index_of_role<Role>()>();
    }
    template <class Role>
    [[nodiscard]] const auto& by_role() const noexcept {
        return sequence_.template backend<index_of_role<Role>()>();
    }
    [[nodiscard]] auto& smmu() noexcept { return by_role<roles::smmu>(); }
    [[nodiscard]] const auto& smmu() const noexcept { return by_role<roles::smmu>(); }
    [[nodiscard]] auto& guest_memory() noexcept { return by_role<roles::guest_memory>(); }
    [[nodiscard]] auto& memory() noexcept { return by_role<roles::memory>(); }
    [[nodiscard]] auto& vcpus() noexcept { return by_role<roles::vcpus>(); }
    [[nodiscard]] auto& hypervisor() noexcept { return by_role<roles::hypervisor>(); }

    /// Asks every backend what the host has. Changes nothing, decides nothing:
    /// an emulated SMMU is set up whether or not the host has a real one.
    std::array<backend_detection, backend_count> detect() {
        std::array<backend_detection, backend_count> found{};
        std::size_t next = 0;
        sequence_.in_order(
            [&]<std::size_t I>() { found[next++] = sequence_.template detect<I>(); });
        return found;
    }

    /// Sets up every backend that is not up, then does what is requested.
    /// Error: the first one met; all others are in diagnostic_report().
    [[nodiscard]] result<> setup_full_acceleration(acceleration_request request = {}) noexcept {
        result<> first = sequence_.setup_all();
        const auto keep_first = [&first](const auto& done) {
            if (!done && first) first = fail(done);
        };
        if (request.vcpus != 0) {
            if constexpr (has_role<roles::vcpus>) {
                keep_first(configure_vcpu_affinity(request.vcpus));
            } else {
                keep_first(not_in_pack("vCPUs were requested", "roles::vcpus"));
            }
        }
        if (request.numa_nodes != 0) {
            if constexpr (has_role<roles::memory>) {
                keep_first(enable_numa(request.numa_nodes));
            } else {
                keep_first(not_in_pack("NUMA nodes were requested", "roles::memory"));
            }
        }
        return first;
    }

    /// Sets up the backend with that role, and first those that it takes.
    template <class Role>
    [[nodiscard]] result<> setup() noexcept {
        return sequence_.template setup<index_of_role<Role>()>();
    }
    [[nodiscard]] result<> init_smmu() noexcept { return setup<roles::smmu>(); }
    [[nodiscard]] result<> init_vcpu_affinity() noexcept { return setup<roles::vcpus>(); }

    /// Plans `vcpus` virtual processors: what the backend's configure() or plan()
    /// gives. Sets the backend up if need be. The plan before stays on error.
    [[nodiscard]] auto configure_vcpu_affinity(unsigned vcpus) noexcept {
        constexpr std::size_t index = index_of_role<roles::vcpus>();
        return sequence_.template change<index>(
            asked_for("vCPUs: ", vcpus), backend_state::up, [&](auto& backend) {
                if constexpr (requires { backend.configure(vcpus); }) {
                    return backend.configure(vcpus);
                } else {
                    return backend.plan(vcpus);
                }
            });
    }

    /// Lets guest memory be placed on `nodes` NUMA nodes from now on: what the
    /// backend's enable() does. Which bytes go to which of them its strategy decides.
    [[nodiscard]] result<> enable_numa(unsigned nodes) noexcept {
        constexpr std::size_t index = index_of_role<roles::memory>();
        return sequence_.template change<index>(
            asked_for("NUMA nodes: ", nodes), backend_state::up,
            [&](auto& backend) { return backend.enable(nodes); });
    }
    /// Places guest memory wherever the kernel likes from now on.
    [[nodiscard]] result<> disable_numa() noexcept {
        constexpr std::size_t index = index_of_role<roles::memory>();
        return sequence_.template change<index>("NUMA off", backend_state::disabled,
                                                [](auto& backend) { return backend.disable(); });
    }
    [[nodiscard]] bool is_numa_enabled() const noexcept {
        return sequence_.template ask<index_of_role<roles::memory>()>(
            [](const auto& backend) { return backend.is_enabled(); });
    }
    [[nodiscard]] bool is_smmu_initialized() const noexcept {
        return sequence_.template ask<index_of_role<roles::smmu>()>(
            [](const auto& backend) { return backend.is_initialized(); });
    }
    /// The machine's processors, caches and nodes, as the roles::vcpus backend has
    /// them: a member of it as a rule, so not while another thread sets it up.
    [[nodiscard]] decltype(auto) topology() const noexcept {
        return by_role<roles::vcpus>().topology();
    }

    /// Where every backend stands. Never waits for set-up.
    [[nodiscard]] vm_accel::diagnostic_report diagnostic_report() const {
        vm_accel::diagnostic_report out;
        out.backends.reserve(backend_count);
        sequence_.in_order(
            [&]<std::size_t I>() { out.backends.push_back(sequence_.template report<I>()); });
        return out;
    }

private:
    template <class Role>
    static consteval std::size_t index_of_role() {
        static_assert(has_role<Role>,
                      "vm_accel: no backend of this acceleration_manager has the role asked for; "
                      "add one to its template arguments");
        return has_role<Role> ? parts::template index_of_role<Role> : 0;
    }
    template <class Backend>
    static consteval std::size_t index_of() {
        static_assert(has<Backend>, "vm_accel: this acceleration_manager has no backend of the "
                                    "type asked for; add it to its template arguments");
        return has<Backend> ? parts::template index_of<Backend> : 0;
    }

    [[nodiscard]] static fixed_text<64> asked_for(std::string_view what, unsigned count) noexcept {
        return fixed_text<64>{what}.append_number(count);
    }
    [[nodiscard]] static result<> not_in_pack(std::string_view what,
                                              std::string_view role) noexcept {
        return fail(errc::unavailable,
                    fixed_text<160>{what}
                        .append(", but this acceleration_manager has no backend for ")
                        .append(role),
                    "add one to its template arguments");
    }

    setup_sequence<Backends...> sequence_;
};

} // namespace vm_accel::inline v0
