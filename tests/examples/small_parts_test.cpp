// The VMM's console, image loader, command line and injector.
#include "../../examples/linux_kvm_arm64/injector.hpp"
#include "../../examples/linux_kvm_arm64/kernel_image.hpp"
#include "../../examples/linux_kvm_arm64/options.hpp"
#include "../../examples/linux_kvm_arm64/pl011.hpp"

#include <catch2/catch.hpp>

#include <cstdlib>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

using namespace linux_vmm;

namespace {

struct collect {
    std::vector<std::string>* lines;
    void operator()(std::string_view text) const noexcept { lines->emplace_back(text); }
};
struct remember {
    std::vector<bool>* levels;
    void operator()(bool level) const noexcept { levels->push_back(level); }
};

template <class Uart>
void print(Uart& uart, std::string_view text) {
    for (const char c : text)
        uart.write(0, static_cast<unsigned char>(c));
}

} // namespace

TEST_CASE("pl011: hands over whole lines, and the rest at the end") {
    std::vector<std::string> lines;
    std::vector<bool> levels;
    {
        pl011 uart{collect{&lines}, remember{&levels}};
        print(uart, "one\ntw");
        CHECK(lines == std::vector<std::string>{"one\n"});
        print(uart, "o\nthree");
        uart.flush();
        uart.flush();
        CHECK(lines == std::vector<std::string>{"one\n", "two\n", "three"});
        print(uart, std::string(5000, 'x'));
        REQUIRE(lines.size() == 4);
        CHECK(lines[3].size() == 4096);
        print(uart, "last");
    }
    CHECK(lines.back() == std::string(904, 'x') + "last");
    CHECK(levels.empty());
}

TEST_CASE("pl011: always ready to send, and the interrupt follows mask and clear") {
    std::vector<std::string> lines;
    std::vector<bool> levels;
    pl011 uart{collect{&lines}, remember{&levels}};
    CHECK(uart.read(0x18) == 0x90);
    uart.write(0x38, 0x20);
    CHECK(uart.read(0x40) == 0);
    print(uart, "a");
    CHECK(uart.read(0x3c) == 0x20);
    CHECK(uart.read(0x40) == 0x20);
    uart.write(0x44, 0x20);
    CHECK(uart.read(0x40) == 0);
    print(uart, "bc");
    uart.write(0x38, 0);
    CHECK(levels == std::vector<bool>{true, false, true, false});
}

TEST_CASE("pl011: identifies itself as an AMBA PrimeCell UART") {
    std::vector<std::string> lines;
    std::vector<bool> levels;
    pl011 uart{collect{&lines}, remember{&levels}};
    std::uint32_t cell = 0, peripheral = 0;
    for (unsigned i = 0; i < 4; ++i) {
        peripheral |= uart.read(0xfe0 + 4 * i) << (8 * i);
        cell |= uart.read(0xff0 + 4 * i) << (8 * i);
    }
    CHECK((peripheral & 0xf'ffff) == 0x4'1011);
    CHECK(cell == 0xb105'f00d);
    CHECK(uart.read(0xfe1) == 0);
    CHECK(uart.read(~std::uint64_t{0}) == 0);
}

namespace {

std::vector<std::byte> image_of(std::uint64_t offset, std::uint64_t size, std::uint64_t flags,
                                std::uint32_t magic = 0x644d5241) {
    std::vector<std::byte> image(4096);
    image_header header;
    header.text_offset = offset;
    header.image_size = size;
    header.flags = flags;
    header.magic = magic;
    std::memcpy(image.data(), &header, sizeof header);
    return image;
}

} // namespace

TEST_CASE("kernel image: only a sound arm64 header is accepted") {
    CHECK(parse_image_header(image_of(0, 0x10'0000, 0xa)));
    CHECK_FALSE(parse_image_header(image_of(0, 0x10'0000, 0xb)));
    CHECK_FALSE(parse_image_header(image_of(0, 0x10'0000, 0xa, 0)));
    CHECK_FALSE(parse_image_header(image_of(0, 100, 0xa)));
    CHECK_FALSE(parse_image_header(image_of(~std::uint64_t{0}, 0x10'0000, 0xa)));
    CHECK_FALSE(parse_image_header(std::vector<std::byte>(63)));
    std::vector<std::byte> gzip(4096);
    gzip[0] = std::byte{0x1f};
    gzip[1] = std::byte{0x8b};
    const auto refused = parse_image_header(gzip);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().cure.view().find("gzip") != std::string_view::npos);
}

TEST_CASE("kernel image: kernel, tree and initial file system lie apart, inside RAM") {
    const pa base{0x4000'0000};
    for (const std::uint64_t offset : {std::uint64_t{0}, std::uint64_t{0x8'0000}}) {
        const auto header = parse_image_header(image_of(offset, 0x20'0001, 0xa));
        REQUIRE(header);
        const auto plan = plan_loading(*header, 0x12'3456, base, 0x1000'0000);
        REQUIRE(plan);
        CHECK(raw(plan->kernel) == raw(base) + offset);
        CHECK(raw(plan->device_tree) % two_mib == 0);
        CHECK(raw(plan->device_tree) >= raw(plan->kernel) + 0x20'0001);
        CHECK(raw(plan->initrd) >= raw(plan->device_tree) + two_mib);
        CHECK(raw(plan->initrd) + 0x12'3456 <= raw(base) + 0x1000'0000);
        CHECK_FALSE(plan_loading(*header, 0x12'3456, base, 0x60'0000));
        CHECK_FALSE(plan_loading(*header, ~std::uint64_t{0}, base, 0x1000'0000));
    }
    const auto huge = parse_image_header(image_of(0, ~std::uint64_t{0}, 0xa));
    REQUIRE(huge);
    CHECK_FALSE(plan_loading(*huge, 1, base, 0x1000'0000));
}

TEST_CASE("options: read whole or refused with a cause") {
    const char* const good[] = {"--pci-disk",   "p", "--kernel", "k",         "--initrd", "i",
                                "--disk",       "d", "--vcpus",  "4",         "--memory", "96",
                                "--numa-nodes", "3", "--inject", "--cmdline", "a b c"};
    const auto parsed = parse_options(good);
    REQUIRE(parsed);
    CHECK(parsed->kernel == "k");
    CHECK(parsed->pci_disk == "p");
    CHECK(parsed->vcpus == 4);
    CHECK(parsed->memory_mib == 96);
    CHECK(parsed->numa_nodes == 3);
    CHECK(parsed->nodes == 3); // the guest has as many, unless it is told
    CHECK(parsed->inject);
    CHECK(parsed->command_line == "a b c");
    CHECK(parsed->timeout_seconds == 0);
    const char* const two[] = {"--kernel", "k", "--initrd", "i", "--disk", "d", "--nodes", "2"};
    const auto nodes = parse_options(two);
    REQUIRE(nodes);
    CHECK(nodes->nodes == 2);
    CHECK(nodes->numa_nodes == 1);

    const std::vector<std::vector<const char*>> bad = {
        {},
        {"--kernel", "k"},
        {"--kernel"},
        {"--nonsense", "1"},
        {"--kernel", "k", "--initrd", "i", "--disk", "d", "--vcpus", "0"},
        {"--kernel", "k", "--initrd", "i", "--disk", "d", "--vcpus", "65"},
        {"--kernel", "k", "--initrd", "i", "--disk", "d", "--vcpus", "2x"},
        {"--kernel", "k", "--initrd", "i", "--disk", "d", "--memory", "-1"},
        {"--kernel", "k", "--initrd", "i", "--disk", "d", "--features", "most"},
        {"--kernel", "k", "--initrd", "i", "--disk", "d", "--memory", "99"},
        {"--kernel", "k", "--initrd", "i", "--disk", "d", "--memory", "98", "--numa-nodes", "2"},
        {"--kernel", "k", "--initrd", "i", "--disk", "d", "--memory", "98", "--nodes", "2"},
        {"--kernel", "k", "--initrd", "i", "--disk", "d", "--memory", "99999999999999999999"}};
    for (const auto& arguments : bad)
        CHECK_FALSE(parse_options(arguments));
}

namespace {

/// Ports that behave in the ways an injection must tell apart.
enum class behaviour { refuses, obeys, writes_a_word, writes_elsewhere, reads_and_denies };

struct suspicious_port {
    vm_accel::region_map* ram;
    behaviour kind;

    [[nodiscard]] bool read(iova address, std::span<std::byte> out) noexcept {
        if (kind == behaviour::reads_and_denies) out[0] = std::byte{0};
        return kind == behaviour::obeys && ram->read(pa{raw(address)}, out);
    }
    [[nodiscard]] bool write(iova address, std::span<const std::byte> in) noexcept {
        if (kind == behaviour::writes_a_word) {
            static_cast<void>(ram->write(pa{raw(address) + 0xff8}, in.first(8)));
        } else if (kind == behaviour::writes_elsewhere) {
            static_cast<void>(ram->write(pa{0x4000'2008}, in.first(64)));
        }
        return kind == behaviour::obeys && ram->write(pa{raw(address)}, in);
    }
};

struct last_of {
    injection* last;
    void operator()(const injection& now) const noexcept { *last = now; }
};

} // namespace

TEST_CASE("injector: only what is refused and leaves no trace counts as refused") {
    struct expectation {
        behaviour kind;
        bool reads_refused, writes_refused;
    };
    const expectation cases[] = {{behaviour::refuses, true, true},
                                 {behaviour::obeys, false, false},
                                 {behaviour::writes_a_word, true, false},
                                 {behaviour::writes_elsewhere, true, false},
                                 {behaviour::reads_and_denies, false, true}};
    const expectation& c = cases[GENERATE_COPY(range(std::size_t{0}, std::size(cases)))];
    constexpr std::size_t bytes = 0x4000;
    const std::unique_ptr<std::byte, void (*)(void*)> memory{
        static_cast<std::byte*>(std::aligned_alloc(4096, bytes)), std::free};
    std::memset(memory.get(), 0, bytes);
    vm_accel::region_map ram;
    REQUIRE(ram.add(pa{0x4000'0000}, memory.get(), bytes));
    injection last;
    std::vector<dma_source<suspicious_port>> sources;
    sources.push_back({"first", 1, {&ram, behaviour::refuses}});
    sources.push_back({"second", 2, {&ram, c.kind}});
    unsigned woken = 0;
    injector device{std::move(sources), ram, pa{0x4000'1000}, last_of{&last},
                    [&woken]() noexcept { ++woken; }};
    CHECK(device.read() == 0);
    device.write(0);
    device.write(3);
    device.work();
    CHECK(woken == 0);
    CHECK(device.done().empty());
    device.write(2);
    device.write(1); // one at a time
    CHECK(woken == 1);
    CHECK(device.read() == 3);
    device.work();
    CHECK(last.name == "second");
    CHECK((last.reads_refused == last.reads) == c.reads_refused);
    CHECK((last.writes_refused == last.writes) == c.writes_refused);
    CHECK(last.refused() == (c.reads_refused && c.writes_refused));
    CHECK(device.read() == (last.refused() ? 1u : 2u));
    device.write(1);
    device.work();
    CHECK(device.read() == 1);
    CHECK(device.done().size() == 2);
}
