/// The page request queue: what PCIe devices ask of the guest's driver
/// (IHI 0070, 8.1 and 8.2).
#pragma once

#include <vm_accel/guest/guest_memory.hpp>
#include <vm_accel/smmu/control/effects.hpp>
#include <vm_accel/smmu/control/queue_index.hpp>
#include <vm_accel/smmu/control/register_file.hpp>
#include <vm_accel/smmu/vocabulary/page_request.hpp>
#include <vm_accel/spec/page_requests.hpp>

#include <cstdint>
#include <optional>
#include <span>

namespace vm_accel::inline v0 {

[[nodiscard]] constexpr spec::page_request_record
make_page_request_record(stream_id stream, const page_request& asked) noexcept {
    using P = spec::page_request_record;
    P record;
    set<P::StreamID>(record, raw(stream));
    if (asked.has_substream) {
        set<P::SSV>(record, 1);
        set<P::SubstreamID>(record, raw(asked.substream));
        set<P::Priv>(record, asked.privileged ? 1 : 0);
        set<P::X>(record, asked.execute ? 1 : 0);
    }
    set<P::R>(record, asked.read ? 1 : 0);
    set<P::W>(record, asked.write ? 1 : 0);
    set<P::Last>(record, asked.last ? 1 : 0);
    set<P::PRGIndex>(record, asked.group);
    set<P::Addr>(record, raw(asked.address) >> P::Addr::low);
    return record;
}

/// What the SMMU itself answers when a request is not passed on.
struct page_request_result {
    std::optional<page_response> answer{};
    effects out{};
};

/// Threads: under the control lock.
template <smmu_features F>
class page_request_queue {
    using record_type = spec::page_request_record;

public:
    /// Passes a request on, or answers it. `overflows`: behave as if the queue
    /// were full. `keeps_pasid()` is asked when an overflow is answered: whether
    /// the response carries the PASID (STE.PPAR), nullopt = there is no valid
    /// STE to tell.
    template <guest_memory Memory, class KeepsPasid>
    [[nodiscard]] page_request_result push(register_file<F>& registers, Memory& memory,
                                           stream_id stream, const page_request& asked,
                                           bool overflows, KeepsPasid&& keeps_pasid) noexcept {
        page_request_result result;
        if (!registers.page_requests_enabled() ||
            registers.error_active(spec::GERROR::PRIQ_ABT_ERR::mask)) {
            result.answer = failure(asked);
            return result;
        }
        const std::uint32_t prod = registers.page_request_prod().load(std::memory_order_relaxed);
        const std::uint32_t cons = registers.page_request_cons().load(std::memory_order_relaxed);
        const queue_place queue = queue_place::of(registers.page_request_queue_base(),
                                                  F.page_request_queue_log2, sizeof(record_type));
        const bool overflowed = ((prod ^ cons) & overflow_flag) != 0;
        if (overflowed || overflows || queue.shape.is_full(prod, cons)) {
            // Until it is acknowledged, an overflow keeps everything out.
            if (!overflowed) {
                registers.page_request_prod().store(prod ^ overflow_flag,
                                                    std::memory_order_release);
                result.out.raise_priq = registers.priq_interrupt_enabled();
            }
            result.answer = success(asked, keeps_pasid);
            return result;
        }
        const record_type record = make_page_request_record(stream, asked);
        const std::uint64_t at =
            queue.base + std::uint64_t{queue.shape.entry(prod)} * sizeof(record);
        if (!memory.write(pa{at}, std::as_bytes(std::span{record.word}))) {
            result.answer = failure(asked);
            result.out.raise_gerror = registers.raise_error(spec::GERROR::PRIQ_ABT_ERR::mask) &&
                                      registers.gerror_interrupt_enabled();
            return result;
        }
        registers.page_request_prod().store(queue.shape.next(prod) | (prod & overflow_flag),
                                            std::memory_order_release);
        ++written_;
        result.out.raise_priq = registers.priq_interrupt_enabled() &&
                                (asked.last || !registers.priq_interrupt_last_only());
        return result;
    }

    [[nodiscard]] std::uint64_t written() const noexcept { return written_; }

private:
    static constexpr auto overflow_flag = static_cast<std::uint32_t>(spec::PRIQ_PROD::OVFLG::mask);

    /// PRGIndex has nine bits, whatever a device gives.
    [[nodiscard]] static constexpr std::uint16_t group_of(const page_request& asked) noexcept {
        return asked.group & 0x1ff;
    }
    /// Of every request, the last or not, without a PASID (8.2).
    [[nodiscard]] static std::optional<page_response> failure(const page_request& asked) noexcept {
        if (asked.is_stop_marker()) return std::nullopt;
        return page_response{.group = group_of(asked), .code = page_response_code::failure};
    }
    /// "Try again": of a group's last request (8.1).
    template <class KeepsPasid>
    [[nodiscard]] static std::optional<page_response> success(const page_request& asked,
                                                              KeepsPasid& keeps_pasid) noexcept {
        if (asked.is_stop_marker() || !asked.last) return std::nullopt;
        page_response answer{.group = group_of(asked), .code = page_response_code::success};
        if (!asked.has_substream || F.substream_bits == 0) return answer;
        const std::optional<bool> keeps = keeps_pasid();
        if (!keeps) {
            answer.code = page_response_code::failure;
        } else if (*keeps) {
            answer.has_substream = true;
            answer.substream = asked.substream;
        }
        return answer;
    }

    std::uint64_t written_ = 0;
};

} // namespace vm_accel::inline v0
