/// os::file_system_root: reading below a root that is not "/".
#include "os/fake_root.hpp"

using namespace vm_accel;

TEST_CASE("a file below the root is read whole, NULs included") {
    const fake_root fake;
    const std::string property{"arm,smmu-v3\0vendor,thing\0", 25};
    fake.file("/proc/device-tree/compatible", property);
    fake.file("/proc/empty", "");
    const os::file_system_root root = fake.root();
    CHECK(root.read_text("/proc/device-tree/compatible").value() == property);
    CHECK(root.read_text("/proc/empty").value().empty());
    CHECK(root.exists("/proc/empty"));
    CHECK_FALSE(root.exists("/proc/none"));
}

TEST_CASE("what is not there is not_found and names the path") {
    const fake_root fake;
    const os::file_system_root root = fake.root();
    const result<std::string> text = root.read_text("/proc/modules");
    REQUIRE_FALSE(text);
    CHECK(text.error() == errc::not_found);
    CHECK(text.error().cause.view().find("/proc/modules") != std::string_view::npos);
    CHECK(root.list("/sys").error() == errc::not_found);
    CHECK(root.read_link("/sys").error() == errc::not_found);
}

TEST_CASE("a directory lists its names in order") {
    const fake_root fake;
    fake.file("/d/b", "1");
    fake.file("/d/a", "1");
    fake.directory("/d/c");
    fake.link("/d/link", "c");
    const os::file_system_root root = fake.root();
    CHECK(root.list("/d").value() == std::vector<std::string>{"a", "b", "c", "link"});
    CHECK(root.is_directory("/d/c"));
    CHECK_FALSE(root.is_directory("/d/a"));
    CHECK_FALSE(root.is_directory("/d/link"));
    CHECK(root.exists("/d/link"));
    CHECK(root.list("/d/c").value().empty());
    CHECK_FALSE(root.list("/d/a"));
}

TEST_CASE("a link gives its text, and what is no link an error") {
    const fake_root fake;
    fake.link("/sys/l", "../nowhere/else");
    fake.file("/sys/f", "x");
    const os::file_system_root root = fake.root();
    CHECK(root.read_link("/sys/l").value() == "../nowhere/else");
    CHECK_FALSE(root.exists("/sys/l"));
    CHECK(root.read_link("/sys/f").error() == errc::invalid_argument);
}

TEST_CASE("a directory or a large file is no small text") {
    const fake_root fake;
    fake.directory("/d");
    fake.file("/large", std::string(os::file_system_root::max_text_bytes + 1, 'x'));
    fake.file("/largest", std::string(os::file_system_root::max_text_bytes, 'x'));
    const os::file_system_root root = fake.root();
    CHECK_FALSE(root.read_text("/d"));
    CHECK(root.read_text("/large").error() == errc::out_of_range);
    CHECK(root.read_text("/largest").value().size() == os::file_system_root::max_text_bytes);
}

TEST_CASE("trailing slashes of a root and missing leading ones make no difference") {
    CHECK(os::file_system_root{"/a/"}.host_path("/b") == "/a/b");
    CHECK(os::file_system_root{"/a"}.host_path("b") == "/a/b");
    CHECK(os::file_system_root{"/"}.host_path("/b") == "/b");
    CHECK(os::file_system_root{}.host_path("/b") == "/b");
}
