// expect: (no match for .operator==|invalid operands to binary expression)
#include <vm_accel/core/address.hpp>

bool same(vm_accel::ipa a, vm_accel::pa b) { return a == b; }
