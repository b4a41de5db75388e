/// The golden model: QEMU's SMMUv3 with `edu` devices behind it, driven over qtest.
///
/// Its RAM is a file that this program maps too, so tables, rings and data need no protocol: only
/// registers and the devices' DMA engines go through the socket.
#pragma once

#include "machine_layout.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace differential {

/// One DMA of an edu device. `buffer` is an offset into the device's own memory.
struct transfer {
    unsigned device = 0;
    bool write = false;
    std::uint64_t address = 0;
    std::uint32_t length = 4;
    std::uint32_t buffer = 0;
};

class golden_model {
public:
    /// `command`: the words that start qemu-system-aarch64. `folder`: for the RAM file and the
    /// BIOS, in memory if possible.
    golden_model(const std::vector<std::string>& command, const std::string& folder) {
        const std::string ram_path = folder + "/ram";
        const std::string bios_path = folder + "/bios";
        const int file = ::open(ram_path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (file < 0 || ::ftruncate(file, static_cast<off_t>(ram_bytes)) != 0) {
            throw std::runtime_error("cannot make " + ram_path);
        }
        void* const mapped =
            ::mmap(nullptr, ram_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        ::close(file);
        if (mapped == MAP_FAILED) throw std::runtime_error("cannot map " + ram_path);
        ram_ = static_cast<std::byte*>(mapped);
        // The CPU has nothing to do: wfi; b .
        constexpr std::array<unsigned char, 8> idle{0x7f, 0x20, 0x03, 0xd5, 0xff, 0xff, 0xff, 0x17};
        std::FILE* const bios = std::fopen(bios_path.c_str(), "wb");
        if (bios == nullptr || std::fwrite(idle.data(), 1, idle.size(), bios) != idle.size()) {
            throw std::runtime_error("cannot write " + bios_path);
        }
        std::fclose(bios);

        std::vector<std::string> words = command;
        const std::string megabytes = std::to_string(ram_bytes >> 20);
        for (const std::string& word : {
                 std::string{"-M"},
                 std::string{"virt,iommu=smmuv3,gic-version=3,memory-backend=ram"},
                 std::string{"-object"},
                 "memory-backend-file,id=ram,share=on,size=" + megabytes + "M,mem-path=" + ram_path,
                 std::string{"-m"},
                 megabytes,
                 std::string{"-cpu"},
                 std::string{"cortex-a57"},
                 std::string{"-accel"},
                 std::string{"tcg"},
                 std::string{"-icount"},
                 std::string{"shift=0,sleep=off"},
                 std::string{"-bios"},
                 bios_path,
                 std::string{"-nodefaults"},
                 std::string{"-display"},
                 std::string{"none"},
                 std::string{"-qtest"},
                 std::string{"stdio"},
                 std::string{"-qtest-log"},
                 std::string{"none"},
             }) {
            words.push_back(word);
        }
        for (unsigned i = 0; i < device_count; ++i) {
            char text[64];
            std::snprintf(text, sizeof text, "edu,addr=%x,dma_mask=0xffffffffffffffff", i + 1);
            words.insert(words.end(), {"-device", text});
        }
        start(words);
        for (unsigned i = 0; i < device_count; ++i) {
            const std::uint64_t configuration = 0x40'1000'0000 + ((i + 1) << 15);
            write32(configuration + 0x10, static_cast<std::uint32_t>(registers_of(i)));
            write32(configuration + 0x4, 0x6);
        }
        finish();
    }
    golden_model(const golden_model&) = delete;
    golden_model& operator=(const golden_model&) = delete;
    ~golden_model() {
        ::close(socket_);
        ::kill(process_, SIGKILL);
        ::waitpid(process_, nullptr, 0);
        ::munmap(ram_, ram_bytes);
    }

    [[nodiscard]] std::byte* ram() const { return ram_; }

    /// Queued until finish().
    void write_register(std::uint32_t offset, std::uint32_t value) {
        write32(smmu_base + offset, value);
    }
    void write_register64(std::uint32_t offset, std::uint64_t value) {
        write64(smmu_base + offset, value);
    }
    /// Gives the index of the answer that finish() fills.
    std::size_t read_register(std::uint32_t offset) {
        command("readl 0x", smmu_base + offset);
        return asked_ - 1;
    }

    /// Queues a transfer; each device can have one under way until complete().
    void start_transfer(const transfer& t) {
        const std::uint64_t base = registers_of(t.device);
        const std::uint64_t own = 0x40000 + t.buffer;
        const std::array<std::uint64_t, 3> wanted{t.write ? own : t.address,
                                                  t.write ? t.address : own, t.length};
        for (std::size_t i = 0; i < wanted.size(); ++i) {
            if (engine_[t.device][i] == wanted[i]) continue;
            write64(base + 0x80 + 8 * i, wanted[i]);
            engine_[t.device][i] = wanted[i];
        }
        write32(base + 0x98, t.write ? 3 : 1);
        last_ = t.device;
    }
    /// Waits until all transfers have been made, in the order of their start. Gives EVENTQ_PROD.
    std::uint32_t complete() {
        for (;;) {
            command("readl 0x", registers_of(last_) + 0x98);
            const std::size_t produced = read_register(0x100a8);
            finish();
            if ((answers_[produced - 1] & 1) == 0)
                return static_cast<std::uint32_t>(answers_[produced]);
        }
    }

    /// Sends what is queued and waits for all answers.
    const std::vector<std::uint64_t>& finish() {
        const char* at = out_.data();
        std::size_t left = out_.size();
        while (left > 0) {
            const ssize_t sent = ::write(socket_, at, left);
            if (sent <= 0) throw std::runtime_error("QEMU has ended");
            at += sent;
            left -= static_cast<std::size_t>(sent);
        }
        out_.clear();
        answers_.clear();
        while (answers_.size() < asked_) {
            char text[4096];
            const ssize_t got = ::read(socket_, text, sizeof text);
            if (got <= 0) throw std::runtime_error("QEMU has ended");
            in_.append(text, static_cast<std::size_t>(got));
            std::size_t begin = 0;
            for (std::size_t end = 0; (end = in_.find('\n', begin)) != std::string::npos;
                 begin = end + 1) {
                answer(std::string_view{in_}.substr(begin, end - begin));
            }
            in_.erase(0, begin);
        }
        asked_ = 0;
        return answers_;
    }

private:
    static constexpr std::uint64_t smmu_base = 0x905'0000;
    static constexpr std::uint64_t registers_of(unsigned device) {
        return 0x1000'0000 + device * std::uint64_t{0x10'0000};
    }

    void start(const std::vector<std::string>& words) {
        std::array<int, 2> ends{};
        if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) {
            throw std::runtime_error("no socket pair");
        }
        std::vector<char*> arguments;
        for (const std::string& word : words)
            arguments.push_back(const_cast<char*>(word.c_str()));
        arguments.push_back(nullptr);
        process_ = ::fork();
        if (process_ < 0) throw std::runtime_error("cannot fork");
        if (process_ == 0) {
            ::prctl(PR_SET_PDEATHSIG, SIGKILL);
            ::dup2(ends[1], 0);
            ::dup2(ends[1], 1);
            ::execv(arguments[0], arguments.data());
            std::perror(arguments[0]);
            ::_exit(127);
        }
        ::close(ends[1]);
        socket_ = ends[0];
    }

    void number(std::uint64_t value) {
        std::array<char, 20> digits{};
        const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value, 16);
        out_.append(digits.data(), end.ptr);
    }
    void command(std::string_view words, std::uint64_t address) {
        out_ += words;
        number(address);
        out_ += '\n';
        ++asked_;
    }
    void write_value(std::string_view words, std::uint64_t address, std::uint64_t value) {
        out_ += words;
        number(address);
        out_ += " 0x";
        number(value);
        out_ += '\n';
        ++asked_;
    }
    void write32(std::uint64_t address, std::uint32_t value) {
        write_value("writel 0x", address, value);
    }
    void write64(std::uint64_t address, std::uint64_t value) {
        write_value("writeq 0x", address, value);
    }
    /// `OK`, or `OK 0x...` for a read.
    void answer(std::string_view line) {
        if (line.substr(0, 2) != "OK") {
            throw std::runtime_error("QEMU answered: " + std::string{line});
        }
        std::uint64_t value = 0;
        if (line.size() > 5) std::from_chars(line.data() + 5, line.data() + line.size(), value, 16);
        answers_.push_back(value);
    }

    std::byte* ram_ = nullptr;
    pid_t process_ = -1;
    int socket_ = -1;
    unsigned last_ = 0;
    /// Source, destination and length, as the devices have them.
    std::array<std::array<std::uint64_t, 3>, device_count> engine_{};
    std::string out_;
    std::string in_;
    std::size_t asked_ = 0;
    std::vector<std::uint64_t> answers_;
};

} // namespace differential
