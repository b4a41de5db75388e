// The policy lab: its traces, what it makes of them, and how the VMM records them.
#include "../../examples/linux_kvm_arm64/dma_recorder.hpp"
#include "../../examples/policy_lab/generators.hpp"
#include "../../examples/policy_lab/plot.hpp"
#include "fake_port.hpp"

#include <vm_accel/smmu/caches/no_tlb.hpp>
#include <vm_accel/spec/registers.hpp>

#include <catch2/catch.hpp>

#include <unistd.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

using namespace policy_lab;
using namespace vm_accel;

namespace {

trace traced(const std::string& lines) {
    std::istringstream in{std::string{trace_heading} + '\n' + lines};
    trace made{.name = "test", .records = {}};
    const auto error = read_trace(in, made);
    INFO(error.value_or(""));
    REQUIRE_FALSE(error);
    return made;
}
using small = set_associative<4, 4>;

template <class Tlb = small>
std::uint64_t hits(const std::string& lines) {
    return replay<Tlb>(prepare(traced(lines))).all.hits;
}

template <std::size_t Entries>
using parts = partitioned<set_associative<Entries / 16, 4>, 4>;
template <std::size_t Entries>
using exact = fully_associative<Entries>;
constexpr std::tuple two_policies{policy<exact>{"exact", ""}, policy<parts>{"parts", ""}};

} // namespace

TEST_CASE("policy_lab: each line reads as it was written") {
    const std::string line = GENERATE(
        as<std::string>{}, "d 10", "d 108 3f", "r fffff000 10", "w ffffffffffffffff 1",
        "p ffe00000 15 0 0 1", "p 1000 c 3 12 0 g", "f all", "f world 2", "f vm 0 7",
        "f space 0 7 ffff", "f address 0 0 1 fffff000 ffffffff", "f any 1 0 0 ffffffffffffffff");
    const auto record = parse_line(line);
    REQUIRE(record);
    CHECK(to_line(*record) == line);
}

TEST_CASE("policy_lab: what is no line is refused, and said where") {
    const std::string line =
        GENERATE(as<std::string>{}, "d", "d 100000000", "d 1 100000", "d 1 2 3", "r 1000",
                 "r 1000 0", "r ffffffffffffffff 2", "r 1000 10 x", "r 0x1000 10", "r -1 10",
                 "x 1 2", "p 1000 b 0 0 1", "p 1000 35 0 0 1", "p 1000 c 6 0 1", "p 1000 c 0 0",
                 "p 1000 c 0 0 1 h", "p 1000 c 0 10000 1", "f", "f some", "f all 1", "f space 0 7",
                 "f address 0 0 1 2000 1000", "f any 0 0 1000");
    CAPTURE(line);
    CHECK_FALSE(parse_line(line));
    std::istringstream in{std::string{trace_heading} + "\nd 1 # a device\n\n" + line + "\n"};
    trace unused;
    const auto error = read_trace(in, unused);
    REQUIRE(error);
    CHECK(error->find("line 4 ") != std::string::npos);
    std::istringstream headless{"d 1\n"};
    CHECK(read_trace(headless, unused));
}

TEST_CASE("policy_lab: a page hits until it is taken back") {
    struct row {
        const char* before; ///< after the first access
        std::uint64_t hits; ///< of the second
    };
    const auto r = GENERATE(
        row{"", 1}, row{"f address 0 0 1 5000 5fff\n", 0}, row{"f address 0 0 2 5000 5fff\n", 1},
        row{"f address 0 0 1 6000 ffff\n", 1}, row{"f any 0 0 5000 5fff\n", 0},
        row{"f any 0 1 5000 5fff\n", 1}, row{"f space 0 0 1\n", 0}, row{"f space 0 0 2\n", 1},
        row{"f vm 0 0\n", 0}, row{"f vm 0 3\n", 1}, row{"f world 0\n", 0}, row{"f world 1\n", 1},
        row{"f all\n", 0}, row{"d 2\nr 5000 10\nd 1\n", 1}, // another tag, another page
        row{"d 2\np 5000 c 0 0 1\nr 5000 10\nd 1\n", 2});   // the same tag
    CAPTURE(r.before);
    const std::string access = "r 5010 10\n";
    CHECK(hits("d 1\np 5000 c 0 0 1\n" + access + r.before + access) == r.hits);
    CHECK(hits<no_tlb>("d 1\np 5000 c 0 0 1\n" + access + r.before + access) == 0);
}

TEST_CASE("policy_lab: an access is looked up page by page, as large as pages are") {
    const prepared_trace pages = prepare(traced("d 1\nr 5ff0 2020\nr 0 200000\n"));
    CHECK(pages.accesses == 4 + 512);
    CHECK(pages.pages == 512);
    const prepared_trace large = prepare(traced("d 1\np 0 15 0 0 1\nr 5ff0 2020\nr 0 200001\n"));
    CHECK(large.accesses == 3);
    CHECK(replay<small>(large).all.hits == 1);
    // The top of the address space is no end to run past.
    CHECK(prepare(traced("d 1\nr ffffffffffffe000 2000\n")).accesses == 2);
    CHECK(prepare(traced("r 0 1\n")).devices.size() == 1);
    // An address of any ASID is also that of global pages.
    CHECK(hits("p 5000 c 0 0 1 g\nr 5000 1\nf address 0 0 2 5000 5fff\nr 5000 1\n") == 0);
}

TEST_CASE("policy_lab: prefetches find what is mapped, and cost walks") {
    using ahead = prefetching<set_associative<4, 4>, next_page<2>>;
    const std::string mapped = "d 1\np 1000 c 0 0 1\np 2000 c 0 0 1\np 3000 c 0 0 1\n";
    const std::string accesses = "r 1000 10\nr 2000 10\nr 3000 10\n";
    const replay_result with = replay<ahead>(prepare(traced(mapped + accesses)));
    CHECK(with.all.hits == 2);
    CHECK(with.walks == 3);
    const replay_result without = replay<ahead>(prepare(traced("d 1\n" + accesses)));
    CHECK(without.all.hits == 0);
    CHECK(without.walks == 3 + 6); // what is not mapped is not found, and looked for
    const std::string taken = "f address 0 0 1 3000 3fff\n";
    CHECK(replay<ahead>(prepare(traced(mapped + taken + accesses))).all.hits == 1);
    CHECK(replay<ahead>(prepare(traced("d 1\nr 1000 3000\n"))).all.hits == 2);
}

TEST_CASE("policy_lab: a neighbour's thrashing does not reach another part") {
    const prepared_trace t = prepare(generator::make("neighbour", 9000));
    REQUIRE(t.devices.size() == 2);
    const replay_result shared = replay<set_associative<128, 4>>(t);
    const replay_result apart = replay<partitioned<set_associative<32, 4>, 4>>(t);
    CHECK(shared.devices[0].rate() < 0.6);
    CHECK(apart.devices[0].rate() > 0.95);
    CHECK(apart.devices[1].hits == 0);
}

TEST_CASE("policy_lab: made-up traces are the same everywhere, and can be written down") {
    for (const std::string_view name : generator::names) {
        CAPTURE(std::string{name});
        const trace made = generator::make(name, 2000);
        CHECK(prepare(made).accesses >= 2000);
        for (const trace_record& r : made.records) {
            const auto again = parse_line(to_line(r));
            REQUIRE(again);
            REQUIRE(to_line(*again) == to_line(r));
        }
    }
    CHECK(generator::make("noise", 2000).records.empty());
    const replay_result zipf =
        replay<fully_associative<64>>(prepare(generator::make("zipf", 5000)));
    CHECK(zipf.all.accesses == 5000);
    CHECK(zipf.all.hits == 1996);
}

TEST_CASE("policy_lab: the table and the picture say what was found") {
    std::string lines = "d 1\np 0 c 0 0 1\nd 2\np 0 c 0 0 2\n";
    for (unsigned round = 0; round < 10; ++round)
        for (unsigned page = 1; page <= 30; ++page)
            lines +=
                "d " + std::to_string(1 + page % 2) + "\nr " + std::to_string(page) + "000 8\n";
    trace from = traced(lines);
    from.name = "a<b";
    prepared_trace t = prepare(from);
    std::vector<row> rows = run_all(t, two_policies);
    const experiment made{std::move(t), std::move(rows)};
    CHECK(to_table(made) == R"(a<b: 300 accesses of 2 devices to 30 pages, 0 invalidations
  hits, %                32     128     512    2048
exact                  90.0    90.0    90.0    90.0
parts                   0.3    90.0    90.0    90.0
  of worst device        32     128     512    2048
exact                  90.0    90.0    90.0    90.0
parts                   0.0    90.0    90.0    90.0
  walks, %               32     128     512    2048
)");
    const std::string picture = plot::draw({made});
    const auto count = [&](std::string_view what) {
        unsigned n = 0;
        for (auto at = picture.find(what); at != std::string::npos; at = picture.find(what, at + 1))
            ++n;
        return n;
    };
    CHECK(count("<polyline") == 2); // two policies; the devices fare alike
    CHECK(count("a<b") == 0);
    CHECK(count("a?b") == 1);
    CHECK(count("<g ") == count("</g>"));
    CHECK(count("<text") == count("</text>"));
    CHECK(picture.substr(picture.size() - 7) == "</svg>\n");
}

TEST_CASE("policy_lab: the traces in the tree can be read") {
    unsigned found = 0;
    for (const auto& entry :
         std::filesystem::directory_iterator{VM_ACCEL_SOURCE_DIR "/examples/policy_lab/traces"}) {
        CAPTURE(entry.path().string());
        std::ifstream file{entry.path()};
        trace recorded;
        const auto error = read_trace(file, recorded);
        INFO(error.value_or(""));
        REQUIRE_FALSE(error);
        const prepared_trace t = prepare(recorded);
        CHECK(t.devices.size() == 2);
        CHECK(t.scopes.size() > 100); // strict or lazy, Linux takes everything back
        const double rate = replay<set_associative<256, 4>>(t).all.rate();
        CHECK((rate > 0.1 && rate < 1));
        CHECK(entry.file_size() < 200 * 1024);
        ++found;
    }
    CHECK(found == 4);
}

namespace {

/// A port as an SMMU's, whose first access to a page fills the TLB.
struct filling_port {
    linux_vmm_test::fake_port memory;
    linux_vmm::recorded_tlb<small>* tlb;
    std::uint32_t id;

    [[nodiscard]] stream_id stream() const noexcept { return stream_id{id}; }
    [[nodiscard]] bool read(iova address, std::span<std::byte> out, access_attributes) noexcept {
        fill(address);
        return memory.read(address, out);
    }
    [[nodiscard]] bool write(iova address, std::span<const std::byte> in,
                             access_attributes) noexcept {
        fill(address);
        return memory.write(address, in);
    }

private:
    void fill(iova address) noexcept {
        const std::uint64_t base = raw(address) & ~std::uint64_t{0xfff};
        const tlb_key key{base, 1, 1 << 12};
        if (tlb->lookup(key)) return;
        tlb->fill(tlb->begin_fill(key), {.base = base, .context = 1, .tag = {.space = asid{5}}});
    }
};

/// Registers that remember what was written.
struct plain_registers {
    std::uint64_t base = 0;
    std::uint32_t end = 0;
    [[nodiscard]] std::uint64_t mmio_read(std::uint64_t offset, unsigned) const noexcept {
        return offset == spec::reg::CMDQ_BASE ? base : end;
    }
    void mmio_write(std::uint64_t offset, unsigned, std::uint64_t value) noexcept {
        if (offset == spec::reg::CMDQ_PROD) end = static_cast<std::uint32_t>(value);
    }
};

} // namespace

TEST_CASE("dma_recorder: accesses, the pages they bring, and what the driver takes back") {
    using namespace linux_vmm;
    std::string path = "/tmp/vm_accel_trace_XXXXXX";
    ::close(::mkstemp(path.data()));
    {
        dma_recorder recorder;
        CHECK_FALSE(recorder.open("/nowhere/at/all"));
        REQUIRE(recorder.open(path));
        linux_vmm_test::flat_memory memory;
        recorded_tlb<small> tlb;
        recorded_port port{filling_port{{&memory}, &tlb, 0x10}, &recorder};
        recorded_port other{filling_port{{&memory}, &tlb, 0x108}, &recorder};
        recorded_port silent{filling_port{{&memory}, &tlb, 0x11}, nullptr};
        std::array<std::byte, 16> bytes{};
        REQUIRE(port.read(iova{0x5008}, bytes));
        REQUIRE(port.write(iova{0x5010}, bytes));
        REQUIRE(silent.read(iova{0x6000}, bytes));
        REQUIRE(other.read(iova{0x5010}, bytes, {.translated = true}));
        REQUIRE(other.read(iova{0x6010}, bytes));

        region_map ram;
        alignas(0x1000) std::array<std::byte, 0x1000> pages{};
        REQUIRE(ram.add(pa{0x4000'0000}, pages.data(), pages.size()));
        plain_registers smmu{0x4000'0000 | 2, 2}; // four entries, two of them used before
        recorded_registers<stage1_features, plain_registers> registers{smmu, ram, &recorder};
        const spec::command commands[] = {
            spec::make_command(spec::opcode::CMD_SYNC), spec::tlbi_nsnh_all(),
            spec::cmd_cfgi_ste(stream_id{1}, true), spec::make_command(spec::opcode::CMD_SYNC)};
        for (const unsigned slot : {0U, 1U, 2U, 3U}) {
            REQUIRE(ram.write(pa{0x4000'0000 + 16 * slot},
                              std::as_bytes(std::span{&commands[slot], 1})));
        }
        registers.mmio_write(spec::reg::CMDQ_PROD, 4, 2 | 4); // around the end of the queue
        CHECK(smmu.end == 6);
        registers.mmio_write(spec::reg::CMDQ_PROD, 4, 6);
        registers.mmio_write(spec::reg::CMDQ_CONS, 4, 1);
    }
    std::ifstream file{path};
    std::stringstream text;
    text << file.rdbuf();
    CHECK(text.str() == std::string{trace_heading} +
                            "\nd 10\np 5000 c 0 0 5\nr 5008 10\nw 5010 10\nd 108\nr 6010 10\n"
                            "f world 0\n");
    std::filesystem::remove(path);
}
