#include <vm_accel/guest/interrupt_sink.hpp>

#include <catch2/catch.hpp>

#include <string_view>
#include <tuple>

namespace {

using namespace vm_accel;

TEST_CASE("wired interrupts have their device tree names", "[guest]") {
    const auto [line, name] = GENERATE(table<wired_interrupt, std::string_view>({
        {wired_interrupt::eventq, "eventq"},
        {wired_interrupt::priq, "priq"},
        {wired_interrupt::cmdq_sync, "cmdq-sync"},
        {wired_interrupt::gerror, "gerror"},
    }));
    CHECK(name_of(line) == name);
}

TEST_CASE("the counting sink counts each line apart and takes no messages", "[guest]") {
    counting_sink sink;
    sink.pulse(wired_interrupt::gerror);
    sink.pulse(wired_interrupt::gerror);
    sink.pulse(wired_interrupt::eventq);
    CHECK(sink.pulses(wired_interrupt::gerror) == 2);
    CHECK(sink.pulses(wired_interrupt::eventq) == 1);
    CHECK(sink.pulses(wired_interrupt::cmdq_sync) == 0);
    CHECK(sink.pulses(wired_interrupt::priq) == 0);
    CHECK(!sink.is_doorbell(pa{0x808'0000}));
    CHECK(!sink.signal_msi(stream_id{1}, pa{0x808'0000}, 7));
}

} // namespace
