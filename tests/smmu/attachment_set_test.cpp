/// The devices behind one SMMU: found by name and by StreamID, whatever came and
/// went before.
#include <vm_accel/smmu/host/attachment_set.hpp>

#include <catch2/catch.hpp>

#include <cstdint>
#include <string>
#include <vector>

using namespace vm_accel;

namespace {

constexpr pa_range window{pa{0x4000'0000}, 0x1000};

struct devices {
    configuration_cache configurations;
    attachment_set set;

    devices() {
        REQUIRE(configurations.allocate(64, 4, 32));
        REQUIRE(set.allocate(1U << 16));
    }
    attachment_record& attach(const std::string& name, std::uint32_t stream) {
        REQUIRE(set.attach(name, window, stream_id{stream}, {}));
        attachment_record* const record = set.find(name);
        REQUIRE(record != nullptr);
        REQUIRE(set.find(stream_id{stream}) == record);
        return *record;
    }
    void detach(const std::string& name) {
        attachment_record* const record = set.find(name);
        REQUIRE(record != nullptr);
        set.detach(*record, configurations);
    }
    std::vector<std::string> names() const {
        std::vector<std::string> all;
        for (const attachment_info& info : set.list())
            all.emplace_back(info.device_id.view());
        return all;
    }
    /// Gives the device a configuration, as an access would.
    void configure(attachment_record& record) {
        stream_configuration decoded;
        decoded.mode = stream_mode::abort;
        const configuration_ticket ticket = record.slot.begin_fill();
        REQUIRE(configurations.publish(record.slot, ticket, decoded) != nullptr);
    }
};

} // namespace

TEST_CASE("devices are listed in the order of attaching, whoever goes") {
    const auto [gone, left] = GENERATE(table<std::vector<std::string>, std::vector<std::string>>({
        {{"a"}, {"b", "c", "d"}},
        {{"b"}, {"a", "c", "d"}},
        {{"d"}, {"a", "b", "c"}},
        {{"c", "b"}, {"a", "d"}},
        {{"d", "a", "b", "c"}, {}},
    }));
    devices all;
    for (std::uint32_t i = 0; i < 4; ++i)
        (void)all.attach(std::string(1, static_cast<char>('a' + i)), i);
    for (const std::string& name : gone)
        all.detach(name);
    CHECK(all.names() == left);
    CHECK(all.set.attached() == left.size());
    for (const std::string& name : gone)
        CHECK(all.set.find(name) == nullptr);
    (void)all.attach("last", 0xffff);
    CHECK(all.names().back() == "last");
}

TEST_CASE("thousands of devices are found, by either way, and no other") {
    devices all;
    constexpr std::uint32_t count = 5000; // more than the hash has places
    for (std::uint32_t i = 0; i < count; ++i)
        REQUIRE(all.set.attach("vf" + std::to_string(i), window, stream_id{i * 13}, {}));
    for (std::uint32_t i = 0; i < count; i += 2)
        all.detach("vf" + std::to_string(i));
    for (std::uint32_t i = 0; i < count; ++i) {
        attachment_record* const by_name = all.set.find("vf" + std::to_string(i));
        if ((by_name != nullptr) != (i % 2 == 1) || all.set.find(stream_id{i * 13}) != by_name)
            FAIL("device " << i);
    }
    CHECK(all.set.find(stream_id{1}) == nullptr);
    CHECK(all.set.find(stream_id{0xffff'ffff}) == nullptr);
    CHECK(all.set.find("vf") == nullptr);
    CHECK_FALSE(all.set.attach("beyond", window, stream_id{0x1'0000}, {}));
}

TEST_CASE("a detached device with a port lives on, and its name and StreamID are free") {
    devices all;
    attachment_record& old = all.attach("disk", 5);
    old.ports = 1;
    all.detach("disk");
    CHECK(all.set.find("disk") == nullptr);
    attachment_record& fresh = all.attach("disk", 5);
    CHECK(&fresh != &old);
    std::size_t records = 0;
    all.set.for_each([&](const attachment_record&) { ++records; });
    CHECK(records == 2);
    all.set.release_port(old);
    CHECK(all.set.find("disk") == &fresh);
    records = 0;
    all.set.for_each([&](const attachment_record&) { ++records; });
    CHECK(records == 1);
}

TEST_CASE("emptying the slots of some StreamIDs reaches them and no others") {
    // Few devices and a wide range are gone through by device, else by StreamID.
    const auto [first, last] = GENERATE(table<std::uint32_t, std::uint32_t>(
        {{20, 20}, {20, 21}, {15, 30}, {0, 0xffff'ffff}, {30, 0xffff'ffff}, {21, 29}, {31, 32}}));
    devices all;
    std::vector<attachment_record*> records;
    for (const std::uint32_t stream : {10U, 20U, 30U}) {
        records.push_back(&all.attach("d" + std::to_string(stream), stream));
        all.configure(*records.back());
    }
    all.set.empty_slots(all.configurations, first, last);
    for (const attachment_record* record : records) {
        const std::uint32_t stream = raw(record->subject.stream);
        CHECK((record->slot.get() == nullptr) == (first <= stream && stream <= last));
    }
}
