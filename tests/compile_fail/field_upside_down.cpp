// expect: a field is named \[high:low\] within one 64-bit word
#include <vm_accel/core/field.hpp>

using wrong = vm_accel::field<0, 12, 51>;
constexpr auto mask = wrong::width;
