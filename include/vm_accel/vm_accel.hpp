/// Everything, for users. No header of the library includes this one.
#pragma once

#include <vm_accel/core/address.hpp>
#include <vm_accel/core/counter.hpp>
#include <vm_accel/core/error.hpp>
#include <vm_accel/core/field.hpp>
#include <vm_accel/core/fixed_text.hpp>
#include <vm_accel/core/result.hpp>
#include <vm_accel/core/roles.hpp>
#include <vm_accel/core/version.hpp>
#include <vm_accel/guest/copy.hpp>
#include <vm_accel/guest/guest_memory.hpp>
#include <vm_accel/guest/interrupt_sink.hpp>
#include <vm_accel/guest/region_map.hpp>
#include <vm_accel/os/descriptor.hpp>
