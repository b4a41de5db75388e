#include <vm_accel/spec/cd.hpp>
#include <vm_accel/spec/commands.hpp>
#include <vm_accel/spec/descriptors.hpp>
#include <vm_accel/spec/events.hpp>
#include <vm_accel/spec/registers.hpp>
#include <vm_accel/spec/ste.hpp>
