/// A directory that looks like the root of some machine, removed at the end.
#pragma once

#include <vm_accel/os/file_system.hpp>

#include <catch2/catch.hpp>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

class fake_root {
public:
    fake_root() {
        std::string pattern = (std::filesystem::temp_directory_path() / "vm_accel.XXXXXX").string();
        REQUIRE(::mkdtemp(pattern.data()) != nullptr);
        directory_ = pattern;
    }
    fake_root(const fake_root&) = delete;
    fake_root& operator=(const fake_root&) = delete;
    ~fake_root() {
        std::error_code ignored;
        std::filesystem::remove_all(directory_, ignored);
    }

    void directory(std::string_view path) const { std::filesystem::create_directories(at(path)); }
    void file(std::string_view path, std::string_view text) const {
        std::filesystem::create_directories(at(path).parent_path());
        std::ofstream out{at(path), std::ios::binary};
        out << text;
        REQUIRE(out.good());
    }
    void link(std::string_view path, std::string_view target) const {
        std::filesystem::create_directories(at(path).parent_path());
        std::filesystem::create_symlink(target, at(path));
    }
    [[nodiscard]] vm_accel::os::file_system_root root() const {
        return vm_accel::os::file_system_root{directory_.string()};
    }
    [[nodiscard]] std::filesystem::path at(std::string_view path) const {
        return directory_ / std::filesystem::path{path}.relative_path();
    }

private:
    std::filesystem::path directory_;
};
