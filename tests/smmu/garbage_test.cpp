// A guest that writes anything anywhere: the model goes on, reads nothing
// outside guest memory, and stays consistent with what is in memory.
#include "guest_driver.hpp"

#include <catch2/catch.hpp>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <span>
#include <string>
#include <vector>

using namespace vm_accel;

namespace {

using random_engine = std::mt19937_64;

struct small : default_smmu_options {
    using quiescence = single_threaded;
    static constexpr std::size_t configurations = 4;
    static constexpr std::size_t contexts = 4;
    static constexpr unsigned generation_bits = 4;
    static constexpr unsigned commands_per_call = 64;
};

/// Steps per run; the sanitizer builds of a long run set another number.
std::uint64_t steps() {
    const char* wanted = std::getenv("VM_ACCEL_GARBAGE_STEPS");
    return wanted != nullptr ? std::strtoull(wanted, nullptr, 10) : 1'000'000;
}

std::uint64_t pick(random_engine& random, std::uint64_t below) { return random() % below; }

/// A number of the kinds that find mistakes: small, all ones, one bit, an
/// address in RAM, an address at the edge of RAM, anything.
std::uint64_t nasty(random_engine& random) {
    switch (pick(random, 8)) {
    case 0:
        return pick(random, 64);
    case 1:
        return ~std::uint64_t{0} << pick(random, 64);
    case 2:
        return std::uint64_t{1} << pick(random, 64);
    case 3:
        return guest::ram + pick(random, 0x40000) / 64 * 64;
    case 4:
        return guest::ram + guest::ram_bytes - pick(random, 256);
    case 5:
        return (guest::ram + pick(random, guest::ram_bytes)) | pick(random, 32);
    case 6:
        return random() & 0xffff'ffff;
    default:
        return random();
    }
}

} // namespace

TEST_CASE("random registers, memory and DMA never break the model", "[smmu][garbage]") {
    const std::uint64_t seed = GENERATE(1U, 2U, 3U);
    CAPTURE(seed);
    random_engine random{seed};
    guest::machine<set_associative<8, 2>, small> m;
    using port_type = decltype(m)::device::port;
    std::vector<port_type> ports;
    for (std::uint32_t i = 0; i < 3; ++i) {
        const std::string id = "device" + std::to_string(i);
        REQUIRE(m.iommu().attach_device(id, m.all_of_ram, stream_id{i * 7}));
        ports.push_back(m.iommu().make_port(id).value());
    }
    std::array<std::byte, 4096> buffer{};
    std::uint64_t served = 0;
    for (std::uint64_t step = 0; step < steps(); ++step) {
        // Now and then a good state, so that garbage meets a working device.
        if (step % 5'000 == 0) {
            REQUIRE(m.iommu().reset());
            m.restart_ring();
            m.forget_pages();
            m.clear_tables();
            m.start();
            for (std::uint32_t i = 0; i < 3; ++i) {
                const std::uint64_t root =
                    m.stage1_stream(i * 7, static_cast<std::uint16_t>(i % 2));
                for (std::uint64_t p = 0; p < 4; ++p) {
                    m.map(root, p << 12, guest::first_free + (p << 12));
                }
            }
        }
        switch (pick(random, 10)) {
        case 0: {
            const unsigned size =
                pick(random, 16) == 0 ? 1U << pick(random, 5) : (pick(random, 2) != 0 ? 4 : 8);
            const std::uint64_t offset =
                pick(random, 8) == 0 ? nasty(random) : pick(random, 0x200) & ~std::uint64_t{3};
            m.iommu().mmio_write(offset, size, nasty(random));
            break;
        }
        case 1:
            (void)m.iommu().mmio_read(pick(random, 4) == 0 ? nasty(random) : pick(random, 0x1000),
                                      pick(random, 2) != 0 ? 4 : 8);
            break;
        case 2: {
            // A command, likely with a known opcode and wild operands.
            spec::command c;
            c.word[0] = le64{(nasty(random) & ~std::uint64_t{0xff}) | pick(random, 0x61)};
            c.word[1] = le64{nasty(random)};
            m.enqueue(c);
            m.ring();
            break;
        }
        case 3: // a word of some structure
            m.store64(guest::ram + pick(random, guest::ram_bytes / 8) * 8, nasty(random));
            break;
        case 4: // a word of a structure that is in use
            m.store64(guest::first_free + pick(random, 0x10000 / 8) * 8, nasty(random));
            break;
        case 5: // stop being stuck on an error
            m.write32(spec::reg::GERRORN, m.read32(spec::reg::GERROR));
            m.write32(spec::reg::CMDQ_CONS, m.cons());
            break;
        case 6:
            m.write32(spec::reg::EVENTQ_CONS, m.read32(spec::reg::EVENTQ_PROD));
            break;
        default: {
            port_type& port = ports[pick(random, ports.size())];
            const iova address{pick(random, 2) != 0 ? pick(random, 0x5000) : nasty(random)};
            const auto bytes = std::span{buffer}.first(1 + pick(random, buffer.size()));
            served +=
                (pick(random, 2) != 0 ? port.read(address, bytes) : port.write(address, bytes)) ? 1
                                                                                                : 0;
            break;
        }
        }
    }
    // Bounded work, and nothing stuck: after a reset the device works again.
    while (m.iommu().poll()) {}
    REQUIRE(m.iommu().reset());
    m.restart_ring();
    m.forget_pages();
    m.clear_tables();
    m.start();
    const std::uint64_t root = m.stage1_stream(0, 1);
    m.map(root, 0x1000, m.take_pages());
    CHECK(m.commands_done());
    CHECK(ports[0].read(iova{0x1000}, std::span{buffer}.first(16)));
    CHECK(served > steps() / 1000);
    const smmu_statistics s = m.iommu().stats();
    CHECK(s.commands > 0);
    CHECK(s.faults > 0);
    CHECK(s.events > 0);
}
