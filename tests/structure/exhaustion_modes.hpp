/// What the two halves of exhaustion_modes, one with exceptions and one without, show each other.
#pragma once

/// The half that has no exceptions: an address of its own report_exhaustion.
const void* reporter_without_exceptions();
/// It also uses the allocator, so that its code is in the program.
bool allocates_without_exceptions();
/// Asks an exhausted pool for more: the program is to end in there (std::abort).
void exhausts_without_exceptions();
