/// What the two halves of exhaustion_modes, one with exceptions and one without, show each other.
#pragma once

/// The half that has no exceptions: an address of its own report_exhaustion.
const void* reporter_without_exceptions();
/// It also uses the allocator, so that its code is in the program.
bool allocates_without_exceptions();
