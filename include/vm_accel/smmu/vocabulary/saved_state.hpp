/// The form in which an SMMU's state is saved.
///
/// A state is a row of 64-bit little-endian words: a header of five (what it is,
/// version, what features it is for, bytes in all, checksum), then one section
/// for each part, led by a word that names it. Every word is checked when it
/// is read, and nothing is changed before all of them are found sound.
///
/// A part has one function that visits its words, `visit_state(visit)`, for
/// writing, checking and loading alike: `visit(field, allowed)` for each field,
/// with the bits that it can have, gives the field's word; `visit.require(c)`
/// says what else must hold.
#pragma once

#include <vm_accel/core/field.hpp>
#include <vm_accel/core/result.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace vm_accel::inline v0 {

/// Sections, in their order.
enum class state_section : std::uint8_t {
    registers = 1,
    commands,
    stalls,
    devices,
    performance,
    end
};

namespace saved_state {

inline constexpr std::uint64_t magic = 0x554d'4d53'4341'4d56; ///< "VMACSMMU"
/// Raised when what is saved changes. Other versions are refused.
inline constexpr std::uint64_t version = 1;
inline constexpr std::size_t header_words = 5;

[[nodiscard]] inline std::uint64_t word_at(std::span<const std::byte> state,
                                           std::size_t index) noexcept {
    std::uint64_t word = 0;
    std::memcpy(&word, state.data() + index * 8, 8);
    return little_endian(word);
}
inline void put_word(std::span<std::byte> state, std::size_t index, std::uint64_t word) noexcept {
    const std::uint64_t stored = little_endian(word);
    std::memcpy(state.data() + index * 8, &stored, 8);
}

/// Over every word but the checksum itself. Finds accidents, not forgeries: a
/// forged state is checked word by word like any other.
[[nodiscard]] inline std::uint64_t checksum(std::span<const std::byte> state) noexcept {
    std::uint64_t sum = 0xcbf2'9ce4'8422'2325;
    for (std::size_t i = 0; i < state.size() / 8; ++i) {
        if (i == 4) continue;
        sum = (sum ^ word_at(state, i)) * 0x0000'0100'0000'01b3;
        sum ^= sum >> 31;
    }
    return sum;
}

/// Whether these bytes are a whole state for those features. Errors: mismatch,
/// with a cause that says what differs.
[[nodiscard]] inline result<> check_header(std::span<const std::byte> state,
                                           std::uint64_t fingerprint) noexcept {
    const auto refuse = [](const char* cause, const char* cure) {
        return fail(errc::mismatch, fixed_text<160>{"saved SMMU state: "}.append(cause), cure);
    };
    if (state.size() < header_words * 8 || word_at(state, 0) != magic) {
        return refuse("not one at all", "pass what smmu::save() has written, from its start");
    }
    if (word_at(state, 1) != version) {
        return fail(errc::mismatch,
                    fixed_text<160>{"saved SMMU state: version "}
                        .append_number(word_at(state, 1))
                        .append(", this library reads version ")
                        .append_number(version),
                    "save and restore with the same version of the library");
    }
    if (word_at(state, 2) != fingerprint) {
        return refuse("made by an SMMU with other features",
                      "restore into an SMMU of the same features and size of queues");
    }
    if (word_at(state, 3) != state.size() || state.size() % 8 != 0) {
        return refuse("another length than it says", "pass all bytes that save() has written");
    }
    if (word_at(state, 4) != checksum(state)) {
        return refuse("damaged: its checksum differs", "take another copy");
    }
    return {};
}

} // namespace saved_state

/// Writes a state, or only counts its words.
class state_writer {
public:
    /// With an empty span nothing is written.
    explicit state_writer(std::span<std::byte> out) noexcept : out_(out) {}

    template <class Field>
    std::uint64_t operator()(const Field& field, std::uint64_t) noexcept {
        const auto value = static_cast<std::uint64_t>(Field{field});
        put(value);
        return value;
    }
    template <class T>
    std::uint64_t operator()(const std::atomic<T>& field, std::uint64_t) noexcept {
        const auto value = static_cast<std::uint64_t>(field.load(std::memory_order_acquire));
        put(value);
        return value;
    }
    void require(bool, const char* = nullptr) noexcept {}
    void section(state_section which) noexcept { put(static_cast<std::uint64_t>(which)); }
    [[nodiscard]] static constexpr bool is_loading() noexcept { return false; }

    /// Bytes that the whole state has.
    [[nodiscard]] std::size_t bytes() const noexcept { return words_ * 8; }
    /// Puts the header before what was written.
    void finish(std::uint64_t fingerprint) noexcept {
        saved_state::put_word(out_, 0, saved_state::magic);
        saved_state::put_word(out_, 1, saved_state::version);
        saved_state::put_word(out_, 2, fingerprint);
        saved_state::put_word(out_, 3, bytes());
        saved_state::put_word(out_, 4, saved_state::checksum(out_.first(bytes())));
    }

private:
    void put(std::uint64_t word) noexcept {
        if ((words_ + 1) * 8 <= out_.size()) saved_state::put_word(out_, words_, word);
        ++words_;
    }
    std::span<std::byte> out_;
    std::size_t words_ = saved_state::header_words;
};

/// Checks a state's words, or loads them. Its header has been checked.
class state_reader {
public:
    enum class purpose : std::uint8_t { check, load };
    state_reader(std::span<const std::byte> state, purpose why) noexcept
        : state_(state), why_(why) {}

    template <class Field>
    std::uint64_t operator()(Field& field, std::uint64_t allowed) noexcept {
        const std::uint64_t word = take(allowed);
        if (is_loading()) field = static_cast<Field>(word);
        return word;
    }
    template <class T>
    std::uint64_t operator()(std::atomic<T>& field, std::uint64_t allowed) noexcept {
        const std::uint64_t word = take(allowed);
        if (is_loading()) field.store(static_cast<T>(word), std::memory_order_release);
        return word;
    }
    /// Of the word that was read last. `why` ends a sentence about that word.
    void require(bool holds, const char* why = no_such_value) noexcept {
        if (!holds) refuse(why);
    }
    void section(state_section which) noexcept {
        const std::uint64_t word = take(0xff);
        if (word != static_cast<std::uint64_t>(which)) refuse();
    }
    [[nodiscard]] bool is_loading() const noexcept {
        return why_ == purpose::load && refused_ == 0;
    }

    /// Error: mismatch, naming the first word that cannot be.
    [[nodiscard]] result<> finish() noexcept {
        if (refused_ == 0 && next_ * 8 != state_.size()) refused_ = next_ + 1;
        if (refused_ == 0) return {};
        return fail(errc::mismatch,
                    fixed_text<160>{"saved SMMU state: word "}
                        .append_number(refused_ - 1)
                        .append(" ")
                        .append(why_refused_),
                    "take another copy, or prepare the SMMU as the saved one was");
    }

private:
    [[nodiscard]] std::uint64_t take(std::uint64_t allowed) noexcept {
        if (refused_ != 0) return 0;
        ++next_;
        if (next_ * 8 > state_.size()) {
            refuse();
            return 0;
        }
        const std::uint64_t word = saved_state::word_at(state_, next_ - 1);
        if ((word & ~allowed) != 0) refuse();
        return word;
    }
    void refuse(const char* why = no_such_value) noexcept {
        if (refused_ != 0) return;
        refused_ = next_;
        why_refused_ = why;
    }
    static constexpr const char* no_such_value = "has a value that no SMMU with these features has";

    std::span<const std::byte> state_;
    purpose why_;
    std::size_t next_ = saved_state::header_words;
    const char* why_refused_ = no_such_value;
    std::size_t refused_ = 0; ///< number of the word that was refused, plus one
};

} // namespace vm_accel::inline v0
