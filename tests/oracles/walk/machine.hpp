/// The emulated machine: its RAM as a shared file, and one run of it per batch.
#pragma once

#include "guest.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <spawn.h>
#include <string>
#include <vector>

extern char** environ;

namespace oracle {

class machine {
public:
    /// `emulator` starts qemu-system-aarch64; `ram` is a file to be made; `program` the ELF file.
    machine(std::vector<std::string> emulator, std::string ram, const std::string& program)
        : command_(std::move(emulator)), ram_path_(std::move(ram)) {
        const int file = open(ram_path_.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
        if (file < 0 || ftruncate(file, ORACLE_RAM_BYTES) != 0) fail("cannot make", ram_path_);
        void* at = mmap(nullptr, ORACLE_RAM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        close(file);
        if (at == MAP_FAILED) fail("cannot map", ram_path_);
        memory_ = static_cast<std::byte*>(at);
        const std::string megabytes = std::to_string(ORACLE_RAM_BYTES >> 20) + "M";
        for (const std::string& word :
             {std::string("-M"),
              std::string("virt,virtualization=on,secure=on,highmem-ecam=off,highmem-mmio=off,"
                          "memory-backend=ram"),
              std::string("-cpu"), std::string("max"), std::string("-smp"), std::string("1"),
              std::string("-m"), megabytes, std::string("-object"),
              "memory-backend-file,id=ram,share=on,size=" + megabytes + ",mem-path=" + ram_path_,
              std::string("-kernel"), program, std::string("-semihosting"),
              std::string("-nodefaults"), std::string("-display"), std::string("none")}) {
            command_.push_back(word);
        }
    }
    machine(const machine&) = delete;
    machine& operator=(const machine&) = delete;
    ~machine() {
        munmap(memory_, ORACLE_RAM_BYTES);
        unlink(ram_path_.c_str());
    }

    /// Memory at a physical address inside RAM.
    [[nodiscard]] std::byte* at(std::uint64_t address) const noexcept {
        return memory_ + (address - ORACLE_RAM);
    }
    /// Runs the batch that is in memory to its end.
    void run() const {
        std::vector<char*> words;
        for (const std::string& word : command_)
            words.push_back(const_cast<char*>(word.c_str()));
        words.push_back(nullptr);
        pid_t child = 0;
        if (posix_spawn(&child, words[0], nullptr, nullptr, words.data(), environ) != 0) {
            fail("cannot start", command_[0]);
        }
        int status = 0;
        if (waitpid(child, &status, 0) != child || status != 0) {
            fail("the emulated machine did not end well: status", std::to_string(status));
        }
    }

private:
    [[noreturn]] static void fail(const char* what, const std::string& name) {
        std::fprintf(stderr, "walk_oracle: %s %s: %s\n", what, name.c_str(), std::strerror(errno));
        std::exit(2);
    }

    std::vector<std::string> command_;
    std::string ram_path_;
    std::byte* memory_ = nullptr;
};

} // namespace oracle
