/// The console: as much of a PL011 UART as Linux uses to print.
///
/// The transmitter is always empty: a character written is a character sent,
/// and the transmit interrupt is raised at once. Nothing is ever received.
/// Output is collected and handed to the sink line by line, because each hand
/// over is a system call and each character is already an exit of the guest.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <string_view>

namespace linux_vmm {

/// `Sink`: void(std::string_view) noexcept, takes finished lines.
/// `Line`: void(bool level) noexcept, the interrupt line.
/// Threads: any vCPU thread may call any function.
template <class Sink, class Line>
class pl011 {
public:
    pl011(Sink sink, Line line) noexcept : sink_(sink), line_(line) {}
    ~pl011() { flush(); }
    pl011(const pl011&) = delete;
    pl011& operator=(const pl011&) = delete;

    [[nodiscard]] std::uint32_t read(std::uint64_t offset) noexcept {
        const std::lock_guard lock{mutex_};
        switch (offset) {
        case fr:
            return transmit_fifo_empty | receive_fifo_empty;
        case ibrd:
            return integer_divisor_;
        case fbrd:
            return fractional_divisor_;
        case lcr_h:
            return line_control_;
        case cr:
            return control_;
        case ifls:
            return fifo_level_;
        case imsc:
            return mask_;
        case ris:
            return raised_;
        case mis:
            return raised_ & mask_;
        default:
            return identification(offset);
        }
    }

    void write(std::uint64_t offset, std::uint32_t value) noexcept {
        const std::lock_guard lock{mutex_};
        switch (offset) {
        case dr:
            put(static_cast<char>(value & 0xff));
            raised_ |= transmit_interrupt;
            break;
        case ibrd:
            integer_divisor_ = value & 0xffff;
            break;
        case fbrd:
            fractional_divisor_ = value & 0x3f;
            break;
        case lcr_h:
            line_control_ = value & 0xff;
            break;
        case cr:
            control_ = value & 0xffff;
            break;
        case ifls:
            fifo_level_ = value & 0x3f;
            break;
        case imsc:
            mask_ = value & 0x7ff;
            break;
        case icr:
            raised_ &= ~value;
            break;
        default:
            return;
        }
        drive_line();
    }

    /// For a machine at rest. Unfinished lines are the output's, not the state's.
    template <class State>
    void move_state(State& state) {
        const std::lock_guard lock{mutex_};
        for (std::uint32_t* word : {&integer_divisor_, &fractional_divisor_, &line_control_,
                                    &control_, &fifo_level_, &mask_, &raised_})
            state(*word);
        drive_line();
    }

    /// Hands over what is left of an unfinished line.
    void flush() noexcept {
        const std::lock_guard lock{mutex_};
        hand_over();
    }

private:
    // Register offsets (Arm DDI 0183, 3.2).
    static constexpr std::uint64_t dr = 0x00, fr = 0x18, ibrd = 0x24, fbrd = 0x28, lcr_h = 0x2c,
                                   cr = 0x30, ifls = 0x34, imsc = 0x38, ris = 0x3c, mis = 0x40,
                                   icr = 0x44, first_identification = 0xfe0;
    static constexpr std::uint32_t receive_fifo_empty = 1u << 4, transmit_fifo_empty = 1u << 7;
    static constexpr std::uint32_t transmit_interrupt = 1u << 5;

    /// UARTPeriphID0-3 and UARTPCellID0-3: PL011 r1p4.
    [[nodiscard]] static std::uint32_t identification(std::uint64_t offset) noexcept {
        constexpr std::array<std::uint8_t, 8> id{0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1};
        if (offset < first_identification || offset % 4 != 0) return 0;
        const std::uint64_t index = (offset - first_identification) / 4;
        return index < id.size() ? id[static_cast<std::size_t>(index)] : 0;
    }

    void put(char c) noexcept {
        text_[used_++] = c;
        if (c == '\n' || used_ == text_.size()) hand_over();
    }

    void hand_over() noexcept {
        if (used_ != 0) sink_(std::string_view{text_.data(), used_});
        used_ = 0;
    }

    void drive_line() noexcept {
        const bool level = (raised_ & mask_) != 0;
        if (level == level_) return;
        level_ = level;
        line_(level);
    }

    std::mutex mutex_;
    Sink sink_;
    Line line_;
    std::array<char, 4096> text_{};
    std::size_t used_ = 0;
    std::uint32_t integer_divisor_ = 0, fractional_divisor_ = 0, line_control_ = 0;
    std::uint32_t control_ = 0x300, fifo_level_ = 0x12, mask_ = 0, raised_ = 0;
    bool level_ = false;
};

} // namespace linux_vmm
