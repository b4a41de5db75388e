// expect: (cannot convert|cannot initialize).*(pa|int)
#include <vm_accel/core/address.hpp>

vm_accel::pa address = 0x1000;
