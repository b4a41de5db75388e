// expect: convert.*iova|no viable conversion from '(vm_accel::)?iova'|cannot initialize.*with an lvalue of type '(vm_accel::)?iova'
#include <vm_accel/core/address.hpp>

using namespace vm_accel;

bool in_window(pa_range window, iova address) { return window.contains(address); }
