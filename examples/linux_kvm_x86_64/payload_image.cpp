#include "payload_image.hpp"

#if defined(PAYLOAD_IMAGE)

asm(".section .rodata\n"
    ".balign 16\n"
    "payload_image_begin:\n"
    ".incbin \"" PAYLOAD_IMAGE "\"\n"
    "payload_image_end:\n"
    ".text\n");
extern "C" const std::byte payload_image_begin[];
extern "C" const std::byte payload_image_end[];

std::span<const std::byte> payload_image() noexcept {
    return {payload_image_begin, payload_image_end};
}

#else

std::span<const std::byte> payload_image() noexcept { return {}; }

#endif
