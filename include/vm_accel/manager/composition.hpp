/// Which backend comes after which: worked out while compiling.
///
/// A backend that takes another (`connect(P&)`) is set up after it. Otherwise
/// the known roles go in the order of `usual_order`, and roles of your own come
/// last, in the order of the pack. A circle does not compile.
#pragma once

#include <vm_accel/core/roles.hpp>
#include <vm_accel/manager/backend.hpp>

#include <array>
#include <concepts>
#include <cstddef>
#include <tuple>
#include <utility>

namespace vm_accel::inline v0 {

template <class... Roles>
struct role_list {
    static constexpr std::size_t size = sizeof...(Roles);
    /// Position of Role in the list; `size` if it is not there.
    template <class Role>
    static constexpr std::size_t index_of = [] {
        std::size_t index = 0;
        const bool found = ((std::same_as<Role, Roles> || (++index, false)) || ...);
        return found ? index : size;
    }();
};

/// What others build on comes first; the hypervisor, which takes all of it, last.
using usual_order =
    role_list<roles::guest_memory, roles::vcpus, roles::memory, roles::smmu, roles::hypervisor>;

/// Facts about a pack of backends; never instantiated as an object.
template <class... Backends>
struct composition {
    static constexpr std::size_t size = sizeof...(Backends);
    using role_order = role_list<typename Backends::role...>;
    using backend_order = role_list<Backends...>;

    /// Divides a position in a size-by-size table into row and column.
    static constexpr std::size_t row = size == 0 ? 1 : size;

    template <std::size_t I>
    using at = std::tuple_element_t<I, std::tuple<Backends...>>;

    template <class Role>
    static constexpr std::size_t index_of_role = role_order::template index_of<Role>;
    template <class Backend>
    static constexpr std::size_t index_of = backend_order::template index_of<Backend>;
    template <class Role>
    static constexpr bool has_role = index_of_role<Role> != size;
    template <class Backend>
    static constexpr bool has = index_of<Backend> != size;

    /// Whether each role occurs once.
    static constexpr bool roles_are_distinct = [] {
        std::size_t index = 0;
        return ((index_of_role<typename Backends::role> == index++) && ...);
    }();

    /// Whether backend I takes backend J.
    template <std::size_t I, std::size_t J>
    static constexpr bool takes = [] {
        if constexpr (I == J) {
            return false;
        } else {
            return offers::connect<at<I>, at<J>>;
        }
    }();

    /// Whether every connect() between two backends has the documented shape.
    static constexpr bool connections_are_documented =
        []<std::size_t... IJ>(std::index_sequence<IJ...>) {
            return ((!takes<IJ / row, IJ % row> ||
                     offers::documented_connect<at<IJ / row>, at<IJ % row>>) &&
                    ...);
        }(std::make_index_sequence<size * size>{});

    /// Whether the SMMU of the pack can use the guest memory of the pack.
    static constexpr bool smmu_takes_guest_memory = [] {
        if constexpr (has_role<roles::smmu> && has_role<roles::guest_memory>) {
            return takes<index_of_role<roles::smmu>, index_of_role<roles::guest_memory>>;
        } else {
            return true;
        }
    }();

private:
    using matrix = std::array<std::array<bool, size>, size>;

    static constexpr matrix takes_matrix = []<std::size_t... IJ>(std::index_sequence<IJ...>) {
        matrix out{};
        ((out[IJ / row][IJ % row] = takes<IJ / row, IJ % row>), ...);
        return out;
    }(std::make_index_sequence<size * size>{});

    struct sorted {
        std::array<std::size_t, size> order{};
        bool is_complete = true;
    };

    static constexpr sorted sort() {
        constexpr std::array<std::size_t, size> rank{
            usual_order::index_of<typename Backends::role>...};
        sorted out{};
        std::array<bool, size> placed{};
        for (std::size_t position = 0; position < size; ++position) {
            std::size_t best = size;
            for (std::size_t i = 0; i < size; ++i) {
                bool ready = !placed[i];
                for (std::size_t j = 0; j < size; ++j)
                    ready = ready && (!takes_matrix[i][j] || placed[j]);
                if (ready && (best == size || rank[i] < rank[best])) best = i;
            }
            if (best == size) return {out.order, false};
            placed[best] = true;
            out.order[position] = best;
        }
        return out;
    }

public:
    /// Pack indices in the order of set-up.
    static constexpr std::array<std::size_t, size> order = sort().order;
    /// False if backends take each other in a circle.
    static constexpr bool has_order = sort().is_complete;
};

} // namespace vm_accel::inline v0
