// The interrupt controller's state, taken from one machine and put back into
// another: every word, and in an order that KVM can take.
#include <vm_accel/hypervisor/kvm_arm64_state.hpp>

#include <catch2/catch.hpp>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <tuple>
#include <vector>

using namespace vm_accel;
namespace gic = vm_accel::os::kvm_abi::gic_v3;

namespace {

/// Attributes as KVM keeps them, and the order of what was asked.
struct fake_vm {
    using key = std::tuple<bool, std::uint32_t, std::uint64_t>;
    std::map<key, std::uint64_t> words;
    std::vector<key> actions;
    std::vector<key> writes;

    static unsigned width(std::uint32_t group) {
        return group == gic::group_processor_registers || group == gic::group_its_registers ? 8 : 4;
    }
    result<> gic_request(bool its, std::uint32_t number,
                         os::kvm_abi::device_attribute& attribute) noexcept {
        const key at{its, attribute.group, attribute.attribute};
        if (attribute.group == gic::group_control) {
            actions.push_back(at);
            if (number == os::kvm_abi::set_device_attribute) writes.push_back(at);
            return {};
        }
        auto* const value = reinterpret_cast<std::byte*>(attribute.address);
        if (number == os::kvm_abi::get_device_attribute) {
            // A value of its own for each register.
            const std::uint64_t word =
                words.try_emplace(at, 0x0101'0000'0000 * words.size() + words.size() + 1)
                    .first->second;
            std::memcpy(value, &word, width(attribute.group));
        } else {
            std::uint64_t word = 0;
            std::memcpy(&word, value, width(attribute.group));
            words[at] = word;
            writes.push_back(at);
        }
        return {};
    }
};

constexpr std::array<std::uint64_t, 2> affinities{0x8000'0000, 0x8000'0001};

std::size_t position(const fake_vm& vm, bool its, std::uint32_t group, std::uint64_t attribute) {
    const auto found = std::ranges::find(vm.writes, fake_vm::key{its, group, attribute});
    REQUIRE(found != vm.writes.end());
    return static_cast<std::size_t>(found - vm.writes.begin());
}

} // namespace

TEST_CASE("the interrupt controller's words go from one machine to another", "[kvm][state]") {
    const bool its = GENERATE(false, true);
    const arm64::gic_plan plan{affinities, 64, its};
    fake_vm from;
    const result<arm64::gic_state> saved = arm64::save_gic(from, plan, its);
    REQUIRE(saved);
    // Messages and tables are in memory before anything is read.
    CHECK(from.actions.size() == (its ? 2 : 0));

    fake_vm into;
    REQUIRE(arm64::restore_gic(into, *saved));
    for (const auto& [at, word] : from.words) {
        const bool narrow = fake_vm::width(std::get<1>(at)) == 4;
        CHECK(into.words[at] == (narrow ? word & 0xffff'ffff : word));
    }
}

TEST_CASE("the order in which a controller is put back", "[kvm][state]") {
    const arm64::gic_plan plan{affinities, 64, true};
    fake_vm from;
    fake_vm into;
    REQUIRE(arm64::restore_gic(into, *arm64::save_gic(from, plan, true)));
    constexpr std::uint64_t second = std::uint64_t{1} << 32;
    const auto redistributor = [&](std::uint64_t offset) {
        return position(into, false, gic::group_redistributor_registers, second | offset);
    };
    const auto distributor = [&](std::uint64_t offset) {
        return position(into, false, gic::group_distributor_registers, offset);
    };
    const auto service = [&](std::uint64_t offset) {
        return position(into, true, gic::group_its_registers, offset);
    };
    CHECK(distributor(0x0) == 0);
    CHECK(redistributor(0x70) < redistributor(0x0));          // LPI tables before they are used
    CHECK(redistributor(0x1'0180) < redistributor(0x1'0100)); // cleared before set
    CHECK(distributor(0x184) < distributor(0x104));
    CHECK(distributor(0x384) < distributor(0x304));
    CHECK(service(0x80) < service(0x90)); // CBASER resets CREADR
    CHECK(service(0x90) < service(0x88));
    const std::size_t tables =
        position(into, true, gic::group_control, gic::control_its_restore_tables);
    CHECK(service(0x138) < tables);
    CHECK(tables < service(0x0)); // its enable comes last
    CHECK(service(0x0) + 1 == into.writes.size());
}

TEST_CASE("register numbers say how long a register is", "[kvm][state]") {
    CHECK(arm64::register_bytes(arm64::pc) == 8);
    CHECK(arm64::register_bytes(0x6040'0000'0010'0054) == 16); // a vector register
    CHECK(arm64::register_bytes(0x6020'0000'0011'0000) == 4);  // a cache's size
}
