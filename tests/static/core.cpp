/// Address spaces and identifiers never convert into each other or to integers.
#include <vm_accel/core/address.hpp>
#include <vm_accel/core/counter.hpp>
#include <vm_accel/core/error.hpp>
#include <vm_accel/core/field.hpp>
#include <vm_accel/core/result.hpp>
#include <vm_accel/core/roles.hpp>
#include <vm_accel/core/version.hpp>

#include <cstdint>
#include <tuple>
#include <type_traits>

namespace {

using namespace vm_accel;

template <class A, class... Others>
constexpr bool stands_alone =
    ((!std::is_convertible_v<A, Others> && !std::is_convertible_v<Others, A>) && ...) &&
    !std::is_convertible_v<A, std::uint64_t> && !std::is_convertible_v<std::uint64_t, A>;

static_assert(stands_alone<iova, ipa, pa, stream_id, substream_id, asid, vmid>);
static_assert(stands_alone<ipa, iova, pa, stream_id, substream_id, asid, vmid>);
static_assert(stands_alone<pa, iova, ipa, stream_id, substream_id, asid, vmid>);
static_assert(stands_alone<stream_id, iova, ipa, pa, substream_id, asid, vmid>);
static_assert(stands_alone<asid, vmid, stream_id, substream_id>);
static_assert(!std::is_convertible_v<iova_range, pa_range>);

static_assert(address_space<iova> && address_space<ipa> && address_space<pa>);
static_assert(!address_space<stream_id> && !address_space<std::uint64_t>);

static_assert(std::is_same_v<decltype(raw(stream_id{3})), std::uint32_t>);
static_assert(std::is_same_v<decltype(raw(asid{3})), std::uint16_t>);

// Errors are values: made, copied and thrown away without allocation.
static_assert(std::is_trivially_copyable_v<error>);
static_assert(std::is_trivially_destructible_v<error>);
static_assert(std::is_nothrow_default_constructible_v<error>);
static_assert(std::is_same_v<result<int>, tl::expected<int, error>>);

// A word has the size of its integer: structures of words are the architecture's layouts.
static_assert(sizeof(le32) == 4 && sizeof(le64) == 8);
static_assert(std::is_trivially_copyable_v<le64>);
static_assert(sizeof(counter) == 8);

static_assert(library_version.major == VM_ACCEL_VERSION_MAJOR);
static_assert(roles::smmu::name == "smmu" && roles::memory::name == "memory");

} // namespace
